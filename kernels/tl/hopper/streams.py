"""Equal shares of all steps of all tiles, one for each program, and how programs add up the sums of a tile they share.

Tiles seldom fill a whole number of rounds of programs. Here the steps of all tiles stand in one row, which is cut into
as many runs of one length as there are programs ("Stream-K": Osama et al., PPoPP 2023, arXiv:2301.03598). A program
takes its tiles from the last one back. Of that one it may have the first steps alone: it writes their sums to memory
and signals. Of its first tile, taken last, it may have the last steps alone: it waits for the programs that have those
before, adds their sums in the order of the programs, and stores. So what is waited for was written first of all, by
programs of lower number, which wait for nobody before they have written. Results depend on the number of programs, and
not on timing. There are no more programs than fit on the GPU at once; where another kernel holds multiprocessors, those
of lower number must be started first, which GPUs do, and CUDA does not promise.

A signal is a number that is in no memory by chance, 64 bits of it, and is wiped out by who waited for it: the memory
of signals needs no pass that clears it. Each consumer signals for its own rows, each CTA of a cluster for its own part.
One thread writes it, behind a barrier of its partition: of several, one that is late would write it again after it was
wiped, and a later launch would take it for its own.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .common import column_chunks, cta_rank, part_offsets

_SIGNAL = "0x9d3f5a71c84be206"
_GIVE = gl.constexpr(f"st.release.gpu.global.u64 [$1], {_SIGNAL};")
_AWAIT = gl.constexpr(
    "{ .reg .pred p; .reg .u64 v; POLL: ld.acquire.gpu.global.u64 v, [$1]; "
    f"setp.ne.u64 p, v, {_SIGNAL}; @p bra POLL; mov.u32 $0, 0; }}"
)
_WIPE = gl.constexpr("st.global.u64 [$1], 0;")
"""What is done to a signal, in PTX: a label is known within its braces alone."""


@gluon.constexpr_function
def of_one_thread(instruction, warps):
    """Return PTX in which one thread of a partition executes an instruction.

    Partitions of a power of two of warps begin at a multiple of it.
    """
    first = f"mov.u32 t, %tid.x; and.b32 t, t, {32 * warps - 1}; setp.eq.u32 one, t, 0;"
    return f"{{ .reg .pred one; .reg .u32 t; {first} @one {instruction} mov.u32 $0, 0; }}"


@gluon.jit
def first_unit(program, units, programs):
    """Return the first of the units of a program; all have as many, and the first ones one more."""
    return program * (units // programs) + min(program, units % programs)


@gluon.jit
def program_of(unit, units, programs):
    """Return the program that has a unit."""
    least = units // programs
    longer = units % programs * (least + 1)
    return gl.where(unit < longer, unit // (least + 1), units % programs + max(unit - longer, 0) // least)


@gluon.jit
def share(units, programs):
    """Return the first unit of this program, and the one behind its last."""
    return first_unit(gl.program_id(0), units, programs), first_unit(gl.program_id(0) + 1, units, programs)


@gluon.jit
def items_of(tiles, steps, programs, STREAM: gl.constexpr):
    """Return the range of the numbers that :func:`item_of` takes: tiles of this program, or parts of them."""
    first = gl.program_id(0)
    last = tiles
    by = programs
    if STREAM:
        begin, end = share(tiles * steps, programs)
        first = 0
        last = (end - 1) // steps - begin // steps + 1
        by = 1
    return first, last, by


@gluon.jit
def item_of(item, tiles, steps, programs, STREAM: gl.constexpr):
    """Return a tile, the first step that this program has of it, and the one behind the last."""
    tile = item
    begin = 0
    end = steps
    if STREAM:
        first, last = share(tiles * steps, programs)
        tile = (last - 1) // steps - item
        begin = max(first - tile * steps, 0)
        end = min(last - tile * steps, steps)
    return tile, begin, end


@gluon.jit
def place_of_signal(program, CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, PAIR: gl.constexpr):
    """Return the number of the signal of a consumer of a program, in this CTA."""
    place = program * CONSUMERS + CONSUMER
    if PAIR:
        place = 2 * place + cta_rank()
    return place


@gluon.jit
def at_signal(flags_ptr, at, INSTRUCTIONS: gl.constexpr):
    """Run instructions on the address of a signal."""
    address = (flags_ptr + at).to(gl.int64)
    gl.inline_asm_elementwise(INSTRUCTIONS, "=r,l", [address], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def signal(flags_ptr, at):
    """Tell that everything which threads of this partition wrote before the last barrier is there for all to read."""
    at_signal(flags_ptr, at, of_one_thread(_GIVE, gl.num_warps()))


@gluon.jit
def await_signal(flags_ptr, at):
    """Wait, in every thread, until a signal is there; what was written before it can be read then."""
    at_signal(flags_ptr, at, _AWAIT)


@gluon.jit
def wipe(flags_ptr, at):
    """Take a signal away that all threads of this partition have seen."""
    at_signal(flags_ptr, at, of_one_thread(_WIPE, gl.num_warps()))


@gluon.jit
def hand_over(
    sums,
    shared,
    CONSUMER: gl.constexpr,
    CONSUMERS: gl.constexpr,
    LINES: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    CHUNKS: gl.constexpr,
    PAIR: gl.constexpr,
):
    """Write the sums of the first steps of a tile, LINES tensors [ROWS, COLUMNS] of a consumer, and signal.

    `shared` are two addresses: of ROWS COLUMNS float32 numbers for each of LINES for each consumer of each program, and
    of a signal for each consumer of each program and CTA.
    """
    place = gl.program_id(0) * CONSUMERS + CONSUMER
    for line in gl.static_range(LINES):
        chunks = column_chunks(sums[line], ROWS, COLUMNS, CHUNKS)
        for i in gl.static_range(CHUNKS):
            first = (place * LINES + line) * (ROWS * COLUMNS) + i * (ROWS * COLUMNS // CHUNKS)
            offsets = part_offsets(ROWS, COLUMNS // CHUNKS, chunks[i].type.layout)
            gl.store(shared[0] + first + offsets, chunks[i])
    gl.barrier()
    signal(shared[1], place_of_signal(gl.program_id(0), CONSUMER, CONSUMERS, PAIR))


@gluon.jit
def first_of(tile, tiles, steps, programs):
    """Return the first of the programs that have parts of a tile of which this program has the last steps."""
    return program_of(tile * steps, tiles * steps, programs)


@gluon.jit
def await_parts(first, shared, CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, PAIR: gl.constexpr):
    """Wait for the programs from `first` to the one before this one."""
    for other in range(first, gl.program_id(0)):
        await_signal(shared[1], place_of_signal(other, CONSUMER, CONSUMERS, PAIR))


@gluon.jit
def wipe_signals(first, shared, CONSUMER: gl.constexpr, CONSUMERS: gl.constexpr, PAIR: gl.constexpr):
    """Take the signals of these programs away, which all threads of this partition have seen by then."""
    gl.barrier()
    for other in range(first, gl.program_id(0)):
        wipe(shared[1], place_of_signal(other, CONSUMER, CONSUMERS, PAIR))
