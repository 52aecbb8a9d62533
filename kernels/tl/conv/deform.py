"""Deformable convolution, forward: an implicit GEMM that samples the input between its elements while it loads."""

import triton
import triton.language as tl

from ..common import four_axes, grouped_tile
from .sampling import corner_inside, corner_offset, corner_weight, sample_axes, sampled


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_deform_fprop_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs of products to a profiler (Triton's proton)."""
    pixels = args["n"] * args["o"] * args["p"] * args["q"]
    reduction = args["c_per_group"] * args["T"] * args["R"] * args["S"]
    return {"name": kernel.name, "flops": 2 * pixels * args["k_per_group"] * args["groups"] * reduction}


@triton.jit
def load_samples(
    x_image, axes, channels, inside, x_stride_c, x_stride_d, x_stride_h, x_stride_w,
    NDIM: tl.constexpr, INDEX64: tl.constexpr,
):  # fmt: skip
    """Return samples [rows, channels], interpolated in the type of the weights; 0 where nothing is `inside`."""
    total = tl.zeros_like(axes[2][1])[:, None] * tl.zeros_like(channels).to(axes[2][1].dtype)[None, :]
    there = sampled(axes)
    for corner in tl.static_range(1 << NDIM):
        at = x_image + corner_offset(axes, x_stride_d, x_stride_h, x_stride_w, corner, INDEX64)
        reads = (there & corner_inside(axes, corner))[:, None] & inside
        value = tl.load(at[:, None] + (channels * x_stride_c)[None, :], mask=reads, other=0.0)
        total += corner_weight(axes, corner, NDIM, -1)[:, None] * value.to(total.dtype)
    return total


@triton.jit(repr=_repr, launch_metadata=_launch_metadata)
def _conv_deform_fprop_kernel(
    x_ptr,
    offset_ptr,
    mask_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    n,
    tiles_m,
    tiles_n,
    c_per_group,
    c_per_offset_group,
    c_per_segment,
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
    offset_stride_n,
    offset_stride_c,
    offset_stride_o,
    offset_stride_p,
    offset_stride_q,
    mask_stride_n,
    mask_stride_c,
    mask_stride_o,
    mask_stride_p,
    mask_stride_q,
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
    NDIM: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute y = sum over taps and channels of w * mask * x(position) + bias, where x is interpolated.

    The position of an output and a tap along an axis is ``output * stride - pad + tap * dilation + offset``.
    GEMM view, for each group: rows M = N O P Q, columns N = K/G, reduction C/G T R S. A segment is `c_per_segment`
    channels that share a group and an offset group. For each of its taps the corners and weights of BLOCK_M samples
    are computed once, and serve all its channels, BLOCK_K at a time.
    Tensors: x [N, C, D, H, W], offset [N, OG T R S NDIM, O, P, Q] (for each offset group and tap one number per axis,
    the outermost axis first), mask [N, OG T R S, O, P, Q] or None, w [K, C/G, T, R, S], y [N, K, O, P, Q], each by
    strides in elements (1-D and 2-D have leading axes of size 1); bias [K] by one stride, or None.
    Dtypes: one floating type; positions, weights and samples are computed in ACC_DTYPE, samples are rounded to the type
    of x for the product, which is summed in ACC_DTYPE and rounded once, at the store.
    Grid: (groups * tiles_m * tiles_n,) with tiles_m = cdiv(M, BLOCK_M) and tiles_n = cdiv(K/G, BLOCK_N).
    INDEX64 computes rows and offsets in 64 bits, for tensors that 32-bit offsets do not reach.
    """
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    group = pid // tiles
    tile_m, tile_n = grouped_tile(pid % tiles, tiles_m, tiles_n, GROUP_M)
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
    x_image = x_ptr + row_n * x_stride_n  # [BLOCK_M]
    offset_row = row_n * offset_stride_n + row_o * offset_stride_o + row_p * offset_stride_p + row_q * offset_stride_q
    mask_row = row_n * mask_stride_n + row_o * mask_stride_o + row_p * mask_stride_p + row_q * mask_stride_q
    w_base = w_ptr + (group * k_per_group + columns) * w_stride_k  # [BLOCK_N]

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    for step in range(0, c_per_group // c_per_segment * (T * R * S)):
        first = step // (T * R * S) * c_per_segment  # channel of the group
        tap = step % (T * R * S)
        t = tap // (R * S)
        r = tap // S % R
        s = tap % S
        sample = (group * c_per_group + first) // c_per_offset_group * (T * R * S) + tap
        if INDEX64:
            first = first.to(tl.int64)
            sample = sample.to(tl.int64)
            t = t.to(tl.int64)
            r = r.to(tl.int64)
            s = s.to(tl.int64)
        axis_d, axis_h, axis_w, factor = sample_axes(
            offset_ptr + offset_row + sample * NDIM * offset_stride_c, row_inside, offset_stride_c,
            d0 + t * DILATION_D, h0 + r * DILATION_H, w0 + s * DILATION_W, d, h, w, NDIM, ACC_DTYPE,
        )  # fmt: skip
        axes = (axis_d, axis_h, axis_w)
        if mask_ptr is not None:
            factor *= tl.load(mask_ptr + mask_row + sample * mask_stride_c, mask=row_inside, other=0.0).to(ACC_DTYPE)
        w_tap = w_base + (t * w_stride_t + r * w_stride_r + s * w_stride_s)
        for chunk in range(0, c_per_segment, BLOCK_K):
            channel_inside = chunk + depth < c_per_segment
            channels = first + chunk + depth  # [BLOCK_K] of the group
            a = load_samples(
                x_image, axes, group * c_per_group + channels, row_inside[:, None] & channel_inside[None, :],
                x_stride_c, x_stride_d, x_stride_h, x_stride_w, NDIM, INDEX64,
            )  # fmt: skip
            # Where there is no channel a factor of inf or NaN would make a NaN of 0.
            a = tl.where(channel_inside[None, :], a * factor[:, None], 0.0).to(x_ptr.dtype.element_ty)
            b = tl.load(
                w_tap[None, :] + (channels * w_stride_c)[:, None],
                mask=channel_inside[:, None] & column_inside[None, :],
                other=0.0,
            )  # [BLOCK_K, BLOCK_N]
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=ACC_DTYPE)

    filters = group * k_per_group + columns  # [BLOCK_N]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + filters * bias_stride, mask=column_inside, other=0.0)
        accumulator += bias.to(ACC_DTYPE)[None, :]
    y_row = row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q
    y_tile = y_ptr + (y_row[:, None] + (filters * y_stride_k)[None, :])
    tl.store(y_tile, accumulator.to(y_ptr.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])
