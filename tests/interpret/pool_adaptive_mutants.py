"""Deliberate mistakes in the adaptive, global, fractional and unpooling kernels, which the suite must notice."""

from __future__ import annotations

WINDOW, BACK = "_pool_adaptive_fprop_window_kernel", "_pool_adaptive_bwd_gather_kernel"
LINES = "_pool_adaptive_fprop_lines_kernel"
PARTIAL, COMBINE = "_pool_global_fprop_partial_kernel", "_pool_global_fprop_combine_kernel"
CLAIM, FETCH = "_pool_unpool_fprop_claim_kernel", "_pool_unpool_bwd_gather_kernel"
FRACTIONAL, FRACTIONAL_BACK = "_pool_fractional_fprop_window_kernel", "_pool_fractional_bwd_gather_kernel"

# name: kernel, file of the mistake (the kernel's own where None), old, new
MUTANTS: dict[str, tuple[str, str | None, str, str]] = {
    "window start rounded up": (
        WINDOW, "pool.axes", "return i * size // windows", "return (i * size + windows - 1) // windows",
    ),
    "window end rounded down": (
        WINDOW, "pool.axes", "return ((i + 1) * size + windows - 1) // windows", "return ((i + 1) * size) // windows",
    ),
    "last of ties wins": (
        WINDOW, "pool.axes", "(value > best) | (value != value)", "(value >= best) | (value != value)",
    ),
    "NaN loses": (WINDOW, "pool.axes", "(value > best) | (value != value)", "(value > best)"),
    "NaN forgotten without indices": (
        WINDOW, "pool.axes", "propagate_nan=tl.PropagateNan.ALL", "propagate_nan=tl.PropagateNan.NONE",
    ),
    "rows beyond the batch": (
        WINDOW, "pool.axes", "inside = (i_n < n) & (lane < c)", "inside = (i_n <= n) & (lane < c)",
    ),
    "lanes beyond the row": (
        WINDOW, "pool.axes", "inside = (i_n < n) & (lane < x)", "inside = (i_n < n) & (lane <= x)",
    ),
    "window mask along W dropped": (WINDOW, None, "row_inside & (s < taps_w)", "row_inside"),
    "window mask along H dropped": (WINDOW, None, "inside & (t < taps_d) & (r < taps_h)", "inside & (t < taps_d)"),
    "window mask along D dropped": (WINDOW, None, "inside & (t < taps_d) & (r < taps_h)", "inside & (r < taps_h)"),
    "last tap skipped": (WINDOW, None, "for s in range(0, window_s):", "for s in range(0, window_s - 1):"),
    "corner shifted": (
        WINDOW, None, "first_h * x_stride_h + first_w * x_stride_w)",
        "first_h * x_stride_h + (first_w + 1) * x_stride_w)",
    ),
    "plane offset of the window dropped": (
        WINDOW, None, "at += (first_d * h + first_h) * w + first_w", "at += (first_d * h + first_h) * w",
    ),
    "depth of the index dropped": (
        WINDOW, None, "at += (first_d * h + first_h) * w + first_w", "at += first_h * w + first_w",
    ),
    "offsets count the plane": (WINDOW, None, "step_r = window_s if OFFSETS else w", "step_r = w"),
    "divided by the largest window": (
        WINDOW, None, "divide(result, taps_d * taps_h * taps_w)", "divide(result, window_t * window_r * window_s)",
    ),
    "gradient of the largest window": (
        BACK, None, "taps_dh * (window_end(first_q + s, w, q) - start_w)", "taps_dh * 2",
    ),
    "gradient misses the last window": (BACK, None, "for s in range(0, most_q):", "for s in range(0, most_q - 1):"),
    "gradient from windows beyond": (BACK, None, "row_inside & (s < windows_q)", "row_inside & (s <= windows_q)"),
    "gradient from rows beyond": (BACK, None, "inside & (t < windows_o) & (r < windows_p)", "inside & (t < windows_o)"),
    "gradient of any index": (BACK, None, "tl.where(chosen == wanted, seen, 0.0)", "tl.where(chosen >= 0, seen, 0.0)"),
    "gradient of the wrong row": (
        BACK, None, "position = (i_d * h + i_h) * w + i_w", "position = (i_d * w + i_h) * h + i_w",
    ),
    "gradient tap of the wrong box": (
        BACK, None, "wanted = position_dh * window_s + (i_w - start_w)",
        "wanted = position_dh * window_r + (i_w - start_w)",
    ),
    "gradient replaced": (BACK, None, "total += tl.where(", "total = tl.where("),
    "line mask dropped": (LINES, None, "mask=inside & (t < taps_d) & (r < taps_h)", "mask=inside & (t < taps_d)"),
    "member one too many": (LINES, None, "tl.minimum(end_w, w)[:, :, None]", "tl.minimum(end_w + 1, w)[:, :, None]"),
    "member one too few": (
        LINES, None, "member = (lane[:, None, :] >= first_w", "member = (lane[:, None, :] > first_w",
    ),
    "line windows skipped": (
        LINES, None, "for tile_q in range(0, q, BLOCK_Q):", "for tile_q in range(0, q - BLOCK_Q, BLOCK_Q):",
    ),
    "line key by lane": (LINES, None, "key = (at * w + lane)[:, None, :]", "key = (at + lane * w)[:, None, :]"),
    "line NaN first": (
        LINES, None, "last_nan = tl.max(tl.where(nan, key, -1), axis=2)",
        "last_nan = tl.min(tl.where(nan, key, none), axis=2)",
    ),
    "line NaN ignored": (LINES, None, "return tl.where(some_nan, float(\"nan\"), most), chosen", "return most, chosen"),
    "line index of another row": (LINES, None, "first_h + line % window_r) * w", "first_h + line // window_r) * w"),
    "line offset not relative": (LINES, None, "line * window_s + (key % w - first_w)", "line * window_s + key % w"),
    "line sums divided wrongly": (
        LINES, None, "taps_d * taps_h * (end_w - first_w)", "taps_d * window_r * (end_w - first_w)",
    ),
    "line results unmasked": (LINES, None, "written = (i_n < n) & (i_q < q)", "written = i_n < n"),
    "split overlaps the next": (
        PARTIAL, None, "last = tl.minimum(first + elements_per_split, taps)",
        "last = tl.minimum(first + elements_per_split + 1, taps)",
    ),
    "split beyond the window": (PARTIAL, None, "mask=(k < last)[:, None]", "mask=(k <= last)[:, None]"),
    "split skipped": (
        PARTIAL, None, "first = split * elements_per_split", "first = tl.maximum(split, 1) * elements_per_split",
    ),
    "partial results overwrite each other": (PARTIAL, None, "output += split * (n * c * cells)", "output += 0"),
    "lanes of a split unmasked": (PARTIAL, None, "lane_inside = lane < lanes", "lane_inside = lane <= lanes"),
    "split reads the next row": (
        PARTIAL, None, "k // taps_w % taps_h * x_stride_h", "k // taps_h % taps_h * x_stride_h",
    ),
    "split starts at the plane": (
        PARTIAL, None, "x_lane += first_d * x_stride_d + first_h * x_stride_h + first_w * x_stride_w",
        "x_lane += first_h * x_stride_h",
    ),
    "split accumulates nothing": (
        PARTIAL, None, "result += seen\n        elif INDICES", "result = seen\n        elif INDICES",
    ),
    "first of a column of NaN": (
        PARTIAL, None, "last_nan = tl.max(tl.where(nan, at, -1), axis=0)",
        "last_nan = tl.max(tl.where(nan, -1, -1), axis=0)",
    ),
    "columns tie to the last": (
        PARTIAL, None, "first = tl.min(tl.where(best == most[None, :], at, none), axis=0)",
        "first = tl.max(tl.where(best == most[None, :], at, -1), axis=0)",
    ),
    "NaN lost among columns": (
        PARTIAL, None, "return tl.where(some_nan, float(\"nan\"), most), chosen", "return most, chosen",
    ),
    "nothing but -inf": (
        PARTIAL, None, "chosen = tl.where(chosen == none, 0, chosen)", "chosen = tl.where(chosen == none, 1, chosen)",
    ),
    "tap of the window as it lies": (
        PARTIAL, None, "k = (t * window_r + r) * window_s + s", "k = (t * taps_h + r) * taps_w + s",
    ),
    "plane of the window as it lies": (
        PARTIAL, None, "k = ((first_d + t) * h + first_h + r) * w + first_w + s",
        "k = ((first_d + t) * h + first_h + r) * w + s",
    ),
    "average of one split not divided": (
        PARTIAL, None, "value = divide(value, taps)", "value = divide(value, 1 + taps * 0)",
    ),
    "combination misses the last split": (
        COMBINE, None, "for _ in range(0, splits):", "for _ in range(0, splits - 1):",
    ),
    "combination reads one split only": (COMBINE, None, "source += outputs", "source += 0"),
    "combination of later ties": (
        COMBINE, "pool.axes", "(value > best) | (value != value)", "(value >= best) | (value != value)",
    ),
    "combination divides wrongly": (
        COMBINE, None, "result = divide(result, taps_d * taps_h * taps_w)",
        "result = divide(result, window_r * window_s)",
    ),
    "combination unmasked": (COMBINE, None, "inside = output < outputs", "inside = output <= outputs"),
    "combination swaps cells": (
        COMBINE, None,
        "i_p = cell // q % p\n    i_q = cell % q\n\n    if POOL == \"avg\":\n        result = tl.zeros([BLOCK]",
        "i_q = cell // q % p\n    i_p = cell % q\n\n    if POOL == \"avg\":\n        result = tl.zeros([BLOCK]",
    ),
    "claims cleared to the first": (
        CLAIM, None, "nobody = tl.zeros([BLOCK_K, BLOCK_L], ", "nobody = 1 + tl.zeros([BLOCK_K, BLOCK_L], ",
    ),
    "first claim stays": (CLAIM, None, "later = owned & (holder < number)\n", "later = owned & (holder == 0)\n"),
    "claims of other parts": (CLAIM, None, "owned = (target >= begin) & (target < end)", "owned = target >= 0"),
    "last part of the plane": (
        CLAIM, None, "owned = (target >= begin) & (target < end)", "owned = (target >= begin) & (target < end - 1)",
    ),
    "elements skipped": (
        CLAIM, None, "for step in range(0, small, BLOCK_K):", "for step in range(BLOCK_K, small, BLOCK_K):",
    ),
    "value of the next element": (CLAIM, None, "tl.where(held, holder - 1, 0)", "tl.where(held, holder, 0)"),
    "parts unmasked": (
        CLAIM, None, "tl.store(y_ptr + y_offset, value, mask=inside)",
        "tl.store(y_ptr + y_offset, value, mask=lane_inside)",
    ),
    "slices in the place of rows": (
        CLAIM, None, "rest % y * y_stride + rest // y * z_stride", "rest % y * z_stride + rest // y * y_stride",
    ),
    "gradient of the next place": (
        FETCH, None, "source = tl.where(found, source, 0).to(row.dtype)",
        "source = tl.where(found, source + 1, 0).to(row.dtype)",
    ),
    "gradient rows and slices": (
        FETCH, None, "rest % y * y_stride + rest // y * z_stride", "rest % y * z_stride + rest // y * y_stride",
    ),
    "gradient written to the next row": (
        FETCH, None, "+ i_h * dx_stride_h + i_w * dx_stride_w", "+ i_d * dx_stride_h + i_w * dx_stride_w",
    ),
    "last window anywhere": (
        FRACTIONAL, None, "return tl.where(i == windows - 1, last,", "return tl.where(i == windows, last,",
    ),
    "base of the sequence dropped": (FRACTIONAL, None, "- rounded(sample * alpha, DTYPE, ROUND).to(last.dtype)", "- 0"),
    "sample ignored": (
        FRACTIONAL, None, "rounded(rounded(i.to(WORK), DTYPE, ROUND) + sample, DTYPE, ROUND)",
        "rounded(rounded(i.to(WORK), DTYPE, ROUND) + 0.0, DTYPE, ROUND)",
    ),
    "starts not rounded": (FRACTIONAL, None, "    if ROUND:\n        if DTYPE", "    if False:\n        if DTYPE"),
    "sample of another axis": (
        FRACTIONAL, None, "S, samples_ptr, plane + sample_w, known, ROUND)\n    x_corner",
        "S, samples_ptr, plane + sample_h, known, ROUND)\n    x_corner",
    ),
    "fractional tap skipped": (FRACTIONAL, None, "for r in range(0, R):", "for r in range(0, R - 1):"),
    "fractional tap miscounted": (
        FRACTIONAL, None, "before = (t * R + r) * S if OFFSETS", "before = (t * R + r) * R if OFFSETS",
    ),
    "fractional index of the corner dropped": (
        FRACTIONAL, None, "at += (first_d * h + first_h) * w + first_w", "at += first_h * w + first_w",
    ),
    "candidates begin late": (
        FRACTIONAL_BACK, None, "reach = tl.maximum(i - window - slack, 0)", "reach = tl.maximum(i - slack, 0)",
    ),
    "candidates end early": (FRACTIONAL_BACK, None, "for s in range(0, most_q):", "for s in range(0, most_q // 2):"),
    "candidates beyond the last": (FRACTIONAL_BACK, None, "look = look_p & (j_q < q)", "look = look_p & (j_q <= q)"),
    "gradient of every candidate": (
        FRACTIONAL_BACK, None, "mask=look & (chosen == wanted)", "mask=look & (chosen >= 0)",
    ),
    "fractional tap of another window": (
        FRACTIONAL_BACK, None, "wanted = (tap_d * R + tap_h) * S + tap_w", "wanted = (tap_d * R + tap_h) * R + tap_w",
    ),
}  # fmt: skip
