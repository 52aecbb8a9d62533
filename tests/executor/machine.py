"""Runs Gluon kernels on a model of Hopper under adversarial asynchrony: all happens as early or as late as it may.

The rules are those of the PTX ISA, by the titles of its sections:

* An mbarrier's phase completes when neither arrivals nor bytes are pending; it must not have more arrivals than it
  counts ("Phase completion of the mbarrier object", "Tracking asynchronous operations by the mbarrier object"). Bytes
  may arrive before they are expected. A wait names one of two parities, so who falls two phases behind waits for good.
* ``cp.async.bulk.tensor`` to shared memory lands at any time after it is issued and completes its bytes then; out of
  bounds it fills with zeros. With ``.multicast::cluster`` it lands in each CTA apart, on the barrier of that CTA.
* ``wgmma.mma_async`` reads shared memory at any time up to its ``wait_group``; its accumulator is not to be touched
  before ("Asynchronous warpgroup level matrix instructions"). What it reads must have landed, and what ordinary stores
  wrote there must have been fenced, when it is issued. Here it reads as late as it may.
* ``cp.async.bulk.tensor`` to global memory reads shared memory at any time up to ``wait_group.read``; what ordinary
  stores wrote there must have been fenced for the async proxy by the partition that wrote it ("Async proxy").
* Shared memory and barriers of a CTA end with the CTA: nothing may be in flight into it, nor its peers arrive there.
* What a partition writes to global memory can be read by another program that has acquired a signal which one of its
  threads released after a barrier of its threads ("Release and Acquire Patterns", "Causality order"). Until then it may
  not be read. Programs stop and go on at any time, and each begins at any time.
* A tensor map has boxes of at most 256 elements along an axis, rows and strides of multiples of 16 bytes, and in the
  im2col mode corners, offsets and element strides within the bounds of its rank ("Tensor access modes").

Not modelled: swizzles (a wrong one would show on a card alone), the order in which CTAs of a cluster see each other's
memory, ordinary reads and writes of partitions beside each other, single warps of a partition, clusters of more than
two, integers of 32 and 16 bits, shapes that wgmma has not, time. Registers, shapes and shared memory are the compiler's
business: tests/codegen asks it, at the real tile sizes; those here are smaller.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

import numpy as np
from tensors import Fragment, KernelError, Layout, Map, MapIm2col, View, local_shape, regions_overlap

__all__ = ["Barrier", "Executor", "Machine", "Process"]

Body = Generator[Callable[[], bool] | None, None, object]


@dataclass(eq=False)
class Barrier:
    """One mbarrier. A pair's arrivals all go to the one of the first CTA, which alone can be waited for."""

    rank: int
    allocation: int
    slot: int
    pair: bool
    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        return 0 if self.pair else self.rank, self.allocation, self.slot

    def settle(self, arrivals: int = 0, expected: int = 0) -> None:
        """Take arrivals and expected bytes (negative: landed ones), and turn to the next phase where none is left."""
        if not self.count:
            raise KernelError("an mbarrier is used before it is initialised")
        if arrivals > self.pending:
            raise KernelError("more arrivals at an mbarrier than it counts")
        self.pending -= arrivals
        self.bytes += expected
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count


@dataclass(eq=False)
class Process:
    """One partition of warps of one CTA, or the kernel's body there."""

    rank: int
    name: str
    body: Body | None = None
    parent: Process | None = None
    children: int = 0
    waits: Callable[[], bool] | None = None
    products: list[tuple[View, View, Fragment, bool]] = field(default_factory=list)
    stores: list[tuple[View, Map, tuple[int, ...]]] = field(default_factory=list)
    acquired: set[tuple[int, int]] = field(default_factory=set)
    joined: bool = False
    unfenced: list[View] = field(default_factory=list)


@dataclass(eq=False)
class Written:
    """What a partition has written to global memory: joined by a barrier of its threads, then released by a signal."""

    array: int
    elements: np.ndarray
    by: Process
    joined: bool = False
    signal: tuple[int, int] | None = None


@dataclass(eq=False)
class Slots:
    barriers: list[Barrier]

    def index(self, at) -> Barrier:
        if not 0 <= at < len(self.barriers):
            raise KernelError(f"barrier {at} of {len(self.barriers)}")
        return self.barriers[int(at)]


