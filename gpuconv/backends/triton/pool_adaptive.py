"""The Triton solvers of adaptive pools: window by window, or with windows in splits, and their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs import Work, direct_work
from ...packs import KernelReference
from ...problem import PoolProblem, Problem, itemsize
from ...shapes import adaptive_windows, ceil_div
from ..axes import three
from ..base import Solver
from .common import Strides, power_of_two
from .pool_common import (
    TritonPool,
    compute_type,
    launch_kernel,
    pool_arguments,
    row_tile,
    strides_of_pool,
    triton_type,
    wide_index,
)

__all__ = [
    "SOLVERS",
    "Adaptive",
    "AdaptiveGather",
    "AdaptiveLines",
    "AdaptiveWindow",
    "adaptive_arguments",
    "column",
    "described",
    "grid_of",
    "lines_arguments",
    "products_fit",
    "tile_elements",
]

_WIDEST_LINE = 1024
"""Elements of the longest line that the solver of whole lines holds in registers."""

_WINDOWS_OF_LINE = 4
"""Windows along a line that it reduces at once."""


def tile_elements(dtype: str) -> int:
    """Return the elements of a tile of which each of 128 threads reads 16 bytes."""
    return 128 * 16 // itemsize(dtype)


def described(problem: PoolProblem, strides: Strides) -> dict[str, Any]:
    """Return sizes and strides by name, with strides of 0 for indices that are not there."""
    arguments = pool_arguments(problem, strides)
    axes = "ncdhw" if problem.pool == "max_unpool" else "ncopq"
    absent = {f"indices_stride_{axis}": 0 for axis in axes}
    return absent | {name: value for name, value in arguments.items() if name.islower() and name[:4] != "pad_"}


@lru_cache(maxsize=1024)
def _most(size: int, windows: int) -> int:
    """Return the elements of the largest of `windows` over `size` positions; swapped, the most that overlap."""
    starts, ends = adaptive_windows(size, windows)
    return max((end - start for start, end in zip(starts, ends)), default=0)


def products_fit(problem: PoolProblem) -> bool:
    """Tell whether the products of an input and an output size, of which window bounds are made, fit in 32 bits."""
    axes = zip(problem.input_size, problem.output_size, strict=True)
    return all((size + 1) * (out + 1) < 2**31 for size, out in axes)


def adaptive_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the window kernel, or backward of the gathering kernel, but pointers and ACC_DTYPE.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x`` or ``dx``, ``y`` and ``indices``.
    config
        The tile, see :meth:`AdaptiveWindow.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    forward = problem.kind == "fprop"
    lanes = problem.c if config["CHANNELS_INNERMOST"] else (problem.output_size if forward else problem.input_size)[-1]
    arguments = described(problem, strides) | {
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "POOL": "max" if problem.pool == "adaptive_max" else "avg",
        "OFFSETS": problem.offsets,
        "INDEX64": bool(config.get("INDEX64")) or not products_fit(problem) or wide_index(problem, strides),
    }
    window = three(problem.kernel, 1)
    if forward:
        arguments |= zip(("window_t", "window_r", "window_s"), window, strict=True)
    else:
        most = [_most(out, size) for size, out in zip(problem.input_size, problem.output_size, strict=True)]
        arguments |= zip(("most_o", "most_p", "most_q"), three(most, 1), strict=True)
        arguments |= {"window_r": window[1], "window_s": window[2]}
    return arguments | {name: config[name] for name in ("CHANNELS_INNERMOST", "BLOCK_M", "BLOCK_L")}


def lines_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of whole lines but pointers and ACC_DTYPE; see :func:`adaptive_arguments`."""
    keys = prod(problem.kernel[:-1]) * problem.input_size[-1]
    wide = not products_fit(problem) or wide_index(problem, strides, keys)
    arguments = described(problem, strides) | {
        "POOL": "max" if problem.pool == "adaptive_max" else "avg",
        "OFFSETS": problem.offsets,
        "INDEX64": bool(config.get("INDEX64")) or wide,
    }
    arguments |= zip(("window_t", "window_r", "window_s"), three(problem.kernel, 1), strict=True)
    return arguments | {name: config[name] for name in ("BLOCK_M", "BLOCK_W", "BLOCK_Q")}


def column(configs: Sequence[Mapping[str, Any]], *names: str) -> np.ndarray:
    """Return the product of some of the numbers of each config."""
    return np.array([prod(config[name] for name in names) for config in configs], float)


