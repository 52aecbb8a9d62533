"""Adaptive pools of contiguous tensors by whole lines: the rows of a window first, then its ragged columns."""

import triton
import triton.language as tl

from .axes import divide, larger, place, take_larger, window_end, window_start
from .names import bytes_metadata


@triton.jit
def reduce_members(column, at, member, lane, w, none, INDICES: tl.constexpr):
    """Return the largest member of each window among the `column` [M, W], and its key ``at w + lane``.

    `member` [M, Q, W] tells which columns a window has. The first of equal values, in the order of keys, is taken; NaN
    beats numbers, and the last NaN is taken.
    """
    nan = (column != column)[:, None, :] & member
    some_nan = tl.max(nan.to(tl.int32), axis=2) > 0  # [M, Q]
    number = tl.where(column != column, float("-inf"), column)[:, None, :]
    most = tl.max(tl.where(member, number, float("-inf")), axis=2)
    if INDICES:
        key = (at * w + lane)[:, None, :]
        first = tl.min(tl.where(member & (column[:, None, :] == most[:, :, None]), key, none), axis=2)
        last_nan = tl.max(tl.where(nan, key, -1), axis=2)
        chosen = tl.where(some_nan, last_nan, first)
    else:
        chosen = tl.zeros_like(some_nan).to(tl.int32)
    return tl.where(some_nan, float("nan"), most), chosen


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_W']}x{c['BLOCK_Q']}"
    return f"_pool_adaptive_fprop_lines_kernel_{c['POOL']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr, launch_metadata=bytes_metadata)
def _pool_adaptive_fprop_lines_kernel(
    x_ptr,
    y_ptr,
    indices_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    window_t,
    window_r,
    window_s,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    indices_stride_n,
    indices_stride_c,
    indices_stride_o,
    indices_stride_p,
    indices_stride_q,
    POOL: tl.constexpr,
    OFFSETS: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Compute y = adaptive_avg_pool(x), or y and the indices of adaptive_max_pool(x) (`POOL` is "avg" or "max").

    Tile: BLOCK_M rows N C O P of y. Whole lines of x, BLOCK_W >= W wide, are reduced over the T R lines of the rows'
    windows, element by element, which reads 16 bytes at a time; the windows along W follow, BLOCK_Q at a time, as
    masked reductions of what that leaves. So an element costs a few instructions, and Q / (T R) times a few.
    Tensors, dtypes and indices: as the window kernel's (pool_adaptive.py).
    Grid: (cdiv(N C O P, BLOCK_M),). INDEX64 computes offsets in 64 bits.
    """
    tile = tl.program_id(0)
    if INDEX64:
        tile = tile.to(tl.int64)
    row = (tile * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]  # [BLOCK_M, 1]
    lane = tl.arange(0, BLOCK_W)[None, :]  # [1, BLOCK_W]
    i_n, i_c, i_o, i_p, _, inside = place(row, lane, n, c, o, p, w, False)
    first_d = window_start(i_o, d, o)
    first_h = window_start(i_p, h, p)
    taps_d = window_end(i_o, d, o) - first_d
    taps_h = window_end(i_p, h, p) - first_h
    x_line = x_ptr + (i_n * x_stride_n + i_c * x_stride_c + first_d * x_stride_d + first_h * x_stride_h)
    x_line = x_line + lane * x_stride_w  # [BLOCK_M, BLOCK_W]

    INDICES: tl.constexpr = indices_ptr is not None
    if POOL == "avg":
        column = tl.zeros([BLOCK_M, BLOCK_W], ACC_DTYPE)
    else:
        column = tl.full([BLOCK_M, BLOCK_W], float("-inf"), ACC_DTYPE)
    at = tl.zeros([BLOCK_M, BLOCK_W], tl.int64 if INDEX64 else tl.int32)
    for t in range(0, window_t):
        for r in range(0, window_r):
            seen = tl.load(
                x_line + (t * x_stride_d + r * x_stride_h),
                mask=inside & (t < taps_d) & (r < taps_h),
                other=0.0 if POOL == "avg" else float("-inf"),
            ).to(ACC_DTYPE)
            if POOL == "avg":
                column += seen
            elif INDICES:
                column, at = take_larger(seen, t * window_r + r, column, at)
            else:
                column = larger(seen, column)

    none = 2**62 if INDEX64 else 2**31 - 1
    y_row = i_n * y_stride_n + i_c * y_stride_c + i_o * y_stride_o + i_p * y_stride_p  # [BLOCK_M, 1]
    indices_row = i_n * indices_stride_n + i_c * indices_stride_c + i_o * indices_stride_o + i_p * indices_stride_p
    for tile_q in range(0, q, BLOCK_Q):
        i_q = (tile_q + tl.arange(0, BLOCK_Q))[None, :]  # [1, BLOCK_Q]
        first_w = window_start(i_q, w, q)
        end_w = window_end(i_q, w, q)
        member = (lane[:, None, :] >= first_w[:, :, None]) & (lane[:, None, :] < tl.minimum(end_w, w)[:, :, None])
        if POOL == "avg":
            result = tl.sum(tl.where(member, column[:, None, :], 0.0), axis=2)  # [BLOCK_M, BLOCK_Q]
            result = divide(result, taps_d * taps_h * (end_w - first_w))
        else:
            result, key = reduce_members(column, at, member, lane, w, none, INDICES)
        written = (i_n < n) & (i_q < q)
        tl.store(y_ptr + (y_row + i_q * y_stride_q), result.to(y_ptr.dtype.element_ty), mask=written)
        if INDICES:
            line = key // w
            if OFFSETS:
                index = line * window_s + (key % w - first_w)
            else:
                index = ((first_d + line // window_r) * h + first_h + line % window_r) * w + key % w
            indices_offset = indices_row + i_q * indices_stride_q
            tl.store(indices_ptr + indices_offset, index.to(indices_ptr.dtype.element_ty), mask=written)
