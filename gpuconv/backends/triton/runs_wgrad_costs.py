"""What the weight gradient over runs costs: tiles, their registers and instructions, and the work of its launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work, gpu_of, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .runs_wgrad_axes import Tile, fold_tile, gradient_of, items_of, tile_of

__all__ = ["GradientCosts", "roles", "run_configs"]

_MOST_CHANNELS = 32
"""Channels of x at most: with more, a tap of a filter is enough of a row for the general kernel."""

_MOST_SWAPPED = 8
"""Channels of y at most whose runs are read instead, for strides of 1."""

_MOST_REGISTERS = 228
"""Registers of a thread, by :meth:`GradientCosts.registers`, above which no tile is proposed."""

_MOST_SHARED = 226 << 10
"""Bytes of shared memory of a program at most."""

_COPIED = 4
"""Bytes of a load from which on it may go to shared memory by itself, while the step before is computed."""

_PAST_L1 = 16
"""Bytes of a copy to shared memory that passes L1 by."""

_MOST_UNROLLED = 2048
"""Products of a thread per step on the plain cores at most, in float32: each is an instruction, in no loop."""

_MOST_TILES = 64
"""Tiles that are looked at with their numbers of splits: those that take fewest clocks."""

_WIDEST = 256
"""Elements of either side of a product at most."""

_FEED = {8: 0.2, 16: 0.35, 32: 0.6, 64: 0.92}
"""Fraction of the tensor cores' rate that products of that many columns are fed; more get all. Assumed."""


