"""Convolution of stride 1 along rows that are loaded once for all taps above each other: fewer bytes from L2.

A strip is one row of x as wide as a tile: TILE_N images of TILE_Q pixels, 64 together, the rows of one wgmma. The
TILE_P output rows of a tile are DILATION apart, as the taps above each other are. For each block of channels and each
column of the window, TILE_P + R - 1 strips are loaded; tap r of output row i is strip i + r. Each output row has sums
of its own in registers, and the weights have a ring of their own. A 3x3 window at 6 rows of 64 pixels and 128 channels
asks L2 for 0.39 of the bytes that tiles of 128 x 128 do.

A signal has taps along its one axis alone. FOLDED cuts it into segments of P positions, one for each column: row i of
column q is position q P + i, the taps go along rows, and what lies behind the last row of a column is the next one's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from .common import advance, cluster_exit, halves, one_binary, store_tile, tile_axes
from .streams import await_parts, first_of, hand_over, item_of, items_of, wipe_signals


@gluon.jit
def _first_row(at_p, TILE_P: gl.constexpr, DILATION: gl.constexpr):
    """Return the uppermost output row of a tile; those between its rows belong to the DILATION - 1 tiles after it."""
    return at_p // DILATION * (TILE_P * DILATION) + at_p % DILATION


@gluon.jit
def _folded(row, column, rows, FOLDED: gl.constexpr):
    """Return row and column of a position that is up to `rows` rows above or below its column."""
    if FOLDED:
        above = row < 0
        below = row >= rows
        column = gl.where(above, column - 1, gl.where(below, column + 1, column))
        row = gl.where(above, row + rows, gl.where(below, row - rows, row))
    return row, column


@gluon.jit
def _strips_produce(
    x_map,
    w_map,
    strips,
    w_ring,
    barriers,
    sizes,
    taps,
    first,
    step,
    order,
    steps,
    loads,
    programs,
    FORM: gl.constexpr,
    R: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    PAIR: gl.constexpr,
    FOLDED: gl.constexpr,
    STREAM: gl.constexpr,
):
    """Fill both rings: a set of strips, then the weights of its R taps, from the uppermost row on."""
    TILE_N: gl.constexpr = FORM[0]
    TILE_P: gl.constexpr = FORM[1]
    TILE_Q: gl.constexpr = FORM[2]
    STRIPS: gl.constexpr = FORM[3]
    DILATION: gl.constexpr = FORM[4]
    BLOCK_K: gl.constexpr = FORM[5]
    BLOCK_C: gl.constexpr = FORM[6]
    GROUP: gl.constexpr = FORM[7]
    SETS: gl.constexpr = FORM[8]
    STAGES: gl.constexpr = FORM[9]
    x_full, x_empty, w_full, w_empty, pair = barriers
    tiles_n = gl.cdiv(sizes[0], TILE_N)
    tiles_p = gl.cdiv(sizes[2], TILE_P * DILATION) * DILATION
    tiles_q = gl.cdiv(sizes[3], TILE_Q)
    tiles_k = gl.cdiv(sizes[4], BLOCK_K)
    set_ = 0
    set_phase = 1
    slot = 0
    phase = 1
    tiles = tiles_n * sizes[1] * tiles_p * tiles_q * tiles_k
    first_item, last_item, by = items_of(tiles, steps, programs, STREAM)
    for item in range(first_item, last_item, by):
        tile, begin, end = item_of(item, tiles, steps, programs, STREAM)
        n, o, p, q, k = tile_axes(tile, tiles_n, sizes[1], tiles_p, tiles_q, tiles_k, GROUP)
        top = _first_row(p, TILE_P, DILATION) + first[1]
        s = begin % taps[1]
        t = begin // taps[1] % taps[0]
        chunk = begin // (taps[1] * taps[0])
        for _ in range(begin, end):
            mbarrier.wait(x_empty.index(set_), set_phase)
            mbarrier.expect(x_full.index(set_), STRIPS * x_map.nbytes_per_cta)
            left = q * TILE_Q + first[2] + s * step[1]
            for i in range(0, loads):
                row, column = _folded(top + i * DILATION, left, sizes[2], FOLDED)
                at = [n * TILE_N, o + first[0] + t * step[0], row, column, chunk * BLOCK_C]
                tma.async_load(x_map, at, x_full.index(set_), strips.index(set_ * STRIPS + i))
            set_, set_phase = advance(set_, set_phase, SETS)
            for j in range(0, R):
                mbarrier.wait(w_empty.index(slot), phase)
                if PAIR:
                    mbarrier.wait(pair.index(slot), phase)  # the first CTA alone: the slot of the other is free
                mbarrier.expect(w_full.index(slot), w_map.nbytes_per_cta)
                tap = order[0] + t * order[1] + j * order[2] + s * order[3]
                weights = [tap, k * BLOCK_K, chunk * BLOCK_C]
                if TRANSPOSED:
                    weights = [tap, chunk * BLOCK_C, k * BLOCK_K]
                tma.async_load(w_map, weights, w_full.index(slot), w_ring.index(slot), multicast=PAIR)
                slot, phase = advance(slot, phase, STAGES)
            s += 1
            t = gl.where(s == taps[1], t + 1, t)
            s = gl.where(s == taps[1], 0, s)
            chunk = gl.where(t == taps[0], chunk + 1, chunk)
            t = gl.where(t == taps[0], 0, t)


@gluon.jit
def _strips_consume(
    y_map,
    residual_map,
    strips,
    w_ring,
    staging,
    barriers,
    landed,
    vectors,
    shared,
    sizes,
    steps,
    programs,
    CONSUMER: gl.constexpr,
    CONSUMERS: gl.constexpr,
    FORM: gl.constexpr,
    R: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    PAIR: gl.constexpr,
    STREAM: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Multiply and store TILE_P / CONSUMERS output rows per tile. The products of one tap stay in flight."""
    TILE_N: gl.constexpr = FORM[0]
    TILE_P: gl.constexpr = FORM[1]
    TILE_Q: gl.constexpr = FORM[2]
    STRIPS: gl.constexpr = FORM[3]
    DILATION: gl.constexpr = FORM[4]
    BLOCK_K: gl.constexpr = FORM[5]
    BLOCK_C: gl.constexpr = FORM[6]
    GROUP: gl.constexpr = FORM[7]
    SETS: gl.constexpr = FORM[8]
    STAGES: gl.constexpr = FORM[9]
    LINES: gl.constexpr = TILE_P // CONSUMERS
    WIDTH: gl.constexpr = TILE_N * TILE_Q
    SIZE: gl.constexpr = WIDTH * BLOCK_K
    x_full, x_empty, w_full, w_empty, pair = barriers
    tiles_n = gl.cdiv(sizes[0], TILE_N)
    tiles_p = gl.cdiv(sizes[2], TILE_P * DILATION) * DILATION
    tiles_q = gl.cdiv(sizes[3], TILE_Q)
    tiles_k = gl.cdiv(sizes[4], BLOCK_K)
    set_ = 0
    set_phase = 0
    slot = 0
    phase = 0
    parity = 0
    tiles = tiles_n * sizes[1] * tiles_p * tiles_q * tiles_k
    first_item, last_item, by = items_of(tiles, steps, programs, STREAM)
    for item in range(first_item, last_item, by):
        tile, begin, end = item_of(item, tiles, steps, programs, STREAM)
        n, o, p, q, k = tile_axes(tile, tiles_n, sizes[1], tiles_p, tiles_q, tiles_k, GROUP)
        top = _first_row(p, TILE_P, DILATION)
        sums = ()
        for line in gl.static_range(LINES):
            sums = sums + (gl.zeros([WIDTH, BLOCK_K], gl.float32, LAYOUT),)
        last_set = set_
        last = slot
        for i in range(begin, end):
            mbarrier.wait(x_full.index(set_), set_phase)
            for j in gl.static_range(R):
                mbarrier.wait(w_full.index(slot), phase)
                if TRANSPOSED:
                    weights = w_ring.index(slot).reshape([BLOCK_C, BLOCK_K])
                else:
                    weights = w_ring.index(slot).reshape([BLOCK_K, BLOCK_C]).permute((1, 0))
                products = ()
                for line in gl.static_range(LINES):
                    strip = strips.index(set_ * STRIPS + CONSUMER * LINES + line + j)
                    pixels = strip.reshape([WIDTH, BLOCK_C])
                    product = warpgroup_mma(pixels, weights, warpgroup_mma_init(sums[line]), is_async=True)
                    products = products + (product,)
                sums = warpgroup_mma_wait(LINES, deps=products)  # those of the tap before are done
                started = (i > begin) | (j > 0)
                mbarrier.arrive(w_empty.index(last), count=1, pred=started)
                if PAIR:
                    mbarrier.arrive(pair.index(last), count=1, pred=started)
                if j == 0:
                    mbarrier.arrive(x_empty.index(last_set), count=1, pred=i > begin)
                last = slot
                slot, phase = advance(slot, phase, STAGES)
            last_set = set_
            set_, set_phase = advance(set_, set_phase, SETS)
        products = ()
        for line in gl.static_range(LINES):
            products = products + (warpgroup_mma_init(sums[line]),)
        sums = warpgroup_mma_wait(0, deps=products)
        mbarrier.arrive(w_empty.index(last), count=1)
        if PAIR:
            mbarrier.arrive(pair.index(last), count=1)
        mbarrier.arrive(x_empty.index(last_set), count=1)
        others = None
        if STREAM:
            first = gl.program_id(0)
            if end == steps:
                first = first_of(tile, tiles, steps, programs)
            else:
                hand_over(sums, shared, CONSUMER, CONSUMERS, LINES, WIDTH, BLOCK_K, CHUNKS, PAIR)
            await_parts(first, shared, CONSUMER, CONSUMERS, PAIR)
        if end == steps:
            for line in gl.static_range(LINES):
                if STREAM:
                    others = (shared[0], first, CONSUMERS * LINES * SIZE, (CONSUMER * LINES + line) * SIZE)
                parity = store_tile(
                    (y_map,),
                    (residual_map,),
                    0,
                    staging,
                    landed,
                    parity,
                    sums[line],
                    others,
                    vectors[0],
                    vectors[1],
                    vectors[2],
                    n * TILE_N,
                    o,
                    top + (CONSUMER * LINES + line) * DILATION,
                    q * TILE_Q,
                    k * BLOCK_K,
                    sizes[4],
                    WIDTH,
                    BLOCK_K,
                    CHUNKS,
                    ACTIVATION,
                    ROUND_EACH,
                    1,
                )
        if STREAM:
            wipe_signals(first, shared, CONSUMER, CONSUMERS, PAIR)
    tma.store_wait(0)


