"""The row kernels of grouped convolution against the reference, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fprop_cases import DTYPES
from rows_cases import BRANCHES, LAYOUTS, SOLVERS, Case, Inputs, all_cases, check_case, launch

import gpuconv
from gpuconv.backends.triton.rows_blocks import images_at_a_time
from gpuconv.dispatch import backends, record_plans

CASES = all_cases()

NOT_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    for kind in SOLVERS:
        assert sum(case.kind == kind for case in CASES) >= 80, kind
        taken = {branch for branch in BRANCHES if not Case(kind, 2, "channels_last", "float32", branch).refused}
        assert {case.branch for case in CASES if case.kind == kind} == taken
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize(
    ("ndim", "branch"),
    ((1, "more out"), (2, "odd groups"), (2, "long"), (2, "stride 2, a rest"), (3, "eights"), (3, "stride 2, a rest")),
)
def test_small_integers_are_exact(kind, ndim, branch):
    inputs = Inputs(Case(kind, ndim, "channels_last", "bfloat16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


RESULTS = {"fprop": "y", "dgrad": "x", "transposed": "x", "wgrad": "w"}

SPREADING = [
    (Case(kind, 2, "channels_last", "float32", branch), where)
    for kind in SOLVERS
    for branch in (
        "plain",
        "odd groups",
        "dilated",
        "stride 3, dilated",
        "stride 2, a rest",
        "stride over kernel",
        "kernel over input",
        "few",
    )
    for where in "xwy"
    if where != RESULTS[kind] and not Case(kind, 2, "channels_last", "float32", branch).refused
]
SPREADING += [
    (Case(kind, 3, layout, "float32", branch), where)
    for kind in SOLVERS
    for layout, branch in (("channels_last", "odd groups"), ("contiguous", "stride 2, a rest"))
    for where in "xwy"
    if where != RESULTS[kind]
]


@pytest.mark.parametrize(("case", "where"), SPREADING, ids=lambda value: getattr(value, "id", value))
def test_what_is_not_finite_stays_where_it_is(case, where):
    """Elements in turn, the first, the last and some between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what a gradient has no element for, counts nothing,
    and no group knows of another.
    """
    inputs = Inputs(case)
    problem = inputs.problem()
    given = getattr(inputs, where)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 3).long()):
        changed = given.clone()
        changed[torch.unravel_index(place, given.shape)] = NOT_FINITE[number % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), place
        assert torch.equal(result.isinf(), expected.isinf()), place
        finite = expected.isfinite()
        assert torch.allclose(result[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)


def by_definition(inputs: Inputs) -> torch.Tensor:
    """Return the result in float64 by sums over taps and over channels of a group, with x padded by zeros."""
    x, w, y, geometry = inputs.x.double(), inputs.w.double(), inputs.y.double(), inputs.geometry
    groups = geometry["groups"]
    pads = [value for pair in reversed(geometry["padding"]) for value in pair]
    padded = torch.nn.functional.pad(x, pads)
    fprop, wgrad, dgrad = torch.zeros_like(y), torch.zeros_like(w), torch.zeros_like(padded)
    inside, outside = x.shape[1] // groups, w.shape[0] // groups
    for tap in torch.cartesian_prod(*(torch.arange(size) for size in w.shape[2:])).reshape(-1, w.ndim - 2).tolist():
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, geometry["dilation"], geometry["stride"], y.shape[2:], strict=True)
        )
        for k in range(w.shape[0]):
            for c in range(inside):
                of_x = k // outside * inside + c
                shown, weight = padded[(slice(None), of_x, *window)], w[(k, c, *tap)]
                fprop[:, k] += shown * weight
                wgrad[(k, c, *tap)] = (shown * y[:, k]).sum()
                dgrad[(slice(None), of_x, *window)] += y[:, k] * weight
    inner = tuple(slice(lo, lo + size) for (lo, _), size in zip(geometry["padding"], x.shape[2:], strict=True))
    dgrad = dgrad[(..., *inner)]
    return {"fprop": fprop, "wgrad": wgrad, "dgrad": dgrad, "transposed": dgrad}[inputs.case.kind]


def layer(ndim: int, last: bool = True, **options: Any) -> dict[str, gpuconv.Explanation]:
    """Explain the passes of a layer of 32 groups of 4 channels, large enough for its kernels to matter."""
    size = {1: (4000,), 2: (56, 56), 3: (16, 28, 28)}[ndim]

    def empty(n: int, c: int, *sizes: int) -> torch.Tensor:
        if last:
            return torch.empty(n, *sizes, c, dtype=torch.float16).movedim(-1, 1)
        return torch.empty(n, c, *sizes, dtype=torch.float16)

    x, w = empty(16, 128, *size), empty(128, 4, *(3,) * ndim)
    given = {"padding": 1, "groups": 32, "backend": "triton", **options}
    y = getattr(torch.nn.functional, f"conv{ndim}d")
    geometry = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
    shape = y(x[:1].float(), w.float(), groups=32, **geometry).shape[2:]
    y = empty(16, 128, *shape)
    name = f"conv{ndim}d"
    return {
        "fprop": gpuconv.explain(getattr(gpuconv, name), x, w, **given),
        "dgrad": gpuconv.explain(getattr(gpuconv, f"{name}_input_grad"), tuple(x.shape), w, y, **given),
        "wgrad": gpuconv.explain(getattr(gpuconv, f"{name}_weight_grad"), x, tuple(w.shape), y, **given),
    }


@pytest.mark.parametrize("last", (True, False), ids=("channels last", "contiguous"))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_dispatcher_takes_them_by_itself(ndim, last):
    """Of its own accord, for the forward pass and both gradients; the general solvers where they are refused."""
    assert {kind: found.solver for kind, found in layer(ndim, last).items()} == {
        kind: SOLVERS[kind].id for kind in ("fprop", "dgrad", "wgrad")
    }
    if not last:
        return
    strided = layer(ndim, stride=2)
    assert {kind: found.solver for kind, found in strided.items()} == {kind: SOLVERS[kind].id for kind in strided}
    dilated = layer(ndim, stride=2, dilation=2, padding=2)
    assert dilated["dgrad"].solver == "triton.conv.dgrad.implicit_gemm"
    assert "takes no dilation along W with the stride of a data gradient, but 2 with 2" in str(dilated["dgrad"])


def test_a_call_runs_the_default_tiles():
    x = torch.randn(2, 9, 9, 16).movedim(-1, 1)
    w = torch.randn(16, 4, 3, 3)
    found = gpuconv.conv2d(x, w, padding=1, groups=4, backend=SOLVERS["fprop"].id)
    assert torch.allclose(found, torch.nn.functional.conv2d(x, w, padding=1, groups=4), atol=1e-4)
    y = torch.randn(2, 9, 9, 16).movedim(-1, 1)
    found = gpuconv.conv2d_weight_grad(x, w.shape, y, padding=1, groups=4, backend=SOLVERS["wgrad"].id)
    assert torch.allclose(found, torch.nn.grad.conv2d_weight(x, w.shape, y, padding=1, groups=4), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({"groups": 4, "padding_mode": "reflect", "padding": 1}, "pads with zeros alone, not reflect"),
        ({"groups": 1}, "8 channels of the result at most from 512 at most, not 16 from 64"),
        ({"groups": 1, "kernel": 9}, "keeps at most 8 taps of an axis open, not 9"),
        ({"groups": 64}, "takes 2 to 32 channels per group on each side, not 1 and 1"),
    ),
)
def test_refusals_name_the_reason(change, reason):
    options = dict(change)
    groups, taps = options.pop("groups"), options.pop("kernel", 3)
    x = torch.randn(1, 64, 12, 12).to(memory_format=torch.channels_last)
    filters = 64 if groups == 64 else 16
    w = torch.randn(filters, 64 // groups, taps, taps)
    assert reason in str(gpuconv.explain(gpuconv.conv2d, x, w, groups=groups, backend="triton", **options))


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({"stride": 2, "dilation": 2}, "takes no dilation along W with the stride of a data gradient, but 2 with 2"),
        (
            {"stride": (2, 1), "dilation": (4, 1)},
            "takes no common divisor of stride and dilation in a data gradient, but 2 and 4",
        ),
        ({"stride": 9}, "moves on by at most 8 in a data gradient, not 9"),
    ),
)
def test_refusals_of_gradients_name_the_reason(change, reason):
    x, w = torch.randn(1, 16, 24, 24), torch.randn(16, 4, 3, 3)
    y = torch.nn.functional.conv2d(x, w, groups=4, **change).to(memory_format=torch.channels_last)
    explained = gpuconv.explain(gpuconv.conv2d_input_grad, x.shape, w, y, groups=4, backend="triton", **change)
    assert reason in str(explained)


def test_copies_are_made_of_as_many_images_as_there_is_room_for(monkeypatch):
    """Contiguous tensors over the limit are turned and multiplied in parts; an image over it is refused."""
    x, w = torch.randn(5, 16, 24, 20), torch.randn(16, 4, 3, 3)
    image = x[0].numel() * x.element_size()
    solver = SOLVERS["fprop"]
    expected = torch.nn.functional.conv2d(x, w, padding=1, groups=4)
    for limit, images in ((10 * image, 5), (5 * image, 2), (2 * image, 1)):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        with record_plans() as plans:
            found = gpuconv.conv2d(x, w, padding=1, groups=4, backend=solver.id)
        assert solver.parts(plans[0])["x_turned"][1] == images * x[0].numel() and plans[0].workspace <= limit
        assert torch.allclose(found, expected, atol=1e-4)
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(image))
    explained = gpuconv.explain(gpuconv.conv2d, x, w, padding=1, groups=4, backend="triton")
    assert f"an image at least, over half of the limit of {image} bytes" in str(explained)


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
@pytest.mark.parametrize("width", (4, 7, 9, 10))
def test_results_of_every_part_begin_at_multiples_of_16_bytes(width, dtype, monkeypatch):
    """As packed kernels, which are for such addresses alone, want them."""
    x, w = torch.empty(40, 6, 5, width, dtype=dtype), torch.empty(6, 2, 3, 3, dtype=dtype)
    problem = gpuconv.explain(gpuconv.conv2d, x, w, padding=1, groups=3, backend="triton").problem
    seen = set()
    for images in (1, 3, 8, 9, 20, 39, 40):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(2 * images * x[0].numel() * x.element_size()))
        found = images_at_a_time(problem)
        seen.add(found)
        assert found <= images and (found == 40 or found * x[0].numel() * x.element_size() % 16 == 0)
    assert {8, 40} <= seen


class RowsAlone:
    """The Triton backend with no other solver than those of rows."""

    def solvers(self) -> tuple[Any, ...]:
        return SOLVERS["fprop"], SOLVERS["wgrad"]


@pytest.mark.parametrize(("stride", "output_padding"), ((2, 1), (3, 2)))
@pytest.mark.parametrize("transposed", (False, True), ids=("conv", "transposed"))
def test_autograd_reaches_every_pass(stride, output_padding, transposed, monkeypatch, torch_rng):
    """Forward and all three gradients on the row kernels alone, against live torch."""
    monkeypatch.setattr(type(backends()["triton"]), "solvers", RowsAlone.solvers)
    x, w, b = (torch.randn(shape, generator=torch_rng) for shape in ((2, 8, 9, 10), (8, 4, 3, 3), (8,)))
    leaves = [x.to(memory_format=torch.channels_last).requires_grad_(), w.requires_grad_(), b.requires_grad_()]
    name = "conv_transpose2d" if transposed else "conv2d"
    options = {"stride": stride, "padding": 1, "groups": 2}
    options |= {"output_padding": output_padding} if transposed else {}
    expected = getattr(torch.nn.functional, name)(*leaves, **options)
    seed = torch.randn(expected.shape, generator=torch_rng).to(memory_format=torch.channels_last)
    with record_plans() as plans:
        ours = getattr(gpuconv, name)(*leaves, **options, backend="triton")
        found = torch.autograd.grad(ours, leaves, seed)
    assert {plan.solver.id for plan in plans} == {solver.id for solver in SOLVERS.values()}
    kinds = ["transposed", "fprop", "wgrad"] if transposed else ["fprop", "dgrad", "wgrad"]
    assert [plan.problem.kind for plan in plans] == kinds
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for value, exact in zip(found, torch.autograd.grad(expected, leaves, seed), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-3)


def test_gradients_of_weight_and_bias_are_the_same_on_repetition(monkeypatch, torch_rng):
    monkeypatch.setattr(type(backends()["triton"]), "solvers", RowsAlone.solvers)
    x, y = (torch.randn(2, 7, 7, 12, generator=torch_rng).movedim(-1, 1) for _ in range(2))
    w, b = torch.randn(12, 3, 3, 3, generator=torch_rng).requires_grad_(), torch.zeros(12, requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        with record_plans() as plans:
            result = gpuconv.conv2d(x, w, b, padding=1, groups=4, backend="triton")
            found = torch.autograd.grad(result, (w, b), y)
        (gradient,) = (plan for plan in plans if plan.problem.kind == "wgrad")
        assert gradient.solver.id == SOLVERS["wgrad"].id and gradient.problem.bias and gradient.config["splits"] > 1
        return [value.contiguous().view(torch.uint8) for value in found]

    assert all(map(torch.equal, gradients(), gradients()))
