"""What consumers of a ring of boxes do: multiply x by w out of shared memory, tile by tile, and store the sums."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from .common import advance, of_phase, store_tile, tile_axes
from .streams import await_parts, first_of, hand_over, item_of, items_of, wipe_signals


@gluon.jit
def consume_tiles(
    y_maps,
    residual_maps,
    x_ring,
    w_ring,
    staging,
    full,
    empty,
    pair,
    landed,
    vectors,
    shared,
    sizes,
    steps,
    programs,
    CONSUMER: gl.constexpr,
    TILE: gl.constexpr,
    CHUNKS: gl.constexpr,
    TRANSPOSED: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    CLUSTER: gl.constexpr,
    LAYOUT: gl.constexpr,
    OPERAND: gl.constexpr,
    PHASES: gl.constexpr,
    STREAM: gl.constexpr,
):
    """Multiply and store the pixels of one box per tile. One product stays in flight: its slot is freed a step later.

    Of several phases each has as many tiles, and steps of its own.
    STREAM: programs have equal shares of the steps of all tiles, of one phase; see :mod:`.streams` for `shared`.
    OPERAND, if not None, is the layout in which a box of x is read, where its own is another one.
    """
    TILE_N: gl.constexpr = TILE[0]
    TILE_P: gl.constexpr = TILE[1]
    TILE_Q: gl.constexpr = TILE[2]
    ROWS: gl.constexpr = TILE[3]
    COLUMNS: gl.constexpr = TILE[4]
    BLOCK_K: gl.constexpr = TILE[5]
    BLOCK_C: gl.constexpr = TILE[6]
    GROUP: gl.constexpr = TILE[7]
    STAGES: gl.constexpr = TILE[8]
    BLOCK_M: gl.constexpr = TILE_N * TILE_P * TILE_Q
    tiles_n = gl.cdiv(sizes[0], TILE_N)
    tiles_p = gl.cdiv(sizes[2], TILE_P * ROWS)
    tiles_q = gl.cdiv(sizes[3], TILE_Q * COLUMNS)
    tiles_k = gl.cdiv(sizes[4], BLOCK_K)
    slot = 0
    phase = 0
    parity = 0
    tiles = tiles_n * sizes[1] * tiles_p * tiles_q * tiles_k
    first_item, last_item, by = items_of(PHASES * tiles, steps[0], programs, STREAM)
    for item in range(first_item, last_item, by):
        tile, begin, end = item_of(item, tiles, steps[0], programs, STREAM)
        of = 0
        within = tile
        if PHASES > 1:
            of = tile // tiles
            within = tile % tiles
        n, o, p, q, k = tile_axes(within, tiles_n, sizes[1], tiles_p, tiles_q, tiles_k, GROUP)
        sums = warpgroup_mma_init(gl.zeros([BLOCK_M, BLOCK_K], gl.float32, LAYOUT))
        last = slot
        if PHASES > 1:
            end = of_phase(steps, of, PHASES)
        for i in range(begin, end):
            mbarrier.wait(full.index(slot), phase)
            pixels = x_ring.index(slot * (ROWS * COLUMNS) + CONSUMER)
            if OPERAND is None:
                pixels = pixels.reshape([BLOCK_M, BLOCK_C])
            else:
                pixels = pixels.reinterpret(shape=[BLOCK_M, BLOCK_C], layout=OPERAND)
            if TRANSPOSED:
                weights = w_ring.index(slot).reshape([BLOCK_C, BLOCK_K])
            else:
                weights = w_ring.index(slot).reshape([BLOCK_K, BLOCK_C]).permute((1, 0))
            sums = warpgroup_mma(pixels, weights, sums, is_async=True)
            sums = warpgroup_mma_init(warpgroup_mma_wait(1, deps=[sums]))
            mbarrier.arrive(empty.index(last), count=1, pred=i > begin)
            if CLUSTER:
                mbarrier.arrive(pair.index(last), count=1, pred=i > begin)
            last = slot
            slot, phase = advance(slot, phase, STAGES)
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(empty.index(last), count=1)
        if CLUSTER:
            mbarrier.arrive(pair.index(last), count=1)
        others = None
        if STREAM:
            first = gl.program_id(0)
            if end == steps[0]:
                first = first_of(tile, tiles, steps[0], programs)
            else:
                hand_over((sums,), shared, CONSUMER, ROWS * COLUMNS, 1, BLOCK_M, BLOCK_K, CHUNKS, CLUSTER)
            await_parts(first, shared, CONSUMER, ROWS * COLUMNS, CLUSTER)
            others = (shared[0], first, ROWS * COLUMNS * BLOCK_M * BLOCK_K, CONSUMER * BLOCK_M * BLOCK_K)
        if PHASES > 1 or end == steps[0]:
            parity = store_tile(
                y_maps,
                residual_maps,
                of,
                staging,
                landed,
                parity,
                sums,
                others,
                vectors[0],
                vectors[1],
                vectors[2],
                n * TILE_N,
                o,
                (p * ROWS + CONSUMER // COLUMNS) * TILE_P,
                (q * COLUMNS + CONSUMER % COLUMNS) * TILE_Q,
                k * BLOCK_K,
                sizes[4],
                BLOCK_M,
                BLOCK_K,
                CHUNKS,
                ACTIVATION,
                ROUND_EACH,
                PHASES,
            )
        if STREAM:
            wipe_signals(first, shared, CONSUMER, ROWS * COLUMNS, CLUSTER)
    tma.store_wait(0)
