"""The codegen table of unfold and fold.

``python tests/codegen/columns_table.py`` recompiles with the installed Triton every launch whose kernel or plan changed
(``--all``: every launch) and rewrites its part of ``columns_table.json`` and the page ``COLUMNS_TABLE.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from pool_launches import Launch, launches
from pool_rows import ROOM_PER_BYTE, PoolTable

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS, TORCH
from gpuconv.backends.triton.columns import FoldGather, UnfoldCopy, columns_shape
from gpuconv.kernels.tl.pool import axes as pool_axes
from gpuconv.kernels.tl.pool import columns
from gpuconv.problem import PoolProblem, itemsize
from gpuconv.shapes import conv_output_size, map_axes

WORDS = """
`room` is how many instructions of a thread can be executed while 4.3 TB/s (a measured copy on an H200) read and write
what one result needs, `132 * 4 * 32 * 1.98e9 / 4.3e12 = 7.78` per byte on 132 multiprocessors at 1.98 GHz, each issuing
one instruction of 32 threads to each of 4 schedulers per clock. Of a kernel without loops, which unfold is, its
instructions over the results of one thread are what it executes per result; those of fold follow from its windows.
"""

SOLVERS = {"unfold": UnfoldCopy(), "fold": FoldGather()}

WINDOWS = {
    "3x3": (3, 1, 1, 1),
    "3x3/s2": (3, 2, 1, 1),
    "patches of 16": (16, 16, 0, 1),
    "dilated 3x3": (3, 1, 2, 2),
}
"""Window, stride, padding and dilation of an axis."""


def problem_of(
    pool: str, window: str, dtype: str, layout: str, n: int = 32, size: tuple[int, int] = (56, 56)
) -> PoolProblem:
    """Describe unfold or fold of `n` images of 64 channels on a GPU, as the functions would."""
    axes = [(value, value) for value in WINDOWS[window]]
    kernel, stride, padding, dilation = axes
    output = map_axes(conv_output_size, size, kernel, stride, padding, padding, dilation)
    return PoolProblem(
        pool, pool, "fprop", n, 64, size, kernel, output, stride, padding, padding, dilation, dtype, "cuda:0", "torch",
        layout, CONTIGUOUS,
    )  # fmt: skip


def problems() -> Iterator[tuple[str, PoolProblem]]:
    """Yield the name and problem of each entry."""
    for pool in SOLVERS:
        for window in WINDOWS:
            size = (64, 64) if window.startswith("patches") else (56, 56)
            for layout in (CONTIGUOUS, CHANNELS_LAST)[: 2 if pool == "unfold" else 1]:
                yield f"{pool} {window} float16 {layout}", problem_of(pool, window, "float16", layout, size=size)
        for dtype in ("bfloat16", "float32", "float64"):
            yield f"{pool} 3x3 {dtype} contiguous", problem_of(pool, "3x3", dtype, CONTIGUOUS)
        yield f"{pool} 3x3 float16 odd width", problem_of(pool, "3x3", "float16", CONTIGUOUS, size=(55, 57))
        yield f"{pool} 3x3 float16 64-bit", problem_of(pool, "3x3", "float16", CONTIGUOUS, n=1200)


def tensors_of(problem: PoolProblem) -> dict[str, torch.Tensor]:
    """Return tensors without memory for a launch."""
    shapes = {"x": (problem.x_shape, problem.x_format), "y": (columns_shape(problem), CONTIGUOUS)}
    return {name: TORCH.empty(shape, problem.dtype, "meta", layout) for name, (shape, layout) in shapes.items()}


def entries() -> dict[str, Launch]:
    """Return the launch of the plan for every problem, by name."""
    found = {}
    for name, problem in problems():
        plan = SOLVERS[problem.pool].plan(problem)
        (found[name],) = launches(plan, tensors_of(problem))
    return found


def room(launch: Launch, row: Mapping[str, Any], loop: tuple[int, int]) -> dict[str, float]:
    """Return what a result of unfold costs, and what there is room for: its write, and its share of the read."""
    problem = launch.problem
    if problem.pool == "fold":
        return {}
    results = launch.config["BLOCK_M"] * launch.config["BLOCK_L"] / (32 * launch.config["num_warps"])
    moved = itemsize(problem.dtype) * (1 + prod(problem.x_shape) / prod(columns_shape(problem)))
    return {"per_result": round(row["instructions"] / results, 1), "room": round(ROOM_PER_BYTE * moved, 1)}


TABLE = PoolTable(
    "columns_table", "Codegen table of unfold and fold", WORDS, "result", entries(), (pool_axes, columns), room
)


if __name__ == "__main__":
    TABLE.main()
