"""Convolution over runs of pixels, strides up to 8, any dilation and size of map: x comes by TMA's im2col mode.

A box holds consecutive output pixels, counted over images and rows alike, so no tile is ragged but the last. Otherwise
as in tiles.py, whose consumers these are. There is no store in this mode, nor need of one: y is one long row of pixels.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .common import advance, cluster_exit, cta_rank, halves, one_binary, tile_axes
from .consume import consume_tiles
from .streams import item_of, items_of


@gluon.constexpr_function
def split_pixels(block_c, bits):
    """Return the layout in which a cluster reads boxes [pixels, channels] that each CTA has loaded by itself."""
    width = min(128, block_c * bits // 8)
    return gl.NVMMASharedLayout(swizzle_byte_width=width, element_bitwidth=bits, rank=2, cga_layout=[[1, 0]])


@gluon.jit
def first_pixel(pixel, sizes, strides, first, AXES: gl.constexpr):
    """Return image and position, in x, of the first tap of an output pixel."""
    q = pixel % sizes[2]
    lines = pixel // sizes[2]
    p = lines % sizes[1]
    planes = lines // sizes[1]
    at_p = p * strides[1] + first[1]
    at_q = q * strides[2] + first[2]
    if AXES == 2:
        at = (planes, at_p, at_q)
    else:
        at = (planes // sizes[0], planes % sizes[0] * strides[0] + first[0], at_p, at_q)
    return at


@gluon.jit
def _pixels_produce(
    x_map,
    w_map,
    x_ring,
    w_ring,
    full,
    empty,
    pair,
    pixels,
    sizes,
    k,
    taps,
    strides,
    first,
    step,
    order,
    steps,
    programs,
    BLOCK_M: gl.constexpr,
    CONSUMERS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    AXES: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    PAIR: gl.constexpr,
    OWN_PIXELS: gl.constexpr,
    STREAM: gl.constexpr,
):
    """Fill the ring, tile by tile: all taps of a block of channels, then the next block. BLOCK_M counts the cluster."""
    BOX: gl.constexpr = BLOCK_M // 2 if OWN_PIXELS else BLOCK_M
    tiles_m = gl.cdiv(pixels, BLOCK_M * CONSUMERS)
    tiles_k = gl.cdiv(k, BLOCK_K)
    rank = 0
    if OWN_PIXELS:
        rank = cta_rank()
    slot = 0
    phase = 1
    first_item, last_item, by = items_of(tiles_m * tiles_k, steps[0], programs, STREAM)
    for item in range(first_item, last_item, by):
        tile, begin, end = item_of(item, tiles_m * tiles_k, steps[0], programs, STREAM)
        _, _, _, at_m, at_k = tile_axes(tile, 1, 1, 1, tiles_m, tiles_k, GROUP)
        m0 = at_m * (CONSUMERS * BLOCK_M) + rank * BOX
        at0 = first_pixel(m0, sizes, strides, first, AXES)
        at1 = at0
        if CONSUMERS == 2:
            at1 = first_pixel(m0 + BLOCK_M, sizes, strides, first, AXES)
        s = begin % taps[2]
        r = begin // taps[2] % taps[1]
        t = begin // (taps[2] * taps[1]) % taps[0]
        chunk = begin // (taps[2] * taps[1] * taps[0])
        for _ in range(begin, end):
            mbarrier.wait(empty.index(slot), phase)
            if PAIR:
                mbarrier.wait(pair.index(slot), phase)  # the first CTA alone: the slot of the other is free
            mbarrier.expect(full.index(slot), CONSUMERS * x_map.nbytes_per_cta + w_map.nbytes_per_cta)
            tap = order[0] + t * order[1] + r * order[2] + s * order[3]
            weights = [tap, at_k * BLOCK_K, chunk * BLOCK_C]
            if TRANSPOSED:
                weights = [tap, chunk * BLOCK_C, at_k * BLOCK_K]
            tma.async_load(w_map, weights, full.index(slot), w_ring.index(slot), multicast=PAIR)
            offset_h = (r * step[1]).to(gl.int16)
            offset_w = (s * step[2]).to(gl.int16)
            if AXES == 2:
                offsets = [offset_h, offset_w]
                box0 = [at0[0], at0[1], at0[2], chunk * BLOCK_C]
                box1 = [at1[0], at1[1], at1[2], chunk * BLOCK_C]
            else:
                offsets = [(t * step[0]).to(gl.int16), offset_h, offset_w]
                box0 = [at0[0], at0[1], at0[2], at0[3], chunk * BLOCK_C]
                box1 = [at1[0], at1[1], at1[2], at1[3], chunk * BLOCK_C]
            tma.async_load_im2col(
                x_map,
                box0,
                offsets,
                full.index(slot),
                x_ring.index(slot * CONSUMERS),
                multicast=PAIR and not OWN_PIXELS,
            )
            if CONSUMERS == 2:
                tma.async_load_im2col(
                    x_map,
                    box1,
                    offsets,
                    full.index(slot),
                    x_ring.index(slot * CONSUMERS + 1),
                    multicast=PAIR and not OWN_PIXELS,
                )
            slot, phase = advance(slot, phase, STAGES)
            s += 1
            r = gl.where(s == taps[2], r + 1, r)
            s = gl.where(s == taps[2], 0, s)
            t = gl.where(r == taps[1], t + 1, t)
            r = gl.where(r == taps[1], 0, r)
            chunk = gl.where(t == taps[0], chunk + 1, chunk)
            t = gl.where(t == taps[0], 0, t)


@one_binary
def _conv_pixels_kernel(
    x_map,
    w_map,
    y_map,
    residual_map,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    parts_ptr,
    flags_ptr,
    n,
    c,
    k,
    o,
    p,
    q,
    t,
    r,
    s,
    stride_d,
    stride_h,
    stride_w,
    first_d,
    first_h,
    first_w,
    step_d,
    step_h,
    step_w,
    tap_first,
    tap_step_d,
    tap_step_h,
    tap_step_w,
    programs,
    BLOCK_M: gl.constexpr,
    CONSUMERS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNKS: gl.constexpr,
    AXES: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    STREAM: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    INSTRUCTION_K: gl.constexpr,
    WARPS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    SHARED: gl.constexpr,
):
    """Compute y = activation((sums + bias) * scale + shift + residual) for runs of output pixels.

    y[n, o, p, q, k] sums x[n, o stride_d + first_d + t' step_d, .., c'] times w[(t' r + r') s + s', k, c'], as in
    `_conv_tiles_kernel`, but step = dilation > 0. Forward: first = -padding. Data gradient of stride 1, TRANSPOSED:
    first = padding - (taps - 1) dilation, and the taps of w are walked from the last one on (tap_step negative).

    Tensor maps, channels last: x_map of the im2col mode over [N, H, W, C] (AXES = 2) or [N, D, H, W, C] (3), boxes
    [BLOCK_M, BLOCK_C], lower corners first, upper ones such that there are O x P x Q positions, element strides those
    of the convolution; w_map as in tiles.py; y_map, and residual_map if there is one, over [1, 1, 1, N O P Q, K] in
    boxes [1, 1, 1, BLOCK_M, BLOCK_K / CHUNKS]. N O P Q + BLOCK_M is below 2**31. With AXES = 2, corners go from -128 to
    127 and offsets to 255; with 3, from -16 to 15 and to 31.

    CONSUMERS (1 or 2) have one box of BLOCK_M pixels each. SHARED "pixels": two CTAs split the channels and x is
    multicast (Triton 3.9). SHARED "weights": they split the pixels, BLOCK_M counts both, and the weights are multicast.
    A box that is split along pixels would start at a wrong one (the hardware adds to W), so each CTA loads its own box
    of BLOCK_M / 2 in a layout that is not split, and it is read in one that is.
    STREAM: programs have equal shares of the steps of all tiles, of which there are as many as programs or more; see
    `hand_over` for `parts_ptr` and `flags_ptr`, which are None otherwise.

    Grid: (programs,), the number of multiprocessors or half of it with a cluster.
    """
    PAIR: gl.constexpr = SHARED != ""
    gl.static_assert(STAGES >= 2, "a slot is freed one step after it is read")
    gl.static_assert(not TRANSPOSED or w_map.dtype != gl.float32, "tf32 products take weights with channels innermost")
    if PAIR:
        gl.static_assert(CHUNKS == 1 or SHARED == "weights", "channels of a cluster are stored in one piece")
    OWN_PIXELS: gl.constexpr = SHARED == "weights"
    OPERAND: gl.constexpr = split_pixels(BLOCK_C, 256 // INSTRUCTION_K) if OWN_PIXELS else None
    BOX: gl.constexpr = BLOCK_M // 2 if OWN_PIXELS else BLOCK_M
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[WARPS, 1],
        instr_shape=[16, INSTRUCTION_N, INSTRUCTION_K],
        cga_layout=halves(SHARED),
    )
    x_ring = gl.allocate_shared_memory(x_map.dtype, [STAGES * CONSUMERS, BOX, BLOCK_C], x_map.layout)
    if TRANSPOSED:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_C, BLOCK_K], w_map.layout)
    else:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_K, BLOCK_C], w_map.layout)
    staging = gl.allocate_shared_memory(y_map.dtype, [CONSUMERS, 1, 1, 1, BLOCK_M, BLOCK_K // CHUNKS], y_map.layout)
    full = mbarrier.allocate_mbarrier(batch=STAGES)
    empty = mbarrier.allocate_mbarrier(batch=STAGES)
    landed = mbarrier.allocate_mbarrier(batch=CONSUMERS)
    pair = empty
    if PAIR:
        pair = mbarrier.allocate_mbarrier(batch=STAGES, two_ctas=True)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=CONSUMERS)
        if PAIR:
            mbarrier.init(pair.index(i), count=CONSUMERS)  # of each CTA
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(landed.index(i), count=1)
    pixels = n * o * p * q
    sizes = (1, 1, 1, pixels, k)
    taps = (t, r, s)
    vectors = (bias_ptr, scale_ptr, shift_ptr)
    shared = (parts_ptr, flags_ptr)
    strides = (stride_d, stride_h, stride_w)
    first = (first_d, first_h, first_w)
    step = (step_d, step_h, step_w)
    order = (tap_first, tap_step_d, tap_step_h, tap_step_w)
    steps = (t * r * s * gl.cdiv(c, BLOCK_C),)  # of the one phase
    y_maps, residual_maps = (y_map,), (residual_map,)
    TILE: gl.constexpr = (1, 1, BLOCK_M, 1, CONSUMERS, BLOCK_K, BLOCK_C, GROUP, STAGES)
    if CONSUMERS == 1:
        gl.warp_specialize(
            [
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(0), full, empty, pair, landed.index(0),
                     vectors, shared, sizes, steps, programs, 0, TILE, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, layout, OPERAND, 1, STREAM),
                ),
                (
                    _pixels_produce,
                    (x_map, w_map, x_ring, w_ring, full, empty, pair, pixels, (o, p, q), k, taps, strides, first, step,
                     order, steps, programs, BLOCK_M, CONSUMERS, BLOCK_K, BLOCK_C, GROUP, STAGES, AXES, TRANSPOSED,
                     PAIR, OWN_PIXELS, STREAM),
                ),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(0), full, empty, pair, landed.index(0),
                     vectors, shared, sizes, steps, programs, 0, TILE, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, layout, OPERAND, 1, STREAM),
                ),
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(1), full, empty, pair, landed.index(1),
                     vectors, shared, sizes, steps, programs, 1, TILE, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, layout, OPERAND, 1, STREAM),
                ),
                (
                    _pixels_produce,
                    (x_map, w_map, x_ring, w_ring, full, empty, pair, pixels, (o, p, q), k, taps, strides, first, step,
                     order, steps, programs, BLOCK_M, CONSUMERS, BLOCK_K, BLOCK_C, GROUP, STAGES, AXES, TRANSPOSED,
                     PAIR, OWN_PIXELS, STREAM),
                ),
            ],
            [WARPS, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    cluster_exit(PAIR)
