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
):
    """Multiply and store the pixels of one box per tile. One product stays in flight: its slot is freed a step later.

    Of several phases each has as many tiles, and steps of its own.
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
    for tile in range(gl.program_id(0), PHASES * tiles, programs):
        of = 0
        within = tile
        if PHASES > 1:
            of = tile // tiles
            within = tile % tiles
        n, o, p, q, k = tile_axes(within, tiles_n, sizes[1], tiles_p, tiles_q, tiles_k, GROUP)
        sums = warpgroup_mma_init(gl.zeros([BLOCK_M, BLOCK_K], gl.float32, LAYOUT))
        last = slot
        for i in range(0, of_phase(steps, of, PHASES)):
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
            mbarrier.arrive(empty.index(last), count=1, pred=i > 0)
            if CLUSTER:
                mbarrier.arrive(pair.index(last), count=1, pred=i > 0)
            last = slot
            slot, phase = advance(slot, phase, STAGES)
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(empty.index(last), count=1)
        if CLUSTER:
            mbarrier.arrive(pair.index(last), count=1)
        parity = store_tile(
            y_maps,
            residual_maps,
            of,
            staging,
            landed,
            parity,
            sums,
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
    tma.store_wait(0)
