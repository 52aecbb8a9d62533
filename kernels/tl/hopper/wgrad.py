"""Weight gradient of a dense convolution: both operands from shared memory as they lie, pixels outermost.

dw[k, tap, c] sums dy[pixel, k] x[pixel + tap, c] over all pixels. wgmma takes both without a transpose (16-bit types
alone). Programs split the pixels; their partial sums are added in order by a second kernel, so equal calls give equal
bits.
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

from .common import advance, one_binary
from .pixels import first_pixel


@gluon.jit
def _tap_shift(tap, count, taps, step):
    """Return how far the x of a tap lies from that of the first; beyond the last tap, that of the last."""
    tap = min(tap, count - 1)
    rows = tap // taps[1]
    return rows // taps[0] * step[0], rows % taps[0] * step[1], tap % taps[1] * step[2]


@gluon.jit
def _wgrad_produce(
    dy_map,
    x_map,
    dy_ring,
    x_ring,
    full,
    empty,
    at_k,
    at_c,
    tap,
    count,
    taps,
    first,
    step,
    begin,
    end,
    tiles,
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Fill the ring with boxes of pixels: of dy, and of x where the tap sees them."""
    slot = 0
    phase = 1
    for tile in range(begin, end):
        q = tile % tiles[2]
        lines = tile // tiles[2]
        p = lines % tiles[1]
        planes = lines // tiles[1]
        o = planes % tiles[0]
        n = planes // tiles[0]
        mbarrier.wait(empty.index(slot), phase)
        mbarrier.expect(full.index(slot), dy_map.nbytes_per_cta + TAPS * x_map.nbytes_per_cta)
        tma.async_load(dy_map, [n * TILE_N, o, p * TILE_P, q * TILE_Q, at_k], full.index(slot), dy_ring.index(slot))
        for j in gl.static_range(TAPS):
            shift_d, shift_h, shift_w = _tap_shift(tap + j, count, taps, step)
            at = [
                n * TILE_N,
                o + first[0] + shift_d,
                p * TILE_P + first[1] + shift_h,
                q * TILE_Q + first[2] + shift_w,
                at_c,
            ]
            tma.async_load(x_map, at, full.index(slot), x_ring.index(slot * TAPS + j))
        slot, phase = advance(slot, phase, STAGES)


@gluon.jit
def _wgrad_produce_pixels(
    dy_map,
    x_map,
    dy_ring,
    x_ring,
    full,
    empty,
    at_k,
    at_c,
    tap,
    count,
    taps,
    step,
    begin,
    end,
    sizes,
    strides,
    first,
    PIXELS: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    AXES: gl.constexpr,
):
    """Fill the ring with runs of pixels: of dy as one long row, and of x by the im2col mode, at the tap's offsets."""
    slot = 0
    phase = 1
    for tile in range(begin, end):
        pixel = tile * PIXELS
        at = first_pixel(pixel, sizes, strides, first, AXES)
        mbarrier.wait(empty.index(slot), phase)
        mbarrier.expect(full.index(slot), dy_map.nbytes_per_cta + TAPS * x_map.nbytes_per_cta)
        tma.async_load(dy_map, [0, 0, 0, pixel, at_k], full.index(slot), dy_ring.index(slot))
        for j in gl.static_range(TAPS):
            shift_d, shift_h, shift_w = _tap_shift(tap + j, count, taps, step)
            if AXES == 2:
                box = [at[0], at[1], at[2], at_c]
                offsets = [shift_h.to(gl.int16), shift_w.to(gl.int16)]
            else:
                box = [at[0], at[1], at[2], at[3], at_c]
                offsets = [shift_d.to(gl.int16), shift_h.to(gl.int16), shift_w.to(gl.int16)]
            tma.async_load_im2col(x_map, box, offsets, full.index(slot), x_ring.index(slot * TAPS + j))
        slot, phase = advance(slot, phase, STAGES)


