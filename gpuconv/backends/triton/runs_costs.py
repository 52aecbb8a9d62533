"""What the kernel over runs costs: tiles, their registers and instructions, and the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work, gpu_of, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .march_costs import epilogue_instructions
from .runs_axes import Runs, most_columns, most_slices, runs_of, spread_elements, weight_bytes

__all__ = ["RunCosts", "run_tiles"]

_MOST_REGISTERS = 232
"""Registers of a thread, by :meth:`RunCosts.registers`, above which no tile is proposed: compiled may have more."""

_MOST_WEIGHTS = 64 << 10
"""Bytes of weights that a program keeps in shared memory at most: one multiprocessor holds two programs beside each
other then, with their tiles."""

_MOST_DEPTH = 64
_MOST_DEPTH_OF_MANY = 128
"""The latter of more than :data:`_MANY_CHANNELS`, of which a tap alone has as many."""

_MANY_CHANNELS = 16
_MOST_UNROLLED = 4
_MOST_SUMS = 256
"""Columns of sums of an unrolled loop on sm_100 at most: each step of it has sums of its own in tensor memory, which
has 512, and what is more compiles to an empty kernel. Read off compiled kernels."""

_FEED = {8: 0.2, 16: 0.35, 32: 0.6, 64: 0.92}
"""Fraction of the tensor cores' rate that products of that many columns are fed; more get all. Assumed."""

_PER_STORE_OF_PHASES = 12.0
"""Instructions of a store of one phase of a data gradient: its address, and whether it is inside of the result."""


