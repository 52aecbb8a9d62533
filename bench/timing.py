"""Clocks: kernel time and time per eager call, the same way for every contender.

On CUDA the calls of a sample run inside one CUDA graph, each on operands of its own, more of them than the L2 cache
holds: when a graph comes to a set of operands again, the cache has seen everything else since. Kernel time is the time
of a replay over its calls. Eager time is that of calls in a row from Python: launch cost is in it where it does not
hide behind the GPU. On the CPU (dry runs) a sample is one call by the host's clock, and says nothing about speed.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import median, quantiles
from typing import Any

import torch

__all__ = ["Clock", "CudaClock", "HostClock", "Timing", "clock_for"]

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: 20th, 50th and 80th percentile over samples, and how they were taken."""

    p20: float
    p50: float
    p80: float
    samples: int
    calls: int
    cold: bool

    def record(self) -> dict[str, Any]:
        """Return the fields, rounded to a nanosecond."""
        return {name: round(value, 3) if type(value) is float else value for name, value in asdict(self).items()}


def _timing(samples: Sequence[float], calls: int, cold: bool) -> Timing:
    p20, _, _, p80 = quantiles(samples, n=5, method="inclusive") if len(samples) > 1 else (samples[0],) * 4
    return Timing(p20, median(samples), p80, len(samples), calls, cold)


class Clock(ABC):
    """Measures calls of one kind on one device."""

    device: str
    l2_bytes: int

    @abstractmethod
    def sets(self, bytes_per_set: int) -> int:
        """Return how many sets of operands a measurement rotates through."""

    @abstractmethod
    def kernel(self, calls: Sequence[Call], bytes_per_set: int) -> Timing:
        """Return the time on the device of one of `calls`, which differ in their operands alone."""

    @abstractmethod
    def eager(self, calls: Sequence[Call]) -> Timing:
        """Return the time of one call issued from Python, in a row of them."""

    @abstractmethod
    def host(self, call: Call) -> Timing:
        """Return the time that issuing one call takes on the host, not waiting for the device."""


class HostClock(Clock):
    """The host's clock, for dry runs and for the host's own work."""

    device = "cpu"
    l2_bytes = 0

    def __init__(self, samples: int = 1) -> None:
        self.samples = samples

    def sets(self, bytes_per_set: int) -> int:
        return 2

    def kernel(self, calls: Sequence[Call], bytes_per_set: int) -> Timing:
        return self.eager(calls)

    def eager(self, calls: Sequence[Call]) -> Timing:
        times = []
        for index in range(self.samples):
            start = time.perf_counter()
            calls[index % len(calls)]()
            times.append((time.perf_counter() - start) * 1e6)
        return _timing(times, 1, False)

    def host(self, call: Call) -> Timing:
        return self.eager([call])


class CudaClock(Clock):
    """CUDA events around replays of a graph; see the module."""

    device = "cuda"

    def __init__(self, seconds: float = 0.1, most_sets: int = 512, memory_share: float = 0.25) -> None:
        properties = torch.cuda.get_device_properties()
        self.l2_bytes = properties.L2_cache_size
        self.seconds = seconds
        self.most_sets = most_sets
        self.memory_share = memory_share

    def sets(self, bytes_per_set: int) -> int:
        # Twice the cache between two uses of a set; 3 sets at least, so that no value is the last call's.
        wanted = max(3, 1 + ceil(2 * self.l2_bytes / max(bytes_per_set, 1)))
        free = self.memory_share * torch.cuda.mem_get_info()[0]
        return max(1, min(wanted, self.most_sets, int(free / max(bytes_per_set, 1))))

    def _capture(self, calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
        """Capture one pass over `calls`; results stay alive, so that each call writes to memory of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and lets cuDNN choose
                calls[0]()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]
        return graph, kept

    def kernel(self, calls: Sequence[Call], bytes_per_set: int) -> Timing:
        graph, kept = self._capture(calls)
        try:
            graph.replay()
            first = self._span(graph.replay)
            repeats = int(min(200, max(20, self.seconds * 1e6 / max(first, 1.0))))
            samples = [self._span(graph.replay) / len(calls) for _ in range(repeats)]
        finally:
            del graph, kept
        return _timing(samples, len(calls), (len(calls) - 1) * bytes_per_set >= 2 * self.l2_bytes)

    def _span(self, call: Call) -> float:
        """Return the microseconds between two events around `call`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    def eager(self, calls: Sequence[Call]) -> Timing:
        rounds = max(1, ceil(20 / len(calls)))

        def row() -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        row()
        first = self._span(row)
        repeats = int(min(50, max(5, self.seconds * 1e6 / max(first, 1.0))))
        samples = [self._span(row) / (rounds * len(calls)) for _ in range(repeats)]
        return _timing(samples, rounds * len(calls), False)

    def host(self, call: Call) -> Timing:
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        samples = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(50):
                start = time.perf_counter()
                for _ in range(20):
                    call()
                samples.append((time.perf_counter() - start) / 20 * 1e6)
                torch.cuda.synchronize()  # the launch queue never fills up
        finally:
            if collecting:
                gc.enable()
        return _timing(samples, 20, False)


def clock_for(device: str) -> Clock:
    """Return the clock of a device."""
    return CudaClock() if device.startswith("cuda") else HostClock()
