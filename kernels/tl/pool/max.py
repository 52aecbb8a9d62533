"""Max pooling over windows: the general kernels, which also make the passes of the separable pool."""

import triton
import triton.language as tl

from .common import first_window, inside_plane, positions, tap_of, taps_before, window_start
from .names import general_metadata, general_name


def _fprop_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    return general_name("_pool_max_fprop_general_kernel", specialization.constants)


def _bwd_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    return general_name("_pool_max_bwd_general_kernel", specialization.constants)


@triton.jit
def magnitude(x, MAGNITUDE: tl.constexpr):
    """Return x, |x| where MAGNITUDE is 1, or -|x| where it is -1."""
    if MAGNITUDE != 0:
        x = tl.abs(x)
    if MAGNITUDE == -1:
        x = -x
    return x


@triton.jit(repr=_fprop_repr, launch_metadata=general_metadata)
def _pool_max_fprop_general_kernel(
    x_ptr,
    below_ptr,
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
    pad_d,
    pad_h,
    pad_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    AXIS: tl.constexpr,
    POSITIONS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    NEGATE: tl.constexpr,
    LOWEST: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the maximum of each window, and where it is: the first of equal maxima, or the last NaN.

    Tensors: x [N, C, D, H, W] and y [N, C, O, P, Q] by strides in elements (of a pass, with the sizes before and after
    it); `indices` has the strides of y, `below`, the numbers that an earlier pass stored, those of x. Each may be None.
    Dtypes: any; values are compared in COMPUTE, whose smallest number is LOWEST. Stored numbers are the tap
    ``(t R + r) S + s`` or, with POSITIONS, the position ``(d H + h) W + w``, of the axes pooled so far.
    MAGNITUDE compares |x| (1) or -|x| (-1); NEGATE negates the result.
    Grid: (cdiv(rows, BLOCK_M) * cdiv(lanes, BLOCK_L),), see `positions`. INDEX64 computes offsets in 64 bits.
    """
    POOLED_D: tl.constexpr = AXIS == 0 or AXIS == 3
    POOLED_H: tl.constexpr = AXIS == 1 or AXIS == 3
    POOLED_W: tl.constexpr = AXIS == 2 or AXIS == 3
    size_o = o if POOLED_D else d
    size_p = h if AXIS == 2 else p
    i_n, i_c, i_o, i_p, i_q, inside = positions(n, c, size_o, size_p, q, INDEX64, CHANNELS_INNERMOST, BLOCK_M, BLOCK_L)
    size_h = p if AXIS == 0 else h
    size_w = w if POOLED_W else q
    start_d = window_start(i_o, pad_d, STRIDE_D, POOLED_D)
    start_h = window_start(i_p, pad_h, STRIDE_H, POOLED_H)
    start_w = window_start(i_q, pad_w, STRIDE_W, POOLED_W)

    NUMBER: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    # What a tap adds to the number of its window, by axis.
    step_t = R * S
    step_r = S
    step_s = 1
    if POSITIONS:
        step_t = tl.cast(h, NUMBER) * w * DILATION_D
        step_r = tl.cast(w, NUMBER) * DILATION_H
        step_s = DILATION_W

    x_first = x_ptr + (i_n * x_stride_n + i_c * x_stride_c)
    best = tl.full([BLOCK_M, BLOCK_L], LOWEST, COMPUTE)
    number = tl.zeros([BLOCK_M, BLOCK_L], NUMBER)
    if indices_ptr is not None:
        # A window whose elements are all LOWEST has the number of its first element inside the input.
        if POOLED_D:
            number += taps_before(start_d, DILATION_D) * step_t
        if POOLED_H:
            number += taps_before(start_h, DILATION_H) * step_r
        if POOLED_W:
            number += taps_before(start_w, DILATION_W) * step_s
        if below_ptr is not None:
            d_0 = start_d + (taps_before(start_d, DILATION_D) * DILATION_D if POOLED_D else 0)
            h_0 = start_h + (taps_before(start_h, DILATION_H) * DILATION_H if POOLED_H else 0)
            first = i_n * x_stride_n + i_c * x_stride_c
            first += d_0 * x_stride_d + h_0 * x_stride_h + start_w * x_stride_w
            exists = inside & (d_0 < d) & (h_0 < size_h)
            number += tl.load(below_ptr + first, mask=exists, other=0).to(NUMBER)

    for t in range(0, T if POOLED_D else 1):
        d_t = start_d + t * DILATION_D
        inside_t = inside & (d_t >= 0) & (d_t < d)
        for r in range(0, R if POOLED_H else 1):
            h_r = start_h + r * DILATION_H
            inside_r = inside_t & (h_r >= 0) & (h_r < size_h)
            for s in range(0, S if POOLED_W else 1):
                w_s = start_w + s * DILATION_W
                reads = inside_r & (w_s >= 0) & (w_s < size_w)
                offset = d_t * x_stride_d + h_r * x_stride_h + w_s * x_stride_w
                value = tl.load(x_first + offset, mask=reads, other=LOWEST).to(COMPUTE)
                value = magnitude(value, MAGNITUDE)
                if MAGNITUDE == 1:
                    value = tl.where(reads, value, LOWEST)
                if indices_ptr is not None:
                    tap = t * step_t + r * step_r + s * step_s
                    if below_ptr is not None:
                        below_tile = below_ptr + (i_n * x_stride_n + i_c * x_stride_c + offset)
                        tap += tl.load(below_tile, mask=reads, other=0).to(NUMBER)
                    better = (value > best) | (value != value)
                    best = tl.where(better, value, best)
                    number = tl.where(better, tap, number)
                elif COMPUTE.is_floating():
                    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                else:
                    best = tl.maximum(best, value)

    if NEGATE:
        best = -best
    y_offset = i_n * y_stride_n + i_c * y_stride_c + (i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q)
    if y_ptr is not None:
        tl.store(y_ptr + y_offset, best.to(y_ptr.dtype.element_ty), mask=inside)
    if indices_ptr is not None:
        if POSITIONS:
            if POOLED_D:
                number += start_d * (tl.cast(h, NUMBER) * w)
            if POOLED_H:
                number += start_h * tl.cast(w, NUMBER)
            if POOLED_W:
                number += start_w
            number = inside_plane(number, d, h, w, DILATION_D, DILATION_H, DILATION_W)
        tl.store(indices_ptr + y_offset, number.to(indices_ptr.dtype.element_ty), mask=inside)


@triton.jit(repr=_bwd_repr, launch_metadata=general_metadata)
def _pool_max_bwd_general_kernel(
    y_ptr,
    indices_ptr,
    x_ptr,
    dx_ptr,
    below_ptr,
    conflict_ptr,
    n,
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
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    dx_stride_n,
    dx_stride_c,
    dx_stride_d,
    dx_stride_h,
    dx_stride_w,
    pad_d,
    pad_h,
    pad_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    AXIS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the gradient of x: each element adds up y of the windows whose number in `indices` is its own.

    Tensors: y and indices [N, C, O, P, Q], dx [N, C, D, H, W] by strides in elements (of a pass, with the sizes before
    and after it). With x, by strides of its own, sums are multiplied by the sign of x where a window chose the element.
    `below`, with the strides of dx, takes for the next pass what a tap that matched leaves of its number, -1 where none
    did: of one line, all windows that choose it choose the same element of it. That is so of what a max pool chose; of
    numbers from elsewhere, `conflict` (one int32) gets 1 from a pass in which two windows chose two elements of a line,
    and a launch over all axes does nothing where it is still 0. Each of x, below and conflict may be None.
    Dtypes: sums are formed in COMPUTE. Numbers are taps or, with POSITIONS, positions in the plane of x.
    Grid: (cdiv(rows, BLOCK_M) * cdiv(lanes, BLOCK_L),) over dx, see `positions`. INDEX64 computes offsets in 64 bits.
    """
    if AXIS == 3:
        if conflict_ptr is not None:
            if tl.load(conflict_ptr) == 0:
                return
    POOLED_D: tl.constexpr = AXIS == 0 or AXIS == 3
    POOLED_H: tl.constexpr = AXIS == 1 or AXIS == 3
    POOLED_W: tl.constexpr = AXIS == 2 or AXIS == 3
    size_h = p if AXIS == 0 else h
    size_w = w if POOLED_W else q
    i_n, i_c, i_d, i_h, i_w, inside = positions(n, c, d, size_h, size_w, INDEX64, CHANNELS_INNERMOST, BLOCK_M, BLOCK_L)
    size_o = o if POOLED_D else d
    size_p = h if AXIS == 2 else p
    BELOW: tl.constexpr = R * S if AXIS == 0 else (S if AXIS == 1 else 1)
    WINDOWS_D: tl.constexpr = (T - 1) * DILATION_D // STRIDE_D + 1 if POOLED_D else 1
    WINDOWS_H: tl.constexpr = (R - 1) * DILATION_H // STRIDE_H + 1 if POOLED_H else 1
    WINDOWS_W: tl.constexpr = (S - 1) * DILATION_W // STRIDE_W + 1 if POOLED_W else 1
    o_0 = first_window(i_d, pad_d, T, STRIDE_D, DILATION_D) if POOLED_D else i_d
    p_0 = first_window(i_h, pad_h, R, STRIDE_H, DILATION_H) if POOLED_H else i_h
    q_0 = first_window(i_w, pad_w, S, STRIDE_W, DILATION_W) if POOLED_W else i_w

    NUMBER: tl.constexpr = tl.int64 if INDEX64 else tl.int32
    position = (tl.cast(i_d, NUMBER) * h + i_h) * w + i_w
    y_first = y_ptr + (i_n * y_stride_n + i_c * y_stride_c)
    indices_first = indices_ptr + (i_n * indices_stride_n + i_c * indices_stride_c)
    total = tl.zeros([BLOCK_M, BLOCK_L], COMPUTE)
    left = tl.full([BLOCK_M, BLOCK_L], -1, tl.int32)
    crossed = tl.zeros([BLOCK_M, BLOCK_L], tl.int32)
    for j in range(0, WINDOWS_D):
        i_o = o_0 + j
        t = 0
        inside_t = inside & (i_o >= 0) & (i_o < size_o)
        if POOLED_D:
            t, reads_t = tap_of(i_d, i_o, pad_d, T, STRIDE_D, DILATION_D)
            inside_t = inside_t & reads_t
        for k in range(0, WINDOWS_H):
            i_p = p_0 + k
            r = 0
            inside_r = inside_t & (i_p >= 0) & (i_p < size_p)
            if POOLED_H:
                r, reads_r = tap_of(i_h, i_p, pad_h, R, STRIDE_H, DILATION_H)
                inside_r = inside_r & reads_r
            for m in range(0, WINDOWS_W):
                i_q = q_0 + m
                s = 0
                reads = inside_r & (i_q >= 0) & (i_q < q)
                if POOLED_W:
                    s, reads_s = tap_of(i_w, i_q, pad_w, S, STRIDE_W, DILATION_W)
                    reads = reads & reads_s
                offset = i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
                number = tl.load(indices_first + offset, mask=reads, other=-1)
                offset = i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
                grad = tl.load(y_first + offset, mask=reads, other=0.0).to(COMPUTE)
                if POSITIONS:
                    hit = reads & (number == position)
                elif AXIS == 3:
                    hit = reads & (number.to(tl.int32) == (t * R + r) * S + s)
                else:
                    number = number.to(tl.int32)
                    hit = reads & (number >= 0) & (number // BELOW == t + r + s)
                    if below_ptr is not None:
                        if conflict_ptr is not None:
                            crossed = tl.where(hit & (left >= 0) & (left != number % BELOW), 1, crossed)
                        left = tl.where(hit, number % BELOW, left)
                total += tl.where(hit, grad, 0.0)
                if x_ptr is not None:
                    left = tl.where(hit, 0, left)

    if x_ptr is not None:
        x_offset = i_n * x_stride_n + i_c * x_stride_c + (i_d * x_stride_d + i_h * x_stride_h + i_w * x_stride_w)
        x = tl.load(x_ptr + x_offset, mask=inside, other=0.0).to(COMPUTE)
        sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))  # NaN stays
        total = tl.where(left == 0, total * sign, 0.0)
    dx_offset = i_n * dx_stride_n + i_c * dx_stride_c + (i_d * dx_stride_d + i_h * dx_stride_h + i_w * dx_stride_w)
    tl.store(dx_ptr + dx_offset, total.to(dx_ptr.dtype.element_ty), mask=inside)
    if below_ptr is not None:
        tl.store(below_ptr + dx_offset, left.to(below_ptr.dtype.element_ty), mask=inside)
        if conflict_ptr is not None:
            # Whoever writes, writes the same.
            tl.store(conflict_ptr + tl.zeros([BLOCK_M, BLOCK_L], tl.int32), crossed, mask=crossed != 0)
