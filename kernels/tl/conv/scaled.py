"""Forward convolution of 8-bit numbers with scales, as an implicit GEMM over pointers."""

import triton
import triton.language as tl

from ..common import activate, four_axes, grouped_tile


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_scaled_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs to a profiler (Triton's proton)."""
    pixels = args["n"] * args["o"] * args["p"] * args["q"]
    reduction = args["c_per_group"] * args["T"] * args["R"] * args["S"]
    return {"name": kernel.name, "flops8": 2 * pixels * args["k_per_group"] * args["groups"] * reduction}


@triton.jit
def _scale(ptr, number):
    """Return a scale: what a pointer points to, or a number where there is none."""
    found = number
    if ptr is not None:
        found = tl.load(ptr)
    return found


@triton.jit
def _to_int8(y):
    """Round to the nearest of -128 to 127, ties to even; NaN becomes 0."""
    y = tl.where(y == y, y, 0.0)
    y = tl.minimum(tl.maximum(y, -128.0), 127.0)
    # 1.5 * 2**23: a float32 of this size has no fraction, so the sum is rounded to an integer.
    whole = (y + 12582912.0) - 12582912.0
    return whole.to(tl.int32).to(tl.int8)


@triton.jit
def _to_float8(y):
    """Round to the nearest of -448 to 448, ties to even; NaN stays NaN."""
    y = tl.maximum(y, -448.0, propagate_nan=tl.PropagateNan.ALL)
    y = tl.minimum(y, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return y.to(tl.float8e4nv)


@triton.jit(repr=_repr, launch_metadata=_launch_metadata)
def _conv_scaled_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    input_scale_ptr,
    weight_scale_ptr,
    output_scale_ptr,
    n,
    tiles_m,
    tiles_n,
    groups,
    c_per_group,
    k_per_group,
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
    bias_stride,
    weight_scale_stride,
    pad_d,
    pad_h,
    pad_w,
    input_scale,
    weight_scale,
    output_scale,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    IMPRECISE: tl.constexpr,
    INDEX64: tl.constexpr,
    TAP_BITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute y = activation(conv(x, w) * (input_scale * weight_scale) + bias), over output_scale where y has 8 bits.

    GEMM view, for each group: rows M = N O P Q, columns N = K/G, reduction C/G T R S in steps of BLOCK_K channels of
    one tap. All taps of a chunk of channels come before the next chunk: they read much the same of x.
    Tensors: x [N, C, D, H, W], w [K, C/G, T, R, S], y [N, K, O, P, Q], each by strides in elements (1-D and 2-D have
    leading axes of size 1); bias [K] by a stride, or None.
    Scales: what a pointer points to, or the number of that name where the pointer is None; `weight_scale_ptr` has one
    for each filter, by a stride, which is 0 where there is one for all.
    Dtypes: x and w both int8 or both float8_e4m3fn; products are summed in ACC_DTYPE, int32 or float32. Where tensor
    cores keep fewer bits than float32 does (float8 on Hopper), at most IMPRECISE products are summed like that. The
    sum becomes float32, and is rounded once more, at the store, to the type of y: a float, or that of x.
    Grid: (groups * tiles_m * tiles_n,) with tiles_m = cdiv(M, BLOCK_M) and tiles_n = cdiv(K/G, BLOCK_N).
    INDEX64 computes rows and offsets in 64 bits, for tensors that 32-bit offsets do not reach. `pad_d`, `pad_h`,
    `pad_w` are the low pads; the high ones follow from the sizes. TAP_BITS keeps, for each row, one bit per tap that
    tells whether it reads inside x: it needs at most 32 taps.
    """
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    group = pid // tiles
    tile_m, tile_n = grouped_tile(pid % tiles, tiles_m, tiles_n, GROUP_M)
    chunks = tl.cdiv(c_per_group, BLOCK_K)
    rows = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    if INDEX64:
        group = group.to(tl.int64)
        tile_m = tile_m.to(tl.int64)
        columns = columns.to(tl.int64)
        depth = depth.to(tl.int64)
    rows = tile_m * BLOCK_M + rows
    columns = tile_n * BLOCK_N + columns
    row_n, row_o, row_p, row_q = four_axes(rows, o, p, q)
    row_inside = row_n < n
    column_inside = columns < k_per_group
    d0 = row_o * STRIDE_D - pad_d
    h0 = row_p * STRIDE_H - pad_h
    w0 = row_q * STRIDE_W - pad_w

    x_corner = x_ptr + group * c_per_group * x_stride_c + row_n * x_stride_n  # [BLOCK_M]
    x_corner += d0 * x_stride_d + h0 * x_stride_h + w0 * x_stride_w
    w_base = w_ptr + (group * k_per_group + columns) * w_stride_k  # [BLOCK_N]

    if TAP_BITS:
        bits = tl.zeros([BLOCK_M], tl.int32)
        for tap_t in tl.static_range(T):
            for tap_r in tl.static_range(R):
                for tap_s in tl.static_range(S):
                    in_d = (d0 + tap_t * DILATION_D >= 0) & (d0 + tap_t * DILATION_D < d)
                    in_h = (h0 + tap_r * DILATION_H >= 0) & (h0 + tap_r * DILATION_H < h)
                    in_w = (w0 + tap_s * DILATION_W >= 0) & (w0 + tap_s * DILATION_W < w)
                    inside = in_d & in_h & in_w & row_inside
                    bits |= inside.to(tl.int32) << ((tap_t * R + tap_r) * S + tap_s)

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    for step in range(0, T * R * S * chunks):
        chunk = step // (T * R * S)
        tap = step - chunk * (T * R * S)
        channels = chunk * BLOCK_K + depth  # [BLOCK_K]
        t = tap // (R * S)
        r = tap // S % R
        s = tap % S
        if INDEX64:
            t = t.to(tl.int64)
            r = r.to(tl.int64)
            s = s.to(tl.int64)
        if TAP_BITS:
            reads = ((bits >> tap) & 1) != 0
        else:
            di = d0 + t * DILATION_D
            hi = h0 + r * DILATION_H
            wi = w0 + s * DILATION_W
            reads = row_inside & (di >= 0) & (di < d) & (hi >= 0) & (hi < h) & (wi >= 0) & (wi < w)
        x_row = x_corner + (t * DILATION_D * x_stride_d + r * DILATION_H * x_stride_h + s * DILATION_W * x_stride_w)
        channel_inside = channels < c_per_group
        a = tl.load(
            x_row[:, None] + (channels * x_stride_c)[None, :],
            mask=reads[:, None] & channel_inside[None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        w_tap = w_base + (t * w_stride_t + r * w_stride_r + s * w_stride_s)
        b = tl.load(
            w_tap[None, :] + (channels * w_stride_c)[:, None],
            mask=channel_inside[:, None] & column_inside[None, :],
            other=0.0,
        )  # [BLOCK_K, BLOCK_N]
        accumulator = tl.dot(a, b, accumulator, max_num_imprecise_acc=IMPRECISE, out_dtype=ACC_DTYPE)

    filters = group * k_per_group + columns  # [BLOCK_N]
    factor = _scale(input_scale_ptr, input_scale)
    if weight_scale_ptr is None:
        factor = factor * weight_scale
        total = accumulator.to(tl.float32) * factor
    else:
        of_filters = tl.load(weight_scale_ptr + filters * weight_scale_stride, mask=column_inside, other=0.0)
        total = accumulator.to(tl.float32) * (factor * of_filters)[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + filters * bias_stride, mask=column_inside, other=0.0)
        total += bias.to(tl.float32)[None, :]
    total = activate(total, ACTIVATION)
    y_row = row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q
    y_tile = y_ptr + (y_row[:, None] + (filters * y_stride_k)[None, :])
    written = row_inside[:, None] & column_inside[None, :]
    if y_ptr.dtype.element_ty == tl.int8:
        tl.store(y_tile, _to_int8(tl.div_rn(total, _scale(output_scale_ptr, output_scale))), mask=written)
    elif y_ptr.dtype.element_ty == tl.float8e4nv:
        tl.store(y_tile, _to_float8(tl.div_rn(total, _scale(output_scale_ptr, output_scale))), mask=written)
    else:
        tl.store(y_tile, total.to(y_ptr.dtype.element_ty), mask=written)
