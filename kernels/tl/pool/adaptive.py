"""Adaptive average and max pools, forward and backward: ragged windows whose bounds the kernels compute."""

import triton
import triton.language as tl

from .axes import divide, larger, place, take_larger, tile_of, window_end, window_start
from .names import bytes_metadata


def _fprop_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_adaptive_fprop_window_kernel_{c['POOL']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fprop_repr, launch_metadata=bytes_metadata)
def _pool_adaptive_fprop_window_kernel(
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
    tiles_l,
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
    CHANNELS_INNERMOST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute y = adaptive_avg_pool(x), or y and the indices of adaptive_max_pool(x) (`POOL` is "avg" or "max").

    Tile: BLOCK_M rows by BLOCK_L lanes of y, each place of which walks through its window. With CHANNELS_INNERMOST
    lanes are C and rows N O P Q, else lanes are Q and rows N C O P.
    Tensors: x [N, C, D, H, W], y and indices [N, C, O, P, Q] by five strides in elements (1-D and 2-D have leading axes
    of size 1); indices may be None. Dtypes: x and y of one floating type; sums and comparisons in ACC_DTYPE, rounded
    once. Indices are positions in the plane D H W, or with OFFSETS the tap ``(t R + r) S + s`` of the window, where
    `window_t`, `window_r` and `window_s` are T R S, the largest window.
    Grid: (cdiv(rows, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    i_n, i_c, i_o, i_p, i_q, inside = place(row, lane, n, c, o, p, q, CHANNELS_INNERMOST)
    first_d = window_start(i_o, d, o)
    first_h = window_start(i_p, h, p)
    first_w = window_start(i_q, w, q)
    taps_d = window_end(i_o, d, o) - first_d
    taps_h = window_end(i_p, h, p) - first_h
    taps_w = window_end(i_q, w, q) - first_w
    x_corner = (
        x_ptr
        + (i_n * x_stride_n + i_c * x_stride_c)
        + (first_d * x_stride_d + first_h * x_stride_h + first_w * x_stride_w)
    )  # [BLOCK_M, BLOCK_L]

    # From one tap to the next the index moves by these: in the plane, or in the box of the largest window.
    step_t = window_r * window_s if OFFSETS else h * w
    step_r = window_s if OFFSETS else w
    if POOL == "avg":
        result = tl.zeros([BLOCK_M, BLOCK_L], ACC_DTYPE)
    else:
        result = tl.full([BLOCK_M, BLOCK_L], float("-inf"), ACC_DTYPE)
    at = tl.zeros([BLOCK_M, BLOCK_L], tl.int64 if INDEX64 else tl.int32)
    for t in range(0, window_t):
        for r in range(0, window_r):
            row_inside = inside & (t < taps_d) & (r < taps_h)
            before = t * step_t + r * step_r
            for s in range(0, window_s):
                seen = tl.load(
                    x_corner + (t * x_stride_d + r * x_stride_h + s * x_stride_w),
                    mask=row_inside & (s < taps_w),
                    other=0.0 if POOL == "avg" else float("-inf"),
                ).to(ACC_DTYPE)
                if POOL == "avg":
                    result += seen
                elif indices_ptr is None:
                    result = larger(seen, result)
                else:
                    result, at = take_larger(seen, before + s, result, at)

    if POOL == "avg":
        result = divide(result, taps_d * taps_h * taps_w)
    y_offset = i_n * y_stride_n + i_c * y_stride_c + i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
    tl.store(y_ptr + y_offset, result.to(y_ptr.dtype.element_ty), mask=inside)
    if indices_ptr is not None:
        if not OFFSETS:
            at += (first_d * h + first_h) * w + first_w
        indices_offset = i_n * indices_stride_n + i_c * indices_stride_c
        indices_offset += i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
        tl.store(indices_ptr + indices_offset, at.to(indices_ptr.dtype.element_ty), mask=inside)


def _bwd_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_adaptive_bwd_gather_kernel_{c['POOL']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_bwd_repr, launch_metadata=bytes_metadata)
def _pool_adaptive_bwd_gather_kernel(
    y_ptr,
    indices_ptr,
    dx_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    tiles_l,
    most_o,
    most_p,
    most_q,
    window_r,
    window_s,
    dx_stride_n,
    dx_stride_c,
    dx_stride_d,
    dx_stride_h,
    dx_stride_w,
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
    CHANNELS_INNERMOST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute dx, the gradient of an adaptive pool's input, from y, the gradient of its output (and its indices).

    Every position of dx gathers from the windows that contain it, in their order, so that no two programs write to one
    place: for averages y over the window's size, for maxima y where the window's index is the position.
    Tile: BLOCK_M rows by BLOCK_L lanes of dx. With CHANNELS_INNERMOST lanes are C and rows N D H W, else lanes are W
    and rows N C D H.
    Tensors: as the forward kernel's, with y and dx in the roles of x and y. `most_o`, `most_p` and `most_q` are the
    most windows that contain one position along each axis; `window_r` and `window_s` the largest window, for OFFSETS.
    Grid: (cdiv(rows, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    i_n, i_c, i_d, i_h, i_w, inside = place(row, lane, n, c, d, h, w, CHANNELS_INNERMOST)
    first_o = window_start(i_d, o, d)
    first_p = window_start(i_h, p, h)
    first_q = window_start(i_w, q, w)
    windows_o = window_end(i_d, o, d) - first_o
    windows_p = window_end(i_h, p, h) - first_p
    windows_q = window_end(i_w, q, w) - first_q
    y_corner = (
        y_ptr
        + (i_n * y_stride_n + i_c * y_stride_c)
        + (first_o * y_stride_o + first_p * y_stride_p + first_q * y_stride_q)
    )  # [BLOCK_M, BLOCK_L]
    if POOL == "max":
        indices_corner = (
            indices_ptr
            + (i_n * indices_stride_n + i_c * indices_stride_c)
            + (first_o * indices_stride_o + first_p * indices_stride_p + first_q * indices_stride_q)
        )
        position = (i_d * h + i_h) * w + i_w

    total = tl.zeros([BLOCK_M, BLOCK_L], ACC_DTYPE)
    for t in range(0, most_o):
        start_d = window_start(first_o + t, d, o)
        taps_d = window_end(first_o + t, d, o) - start_d
        for r in range(0, most_p):
            start_h = window_start(first_p + r, h, p)
            taps_dh = taps_d * (window_end(first_p + r, h, p) - start_h)
            row_inside = inside & (t < windows_o) & (r < windows_p)
            if OFFSETS:
                position_dh = (i_d - start_d) * window_r + (i_h - start_h)
            for s in range(0, most_q):
                start_w = window_start(first_q + s, w, q)
                contains = row_inside & (s < windows_q)
                seen = tl.load(
                    y_corner + (t * y_stride_o + r * y_stride_p + s * y_stride_q), mask=contains, other=0.0
                ).to(ACC_DTYPE)
                if POOL == "avg":
                    total += divide(seen, taps_dh * (window_end(first_q + s, w, q) - start_w))
                else:
                    if OFFSETS:
                        wanted = position_dh * window_s + (i_w - start_w)
                    else:
                        wanted = position
                    chosen = tl.load(
                        indices_corner + (t * indices_stride_o + r * indices_stride_p + s * indices_stride_q),
                        mask=contains,
                        other=-1,
                    )
                    total += tl.where(chosen == wanted, seen, 0.0)

    dx_offset = i_n * dx_stride_n + i_c * dx_stride_c + i_d * dx_stride_d + i_h * dx_stride_h + i_w * dx_stride_w
    tl.store(dx_ptr + dx_offset, total.to(dx_ptr.dtype.element_ty), mask=inside)