class Machine:
    """What the executor and the prover's recorder share: memory, barriers, and who gets a box."""

    def __init__(self, ctas: int = 1):
        self.ctas, self.current = ctas, Process(0, "none")
        self.grid, self.program = (1, 1, 1), (0, 0, 0)
        self.forget()

    def forget(self) -> None:
        """Begin with new CTAs."""
        self._memory: list[list[np.ndarray | Slots]] = [[] for _ in range(self.ctas)]

    def read_global(self, array: np.ndarray, elements: np.ndarray) -> None:
        """Take notice that elements of a flat array are read."""

    def write_global(self, array: np.ndarray, elements: np.ndarray) -> None:
        """Take notice that elements of a flat array are written."""

    def _nothing(self, *_: object) -> Body:
        return
        yield

    join = signal = await_signal = wipe = _nothing
    """A barrier of a partition's threads, and signals between programs: the recorder, who has one alone, needs none."""

    def memory(self, rank: int, allocation: int) -> np.ndarray:
        return self._memory[rank][allocation]

    def allocate(self, dtype: object, shape, layout: Layout | None) -> View:
        """Allocate shared memory in the current CTA, filled with NaN."""
        rank, splits = self.current.rank, (layout or Layout()).for_axes(len(shape))
        size = int(np.prod(local_shape(shape, splits)))
        self._memory[rank].append(np.full(size, np.nan, np.float32))
        return View(self, rank, len(self._memory[rank]) - 1, 0, tuple(shape), splits, dtype)

    def allocate_barriers(self, batch: int, pair: bool = False) -> Slots:
        rank = self.current.rank
        slots = Slots([Barrier(rank, len(self._memory[rank]), slot, pair) for slot in range(batch)])
        self._memory[rank].append(slots)
        return slots

    def barrier(self, key: tuple[int, int, int]) -> Barrier:
        rank, allocation, slot = key
        return self._memory[rank][allocation].barriers[slot]

    def initialise(self, barrier: Barrier, count: int) -> None:
        barrier.count = barrier.pending = count * (self.ctas if barrier.pair else 1)

    def receivers(self, tensor: Map, multicast: bool) -> list[int]:
        """Return the CTAs in which a box of the current one lands: none where another one issues it for both."""
        rank = self.current.rank
        shared = [bit for bit, basis in enumerate(tensor.splits) if not any(basis)]
        if not multicast or not shared:
            return [rank]
        if any(rank >> bit & 1 for bit in shared):
            return []
        return [
            rank | sum(1 << bit for bit in chosen)
            for n in range(len(shared) + 1)
            for chosen in itertools.combinations(shared, n)
        ]


def overlap(first: View, second: View) -> bool:
    return regions_overlap(first.region, second.region)


@dataclass(eq=False)
class Load:
    """A box in flight."""

    view: View
    values: np.ndarray
    barrier: Barrier
    nbytes: int


