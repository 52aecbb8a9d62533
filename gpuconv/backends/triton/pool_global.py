"""The Triton solver of global pools, and of adaptive pools whose windows are few or large: windows in splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...config import workspace_limit
from ...costs import Work, direct_work
from ...packs import KernelReference
from ...problem import PoolProblem, Problem
from ...shapes import ceil_div
from ..axes import three
from ..base import Plan, Solver
from .common import Strides, power_of_two
from .pool_adaptive import Adaptive, column, described, products_fit, tile_elements
from .pool_common import Workspace, compute_type, launch_kernel, strides_of_pool, triton_type, wide_index
from .tuned import block_variants, split_variants

__all__ = ["SOLVERS", "AdaptiveSplit", "combine_arguments", "partial_arguments", "take_partial"]

_PROGRAMS = 8 * 132
"""How many programs windows are split into: eight blocks of four warps for each multiprocessor of an H100 or H200."""

_LEAST_STEPS = 4
"""Steps of a split at least, so that its partial results cost little beside what it reads."""

_REDUCTION = 20
"""Instructions of a warp in which a program reduces its tile across threads: a guess."""

_COMBINE_BLOCK = 256
"""Outputs of one program of the pass that combines splits."""


def _index_type(problem: PoolProblem) -> str:
    return "int64" if prod(problem.input_size) >= 2**31 else "int32"


def _lanes_groups(problem: PoolProblem, innermost: bool) -> tuple[int, int]:
    """Return the lanes of the kernel, and the groups of programs that each have a window of all lanes."""
    cells = prod(problem.output_size)
    return (problem.c, problem.n * cells) if innermost else (problem.n * problem.c, cells)


def _tile(problem: PoolProblem) -> dict[str, Any]:
    """Return the tile: wide in the axis along which elements lie side by side, channels or the window."""
    innermost = problem.x_format == CHANNELS_LAST
    elements = tile_elements(problem.dtype)
    lanes, _ = _lanes_groups(problem, innermost)
    if innermost:
        block_l = min(power_of_two(lanes), 64)
        block_k = min(power_of_two(prod(problem.kernel)), elements // block_l)
    else:
        block_k = min(power_of_two(prod(problem.kernel)), elements)
        block_l = min(power_of_two(lanes), elements // block_k)
    return {
        "BLOCK_K": max(block_k, 1), "BLOCK_L": block_l, "CHANNELS_INNERMOST": innermost,
        "num_warps": 4, "num_stages": 3,
    }  # fmt: skip


def _split_bytes(problem: PoolProblem) -> int:
    """Return the bytes of the partial results of one split."""
    each = 8 if problem.dtype == "float64" else 4
    if problem.return_indices:
        each += 8 if _index_type(problem) == "int64" else 4
    return prod(problem.y_shape) * each


def _steps(problem: PoolProblem, config: Mapping[str, Any]) -> int:
    return ceil_div(prod(problem.kernel), config["BLOCK_K"])


def _programs(problem: PoolProblem, config: Mapping[str, Any]) -> int:
    """Return the programs of one split."""
    lanes, groups = _lanes_groups(problem, config["CHANNELS_INNERMOST"])
    return ceil_div(lanes, config["BLOCK_L"]) * groups


def _splits(problem: PoolProblem, config: Mapping[str, Any]) -> int:
    """Return how many splits fill the GPU, none empty, within the workspace limit."""
    steps = _steps(problem, config)
    wanted = min(ceil_div(_PROGRAMS, max(_programs(problem, config), 1)), steps // _LEAST_STEPS)
    wanted = min(wanted, workspace_limit() // max(_split_bytes(problem) + 512, 1))
    return 1 if wanted < 2 else ceil_div(steps, ceil_div(steps, wanted))


def _flat(problem: PoolProblem, steps: tuple[int, ...]) -> bool:
    """Tell whether each window is a whole plane whose elements lie at one distance, in their order."""
    if any(out != 1 for out in problem.output_size):
        return False
    spatial, size = steps[2:], problem.input_size
    pairs = zip(spatial, spatial[1:], size[1:], strict=False)
    return all(outer == inner * count or count == 0 for outer, inner, count in pairs)


def partial_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of one split but pointers and ACC_DTYPE.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``y`` and ``indices``.
    config
        The tile and the splits, see :meth:`AdaptiveSplit.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    lanes, groups = _lanes_groups(problem, config["CHANNELS_INNERMOST"])
    window = three(problem.kernel, 1)
    partial = config["splits"] * prod(problem.y_shape)
    wide = not products_fit(problem) or wide_index(problem, strides, partial)
    return described(problem, strides) | {
        "plane": prod(problem.input_size),
        "lanes": lanes,
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "groups": groups,
        "elements_per_split": ceil_div(_steps(problem, config), config["splits"]) * config["BLOCK_K"],
        "window_r": window[1],
        "window_s": window[2],
        "POOL": "max" if problem.pool == "adaptive_max" else "avg",
        "OFFSETS": problem.offsets,
        "FLAT": _flat(problem, tuple(strides["x"])),
        "FINAL": config["splits"] == 1,
        "CHANNELS_INNERMOST": config["CHANNELS_INNERMOST"],
        "INDEX64": bool(config.get("INDEX64")) or wide,
        "BLOCK_K": config["BLOCK_K"],
        "BLOCK_L": config["BLOCK_L"],
    }


def combine_arguments(arguments: Mapping[str, Any], splits: int) -> dict[str, Any]:
    """Return every argument of the kernel that combines splits but its pointers, from those of the splits."""
    axes = [f"{name}_stride_{axis}" for name in ("y", "indices") for axis in "ncopq"]
    same = (*"ncdhwopq", "window_r", "window_s", *axes, "POOL", "OFFSETS", "CHANNELS_INNERMOST", "INDEX64")
    return {name: arguments[name] for name in same} | {"splits": splits, "BLOCK": _COMBINE_BLOCK}


class AdaptiveSplit(Adaptive):
    """Adaptive pools with windows in splits, as many as fill the GPU, which a second pass combines in order."""

    id = "triton.pool.adaptive.fprop.split"
    kind = "fprop"

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, PoolProblem)
        splits = column(configs, "splits")
        steps = np.ceil(np.ceil(prod(problem.kernel) / column(configs, "BLOCK_K")) / splits)
        lanes, groups = _lanes_groups(problem, configs[0]["CHANNELS_INNERMOST"])
        # Windows that are not whole planes cost divisions, and loads of single elements where lanes are not channels.
        whole = all(out == 1 for out in problem.output_size)
        cost = (4 if whole or configs[0]["CHANNELS_INNERMOST"] else 30) + 4 * problem.return_indices
        programs = np.ceil(lanes / column(configs, "BLOCK_L")) * groups * splits
        between = np.where(splits > 1, 2 * splits * _split_bytes(problem), 0)
        warps, launches = column(configs, "num_warps"), 1 + (splits > 1)
        instructions = prod(problem.x_shape) * cost + _REDUCTION * 32 * warps * programs
        return direct_work(problem, instructions, programs, steps, warps, launches, between)

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        config = _tile(problem)
        return config | {"splits": _splits(problem, config)}

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, PoolProblem)
        most = workspace_limit() // (_split_bytes(problem) + 512)
        for config in block_variants(self.default(problem), "BLOCK_K"):
            for splits in split_variants(_splits(problem, config), _steps(problem, config), most):
                yield config | {"splits": splits}

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, PoolProblem)
        space = Workspace()
        if config["splits"] > 1:
            take_partial(space, problem, config["splits"])
        return Plan(self, problem, space.used, dict(config))

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        splits = config["splits"]
        arguments = partial_arguments(problem, strides_of_pool(tensors), config)
        arguments["ACC_DTYPE"] = triton_type(compute_type(problem.dtype))
        grid = (splits * arguments["groups"] * arguments["tiles_l"],)
        results = {name: tensors.get(name) for name in ("y", "indices")}
        partial = dict(results)
        if splits > 1:
            partial["y"], partial["indices"] = take_partial(Workspace(tensors["workspace"]), problem, splits)
        kernel = KernelReference("pool.plane", "_pool_global_fprop_partial_kernel")
        launch_kernel(problem, kernel, grid, {"x": tensors["x"]} | partial, arguments, config)
        if splits > 1:
            pointers = {"partial": partial["y"], "partial_indices": partial["indices"]} | results
            arguments = combine_arguments(arguments, splits)
            grid = (ceil_div(prod(problem.y_shape), _COMBINE_BLOCK),)
            kernel = KernelReference("pool.plane", "_pool_global_fprop_combine_kernel")
            launch_kernel(problem, kernel, grid, pointers, arguments, config)


def take_partial(space: Workspace, problem: PoolProblem, splits: int) -> tuple[Any, Any]:
    """Take the partial values of `splits` splits and, where the problem returns indices, theirs from a workspace."""
    shape = (splits, prod(problem.y_shape))
    values = space.take(shape, compute_type(problem.dtype), "contiguous")
    return values, space.take(shape, _index_type(problem), "contiguous") if problem.return_indices else None


SOLVERS: tuple[Solver, ...] = (AdaptiveSplit(),)
