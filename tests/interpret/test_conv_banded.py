"""The banded kernels of depthwise convolution against the reference, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from banded_cases import BRANCHES, DTYPES, KINDS, SOLVER, Case, Inputs, all_cases, check_case, config_of, launch
from fprop_cases import LAYOUTS

import gpuconv
from gpuconv.backends.triton.banded_blocks import banded_arguments, pack_arguments
from gpuconv.dispatch import backends, record_plans

CASES = all_cases()

NOT_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    for kind in KINDS:
        assert sum(case.kind == kind for case in CASES) >= 40, kind
        assert {case.branch for case in CASES if case.kind == kind} == set(BRANCHES)
    for field, values in (("ndim", (1, 2)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize(("ndim", "branch"), ((1, "plain"), (2, "vectors"), (2, "padding over the window")))
def test_small_integers_are_exact(kind, layout, ndim, branch):
    inputs = Inputs(Case(kind, ndim, layout, "bfloat16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


SPREADING = [
    (Case(kind, ndim, layout, "float16", branch), where)
    for kind in KINDS
    for ndim, branch in ((2, "plain"), (2, "padding over the window"), (2, "kernel over input"), (1, "epilogue"))
    for layout in ("contiguous", "channels_last")
    for where in ("x" if kind == "fprop" else "y", "w")
]


@pytest.mark.parametrize(("case", "where"), SPREADING, ids=lambda value: getattr(value, "id", value))
def test_what_is_not_finite_stays_where_it_is(case, where):
    """Elements in turn, the first, the last and one between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what a gradient has no element for, counts nothing.
    """
    inputs = Inputs(case)
    inputs.epilogue = {}
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
        assert torch.allclose(result[finite].double(), expected[finite], rtol=4e-3, atol=4e-3)


def by_definition(inputs: Inputs) -> torch.Tensor:
    """Return the result in float64 by sums over taps, with x padded by zeros."""
    x, w, y, geometry = inputs.x.double(), inputs.w.double(), inputs.y.double(), inputs.geometry
    padded = torch.nn.functional.pad(x, [value for pair in reversed(geometry["padding"]) for value in pair])
    fprop, dgrad = torch.zeros_like(y), torch.zeros_like(padded)
    for tap in torch.cartesian_prod(*(torch.arange(size) for size in w.shape[2:])).reshape(-1, w.ndim - 2).tolist():
        window = tuple(
            slice(t * d, t * d + size) for t, d, size in zip(tap, geometry["dilation"], y.shape[2:], strict=True)
        )
        weight = w[(slice(None), 0, *tap)].reshape(1, -1, *(1,) * len(tap))
        fprop += padded[(..., *window)] * weight
        dgrad[(..., *window)] += y * weight
    inner = tuple(slice(lo, lo + size) for (lo, _), size in zip(geometry["padding"], x.shape[2:], strict=True))
    return fprop if inputs.case.kind == "fprop" else dgrad[(..., *inner)]


def test_the_epilogue_of_what_is_not_finite():
    """The path tap by tap has an epilogue of its own."""
    for layout in ("contiguous", "channels_last"):
        inputs = Inputs(Case("fprop", 2, layout, "float16", "epilogue"))
        inputs.x[0, 0, 0, 0] = float("inf")
        exact = torch.nn.functional.conv2d(inputs.x.float(), inputs.w.float(), padding=2, groups=8)
        bias, scale, shift = (inputs.epilogue[name].float()[:, None, None] for name in ("bias", "scale", "shift"))
        exact = torch.nn.functional.silu((exact + bias) * scale + shift + inputs.epilogue["residual"].float())
        result = launch(inputs, inputs.problem(), "forward")
        assert torch.equal(result.isfinite(), exact.isfinite()) and not exact.isfinite().all()
        finite = exact.isfinite()
        assert torch.allclose(result[finite].float(), exact[finite], rtol=1e-2, atol=1e-2)


def calls(x: Any, w: Any, **options: Any) -> dict[str, gpuconv.Explanation]:
    """Explain the passes of a layer that keeps its size."""
    return {
        "fprop": gpuconv.explain(gpuconv.conv2d, x, w, **options),
        "dgrad": gpuconv.explain(gpuconv.conv2d_input_grad, tuple(x.shape), w, x, **options),
        "transposed": gpuconv.explain(gpuconv.conv_transpose2d, x, w, **options),
    }


@pytest.mark.parametrize("taps", (13, 31))
@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels_last"))
def test_dispatcher_takes_them_for_large_windows(taps, last):
    x = torch.empty(16, 32, 56, 56, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last) if last else x
    w = torch.empty(32, 1, taps, taps, dtype=torch.bfloat16)
    found = calls(x, w, padding=taps // 2, groups=32, backend="triton")
    assert {kind: each.solver for kind, each in found.items()} == dict.fromkeys(KINDS, SOLVER.id)
    assert all(each.plan.workspace > 0 for each in found.values())


def test_dispatcher_leaves_small_windows_to_the_plain_cores():
    x, w = torch.empty(16, 32, 56, 56, dtype=torch.bfloat16), torch.empty(32, 1, 3, 3, dtype=torch.bfloat16)
    for each in calls(x, w, padding=1, groups=32, backend="triton").values():
        assert each.solver == "triton.conv.depthwise.march"
        assert "takes 5 to 31 taps along the longest axis, not 3" in str(each)


def test_a_call_runs_the_default_tiles():
    x, w = torch.randn(2, 8, 9, 16).half(), torch.randn(8, 1, 7, 7).half()
    exact = torch.nn.functional.conv2d(x.float(), w.float(), padding=3, groups=8)
    for given in (x, x.to(memory_format=torch.channels_last)):
        with record_plans() as plans:
            found = gpuconv.conv2d(given, w, padding=3, groups=8, backend=SOLVER.id)
        assert torch.allclose(found.float(), exact, atol=2e-2, rtol=2e-3)
        assert plans[0].solver.id == SOLVER.id and plans[0].workspace == SOLVER.plan(plans[0].problem).workspace


@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels_last"))
def test_operands_that_begin_between_vectors(last):
    """Neither rows nor memory begin at multiples of 16 bytes; w is one window, read for every channel."""
    spread = torch.randn(2, 9, 11, 19).half()
    x = spread[:, 1:, 1:, 1:17]
    x = spread.to(memory_format=torch.channels_last)[:, 1:, 1:, 1:17] if last else x
    w = torch.randn(1, 1, 5, 5).half().expand(8, 1, 5, 5)
    found = gpuconv.conv2d(x, w, padding=2, groups=8, backend=SOLVER.id)
    exact = torch.nn.functional.conv2d(x.float(), w.float(), padding=2, groups=8)
    assert torch.allclose(found.float(), exact, atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize("kind", ("fprop", "transposed"))
@pytest.mark.parametrize("operand", ("w", "bias"))
def test_operands_that_lie_far_apart_take_64_bits(kind, operand):
    """Whatever their number of elements: what decides is how far offsets reach."""
    inputs = Inputs(Case(kind, 2, "contiguous", "float16", "epilogue"))
    problem = inputs.problem()
    strides = {name: tensor.stride() for name, tensor in (("x", inputs.x), ("w", inputs.w), ("y", inputs.y))}
    strides |= {name: value.stride() for name, value in inputs.epilogue.items() if isinstance(value, torch.Tensor)}
    config = config_of(inputs.case, problem)
    for describe in (banded_arguments, pack_arguments):
        assert not describe(problem, strides, config)["INDEX64"]
        assert describe(problem, {**strides, operand: (2**30, *strides[operand][1:])}, config)["INDEX64"]


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        ({"dtype": torch.float32}, "multiplies 16-bit numbers, not float32"),
        ({"filters": 32}, "takes one channel to one per group, not 1 to 2"),
        ({"padding_mode": "reflect", "padding": 2}, "pads with zeros alone, not reflect"),
        ({"stride": 2}, "moves on by one position, not (2, 2)"),
        ({"dilation": (1, 2)}, "takes windows of neighbouring elements, not dilation (1, 2)"),
        ({"channels": 18}, "reads 8 channels at a time where they are innermost, which do not divide 18"),
        ({"taps": 33}, "takes 5 to 31 taps along the longest axis, not 33"),
    ),
)
def test_refusals_name_the_reason(change, reason):
    options = dict(change)
    dtype, channels, taps = options.pop("dtype", torch.half), options.pop("channels", 16), options.pop("taps", 7)
    x = torch.empty(1, channels, 40, 40, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.empty(options.pop("filters", channels), 1, taps, taps, dtype=dtype)
    assert reason in str(gpuconv.explain(gpuconv.conv2d, x, w, groups=channels, backend="triton", **options))


def test_the_workspace_is_that_of_the_copies(monkeypatch):
    """Eight of every window, with zeros around it; over the limit the solver refuses with the number."""
    x, w = torch.empty(4, 8, 56, 56).half(), torch.empty(8, 1, 31, 31).half()
    options = {"padding": 15, "groups": 8, "backend": SOLVER.id}
    plan = gpuconv.explain(gpuconv.conv2d, x, w, **options).plan
    tp, tq = plan.config["TP"], plan.config["TQ"]
    width = -(-(tq + 31) // 8) * 8  # of what a block reads, from 16 columns before its first
    assert plan.workspace == 2 * 8 * 8 * (31 + 2 * (tp - 1)) * (width + tq)
    monkeypatch.setenv("GPUCONV_WORKSPACE", "1000")
    options["backend"] = "triton"
    assert f"packs weights into {plan.workspace} bytes, over the limit of 1000" in str(
        gpuconv.explain(gpuconv.conv2d, x, w, **options)
    )


class BandedAlone:
    """The Triton backend with no other solver than the banded one."""

    def solvers(self) -> tuple[Any, ...]:
        return (SOLVER,)


@pytest.mark.parametrize("transposed", (False, True), ids=("conv", "transposed"))
def test_autograd_reaches_both_passes(transposed, monkeypatch, torch_rng):
    """Forward and the gradient of the input on the banded kernels alone, against live torch."""
    monkeypatch.setattr(type(backends()["triton"]), "solvers", BandedAlone.solvers)
    x, w, b = (torch.randn(shape, generator=torch_rng).half() for shape in ((2, 8, 9, 16), (8, 1, 5, 7), (8,)))
    leaf = x.requires_grad_()
    name = "conv_transpose2d" if transposed else "conv2d"
    options = {"padding": (2, 3), "groups": 8}
    expected = getattr(torch.nn.functional, name)(leaf.float(), w.float(), b.float(), **options)
    seed = torch.randn(expected.shape, generator=torch_rng).half()
    with record_plans() as plans:
        ours = getattr(gpuconv, name)(leaf, w, b, **options, backend="triton")
        (found,) = torch.autograd.grad(ours, leaf, seed)
    assert [plan.problem.kind for plan in plans] == (["transposed", "fprop"] if transposed else ["fprop", "dgrad"])
    (exact,) = torch.autograd.grad(expected, leaf, seed.float())
    assert torch.allclose(ours.float(), expected, atol=2e-2, rtol=2e-3)
    assert torch.allclose(found.float(), exact.float(), atol=2e-2, rtol=2e-3)
