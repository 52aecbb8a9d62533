"""How long a command of `gpu_report.py` would take on a card, stage by stage: counts of items times seconds of one.

Seconds come from the records of earlier runs on a card (bench/results), stage by stage, where there are any; else they
are assumptions, and said to be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from statistics import median

from gpuconv.backends.cupy.backend import BACKEND as CUPY
from gpuconv.backends.triton.backend import BACKEND as TRITON
from gpuconv.problem import ConvProblem, Problem

from .cases import all_cases
from .parity import parity_problems
from .parity_calls import call_problems
from .stages import STAGES, allotted
from .supervise import Budget, phases, workers_on

__all__ = ["ASSUMED", "Planned", "measured_seconds", "plan_text", "planned", "stage_items"]

RESULTS = Path(__file__).resolve().parent / "results"

ASSUMED = {
    "ceilings": 1.0,  # warm-up, capture and 0.1 s of replays of each
    "parity": 0.15,  # three calls, another one on integers, two in float64
    "compile": 0.6,  # processor seconds of a kernel in Triton, as measured on a host without a GPU
    "benchmark": 2.0,  # ours, torch's in two formats and CuPy's: a gate, and clocks of 0.1 s or more, each
    "micro": 1.7,
    "host": 1.5,
    "sanitizer": 40.0,
    "tune": 3.0,  # eight configs, compared and timed
    "fit": 1.0,
}
"""Seconds of an item of each stage, guessed: nothing has run on a card yet, but the compiler."""

START = 13.0
"""Seconds until a worker does its first item: imports, a CUDA context, and the list of items. Assumed."""

PROCESSORS = 16
"""Of the machine with the card."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage of a command: items, seconds of one, where that is from, workers, and the seconds that it is given."""

    stage: str
    items: int
    seconds: float
    source: str
    workers: int
    given: float
    starts: bool

    @property
    def whole(self) -> float:
        """Seconds of all items, and of the start of their workers where the stage has it to bear."""
        return ceil(self.items / self.workers) * self.seconds + START * self.starts

    @property
    def covered(self) -> float:
        """The part of the items that the seconds given are for."""
        work = self.whole - START * self.starts
        return 1.0 if not work else max(0.0, min(1.0, (self.given - START * self.starts) / work))


def measured_seconds(results: Path = RESULTS) -> dict[str, float]:
    """Return the median seconds of an item of each stage, over the runs on GPUs whose records are in a folder."""
    found: dict[str, list[float]] = {}
    for path in sorted(results.glob("*/*/results.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        if any(record.get("about", {}).get("dry_run") for record in records):
            continue
        for record in records:
            if "seconds" in record and record.get("status", "ok") != "not run":
                found.setdefault(record["stage"], []).append(record["seconds"])
    return {stage: median(seconds) for stage, seconds in found.items()}


@lru_cache(maxsize=1)
def _parity_items() -> int:
    problems = [*parity_problems("cuda:0"), *call_problems()]
    solvers = [*TRITON.solvers(), *CUPY.solvers()]
    return sum(solver.why_not(problem) is None for problem in problems for solver in solvers)


@lru_cache(maxsize=4)
def _cases(networks: tuple[str, ...] | None, kinds: tuple[str, ...] | None) -> list[Problem]:
    return [case.problem for case in all_cases(networks, passes=kinds)]


def stage_items(options: argparse.Namespace) -> dict[str, int]:
    """Return how many items each stage has on a GPU."""
    chosen = (tuple(given) if given else None for given in (options.network, options.kind))
    cases = _cases(*chosen)
    return {
        "ceilings": 6, "parity": _parity_items(), "compile": min(300, len(cases)), "benchmark": len(cases),
        "micro": 223, "host": 2, "sanitizer": 2, "tune": sum(isinstance(p, ConvProblem) for p in cases), "fit": 1,
    }  # fmt: skip


def planned(options: argparse.Namespace, measured: Mapping[str, float] | None = None) -> Iterator[Planned]:
    """Yield the stages of a command, in order."""
    measured = measured_seconds() if measured is None else measured
    items, budget = stage_items(options), Budget(0.0, options.budget)
    stages = [stage for name, stage in STAGES.items() if name in options.stage]
    workers, now = workers_on(PROCESSORS), 0.0
    for phase in phases(stages):
        for place, stage in enumerate(phase):
            given = allotted(stages, options.stage, budget.work_ends - now)
            now, stages = now + given, stages[1:]
            seconds, source = measured.get(stage.name), "measured"
            if seconds is None:
                seconds, source = ASSUMED[stage.name], "assumed"
            processes = workers if stage.parallel else 1
            yield Planned(stage.name, items[stage.name], seconds, source, processes, given, place == 0)


def plan_text(options: argparse.Namespace, measured: Mapping[str, float] | None = None) -> str:
    """Return the plan of a command as a table."""
    lines = [
        f"{'stage':<10}{'items':>7}{'s an item':>11}{'':>10}{'workers':>9}{'all, s':>9}{'given, s':>10}{'covers':>8}"
    ]
    total = 0.0
    for each in planned(options, measured):
        total += each.given
        lines.append(
            f"{each.stage:<10}{each.items:>7}{each.seconds:>11.2f}{each.source:>10}{each.workers:>9}"
            f"{each.whole:>9.0f}{each.given:>10.0f}{each.covered:>8.0%}"
        )
    kept = Budget(0.0, options.budget).kept_back
    lines.append(f"{total:.0f} s of stages and {kept:.0f} s for the item in hand and the summary: {options.budget:g} s")
    return "\n".join(lines)
