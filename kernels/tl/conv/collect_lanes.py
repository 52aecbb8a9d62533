"""Device functions of the weight gradient of depthwise convolution: what a lane sums, and the same tap by tap.

A lane owns TQ columns of the output of one channel and has an accumulator for every tap. It goes down the rows of x,
each of which it loads once, beside a window of the rows of y that its taps reach, which it keeps in registers.
"""

import triton
import triton.language as tl

from .lanes import load_rows, widen, within


@triton.jit
def _y_row(
    y, live, row, height, column, column_pitch, width, y_stride_h, y_stride_w,
    TQ: tl.constexpr, VO: tl.constexpr,
):  # fmt: skip
    """Load the TQ columns of one row of y, in vectors of VO; zeros outside."""
    loaded = ()
    inside = live & within(row, height)
    for g in tl.static_range(TQ // VO):
        q = column + g * VO * column_pitch
        reads = inside & within(q, width)
        at = y + (row * y_stride_h + g * VO * column_pitch * y_stride_w)
        if VO == 1:
            loaded = loaded + (tl.load(at, mask=reads, other=0.0),)
        else:
            loaded = loaded + (tl.load(at, mask=reads[:, None], other=0.0),)
    return loaded


@triton.jit
def _taps_of_row(
    sums, columns, window, z: tl.constexpr, j: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, AW: tl.constexpr, TQ: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Add the products of one row of x, row j of a step, and the rows of y in the window: tap A m + j of row m."""
    added = ()
    for tap in tl.static_range(len(sums)):
        total = sums[tap]
        if tap // (R * S) == z and tap // S % R % A == j:
            for c in tl.static_range(TQ):
                total += window[(tap // S % R // A) * TQ + c] * columns[AW * c + tap % S - SHIFT]
        added = added + (total,)
    return added


@triton.jit
def collect(
    sums, x, y, live, column, y_column, first, steps, slices, height, width, y_height, y_width,
    x_row, x_row_pitch, x_column_pitch, y_row, y_row_pitch, y_column_pitch,
    x_stride_h, x_stride_w, y_stride_h, y_stride_w,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, AW: tl.constexpr, TQ: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    UNROLL: tl.constexpr, ACC_DTYPE: tl.constexpr, VEC: tl.constexpr, VO: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Add steps first .. first + steps - 1: rows A t + j of x, and rows t, t - 1, ... of y. The last sum is y's own."""
    M: tl.constexpr = (R + A - 1) // A
    ROW: tl.constexpr = LAST - FIRST
    TAPS: tl.constexpr = T * R * S
    window = ()
    for m in tl.static_range(1, M):
        row = _y_row(
            y, live, y_row + (first - m) * y_row_pitch, y_height, y_column, y_column_pitch, y_width,
            y_stride_h, y_stride_w, TQ, VO,
        )  # fmt: skip
        window = window + widen(row, ACC_DTYPE, VO, LANES)
    for i in range(0, steps, UNROLL):
        for u in tl.static_range(UNROLL):
            step = first + (i + u)
            loaded = load_rows(
                x, live, x_row + A * step * x_row_pitch, x_row_pitch, height, x_stride_h, column, x_column_pitch, width,
                x_column_pitch * x_stride_w, slices, A, T, FIRST, LAST, VEC, DEPTH,
            )  # fmt: skip
            row = _y_row(
                y, live, y_row + step * y_row_pitch, y_height, y_column, y_column_pitch, y_width,
                y_stride_h, y_stride_w, TQ, VO,
            )  # fmt: skip
            window = widen(row, ACC_DTYPE, VO, LANES) + window
            of_taps = sums[:TAPS]
            for z in tl.static_range(T):
                for j in tl.static_range(A):
                    columns = widen(loaded[(z * A + j) * ROW : (z * A + j + 1) * ROW], ACC_DTYPE, VEC, LANES)
                    of_taps = _taps_of_row(of_taps, columns, window, z, j, R, S, A, AW, TQ, SHIFT)
            if BIAS:
                of_bias = sums[TAPS]
                for c in tl.static_range(TQ):
                    of_bias += window[c]
                sums = of_taps + (of_bias,)
            else:
                sums = of_taps
            window = window[: (M - 1) * TQ]
    return sums


@triton.jit
def collect_directly(
    sums, x, y, live, y_column, first, steps, slices, height, width, y_height, y_width, y_row, y_row_pitch,
    y_column_pitch, pad_h, pad_w, x_stride_h, x_stride_w, y_stride_h, y_stride_w,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TQ: tl.constexpr, DEPTH: tl.constexpr,
    BIAS: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Do what :func:`collect` does, tap by tap: x where y has no element is multiplied by nothing.

    For sums that are not finite: an infinity of x times a zero that stands for no element of y would be NaN. The pairs
    of rows are those of the same steps, so that other splits may stay what they are: tap A m + j has row t - m of y.
    """
    for place in range(0, steps * TQ):
        step = first + place // TQ
        q = y_column + place % TQ * y_column_pitch
        beside = live & within(q, y_width)
        added = ()
        for tap in tl.static_range(T * R * S):
            p = y_row + (step - tap // S % R // A) * y_row_pitch
            inside = beside & within(p, y_height)
            dy = tl.load(y + (p * y_stride_h + q * y_stride_w), mask=inside, other=0.0).to(ACC_DTYPE)
            h = p * STRIDE_H - pad_h + tap // S % R * DILATION_H
            i = q * STRIDE_W - pad_w + tap % S * DILATION_W
            reads = inside & within(h, height) & within(i, width)
            if DEPTH:
                reads = reads & slices[2 * T + tap // (R * S)]
            at = x + (slices[tap // (R * S)] + h * x_stride_h + i * x_stride_w)
            added = added + (sums[tap] + dy * tl.load(at, mask=reads, other=0.0).to(ACC_DTYPE),)
        if BIAS:
            p = y_row + step * y_row_pitch
            dy = tl.load(y + (p * y_stride_h + q * y_stride_w), mask=beside & within(p, y_height), other=0.0)
            added = added + (sums[T * R * S] + dy.to(ACC_DTYPE),)
        sums = added
    return sums


@triton.jit
def nothing(live, SUMS: tl.constexpr, ACC_DTYPE: tl.constexpr):
    """Return SUMS accumulators of zeros."""
    sums = ()
    for _ in tl.static_range(SUMS):
        sums = sums + (tl.zeros(live.shape, ACC_DTYPE),)
    return sums


@triton.jit
def any_not_finite(sums):
    """Tell whether one of the sums of any lane is infinite or NaN."""
    zeros = sums[0] * 0.0
    for tap in tl.static_range(1, len(sums)):
        zeros += sums[tap] * 0.0
    return tl.sum(tl.reshape((zeros != zeros).to(tl.int32), [zeros.numel])) > 0
