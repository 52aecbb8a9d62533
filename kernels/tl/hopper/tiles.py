"""Convolution of stride 1 in tiles of pixels and channels: any taps and dilation, forward or as a data gradient.

One producer warp fills a ring of slots by TMA, one box of x per consumer and one of the weights; consumers of 4 warps
multiply out of it (wgmma, both operands in shared memory). Programs are persistent: the producer is ahead in the next
tile while a consumer still writes the last one.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .common import advance, chunks_of, cluster_exit, halves, of_phase, one_binary, tile_axes
from .consume import consume_tiles


@gluon.jit
def _tiles_produce(
    x_map,
    w_map,
    x_ring,
    w_ring,
    full,
    empty,
    pair,
    sizes,
    taps,
    first,
    step,
    order,
    c,
    programs,
    TILE: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    CLUSTER: gl.constexpr,
    PHASES: gl.constexpr,
):
    """Fill the ring, tile by tile: all taps of a block of channels, then the next block."""
    TILE_N: gl.constexpr = TILE[0]
    TILE_P: gl.constexpr = TILE[1]
    TILE_Q: gl.constexpr = TILE[2]
    ROWS: gl.constexpr = TILE[3]
    COLUMNS: gl.constexpr = TILE[4]
    BLOCK_K: gl.constexpr = TILE[5]
    BLOCK_C: gl.constexpr = TILE[6]
    GROUP: gl.constexpr = TILE[7]
    STAGES: gl.constexpr = TILE[8]
    tiles_n = gl.cdiv(sizes[0], TILE_N)
    tiles_p = gl.cdiv(sizes[2], TILE_P * ROWS)
    tiles_q = gl.cdiv(sizes[3], TILE_Q * COLUMNS)
    tiles_k = gl.cdiv(sizes[4], BLOCK_K)
    slot = 0
    phase = 1
    tiles = tiles_n * sizes[1] * tiles_p * tiles_q * tiles_k
    for tile in range(gl.program_id(0), PHASES * tiles, programs):
        of = 0
        within = tile
        if PHASES > 1:
            of = tile // tiles
            within = tile % tiles
        n, o, p, q, k = tile_axes(within, tiles_n, sizes[1], tiles_p, tiles_q, tiles_k, GROUP)
        tap0 = of_phase(order[0], of, PHASES)
        n0 = n * TILE_N
        o0 = o + of_phase(first[0], of, PHASES)
        p0 = p * (ROWS * TILE_P) + of_phase(first[1], of, PHASES)
        q0 = q * (COLUMNS * TILE_Q) + of_phase(first[2], of, PHASES)
        for chunk in range(0, chunks_of(tap0, c, BLOCK_C, PHASES)):
            for t in range(0, of_phase(taps[0], of, PHASES)):
                for r in range(0, of_phase(taps[1], of, PHASES)):
                    for s in range(0, of_phase(taps[2], of, PHASES)):
                        mbarrier.wait(empty.index(slot), phase)
                        if CLUSTER:
                            mbarrier.wait(pair.index(slot), phase)  # the first CTA alone: the slot of the other is free
                        mbarrier.expect(full.index(slot), ROWS * COLUMNS * x_map.nbytes_per_cta + w_map.nbytes_per_cta)
                        tap = tap0 + t * order[1] + r * order[2] + s * order[3]
                        weights = [tap, k * BLOCK_K, chunk * BLOCK_C]
                        if TRANSPOSED:
                            weights = [tap, chunk * BLOCK_C, k * BLOCK_K]
                        tma.async_load(w_map, weights, full.index(slot), w_ring.index(slot), multicast=CLUSTER)
                        for j in gl.static_range(ROWS * COLUMNS):
                            at = [
                                n0,
                                o0 + t * step[0],
                                p0 + (j // COLUMNS) * TILE_P + r * step[1],
                                q0 + (j % COLUMNS) * TILE_Q + s * step[2],
                                chunk * BLOCK_C,
                            ]
                            box = x_ring.index(slot * (ROWS * COLUMNS) + j)
                            tma.async_load(x_map, at, full.index(slot), box, multicast=CLUSTER)
                        slot, phase = advance(slot, phase, STAGES)


@gluon.jit
def multiply_tiles(
    x_map,
    w_map,
    y_maps,
    residual_maps,
    vectors,
    sizes,
    taps,
    first,
    step,
    order,
    c,
    programs,
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    INSTRUCTION_K: gl.constexpr,
    WARPS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    SHARED: gl.constexpr,
    PHASES: gl.constexpr,
):
    """Be the body of the kernels of this module and of phases.py, whose documentation says what the arguments are.

    Of PHASES phases there is one each of `y_maps`, `residual_maps`, and in the tuples of `taps` (three), `first`
    (three) and `order[0]`.
    """
    CONSUMERS: gl.constexpr = ROWS * COLUMNS
    PAIR: gl.constexpr = SHARED != ""
    gl.static_assert(STAGES >= 2, "a slot is freed one step after it is read")
    gl.static_assert(not TRANSPOSED or w_map.dtype != gl.float32, "tf32 products take weights with channels innermost")
    if PAIR:
        gl.static_assert(CHUNKS == 1 or SHARED == "weights", "channels of a cluster are stored in one piece")
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[WARPS, 1],
        instr_shape=[16, INSTRUCTION_N, INSTRUCTION_K],
        cga_layout=halves(SHARED),
    )
    x_ring = gl.allocate_shared_memory(
        x_map.dtype, [STAGES * CONSUMERS, TILE_N, 1, TILE_P, TILE_Q, BLOCK_C], x_map.layout
    )
    if TRANSPOSED:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_C, BLOCK_K], w_map.layout)
    else:
        w_ring = gl.allocate_shared_memory(w_map.dtype, [STAGES, 1, BLOCK_K, BLOCK_C], w_map.layout)
    staging = gl.allocate_shared_memory(
        y_maps[0].dtype, [CONSUMERS, TILE_N, 1, TILE_P, TILE_Q, BLOCK_K // CHUNKS], y_maps[0].layout
    )
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
    steps = ()
    for i in gl.static_range(PHASES):
        chunks = chunks_of(order[0][i], c, BLOCK_C, PHASES)
        steps = steps + (taps[0][i] * taps[1][i] * taps[2][i] * chunks,)
    TILE: gl.constexpr = (TILE_N, TILE_P, TILE_Q, ROWS, COLUMNS, BLOCK_K, BLOCK_C, GROUP, STAGES)
    if CONSUMERS == 1:
        gl.warp_specialize(
            [
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(0), full, empty, pair, landed.index(0),
                     vectors, None, sizes, steps, programs, 0, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    _tiles_produce,
                    (x_map, w_map, x_ring, w_ring, full, empty, pair, sizes, taps, first, step, order, c, programs,
                     TILE, TRANSPOSED, PAIR, PHASES),
                ),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
    elif CONSUMERS == 2:
        gl.warp_specialize(
            [
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(0), full, empty, pair, landed.index(0),
                     vectors, None, sizes, steps, programs, 0, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(1), full, empty, pair, landed.index(1),
                     vectors, None, sizes, steps, programs, 1, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    _tiles_produce,
                    (x_map, w_map, x_ring, w_ring, full, empty, pair, sizes, taps, first, step, order, c, programs,
                     TILE, TRANSPOSED, PAIR, PHASES),
                ),
            ],
            [WARPS, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(0), full, empty, pair, landed.index(0),
                     vectors, None, sizes, steps, programs, 0, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(1), full, empty, pair, landed.index(1),
                     vectors, None, sizes, steps, programs, 1, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    consume_tiles,
                    (y_maps, residual_maps, x_ring, w_ring, staging.index(2), full, empty, pair, landed.index(2),
                     vectors, None, sizes, steps, programs, 2, TILE, CHUNKS, TRANSPOSED, ACTIVATION, ROUND_EACH,
                     PAIR, layout, None, PHASES, False),
                ),
                (
                    _tiles_produce,
                    (x_map, w_map, x_ring, w_ring, full, empty, pair, sizes, taps, first, step, order, c, programs,
                     TILE, TRANSPOSED, PAIR, PHASES),
                ),
            ],
            [WARPS, WARPS, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    cluster_exit(PAIR)


@one_binary
def _conv_tiles_kernel(
    x_map,
    w_map,
    y_map,
    residual_map,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    n,
    c,
    k,
    o,
    p,
    q,
    t,
    r,
    s,
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
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    GROUP: gl.constexpr,
    STAGES: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    INSTRUCTION_K: gl.constexpr,
    WARPS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
    SHARED: gl.constexpr,
):
    """Compute y = activation((sums + bias) * scale + shift + residual), sums over taps and channels of x times w.

    y[n, o, p, q, k] sums x[n, o + first_d + t' step_d, p + first_h + r' step_h, q + first_w + s' step_w, c'] times
    w[tap_first + t' tap_step_d + r' tap_step_h + s' tap_step_w, k, c'] over t' r' s' c'. Forward: first = -padding,
    step = dilation. Data gradient: x is the gradient of y, first = padding, step = -dilation, and `c` and `k` trade
    places: TRANSPOSED reads w by [tap, c', k]. Of stride s, for positions of the result that are equal modulo s: taps
    that meet them alone, and a map of y with s times its strides.

    Tensor maps, channels last: x_map over [N, D, H, W, C] in boxes [TILE_N, 1, TILE_P, TILE_Q, BLOCK_C]; w_map over
    [taps, K, C] in boxes [1, BLOCK_K, BLOCK_C], TRANSPOSED over [taps, C, K] in [1, BLOCK_C, BLOCK_K]; y_map, and
    residual_map if there is one, over [N, O, P, Q, K] in boxes [TILE_N, 1, TILE_P, TILE_Q, BLOCK_K / CHUNKS]. What a
    box reads outside of its tensor is zero, which is the padding; what it would write there is dropped.
    bias, scale, shift: K contiguous numbers each, or None.

    ROWS x COLUMNS consumers (1 to 3) of WARPS warps have one box each, side by side. A 1x1 convolution is one row of
    N O P Q pixels, a 1-D one has one row.
    SHARED, if not "", says what the two CTAs of a cluster share of a tile, whose sizes are then those of both: of
    "weights" pixels are split and the weights multicast, of "pixels" channels are split and x is multicast. The maps'
    layouts say the same of their boxes.
    Registers of the consumers but the first, which gets what is left, and of the producer: `setmaxnreg`.

    Grid: (programs,), the number of multiprocessors or half of it with a cluster.
    """
    multiply_tiles(
        x_map,
        w_map,
        (y_map,),
        (residual_map,),
        (bias_ptr, scale_ptr, shift_ptr),
        (n, o, p, q, k),
        ((t,), (r,), (s,)),
        ((first_d,), (first_h,), (first_w,)),
        (step_d, step_h, step_w),
        ((tap_first,), tap_step_d, tap_step_h, tap_step_w),
        c,
        programs,
        TILE_N,
        TILE_P,
        TILE_Q,
        ROWS,
        COLUMNS,
        BLOCK_K,
        BLOCK_C,
        GROUP,
        STAGES,
        CHUNKS,
        TRANSPOSED,
        ACTIVATION,
        ROUND_EACH,
        INSTRUCTION_N,
        INSTRUCTION_K,
        WARPS,
        CONSUMER_REGISTERS,
        PRODUCER_REGISTERS,
        SHARED,
        1,
    )
