"""Device functions that the Hopper kernels share: rings of slots, tiles by number, and the way of a tile to memory.

A ring is a row of slots in shared memory with two barriers each: `full` tells that a slot's boxes have landed (one
arrival, which names their bytes), `empty` that every consumer has read it. Who fills starts in phase 1: waiting for a
phase that is not there yet passes at once.
"""

from inspect import signature

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import cluster, fence_async_shared, mbarrier, tma


def one_binary(kernel):
    """Make a kernel of a function: one binary for each set of constants, as numbers and addresses are known by type."""
    names = [name for name in signature(kernel).parameters if not name.isupper() and not name.endswith("_map")]
    pointers = [name for name in names if name.endswith("_ptr")]
    numbers = [name for name in names if name not in pointers]
    return gluon.jit(do_not_specialize=numbers, do_not_specialize_on_alignment=pointers)(kernel)


@gluon.constexpr_function
def halves(shared):
    """Return how the two CTAs of a cluster share a tile [pixels, channels], as a `cga_layout`: nothing of one CTA.

    Those that share "weights" have half of the pixels each, those that share "pixels" half of the channels.
    """
    return {"weights": ((1, 0),), "pixels": ((0, 1),)}.get(shared, ())


@gluon.jit
def advance(slot, phase, SLOTS: gl.constexpr):
    """Return the next position of a ring; the phase turns where it begins anew."""
    slot += 1
    wraps = slot == SLOTS
    return gl.where(wraps, 0, slot), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def tile_axes(tile, tiles_n, tiles_o, tiles_p, tiles_q, tiles_k, GROUP: gl.constexpr):
    """Take a tile's number apart: image, depth, row, column and channels, in tiles.

    GROUP tiles of pixels are walked for each tile of channels before the next ones: neighbouring programs then share
    weights in the L2 cache, and the pixels of a group stay there for all channels.
    """
    pixels = tiles_n * tiles_o * tiles_p * tiles_q
    per_group = GROUP * tiles_k
    group = tile // per_group
    size = min(pixels - group * GROUP, GROUP)
    within = tile % per_group
    pixel = group * GROUP + within % size
    at_k = within // size
    at_q = pixel % tiles_q
    lines = pixel // tiles_q
    at_p = lines % tiles_p
    planes = lines // tiles_p
    return planes // tiles_o, planes % tiles_o, at_p, at_q, at_k


@gluon.jit
def cta_rank():
    """Return the rank of this CTA in its cluster. Gluon hides it on purpose: what each CTA loads for itself, and
    signals, are its uses here."""
    return gl.inline_asm_elementwise("mov.u32 $0, %cluster_ctarank;", "=r", [], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def cluster_exit(CLUSTER: gl.constexpr):
    """Keep a CTA until its peer no longer arrives at its barriers. Triton 3.9 does so by itself, 3.8 does not."""
    if CLUSTER:
        cluster.barrier()


@gluon.jit
def tanh(x):
    """Return tanh(x) from exp(-2|x|), which never overflows; near 0, where that cancels, from its series."""
    magnitude = gl.where(x < 0, -x, x)
    e = gl.exp(-2.0 * magnitude)
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    series = 62.0 / 2835.0 + square * (-1382.0 / 155925.0 + square * (21844.0 / 6081075.0))
    series = square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0 + square * series)))
    return gl.where(magnitude < 0.4, x + x * series, gl.where(x < 0, -far, far))


