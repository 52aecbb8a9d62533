"""The suite must notice a broken kernel: each mutant of the forward kernels fails at least one case."""

from __future__ import annotations

import pytest
from fprop_cases import Case, check_case
from mutants import mutant_module

from gpuconv.kernels.tl.conv import fprop

KERNELS = ("_conv_fprop_implicit_gemm_kernel", "_conv_fprop_pack_kernel", "_conv_fprop_sum_kernel")

PROBES = (
    Case(1, "mixed", "float16", "grouped", flat=True),
    Case(2, "contiguous", "float64", "kernel over input", flat=True),
    Case(2, "strided", "float32", "grouped"),
    Case(2, "contiguous", "float32", "strided"),
    Case(3, "channels_last", "float32", "epilogue"),
    Case(3, "mixed", "float32", "many taps"),
    Case(2, "contiguous", "float32", "reflect"),
    Case(1, "contiguous", "float32", "replicate"),
    Case(3, "contiguous", "float32", "relu"),
    Case(3, "contiguous", "float32", "64-bit"),
    Case(2, "contiguous", "float32", "circular twice"),
    Case(2, "strided", "float32", "three splits"),
    Case(2, "strided", "float32", "three splits, grouped"),
    Case(2, "channels_last", "float32", "8 channels"),
    Case(1, "channels_last", "float32", "8 channels, grouped, reflect"),
    Case(2, "strided", "float32", "packed, three splits"),
    Case(2, "contiguous", "float32", "packed, grouped"),
    Case(2, "contiguous weights", "float32", "packed, many taps"),
)

