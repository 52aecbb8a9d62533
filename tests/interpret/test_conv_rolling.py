"""The rolling kernel against the reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from mutants import mutant_module
from rolling_cases import (
    BRANCHES,
    DTYPES,
    KINDS,
    LAYOUTS,
    SOLVERS,
    STRIDED,
    Case,
    Inputs,
    all_cases,
    check_case,
    config_of,
    launch,
)
from test_conv_runs import NOT_FINITE, by_definition

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.kernels.tl.conv import rolling

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    for kind in KINDS:
        assert sum(case.kind == kind for case in CASES) >= 50, kind
        assert {case.branch for case in CASES if case.kind == kind} >= set(BRANCHES)
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES | STRIDED)):
        assert {getattr(case, field) for case in CASES} == set(values)
    options = [
        config_of(case, Inputs(case).problem())
        for case in CASES
        if case.branch == "many channels" or CASES.index(case) % 3 == 0
    ]
    for name, number in (("ROWS", 3), ("MORE", 3), ("BLOCK_K", 3), ("BLOCK_M", 2), ("BLOCK_N", 2), ("INDEX64", 2)):
        assert len({config[name] for config in options}) >= number, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ndim", "branch"),
    ((1, "long"), (1, "eleven rows"), (2, "two blocks of channels"), (2, "sixteen rows"), (3, "plain"), (2, "dilated")),
)
def test_small_integers_are_exact(kind, ndim, branch):
    inputs = Inputs(Case(ndim, "channels_last", "float16", branch, kind), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


@pytest.mark.parametrize("where", ("x", "w"))
@pytest.mark.parametrize("branch", ("plain", "asymmetric", "dilated", "padding over the window", "stride down"))
def test_what_is_not_finite_stays_where_it_is(branch, where):
    """Elements in turn: NaN and infinities where the definition has them; rows that are multiplied beside have none."""
    inputs = Inputs(Case(2, "channels_last", "float16", branch))
    problem, given = inputs.problem(), getattr(inputs, where)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 5).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = NOT_FINITE[number % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (branch, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (branch, where, place)


@pytest.mark.parametrize("branch", ("plain", "dilated", "padding over the window"))
def test_what_is_not_finite_in_y_stays_where_it_is_in_a_gradient(branch):
    """As the general kernel's: what is not finite in w meets the zeros beside y, and spreads over the border."""
    inputs = Inputs(Case(2, "channels_last", "float16", branch, "dgrad"))
    problem, given = inputs.problem(), inputs.y
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 5).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = NOT_FINITE[number % 3]
        inputs.y = changed
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (branch, place)
        assert torch.equal(result.isinf(), expected.isinf()), (branch, place)


