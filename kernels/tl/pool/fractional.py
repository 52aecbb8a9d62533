"""Fractional max pools (Graham 2014) with given random samples: windows of their own for every plane, and gradients."""

import triton
import triton.language as tl

from .axes import divide, place, take_larger, tile_of
from .names import bytes_metadata


@triton.jit
def rounded(value, DTYPE: tl.constexpr, ROUND: tl.constexpr):
    """Return float32 `value` as DTYPE would hold it, rounded to the nearest, where ROUND asks for that."""
    if ROUND:
        if DTYPE == tl.bfloat16:
            # Triton's interpreter, where this is needed, cuts off bits in its own conversion.
            bits = value.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
            value = bits.to(tl.float32, bitcast=True)
        else:
            value = value.to(DTYPE).to(tl.float32)
    return value


@triton.jit
def fractional_start(i, size, windows, window, samples_ptr, offset, inside, ROUND: tl.constexpr):
    """Return the first position of window `i` of `windows` along an axis, as torch's ``generate_intervals``.

    With a = (size - window) / (windows - 1) and the sample u of the plane: int((i + u) a) - int(u a), and the last
    window ends with the axis. All in the type of the samples, float32 for 16-bit ones; ROUND rounds those every time,
    as torch does on the CPU. A sample outside of [0, 1) gives windows inside of the axis all the same.
    """
    DTYPE: tl.constexpr = samples_ptr.dtype.element_ty
    WORK: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    sample = tl.load(samples_ptr + offset, mask=inside, other=0.0).to(WORK)
    last = i * 0 + (size - window)
    intervals = tl.maximum(i * 0 + (windows - 1), 1)
    alpha = divide(rounded(last.to(WORK), DTYPE, ROUND), rounded(intervals.to(WORK), DTYPE, ROUND))
    alpha = rounded(alpha, DTYPE, ROUND)
    moved = rounded(rounded(i.to(WORK), DTYPE, ROUND) + sample, DTYPE, ROUND)
    moved = rounded(moved * alpha, DTYPE, ROUND).to(last.dtype) - rounded(sample * alpha, DTYPE, ROUND).to(last.dtype)
    return tl.where(i == windows - 1, last, tl.minimum(tl.maximum(moved, 0), last))


@triton.jit
def first_candidate(i, size, windows, window, slack):
    """Return the first window that may contain position `i`, whatever the sample.

    Window j starts less than one position from j (size - window) / (windows - 1), or less than two in front of it where
    the sample is negative. `slack` covers what is beyond one position: 1 for negative samples, and more for roundings.
    """
    reach = tl.maximum(i - window - slack, 0) * (windows - 1)
    last = tl.maximum(i * 0 + (size - window), 1)
    return (reach + last - 1) // last


