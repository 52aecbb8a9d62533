"""Global pools, and adaptive pools with few or large windows: windows in splits, and the pass that combines them."""

import triton
import triton.language as tl

from .axes import divide, larger, take_larger, window_end, window_start
from .names import bytes_metadata


@triton.jit
def tap_index(
    k, taps_h, taps_w, first_d, first_h, first_w, h, w, window_r, window_s, FLAT: tl.constexpr, OFFSETS: tl.constexpr
):
    """Return the index of element `k` of a window: its position in the plane, or with OFFSETS its tap.

    FLAT windows are whole planes, where all three are one number.
    """
    if not FLAT:
        s = k % taps_w
        r = k // taps_w % taps_h
        t = k // (taps_w * taps_h)
        if OFFSETS:
            k = (t * window_r + r) * window_s + s
        else:
            k = ((first_d + t) * h + first_h + r) * w + first_w + s
    return k


@triton.jit
def reduce_larger(best, at, none, INDICES: tl.constexpr):
    """Return the largest of each column of `best` (NaN where it has one) and `at` of the place that the window takes.

    That is the first place of the maximum, or the last NaN; `none`, above all places, marks those that have seen
    nothing but -inf.
    """
    nan = best != best
    some_nan = tl.max(nan.to(tl.int32), axis=0) > 0
    most = tl.max(tl.where(nan, float("-inf"), best), axis=0)
    if INDICES:
        first = tl.min(tl.where(best == most[None, :], at, none), axis=0)
        last_nan = tl.max(tl.where(nan, at, -1), axis=0)
        chosen = tl.where(some_nan, last_nan, first)
    else:
        chosen = tl.zeros_like(some_nan).to(tl.int32)
    return tl.where(some_nan, float("nan"), most), chosen


def _partial_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    kind = f"{c['POOL']}{'_flat' if c['FLAT'] else ''}{'_final' if c['FINAL'] else ''}"
    tile = f"{c['BLOCK_K']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_global_fprop_partial_kernel_{kind}_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_partial_repr, launch_metadata=bytes_metadata)
