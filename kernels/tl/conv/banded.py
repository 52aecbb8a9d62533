"""Depthwise convolution of stride 1 with large windows as products with banded matrices on tensor cores.

A channel is a dense convolution that strides by blocks of TP x TQ results: M counts blocks, N = TP * TQ results of a
block, K = (i, k) the (TP + R - 1) x KW elements of the source that a block reads:

    result[m, (p, q)] = sum over (i, k) of source[m, (i, k)] * w[i - p, k - q - OFF], w zero outside of its window

The matrix of weights is a Toeplitz matrix. It is read as aligned vectors along k from eight copies of the window, each
one column further to the right, which a small kernel packs before. A product with one of its zeros is NaN where the
source is not finite: programs whose sums are not finite compute them once more, tap by tap.
"""

import triton
import triton.language as tl

from .banded_exact import directly
from .lanes import load_vector, within
from .march_lanes import _finish as finish
from .march_lanes import moved


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    name, vector = ("rows", f"v{c['VEC']}") if "VEC" in c else ("last", f"u{c['UNIT']}")
    kind = "dgrad" if c["GRAD"] else "fprop"
    block = f"{c['TP']}x{c['TQ']}_{c['BM']}x{c['BK']}"
    return f"_conv_banded_{name}_kernel_{kind}_{c['R']}x{c['S']}_{block}_{vector}_i{64 if c['INDEX64'] else 32}"


@triton.jit
def _quotient(i, divisor, magic, log, INDEX64: tl.constexpr):
    """Return i // divisor: of 0 <= i < 2**31 as 2 i * ceil(2**(31 + log) / divisor) >> 32 + log, log = ceil(log2)."""
    if INDEX64:
        found = i // divisor
    else:
        high = tl.umulhi(
            (2 * i).to(tl.uint32, bitcast=True), tl.full([1, 1], magic, tl.int32).to(tl.uint32, bitcast=True)
        )
        found = (high >> log).to(tl.int32, bitcast=True)
    return found


@triton.jit
def _blocks(
    tile, blocks_h, blocks_w, magic_h, magic_w, log_h, log_w,
    TP: tl.constexpr, TQ: tl.constexpr, BM: tl.constexpr, INDEX64: tl.constexpr,
):  # fmt: skip
    """Return image, first row and first column of the result of the BM blocks of a tile, each [BM, 1]."""
    if INDEX64:
        tile = tile.to(tl.int64)
    m = tile * BM + tl.arange(0, BM)[:, None]
    line = _quotient(m, blocks_w, magic_w, log_w, INDEX64)
    n = _quotient(line, blocks_h, magic_h, log_h, INDEX64)
    return n, (line - n * blocks_h) * TP, (m - line * blocks_w) * TQ