@gluon.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) without overflow on either side."""
    e = gl.exp(gl.where(x < 0, x, -x))
    return gl.where(x < 0, e, 1.0) / (1.0 + e)


@gluon.jit
def at_least_zero(x):
    """Return max(x, 0). NaN, which no comparison is true for, stays."""
    return gl.where(x < 0, 0.0, x)


@gluon.jit
def at_most_six(x):
    """Return min(x, 6). NaN stays."""
    return gl.where(x > 6, 6.0, x)


@gluon.jit
def activate(x, ACTIVATION: gl.constexpr):
    """Apply an activation by name (formulas of torch.nn.functional); None leaves `x` as it is. NaN propagates."""
    if ACTIVATION == "relu":
        x = at_least_zero(x)
    elif ACTIVATION == "relu6":
        x = at_most_six(at_least_zero(x))
    elif ACTIVATION == "hardswish":
        x = x * at_most_six(at_least_zero(x + 3.0)) / 6.0
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + gl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    return x


@gluon.jit
def channel_vector(ptr, first, k, LAYOUT: gl.constexpr, WIDTH: gl.constexpr):
    """Return one number per column of a tile, as a row in float32; zeros beyond the last channel."""
    channel = first + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, LAYOUT))
    vector = gl.load(ptr + channel, mask=channel < k, other=0.0)
    # To the layout that it has: Gluon does not see that one is the other, spelled with lists and with tuples.
    return gl.convert_layout(gl.expand_dims(vector.to(gl.float32), 0), LAYOUT)


@gluon.jit
def epilogue(
    value,
    residual,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    first,
    k,
    dtype: gl.constexpr,
    WIDTH: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
):
    """Return activation((value + bias) * scale + shift + residual) for channels from `first`, in float32.

    Each operand may be None. ROUND_EACH rounds to the type of y after the convolution and after each operand, as torch
    does, which computes them one after another; without it the result is rounded once, when it is stored.
    """
    layout: gl.constexpr = value.type.layout
    if ROUND_EACH:
        value = value.to(dtype).to(gl.float32)
    if bias_ptr is not None:
        value = value + channel_vector(bias_ptr, first, k, layout, WIDTH)
        if ROUND_EACH:
            value = value.to(dtype).to(gl.float32)
    if scale_ptr is not None:
        value = value * channel_vector(scale_ptr, first, k, layout, WIDTH)
        if ROUND_EACH:
            value = value.to(dtype).to(gl.float32)
    if shift_ptr is not None:
        value = value + channel_vector(shift_ptr, first, k, layout, WIDTH)
        if ROUND_EACH:
            value = value.to(dtype).to(gl.float32)
    if residual is not None:
        value = value + residual.to(gl.float32)
        if ROUND_EACH:
            value = value.to(dtype).to(gl.float32)
    return activate(value, ACTIVATION)


@gluon.jit
def column_chunks(tile, ROWS: gl.constexpr, COLUMNS: gl.constexpr, CHUNKS: gl.constexpr):
    """Cut a tile into 1, 2 or 4 runs of columns, each in registers alone."""
    if CHUNKS == 1:
        chunks = (tile,)
    elif CHUNKS == 2:
        chunks = tile.reshape([ROWS, 2, COLUMNS // 2]).permute(0, 2, 1).split()
    else:
        low, high = tile.reshape([ROWS, 2, COLUMNS // 2]).permute(0, 2, 1).split()
        low = low.reshape([ROWS, 2, COLUMNS // 4]).permute(0, 2, 1).split()
        high = high.reshape([ROWS, 2, COLUMNS // 4]).permute(0, 2, 1).split()
        chunks = low + high
    return chunks


@gluon.jit
def part_offsets(ROWS: gl.constexpr, COLUMNS: gl.constexpr, LAYOUT: gl.constexpr):
    """Return where the numbers of a dense tile lie in memory, from its first one on."""
    rows = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)), 1)
    columns = gl.expand_dims(gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT)), 0)
    # A zero that the compiler does not know: it would keep all offsets in registers from one tile to the next.
    zero = gl.inline_asm_elementwise("mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    return gl.convert_layout(
        (rows + zero) * COLUMNS + columns, LAYOUT
    )  # to the layout that it has, as in `channel_vector`


@gluon.jit
def of_phase(values, phase, PHASES: gl.constexpr):
    """Return the number of a phase out of a tuple with one of each."""
    found = values[0]
    for i in gl.static_range(1, PHASES):
        found = gl.where(phase == i, values[i], found)
    return found


@gluon.jit
def chunks_of(first, c, BLOCK_C: gl.constexpr, PHASES: gl.constexpr):
    """Return the blocks of channels of a phase whose first tap is `first`: where no tap is, one, of zeros alone."""
    chunks = gl.cdiv(c, BLOCK_C)
    if PHASES > 1:
        chunks = gl.where(first < 0, 1, chunks)
    return chunks


@gluon.jit
def load_box_of_phase(maps, phase, at, barrier, box, PHASES: gl.constexpr):
    """Load a box from the map of a phase: which is known when it runs, while a map is named by the code."""
    if PHASES == 1:
        tma.async_load(maps[0], at, barrier, box)
    else:
        for i in gl.static_range(PHASES):
            if phase == i:
                tma.async_load(maps[i], at, barrier, box)


@gluon.jit
def store_box_of_phase(maps, phase, at, box, PHASES: gl.constexpr):
    """Store a box to the map of a phase."""
    if PHASES == 1:
        tma.async_store(maps[0], at, box)
    else:
        for i in gl.static_range(PHASES):
            if phase == i:
                tma.async_store(maps[i], at, box)


@gluon.jit
def store_tile(
    y_maps,
    residual_maps,
    phase,
    staging,
    landed,
    parity,
    tile,
    others,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    at_n,
    at_o,
    at_p,
    at_q,
    first,
    k,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    CHUNKS: gl.constexpr,
    ACTIVATION: gl.constexpr,
    ROUND_EACH: gl.constexpr,
    PHASES: gl.constexpr,
):
    """Write a tile [ROWS pixels, COLUMNS channels] of sums through `staging` [.., COLUMNS / CHUNKS], in chunks.

    `others`, if not None, are parts of the sums that programs of lower number have handed over: where they lie, the
    first of these programs, the numbers from one to the next, and those of a program that stand before this tile's.
    `y_maps`, and `residual_maps` or None each, are of PHASES phases, of which the tile belongs to one.
    A residual comes the same way in: its box lands in `staging` before the chunk is stored from there. `landed` and
    `parity` are its barrier and the phase to wait for; the next one is returned.
    """
    dtype: gl.constexpr = y_maps[0].dtype
    WIDTH: gl.constexpr = COLUMNS // CHUNKS
    chunks = column_chunks(tile, ROWS, COLUMNS, CHUNKS)
    for i in gl.static_range(CHUNKS):
        chunk = chunks[i]
        if others is not None:
            offsets = part_offsets(ROWS, WIDTH, chunk.type.layout)
            for other in range(others[1], gl.program_id(0)):
                place = other * others[2] + others[3] + i * (ROWS * WIDTH)
                chunk = chunk + gl.load(others[0] + place + offsets)
        at = [at_n, at_o, at_p, at_q, first + i * WIDTH]
        tma.store_wait(0)  # what was stored last has been read
        residual = None
        if residual_maps[0] is not None:
            mbarrier.expect(landed, residual_maps[0].nbytes_per_cta)
            load_box_of_phase(residual_maps, phase, at, landed, staging, PHASES)
            mbarrier.wait(landed, parity)
            parity = parity ^ 1
            residual = staging.reshape([ROWS, WIDTH]).load(chunk.type.layout)
        value = epilogue(
            chunk,
            residual,
            bias_ptr,
            scale_ptr,
            shift_ptr,
            first + i * WIDTH,
            k,
            dtype,
            WIDTH,
            ACTIVATION,
            ROUND_EACH,
        )
        staging.reshape([ROWS, WIDTH]).store(value.to(dtype))
        fence_async_shared()
        store_box_of_phase(y_maps, phase, at, staging, PHASES)
    return parity