class GradientCosts:
    """What threads do per step with each config of a problem: arrays over the configs."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.configs = problem, configs
        self.tiles = tiles = [tile_of(problem, config) for config in configs]
        self.item = itemsize(problem.dtype)
        self.bm, self.warps = self._column("BM"), self._column("num_warps")
        self.steps, self.splits = self._column("steps"), self._column("splits")
        self.threads, self.stages = 32 * self.warps, self._column("num_stages")
        self.fixed = np.array([tile.fixed for tile in tiles], float)
        self.moving = np.array([tile.moving for tile in tiles], float)
        self.per = np.array([tile.per for tile in tiles], float)
        widths = [(tile.vec, _result_vec(tile)) for tile in tiles]
        turned = [width if tile.fixed_runs else width[::-1] for tile, width in zip(tiles, widths, strict=True)]
        self.fixed_vec, self.moving_vec = np.array(turned, float).T
        gpu = gpu_of(problem.device)
        self.old = gpu is not None and gpu.capability < (9, 0)
        self.single = (self.fixed < 64) | self.old
        self.pipe, self.factor = pipe_of(problem)
        self.plain = PIPES[self.pipe].startswith("fma")

    def _column(self, name: str) -> np.ndarray:
        return np.array([config[name] for config in self.configs], float)

    def loads(self) -> np.ndarray:
        """Return the loads of a thread per step."""
        fixed = np.maximum(self.fixed / self.fixed_vec * self.bm / self.threads, 1)
        moving = np.maximum(self.moving / self.moving_vec * self.bm / self.threads, 1)
        return np.asarray(fixed + self.per * moving)

    def registers(self) -> np.ndarray:
        """Return the registers that a thread needs: sums, what is loaded, and where from. Compiled it takes more."""
        words = max(self.item // 4, 1)
        sums = self.per * self.fixed * self.moving * words / self.threads
        loaded = self.bm * (self.fixed + self.per * self.moving) * self.item / 4 / self.threads
        found = 40 + sums + 2 * self.loads() + 0.35 * loaded * (self.stages == 1)
        again = self.fixed * self.moving * words / self.threads  # of one product, formed anew where it is not finite
        found = found + 1.2 * np.maximum(self.loads() - 24, 0) + 0.5 * np.maximum(again - 96, 0)
        found = found + (2 * self.loads() + 20 if self.problem.index64 else 0.0) + 40 * (self.item == 8)
        return np.asarray(found + np.where(self.single, 0.5 * loaded / self.per, 0.0) + 75 * self.old)

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step, as read off compiled loops."""
        groups = np.maximum(np.minimum(self.warps / 4, self.fixed / 64), 1)
        products = 5 * self.per * self.bm / 16 * np.maximum(self.fixed / 64, 1) / groups
        singles = 1.4 * self.per * self.bm / 16 * self.fixed / 16 * self.moving / 8 / self.warps
        kept = 2 * self.bm * self.fixed / self.threads * ((self.per > 1) & (self.stages == 1))
        found = 28 + 8 * self.loads() + np.where(self.single, singles, products) + 4 * self.per + kept
        fmas = self.fmas()
        if self.problem.dtype == "float64":  # products of 8 x 8 x 4 on tensor cores, and what reads their operands
            found = found + 3 * fmas / 8
        elif PIPES[pipe_of(self.problem)[0]] == "fma32":
            found = found + 1.2 * fmas
        return np.asarray(found)

    def moved(self) -> np.ndarray:
        """Return the bytes through L1 and shared memory of a step of a program.

        Both sides are loaded and written to shared memory. Four warps read 64 rows of the fixed side from there, once
        if registers hold them or for every product, and the columns that they multiply; products of single warps, which
        there are for fewer rows and before Hopper, are read by a column or row of warps each.
        """
        fixed, moving = self.bm * self.fixed * self.item, self.bm * self.per * self.moving * self.item
        side = np.sqrt(self.warps)
        high = np.maximum(self.fixed / 64, 1)
        beside = np.where(self.single, side, np.maximum(self.warps / 4 / high, 1))
        again = np.where(self.single, side, high)
        times = np.where(self.stages == 1, 1, self.per)
        return np.asarray(fixed * (2 + beside * times) + moving * (2 + again))

    def fmas(self) -> np.ndarray:
        """Return the products of a thread per step."""
        return np.asarray(self.per * self.bm * self.fixed * self.moving / self.threads)

    def flops(self) -> np.ndarray:
        """Return the operations of a step of a program."""
        return np.asarray(2 * self.per * self.bm * self.fixed * self.moving * self.factor)

    def feed(self) -> np.ndarray:
        """Return the fraction of the rate of what multiplies that products of this shape are fed."""
        if self.plain:
            return np.ones(len(self.tiles))
        return np.asarray(
            np.interp(self.moving, [*_FEED, 128], [*_FEED.values(), 1.0]) * np.minimum(self.fixed / 64, 1)
        )

    def resident(self) -> np.ndarray:
        """Return how many programs a multiprocessor holds."""
        used = np.minimum(np.where(self.stages == 1, 1.35, 1.15) * self.registers(), 255)
        found = np.minimum(65536 / (used * self.threads), (227 << 10) / (self.shared() + 1024))
        return np.asarray(np.clip(np.floor(np.minimum(found, 64 / self.warps)), 1, 32))

    def clocks(self) -> np.ndarray:
        """Return about how many clocks L1, products, issue or L2 takes per column and filter: the longest of them."""
        blocks = np.array([tile.tiles_k * tile.blocks / tile.cols for tile in self.tiles])
        longest = np.maximum(self.moved() / 128, self.flops() / (2500 * self.feed()))
        longest = np.maximum(longest, self.fresh() / 33)
        return np.asarray(np.maximum(longest, self.warps * self.instructions() / 4) / self.bm * blocks)

    def shared(self) -> np.ndarray:
        """Return the bytes of shared memory of a program: the operands of a step, and of the next."""
        return np.asarray(self.stages * self.bm * (self.fixed + self.per * self.moving) * self.item)

    def fresh(self) -> np.ndarray:
        """Return the bytes of a step of a program through L2.

        Copies of 16 bytes to shared memory, of a row ahead, pass L1 by: each counts. Of others rows that a later step
        reads again stay in L1, slices of depth do not.
        """
        found = []
        for tile, config in zip(self.tiles, self.configs, strict=True):
            runs, bm = tile.runs, config["BM"]
            met = min(tile.lines * tile.per, runs.lines / tile.blocks)  # filter rows of a program
            slices = min(ceil_div(tile.lines * tile.per, runs.taps[1]), runs.taps[0])
            rows = min(runs.stride[1], runs.taps[1]) if not tile.fixed_runs else 1
            columns = bm * tile.cols * runs.stride[2] + runs.taps[2]
            each = bm * (tile.lead + tile.used) * (runs.channels if runs.over_planes else 1)
            source = min(columns * runs.channels * rows, each * runs.taps[1])
            result = bm * tile.cols * min(tile.kb, runs.filters)
            ahead = config["num_stages"] > 1
            if ahead and tile.vec * self.item == _PAST_L1:
                source = each * (1 if tile.fixed_runs else met)
            elif not tile.fixed_runs:
                source *= slices
            if tile.fixed_runs:
                result *= met if ahead and _result_vec(tile) * self.item == _PAST_L1 else slices
            found.append(source + result)
        return np.array(found, float) * self.item

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, tiles = self.problem, self.tiles
        sums = 8 if self.item == 8 else 4
        programs = self.splits * np.array([tile.tiles_k * tile.blocks for tile in tiles], float)
        items = np.array([items_of(tile, config) for tile, config in zip(tiles, self.configs, strict=True)], float)
        walked = np.ceil(items / self.splits) * self.steps
        per_item = np.ceil(items / self.splits)
        resident = self.resident()
        partial = self.splits * np.array([tile.elements for tile in tiles], float) * sums
        folds = [
            ceil_div(config["splits"] * tile.cols, fold_tile(problem, config)["BLOCK_S"])
            for tile, config in zip(tiles, self.configs, strict=True)
        ]
        return Work(
            programs=programs,
            resident=resident,
            pipe=np.full(len(tiles), self.pipe),
            path=np.full(len(tiles), PATHS.index("fma" if self.plain else "pointer")),
            flops=self.flops() * walked,
            feed=self.feed(),
            l2_bytes=self.fresh() * walked + partial / programs,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + (100 + 35 * self.loads()) * per_item + 400),
            chain=walked + per_item + 3 + np.array(folds, float) / np.ceil(programs / (132 * resident)),
            extra_bytes=2 * partial,
            launches=2.0,
            l1_bytes=self.moved() * walked + partial / programs,
        )


