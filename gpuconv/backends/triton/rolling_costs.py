"""What the rolling kernel costs: the axis that it goes down, tiles, their registers, and the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...costs import PATHS, Work, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .march_costs import ACTIVATIONS, epilogue_instructions
from .runs_axes import forward_of

__all__ = ["MOST_TAPS", "Rolled", "RollingCosts", "rolled", "rolling_tiles"]

MOST_TAPS = 27
"""Taps along the other axes: each has a bit of an integer, and loads of its own in every step."""

_MOST_ROWS = 16
_MOST_SHARED = 227 << 10
_MOST_REGISTERS = 250
"""Registers of a thread, by :meth:`RollingCosts.registers`, above which no tile is proposed: there are 255."""

_SIDES = (8, 16, 32, 64, 128)
_FEED = (0.2, 0.35, 0.6, 0.92, 1.0)
"""Fraction of the tensor cores' rate that products of :data:`_SIDES` columns are fed. Assumed, as for other kernels."""

_CLOCKS_OF_A_WAIT = 40
"""Clocks from a product's last result to the next one's first, in which other warps multiply, if there are. Assumed."""

_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256)
"""Into how many lines the axis may fall."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """The axis that a problem's kernel goes down, and how three axes are passed: `order` names them by place.

    There are `others` positions along the other axes, over all images; along the axis `size` results of windows of
    `rows` taps, `dilation` apart. `rows` is 0 where there is no such axis.
    """

    order: tuple[int, int, int]
    rows: int
    dilation: int
    size: int
    others: int

    def lines(self, steps: int) -> int:
        """Return into how many lines of `steps` results the axis falls, over all phases of the dilation."""
        return ceil_div(ceil_div(self.size, self.dilation), steps) * min(self.dilation, self.size)


@lru_cache(maxsize=4096)
def rolled(problem: ConvProblem) -> Rolled:
    """Return the axis that a problem goes down: of those of stride 1 that with most taps, the outermost of equals."""
    forward = forward_of(problem)
    lead = 3 - forward.ndim
    places = [
        (-taps, axis)
        for axis, (taps, step) in enumerate(zip(forward.kernel, forward.stride, strict=True))
        if step == 1 and 2 <= taps <= _MOST_ROWS
    ]
    if not places:
        return Rolled((0, 1, 2), 0, 1, 0, 0)
    axis = min(places)[1]
    first, last = (place for place in range(3) if place != lead + axis)
    size = forward.output_size[axis]
    others = forward.n * prod(forward.output_size) // max(size, 1)
    return Rolled((first, lead + axis, last), forward.kernel[axis], forward.dilation[axis], size, others)


class RollingCosts:
    """What threads do per step with each config of a problem: arrays over the configs."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.forward, self.rolled = problem, forward_of(problem), rolled(problem)
        self.item = itemsize(problem.dtype)
        self.taps = prod(self.forward.kernel) // self.rolled.rows
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "ROWS", "MORE", "steps", "num_warps", "num_stages")
        columns = [np.array([config[name] for config in configs], float) for name in names]
        self.m, self.n, self.depth, self.high, self.more, self.steps, self.warps, self.stages = columns
        self.threads = 32 * self.warps
        self.outputs = self.m * self.n / self.threads
        self.tile = self.taps * self.m * self.forward.c * self.item
        self.loads = self.tile / 16 / self.threads
        self.dots = self.taps * self.forward.c / self.depth * (1 + (self.more > 0))
        self.weights = self.taps * self.forward.c * self.n * (self.high + self.more) * self.item

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: products and open rows, and pointers of what is loaded; see the tables."""
        held = self.outputs * (self.high + self.more + self.rolled.rows)
        problem = self.problem
        heavy = min(ACTIVATIONS.get(problem.activation, 20), 16)
        ended = 4 * (problem.bias + problem.scale + problem.shift) + 12 * problem.residual + heavy
        taps = 5 * (self.taps - 1) + 24 * problem.index64  # their masks, and wide offsets
        return np.asarray(20 + 0.93 * held + 2 * self.loads + taps + ended)

    def shared(self) -> np.ndarray:
        """Return the bytes of shared memory: weights, the tiles of every stage, and results on their way out."""
        return np.asarray(self.weights + self.stages * self.tile + self.m * self.n * self.item)

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step, as read off compiled loops."""
        products = self.taps * self.forward.c / 16 * (1 + (self.more > 0))
        rows = self.outputs * (0.2 + 0.3 * self.rolled.rows + 1.2 * (self.high + self.more))
        found = 50 + 6 * self.loads + 3 * products + 6 * self.dots + 10 * (self.taps - 1) + rows
        problem = self.problem
        ended = epilogue_instructions(problem)
        alone = 4 * (self.forward.k % 8 > 0)  # stores of one element
        return np.asarray((found + self.outputs * (ended + alone)) * (1.25 if problem.index64 else 1.0))

    def moved(self) -> np.ndarray:
        """Return the bytes through L1 and shared memory of a step of a program.

        Tiles are written to shared memory once and read by each product, weights by every product of 64 rows, results
        written to shared memory, read, and stored.
        """
        tiles = (2 + (self.more > 0)) * self.tile
        result = 3 * self.m * self.n * self.item * (1 + self.problem.residual)  # a residual comes the same way
        return np.asarray(tiles + self.weights * np.maximum(self.m / 64, 1) + result)

    def work(self) -> Work:
        """Describe the launch for the cost model."""
        forward, found = self.forward, self.rolled
        lines = np.array([found.lines(int(steps)) for steps in self.steps], float)
        walked = self.steps + found.rows - 1
        programs = np.ceil(found.others * lines / self.m) * np.ceil(forward.k / self.n)
        resident = np.minimum(
            65536 // (np.ceil(np.minimum(self.registers(), 255) / 8) * 8 * self.threads),
            _MOST_SHARED // (self.shared() + 1024),
        )
        resident = np.clip(resident, 1, 32)
        pipe, factor = pipe_of(self.problem)
        columns = self.n * (self.high + self.more)
        result = self.m * self.n * self.item * (1 + self.problem.residual)
        before = 300 + 3.5 * self.weights / self.item / self.threads  # weights come one by one
        return Work(
            programs=programs,
            resident=resident,
            pipe=np.full(len(self.m), pipe),
            path=np.full(len(self.m), PATHS.index("pointer")),
            flops=2 * self.m * self.taps * forward.c * columns * walked * factor,
            feed=self._feed(resident),
            l2_bytes=self.tile * walked + self.weights + result * self.steps,
            dram_bytes=float(self.problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + before),
            chain=walked / np.maximum(self.stages - 1, 1) + 3,
            l1_bytes=self.moved() * walked + 3 * self.weights,
        )

    def _feed(self, resident: np.ndarray) -> np.ndarray:
        """Return the fraction of the tensor cores' rate: wide products alone fill them, and each is waited for."""
        high, more = self.n * self.high, self.n * self.more
        clocks = high / np.interp(high, _SIDES, _FEED)
        clocks = clocks + np.where(more > 0, more / np.interp(np.maximum(more, 8), _SIDES, _FEED), 0.0)
        fed = (high + more) / clocks
        busy = (high + more) / 2 * self.depth / 16 / (1 + (self.more > 0))  # clocks of one product of 64 rows
        together = np.maximum(resident * self.m / 64, 1)  # groups of warps that take turns
        return np.asarray(fed * np.minimum(1.0, together * busy / (busy + _CLOCKS_OF_A_WAIT)))


