"""unfold, which copies the windows of an image into columns, and fold, its adjoint, which adds them up.

fold gathers: each element of the image adds the columns that it is in, in one order, so that nothing is added
atomically. Both are bound by memory; columns are as many times larger than the image as a window has taps per stride.
"""

import triton
import triton.language as tl

from .axes import tile_of


def _unfold_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else ''}"
    return f"_unfold_kernel_{tile}_k{c['R']}x{c['S']}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report the bytes that must move to a profiler (Triton's proton)."""
    image = args["n"] * args["c"] * args["h"] * args["w"]
    columns = args["n"] * args["c"] * args["R"] * args["S"] * args["p"] * args["q"]
    return {"name": kernel.name, "bytes": (image + columns) * args["x_ptr"].element_size()}


@triton.jit(repr=_unfold_repr, launch_metadata=_launch_metadata)
def _unfold_kernel(
    x_ptr,
    y_ptr,
    n,
    c,
    h,
    w,
    p,
    q,
    lanes,
    pad_h,
    pad_w,
    tiles_l,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute y[n, (c, r, s), (p, q)] = x[n, c, p STRIDE_H - pad_h + r DILATION_H, likewise w], 0 outside of the image.

    Tile: BLOCK_M rows by BLOCK_L lanes of y; lanes are the windows (p, q), rows n and (c, r, s). With
    CHANNELS_INNERMOST rows run over c first, along which x is contiguous then.
    Tensors: x [N, C, H, W] by four strides, y [N, C R S, P Q] contiguous, of one floating type; `lanes` is P Q.
    Grid: (cdiv(N C R S, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    if CHANNELS_INNERMOST:
        i_c = row % c
        tap = row // c % (R * S)
        i_n = row // (c * R * S)
        y_row = (i_n * c + i_c) * (R * S) + tap
    else:
        tap = row % (R * S)
        i_c = row // (R * S) % c
        i_n = row // (R * S) // c
        y_row = row
    i_h = lane // q * STRIDE_H - pad_h + tap // S * DILATION_H  # [BLOCK_M, BLOCK_L]
    i_w = lane % q * STRIDE_W - pad_w + tap % S * DILATION_W
    inside = (i_n < n) & (lane < lanes)
    image = inside & (i_h >= 0) & (i_h < h) & (i_w >= 0) & (i_w < w)
    x_offset = i_n * x_stride_n + i_c * x_stride_c + i_h * x_stride_h + i_w * x_stride_w
    value = tl.load(x_ptr + x_offset, mask=image, other=0.0)
    tl.store(y_ptr + (y_row * lanes + lane), value, mask=inside)


def _fold_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_fold_kernel_{c['BLOCK_M']}x{c['BLOCK_L']}_k{c['R']}x{c['S']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fold_repr, launch_metadata=_launch_metadata)
def _fold_kernel(
    y_ptr,
    x_ptr,
    n,
    c,
    h,
    w,
    p,
    q,
    lanes,
    pad_h,
    pad_w,
    tiles_l,
    y_stride_n,
    y_stride_k,
    y_stride_l,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    SUM_TYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute x[n, c, h, w], the sum of y[n, (c, r, s), (p, q)] over the taps that unfold would copy from there.

    Tile: BLOCK_M rows by BLOCK_L lanes of x; lanes are positions (h, w), rows are N C. An element walks back from the
    last window that may begin at or before it; sums are in SUM_TYPE, by r, then by s, and are rounded once.
    Tensors: y [N, C R S, P Q] by three strides, x [N, C, H, W] contiguous, of one floating type; `lanes` is H W.
    Grid: (cdiv(N C, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    inside = (row < n * c) & (lane < lanes)
    from_h = lane // w + pad_h  # [1, BLOCK_L]: positions in the padded image
    from_w = lane % w + pad_w
    y_row = y_ptr + (row // c * y_stride_n + row % c * (R * S) * y_stride_k)  # [BLOCK_M, 1]
    total = tl.zeros([BLOCK_M, BLOCK_L], SUM_TYPE)
    for back_h in range(0, DILATION_H * (R - 1) // STRIDE_H + 1):
        i_p = from_h // STRIDE_H - back_h
        left_h = from_h % STRIDE_H + back_h * STRIDE_H  # into the window
        r = left_h // DILATION_H
        in_h = (i_p >= 0) & (i_p < p) & (left_h % DILATION_H == 0) & (r < R)
        for back_w in range(0, DILATION_W * (S - 1) // STRIDE_W + 1):
            i_q = from_w // STRIDE_W - back_w
            left_w = from_w % STRIDE_W + back_w * STRIDE_W
            s = left_w // DILATION_W
            hit = in_h & (i_q >= 0) & (i_q < q) & (left_w % DILATION_W == 0) & (s < S)
            offset = (r * S + s) * y_stride_k + (i_p * q + i_q) * y_stride_l
            total += tl.load(y_row + offset, mask=inside & hit, other=0.0).to(SUM_TYPE)
    tl.store(x_ptr + (row * lanes + lane), total.to(x_ptr.dtype.element_ty), mask=inside)
