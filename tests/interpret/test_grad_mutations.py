"""The suite must notice a broken kernel: each mutant of the gradient kernels fails at least one case."""

from __future__ import annotations

import importlib

import pytest
from grad_cases import GradCase, check_case
from mutants import mutant

DGRAD, WGRAD, SUM = "_conv_dgrad_implicit_gemm_kernel", "_conv_wgrad_split_k_kernel", "_conv_wgrad_sum_kernel"

PROBES = {
    "conv.dgrad": (
        GradCase("transposed", 2, "strided", "float32", "grouped"),
        GradCase("dgrad", 1, "contiguous", "float32", "stride 2 dilation 3"),
        GradCase("transposed", 1, "mixed", "float32", "stride over kernel"),
        GradCase("dgrad", 1, "mixed", "float32", "stride 4 dilation 6"),
        GradCase("dgrad", 1, "contiguous", "float32", "stride 3 dilation 2"),
        GradCase("transposed", 1, "channels_last", "float32", "epilogue"),
        GradCase("dgrad", 1, "contiguous", "float32", "many taps"),
        GradCase("dgrad", 1, "contiguous", "float32", "reflect"),
        GradCase("dgrad", 1, "contiguous", "float32", "replicate"),
        GradCase("dgrad", 1, "contiguous", "float32", "circular twice"),
        GradCase("dgrad", 2, "contiguous", "float32", "stride 2"),
        GradCase("dgrad", 3, "channels_last", "float32", "units of 8"),
    ),
    "conv.wgrad": (
        GradCase("wgrad", 2, "strided", "float32", "grouped"),
        GradCase("wgrad", 3, "contiguous", "float32", "plain"),
        GradCase("wgrad", 2, "mixed", "float32", "one tap strided"),
        GradCase("wgrad", 3, "channels_last", "float32", "strided"),
        GradCase("wgrad", 2, "contiguous", "float32", "one split"),
        GradCase("wgrad", 3, "contiguous", "float32", "reflect"),
        GradCase("wgrad", 2, "contiguous", "float32", "kernel over input"),
        GradCase("wgrad", 3, "channels_last", "float32", "units of 8"),
    ),
}