@triton.jit
def _band(packed, first, PITCH: tl.constexpr, KW: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr):
    """Load rows first .. first + BK - 1 of a banded matrix [BK, BN], zeros behind its last row."""
    k = (first + tl.arange(0, BK))[:, None]
    return tl.load(packed + (k // KW * PITCH + k % KW), mask=k // KW < ROWS, other=0.0)


@triton.jit
def _band_of(
    packed, shift, o, R: tl.constexpr, TP: tl.constexpr, TQ: tl.constexpr, KW: tl.constexpr, PITCH: tl.constexpr
):
    """Return where columns `o` [1, BN] of the banded matrix of a channel begin; `shift` is that of their first tap."""
    COPY: tl.constexpr = (R + 2 * (TP - 1)) * PITCH
    return packed + (shift % 8 * COPY + (TP - 1 - o // TQ) * PITCH + (PITCH - KW) // 8 * 8 - shift // 8 * 8)


@triton.jit(repr=_repr)
def _conv_banded_rows_kernel(
    source_ptr,
    packed_ptr,
    result_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    images,
    source_h,
    source_w,
    result_h,
    result_w,
    pad_h,
    pad_w,
    blocks_h,
    blocks_w,
    magic_h,
    magic_w,
    log_h,
    log_w,
    tiles,
    steps,
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
    bias_stride,
    scale_stride,
    shift_stride,
    R: tl.constexpr,
    S: tl.constexpr,
    START: tl.constexpr,
    OFF: tl.constexpr,
    TP: tl.constexpr,
    TQ: tl.constexpr,
    KW: tl.constexpr,
    PITCH: tl.constexpr,
    GRAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    VEC: tl.constexpr,
    VO: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute a depthwise convolution of stride 1 over planes, whose rows are read in vectors of VEC columns.

    result = activation((conv + bias) * scale + shift + residual). Tensors: source and result, residual [N, C, H, W] by
    strides in elements (1-D has an axis of one row); packed weights [C, 8, R + 2 (TP - 1), PITCH], see
    `_conv_banded_pack_kernel`; bias, scale, shift [C], each by one stride, or None. The window of a data gradient
    (GRAD) is packed turned round. Dtypes: one 16-bit floating type; products are summed in ACC_DTYPE and rounded once.
    GEMM of a channel: M = N * blocks, N = TP * TQ, K = (TP + R - 1) * KW in `steps` steps of BK. A block reads columns
    from START (a multiple of VEC, not behind the padding) on; its first tap is OFF columns further.
    Grid: (tiles * C,), tiles of BM blocks innermost.
    Units: with VEC above 1 columns of the source lie side by side, `source_w` and strides of the source, but not that
    along W, are given divided by VEC; those of the result and of residual by VO alike.
    INDEX64 computes offsets within an image in 64 bits; those of images always are.
    """
    BN: tl.constexpr = TP * TQ
    ROWS: tl.constexpr = TP + R - 1
    source_w = source_w * VEC
    result_w = result_w * VO
    pid = tl.program_id(0)
    c = pid // tiles
    n, row, column = _blocks(pid % tiles, blocks_h, blocks_w, magic_h, magic_w, log_h, log_w, TP, TQ, BM, INDEX64)
    live = n < images
    n = n.to(tl.int64)
    if INDEX64:
        c = c.to(tl.int64)
    source = source_ptr + (n * source_stride_n + c * source_stride_c) * VEC  # [BM, 1]
    result = result_ptr + (n * result_stride_n + c * result_stride_c) * VO
    residual = moved(residual_ptr, (n * residual_stride_n + c * residual_stride_c) * VO)
    packed = packed_ptr + c.to(tl.int64) * (8 * (R + 2 * (TP - 1)) * PITCH)
    bias = load_vector(bias_ptr, c * bias_stride, True, ACC_DTYPE)
    scale = load_vector(scale_ptr, c * scale_stride, True, ACC_DTYPE)
    shift = load_vector(shift_ptr, c * shift_stride, True, ACC_DTYPE)

    o = tl.arange(0, BN)[None, :]  # [1, BN]
    band = _band_of(packed, o % TQ + OFF, o, R, TP, TQ, KW, PITCH)
    first_row = row - pad_h
    patch = source + (first_row * (source_stride_h * VEC) + (column + START) * source_stride_w)
    sums = tl.zeros([BM, BN], ACC_DTYPE)
    for step in range(0, steps):
        k = (step * BK + tl.arange(0, BK))[None, :]  # [1, BK]
        if INDEX64:
            k = k.to(tl.int64)
        i = k // KW
        at = column + START + k % KW
        reads = live & (i < ROWS) & within(first_row + i, source_h) & (at >= 0) & (at < source_w)
        of_patch = i * (source_stride_h * VEC) + k % KW * source_stride_w
        sums = tl.dot(
            tl.load(patch + of_patch, mask=reads, other=0.0),
            _band(band, step * BK, PITCH, KW, ROWS, BK),
            sums,
            out_dtype=ACC_DTYPE,
        )
    zero = tl.sum(tl.reshape(sums * 0.0, [BM * BN]))  # NaN where a sum is not finite
    broken = (zero != zero).to(tl.int32)
    if broken > 0:
        weights = packed + ((TP - 1) * PITCH + (PITCH - KW) // 8 * 8)  # of the first copy
        directly(
            source, weights, result, residual, bias, scale, shift, live, broken, row, column, source_h, source_w,
            result_h, result_w, pad_h, pad_w, source_stride_h * VEC, source_stride_w, result_stride_h * VO,
            result_stride_w, residual_stride_h * VO, residual_stride_w,
            R, S, TP, TQ, PITCH, GRAD, ACTIVATION, ACC_DTYPE, BM, 8, 1,
        )  # fmt: skip
    else:
        p = row + o // TQ
        q = column + o % TQ
        written = live & within(p, result_h) & (q < result_w)
        of_residual = moved(residual, p * (residual_stride_h * VO) + q * residual_stride_w)
        value = finish(sums, bias, scale, shift, of_residual, written, ACTIVATION)
        to = result + (p * (result_stride_h * VO) + q * result_stride_w)
        tl.store(to, value.to(result_ptr.dtype.element_ty), mask=written)


@triton.jit
def _channels_apart(v, BM: tl.constexpr, BK: tl.constexpr):
    """Take [BM, BK, 8] apart into a tile [BM, BK] of each of eight channels."""
    even, odd = tl.split(v.reshape(BM, BK, 2, 2, 2))
    c04, c26 = tl.split(even)
    c15, c37 = tl.split(odd)
    c0, c4 = tl.split(c04)
    c2, c6 = tl.split(c26)
    c1, c5 = tl.split(c15)
    c3, c7 = tl.split(c37)
    return (c0, c1, c2, c3, c4, c5, c6, c7)


@triton.jit
def _channels_together(tiles, BM: tl.constexpr, BN: tl.constexpr):
    """Put the tiles [BM, BN] of eight channels together: [BM, BN, 8]."""
    even = tl.join(tl.join(tiles[0], tiles[4]), tl.join(tiles[2], tiles[6]))
    odd = tl.join(tl.join(tiles[1], tiles[5]), tl.join(tiles[3], tiles[7]))
    return tl.join(even, odd).reshape(BM, BN, 8)


@triton.jit(repr=_repr)
def _conv_banded_last_kernel(
    source_ptr,
    packed_ptr,
    result_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    images,
    channels,
    source_h,
    source_w,
    result_h,
    result_w,
    pad_h,
    pad_w,
    blocks_h,
    blocks_w,
    magic_h,
    magic_w,
    log_h,
    log_w,
    steps,
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
    bias_stride,
    scale_stride,
    shift_stride,
    R: tl.constexpr,
    S: tl.constexpr,
    TP: tl.constexpr,
    TQ: tl.constexpr,
    KW: tl.constexpr,
    PITCH: tl.constexpr,
    GRAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    UNIT: tl.constexpr,
    RESULT_UNIT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute a depthwise convolution of stride 1 as `_conv_banded_rows_kernel`, eight neighbouring channels at a time.

    Their elements are loaded and stored together, 16 bytes where channels lie side by side, and multiplied channel by
    channel; `channels` is a multiple of 8. A block reads columns from its padding on.
    Grid: (channel tiles * tiles,), channel tiles innermost: neighbouring programs share lines of memory.
    Units: the strides of the source, but not that along C, are given divided by UNIT, those of the result and of
    residual by RESULT_UNIT.
    """
    BN: tl.constexpr = TP * TQ
    ROWS: tl.constexpr = TP + R - 1
    CHANNEL: tl.constexpr = 8 * (R + 2 * (TP - 1)) * PITCH  # packed elements
    tiles_c = channels // 8
    pid = tl.program_id(0)
    tile_c = pid % tiles_c
    n, row, column = _blocks(pid // tiles_c, blocks_h, blocks_w, magic_h, magic_w, log_h, log_w, TP, TQ, BM, INDEX64)
    live = n < images
    n = n.to(tl.int64)
    c = tile_c * 8 + tl.arange(0, 8)[None, None, :]  # [1, 1, 8]
    there = c < channels
    if INDEX64:
        c = c.to(tl.int64)
    source = (source_ptr + n * source_stride_n * UNIT)[:, :, None] + c * source_stride_c  # [BM, 1, 8]
    result = (result_ptr + n * result_stride_n * RESULT_UNIT)[:, :, None] + c * result_stride_c
    residual = residual_ptr
    if residual_ptr is not None:
        residual = (residual_ptr + n * residual_stride_n * RESULT_UNIT)[:, :, None] + c * residual_stride_c
    packed = packed_ptr + tile_c.to(tl.int64) * (8 * CHANNEL)
    bias = load_vector(bias_ptr, c * bias_stride, there, ACC_DTYPE)
    scale = load_vector(scale_ptr, c * scale_stride, there, ACC_DTYPE)
    shift = load_vector(shift_ptr, c * shift_stride, there, ACC_DTYPE)

    o = tl.arange(0, BN)[None, :]  # [1, BN]
    band = _band_of(packed, o % TQ, o, R, TP, TQ, KW, PITCH)
    first_row = row - pad_h
    first_column = column - pad_w
    patch = source + (first_row * source_stride_h + first_column * source_stride_w)[:, :, None] * UNIT
    sums = ()
    for _ in tl.static_range(8):
        sums = sums + (tl.zeros([BM, BN], ACC_DTYPE),)
    for step in range(0, steps):
        k = (step * BK + tl.arange(0, BK))[None, :]  # [1, BK]
        if INDEX64:
            k = k.to(tl.int64)
        i = k // KW
        reads = live & (i < ROWS) & within(first_row + i, source_h) & within(first_column + k % KW, source_w)
        of_patch = ((i * source_stride_h + k % KW * source_stride_w) * UNIT)[:, :, None]
        tiles = _channels_apart(tl.load(patch + of_patch, mask=reads[:, :, None], other=0.0), BM, BK)
        added = ()
        for j in tl.static_range(8):
            weights = _band(band + j * CHANNEL, step * BK, PITCH, KW, ROWS, BK)
            added = added + (tl.dot(tiles[j], weights, sums[j], out_dtype=ACC_DTYPE),)
        sums = added
    zero = 0.0
    for j in tl.static_range(8):
        zero += tl.sum(tl.reshape(sums[j] * 0.0, [BM * BN]))  # NaN where a sum is not finite
    broken = (zero != zero).to(tl.int32)
    if broken > 0:
        weights = packed + tl.arange(0, 8)[None, None, :] * CHANNEL + ((TP - 1) * PITCH + (PITCH - KW) // 8 * 8)
        directly(
            source, weights, result, residual, bias, scale, shift, live[:, :, None] & there, broken,
            row[:, :, None], column[:, :, None], source_h, source_w, result_h, result_w, pad_h, pad_w,
            source_stride_h * UNIT, source_stride_w * UNIT, result_stride_h * RESULT_UNIT,
            result_stride_w * RESULT_UNIT, residual_stride_h * RESULT_UNIT, residual_stride_w * RESULT_UNIT,
            R, S, TP, TQ, PITCH, GRAD, ACTIVATION, ACC_DTYPE, BM, 1, 8,
        )  # fmt: skip
    else:
        p = row + o // TQ
        q = column + o % TQ
        written = (live & within(p, result_h) & within(q, result_w))[:, :, None]
        of_residual = moved(residual, ((p * residual_stride_h + q * residual_stride_w) * RESULT_UNIT)[:, :, None])
        value = finish(_channels_together(sums, BM, BN), bias, scale, shift, of_residual, written, ACTIVATION)
        to = result + ((p * result_stride_h + q * result_stride_w) * RESULT_UNIT)[:, :, None]
        tl.store(to, value.to(result_ptr.dtype.element_ty), mask=written)


def _pack_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_banded_pack_kernel_{c['R']}x{c['S']}_{c['TP']}_{c['PITCH']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_pack_repr)
def _conv_banded_pack_kernel(
    w_ptr,
    packed_ptr,
    channels,
    elements,
    w_offset,
    w_stride_c,
    w_stride_r,
    w_stride_s,
    R: tl.constexpr,
    S: tl.constexpr,
    TP: tl.constexpr,
    PITCH: tl.constexpr,
    LEAD: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pack eight copies of every window with zeros around it, copy a from column LEAD + a and row TP - 1 on.

    Tensors: w [C, R, S] by strides in elements, which may be negative, from `w_offset`; packed [C', 8, R + 2 (TP - 1),
    PITCH] contiguous, `elements` in all, of the same type; channels behind the last of w are zeros.
    Grid: (cdiv(elements, BLOCK),).
    """
    LINES: tl.constexpr = R + 2 * (TP - 1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    if INDEX64:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = i // (PITCH * LINES * 8)
    r = i // PITCH % LINES - (TP - 1)
    s = i % PITCH - LEAD - i // (PITCH * LINES) % 8
    taken = (c < channels) & (r >= 0) & (r < R) & (s >= 0) & (s < S)
    weights = tl.load(w_ptr + w_offset + (c * w_stride_c + r * w_stride_r + s * w_stride_s), mask=taken, other=0.0)
    tl.store(packed_ptr + i, weights, mask=i < elements)
