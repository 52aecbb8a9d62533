"""Causal and separable convolutions under ``torch.compile``, ``torch.export``, ``torch.func``, autocast and fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize, grad, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import gpuconv.nn
from gpuconv.testing import forbid_aten

Tensor = torch.Tensor
IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1], [3, 3, 3, 3, 3, 3, 3, 4, 4]], dtype=torch.int32)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def causal(x: Tensor, w: Tensor, b: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    """Every form of a causal convolution."""
    y = gpuconv.causal_conv1d(x, w, b, activation="swish", precision="ieee", backend="numpy")
    z, state = gpuconv.causal_conv1d(x, w, b, initial_state=before, return_state=True)
    ids = (torch.arange(x.shape[2]) // 4).int().expand(x.shape[0], -1)
    return y, z, state, gpuconv.causal_conv1d(x, w[:, None], activation="gelu", seq_idx=ids)


def separable(x: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Both separable convolutions, the second with the filters of the first laid along the axes."""
    y = gpuconv.depthwise_separable_conv2d(x, w, v, b, c, padding="same_upper", stride=2, between="relu6")
    columns, rows = w[..., :1], w.transpose(2, 3)[:, :, :1]
    z = gpuconv.separable_conv2d(x, columns, rows, b, None, padding=((1, 1), (0, 2)), groups=4, activation="silu")
    return y, z


def of_causal(rng: torch.Generator, n: int = 2, length: int = 9) -> list[Tensor]:
    shapes = ((n, 3, length), (3, 4), (3,), (n, 3, 3))
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


def of_separable(rng: torch.Generator, n: int = 2, length: int = 9) -> list[Tensor]:
    shapes = ((n, 4, length, 8), (4, 1, 3, 3), (6, 4, 1, 1), (4,), (6,))
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., list[Tensor]]]] = {
    "causal": (causal, of_causal),
    "separable": (separable, of_separable),
}