def _fprop_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    taps = f"{c['T']}x{c['R']}x{c['S']}"
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_fractional_fprop_window_kernel_{taps}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_fprop_repr, launch_metadata=bytes_metadata)
def _pool_fractional_fprop_window_kernel(
    x_ptr,
    samples_ptr,
    y_ptr,
    indices_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    tiles_l,
    sample_d,
    sample_h,
    sample_w,
    samples_stride_n,
    samples_stride_c,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    indices_stride_n,
    indices_stride_c,
    indices_stride_o,
    indices_stride_p,
    indices_stride_q,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    OFFSETS: tl.constexpr,
    ROUND: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute y and, unless it is None, the indices of a fractional max pool of x with windows of T R S.

    Tile: BLOCK_M rows by BLOCK_L lanes of y, each place of which walks through its window. With CHANNELS_INNERMOST
    lanes are C and rows N O P Q, else lanes are Q and rows N C O P.
    Tensors: x [N, C, D, H, W], y and indices [N, C, O, P, Q] by five strides in elements (2-D has a leading axis of
    size 1); samples [N, C, axes] by two strides and the offset of each axis (`sample_d`, `sample_h`, `sample_w`).
    Dtypes: x, samples and y of one floating type, compared in ACC_DTYPE. Indices are positions in the plane D H W, or
    with OFFSETS the tap ``(t R + r) S + s`` of the window. ROUND: see `fractional_start`.
    Grid: (cdiv(rows, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    i_n, i_c, i_o, i_p, i_q, inside = place(row, lane, n, c, o, p, q, CHANNELS_INNERMOST)
    plane = i_n * samples_stride_n + i_c * samples_stride_c
    known = (i_n < n) & (i_c < c)
    first_d = fractional_start(i_o, d, o, T, samples_ptr, plane + sample_d, known, ROUND)
    first_h = fractional_start(i_p, h, p, R, samples_ptr, plane + sample_h, known, ROUND)
    first_w = fractional_start(i_q, w, q, S, samples_ptr, plane + sample_w, known, ROUND)
    x_corner = (
        x_ptr
        + (i_n * x_stride_n + i_c * x_stride_c)
        + (first_d * x_stride_d + first_h * x_stride_h + first_w * x_stride_w)
    )  # [BLOCK_M, BLOCK_L]

    best = tl.full([BLOCK_M, BLOCK_L], float("-inf"), ACC_DTYPE)
    at = tl.zeros([BLOCK_M, BLOCK_L], tl.int64 if INDEX64 else tl.int32)
    for t in range(0, T):
        for r in range(0, R):
            before = (t * R + r) * S if OFFSETS else (t * h + r) * w
            for s in range(0, S):
                seen = tl.load(
                    x_corner + (t * x_stride_d + r * x_stride_h + s * x_stride_w), mask=inside, other=float("-inf")
                ).to(ACC_DTYPE)
                best, at = take_larger(seen, before + s, best, at)

    y_offset = i_n * y_stride_n + i_c * y_stride_c + i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
    tl.store(y_ptr + y_offset, best.to(y_ptr.dtype.element_ty), mask=inside)
    if indices_ptr is not None:
        if not OFFSETS:
            at += (first_d * h + first_h) * w + first_w
        indices_offset = i_n * indices_stride_n + i_c * indices_stride_c
        indices_offset += i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
        tl.store(indices_ptr + indices_offset, at.to(indices_ptr.dtype.element_ty), mask=inside)


def _bwd_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    kind = "_offsets" if c["OFFSETS"] else ""
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_fractional_bwd_gather_kernel{kind}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_bwd_repr, launch_metadata=bytes_metadata)
def _pool_fractional_bwd_gather_kernel(
    y_ptr,
    indices_ptr,
    samples_ptr,
    dx_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    tiles_l,
    most_o,
    most_p,
    most_q,
    slack_d,
    slack_h,
    slack_w,
    sample_d,
    sample_h,
    sample_w,
    samples_stride_n,
    samples_stride_c,
    dx_stride_n,
    dx_stride_c,
    dx_stride_d,
    dx_stride_h,
    dx_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    indices_stride_n,
    indices_stride_c,
    indices_stride_o,
    indices_stride_p,
    indices_stride_q,
    T: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    OFFSETS: tl.constexpr,
    ROUND: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute dx, the gradient of a fractional max pool's input, from y, the gradient of its output, and indices.

    Every position of dx looks at the windows that may contain it, whatever the samples: `most_o`, `most_p` and `most_q`
    of them along each axis, from `first_candidate` on. It gathers y, in the order of the windows, where the index is
    the position; with OFFSETS, which are relative to windows, their starts are computed from the samples once more.
    Tile: BLOCK_M rows by BLOCK_L lanes of dx. With CHANNELS_INNERMOST lanes are C and rows N D H W, else lanes are W
    and rows N C D H. Tensors, dtypes and grid: as the forward kernel's; samples may be None without OFFSETS.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    i_n, i_c, i_d, i_h, i_w, inside = place(row, lane, n, c, d, h, w, CHANNELS_INNERMOST)
    first_o = first_candidate(i_d, d, o, T, slack_d)
    first_p = first_candidate(i_h, h, p, R, slack_h)
    first_q = first_candidate(i_w, w, q, S, slack_w)
    y_plane = y_ptr + (i_n * y_stride_n + i_c * y_stride_c)
    indices_plane = indices_ptr + (i_n * indices_stride_n + i_c * indices_stride_c)
    position = (i_d * h + i_h) * w + i_w  # [BLOCK_M, BLOCK_L]
    if OFFSETS:
        plane = i_n * samples_stride_n + i_c * samples_stride_c
        known = (i_n < n) & (i_c < c)

    total = tl.zeros([BLOCK_M, BLOCK_L], ACC_DTYPE)
    for t in range(0, most_o):
        j_o = first_o + t
        look_o = inside & (j_o < o)
        if OFFSETS:
            tap_d = i_d - fractional_start(j_o, d, o, T, samples_ptr, plane + sample_d, known, ROUND)
            look_o = look_o & (tap_d >= 0) & (tap_d < T)
        for r in range(0, most_p):
            j_p = first_p + r
            look_p = look_o & (j_p < p)
            if OFFSETS:
                tap_h = i_h - fractional_start(j_p, h, p, R, samples_ptr, plane + sample_h, known, ROUND)
                look_p = look_p & (tap_h >= 0) & (tap_h < R)
            for s in range(0, most_q):
                j_q = first_q + s
                look = look_p & (j_q < q)
                if OFFSETS:
                    tap_w = i_w - fractional_start(j_q, w, q, S, samples_ptr, plane + sample_w, known, ROUND)
                    look = look & (tap_w >= 0) & (tap_w < S)
                    wanted = (tap_d * R + tap_h) * S + tap_w
                else:
                    wanted = position
                indices_offset = j_o * indices_stride_o + j_p * indices_stride_p + j_q * indices_stride_q
                chosen = tl.load(indices_plane + indices_offset, mask=look, other=-1)
                y_offset = j_o * y_stride_o + j_p * y_stride_p + j_q * y_stride_q
                seen = tl.load(y_plane + y_offset, mask=look & (chosen == wanted), other=0.0)
                total += seen.to(ACC_DTYPE)

    dx_offset = i_n * dx_stride_n + i_c * dx_stride_c + i_d * dx_stride_d + i_h * dx_stride_h + i_w * dx_stride_w
    tl.store(dx_ptr + dx_offset, total.to(dx_ptr.dtype.element_ty), mask=inside)
