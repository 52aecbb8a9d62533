"""The suite must notice a broken kernel: each mutant of the banded kernels fails at least one case."""

from __future__ import annotations

import pytest
import torch
from banded_cases import Case, Inputs, check_case, launch
from mutants import mutant_module

from gpuconv.kernels.tl.conv import banded

KERNELS = ("_conv_banded_rows_kernel", "_conv_banded_last_kernel", "_conv_banded_pack_kernel")

PROBES = (
    Case("fprop", 2, "contiguous", "bfloat16", "plain"),
    Case("fprop", 2, "channels_last", "bfloat16", "plain"),
    Case("transposed", 2, "contiguous", "float16", "epilogue"),
    Case("fprop", 2, "channels_last", "float16", "epilogue"),
    Case("fprop", 2, "contiguous", "bfloat16", "kernel over input"),
    Case("dgrad", 1, "contiguous", "bfloat16", "one channel"),
    Case("dgrad", 2, "channels_last", "bfloat16", "kernel over input"),
)

MUTANTS = {
    "left edge unmasked": ("& (at >= 0) & (at < source_w)", "& (at < source_w)"),
    "right edge unmasked": ("& (at >= 0) & (at < source_w)", "& (at >= 0)"),
    "rows unmasked": ("within(first_row + i, source_h) & (at", "(first_row + i < source_h) & (at"),
    "rows unmasked, channels innermost": (
        "within(first_row + i, source_h) & within", "(first_row + i < source_h) & within",
    ),
    "columns unmasked, channels innermost": (
        "& within(first_column + k % KW, source_w)", "& (first_column + k % KW < source_w)",
    ),
    "images past the last": (
        "live = n < images\n    n = n.to(tl.int64)\n    if INDEX64",
        "live = n >= 0\n    n = n.to(tl.int64)\n    if INDEX64",
    ),
    "images past the last, channels innermost": (
        "live = n < images\n    n = n.to(tl.int64)\n    c =", "live = n >= 0\n    n = n.to(tl.int64)\n    c =",
    ),
    "another copy": ("shift % 8 * COPY", "(shift + 1) % 8 * COPY"),
    "row of the window not shifted": ("(TP - 1 - o // TQ) * PITCH", "(TP - 1) * PITCH"),
    "whole vectors not shifted": (" - shift // 8 * 8)", ")"),
    "window in another row": ("% LINES - (TP - 1)\n", "% LINES - TP\n"),
    "copies alike": (" - LEAD - i // (PITCH * LINES) % 8", " - LEAD"),
    "row of the window unbounded": ("& (s >= 0) & (s < S)", "& (s >= 0)"),
    "weights of the first step": ("_band(band, step * BK, PITCH", "_band(band, 0, PITCH"),
    "weights of one channel": ("_band(band + j * CHANNEL, step", "_band(band, step"),
    "channels out of order": ("c04, c26 = tl.split(even)", "c26, c04 = tl.split(even)"),
    "channels written out of order": ("tl.join(tiles[2], tiles[6]))", "tl.join(tiles[6], tiles[2]))"),
    "columns of the result unmasked": ("& (q < result_w)\n", "& (q >= 0)\n"),
    "rows of the result unmasked": ("live & within(p, result_h) & (q", "live & (q"),
    "blocks of another row": ("(line - n * blocks_h) * TP", "(line - n) * TP"),
    "division rounds up": ("(high >> log).to(", "(high + 1 >> log).to("),
    "epilogue out of order": ("finish(sums, bias, scale, shift,", "finish(sums, shift, scale, bias,"),
    "epilogue out of order, channels innermost": ("BN), bias, scale, shift,", "BN), shift, scale, bias,"),
}  # fmt: skip

EXACT = (
    ("zero = tl.sum(tl.reshape(sums * 0.0, [BM * BN]))", "zero = tl.sum(tl.zeros([16], tl.float32))"),
    ("zero += tl.sum(tl.reshape(sums[j] * 0.0, [BM * BN]))", "zero += tl.sum(tl.zeros([16], tl.float32))"),
)
"""What keeps the kernels from repairing what reads the NaN around a tensor."""

OF_EXACT = {
    "another row": ("h = p - pad_h + r", "h = p - pad_h"),
    "another column": ("i = q - pad_w + s", "i = q - pad_w"),
    "another tap": ("weights + (r * PITCH + s)", "weights + (r * PITCH)"),
    "a gradient of padding": ("if GRAD:", "if not GRAD:"),
    "results unmasked": ("live & within(p, result_h) & within(q, result_w)", "live"),
}


def _break(tmp_path, monkeypatch, name: str, file: str, old: str, new: str, *others: tuple[str, str]) -> None:
    broken = mutant_module(tmp_path, name, "conv.banded", f"conv/{file}.py", old, new, *others)
    for kernel in KERNELS:
        monkeypatch.setattr(banded, kernel, getattr(broken, kernel))


def _noticed() -> bool:
    for case in PROBES:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernels():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    """Without the path tap by tap, which would repair what reads the NaN around a tensor."""
    _break(tmp_path, monkeypatch, name, "banded", *MUTANTS[name], *EXACT)
    assert _noticed(), f"no probe noticed the mutation {name!r}"


def _infinite(kind: str, layout: str) -> torch.Tensor:
    inputs = Inputs(Case(kind, 2, layout, "float16", "plain"))
    (inputs.x if kind == "fprop" else inputs.w)[0, 0, -1, -1] = float("inf")
    return launch(inputs, inputs.problem(), "forward")


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_an_infinity_spreads_without_the_exact_path(layout, tmp_path, monkeypatch):
    whole = _infinite("fprop", layout).isfinite().sum()
    _break(tmp_path, monkeypatch, "exact", "banded", *EXACT[0], EXACT[1])
    assert _infinite("fprop", layout).isfinite().sum() < whole


@pytest.mark.parametrize("name", OF_EXACT)
def test_mutant_of_the_exact_path_is_noticed(name, tmp_path, monkeypatch):
    kinds = ("fprop", "dgrad")
    sound = [_infinite(kind, "contiguous") for kind in kinds]
    _break(tmp_path, monkeypatch, name, "banded_exact", *OF_EXACT[name])

    def differs() -> bool:
        try:
            return any(not torch.equal(_infinite(kind, "contiguous").nan_to_num(7, 8, 9), one.nan_to_num(7, 8, 9))
                       for kind, one in zip(kinds, sound, strict=True))  # fmt: skip
        except Exception:  # a broken guard band
            return True

    assert differs(), name