class Executor(Machine):
    """Runs all programs of a grid, their partitions in turns that a seed draws.

    One program runs until it ends, waits for the signal of another, or, seldom, for no reason.

    Of four seeds in a row one lands loads early and one late, each with partitions in fair turns and with one that
    runs as far ahead as it can.
    """

    def __init__(self, seed: int, ctas: int = 1):
        self.random = random.Random(seed)
        self.landing = 0.5 if seed & 1 else 0.08
        self.staying = 0.9 if seed & 2 else 0.0
        self.loaded_bytes = 0
        self.products = 0
        self.signals: set[tuple[int, int]] = set()
        self.written: list[Written] = []
        self.of_signals: set[Callable[[], bool]] = set()
        self.signals_used = False
        super().__init__(ctas)

    def forget(self) -> None:
        super().forget()
        self.processes: list[Process] = []
        self.flying: list[Load] = []
        self.exited: set[int] = set()
        self.started: set[int] = set()
        self.at_cluster_barrier: set[int] = set()
        self.cluster_barriers = 0

    # ------------------------------------------------------------------------------------------------ programs
    def run(self, kernel: Callable[[], Body], grid: tuple[int, int, int]) -> None:
        """Run every program (of a cluster: one for all of its CTAs), in any order."""
        self.grid = grid
        programs = list(itertools.product(*map(range, grid)))
        self.random.shuffle(programs)
        waiting: list[dict[str, object]] = []
        while programs or waiting:
            if programs and self.random.random() < 0.7:
                self.forget()
                self.program = programs.pop()
                for rank in range(self.ctas):
                    self.processes.append(Process(rank, "kernel"))
                    self.processes[-1].body = kernel()
            elif not self._take_up(waiting):
                if not programs:
                    raise KernelError("deadlock: every program waits for a signal")
                continue
            if not self._run_program():
                waiting.append({name: getattr(self, name) for name in self.OF_PROGRAM})
        if self.signals:
            raise KernelError(f"{len(self.signals)} signals are left for the next launch to take for its own")

    def _take_up(self, waiting: list[dict[str, object]]) -> bool:
        """Go on with a program that can, if one can."""
        self.random.shuffle(waiting)
        for place, state in enumerate(waiting):
            vars(self).update(state)
            if self.flying or any(process.waits is None or process.waits() for process in self.processes):
                del waiting[place]
                return True
        return False

    OF_PROGRAM = (
        "_memory", "processes", "flying", "exited", "started", "at_cluster_barrier", "cluster_barriers", "program"
    )  # fmt: skip

    def _run_program(self) -> bool:
        """Run the current program; tell whether it has ended."""
        last = None
        while self.processes:
            if self.signals_used and self.random.random() < 0.01:
                return False
            ready = [process for process in self.processes if process.waits is None or process.waits()]
            if self.flying and (not ready or self.random.random() < self.landing):
                self._land(self.flying.pop(self.random.randrange(len(self.flying))))
                continue
            if not ready and any(process.waits in self.of_signals for process in self.processes):
                return False
            if not ready:
                raise KernelError(
                    f"deadlock: all of {[(process.name, process.rank) for process in self.processes]} wait"
                )
            if last not in ready or self.random.random() >= self.staying:
                last = self.random.choice(ready)
            self.current = last
            try:
                last.waits = next(last.body)
            except StopIteration:
                self._end(last)
        if self.flying:
            raise KernelError("the kernel ends with loads in flight")
        return True

    def _end(self, process: Process) -> None:
        if process.products:
            raise KernelError(f"{process.name} ends with products that nobody waits for")
        if process.stores:
            raise KernelError(f"{process.name} ends while its stores still read shared memory")
        self.processes.remove(process)
        if process.parent is not None:
            process.parent.children -= 1
            return
        self.exited.add(process.rank)
        if any(load.view.rank == process.rank for load in self.flying):
            raise KernelError("a CTA exits with loads in flight into it")

    def spawn(self, partitions: Iterable[tuple[str, Callable[[], Body]]]) -> Body:
        """Run partitions beside each other and wait for all of them.

        Those of a cluster begin when each CTA has initialised its barriers: the compiler inserts a cluster barrier.
        """
        parent = self.current
        self.started.add(parent.rank)
        yield lambda: len(self.started) == self.ctas
        for name, body in partitions:
            child = Process(parent.rank, name, parent=parent)
            child.body = body()
            parent.children += 1
            self.processes.append(child)
        yield lambda: parent.children == 0

    def cluster_barrier(self) -> Body:
        number = self.cluster_barriers
        self.at_cluster_barrier.add(self.current.rank)
        if len(self.at_cluster_barrier) == self.ctas:
            self.at_cluster_barrier.clear()
            self.cluster_barriers += 1
        yield lambda: self.cluster_barriers > number

    # ------------------------------------------------------------------------------------------------ barriers
    def _reach(self, barrier: Barrier) -> Barrier:
        if barrier.key[0] in self.exited:
            raise KernelError("an arrival at an mbarrier of a CTA that has exited")
        return self.barrier(barrier.key)

    def wait(self, barrier: Barrier, phase: int) -> Body:
        yield None
        if not (barrier.pair and self.current.rank):
            yield lambda: barrier.phase != phase

    def arrive(self, barrier: Barrier, count: int) -> Body:
        yield None
        self._reach(barrier).settle(count)

    def expect(self, barrier: Barrier, nbytes: int) -> Body:
        yield None
        self._reach(barrier).settle(1, nbytes)

    # ------------------------------------------------------------------------------------------------ signals
    def write_global(self, array: np.ndarray, elements: np.ndarray) -> None:
        self.written.append(Written(id(array), np.unique(elements), self.current))

    def read_global(self, array: np.ndarray, elements: np.ndarray) -> None:
        for written in self.written:
            if written.array != id(array) or written.by is self.current or written.signal in self.current.acquired:
                continue
            if np.isin(elements, written.elements).any():
                raise KernelError("a read of what another program has written, and no signal that was awaited released")

    def join(self) -> Body:
        yield None
        for written in self.written:
            written.joined |= written.by is self.current
        self.current.joined = True

    def signal(self, pointer) -> Body:
        yield None
        key = id(pointer.array), int(pointer.offset)
        if key in self.signals:
            raise KernelError("a signal is given twice")
        for written in self.written:
            if written.by is self.current and written.joined and written.signal is None:
                written.signal = key
        self.signals.add(key)
        self.signals_used = True

    def await_signal(self, pointer) -> Body:
        key = id(pointer.array), int(pointer.offset)
        self.signals_used = True

        def there() -> bool:
            return key in self.signals

        self.of_signals.add(there)
        yield there
        self.current.acquired.add(key)
        self.current.joined = False

    def wipe(self, pointer) -> Body:
        yield None
        key = id(pointer.array), int(pointer.offset)
        if key not in self.current.acquired or key not in self.signals:
            raise KernelError("a signal is wiped that was not awaited")
        if not self.current.joined:
            raise KernelError("a signal is wiped that other threads of the partition may still wait for")
        self.signals.remove(key)

    # ------------------------------------------------------------------------------------------------ memory
    def _unread(self, view: View, who: str) -> None:
        """Refuse to overwrite what products or stores have yet to read, or loads to write."""
        for process in self.processes:
            if any(overlap(view, operand) for product in process.products for operand in product[:2]):
                raise KernelError(f"{who} over shared memory that a wgmma still reads")
            if any(overlap(view, store[0]) for store in process.stores):
                raise KernelError(f"{who} over shared memory that a store still reads")
        if any(overlap(view, load.view) for load in self.flying):
            raise KernelError(f"{who} over a load in flight")

    def _fenced(self, view: View, who: str) -> None:
        """Refuse that the async proxy reads, or writes over, what was written without a fence."""
        for process in self.processes:
            if any(overlap(view, written) for written in process.unfenced):
                raise KernelError(f"{who} of shared memory that was written without fence_async_shared")

    def _landed(self, view: View, who: str) -> None:
        if any(overlap(view, load.view) for load in self.flying):
            raise KernelError(f"{who} of shared memory into which a load is still in flight")

    def load(self, tensor: Map, coordinates, offsets, barrier: Barrier, view: View, multicast: bool) -> Body:
        yield None
        values = tensor.read(tensor.start(coordinates, self.current.rank), offsets)
        receivers = self.receivers(tensor, multicast)
        self.loaded_bytes += tensor.nbytes_per_cta if receivers else 0
        for rank in receivers:
            if rank in self.exited:
                raise KernelError("a multicast into a CTA that has exited")
            target = view.of_rank(rank)
            if target.size != values.size:
                raise KernelError(f"a box of {values.shape} is loaded into shared memory of {target.shape}")
            self._unread(target, "a load")
            self._fenced(target, "a load")
            target.data[...] = np.nan
            there = self.barrier((rank, *barrier.key[1:]))
            self.flying.append(Load(target, values.reshape(target.data.shape), there, tensor.nbytes_per_cta))

    def _land(self, load: Load) -> None:
        load.view.data[...] = load.values
        load.barrier.settle(expected=-load.nbytes)

    def store(self, tensor: Map, coordinates, view: View) -> Body:
        yield None
        if isinstance(tensor, MapIm2col):
            raise KernelError("there is no store in the im2col mode")
        self._landed(view, "a store")
        self._fenced(view, "a store")
        self.current.stores.append((view, tensor, tensor.start(coordinates, self.current.rank)))

    def store_wait(self, pending: int) -> Body:
        yield None
        while len(self.current.stores) > pending:
            view, tensor, start = self.current.stores.pop(0)
            tensor.write(start, view.data)

    def write_shared(self, view: View, value: Fragment) -> Body:
        yield None
        self._unread(view, "a write")
        view.data[...] = value.values
        self.current.unfenced.append(view)

    def read_shared(self, view: View) -> Body:
        yield None
        self._landed(view, "a read")
        return Fragment(view.data.copy(), view.shape, view.splits)

    def fence(self) -> Body:
        yield None
        self.current.unfenced.clear()

    # ------------------------------------------------------------------------------------------------ products
    def multiply(self, a: View, b: View, sum_: Fragment, is_async: bool, use_acc: bool) -> Body:
        yield None
        for operand in (a, b):
            self._landed(operand, "a wgmma")
            self._fenced(operand, "a wgmma")
        sum_.products += 1
        self.products += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        self.current.products.append((a, b, sum_, use_acc))
        if not is_async:
            self._multiply_until(0)
        return sum_

    def multiply_wait(self, pending: int) -> Body:
        yield None
        self._multiply_until(pending)

    def _multiply_until(self, pending: int) -> None:
        while len(self.current.products) > pending:
            a, b, sum_, use_acc = self.current.products.pop(0)
            sum_.add_product(a.data @ b.data, use_acc)
