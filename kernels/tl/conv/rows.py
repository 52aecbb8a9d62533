"""Convolution of few channels per group, or of few filters, by products of whole rows: forward and data gradient.

A program marches down the rows of BM lanes, of one or several images, of one block of channels. An input row is loaded
once, as A [BM, (s, c)] with the shifted columns of a lane side by side, and multiplied by the weights of all rows of
the window, B [(s, c), (r, f, k)]; the product falls apart along r into what it adds to the rows of the result that are
open. A lane owns one column of the result, or in the gradient of a stride along W the columns f of one step of it: all
phases of such a gradient are columns of one product, and its rows are closed as many at a time as the stride is high.
In 3-D the planes of the result are images side by side, and each tap along depth is one more product, of the row of
the plane that it leads to.
A block holds whole groups: B is block-diagonal, and what it has beside the groups' weights is zero. An infinity times
such a zero is NaN, so sums that are not finite are computed again, by groups.
"""

import triton
import triton.language as tl

from ..common import epilogue
from .lanes import within
from .rows_exact import any_not_finite, gradient_directly, plane_of_source, rows_directly


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
    A: tl.constexpr, BC: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Load the A rows of a step: of each of T planes and BLOCKS blocks of channels the runs of taps, in this order."""
    RUNS: tl.constexpr = len(sources) // T
    tiles = ()
    for j in tl.static_range(A):
        for b in tl.static_range(T * BLOCKS):
            for c in tl.static_range(RUNS):
                tile = _load_tile(
                    sources[b // BLOCKS * RUNS + c], heres[b // BLOCKS * RUNS + c], channel_of[c], channels,
                    row + j * row_pitch, height, row_step, channel_step, b % BLOCKS, BC, EVEN,
                )  # fmt: skip
                tiles = tiles + (tile,)
    return tiles


@triton.jit
def _weight_places(
    block, c, o, t, r, s, groups, w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
    R: tl.constexpr, S: tl.constexpr, CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Return offsets into w, and where it has a weight, of channels `c` to `o` of a block, taps (t, r, s)."""
    group = block * PER + o // KG
    inside = (group < groups) & (o < PER * KG) & (c // CG == o // KG) & (r < R) & (s < S)
    at = group * w_stride_group + o % KG * w_stride_out + c % CG * w_stride_in
    return at + t * w_stride_t + r * w_stride_r + s * w_stride_s, inside


@triton.jit
def _tap_along_w(j, f, S: tl.constexpr, STEP: tl.constexpr):
    """Return the tap along W of column f of a lane from source column j: with several columns, they are STEP apart."""
    if STEP > 1:
        s = tl.where(f < STEP, j * STEP + f, S)
    else:
        s = j
    return s


@triton.jit
def _load_filters(
    w, packed, block, groups, w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, J: tl.constexpr, F: tl.constexpr, STEP: tl.constexpr,
    CG: tl.constexpr, KG: tl.constexpr, PER: tl.constexpr, RP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    BLOCKS: tl.constexpr, INDEX64: tl.constexpr,
):  # fmt: skip
    """Load the weights of a block of the result: [W * BC, RP * F * BO] of each run of W columns, block and plane."""
    filters = ()
    rfo = tl.arange(0, RP * F * BO)[None, :]
    if INDEX64:
        rfo = rfo.to(tl.int64)
    for b in tl.static_range(T * BLOCKS):
        for bit in tl.static_range(4):
            if J & (8 >> bit):
                jc = J // (16 >> bit) * (16 >> bit) * BC + tl.arange(0, (8 >> bit) * BC)[:, None]
                if packed is not None:
                    at = ((block * (T * BLOCKS) + b) * (J * BC) + jc) * (RP * F * BO) + rfo
                    filters = filters + (tl.load(packed + at),)
                else:
                    s = _tap_along_w(jc // BC, rfo // BO % F, S, STEP)
                    at, inside = _weight_places(
                        block, b % BLOCKS * BC + jc % BC, rfo % BO, b // BLOCKS, rfo // (BO * F), s, groups,
                        w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
                        R, S, CG, KG, PER,
                    )  # fmt: skip
                    filters = filters + (tl.load(w + at, mask=inside, other=0.0),)
    return filters


@triton.jit
def _add_piece(total, d, r: tl.constexpr, R: tl.constexpr):
    """Add the piece of row r of the window, if it has that row."""
    if r < R:
        total = total + d[r]
    return total


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    kind = f"dgrad{c['STRIDE_H']}x{c['STRIDE_W']}" if c["SPREAD"] else "dgrad" if c["GRAD"] else "fprop"
    tile = f"{c['BM']}x{c['BC']}x{c['BLOCKS']}to{c['BO']}"
    taps = f"{c['T']}x{c['R']}x{c['S']}" if c["DEEP"] else f"{c['R']}x{c['S']}"
    return f"_conv_rows_kernel_{kind}_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


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
    source_d,
    source_h,
    source_w,
    result_d,
    result_h,
    result_w,
    lanes_w,
    steps,
    chunks,
    tiles,
    blocks,
    source_row,
    source_row_phase,
    source_row_pitch,
    result_row,
    result_row_phase,
    result_row_pitch,
    pad_d,
    pad_h,
    pad_w,
    source_stride_n,
    source_stride_c,
    source_stride_d,
    source_stride_h,
    source_stride_w,
    result_stride_n,
    result_stride_c,
    result_stride_d,
    result_stride_h,
    result_stride_w,
    residual_stride_n,
    residual_stride_c,
    residual_stride_d,
    residual_stride_h,
    residual_stride_w,
    w_offset,
    w_stride_group,
    w_stride_out,
    w_stride_in,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    bias_stride,
    scale_stride,
    shift_stride,
    DEEP: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    J: tl.constexpr,
    F: tl.constexpr,
    A: tl.constexpr,
    U: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CG: tl.constexpr,
    KG: tl.constexpr,
    PER: tl.constexpr,
    EVEN: tl.constexpr,
    EVEN_OUT: tl.constexpr,
    GRAD: tl.constexpr,
    SPREAD: tl.constexpr,
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
    """Compute result = activation((conv(source, w) + bias) * scale + shift + residual), in 3-D if DEEP, else in 2-D.

    1-D is one row, and without DEEP there is one plane of each image, and one tap along depth.
    A data gradient of stride 1 is such a convolution of y, with weights turned round: GRAD says what padding means. One
    of a larger stride (SPREAD) adds every row and column of y, times the weights, to several of the result. Along
    depth both gather, whatever the stride: a plane of the result is the sum over taps of a plane of the source each.
    Of a group, KG channels of the result are sums over CG channels of the source. GEMM view: M = BM lanes of a row,
    N = RP * F * BO with RP >= R a power of two, K = J * BC per plane and block of channels: a lane owns F columns of
    the result (1, or at least STRIDE_W where it spreads) and reads J of the source. A block of the result is PER whole
    groups, BO >= PER * KG channels, from BLOCKS blocks of BC channels of the source (one, unless PER is 1).
    Tensors: source [N, G CG, D, H, W], result and residual [N, G KG, O, P, Q] and w [G, KG, CG, T, R, S] by strides in
    elements, w from `w_offset`; packed [blocks, T, BLOCKS, J, BC, RP, F, BO] contiguous, see
    :func:`_conv_rows_pack_kernel`, or None: weights are gathered from w then; bias, scale, shift [G KG] by a stride, or
    None. All of one floating type; sums in ACC_DTYPE, rounded once at the store.
    Strides of source, but not along channels, are given divided by UNIT, those of result and residual by RESULT_UNIT.
    Rows lie in phases, in which a dilated window has no dilation; a step reads A rows of the source and closes U of the
    result, of which one is 1, see ``MarchAxis``.
    Grid: (blocks * tiles * chunks * phases,), blocks innermost; tiles of BM lanes, of all images, and of
    their planes, side by side.
    """
    M: tl.constexpr = (R + A - 1) // A  # rows of the result that a step adds to
    E: tl.constexpr = M if M > U else U  # and those that it closes
    WARM: tl.constexpr = (E + U - 1) // U - 1  # steps before the first whose rows add to its own
    RUNS: tl.constexpr = (J & 1) + (J >> 1 & 1) + (J >> 2 & 1) + (J >> 3 & 1)
    pid = tl.program_id(0)
    if INDEX64:
        pid = pid.to(tl.int64)
    block = pid % blocks
    pid = pid // blocks
    lane = pid % tiles * BM + tl.arange(0, BM)[:, None]  # [BM, 1]
    pid = pid // tiles
    first = pid % chunks * steps
    phase = pid // chunks
    fo = tl.arange(0, F * BO)  # [F * BO]
    n = (lane // lanes_w).to(tl.int64)
    q = lane % lanes_w
    plane = 0  # of the result, [BM, 1]
    if DEEP:
        plane = lane // lanes_w % result_d
        n = (lane // lanes_w // result_d).to(tl.int64)
    lanes = n < images
    if INDEX64:
        fo = fo.to(tl.int64)
    o = fo % BO
    at_column = q  # the column of the result, [BM, 1] or [BM, F * BO]
    if SPREAD:
        q += pad_w // STRIDE_W
        at_column = q * STRIDE_W - pad_w
        if F > 1:
            at_column += fo[None, :] // BO
    channels = (groups - block * PER) * CG  # of the source, from the first of the block
    images_of_source = source_ptr + n * source_stride_n * UNIT  # [BM, 1]
    sources = ()
    heres = ()
    channel_of = ()
    for t in tl.static_range(T):
        from_plane = images_of_source
        read = lanes
        if DEEP:
            z, there = plane_of_source(plane, t, source_d, pad_d, STRIDE_D, DILATION_D, SPREAD)
            from_plane += z.to(tl.int64) * source_stride_d * UNIT
            read = lanes & there
        for bit in tl.static_range(4):  # runs of 8, 4, 2 and 1 columns, as many as J has
            if J & (8 >> bit):
                k = tl.arange(0, (8 >> bit) * BC)[None, :]  # [1, (j, c)]
                beside = (J // (16 >> bit) * (16 >> bit) + k // BC) * DILATION_W
                if SPREAD:
                    column = q - beside
                else:
                    column = q * STRIDE_W - pad_w + beside
                here = read & within(column, source_w)
                if PER * CG < BC and BLOCKS == 1:
                    here = here & (k % BC < PER * CG)
                of_block = (block * (PER * CG) + k % BC) * source_stride_c
                sources = sources + (from_plane + (column * source_stride_w * UNIT + of_block),)
                heres = heres + (here,)
                channel_of = channel_of + (k % BC,)
    channel = block * (PER * KG) + o  # [F * BO]
    channel_inside = o < PER * KG
    if not EVEN_OUT:
        channel_inside = channel_inside & (channel < groups * KG)
    mine = lanes & channel_inside[None, :]  # [BM, F * BO]
    if SPREAD:
        mine = mine & within(at_column, result_w)
        if F > STRIDE_W:
            mine = mine & (fo[None, :] // BO < STRIDE_W)
    to = n * result_stride_n * RESULT_UNIT + at_column * result_stride_w * RESULT_UNIT
    if DEEP:
        to += plane.to(tl.int64) * result_stride_d * RESULT_UNIT
    result = result_ptr + (to + (channel * result_stride_c)[None, :])
    residual = residual_ptr
    if residual_ptr is not None:
        from_residual = n * residual_stride_n * RESULT_UNIT + at_column * residual_stride_w * RESULT_UNIT
        if DEEP:
            from_residual += plane.to(tl.int64) * residual_stride_d * RESULT_UNIT
        residual = residual_ptr + (from_residual + (channel * residual_stride_c)[None, :])

    filters = _load_filters(  # read once: products take them from shared memory
        w_ptr + w_offset, packed_ptr, block, groups, w_stride_group, w_stride_out, w_stride_in,
        w_stride_t, w_stride_r, w_stride_s,
        T, R, S, J, F, STRIDE_W if SPREAD else 1, CG, KG, PER, RP, BC, BO, BLOCKS, INDEX64,
    )  # fmt: skip
    row = source_row + phase * source_row_phase
    if not SPREAD:
        row += A * (M - 1) * source_row_pitch
    row_of_result = result_row + phase * result_row_phase
    still_open = ()
    for _ in tl.static_range(E - U):
        still_open = still_open + (tl.zeros([BM, F * BO], ACC_DTYPE),)
    zeros = tl.zeros([BM, F * BO], ACC_DTYPE)
    if AHEAD:
        next_tiles = _load_tiles(
            sources, heres, channel_of, channels, row + A * (first - WARM) * source_row_pitch, source_row_pitch,
            source_h, source_stride_h * UNIT, source_stride_c, A, BC, T, BLOCKS, EVEN,
        )  # fmt: skip
    for i in range(0, steps + WARM):
        step = first + (i - WARM)
        if AHEAD:  # in flight during the products of this step
            tiles_now = next_tiles
            next_tiles = _load_tiles(
                sources, heres, channel_of, channels, row + A * (step + 1) * source_row_pitch, source_row_pitch,
                source_h, source_stride_h * UNIT, source_stride_c, A, BC, T, BLOCKS, EVEN,
            )  # fmt: skip
        sums = still_open
        for _ in tl.static_range(U):
            sums = sums + (tl.zeros([BM, F * BO], ACC_DTYPE),)
        for j in tl.static_range(A):
            product = tl.zeros([BM, RP * F * BO], ACC_DTYPE)
            for b in tl.static_range(T * BLOCKS):
                for c in tl.static_range(RUNS):
                    if AHEAD:
                        tile = tiles_now[(j * (T * BLOCKS) + b) * RUNS + c]
                    else:
                        tile = _load_tile(
                            sources[b // BLOCKS * RUNS + c], heres[b // BLOCKS * RUNS + c], channel_of[c], channels,
                            row + (A * step + j) * source_row_pitch, source_h, source_stride_h * UNIT,
                            source_stride_c, b % BLOCKS, BC, EVEN,
                        )  # fmt: skip
                    product = tl.dot(
                        tile, filters[b * RUNS + c], product, input_precision=PRECISION, out_dtype=ACC_DTYPE
                    )
            d = pieces(product, BM, RP, F * BO)
            added = ()
            for e in tl.static_range(E):
                added = added + (_add_piece(sums[e], d, e if SPREAD else A * (M - 1 - e) + j, R),)
            sums = added
        for u in tl.static_range(U):
            zeros += sums[u] * 0.0  # NaN from now on where a sum is not finite
            at = row_of_result + (U * step + u) * result_row_pitch
            written = mine & (step >= first) & within(at, result_h)
            of_residual = residual
            if residual_ptr is not None:
                of_residual = residual + at * residual_stride_h * RESULT_UNIT
            total = epilogue(
                sums[u], bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride, of_residual,
                channel, channel_inside, written, ACTIVATION,
            )  # fmt: skip
            tl.store(result + at * result_stride_h * RESULT_UNIT, total.to(result_ptr.dtype.element_ty), mask=written)
        still_open = sums[U:]
    if any_not_finite(zeros):
        if SPREAD:
            gradient_directly(
                images_of_source, w_ptr + w_offset, result, residual, bias_ptr, scale_ptr, shift_ptr,
                bias_stride, scale_stride, shift_stride, mine, plane, at_column, channel, block * PER + o // KG, o % KG,
                channel_inside, U * first, U * steps, row_of_result, result_row_pitch, source_d, source_h, source_w,
                result_h, pad_d, pad_h, pad_w, source_stride_c, source_stride_d * UNIT, source_stride_h * UNIT,
                source_stride_w * UNIT, result_stride_h * RESULT_UNIT, residual_stride_h * RESULT_UNIT,
                w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
                DEEP, T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, CG,
                ACTIVATION, ACC_DTYPE, BM, F * BO,
            )  # fmt: skip
        else:
            rows_directly(
                images_of_source, w_ptr + w_offset, result, residual, bias_ptr, scale_ptr, shift_ptr,
                bias_stride, scale_stride, shift_stride, mine, plane, q, channel, block * PER + o // KG, o % KG,
                channel_inside, first, steps, row_of_result, result_row_pitch, source_d, source_h, source_w,
                result_h, pad_d, pad_h, pad_w, source_stride_c, source_stride_d * UNIT, source_stride_h * UNIT,
                source_stride_w * UNIT, result_stride_h * RESULT_UNIT, residual_stride_h * RESULT_UNIT,
                w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s,
                DEEP, T, R, S, STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, CG, GRAD,
                ACTIVATION, ACC_DTYPE, BM, BO,
            )  # fmt: skip


def _pack_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}" if c["T"] > 1 else f"{c['R']}x{c['S']}"
    return f"_conv_rows_pack_kernel_{taps}_{c['BC']}x{c['BLOCKS']}to{c['BO']}_i{64 if c['INDEX64'] else 32}"


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
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    J: tl.constexpr,
    F: tl.constexpr,
    STEP: tl.constexpr,
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

    Tensors: w [G, KG, CG, T, R, S] by strides in elements from `w_offset`, which may be negative; packed
    [blocks, T, BLOCKS, J, BC, RP, F, BO] contiguous, `elements` in all, of the same type.
    Grid: (cdiv(elements, BLOCK),).
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if INDEX64:
        i = i.to(tl.int64)
    c = i // (BO * F * RP) % BC + i // (BO * F * RP * BC * J) % BLOCKS * BC
    s = _tap_along_w(i // (BO * F * RP * BC) % J, i // BO % F, S, STEP)
    at, inside = _weight_places(
        i // (BO * F * RP * BC * J * BLOCKS * T), c, i % BO, i // (BO * F * RP * BC * J * BLOCKS) % T,
        i // (BO * F) % RP, s, groups,
        w_stride_group, w_stride_out, w_stride_in, w_stride_t, w_stride_r, w_stride_s, R, S, CG, KG, PER,
    )  # fmt: skip
    values = tl.load(w_ptr + w_offset + at, mask=inside & (i < elements), other=0.0)
    tl.store(packed_ptr + i, values, mask=i < elements)
