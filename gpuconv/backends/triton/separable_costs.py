"""What the kernel of depthwise and pointwise convolution costs: tiles, registers, instructions, and a launch's work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs import PATHS, PIPES, Work, gpu_of, pipe_of
from ...problem import ConvProblem, SeparableProblem, itemsize
from ...shapes import effective_kernel
from .common import power_of_two
from .march_costs import epilogue_instructions

__all__ = ["SeparableCosts", "separable_tiles"]

_MOST_REGISTERS = 236
"""Registers of a thread, by :meth:`SeparableCosts.registers`, above which no tile is proposed."""

_PER_LOAD, _PER_TAP = 6.0, 4.8
"""Instructions of a load of x, and of a tap of one channel: both with address and mask. Read off compiled loops."""

_FEED = {16: 0.35, 32: 0.6, 64: 0.92, 128: 1.0}
"""Fraction of the tensor cores' rate that products of that many columns are fed. Assumed."""


class SeparableCosts:
    """What the kernel does with each config of a problem: arrays over the configs."""

    def __init__(self, problem: SeparableProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        def column(name: str) -> np.ndarray:
            return np.array([config[name] for config in configs], float)

        self.problem, self.first, self.second = problem, problem.depthwise, problem.pointwise
        self.item = itemsize(problem.dtype)
        self.m, self.n, self.c, self.q = column("BLOCK_M"), column("BLOCK_N"), column("BLOCK_C"), column("TILE_Q")
        self.warps, self.cols = column("num_warps"), column("COLS")
        self.threads = 32 * self.warps
        self.rows, self.columns = self.first.kernel
        self.read = np.array([_columns_read(self.first, config["COLS"]) for config in configs], float)
        self.elements = self.m * self.c / self.threads
        self.of_column = self.elements / self.cols
        wide = self.first.x_format == CHANNELS_LAST and self.first.k == self.first.c
        run = 16 // self.item
        self.vec = np.minimum(run if wide and self.first.c % run == 0 else 1, self.of_column)
        gpu = gpu_of(problem.device)
        self.old = gpu is not None and gpu.capability < (9, 0)
        self.plain = PIPES[pipe_of(self.second)[0]].startswith("fma")
        self.chunks = np.ceil(self.first.k / self.c)
        p, q = self.first.output_size
        self.lines = self.m / self.q
        self.tiles = np.ceil(self.first.n * p / self.lines) * np.ceil(q / self.q)
        self.blocks = np.ceil(self.second.k / self.n)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: sums of both convolutions, taps of a row, what it loads, and weights."""
        words = self.item / 4
        taps = self.columns * self.vec + self.read * self.of_column * words
        weights = self.c * self.n * words / self.threads
        return np.asarray(60 + self.m * self.n / self.threads + self.elements + taps + weights)

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per chunk of channels, as read off compiled loops."""
        converts = float(self.item == 2)
        loads = self.read * (_PER_LOAD * self.of_column / self.vec + converts * self.of_column)
        row = self.columns * (self.elements + (_PER_TAP + converts) * self.vec) + loads
        found = 30 + self.rows * row + (1 + epilogue_instructions(self.first)) * self.elements
        found = found + 0.9 * self.c * self.n / self.threads
        if self.plain:
            return np.asarray(found + 1.25 * self.m * self.n * self.c / self.threads)
        products = self.c / 16 * self.item / 2
        whole, single = 6 * products * self.m / 16 / self.warps, 1.3 * products * self.m / 16 * self.n / 8 / self.warps
        return np.asarray(found + np.where(self.old, single, whole))

    def moved(self) -> np.ndarray:
        """Return the bytes through L1 and shared memory of a chunk of a program.

        Every input column of every row of a window is loaded, from L1 after the first time; the intermediate tile goes
        through shared memory to the tensor cores, and so do the pointwise weights, which every product of 64 rows
        reads. Without tensor cores threads read both operands for each product of four.
        """
        taps = self.rows * (self.read * self.m / self.cols * self.c + self.columns * self.threads * self.vec)
        again = np.maximum(self.m / (32 if self.old else 64), 1)
        operands = (2 * self.m + self.n * (2 + again)) * self.c
        if self.plain:
            operands = operands + 0.35 * self.m * self.n * self.c
        return np.asarray((taps + operands) * self.item)

    def work(self) -> Work:
        """Describe the launch for the cost model.

        Tiles of other filters compute the depthwise part again, and read its input again.
        """
        first, second, item = self.first, self.second, self.item
        pipe, factor = pipe_of(second)
        used = np.minimum(self.registers(), 255)
        shared = (self.m + self.n) * self.c * item
        resident = np.minimum(65536 / (used * self.threads), (227 << 10) / (shared + 1024))
        resident = np.clip(np.floor(np.minimum(resident, 64 / self.warps)), 1, 32)
        spans = [
            (count - 1) * step + effective_kernel(taps, dilation)
            for count, step, dilation, taps in zip(
                (self.lines, self.q), first.stride, first.dilation, first.kernel, strict=True
            )
        ]
        taps = self.rows * self.columns
        # Of every tap at most, of a box with its halo at best: what programs share, L1 has.
        read = np.minimum(spans[0] * spans[1], taps * self.m) * first.k / (first.k // first.c) * item
        result = self.m * self.n * item * (1 + second.residual)
        weights = first.k * (self.n + taps) * item
        ended = (6 + epilogue_instructions(second)) * self.m * self.n / self.threads
        size = len(self.m)
        return Work(
            programs=self.tiles * self.blocks,
            resident=resident,
            pipe=np.full(size, pipe),
            path=np.full(size, PATHS.index("fma" if self.plain else "pointer")),
            flops=2 * self.m * self.n * self.c * self.chunks * factor,
            feed=1.0 if self.plain else np.interp(self.n, [*_FEED], [*_FEED.values()]),
            l2_bytes=read + result + weights,
            dram_bytes=float(self.problem.min_bytes),
            instructions=self.warps * (self.instructions() * self.chunks + ended + 100),
            chain=self.chunks * self.rows + 3,
            l1_bytes=self.moved() * self.chunks + 3 * result,
        )


def _columns_read(problem: ConvProblem, cols: int) -> int:
    """Return how many input columns the windows of `cols` neighbouring results have."""
    step, dilation = problem.stride[1], problem.dilation[1]
    return len({j * step + tap * dilation for j in range(cols) for tap in range(problem.kernel[1])})


def separable_tiles(problem: SeparableProblem) -> Iterator[dict[str, Any]]:
    """Yield tiles of a problem whose registers suffice."""
    widest = max(power_of_two(problem.pointwise.k), 16)
    deepest = max(power_of_two(problem.depthwise.k), 16)
    columns = power_of_two(problem.depthwise.output_size[1])
    found = [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c, "TILE_Q": q, "COLS": cols, "num_warps": warps, "num_stages": 1}
        for (m, warps), n, c, q, cols in product(
            ((64, 4), (128, 4), (128, 8), (256, 8)), (16, 32, 64, 128, 256), (16, 32, 64), (4, 8, 16, 32), (1, 2, 4)
        )
        if n <= widest and c <= deepest and q <= max(columns, 4) and 4 * n >= min(widest, 256)
    ]
    used = SeparableCosts(problem, found).registers()
    yield from (tile for tile, each in zip(found, used, strict=True) if each <= max(_MOST_REGISTERS, min(used)))
