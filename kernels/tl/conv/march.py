"""Depthwise convolution that marches down the rows: forward pass and data gradient, lanes over channels or positions.

A lane owns TQ neighbouring columns of one channel of the result. It goes down the rows, loads every row of the source
once, and adds it to the rows of the result that are still open: E rows of TQ accumulators, in registers. The axes of
the two passes differ in constants alone, which the host computes (``MarchAxis``):

* forward, and the gradient of stride 1: step t reads A source rows and closes one row of the result;
* the gradient of a larger stride: step t reads one source row and closes U rows of the result.

Dilation is taken apart into phases on the way: rows (and columns) that a dilated window combines lie in one phase.
"""

import triton
import triton.language as tl

from .lanes import as_column, load_vector, slices_of, widened
from .march_lanes import gradient_directly, march, moved, not_finite


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    lanes = f"{c['TT']}x{c['BC']}" if "BC" in c else f"{c['LANES']}v{c['VEC']}"
    kind = "dgrad" if c["GRAD"] else "fprop"
    name = "last" if "BC" in c else "rows"
    return (
        f"_conv_march_{name}_kernel_{kind}_{c['T']}x{c['R']}x{c['S']}_{lanes}x{c['TQ']}_i{64 if c['INDEX64'] else 32}"
    )


@triton.jit(repr=_repr)
def _conv_march_last_kernel(
    source_ptr,
    w_ptr,
    result_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
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
    w_stride_k,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    result_stride_n,
    result_stride_c,
    result_stride_d,
    result_stride_h,
    result_stride_w,
    residual_stride_n,
    residual_stride_c,
    residual_stride_d,
    residual_stride_h,
    residual_stride_w,
    bias_stride,
    scale_stride,
    shift_stride,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    A: tl.constexpr,
    U: tl.constexpr,
    AW: tl.constexpr,
    UW: tl.constexpr,
    LEAD: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_D: tl.constexpr,
    INVERSE_D: tl.constexpr,
    MULTIPLES: tl.constexpr,
    SLICES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SHIFT: tl.constexpr,
    GRAD: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    AHEAD: tl.constexpr,
    TQ: tl.constexpr,
    TT: tl.constexpr,
    BC: tl.constexpr,
):
    """Compute a depthwise convolution, or its data gradient, with lanes [TT groups of TQ columns, BC channels].

    result = activation((conv + bias) * scale + shift + residual), where conv is the forward pass of source x, or with
    GRAD the gradient by x of source y. Tensors: source [N, C, D, H, W] and result, residual [N, C', D', H', W'] by
    strides in elements (1-D and 2-D have leading axes of size 1), w [K, 1, T, R, S]; bias, scale, shift [C'], each by
    one stride, or None. One side has MULTIPLES times as many channels: the result forward, the source in a gradient.
    Dtypes: one floating type; products are summed in ACC_DTYPE and rounded once, at the store.
    Grid: (channel tiles * tiles_w * chunks * phases_h * result_d * N,), channel tiles innermost. A program goes `steps`
    steps down one phase of the rows; `channels` are those of the result.
    Units: `channels` and the strides of the result and of residual, but not those along C, are given divided by
    RESULT_UNIT, those of the source by UNIT: loads are as wide as the compiler can prove them aligned.
    INDEX64 computes offsets within an image in 64 bits; those of images always are.
    """
    w_stride_k = widened(w_stride_k, INDEX64)
    w_stride_t = widened(w_stride_t, INDEX64)
    w_stride_r = widened(w_stride_r, INDEX64)
    w_stride_s = widened(w_stride_s, INDEX64)
    channels = channels * RESULT_UNIT
    tiles_c = tl.cdiv(channels, BC)
    pid = tl.program_id(0)
    tile_c = pid % tiles_c
    pid = pid // tiles_c
    tile_w = pid % tiles_w
    pid = pid // tiles_w
    first = pid % chunks * steps
    pid = pid // chunks
    phase = pid % phases_h
    pid = pid // phases_h
    o = pid % result_d
    n = (pid // result_d).to(tl.int64)
    c = tile_c * BC + tl.arange(0, BC)[None, :]  # [1, BC]
    group = tile_w * TT + tl.arange(0, TT)[:, None]  # [TT, 1]
    if INDEX64:
        first = first.to(tl.int64)
        o = o.to(tl.int64)
        c = c.to(tl.int64)
        group = group.to(tl.int64)
    phase_w = group % phases_w
    block = group // phases_w
    column = source_column + phase_w * source_column_phase + block * (TQ * AW // UW * source_column_pitch)
    q = result_column + phase_w * result_column_phase + block * (TQ * result_column_pitch)
    live = (c < channels) & (q < result_w)  # [TT, BC]

    source_c = c * MULTIPLES if GRAD else c // MULTIPLES
    w_c = c * MULTIPLES if GRAD else c
    slices = slices_of(
        o, source_d, source_stride_c, source_stride_d * UNIT, w_stride_k, w_stride_t, pad_d,
        T, STRIDE_D, DILATION_D, STEP_D, INVERSE_D, MULTIPLES if GRAD else 1, SLICES, GRAD, DEPTH,
    )  # fmt: skip
    source = source_ptr + n * source_stride_n * UNIT + source_c * source_stride_c + tl.zeros([TT, 1], tl.int32)
    w = w_ptr + w_c * w_stride_k + tl.zeros([TT, 1], tl.int32)  # of the lanes' shape, so that nothing is converted
    result = result_ptr + (n * result_stride_n + o * result_stride_d) * RESULT_UNIT + c * result_stride_c
    residual = residual_ptr
    if residual_ptr is not None:
        residual = residual_ptr + (n * residual_stride_n + o * residual_stride_d) * RESULT_UNIT + c * residual_stride_c
    bias = load_vector(bias_ptr, c * bias_stride, c < channels, ACC_DTYPE)
    scale = load_vector(scale_ptr, c * scale_stride, c < channels, ACC_DTYPE)
    shift = load_vector(shift_ptr, c * shift_stride, c < channels, ACC_DTYPE)
    infinite = 0
    if GRAD:
        infinite = not_finite(w, live, slices, w_stride_r, w_stride_s, R, S, SLICES, DEPTH)
    if infinite > 0:
        gradient_directly(
            source, w, result, residual, bias, scale, shift, live, infinite, q, first, steps, slices,
            source_h, source_w, result_h, result_w,
            result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
            source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT,
            result_stride_w * RESULT_UNIT, residual_stride_h * RESULT_UNIT, residual_stride_w * RESULT_UNIT,
            w_stride_r, w_stride_s,
            R, S, U, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, SLICES, DEPTH, ACTIVATION, ACC_DTYPE,
        )  # fmt: skip
    else:
        march(
            source + column * source_stride_w * UNIT, w, result + q * result_stride_w * RESULT_UNIT,
            moved(residual, q * residual_stride_w * RESULT_UNIT), bias, scale, shift,
            live, column, q, first, steps, slices, source_h, source_w, result_h, result_w,
            source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
            result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
            source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT,
            result_stride_w * RESULT_UNIT, residual_stride_h * RESULT_UNIT, residual_stride_w * RESULT_UNIT,
            w_stride_r, w_stride_s,
            R, S, A, U, AW, UW, LEAD, TQ, SLICES, FIRST, LAST, SHIFT, GRAD, DEPTH, AHEAD, ACTIVATION, ACC_DTYPE,
            1, 1, TT,
        )  # fmt: skip


@triton.jit(repr=_repr)
def _conv_march_rows_kernel(
    source_ptr,
    w_ptr,
    result_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    planes,
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
    w_stride_k,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    result_stride_n,
    result_stride_c,
    result_stride_d,
    result_stride_h,
    result_stride_w,
    residual_stride_n,
    residual_stride_c,
    residual_stride_d,
    residual_stride_h,
    residual_stride_w,
    bias_stride,
    scale_stride,
    shift_stride,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    A: tl.constexpr,
    U: tl.constexpr,
    AW: tl.constexpr,
    UW: tl.constexpr,
    LEAD: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_D: tl.constexpr,
    INVERSE_D: tl.constexpr,
    MULTIPLES: tl.constexpr,
    SLICES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    SHIFT: tl.constexpr,
    GRAD: tl.constexpr,
    DEPTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    VEC: tl.constexpr,
    VO: tl.constexpr,
    AHEAD: tl.constexpr,
    TQ: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute a depthwise convolution, or its data gradient, as `_conv_march_last_kernel`, with lanes over positions.

    A lane is a group of TQ columns of one plane, an (image, channel) pair of the result; narrow images put several
    planes into a program. With VEC above 1 lanes load vectors of VEC columns and with VO store vectors of VO: columns
    lie side by side then, sizes of rows are multiples of VEC and VO, and the strides of the source, but not that along
    W, are given divided by VEC, those of the result by VO, as are `source_w` and `result_w`.
    Grid: (tiles * chunks * phases_h * result_d,), tiles of LANES lanes innermost.
    """
    w_stride_k = widened(w_stride_k, INDEX64)
    w_stride_t = widened(w_stride_t, INDEX64)
    w_stride_r = widened(w_stride_r, INDEX64)
    w_stride_s = widened(w_stride_s, INDEX64)
    source_w = source_w * VEC
    result_w = result_w * VO
    pid = tl.program_id(0)
    if INDEX64:
        pid = pid.to(tl.int64)
    lane = pid % tiles * LANES + tl.arange(0, LANES)  # [LANES]
    pid = pid // tiles
    first = pid % chunks * steps
    pid = pid // chunks
    phase = pid % phases_h
    o = pid // phases_h
    plane = lane // groups
    group = lane % groups
    n = (plane // channels).to(tl.int64)
    c = plane % channels
    if INDEX64:
        first = first.to(tl.int64)
        o = o.to(tl.int64)
        c = c.to(tl.int64)
        group = group.to(tl.int64)
    phase_w = group % phases_w
    block = group // phases_w
    column = source_column + phase_w * source_column_phase + block * (TQ * AW // UW * source_column_pitch)
    q = result_column + phase_w * result_column_phase + block * (TQ * result_column_pitch)
    live = (plane < planes) & (q < result_w)  # [LANES]

    source_c = c * MULTIPLES if GRAD else c // MULTIPLES
    w_c = c * MULTIPLES if GRAD else c
    slices = slices_of(
        o, source_d, source_stride_c * VEC, source_stride_d * VEC, w_stride_k, w_stride_t, pad_d,
        T, STRIDE_D, DILATION_D, STEP_D, INVERSE_D, MULTIPLES if GRAD else 1, SLICES, GRAD, DEPTH,
    )  # fmt: skip
    source = source_ptr + (n * source_stride_n + source_c * source_stride_c) * VEC
    w = w_ptr + w_c * w_stride_k
    result = result_ptr + (n * result_stride_n + c * result_stride_c + o * result_stride_d) * VO
    residual = residual_ptr
    if residual_ptr is not None:
        residual = residual_ptr + (n * residual_stride_n + c * residual_stride_c + o * residual_stride_d)
    bias = load_vector(bias_ptr, c * bias_stride, live, ACC_DTYPE)
    scale = load_vector(scale_ptr, c * scale_stride, live, ACC_DTYPE)
    shift = load_vector(shift_ptr, c * shift_stride, live, ACC_DTYPE)
    infinite = 0
    if GRAD:
        infinite = not_finite(w, live, slices, w_stride_r, w_stride_s, R, S, SLICES, DEPTH)
    if infinite > 0:
        gradient_directly(
            source, w, result, residual, bias, scale, shift, live, infinite, q, first, steps, slices,
            source_h, source_w, result_h, result_w,
            result_row + phase * result_row_phase, result_row_pitch, result_column_pitch, pad_h, pad_w,
            source_stride_h * VEC, source_stride_w, result_stride_h * VO, result_stride_w,
            residual_stride_h, residual_stride_w, w_stride_r, w_stride_s,
            R, S, U, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, TQ, SLICES, DEPTH, ACTIVATION, ACC_DTYPE,
        )  # fmt: skip
    else:
        sources = source + column * source_stride_w
        results = result + q * result_stride_w
        residuals = moved(residual, q * residual_stride_w)
        if VEC > 1:
            sources = sources[:, None] + tl.arange(0, VEC)[None, :]  # [LANES, VEC]
        if VO > 1:
            results = results[:, None] + tl.arange(0, VO)[None, :]  # [LANES, VO]
            if residual_ptr is not None:
                residuals = residuals[:, None] + tl.arange(0, VO)[None, :] * residual_stride_w
        march(
            sources, w, results, residuals,
            as_column(bias, VO), as_column(scale, VO), as_column(shift, VO),
            live, column, q, first, steps, slices,
            source_h, source_w, result_h, result_w,
            source_row + phase * source_row_phase, source_row_pitch, source_column_pitch,
            result_row + phase * result_row_phase, result_row_pitch, result_column_pitch,
            source_stride_h * VEC, source_stride_w, result_stride_h * VO, result_stride_w,
            residual_stride_h, residual_stride_w, w_stride_r, w_stride_s,
            R, S, A, U, AW, UW, LEAD, TQ, SLICES, FIRST, LAST, SHIFT, GRAD, DEPTH, AHEAD, ACTIVATION, ACC_DTYPE,
            VEC, VO, LANES,
        )  # fmt: skip
