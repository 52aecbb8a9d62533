"""Weight gradient of convolutions of few channels per group: products of whole rows of x and y, splits in order.

For a row of x, A [BM, (s, c)] holds S shifted columns side by side, and B [BM, (r, k)] the rows of y that its rows of
taps lead to. All taps of a block of whole groups are sums of A^T B; what it has beside the groups' own weights is
dropped.
"""

import triton
import triton.language as tl

from .lanes import within
from .rows import any_not_finite


@triton.jit
def _walk(
    sums, x_ptr, y_ptr, block, begin, end, images, groups, x_h, x_w, y_h, y_w, steps, tiles, pad_h, pad_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w, y_stride_n, y_stride_k, y_stride_h, y_stride_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr, SP: tl.constexpr, RP: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add the items begin .. end - 1 in their order; EXACT position by position, x where y has nothing left out."""
    sc = tl.arange(0, SP * BC)  # [(s, c)]
    rk = tl.arange(0, RP * BO)[None, :]  # [1, (r, k)]
    if INDEX64:
        rk = rk.to(tl.int64)
    if EXACT:
        sc = sc[:, None]
    else:
        sc = sc[None, :]
    c = sc % BC
    k = rk % BO
    of_x = (sc // BC < S) & (c < PER * CG)
    of_y = (rk // BO < R) & (k < PER * KG)
    if not EVEN:
        of_x = of_x & (c < (groups - block * PER) * CG)
        of_y = of_y & (k < (groups - block * PER) * KG)
    x_block = x_ptr + (block * (PER * CG) + c) * x_stride_c
    y_block = y_ptr + (block * (PER * KG) + k) * y_stride_k
    for item in range(begin, end):
        tile = item % tiles
        first = item // tiles * steps
        if INDEX64:
            tile = tile.to(tl.int64)
            first = first.to(tl.int64)
        for part in range(0, BM if EXACT else 1):
            if EXACT:
                lane = tile * BM + part
            else:
                lane = tile * BM + tl.arange(0, BM)[:, None]  # [BM, 1]
            n = (lane // y_w).to(tl.int64)
            q = lane % y_w
            column = q * STRIDE_W - pad_w + sc // BC * DILATION_W
            here = (n < images) & of_x & within(column, x_w)
            there = (n < images) & of_y
            x = x_block + (n * x_stride_n + column * x_stride_w)
            y = y_block + (n * y_stride_n + q * y_stride_w)
            for i in range(first, first + steps):  # rows of x with its padding, from its first
                h = i - pad_h
                up = i - rk // BO * DILATION_H
                p = up // STRIDE_H
                pairs = there & (up >= 0) & (p < y_h)
                if STRIDE_H > 1:
                    pairs = pairs & (up % STRIDE_H == 0)
                a = tl.load(x + h * x_stride_h, mask=here & within(h, x_h), other=0.0)
                b = tl.load(y + p * y_stride_h, mask=pairs, other=0.0)
                if EXACT:
                    sums += tl.where(pairs, a.to(ACC_DTYPE) * b.to(ACC_DTYPE), 0.0)
                else:
                    sums = tl.dot(tl.trans(a), b, sums, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    return sums


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BM']}x{c['BC']}to{c['BO']}"
    return f"_conv_rows_wgrad_kernel_{c['R']}x{c['S']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_rows_wgrad_kernel(
    x_ptr,
    y_ptr,
    partial_ptr,
    images,
    groups,
    x_h,
    x_w,
    y_h,
    y_w,
    steps,
    tiles,
    blocks,
    items,
    items_per_split,
    pad_h,
    pad_w,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_k,
    y_stride_h,
    y_stride_w,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    SP: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
):
    """Compute a split of the sums of x[n, c, i STRIDE + tap DILATION - pad] y[n, k, i], all taps of a block of groups.

    GEMM view: M = (s, c), N = (r, k), reduction over BM positions of each row. Tensors: x [N, G CG, H, W] and
    y [N, G KG, P, Q] of one floating type by strides in elements (those of x, but not along channels, given divided by
    UNIT, those of y by RESULT_UNIT); partial [splits, blocks, SP, BC, RP, BO] contiguous, of ACC_DTYPE, in which
    products are summed. A block is PER whole groups.
    An item is `steps` rows of x, padding included, of one tile of BM columns of y, of all images side by side; a split
    is a run of items. Grid: (splits * blocks,), blocks innermost.
    """
    block = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks
    begin = split * items_per_split
    end = tl.minimum(begin + items_per_split, items)
    if INDEX64:
        block = block.to(tl.int64)
    sums = tl.zeros([SP * BC, RP * BO], ACC_DTYPE)
    sums = _walk(
        sums, x_ptr, y_ptr, block, begin, end, images, groups, x_h, x_w, y_h, y_w, steps, tiles, pad_h, pad_w,
        x_stride_n * UNIT, x_stride_c, x_stride_h * UNIT, x_stride_w * UNIT,
        y_stride_n * RESULT_UNIT, y_stride_k, y_stride_h * RESULT_UNIT, y_stride_w * RESULT_UNIT,
        R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, CG, KG, PER, EVEN, PRECISION, ACC_DTYPE, INDEX64,
        SP, RP, BM, BC, BO, False,
    )  # fmt: skip
    if any_not_finite(sums * 0.0):
        sums = _walk(
            tl.zeros([SP * BC, RP * BO], ACC_DTYPE), x_ptr, y_ptr, block, begin, end, images, groups, x_h, x_w,
            y_h, y_w, steps, tiles, pad_h, pad_w,
            x_stride_n * UNIT, x_stride_c, x_stride_h * UNIT, x_stride_w * UNIT,
            y_stride_n * RESULT_UNIT, y_stride_k, y_stride_h * RESULT_UNIT, y_stride_w * RESULT_UNIT,
            R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, CG, KG, PER, EVEN, PRECISION, ACC_DTYPE, INDEX64,
            SP, RP, BM, BC, BO, True,
        )  # fmt: skip
    at = tl.arange(0, SP * BC)[:, None] * (RP * BO) + tl.arange(0, RP * BO)[None, :]
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * (SP * BC * RP * BO) + at, sums)


def _fold_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_rows_fold_kernel_{c['R']}x{c['S']}_{c['BLOCK_S']}x{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fold_repr)
def _conv_rows_fold_kernel(
    partial_ptr,
    w_ptr,
    splits,
    elements,
    weights,
    w_stride_k,
    w_stride_c,
    w_stride_r,
    w_stride_s,
    R: tl.constexpr,
    S: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    INDEX64: tl.constexpr,
    SP: tl.constexpr,
    RP: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the splits of the groups' own weights, BLOCK_S at a time, in an order that depends on their number alone.

    Tensors: partial as `_conv_rows_wgrad_kernel` leaves it, `elements` a split; w [K, CG, R, S], `weights` in all, by
    strides in elements, rounded once. Grid: (cdiv(weights, BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    split = tl.arange(0, BLOCK_S)  # [BLOCK_S]
    if INDEX64:
        i = i.to(tl.int64)
        split = split.to(tl.int64)
    s = i % S
    r = i // S % R
    c = i // (S * R) % CG
    k = i // (S * R * CG)
    group = k // KG
    row = (group // PER * SP + s) * BC + group % PER * CG + c
    at = (row * RP + r) * BO + group % PER * KG + k % KG
    sums = tl.zeros([BLOCK_S, BLOCK], partial_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK_S):
        inside = (first + split < splits)[:, None] & (i < weights)[None, :]
        sums += tl.load(partial_ptr + ((first + split)[:, None] * elements + at[None, :]), mask=inside, other=0.0)
    to = k * w_stride_k + c * w_stride_c + r * w_stride_r + s * w_stride_s
    tl.store(w_ptr + to, tl.sum(sums, 0).to(w_ptr.dtype.element_ty), mask=i < weights)
