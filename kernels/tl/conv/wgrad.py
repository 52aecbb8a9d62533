"""Weight gradient as a split-K implicit GEMM over pointers, and the pass that adds the splits in order."""

import triton
import triton.language as tl

from ..common import grouped_tile, source_index


@triton.jit
def advance(digit, carry, by, size):
    """Add `by` and a carry of 0 or 1 to a digit in base `size`, `by` < `size`; return the digit and its carry."""
    digit = digit + by + carry
    carry = (digit >= size).to(digit.dtype)
    return digit - carry * size, carry


@triton.jit
def sum_pixels(
    x_channel,
    y_row,
    row_inside,
    column_inside,
    tap_d,
    tap_h,
    tap_w,
    first,
    last,
    d,
    h,
    w,
    o,
    p,
    q,
    x_strides,
    y_strides,
    STRIDE_D: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):
    """Return the tile of w that pixels `first` to `last` add up to, and the sums of its rows of y (0 without SUM_ROWS).

    Rows are channels of y at `y_row`, columns channels of x at `x_channel` that the taps at offsets `tap_d`, `tap_h`,
    `tap_w` read; strides are those of (image, depth, height, width).
    """
    BLOCK_M: tl.constexpr = row_inside.shape[0]
    BLOCK_N: tl.constexpr = column_inside.shape[0]
    x_stride_n, x_stride_d, x_stride_h, x_stride_w = x_strides
    y_stride_n, y_stride_o, y_stride_p, y_stride_q = y_strides
    pixel = first + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    pixel_q = pixel % q
    lines = pixel // q
    pixel_p = lines % p
    planes = lines // p
    pixel_o = planes % o
    pixel_n = planes // o
    # BLOCK_K pixels in mixed radix, to go from one step to the next without a division.
    step_q = BLOCK_K % q
    step_p = BLOCK_K // q % p
    step_o = BLOCK_K // q // p % o
    step_n = BLOCK_K // q // p // o

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], ACC_DTYPE)
    # Rows are summed as a product with ones, by the units that form the other products: 16 columns are the fewest.
    sums = tl.zeros([BLOCK_M, 16], ACC_DTYPE)
    ones = tl.full([BLOCK_K, 16], 1.0, tl.float32).to(x_channel.dtype.element_ty)
    for _ in range(0, tl.cdiv(last - first, BLOCK_K)):
        pixel_inside = pixel < last
        y_pixel = pixel_n * y_stride_n + pixel_o * y_stride_o + pixel_p * y_stride_p + pixel_q * y_stride_q
        a = tl.load(
            y_row[:, None] + y_pixel[None, :], mask=row_inside[:, None] & pixel_inside[None, :], other=0.0
        )  # [BLOCK_M, BLOCK_K]
        di = (pixel_o * STRIDE_D)[:, None] + tap_d
        hi = (pixel_p * STRIDE_H)[:, None] + tap_h
        wi = (pixel_q * STRIDE_W)[:, None] + tap_w
        reads = pixel_inside[:, None]
        if PADDING_MODE == "zeros":
            reads = reads & (di >= 0) & (di < d) & (hi >= 0) & (hi < h) & (wi >= 0) & (wi < w)
        di = source_index(di, d, PADDING_MODE)
        hi = source_index(hi, h, PADDING_MODE)
        wi = source_index(wi, w, PADDING_MODE)
        x_pixel = (pixel_n * x_stride_n)[:, None] + (di * x_stride_d + hi * x_stride_h + wi * x_stride_w)
        b = tl.load(x_channel[None, :] + x_pixel, mask=reads & column_inside[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=ACC_DTYPE)
        if SUM_ROWS:
            sums = tl.dot(a, ones, sums, input_precision="ieee", out_dtype=ACC_DTYPE)
        pixel += BLOCK_K
        pixel_q, carry = advance(pixel_q, 0, step_q, q)
        pixel_p, carry = advance(pixel_p, carry, step_p, p)
        pixel_o, carry = advance(pixel_o, carry, step_o, o)
        pixel_n += step_n + carry
    return accumulator, tl.sum(tl.where(tl.arange(0, 16)[None, :] == 0, sums, 0.0), axis=1)


def _repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_N']}x{c['BLOCK_K']}"
    return f"_conv_wgrad_split_k_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report FLOPs to a profiler (Triton's proton)."""
    channels = args["k_per_group"] * args["UNIT_K"] * args["groups"]
    columns = args["c_per_group"] * args["UNIT_C"]
    return {
        "name": kernel.name,
        "flops": 2 * args["pixels"] * channels * columns * args["T"] * args["R"] * args["S"],
    }


@triton.jit(repr=_repr, launch_metadata=_launch_metadata)
def _conv_wgrad_split_k_kernel(
    x_ptr,
    y_ptr,
    w_ptr,
    bias_ptr,
    pixels,
    pixels_per_split,
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
    PADDING_MODE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    ONE_TAP: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Compute w = wgrad(x, y) and bias = the sum of y over images and pixels, or one partial sum of them per split.

    GEMM view, for each group: rows M = K/G, columns N = T R S C/G, reduction N O P Q, cut into consecutive splits of
    `pixels_per_split` (a multiple of BLOCK_K).
    Tensors: x [N, C, D, H, W], w [splits, K, C/G, T, R, S], y [N, K, O, P, Q], each by strides in elements (1-D and 2-D
    have leading axes of size 1); bias [splits, K], as far from split to split as w, or None. Dtypes: x and y of one
    floating type; products are summed in ACC_DTYPE and rounded to the type of w (and of bias) at the store, which is
    ACC_DTYPE itself for partial sums. Programs of the first column of tiles sum their rows of y; others pay nothing.
    Grid: (splits * groups * tiles_m * tiles_n,) with tiles_m = cdiv(K/G, BLOCK_M). ONE_TAP gives each tile of columns
    channels of a single tap, tiles_n = T R S cdiv(C/G, BLOCK_N), so that masks have one row; without it, for few
    channels, columns run over taps and channels alike, tiles_n = cdiv(T R S C/G, BLOCK_N). INDEX64 computes pixels and
    offsets in 64 bits. `pad_*` are the low pads.
    The JIT marks multiples of 16 alone. UNIT_C = 8 says that c_per_group and the strides of x but that of the channel
    come divided by 8, which 16-byte loads of 16-bit types must know; UNIT_K likewise for k_per_group and y.
    """
    c_per_group *= UNIT_C
    x_stride_n *= UNIT_C
    x_stride_d *= UNIT_C
    x_stride_h *= UNIT_C
    x_stride_w *= UNIT_C
    k_per_group *= UNIT_K
    y_stride_n *= UNIT_K
    y_stride_o *= UNIT_K
    y_stride_p *= UNIT_K
    y_stride_q *= UNIT_K
    pid = tl.program_id(0)
    tiles = tiles_m * tiles_n
    split = pid // (groups * tiles)
    group = pid // tiles % groups
    tile_m, tile_n = grouped_tile(pid % tiles, tiles_m, tiles_n, GROUP_M)
    if INDEX64:
        split = split.to(tl.int64)
        group = group.to(tl.int64)
        tile_m = tile_m.to(tl.int64)
        tile_n = tile_n.to(tl.int64)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row_inside = rows < k_per_group
    # What depends on the tap alone is [1, 1] with ONE_TAP and [1, BLOCK_N] without.
    if ONE_TAP:
        tiles_c = tl.cdiv(c_per_group, BLOCK_N)
        tap = tile_n // tiles_c + tl.arange(0, 1)[None, :]
        column_c = tile_n % tiles_c * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        column_inside = column_c < c_per_group
    else:
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
        tap = (columns // c_per_group)[None, :]
        column_c = columns % c_per_group
        column_inside = columns < T * R * S * c_per_group
    t = tap // (R * S)
    r = tap // S % R
    s = tap % S
    tap_d = t * DILATION_D - pad_d
    tap_h = r * DILATION_H - pad_h
    tap_w = s * DILATION_W - pad_w
    x_channel = x_ptr + (group * c_per_group + column_c) * x_stride_c  # [BLOCK_N]
    y_row = y_ptr + (group * k_per_group + rows) * y_stride_k  # [BLOCK_M]

    first = split * pixels_per_split
    last = tl.minimum(first + pixels_per_split, pixels)
    x_strides = (x_stride_n, x_stride_d, x_stride_h, x_stride_w)
    y_strides = (y_stride_n, y_stride_o, y_stride_p, y_stride_q)
    # One expression, because a name given to False would be a value of the program and this branch compiled for it.
    if (tile_n == 0) if bias_ptr is not None else False:
        accumulator, sums = sum_pixels(
            x_channel, y_row, row_inside, column_inside, tap_d, tap_h, tap_w, first, last, d, h, w, o, p, q,
            x_strides, y_strides, STRIDE_D, STRIDE_H, STRIDE_W, PADDING_MODE, PRECISION, ACC_DTYPE, BLOCK_K, True,
        )  # fmt: skip
        bias = bias_ptr + (split * w_stride_split + group * k_per_group + rows)
        tl.store(bias, sums.to(bias_ptr.dtype.element_ty), mask=row_inside)
    else:
        accumulator, sums = sum_pixels(
            x_channel, y_row, row_inside, column_inside, tap_d, tap_h, tap_w, first, last, d, h, w, o, p, q,
            x_strides, y_strides, STRIDE_D, STRIDE_H, STRIDE_W, PADDING_MODE, PRECISION, ACC_DTYPE, BLOCK_K, False,
        )  # fmt: skip

    w_row = split * w_stride_split + (group * k_per_group + rows) * w_stride_k  # [BLOCK_M]
    w_column = (column_c * w_stride_c)[None, :] + (t * w_stride_t + r * w_stride_r + s * w_stride_s)  # [1, BLOCK_N]
    w_tile = w_ptr + (w_row[:, None] + w_column)
    tl.store(w_tile, accumulator.to(w_ptr.dtype.element_ty), mask=row_inside[:, None] & column_inside[None, :])


def _sum_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_conv_wgrad_sum_kernel_{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_sum_repr)
def _conv_wgrad_sum_kernel(
    partial_ptr,
    w_ptr,
    bias_ptr,
    splits,
    elements,
    weights,
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
    BLOCK: tl.constexpr,
):
    """Compute w and bias = partial.sum(0), adding the splits in their order, and round once.

    Tensors: partial [splits, elements], contiguous, of the type that sums are formed in, where a split is
    [K, T, R, S, C/G] for w, of `weights` elements, and then [K] for bias; w [K, C/G, T, R, S] by strides in elements
    and bias [K] or None, of any floating type.
    Grid: (cdiv(elements, BLOCK),).
    """
    block = tl.program_id(0)
    if INDEX64:
        block = block.to(tl.int64)
    element = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = element < elements
    total = tl.zeros([BLOCK], partial_ptr.dtype.element_ty)
    partial = partial_ptr + element
    for _ in range(0, splits):
        total += tl.load(partial, mask=inside, other=0.0)
        partial += elements

    c = element % c_per_group
    tap = element // c_per_group
    s = tap % S
    r = tap // S % R
    t = tap // (R * S) % T
    k = tap // (T * R * S)
    w_element = k * w_stride_k + c * w_stride_c + t * w_stride_t + r * w_stride_r + s * w_stride_s
    of_weight = element < weights
    tl.store(w_ptr + w_element, total.to(w_ptr.dtype.element_ty), mask=of_weight)
    if bias_ptr is not None:
        bias = bias_ptr + (element - weights)
        tl.store(bias, total.to(bias_ptr.dtype.element_ty), mask=inside & (element >= weights))
