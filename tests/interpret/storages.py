"""Every byte that torch allocates on the CPU inside a ``with`` block, as torch's own profiler saw it.

The profiler sits in the allocator, so it counts what nobody thinks of: temporaries inside of torch's operators, copies
that a padding made, and what a plan does not state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

import torch


@dataclass
class Storages:
    """Sizes of allocations, and negative ones of frees, in the order in which they happened."""

    changes: list[int] = field(default_factory=list)

    @property
    def allocated(self) -> int:
        """Bytes of all allocations together."""
        return sum(change for change in self.changes if change > 0)

    @property
    def peak(self) -> int:
        """Most bytes that were alive at once."""
        return max(accumulate(self.changes, initial=0))


@contextmanager
def recorded_storages() -> Iterator[Storages]:
    """Record allocations of CPU storages; the result is complete after the ``with`` block."""
    storages = Storages()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield storages
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    storages.changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