class RunCosts:
    """What threads do per step with each config of a forward problem: arrays over the configs.

    `exact` says that sums are looked at for what is not finite, as they are where columns share a run. `phases` are
    those of a data gradient, see :class:`.runs_axes.Phases`, whose channels are fewer than the filters by so many.
    """

    def __init__(
        self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]], exact: bool = False, phases: int = 1
    ) -> None:
        self.problem, self.configs = problem, configs
        self.runs: Runs = runs_of(problem)
        self.item = itemsize(problem.dtype)
        runs, warps = self.runs, self._column("num_warps")
        self.warps, self.threads = warps, 32 * warps
        self.m, self.n, self.slices = self._column("BLOCK_M"), self._column("BLOCK_N"), self._column("SLICES")
        self.merged, self.steps, self.unroll = self._column("MERGED"), self._column("steps"), self._column("UNROLL")
        self.ahead, self.cols = self._column("AHEAD"), self._column("COLS")
        self.exact = np.where(self.cols > 1, 1.0, float(exact))
        shared = [runs_of(problem, config["COLS"]) for config in configs]
        self.depth = self.slices * runs.planes * np.array([each.run for each in shared], float)
        self.blocks = np.ceil(runs.taps[0] / self.slices)
        self.rows = self.blocks * runs.stride[1]  # tiles of a step
        self.products = np.where(self.merged > 0, self.rows, self.blocks * runs.taps[1])
        self.side = self.n * np.where(self.merged > 0, power_of_two(runs.taps[1]), 1)  # columns of a product
        self.outputs = self.m * self.n / self.threads
        self.elements = self.rows * self.m * self.depth / self.threads
        self.whole = np.array([each.lead % each.vec == 0 and each.used % each.vec == 0 for each in shared])
        self.vec = np.minimum([float(each.vec) for each in shared], self.m * self.depth / self.threads)
        gpu = gpu_of(problem.device)
        self.old = gpu is not None and gpu.capability < (9, 0)
        self.newest = gpu is not None and gpu.capability >= (10, 0)
        # What one store writes: channels of a phase. Those of several are masked and stored apart.
        self.stores = self.outputs / gcd(problem.k // phases, 16 // self.item) if phases > 1 else 0.0 * self.outputs

    def _column(self, name: str) -> np.ndarray:
        return np.array([config[name] for config in self.configs], float)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: open rows, tiles, their pointers, and what is loaded ahead."""
        words, tile = max(self.item // 4, 1), self.elements * self.item / 4
        sums = self.outputs * (self.runs.open + self.merged * power_of_two(self.runs.taps[1]) + self.exact) * words
        early = 1.4 if self.runs.taps[0] > 1 else 0.6  # loads of later steps that the compiler begins early
        held = 0.6 + early * (self.unroll - 1) * (self.vec >= 4) + self.ahead
        found = 36 + sums + 2 * self.elements / self.vec + held * tile
        if self.old:  # every warp reads all weights into registers, and keeps about half of them there
            weights = self.blocks * self.runs.taps[1] * self.depth * self.n * self.item / 128
            found = found + 0.5 * weights + 0.5 * tile
        if self.newest:  # products of all filter rows come from tensor memory at once
            found = found + 40.0 * (self.stores > 0) * self.merged
        return np.asarray(found)

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step, as read off compiled loops."""
        loads = self.elements / self.vec
        tensor = self.products * self.depth / 16 * self.m / 16 / self.warps
        moves = (self.runs.open - 1) * self.outputs * ((self.unroll == 1) & (self.merged == 0))
        added = self.merged * (0.4 + 1.15 * self.runs.taps[1]) * self.outputs
        kept = 0.5 * self.ahead * self.elements * self.item / 4
        masked = np.where(self.whole, 0.0, 1.2) * self.elements  # what stands beside the window is taken out
        found = 6 + (1.2 + self.exact) * self.outputs + 3.8 * loads + 16 * self.rows + masked + kept
        found = found + 7.5 * tensor + 1.1 * moves + added + _PER_STORE_OF_PHASES * self.stores
        problem = self.problem
        fmas = self.products * self.m * self.depth * self.side / self.threads
        if problem.dtype == "float64":  # products of 8 x 8 x 4 on tensor cores, and what reads their operands
            found = found + 3 * fmas / 8
        elif PIPES[pipe_of(problem)[0]] == "fma32":
            found = found + 1.2 * fmas
        ended = epilogue_instructions(problem)
        return np.asarray(found + ended * self.outputs)

    def moved(self) -> np.ndarray:
        """Return the bytes through L1 and shared memory of a step of a program, which compiled loops agree with.

        Runs are loaded and written to shared memory. Whole ones are read from there by every product, others once;
        weights are read by every product of 64 rows, or, before Hopper, by every warp, which keeps half of them;
        results are written to shared memory, read, and stored.
        """
        tile = self.m * self.depth * self.item
        runs = self.rows * tile
        again = self.whole & (not self.old)
        read = np.where(again, self.products * tile, (1 + 0.5 * self.ahead) * runs)
        shares = self.m / 32 if self.old else self.m / 64
        weights = self.products * self.depth * self.side * self.item * np.maximum(shares, 1)
        return np.asarray(2 * runs + read + weights + 3 * self.m * self.n * self.item)

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, runs, item = self.problem, self.runs, self.item
        o, p, q = runs.output
        warm = runs.open - 1
        walked = np.ceil((self.steps + warm) / self.unroll) * self.unroll
        used = np.minimum(self.registers(), 255)
        weights = np.array([weight_bytes(problem, config) for config in self.configs], float)
        shared = weights + self.rows * self.m * self.depth * item + self.m * self.n * item
        resident = np.minimum(65536 / (used * self.threads), (227 << 10) / (shared + 1024))
        tiles = np.ceil(problem.n * o * np.ceil(q / self.cols) / self.m)
        programs = tiles * np.ceil(p / self.steps) * np.ceil(problem.k * self.cols / self.n)
        columns = self.m * self.cols * runs.stride[2] + problem.kernel[-1]
        fresh = np.minimum(
            runs.stride[1] * runs.taps[0] * columns * problem.c * item, self.rows * self.m * self.depth * item
        )
        result = self.m * np.minimum(self.n, problem.k * self.cols) * item * (1 + problem.residual)
        pipe, factor = pipe_of(problem)
        spread = np.array([spread_elements(problem, config) for config in self.configs], float) * item
        feed = np.interp(self.side, [*_FEED, 128], [*_FEED.values(), 1.0])
        before = 260 + 20 * self.elements / self.vec + 13 * weights / 16 / self.threads
        plain = PIPES[pipe].startswith("fma")
        return Work(
            programs=programs,
            resident=np.clip(np.floor(resident), 1, 32),
            pipe=np.full(len(self.m), pipe),
            path=np.full(len(self.m), PATHS.index("fma" if plain else "pointer")),
            flops=2 * self.products * self.m * self.depth * self.side * walked * factor,
            feed=1.0 if plain else feed,
            l2_bytes=fresh * walked + result * self.steps + weights,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + before),
            chain=walked + 3,
            extra_bytes=2 * spread,
            launches=2,
            l1_bytes=self.moved() * walked + 3 * weights,
        )