def _pool_global_fprop_partial_kernel(
    x_ptr,
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
    plane,
    lanes,
    tiles_l,
    groups,
    elements_per_split,
    window_r,
    window_s,
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
    POOL: tl.constexpr,
    OFFSETS: tl.constexpr,
    FLAT: tl.constexpr,
    FINAL: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute one split of an adaptive pool: sums, or maxima and where they are, of `elements_per_split` of a window.

    Tile: BLOCK_K elements of one window at a time, of BLOCK_L lanes. With CHANNELS_INNERMOST lanes are the channels of
    one image, else they are N C.
    Tensors: x [N, C, D, H, W] by five strides. With FINAL (one split) y and indices are those of the pool,
    [N, C, O, P, Q] by strides; without, they are partial results [splits, outputs], contiguous, of type ACC_DTYPE and
    an integer: outputs count the cells O P Q and channels of each image, channels innermost with CHANNELS_INNERMOST.
    Indices may be None, or of the averages must be. Partial indices count a window's elements.
    FLAT says that the window is the whole plane, of `plane` elements that are `x_stride_w` apart, in their order.
    Grid: (splits * groups * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L); groups are the cells, times N with
    CHANNELS_INNERMOST. INDEX64 computes offsets in 64 bits.
    """
    pid = tl.program_id(0)
    tile_l = pid % tiles_l
    group = pid // tiles_l % groups
    split = pid // tiles_l // groups
    if INDEX64:
        tile_l = tile_l.to(tl.int64)
        group = group.to(tl.int64)
        split = split.to(tl.int64)
    cells = o * p * q
    cell = group % cells
    lane = tile_l * BLOCK_L + tl.arange(0, BLOCK_L)  # [BLOCK_L]
    lane_inside = lane < lanes
    if CHANNELS_INNERMOST:
        i_n = group // cells
        i_c = lane
        output = group * c + lane
    else:
        i_n = lane // c
        i_c = lane % c
        output = lane * cells + cell
    i_o = cell // (p * q)
    i_p = cell // q % p
    i_q = cell % q
    x_lane = x_ptr + (i_n * x_stride_n + i_c * x_stride_c)  # [BLOCK_L]
    if FLAT:
        first_d, first_h, first_w, taps_d, taps_h, taps_w = 0, 0, 0, d, h, w
    else:
        first_d = window_start(i_o, d, o)
        first_h = window_start(i_p, h, p)
        first_w = window_start(i_q, w, q)
        taps_d = window_end(i_o, d, o) - first_d
        taps_h = window_end(i_p, h, p) - first_h
        taps_w = window_end(i_q, w, q) - first_w
        x_lane += first_d * x_stride_d + first_h * x_stride_h + first_w * x_stride_w
    # A product of D H W would hide from the compiler that `plane` is a multiple of 16, so that masks keep 16 bytes.
    taps = plane if FLAT else taps_d * taps_h * taps_w

    INDICES: tl.constexpr = indices_ptr is not None
    none = 2**62 if INDEX64 else 2**31 - 1
    at = tl.full([BLOCK_K, BLOCK_L], none, tl.int64 if INDEX64 else tl.int32)
    if POOL == "avg":
        result = tl.zeros([BLOCK_K, BLOCK_L], ACC_DTYPE)
    else:
        result = tl.full([BLOCK_K, BLOCK_L], float("-inf"), ACC_DTYPE)
    first = split * elements_per_split
    last = tl.minimum(first + elements_per_split, taps)
    for step in range(first, last, BLOCK_K):
        k = step + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        if FLAT:
            offset = k * x_stride_w
        else:
            offset = k % taps_w * x_stride_w + k // taps_w % taps_h * x_stride_h + k // (taps_w * taps_h) * x_stride_d
        seen = tl.load(
            x_lane[None, :] + offset[:, None],
            mask=(k < last)[:, None] & lane_inside[None, :],
            other=0.0 if POOL == "avg" else float("-inf"),
        ).to(ACC_DTYPE)  # [BLOCK_K, BLOCK_L]
        if POOL == "avg":
            result += seen
        elif INDICES:
            result, at = take_larger(seen, k[:, None], result, at)
        else:
            result = larger(seen, result)

    if POOL == "avg":
        value = tl.sum(result, axis=0)  # [BLOCK_L]
        if FINAL:
            value = divide(value, taps)
    else:
        value, chosen = reduce_larger(result, at, none, INDICES)
    if FINAL:
        output = i_n * y_stride_n + i_c * y_stride_c + i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
    else:
        output += split * (n * c * cells)
    tl.store(y_ptr + output, value.to(y_ptr.dtype.element_ty), mask=lane_inside)
    if INDICES:
        if FINAL:
            chosen = tl.where(chosen == none, 0, chosen)
            chosen = tap_index(
                chosen, taps_h, taps_w, first_d, first_h, first_w, h, w, window_r, window_s, FLAT, OFFSETS
            )
            output = i_n * indices_stride_n + i_c * indices_stride_c
            output += i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
        tl.store(indices_ptr + output, chosen.to(indices_ptr.dtype.element_ty), mask=lane_inside)


def _combine_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    return f"_pool_global_fprop_combine_kernel_{c['POOL']}_{c['BLOCK']}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_combine_repr)
def _pool_global_fprop_combine_kernel(
    partial_ptr,
    partial_indices_ptr,
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
    splits,
    window_r,
    window_s,
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
    POOL: tl.constexpr,
    OFFSETS: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Combine the splits of a pool in their order, so that equal runs give equal bits.

    Tensors: partial and partial_indices [splits, outputs], contiguous, as the partial kernel leaves them; y and indices
    [N, C, O, P, Q] by strides in elements; both indices may be None.
    Grid: (cdiv(outputs, BLOCK),).
    """
    block = tl.program_id(0)
    if INDEX64:
        block = block.to(tl.int64)
    output = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    cells = o * p * q
    outputs = n * c * cells
    inside = output < outputs
    if CHANNELS_INNERMOST:
        i_c = output % c
        cell = output // c % cells
        i_n = output // c // cells
    else:
        cell = output % cells
        i_c = output // cells % c
        i_n = output // cells // c
    i_o = cell // (p * q)
    i_p = cell // q % p
    i_q = cell % q

    if POOL == "avg":
        result = tl.zeros([BLOCK], partial_ptr.dtype.element_ty)
    else:
        result = tl.full([BLOCK], float("-inf"), partial_ptr.dtype.element_ty)
    at = tl.zeros([BLOCK], tl.int64 if INDEX64 else tl.int32)
    source = output
    for _ in range(0, splits):
        seen = tl.load(partial_ptr + source, mask=inside, other=0.0)
        if POOL == "avg":
            result += seen
        elif indices_ptr is not None:
            seen_at = tl.load(partial_indices_ptr + source, mask=inside, other=0).to(at.dtype)
            result, at = take_larger(seen, seen_at, result, at)
        else:
            result = larger(seen, result)
        source += outputs

    first_d = window_start(i_o, d, o)
    first_h = window_start(i_p, h, p)
    first_w = window_start(i_q, w, q)
    taps_d = window_end(i_o, d, o) - first_d
    taps_h = window_end(i_p, h, p) - first_h
    taps_w = window_end(i_q, w, q) - first_w
    if POOL == "avg":
        result = divide(result, taps_d * taps_h * taps_w)
    y_offset = i_n * y_stride_n + i_c * y_stride_c + i_o * y_stride_o + i_p * y_stride_p + i_q * y_stride_q
    tl.store(y_ptr + y_offset, result.to(y_ptr.dtype.element_ty), mask=inside)
    if indices_ptr is not None:
        at = tap_index(at, taps_h, taps_w, first_d, first_h, first_w, h, w, window_r, window_s, False, OFFSETS)
        indices_offset = i_n * indices_stride_n + i_c * indices_stride_c
        indices_offset += i_o * indices_stride_o + i_p * indices_stride_p + i_q * indices_stride_q
        tl.store(indices_ptr + indices_offset, at.to(indices_ptr.dtype.element_ty), mask=inside)