def _rows_of_products(rows: int) -> Iterator[tuple[int, int]]:
    """Yield in how many filter rows, powers of two, products are: all at once, or as many as fit and the rest."""
    whole = power_of_two(rows)
    yield whole, 0
    if whole > rows:
        yield whole // 2, power_of_two(rows - whole // 2)


def rolling_tiles(problem: ConvProblem) -> Iterator[dict[str, Any]]:
    """Yield the configs of a problem that fit into shared memory and registers, each with several heights."""
    forward, found = forward_of(problem), rolled(problem)
    depth = next(side for side in (64, 32, 16) if forward.c % side == 0)
    widest = max(16, power_of_two(forward.k))
    shapes = [
        {
            "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": depth, "ROWS": high, "MORE": more, "steps": 1,
            "num_warps": warps, "num_stages": stages,
        }
        for (m, warps), n, (high, more), stages in product(
            ((64, 4), (128, 8)), (16, 32, 64, 128), _rows_of_products(found.rows), (2, 3, 4)
        )
        if n <= widest and n * high <= 256
    ]  # fmt: skip
    if not shapes:
        return
    costs = RollingCosts(problem, shapes)
    fits = (costs.registers() <= _MOST_REGISTERS) & (costs.shared() <= _MOST_SHARED)
    per_phase = ceil_div(found.size, found.dilation)
    least = min(per_phase, 2)
    heights = sorted({max(ceil_div(per_phase, parts), least) for parts in _PARTS})
    for shape, fit in zip(shapes, fits, strict=True):
        if fit:
            yield from ({**shape, "steps": height} for height in heights)
