"""Weight gradient of depthwise convolution: every lane sums all taps of its channel, splits are added in order.

See :mod:`.collect_lanes` for what a lane does.
"""

import triton
import triton.language as tl

from .collect_lanes import any_not_finite, collect, collect_directly, nothing
from .lanes import slices_of


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
            sums = collect_directly(
                sums, x, y, live, q, first, steps, slices, source_h, source_w, result_h, result_w,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
                source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT,
                result_stride_w * RESULT_UNIT,
                T, R, S, A, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, DEPTH, BIAS, ACC_DTYPE,
            )  # fmt: skip
        else:
            xs = x + column * source_stride_w * UNIT
            ys = y + q * result_stride_w * RESULT_UNIT
            sums = collect(
                sums, xs, ys, live, column, q, first, steps, slices, source_h, source_w, result_h, result_w,
                source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
                source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT,
                result_stride_w * RESULT_UNIT,
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
        nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, everywhere, end, n, channels, source_d,
        source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles_w, items, begin, phases_h, phases_w,
        source_row, source_row_phase, source_row_pitch, result_row, result_row_phase, result_row_pitch, source_column,
        source_column_phase, source_column_pitch, result_column, result_column_phase, result_column_pitch, pad_d,
        pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
        result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w, T, R, S, A, AW, STRIDE_D,
        STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT, DEPTH, BIAS, ACC_DTYPE,
        INDEX64, UNIT, RESULT_UNIT, UNROLL, TQ, TT, False,
    )  # fmt: skip
    if any_not_finite(sums):
        sums = _walk_last(
            nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, everywhere, end, n, channels, source_d,
            source_h, source_w, result_d, result_h, result_w, steps, chunks, tiles_w, items, begin, phases_h,
            phases_w, source_row, source_row_phase, source_row_pitch, result_row, result_row_phase, result_row_pitch,
            source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
            result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d,
            source_stride_h, source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h,
            result_stride_w, T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W,
            MULTIPLES, FIRST, LAST, SHIFT, DEPTH, BIAS, ACC_DTYPE, INDEX64, UNIT, RESULT_UNIT, UNROLL, TQ, TT, True,
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
            sums = collect_directly(
                sums, x, y, live, q, first, steps, slices, source_h, source_w, result_h, result_w,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
                source_stride_h * VEC, source_stride_w, result_stride_h * VO,
                result_stride_w,
                T, R, S, A, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, DEPTH, BIAS, ACC_DTYPE,
            )  # fmt: skip
        else:
            xs = x + column * source_stride_w
            ys = y + q * result_stride_w
            if VEC > 1:
                xs = xs[:, None] + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
            if VO > 1:
                ys = ys[:, None] + tl.arange(0, VO)[None, :]  # [LANES, VO]
            sums = collect(
                sums, xs, ys, live, column, q, first, steps, slices, source_h, source_w, result_h, result_w,
                source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
                result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
                source_stride_h * VEC, source_stride_w, result_stride_h * VO,
                result_stride_w,
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
        nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, end, n, channels, source_d, source_h,
        source_w, result_d, result_h, result_w, steps, chunks, tiles, groups, items, begin, phases_h, phases_w,
        source_row, source_row_phase, source_row_pitch, result_row, result_row_phase, result_row_pitch, source_column,
        source_column_phase, source_column_pitch, result_column, result_column_phase, result_column_pitch, pad_d,
        pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
        result_stride_n, result_stride_c, result_stride_d, result_stride_h, result_stride_w, T, R, S, A, AW, STRIDE_D,
        STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, MULTIPLES, FIRST, LAST, SHIFT, DEPTH, BIAS, ACC_DTYPE,
        INDEX64, VEC, VO, UNROLL, TQ, LANES, False,
    )  # fmt: skip
    if any_not_finite(sums):
        sums = _walk_rows(
            nothing(everywhere, T * R * S + BIAS, ACC_DTYPE), x_ptr, y_ptr, c, end, n, channels, source_d, source_h,
            source_w, result_d, result_h, result_w, steps, chunks, tiles, groups, items, begin, phases_h, phases_w,
            source_row, source_row_phase, source_row_pitch, result_row, result_row_phase, result_row_pitch,
            source_column, source_column_phase, source_column_pitch, result_column, result_column_phase,
            result_column_pitch, pad_d, pad_h, pad_w, source_stride_n, source_stride_c, source_stride_d,
            source_stride_h, source_stride_w, result_stride_n, result_stride_c, result_stride_d, result_stride_h,
            result_stride_w, T, R, S, A, AW, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W,
            MULTIPLES, FIRST, LAST, SHIFT, DEPTH, BIAS, ACC_DTYPE, INDEX64, VEC, VO, UNROLL, TQ, LANES, True,
        )  # fmt: skip
    to = split.to(tl.int64) * w_stride_split
    for tap in tl.static_range(T * R * S):
        at = tap // (R * S) * w_stride_t + tap // S % R * w_stride_r + tap % S * w_stride_s
        tl.store(w_ptr + to + (c * w_stride_k + at), tl.sum(sums[tap], 0).to(w_ptr.dtype.element_ty))
    if BIAS:
        tl.store(bias_ptr + to + c, tl.sum(sums[T * R * S], 0).to(bias_ptr.dtype.element_ty))
