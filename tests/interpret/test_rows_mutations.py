"""The suite must notice a broken kernel: each mutant of the row kernels fails at least one case."""

from __future__ import annotations

import pytest
from mutants import mutant_module
from rows_cases import Case, Inputs, check_case, launch

from gpuconv.kernels.tl.conv import rows, rows_wgrad

PROBES = (
    Case("fprop", 2, "channels_last", "float32", "odd groups"),
    Case("fprop", 2, "strided", "float32", "stride 3, dilated"),
    Case("fprop", 2, "channels_last", "float32", "few"),
    Case("fprop", 2, "strided", "float32", "epilogue"),
    Case("fprop", 1, "channels_last", "float32", "64-bit, packed"),
    Case("dgrad", 1, "channels_last", "float32", "more out"),
    Case("dgrad", 2, "channels_last", "float32", "unequal strides"),
    Case("transposed", 1, "channels_last", "float32", "stride 2, dilated rows"),
    Case("fprop", 3, "channels_last", "float32", "eights"),
    Case("fprop", 3, "contiguous", "float32", "packed"),
    Case("dgrad", 3, "channels_last", "float32", "stride 2, epilogue"),
)

GRADIENTS = (
    Case("wgrad", 1, "channels_last", "float32", "odd groups"),
    Case("wgrad", 2, "strided", "float32", "stride 3, dilated"),
    Case("wgrad", 2, "channels_last", "float32", "eights"),
    Case("wgrad", 2, "strided", "float32", "relu"),
    Case("wgrad", 1, "channels_last", "float32", "64-bit"),
    Case("wgrad", 3, "contiguous", "float32", "eights"),
)

MUTANTS = {
    "left edge unmasked": ("here = read & within(column, source_w)", "here = read & (column < source_w)"),
    "rows unmasked": ("reads = here & within(i, height)\n    if", "reads = here & (i < height)\n    if"),
    "runs of columns overlap": ("(J // (16 >> bit) * (16 >> bit) + k // BC)", "(k // BC)"),
    "block of channels skipped": ("i * row_step + b * BC * channel_step", "i * row_step"),
    "piece shifted": ("total = total + d[r]", "total = total + d[(r + 1) % R]"),
    "open rows lost": ("still_open = sums[U:]", "still_open = still_open"),
    "phase forgotten": ("result_row + phase * result_row_phase", "result_row"),
    "warm-up stored": ("mine & (step >= first) & within(at", "mine & within(at"),
    "groups mixed": ("& (c // CG == o // KG) &", "&"),
    "packed row shifted": ("        i // (BO * F) % RP, s", "        (i // (BO * F) + 1) % RP, s"),
    "padding of channels unmasked": ("channel_inside = o < PER * KG", "channel_inside = o >= 0"),
    "epilogue forgotten": (
        "total.to(result_ptr.dtype.element_ty), mask=written",
        "sums[u].to(result_ptr.dtype.element_ty), mask=written",
    ),
    "columns of a lane the other way": ("j * STEP + f, S)", "j * STEP + STEP - 1 - f, S)"),
    "columns of y the other way": ("column = q - beside", "column = q + beside"),
    "padding of whole steps forgotten": ("q += pad_w // STRIDE_W", "q += 0"),
    "columns before the first stored": ("mine & within(at_column, result_w)", "mine & (at_column < result_w)"),
    "rows of a step in one place": ("(U * step + u) * result_row_pitch", "(U * step) * result_row_pitch"),
    "one plane for every tap": ("plane_of_source(plane, t, source_d", "plane_of_source(plane, 0, source_d"),
    "planes unmasked": ("read = lanes & there", "read = lanes"),
    "plane of the result forgotten": ("to += plane.to(tl.int64) * ", "to += 0 * plane.to(tl.int64) * "),
    "weights of one plane": ("+ t * w_stride_t +", "+"),
    "packed planes side by side": ("i // (BO * F * RP * BC * J * BLOCKS) % T,", "i * 0,"),
}

