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
def rows_directly(
    source, w, result, residual, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
    inside, q, channel, group, of_group, channel_inside, first, steps, row, row_pitch, height, width, result_height,
    pad_h, pad_w, source_stride_c, source_stride_h, source_stride_w, result_stride_h, residual_stride_h,
    w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
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
        for tap in range(0, R * S):
            h = at * STRIDE_H - pad_h + tap // S * DILATION_H
            i = q * STRIDE_W - pad_w + tap % S * DILATION_W  # [BM, 1]
            reads = written & within(h, height) & within(i, width)
            for c in range(0, CG):
                from_channel = (group * CG + c) * source_stride_c
                value = tl.load(
                    source + (h * source_stride_h + i * source_stride_w) + from_channel[None, :], mask=reads, other=0.0
                )
                weight = w_out + (c * w_stride_in + tap // S * w_stride_r + tap % S * w_stride_s)
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
    inside, column, channel, group, of_group, channel_inside, first, rows, row, row_pitch, height, width, result_height,
    pad_h, pad_w, source_stride_c, source_stride_h, source_stride_w, result_stride_h, residual_stride_h,
    w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, CG: tl.constexpr, ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr, BM: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """Compute `rows` rows of a gradient that spreads, as :func:`rows_directly`, at columns `column` [BM, BO]."""
    w_out = w + (group * w_stride_group + of_group * w_stride_out)  # [BO]
    for place in range(first, first + rows):
        at = row + place * row_pitch
        written = inside & within(at, result_height)
        total = tl.zeros([BM, BO], ACC_DTYPE)
        for tap in range(0, R * S):
            from_h = at + pad_h - tap // S * DILATION_H
            from_w = column + pad_w - tap % S * DILATION_W  # [BM, BO]
            h = from_h // STRIDE_H
            i = from_w // STRIDE_W
            reads = written & (from_h >= 0) & (from_h % STRIDE_H == 0) & (h < height)
            reads = reads & (from_w >= 0) & (from_w % STRIDE_W == 0) & (i < width)
            for c in range(0, CG):
                from_channel = (group * CG + c) * source_stride_c
                value = tl.load(
                    source + (h * source_stride_h + i * source_stride_w + from_channel[None, :]), mask=reads, other=0.0
                )
                weight = w_out + (c * w_stride_in + tap // S * w_stride_r + tap % S * w_stride_s)
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
