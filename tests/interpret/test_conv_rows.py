"""The row kernels of grouped convolution against the reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fprop_cases import DTYPES
from rows_cases import BRANCHES, LAYOUTS, SOLVERS, Case, Inputs, all_cases, check_case, launch

import gpuconv

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
    for field, values in (("ndim", (1, 2)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize(("ndim", "branch"), ((1, "more out"), (2, "odd groups"), (2, "long")))
def test_small_integers_are_exact(kind, ndim, branch):
    inputs = Inputs(Case(kind, ndim, "channels_last", "bfloat16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


RESULTS = {"fprop": "y", "dgrad": "x", "transposed": "x", "wgrad": "w"}

SPREADING = [
    (Case(kind, 2, "channels_last", "float32", branch), where)
    for kind in SOLVERS
    for branch in ("plain", "odd groups", "dilated", "stride 3, dilated", "kernel over input", "few")
    for where in "xwy"
    if where != RESULTS[kind] and not Case(kind, 2, "channels_last", "float32", branch).refused
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


def layer(ndim: int, **options: Any) -> dict[str, gpuconv.Explanation]:
    """Explain the passes of a layer of 32 groups of 4 channels, large enough for its kernels to matter."""
    size = {1: (4000,), 2: (56, 56)}[ndim]
    x = torch.empty(16, *size, 128, dtype=torch.float16).movedim(-1, 1)
    w = torch.empty(128, *(3,) * ndim, 4, dtype=torch.float16).movedim(-1, 1)
    given = {"padding": 1, "groups": 32, "backend": "triton", **options}
    y = torch.nn.functional.conv1d if ndim == 1 else torch.nn.functional.conv2d
    shape = y(x[:1].float(), w.float(), stride=given.get("stride", 1), padding=1, groups=32).shape[2:]
    y = torch.empty(16, *shape, 128, dtype=torch.float16).movedim(-1, 1)
    name = f"conv{ndim}d"
    return {
        "fprop": gpuconv.explain(getattr(gpuconv, name), x, w, **given),
        "dgrad": gpuconv.explain(getattr(gpuconv, f"{name}_input_grad"), tuple(x.shape), w, y, **given),
        "wgrad": gpuconv.explain(getattr(gpuconv, f"{name}_weight_grad"), x, tuple(w.shape), y, **given),
    }


@pytest.mark.parametrize("ndim", (1, 2))
def test_dispatcher_takes_them_by_itself(ndim):
    """Of its own accord, for the forward pass and both gradients; the general solvers where they are refused."""
    assert {kind: found.solver for kind, found in layer(ndim).items()} == {
        kind: SOLVERS[kind].id for kind in ("fprop", "dgrad", "wgrad")
    }
    strided = layer(ndim, stride=2)
    assert strided["fprop"].solver == SOLVERS["fprop"].id
    assert strided["dgrad"].solver == "triton.conv.dgrad.implicit_gemm"
    assert "computes data gradients of stride 1 alone" in str(strided["dgrad"])


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
        ({"groups": 1, "last": False}, "reads channels side by side"),
        ({"groups": 64}, "takes 2 to 32 channels per group on each side, not 1 and 1"),
    ),
)
def test_refusals_name_the_reason(change, reason):
    options = dict(change)
    groups, taps, last = options.pop("groups"), options.pop("kernel", 3), options.pop("last", True)
    x = torch.randn(1, 64, 12, 12)
    x = x.to(memory_format=torch.channels_last) if last else x
    filters = 64 if groups == 64 else 16
    w = torch.randn(filters, 64 // groups, taps, taps)
    assert reason in str(gpuconv.explain(gpuconv.conv2d, x, w, groups=groups, backend="triton", **options))


def test_the_gradient_of_a_bias_is_refused():
    inputs = Inputs(Case("wgrad", 2, "channels_last", "float32", "plain"))
    problem = replace(inputs.problem(), bias=True)
    assert SOLVERS["wgrad"].why_not(problem) == "computes the gradient of the weight alone, not of a bias beside it"
