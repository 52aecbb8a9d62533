"""What the banded kernels compute once more where sums are not finite: results from the taps of their windows alone."""

import triton
import triton.language as tl

from .lanes import within
from .march_lanes import _finish as finish
from .march_lanes import moved


@triton.jit
def directly(
    source, weights, result, residual, bias, scale, shift, live, broken, row, column, source_h, source_w,
    result_h, result_w, pad_h, pad_w, source_stride_h, source_stride_w, result_stride_h, result_stride_w,
    residual_stride_h, residual_stride_w,
    R: tl.constexpr, S: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, PITCH: tl.constexpr, GRAD: tl.constexpr,
    ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr, BM: tl.constexpr, TOGETHER: tl.constexpr, CV: tl.constexpr,
):  # fmt: skip
    """Compute the blocks of a program tap by tap, TOGETHER results of a block at a time.

    Pointers and positions are those of the blocks' planes, [BM, 1] or, of CV channels, [BM, 1, CV]; `weights` point to
    the first tap. What lies outside of the source is a zero that the forward pass multiplies, and nothing to a
    gradient.
    """
    none = broken >> 20  # which the compiler does not know: it would unroll the loops
    for first in range(0, TP * TQ + none, TOGETHER):
        if CV == 1:
            o = first + tl.arange(0, TOGETHER)[None, :]
        else:
            o = first
        p = row + o // TQ
        q = column + o % TQ
        written = live & within(p, result_h) & within(q, result_w)
        total = tl.zeros(written.shape, ACC_DTYPE)
        for tap in range(0, R * S + none):
            r = tap // S
            s = tap % S
            h = p - pad_h + r
            i = q - pad_w + s
            reads = written & within(h, source_h) & within(i, source_w)
            value = tl.load(source + (h * source_stride_h + i * source_stride_w), mask=reads, other=0.0).to(ACC_DTYPE)
            weight = tl.load(weights + (r * PITCH + s)).to(ACC_DTYPE)
            if GRAD:
                weight = tl.where(reads, weight, 0.0)
            total += value * weight
        of_residual = moved(residual, p * residual_stride_h + q * residual_stride_w)
        total = finish(total, bias, scale, shift, of_residual, written, ACTIVATION)
        to = result + (p * result_stride_h + q * result_stride_w)
        tl.store(to, total.to(result.dtype.element_ty), mask=written)
