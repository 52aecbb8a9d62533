"""Gradients of pooling over small windows: each program gathers a tile of inputs, which share the windows they load."""

import triton
import triton.language as tl

from .common import first_window, positions, tap_of, window_count
from .names import tiled_metadata, tiled_name
from .tiled import average, columns_apart, columns_in_runs, items, zipped


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return tiled_name(f"_pool_{c['OP']}_bwd_tiled_kernel", c)


@triton.jit
def chosen(
    totals,
    grads,
    numbers,
    number_of_row,
    width,
    distance_h: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PAD_W: tl.constexpr,
    LEFT: tl.constexpr,
    COUNT: tl.constexpr,
    POSITIONS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Add to each of TILE_H x TILE_W totals the gradients of one row of COUNT windows that chose its element.

    Taps are compared with `number_of_row` + r S + s; positions, relative to the first of the tile, with k `width` + j.
    """
    new = ()
    for k in tl.static_range(0, TILE_H):
        for j in tl.static_range(0, TILE_W):
            total = totals[k * TILE_W + j]
            reach_h = distance_h + k
            if reach_h >= 0 and reach_h <= (R - 1) * DILATION_H and reach_h % DILATION_H == 0:
                for m in tl.static_range(0, COUNT):
                    reach_w = j + PAD_W - (m - LEFT) * STRIDE_W
                    if reach_w >= 0 and reach_w <= (S - 1) * DILATION_W and reach_w % DILATION_W == 0:
                        if POSITIONS:
                            hit = numbers[m] == k * width + j
                        else:
                            hit = numbers[m] == number_of_row + (reach_h // DILATION_H * S + reach_w // DILATION_W)
                        total = tl.where(hit, total + grads[m], total)
            new = new + (total,)
    return new


@triton.jit
def spread(
    totals,
    grads,
    distance_h: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PAD_W: tl.constexpr,
    LEFT: tl.constexpr,
    COUNT: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    """Add to each of TILE_H x TILE_W totals the gradients of those of COUNT windows of a row that read its element."""
    of_row = ()
    for j in tl.static_range(0, TILE_W):
        total = totals[0] * 0.0
        for m in tl.static_range(0, COUNT):
            reach_w = j + PAD_W - (m - LEFT) * STRIDE_W
            if reach_w >= 0 and reach_w <= (S - 1) * DILATION_W and reach_w % DILATION_W == 0:
                total += grads[m]
        of_row = of_row + (total,)
    new = ()
    for k in tl.static_range(0, TILE_H):
        for j in tl.static_range(0, TILE_W):
            total = totals[k * TILE_W + j]
            reach_h = distance_h + k
            if reach_h >= 0 and reach_h <= (R - 1) * DILATION_H and reach_h % DILATION_H == 0:
                total += of_row[j]
            new = new + (total,)
    return new


@triton.jit
def shares(
    grads,
    i_o,
    i_p,
    first_q,
    d,
    h,
    w,
    pad_high_d,
    pad_high_h,
    pad_high_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DIVISOR: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    NARROW: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Divide the gradients of COUNT windows of a row, from `first_q` on, by their divisors."""
    divided = ()
    for m in tl.static_range(0, COUNT):
        divisor = 0
        if DIVISOR == 0:
            divisor = window_count(first_q + m, w, PAD_W, pad_high_w, S, STRIDE_W, DILATION_W, INCLUDE_PAD)
            divisor *= window_count(i_p, h, PAD_H, pad_high_h, R, STRIDE_H, DILATION_H, INCLUDE_PAD)
            divisor *= window_count(i_o, d, PAD_D, pad_high_d, T, STRIDE_D, DILATION_D, INCLUDE_PAD)
            divisor = tl.where(divisor > 0, divisor, 1)  # of windows that do not exist
        divided = divided + (average(grads[m], divisor, DIVISOR, NARROW),)
    return divided


@triton.jit(repr=_repr, launch_metadata=tiled_metadata)
def _pool_bwd_tiled_kernel(
    y_ptr,
    indices_ptr,
    dx_ptr,
    n,
    lanes,
    lanes_out,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
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
    dx_stride_n,
    dx_stride_c,
    dx_stride_d,
    dx_stride_h,
    dx_stride_w,
    pad_high_d,
    pad_high_h,
    pad_high_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PAD_D: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    OP: tl.constexpr,
    DIVISOR: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    POSITIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    NARROW: tl.constexpr,
    UNIT: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the gradient of x: the sum of y over the windows that chose an element (OP "max") or read it ("sum").

    Tensors: y and indices [N, C, O, P, Q], dx [N, C, D, H, W] by strides: those of the innermost axis (C with
    CHANNELS_INNERMOST, else W and Q) in elements, others in runs of UNIT elements, and so are `lanes` and `lanes_out`,
    the sizes of the innermost axis in dx and in y. indices is None for sums, whose y is divided by DIVISOR, or by the
    count of the window where that is 0. Dtypes: sums are formed in COMPUTE; NARROW says that dx has 16 bits. Numbers
    are taps or, with POSITIONS, positions in the plane of x.
    Grid: as `_pool_fprop_tiled_kernel`, where each item computes TILE_P STRIDE_H rows of TILE_Q STRIDE_W elements.
    """
    TILE_H: tl.constexpr = TILE_P * STRIDE_H
    TILE_W: tl.constexpr = TILE_Q * STRIDE_W
    NUMBER: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    # Windows before TILE_P x TILE_Q that reach into the tile, and all of them.
    ABOVE: tl.constexpr = ((R - 1) * DILATION_H - PAD_H) // STRIDE_H
    LEFT: tl.constexpr = ((S - 1) * DILATION_W - PAD_W) // STRIDE_W
    ROWS: tl.constexpr = ABOVE + (TILE_H - 1 + PAD_H) // STRIDE_H + 1
    COUNT: tl.constexpr = LEFT + (TILE_W - 1 + PAD_W) // STRIDE_W + 1
    WINDOWS_D: tl.constexpr = (T - 1) * DILATION_D // STRIDE_D + 1
    SHAPE: tl.constexpr = [BLOCK_M, BLOCK_L] if CHANNELS_INNERMOST else [BLOCK_M]
    tiles_h = tl.cdiv(h, TILE_H)
    tiles_w = tl.cdiv(w, TILE_W)
    if CHANNELS_INNERMOST:
        i_n, i_c, i_d, tile_h, tile_w, inside = positions(
            n, lanes * UNIT, d, tiles_h, tiles_w, INDEX64, True, BLOCK_M, BLOCK_L
        )
        c_unit = 1
        step_q = y_stride_q * UNIT
        step_number = indices_stride_q * UNIT
        step_w = dx_stride_w * UNIT
    else:
        i_n, i_c, i_d, tile_h, tile_w = items(c, d, tiles_h, tiles_w, INDEX64, BLOCK_M)
        inside = i_n < n
        w = lanes * UNIT
        q = lanes_out * UNIT
        c_unit = UNIT
        step_q = y_stride_q
        step_number = indices_stride_q
        step_w = dx_stride_w
    y_first = y_ptr + (i_n * (y_stride_n * UNIT) + i_c * (y_stride_c * c_unit))
    dx_first = dx_ptr + (i_n * (dx_stride_n * UNIT) + i_c * (dx_stride_c * c_unit) + i_d * (dx_stride_d * UNIT))
    first_h = tile_h * TILE_H
    first_w = tile_w * TILE_W
    first_q = tile_w * TILE_Q
    position = (tl.cast(i_d, NUMBER) * h + first_h) * w + first_w

    totals = ()
    for _ in tl.static_range(0, TILE_H * TILE_W):
        totals = totals + (tl.zeros(SHAPE, COMPUTE),)
    for j in tl.static_range(0, WINDOWS_D):
        i_o = first_window(i_d, PAD_D, T, STRIDE_D, DILATION_D) + j
        t, has_tap = tap_of(i_d, i_o, PAD_D, T, STRIDE_D, DILATION_D)
        inside_o = inside & has_tap & (i_o >= 0) & (i_o < o)
        for i in tl.static_range(0, ROWS):
            i_p = tile_h * TILE_P + (i - ABOVE)
            reads = inside_o & (i_p >= 0) & (i_p < p)
            row = y_first + (i_o * (y_stride_o * UNIT) + i_p * (y_stride_p * UNIT))
            if CHANNELS_INNERMOST:
                grads = columns_apart(row, reads, first_q - LEFT, q, step_q, 0.0, COMPUTE, COUNT)
            else:
                grads = columns_in_runs(row, reads, first_q, q, step_q, LEFT, 0.0, COMPUTE, COUNT, 1, TILE_Q, BLOCK_M)
            if OP == "max":
                row = indices_ptr + (i_n * (indices_stride_n * UNIT) + i_c * (indices_stride_c * c_unit))
                row += i_o * (indices_stride_o * UNIT) + i_p * (indices_stride_p * UNIT)
                if CHANNELS_INNERMOST:
                    numbers = columns_apart(row, reads, first_q - LEFT, q, step_number, -1, NUMBER, COUNT)
                else:
                    numbers = columns_in_runs(
                        row, reads, first_q, q, step_number, LEFT, -1, NUMBER, COUNT, 1, TILE_Q, BLOCK_M
                    )
                if POSITIONS:
                    relative = ()
                    for m in tl.static_range(0, COUNT):
                        relative = relative + (numbers[m] - position,)
                    numbers = relative
                totals = chosen(
                    totals, grads, numbers, t * (R * S), w, PAD_H - (i - ABOVE) * STRIDE_H, R, S, STRIDE_W, DILATION_H,
                    DILATION_W, PAD_W, LEFT, COUNT, POSITIONS, TILE_H, TILE_W,
                )  # fmt: skip
            else:
                grads = shares(
                    grads, i_o, i_p, first_q - LEFT, d, h, w, pad_high_d, pad_high_h, pad_high_w, T, R, S,
                    STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, PAD_D, PAD_H, PAD_W,
                    DIVISOR, INCLUDE_PAD, NARROW, COUNT,
                )  # fmt: skip
                totals = spread(
                    totals, grads, PAD_H - (i - ABOVE) * STRIDE_H, R, S, STRIDE_W, DILATION_H, DILATION_W, PAD_W, LEFT,
                    COUNT, TILE_H, TILE_W,
                )  # fmt: skip

    for k in tl.static_range(0, TILE_H):
        row = dx_first + (first_h + k) * (dx_stride_h * UNIT)
        row_inside = inside & (first_h + k < h)
        if CHANNELS_INNERMOST:
            for j in tl.static_range(0, TILE_W):
                total = totals[k * TILE_W + j].to(dx_ptr.dtype.element_ty)
                tl.store(row + (first_w + j) * step_w, total, mask=row_inside & (first_w + j < w))
        else:
            for g in tl.static_range(0, STRIDE_W):
                run = ()
                for j in tl.static_range(0, TILE_Q):
                    run = run + (totals[k * TILE_W + g * TILE_Q + j].to(dx_ptr.dtype.element_ty),)
                i_w = (first_w + g * TILE_Q)[:, None] + tl.arange(0, TILE_Q)[None, :]
                written = row_inside[:, None] & (i_w < w)
                tl.store(row[:, None] + i_w * step_w, zipped(run, BLOCK_M, TILE_Q), mask=written)
