"""``torch.compile`` of blocks made of gpuconv: one graph, static and dynamic, forward and backward, equal results."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import BLOCKS, build
from torch._dynamo.testing import CompileCounterWithBackend

import gpuconv.nn

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model: torch.nn.Module, compiled: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return output, gradients of the parameters and of the input."""
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = compiled(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor], exact: bool) -> None:
    """Compare results. Gradients of biases are sums of torch in a graph, and else ride along with the weight's: in
    another order, so that they are equal but for roundings of float32.
    """
    for one, other in zip(ours, theirs, strict=True):
        if exact and one.dim() == 1:
            torch.testing.assert_close(one, other)
        else:
            options = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(one, other, **options)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("name", BLOCKS)
def test_static(name: str, last: bool) -> None:
    model = build(name, gpuconv.nn).eval()
    x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    assert_equal(results(model, compiled, x), results(model, model, x), exact=True)
    reference = build(name, torch.nn).eval()
    assert_equal(results(model, model, x), results(reference, reference, x), exact=False)


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", BLOCKS)
def test_five_new_shapes_compile_nothing_new(name: str, grad: bool) -> None:
    model = build(name, gpuconv.nn).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    shapes = [(2, 4, 8, 8), (3, 4, 10, 12), (5, 4, 9, 8), (2, 4, 16, 11), (4, 4, 21, 20), (6, 4, 7, 33), (7, 4, 40, 9)]
    counts = []
    for shape in shapes:
        x = torch.randn(shape)
        if grad:
            assert_equal(results(model, compiled, x), results(model, model, x), exact=True)
        else:
            with torch.no_grad():
                assert_equal([compiled(x)], [model(x)], exact=True)
        counts.append(counter.frame_count)
    assert counts[1:] == [2] * 6, f"frames compiled after each shape: {counts}"


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", BLOCKS)
def test_inductor(name: str, dynamic: bool) -> None:
    model = build(name, gpuconv.nn).eval().to(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for shape in ((2, 4, 9, 8), (3, 4, 12, 10))[: 1 + dynamic]:
        x = torch.randn(shape).to(memory_format=torch.channels_last)
        assert_equal(results(model, compiled, x), results(model, model, x), exact=False)


def every_function(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor) -> list[torch.Tensor]:
    """Every convolution function and every form of its arguments."""
    y = gpuconv.conv2d(x, w, padding="same_upper", stride=2, padding_mode="replicate", activation="gelu", scale=r)
    z = gpuconv.conv2d(x[0], w, padding=((1, 2), (0, 1)), residual=None, shift=r)
    t = gpuconv.conv_transpose2d(y, w, stride=2, padding=1, output_size=x.shape[2:])
    one = gpuconv.conv1d(x[:, :, 0], w[:, :, 0], padding="causal", dilation=2, precision="ieee", backend="numpy")
    three = gpuconv.conv3d(x[:, :, None], w[:, :, None], groups=1, activation="relu")
    dx = gpuconv.conv2d_input_grad(x.shape, w, y, padding="same_upper", stride=2)
    dw = gpuconv.conv2d_weight_grad(x, w.shape, y, padding="same_upper", stride=2)
    return [y, z, t, one, three, dx, dw]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_every_function(grad: bool, dynamic: bool) -> None:
    compiled = torch.compile(every_function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    args = [torch.randn(shape).requires_grad_(grad) for shape in ((2, 4, 10, 12), (6, 4, 3, 3), (6,))]
    ours, theirs = compiled(*args), every_function(*args)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()
    if grad:
        assert_equal(
            list(torch.autograd.grad(sum(y.square().sum() for y in ours), args)),
            list(torch.autograd.grad(sum(y.square().sum() for y in theirs), args)),
            exact=False,
        )


def test_the_fused_epilogue_is_in_the_graph_where_nothing_needs_a_gradient() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return gpuconv.conv2d(x, w, activation="relu", backend="numpy", precision="tf32")

    torch.compile(f, fullgraph=True, backend=keep)(torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3))
    (call,) = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert "gpuconv.fprop" in str(call.target) and call.args[-4:] == ("relu", "fused", "tf32", "numpy")


def test_errors_are_those_of_calls() -> None:
    compiled = torch.compile(gpuconv.conv2d, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="weight must have the input's channels"):
        compiled(torch.randn(1, 3, 5, 5), torch.randn(6, 4, 3, 3))


def test_the_first_call_of_a_process_may_be_compiled() -> None:
    code = """
import gpuconv
import torch
f = torch.compile(lambda x, w: gpuconv.conv2d(x, w, padding=1), fullgraph=True, backend="aot_eager")
x, w = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3, requires_grad=True)
y = f(x, w)
y.sum().backward()
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1))
print(tuple(w.grad.shape))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "(6, 4, 3, 3)"), done.stderr