MUTANTS = {
    "row mask dropped": (DGRAD, "row_inside = rows < phase_rows", "row_inside = rows < phase_rows + 1"),
    "column mask dropped": (DGRAD, "column_inside = columns < c_per_group", "column_inside = columns >= 0"),
    "channel mask dropped": (DGRAD, "channel_inside = channels < k_per_group", "channel_inside = channels >= 0"),
    "phases without taps skipped": (
        DGRAD, "rest // (GCD - 1) * GCD + 1 + rest % (GCD - 1))", "rest // (GCD - 1) * GCD + rest % (GCD - 1))",
    ),
    "phase of the wrong axis": (DGRAD, "phase // STRIDE_W % STRIDE_H, h", "phase % STRIDE_H, h"),
    "phase one position short": (DGRAD, "(size - start + STRIDE - 1) // STRIDE\n", "(size - start) // STRIDE\n"),
    "inverse ignored": (DGRAD, "residue // GCD * INVERSE % STEP", "residue // GCD % STEP"),
    "taps where no tap reaches": (DGRAD, "tl.where(residue % GCD == 0, (TAPS", "tl.where(residue >= 0, (TAPS"),
    "last tap of a phase skipped": (DGRAD, "(TAPS - first + STEP - 1) // STEP, 0)", "(TAPS - first) // STEP, 0)"),
    "y read from the wrong end": (
        DGRAD, "pad_lo - first * DILATION) // STRIDE", "pad_lo + first * DILATION) // STRIDE",
    ),
    "tap shifted in w": (DGRAD, "(first_s + s * STEP_W) * w_stride_s", "(first_s + s) * w_stride_s"),
    "tap shifted in y": (DGRAD, "+ s * SHIFT_W * y_stride_q)", "+ s * DILATION_W * y_stride_q)"),
    "bits of the wrong tap": (
        DGRAD, "((t * MOST_R + r) * MOST_S + s).to(tl.int32)", "((t * MOST_R + r) + s).to(tl.int32)",
    ),
    "upper bound off by one": (DGRAD, "(q0 - tap_s * SHIFT_W < q)", "(q0 - tap_s * SHIFT_W <= q)"),
    "lower bound off by one": (DGRAD, "(q0 - tap_s * SHIFT_W >= 0)", "(q0 - tap_s * SHIFT_W >= -1)"),
    "computed bound dropped": (DGRAD, "& (qi >= 0) & (qi < q)", "& (qi < q)"),
    "last step skipped": (DGRAD, "for step in range(0, steps):", "for step in range(0, steps - 1):"),
    "accumulator replaced": (
        DGRAD, "accumulator = tl.dot(a, b, accumulator,", "accumulator = tl.dot(a, b, accumulator * 0,",
    ),
    "group offset of y dropped": (DGRAD, "y_ptr + group * k_per_group * y_stride_k +", "y_ptr +"),
    "group offset of w dropped": (DGRAD, "w_ptr + group * k_per_group * w_stride_k +", "w_ptr +"),
    "group offset of x dropped": (DGRAD, "channel = group * c_per_group + columns", "channel = columns"),
    "residual read elsewhere": (DGRAD, "+ row_w * residual_stride_w", "+ row_h * residual_stride_w"),
    "image counted twice": (DGRAD, "tl.where(image == 0, shown, shown & (coordinate != i))", "shown"),
    "image of another position": (DGRAD, "shown & (source_index(coordinate, size, PADDING_MODE) == i)", "shown"),
    "image beyond the padding": (
        DGRAD, "image <= pad_lo, -image, size - 1 + image - pad_lo", "image <= pad_lo, -image, size + image",
    ),
    "one wrap missing": (DGRAD, "wraps = (pad_hi + size - 1) // size", "wraps = pad_hi // size"),
    "reflection about the edge": (DGRAD, "2 * (size - 1) - i, i))", "2 * size - 1 - i, i))"),
    "unit of c ignored": (DGRAD, "c_per_group *= UNIT_C", "c_per_group *= 1"),
    "unit of k ignored": (DGRAD, "k_per_group *= UNIT_K", "k_per_group *= 1"),
    "unit of a stride of x ignored": (DGRAD, "x_stride_h *= UNIT_C", "x_stride_h *= 1"),
    "unit of a stride of w ignored": (DGRAD, "w_stride_k *= UNIT_C", "w_stride_k *= 1"),
    "unit of a stride of y ignored": (DGRAD, "y_stride_q *= UNIT_K", "y_stride_q *= 1"),
    "unit of the other side": (DGRAD, "w_stride_t *= UNIT_C", "w_stride_t *= UNIT_C * UNIT_C"),
    "wgrad unit of c ignored": (WGRAD, "c_per_group *= UNIT_C", "c_per_group *= 1"),
    "wgrad unit of k ignored": (WGRAD, "k_per_group *= UNIT_K", "k_per_group *= 1"),
    "wgrad unit of a stride of x ignored": (WGRAD, "x_stride_w *= UNIT_C", "x_stride_w *= 1"),
    "wgrad unit of a stride of y ignored": (WGRAD, "y_stride_o *= UNIT_K", "y_stride_o *= 1"),
    "wgrad row mask dropped": (WGRAD, "row_inside = rows < k_per_group", "row_inside = rows >= 0"),
    "wgrad columns masked by one tap": (
        WGRAD, "column_inside = column_c < c_per_group", "column_inside = column_c >= 0",
    ),
    "wgrad flat columns unmasked": (
        WGRAD, "column_inside = columns < T * R * S * c_per_group", "column_inside = columns >= 0",
    ),
    "pixel mask dropped": (WGRAD, "pixel_inside = pixel < last", "pixel_inside = pixel < last + 1"),
    "split skipped": (WGRAD, "first = split * pixels_per_split", "first = tl.maximum(split, 1) * pixels_per_split"),
    "carry lost": (
        WGRAD, "pixel_p, carry = advance(pixel_p, carry, step_p, p)", "pixel_p, carry = advance(pixel_p, 0, step_p, p)",
    ),
    "carry of a full digit": (WGRAD, "(digit >= size).to(digit.dtype)", "(digit > size).to(digit.dtype)"),
    "image never advances": (WGRAD, "pixel_n += step_n + carry", "pixel_n += step_n"),
    "tap shifted in x": (WGRAD, "tap_h = r * DILATION_H - pad_h", "tap_h = r * DILATION_H - pad_h + 1"),
    "wgrad dilation ignored": (WGRAD, "tap_w = s * DILATION_W - pad_w", "tap_w = s - pad_w"),
    "wgrad stride ignored": (WGRAD, "(pixel_p * STRIDE_H)[:, None]", "pixel_p[:, None]"),
    "wgrad bound off by one": (WGRAD, "(hi >= 0) & (hi < h)", "(hi >= 0) & (hi <= h)"),
    "depth bound dropped": (WGRAD, "(di >= 0) & (di < d) & (hi", "(di >= 0) & (hi"),
    "wgrad group offset of x dropped": (
        WGRAD, "(group * c_per_group + column_c) * x_stride_c", "column_c * x_stride_c",
    ),
    "wgrad group offset of y dropped": (WGRAD, "y_ptr + (group * k_per_group + rows)", "y_ptr + (rows)"),
    "partial sums overwrite each other": (WGRAD, "split * w_stride_split + (group", "(group"),
    "wgrad mode ignored": (WGRAD, "hi = source_index(hi, h, PADDING_MODE)", "hi = source_index(hi, h, \"replicate\")"),
    "bias never summed": (WGRAD, "if (tile_n == 0) if bias_ptr", "if (tile_n < 0) if bias_ptr"),
    "bias sums restart each step": (WGRAD, "tl.dot(a, ones, sums,", "tl.dot(a, ones, sums * 0,"),
    "bias summed twice": (WGRAD, "tl.dot(a, ones, sums,", "tl.dot(a, ones + ones, sums,"),
    "bias sums of all columns": (WGRAD, "tl.arange(0, 16)[None, :] == 0, sums", "tl.arange(0, 16)[None, :] >= 0, sums"),
    "bias of splits overwrite each other": (
        WGRAD, "bias_ptr + (split * w_stride_split + group", "bias_ptr + (group",
    ),
    "bias group offset dropped": (
        WGRAD, "(split * w_stride_split + group * k_per_group + rows)", "(split * w_stride_split + rows)",
    ),
    "bias row mask dropped": (WGRAD, "element_ty), mask=row_inside)", "element_ty), mask=rows >= 0)"),
    "bias sum misses the first channel": (SUM, "inside & (element >= weights)", "inside & (element > weights)"),
    "bias sum one channel late": (SUM, "bias_ptr + (element - weights)", "bias_ptr + (element - weights + 1)"),
    "sum writes the bias to w": (SUM, "of_weight = element < weights", "of_weight = inside"),
    "sum misses the last split": (SUM, "for _ in range(0, splits):", "for _ in range(0, splits - 1):"),
    "sum reads one split only": (SUM, "partial += elements", "partial += 0"),
    "sum writes past the end": (SUM, "inside = element < elements", "inside = element <= elements"),
    "sum swaps axes": (SUM, "c * w_stride_c + t * w_stride_t", "c * w_stride_t + t * w_stride_c"),
}  # fmt: skip


def _noticed(module: str, name: str = "") -> bool:
    # Those that a mutant of the units of 8 changes go first: interpreting takes seconds each.
    first = [case for case in PROBES[module] if case.branch.startswith("units") == ("unit of" in name)]
    for case in first + [case for case in PROBES[module] if case not in first]:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


@pytest.mark.parametrize("module", PROBES)
def test_probes_pass_on_the_real_kernels(module):
    assert not _noticed(module)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    kernel, old, new = MUTANTS[name]
    module = "conv.dgrad" if kernel == DGRAD else "conv.wgrad"
    target = importlib.import_module(f"gpuconv.kernels.tl.{module}")
    monkeypatch.setattr(
        target, kernel, mutant(tmp_path, name, module, kernel, f"{module.replace('.', '/')}.py", old, new)
    )
    assert _noticed(module, name), f"no probe noticed the mutation {name!r}"
