"""The codegen table of the banded kernels: plans by default of depthwise layers with large windows.

``python tests/codegen/banded_table.py`` recompiles with the installed Triton every launch whose kernel or plan changed
(``--all``: every launch) and rewrites its part of ``banded_table.json`` and the page ``BANDED_TABLE.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from conv_launches import launches_of
from loops import TENSOR_CORE, products_of, straight, width
from pool_launches import Launch
from pool_rows import ROOM_PER_BYTE, PoolTable
from problems import conv_problem

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton import conv_banded
from gpuconv.backends.triton.banded_costs import BandedCosts
from gpuconv.kernels.tl import common
from gpuconv.kernels.tl.conv import banded, banded_exact, lanes, march_lanes
from gpuconv.problem import ConvProblem

WORDS = """
A result is one element of y, or of x in a data gradient. `per result` counts all instructions of a thread over its
results: those of a step of products as often as there are steps, and what is in no loop (a path for sums that are not
finite, which almost never runs, has most of its instructions in one); `room` is how many instructions of a thread can
be executed while 4.3 TB/s (a measured copy on an H200) read and write what one result needs.
"""

LAST, ROWS = CHANNELS_LAST, CONTIGUOUS

LAYERS: dict[str, tuple[tuple[int, ...], int, str, str, dict[str, Any]]] = {
    "7x7 56": ((32, 96, 56, 56), 7, ROWS, "fprop", {}),
    "9x9 56": ((32, 96, 56, 56), 9, ROWS, "fprop", {}),
    "13x13 56": ((32, 96, 56, 56), 13, ROWS, "fprop", {}),
    "31x31 56": ((32, 96, 56, 56), 31, ROWS, "fprop", {}),
    "29x29 28 dgrad": ((32, 192, 28, 28), 29, ROWS, "dgrad", {}),
    "13x13 14 residual": ((32, 384, 14, 14), 13, ROWS, "fprop", {"bias": True, "residual": True, "activation": "silu"}),
    "13x13 7": ((32, 768, 7, 7), 13, ROWS, "fprop", {}),
    "1-D 31": ((8, 512, 4096), 31, ROWS, "fprop", {}),
    "5x5 56 last": ((32, 96, 56, 56), 5, LAST, "fprop", {}),
    "7x7 56 last": ((32, 96, 56, 56), 7, LAST, "fprop", {}),
    "7x7 14 last residual": ((32, 384, 14, 14), 7, LAST, "fprop", {"residual": True, "activation": "silu"}),
    "9x9 56 last": ((32, 96, 56, 56), 9, LAST, "dgrad", {}),
    "13x13 56 last": ((32, 96, 56, 56), 13, LAST, "fprop", {}),
    "1-D 31 last": ((8, 512, 4096), 31, LAST, "fprop", {}),
}


def problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the name and problem of each entry."""
    for name, (x, taps, layout, kind, options) in LAYERS.items():
        w = (x[1], 1, *(taps,) * (len(x) - 2))
        problem = conv_problem(x, w, dtype="bfloat16", formats=layout, groups=x[1], padding=taps // 2)
        yield name, replace(problem, kind=kind, **options)


class BandedLaunch(Launch):
    """A launch whose tile is that of a banded kernel: results of a block, and blocks by the depth of a step."""

    @property
    def tile(self) -> str:
        """The tile in words."""
        return " ".join(f"{self.config[one]}x{self.config[other]}" for one, other in (("TP", "TQ"), ("BM", "BK")))


def launches(problem: ConvProblem) -> list[Launch]:
    """Return the launches of the plan of a problem: that which packs weights, and that which multiplies."""
    solver = conv_banded.SOLVERS[0]
    assert solver.why_not(problem) is None, solver.why_not(problem)
    pack, multiply = launches_of(solver.plan(problem), (conv_banded,))
    return [pack, BandedLaunch(**vars(multiply))]


def entries() -> dict[str, Launch]:
    """Return the launches by name; of those that pack weights one."""
    found = {}
    for name, problem in problems():
        first, found[name] = launches(problem)
        if name == "31x31 56":
            found[f"{name}, pack"] = first
    return found


def multiplying_loop(sass: str) -> tuple[int, int, int]:
    """Return the instructions of a step of products, those in no loop, and the bytes that a warp moves in a step.

    Bytes are those through L1 and shared memory: of loads and stores of all lanes, and what products of 64 rows, of
    four warps each, read of operands that are in shared memory.
    """
    body, moved = products_of(sass), 0.0
    for operation, rest in body:
        name = operation.split(".")[0]
        if name in ("LDG", "STG", "LDS", "STS"):
            moved += 32 * width(operation) / 8
        elif name in ("LDSM", "STSM"):
            moved += 128 * int((re.search(r"(?:^|\.)([124])(?:$|\s)", operation) or [0, 1])[1])
        elif name == "HGMMA":
            shape = re.match(r"x(\d+)x16", rest)
            assert shape is not None, rest
            source = 0 if re.search(r"R\d+, R\d+, gdesc", rest) else 64 * 16
            moved += 2 * (source + 16 * int(shape[1])) / 4
    return len(body), straight(sass), round(moved)


def room(launch: Launch, row: Mapping[str, Any], loop: tuple[int, ...]) -> dict[str, float]:
    """Return what a result costs, what there is room for, and both as the cost model has them."""
    problem: Any = launch.problem
    if not launch.number:
        return {}
    assert row["counts"].keys() & set(TENSOR_CORE), row
    costs = BandedCosts(problem, [launch.config])
    steps, results = float(costs.steps[0]), float(costs.outputs[0])
    count = 1
    for size in problem.result_shape:
        count *= size
    moved = {"moved": round(loop[2] * launch.config["num_warps"]), "modelled_moved": round(float(costs.moved()[0]))}
    return {
        "per_result": round((loop[0] * steps + loop[1]) / results, 2),
        "room": round(ROOM_PER_BYTE * problem.min_bytes / count, 1),
        "modelled": round(float(costs.instructions()[0] * steps + costs.ended()[0]) / results, 2),
        "modelled_registers": round(float(costs.registers()[0])),
        **(moved if loop[0] else {}),
    }


TABLE = PoolTable(
    "banded_table", "Codegen table of the banded kernels", WORDS, "result", entries(),
    (common, lanes, march_lanes, banded, banded_exact), room, multiplying_loop,
)  # fmt: skip


if __name__ == "__main__":
    TABLE.main()