def _result_vec(tile: Tile) -> int:
    """Return how many elements of the result one load takes."""
    runs = tile.runs
    if not runs.last:
        vec = runs.most_vec
        while vec > tile.cols or runs.result_size[2] % vec:
            vec //= 2
        return vec
    whole = tile.tiles_k == 1
    sizes = (tile.cols * runs.filters, runs.result_size[2] * runs.filters) if whole else (tile.kb, runs.filters)
    vec = runs.most_vec
    while any(size % vec for size in sizes):
        vec //= 2
    return vec


def roles(problem: ConvProblem) -> list[bool]:
    """Return the sides whose runs may be read: False those of x, True those of y."""
    found = [False] if problem.c <= _MOST_CHANNELS else []
    if problem.k <= _MOST_SWAPPED and all(step == 1 for step in problem.stride):
        found.append(True)
    return found


def _shapes(problem: ConvProblem) -> Iterator[dict[str, Any]]:
    """Yield tiles that shared memory holds, whatever registers they take."""
    for swapped in roles(problem):
        runs = gradient_of(problem, swapped)
        forms = (False, True) if not swapped and runs.stride[:2] == (1, 1) and runs.lines > 1 else (False,)
        whole = runs.filters if runs.filters <= _WIDEST else _WIDEST
        widths = {whole, *(kb for kb in (16, 32, 64, 128) if kb < whole)}
        lines = [side for side in (1, 2, 4, 8, 16, 32) if side < 2 * runs.lines]
        for fixed_runs, cols, kb, line in product(forms, (1, 2, 4, 8, 16, 32), sorted(widths), lines):
            if cols > 1 and cols * 2 > power_of_two(runs.lanes_size[2]) * 2:
                continue
            base = {"SWAPPED": swapped, "FIXED_RUNS": fixed_runs, "COLS": cols, "KB": kb, "LINES": line}
            tile = tile_of(problem, base | {"PER": 1})
            if max(tile.fixed, tile.moving) > _WIDEST or tile.moving < 16:
                continue
            most = ceil_div(runs.lines, line)
            for per in sorted({min(per, most) for per in (1, 2, 3, 4, 5, 7, 9)}):
                yield {**base, "PER": per}


def run_configs(problem: ConvProblem, room: int) -> list[dict[str, Any]]:
    """Return configs whose registers suffice and whose splits take `room` bytes at most, of several heights."""
    gpu = gpu_of(problem.device)
    return _configs(problem, room, gpu.capability if gpu is not None else (9, 0))


@lru_cache(maxsize=512)
def _configs(problem: ConvProblem, room: int, capability: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the configs of a problem on a GPU of that compute capability, which registers depend on."""
    # Left to itself ptxas spills some registers to fit one more block: hence the bound.
    tiles: list[dict[str, Any]] = [
        {**shape, "BM": bm, "num_warps": warps, "num_stages": 2, "steps": 1, "splits": 1, "maxnreg": 255}
        for shape in _shapes(problem)
        for bm, warps in product((32, 64, 128), (4, 8))
    ]
    if not tiles:
        return []
    costs = GradientCosts(problem, tiles)
    narrow = np.minimum(costs.fixed_vec, costs.moving_vec) * costs.item < _COPIED
    candidates: list[dict[str, Any]] = []
    least: list[int] = []  # programs that a multiprocessor must hold: what one waits for its loads, others compute
    for config, tile, few in zip(tiles, costs.tiles, narrow, strict=True):
        copied = not few and tile.positions[1] > 1 and not (costs.plain and costs.item == 4)  # these would spill
        if copied:
            candidates.append(config)
            least.append(1)
        if not copied or config["PER"] > 1:
            candidates.append({**config, "num_stages": 1})
            least.append(2 if copied else 1)
    costs = GradientCosts(problem, candidates)
    fits = (costs.registers() <= _MOST_REGISTERS) & (costs.shared() <= _MOST_SHARED)
    fits &= (costs.bm * costs.moving >= 8 * costs.threads) & (costs.resident() >= np.array(least))
    if costs.plain:
        fits &= costs.fmas() <= _MOST_UNROLLED // (costs.item // 4) ** 2
    order = np.argsort(costs.clocks(), kind="stable")
    sums, found = 8 if costs.item == 8 else 4, []
    for number in order[fits[order]][:_MOST_TILES]:
        config, tile = candidates[number], costs.tiles[number]
        rows, across = tile.positions[1], tile.tiles_k * tile.blocks
        for parts in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            steps = ceil_div(rows, parts)
            if parts > 1 and steps < 4:
                continue
            config = {**config, "steps": steps}
            most = min(items_of(tile, config), room // (tile.elements * sums))
            wanted = {min(ceil_div(programs, across), most) for programs in (132, 264, 396, 528)}
            found += [{**config, "splits": splits} for splits in sorted(wanted) if splits >= 1]
    return found