def _layer(*size: int, c: int = 64, k: int = 64, taps: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = (
        torch.empty(32, c, *size, dtype=torch.bfloat16),
        torch.empty(k, c, *(taps,) * len(size), dtype=torch.bfloat16),
    )
    x, w = (tensor.movedim(1, -1).contiguous().movedim(-1, 1) for tensor in (x, w))
    return x, w


@pytest.mark.parametrize(
    ("size", "c", "taps", "dilation"),
    (((128, 128), 64, 3, 1), ((24, 24, 24), 32, 3, 1), ((51200,), 32, 7, 5), ((51200,), 32, 11, 3)),
)
def test_dispatcher_takes_it_by_itself(size, c, taps, dilation):
    """For layers of the networks: a decoder's, one of volumes, and one of a vocoder, dilated."""
    x, w = _layer(*size, c=c, k=c, taps=taps)
    ndim, options = len(size), {"padding": taps // 2 * dilation, "dilation": dilation, "backend": "triton"}
    conv, gradient = getattr(gpuconv, f"conv{ndim}d"), getattr(gpuconv, f"conv{ndim}d_input_grad")
    assert gpuconv.explain(conv, x, w, **options).solver == SOLVERS["fprop"].id
    assert gpuconv.explain(gradient, tuple(x.shape), w, x, **options).solver == SOLVERS["dgrad"].id


def test_refusals_name_the_reason():
    def why(x: torch.Tensor, w: torch.Tensor, **options: Any) -> str:
        return str(gpuconv.explain(gpuconv.conv2d, x, w, backend="triton", **options))

    x, w = _layer(14, 14, c=32, k=32)
    assert "takes channels-last tensors, not contiguous" in why(x.contiguous(), w.contiguous())
    assert "multiplies 16-bit numbers, not float32" in why(x.float(), w.float())
    assert "takes one group, not 2" in why(x, w[:, :16], groups=2)
    assert "pads with zeros alone, not circular" in why(x, w, padding=1, padding_mode="circular")
    assert "multiplies 16 channels at a time, which 20 are no multiple of" in why(x[:, :20], w[:, :20])
    assert "goes down an axis of stride 1 with 2 to 16 taps, which (3, 3) by (2, 2) has not" in why(x, w, stride=2)
    x, w = _layer(14, 14, c=512, k=512)
    assert "has no tile that keeps weights of 512 channels and (3, 3) taps in shared memory" in why(x, w)
    gradient = gpuconv.explain(gpuconv.conv_transpose2d, x, w, stride=2, backend="triton")
    assert "computes data gradients of stride 1, not (2, 2)" in str(gradient)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_default_plans_equal_torch(dtype):
    """The public functions and autograd, with the tiles of untuned plans; each call again, on other values."""
    conv = SOLVERS["fprop"].id
    for _ in range(2):
        x = torch.randn(1, 16, 5, 40).to(dtype).to(memory_format=torch.channels_last)
        w = torch.randn(32, 16, 3, 3).to(dtype).to(memory_format=torch.channels_last)
        exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
        with record_plans() as plans:
            y = gpuconv.conv2d(x, w, padding=1, backend=conv)
            gradient = gpuconv.conv2d_input_grad(tuple(x.shape), w, y.detach(), padding=1, backend=SOLVERS["dgrad"].id)
        assert {plan.solver.id for plan in plans} == {conv, SOLVERS["dgrad"].id}
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * 8 * exact.abs().max()
        exact = torch.nn.grad.conv2d_input(x.shape, w.double(), y.double(), padding=1)
        assert (gradient.double() - exact).abs().max() <= torch.finfo(dtype).eps * 8 * exact.abs().max()


FAR: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "step down": ((1, 16, 3, 1), (2**32, 1, 2**30, 16), (4, 16, 2, 1), (1, 0), (2, 1)),
    "tap across": ((1, 16, 2, 3), (2**32, 1, 16, 2**30), (4, 16, 2, 2), (0, 0), (1, 2)),
    "channel": ((1, 16, 3, 1), (2**33, 2**28, 1, 1), (4, 16, 2, 1), (1, 0), (1, 1)),
    "padding": ((1, 16, 2, 1), (2**31 - 1, 1, 2**30, 16), (4, 16, 4, 1), (3, 0), (1, 1)),
    "step into a row": ((1, 16, 2, 1), (2**31 - 1, 1, 2**30, 16), (4, 16, 2, 1), (2, 0), (2, 1)),
}
"""Shape and strides of x, shape of w, padding and dilation: products of two 32-bit numbers that have more bits."""


@pytest.mark.parametrize("case", (*FAR, "weights"))
def test_offsets_beyond_32_bits(case, tmp_path):
    """In a file of zeros, most of which take no room: other offsets than the right ones find them."""
    x_shape, strides, w_shape, padding, dilation = FAR.get(case, ((1, 16, 3, 1), None, (4, 16, 2, 1), (1, 0), (1, 1)))
    x, w = torch.randn(x_shape).half(), torch.randn(w_shape).half()
    options: Any = {"padding": padding, "dilation": dilation}
    plain = gpuconv.explain(gpuconv.conv2d, x, w, backend="triton.conv.fprop.implicit_gemm", **options).problem
    problem = replace(plain, x_format="channels_last", y_format="channels_last")
    exact = torch.nn.functional.conv2d(x.double(), w.double(), **options)
    y = torch.empty(exact.shape, dtype=x.dtype).to(memory_format=torch.channels_last)
    far, where = (w, (2, 2**28, 1, 1)) if strides is None else (x, strides)
    zeros = torch.from_file(str(tmp_path / "zeros"), shared=True, size=3 * 2**32, dtype=far.dtype)
    placed = zeros.as_strided(far.shape, where, 2**32).copy_(far)
    tensors = {"x": placed if far is x else x, "w": placed if far is w else w, "y": y}
    config = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "ROWS": max(2, w_shape[2]), "MORE": 0, "steps": 2}
    SOLVERS["fprop"].launch(problem, tensors, config | {"num_warps": 1, "num_stages": 1})
    assert (y.double() - exact).abs().max() <= 4e-3 * exact.abs().max()


