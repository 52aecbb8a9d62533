"""Searches every interleaving of a kernel's partitions, and every moment at which a load can land, for a fault.

First each partition runs alone and its events are recorded: what it waits for, signals, loads, multiplies, stores.
That is enough because the control flow of these kernels does not depend on data. Then all states are visited that
partitions, loads in flight and barriers can be in together, from the start to the end of one program.

Two reductions lose no fault. Events are fused into steps, which end before a wait, after a run of arrivals, and before
the end of a product or store that began in the step: what lies between only becomes visible to others there, and what
products and stores read, from the step that issues them to the one that waits for them, is seen by every other step.
And loads of one barrier land together where every
``expect`` names exactly the bytes of its round: only the last landing completes the phase, and the earlier the others
land, the fewer faults there are. Where bytes do not balance, each lands alone.

Not covered beside what the machine leaves out: schedules that depend on data, and more tiles than were recorded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from machine import Barrier, Body, Machine, Process
from tensors import Fragment, KernelError, Map, Region, View, regions_overlap

__all__ = ["Proof", "Recorder", "prove"]

Event = tuple


def run_alone(body: Body) -> object:
    """Run a body that never has to wait, as the recorder's do."""
    while True:
        try:
            next(body)
        except StopIteration as end:
            return end.value


class Recorder(Machine):
    """Records what each partition of one program does. Nothing waits, and no memory is written."""

    def __init__(self, ctas: int = 1):
        super().__init__(ctas)
        self.partitions: list[tuple[Process, list[Event]]] = []
        self.counts: dict[tuple[int, int, int], int] = {}
        self.exit_barrier = False

    def record(self, kernel: Callable[[], Body], program: tuple[int, int, int] = (0, 0, 0)) -> Recorder:
        self.program = program
        for rank in range(self.ctas):
            self.current = Process(rank, "kernel")
            run_alone(kernel())
        return self

    def _event(self, *event) -> Body:
        self.events.append(event)
        return
        yield

    def spawn(self, partitions: Iterable[tuple[str, Callable[[], Body]]]) -> Body:
        parent = self.current
        self.exit_barrier = False  # the one that counts comes after
        for name, body in partitions:
            self.current, self.events = Process(parent.rank, name), []
            self.partitions.append((self.current, self.events))
            run_alone(body())
            if self.current.products:
                raise KernelError(f"{name} ends with products that nobody waits for")
            if self.current.stores:
                raise KernelError(f"{name} ends while its stores still read shared memory")
        self.current = parent
        return
        yield

    def cluster_barrier(self) -> Body:
        self.exit_barrier = True
        return
        yield

    def initialise(self, barrier: Barrier, count: int) -> None:
        super().initialise(barrier, count)
        self.counts[barrier.key] = barrier.count

    def wait(self, barrier: Barrier, phase: int) -> Body:
        if not (barrier.pair and self.current.rank):
            yield from self._event("wait", barrier.key, int(phase))

    def arrive(self, barrier: Barrier, count: int) -> Body:
        return self._event("arrive", barrier.key, count)

    def expect(self, barrier: Barrier, nbytes: int) -> Body:
        return self._event("expect", barrier.key, nbytes)

    def load(self, tensor: Map, coordinates, offsets, barrier: Barrier, view: View, multicast: bool) -> Body:
        for rank in self.receivers(tensor, multicast):
            yield from self._event("load", (rank, *barrier.key[1:]), view.of_rank(rank).region, tensor.nbytes_per_cta)

    def store(self, tensor: Map, coordinates, view: View) -> Body:
        self.current.stores.append(view)
        return self._event("store", view.region)

    def store_wait(self, pending: int) -> Body:
        del self.current.stores[: max(0, len(self.current.stores) - pending)]
        return self._event("store_wait", pending)

    def write_shared(self, view: View, value: Fragment) -> Body:
        _ = value.values
        return self._event("write", view.region)

    def read_shared(self, view: View) -> Body:
        yield from self._event("read", view.region)
        return Fragment(view.data, view.shape, view.splits)

    def fence(self) -> Body:
        return self._event("fence")

    def multiply(self, a: View, b: View, sum_: Fragment, is_async: bool, use_acc: bool) -> Body:
        sum_.products += 1
        self.current.products.append(sum_)
        yield from self._event("multiply", a.region, b.region)
        if not is_async:
            yield from self.multiply_wait(0)
        return sum_

    def multiply_wait(self, pending: int) -> Body:
        while len(self.current.products) > pending:
            self.current.products.pop(0).products -= 1
        return self._event("multiply_wait", pending)

    def balances(self) -> bool:
        """Tell whether each round of each barrier is told exactly the bytes that its loads bring."""
        expected, brought = Counter(), Counter()
        for _, events in self.partitions:
            rounds: dict[tuple[int, int], int] = defaultdict(int)
            for kind, *rest in events:
                if kind == "expect":
                    rounds[rest[0][1:]] += 1
                    expected[rest[0], rounds[rest[0][1:]]] += rest[1]
                elif kind == "load":
                    brought[rest[0], rounds[rest[0][1:]]] += rest[2]
        return expected == brought


