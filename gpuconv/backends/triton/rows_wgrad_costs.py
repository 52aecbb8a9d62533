"""What the weight gradient on the row kernels costs: lanes, tiles, registers, instructions, the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work, gpu_of, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .rows_blocks import rows_of, turned_elements
from .rows_costs import warps_beside

__all__ = ["FOLD", "GradientCosts", "Lane", "elements_of", "gradient_tiles", "lane_of", "steps_of"]

FOLD = {"BLOCK_S": 64, "BLOCK": 32, "num_warps": 4, "num_stages": 1}
"""Splits and elements of one step of the pass that adds the splits: mostly one round trip to memory."""


_MOST_PRODUCTS = 32
"""Products that a step is unrolled to at most: longer loops take long to compile, and fall out of the caches."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Columns of x that a lane of some columns of y takes, filled up to a power of two, and how far apart they lie.

    `used` of them meet a tap; `lanes` are those of a row of y.
    """

    columns: int
    used: int
    pitch: int
    lanes: int


@lru_cache(maxsize=1024)
def lane_of(problem: ConvProblem, v: int) -> Lane:
    """Return the columns of x of a lane of `v` columns of y."""
    rows = rows_of(problem)
    taps, stride, dilation = rows.kernel[1], rows.stride[1], rows.dilation[1]
    apart = dilation if taps > 1 else 0
    pitch = (gcd(stride, apart) if v > 1 else apart) or 1
    used = ((v - 1) * stride + (taps - 1) * apart) // pitch + 1
    return Lane(power_of_two(used), used, pitch, ceil_div(rows.result_size[1], v))


def elements_of(problem: ConvProblem) -> int:
    """Return how many sums a split has: those of the weights and, behind them, those of the bias."""
    return prod(problem.w_shape) + (problem.k if problem.bias else 0)


def steps_of(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return how many steps of U rows all tiles of lanes have."""
    planes = problem.n * rows_of(problem).depth.result
    tiles = ceil_div(planes * lane_of(problem, config["V"]).lanes, config["BM"])
    return tiles * ceil_div(rows_of(problem).result_size[0], config["U"])


def _rows_of_x(problem: ConvProblem, u: int) -> int:
    """Return the rows of x that the taps of `u` neighbouring rows of y lead to."""
    rows = rows_of(problem)
    taps, stride, dilation = rows.kernel[0], rows.stride[0], rows.dilation[0]
    return len({i * stride + r * dilation for i in range(u) for r in range(taps)})


