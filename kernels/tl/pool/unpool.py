"""Max unpooling, a scatter whose last writer wins by claims that settle before values move, and its gradient.

Equal indices of one plane name one place more than once. torch's CPU kernel writes in order, so the last one stays.
Here every element first claims its place with its number, and the largest number stays; only then each place fetches
the value of the element that holds it. No order of programs or threads shows in the result.
"""

import triton
import triton.language as tl

from .axes import place, tile_of


@triton.jit
def plane_offset(position, z_stride, y_stride, x_stride, y, x, FLAT: tl.constexpr):
    """Return the offset of a position of a plane with rows of `x` and slices of `y` rows; FLAT: evenly spaced."""
    if FLAT:
        return position * x_stride
    else:
        rest = position // x
        return position % x * x_stride + rest % y * y_stride + rest // y * z_stride


def _fprop_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_K']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_unpool_fprop_claim_kernel_{tile}_{c['CLAIM_BITS']}_i{64 if c['INDEX64'] else 32}"


def _launch_metadata(grid, kernel, args):
    """Report the bytes that must move to a profiler (Triton's proton)."""
    small = args["n"] * args["c"] * args["d"] * args["h"] * args["w"]
    large = args["n"] * args["c"] * args["o"] * args["p"] * args["q"]
    return {"name": kernel.name, "bytes": small * 8 + (small + large) * args["y_ptr"].element_size()}