MUTANTS = {
    "row mask dropped": ("conv/fprop.py", "row_inside = row_n < n\n", "row_inside = row_n < n + 1\n"),
    "column mask dropped": ("conv/fprop.py", "column_inside = columns < k_per_group", "column_inside = columns >= 0"),
    "channel mask dropped": (
        "conv/fprop.py",
        "channel_inside = channels < c_per_group",
        "channel_inside = channels >= 0",
    ),
    "tap shifted by bits": (
        "conv/fprop.py",
        "<< ((tap_t * R + tap_r) * S + tap_s)",
        "<< ((tap_t * R + tap_s) * S + tap_r)",
    ),
    "tap shifted in x": ("conv/fprop.py", "h0 = row_p * STRIDE_H - pad_h", "h0 = row_p * STRIDE_H - pad_h + 1"),
    "tap shifted in w": ("conv/fprop.py", "        s = tap % S\n", "        s = (tap + 1) % S\n"),
    "dilation ignored": ("conv/fprop.py", "r * DILATION_H * x_stride_h + s", "r * x_stride_h + s"),
    "upper bound off by one": ("conv/fprop.py", "(w0 + tap_s * DILATION_W < w)", "(w0 + tap_s * DILATION_W <= w)"),
    "lower bound off by one": ("conv/fprop.py", "(d0 + tap_t * DILATION_D >= 0)", "(d0 + tap_t * DILATION_D >= -1)"),
    "computed bound dropped": (
        "conv/fprop.py",
        f"{' ' * 20}reads = reads & (di >= 0) & (di < d) & (hi >= 0)",
        f"{' ' * 20}reads = reads & (di >= 0) & (di < d)",
    ),
    "last reduction step skipped": ("conv/fprop.py", "range(first, last)", "range(first, last - 1)"),
    "chunk of channels skipped": (
        "conv/fprop.py",
        "channels = chunk * BLOCK_K + depth",
        "channels = tl.maximum(chunk, 1) * BLOCK_K + depth",
    ),
    "split skipped": (
        "conv/fprop.py",
        "first = split * steps_per_split",
        "first = tl.maximum(split, 1) * steps_per_split",
    ),
    "ragged split cut off": (
        "conv/fprop.py",
        "tl.minimum(first + steps_per_split, steps)",
        "tl.minimum(first + steps_per_split - 1, steps)",
    ),
    "flat taps shifted": ("conv/fprop.py", "w0[:, None] + (s * DILATION_W)", "w0[:, None] + (r * DILATION_W)"),
    "flat channels beyond the group": (
        "conv/fprop.py",
        "there = channel < c_per_group",
        "there = channel <= c_per_group",
    ),
    "partial sums overwrite each other": ("conv/fprop.py", " + split * y_stride_split\n", "\n"),
    "group of the wrong split": ("conv/fprop.py", "group = pid // tiles % groups", "group = pid // tiles"),
    "unit of w forgotten": ("conv/fprop.py", "columns) * w_stride_k * UNIT_C", "columns) * w_stride_k"),
    "unit of a tap of w forgotten": ("conv/fprop.py", "s * w_stride_s) * UNIT_C", "s * w_stride_s)"),
    "unit of x forgotten": ("conv/fprop.py", "row_n * x_stride_n * UNIT_C", "row_n * x_stride_n"),
    "unit of a tap of x forgotten": ("conv/fprop.py", "x_corner + tap_offset * UNIT_C", "x_corner + tap_offset"),
    "unit of a computed position forgotten": (
        "conv/fprop.py",
        "(di * x_stride_d + hi * x_stride_h + wi * x_stride_w) * UNIT_C",
        "(di * x_stride_d + hi * x_stride_h + wi * x_stride_w)",
    ),
    "unit of y forgotten": ("conv/fprop.py", "(y_row * UNIT_K)", "y_row"),
    "unit of the residual forgotten": ("conv/fprop.py", "ptr, residual_row * UNIT_K,", "ptr, residual_row,"),
    "unit of channels forgotten": ("conv/fprop.py", "c_per_group = c_per_group * UNIT_C", "c_per_group = c_per_group"),
    "unit of filters forgotten": ("conv/fprop.py", "k_per_group = k_per_group * UNIT_K", "k_per_group = k_per_group"),
    "packed tap shifted": (
        "conv/fprop.py",
        "inside = (tap < T * R * S)[:, None]",
        "inside = (tap < T * R * S - 1)[:, None]",
    ),
    "packed taps transposed": (
        "conv/fprop.py",
        "    s = tap % S\n    r = tap // S % R\n",
        "    r = tap % R\n    s = tap // R % S\n",
    ),
    "packed channels swapped": (
        "conv/fprop.py",
        "packed_tap[:, None] + c[None, :], values",
        "packed_tap[:, None] + (c_per_group - 1 - c)[None, :], values",
    ),
    "packed filter shifted": ("conv/fprop.py", "packed_ptr + (k * (T * R * S) + tap)", "packed_ptr + (k + tap)"),
    "packed channels unmasked": (
        "conv/fprop.py",
        "(c < c_per_group)[None, :]\n    s = tap",
        "(c >= 0)[None, :]\n    s = tap",
    ),
    "second block of taps lost": (
        "conv/fprop.py",
        "pid // tiles_c % tiles_t * BLOCK_T",
        "pid // tiles_c % tiles_t * 0",
    ),
    "second block of channels lost": ("conv/fprop.py", "c = pid % tiles_c * BLOCK_C", "c = pid % tiles_c * 0"),
    "sum misses the last split": ("conv/fprop.py", "range(0, splits)", "range(0, splits - 1)"),
    "sum reads one split only": ("conv/fprop.py", "partial += elements", "partial += 0"),
    "sum forgets the epilogue": ("conv/fprop.py", "    total = epilogue(\n", "    epilogue(\n"),
    "sum reads the residual elsewhere": (
        "conv/fprop.py",
        "tile_pointers(residual_ptr, residual_row, channel",
        "tile_pointers(residual_ptr, row_n, channel",
    ),
    "sum writes rows past the end": ("conv/fprop.py", "inside = (row < rows)", "inside = (row <= rows)"),
    "sum writes channels past the end": (
        "conv/fprop.py",
        "channel_inside = channel < k\n",
        "channel_inside = channel >= 0\n",
    ),
    "sum loses a tile of channels": (
        "conv/fprop.py",
        "channel = pid % tiles_n * BLOCK_N",
        "channel = pid % tiles_n * 0",
    ),
    "accumulator replaced": (
        "conv/fprop.py",
        "accumulator = tl.dot(a, b, accumulator,",
        "accumulator = tl.dot(a, b, accumulator * 0,",
    ),
    "group offset of x dropped": ("conv/fprop.py", "x_ptr + group * c_per_group * x_stride_c +", "x_ptr +"),
    "group offset of w dropped": (
        "conv/fprop.py",
        "(group * k_per_group + columns) * w_stride_k",
        "columns * w_stride_k",
    ),
    "group offset of y dropped": ("conv/fprop.py", "channel = group * k_per_group + columns", "channel = columns"),
    "store unmasked": (
        "conv/fprop.py",
        "tl.store(y_tile, accumulator.to(y_ptr.dtype.element_ty), mask=written)",
        "tl.store(y_tile, accumulator.to(y_ptr.dtype.element_ty), mask=row_inside[:, None])",
    ),
    "bias after scale": (
        "common.py",
        "stored(accumulator + bias[None, :], ACTIVATION)",
        "stored(accumulator - bias[None, :], ACTIVATION)",
    ),
    "shift forgotten": ("common.py", "stored(accumulator + shift[None, :], ACTIVATION)", "accumulator"),
    "residual forgotten": (
        "common.py",
        "stored(accumulator + residual.to(dtype), ACTIVATION)",
        "accumulator",
    ),
    "tile walked twice": (
        "common.py",
        "group * GROUP_M + within % rows, within // rows",
        "group * GROUP_M + within % rows, 0",
    ),
    "reflection repeats the edge": ("common.py", "2 * (size - 1) - i, i)", "2 * size - 1 - i, i)"),
    "replication leaves the input": (
        "common.py",
        "tl.minimum(tl.maximum(i, 0), size - 1)",
        "tl.minimum(tl.maximum(i, 0), size)",
    ),
    "wrap keeps its sign": ("common.py", "i = tl.where(i < 0, i + size, i)", "i = tl.where(i < 0, -i, i)"),
}


def _noticed() -> bool:
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
    module = mutant_module(tmp_path, name, "conv.fprop", *MUTANTS[name])
    for kernel in KERNELS:
        monkeypatch.setattr(fprop, kernel, getattr(module, kernel))
    assert _noticed(), f"no probe noticed the mutation {name!r}"
