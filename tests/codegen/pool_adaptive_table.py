"""The codegen table of adaptive, global, fractional and unpooling kernels.

``python tests/codegen/pool_adaptive_table.py`` recompiles with the installed Triton every launch whose kernels or plan
changed (``--all``: every launch) and rewrites its part of ``pool_adaptive_table.json`` and the page
``POOL_ADAPTIVE_TABLE.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pool_adaptive_problems import ENTRIES
from pool_launches import Launch, launches
from pool_rows import ROOM_PER_BYTE, PoolTable

from gpuconv.backends.triton import backend as triton_backend
from gpuconv.kernels.tl.pool import (
    adaptive,
    adaptive_lines,
    axes,
    fractional,
    plane,
    unpool,
)
from gpuconv.problem import itemsize

WORDS = """
Adaptive and global pools, fractional ones, and unpooling. `per element` is what the hot loop of the first launch
executes for each element that it loads, and `room` what can be executed while 4.3 TB/s (a measured copy on an H200)
deliver it: `132 * 4 * 32 * 1.98e9 / 4.3e12 = 7.78` instructions of a thread per byte on 132 multiprocessors at 1.98
GHz, each issuing one instruction of 32 threads to each of 4 schedulers per clock.
"""


def room(launch: Launch, row: Mapping[str, Any], loop: tuple[int, int]) -> dict[str, float]:
    """Return what the loop of the first launch executes per element that it loads, and what there is room for."""
    instructions, loaded = loop
    if launch.number or not loaded:
        return {}
    size = itemsize(launch.problem.dtype)
    return {"per_element": round(instructions * size / loaded, 2), "room": round(ROOM_PER_BYTE * size, 1)}


def entries() -> dict[str, Launch]:
    """Return each launch of the plans for every problem, named after problem and kernel."""
    solvers = {solver.id: solver for solver in triton_backend.BACKEND.solvers()}
    return {
        f"{name} | {launch.kernel.__name__}": launch
        for name, (solver, problem) in ENTRIES.items()
        for launch in launches(solvers[solver].plan(problem))
    }


TABLE = PoolTable(
    "pool_adaptive_table",
    "Codegen table of adaptive, global, fractional and unpooling kernels",
    WORDS,
    "element",
    entries(),
    (axes, adaptive, adaptive_lines, fractional, plane, unpool),
    room,
)


if __name__ == "__main__":
    TABLE.main()
