"""What the marching kernels cost: tiles of lanes, their registers and instructions, and the work of a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from ...costs import PATHS, PIPES, Work
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import power_of_two
from .march_lanes import march_of

__all__ = [
    "ACTIVATIONS",
    "LONGEST_STEP",
    "MOST_REGISTERS",
    "ROUNDED_STEP",
    "LaneCosts",
    "epilogue_instructions",
    "lane_tiles",
]

MOST_REGISTERS = 200
"""Registers of a thread, by :meth:`LaneCosts.registers`, above which no tile is proposed: compiled ones have more."""

LONGEST_STEP = 8
"""Rows or columns that a step moves on by at most: all that it passes is unrolled."""

_MOST_COLUMNS = 32
"""Columns of a lane at most."""

_PER_ACCESS = {True: 4.2, False: 3.6}
"""Instructions of a load or store: itself, its address and its bounds; of lanes over channels or not.

Read off compiled loops, as what follows.
"""

_PER_STEP = {"march": {True: (30, 30), False: (0, 30)}, "collect": {True: (45, 0), False: (26, 0)}}
"""Instructions of a thread per step, and per source row of it, beside all others; for lanes over channels or not."""

_PER_ITEM = 90
"""Instructions that take an item of a weight gradient apart."""

ACTIVATIONS = {None: 0, "relu": 2, "relu6": 4, "hardswish": 8, "sigmoid": 12, "silu": 13, "tanh": 14, "gelu": 30}
"""Instructions of an activation. Assumed, but for those of a bias and of relu."""


ROUNDED_STEP = 2
"""Instructions that round to 16 bits and back. Assumed: half of a conversion of two, and what widens again."""


def epilogue_instructions(problem: ConvProblem) -> float:
    """Return the instructions of the epilogue per element of the result."""
    if problem.kind == "wgrad":
        return 0.0
    heavy, vectors = ACTIVATIONS.get(problem.activation, 20), problem.bias + problem.scale + problem.shift
    rounded = ROUNDED_STEP * (1 + vectors + problem.residual) if problem.rounding == "torch" else 0
    return vectors + 3 * problem.residual + heavy + rounded


class LaneCosts:
    """What threads do per step with each config of a depthwise problem: arrays over the configs."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.march = problem, march_of(problem)
        self.wgrad = problem.kind == "wgrad"
        march, self.item = self.march, itemsize(problem.dtype)
        rows, columns, half = march.rows, march.columns, self.item == 2

        def column(name: str, default: int = 1) -> np.ndarray:
            return np.array([config.get(name, default) for config in configs], float)

        self.tq, self.warps, self.steps = (column(name) for name in ("TQ", "num_warps", "steps"))
        self.ahead, self.unroll, self.splits = column("AHEAD", 0), column("UNROLL"), column("splits")
        self.vec, self.vo = column("VEC"), column("VO")
        self.groups, self.channels = column("TT"), column("BC")
        self.lanes = self.groups * self.channels if march.over_channels else column("LANES")
        self.each = self.lanes / (32 * self.warps)
        windows = [march.window(config["TQ"]) for config in configs]
        self.columns = np.array([last - first for first, last in windows], float)
        source_rows = rows.reads * march.slices
        width = 16 / self.item  # elements of the widest access
        if march.over_channels:
            per_load = per_store = np.ceil(self.each / width)
        else:
            per_load, per_store = self.each * np.ceil(self.vec / width), self.each * np.ceil(self.vo / width)
        self.loads = source_rows * (np.ceil(self.columns / self.vec) + (self.vec > 1)) * per_load
        self.outputs = self.each * self.tq * rows.writes
        self.stores = rows.writes * self.tq / self.vo * per_store  # of wgrad, loads of y
        self.fmas = self.each * self.tq * march.taps / columns.writes
        packs = 1.0 if self.wgrad else np.where(self.each > 1 if march.over_channels else self.vo > 1, 0.5, 1.0)
        self.conversions = half * (self.each * source_rows * self.columns + packs * self.outputs)
        if march.over_channels:  # lines of 128 bytes that a warp's access touches
            self.lines = self.stored_lines = np.maximum(32 * np.minimum(self.each * self.item, 16) / 128, 1)
        else:
            apart = self.tq * self.item * np.array([columns.reads / columns.writes, 1.0])[:, None]
            wide = np.array([self.vec, self.vo]) * self.item
            self.lines, self.stored_lines = np.clip(32 * apart / 128, np.maximum(32 * wide / 128, 1), 32)
        groups = columns.phases * np.ceil(columns.count / self.tq)
        across = np.ceil(march.channels / self.channels)
        if self.wgrad:
            images: Any = problem.n * np.ceil(groups / self.groups)
            if not march.over_channels:
                images, across = np.ceil(problem.n * groups / self.lanes), np.full(len(self.tq), float(march.channels))
            height = rows.steps + rows.warm
            self.items = images * np.ceil(height / self.steps) * rows.phases * march.result_size[0]
            self.programs = across * self.splits
        else:
            images = across * np.ceil(groups / self.groups) * problem.n
            if not march.over_channels:
                images = np.ceil(problem.n * march.channels * groups / self.lanes)
            self.items = images * np.ceil(rows.steps / self.steps) * rows.phases * march.result_size[0]
            self.programs = self.items

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step."""
        rows = self.march.rows
        fixed, per_row = _PER_STEP["collect" if self.wgrad else "march"][self.march.over_channels]
        accesses = _PER_ACCESS[self.march.over_channels] * (self.loads + self.stores)
        single = self.march.source_size[2] == self.march.result_size[2] == 1  # no bounds of columns
        found = self.fmas + self.conversions + accesses + (5 if single else fixed) + per_row * rows.reads
        if self.wgrad:  # what moves along the window of rows, the sums of the bias, and the next item
            found = found + self.each * self.tq * (rows.warm / self.unroll + self.problem.bias) + _PER_ITEM / self.steps
        return np.asarray(found + epilogue_instructions(self.problem) * self.outputs)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: taps, open sums (or a window of y), a row of columns, what comes ahead."""
        words = max(self.item // 4, 1)
        kept = self.march.taps + self.march.rows.open * self.tq + self.columns + (self.wgrad and self.problem.bias)
        ahead = self.ahead * self.march.rows.reads * self.march.slices * self.columns * self.item / 4
        return np.asarray(24 + self.each * (kept * words + ahead))

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, march, item = self.problem, self.march, self.item
        rows, axis = march.rows, march.columns
        threads = 32 * self.warps
        used = self.registers()
        used = np.minimum(np.where(used > 125, 1.3 * used, used), 255)
        resident = np.clip(np.floor(np.minimum(65536 / (used * threads), 2048 / threads)), 1, 32)
        apart = self.tq * axis.reads / axis.writes  # source columns between neighbouring lanes
        halo = self.columns - apart  # what two neighbours read; L1 has it
        read = self.channels * (self.groups * apart + halo) if march.over_channels else self.lanes * apart
        read = read * rows.reads * march.slices * item  # of a step
        other = self.lanes * self.tq * rows.writes * item
        extra: Any = 0.0
        if self.wgrad:
            items = np.ceil(self.items / self.splits)
            walked = items * self.steps
            ended = 60 + 40 * march.taps * self.each
            sums = 8 if item == 8 else 4
            elements = march.channels * (march.taps + problem.bias)
            extra = np.where(self.splits > 1, 2 * self.splits * elements * sums, 0)
            moved = (read + other) * walked + other * rows.warm * items
            chain = walked + 2 * items + 2
        else:
            walked = self.steps + rows.warm
            ended = 60 + 4 * march.taps * self.each
            moved = read * walked + other * self.steps
            chain = walked + 2
        return Work(
            programs=self.programs,
            resident=resident,
            pipe=np.full(len(self.tq), PIPES.index("fma64" if problem.dtype == "float64" else "fma32")),
            path=np.full(len(self.tq), PATHS.index("direct")),
            flops=2 * self.fmas * threads * walked,
            feed=1.0,
            l2_bytes=moved,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + ended),
            chain=chain,
            extra_bytes=extra,
            launches=1 + (self.splits > 1),
            l1_bytes=128 * self.warps * (self.loads * self.lines + self.stores * self.stored_lines) * walked,
        )


