"""What a stage of `gpu_report.py` is made of: items of work, and what they may need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case, all_cases
from .store import Store
from .timing import Clock

__all__ = ["Context", "Item"]


@dataclass(frozen=True, slots=True)
class Item:
    """Work that yields one record, or several, in the order of `keys`. Records that exist are not made again.

    `stands` tells whether a record of an earlier command still is what would be measured now. `serves` is the (stage,
    key) that the work is for: it is needless once that is recorded. `limit` is how many seconds it may take.
    """

    keys: tuple[str, ...]
    run: Callable[[Sequence[str]], Iterable[Mapping[str, Any]]]
    stands: Callable[[Mapping[str, Any]], bool] | None = None
    serves: tuple[str, str] | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What stages may need: the clock, earlier results, where outputs go, how long there is, kinds and networks.

    `packed`: kernels come from a pack, and nothing is compiled.
    """

    clock: Clock
    store: Store
    out: Path
    seconds_left: Callable[[], float]
    kinds: Sequence[str] | None = None
    networks: Sequence[str] | None = None
    packed: bool = False

    @property
    def dry(self) -> bool:
        return self.clock.device == "cpu"

    def cases(self) -> list[Case]:
        """Return the cases of the benchmark, in order."""
        if self.dry:
            from .dry import tiny_cases

            cases = tiny_cases()
        else:
            cases = all_cases(self.networks)
        return [case for case in cases if self.kinds is None or case.problem.kind in self.kinds]