@triton.jit(repr=_fprop_repr, launch_metadata=_launch_metadata)
def _pool_unpool_fprop_claim_kernel(
    x_ptr,
    indices_ptr,
    y_ptr,
    claim_ptr,
    n,
    c,
    d,
    h,
    w,
    o,
    p,
    q,
    lanes,
    tiles_l,
    parts,
    positions_per_part,
    x_stride_n,
    x_stride_c,
    x_stride_d,
    x_stride_h,
    x_stride_w,
    indices_stride_n,
    indices_stride_c,
    indices_stride_d,
    indices_stride_h,
    indices_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_q,
    CLAIM_BITS: tl.constexpr,
    FLAT_X: tl.constexpr,
    FLAT_INDICES: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute y = max_unpool(x, indices): x at its indices in planes of zeros, the last of equal indices.

    A program owns `positions_per_part` positions of the planes of BLOCK_L lanes of y. It clears their claims, walks
    through all elements of the planes of x, BLOCK_K at a time, each of which claims its position with its number (from
    1) over smaller ones, walks again as long as two of one tile raced and the smaller one stayed, and fetches values.
    With CHANNELS_INNERMOST lanes are the channels of one image, else they are N C.
    Tensors: x and indices [N, C, D, H, W] by five strides (1-D and 2-D have leading axes of size 1), FLAT if spatial
    positions are `stride_w` apart, in their order; y [N, C, O, P, Q], always so. `claim` has integers of CLAIM_BITS at
    the offsets of y, and may be y itself. Dtypes: x and y of one floating type, indices int64; those outside of the
    plane are left out.
    Grid: (groups * tiles_l * parts,), groups N with CHANNELS_INNERMOST, else 1. INDEX64 computes offsets in 64 bits.
    """
    pid = tl.program_id(0)
    part = pid % parts
    tile_l = pid // parts % tiles_l
    group = pid // parts // tiles_l
    if INDEX64:
        part = part.to(tl.int64)
        tile_l = tile_l.to(tl.int64)
        group = group.to(tl.int64)
    lane = (tile_l * BLOCK_L + tl.arange(0, BLOCK_L))[None, :]  # [1, BLOCK_L]
    lane_inside = lane < lanes
    i_n = group if CHANNELS_INNERMOST else lane // c
    i_c = lane if CHANNELS_INNERMOST else lane % c
    x_lane = x_ptr + (i_n * x_stride_n + i_c * x_stride_c)
    indices_lane = indices_ptr + (i_n * indices_stride_n + i_c * indices_stride_c)
    y_lane = i_n * y_stride_n + i_c * y_stride_c
    small = d * h * w
    begin = part * positions_per_part
    end = tl.minimum(begin + positions_per_part, o * p * q)
    element = tl.arange(0, BLOCK_K)[:, None]  # [BLOCK_K, 1]

    nobody = tl.zeros([BLOCK_K, BLOCK_L], claim_ptr.dtype.element_ty)
    for first in range(begin, end, BLOCK_K):
        position = first + element
        tl.store(claim_ptr + (y_lane + position * y_stride_q), nobody, mask=(position < end) & lane_inside)
    tl.debug_barrier()

    walking = 1
    while walking > 0:
        lost = tl.zeros([BLOCK_K, BLOCK_L], tl.int32)
        for step in range(0, small, BLOCK_K):
            k = step + element
            offset = plane_offset(k, indices_stride_d, indices_stride_h, indices_stride_w, h, w, FLAT_INDICES)
            target = tl.load(indices_lane + offset, mask=(k < small) & lane_inside, other=-1)
            number = k + 1
            owned = (target >= begin) & (target < end)
            claim = claim_ptr + (y_lane + tl.where(owned, target, begin).to(y_lane.dtype) * y_stride_q)
            holder = tl.load(claim, mask=owned, other=0)
            if CLAIM_BITS == 16:
                holder = holder.to(tl.int32) & 0xFFFF
            later = owned & (holder < number)
            tl.store(claim, (number + tl.zeros_like(lost)).to(claim_ptr.dtype.element_ty), mask=later)
            # Threads of this program see each other's stores from here on. Whoever does not find itself, or a later
            # one, has lost a race inside this tile to an earlier one.
            tl.debug_barrier()
            holder = tl.load(claim, mask=later, other=0)
            if CLAIM_BITS == 16:
                holder = holder.to(tl.int32) & 0xFFFF
            lost |= (later & (holder < number)).to(tl.int32)
        walking = tl.max(tl.max(lost, axis=1), axis=0)
        tl.debug_barrier()

    for first in range(begin, end, BLOCK_K):
        position = first + element
        inside = (position < end) & lane_inside
        y_offset = y_lane + position * y_stride_q
        holder = tl.load(claim_ptr + y_offset, mask=inside, other=0)
        if CLAIM_BITS == 16:
            holder = holder.to(tl.int32) & 0xFFFF
        held = inside & (holder > 0)
        source = tl.where(held, holder - 1, 0).to(y_lane.dtype)
        value = tl.load(
            x_lane + plane_offset(source, x_stride_d, x_stride_h, x_stride_w, h, w, FLAT_X), mask=held, other=0.0
        )
        tl.store(y_ptr + y_offset, value, mask=inside)


def _bwd_repr(specialization):
    """Name the compiled kernel after what it is specialised for, so that a profiler shows it."""
    c = specialization.constants
    tile = f"{c['BLOCK_M']}x{c['BLOCK_L']}{'c' if c['CHANNELS_INNERMOST'] else 'w'}"
    return f"_pool_unpool_bwd_gather_kernel_{tile}_i{64 if c['INDEX64'] else 32}"


@triton.jit(repr=_bwd_repr, launch_metadata=_launch_metadata)
def _pool_unpool_bwd_gather_kernel(
    y_ptr,
    indices_ptr,
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
    dx_stride_n,
    dx_stride_c,
    dx_stride_d,
    dx_stride_h,
    dx_stride_w,
    indices_stride_n,
    indices_stride_c,
    indices_stride_d,
    indices_stride_h,
    indices_stride_w,
    y_stride_n,
    y_stride_c,
    y_stride_o,
    y_stride_p,
    y_stride_q,
    FLAT_Y: tl.constexpr,
    CHANNELS_INNERMOST: tl.constexpr,
    INDEX64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Compute dx, the gradient of an unpooling's input, from y, the gradient of its output: y at the indices.

    Tile: BLOCK_M rows by BLOCK_L lanes of dx. With CHANNELS_INNERMOST lanes are C and rows N D H W, else lanes are W
    and rows N C D H. Tensors and dtypes: as the forward kernel's; y by five strides. Indices outside of it give 0.
    Grid: (cdiv(rows, BLOCK_M) * tiles_l,) with tiles_l = cdiv(lanes, BLOCK_L). INDEX64 computes offsets in 64 bits.
    """
    row, lane = tile_of(tl.program_id(0), tiles_l, BLOCK_M, BLOCK_L, INDEX64)
    i_n, i_c, i_d, i_h, i_w, inside = place(row, lane, n, c, d, h, w, CHANNELS_INNERMOST)
    indices_offset = i_n * indices_stride_n + i_c * indices_stride_c
    indices_offset += i_d * indices_stride_d + i_h * indices_stride_h + i_w * indices_stride_w
    source = tl.load(indices_ptr + indices_offset, mask=inside, other=-1)
    found = (source >= 0) & (source < o * p * q)
    source = tl.where(found, source, 0).to(row.dtype)
    offset = plane_offset(source, y_stride_o, y_stride_p, y_stride_q, p, q, FLAT_Y)
    value = tl.load(y_ptr + (i_n * y_stride_n + i_c * y_stride_c) + offset, mask=found, other=0.0)
    dx_offset = i_n * dx_stride_n + i_c * dx_stride_c + i_d * dx_stride_d + i_h * dx_stride_h + i_w * dx_stride_w
    tl.store(dx_ptr + dx_offset, value, mask=inside)
