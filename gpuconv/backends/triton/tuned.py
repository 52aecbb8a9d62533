"""Solvers with configs to choose from: the default, a tuned one where an entry says so, and estimates of either."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ...config import workspace_limit
from ...costs import PIPES, constants
from ...costs import measured as cache
from ...costs import model as cost_model
from ...costs import work as describe
from ...problem import ConvProblem, DeformProblem, Problem, ScaledProblem, SeparableProblem, itemsize
from ...shapes import ceil_div
from ..base import Estimate, Plan, Solver

__all__ = ["MOST_CONFIGS", "Tunable", "block_variants", "split_variants", "tile_variants"]

MOST_CONFIGS = 60
"""Configs of a problem that tuning chooses from at most: those that the cost model likes best."""

_FREE = 64
"""Accumulators of a thread that the forward kernel holds without spilling, where loads are 16 bytes wide."""


class Tunable(Solver):
    """A solver whose plans have a config: its own default, or one that was timed and found faster."""

    def default(self, problem: Problem) -> dict[str, Any]:
        """Return the config of an untuned plan: of the variants that which the cost model likes best."""
        return self.cheapest(problem, self.variants(problem))

    def cheapest(self, problem: Problem, configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the config that the cost model likes best; nothing where there is none."""
        listed = list(configs)
        return dict(listed[int(np.argmin(self.modelled(problem, listed)))]) if listed else {}

    def leanest(self, problem: Problem, configs: Iterable[Mapping[str, Any]], as_good: float) -> dict[str, Any]:
        """Return the config that executes the fewest instructions, of those within `as_good` times the least modelled
        time: the model sees them wait for nothing, and nothing wait for them. Nothing where there is no config."""
        listed = list(configs)
        if not listed:
            return {}
        times = self.modelled(problem, listed)
        near = [config for config, time in zip(listed, times, strict=True) if time <= as_good * np.min(times)]
        work = self.work(problem, near)
        return dict(near[int(np.argmin(np.broadcast_to(work.programs * work.instructions, len(near))))])

    @abstractmethod
    def variants(self, problem: Problem) -> Iterable[dict[str, Any]]:
        """Return other configs that run the problem (the default may be among them), as many as there are."""

    @abstractmethod
    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> cost_model.Work:
        """Describe what launches with each of `configs` do, for the cost model."""

    @abstractmethod
    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan: ...

    def modelled(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the cost model's microseconds of each of `configs`, on the GPU of the problem's device."""
        return cost_model.estimate(self.work(problem, configs), constants.constants_of(problem.device))

    def configs(self, problem: Problem) -> list[dict[str, Any]]:
        default = self.default(problem)
        others = {tuple(sorted(config.items())): config for config in self.variants(problem)}
        others.pop(tuple(sorted(default.items())), None)
        found = list(others.values())
        if not found:
            return [default]
        order = np.argsort(self.modelled(problem, found), kind="stable")[: MOST_CONFIGS - 1]
        return [default, *(found[place] for place in order)]

    def _entry(self, problem: Problem) -> cache.Entry | None:
        """Return the tuned entry of the problem, if its config is one that this solver would propose."""
        entry = cache.lookup(problem, self.id)
        if entry is None:
            return None
        config = dict(entry.config)
        if config != self.default(problem) and config not in self.variants(problem):
            return None
        return entry if self.bind(problem, config).workspace <= workspace_limit() else None

    def plan(self, problem: Problem) -> Plan:
        entry = self._entry(problem)
        return self.bind(problem, self.default(problem) if entry is None else entry.config)

    def estimated(self, problem: Problem) -> Estimate:
        entry = self._entry(problem)
        if entry is None:
            return Estimate(float(self.modelled(problem, [self.default(problem)])[0]), "model")
        time = entry.microseconds
        assert not isinstance(problem, SeparableProblem | ScaledProblem | DeformProblem)  # which have no entries
        if entry.n != problem.n:  # timed for another batch of the same bucket
            ours, theirs = (self.modelled(size, [entry.config])[0] for size in (problem, replace(problem, n=entry.n)))
            time *= float(ours / theirs)
        return Estimate(time, entry.source)

    def rank(self, problem: Problem) -> float:
        return self.estimated(problem).microseconds


def _sides(most: int) -> list[int]:
    return [side for side in (16, 32, 64, 128, 256) if side <= most]


def tile_variants(problem: ConvProblem, default: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield GEMM tiles around `default` that should not spill: none asks for more of a thread than it does.

    That is: no more accumulators and no more elements of operands per step. The forward pass on 16-bit operands that
    are read 16 bytes at a time may go to 64 accumulators. For tensor cores tiles are at most twice as large as the
    default along a side, for the plain cores, which keep what they multiply in registers, not larger; under 64 rows
    only where the default is; steps no longer; stages two to four where shared memory holds them.
    """
    m, n, k, warps = (default[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps"))
    accumulators, loads = m * n / warps, (m + n) * k / warps
    free = (accumulators, loads)
    if problem.kind == "fprop" and itemsize(problem.dtype) == 2 and m >= 64 and k >= 32 and default["num_stages"] == 3:
        gemm = describe.conv_gemm(problem)
        if min(gemm.widths) == 16 or (gemm.widths[0] == 16 and default.get("packed")):
            free = (32 * _FREE, max(loads, 32 * _FREE))
    larger = 1 if PIPES[describe.pipe_of(problem)[0]].startswith("fma") else 2
    choices = product(
        [side for side in _sides(larger * m) if side >= min(m, 64)],
        [side for side in _sides(larger * n) if side >= min(n, 32)],
        [side for side in (16, 32, 64) if k / 2 <= side <= k],
        (4, 8),
        (2, 3, 4) if default["num_stages"] == 3 else (default["num_stages"],),
    )
    for block_m, block_n, block_k, some_warps, stages in choices:
        config = dict(default)
        config.pop("maxnreg", None)
        config |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
        config |= {"num_warps": some_warps, "num_stages": stages}
        # Of tiles with many accumulators ptxas spills some with short steps.
        most = free if block_k >= 32 else (accumulators, loads)
        needs = (block_m * block_n / some_warps, (block_m + block_n) * block_k / some_warps)
        if needs[0] <= most[0] and needs[1] <= most[1] and describe.fits(problem, config):
            yield config


def split_variants(usual: int, steps: int, most: int) -> list[int]:
    """Return numbers of splits to try: none, the usual, half and twice of it, without empty ones and at most `most`."""
    wanted = {min(splits, most, max(steps // 2, 1)) for splits in (1, usual // 2, usual, 2 * usual)}
    return sorted({ceil_div(steps, ceil_div(steps, splits)) for splits in wanted if splits > 0 and steps > 0} or {1})


def block_variants(default: Mapping[str, Any], block: str = "BLOCK_M") -> Iterator[dict[str, Any]]:
    """Yield configs with other sizes of `block` and numbers of warps, of which no thread has more than by default."""
    for factor, warps in product((0.25, 0.5, 1, 2, 4), (1, 2, 4, 8)):
        size = int(default[block] * factor)
        share = factor * default["num_warps"] / warps
        if size >= 1 and 0.25 <= share <= 1:
            yield {**default, block: size, "num_warps": warps}
