"""What the banded kernels cost: tiles, their registers and instructions, and the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work, gpu_of
from ...problem import ConvProblem, itemsize
from .banded_blocks import TOGETHER, band_of, banded_of, packed_elements
from .march_costs import epilogue_instructions

__all__ = ["BandedCosts", "banded_tiles"]

_MOST_REGISTERS = 250
"""Registers of a thread, by :meth:`BandedCosts.registers`, above which no tile is proposed."""

_FEED = {16: 0.35, 32: 0.6, 64: 0.92, 128: 1.0}
"""Fraction of the tensor cores' rate that products of that many columns are fed. Assumed."""

_SHARED_PER_SM = 227 << 10


class BandedCosts:
    """What threads do per step with each config of a problem: arrays over the configs."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.banded = problem, banded_of(problem)
        banded = self.banded

        def column(name: str, default: int = 1) -> np.ndarray:
            return np.array([config.get(name, default) for config in configs], float)

        self.bands = [band_of(banded, config) for config in configs]
        self.packed = np.array([packed_elements(banded, config) for config in configs], float)
        self.bm, self.bk, self.warps = column("BM"), column("BK"), column("num_warps")
        self.tp, self.tq = column("TP"), column("TQ")
        self.bn, self.threads = self.tp * self.tq, 32 * self.warps
        self.steps = np.ceil([band.depth for band in self.bands] / self.bk)
        self.last = banded.over_channels
        self.channels = TOGETHER if self.last else 1  # of a program
        self.vec, self.vo = (column(name, 8 if self.last else 1) for name in ("VEC", "VO"))
        blocks = np.array([banded.images * band.blocks[0] * band.blocks[1] for band in self.bands], float)
        self.programs = np.ceil(blocks / self.bm) * np.ceil(banded.channels / self.channels)
        self.elements = self.bm * self.bk * self.channels / self.threads  # of the source, of a thread and step
        self.loads = self.elements / self.vec
        self.weights = self.bk * self.bn * self.channels / self.threads / 8  # vectors of them
        self.outputs = self.bm * self.bn * self.channels / self.threads
        self.stores = self.outputs / self.vo
        gpu = gpu_of(problem.device)
        self.old = gpu is not None and gpu.capability < (9, 0)
        self.newest = gpu is not None and gpu.capability >= (10, 0)
        # Before Hopper a warp multiplies 16 x 8 x 16 at a time, from then on four of them 64 x BN x 16.
        self.groups = np.maximum(self.warps / 4, 1)
        by_warp, by_four = self.bm / 16 * self.bn / 8 / self.warps, np.ceil(self.bm / (64 * self.groups))
        self.products = (by_warp if self.old else by_four) * self.bk / 16 * self.channels

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step, as read off compiled loops."""
        if self.last:
            taken = 100 + 11 * self.loads + (1.8 if self.old else 8.8) * self.products
            return np.asarray(2 * taken if self.newest else taken)
        return np.asarray(52 + 11 * self.loads + 2.5 * self.weights + (1.1 if self.old else 4.5) * self.products)

    def ended(self) -> np.ndarray:
        """Return the instructions of a thread before and after all steps, as read off compiled kernels."""
        heavy = 1.3 * epilogue_instructions(self.problem) * self.outputs
        if self.last:
            return np.asarray(480 + 8.3 * self.outputs + heavy)
        return np.asarray(230 + 3.3 * self.outputs + 39.5 * self.stores + heavy)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: sums, a step of the source and of weights, and pointers."""
        residual = self.problem.residual * (self.outputs / 2 + self.stores)
        if self.last:
            return np.asarray(70 + self.outputs + self.elements / 2 + residual)
        residual = residual + self.problem.residual * self.stores
        # Where channels lie between columns no pointer is another and a constant: as compiled for sm_90.
        source, result = (1.25 * apart for apart in self.banded.apart)
        residual = residual + result * self.problem.residual * self.stores
        pointers = (2 + source) * self.loads + (2 + result) * self.stores + residual
        pointers = pointers + 4 * np.maximum(self.loads - 8, 0)
        return np.asarray(20 + self.outputs + self.elements / 2 + 4 * self.weights + pointers)

    def moved(self) -> np.ndarray:
        """Return the bytes through L1 and shared memory of a step of a program, which compiled loops agree with.

        Both operands are loaded and written to shared memory, where products of 64 rows read the weights each, and the
        source once; of channels-last kernels it is read back by threads, which take its channels apart. Before Hopper
        warps read their shares, of 32 rows where there are as many.
        """
        item = itemsize(self.problem.dtype)
        source, weights = (self.bk * side * self.channels * item for side in (self.bm, self.bn))
        if self.old:
            rows = np.minimum(self.warps, self.bm / 32)
            return np.asarray((2 + self.warps / rows) * source + (2 + rows) * weights)
        shares = np.ceil(self.bm / 64)
        twice = np.maximum(64 * self.groups / self.bm, 1)  # where groups of warps share rows
        return np.asarray((2 + twice) * source + (2 + shares) * weights)

    def fresh(self) -> np.ndarray:
        """Return the bytes of the source that a program reads at least: the rows of its blocks, with those around."""
        height, width = self.banded.source_size
        across = np.array([band.blocks for band in self.bands], float)
        lines = self.bm / across[:, 1]  # of blocks
        planes = np.maximum(lines / across[:, 0], 1)
        halo = np.array([band.rows for band in self.bands], float) - self.tp
        rows = np.minimum(lines * self.tp + planes * halo, np.ceil(planes) * height)
        return np.asarray(rows * width * self.channels * itemsize(self.problem.dtype))

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, item = self.problem, itemsize(self.problem.dtype)
        used = np.minimum(self.registers(), 255)
        result = self.bm * self.bn * self.channels * item
        shared = np.maximum(self.bk * (self.bm + self.bn) * item * (1 if not self.last else 2), result)
        resident = np.minimum(65536 / (used * self.threads), _SHARED_PER_SM / (shared + 1024))
        # Where channels are innermost a program reads 16 bytes of every 32 that L2 delivers.
        sectors = 2 if self.last else 1
        copies = self.packed / self.banded.channels * self.channels * item
        packed = self.packed * item
        return Work(
            programs=self.programs,
            resident=np.clip(np.floor(resident), 1, 32),
            pipe=np.full(len(self.bm), PIPES.index("tensor16")),
            path=np.full(len(self.bm), PATHS.index("register")),
            flops=2 * np.maximum(self.bm, 64) * self.bn * self.bk * self.channels * self.steps,
            feed=np.interp(self.bn, list(_FEED), list(_FEED.values())),
            l2_bytes=sectors * (self.fresh() + result * (1 + problem.residual)) + copies,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * self.steps + self.ended()),
            chain=self.steps + 3,
            extra_bytes=packed + float(np.prod(problem.w_shape)) * item,
            launches=2,
            l1_bytes=self.moved() * self.steps + (3 + problem.residual) * result,
        )


def banded_tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles of a problem whose registers suffice."""
    found = list(_tiles(problem))
    if found:
        fits = BandedCosts(problem, found).registers() <= _MOST_REGISTERS
        yield from (tile for tile, kept in zip(found, fits, strict=True) if kept)


