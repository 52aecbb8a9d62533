"""Convolution of few channels per group, or of few filters, by products of whole rows: forward and data gradient.

A program marches down the rows of BM columns, of one or several images, of one block of channels. An input row is
loaded once, as A [BM, (s, c)] with S shifted columns side by side, and multiplied by the weights of all rows of the
window, B [(s, c), (r, k)]; the product falls apart along r into what it adds to the R rows of the result that are open.
A block holds whole groups: B is block-diagonal, and what it has beside the groups' weights is zero. An infinity times
such a zero is NaN, so sums that are not finite are computed again, by groups.
"""

import triton
import triton.language as tl

from ..common import epilogue
from .lanes import within


@triton.jit
def pieces(d, BM: tl.constexpr, RP: tl.constexpr, BO: tl.constexpr):
    """Take [BM, RP * BO] apart into RP tensors [BM, BO]: r is high in the column, so that registers are renamed."""
    if RP == 1:
        return (d.reshape(BM, BO),)
    elif RP == 2:
        a, b = tl.split(d.reshape(BM, 2, BO).permute(0, 2, 1))
        return (a, b)
    elif RP == 4:
        a, b = tl.split(d.reshape(BM, 2, 2 * BO).permute(0, 2, 1))
        return pieces(a, BM, 2, BO) + pieces(b, BM, 2, BO)
    else:
        a, b = tl.split(d.reshape(BM, 2, 4 * BO).permute(0, 2, 1))
        return pieces(a, BM, 4, BO) + pieces(b, BM, 4, BO)


