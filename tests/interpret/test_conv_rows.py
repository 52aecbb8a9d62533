"""The row kernels of grouped convolution against the reference, in the interpreter."""

from __future__ import annotations

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


@pytest.mark.parametrize("where", ("x", "w", "y"))
@pytest.mark.parametrize("branch", ("plain", "odd groups", "dilated", "stride 3, dilated", "kernel over input", "few"))
@pytest.mark.parametrize("kind", SOLVERS)
def test_what_is_not_finite_stays_where_it_is(kind, branch, where):
    """Elements in turn, the first, the last and some between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what a gradient has no element for, counts nothing,
    and no group knows of another.
    """
    case = Case(kind, 2, "channels_last", "float32", branch)
    if case.refused:
        pytest.skip("is refused")
    inputs = Inputs(case)
    problem = inputs.problem()
    if where == problem.result:
        pytest.skip("is the result")
    given = getattr(inputs, where)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 5).long()):
        changed = given.clone()
        changed[torch.unravel_index(place, given.shape)] = NOT_FINITE[number % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (kind, branch, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (kind, branch, where, place)
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


@pytest.mark.parametrize("ndim", (1, 2))
def test_dispatcher_takes_them_by_itself(ndim):
    """Of its own accord, for the forward pass and both gradients; the general solvers where they are refused."""
    x = torch.randn(2, 16, *(9,) * ndim).movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    w = torch.randn(16, 4, *(3,) * ndim, requires_grad=True)
    conv = getattr(gpuconv, f"conv{ndim}d")
    with gpuconv.dispatch.record_plans() as plans:
        conv(x, w, padding=1, groups=4, backend="triton").sum().backward()
    products, gradient = SOLVERS["fprop"].id, SOLVERS["wgrad"].id
    assert sorted(plan.solver.id for plan in plans) == sorted([products, products, gradient])
    with gpuconv.dispatch.record_plans() as plans:
        conv(x, w, padding=1, groups=4, padding_mode="reflect", backend="triton")
    assert [plan.solver.id for plan in plans] == ["triton.conv.fprop.implicit_gemm"]


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


def test_a_strided_gradient_and_one_of_a_bias_are_refused():
    x = torch.randn(1, 16, 9, 9).to(memory_format=torch.channels_last).requires_grad_()
    w, bias = torch.randn(16, 4, 3, 3, requires_grad=True), torch.randn(16, requires_grad=True)
    with gpuconv.dispatch.record_plans() as plans:
        gpuconv.conv2d(x, w, bias, stride=2, groups=4, backend="triton").sum().backward()
    found = {plan.problem.kind: plan for plan in plans}
    assert found["fprop"].solver.id == SOLVERS["fprop"].id
    assert "data gradients of stride 1 alone" in SOLVERS["dgrad"].why_not(found["dgrad"].problem)
    assert "not of a bias beside it" in SOLVERS["wgrad"].why_not(found["wgrad"].problem)
