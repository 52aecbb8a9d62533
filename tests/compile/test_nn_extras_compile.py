"""Modules with arguments beyond PyTorch's under ``torch.compile``, ``torch.export`` and ``torch.fx``."""

import pickle

import pytest
import torch
import torch.nn.functional as F

import gpuconv.nn


class Block(torch.nn.Module):
    """A residual block whose second convolution adds and activates, and a pool with a named padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = gpuconv.nn.Conv2d(4, 4, 3, padding="same_upper", activation="silu", backend="numpy")
        self.second = gpuconv.nn.Conv2d(4, 4, 3, padding=((1, 1), (0, 2)), activation="relu", precision="ieee")
        self.up = gpuconv.nn.ConvTranspose2d(4, 2, 2, stride=2, activation="relu6")
        self.pools = torch.nn.Sequential(
            gpuconv.nn.MaxPool2d(3, 2, "same_lower", backend="numpy"), gpuconv.nn.AvgPool2d(2, 1, dilation=2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pools(self.up(self.second(self.first(x), residual=x)))


def by_torch(block: Block, x: torch.Tensor) -> torch.Tensor:
    first, second, up = block.first, block.second, block.up
    y = F.silu(F.conv2d(x, first.weight, first.bias, padding=1))
    y = F.relu(F.conv2d(F.pad(y, (0, 2, 1, 1)), second.weight, second.bias) + x)
    y = F.relu6(F.conv_transpose2d(y, up.weight, up.bias, 2))
    y = F.max_pool2d(F.pad(y, (1, 0, 1, 0), value=-torch.inf), 3, 2)
    return F.conv2d(y, torch.full((2, 1, 2, 2), 0.25), dilation=2, groups=2)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def test_eager(block: Block) -> None:
    x = torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(block(x), by_torch(block, x))


def test_compile_in_one_graph(block: Block) -> None:
    x = torch.randn(2, 4, 6, 8)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), by_torch(block, x))
    mine = torch.autograd.grad(compiled(x).square().sum(), list(block.parameters()))
    expected = torch.autograd.grad(by_torch(block, x).square().sum(), list(block.parameters()))
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_export(block: Block) -> None:
    x = torch.randn(2, 4, 6, 8)
    exported = torch.export.export(block.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), by_torch(block, x))


def test_symbolic_trace(block: Block) -> None:
    x = torch.randn(2, 4, 6, 8)
    traced = torch.fx.symbolic_trace(block)
    found = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert found == [gpuconv.conv2d] * 2 + [gpuconv.conv_transpose2d, gpuconv.max_pool2d, gpuconv.avg_pool2d]
    torch.testing.assert_close(pickle.loads(pickle.dumps(traced))(x), by_torch(block, x))
    layer = torch.fx.symbolic_trace(block.second)  # the layer alone: its residual is an input of the graph
    torch.testing.assert_close(layer(x), block.second(x))
    torch.testing.assert_close(layer(x, residual=x), block.second(x, residual=x))
