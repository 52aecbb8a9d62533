"""What the row kernels cost: tiles, their registers and instructions, and the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work, gpu_of, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .march_costs import epilogue_instructions
from .rows_blocks import images_at_a_time, rows_of, turned_elements
from .turns import in_order

__all__ = ["RowCosts", "row_tiles", "warps_beside"]

_PER_STEP = 36.0
"""Instructions of a thread per step beside what follows. Read off compiled loops, as all of it."""

_PER_LOAD, _PER_PIECE, _PER_OUTPUT, _PER_BLOCK = 7.0, 1.0, 2.6, 10.0
"""Instructions of a load and what brings it to shared memory, of an element of a product, of one of the result, and of
a block of channels beside the first."""

_PER_SPREAD = 2.2
"""Instructions of an element of the result of a gradient that spreads: several rows are closed together."""

_PER_PLANE = 20.0
"""Instructions of a row of another plane that a tap along depth leads to, forward, beside loads and products: of
products of four warps, where those of single ones have none."""

_PER_APART, _SPREAD_APART, _READ_APART, _WHERE_APART = 5.5, 3.0, 3.0, 3.0
"""Instructions, forward and in a gradient that spreads, and for a residual, and registers that tell where it lies, of
an element of a result whose channels do not lie side by side: it is stored alone, and a residual read alone."""

_MOST_WHERE = 48.0
"""Of those registers at most: of more elements the places are computed anew."""

_PER_AHEAD, _PER_MMA, _PER_FMA = 2.0, 1.6, 1.25
"""Instructions of a register that is loaded ahead, of a product of a single warp with its operands, and of one without
tensor cores."""


_MULTIPROCESSORS = 132
"""Of an H100 or H200, over which programs spread."""


def warps_beside(programs: np.ndarray, resident: np.ndarray, warps: np.ndarray) -> np.ndarray:
    """Return how many warps a multiprocessor executes at once.

    Each of its four parts executes warps of its own: fewer than four leave parts idle. Products of single warps wait
    for what else their warp does, unless another one of the part has products meanwhile: from eight on.
    """
    return np.asarray(np.minimum(resident, np.maximum(programs / _MULTIPROCESSORS, 1)) * warps)


class RowCosts:
    """What the row kernel does with each config of a problem: arrays over the configs."""

    MOST_REGISTERS = 205
    """Of a thread, by :meth:`registers`, above which no tile is proposed."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.rows = problem, rows_of(problem)
        rows, self.item = self.rows, itemsize(problem.dtype)

        def column(name: str, default: int = 1) -> np.ndarray:
            return np.array([config.get(name, default) for config in configs], float)

        self.bm, self.bc, self.bo = column("BM"), column("BC"), column("BO")
        self.warps, self.steps, self.per = column("num_warps"), column("steps"), column("PER")
        self.parts, self.ahead, self.packed = column("BLOCKS"), column("AHEAD", 0), column("PACKED", 0)
        self.parts = self.parts * rows.depth.taps  # products that are added up for a row of the source
        self.stages = column("num_stages")
        self.apart = rows.groups > 1 and not in_order(problem, problem.result)
        self.threads = 32 * self.warps
        axis = rows.axis
        self.open, self.writes, self.columns = axis.open, axis.writes, rows.columns
        gpu = gpu_of(problem.device)
        before, self.newest = (gpu is not None and gpu.capability < (9, 0)), gpu is not None and gpu.capability[0] >= 10
        self.single = before | (self.warps < 4) | (self.item > 4) | (self.bm / self.warps < 16)  # no products of four
        self.ks, self.wide = rows.taps[1] * self.bc, rows.taps[0] * self.columns * self.bo
        self.tile = axis.reads * self.parts * self.bm * self.ks  # elements that a step loads
        self.outputs = self.writes * self.bm * self.columns * self.bo  # of a step
        self.products = axis.reads * self.bm * self.wide
        run = np.array([16 // self.item if self._side_by_side(config) else 1 for config in configs], float)
        self.loads = self.tile / run / self.threads
        self.direct = (self.stages > 1) & (run > 1) & (self.ahead == 0)  # loads go to shared memory by themselves
        self.chunks = np.ceil(axis.steps / self.steps)
        self.blocks = np.ceil(rows.groups / self.per)
        self.tiles = np.ceil(problem.n * rows.depth.result * rows.lanes / self.bm)
        self.programs = self.blocks * self.tiles * self.chunks * axis.phases

    def _side_by_side(self, config: Mapping[str, Any]) -> bool:
        """Tell whether the compiler knows that 16 bytes of channels lie side by side."""
        width, rows = 16 // self.item, self.rows
        return (config["PER"] * rows.inside) % width == 0 and rows.inside * rows.groups % width == 0

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step."""
        axis, (r, _) = self.rows.axis, self.rows.kernel
        used = self.products * r / (self.rows.taps[0] * axis.reads)  # of single warps: the compiler drops the others
        pieces = np.where(self.single, used, self.products)
        found = _PER_STEP + _PER_LOAD * self.loads + _PER_PIECE * pieces / self.threads
        per_output = _PER_SPREAD if self.rows.spreads else _PER_OUTPUT
        if self.apart:
            per_output += _SPREAD_APART if self.rows.spreads else _PER_APART
            per_output += _READ_APART * self.problem.residual
        found = found + per_output * self.outputs / self.threads + _PER_BLOCK * axis.reads * (self.parts - 1)
        if not self.rows.spreads:
            found = found + _PER_PLANE * ~self.single * axis.reads * (self.rows.depth.taps - 1)
        found = found + _PER_AHEAD * self.ahead * self.tile * self.item / 4 / self.threads
        found = found + 30.0 * (self.bo < 16)  # narrower than what a product's rows hold together: they are rearranged
        found = found + 120.0 * (self.newest & ~self.single & (self.bm == 64))  # half of the lanes of tensor memory
        if self.rows.groups == 1:  # few filters: products are rearranged, and results stored one by one
            found = found + (np.where(self.single, 1.0, 14.0) if r > 1 else 3.0) * self.outputs / self.threads
        by_warps = used * self.ks * self.parts / (16 * 8 * 16) / self.warps
        pipe, factor = pipe_of(self.problem)
        if PIPES[pipe].startswith("fma"):  # one product after the other, operands by way of shared memory
            found = found + _PER_FMA * axis.reads * self.parts * self.products / axis.reads * self.ks / self.threads
        else:
            found = found + _PER_MMA * factor * self.single * by_warps
        return np.asarray(found + epilogue_instructions(self.problem) * self.outputs / self.threads)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: open sums, products, the sums of zeros, loaded tiles and addresses."""
        words = max(self.item // 4, 1)
        sums = (self.open + 1) * self.outputs / self.writes + self.products
        loaded = 0.5 * (1 + self.ahead) * self.tile * self.item / 4
        addresses = 3 * self.loads / (self.rows.axis.reads * self.parts)
        masked = 20.0 * (self.per * self.rows.inside < self.bc) * (self.parts == 1)
        used = 20 + (sums * words + loaded) / self.threads + addresses + masked
        if self.apart:
            used = used + np.minimum(_WHERE_APART * self.outputs / self.threads, _MOST_WHERE)
        used = used + self.single * self.direct * 0.3 * self.parts * self.ks * self.wide * self.item / 4 / 32  # filters
        plain = PIPES[pipe_of(self.problem)[0]].startswith("fma") and self.rows.spreads
        crowded = (
            plain
            | (self.parts > 1) & (self.rows.kernel[0] > 1)
            | (self.item == 8)
            | (self.problem.precision == "tf32x3")
        )
        return np.asarray(used * np.where(crowded, 1.3, 1.0))

    def shared(self) -> np.ndarray:
        """Return the bytes of shared memory: the weights of a block, and tiles on their way to the tensor cores."""
        tiles = np.where(self.direct, self.rows.axis.reads * self.parts * (self.stages - self.single), 1.0)
        return np.asarray((self.parts * self.ks * self.wide + tiles * self.bm * self.ks) * self.item)

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, rows, item = self.problem, self.rows, self.item
        axis = rows.axis
        pipe, factor = pipe_of(problem)
        used = np.minimum(self.registers(), 255)
        by_shared = np.floor((228 << 10) / (self.shared() + 1024))
        resident = np.minimum(np.floor(65536 / (used * self.threads)), np.floor(64 / self.warps))
        resident = np.clip(np.minimum(resident, by_shared), 1, 32)
        walked = self.steps + axis.warm
        beside = warps_beside(self.programs, resident, self.warps)
        rows_of_tile = np.maximum(self.bm / 64, 1)
        # As issued: loads, their way to shared memory, operands of products, and stores with what rearranges them.
        filters = axis.reads * self.parts * self.ks * self.wide
        issued = np.where(self.direct, 2.0, 3.0) * self.tile
        moved = (issued + filters * rows_of_tile) * item * walked + 3 * self.outputs * item * self.steps
        if item != 2:  # tensor cores read the tile from registers
            moved = moved - self.tile * item * walked
        packed = self.parts * self.ks * self.wide * item
        # Gathered, weights come one by one, and the lanes of a warp touch some four lines of L1.
        gathered = self.parts * self.ks * self.wide / 32
        fetched = np.where(self.packed > 0, 2 * packed, packed + 4 * 128 * gathered)
        prologue = np.where(self.packed > 0, 4 * packed / 16 / 32, 7 * gathered)
        apart = 1 if rows.spreads else rows.stride[1]
        columns = self.bm * apart + rows.dilation[1] * (rows.taps[1] - 1)
        read = axis.reads * columns * self.parts * np.minimum(self.bc, rows.inside * self.per) * item
        whole = axis.reads * self.parts * self.bm * rows.taps[1] * np.minimum(self.bc, rows.inside * self.per) * item
        read = np.where(self.direct, whole, read)  # past L1, which has what lanes share
        weights = float(np.prod(problem.w_shape)) * item
        turned = turned_elements(problem).values()
        parts = ceil_div(problem.n, max(images_at_a_time(problem), 1))
        return Work(
            programs=self.programs,
            resident=resident,
            pipe=np.full(len(self.bm), pipe),
            path=np.full(len(self.bm), PATHS.index("register" if item == 2 or factor else "fma")),
            flops=2 * factor * axis.reads * self.parts * self.bm * self.ks * self.wide * walked,
            feed=np.where(self.single, 0.9 * np.minimum(beside / 8, 1.0), np.minimum(self.wide / 64, 1.0)),
            l2_bytes=read * walked + (1 + self.apart) * self.outputs * item * self.steps + packed,
            dram_bytes=float(problem.min_bytes),
            instructions=(self.warps * (self.instructions() * walked + 150) + prologue) / np.minimum(beside / 4, 1.0),
            chain=walked * np.where(self.direct, 1 / np.maximum(self.stages - 1, 1), np.where(self.ahead > 0, 1.0, 1.2))
            + 3,
            extra_bytes=self.packed * (weights + self.blocks * packed) + 2 * sum(turned) * item,
            launches=parts * (1 + len(turned)) + self.packed,
            l1_bytes=moved + fetched,
        )


def row_tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles of a problem whose registers and shared memory suffice."""
    found = list(_tiles(problem))
    if found:
        costs = RowCosts(problem, [{**tile, "steps": 1} for tile in found])
        fits = (costs.registers() <= costs.MOST_REGISTERS) & (costs.shared() <= 160 << 10)
        yield from (tile for tile, kept in zip(found, fits, strict=True) if kept)


def _tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles, whatever registers and shared memory they take."""
    rows, gpu = rows_of(problem), gpu_of(problem.device)
    # On sm_100 ptxas, left to itself, spills some tiles of several parts to fit one more block; on sm_80 with a bound.
    # Of loops that load to shared memory it computes every address anew for the sake of one more block.
    newest = gpu is not None and gpu.capability >= (10, 0)
    least_out = 16 if rows.groups == 1 else max(ceil_div(16, rows.taps[0] * rows.columns), 8)
    least_in = 16
    lanes = problem.n * rows.depth.result * rows.lanes
    pers = sorted({max(min(side // max(rows.inside, rows.outside), rows.groups), 1) for side in (8, 16, 32, 64)})
    for per in pers:
        bo = max(power_of_two(per * rows.outside), least_out)
        for bc in (16, 32, 64):
            bc = max(bc, least_in)
            whole = max(power_of_two(per * rows.inside), least_in)
            if bc != whole and (per > 1 or bc > whole or rows.inside <= 32):
                continue
            parts = ceil_div(rows.inside, bc) if per == 1 else 1
            bound = {"maxnreg": 255} if parts * rows.depth.taps > 1 and newest else {}
            narrow = ((16, 4), (32, 4)) if rows.spreads else ()  # whose results are several columns wide
            for bm, warps in ((16, 1), (32, 1), (32, 2), *narrow, (64, 2), (64, 4), (128, 4), (128, 8)):
                if bm >= 2 * max(lanes, 16):
                    continue
                ahead = [(1, 1)] if warps >= 4 and parts == 1 else []
                direct = [(0, 2), (0, 3)] if itemsize(problem.dtype) == 2 and parts == 1 else []
                for (registers, stages), packs in product([(0, 1), *ahead, *direct], (0, 1)):
                    yield {
                        "BM": bm, "BC": bc, "BO": bo, "PER": per, "BLOCKS": parts, "AHEAD": registers, "PACKED": packs,
                        "num_warps": warps, "num_stages": stages, **(bound if stages == 1 else {"maxnreg": 255}),
                    }  # fmt: skip
