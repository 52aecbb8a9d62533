"""Weight gradient of depthwise convolution: every lane sums all taps of its channel, splits are added in order.

A lane owns TQ columns of the output of one channel and has an accumulator for every tap. It goes down the rows of x,
each of which it loads once, beside a window of the rows of y that its taps reach, which it keeps in registers.
"""

import triton
import triton.language as tl

from .lanes import load_rows, slices_of, widen, within


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
def _collect(
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
def _collect_directly(
    sums, x, y, live, y_column, first, steps, slices, height, width, y_height, y_width, y_row, y_row_pitch,
    y_column_pitch, pad_h, pad_w, x_stride_h, x_stride_w, y_stride_h, y_stride_w,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TQ: tl.constexpr, DEPTH: tl.constexpr, BIAS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """Do what :func:`_collect` does, tap by tap: x where y has no element is multiplied by nothing.

    For sums that are not finite: an infinity of x times a zero that stands for no element of y would be NaN.
    """
    for place in range(0, steps * TQ):
        p = y_row + (first + place // TQ) * y_row_pitch
        q = y_column + place % TQ * y_column_pitch
        inside = live & within(p, y_height) & within(q, y_width)
        dy = tl.load(y + (p * y_stride_h + q * y_stride_w), mask=inside, other=0.0).to(ACC_DTYPE)
        added = ()
        for tap in tl.static_range(T * R * S):
            h = p * STRIDE_H - pad_h + tap // S % R * DILATION_H
            i = q * STRIDE_W - pad_w + tap % S * DILATION_W
            reads = inside & within(h, height) & within(i, width)
            if DEPTH:
                reads = reads & slices[2 * T + tap // (R * S)]
            at = x + (slices[tap // (R * S)] + h * x_stride_h + i * x_stride_w)
            added = added + (sums[tap] + dy * tl.load(at, mask=reads, other=0.0).to(ACC_DTYPE),)
        if BIAS:
            added = added + (sums[T * R * S] + dy,)
        sums = added
    return sums


@triton.jit
def _nothing(live, SUMS: tl.constexpr, ACC_DTYPE: tl.constexpr):
    """Return SUMS accumulators of zeros."""
    sums = ()
    for _ in tl.static_range(SUMS):
        sums = sums + (tl.zeros(live.shape, ACC_DTYPE),)
    return sums


@triton.jit
def _any_not_finite(sums):
    """Tell whether one of the sums of any lane is infinite or NaN."""
    zeros = sums[0] * 0.0
    for tap in tl.static_range(1, len(sums)):
        zeros += sums[tap] * 0.0
    return tl.sum(tl.reshape((zeros != zeros).to(tl.int32), [zeros.numel])) > 0


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    lanes = f"{c['TT']}x{c['BC']}" if "BC" in c else f"{c['LANES']}v{c['VEC']}"
    name = "last" if "BC" in c else "rows"
    return f"_conv_collect_{name}_kernel_{c['T']}x{c['R']}x{c['S']}_{lanes}x{c['TQ']}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _walk_last(
    sums, x_ptr, y_ptr, c, everywhere, end,
    n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles_w, items, begin,
    phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
    result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
    result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
    source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, AW: tl.constexpr, STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_D: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr,
    DEPTH: tl.constexpr, BIAS: tl.constexpr, ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr,
    UNIT: tl.constexpr, RESULT_UNIT: tl.constexpr, UNROLL: tl.constexpr, TQ: tl.constexpr, TT: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Add the items begin .. end - 1 of lanes over channels, in their order."""
    for item in range(begin, end):
        group = item % tiles_w * TT + tl.arange(0, TT)[:, None]  # [TT, 1]
        rest = item // tiles_w
        first = rest % chunks * steps
        rest = rest // chunks
        phase = rest % phases_h
        rest = rest // phases_h
        o = rest % result_d
        image = (rest // result_d).to(tl.int64)
        if INDEX64:
            first = first.to(tl.int64)
            o = o.to(tl.int64)
            group = group.to(tl.int64)
        phase_w = group % phases_w
        block = group // phases_w
        column = source_column + phase_w * source_column_phase + block * (TQ * AW * source_column_pitch)
        q = result_column + phase_w * result_column_phase + block * (TQ * result_column_pitch)
        live = everywhere & (q < result_w)
        slices = slices_of(
            o, source_d, source_stride_c, source_stride_d * UNIT, 0, 0, pad_d,
            T, STRIDE_D, DILATION_D, 1, 0, 1, T, False, DEPTH,
        )  # fmt: skip
        x = x_ptr + image * source_stride_n * UNIT + (c // MULTIPLES) * source_stride_c + tl.zeros([TT, 1], tl.int32)
        y = y_ptr + (image * result_stride_n + o * result_stride_d) * RESULT_UNIT + c * result_stride_c
        y = y + tl.zeros([TT, 1], tl.int32)
        if EXACT:
            sums = _collect_directly(
                sums, x, y, live, q, first, steps, slices, source_h, source_w, result_h, result_w,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
                source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT, result_stride_w * RESULT_UNIT,
                T, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, DEPTH, BIAS, ACC_DTYPE,
            )  # fmt: skip
        else:
            xs = x + column * source_stride_w * UNIT
            ys = y + q * result_stride_w * RESULT_UNIT
            sums = _collect(
                sums, xs, ys, live, column, q, first, steps, slices, source_h, source_w, result_h, result_w,
                source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
                source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT, result_stride_w * RESULT_UNIT,
                T, R, S, A, AW, TQ, FIRST, LAST, SHIFT, DEPTH, BIAS, UNROLL, ACC_DTYPE, 1, 1, TT,
            )  # fmt: skip
    return sums


@triton.jit(repr=_repr)
def _conv_collect_last_kernel(
    x_ptr,
    y_ptr,
    w_ptr,
    bias_ptr,
    n,
    channels,
    source_d,
    source_h,
    source_w,
    result_d,
    result_h,
    result_w,
    steps,
    chunks,
    tiles_w,
    items,
    items_per_split,
    phases_h,
    phases_w,
    source_row,
    source_row_phase,
    source_row_pitch,
    result_row,
    result_row_phase,
    result_row_pitch,
    source_column,
    source_column_phase,
    source_column_pitch,
    result_column,
    result_column_phase,
    result_column_pitch,
    pad_d,
    pad_h,
    pad_w,
    source_stride_n,
    source_stride_c,
    source_stride_d,
    source_stride_h,
    source_stride_w,
    result_stride_n,
    result_stride_c,
    result_stride_d,
    result_stride_h,
    result_stride_w,
    w_stride_split,
    w_stride_k,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    A: tl.constexpr,
    AW: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SHIFT: tl.constexpr,
    DEPTH: tl.constexpr,
    BIAS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    UNROLL: tl.constexpr,
    TQ: tl.constexpr,
    TT: tl.constexpr,
    BC: tl.constexpr,
):
    """Compute a split of the weight gradient of a depthwise convolution, lanes [TT groups of TQ columns, BC channels].

    w[k, t, r, s] = sum of y[n, k, o, p, q] x[n, k // MULTIPLES, o STRIDE_D + t DILATION_D - pad_d, ...] over the items
    of the split, and bias[k] = sum of y. Tensors: x [N, C, D, H, W] and y [N, K, O, P, Q] by strides in elements (1-D
    and 2-D have leading axes of size 1), of one floating type; w [splits, K, T, R, S] by strides, and bias
    [splits, K] by the same stride of splits, or None: of ACC_DTYPE, in which products are summed, or, of one split, of
    the type of x. The sizes and strides of x are called source, those of y result.
    An item is `steps` rows of one phase, of one tile of columns, of one depth and image; a split is a run of them.
    Grid: (splits * channel tiles,), channel tiles innermost. Units as in `_conv_march_last_kernel`.
    """
    channels = channels * RESULT_UNIT
    tiles_c = tl.cdiv(channels, BC)
    split = tl.program_id(0) // tiles_c
    c = tl.program_id(0) % tiles_c * BC + tl.arange(0, BC)[None, :]  # [1, BC]
    if INDEX64:
        c = c.to(tl.int64)
    begin = split * items_per_split
    end = tl.minimum(begin + items_per_split, items)
    everywhere = (c < channels) & (tl.arange(0, TT)[:, None] >= 0)  # [TT, BC]
    sums = _walk_last(
        _nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, everywhere, end,
        n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles_w, items, begin,
        phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
        result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
        result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
        source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
        T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT,
        DEPTH, BIAS, ACC_DTYPE, INDEX64,
        UNIT, RESULT_UNIT, UNROLL, TQ, TT, False,
    )  # fmt: skip
    if _any_not_finite(sums):
        sums = _walk_last(
            _nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, everywhere, end,
            n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles_w, items, begin,
            phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
            result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
            result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
            source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
            T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT,
            DEPTH, BIAS, ACC_DTYPE, INDEX64,
            UNIT, RESULT_UNIT, UNROLL, TQ, TT, True,
        )  # fmt: skip
    k = tl.program_id(0) % tiles_c * BC + tl.arange(0, BC)  # [BC]
    if INDEX64:
        k = k.to(tl.int64)
    to = split.to(tl.int64) * w_stride_split
    for tap in tl.static_range(T * R * S):
        at = tap // (R * S) * w_stride_t + tap // S % R * w_stride_r + tap % S * w_stride_s
        total = tl.sum(sums[tap], 0).to(w_ptr.dtype.element_ty)
        tl.store(w_ptr + to + (k * w_stride_k + at), total, mask=k < channels)
    if BIAS:
        total = tl.sum(sums[T * R * S], 0).to(bias_ptr.dtype.element_ty)
        tl.store(bias_ptr + to + k, total, mask=k < channels)


@triton.jit
def _walk_rows(
    sums, x_ptr, y_ptr, c, end,
    n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles, groups, items, begin,
    phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
    result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
    result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
    source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, A: tl.constexpr, AW: tl.constexpr, STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_D: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLES: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, SHIFT: tl.constexpr,
    DEPTH: tl.constexpr, BIAS: tl.constexpr, ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr,
    VEC: tl.constexpr, VO: tl.constexpr, UNROLL: tl.constexpr, TQ: tl.constexpr, LANES: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Add the items begin .. end - 1 of lanes over positions, in their order."""
    for item in range(begin, end):
        lane = item % tiles * LANES + tl.arange(0, LANES)  # [LANES]
        rest = item // tiles
        first = rest % chunks * steps
        rest = rest // chunks
        phase = rest % phases_h
        rest = rest // phases_h
        o = rest % result_d
        image = (lane // groups).to(tl.int64)
        group = lane % groups
        if INDEX64:
            first = first.to(tl.int64)
            o = o.to(tl.int64)
            group = group.to(tl.int64)
        phase_w = group % phases_w
        block = group // phases_w
        column = source_column + phase_w * source_column_phase + block * (TQ * AW * source_column_pitch)
        q = result_column + phase_w * result_column_phase + block * (TQ * result_column_pitch)
        live = (image < n) & (q < result_w)
        slices = slices_of(
            o, source_d, source_stride_c * VEC, source_stride_d * VEC, 0, 0, pad_d,
            T, STRIDE_D, DILATION_D, 1, 0, 1, T, False, DEPTH,
        )  # fmt: skip
        x = x_ptr + (image * source_stride_n + (c // MULTIPLES) * source_stride_c) * VEC
        y = y_ptr + (image * result_stride_n + c * result_stride_c + o * result_stride_d) * VO
        if EXACT:
            sums = _collect_directly(
                sums, x, y, live, q, first, steps, slices, source_h, source_w, result_h, result_w,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
                source_stride_h * VEC, source_stride_w, result_stride_h * VO, result_stride_w,
                T, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, DEPTH, BIAS, ACC_DTYPE,
            )  # fmt: skip
        else:
            xs = x + column * source_stride_w
            ys = y + q * result_stride_w
            if VEC > 1:
                xs = xs[:, None] + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
            if VO > 1:
                ys = ys[:, None] + tl.arange(0, VO)[None, :]  # [LANES, VO]
            sums = _collect(
                sums, xs, ys, live, column, q, first, steps, slices, source_h, source_w, result_h, result_w,
                source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
                source_stride_h * VEC, source_stride_w, result_stride_h * VO, result_stride_w,
                T, R, S, A, AW, TQ, FIRST, LAST, SHIFT, DEPTH, BIAS, UNROLL, ACC_DTYPE, VEC, VO, LANES,
            )  # fmt: skip
    return sums


@triton.jit(repr=_repr)
def _conv_collect_rows_kernel(
    x_ptr,
    y_ptr,
    w_ptr,
    bias_ptr,
    n,
    channels,
    groups,
    source_d,
    source_h,
    source_w,
    result_d,
    result_h,
    result_w,
    steps,
    chunks,
    tiles,
    items,
    items_per_split,
    phases_h,
    phases_w,
    source_row,
    source_row_phase,
    source_row_pitch,
    result_row,
    result_row_phase,
    result_row_pitch,
    source_column,
    source_column_phase,
    source_column_pitch,
    result_column,
    result_column_phase,
    result_column_pitch,
    pad_d,
    pad_h,
    pad_w,
    source_stride_n,
    source_stride_c,
    source_stride_d,
    source_stride_h,
    source_stride_w,
    result_stride_n,
    result_stride_c,
    result_stride_d,
    result_stride_h,
    result_stride_w,
    w_stride_split,
    w_stride_k,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    A: tl.constexpr,
    AW: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SHIFT: tl.constexpr,
    DEPTH: tl.constexpr,
    BIAS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    VEC: tl.constexpr,
    VO: tl.constexpr,
    UNROLL: tl.constexpr,
    TQ: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute a split of the weight gradient as `_conv_collect_last_kernel`, for one channel, lanes over positions.

    A lane is a group of TQ columns of one image; vectors and units as in `_conv_march_rows_kernel`. An item is `steps`
    rows of one phase and depth, of a tile of LANES lanes. Grid: (splits * channels,), channels innermost.
    """
    source_w = source_w * VEC
    result_w = result_w * VO
    split = tl.program_id(0) // channels
    c = tl.program_id(0) % channels
    if INDEX64:
        c = c.to(tl.int64)
    begin = split * items_per_split
    end = tl.minimum(begin + items_per_split, items)
    everywhere = tl.arange(0, LANES) >= 0
    sums = _walk_rows(
        _nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, end,
        n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles, groups, items, begin,
        phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
        result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
        result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
        source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
        T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT,
        DEPTH, BIAS, ACC_DTYPE, INDEX64,
        VEC, VO, UNROLL, TQ, LANES, False,
    )  # fmt: skip
    if _any_not_finite(sums):
        sums = _walk_rows(
            _nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, end,
            n, channels, source_d, source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles, groups, items, begin,
            phases_h, phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase,
            result_row_pitch, source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
            result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h,
            source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w,
            T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT,
            DEPTH, BIAS, ACC_DTYPE, INDEX64,
            VEC, VO, UNROLL, TQ, LANES, True,
        )  # fmt: skip
    to = split.to(tl.int64) * w_stride_split
    for tap in tl.static_range(T * R * S):
        at = tap // (R * S) * w_stride_t + tap // S % R * w_stride_r + tap % S * w_stride_s
        tl.store(w_ptr + to + (c * w_stride_k + at), tl.sum(sums[tap], 0).to(w_ptr.dtype.element_ty))
    if BIAS:
        tl.store(bias_ptr + to + c, tl.sum(sums[T * R * S], 0).to(bias_ptr.dtype.element_ty))