def lane_tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles of the lanes of a problem, whatever registers they take."""
    march = march_of(problem)
    columns = march.columns
    ahead = {} if problem.kind == "wgrad" else {"AHEAD": int(march.slices * march.rows.reads == 1)}
    common = {**ahead, "num_stages": 1}
    if march.over_channels:
        for tq in sorted({columns.writes * side for side in (1, 2, 4, 8)}):
            if tq > columns.writes and (tq > 8 or tq >= 2 * columns.count):
                continue
            groups = columns.phases * ceil_div(columns.count, tq)
            for tt, bc, each in product((1, 2, 4, 8, 16), (32, 64, 128, 256, 512), (1, 2, 4, 8)):
                warps = tt * bc // (32 * each)
                if warps in (1, 2, 4) and tt <= power_of_two(groups) and bc <= max(power_of_two(march.channels), 32):
                    yield {**common, "TQ": tq, "TT": tt, "BC": bc, "num_warps": warps}
        return
    most = 16 // itemsize(problem.dtype)
    vec = gcd(most, march.source_size[2]) if columns.in_vectors else 1
    vo = gcd(most, march.result_size[2]) if columns.results_in_vectors else 1
    wanted = {columns.writes * side for side in (1, 2, 4, 8, 16, 32)} | {columns.count}
    for tq in sorted(side for side in wanted if side % columns.writes == 0 and 0 < side <= _MOST_COLUMNS):
        wide, wide_out = gcd(vec, tq * columns.reads), gcd(vo, tq)
        if tq >= 2 * max(columns.count, columns.writes) or (tq < 4 < columns.count):
            continue
        for lanes in (32, 64, 128):
            yield {**common, "TQ": tq, "LANES": lanes, "VEC": wide, "VO": wide_out, "num_warps": lanes // 32}
