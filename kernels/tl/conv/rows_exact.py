"""What the row kernels compute once more where sums are not finite: each group from its own channels alone."""

import triton
import triton.language as tl

from ..common import epilogue
from .lanes import within


@triton.jit
def any_not_finite(zeros):
    """Tell whether one of the elements, sums of finite zeros or of NaN, is NaN."""
    return tl.sum(tl.reshape((zeros != zeros).to(tl.int32), [zeros.numel])) > 0


@triton.jit
def plane_of_source(
    plane, t, source_d, pad_d, STRIDE_D: tl.constexpr, DILATION_D: tl.constexpr, SPREAD: tl.constexpr
):  # fmt: skip
    """Return which plane of the source tap t of a plane of the result leads to, and whether it is there."""
    if SPREAD:
        place = plane + pad_d - t * DILATION_D
        z = place // STRIDE_D
        there = (place >= 0) & (place % STRIDE_D == 0) & (z < source_d)
    else:
        z = plane * STRIDE_D - pad_d + t * DILATION_D
        there = within(z, source_d)
    return z, there


@triton.jit
def row_of_tap(tap, R: tl.constexpr, S: tl.constexpr, DEEP: tl.constexpr):
    """Return in which row of the window a tap lies, of all planes of taps one after the other."""
    r = tap // S
    if DEEP:
        r = r % R
    return r


@triton.jit
def rows_directly(
    source, w, result, residual, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
    inside, plane, q, channel, group, of_group, channel_inside, first, steps, row, row_pitch, depth, height, width,
    result_height, pad_d, pad_h, pad_w, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
    result_stride_h, residual_stride_h, w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
    DEEP: tl.constexpr, T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_D: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, CG: tl.constexpr, GRAD: tl.constexpr, ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Compute the rows of a program tap by tap and channel by channel, each group from its own channels alone.

    They are written where `inside` [BM, BO]. What lies outside of the source is a zero that the forward pass
    multiplies, and nothing to a gradient.
    """
    w_out = w + (group * w_stride_group + of_group * w_stride_out)  # [BO]
    for step in range(first, first + steps):
        at = row + step * row_pitch
        written = inside & within(at, result_height)
        total = tl.zeros([BM, BO], ACC_DTYPE)
        for tap in range(0, T * R * S):
            r = row_of_tap(tap, R, S, DEEP)
            h = at * STRIDE_H - pad_h + r * DILATION_H
            i = q * STRIDE_W - pad_w + tap % S * DILATION_W  # [BM, 1]
            reads = written & within(h, height) & within(i, width)
            from_plane = source
            if DEEP:
                z, there = plane_of_source(plane, tap // (R * S), depth, pad_d, STRIDE_D, DILATION_D, False)
                from_plane += z.to(tl.int64) * source_stride_d
                reads = reads & there
            for c in range(0, CG):
                from_channel = (group * CG + c) * source_stride_c
                value = tl.load(
                    from_plane + (h * source_stride_h + i * source_stride_w) + from_channel[None, :],
                    mask=reads, other=0.0,
                )  # fmt: skip
                weight = w_out + (c * w_stride_in + r * w_stride_r + tap % S * w_stride_s)
                if DEEP:
                    weight += tap // (R * S) * w_stride_t
                weights = tl.load(
                    weight[None, :] + tl.zeros([BM, 1], tl.int32), mask=reads if GRAD else written, other=0.0
                )
                total += value.to(ACC_DTYPE) * weights.to(ACC_DTYPE)
        of_residual = residual
        if residual is not None:
            of_residual = residual + at * residual_stride_h
        total = epilogue(
            total, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride, of_residual,
            channel, channel_inside, written, ACTIVATION,
        )  # fmt: skip
        tl.store(result + at * result_stride_h, total.to(result.dtype.element_ty), mask=written)


@triton.jit
def gradient_directly(
    source, w, result, residual, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
    inside, plane, column, channel, group, of_group, channel_inside, first, rows, row, row_pitch, depth, height, width,
    result_height, pad_d, pad_h, pad_w, source_stride_c, source_stride_d, source_stride_h, source_stride_w,
    result_stride_h, residual_stride_h, w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
    DEEP: tl.constexpr, T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_D: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, CG: tl.constexpr, ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr, BM: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """Compute `rows` rows of a gradient that spreads, as :func:`rows_directly`, at columns `column` [BM, BO]."""
    w_out = w + (group * w_stride_group + of_group * w_stride_out)  # [BO]
    for place in range(first, first + rows):
        at = row + place * row_pitch
        written = inside & within(at, result_height)
        total = tl.zeros([BM, BO], ACC_DTYPE)
        for tap in range(0, T * R * S):
            r = row_of_tap(tap, R, S, DEEP)
            from_h = at + pad_h - r * DILATION_H
            from_w = column + pad_w - tap % S * DILATION_W  # [BM, BO]
            h = from_h // STRIDE_H
            i = from_w // STRIDE_W
            reads = written & (from_h >= 0) & (from_h % STRIDE_H == 0) & (h < height)
            reads = reads & (from_w >= 0) & (from_w % STRIDE_W == 0) & (i < width)
            from_plane = source
            if DEEP:
                z, there = plane_of_source(plane, tap // (R * S), depth, pad_d, STRIDE_D, DILATION_D, True)
                from_plane += z.to(tl.int64) * source_stride_d
                reads = reads & there
            for c in range(0, CG):
                from_channel = (group * CG + c) * source_stride_c
                value = tl.load(
                    from_plane + (h * source_stride_h + i * source_stride_w + from_channel[None, :]),
                    mask=reads, other=0.0,
                )  # fmt: skip
                weight = w_out + (c * w_stride_in + r * w_stride_r + tap % S * w_stride_s)
                if DEEP:
                    weight += tap // (R * S) * w_stride_t
                weights = tl.load(weight[None, :] + tl.zeros([BM, 1], tl.int32), mask=reads, other=0.0)
                total += value.to(ACC_DTYPE) * weights.to(ACC_DTYPE)  # both 0 where y has nothing
        of_residual = residual
        if residual is not None:
            of_residual = residual + at * residual_stride_h
        total = epilogue(
            total, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride, of_residual,
            channel, channel_inside, written, ACTIVATION,
        )  # fmt: skip
        tl.store(result + at * result_stride_h, total.to(result.dtype.element_ty), mask=written)