ISSUED_BY = {"multiply_wait": "multiply", "store_wait": "store"}


@dataclass
class Partition:
    """One partition's steps. Sets of regions and of loads are the bits of integers.

    ``facts[i]`` holds, before event i, the regions that products and stores of this partition still read, and those
    that it wrote without a fence.
    """

    rank: int
    name: str
    events: list[Event]
    ends: list[int] = field(default_factory=list)
    facts: list[tuple[int, int, int]] = field(default_factory=list)


def steps(events: list[Event]) -> list[int]:
    """Return where steps end, as numbers of events, with 0 in front."""
    ends = [0]
    for at in range(1, len(events)):
        kind = events[at][0]
        ended = kind == "wait" or (events[at - 1][0] == "arrive" and kind != "arrive")
        if kind in ISSUED_BY:  # it may end what began in this very step
            began = [event[0] for event in events[ends[-1] : at]].count(ISSUED_BY[kind])
            ended = ended or began > events[at][1]
        if ended:
            ends.append(at)
    return [*ends, len(events)] if events else ends


@dataclass(frozen=True)
class Proof:
    """What a search visited."""

    states: int
    steps: tuple[int, ...]
    together: bool


class Search:
    def __init__(self, record: Recorder, exit_barrier: bool, together: bool):
        self.exit_barrier, self.together = exit_barrier, together
        self.barriers = sorted(record.counts)
        self.number = {key: at for at, key in enumerate(self.barriers)}
        self.count = [record.counts[key] for key in self.barriers]
        regions = sorted(
            {part for _, events in record.partitions for event in events for part in event[1:] if _is_region(part)}
        )
        self.bit = {region: 1 << at for at, region in enumerate(regions)}
        self.near = {
            region: sum(self.bit[other] for other in regions if regions_overlap(region, other)) for region in regions
        }
        self.partitions = [Partition(process.rank, process.name, events) for process, events in record.partitions]
        self.loads: list[tuple[int, Region, int]] = []  # barrier, region, bytes
        self.load_bit: dict[tuple[int, int], int] = {}
        for at, partition in enumerate(self.partitions):
            self._prepare(at, partition)
        self.loads_near = {
            region: sum(1 << at for at, load in enumerate(self.loads) if regions_overlap(region, load[1]))
            for region in regions
        }
        self.loads_of = [
            sum(1 << at for at, load in enumerate(self.loads) if load[0] == barrier)
            for barrier in range(len(self.barriers))
        ]

    def _prepare(self, at: int, partition: Partition) -> None:
        partition.ends = steps(partition.events)
        products: list[int] = []
        stores: list[int] = []
        unfenced = 0
        for number, (kind, *rest) in enumerate(partition.events):
            partition.facts.append((_union(products), _union(stores), unfenced))
            if kind == "multiply":
                products.append(self.bit[rest[0]] | self.bit[rest[1]])
            elif kind == "multiply_wait":
                products = products[max(0, len(products) - rest[0]) :]
            elif kind == "store":
                stores.append(self.bit[rest[0]])
            elif kind == "store_wait":
                stores = stores[max(0, len(stores) - rest[0]) :]
            elif kind == "write":
                unfenced |= self.bit[rest[0]]
            elif kind == "fence":
                unfenced = 0
            elif kind == "load":
                self.load_bit[at, number] = 1 << len(self.loads)
                self.loads.append((self.number[rest[0]], rest[1], rest[2]))
        partition.facts.append((_union(products), _union(stores), unfenced))

    def settle(self, words: tuple, barrier: int, arrivals: int, nbytes: int) -> tuple:
        pending, expected, phase = words[barrier]
        if arrivals > pending:
            raise KernelError("more arrivals at an mbarrier than it counts")
        pending, expected = pending - arrivals, expected + nbytes
        if pending == 0 and expected == 0:
            pending, phase = self.count[barrier], phase ^ 1
        return (*words[:barrier], (pending, expected, phase), *words[barrier + 1 :])

    def has_exited(self, cursors: tuple[int, ...], rank: int) -> bool:
        return not self.exit_barrier and all(
            cursor == len(partition.events)
            for cursor, partition in zip(cursors, self.partitions, strict=True)
            if partition.rank == rank
        )

    def landings(self, flying: int, words: tuple):
        if self.together:
            for barrier, loads in enumerate(self.loads_of):
                if landing := flying & loads:
                    nbytes = sum(load[2] for at, load in enumerate(self.loads) if landing >> at & 1)
                    yield flying ^ landing, self.settle(words, barrier, 0, -nbytes)
            return
        for at, (barrier, _, nbytes) in enumerate(self.loads):
            if flying >> at & 1:
                yield flying ^ 1 << at, self.settle(words, barrier, 0, -nbytes)

    def step(self, which: int, cursors: tuple[int, ...], flying: int, words: tuple):
        """Return the state after the next step of a partition; None where it has to wait."""
        partition, cursor = self.partitions[which], cursors[which]
        others = [other.facts[cursors[at]] for at, other in enumerate(self.partitions) if at != which]
        read, stored, unfenced = (_union(facts[kind] for facts in others) for kind in range(3))
        end = next(end for end in partition.ends if end > cursor)
        for number in range(cursor, end):
            kind, *rest = partition.events[number]
            own = partition.facts[number]
            if kind == "wait":
                if words[self.number[rest[0]]][2] == rest[1]:
                    return None
            elif kind in ("arrive", "expect"):
                barrier = self.number[rest[0]]
                if rest[0][0] != partition.rank and self.has_exited(cursors, rest[0][0]):
                    raise KernelError("an arrival at an mbarrier of a CTA that has exited")
                arrivals, nbytes = (rest[1], 0) if kind == "arrive" else (1, rest[1])
                words = self.settle(words, barrier, arrivals, nbytes)
            elif kind in ("load", "write"):
                region = rest[1] if kind == "load" else rest[0]
                if region[0] != partition.rank and self.has_exited(cursors, region[0]):
                    raise KernelError("a multicast into a CTA that has exited")
                if self.near[region] & (read | own[0]):
                    raise KernelError(f"a {kind} over shared memory that a wgmma still reads")
                if self.near[region] & (stored | own[1]):
                    raise KernelError(f"a {kind} over shared memory that a store still reads")
                if self.loads_near[region] & flying:
                    raise KernelError(f"a {kind} over a load in flight")
                if kind == "load" and self.near[region] & (unfenced | own[2]):
                    raise KernelError("a load of shared memory that was written without fence_async_shared")
                if kind == "load":
                    flying |= self.load_bit[which, number]
            elif kind in ("multiply", "read"):
                if any(self.loads_near[region] & flying for region in rest):
                    raise KernelError("a wgmma of shared memory into which a load is still in flight")
                if kind == "multiply" and any(self.near[region] & (unfenced | own[2]) for region in rest):
                    raise KernelError("a wgmma of shared memory that was written without fence_async_shared")
            elif kind == "store":
                if self.loads_near[rest[0]] & flying:
                    raise KernelError("a store of shared memory into which a load is still in flight")
                if self.near[rest[0]] & (unfenced | own[2]):
                    raise KernelError("a store of shared memory that was written without fence_async_shared")
        return (*cursors[:which], end, *cursors[which + 1 :]), flying, words

    def run(self, limit: int) -> int:
        start = (0,) * len(self.partitions), 0, tuple((count, 0, 0) for count in self.count)
        seen, pending = {start}, [start]
        ends = tuple(len(partition.events) for partition in self.partitions)
        while pending:
            cursors, flying, words = pending.pop()
            found = [(cursors, *landed) for landed in self.landings(flying, words)]
            for which, cursor in enumerate(cursors):
                if cursor < ends[which]:
                    state = self.step(which, cursors, flying, words)
                    if state is not None:
                        found.append(state)
            if cursors == ends and flying:
                raise KernelError("the kernel ends with loads in flight")
            if not found and cursors != ends:
                where = {
                    f"{partition.name} {partition.rank}": partition.events[cursor]
                    for partition, cursor in zip(self.partitions, cursors, strict=True)
                    if cursor < len(partition.events)
                }
                raise KernelError(f"deadlock: {where}")
            for state in found:
                if state not in seen:
                    seen.add(state)
                    pending.append(state)
            if len(seen) > limit:
                raise RuntimeError(f"more than {limit} states")
        return len(seen)


def _is_region(part: object) -> bool:
    return isinstance(part, tuple) and len(part) == 4


def _union(sets: Iterable[int]) -> int:
    total = 0
    for one in sets:
        total |= one
    return total


def prove(record: Recorder, limit: int = 4_000_000) -> Proof:
    """Visit all states and return how many; ``KernelError`` at the first fault, ``RuntimeError`` beyond the limit."""
    together = record.balances()
    search = Search(record, record.exit_barrier or record.ctas == 1, together)
    return Proof(search.run(limit), tuple(len(partition.ends) - 1 for partition in search.partitions), together)