def grid_of(problem: PoolProblem, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the grid of a kernel whose tiles cover the result."""
    sizes = problem.output_size if problem.kind == "fprop" else problem.input_size
    lanes = problem.c if arguments["CHANNELS_INNERMOST"] else sizes[-1]
    rows = problem.n * problem.c * prod(sizes) // max(lanes, 1)
    return (ceil_div(rows, arguments["BLOCK_M"]) * arguments["tiles_l"],)


class Adaptive(TritonPool):
    """A solver of adaptive pools."""

    pools = ("adaptive_avg", "adaptive_max")


class AdaptiveWindow(Adaptive):
    """Adaptive pools, each output of which walks through its window: any strides."""

    id = "triton.pool.adaptive.fprop.window"
    kind = "fprop"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return row_tile(problem, problem.output_size, problem.y_format, tile_elements(problem.dtype))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, PoolProblem)
        # Channels are read 16 bytes at a time, other lanes element by element.
        cost = (4 if configs[0]["CHANNELS_INNERMOST"] else 10) + 4 * problem.return_indices
        programs = np.ceil(prod(problem.y_shape) / column(configs, "BLOCK_M", "BLOCK_L"))
        warps = column(configs, "num_warps")
        return direct_work(problem, prod(problem.x_shape) * cost, programs, prod(problem.kernel), warps)

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.adaptive", "_pool_adaptive_fprop_window_kernel")
        arguments = adaptive_arguments(problem, strides_of_pool(tensors), config)
        grid = grid_of(problem, arguments)
        arguments["ACC_DTYPE"] = triton_type(compute_type(problem.dtype))
        pointers = {name: tensors.get(name) for name in ("x", "y", "indices")}
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


class AdaptiveLines(Adaptive):
    """Adaptive pools of contiguous tensors: lines of x, read 16 bytes at a time, over the rows of a window first."""

    id = "triton.pool.adaptive.fprop.lines"
    kind = "fprop"

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is None and isinstance(problem, PoolProblem):
            if problem.x_format == CHANNELS_LAST:
                return "reads contiguous tensors, not channels-last ones"
            if problem.input_size[-1] > _WIDEST_LINE:
                return f"holds lines of up to {_WIDEST_LINE} elements, not {problem.input_size[-1]}"
        return reason

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, PoolProblem)
        rows = prod(problem.kernel[:-1])
        masked = ceil_div(problem.output_size[-1], _WINDOWS_OF_LINE) * _WINDOWS_OF_LINE / rows
        cost = 6 + 8 * masked if problem.return_indices else 4 + 3 * masked
        programs = np.ceil(prod(problem.y_shape[:-1]) / column(configs, "BLOCK_M"))
        return direct_work(problem, prod(problem.x_shape) * cost, programs, rows, column(configs, "num_warps"))

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        block_w = power_of_two(problem.input_size[-1])
        elements = tile_elements(problem.dtype)
        block_m = min(power_of_two(prod(problem.y_shape[:-1])), max(elements // block_w, 1))
        block_q = min(power_of_two(problem.output_size[-1]), _WINDOWS_OF_LINE)
        return {"BLOCK_M": block_m, "BLOCK_W": block_w, "BLOCK_Q": block_q, "num_warps": 4, "num_stages": 3}

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.adaptive_lines", "_pool_adaptive_fprop_lines_kernel")
        arguments = lines_arguments(problem, strides_of_pool(tensors), config)
        arguments["ACC_DTYPE"] = triton_type(compute_type(problem.dtype))
        pointers = {name: tensors.get(name) for name in ("x", "y", "indices")}
        grid = (ceil_div(prod(problem.y_shape[:-1]), config["BLOCK_M"]),)
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


class AdaptiveGather(Adaptive):
    """Gradients of adaptive pools: every input position gathers from the windows that contain it."""

    id = "triton.pool.adaptive.bwd.gather"
    kind = "bwd"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return row_tile(problem, problem.input_size, problem.x_format, tile_elements(problem.dtype))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, PoolProblem)
        # What a position waits for are the windows that it is in, however long they are.
        windows = prod(_most(out, size) for size, out in zip(problem.input_size, problem.output_size, strict=True))
        cost = (4 if configs[0]["CHANNELS_INNERMOST"] else 10) + 4 * (problem.pool == "adaptive_max")
        programs = np.ceil(prod(problem.x_shape) / column(configs, "BLOCK_M", "BLOCK_L"))
        instructions = prod(problem.x_shape) * windows * cost
        return direct_work(problem, instructions, programs, windows, column(configs, "num_warps"))

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.adaptive", "_pool_adaptive_bwd_gather_kernel")
        arguments = adaptive_arguments(problem, strides_of_pool(tensors), config)
        grid = grid_of(problem, arguments)
        arguments["ACC_DTYPE"] = triton_type(compute_type(problem.dtype))
        pointers = {name: tensors.get(name) for name in ("y", "indices", "dx")}
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


SOLVERS: tuple[Solver, ...] = (AdaptiveWindow(), AdaptiveLines(), AdaptiveGather())
