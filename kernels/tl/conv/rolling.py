"""Dense convolution by rows of results that stay open: what is loaded of an input row serves every filter row at once.

An implicit GEMM loads each input once for every tap. Here a program goes down one axis with weights that it keeps in
shared memory: of an input row it loads one tile [BLOCK_M, C] for each tap along the other axes, multiplies it by the
weights of all R filter rows, and adds the products to the R rows of the result that the input row meets, in registers.
Each step closes one of them. Loads fall by R, and weights are loaded once.

A row of BLOCK_M is one position along the other axes and one line along the axis gone down: some neighbouring results
of one phase of the dilation. The data gradient of stride 1 is the same, of y with a window that is turned round.
"""

import triton
import triton.language as tl

from ..common import epilogue, four_axes, tile_pointers
from .lanes import widened
from .rows import pieces


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCKS'] * c['BLOCK_K']}"
    return f"_conv_rolling_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _weights(
    w, channel, k, w_stride_k, w_stride_c, w_stride_t, w_stride_r, w_stride_s,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Load weights [BLOCK_K, (r, filter)] of ROWS filter rows from FIRST on, for each tap (t, s) and block of channels.

    There are zeros where there is no row.
    """
    found = ()
    depth = tl.arange(0, BLOCK_K)[:, None]
    side = tl.arange(0, ROWS * BLOCK_N)[None, :]
    r = FIRST + side // BLOCK_N
    filters = channel + side % BLOCK_N
    for t in tl.static_range(T):
        for s in tl.static_range(S):
            for b in tl.static_range(BLOCKS):
                here = w + t * w_stride_t + s * w_stride_s + (b * BLOCK_K + depth) * w_stride_c
                here = here + (filters * w_stride_k + r * w_stride_r)
                found = found + (tl.load(here, mask=(r < R) & (filters < k), other=0.0),)
    return found


@triton.jit
def _rows_apart(d, BM: tl.constexpr, RP: tl.constexpr, BO: tl.constexpr):
    """Take [BM, RP * BO] apart as :func:`.pieces` does, into up to 16 tensors [BM, BO]."""
    if RP == 16:
        low, high = tl.split(d.reshape(BM, 2, 8 * BO).permute(0, 2, 1))
        return pieces(low, BM, 8, BO) + pieces(high, BM, 8, BO)
    else:
        return pieces(d, BM, RP, BO)


@triton.jit
def _products(
    x_row, in_h, bits, depth, x_stride_c, x_stride_d, x_stride_w, weights, more,
    T: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, MORE: tl.constexpr, DILATION_D: tl.constexpr,
    DILATION_W: tl.constexpr, PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the products [BLOCK_M, BLOCK_N] of one input row with the weights of each of ROWS + MORE filter rows."""
    products = tl.zeros([BLOCK_M, ROWS * BLOCK_N], ACC_DTYPE)
    rest = tl.zeros([BLOCK_M, MORE * BLOCK_N if MORE else BLOCK_N], ACC_DTYPE)
    for tap in tl.static_range(T * S):
        reads = in_h & (((bits >> tap) & 1) != 0)
        here = x_row + (tap // S * DILATION_D * x_stride_d + tap % S * DILATION_W * x_stride_w)
        for b in tl.static_range(BLOCKS):
            pointers = here[:, None] + ((b * BLOCK_K + depth) * x_stride_c)[None, :]
            tile = tl.load(pointers, mask=reads[:, None], other=0.0)  # [BLOCK_M, BLOCK_K]
            products = tl.dot(tile, weights[tap * BLOCKS + b], products, input_precision=PRECISION, out_dtype=ACC_DTYPE)
            if MORE:
                rest = tl.dot(tile, more[tap * BLOCKS + b], rest, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    found = _rows_apart(products, BLOCK_M, ROWS, BLOCK_N)
    if MORE:
        return found + pieces(rest, BLOCK_M, MORE, BLOCK_N)
    else:
        return found


@triton.jit(repr=_repr)
def _conv_rolling_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    n,
    k,
    d,
    h,
    w,
    o,
    p,
    q,
    lines,
    tiles_n,
    steps,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    w_offset,
    w_stride_k,
    w_stride_c,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    y_stride_n,
    y_stride_k,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    residual_stride_n,
    residual_stride_k,
    residual_stride_o,
    residual_stride_p,
    residual_stride_q,
    bias_stride,
    scale_stride,
    shift_stride,
    pad_d,
    pad_h,
    pad_w,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    ROWS: tl.constexpr,
    MORE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute y = activation((conv(x, w) + bias) * scale + shift + residual) of one group, with stride 1 along H.

    GEMM view: rows M = N O lines Q, columns N = K; C = BLOCKS BLOCK_K. A line is `steps` rows of the result or less,
    DILATION_H apart: line ``DILATION_H a + f`` begins at row ``DILATION_H steps a + f``.
    Tensors: x [N, C, D, H, W], w [K, C, T, R, S] from element `w_offset`, y and residual [N, K, O, P, Q], each by
    strides in elements, those of w may be negative; bias, scale, shift [K] or None. The axis that is gone down is
    passed as H, P, R, whichever it is; axes that are not there have size 1. T S is 31 at most. INDEX64 computes rows
    and offsets in 64 bits.
    Grid: (cdiv(M, BLOCK_M) * tiles_n,), the tiles of filters of one tile of rows are neighbours.
    """
    pid = tl.program_id(0)
    first_channel = pid % tiles_n * BLOCK_N
    tile_m = pid // tiles_n
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        first_channel = first_channel.to(tl.int64)
        x_stride_c = widened(x_stride_c, True)
        x_stride_d = widened(x_stride_d, True)
        x_stride_h = widened(x_stride_h, True)
        x_stride_w = widened(x_stride_w, True)
        w_stride_c = widened(w_stride_c, True)
        w_stride_t = widened(w_stride_t, True)
        w_stride_r = widened(w_stride_r, True)
        w_stride_s = widened(w_stride_s, True)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    channel = first_channel + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    channel_inside = channel < k
    row_n, row_o, line, row_q = four_axes(rows, o, lines, q)
    live = row_n < n
    first = line // DILATION_H * (steps * DILATION_H) + line % DILATION_H
    d0 = row_o * STRIDE_D - pad_d
    h0 = first - pad_h
    w0 = row_q * STRIDE_W - pad_w
    bits = tl.zeros([BLOCK_M], tl.int32)  # one per tap (t, s): whether it reads inside of x along D and W
    for t in tl.static_range(T):
        for s in tl.static_range(S):
            at_d = d0 + t * DILATION_D
            at_w = w0 + s * DILATION_W
            inside = live & (at_d >= 0) & (at_d < d) & (at_w >= 0) & (at_w < w)
            bits |= inside.to(tl.int32) << (t * S + s)
    x_row = x_ptr + (row_n * x_stride_n + d0 * x_stride_d + h0 * x_stride_h + w0 * x_stride_w)  # [BLOCK_M]
    filters = w_ptr + w_offset
    weights = _weights(
        filters, first_channel, k, w_stride_k, w_stride_c, w_stride_t, w_stride_r, w_stride_s,
        T, R, S, 0, ROWS, BLOCKS, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    more = ()
    if MORE:
        more = _weights(
            filters, first_channel, k, w_stride_k, w_stride_c, w_stride_t, w_stride_r, w_stride_s,
            T, R, S, ROWS, MORE, BLOCKS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    y_row = row_n * y_stride_n + row_o * y_stride_o + row_q * y_stride_q  # [BLOCK_M]
    residual_row = row_n * residual_stride_n + row_o * residual_stride_o + row_q * residual_stride_q

    still_open = ()
    for _ in tl.static_range(R - 1):
        still_open = still_open + (tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE),)
    for i in range(0, steps + R - 1):
        at_h = h0 + i * DILATION_H
        products = _products(
            x_row, (at_h >= 0) & (at_h < h), bits, depth, x_stride_c, x_stride_d, x_stride_w, weights, more,
            T, S, ROWS, MORE, DILATION_D, DILATION_W, PRECISION, ACC_DTYPE, BLOCKS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        x_row += DILATION_H * x_stride_h
        sums = ()
        for m in tl.static_range(R - 1):
            sums = sums + (still_open[m] + products[R - 1 - m],)
        sums = sums + (products[0],)
        at_p = first + (i - (R - 1)) * DILATION_H  # of the row that this step closes
        written = (live & (i >= R - 1) & (at_p < p))[:, None] & channel_inside[None, :]
        value = epilogue(
            sums[0], bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
            tile_pointers(residual_ptr, residual_row + at_p * residual_stride_p, channel * residual_stride_k),
            channel, channel_inside, written, ACTIVATION,
        )  # fmt: skip
        y_tile = y_ptr + ((y_row + at_p * y_stride_p)[:, None] + (channel * y_stride_k)[None, :])
        tl.store(y_tile, value.to(y_ptr.dtype.element_ty), mask=written)
        still_open = sums[1:]