@gluon.jit
def _wgrad_consume(
    dw_ptr,
    dy_ring,
    x_ring,
    full,
    empty,
    at_k,
    at_c,
    k,
    c,
    tap,
    count,
    begin,
    end,
    PIXELS: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Multiply, and store the partial sums of TAPS tiles. A program without pixels stores zeros."""
    sums = ()
    for j in gl.static_range(TAPS):
        sums = sums + (gl.zeros([BLOCK_K, BLOCK_C], gl.float32, LAYOUT),)
    slot = 0
    phase = 0
    last = slot
    for tile in range(begin, end):
        mbarrier.wait(full.index(slot), phase)
        dy = dy_ring.index(slot).reshape([PIXELS, BLOCK_K]).permute((1, 0))
        products = ()
        for j in gl.static_range(TAPS):
            x = x_ring.index(slot * TAPS + j).reshape([PIXELS, BLOCK_C])
            products = products + (warpgroup_mma(dy, x, warpgroup_mma_init(sums[j]), is_async=True),)
        if TAPS == 1:
            sums = (warpgroup_mma_wait(1, deps=[products[0]]),)
        else:
            sums = warpgroup_mma_wait(TAPS, deps=products)
        mbarrier.arrive(empty.index(last), count=1, pred=tile > begin)
        last = slot
        slot, phase = advance(slot, phase, STAGES)
    products = ()
    for j in gl.static_range(TAPS):
        products = products + (warpgroup_mma_init(sums[j]),)
    if TAPS == 1:
        sums = (warpgroup_mma_wait(0, deps=[products[0]]),)
    else:
        sums = warpgroup_mma_wait(0, deps=products)
    row = at_k + gl.arange(0, BLOCK_K, layout=gl.SliceLayout(1, LAYOUT))
    column = at_c + gl.arange(0, BLOCK_C, layout=gl.SliceLayout(0, LAYOUT))
    inside = gl.expand_dims(row < k, 1) & gl.expand_dims(column < c, 0)
    offsets = gl.expand_dims(row, 1) * (count * c) + gl.expand_dims(column, 0)
    for j in gl.static_range(TAPS):
        gl.store(dw_ptr + (offsets + (tap + j) * c), sums[j], mask=inside & (tap + j < count))


@one_binary
def _conv_wgrad_tiles_kernel(
    dy_map,
    x_map,
    dw_ptr,
    n,
    c,
    k,
    o,
    p,
    q,
    t,
    r,
    s,
    splits,
    elements,
    stride_d,
    stride_h,
    stride_w,
    first_d,
    first_h,
    first_w,
    step_d,
    step_h,
    step_w,
    TILE_N: gl.constexpr,
    TILE_P: gl.constexpr,
    TILE_Q: gl.constexpr,
    BLOCK_K: gl.constexpr,
    BLOCK_C: gl.constexpr,
    TAPS: gl.constexpr,
    STAGES: gl.constexpr,
    AXES: gl.constexpr,
    INSTRUCTION_N: gl.constexpr,
    WARPS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    """Write partial sums dw[split, k, (t r + r') s + s', c] in float32; a split has `elements` numbers in all.

    dw[k, tap, c'] sums dy[n, o, p, q, k] x[n, o stride_d + first_d + t' step_d, .., c'] over n o p q; forward:
    first = -padding, step = dilation.

    Tensor maps, channels last. AXES = 0, for strides of 1: dy_map over [N, O, P, Q, K] in boxes [TILE_N, 1, TILE_P,
    TILE_Q, BLOCK_K], x_map over [N, D, H, W, C] in [TILE_N, 1, TILE_P, TILE_Q, BLOCK_C]; the pixels of a box are the
    length of one product. What lies outside of dy is zero and adds nothing to what is finite: where TILE_P and TILE_Q
    do not divide P and Q, an infinity or NaN of x beyond the last result reaches taps that do not read it.
    AXES = 2 or 3: dy_map over [1, 1, 1, N O P Q, K] in boxes [1, 1, 1, TILE_Q, BLOCK_K], x_map of the im2col mode over
    [N, H, W, C] or [N, D, H, W, C] in boxes [TILE_Q, BLOCK_C]; no pixel is read that is not there, as in pixels.py,
    whose bounds on corners and offsets hold. N O P Q + TILE_Q and `elements` splits are below 2**31.
    What lies outside of x is the padding.

    A program has TAPS taps that follow each other, each with sums of its own, and loads dy once for them.

    Grid: (cdiv(K, BLOCK_K) cdiv(C, BLOCK_C), cdiv(T R S, TAPS), splits).
    """
    gl.static_assert(STAGES >= 2, "a slot is freed one step after it is read")
    tiles_c = gl.cdiv(c, BLOCK_C)
    at_k = gl.program_id(0) // tiles_c * BLOCK_K
    at_c = gl.program_id(0) % tiles_c * BLOCK_C
    tap = gl.program_id(1) * TAPS
    split = gl.program_id(2)
    count = t * r * s
    taps = (r, s)
    first = (first_d, first_h, first_w)
    step = (step_d, step_h, step_w)
    tiles = (o, gl.cdiv(p, TILE_P), gl.cdiv(q, TILE_Q))
    if AXES == 0:
        boxes = gl.cdiv(n, TILE_N) * tiles[0] * tiles[1] * tiles[2]
    else:
        boxes = gl.cdiv(n * o * p * q, TILE_Q)
    share = gl.cdiv(boxes, splits)
    begin = min(split * share, boxes)
    end = min(begin + share, boxes)
    PIXELS: gl.constexpr = TILE_N * TILE_P * TILE_Q
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, INSTRUCTION_N, 16]
    )
    dy_ring = gl.allocate_shared_memory(dy_map.dtype, [STAGES, TILE_N, 1, TILE_P, TILE_Q, BLOCK_K], dy_map.layout)
    if AXES == 0:
        x_ring = gl.allocate_shared_memory(
            x_map.dtype, [STAGES * TAPS, TILE_N, 1, TILE_P, TILE_Q, BLOCK_C], x_map.layout
        )
    else:
        x_ring = gl.allocate_shared_memory(x_map.dtype, [STAGES * TAPS, TILE_Q, BLOCK_C], x_map.layout)
    full = mbarrier.allocate_mbarrier(batch=STAGES)
    empty = mbarrier.allocate_mbarrier(batch=STAGES)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    dw_ptr = dw_ptr + split * elements
    if AXES == 0:
        gl.warp_specialize(
            [
                (
                    _wgrad_consume,
                    (dw_ptr, dy_ring, x_ring, full, empty, at_k, at_c, k, c, tap, count, begin, end, PIXELS, BLOCK_K,
                     BLOCK_C, TAPS, STAGES, layout),
                ),
                (
                    _wgrad_produce,
                    (dy_map, x_map, dy_ring, x_ring, full, empty, at_k, at_c, tap, count, taps, first, step, begin, end,
                     tiles, TILE_N, TILE_P, TILE_Q, TAPS, STAGES),
                ),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        strides = (stride_d, stride_h, stride_w)
        gl.warp_specialize(
            [
                (
                    _wgrad_consume,
                    (dw_ptr, dy_ring, x_ring, full, empty, at_k, at_c, k, c, tap, count, begin, end, PIXELS, BLOCK_K,
                     BLOCK_C, TAPS, STAGES, layout),
                ),
                (
                    _wgrad_produce_pixels,
                    (dy_map, x_map, dy_ring, x_ring, full, empty, at_k, at_c, tap, count, taps, step, begin, end,
                     (o, p, q), strides, first, PIXELS, TAPS, STAGES, AXES),
                ),
            ],
            [1],
            [PRODUCER_REGISTERS],
        )  # fmt: skip
