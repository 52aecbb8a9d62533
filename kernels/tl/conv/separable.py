"""Depthwise, then pointwise convolution in one kernel: what is between them is never written to memory.

A tile of the intermediate image, some positions by some channels, is computed in registers as a sum over taps, gets its
bias and its activation, is rounded to the type that the image would have, and goes to the tensor cores as the operand
of the pointwise product, which adds up over the channels.
"""

import triton
import triton.language as tl

from ..common import activate
from .lanes import widened, within


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_C']}"
    return f"_conv_separable_kernel_{c['R']}x{c['S']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _vector(ptr, at, stride, there, DTYPE: tl.constexpr):
    """Load one number per channel, or None without a pointer."""
    values = ptr
    if ptr is not None:
        values = tl.load(ptr + at * stride, mask=there, other=0.0).to(DTYPE)
    return values


@triton.jit
def _plus_tap(total, taps, value, distance: tl.constexpr, S: tl.constexpr, DILATION_W: tl.constexpr):
    """Add the product of an input column, `distance` columns behind the first of a window, with its tap, if any."""
    if distance >= 0 and distance % DILATION_W == 0 and distance // DILATION_W < S:
        return total + value * taps[distance // DILATION_W]
    else:
        return total


@triton.jit
def _joined(parts, COLS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Put COLS tiles [GROUPS, BLOCK_C], one per column, together as [(group, column), BLOCK_C]: no thread's moves."""
    if COLS == 1:
        return parts[0]
    elif COLS == 2:
        both = tl.join(parts[0], parts[1])  # [GROUPS, BLOCK_C, 2]
        return both.permute(0, 2, 1).reshape(GROUPS * 2, BLOCK_C)
    else:
        all_ = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))  # [.., .., 2, 2]: column 2 a + b
        return all_.permute(0, 2, 3, 1).reshape(GROUPS * 4, BLOCK_C)


