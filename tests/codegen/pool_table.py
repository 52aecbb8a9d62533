"""The codegen table of the window pools: what each launch compiles to, per Triton version and GPU architecture.

``python tests/codegen/pool_table.py`` recompiles with the installed Triton every launch whose kernels or plan changed
(``--all``: every launch) and rewrites its part of ``pool_table.json`` and the page ``POOL_TABLE.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from pool_launches import Launch, launches
from pool_problems import problems
from pool_rows import ROOM_PER_BYTE, PoolTable

from gpuconv.dispatch import select
from gpuconv.kernels.tl.pool import (
    common as pool,
)
from gpuconv.kernels.tl.pool import (
    keys,
    max,
    sum,
    taps,
    tiled,
    tiled_bwd,
)
from gpuconv.problem import PoolProblem, itemsize

WORDS = """
How much room there is: at 4.3 TB/s (a measured copy on an H200) a result element takes `bytes / 4.3e12` seconds,
`bytes` being what must be read and written for it at least. In that time 132 multiprocessors, each issuing one
instruction of 32 threads to each of 4 schedulers per clock at 1.98 GHz, can execute
`132 * 4 * 32 * 1.98e9 * bytes / 4.3e12 = 7.78 * bytes` thread instructions. Of a kernel without loops, the
instructions in its SASS (without NOP) over the results of one thread are what it executes per result at most.
`per result` and `room` stand where the kernel has no loop.
"""


def bytes_per_result(problem: PoolProblem) -> float:
    """Return the bytes that must move per element of the result: a gradient of maxima reads the indices as well."""
    moved = problem.min_bytes
    if problem.kind == "bwd" and problem.pool == "max":
        moved += itemsize(problem.index_dtype) * prod(problem.y_shape)
    if problem.kind == "bwd" and problem.pool == "lp":
        moved += itemsize(problem.dtype) * prod(problem.x_shape)
    return moved / prod(problem.result_shape)


def results_per_thread(launch: Launch) -> float:
    """Return how many results one thread of a tiled kernel computes."""
    config = launch.config
    items = config["BLOCK_M"] * config["BLOCK_L"] / (32 * config["num_warps"])
    results = items * config["TILE_P"] * config["TILE_Q"]
    if launch.problem.kind == "bwd":
        results *= launch.arguments["STRIDE_H"] * launch.arguments["STRIDE_W"]
    return results


def room(launch: Launch, row: Mapping[str, Any], loop: tuple[int, int]) -> dict[str, float]:
    """Return what a tiled kernel executes per result, and what there is room for."""
    if not launch.solver.endswith("tiled"):
        return {}
    cost = round(row["instructions"] / results_per_thread(launch), 1)
    return {"per_result": cost, "room": round(ROOM_PER_BYTE * bytes_per_result(launch.problem), 1)}


def entries() -> dict[str, Launch]:
    """Return each launch of the plans for every problem, by name."""
    found = {}
    for name, problem in problems():
        several = launches(select(problem, "triton"))
        for launch in several:
            suffix = f", launch {launch.number + 1}" if len(several) > 1 else ""
            found[f"{name}{suffix}"] = launch
    return found


TABLE = PoolTable(
    "pool_table",
    "Codegen table of the window pools",
    WORDS,
    "result",
    entries(),
    (pool, keys, max, sum, taps, tiled, tiled_bwd),
    room,
)


if __name__ == "__main__":
    TABLE.main()
