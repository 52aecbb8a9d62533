"""Weight gradient of a deformable convolution: an implicit GEMM over positions that samples the input as it loads."""

import triton
import triton.language as tl

from ..common import four_axes
from .deform import load_samples
from .sampling import sample_axes


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_deform_wgrad_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_deform_wgrad_kernel(
    y_ptr,
    x_ptr,
    offset_ptr,
    mask_ptr,
    w_ptr,
    bias_ptr,
    pixels,
    steps_per_split,
    splits,
    tiles_m,
    tiles_n,
    groups,
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
    w_stride_split,
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
):
    """Compute w = sum over positions of y * mask * x(position), or one partial sum of it per split.

    GEMM view, for each group and tap: rows M = K/G, columns N = channels of a segment, which share a group and an
    offset group, reduction N O P Q = `pixels` in steps of BLOCK_K; splits are runs of `steps_per_split` steps.
    Tensors: as in the forward pass, y the gradient of its result; w [splits, K, C/G, T, R, S] and bias [splits, K], the
    sums of y or None, both `w_stride_split` elements per split; of ACC_DTYPE where they are partial.
    Grid: (splits * groups * T * R * S * tiles_m * tiles_n,) with tiles_m = cdiv(K/G, BLOCK_M) and tiles_n = segments of
    a group times cdiv(c_per_segment, BLOCK_N).
    """
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    tap = pid // (tiles_n * tiles_m) % (T * R * S)
    group = pid // (tiles_n * tiles_m) // (T * R * S) % groups
    split = pid // (tiles_n * tiles_m) // (T * R * S) // groups
    per_segment = tl.cdiv(c_per_segment, BLOCK_N)
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    lines = tl.arange(0, BLOCK_M)  # [BLOCK_M]
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    if INDEX64:
        split = split.to(tl.int64)
        group = group.to(tl.int64)
        tile_n = tile_n.to(tl.int64)
        tap = tap.to(tl.int64)
        columns = columns.to(tl.int64)
        lines = lines.to(tl.int64)
        depth = depth.to(tl.int64)
    lines = tile_m * BLOCK_M + lines
    columns = tile_n % per_segment * BLOCK_N + columns
    column_inside = columns < c_per_segment
    columns += tile_n // per_segment * c_per_segment  # channel of the group
    channels = group * c_per_group + columns
    filters = group * k_per_group + lines
    line_inside = lines < k_per_group
    t = tap // (R * S)
    r = tap // S % R
    s = tap % S
    offset_group = (group * c_per_group + tile_n // per_segment * c_per_segment) // c_per_offset_group
    sample = offset_group * (T * R * S) + tap

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    sums = tl.zeros([BLOCK_M], ACC_DTYPE)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, tl.cdiv(pixels, BLOCK_K))
    for step in range(first, last):
        rows = step * BLOCK_K + depth  # [BLOCK_K]
        row_n, row_o, row_p, row_q = four_axes(rows, o, p, q)
        row_inside = rows < pixels
        y_row = row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q
        a = tl.load(
            y_ptr + ((filters * y_stride_k)[:, None] + y_row[None, :]),
            mask=line_inside[:, None] & row_inside[None, :],
            other=0.0,
        )  # [BLOCK_M, BLOCK_K]
        offset_row = row_n * offset_stride_n + row_o * offset_stride_o
        offset_row += row_p * offset_stride_p + row_q * offset_stride_q
        axis_d, axis_h, axis_w, factor = sample_axes(
            offset_ptr + offset_row + sample * NDIM * offset_stride_c, row_inside, offset_stride_c,
            row_o * STRIDE_D - pad_d + t * DILATION_D, row_p * STRIDE_H - pad_h + r * DILATION_H,
            row_q * STRIDE_W - pad_w + s * DILATION_W, d, h, w, NDIM, ACC_DTYPE,
        )  # fmt: skip
        axes = (axis_d, axis_h, axis_w)
        if mask_ptr is not None:
            mask_row = row_n * mask_stride_n + row_o * mask_stride_o + row_p * mask_stride_p + row_q * mask_stride_q
            factor *= tl.load(mask_ptr + mask_row + sample * mask_stride_c, mask=row_inside, other=0.0).to(ACC_DTYPE)
        b = load_samples(
            x_ptr + row_n * x_stride_n, axes, channels, row_inside[:, None] & column_inside[None, :],
            x_stride_c, x_stride_d, x_stride_h, x_stride_w, NDIM, INDEX64,
        )  # fmt: skip
        b = tl.where(row_inside[:, None], b * factor[:, None], 0.0).to(x_ptr.dtype.element_ty)  # [BLOCK_K, BLOCK_N]
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=ACC_DTYPE)
        if bias_ptr is not None:
            sums += tl.sum(a.to(ACC_DTYPE), 1)

    w_line = filters * w_stride_k + t * w_stride_t + r * w_stride_r + s * w_stride_s + split * w_stride_split
    w_tile = w_ptr + (w_line[:, None] + (columns * w_stride_c)[None, :])
    tl.store(w_tile, accumulator.to(w_ptr.dtype.element_ty), mask=line_inside[:, None] & column_inside[None, :])
    if bias_ptr is not None:
        if (tile_n == 0) & (tap == 0):
            bias = bias_ptr + split * w_stride_split + filters
            tl.store(bias, sums.to(bias_ptr.dtype.element_ty), mask=line_inside)
