"""The depthwise kernels against the reference, in the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from depthwise_cases import BRANCHES, OF_GRADIENTS, SOLVERS, Case, Inputs, all_cases, check_case, config_of, launch
from fprop_cases import DTYPES, LAYOUTS

import gpuconv
from gpuconv.backends.triton.march_lanes import march_arguments

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    for kind in SOLVERS:
        assert sum(case.kind == kind for case in CASES) >= 80, kind
    for field, values in (
        ("ndim", (1, 2, 3)),
        ("layout", LAYOUTS),
        ("dtype", DTYPES),
        ("branch", BRANCHES | OF_GRADIENTS),
    ):
        assert {getattr(case, field) for case in CASES} == set(values)
    for kind in SOLVERS:
        branches = set(BRANCHES)
        if kind in ("dgrad", "transposed"):
            branches = branches - {"stride and dilation with a divisor"} | set(OF_GRADIENTS)
        assert {case.branch for case in CASES if case.kind == kind} == branches


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize(("ndim", "layout"), ((1, "contiguous"), (2, "channels_last"), (3, "strided")))
def test_small_integers_are_exact(kind, ndim, layout):
    inputs = Inputs(Case(kind, ndim, layout, "bfloat16", "multiplier"), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


READ = {"fprop": "xw", "dgrad": "wy", "transposed": "wy", "wgrad": "xy"}
"""Operands of each pass."""

NOT_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize(
    "branch", ("plain", "stride 2", "dilated, stride 3", "multiplier", "depth", "stride over kernel")
)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize(("kind", "where"), [(kind, where) for kind, names in READ.items() for where in names])
def test_what_is_not_finite_stays_where_it_is(kind, layout, branch, where):
    """Every element in turn, the first, the last and some between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what a gradient has no element for, counts nothing.
    """
    ndim = 3 if branch == "depth" else 2
    inputs = Inputs(Case(kind, ndim, layout, "float32", branch))
    given = getattr(inputs, where)
    places = torch.linspace(0, given.numel() - 1, 4).long()
    for number, place in enumerate(places.tolist()):
        changed = given.clone()
        at = torch.unravel_index(torch.tensor(place), given.shape)
        changed[at] = NOT_FINITE[number % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, inputs.problem(), "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (kind, branch, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (kind, branch, where, place)
        finite = expected.isfinite()
        torch.testing.assert_close(result[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)
    setattr(inputs, where, given)


def by_definition(inputs: Inputs) -> torch.Tensor:
    """Return the result in float64 by sums over taps, with x padded by zeros."""
    x, w, y, geometry = inputs.x.double(), inputs.w.double(), inputs.y.double(), inputs.geometry
    kind, c = inputs.case.kind, inputs.x.shape[1]
    pads = [value for pair in reversed(geometry["padding"]) for value in pair]
    padded = torch.nn.functional.pad(x, pads)
    m = w.shape[0] // c
    results = {"fprop": torch.zeros_like(y), "wgrad": torch.zeros_like(w), "dgrad": torch.zeros_like(padded)}
    for tap in (
        torch.cartesian_prod(*(torch.arange(size) for size in w.shape[2:])).reshape(-1, len(w.shape) - 2).tolist()
    ):
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, geometry["dilation"], geometry["stride"], y.shape[2:], strict=True)
        )
        shown = padded[(..., *window)].repeat_interleave(m, 1)
        weight = w[(slice(None), 0, *tap)].reshape(1, -1, *(1,) * len(tap))
        results["fprop"] += shown * weight
        results["wgrad"][(slice(None), 0, *tap)] = (shown * y).sum((0, *range(2, y.ndim)))
        results["dgrad"][(..., *window)] += (y * weight).reshape(y.shape[0], c, m, *y.shape[2:]).sum(2)
    inner = tuple(slice(lo, lo + size) for (lo, _), size in zip(geometry["padding"], x.shape[2:], strict=True))
    return results["dgrad"][(..., *inner)] if kind in ("dgrad", "transposed") else results[kind]


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_dispatcher_takes_them_by_itself(ndim):
    """Of its own accord, for the forward pass and both gradients; the general solvers where they are refused."""
    size = {1: 4096, 2: 56, 3: 20}[ndim]
    x, w = torch.empty(4, 32, *(size,) * ndim), torch.empty(32, 1, *(3,) * ndim)
    conv = getattr(gpuconv, f"conv{ndim}d")
    options = {"padding": 1, "groups": 32, "backend": "triton"}
    calls = {
        "fprop": (conv, x, w),
        "dgrad": (getattr(gpuconv, f"conv{ndim}d_input_grad"), x.shape, w, x),
        "wgrad": (getattr(gpuconv, f"conv{ndim}d_weight_grad"), x, w.shape, x),
    }
    for kind, (function, *arguments) in calls.items():
        explanation = gpuconv.explain(function, *arguments, **options)
        assert explanation.solver == SOLVERS[kind].id, kind
        general = "triton.conv.wgrad.split_k" if kind == "wgrad" else f"triton.conv.{kind}.implicit_gemm"
        assert {SOLVERS[kind].id, general} <= {row.solver.id for row in explanation.candidates if row.reason is None}
    explanation = gpuconv.explain(conv, x, w, padding_mode="reflect", **options)
    assert explanation.solver == "triton.conv.fprop.implicit_gemm"
    assert "pads with zeros alone, not reflect" in str(explanation)


@pytest.mark.parametrize("kind", ("fprop", "transposed"))
@pytest.mark.parametrize("operand", ("w", "bias"))
def test_operands_that_lie_far_apart_take_64_bits(kind, operand):
    """Whatever their number of elements: what decides is how far offsets reach."""
    inputs = Inputs(Case(kind, 2, "contiguous", "float16", "epilogue"))
    problem = inputs.problem()
    strides = {name: tensor.stride() for name, tensor in (("x", inputs.x), ("w", inputs.w), ("y", inputs.y))}
    strides |= {name: value.stride() for name, value in inputs.epilogue.items() if isinstance(value, torch.Tensor)}
    config = config_of(inputs.case, problem)
    assert not march_arguments(problem, strides, config)["INDEX64"]
    strides[operand] = (2**30, *strides[operand][1:])
    assert march_arguments(problem, strides, config)["INDEX64"]


def test_a_copy_of_a_host_array_is_not_taken_for_the_array():
    """torch cannot show an array that may not be written to, and what was remembered is of its strides."""
    spread = np.random.default_rng(0).standard_normal((2, 6, 8, 20)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((6, 1, 3, 3)).astype(np.float32)
    found = []
    for writeable in (True, False, True, False):
        x = spread[..., ::2]
        x.flags.writeable = writeable
        found.append(gpuconv.conv2d(x, w, padding=1, groups=6, backend=SOLVERS["fprop"].id))
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_refusals_name_the_reason(dtype):
    x, w = torch.randn(1, 4, 40, 40, dtype=dtype), torch.randn(4, 1, 31, 31, dtype=dtype)
    why = {
        "march": gpuconv.explain(gpuconv.conv2d, x, w, groups=4, backend="triton"),
        "channels": gpuconv.explain(
            gpuconv.conv2d, x, torch.randn(4, 2, 3, 3, dtype=dtype), groups=2, backend="triton"
        ),
    }
    assert "keeps at most 128 weights of a channel in registers, not 961" in str(why["march"])
    assert "takes one input channel per group, not 2" in str(why["channels"])
