"""Gradients of a deformable convolution with respect to its offsets, mask and input.

What a sample gets back, its column gradient, is a product of y's gradient and weights. Offsets and mask take sums of
it over channels, in the program that formed it. The input takes it back where it was sampled: here column gradients
are stored, samples are sorted by the cell between elements that they lie in, and each element of the input adds up the
samples of the cells around it, in their order. So nothing is added by atomics, and sums do not depend on their timing.
"""

import triton
import triton.language as tl

from ..common import four_axes
from .lanes import widened
from .sampling import corner_inside, corner_offset, corner_weight, sample_axes, sampled


def _repr_offset(specialization):
    c = specialization.constants
    taps, tile = f"{c['T']}x{c['R']}x{c['S']}", f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_deform_offset_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _repr_columns(specialization):
    c = specialization.constants
    taps, tile = f"{c['T']}x{c['R']}x{c['S']}", f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_deform_columns_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _repr_gather(specialization):
    c = specialization.constants
    return f"_conv_deform_gather_kernel_{c['NDIM']}d_{c['BLOCK_M']}x{c['BLOCK_N']}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _columns_gradient(
    y_row, w_channel, row_inside, channel_inside, k_per_group, y_stride_k, w_stride_k,
    PRECISION: tl.constexpr, ACC_DTYPE: tl.constexpr, INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return sum_k y[row, k] w[k, channel] over the filters of a group, [BLOCK_M, BLOCK_N]."""
    depth = tl.arange(0, BLOCK_K)
    if INDEX64:
        depth = depth.to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    for first in range(0, k_per_group, BLOCK_K):
        filters = first + depth  # [BLOCK_K]
        there = filters < k_per_group
        a = tl.load(
            y_row[:, None] + (filters * y_stride_k)[None, :], mask=row_inside[:, None] & there[None, :], other=0.0
        )
        b = tl.load(
            w_channel[None, :] + (filters * w_stride_k)[:, None],
            mask=there[:, None] & channel_inside[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=ACC_DTYPE)
    return total


@triton.jit(repr=_repr_offset)
def _conv_deform_offset_kernel(
    y_ptr,
    x_ptr,
    offset_ptr,
    mask_ptr,
    w_ptr,
    offset_grad_ptr,
    mask_grad_ptr,
    n,
    offset_groups,
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
    """Compute the gradients of offset and mask: sums over the channels of an offset group, for a tap and BLOCK_M rows.

    Column gradient: ``sum_k y[row, k] w[k, channel, tap]``. The offset along an axis gets it times the mask times the
    slope of the sample along the axis, the mask gets it times the sample.
    Tensors: as in the forward pass, with y the gradient of its result; offset_grad [N, OG T R S NDIM, O, P, Q] and
    mask_grad [N, OG T R S, O, P, Q] contiguous, either may be None.
    Grid: (cdiv(N O P Q, BLOCK_M) * OG * T * R * S,): programs of the same rows are neighbours.
    """
    pid = tl.program_id(0)
    samples = offset_groups * (T * R * S)
    tile_m = pid // samples
    sample = pid % samples  # offset group and tap
    offset_group = sample // (T * R * S)
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        sample = sample.to(tl.int64)
        offset_group = offset_group.to(tl.int64)
        columns = columns.to(tl.int64)
    tap = sample % (T * R * S)
    t = tap // (R * S)
    r = tap // S % R
    s = tap % S
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_n, row_o, row_p, row_q = four_axes(rows, o, p, q)
    row_inside = row_n < n
    x_image = x_ptr + row_n * x_stride_n
    y_row = y_ptr + (row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q)
    w_tap = w_ptr + (t * w_stride_t + r * w_stride_r + s * w_stride_s)
    offset_row = row_n * offset_stride_n + row_o * offset_stride_o + row_p * offset_stride_p + row_q * offset_stride_q
    axis_d, axis_h, axis_w, whole = sample_axes(
        offset_ptr + offset_row + sample * NDIM * offset_stride_c, row_inside, offset_stride_c,
        row_o * STRIDE_D - pad_d + t * DILATION_D, row_p * STRIDE_H - pad_h + r * DILATION_H,
        row_q * STRIDE_W - pad_w + s * DILATION_W, d, h, w, NDIM, ACC_DTYPE,
    )  # fmt: skip
    axes = (axis_d, axis_h, axis_w)
    there = sampled(axes)

    of_mask = tl.zeros([BLOCK_M], ACC_DTYPE)
    of_last = tl.zeros([BLOCK_M], ACC_DTYPE)
    of_middle = tl.zeros([BLOCK_M], ACC_DTYPE)
    of_first = tl.zeros([BLOCK_M], ACC_DTYPE)
    for segment in range(0, c_per_offset_group // c_per_segment):
        first = offset_group * c_per_offset_group + segment * c_per_segment
        group = first // c_per_group
        for chunk in range(0, c_per_segment, BLOCK_N):
            channel_inside = chunk + columns < c_per_segment
            channels = first + chunk + columns  # [BLOCK_N]
            w_channel = w_tap + (group * k_per_group * w_stride_k + (channels - group * c_per_group) * w_stride_c)
            gradient = _columns_gradient(
                y_row + group * k_per_group * y_stride_k, w_channel, row_inside, channel_inside, k_per_group,
                y_stride_k, w_stride_k, PRECISION, ACC_DTYPE, INDEX64, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            for corner in tl.static_range(1 << NDIM):
                at = x_image + corner_offset(axes, x_stride_d, x_stride_h, x_stride_w, corner, INDEX64)
                inside = (corner_inside(axes, corner) & row_inside)[:, None] & channel_inside[None, :]
                value = tl.load(at[:, None] + (channels * x_stride_c)[None, :], mask=inside, other=0.0)
                met = tl.sum(tl.where(inside, gradient * value.to(ACC_DTYPE), 0.0), 1)  # [BLOCK_M]
                if mask_grad_ptr is not None:
                    of_mask += tl.where(there, corner_weight(axes, corner, NDIM, -1) * met, 0.0)
                if offset_grad_ptr is not None:
                    of_last += corner_weight(axes, corner, NDIM, NDIM - 1) * met
                    if NDIM > 1:
                        of_middle += corner_weight(axes, corner, NDIM, NDIM - 2) * met
                    if NDIM > 2:
                        of_first += corner_weight(axes, corner, NDIM, 0) * met

    positions = o * p * q
    sample_at = row_n * (widened(samples, INDEX64) * positions) + rows % positions
    axis_at = row_n * (widened(samples, INDEX64) * NDIM * positions) + rows % positions + sample * NDIM * positions
    if mask_grad_ptr is not None:
        total = (of_mask * whole).to(mask_grad_ptr.dtype.element_ty)
        tl.store(mask_grad_ptr + (sample_at + sample * positions), total, mask=row_inside)
    if offset_grad_ptr is not None:
        factor = whole
        if mask_ptr is not None:
            mask_row = row_n * mask_stride_n + row_o * mask_stride_o + row_p * mask_stride_p + row_q * mask_stride_q
            factor *= tl.load(mask_ptr + mask_row + sample * mask_stride_c, mask=row_inside, other=0.0).to(ACC_DTYPE)
        type = offset_grad_ptr.dtype.element_ty
        tl.store(offset_grad_ptr + axis_at + (NDIM - 1) * positions, (of_last * factor).to(type), mask=row_inside)
        if NDIM > 1:
            tl.store(offset_grad_ptr + axis_at + (NDIM - 2) * positions, (of_middle * factor).to(type), mask=row_inside)
        if NDIM > 2:
            tl.store(offset_grad_ptr + axis_at, (of_first * factor).to(type), mask=row_inside)


@triton.jit(repr=_repr_columns)
def _conv_deform_columns_kernel(
    y_ptr,
    w_ptr,
    columns_ptr,
    n,
    tiles_n,
    segments,
    first_segment,
    c_per_group,
    c_per_segment,
    k_per_group,
    o,
    p,
    q,
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
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute column gradients, ``sum_k y[row, k] w[k, channel, tap]``, of `segments` segments from `first_segment` on.

    A segment is `c_per_segment` channels that share a group and an offset group. Tensors: y [N, K, O, P, Q], of `n`
    images, and w [K, C/G, T, R, S] by strides in elements; columns [N O P Q, T R S, segments c_per_segment] contiguous,
    of ACC_DTYPE.
    Grid: (cdiv(N O P Q, BLOCK_M) * T * R * S * segments * tiles_n,) with tiles_n = cdiv(c_per_segment, BLOCK_N):
    programs of the same rows are neighbours.
    """
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    segment = pid // tiles_n % segments
    tap = pid // (tiles_n * segments) % (T * R * S)
    tile_m = pid // (tiles_n * segments) // (T * R * S)
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        segment = segment.to(tl.int64)
        tap = tap.to(tl.int64)
        columns = columns.to(tl.int64)
    columns = tile_n * BLOCK_N + columns
    channel_inside = columns < c_per_segment
    channels = (first_segment + segment) * c_per_segment + columns
    group = (first_segment + segment) * c_per_segment // c_per_group
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_n, row_o, row_p, row_q = four_axes(rows, o, p, q)
    row_inside = row_n < n
    y_row = y_ptr + (row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q)
    w_tap = w_ptr + (tap // (R * S) * w_stride_t + tap // S % R * w_stride_r + tap % S * w_stride_s)
    w_channel = w_tap + (group * k_per_group * w_stride_k + (channels - group * c_per_group) * w_stride_c)
    gradient = _columns_gradient(
        y_row + group * k_per_group * y_stride_k, w_channel, row_inside, channel_inside, k_per_group,
        y_stride_k, w_stride_k, PRECISION, ACC_DTYPE, INDEX64, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    stored = segments * c_per_segment
    at = (rows * (T * R * S) + tap) * stored
    tile = columns_ptr + (at[:, None] + (segment * c_per_segment + columns)[None, :])
    tl.store(tile, gradient, mask=row_inside[:, None] & channel_inside[None, :])


@triton.jit
def _cell(axes, h, w, NDIM: tl.constexpr):
    """Return the cell that a sample lies in, in 64 bits: they are counted from the one below the first element."""
    cell = axes[2][0].to(tl.int64) + 1
    if NDIM > 1:
        cell += (axes[1][0].to(tl.int64) + 1) * (w + 1)
    if NDIM > 2:
        cell += (axes[0][0].to(tl.int64) + 1) * (w + 1) * (h + 1)
    return cell


@triton.jit
def _conv_deform_cells_kernel(
    offset_ptr,
    keys_ptr,
    samples,
    offset_groups,
    lists,
    cells,
    d,
    h,
    w,
    o,
    p,
    q,
    offset_stride_n,
    offset_stride_c,
    offset_stride_o,
    offset_stride_p,
    offset_stride_q,
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
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the key of each sample: the list that it belongs to; `lists`, past the last one, where x has no part.

    There are `cells` lists for each image and offset group: the cells between elements, the outermost of which reach
    out of x. Samples are numbered as (image, offset group, tap, position).
    Tensors: offset [N, OG T R S NDIM, O, P, Q] by strides in elements, keys [N OG T R S O P Q] contiguous, int64.
    Grid: (cdiv(samples, BLOCK),).
    """
    id = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = id < samples
    line, at_o, at_p, at_q = four_axes(id, o, p, q)
    tap = line % (T * R * S)
    image = line // (T * R * S)  # and offset group
    of_image = image // offset_groups * offset_stride_n + line % (offset_groups * T * R * S) * NDIM * offset_stride_c
    position = at_o * offset_stride_o + at_p * offset_stride_p + at_q * offset_stride_q
    axis_d, axis_h, axis_w, _ = sample_axes(
        offset_ptr + (of_image + position), inside, offset_stride_c,
        at_o * STRIDE_D - pad_d + tap // (R * S) * DILATION_D, at_p * STRIDE_H - pad_h + tap // S % R * DILATION_H,
        at_q * STRIDE_W - pad_w + tap % S * DILATION_W, d, h, w, NDIM, POSITION,
    )  # fmt: skip
    axes = (axis_d, axis_h, axis_w)
    key = tl.where(sampled(axes), image * cells + _cell(axes, h, w, NDIM), lists)
    tl.store(keys_ptr + id, key, mask=inside)


@triton.jit(repr=_repr_gather)
def _conv_deform_gather_kernel(
    offset_ptr,
    mask_ptr,
    columns_ptr,
    order_ptr,
    starts_ptr,
    x_ptr,
    n,
    tiles_n,
    segments,
    first_segment,
    offset_groups,
    c_per_offset_group,
    c_per_segment,
    cells,
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
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute the gradient of the input: each element adds the samples of the cells that it is a corner of, in order.

    Tensors: offset and mask as in the forward pass, columns as the pass before wrote them; order [N OG T R S O P Q],
    the samples sorted by their lists, and starts [N OG cells + 1], where each list begins in it, both int64; x, the
    result [N, C, D, H, W], of `n` images by strides in elements.
    Grid: (cdiv(N D H W, BLOCK_M) * segments * tiles_n,) with tiles_n = cdiv(c_per_segment, BLOCK_N).
    """
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    segment = pid // tiles_n % segments
    tile_m = pid // (tiles_n * segments)
    columns = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
        segment = segment.to(tl.int64)
        columns = columns.to(tl.int64)
    columns = tile_n * BLOCK_N + columns
    channel_inside = columns < c_per_segment
    channels = (first_segment + segment) * c_per_segment + columns
    offset_group = (first_segment + segment) * c_per_segment // c_per_offset_group
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_n, row_d, row_h, row_w = four_axes(rows, d, h, w)
    row_inside = row_n < n
    stored = segments * c_per_segment
    image_row = row_n.to(tl.int64) * offset_groups + offset_group
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    for corner in tl.static_range(1 << NDIM):
        # Of these cells the element is this corner: cells are counted from one below the first element.
        cell = (row_w + (1 - corner % 2)).to(tl.int64)
        if NDIM > 1:
            cell += (row_h + (1 - (corner >> 1) % 2)).to(tl.int64) * (w + 1)
        if NDIM > 2:
            cell += (row_d + (1 - (corner >> 2))).to(tl.int64) * (w + 1) * (h + 1)
        at = starts_ptr + (image_row * cells + cell)
        first = tl.load(at, mask=row_inside, other=0)
        last = tl.load(at + 1, mask=row_inside, other=0)
        for i in range(0, tl.max(last - first, 0).to(tl.int32)):
            here = first + i
            live = here < last
            id = tl.load(order_ptr + here, mask=live, other=0)
            line, at_o, at_p, at_q = four_axes(id, o, p, q)
            tap = line % (T * R * S)
            sample = line % (offset_groups * T * R * S)
            of_offset = row_n * offset_stride_n + sample * NDIM * offset_stride_c
            axis_d, axis_h, axis_w, _ = sample_axes(
                offset_ptr + (of_offset + at_o * offset_stride_o + at_p * offset_stride_p + at_q * offset_stride_q),
                live, offset_stride_c, at_o * STRIDE_D - pad_d + tap // (R * S) * DILATION_D,
                at_p * STRIDE_H - pad_h + tap // S % R * DILATION_H, at_q * STRIDE_W - pad_w + tap % S * DILATION_W,
                d, h, w, NDIM, ACC_DTYPE,
            )  # fmt: skip
            axes = (axis_d, axis_h, axis_w)
            weight = corner_weight(axes, corner, NDIM, -1)
            counts = live & (weight != 0)
            if mask_ptr is not None:
                of_mask = row_n * mask_stride_n + sample * mask_stride_c
                of_mask += at_o * mask_stride_o + at_p * mask_stride_p + at_q * mask_stride_q
                weight *= tl.load(mask_ptr + of_mask, mask=live, other=0.0).to(ACC_DTYPE)
            pixel = ((row_n * o + at_o) * p + at_p) * q + at_q
            column = (pixel * (T * R * S) + tap) * stored
            inside = counts[:, None] & channel_inside[None, :]
            gradient = tl.load(
                columns_ptr + (column[:, None] + (segment * c_per_segment + columns)[None, :]), mask=inside, other=0.0
            )
            total += tl.where(inside, weight[:, None] * gradient, 0.0)
    x_row = row_n * x_stride_n + row_d * x_stride_d + row_h * x_stride_h + row_w * x_stride_w
    tile = x_ptr + (x_row[:, None] + (channels * x_stride_c)[None, :])
    tl.store(tile, total.to(x_ptr.dtype.element_ty), mask=row_inside[:, None] & channel_inside[None, :])