def _shapes(problem: ConvProblem, bound: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield tiles that shared memory holds, without their heights, whatever registers they take."""
    for cols, slices, (m, warps), n in product((1, 2, 4, 8), (1, 2, 4, 8), ((64, 4), (128, 4)), (8, 16, 32, 64, 128)):
        if cols > most_columns(problem):
            continue
        runs, widest = runs_of(problem, cols), max(cols * power_of_two(problem.k), 8)
        depth = runs.depth(slices)
        if (
            slices > most_slices(problem)
            or not 16 <= depth <= (_MOST_DEPTH_OF_MANY if problem.c > _MANY_CHANNELS else _MOST_DEPTH)
            or n > widest
            or n < cols
            or 4 * n < min(widest, 128)
        ):
            continue
        for merged, unroll in product((False, True), sorted({1, runs.open})):
            if unroll > (_MOST_UNROLLED if cols == 1 else 1) or (merged and (unroll > 1 or runs.open == 1)):
                continue
            tile = {"BLOCK_M": m, "BLOCK_N": n, "COLS": cols, "MERGED": merged, "UNROLL": unroll, "SLICES": slices}
            if weight_bytes(problem, tile) <= _MOST_WEIGHTS:
                choices = (1, 0) if runs.output[1] + runs.open > 2 else (0,)  # there is a row to load ahead
                launched = {"num_warps": warps, "num_stages": 1, **bound}
                yield from ({**tile, "AHEAD": ahead, **launched} for ahead in choices)


def run_tiles(
    problem: ConvProblem, serial: bool = True, exact: bool = False, phases: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield the configs of a problem whose registers suffice, each with several heights.

    Tiles that load a row when they need it come only where there is no room to load it ahead, or with `serial`: the
    cost model does not see what they wait. `exact` and `phases` are those of :class:`RunCosts`.
    """
    gpu = gpu_of(problem.device)
    # There ptxas, left to itself, spills a few registers to fit one more block.
    crowded = gpu is not None and gpu.capability < (9, 0)
    shapes = list(_shapes(problem, {"maxnreg": 255} if crowded else {}))
    if gpu is not None and gpu.capability >= (10, 0):
        rows_open = runs_of(problem).open
        shapes = [
            shape
            for shape in shapes
            if shape["UNROLL"] == 1 or rows_open * shape["UNROLL"] * shape["BLOCK_N"] <= _MOST_SUMS
        ]
    if not shapes:
        return
    found = RunCosts(problem, [{**shape, "steps": 1} for shape in shapes], exact, phases).registers()
    fits = {tuple(shape.items()): registers <= _MOST_REGISTERS for shape, registers in zip(shapes, found, strict=True)}
    rows = runs_of(problem).output[1]
    heights = {max(ceil_div(rows, parts), 1) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32)}
    heights = {max(rows, 1), *(height for height in heights if height >= min(rows, 4))}
    for shape in shapes:
        better = not shape["AHEAD"] and fits.get(tuple({**shape, "AHEAD": 1}.items()), False)
        if fits[tuple(shape.items())] and (serial or not better):
            yield from ({**shape, "steps": height} for height in sorted(heights))
