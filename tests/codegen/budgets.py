"""Budgets of the codegen tables: how long hot loops may be, and how many warps must fit on a multiprocessor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loops import occupancy

LOOP_MARGIN = 0.05
"""How much longer a hot loop may be than that of the table when the budget was stated: what a compiler's whim costs."""

Row = tuple[int, str, Mapping[str, Any]]
"""Architecture, name and row."""


@dataclass(frozen=True)
class Budget:
    """What a family of kernels may cost: the instructions of the longest hot loop when this was stated, and the fewest
    warps that fit on a multiprocessor. A loop of 0 says that no kernel of the family has one."""

    loop: int
    warps: int

    @property
    def longest(self) -> int:
        """The longest hot loop that is within the budget."""
        return int(self.loop * (1 + LOOP_MARGIN))


def resident_warps(row: Mapping[str, Any], arch: int) -> int:
    """Return how many warps of a kernel fit on a multiprocessor."""
    return occupancy(row, arch) * row["warps"]


def stated(rows: Iterable[Row], family: Callable[[str], str]) -> dict[str, Budget]:
    """Return the budgets that rows just meet, by family."""
    found: dict[str, Budget] = {}
    for arch, name, row in rows:
        so_far = found.get(family(name), Budget(0, 64))
        warps = min(so_far.warps, resident_warps(row, arch))
        found[family(name)] = Budget(max(so_far.loop, row.get("hot_loop", 0)), warps)
    return dict(sorted(found.items()))


def broken(rows: Iterable[Row], budgets: Mapping[str, Budget], family: Callable[[str], str]) -> Iterator[str]:
    """Yield in words where a row is over the budget of its family."""
    for arch, name, row in rows:
        budget = budgets[family(name)]
        if row.get("hot_loop", 0) > budget.longest:
            yield f"sm_{arch} {name}: a hot loop of {row['hot_loop']} instructions, {budget.longest} are the most"
        if resident_warps(row, arch) < budget.warps:
            yield f"sm_{arch} {name}: {resident_warps(row, arch)} warps fit, {budget.warps} are the fewest"


def unnoticed(rows: Iterable[Row], budgets: Mapping[str, Budget], family: Callable[[str], str]) -> list[str]:
    """Return the rows of which a longer loop, or more registers, would not break the budget of their family."""
    missed = []
    for arch, name, row in rows:
        budget = budgets[family(name)]
        longer = {**row, "hot_loop": budget.longest + 1}
        larger = {**row, "shared": 0, "registers": 65536 // (32 * budget.warps) + 8}
        if any(len(list(broken([(arch, name, worse)], budgets, family))) != 1 for worse in (longer, larger)):
            missed.append(f"sm_{arch} {name}")
    return missed
