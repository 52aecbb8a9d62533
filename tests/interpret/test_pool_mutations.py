"""The suite must notice a broken kernel: each mutant of the window pooling kernels fails at least one case."""

from __future__ import annotations

import importlib

import pytest
from mutants import mutant
from pool_cases import PoolCase, check_case

MAX, MAX_BWD = "_pool_max_fprop_general_kernel", "_pool_max_bwd_general_kernel"
SUM, SUM_BWD = "_pool_sum_fprop_general_kernel", "_pool_sum_bwd_general_kernel"
TILED, TILED_BWD = "_pool_fprop_tiled_kernel", "_pool_bwd_tiled_kernel"

MODULES = {
    MAX: "pool.max", MAX_BWD: "pool.max", SUM: "pool.sum", SUM_BWD: "pool.sum", TILED: "pool.tiled",
    TILED_BWD: "pool.tiled_bwd",
}  # fmt: skip


def _case(family: str, ndim: int, layout: str, branch: str) -> PoolCase:
    return PoolCase(family, ndim, layout, "float32", branch)


PROBES = {
    MAX: (
        _case("max", 2, "contiguous", "fprop general dilated"),
        _case("max", 1, "channels_last", "fprop general 31"),
        _case("max", 2, "channels_last", "fprop separable over input"),
        _case("lp", 2, "contiguous", "fprop general dilated"),
        _case("lp", 1, "contiguous", "fprop general 3 stride 2"),
        _case("max", 3, "contiguous", "fprop separable 7 by 9"),
    ),
    MAX_BWD: (
        _case("max", 2, "channels_last", "bwd general dilated"),
        _case("max", 2, "contiguous", "bwd separable 7 by 9"),
        _case("max", 1, "contiguous", "bwd general 3 stride 2"),
        _case("lp", 1, "contiguous", "bwd general over input"),
        _case("lp", 2, "contiguous", "bwd general over input"),
        _case("max", 3, "contiguous", "bwd general 3 stride 2"),
    ),
    SUM: (
        _case("avg", 2, "channels_last", "fprop general dilated"),
        _case("avg", 1, "contiguous", "fprop general stride 6"),
        _case("avg", 1, "contiguous", "fprop general 64-bit"),
        _case("avg", 2, "contiguous", "fprop separable over input"),
        _case("lp", 1, "contiguous", "fprop general 64-bit"),
        _case("lp", 1, "contiguous", "bwd general 3 stride 2"),
        _case("avg", 3, "contiguous", "fprop general stride 6"),
        _case("lp", 2, "contiguous", "fprop separable stride 1"),
    ),
    SUM_BWD: (
        _case("avg", 2, "channels_last", "bwd general dilated"),
        _case("avg", 2, "contiguous", "bwd separable over input"),
        _case("avg", 1, "contiguous", "bwd general stride 6"),
        _case("lp", 1, "contiguous", "bwd general 3 stride 2"),
        _case("avg", 3, "contiguous", "bwd general 3 stride 2"),
    ),
    TILED: (
        _case("max", 1, "contiguous", "fprop tiled in runs"),
        _case("max", 2, "channels_last", "fprop tiled dilated"),
        _case("max", 2, "contiguous", "fprop tiled over input"),
        _case("avg", 2, "contiguous", "fprop tiled 3 stride 2"),
        _case("avg", 1, "channels_last", "fprop tiled asymmetric"),
        _case("lp", 2, "contiguous", "fprop tiled asymmetric"),
        _case("max", 3, "contiguous", "fprop tiled asymmetric"),
        _case("max", 2, "contiguous", "fprop tiled 64-bit"),
        PoolCase("max", 2, "contiguous", "float16", "fprop tiled overlapping"),
        PoolCase("max", 2, "contiguous", "bfloat16", "fprop tiled overlapping dilated"),
    ),
    TILED_BWD: (
        _case("max", 2, "channels_last", "bwd tiled 3 stride 1"),
        _case("max", 1, "contiguous", "bwd tiled in runs"),
        _case("avg", 2, "contiguous", "bwd tiled 3 stride 2"),
        _case("avg", 2, "channels_last", "bwd tiled dilated"),
        _case("avg", 1, "contiguous", "bwd tiled 3 stride 1"),
        _case("avg", 3, "contiguous", "bwd tiled 3 stride 2"),
        _case("max", 2, "contiguous", "bwd tiled over input"),
    ),
}