def laid(x: Tensor, last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def same(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_compile_in_one_graph(family: str, training: bool, last: bool, torch_rng: torch.Generator) -> None:
    function, operands = FAMILIES[family]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x, *rest = operands(torch_rng)
    leaves = [t.requires_grad_(training) for t in (laid(x, last), *rest)]
    ours, theirs = compiled(*leaves), function(*leaves)
    same(ours, theirs)
    if training:
        slopes = (torch.autograd.grad(sum(y.square().sum() for y in each), leaves) for each in (ours, theirs))
        for one, other in zip(*slopes, strict=True):
            torch.testing.assert_close(one, other)


def test_inductor(torch_rng: torch.Generator) -> None:
    """What stands around the convolution of packed sequences becomes kernels of its own, in both directions."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return gpuconv.causal_conv1d(x, w, b, activation="silu", seq_idx=IDS)

    leaves = [t.requires_grad_() for t in of_causal(torch_rng)[:3]]
    ours, theirs = torch.compile(function, fullgraph=True)(*leaves), function(*leaves)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_new_sizes_compile_nothing_new(family: str, last: bool, torch_rng: torch.Generator) -> None:
    function, operands = FAMILIES[family]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    counts = []
    for n, length in ((2, 9), (3, 11), (4, 20), (5, 33)):
        x, *rest = operands(torch_rng, n, length)
        same(compiled(laid(x, last), *rest), function(laid(x, last), *rest))
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2]


def test_compiled_steps_update_the_state(torch_rng: torch.Generator) -> None:
    x, w, b, _ = of_causal(torch_rng, 2, 8)
    expected = gpuconv.causal_conv1d(x, w, b, activation="silu")
    compiled = torch.compile(gpuconv.causal_conv1d_update, fullgraph=True, backend="aot_eager", dynamic=True)
    straight, cache = torch.zeros(2, 3, 5, dtype=x.dtype), torch.zeros(4, 3, 5, dtype=x.dtype)
    entries = torch.tensor([3, 1], dtype=torch.int32)
    for at in range(8):
        seen = torch.full((2,), at, dtype=torch.int32)
        options = {"cache_seqlens": seen, "conv_state_indices": entries}
        for one in (
            compiled(x[..., at], straight, w, b, activation="silu"),
            compiled(x[..., at], cache, w, b, activation="silu", **options),
        ):
            torch.testing.assert_close(one, expected[..., at])
    torch.testing.assert_close(straight, x[..., -5:])
    assert not cache[[0, 2]].any() and cache[[3, 1]].all()


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("family", FAMILIES)
def test_export(family: str, strict: bool, torch_rng: torch.Generator) -> None:
    """Also for sizes that the trace has not seen."""
    function, operands = FAMILIES[family]

    class Model(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return function(*tensors)

    any_size = torch.export.Dim.DYNAMIC
    first = operands(torch_rng)
    dims = [{0: any_size, 2: any_size}] + [{0: any_size} if t.dim() == 3 else {} for t in first[1:]]
    program = torch.export.export(Model(), tuple(first), dynamic_shapes=(tuple(dims),), strict=strict)
    found = {str(node.target) for node in program.graph.nodes if "conv" in str(node.target)}
    assert found == {"gpuconv.fprop.default"}
    for n, length in ((2, 9), (5, 14)):
        given = operands(torch_rng, n, length)
        same(program.module()(*given), function(*given))


def test_export_of_a_step(torch_rng: torch.Generator) -> None:
    layer = gpuconv.nn.CausalConv1d(3, 4, dtype=torch.float64, activation="silu")

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.layer.step(x, state)

    x, state = of_causal(torch_rng)[0], layer.new_state(2)
    program = torch.export.export(Step(), (x[..., 0], state.clone())).module()
    with torch.no_grad():
        steps = [program(x[..., at], state) for at in range(9)]
        torch.testing.assert_close(torch.stack(steps, -1), layer(x))


def test_symbolic_trace_records_our_functions() -> None:
    network = torch.nn.Sequential(
        gpuconv.nn.DepthwiseSeparableConv2d(4, 6, 3, between="relu"), gpuconv.nn.SeparableConv2d(6, 2, 3)
    )
    traced = torch.fx.symbolic_trace(network)
    found = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert found == [gpuconv.depthwise_separable_conv2d, gpuconv.separable_conv2d]
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(traced(x), network(x))
    layer = gpuconv.nn.CausalConv1d(4, 3)
    traced = torch.fx.symbolic_trace(layer)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [gpuconv.causal_conv1d]
    x = torch.randn(1, 4, 8)
    assert torch.equal(traced(x), layer(x)) and torch.equal(traced(x, return_state=True)[1], x[..., 6:])


@pytest.mark.parametrize("family", FAMILIES)
def test_fakes_and_meta_tensors(family: str, torch_rng: torch.Generator) -> None:
    function, operands = FAMILIES[family]
    for last in (False, True):
        x, *rest = operands(torch_rng)
        given = [laid(x, last), *rest]
        expected = function(*given)
        with FakeTensorMode() as mode:
            fakes = function(*(mode.from_tensor(t) for t in given))
        for found in (fakes, function(*(t.to("meta") for t in given)) if family == "separable" else fakes):
            for one, other in zip(found, expected, strict=True):
                assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_meta_tensors_of_sequences(torch_rng: torch.Generator) -> None:
    x, w, b, before = (t.to("meta") for t in of_causal(torch_rng))
    y, state = gpuconv.causal_conv1d(x, w, b, initial_state=before, return_state=True)
    assert y.is_meta and y.shape == x.shape and state.shape == (2, 3, 3)
    assert gpuconv.causal_conv1d(x, w, b, seq_idx=IDS.to("meta")).shape == x.shape
    entries = torch.zeros(2, dtype=torch.int32, device="meta")
    assert gpuconv.causal_conv1d_update(x, before, w, b, conv_state_indices=entries).shape == x.shape


# transforms


def theirs_causal(x: Tensor, w: Tensor, b: Tensor, before: Tensor) -> Tensor:
    return F.silu(F.conv1d(torch.cat([before, x], -1), w[:, None], b, groups=3))


def ours_causal(x: Tensor, w: Tensor, b: Tensor, before: Tensor) -> Tensor:
    return gpuconv.causal_conv1d(x, w, b, initial_state=before, activation="silu")


def packed(x: Tensor, w: Tensor, b: Tensor, before: Tensor) -> Tensor:
    return gpuconv.causal_conv1d(x, w, b, activation="silu", seq_idx=IDS) + before.sum() * 0


def apart(x: Tensor, w: Tensor, b: Tensor, before: Tensor) -> Tensor:
    """Return what :func:`packed` does, by torch, sequence by sequence."""
    rows = []
    for row, cuts in enumerate(((0, 3, 5, 8), (0, 7, 9))):
        parts = [F.pad(x[row : row + 1, :, a:b], (3, 0)) for a, b in pairwise(cuts)]
        ys = [F.silu(F.conv1d(part, w[:, None], b, groups=3)) for part in parts]
        ys += [x.new_zeros(1, 3, 9 - cuts[-1])] * (cuts[-1] < 9)
        rows.append(torch.cat(ys, -1))
    return torch.cat(rows) + before.sum() * 0


def ours_separable(*tensors: Tensor) -> Tensor:
    return gpuconv.depthwise_separable_conv2d(*tensors, padding=1, between="silu")


def theirs_separable(x: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return F.conv2d(F.silu(F.conv2d(x, w, b, padding=1, groups=4)), v, c)


PAIRS = {
    "causal": (ours_causal, theirs_causal, of_causal),
    "packed": (packed, apart, of_causal),
    "separable": (ours_separable, theirs_separable, of_separable),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_transforms(pair: str, torch_rng: torch.Generator) -> None:
    ours, theirs, operands = PAIRS[pair]
    given, tangents = operands(torch_rng), operands(torch_rng)
    every = tuple(range(len(given)))

    def slopes(function: Callable[..., Tensor]) -> Callable[..., Any]:
        return grad(lambda *t: function(*t).pow(3).sum(), every)

    def close(transform: Callable[..., Any], *tensors: Any) -> None:
        torch.testing.assert_close(transform(ours)(*tensors), transform(theirs)(*tensors))

    close(slopes, *given)
    close(lambda f: lambda *t: jvp(f, t, tuple(tangents)), *given)
    close(lambda f: jacrev(f, 1), *given)
    close(lambda f: functionalize(slopes(f)), *given)
    stacked = [torch.stack([t, 2 * t, -t]) for t in given]
    with forbid_aten():
        ys = vmap(ours)(*stacked)
    torch.testing.assert_close(ys, vmap(theirs)(*stacked))
    close(lambda f: vmap(slopes(f)), *stacked)
    dims = (None, 0, *(None for _ in given[2:]))
    close(lambda f: vmap(slopes(f), dims), given[0], stacked[1], *given[2:])
    dims = (1, *(None for _ in given[1:]))
    close(lambda f: vmap(f, dims), stacked[0].movedim(0, 1), *given[1:])


@pytest.mark.parametrize("option", [None, "cache_seqlens", "conv_state_indices"])
def test_vmap_of_a_step(option: str | None, torch_rng: torch.Generator) -> None:
    """Each of a batch of states is updated as its own call does."""
    xs, states = (torch.randn((3, 2, 3, n), generator=torch_rng, dtype=torch.float64) for n in (4, 6))
    w = of_causal(torch_rng)[1]
    options = {} if option is None else {option: torch.tensor([1, 0])}
    kept = states.clone()
    ys = vmap(lambda x, state: gpuconv.causal_conv1d_update(x, state, w, **options))(xs, states)
    for x, before, after, y in zip(xs, kept, states, ys, strict=True):
        torch.testing.assert_close(y, gpuconv.causal_conv1d_update(x, before, w, **options))
        assert torch.equal(before, after)


def test_a_graph_of_a_gradient_has_our_operators(torch_rng: torch.Generator) -> None:
    graph = make_fx(grad(lambda *t: ours_causal(*t).pow(2).sum(), (0, 1)))(*of_causal(torch_rng))
    found = {str(node.target) for node in graph.graph.nodes if "conv" in str(node.target)}
    assert found == {f"gpuconv.{name}.default" for name in ("fprop", "dgrad", "wgrad")}


def test_gradients_of_each_sequence() -> None:
    layer = gpuconv.nn.CausalConv1d(3, 4, activation="silu")
    x, parameters = torch.randn(5, 3, 9), dict(layer.named_parameters())

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for row in range(5):
        expected = torch.autograd.grad(layer(x[row : row + 1]).square().sum(), list(layer.parameters()))
        torch.testing.assert_close([found[name][row] for name in parameters], list(expected))


# autocast


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, training: bool, torch_rng: torch.Generator) -> None:
    """Convolutions compute in its type, as ours and torch's others do; states keep that of the input."""
    x, w, b, before = (t.float().requires_grad_(training) for t in of_causal(torch_rng))
    with torch.autocast("cpu", dtype):
        y, state = gpuconv.causal_conv1d(x, w, b, initial_state=before, return_state=True)
        expected = F.conv1d(torch.cat([before, x], -1), w[:, None], b, groups=3)
        z = gpuconv.causal_conv1d(x, w.to(torch.bfloat16), b, seq_idx=IDS)
        step = gpuconv.causal_conv1d_update(x, before.detach().clone(), w, b)
        s = gpuconv.depthwise_separable_conv2d(x[:, :, None], w[:, None, None], w[:, :3, None, None], b)
    assert y.dtype is z.dtype is step.dtype is s.dtype is dtype and state.dtype is torch.float32
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(step, y)
    if training:
        for result in (y, z, s):
            assert all(g.dtype is torch.float32 for g in torch.autograd.grad(result.float().sum(), (x, w)))
