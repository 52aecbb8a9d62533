"""What forward convolutions are planned with on Triton: splits, packed weights, units, and their workspace."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton.common import format_strides
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm, fprop_arguments
from gpuconv.problem import ConvProblem

SOLVER = FpropImplicitGemm()


def _problem(x, w, dtype="float16", formats=CHANNELS_LAST, padding=1, groups=1, **options):
    ndim = len(w) - 2
    ones, pads = (1,) * ndim, (padding,) * ndim
    return ConvProblem(
        op=f"conv{ndim}d", kind="fprop", n=x[0], c=x[1], k=w[0], groups=groups, input_size=x[2:], kernel=w[2:],
        output_size=shapes.map_axes(shapes.conv_output_size, x[2:], w[2:], ones, pads, pads, ones), stride=ones,
        pad_lo=pads, pad_hi=pads, dilation=ones, padding_mode="zeros", dtype=dtype, device="cuda:0", array="torch",
        x_format=formats, w_format=formats, y_format=formats, **options,
    )  # fmt: skip


FEW_TILES = _problem((1, 512, 7, 7), (512, 512, 3, 3))
LARGE = _problem((32, 64, 56, 56), (64, 64, 3, 3))


def test_large_channels_last_problems_need_no_workspace():
    plan = SOLVER.plan(LARGE)
    assert plan.workspace == 0 and plan.config["splits"] == 1 and not plan.config["packed"]


@pytest.mark.parametrize("dtype", ("float16", "float32", "float64"))
def test_few_tiles_are_split_within_the_stated_workspace(dtype):
    problem = replace(FEW_TILES, dtype=dtype)
    plan = SOLVER.plan(problem)
    splits = plan.config["splits"]
    assert splits > 2 and plan.workspace == splits * 49 * 512 * (8 if dtype == "float64" else 4)
    arguments = fprop_arguments(problem, format_strides(problem), plan.config)
    assert splits * arguments["tiles_m"] * arguments["tiles_n"] <= 132


@pytest.mark.parametrize("formats", (CHANNELS_LAST, CONTIGUOUS))
def test_workspace_limit_is_respected(monkeypatch, formats):
    """Weights are packed first; splits share what is left; with nothing left there is one launch."""
    problem = replace(FEW_TILES, x_format=formats, w_format=formats, y_format=formats)
    weights, sums = (0 if formats == CHANNELS_LAST else 2 * 512 * 512 * 9), 4 * 49 * 512
    for limit in (1 << 28, weights + 4 * sums, weights + 3 * sums - 1, weights + sums, weights, weights - 1, 0):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(max(limit, 0)))
        plan = SOLVER.plan(problem)
        splits, packed = plan.config["splits"], plan.config["packed"]
        assert plan.workspace == (splits * sums if splits > 1 else 0) + (weights if packed else 0) <= max(limit, 0)
        assert packed == (formats == CONTIGUOUS and limit >= weights)
        if limit >= weights:
            assert (splits > 1) == (limit >= weights + 2 * sums)
    assert plan.workspace == 0 and splits == 1 and not packed


def test_splits_are_long_and_never_empty():
    for c in range(16, 2100, 173):
        for size in (1, 4, 9, 20):
            problem = _problem((1, c, size, size), (64, c, 3, 3), dtype="float32")
            config = SOLVER.plan(problem).config
            splits = config["splits"]
            steps = 9 * -(-c // config["BLOCK_K"])
            per_split = -(-steps // splits)
            assert (splits - 1) * per_split < steps
            assert splits == 1 or per_split >= 8


@pytest.mark.parametrize("dtype", ("float16", "bfloat16", "float32", "float64"))
def test_weights_are_packed_where_it_makes_wide_reads(dtype):
    def packed(c, kernel=(3, 3), x_format=CONTIGUOUS, groups=1):
        problem = _problem((8, c, 28, 28), (64, c // groups, *kernel), dtype, CONTIGUOUS, 0, groups)
        plan = SOLVER.plan(replace(problem, x_format=x_format, y_format=x_format))
        _, elements = SOLVER.parts(plan).get("packed", (dtype, 0))
        assert elements == (prod(problem.w_shape) if plan.config["packed"] else 0)
        return plan.config["packed"]

    sixteen_bit = dtype.endswith("16")
    assert packed(64) == packed(64, x_format=CHANNELS_LAST) == packed(64, groups=4) == sixteen_bit
    assert packed(24, x_format=CHANNELS_LAST) == sixteen_bit
    assert not packed(24) and not packed(64, (1, 1)) and not packed(20) and not packed(64, groups=64)


def test_units_tell_of_multiples_of_eight():
    """UNIT_C and UNIT_K are 8 for multiples of 8 that the JIT does not mark, and multiplied back they are what was."""
    for c, k in ((8, 8), (24, 100), (40, 24), (16, 24), (32, 64), (20, 12)):
        problem = _problem((2, c, 9, 9), (k, c, 3, 3), residual=True)
        strides = format_strides(problem)
        config = SOLVER.plan(problem).config
        arguments = fprop_arguments(problem, strides, config)
        units = tuple(8 if size % 16 == 8 else 1 for size in (c, k))
        assert (config["unit_c"], config["unit_k"]) == (arguments["UNIT_C"], arguments["UNIT_K"]) == units
        assert arguments["c_per_group"] * units[0] == c and arguments["k_per_group"] * units[1] == k
        for tensor, letters, unit in (("x", "nchw", units[0]), ("w", "kcrs", units[0]), ("y", "nkpq", units[1])):
            given = [arguments[f"{tensor}_stride_{axis}"] for axis in letters]
            assert [stride * (1 if axis == 1 else unit) for axis, stride in enumerate(given)] == list(strides[tensor])


def test_units_are_of_the_strides_at_hand():
    """A problem planned in units of 8 still takes tensors whose strides are not: here the batch stride is odd."""
    problem = _problem((2, 8, 9, 9), (24, 8, 3, 3))
    strides = dict(format_strides(problem))
    strides["x"] = (9 * 9 * 9 + 1, 1, 81, 9)
    arguments = fprop_arguments(problem, strides, SOLVER.plan(problem).config)
    assert arguments["UNIT_C"] == 1 and arguments["x_stride_n"] == 9 * 9 * 9 + 1 and arguments["c_per_group"] == 8


def test_sums_beyond_32_bits_take_the_64_bit_variant():
    config = SOLVER.plan(FEW_TILES).config
    narrow = fprop_arguments(FEW_TILES, format_strides(FEW_TILES), config)
    wide = fprop_arguments(FEW_TILES, format_strides(FEW_TILES), config | {"splits": 2**31 // (49 * 512) + 1})
    assert not narrow["INDEX64"] and wide["INDEX64"]