GRADIENT_MUTANTS = {
    "rows of x shifted": ("h = first * STRIDE_H - pad_h + e\n", "h = first * STRIDE_H - pad_h + e + 1\n"),
    "left edge unmasked": ("of_x & within(column, x_w)", "of_x & (column < x_w)"),
    "rows of x unmasked": ("here & within(h, x_h), other=0.0, cache", "here & (h < x_h), other=0.0, cache"),
    "rows of y unmasked": ("mask=there & (p < y_h)", "mask=there"),
    "columns of y unmasked": ("there = (n < images) & of_y & (q < y_w)", "there = (n < images) & of_y"),
    "stride ignored": ("(e - r * DILATION_H) % STRIDE_H == 0 and", ""),
    "ragged split cut off": ("begin + steps_per_split, steps)", "begin + steps_per_split - 1, steps)"),
    "splits overwrite each other": (
        "(split.to(tl.int64) * elements + (block * (PER * KG) + k)",
        "((block * (PER * KG) + k)",
    ),
    "splits dropped": ("(first + split < splits)[", "(first + split < splits - 1)["),
    "group of another block": ("+ c % CG * (groups * KG)", "+ c * (groups * KG)"),
    "images past the last": ("there = (n < images) & of_y", "there = of_y"),
    "tap of another column": ("beside == s * DILATION_W", "beside == s"),
    "columns of a lane in one place": ("- tl.arange(0, V)[None, :] * STRIDE_W", "- tl.arange(0, V)[None, :] * 0"),
    "rows of other tiles": ("first = (step - tile * of_tile) * U\n        rows", "first = step * U\n        rows"),
    "bias of the last row": ("sums += row_of_y.to(ACC_DTYPE)", "sums = row_of_y.to(ACC_DTYPE)"),
    "bias of one column": (
        "tl.sum(tl.sum(sums[R], 0).reshape(V, BO), 0)",
        "tl.max(tl.sum(sums[R], 0).reshape(V, BO), 0)",
    ),
    "one plane for every tap": ("t = split % T", "t = split % T * 0"),
    "planes of x unmasked": ("here = here & there", "here = here"),
    "planes of y in one place": ("+ (lane // lanes_w % y_d).to(tl.int64) * y_stride_d", ""),
    "taps along depth overwrite each other": ("sums[tap], t * R + tap, split", "sums[tap], tap, split"),
    "planes of w in one place": ("tap // (R * S) * w_stride_t", "0 * w_stride_t"),
}

EXACT = {
    "rows": ("if any_not_finite(zeros):", "if groups < 0:"),
    "rows_wgrad": ("if any_not_finite(zeros):", "if steps < 0:"),
}


def _noticed(probes: tuple[Case, ...]) -> bool:
    for case in probes:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def _break(tmp_path, monkeypatch, name: str, module: str, old: str, new: str, *others: tuple[str, str]) -> None:
    broken = mutant_module(tmp_path, name, f"conv.{module}", f"conv/{module}.py", old, new, *others)
    of = rows if module == "rows" else rows_wgrad
    for kernel in ("_conv_rows_kernel", "_conv_rows_pack_kernel", "_conv_rows_wgrad_kernel", "_conv_rows_fold_kernel"):
        if hasattr(of, kernel):
            monkeypatch.setattr(of, kernel, getattr(broken, kernel))


def test_probes_pass_on_the_real_kernels():
    assert not _noticed(PROBES + GRADIENTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    _break(tmp_path, monkeypatch, name, "rows", *MUTANTS[name])
    assert _noticed(PROBES), f"no probe noticed the mutation {name!r}"


@pytest.mark.parametrize("name", GRADIENT_MUTANTS)
def test_mutant_of_the_gradient_is_noticed(name, tmp_path, monkeypatch):
    """Without the exact path, which would repair what reads the NaN around a tensor."""
    _break(tmp_path, monkeypatch, name, "rows_wgrad", *GRADIENT_MUTANTS[name], EXACT["rows_wgrad"])
    assert _noticed(GRADIENTS), f"no probe noticed the mutation {name!r}"


@pytest.mark.parametrize(
    ("module", "kind", "branch"),
    (("rows", "fprop", "plain"), ("rows", "dgrad", "stride 2, a rest"), ("rows_wgrad", "wgrad", "eights")),
)
def test_an_infinity_spreads_without_the_exact_path(module, kind, branch, tmp_path, monkeypatch):
    inputs = Inputs(Case(kind, 2, "channels_last", "float32", branch))
    given = inputs.y if kind == "dgrad" else inputs.x
    given[0, 0, -1, -1] = float("inf")
    whole = launch(inputs, inputs.problem(), "forward").isfinite().sum()
    _break(tmp_path, monkeypatch, "exact", module, *EXACT[module])
    assert launch(inputs, inputs.problem(), "forward").isfinite().sum() < whole