MUTANTS = {
    "pool/common.py": {
        "lane mask dropped": (MAX, "(lane < lanes) & (i_n < n)", "(i_n < n)"),
        "row mask dropped": (SUM, "(lane < lanes) & (i_n < n)", "(lane < lanes)"),
        "stride ignored": (MAX, "i = i * STRIDE - pad", "i = i - pad"),
        "pad ignored": (SUM, "i = i * STRIDE - pad", "i = i * STRIDE"),
        "skipped taps rounded down": (
            MAX, "(tl.maximum(-start, 0) + (DILATION - 1)) // DILATION", "tl.maximum(-start, 0) // DILATION",
        ),
        "padding counts twice": (SUM, "size + pad_high)\n", "size + 2 * pad_high + 1)\n"),
        "taps before the input count": (SUM, ", TAPS) - taps_before(start, DILATION)", ", TAPS)"),
        "tap of another window": (
            MAX_BWD, "distance = i + pad - window * STRIDE", "distance = i + pad - (window + 1) * STRIDE",
        ),
        "taps between elements": (SUM_BWD, "& (tap * DILATION == distance)", ""),
        "tap beyond the window": (SUM_BWD, "(tap < TAPS) & ", ""),
        "first window missed": (
            MAX_BWD, "(i + pad) // STRIDE - (TAPS - 1) * DILATION // STRIDE",
            "(i + pad) // STRIDE - (TAPS - 1) * DILATION // STRIDE + 1",
        ),
    },
    "pool/max.py": {
        "last maximum wins": (MAX, "better = (value > best) |", "better = (value >= best) |"),
        "NaN loses": (MAX, "better = (value > best) | (value != value)", "better = value > best"),
        "NaN lost without index": (
            MAX, "best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)",
            "best = tl.where(value > best, value, best)",
        ),
        "lower bound dropped": (MAX, "(w_s >= 0) & (w_s < size_w)", "(w_s < size_w)"),
        "upper bound off by one": (MAX, "(h_r >= 0) & (h_r < size_h)", "(h_r >= 0) & (h_r <= size_h)"),
        "depth bound dropped": (
            MAX, "(d_t >= 0) & (d_t < d)\n        for r in range(0, R", "(d_t < d)\n        for r in range(0, R",
        ),
        "first element of nothing but -inf": (
            MAX, "number += taps_before(start_h, DILATION_H) * step_r", "number += 0",
        ),
        "number of an earlier pass lost": (
            MAX, "tap += tl.load(below_tile, mask=reads, other=0).to(NUMBER)", "tap += 0",
        ),
        "rows of another width": (
            MAX, "step_r = tl.cast(w, NUMBER) * DILATION_H", "step_r = tl.cast(h, NUMBER) * DILATION_H",
        ),
        "start of the window forgotten": (MAX, "number += start_w\n", "number += 0\n"),
        "sign ignored": (MAX, "        x = tl.abs(x)\n", "        x = x\n"),
        "padding is large": (MAX, "value = tl.where(reads, value, LOWEST)", "value = value"),
        "result not negated": (MAX, "        best = -best\n", "        best = best\n"),
        "two windows are one": (MAX_BWD, "for m in range(0, WINDOWS_W):", "for m in range(0, 1):"),
        "windows above missed": (MAX_BWD, "i_p = p_0 + k", "i_p = p_0 + k + 1"),
        "every window chose": (MAX_BWD, "hit = reads & (number == position)", "hit = reads"),
        "tap of another row": (MAX_BWD, "== (t * R + r) * S + s)", "== (t * R + r) * S + r)"),
        "line of another pass": (MAX_BWD, "(number // BELOW == t + r + s)", "(number % BELOW == t + r + s)"),
        "rest of the number lost": (
            MAX_BWD, "left = tl.where(hit, number % BELOW, left)", "left = tl.where(hit, 0, left)",
        ),
        "sign of x dropped": (MAX_BWD, "total * sign, 0.0)", "total, 0.0)"),
        "edge of y read": (MAX_BWD, "(i_q >= 0) & (i_q < q)", "(i_q >= 0) & (i_q <= q)"),
    },
    "pool/sum.py": {
        "sum of the first row": (SUM, "for r in range(0, R if POOLED_H else 1):", "for r in range(0, 1):"),
        "bound of rows off by one": (SUM, "(h_r >= 0) & (h_r < size_h)", "(h_r >= -1) & (h_r < size_h)"),
        "dilation ignored": (SUM, "w_s = start_w + s * DILATION_W", "w_s = start_w + s"),
        "divided by all taps": (
            SUM, "if DIVISOR == 0:\n            divisor = window_divisor",
            "if DIVISOR == -9:\n            divisor = window_divisor",
        ),
        "overhang not made up for": (SUM, "divide(total, divisor) * (T * R * S)", "divide(total, divisor)"),
        "power in every pass": (SUM, "value = power(value, POWER)", "value = power(value, NORM)"),
        "gradient of a zero sum": (SUM, "tl.where(total == 0, 0.0, grad * slope.to(COMPUTE))", "slope.to(COMPUTE)"),
        "root of another power": (
            SUM, "_wide_power(scaled + 0.0, 1.0 / NORM - 1.0)", "_wide_power(scaled + 0.0, 1.0 / NORM)",
        ),
        "not divided": (SUM_BWD, "grad = divide(grad, divisor)", "grad = grad"),
        "a window left out": (
            SUM_BWD, "for k in range(0, WINDOWS_H):", "for k in range(0, tl.maximum(WINDOWS_H - 1, 1)):",
        ),
        "edge of y passed": (SUM_BWD, "(i_p >= 0) & (i_p < size_p)", "(i_p >= 0) & (i_p <= size_p)"),
        "derivative of the power dropped": (SUM_BWD, "total *= power(x, NORM - 1) * NORM", "total *= NORM"),
    },
    "pool/keys.py": {
        "negative numbers below themselves": (TILED, "^ sign) - sign + (63 - place)", "^ sign) + (63 - place)"),
        "first NaN": (TILED, "(place << 8)", "((63 - place) << 8)"),
        "NaN among the numbers": (TILED, "tl.where(value != value,", "tl.where(value < value,"),
        "sign of a maximum lost": (TILED, "(magnitude | (key & -0x80000000))", "magnitude"),
        "places in columns": (TILED, "place_of_row + j // DILATION", "place_of_row + j"),
        "nothing is lowest": (TILED, "key < -0x7F800000 + 64", "key < -0x7F800000"),
    },
    "pool/tiled.py": {
        "place in the tile": (TILED, "place_of(value) - m * STRIDE_W // DILATION_W", "place_of(value)"),
        "first inside of another window": (TILED, "first_numbers[k * TILE_Q + m]", "first_numbers[TILE_Q - 1]"),
        "planes before forgotten": (TILED, "if t == 0 and distance == 0 and OP", "if distance == 0 and OP"),
        "columns in bits reversed": (TILED, "tiles = even + odd", "tiles = odd + even"),
        "runs joined wrong": (
            TILED, "tl.join(tiles[k], tiles[k + (COUNT >> (level + 1))])",
            "tl.join(tiles[k + (COUNT >> (level + 1))], tiles[k])",
        ),
        "column outside read": (
            TILED, "reads = row_inside & (i_w >= 0) & (i_w < w)\n        columns =",
            "reads = row_inside & (i_w < w)\n        columns =",
        ),
        "end of a run not masked": (
            TILED, "reads = row_inside[:, None] & (i_w < w)", "reads = row_inside[:, None] & (i_w < w + 1)",
        ),
        "halo not masked": (
            TILED, "            reads = row_inside & (i_w >= 0) & (i_w < w)\n",
            "            reads = row_inside & (i_w >= 0)\n",
        ),
        "tie to the last": (
            TILED, "better = (other > value) | (other != other)", "better = (other >= value) | (other != other)",
        ),
        "NaN does not win": (TILED, "better = (other > value) | (other != other)", "better = other > value"),
        "columns not dilated": (TILED, "columns[k * STRIDE_W + s * DILATION_W]", "columns[k * STRIDE_W + s]"),
        "row of another window": (TILED, "distance = i - j // TILE_Q * STRIDE_H", "distance = i - j // TILE_Q"),
        "number of another row": (TILED, "i // DILATION_H * step_r", "i * step_r"),
        "row bound dropped": (TILED, "inside_d & (i_h >= 0) & (i_h < h)", "inside_d & (i_h < h)"),
        "depth bound off": (TILED, "inside & (i_d >= 0) & (i_d < d)", "inside & (i_d >= 0) & (i_d <= d)"),
        "root without its average": (TILED, "average(total, divisor, DIVISOR, False) * TAPS", "total"),
        "first inside of another column": (
            TILED, "taps_before(start_w + j % TILE_Q * STRIDE_W, DILATION_W) * step_s", "0",
        ),
        "positions of another row": (
            TILED, "+ start_h) * tl.cast(w, NUMBER)", ") * tl.cast(w, NUMBER)",
        ),
        "ragged rows written": (
            TILED, "written = (inside & (i_p < p))[:, None] & (i_q < q)", "written = inside[:, None] & (i_q < q)",
        ),
        "ragged columns written": (TILED, "written = inside & (i_p < p) & (i_q < q)", "written = inside & (i_p < p)"),
        "divisor of another row": (
            TILED, "window_count(i_p, h, PAD_H, pad_high_h", "window_count(tile_p, h, PAD_H, pad_high_h",
        ),
    },
    "pool/tiled_bwd.py": {
        "every window of a row": (TILED_BWD, "hit = numbers[m] == k * width + j", "hit = numbers[m] >= 0"),
        "tap of another column": (TILED_BWD, "S + reach_w // DILATION_W)", "S + reach_w // DILATION_W + 1)"),
        "window before forgotten": (TILED_BWD, "numbers[m] - position,", "numbers[m] - position - 1,"),
        "columns that no tap reaches": (
            TILED_BWD, "reach_w <= (S - 1) * DILATION_W and reach_w % DILATION_W == 0:\n                total",
            "reach_w <= (S - 1) * DILATION_W:\n                total",
        ),
        "row added twice": (TILED_BWD, "total += of_row[j]", "total += of_row[j] * 2"),
        "average not taken": (TILED_BWD, "average(grads[m], divisor, DIVISOR, NARROW)", "grads[m]"),
        "divisor of the next window": (TILED_BWD, "window_count(first_q + m, w", "window_count(first_q + m + 1, w"),
        "row of y outside": (TILED_BWD, "inside_o & (i_p >= 0) & (i_p < p)", "inside_o & (i_p < p)"),
        "depth tap unchecked": (TILED_BWD, "inside & has_tap & (i_o >= 0)", "inside & (i_o >= 0)"),
        "ragged rows of dx": (TILED_BWD, "row_inside = inside & (first_h + k < h)", "row_inside = inside"),
        "ragged columns of dx": (
            TILED_BWD, "written = row_inside[:, None] & (i_w < w)", "written = row_inside[:, None] & (i_w < w + 1)",
        ),
        "runs in another order": (TILED_BWD, "totals[k * TILE_W + g * TILE_Q + j]", "totals[k * TILE_W + j]"),
    },
}  # fmt: skip

EVERY = {f"{file}: {name}": (file, *change) for file, changes in MUTANTS.items() for name, change in changes.items()}


def _noticed(kernel: str) -> bool:
    for case in PROBES[kernel]:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


@pytest.mark.parametrize("kernel", PROBES)
def test_probes_pass_on_the_real_kernels(kernel):
    assert not _noticed(kernel)


@pytest.mark.parametrize("name", EVERY)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    file, kernel, old, new = EVERY[name]
    module = MODULES[kernel]
    target = importlib.import_module(f"gpuconv.kernels.tl.{module}")
    monkeypatch.setattr(target, kernel, mutant(tmp_path, name, module, kernel, file, old, new))
    assert _noticed(kernel), f"no probe noticed the mutation {name!r}"