def _tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles, whatever registers they take."""
    banded = banded_of(problem)
    single = banded.result_size[0] == 1
    blocks: tuple[tuple[int, int], ...]
    if banded.over_channels:
        blocks = ((1, 16), (1, 32)) if single else ((4, 8), (4, 4), (2, 8))
        for (tp, tq), (bm, bk, warps) in product(blocks, ((64, 16, 4), (128, 16, 8), (64, 16, 8))):
            yield {"TP": tp, "TQ": tq, "BM": bm, "BK": bk, "num_warps": warps, "num_stages": 1}
        return
    blocks = ((1, 32), (1, 64), (1, 128)) if single else ((8, 16), (16, 8), (4, 16), (8, 8))
    sides = ((256, 64, 8), (128, 64, 4), (128, 64, 8), (64, 64, 4), (128, 32, 8), (64, 32, 4))
    narrow = ((64, 32, 8),) if banded.vo == 1 else ()  # whose every result has a pointer of its own
    for (tp, tq), (bm, bk, warps) in product(blocks, (*sides, *narrow)):
        # Left to itself ptxas spills some of the narrow ones on sm_80 to fit one more block.
        bound = {"maxnreg": 255} if (bm, bk, warps) in narrow else {}
        yield {
            "TP": tp, "TQ": tq, "BM": bm, "BK": bk, "VEC": banded.vec, "VO": banded.vo, "num_warps": warps,
            "num_stages": 1, **bound,
        }  # fmt: skip
