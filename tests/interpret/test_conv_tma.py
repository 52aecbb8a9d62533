"""The plain TMA kernel against the reference, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mutants import mutant_module
from test_conv_runs import NOT_FINITE, by_definition
from tma_cases import (
    BRANCHES,
    DTYPES,
    KINDS,
    LAYOUTS,
    PHASES,
    SOLVERS,
    STRIDED,
    Case,
    Inputs,
    all_cases,
    check_case,
    config_of,
    launch,
)

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.kernels.tl.conv import tma

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    for solver in set(SOLVERS.values()):
        assert sum(case.kind in solver.kinds for case in CASES) >= 100, solver.id
    for kind in KINDS:
        branches = {case.branch for case in CASES if case.kind == kind}
        assert branches == set(BRANCHES | (STRIDED if kind == "fprop" else PHASES)), kind
        for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES)):
            assert {getattr(case, field) for case in CASES if case.kind == kind} == set(values)
    few = CASES[::7]
    options = [config_of(case, Inputs(case).problem()) for case in few]
    # Blocks of 16 and 32 channels: Triton 3.6 multiplies no fewer.
    for name, number in (("BLOCK_K", 2), ("BLOCK_C", 2), ("TILE_N", 3), ("TILE_O", 2), ("TILE_P", 3), ("TILE_Q", 4)):
        assert len({config[name] for config in options}) >= number, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ndim", "branch"), ((1, "long"), (2, "blocks of channels"), (3, "plain"), (2, "dilated")))
def test_small_integers_are_exact(kind, ndim, branch):
    inputs = Inputs(Case(ndim, "channels_last", "float16", branch, kind), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


def _spoiled(inputs: Inputs, where: str) -> None:
    """Compare where results are NaN and infinite with the definition, for elements of an operand in turn."""
    problem, given = inputs.problem(), getattr(inputs, where)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 4).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = NOT_FINITE[number % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (inputs.case.id, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (inputs.case.id, where, place)


SMALL = {"c": 8, "k": 8, "size": (3, 4)}


@pytest.mark.parametrize("where", ("x", "w"))
@pytest.mark.parametrize("branch", ("plain", "dilated", "one by one, strided and padded"))
def test_what_is_not_finite_stays_where_it_is(branch, where, monkeypatch):
    """Elements in turn: NaN and infinities where the definition has them; boxes that reach farther have none."""
    branches = STRIDED if branch in STRIDED else BRANCHES
    monkeypatch.setitem(branches, branch, {**branches[branch], **SMALL})
    _spoiled(Inputs(Case(2, "channels_last", "float16", branch)), where)


@pytest.mark.parametrize("branch", ("plain", "dilated", "phases"))
def test_what_is_not_finite_in_y_stays_where_it_is_in_a_gradient(branch, monkeypatch):
    """As the general kernel's: what is not finite in w meets the zeros beside y, and spreads over the border."""
    branches = PHASES if branch in PHASES else BRANCHES
    monkeypatch.setitem(branches, branch, {**branches[branch], **SMALL})
    _spoiled(Inputs(Case(2, "channels_last", "float16", branch, "dgrad")), "y")


CONV, GRADIENT = (solver.id for solver in dict.fromkeys(SOLVERS.values()))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
def test_default_plans_equal_torch(dtype):
    """The public functions with the tiles of untuned plans; each call again, on other values."""
    for _ in range(2):
        x = torch.randn(2, 16, 9, 13).to(dtype).to(memory_format=torch.channels_last)
        w = torch.randn(72, 16, 3, 3).to(dtype)
        exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
        with record_plans() as plans:
            y = gpuconv.conv2d(x, w, padding=1, backend=CONV, precision="tf32")
            options = {"padding": 1, "backend": GRADIENT, "precision": "tf32"}
            gradient = gpuconv.conv2d_input_grad(tuple(x.shape), w, y.detach(), **options)
        assert {plan.solver.id for plan in plans} == {CONV, GRADIENT}
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * 8 * exact.abs().max()
        exact = torch.nn.grad.conv2d_input(x.shape, w.double(), y.double(), padding=1)
        assert (gradient.double() - exact).abs().max() <= torch.finfo(dtype).eps * 8 * exact.abs().max()


def _unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same in memory that begins two bytes later."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return room.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)


