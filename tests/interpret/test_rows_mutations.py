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
)

GRADIENTS = (
    Case("wgrad", 1, "channels_last", "float32", "odd groups"),
    Case("wgrad", 2, "strided", "float32", "stride 3, dilated"),
    Case("wgrad", 1, "channels_last", "float32", "eights"),
)

MUTANTS = {
    "left edge unmasked": ("here = lanes & within(column, source_w)", "here = lanes & (column < source_w)"),
    "rows unmasked": ("reads = here & within(i, height)\n    if", "reads = here & (i < height)\n    if"),
    "runs of taps overlap": ("(S // (16 >> bit) * (16 >> bit) + k // BC)", "(k // BC)"),
    "block of channels skipped": ("i * row_step + b * BC * channel_step", "i * row_step"),
    "piece shifted": ("total = total + d[r]", "total = total + d[(r + 1) % R]"),
    "open rows lost": ("still_open = sums[1:]", "still_open = still_open"),
    "phase forgotten": ("at = phase + step * phases_h", "at = step * phases_h"),
    "warm-up stored": ("(step >= first) & within(at", "within(at"),
    "groups mixed": ("& (c // CG == o // KG) &", "&"),
    "packed tap shifted": ("c, i % BO, i // BO % RP,", "c, i % BO, (i // BO + 1) % RP,"),
    "padding of channels unmasked": ("channel_inside = o < PER * KG", "channel_inside = o >= 0"),
    "epilogue forgotten": (
        "total.to(result_ptr.dtype.element_ty), mask=written",
        "sums[0].to(result_ptr.dtype.element_ty), mask=written",
    ),
}

GRADIENT_MUTANTS = {
    "pairs of other rows": ("up = i - rk // BO * DILATION_H", "up = i - rk // BO"),
    "left edge unmasked": ("of_x & within(column, x_w)", "of_x & (column < x_w)"),
    "rows of y unmasked": ("pairs = there & (up >= 0) & (p < y_h)", "pairs = there & (p < y_h)"),
    "stride ignored": ("pairs = pairs & (up % STRIDE_H == 0)", "pairs = pairs"),
    "ragged split cut off": ("begin + items_per_split, items)", "begin + items_per_split - 1, items)"),
    "splits overwrite each other": ("tl.program_id(0).to(tl.int64) *", "block.to(tl.int64) *"),
    "splits dropped": ("range(0, splits, BLOCK_S)", "range(0, splits - 1, BLOCK_S)"),
    "group of another block": ("+ group % PER * CG + c", "+ c"),
    "images past the last": ("there = (n < images) & of_y", "there = of_y"),
}

EXACT = {
    "rows": ("if any_not_finite(zeros):", "if groups < 0:"),
    "rows_wgrad": ("if any_not_finite(sums * 0.0):", "if items < 0:"),
}


def _noticed(probes: tuple[Case, ...]) -> bool:
    for case in probes:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def _break(tmp_path, monkeypatch, name: str, module: str, old: str, new: str) -> None:
    broken = mutant_module(tmp_path, name, f"conv.{module}", f"conv/{module}.py", old, new)
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
    _break(tmp_path, monkeypatch, name, "rows_wgrad", *GRADIENT_MUTANTS[name])
    assert _noticed(GRADIENTS), f"no probe noticed the mutation {name!r}"


@pytest.mark.parametrize("module", ("rows", "rows_wgrad"))
def test_an_infinity_spreads_without_the_exact_path(module, tmp_path, monkeypatch):
    kind = "fprop" if module == "rows" else "wgrad"
    inputs = Inputs(Case(kind, 2, "channels_last", "float32", "plain"))
    inputs.x[0, 0, 0, 0] = float("inf")
    whole = launch(inputs, inputs.problem(), "forward").isfinite().sum()
    _break(tmp_path, monkeypatch, "exact", module, *EXACT[module])
    assert launch(inputs, inputs.problem(), "forward").isfinite().sum() < whole