class GradientCosts:
    """What the kernel does with each config of a problem: arrays over the configs. A step is U rows of y."""

    MOST_REGISTERS = 210
    """Of a thread, by :meth:`registers`, above which no tile is proposed."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.rows, self.item = problem, rows_of(problem), itemsize(problem.dtype)

        def column(name: str, default: int = 1) -> np.ndarray:
            return np.array([config.get(name, default) for config in configs], float)

        self.bm, self.bc, self.bo, self.per = (column(name) for name in ("BM", "BC", "BO", "PER"))
        self.u, self.v, self.warps = column("U"), column("V"), column("num_warps")
        self.stages, self.splits, self.cached = column("num_stages"), column("splits"), column("CACHED", 0)
        self.threads = 32 * self.warps
        lanes = [lane_of(problem, config["V"]) for config in configs]
        self.columns = np.array([lane.columns for lane in lanes], float)
        self.steps = np.array([steps_of(problem, config) for config in configs], float)
        self.rows_of_x = np.array([_rows_of_x(problem, config["U"]) for config in configs], float)
        self.m, self.n = self.columns * self.bc, self.v * self.bo
        self.x, self.y = self.rows_of_x * self.m * self.bm, self.u * self.n * self.bm  # elements that a step loads
        self.taps = self.rows.kernel[0]
        self.blocks = np.ceil(self.rows.groups / self.per) * self.rows.depth.taps  # and taps along depth
        runs = [self._runs(config) for config in configs]
        self.run_x, self.run_y = (np.array([run[side] for run in runs], float) for side in (0, 1))
        self.loads = (self.x / self.run_x + self.y / self.run_y) / self.threads
        pipe, self.factor = pipe_of(problem)
        self.pipe, self.plain = pipe, PIPES[pipe].startswith("fma")
        gpu = gpu_of(problem.device)
        groups_of_warps = gpu is None or gpu.capability >= (9, 0)
        self.by_four = groups_of_warps & (self.warps >= 4) & (self.m >= 64) & (self.item < 4)
        # Warps of products of single ones: first along the longer side, in products of 16 x 16.
        self.warps_m = np.minimum(self.warps, np.maximum(self.m / 16, 1))
        self.warps_n = np.maximum(self.warps / self.warps_m, 1)

    def _runs(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Return how many channels of x, and of y, the compiler knows to lie side by side: those of 16 bytes, or 1."""
        width, found = 16 // self.item, []
        for each in (self.rows.inside, self.rows.outside):
            known = (config["PER"] * each) % width == 0 and each * self.rows.groups % width == 0
            found.append(width if known else 1)
        return found[0], found[1]

    @property
    def direct(self) -> np.ndarray:
        """Whether loads go to shared memory by themselves, past registers."""
        return (self.stages > 1) & (self.run_x > 1) & (self.run_y > 1)

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step. Read off compiled loops, as the numbers in it."""
        products = self.u * self.taps * self.m * self.n * self.bm
        lanes = np.ceil(self.m * self.bm / self.run_x / self.threads) + np.ceil(
            self.n * self.bm / self.run_y / self.threads
        )
        found = 45 + 42 * lanes + 3 * (self.rows_of_x + self.u) + np.where(self.direct, 6.0, 12.0) * self.loads
        found = found + 15.0 * (self.direct & (self.stages > 2)) + 100.0 * self.rows.depth.there  # planes are looked up
        if self.plain:
            found = found + 1.25 * products / self.threads
        else:
            matrices = (self.x * self.warps_n + self.y * self.warps_m) * self.item / 512 / self.warps
            single = self.factor * products / (16 * 8 * 32 / self.item) / self.warps + matrices
            of_four = np.ceil(self.m / 64) * self.bm * self.item / 32 / (self.warps / 4)
            four = self.u * self.taps * (3.3 + 6.0 * self.factor * of_four)
            found = found + np.where(self.by_four, four, single)
        if self.factor > 1:
            found = found + 8.0 * (self.x + self.y) / self.threads  # what three products are split from
        return np.asarray(found + 2.0 * self.problem.bias * self.y / self.threads)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: sums, operands of products, addresses, and what is loaded on the way."""
        words = max(self.item // 4, 1)
        sums = self.taps * self.m * self.n / self.threads * words
        rows = (self.x / self.rows_of_x * self.warps_n + self.y / self.u * self.warps_m) / self.threads
        operands = rows + 0.08 * (self.x * self.warps_n + self.y * self.warps_m) / self.threads
        operands = np.where(self.by_four, 0.0, operands * self.item / 4)
        loaded = np.where(self.direct, 0.0, 4 * self.loads)
        bias = self.problem.bias * self.n * self.bm / self.threads * words
        used = 60 + sums + operands + loaded + bias
        return np.asarray(used * (1.3 if self.factor > 1 else 1.0))

    def shared(self) -> np.ndarray:
        """Return the bytes of shared memory."""
        one = (self.x + self.y) * self.item
        return np.asarray(one * np.where(self.stages > 1, self.stages - 1 + self.by_four, 1))

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, rows, item = self.problem, self.rows, self.item
        used = np.minimum(self.registers(), 255)
        resident = np.floor(np.minimum(65536 / (np.ceil(used / 8) * 8 * self.threads), 64 / self.warps))
        resident = np.clip(np.minimum(resident, np.floor((228 << 10) / (self.shared() + 1024))), 1, 32)
        walked = np.ceil(self.steps / self.splits)
        beside = warps_beside(self.blocks * self.splits, resident, self.warps)
        # As issued: loads, their way to shared memory, and operands of products, again for each that takes them.
        past_l1 = self.direct & (self.cached == 0)
        stored = (self.x + self.y) * np.where(past_l1, 1.0, 2.0)
        of_four = self.taps * self.u * (self.m + np.ceil(self.m / 64) * self.n) * self.bm
        operands = np.where(self.by_four, of_four, self.x * self.warps_n + self.y * self.warps_m)
        moved = (stored + operands) * item * walked
        columns = self.bm * self.v * rows.stride[1] + rows.dilation[1] * (rows.kernel[1] - 1)
        whole = self.bm * (self.columns * self.rows_of_x * rows.inside + self.v * self.u * rows.outside)
        cached = columns * self.rows_of_x * rows.inside + self.bm * self.v * self.u * rows.outside
        read = np.where(past_l1, whole, cached) * self.per * item * walked
        sums = 8 if item == 8 else 4
        turned = turned_elements(problem).values()
        of_block = elements_of(problem) / self.blocks * sums
        taps = self.taps * rows.kernel[1]
        own = self.warps * (350 + taps * (20 + 1.8 * self.m * self.n / self.threads))  # checks, sums of taps, stores
        return Work(
            programs=self.blocks * self.splits,
            resident=resident,
            pipe=np.full(len(self.bm), self.pipe),
            path=np.full(len(self.bm), PATHS.index("fma" if self.plain else "register")),
            flops=2 * self.factor * self.u * self.taps * self.bm * self.m * self.n * walked,
            feed=np.where(self.by_four, np.minimum(self.n / 64, 1.0), 0.9 * np.minimum(beside / 8, 1.0)),
            l2_bytes=read + of_block,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + 150) / np.minimum(beside / 4, 1.0) + own,
            chain=walked / np.where(self.direct, self.stages - 1, 1.0) + 3,
            extra_bytes=2 * self.splits * elements_of(problem) * sums + 2 * sum(turned) * item,
            launches=2.0 + len(turned),
            l1_bytes=moved,
        )