def _channels_apart(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.repeat_interleave(2, 1)[:, ::2]


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    """Return the first image for every image, which are all the same."""
    return tensor[:1].expand(tensor.shape)


@pytest.mark.parametrize("how", (_unaligned, _channels_apart, _expanded), ids=lambda how: how.__name__)
@pytest.mark.parametrize("taps", (1, 3))
def test_operands_that_maps_cannot_describe_are_copied(how, taps):
    cl = torch.channels_last
    x, residual = (torch.randn(2, 16, 5, 6).half().to(memory_format=cl) for _ in range(2))
    w, bias = torch.randn(16, 16, taps, taps).half().to(memory_format=cl), torch.randn(16).half()
    if how is _expanded:
        bias = bias[:1].expand(16)
    given = [how(tensor) for tensor in (x, residual)]
    lies = w if how is _expanded else how(w)
    problem = gpuconv.explain(gpuconv.conv2d, x, w, bias, padding=taps // 2, residual=residual, backend=CONV).problem
    y = torch.empty(2, 16, 5, 6).half().to(memory_format=cl)
    tensors: dict[str, Any] = {"x": given[0], "w": lies, "y": y, "bias": bias, "residual": given[1]}
    solver = SOLVERS["fprop"]
    solver.launch(problem, tensors, solver.plan(problem).config)
    exact = torch.nn.functional.conv2d(given[0].double(), lies.double(), bias.double(), padding=taps // 2) + given[1]
    assert (y.double() - exact).abs().max() <= 4e-3 * exact.abs().max()


def test_refusals_name_the_reason():
    def why(x: torch.Tensor, w: torch.Tensor, function: Any = gpuconv.conv2d, **options: Any) -> str:
        return str(gpuconv.explain(function, x, w, backend="triton", **options))

    x, w = (
        torch.empty(shape).half().to(memory_format=torch.channels_last) for shape in ((2, 64, 9, 9), (64, 64, 3, 3))
    )
    assert "takes channels-last tensors, not x that is contiguous" in why(x.contiguous(), w)
    assert "multiplies float32 in tf32, and precision is ieee" in why(x.float(), w.float(), precision="ieee")
    assert "multiplies float16, bfloat16, float32, not float64" in why(x.double(), w.double())
    assert "pads with zeros, not circular" in why(x, w, padding=1, padding_mode="circular")
    assert "60 input channels are no multiple of 8" in why(x[:, :60], w[:, :60])
    assert "20 output channels are no multiple of 8" in why(x, w[:20])
    assert "takes groups of whole blocks of 32 and 64 channels, not 32 and 32" in why(x, w[:, :32], groups=2)
    strided = "shifts one box by every tap, whose steps (1, 1) the stride (2, 2) must divide"
    assert strided in why(x, w, stride=2)
    assert "runs at most 16 phases one after the other, not 25" in why(x, w, gpuconv.conv_transpose2d, stride=5)
    one, groups = w[:, :32].float(), {"groups": 2, "precision": "tf32"}
    assert "takes one group of float32 gradients, not 2" in why(x.float(), one, gpuconv.conv_transpose2d, **groups)
    assert "has nothing to multiply" in why(x[:0], w)
    assert tuple(gpuconv.conv2d(x[:0], w, backend="triton").shape) == (0, 64, 7, 7)
    with pytest.raises(gpuconv.NoSolverError, match="has nothing to multiply"):
        gpuconv.conv2d(x[:0], w, backend=CONV)


PROBES = (
    Case(2, "channels_last", "float16", "plain"),
    Case(3, "channels_last", "float16", "dilated"),
    Case(2, "contiguous weights", "float32", "blocks of channels"),
    Case(2, "wide gaps", "float16", "epilogue"),
    Case(2, "channels_last", "float16", "groups"),
    Case(2, "channels_last", "float16", "many images"),
    Case(3, "wide gaps", "float16", "plain"),
    Case(2, "wide gaps", "float16", "blocks of channels", "dgrad"),
    Case(3, "channels_last", "float16", "asymmetric", "dgrad"),
    Case(2, "channels_last", "float16", "phases apart", "dgrad"),
)

MUTANTS = {
    "depth pad ignored": ("d0 = at_o + first_d", "d0 = at_o"),
    "row pad ignored": ("h0 = at_p + first_h", "h0 = at_p"),
    "column pad ignored": ("w0 = at_q + first_w", "w0 = at_q"),
    "depth dilation ignored": ("d0 + tap_t * step_d", "d0 + tap_t"),
    "row dilation ignored": ("h0 + tap_r * step_h", "h0 + tap_r"),
    "column dilation ignored": ("w0 + tap_s * step_w", "w0 + tap_s"),
    "first tap ignored": ("tap = tap_first + tap_t", "tap = tap_t"),
    "weights of a row of taps": ("tap_r * tap_step_h", "tap_r"),
    "weights of a plane of taps": ("tap_t * tap_step_d", "tap_t"),
    "rows end early": ("row_ends = s == taps_s", "row_ends = s == taps_r"),
    "planes end early": ("plane_ends = r == taps_r", "plane_ends = r == taps_t"),
    "blocks never end": ("first + tl.where(block_ends, BLOCK_C, 0)", "first"),
    "channels of the first group": ("w0 + tap_s * step_w, group * c + first]", "w0 + tap_s * step_w, first]"),
    "filters of the first group": ("[tap, group * k + begin, first]", "[tap, begin, first]"),
    "last channels forgotten": ("t * r * s * tl.cdiv(c, BLOCK_C)", "t * r * s * (c // BLOCK_C)"),
    "transposed weights of the first block": ("[tap, group * c + first, begin]", "[tap, group * c, begin]"),
    "second tile of filters": ("begin = (at_k - group * tiles_k) * BLOCK_K", "begin = 0"),
    "bias of the first filters": ("row = begin + tl.arange(0, BLOCK_K)", "row = tl.arange(0, BLOCK_K)"),
    "stride of vectors ignored": ("(first + row).to(tl.int64) * stride", "(first + row).to(tl.int64)"),
    "scale forgotten": ("stored(sums * _per_filter", "stored(sums + _per_filter"),
    "residual of another tile": ("residual_map.load(here)", "residual_map.load([at_n, at_o, at_p, at_p, begin])"),
    "images of the first tile": ("at_n *= TILE_N", "at_n *= 1"),
    "planes of the first tile": ("at_o *= TILE_O", "at_o *= 1"),
    "tile axes swapped": ("lines % tiles_p, position % tiles_q", "position % tiles_q, lines % tiles_p"),
    "positions of a group of tiles": ("position = group * GROUP + within % size", "position = within % size"),
    "result turned": ("result.T.reshape", "result.reshape"),
}  # fmt: skip


def _noticed(order: tuple[str, ...] = ("forward",)) -> bool:
    for case in PROBES:
        try:
            check_case(case, order)
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernel():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    module = mutant_module(tmp_path, name, "conv.tma", "conv/tma.py", *MUTANTS[name])
    monkeypatch.setattr(tma, "_conv_tma_kernel", module._conv_tma_kernel)
    assert _noticed(), f"no probe noticed the mutation {name!r}"
