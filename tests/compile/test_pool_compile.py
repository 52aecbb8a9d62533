"""``torch.compile`` and ``torch.export`` of a small net of pools: one graph, forward and backward, equal results."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import gpuconv.nn
import gpuconv.ops.conv

REPO = Path(__file__).resolve().parents[2]
DIM = torch.export.Dim.DYNAMIC


class Net(torch.nn.Module):
    """Every family of pools between two convolutions; unpooling back to the size of the input."""

    def __init__(self, nn: ModuleType) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.stem = nn.MaxPool2d(3, stride=2, padding=1)
        self.mean = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.power = nn.LPPool2d(2, 2, ceil_mode=True)
        self.corners = nn.AdaptiveMaxPool2d((2, 3))
        self.every = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y, where = self.pool(x)
        x = x + self.unpool(y, where, output_size=x.shape[2:])
        z = self.power(self.mean(self.stem(x)).abs() + 0.1)
        return torch.cat(
            [
                self.corners(x).flatten(1),
                self.every(z).flatten(1),
                self.corners(x[0])[None].flatten(1).expand(x.shape[0], -1),
            ],
            1,
        )


def build(nn: ModuleType) -> Net:
    torch.manual_seed(0)
    return Net(nn).double()


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model: torch.nn.Module, compiled: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return output, gradients of the input and of the parameters."""
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = compiled(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def image(*shape: int, last: bool = False) -> torch.Tensor:
    x = torch.randn(shape, dtype=torch.float64)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_static(last: bool) -> None:
    model, reference = build(gpuconv.nn), build(torch.nn)
    x = image(2, 3, 9, 8, last=last)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    ours = results(model, compiled, x)
    assert_equal(ours, results(model, model, x))
    assert_equal(ours, results(reference, reference, x))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_new_shapes_compile_nothing_new(grad: bool) -> None:
    """Whether ceil mode's last window is kept is a question of sizes, so that these agree on it."""
    model = build(gpuconv.nn)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    for shape in ((2, 3, 8, 8), (3, 3, 10, 12), (5, 3, 14, 8), (2, 3, 16, 12), (4, 3, 22, 20)):
        x = image(*shape)
        if grad:
            assert_equal(results(model, compiled, x), results(model, model, x))
        else:
            with torch.no_grad():
                assert_equal([compiled(x)], [model(x)])
        counts.append(counter.frame_count)
    assert counts[1:] == [2] * 4, f"frames compiled after each shape: {counts}"


def test_inductor() -> None:
    model = build(gpuconv.nn).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True)
    x = image(2, 3, 9, 8, last=True)
    assert_equal(results(model, compiled, x), results(model, model, x))


def every_function(x: torch.Tensor) -> list[torch.Tensor]:
    """Every pooling function, and forms of its arguments that torch does not have."""
    found = [
        *gpuconv.max_pool2d(x, 3, 2, ((0, 1), (1, 1)), return_indices=True),
        gpuconv.max_pool2d(x, 3, 2, "same_upper", backend="numpy"),
        gpuconv.avg_pool2d(x, 3, 2, "same_lower", dilation=2),
        gpuconv.avg_pool2d(x, 2, divisor_override=3),
        gpuconv.lp_pool2d(x, float("inf"), 2),
        gpuconv.lp_pool2d(x, 3.0, 2, padding=1),
        gpuconv.adaptive_avg_pool2d(x, (None, 3)),
        *gpuconv.adaptive_max_pool2d(x, 3, return_indices=True),
        gpuconv.fractional_max_pool2d(x, 2, 3, _random_samples=x[:, :, :1, 0].expand(-1, -1, 2).detach() * 0 + 0.3),
    ]
    columns = gpuconv.unfold(x, (2, 3), padding=1, stride=2)
    found += [columns, gpuconv.fold(columns, x.shape[2:], (2, 3), padding=1, stride=2)]
    for fn in (gpuconv.max_pool1d, gpuconv.avg_pool1d, gpuconv.adaptive_avg_pool1d, gpuconv.adaptive_max_pool1d):
        found.append(fn(x[:, :, 0], 2))
    for fn in (gpuconv.max_pool3d, gpuconv.avg_pool3d, gpuconv.adaptive_avg_pool3d, gpuconv.adaptive_max_pool3d):
        found.append(fn(x[:, :, None].expand(-1, -1, 3, -1, -1), 2))
    return found


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_every_function(grad: bool, dynamic: bool) -> None:
    compiled = torch.compile(every_function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = (image(2, 3, 8, 10).abs() + 0.1).requires_grad_(grad)
    ours, theirs = compiled(x), every_function(x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()
    if grad:
        floats = [[y for y in found if y.is_floating_point()] for found in (ours, theirs)]
        slopes = [torch.autograd.grad(sum(y.square().sum() for y in found), x) for found in floats]
        torch.testing.assert_close(*slopes)


def test_random_windows_compile() -> None:
    f = torch.compile(lambda x: gpuconv.fractional_max_pool2d(x, 2, 3), fullgraph=True, backend="aot_eager")
    x = image(2, 3, 8, 10).requires_grad_()
    y = f(x)
    assert y.shape == (2, 3, 3, 3) and torch.autograd.grad(y.sum(), x)[0].sum() == y.numel()


def test_inference_has_no_indices() -> None:
    """A graph that records no gradient has one operator per pool, which returns the maxima alone."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compile(lambda x: gpuconv.max_pool2d(x, 2), fullgraph=True, backend=keep)(image(1, 3, 6, 6))
    (call,) = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert "gpuconv.max_pool.default" in str(call.target)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(strict: bool, dynamic: bool) -> None:
    """Equal results and gradients, also of sizes that the trace has not seen."""
    model, x = build(gpuconv.nn), image(2, 3, 8, 10)
    shapes = ({0: DIM, 2: DIM, 3: DIM},) if dynamic else None
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=shapes)
    names = [str(node.target).split(".")[1] for node in program.graph.nodes if "gpuconv" in str(node.target)]
    assert sorted(names) == sorted(
        ["max_pool_with_indices", "max_unpool", "max_pool", "avg_pool", "lp_pool", "max_pool", "avg_pool", "max_pool"]
    )
    module = program.module()
    for shape in ((2, 3, 8, 10), (3, 3, 14, 8))[: 1 + dynamic]:
        x = image(*shape)
        pairs = []
        for run in (module, model):
            leaf = x.clone().requires_grad_()
            y = run(leaf)
            y.square().sum().backward()
            pairs.append((y, leaf.grad))
        for ours, theirs in zip(*pairs):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_reloaded_in_a_fresh_process(tmp_path: Path) -> None:
    """The process needs ``import gpuconv.ops.conv``, for the operators, and nothing of the model."""
    model, x = build(gpuconv.nn), image(2, 3, 8, 10)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "values.pt")
    code = f"""
import torch
import gpuconv.ops.conv
values = torch.load({str(tmp_path / "values.pt")!r})
module = torch.export.load({str(tmp_path / "program.pt2")!r}).module()
y = module(values["x"].requires_grad_())
torch.testing.assert_close(y, values["y"], rtol=0, atol=0)
y.sum().backward()
print(values["x"].grad.isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_errors_are_those_of_calls() -> None:
    compiled = torch.compile(lambda x: gpuconv.max_pool2d(x, 3, padding=2), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="padding must be at most half"):
        compiled(image(1, 3, 5, 5))


def test_jit_trace_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot record gpuconv"):
        torch.jit.trace(gpuconv.nn.MaxPool2d(2), (torch.randn(1, 4, 8, 8),))
