"""The sum of the splits of a weight gradient of few weights and many splits."""

import triton
import triton.language as tl


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_sum_splits_kernel_{c['BLOCK_S']}x{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_sum_splits_kernel(
    partial_ptr,
    w_ptr,
    bias_ptr,
    splits,
    elements,
    weights,
    w_stride_k,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the splits of weights and biases, BLOCK_S at a time, in an order that depends on their number alone.

    Tensors: partial [splits, elements] contiguous, of the type in which sums are formed: `weights` weights
    [K, 1, T, R, S], then biases [K], if any; w by strides in elements and bias contiguous, rounded once.
    Grid: (cdiv(elements, BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    split = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    if INDEX64:
        i = i.to(tl.int64)
        split = split.to(tl.int64)
    sums = tl.zeros([BLOCK_S, BLOCK], partial_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        inside = (first + split < splits)[:, None] & (i < elements)[None, :]
        sums += tl.load(partial_ptr + ((first + split)[:, None] * elements + i[None, :]), mask=inside, other=0.0)
    total = tl.sum(sums, 0)
    tap = i % (T * R * S)
    at = i // (T * R * S) * w_stride_k + tap // (R * S) * w_stride_t + tap // S % R * w_stride_r + tap % S * w_stride_s
    tl.store(w_ptr + at, total.to(w_ptr.dtype.element_ty), mask=i < weights)
    if bias_ptr is not None:
        tl.store(bias_ptr + (i - weights), total.to(bias_ptr.dtype.element_ty), mask=(i >= weights) & (i < elements))