@triton.jit
def _load_tile(
    source, here, channel, channels, i, height, row_step, channel_step,
    b: tl.constexpr, BC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Load row i of the source, block b of its channels: [BM, W * BC] of W taps, zeros outside."""
    reads = here & within(i, height)
    if not EVEN:
        reads = reads & (channel < channels - b * BC)
    return tl.load(source + (i * row_step + b * BC * channel_step), mask=reads, other=0.0)


@triton.jit
def _load_tiles(
    sources, heres, channel_of, channels, row, row_pitch, height, row_step, channel_step,
    A: tl.constexpr, BC: tl.constexpr, BLOCKS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Load the A rows of a step, from each of BLOCKS blocks of channels, the runs of taps one after the other."""
    tiles = ()
    for j in tl.static_range(A):
        for b in tl.static_range(BLOCKS):
            for c in tl.static_range(len(sources)):
                tile = _load_tile(
                    sources[c], heres[c], channel_of[c], channels, row + j * row_pitch, height, row_step, channel_step,
                    b, BC, EVEN,
                )  # fmt: skip
                tiles = tiles + (tile,)
    return tiles


@triton.jit
def _weight_places(
    block, c, o, r, s, groups, w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Return offsets into w, and where it has a weight, of channels `c` to `o` of a block, taps (r, s)."""
    group = block * PER + o // KG
    inside = (group < groups) & (o < PER * KG) & (c // CG == o // KG) & (r < R) & (s < S)
    at = group * w_stride_group + o % KG * w_stride_out + c % CG * w_stride_in + r * w_stride_r + s * w_stride_s
    return at, inside


@triton.jit
def _load_filters(
    w, packed, block, groups, w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr, RP: tl.constexpr,
    BC: tl.constexpr, BO: tl.constexpr, BLOCKS: tl.constexpr, INDEX64: tl.constexpr,
):  # fmt: skip
    """Load the weights of a block of the result: [W * BC, RP * BO] of each run of W taps and each block of channels."""
    filters = ()
    ro = tl.arange(0, RP * BO)[None, :]
    if INDEX64:
        ro = ro.to(tl.int64)
    for b in tl.static_range(BLOCKS):
        for bit in tl.static_range(4):
            if S & (8 >> bit):
                sc = S // (16 >> bit) * (16 >> bit) * BC + tl.arange(0, (8 >> bit) * BC)[:, None]
                if packed is not None:
                    at = ((block * BLOCKS + b) * (S * BC) + sc) * (RP * BO) + ro
                    filters = filters + (tl.load(packed + at),)
                else:
                    at, inside = _weight_places(
                        block, b * BC + sc % BC, ro % BO, ro // BO, sc // BC, groups,
                        w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s, R, S, CG, KG, PER,
                    )  # fmt: skip
                    filters = filters + (tl.load(w + at, mask=inside, other=0.0),)
    return filters


@triton.jit
def _add_piece(total, d, r: tl.constexpr, R: tl.constexpr):
    """Add the piece of row r of the window, if it has that row."""
    if r < R:
        total = total + d[r]
    return total


@triton.jit
def any_not_finite(zeros):
    """Tell whether one of the elements, sums of finite zeros or of NaN, is NaN."""
    return tl.sum(tl.reshape((zeros != zeros).to(tl.int32), [zeros.numel])) > 0


@triton.jit
def _rows_directly(
    source, w, result, residual, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
    lanes, q, channel, group, of_group, channel_inside, first, steps, row, row_pitch, height, width, result_height,
    pad_h, pad_w, source_stride_c, source_stride_h, source_stride_w, result_stride_h, residual_stride_h,
    w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, CG: tl.constexpr, GRAD: tl.constexpr, ACTIVATION: tl.constexpr, ACC_DTYPE: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Compute the rows of a program tap by tap and channel by channel, each group from its own channels alone.

    What lies outside of the source is a zero that the forward pass multiplies, and nothing to a gradient.
    """
    inside = lanes & channel_inside[None, :]  # [BM, BO]
    w_out = w + (group * w_stride_group + of_group * w_stride_out)  # [BO]
    for step in range(first, first + steps):
        at = row + step * row_pitch
        written = inside & within(at, result_height)
        total = tl.zeros([BM, BO], ACC_DTYPE)
        for tap in range(0, R * S):
            h = at * STRIDE_H - pad_h + tap // S * DILATION_H
            i = q * STRIDE_W - pad_w + tap % S * DILATION_W  # [BM, 1]
            reads = written & within(h, height) & within(i, width)
            for c in range(0, CG):
                from_channel = (group * CG + c) * source_stride_c
                value = tl.load(
                    source + (h * source_stride_h + i * source_stride_w) + from_channel[None, :], mask=reads, other=0.0
                )
                weight = w_out + (c * w_stride_in + tap // S * w_stride_r + tap % S * w_stride_s)
                weights = tl.load(
                    weight[None, :] + tl.zeros([BM, 1], tl.int32), mask=reads if GRAD else written, other=0.0
                )
                total += value.to(ACC_DTYPE) * weights.to(ACC_DTYPE)
        of_residual = residual
        if residual is not None:
            of_residual = residual + at * residual_stride_h
        total = epilogue(
            total, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride, of_residual,
            channel, channel_inside, written, ACTIVATION,
        )  # fmt: skip
        tl.store(result + at * result_stride_h, total.to(result.dtype.element_ty), mask=written)


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    kind = "dgrad" if c["GRAD"] else "fprop"
    tile = f"{c['BM']}x{c['BC']}x{c['BLOCKS']}to{c['BO']}"
    return f"_conv_rows_kernel_{kind}_{c['R']}x{c['S']}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_repr)
def _conv_rows_kernel(
    source_ptr,
    w_ptr,
    packed_ptr,
    result_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    images,
    groups,
    source_h,
    source_w,
    result_h,
    result_w,
    steps,
    chunks,
    tiles,
    blocks,
    phases_h,
    source_row,
    source_row_phase,
    source_row_pitch,
    pad_h,
    pad_w,
    source_stride_n,
    source_stride_c,
    source_stride_h,
    source_stride_w,
    result_stride_n,
    result_stride_c,
    result_stride_h,
    result_stride_w,
    residual_stride_n,
    residual_stride_c,
    residual_stride_h,
    residual_stride_w,
    w_offset,
    w_stride_group,
    w_stride_out,
    w_stride_in,
    w_stride_r,
    w_stride_s,
    bias_stride,
    scale_stride,
    shift_stride,
    R: tl.constexpr,
    S: tl.constexpr,
    A: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    EVEN: tl.constexpr,
    EVEN_OUT: tl.constexpr,
    GRAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    AHEAD: tl.constexpr,
    RP: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute result = activation((conv(source, w) + bias) * scale + shift + residual), in 2-D (1-D: one row).

    A data gradient of stride 1 is such a convolution of y, with weights turned round: GRAD says what padding means.
    Of a group, KG channels of the result are sums over CG channels of the source. GEMM view: M = BM positions of a row,
    N = RP * BO with RP >= R a power of two, K = S * BC per block of channels. A block of the result is PER
    whole groups, BO >= PER * KG channels, from BLOCKS blocks of BC channels of the source (one, unless PER is 1).
    Tensors: source [N, G CG, H, W], result and residual [N, G KG, P, Q] and w [G, KG, CG, R, S] by strides in elements,
    w from `w_offset`; packed [blocks, BLOCKS, S, BC, RP, BO] contiguous, see :func:`_conv_rows_pack_kernel`, or None:
    weights are gathered from w then; bias, scale, shift [G KG] by a stride, or None. All of one floating type; sums in
    ACC_DTYPE, rounded once at the store.
    Strides of source, but not along channels, are given divided by UNIT, those of result and residual by RESULT_UNIT.
    Rows of the source lie in `phases_h` phases, in which a dilated window has no dilation, see ``MarchAxis``.
    Grid: (blocks * tiles * chunks * phases_h,), blocks innermost; tiles of BM columns, of all images side by side.
    """
    M: tl.constexpr = (R + A - 1) // A  # rows of the result that a step adds to
    RUNS: tl.constexpr = (S & 1) + (S >> 1 & 1) + (S >> 2 & 1) + (S >> 3 & 1)
    pid = tl.program_id(0)
    if INDEX64:
        pid = pid.to(tl.int64)
    block = pid % blocks
    pid = pid // blocks
    lane = pid % tiles * BM + tl.arange(0, BM)[:, None]  # [BM, 1]
    pid = pid // tiles
    first = pid % chunks * steps
    phase = pid // chunks
    o = tl.arange(0, BO)  # [BO]
    n = (lane // result_w).to(tl.int64)
    q = lane % result_w
    lanes = n < images
    if INDEX64:
        o = o.to(tl.int64)
    channels = (groups - block * PER) * CG  # of the source, from the first of the block
    images_of_source = source_ptr + n * source_stride_n * UNIT  # [BM, 1]
    sources = ()
    heres = ()
    channel_of = ()
    for bit in tl.static_range(4):  # runs of 8, 4, 2 and 1 taps, as many as S has
        if S & (8 >> bit):
            k = tl.arange(0, (8 >> bit) * BC)[None, :]  # [1, (s, c)]
            column = q * STRIDE_W - pad_w + (S // (16 >> bit) * (16 >> bit) + k // BC) * DILATION_W
            here = lanes & within(column, source_w)
            if PER * CG < BC and BLOCKS == 1:
                here = here & (k % BC < PER * CG)
            of_block = (block * (PER * CG) + k % BC) * source_stride_c
            sources = sources + (images_of_source + (column * source_stride_w * UNIT + of_block),)
            heres = heres + (here,)
            channel_of = channel_of + (k % BC,)
    channel = block * (PER * KG) + o  # [BO]
    channel_inside = o < PER * KG
    if not EVEN_OUT:
        channel_inside = channel_inside & (channel < groups * KG)
    to = n * result_stride_n * RESULT_UNIT + q * result_stride_w * RESULT_UNIT  # [BM, 1]
    result = result_ptr + (to + (channel * result_stride_c)[None, :])
    residual = residual_ptr
    if residual_ptr is not None:
        from_residual = n * residual_stride_n * RESULT_UNIT + q * residual_stride_w * RESULT_UNIT
        residual = residual_ptr + (from_residual + (channel * residual_stride_c)[None, :])

    filters = _load_filters(  # read once: products take them from shared memory
        w_ptr + w_offset, packed_ptr, block, groups, w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
        R, S, CG, KG, PER, RP, BC, BO, BLOCKS, INDEX64,
    )  # fmt: skip
    row = source_row + phase * source_row_phase + A * (M - 1) * source_row_pitch
    still_open = ()
    for _ in tl.static_range(M - 1):
        still_open = still_open + (tl.zeros([BM, BO], ACC_DTYPE),)
    zeros = tl.zeros([BM, BO], ACC_DTYPE)
    if AHEAD:
        next_tiles = _load_tiles(
            sources, heres, channel_of, channels, row + A * (first - (M - 1)) * source_row_pitch, source_row_pitch,
            source_h, source_stride_h * UNIT, source_stride_c, A, BC, BLOCKS, EVEN,
        )  # fmt: skip
    for i in range(0, steps + M - 1):
        step = first + (i - (M - 1))
        if AHEAD:  # in flight during the products of this step
            tiles_now = next_tiles
            next_tiles = _load_tiles(
                sources, heres, channel_of, channels, row + A * (step + 1) * source_row_pitch, source_row_pitch,
                source_h, source_stride_h * UNIT, source_stride_c, A, BC, BLOCKS, EVEN,
            )  # fmt: skip
        sums = still_open + (tl.zeros([BM, BO], ACC_DTYPE),)
        for j in tl.static_range(A):
            product = tl.zeros([BM, RP * BO], ACC_DTYPE)
            for b in tl.static_range(BLOCKS):
                for c in tl.static_range(RUNS):
                    if AHEAD:
                        tile = tiles_now[(j * BLOCKS + b) * RUNS + c]
                    else:
                        tile = _load_tile(
                            sources[c], heres[c], channel_of[c], channels, row + (A * step + j) * source_row_pitch,
                            source_h, source_stride_h * UNIT, source_stride_c, b, BC, EVEN,
                        )  # fmt: skip
                    product = tl.dot(
                        tile, filters[b * RUNS + c], product, input_precision=PRECISION, out_dtype=ACC_DTYPE
                    )
            d = pieces(product, BM, RP, BO)
            added = ()
            for e in tl.static_range(M):
                added = added + (_add_piece(sums[e], d, A * (M - 1 - e) + j, R),)
            sums = added
        zeros += sums[0] * 0.0  # NaN from now on where a sum is not finite
        at = phase + step * phases_h
        written = lanes & channel_inside[None, :] & (step >= first) & within(at, result_h)
        of_residual = residual
        if residual_ptr is not None:
            of_residual = residual + at * residual_stride_h * RESULT_UNIT
        total = epilogue(
            sums[0], bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride, of_residual,
            channel, channel_inside, written, ACTIVATION,
        )  # fmt: skip
        tl.store(result + at * result_stride_h * RESULT_UNIT, total.to(result_ptr.dtype.element_ty), mask=written)
        still_open = sums[1:]
    if any_not_finite(zeros):
        _rows_directly(
            images_of_source, w_ptr + w_offset, result, residual, bias_ptr, scale_ptr, shift_ptr,
            bias_stride, scale_stride, shift_stride, lanes, q, channel, block * PER + o // KG, o % KG, channel_inside,
            first, steps, phase, phases_h, source_h, source_w, result_h, pad_h, pad_w,
            source_stride_c, source_stride_h * UNIT, source_stride_w * UNIT,
            result_stride_h * RESULT_UNIT, residual_stride_h * RESULT_UNIT,
            w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s,
            R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, CG, GRAD, ACTIVATION, ACC_DTYPE, BM, BO,
        )  # fmt: skip


def _pack_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_rows_pack_kernel_{c['R']}x{c['S']}_{c['BC']}x{c['BLOCKS']}to{c['BO']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_pack_repr)
def _conv_rows_pack_kernel(
    w_ptr,
    packed_ptr,
    groups,
    elements,
    w_offset,
    w_stride_group,
    w_stride_out,
    w_stride_in,
    w_stride_r,
    w_stride_s,
    R: tl.constexpr,
    S: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    INDEX64: tl.constexpr,
    RP: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the block-diagonal weights of `_conv_rows_kernel`, zeros beside the groups' own included.

    Tensors: w [G, KG, CG, R, S] by strides in elements from `w_offset`, which may be negative; packed
    [blocks, BLOCKS, S, BC, RP, BO] contiguous, `elements` in all, of the same type.
    Grid: (cdiv(elements, BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if INDEX64:
        i = i.to(tl.int64)
    c = i // (BO * RP) % BC + i // (BO * RP * BC * S) % BLOCKS * BC
    at, inside = _weight_places(
        i // (BO * RP * BC * S * BLOCKS), c, i % BO, i // BO % RP, i // (BO * RP * BC) % S, groups,
        w_stride_group, w_stride_out, w_stride_in, w_stride_r, w_stride_s, R, S, CG, KG, PER,
    )  # fmt: skip
    values = tl.load(w_ptr + w_offset + at, mask=inside & (i < elements), other=0.0)
    tl.store(packed_ptr + i, values, mask=i < elements)