def gradient_tiles(problem: ConvProblem) -> list[dict[str, int]]:
    """Return tiles of a problem whose registers and shared memory suffice.

    Of lanes with as many columns of x those with more columns of y are kept: they multiply as much and load less.
    """
    found = list(_tiles(problem))
    if not found:
        return []
    costs = GradientCosts(problem, [{**tile, "splits": 1} for tile in found])
    fits = (costs.registers() <= costs.MOST_REGISTERS) & (costs.shared() <= 100 << 10)
    found = [tile for tile, kept in zip(found, fits, strict=True) if kept]
    kinds = {(tile["BC"], tile["V"], lane_of(problem, tile["V"]).columns) for tile in found}
    beaten = {(bc, v) for bc, v, columns in kinds if (bc, 2 * v, columns) in kinds}
    return [tile for tile in found if (tile["BC"], tile["V"]) not in beaten]


def _tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles, whatever registers and shared memory they take; ptxas would spill some to fit one more block."""
    rows, size = rows_of(problem), itemsize(problem.dtype)
    alone = PIPES[pipe_of(problem)[0]].startswith("fma") or pipe_of(problem)[1] > 1  # one row of y at a time
    gpu = gpu_of(problem.device)
    # On sm_100 products of four warps keep sums where Triton 3.6 loses them: it compiles such a kernel to nothing.
    most = 2 if gpu is not None and gpu.capability >= (10, 0) else 4
    stages = ((2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)) if size < 8 else ((1, 0),)
    for side in (16, 32):
        per = max(min(side // max(rows.inside, rows.outside), rows.groups), 1)
        bc, bo = max(power_of_two(per * rows.inside), 16), max(power_of_two(per * rows.outside), 16)
        if max(bc, bo) > side:
            continue
        for v, u, bm, warps in product((1, 2, 4), (1, 2, 4, 8), (16, 32, 64), (1, 2, 4)):
            if (
                warps > most
                or u * rows.kernel[0] > _MOST_PRODUCTS
                or v > rows.result_size[1]
                or u >= 2 * rows.result_size[0]
                or (alone and u > 1)
            ):
                continue
            if bm >= 2 * max(problem.n * rows.depth.result * lane_of(problem, v).lanes, 16) or (bm == 64 and warps < 4):
                continue
            for number, cached in stages:
                yield {
                    "BM": bm, "BC": bc, "BO": bo, "PER": per, "U": u, "V": v, "CACHED": cached, "num_warps": warps,
                    "num_stages": number, "maxnreg": 255,
                }  # fmt: skip
