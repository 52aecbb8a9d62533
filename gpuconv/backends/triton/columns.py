"""The Triton solvers of unfold and fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ... import shapes
from ...arrays import CHANNELS_LAST, CONTIGUOUS
from ...costs import Work, direct_work
from ...packs import KernelReference
from ...problem import PoolProblem, Problem
from ...shapes import ceil_div
from ..axes import reach
from ..base import Plan, Solver
from .common import (
    as_tensor,
    power_of_two,
)
from .pool_adaptive import tile_elements
from .pool_common import TritonPool, compute_type, launch_kernel, triton_type

__all__ = ["SOLVERS", "FoldGather", "UnfoldCopy", "columns_shape", "fold_arguments", "unfold_arguments"]

_PER_ELEMENT = 20
"""Instructions of a thread per element of the columns, between what compiled kernels have of either memory format."""

_PROGRAMS = 4 * 132
"""How many programs a launch looks for: four blocks on each multiprocessor of an H100 or H200."""


def columns_shape(problem: PoolProblem) -> tuple[int, int, int]:
    """Return the shape of the columns, ``(N, C R S, P Q)``."""
    return shapes.columns_shape(problem.n, problem.c, problem.kernel, problem.output_size)


def _arguments(
    problem: PoolProblem, shape: Sequence[int], strides: Sequence[int], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that both kernels take, but the strides; `shape` and `strides` are the operand's."""
    lanes = prod(problem.output_size if problem.pool == "unfold" else problem.input_size)
    arguments: dict[str, Any] = {"n": problem.n, "c": problem.c}
    arguments |= zip("hw", problem.input_size, strict=True)
    arguments |= zip("pq", problem.output_size, strict=True)
    arguments |= zip(("pad_h", "pad_w"), problem.pad_lo, strict=True)
    arguments |= zip("RS", problem.kernel, strict=True)
    arguments |= zip(("STRIDE_H", "STRIDE_W"), problem.stride, strict=True)
    arguments |= zip(("DILATION_H", "DILATION_W"), problem.dilation, strict=True)
    # Tiles reach over the end of a tensor, by less than 2**20 elements and rows.
    most = max(prod(columns_shape(problem)), prod(problem.x_shape), reach(shape, strides)) + 2**20
    return arguments | {
        "lanes": lanes,
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "INDEX64": bool(config.get("INDEX64")) or most >= 2**31,
        "BLOCK_M": config["BLOCK_M"],
        "BLOCK_L": config["BLOCK_L"],
    }


def unfold_arguments(problem: PoolProblem, strides: Sequence[int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of unfold but its pointers; `strides` are those of x, in elements."""
    named = zip(("x_stride_n", "x_stride_c", "x_stride_h", "x_stride_w"), strides, strict=True)
    arguments = _arguments(problem, problem.x_shape, strides, config)
    return arguments | dict(named) | {"CHANNELS_INNERMOST": problem.x_format == CHANNELS_LAST}


def fold_arguments(problem: PoolProblem, strides: Sequence[int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of fold but its pointers; `strides` are those of the columns."""
    named = zip(("y_stride_n", "y_stride_k", "y_stride_l"), strides, strict=True)
    arguments = _arguments(problem, columns_shape(problem), strides, config)
    return arguments | dict(named) | {"SUM_TYPE": triton_type(compute_type(problem.dtype))}


class _Columns(TritonPool):
    """A solver one side of which are columns."""

    kind = "fprop"
    share: int
    """How many times the elements of 16 bytes per thread a tile has."""

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        rows, lanes = self.extent(problem)
        block_l = min(power_of_two(lanes), 128)
        # Rows share what their lanes are computed from, unless programs are few. More of them take all registers.
        share = 1 if problem.index64 else self.share
        block_m = min(power_of_two(rows), share * tile_elements(problem.dtype) // block_l)
        while block_m > 1 and ceil_div(rows, block_m) * ceil_div(lanes, block_l) < _PROGRAMS:
            block_m //= 2
        return {"BLOCK_M": block_m, "BLOCK_L": block_l, "num_warps": 4, "num_stages": 3}

    def extent(self, problem: PoolProblem) -> tuple[int, int]:
        """Return the rows and lanes of the result."""
        raise NotImplementedError

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        """Describe programs that each copy or add a tile; the columns move beside the image."""
        assert isinstance(problem, PoolProblem)
        columns = prod(columns_shape(problem))
        tiles = np.array([config["BLOCK_M"] * config["BLOCK_L"] for config in configs], float)
        warps = np.array([config["num_warps"] for config in configs], float)
        return direct_work(problem, columns * _PER_ELEMENT, np.ceil(prod(self.extent(problem)) / tiles), 1, warps)

    def _run(self, plan: Plan, call: Any) -> Any:
        import torch

        problem = plan.problem
        assert isinstance(problem, PoolProblem)
        shape = columns_shape(problem) if problem.pool == "unfold" else problem.x_shape
        result = call.kind.empty(shape, problem.dtype, problem.device, CONTIGUOUS)
        if 0 not in shape:
            tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
            tensors["y" if problem.pool == "unfold" else "x"] = as_tensor(torch, result)
            self.launch(problem, tensors, plan.config)
        return result


class UnfoldCopy(_Columns):
    """unfold: each element of the columns is copied from the image, any strides."""

    id = "triton.pool.unfold.fprop.copy"
    pools = ("unfold",)
    share = 4

    def extent(self, problem: PoolProblem) -> tuple[int, int]:
        n, k, columns = columns_shape(problem)
        return n * k, columns

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.columns", "_unfold_kernel")
        arguments = unfold_arguments(problem, tensors["x"].stride(), config)
        grid = (ceil_div(self.extent(problem)[0], config["BLOCK_M"]) * arguments["tiles_l"],)
        launch_kernel(problem, kernel, grid, {name: tensors[name] for name in ("x", "y")}, arguments, config)


class FoldGather(_Columns):
    """fold: each element of the image adds the columns that it is in."""

    id = "triton.pool.fold.fprop.gather"
    pools = ("fold",)
    share = 2

    def extent(self, problem: PoolProblem) -> tuple[int, int]:
        return problem.n * problem.c, prod(problem.input_size)

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.columns", "_fold_kernel")
        arguments = fold_arguments(problem, tensors["y"].stride(), config)
        grid = (ceil_div(self.extent(problem)[0], config["BLOCK_M"]) * arguments["tiles_l"],)
        launch_kernel(problem, kernel, grid, {name: tensors[name] for name in ("y", "x")}, arguments, config)


SOLVERS: tuple[Solver, ...] = (UnfoldCopy(), FoldGather())