@one_binary
def _conv_strips_kernel(
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
    s,
    first_d,
    first_h,
    first_w,
    step_d,
    step_w,
    tap_first,
    tap_step_d,
    tap_step_h,
    tap_step_w,
    loads,
    programs,
    R: gl.constexpr,
    DILATION: gl.constexpr,
    FOLDED: gl.constexpr,
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    CONSUMERS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    SETS: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    STREAM: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    INSTRUCTION_K: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    SHARED: gl.constexpr,
):
    """Compute y = activation((sums + bias) * scale + shift + residual), sums over taps and channels of x times w.

    Operands and formula as in `_conv_tiles_kernel`, with `first_h` the row of x that the uppermost tap of output row 0
    reads: -padding forward, padding - (R - 1) DILATION for a data gradient, whose rows of the window are walked from
    the last one on: tap_step_h is negative.
    Boxes: x_map [TILE_N, 1, 1, TILE_Q, BLOCK_C], y_map [TILE_N, 1, 1, TILE_Q, BLOCK_K / CHUNKS].

    FOLDED: p is the length of a segment, and q their number; o and taps of other axes are 1, and x has the positions of
    y. `first_h`, and DILATION for each further tap, count positions, and reach over one segment at most.

    TILE_N TILE_Q = 64 pixels in a strip; 2 or more output rows, TILE_P / CONSUMERS, for each of 2 or 3 consumers of 4
    warps.
    `loads` is TILE_P + R - 1, the strips of a set, as a number: a loop over a constant is unrolled, and its coordinates
    are more than the registers of the producer.

    SETS of strips and STAGES of weights in shared memory. SHARED "weights": two CTAs split the tile along Q (or N),
    whose size is then that of both, and the weights are multicast.
    STREAM: programs have equal shares of the steps of all tiles, of which there are as many as programs or more; see
    `hand_over` for `parts_ptr` and `flags_ptr`, which are None otherwise.

    Grid: (programs,), the number of multiprocessors or half of it with a cluster.
    """
    gl.static_assert(TILE_P >= 2 * CONSUMERS, "a consumer has 2 rows or more")
    STRIPS: gl.constexpr = TILE_P + R - 1
    PAIR: gl.constexpr = SHARED != ""
    gl.static_assert(SHARED != "pixels", "strips of a cluster share weights alone")
    gl.static_assert(STAGES >= 2 and SETS >= 2, "a slot is freed one step after it is read")
    gl.static_assert(not TRANSPOSED or w_map.dtype != gl.float32, "tf32 products take weights with channels innermost")
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[4, 1],
        instr_shape=[16, INSTRUCTION_N, INSTRUCTION_K],
        cga_layout=halves(SHARED),
    )
    strips = gl.allocate_shared_memory(x_map.dtype, [SETS * STRIPS, TILE_N, 1, 1, TILE_Q, BLOCK_C], x_map.layout)
    if TRANSPOSED:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_C, BLOCK_K], w_map.layout)
    else:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_K, BLOCK_C], w_map.layout)
    staging = gl.allocate_shared_memory(y_map.dtype, [CONSUMERS, TILE_N, 1, 1, TILE_Q, BLOCK_K // CHUNKS], y_map.layout)
    x_full = mbarrier.allocate_mbarrier(batch=SETS)
    x_empty = mbarrier.allocate_mbarrier(batch=SETS)
    w_full = mbarrier.allocate_mbarrier(batch=STAGES)
    w_empty = mbarrier.allocate_mbarrier(batch=STAGES)
    landed = mbarrier.allocate_mbarrier(batch=CONSUMERS)
    pair = w_empty
    if PAIR:
        pair = mbarrier.allocate_mbarrier(batch=STAGES, two_ctas=True)
    for i in gl.static_range(SETS):
        mbarrier.init(x_full.index(i), count=1)
        mbarrier.init(x_empty.index(i), count=CONSUMERS)
    for i in gl.static_range(STAGES):
        mbarrier.init(w_full.index(i), count=1)
        mbarrier.init(w_empty.index(i), count=CONSUMERS)
        if PAIR:
            mbarrier.init(pair.index(i), count=CONSUMERS)  # of each CTA
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(landed.index(i), count=1)
    barriers = (x_full, x_empty, w_full, w_empty, pair)
    sizes = (n, o, p, q, k)
    vectors = (bias_ptr, scale_ptr, shift_ptr)
    shared = (parts_ptr, flags_ptr)
    taps = (t, s)
    first = (first_d, first_h, first_w)
    step = (step_d, step_w)
    order = (tap_first, tap_step_d, tap_step_h, tap_step_w)
    steps = t * s * gl.cdiv(c, BLOCK_C)
    FORM: gl.constexpr = (TILE_N, TILE_P, TILE_Q, STRIPS, DILATION, BLOCK_K, BLOCK_C, GROUP, SETS, STAGES)
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (
                    _strips_consume,
                    (y_map, residual_map, strips, w_ring, staging.index(0), barriers, landed.index(0), vectors,
                     shared, sizes, steps, programs, 0, CONSUMERS, FORM, R, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, STREAM, layout),
                ),
                (
                    _strips_consume,
                    (y_map, residual_map, strips, w_ring, staging.index(1), barriers, landed.index(1), vectors,
                     shared, sizes, steps, programs, 1, CONSUMERS, FORM, R, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, STREAM, layout),
                ),
                (
                    _strips_produce,
                    (x_map, w_map, strips, w_ring, barriers, sizes, taps, first, step, order, steps, loads, programs,
                     FORM, R, TRANSPOSED, PAIR, FOLDED, STREAM),
                ),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (
                    _strips_consume,
                    (y_map, residual_map, strips, w_ring, staging.index(0), barriers, landed.index(0), vectors,
                     shared, sizes, steps, programs, 0, CONSUMERS, FORM, R, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, STREAM, layout),
                ),
                (
                    _strips_consume,
                    (y_map, residual_map, strips, w_ring, staging.index(1), barriers, landed.index(1), vectors,
                     shared, sizes, steps, programs, 1, CONSUMERS, FORM, R, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, STREAM, layout),
                ),
                (
                    _strips_consume,
                    (y_map, residual_map, strips, w_ring, staging.index(2), barriers, landed.index(2), vectors,
                     shared, sizes, steps, programs, 2, CONSUMERS, FORM, R, CHUNKS, TRANSPOSED, ACTIVATION,
                     ROUND_EACH, PAIR, STREAM, layout),
                ),
                (
                    _strips_produce,
                    (x_map, w_map, strips, w_ring, barriers, sizes, taps, first, step, order, steps, loads, programs,
                     FORM, R, TRANSPOSED, PAIR, FOLDED, STREAM),
                ),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    cluster_exit(PAIR)
