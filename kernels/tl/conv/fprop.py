"""Forward convolution as an implicit GEMM over pointers, and the passes that pack its weights and add its splits."""

import triton
import triton.language as tl

from ..common import epilogue, four_axes, grouped_tile, source_index, tile_pointers


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_fprop_implicit_gemm_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs to a profiler (Triton's proton)."""
    pixels = args["n"] * args["o"] * args["p"] * args["q"]
    channels = args["k_per_group"] * args["UNIT_K"] * args["groups"]
    reduction = args["c_per_group"] * args["UNIT_C"] * args["T"] * args["R"] * args["S"]
    return {"name": kernel.name, "flops": 2 * pixels * channels * reduction}


@triton.jit
def _load_flat(
    step, x_image, d0, h0, w0, row_inside, bits, w_base, column_inside, c_per_group, d, h, w,
    x_stride_c, x_stride_d, x_stride_h, x_stride_w, w_stride_c, w_stride_t, w_stride_r, w_stride_s,
    T: tl.constexpr, R: tl.constexpr, S: tl.constexpr, DILATION_D: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, PADDING_MODE: tl.constexpr, INDEX64: tl.constexpr, TAP_BITS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return the operands of a step whose elements are channels and taps in one row, the taps of a channel together."""
    element = step * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    channel = element // (T * R * S)
    tap = element % (T * R * S)
    there = channel < c_per_group
    t = tap // (R * S)
    r = tap // S % R
    s = tap % S
    if INDEX64:
        channel = channel.to(tl.int64)
        t = t.to(tl.int64)
        r = r.to(tl.int64)
        s = s.to(tl.int64)
    di = d0[:, None] + (t * DILATION_D)[None, :]  # [BLOCK_M, BLOCK_K], as the others
    hi = h0[:, None] + (r * DILATION_H)[None, :]
    wi = w0[:, None] + (s * DILATION_W)[None, :]
    reads = row_inside[:, None] & there[None, :]
    if TAP_BITS:
        reads = reads & (((bits[:, None] >> tap[None, :]) & 1) != 0)
    elif PADDING_MODE == "zeros":
        reads = reads & (di >= 0) & (di < d) & (hi >= 0) & (hi < h) & (wi >= 0) & (wi < w)
    di = source_index(di, d, PADDING_MODE)
    hi = source_index(hi, h, PADDING_MODE)
    wi = source_index(wi, w, PADDING_MODE)
    at = di * x_stride_d + hi * x_stride_h + wi * x_stride_w + (channel * x_stride_c)[None, :]
    a = tl.load(x_image[:, None] + at, mask=reads, other=0.0)
    of_tap = channel * w_stride_c + t * w_stride_t + r * w_stride_r + s * w_stride_s
    b = tl.load(w_base[None, :] + of_tap[:, None], mask=there[:, None] & column_inside[None, :], other=0.0)
    return a, b


@triton.jit(repr=_repr, launch_metadata=_launch_metadata)
def _conv_fprop_implicit_gemm_kernel(
    x_ptr,
    w_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
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
    steps_per_split,
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
    y_stride_split,
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
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    TAP_BITS: tl.constexpr,
    FLAT: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute y = activation((conv(x, w) + bias) * scale + shift + residual), or one partial sum of conv per split.

    GEMM view, for each group: rows M = N O P Q, columns N = K/G, reduction C/G T R S in steps of BLOCK_K channels
    of one tap. All taps of a chunk of channels come before the next chunk: they read much the same of x, and a step
    is taken apart by constants. FLAT, for few channels, has steps of BLOCK_K elements of channels times taps.
    Splits are consecutive runs of `steps_per_split` steps.
    Tensors: x [N, C, D, H, W], w [K, C/G, T, R, S], y [splits, N, K, O, P, Q], residual [N, K, O, P, Q], each by
    strides in elements (1-D and 2-D have leading axes of size 1); bias, scale, shift [K], each by one stride, or None.
    Dtypes: x, w and vectors of one floating type; products are summed in ACC_DTYPE and rounded once, at the store, to
    the type of y, which is ACC_DTYPE itself for partial sums.
    Units: `c_per_group` and the strides of x and w, but not those along C, are given divided by UNIT_C, `k_per_group`
    and the strides of y and residual, but not those along K, divided by UNIT_K. The JIT looks for multiples of 16
    alone: a unit of 8 tells the compiler of channels that are multiples of 8.
    Grid: (splits * groups * tiles_m * tiles_n,) with tiles_m = cdiv(M, BLOCK_M) and tiles_n = cdiv(K/G, BLOCK_N).
    Tiles of one group are neighbours. INDEX64 computes rows and offsets in 64 bits, for tensors that 32-bit offsets do
    not reach. `pad_d`, `pad_h`, `pad_w` are the low pads; the high ones follow from the sizes. TAP_BITS keeps, for each
    row, one bit per tap that tells whether it reads inside x: it needs zero padding and at most 32 taps.
    """
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    split = pid // (groups * tiles)
    group = pid // tiles % groups
    tile_m, tile_n = grouped_tile(pid % tiles, tiles_m, tiles_n, GROUP_M)
    c_per_group = c_per_group * UNIT_C
    k_per_group = k_per_group * UNIT_K
    chunks = tl.cdiv(c_per_group, BLOCK_K)
    first = split * steps_per_split
    steps = T * R * S * chunks
    if FLAT:
        steps = tl.cdiv(c_per_group * (T * R * S), BLOCK_K)
    last = tl.minimum(first + steps_per_split, steps)
    if INDEX64:
        split = split.to(tl.int64)
        group = group.to(tl.int64)
        tile_m = tile_m.to(tl.int64)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    if INDEX64:
        columns = columns.to(tl.int64)
        depth = depth.to(tl.int64)
    row_n, row_o, row_p, row_q = four_axes(rows, o, p, q)
    row_inside = row_n < n
    column_inside = columns < k_per_group
    d0 = row_o * STRIDE_D - pad_d
    h0 = row_p * STRIDE_H - pad_h
    w0 = row_q * STRIDE_W - pad_w

    x_image = x_ptr + group * c_per_group * x_stride_c + row_n * x_stride_n * UNIT_C  # [BLOCK_M]
    x_corner = x_image + (d0 * x_stride_d + h0 * x_stride_h + w0 * x_stride_w) * UNIT_C
    w_base = w_ptr + (group * k_per_group + columns) * w_stride_k * UNIT_C  # [BLOCK_N]

    bits = row_inside
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
    for step in range(first, last):
        if FLAT:
            a, b = _load_flat(
                step, x_image, d0, h0, w0, row_inside, bits, w_base, column_inside, c_per_group, d, h, w,
                x_stride_c, x_stride_d * UNIT_C, x_stride_h * UNIT_C, x_stride_w * UNIT_C,
                w_stride_c, w_stride_t * UNIT_C, w_stride_r * UNIT_C, w_stride_s * UNIT_C,
                T, R, S, DILATION_D, DILATION_H, DILATION_W, PADDING_MODE, INDEX64, TAP_BITS, BLOCK_K,
            )  # fmt: skip
        else:
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
                tap_offset = t * DILATION_D * x_stride_d + r * DILATION_H * x_stride_h + s * DILATION_W * x_stride_w
                x_row = x_corner + tap_offset * UNIT_C
            else:
                di = d0 + t * DILATION_D
                hi = h0 + r * DILATION_H
                wi = w0 + s * DILATION_W
                reads = row_inside
                if PADDING_MODE == "zeros":
                    reads = reads & (di >= 0) & (di < d) & (hi >= 0) & (hi < h) & (wi >= 0) & (wi < w)
                di = source_index(di, d, PADDING_MODE)
                hi = source_index(hi, h, PADDING_MODE)
                wi = source_index(wi, w, PADDING_MODE)
                x_row = x_image + (di * x_stride_d + hi * x_stride_h + wi * x_stride_w) * UNIT_C
            channel_inside = channels < c_per_group
            a = tl.load(
                x_row[:, None] + (channels * x_stride_c)[None, :],
                mask=reads[:, None] & channel_inside[None, :],
                other=0.0,
            )  # [BLOCK_M, BLOCK_K]
            w_tap = w_base + (t * w_stride_t + r * w_stride_r + s * w_stride_s) * UNIT_C
            b = tl.load(
                w_tap[None, :] + (channels * w_stride_c)[:, None],
                mask=channel_inside[:, None] & column_inside[None, :],
                other=0.0,
            )  # [BLOCK_K, BLOCK_N]
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=ACC_DTYPE)

    channel = group * k_per_group + columns  # [BLOCK_N]
    written = row_inside[:, None] & column_inside[None, :]
    residual_row = (
        row_n * residual_stride_n + row_o * residual_stride_o + row_p * residual_stride_p + row_q * residual_stride_q
    )
    accumulator = epilogue(
        accumulator, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
        tile_pointers(residual_ptr, residual_row * UNIT_K, channel * residual_stride_k),
        channel, column_inside, written, ACTIVATION,
    )  # fmt: skip

    y_row = row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q + split * y_stride_split
    y_tile = y_ptr + ((y_row * UNIT_K)[:, None] + (channel * y_stride_k)[None, :])
    tl.store(y_tile, accumulator.to(y_ptr.dtype.element_ty), mask=written)


def _pack_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_fprop_pack_kernel_{c['T']}x{c['R']}x{c['S']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_pack_repr)
def _conv_fprop_pack_kernel(
    w_ptr,
    packed_ptr,
    c_per_group,
    w_stride_k,
    w_stride_c,
    w_stride_t,
    w_stride_r,
    w_stride_s,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Copy w to packed, channels innermost.

    Tensors: w [K, C/G, T, R, S] by strides in elements, packed [K, T, R, S, C/G] contiguous, of the same type.
    Grid: (K * cdiv(T R S, BLOCK_T) * cdiv(C/G, BLOCK_C),). A program copies BLOCK_T taps of BLOCK_C channels of one
    filter: where taps are innermost in w, what it reads lies together.
    """
    pid = tl.program_id(0)
    tiles_t: tl.constexpr = (T * R * S + BLOCK_T - 1) // BLOCK_T
    tiles_c = tl.cdiv(c_per_group, BLOCK_C)
    k = pid // (tiles_t * tiles_c)
    if INDEX64:
        k = k.to(tl.int64)
    tap = pid // tiles_c % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T]
    c = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    inside = (tap < T * R * S)[:, None] & (c < c_per_group)[None, :]
    s = tap % S
    r = tap // S % R
    t = tap // (R * S)
    if INDEX64:
        c = c.to(tl.int64)
        t = t.to(tl.int64)
        r = r.to(tl.int64)
        s = s.to(tl.int64)
    w_tap = w_ptr + k * w_stride_k + (t * w_stride_t + r * w_stride_r + s * w_stride_s)
    values = tl.load(w_tap[:, None] + (c * w_stride_c)[None, :], mask=inside, other=0.0)  # [BLOCK_T, BLOCK_C]
    packed_tap = packed_ptr + (k * (T * R * S) + tap) * c_per_group
    tl.store(packed_tap[:, None] + c[None, :], values, mask=inside)


def _sum_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_fprop_sum_kernel_{c['BLOCK_M']}x{c['BLOCK_N']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_sum_repr)
def _conv_fprop_sum_kernel(
    partial_ptr,
    y_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    splits,
    elements,
    rows,
    k,
    o,
    p,
    q,
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
    ACTIVATION: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute y = activation((partial.sum(0) + bias) * scale + shift + residual), adding the splits in their order.

    Tensors: partial [splits, N, O, P, Q, K], contiguous, of the type that sums are formed in; y and residual
    [N, K, O, P, Q] and bias, scale, shift [K], or None, by strides in elements; rounded once, at the store. `rows` is
    N O P Q, `elements` is N O P Q K.
    Grid: (cdiv(rows, BLOCK_M) * cdiv(K, BLOCK_N),).
    """
    pid = tl.program_id(0)
    tiles_n = tl.cdiv(k, BLOCK_N)
    tile_m = pid // tiles_n
    if INDEX64:
        tile_m = tile_m.to(tl.int64)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    if INDEX64:
        channel = channel.to(tl.int64)
    channel_inside = channel < k
    inside = (row < rows)[:, None] & channel_inside[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], partial_ptr.dtype.element_ty)
    partial = partial_ptr + ((row * k)[:, None] + channel[None, :])
    for _ in range(0, splits):
        total += tl.load(partial, mask=inside, other=0.0)
        partial += elements

    row_n, row_o, row_p, row_q = four_axes(row, o, p, q)
    residual_row = (
        row_n * residual_stride_n + row_o * residual_stride_o + row_p * residual_stride_p + row_q * residual_stride_q
    )
    total = epilogue(
        total, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
        tile_pointers(residual_ptr, residual_row, channel * residual_stride_k),
        channel, channel_inside, inside, ACTIVATION,
    )  # fmt: skip
    y_row = row_n * y_stride_n + row_o * y_stride_o + row_p * y_stride_p + row_q * y_stride_q
    y_tile = y_ptr + (y_row[:, None] + (channel * y_stride_k)[None, :])
    tl.store(y_tile, total.to(y_ptr.dtype.element_ty), mask=inside)
