"""The kernel of 8-bit operands with scales, in the interpreter, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from fprop_cases import LAYOUTS
from mutants import mutant_module
from scaled_cases import BRANCHES, SOLVER, Case, Inputs, all_cases, check_case, config_of, launch, tiles
from scaled_referee import DTYPES, check, emulated, exact

import gpuconv
from gpuconv.kernels.tl.conv import scaled as kernels

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES) >= 100
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)
    assert {(case.dtype, case.branch) for case in CASES} == {(d, b) for d in DTYPES for b in BRANCHES}
    found = {case: tiles(Inputs(case).problem(), config_of(case)) for case in CASES}
    assert all(m >= 2 for m, _, _ in found.values())
    assert sum(m >= 3 and n >= 3 and steps >= 3 for m, n, steps in found.values()) >= 40


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", ("float32", "float16", "8-bit"))
def test_powers_of_two_are_exact(dtype, out):
    """Scales that are powers of two round nothing: what is left is the rounding of the result, ties among it."""
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randint(-3, 4, s, generator=generator).to(DTYPES[dtype]) for s in ((2, 33, 7, 8), (19, 33, 3, 2)))
    scales = {"input_scale": 0.5, "weight_scale": 2.0 ** torch.randint(-2, 3, (19,), generator=generator)}
    if out == "8-bit":
        scales["output_scale"] = 4.0
    options = {"padding": ((1, 0), (2, 1)), "out_dtype": out.replace("8-bit", dtype)}
    y = gpuconv.scaled_conv2d(x, w, **options, **scales, backend=SOLVER.id)
    exact(y, emulated(x, w, **options, **scales))
    assert torch.equal(y.view(torch.uint8), gpuconv.scaled_conv2d(x, w, **options, **scales).view(torch.uint8))


@pytest.mark.parametrize("out", ("float32", "float8_e4m3fn"))
@pytest.mark.parametrize("where", ("x", "w", "bias"))
def test_nan_stays_where_the_definition_has_it(out, where):
    inputs = Inputs(Case(2, "channels_last", "float8_e4m3fn", "arrays"))
    for name in ("x", "w", "bias"):
        if name == where:
            tensor = getattr(inputs, name).clone()
            tensor.view(-1 if tensor.dim() == 1 else tensor.shape)[(1, 2, 0, 1)[: tensor.dim()]] = float("nan")
            setattr(inputs, name, tensor)
    inputs.options["out_dtype"] = out
    if out == "float32":
        inputs.options["output_scale"] = None
    y = inputs.call(SOLVER.id)
    expected = inputs.emulated()
    assert 0 < int(y.float().isnan().sum()) < y.numel()
    assert torch.equal(y.float().isnan(), expected.values.isnan())


def test_infinite_and_nan_scales():
    """int8 has neither: NaN becomes 0, infinities the largest and the smallest number."""
    x, w = torch.tensor([[[1, -1, 0, 2]]], dtype=torch.int8), torch.ones(1, 1, 1, dtype=torch.int8)
    options = {"weight_scale": 1.0, "output_scale": 1.0, "out_dtype": "int8"}
    for backend in (SOLVER.id, "numpy"):
        y = gpuconv.scaled_conv1d(x, w, **options, input_scale=float("inf"), backend=backend)
        assert y.tolist() == [[[127, -128, 0, 127]]]
        y = gpuconv.scaled_conv1d(x, w, **options, input_scale=torch.tensor(float("nan")), backend=backend)
        assert y.tolist() == [[[0, 0, 0, 0]]]
    x, w = x.float().to(torch.float8_e4m3fn), w.float().to(torch.float8_e4m3fn)
    options["out_dtype"] = "float8_e4m3fn"
    for backend in (SOLVER.id, "numpy"):
        y = gpuconv.scaled_conv1d(x, w, **options, input_scale=float("inf"), backend=backend).float()
        assert y[0, 0, 2].isnan() and y[0, 0, [0, 1, 3]].tolist() == [448, -448, 448]


def test_every_value_of_a_result_is_rounded_as_by_torch():
    """All halves of int8, and points between all neighbours of float8, by kernel and reference."""
    x = torch.arange(-128, 128).to(torch.int8).reshape(1, 1, -1)
    w = torch.ones(1, 1, 1, dtype=torch.int8)
    for scale in (0.5, 0.25, 1.5, 3.0):
        options = {"input_scale": scale, "weight_scale": 1.0, "output_scale": 1.0, "out_dtype": "int8"}
        for backend in (SOLVER.id, "numpy"):
            exact(gpuconv.scaled_conv1d(x, w, **options, backend=backend), emulated(x, w, **options))
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(1, 1, -1)
    one = torch.ones(1, 1, 1).to(torch.float8_e4m3fn)
    for scale in (1.0, 0.75, 1.0625, 1.1875, 2.0**-9, 3 * 2.0**-10, 16.0):
        options = {"input_scale": scale, "weight_scale": 1.0, "output_scale": 1.0, "out_dtype": "float8_e4m3fn"}
        for backend in (SOLVER.id, "numpy"):
            exact(gpuconv.scaled_conv1d(every, one, **options, backend=backend), emulated(every, one, **options))


def test_sums_beyond_int32_wrap_around():
    """132000 products of -128 by -128 are 2**31 + 15204352; kernel and reference agree, as does the definition."""
    c = 132000
    x, w = (torch.full((1, c, 1), -128, dtype=torch.int8) for _ in range(2))
    wrapped = c * 2**14 - 2**32
    for backend in (SOLVER.id, "numpy"):
        y = gpuconv.scaled_conv1d(x, w, input_scale=1.0, weight_scale=1.0, out_dtype="float32", backend=backend)
        assert y.item() == float(torch.tensor(wrapped, dtype=torch.int32).float())
        y = gpuconv.scaled_conv1d(
            x[:, :131071], w[:, :131071], input_scale=1.0, weight_scale=1.0, out_dtype="float32", backend=backend
        )
        assert y.item() == float(torch.tensor(131071 * 2**14, dtype=torch.int32).float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unbatched", (False, True))
def test_a_default_plan_equals_torch(dtype, unbatched):
    """The public function, with the tile that the library plans; contiguous weights are packed."""
    x, w = torch.randn(1, 32, 9, 10).mul(20).to(DTYPES[dtype]), torch.randn(24, 32, 3, 3).mul(20).to(DTYPES[dtype])
    given = x[0] if unbatched else x
    scales = {"input_scale": torch.tensor(0.01), "weight_scale": torch.rand(24)}
    with gpuconv.dispatch.record_plans() as plans:
        y = gpuconv.scaled_conv2d(given, w, padding="same", **scales, out_dtype="float32", backend=SOLVER.id)
    assert [plan.solver.id for plan in plans] == [SOLVER.id] and plans[0].workspace == w.numel()
    check(y[None] if unbatched else y, emulated(x, w, padding="same", **scales), w[0].numel(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_results(dtype):
    x, w = torch.ones(2, 4, 5, 6).to(DTYPES[dtype]), torch.ones(3, 4, 3, 3).to(DTYPES[dtype])
    scales = {"input_scale": 1.0, "weight_scale": torch.ones(3)}
    for batch in (x[:0], x[:0].to(memory_format=torch.channels_last)):
        y = gpuconv.scaled_conv2d(batch, w, **scales, backend=SOLVER.id)
        assert y.shape == (0, 3, 3, 4) and y.dtype is torch.bfloat16
    y = gpuconv.scaled_conv2d(x[:, :0], w[:, :0], **scales, backend=SOLVER.id)
    assert y.shape == (2, 0, 3, 4)


@pytest.mark.parametrize("where", ("x", "w", "bias"))
def test_unaligned_and_expanded_operands(where):
    inputs = Inputs(Case(2, "channels_last", "int8", "arrays"))
    expected = inputs.call("numpy")
    tensor = getattr(inputs, where)
    room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    setattr(inputs, where, room[1:].as_strided(tensor.shape, tensor.stride()).copy_(tensor))
    assert torch.equal(inputs.call(SOLVER.id), expected)
    setattr(inputs, where, tensor[:1].expand(tensor.shape))
    assert torch.equal(inputs.call(SOLVER.id), inputs.call("numpy"))


def test_both_backends_are_explained():
    found = Inputs(Case(2, "channels_last", "int8", "arrays")).call("triton", explain=True)
    able = {each.solver.id: each for each in found.candidates if each.reason is None}
    assert able.keys() == {SOLVER.id} and able[SOLVER.id].source == "model" and able[SOLVER.id].estimate > 0
    text = str(found)
    assert "int8 to int8, scales: input array, weight array, output array" in text
    assert found.to_json()["problem"]["type"] == "scaled"


PROBES = (
    Case(2, "channels_last", "float8_e4m3fn", "strided"),
    Case(2, "channels_last", "int8", "grouped, 8-bit"),
    Case(2, "contiguous", "int8", "many taps"),
    Case(3, "contiguous", "int8", "numbers"),
    Case(2, "strided", "float8_e4m3fn", "arrays"),
    Case(1, "strided", "int8", "strided scales"),
    Case(2, "strided", "int8", "64-bit"),
)

MUTANTS = {
    "rows above read": ("in_h = (h0 + tap_r * DILATION_H >= 0) & ", "in_h = "),
    "columns behind read": ("& (w0 + tap_s * DILATION_W < w)", ""),
    "a bit of another tap": ("<< ((tap_t * R + tap_r) * S + tap_s)", "<< ((tap_t * R + tap_s) * S + tap_r)"),
    "channels beyond the last": ("mask=channel_inside[:, None] & column_inside", "mask=column_inside"),
    "filters of another group": ("(group * k_per_group + columns) * w_stride_k", "columns * w_stride_k"),
    "channels of another group": ("group * c_per_group * x_stride_c + ", ""),
    "scale of another filter": ("filters * weight_scale_stride", "columns * weight_scale_stride"),
    "scale next to another": ("filters * weight_scale_stride", "filters"),
    "no scale of the weights": ("factor = factor * weight_scale\n", "factor = factor * 1.0\n"),
    "bias next to another": ("bias_ptr + filters * bias_stride", "bias_ptr + filters"),
    "scale of the result upside down": ("_to_int8(tl.div_rn(total, ", "_to_int8(tl.minimum(total, "),
    "truncated": ("whole = (y + 12582912.0) - 12582912.0", "whole = y"),
    "not saturated": ("y = tl.minimum(tl.maximum(y, -128.0), 127.0)", "y = y"),
    "taps beyond 32 read outside": ("& (hi >= 0) & (hi < h)", "& (hi < h)"),
    "positions beyond the last": ("written = row_inside[:, None] & column_inside", "written = column_inside"),
    "a chunk left out": ("for step in range(0, T * R * S * chunks)", "for step in range(T * R * S * (chunks - 1))"),
    "dilation left out": ("t * DILATION_D * x_stride_d + r * DILATION_H", "t * DILATION_D * x_stride_d + r"),
}  # fmt: skip


def _noticed():
    for case in PROBES:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernel():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    module = mutant_module(tmp_path, name, "conv.scaled", "conv/scaled.py", *MUTANTS[name])
    monkeypatch.setattr(kernels, "_conv_scaled_kernel", module._conv_scaled_kernel)
    assert _noticed(), f"no probe noticed the mutation {name!r}"


def test_launch_by_hand_equals_the_call():
    inputs = Inputs(Case(2, "contiguous", "int8", "packed"))
    problem = inputs.problem()
    assert torch.equal(launch(inputs, problem, "forward"), inputs.call(SOLVER.id))
