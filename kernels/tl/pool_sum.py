"""Average and power pooling over windows: the general kernels, which also make the passes of the separable pool."""

import triton
import triton.language as tl

from .pool import first_window, positions, tap_of, window_count, window_start
from .pool_names import general_metadata, general_name


def _fprop_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    return general_name("_pool_sum_fprop_general_kernel", specialization.constants)


def _bwd_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    return general_name("_pool_sum_bwd_general_kernel", specialization.constants)


@triton.jit
def _wide_power(x, P: tl.constexpr):
    """Return x ** P in float64, from logarithms, with the special values of C's pow."""
    x = x.to(tl.float64)
    if P == 0:
        return tl.where(x == x, 1.0, 1.0).to(tl.float64)  # of NaN as well
    result = tl.exp2(P * tl.log2(tl.abs(x)))
    if P % 1 != 0:
        result = tl.where((x < 0) & (x > float("-inf")), float("nan"), result)
    elif P % 2 == 1:
        result = tl.where(x < 0, -result, result)
    return result


@triton.jit
def power(x, P: tl.constexpr):
    """Return x ** P in the type of x. Whole powers up to 16 are products, those over 4 in float64."""
    if P == 1:
        return x
    elif P == 2:
        return x * x
    elif P == 3:
        return x * x * x
    elif P % 1 == 0 and P > 0 and P <= 16:
        wide = x.to(tl.float64)
        result = wide
        for _ in tl.static_range(1, int(P)):
            result = result * wide
        return result.to(x.dtype)
    elif P == -1:
        return 1.0 / x
    else:
        return _wide_power(x, P).to(x.dtype)


