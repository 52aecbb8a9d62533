"""Data gradient and transposed convolution as an implicit GEMM per stride phase: any strides, 1-D to 3-D.

The convolution adds x[i] * w[t] to y[o] where i + pad = o * stride + t * dilation, along each axis. For its data
gradient, position i of x gathers from the taps with t * dilation = i + pad (modulo stride). Positions with the same
residue of i + pad modulo stride, a *phase*, share these taps, so each phase is a dense convolution of its own:

* with g = gcd(stride, dilation), residues that g does not divide have no tap; their positions are zero (or epilogue);
* the others have every (stride / g)-th tap, from a first one below stride / g, and phases and first taps are
  one to one;
* one such tap further on, y is read dilation / g positions lower.
"""

import triton
import triton.language as tl

from .common import epilogue, floor_mod, grouped_tile, source_index


@triton.jit
def phase_positions(number, size, pad, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr):
    """Return the first position of phase `number` along an axis, and how many positions it has.

    The phases with taps come first, by their first tap, so those with most taps lead; there are STEP of them, which is
    stride / gcd(stride, dilation). A phase beyond a small input has no position.
    """
    GCD: tl.constexpr = STRIDE // STEP
    residue = number * (DILATION % STRIDE) % STRIDE
    if GCD > 1:
        rest = number - STEP
        residue = tl.where(number < STEP, residue, rest // (GCD - 1) * GCD + 1 + rest % (GCD - 1))
    start = floor_mod(residue - pad, STRIDE)
    return start, (size - start + STRIDE - 1) // STRIDE


@triton.jit
def image_coordinate(i, image, size, pad_lo, pad_hi, PADDING_MODE: tl.constexpr):
    """Return the padded coordinate number `image` that may show input position `i`; number 0 is `i` itself."""
    if PADDING_MODE == "reflect":
        i = tl.where(image == 1, -i, tl.where(image == 2, 2 * (size - 1) - i, i))
    elif PADDING_MODE == "replicate":
        beyond = tl.where(image <= pad_lo, -image, size - 1 + image - pad_lo)
        i = tl.where(image == 0, i, beyond)
    elif PADDING_MODE == "circular":
        wraps = (pad_hi + size - 1) // size
        i = i + tl.where(image <= wraps, image, wraps - image) * size
    return i


@triton.jit
def image_taps(
    i,
    start,
    image,
    size,
    pad_lo,
    pad_hi,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
    INVERSE: tl.constexpr,
    PADDING_MODE: tl.constexpr,
):
    """Return how an axis of w and y reaches one image of positions `i`, all of the phase that begins at `start`.

    Returns the first tap, the number of taps, the position of y that the first tap reads (exact where the image is
    shown), and where it is shown: inside the padded input, and not what an earlier image is. INVERSE is the inverse of
    dilation / gcd modulo STEP: the first tap solves tap * dilation = coordinate + pad (modulo stride).
    """
    coordinate = image_coordinate(i, image, size, pad_lo, pad_hi, PADDING_MODE)
    residue = floor_mod(image_coordinate(start, image, size, pad_lo, pad_hi, PADDING_MODE) + pad_lo, STRIDE)
    GCD: tl.constexpr = STRIDE // STEP
    first = residue // GCD * INVERSE % STEP
    taps = tl.where(residue % GCD == 0, (TAPS - first + STEP - 1) // STEP, 0)
    shown = (coordinate >= -pad_lo) & (coordinate < size + pad_hi)
    if PADDING_MODE != "zeros":
        shown = shown & (source_index(coordinate, size, PADDING_MODE) == i)
        shown = tl.where(image == 0, shown, shown & (coordinate != i))
    return first, taps, (coordinate + pad_lo - first * DILATION) // STRIDE, shown


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    strides = f"s{c['STRIDE_D']}x{c['STRIDE_H']}x{c['STRIDE_W']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_dgrad_implicit_gemm_kernel_{taps}_{strides}_{tile}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs to a profiler (Triton's proton)."""
    pixels = args["n"] * args["o"] * args["p"] * args["q"]
    channels = args["k_per_group"] * args["UNIT_K"] * args["groups"]
    return {
        "name": kernel.name,
        "flops": 2 * pixels * channels * args["c_per_group"] * args["UNIT_C"] * args["T"] * args["R"] * args["S"],
    }


@triton.jit(repr=_repr, launch_metadata=_launch_metadata)
def _conv_dgrad_implicit_gemm_kernel(
    y_ptr,
    w_ptr,
    x_ptr,
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
    residual_stride_n,
    residual_stride_c,
    residual_stride_d,
    residual_stride_h,
    residual_stride_w,
    bias_stride,
    scale_stride,
    shift_stride,
    pad_d,
    pad_h,
    pad_w,
    pad_high_d,
    pad_high_h,
    pad_high_w,
    images_h,
    images_w,
    images,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_D: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_D: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    INVERSE_D: tl.constexpr,
    INVERSE_H: tl.constexpr,
    INVERSE_W: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    TAP_BITS: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute x = activation((dgrad(y, w) + bias) * scale + shift + residual).

    GEMM view, for each phase and group: rows M = positions N D H W of x in the phase, columns N = C/G, reduction
    (taps of the phase) K/G in that order. Padding other than zeros adds a sum over the images of each position: the
    padded coordinates that show it. For one image all rows of a phase have the same taps, and a tile none of whose rows
    have it skips it.
    Tensors: x and residual [N, C, D, H, W], w [K, C/G, T, R, S], y [N, K, O, P, Q], each by five strides in elements
    (1-D and 2-D have leading axes of size 1); bias, scale, shift [C], each by one stride, or None. Dtypes: all of one
    floating type; products are summed in ACC_DTYPE and rounded once, at the store.
    Grid: (STRIDE_D * STRIDE_H * STRIDE_W * groups * tiles_m * tiles_n,), the phases with most taps first, with tiles_m
    enough for the largest phase and tiles_n = cdiv(C/G, BLOCK_N). INDEX64 computes rows and offsets in 64 bits.
    `pad_*` are the low pads, `pad_high_*` the high ones; `images` is the number of images of a position, `images_h` and
    `images_w` those along one axis (all 1 for zeros). STEP and INVERSE: see `phase_positions` and `image_taps`.
    TAP_BITS keeps, for each row, one bit per tap of its phase that tells whether it reads inside y: it needs zero
    padding and phases of at most 32 taps.
    The JIT marks multiples of 16 alone. UNIT_C = 8 says that c_per_group and the strides of x and w but those of the
    channel come divided by 8, which 16-byte loads of 16-bit types must know; UNIT_K likewise for k_per_group and y.
    """
    c_per_group *= UNIT_C
    x_stride_n *= UNIT_C
    x_stride_d *= UNIT_C
    x_stride_h *= UNIT_C
    x_stride_w *= UNIT_C
    w_stride_k *= UNIT_C
    w_stride_t *= UNIT_C
    w_stride_r *= UNIT_C
    w_stride_s *= UNIT_C
    k_per_group *= UNIT_K
    y_stride_n *= UNIT_K
    y_stride_o *= UNIT_K
    y_stride_p *= UNIT_K
    y_stride_q *= UNIT_K
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    phase = pid // (groups * tiles)
    group = pid // tiles % groups
    tile_m, tile_n = grouped_tile(pid % tiles, tiles_m, tiles_n, GROUP_M)
    if INDEX64:
        phase = phase.to(tl.int64)
        group = group.to(tl.int64)
        tile_m = tile_m.to(tl.int64)

    start_d, count_d = phase_positions(phase // (STRIDE_H * STRIDE_W), d, pad_d, STRIDE_D, DILATION_D, STEP_D)
    start_h, count_h = phase_positions(phase // STRIDE_W % STRIDE_H, h, pad_h, STRIDE_H, DILATION_H, STEP_H)
    start_w, count_w = phase_positions(phase % STRIDE_W, w, pad_w, STRIDE_W, DILATION_W, STEP_W)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    depth = tl.arange(0, BLOCK_K)  # [BLOCK_K]
    if INDEX64:
        columns = columns.to(tl.int64)
        depth = depth.to(tl.int64)
    phase_rows = n * count_d * count_h * count_w
    row_inside = rows < phase_rows
    column_inside = columns < c_per_group
    # A phase without positions has no rows: any divisor but zero will do.
    lines = rows // tl.maximum(count_w, 1)
    planes = lines // tl.maximum(count_h, 1)
    row_n = planes // tl.maximum(count_d, 1)
    row_d = start_d + (planes - row_n * count_d) * STRIDE_D
    row_h = start_h + (lines - planes * count_h) * STRIDE_H
    row_w = start_w + (rows - lines * count_w) * STRIDE_W

    y_image = y_ptr + group * k_per_group * y_stride_k + row_n * y_stride_n  # [BLOCK_M]
    w_base = w_ptr + group * k_per_group * w_stride_k + columns * w_stride_c  # [BLOCK_N]
    # From one tap of a phase to its next, y moves by SHIFT; no phase has more taps than MOST.
    SHIFT_D: tl.constexpr = DILATION_D * STEP_D // STRIDE_D
    SHIFT_H: tl.constexpr = DILATION_H * STEP_H // STRIDE_H
    SHIFT_W: tl.constexpr = DILATION_W * STEP_W // STRIDE_W
    MOST_T: tl.constexpr = (T + STEP_D - 1) // STEP_D
    MOST_R: tl.constexpr = (R + STEP_H - 1) // STEP_H
    MOST_S: tl.constexpr = (S + STEP_W - 1) // STEP_W

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    chunks = tl.cdiv(k_per_group, BLOCK_K)
    for image in range(0, images):
        first_t, taps_t, o0, shown_d = image_taps(
            row_d, start_d, image // (images_h * images_w), d, pad_d, pad_high_d,
            T, STRIDE_D, DILATION_D, STEP_D, INVERSE_D, PADDING_MODE,
        )  # fmt: skip
        first_r, taps_r, p0, shown_h = image_taps(
            row_h, start_h, image // images_w % images_h, h, pad_h, pad_high_h,
            R, STRIDE_H, DILATION_H, STEP_H, INVERSE_H, PADDING_MODE,
        )  # fmt: skip
        first_s, taps_s, q0, shown_w = image_taps(
            row_w, start_w, image % images_w, w, pad_w, pad_high_w,
            S, STRIDE_W, DILATION_W, STEP_W, INVERSE_W, PADDING_MODE,
        )  # fmt: skip
        shown = row_inside & shown_d & shown_h & shown_w
        y_corner = y_image + (o0 * y_stride_o + p0 * y_stride_p + q0 * y_stride_q)
        if TAP_BITS:
            bits = tl.zeros([BLOCK_M], tl.int32)
            for tap_t in tl.static_range(MOST_T):
                for tap_r in tl.static_range(MOST_R):
                    for tap_s in tl.static_range(MOST_S):
                        in_o = (o0 - tap_t * SHIFT_D >= 0) & (o0 - tap_t * SHIFT_D < o)
                        in_p = (p0 - tap_r * SHIFT_H >= 0) & (p0 - tap_r * SHIFT_H < p)
                        in_q = (q0 - tap_s * SHIFT_W >= 0) & (q0 - tap_s * SHIFT_W < q)
                        inside = in_o & in_p & in_q & shown
                        bits |= inside.to(tl.int32) << ((tap_t * MOST_R + tap_r) * MOST_S + tap_s)

        # Smaller phases have tiles without rows, and most rows have no image but themselves.
        if PADDING_MODE == "zeros":
            useful = tile_m * BLOCK_M < phase_rows
        else:
            useful = tl.max(shown.to(tl.int32), axis=0) != 0
        steps = tl.where(useful, taps_t * taps_r * taps_s * chunks, 0)
        for step in range(0, steps):
            tap = step // chunks
            channels = (step - tap * chunks) * BLOCK_K + depth  # [BLOCK_K]
            t = tap // (taps_r * taps_s)
            r = tap // taps_s % taps_r
            s = tap % taps_s
            if INDEX64:
                t = t.to(tl.int64)
                r = r.to(tl.int64)
                s = s.to(tl.int64)
            if TAP_BITS:
                reads = ((bits >> ((t * MOST_R + r) * MOST_S + s).to(tl.int32)) & 1) != 0
            else:
                oi = o0 - t * SHIFT_D
                pi = p0 - r * SHIFT_H
                qi = q0 - s * SHIFT_W
                reads = shown & (oi >= 0) & (oi < o) & (pi >= 0) & (pi < p) & (qi >= 0) & (qi < q)
            channel_inside = channels < k_per_group
            y_row = y_corner - (t * SHIFT_D * y_stride_o + r * SHIFT_H * y_stride_p + s * SHIFT_W * y_stride_q)
            a = tl.load(
                y_row[:, None] + (channels * y_stride_k)[None, :],
                mask=reads[:, None] & channel_inside[None, :],
                other=0.0,
            )  # [BLOCK_M, BLOCK_K]
            w_tap = w_base + (
                (first_t + t * STEP_D) * w_stride_t
                + (first_r + r * STEP_H) * w_stride_r
                + (first_s + s * STEP_W) * w_stride_s
            )
            b = tl.load(
                w_tap[None, :] + (channels * w_stride_k)[:, None],
                mask=channel_inside[:, None] & column_inside[None, :],
                other=0.0,
            )  # [BLOCK_K, BLOCK_N]
            accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=ACC_DTYPE)

    channel = group * c_per_group + columns  # [BLOCK_N]
    written = row_inside[:, None] & column_inside[None, :]
    residual_tile = residual_ptr
    if residual_ptr is not None:
        residual_row = (
            row_n * residual_stride_n
            + row_d * residual_stride_d
            + row_h * residual_stride_h
            + row_w * residual_stride_w
        )
        residual_tile = residual_ptr + (residual_row[:, None] + (channel * residual_stride_c)[None, :])
    accumulator = epilogue(
        accumulator, bias_ptr, scale_ptr, shift_ptr, bias_stride, scale_stride, shift_stride,
        residual_tile, channel, column_inside, written, ACTIVATION,
    )  # fmt: skip

    x_row = row_n * x_stride_n + row_d * x_stride_d + row_h * x_stride_h + row_w * x_stride_w
    x_tile = x_ptr + (x_row[:, None] + (channel * x_stride_c)[None, :])
    tl.store(x_tile, accumulator.to(x_ptr.dtype.element_ty), mask=written)