@triton.jit
def _between(
    none, x, w, bias_ptr, bias_stride, h0, w0, rows, channel, there, h, w_size, x_stride_c, x_stride_h, x_stride_w,
    w_stride_k, w_stride_r, w_stride_s, dilation_h, R: tl.constexpr, S: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLIER: tl.constexpr, EVEN_C: tl.constexpr, ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr, COLS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute [GROUPS * COLS, BLOCK_C] of the intermediate image, rounded as it would be in memory.

    Columns of a group share what they read of x: each input column is loaded and converted once for all of them.
    """
    sums = ()
    for _ in tl.static_range(COLS):
        sums = sums + (tl.zeros([GROUPS, BLOCK_C], tl.float32),)
    read = x + channel // MULTIPLIER * x_stride_c
    weights = w + channel * w_stride_k
    # A loop for the compiler, which would otherwise bring every tap to the layout of the product, one by one.
    for r in range(none, R):
        at_h = h0 + r * dilation_h
        in_row = rows & within(at_h, h)  # [GROUPS, 1]
        taps = ()
        for s in tl.static_range(S):
            tap = tl.load(weights + (r * w_stride_r + s * w_stride_s), mask=there, other=0.0)  # [1, BLOCK_C]
            taps = taps + (tap.to(tl.float32),)
        for u in tl.static_range((COLS - 1) * STRIDE_W + (S - 1) * DILATION_W + 1):
            inside = in_row & within(w0 + u, w_size)
            if not EVEN_C:
                inside = inside & there
            value = tl.load(read + (r * dilation_h * x_stride_h + u * x_stride_w), mask=inside, other=0.0)
            value = value.to(tl.float32)  # [GROUPS, BLOCK_C]; dropped where no window has this column
            added = ()
            for j in tl.static_range(COLS):
                added = added + (_plus_tap(sums[j], taps, value, u - j * STRIDE_W, S, DILATION_W),)
            sums = added
    bias = _vector(bias_ptr, channel, bias_stride, there, tl.float32)
    rounded = ()
    for j in tl.static_range(COLS):
        total = sums[j]
        if bias_ptr is not None:
            total = total + bias
        rounded = rounded + (activate(total, ACTIVATION).to(DTYPE),)
    return _joined(rounded, COLS, GROUPS, BLOCK_C)


@triton.jit(repr=_repr)
def _conv_separable_kernel(
    x_ptr,
    w_ptr,
    pointwise_ptr,
    y_ptr,
    bias_ptr,
    pointwise_bias_ptr,
    residual_ptr,
    channels,
    k,
    h,
    w,
    p,
    q,
    lines,
    columns,
    tiles_n,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    w_stride_k,
    w_stride_r,
    w_stride_s,
    pointwise_stride_k,
    pointwise_stride_c,
    y_stride_n,
    y_stride_k,
    y_stride_p,
    y_stride_q,
    residual_stride_n,
    residual_stride_k,
    residual_stride_p,
    residual_stride_q,
    bias_stride,
    pointwise_bias_stride,
    stride_h,
    pad_h,
    pad_w,
    dilation_h,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    EVEN_C: tl.constexpr,
    UNIT_X: tl.constexpr,
    UNIT_P: tl.constexpr,
    UNIT_Y: tl.constexpr,
    BETWEEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX64: tl.constexpr,
    TILE_Q: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute y = activation(pointwise(between(depthwise(x) + bias)) + pointwise_bias + residual).

    GEMM view: rows M = N P Q in boxes of BLOCK_M / TILE_Q lines (of all images, one after the other) by TILE_Q columns,
    columns N = K, reduction over the `channels` of the intermediate image, BLOCK_C at a time. Programs of other columns
    compute the same part of that image again. A thread computes COLS (1, 2 or 4) neighbouring columns of it.
    Tensors: x [N, channels / MULTIPLIER, H, W], w [channels, 1, R, S], pointwise [K, channels], y and residual [N, K,
    P, Q] by strides in elements, bias [channels], pointwise_bias [K] by a stride; one floating type, bias and residual
    may be None. `lines` is N P, `columns` the tiles along Q. EVEN_C: BLOCK_C divides `channels`.
    Units: strides of x but for that of C, those of pointwise along K, of y and residual but for that of K are given
    divided by UNIT_X, UNIT_P and UNIT_Y, which tells the compiler more.
    Grid: (cdiv(lines, BLOCK_M / TILE_Q) * columns * tiles_n,).
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    GROUPS: tl.constexpr = BLOCK_M // COLS
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    pid = pid // tiles_n
    if INDEX64:
        pid = pid.to(tl.int64)
        # Multiplied below by rows and columns of a window, which have 32 bits.
        x_stride_h = widened(x_stride_h, INDEX64)
        x_stride_w = widened(x_stride_w, INDEX64)
        w_stride_r = widened(w_stride_r, INDEX64)
        w_stride_s = widened(w_stride_s, INDEX64)
    box = tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    line = pid // columns * (BLOCK_M // TILE_Q) + box // TILE_Q
    at_q = pid % columns * TILE_Q + box % TILE_Q
    filter_ = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
    rows = (line < lines) & (at_q < q)
    if INDEX64:
        filter_ = filter_.to(tl.int64)
    image = line // p
    at_p = line % p
    group = tl.arange(0, GROUPS)[:, None] * COLS  # [GROUPS, 1]: the first column of each
    first_line = pid // columns * (BLOCK_M // TILE_Q) + group // TILE_Q
    first_q = pid % columns * TILE_Q + group % TILE_Q
    reads = (first_line < lines) & (first_q < q)
    h0 = first_line % p * stride_h - pad_h
    w0 = first_q * STRIDE_W - pad_w
    x = x_ptr + (first_line // p * x_stride_n + h0 * x_stride_h + w0 * x_stride_w) * UNIT_X
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    none = tile_n >> 30 >> 1  # 0, which the compiler does not know
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)[None, :]  # [1, BLOCK_C]
        reduced = start + tl.arange(0, BLOCK_C)[:, None]  # [BLOCK_C, 1]
        if INDEX64:
            channel = channel.to(tl.int64)
            reduced = reduced.to(tl.int64)
        there = channel < channels
        weights = tl.load(
            pointwise_ptr + (reduced * pointwise_stride_c + filter_ * (pointwise_stride_k * UNIT_P)),
            mask=(reduced < channels) & (filter_ < k), other=0.0,
        )  # fmt: skip
        tile = _between(
            none, x, w_ptr, bias_ptr, bias_stride, h0, w0, reads, channel, there, h, w, x_stride_c,
            x_stride_h * UNIT_X, x_stride_w * UNIT_X, w_stride_k, w_stride_r, w_stride_s, dilation_h,
            R, S, STRIDE_W, DILATION_W, MULTIPLIER, EVEN_C, BETWEEN, DTYPE, COLS, GROUPS, BLOCK_C,
        )  # fmt: skip
        total = tl.dot(tile, weights, total, input_precision=PRECISION)
    bias = _vector(pointwise_bias_ptr, filter_, pointwise_bias_stride, filter_ < k, tl.float32)
    if pointwise_bias_ptr is not None:
        total = total + bias
    written = rows & (filter_ < k)
    if residual_ptr is not None:
        offset = (image * residual_stride_n + at_p * residual_stride_p + at_q * residual_stride_q) * UNIT_Y
        residual = residual_ptr + (offset + filter_ * residual_stride_k)
        total = total + tl.load(residual, mask=written, other=0.0).to(tl.float32)
    offset = (image * y_stride_n + at_p * y_stride_p + at_q * y_stride_q) * UNIT_Y
    result = activate(total, ACTIVATION).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + (offset + filter_ * y_stride_k), result, mask=written)