@triton.jit
def divide(x, divisor):
    """Return x / divisor, rounded to nearest; integers are cut off towards zero."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, divisor.to(tl.float32))
    elif x.dtype == tl.float64:
        return x / divisor.to(tl.float64)
    else:
        return x // divisor


@triton.jit
def root(x, P: tl.constexpr):
    """Return x ** (1 / P) in the type of x."""
    x = x + 0.0  # -0 becomes 0, so that it does not turn the sign of an infinite root
    if P == 1:
        return x
    elif P == 2:
        if x.dtype == tl.float32:
            return tl.sqrt_rn(x)
        else:
            return tl.sqrt(x)
    else:
        return _wide_power(x, 1.0 / P).to(x.dtype)


@triton.jit
def window_divisor(
    i_o,
    i_p,
    i_q,
    d,
    h,
    w,
    pad_d,
    pad_h,
    pad_w,
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
    INCLUDE_PAD: tl.constexpr,
):
    """Return what the sum of window (i_o, i_p, i_q) is divided by, as an integer."""
    count = window_count(i_q, w, pad_w, pad_high_w, S, STRIDE_W, DILATION_W, INCLUDE_PAD)
    count *= window_count(i_p, h, pad_h, pad_high_h, R, STRIDE_H, DILATION_H, INCLUDE_PAD)
    count *= window_count(i_o, d, pad_d, pad_high_d, T, STRIDE_D, DILATION_D, INCLUDE_PAD)
    return count


@triton.jit(repr=_fprop_repr, launch_metadata=general_metadata)
def _pool_sum_fprop_general_kernel(
    x_ptr,
    grad_ptr,
    y_ptr,
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
    grad_stride_n,
    grad_stride_c,
    grad_stride_o,
    grad_stride_p,
    grad_stride_q,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    pad_d,
    pad_h,
    pad_w,
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
    AXIS: tl.constexpr,
    POWER: tl.constexpr,
    FINISH: tl.constexpr,
    NORM: tl.constexpr,
    DIVISOR: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the sum of x ** POWER over each window, and what FINISH makes of it.

    FINISH "sum" leaves the sum (of a pass that is not the last), "avg" divides it by DIVISOR, or by the count of the
    window where that is 0. "lp" takes the root of the average times the taps, and "slope" multiplies the derivative of
    that root by `grad`, 0 where the sum is 0: what each element of the window adds to its gradient, times its own
    power. NORM is the exponent of the root.
    Tensors: x [N, C, D, H, W], y and grad [N, C, O, P, Q] by strides in elements (of a pass, x and y with the sizes
    before and after it). grad may be None. Dtypes: any; sums are formed in COMPUTE and rounded at the store.
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
    x_first = x_ptr + (i_n * x_stride_n + i_c * x_stride_c)
    total = tl.zeros([BLOCK_M, BLOCK_L], COMPUTE)
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
                value = tl.load(x_first + offset, mask=reads, other=0).to(COMPUTE)
                value = power(value, POWER)
                if POWER < 1:
                    value = tl.where(reads, value, 0.0)
                total += value

    if FINISH != "sum":
        divisor = tl.full([1, 1], DIVISOR, tl.int64)
        if DIVISOR == 0:
            divisor = window_divisor(
                i_o, i_p, i_q, d, h, w, pad_d, pad_h, pad_w, pad_high_d, pad_high_h, pad_high_w,
                T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, INCLUDE_PAD,
            )  # fmt: skip
        if FINISH == "avg":
            total = divide(total, divisor)
        else:
            scaled = total
            if DIVISOR != T * R * S:
                scaled = divide(total, divisor) * (T * R * S)
            if FINISH == "lp":
                total = root(scaled, NORM)
            else:
                grad_offset = i_n * grad_stride_n + i_c * grad_stride_c
                grad_offset += i_o * grad_stride_o + i_p * grad_stride_p + i_q * grad_stride_q
                grad = tl.load(grad_ptr + grad_offset, mask=inside, other=0.0).to(COMPUTE)
                slope = _wide_power(scaled + 0.0, 1.0 / NORM - 1.0)
                slope = slope * ((T * R * S) / NORM / divisor.to(tl.float64))
                total = tl.where(total == 0, 0.0, grad * slope.to(COMPUTE))
    y_offset = i_n * y_stride_n + i_c * y_stride_c + (i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q)
    tl.store(y_ptr + y_offset, total.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(repr=_bwd_repr, launch_metadata=general_metadata)
def _pool_sum_bwd_general_kernel(
    y_ptr,
    x_ptr,
    dx_ptr,
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
    AXIS: tl.constexpr,
    FINISH: tl.constexpr,
    NORM: tl.constexpr,
    DIVIDE: tl.constexpr,
    DIVISOR: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX64: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute the sum of y over the windows that read each element of x.

    DIVIDE first divides y by DIVISOR, or by the count of the window where that is 0 (in the first pass of an average).
    FINISH "lp" multiplies the sum by the derivative of ``x ** NORM``; x may be None else.
    Tensors: y [N, C, O, P, Q], x and dx [N, C, D, H, W] by strides in elements (of a pass, y and dx with the sizes
    before and after it). Dtypes: any floating; sums are formed in COMPUTE and rounded at the store.
    Grid: (cdiv(rows, BLOCK_M) * cdiv(lanes, BLOCK_L),) over dx, see `positions`. INDEX64 computes offsets in 64 bits.
    """
    POOLED_D: tl.constexpr = AXIS == 0 or AXIS == 3
    POOLED_H: tl.constexpr = AXIS == 1 or AXIS == 3
    POOLED_W: tl.constexpr = AXIS == 2 or AXIS == 3
    size_h = p if AXIS == 0 else h
    size_w = w if POOLED_W else q
    i_n, i_c, i_d, i_h, i_w, inside = positions(n, c, d, size_h, size_w, INDEX64, CHANNELS_INNERMOST, BLOCK_M, BLOCK_L)
    size_o = o if POOLED_D else d
    size_p = h if AXIS == 2 else p
    WINDOWS_D: tl.constexpr = (T - 1) * DILATION_D // STRIDE_D + 1 if POOLED_D else 1
    WINDOWS_H: tl.constexpr = (R - 1) * DILATION_H // STRIDE_H + 1 if POOLED_H else 1
    WINDOWS_W: tl.constexpr = (S - 1) * DILATION_W // STRIDE_W + 1 if POOLED_W else 1
    o_0 = first_window(i_d, pad_d, T, STRIDE_D, DILATION_D) if POOLED_D else i_d
    p_0 = first_window(i_h, pad_h, R, STRIDE_H, DILATION_H) if POOLED_H else i_h
    q_0 = first_window(i_w, pad_w, S, STRIDE_W, DILATION_W) if POOLED_W else i_w
    y_first = y_ptr + (i_n * y_stride_n + i_c * y_stride_c)
    total = tl.zeros([BLOCK_M, BLOCK_L], COMPUTE)
    for j in range(0, WINDOWS_D):
        i_o = o_0 + j
        inside_t = inside & (i_o >= 0) & (i_o < size_o)
        if POOLED_D:
            _t, reads_t = tap_of(i_d, i_o, pad_d, T, STRIDE_D, DILATION_D)
            inside_t = inside_t & reads_t
        for k in range(0, WINDOWS_H):
            i_p = p_0 + k
            inside_r = inside_t & (i_p >= 0) & (i_p < size_p)
            if POOLED_H:
                _r, reads_r = tap_of(i_h, i_p, pad_h, R, STRIDE_H, DILATION_H)
                inside_r = inside_r & reads_r
            for m in range(0, WINDOWS_W):
                i_q = q_0 + m
                reads = inside_r & (i_q >= 0) & (i_q < q)
                if POOLED_W:
                    _s, reads_s = tap_of(i_w, i_q, pad_w, S, STRIDE_W, DILATION_W)
                    reads = reads & reads_s
                offset = i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
                grad = tl.load(y_first + offset, mask=reads, other=0.0).to(COMPUTE)
                if DIVIDE:
                    divisor = tl.full([1, 1], DIVISOR, tl.int64)
                    if DIVISOR == 0:
                        divisor = window_divisor(
                            i_o, i_p, i_q, d, h, w, pad_d, pad_h, pad_w, pad_high_d, pad_high_h, pad_high_w,
                            T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, INCLUDE_PAD,
                        )  # fmt: skip
                        divisor = tl.where(reads, divisor, 1)
                    grad = divide(grad, divisor)
                total += grad

    if FINISH == "lp" and NORM != 1:
        x_offset = i_n * x_stride_n + i_c * x_stride_c + (i_d * x_stride_d + i_h * x_stride_h + i_w * x_stride_w)
        x = tl.load(x_ptr + x_offset, mask=inside, other=0.0).to(COMPUTE)
        total *= power(x, NORM - 1) * NORM
    dx_offset = i_n * dx_stride_n + i_c * dx_stride_c + (i_d * dx_stride_d + i_h * dx_stride_h + i_w * dx_stride_w)
    tl.store(dx_ptr + dx_offset, total.to(dx_ptr.dtype.element_ty), mask=inside)