PROBES = (
    Case(2, "channels_last", "float16", "plain"),
    Case(2, "contiguous weights", "float16", "two blocks of channels"),
    Case(2, "channels_last", "float16", "dilated"),
    Case(3, "channels_last", "float16", "asymmetric"),
    Case(3, "channels_last", "float16", "dilated"),
    Case(3, "channels_last", "float16", "stride across"),
    Case(2, "gaps", "float16", "epilogue"),
    Case(1, "channels_last", "float16", "long", "dgrad"),
    Case(1, "channels_last", "float16", "sixteen rows"),
    Case(3, "channels_last", "bfloat16", "plain", "dgrad"),
)

MUTANTS = {
    "row mask dropped": ("(at_h >= 0) & (at_h < h)", "(at_h >= 0)"),
    "first row read": ("(at_h >= 0) & (at_h < h)", "(at_h < h)"),
    "column mask dropped": ("& (at_w >= 0) & (at_w < w)", "& (at_w >= 0)"),
    "slice mask dropped": ("(at_d >= 0) & (at_d < d)", "(at_d < d)"),
    "depth dilation ignored": ("at_d = d0 + t * DILATION_D", "at_d = d0 + t"),
    "tap read without its dilation": ("tap % S * DILATION_W * x_stride_w", "tap % S * x_stride_w"),
    "row step without its dilation": ("x_row += DILATION_H * x_stride_h", "x_row += x_stride_h"),
    "phase of a line forgotten": ("(steps * DILATION_H) + line % DILATION_H", "(steps * DILATION_H)"),
    "lines overlap": ("line // DILATION_H * (steps * DILATION_H)", "line // DILATION_H * (steps * DILATION_H - 1)"),
    "filter row of the row before": ("still_open[m] + products[R - 1 - m]", "still_open[m] + products[R - 2 - m]"),
    "a row opens with its last tap": ("sums = sums + (products[0],)", "sums = sums + (products[R - 1],)"),
    "rows closed early": ("(i >= R - 1) & (at_p < p)", "(i >= R - 2) & (at_p < p)"),
    "rows after the last": ("(i >= R - 1) & (at_p < p)", "(i >= R - 1)"),
    "halves of 16 rows exchanged": ("pieces(low, BM, 8, BO) + pieces(high,", "pieces(high, BM, 8, BO) + pieces(low,"),
    "rest of the rows forgotten": ("return found + pieces(rest", "return found + pieces(rest * 0"),
    "weights of the first rows again": ("r = FIRST + side // BLOCK_N", "r = side // BLOCK_N"),
    "block of channels ignored": ("(b * BLOCK_K + depth) * x_stride_c", "depth * x_stride_c"),
    "weights of the first block": ("(b * BLOCK_K + depth) * w_stride_c", "depth * w_stride_c"),
    "image mask dropped": ("live = row_n < n", "live = row_n <= n"),
    "channels beyond the last": ("channel_inside = channel < k", "channel_inside = channel <= k"),
    "depth pad ignored": ("d0 = row_o * STRIDE_D - pad_d", "d0 = row_o * STRIDE_D"),
    "stride across ignored": ("w0 = row_q * STRIDE_W - pad_w", "w0 = row_q - pad_w"),
    "offset of turned weights ignored": ("filters = w_ptr + w_offset", "filters = w_ptr"),
    "residual of another row": ("residual_row + at_p * residual", "residual_row + (at_p ^ 1) * residual"),
    "second tile of filters": ("pid % tiles_n * BLOCK_N", "0 * BLOCK_N"),
}  # fmt: skip


def _noticed() -> bool:
    for case in PROBES:
        try:
            check_case(case, orders=("forward",))
            inputs = Inputs(case)
            problem = inputs.problem()
            turned = {"BLOCK_M": 16, "BLOCK_N": 16, "ROWS": 2, "MORE": 1, "steps": 2}
            turned = turned if config_of(case, problem)["ROWS"] + config_of(case, problem)["MORE"] in (3, 4) else {}
            result = launch(inputs, problem, "forward", config_of(case, problem) | turned | {"INDEX64": True}).double()
            expected = inputs.call("numpy", torch.Tensor.double)
            assert (result - expected).abs().max() <= 4e-2 * expected.abs().max()
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernel():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    module = mutant_module(tmp_path, name, "conv.rolling", "conv/rolling.py", *MUTANTS[name])
    monkeypatch.setattr(rolling, "_conv_rolling_kernel", module._conv_rolling_kernel)
    assert _noticed(), f"no probe noticed the mutation {name!r}"
