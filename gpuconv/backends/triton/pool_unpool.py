"""The Triton solvers of max unpooling and of its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs import Work, direct_work
from ...packs import KernelReference
from ...problem import PoolProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import Strides, power_of_two
from .pool_adaptive import described, grid_of, tile_elements
from .pool_common import TritonPool, Workspace, launch_kernel, row_tile, strides_of_pool, wide_index

__all__ = ["SOLVERS", "UnpoolClaim", "UnpoolGather", "claim_arguments", "claim_type", "gather_arguments", "take_claims"]

_PROGRAMS = 4 * 132
"""How many programs unpooling looks for: four blocks of eight warps on each multiprocessor of an H100 or H200."""

_MOST_PARTS = 8
"""Into how many parts a plane is cut at most. Every part reads all indices of its plane, which L2 then holds."""

_PER_ELEMENT = 6
"""Instructions of a thread for each element that it writes, or reads to see whose it is: a guess."""


def even_spacing(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether the spatial positions of a tensor lie at one distance, in their order."""
    spatial = strides[2:]
    pairs = zip(spatial, spatial[1:], sizes[1:], strict=False)
    return all(outer == inner * count for outer, inner, count in pairs)


def claim_type(problem: PoolProblem) -> str:
    """Return the integer type of claims, which number the elements of a plane from 1.

    It is as wide as an element of y where that suffices, and claims then lie in y itself: 16 bits hold the numbers of
    planes of up to 65535 elements. Else claims take a workspace.
    """
    elements = prod(problem.input_size)
    own = itemsize(problem.dtype)
    if elements < {2: 2**16, 4: 2**31, 8: 2**63}[own]:
        return {2: "int16", 4: "int32", 8: "int64"}[own]
    return "int32" if elements < 2**31 else "int64"


def take_claims(space: Workspace, problem: PoolProblem, claim: str) -> Any:
    """Take claims of that type from a workspace, unless they lie in y itself, which has elements of the same size."""
    if itemsize(claim) == itemsize(problem.dtype):
        return None
    return space.take(problem.y_shape, claim, problem.y_format)


def claim_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of unpooling but its pointers.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``indices`` and ``y``.
    config
        The tile, see :meth:`UnpoolClaim.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    innermost = config["CHANNELS_INNERMOST"]
    lanes = problem.c if innermost else problem.n * problem.c
    large = prod(problem.output_size)
    steps = ceil_div(large, config["BLOCK_K"])
    arguments = described(problem, strides)
    for unused in ("y_stride_o", "y_stride_p"):
        del arguments[unused]
    return arguments | {
        "lanes": lanes,
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "parts": config["parts"],
        "positions_per_part": ceil_div(steps, config["parts"]) * config["BLOCK_K"],
        "CLAIM_BITS": 8 * itemsize(config["claim"]),
        "FLAT_X": even_spacing(problem.input_size, strides["x"]),
        "FLAT_INDICES": even_spacing(problem.input_size, strides["indices"]),
        "CHANNELS_INNERMOST": innermost,
        "INDEX64": bool(config.get("INDEX64")) or wide_index(problem, strides),
        "BLOCK_K": config["BLOCK_K"],
        "BLOCK_L": config["BLOCK_L"],
    }


class UnpoolClaim(TritonPool):
    """Max unpooling in which elements claim their places, so that the last of equal indices wins whoever runs first."""

    id = "triton.pool.max_unpool.fprop.claim"
    pools = ("max_unpool",)
    kind = "fprop"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        innermost = problem.y_format == CHANNELS_LAST
        lanes, groups = (problem.c, problem.n) if innermost else (problem.n * problem.c, 1)
        small, large = prod(problem.input_size), prod(problem.output_size)
        # Eight warps, 16 bytes of claims a thread; wider claims than values leave registers for no more.
        elements = max(256 * 16 // itemsize(claim_type(problem)), 1024)
        few = 32 if innermost else elements // min(power_of_two(small), elements)
        block_l = min(power_of_two(lanes), few)
        block_k = min(power_of_two(large), elements // block_l)
        programs = ceil_div(lanes, block_l) * groups
        parts = max(1, min(ceil_div(_PROGRAMS, max(programs, 1)), _MOST_PARTS, large // (4 * block_k)))
        return {
            "BLOCK_K": block_k, "BLOCK_L": block_l, "CHANNELS_INNERMOST": innermost, "parts": parts,
            "claim": claim_type(problem),
            "num_warps": 8 if block_k * block_l == elements else 4, "num_stages": 1,
        }  # fmt: skip

    def variants(self, problem: Problem) -> Iterable[dict[str, Any]]:
        # Blocks of positions and their parts belong together; channels are halved.
        default = self.default(problem)
        return [{**default, "BLOCK_L": default["BLOCK_L"] // 2}] if default["BLOCK_L"] > 1 else []

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        """Describe programs that first write their part of y, then read every element to see which it has."""
        assert isinstance(problem, PoolProblem)
        lanes, groups = problem.n * problem.c, 1
        if configs[0]["CHANNELS_INNERMOST"]:
            lanes, groups = problem.c, problem.n
        parts, lane, block = (
            np.array([config[name] for config in configs], float) for name in ("parts", "BLOCK_L", "BLOCK_K")
        )
        small, large = prod(problem.input_size), prod(problem.output_size)
        instructions = _PER_ELEMENT * problem.n * problem.c * (large + parts * small)
        warps = np.array([config["num_warps"] for config in configs], float)
        chain = 2 * small / block + large / parts / block
        return direct_work(problem, instructions, parts * groups * np.ceil(lanes / lane), chain, warps)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, PoolProblem)
        space = Workspace()
        take_claims(space, problem, config["claim"])
        return Plan(self, problem, space.used, dict(config))

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        import torch

        kernel = KernelReference("pool.unpool", "_pool_unpool_fprop_claim_kernel")
        arguments = claim_arguments(problem, strides_of_pool(tensors), config)
        groups = problem.n if arguments["CHANNELS_INNERMOST"] else 1
        pointers = {name: tensors[name] for name in ("x", "indices", "y")}
        pointers["claim"] = take_claims(Workspace(tensors.get("workspace")), problem, config["claim"])
        if pointers["claim"] is None:
            pointers["claim"] = tensors["y"].view(getattr(torch, config["claim"]))
        grid = (groups * arguments["tiles_l"] * arguments["parts"],)
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


def gather_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of the gradient but its pointers; see :func:`claim_arguments`."""
    lanes = problem.c if config["CHANNELS_INNERMOST"] else problem.input_size[-1]
    return described(problem, strides) | {
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "FLAT_Y": even_spacing(problem.output_size, strides["y"]),
        "CHANNELS_INNERMOST": config["CHANNELS_INNERMOST"],
        "INDEX64": bool(config.get("INDEX64")) or wide_index(problem, strides),
        "BLOCK_M": config["BLOCK_M"],
        "BLOCK_L": config["BLOCK_L"],
    }


class UnpoolGather(TritonPool):
    """The gradient of max unpooling: each element reads the gradient at its index."""

    id = "triton.pool.max_unpool.bwd.gather"
    pools = ("max_unpool",)
    kind = "bwd"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return row_tile(problem, problem.input_size, problem.x_format, tile_elements(problem.dtype))

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        kernel = KernelReference("pool.unpool", "_pool_unpool_bwd_gather_kernel")
        arguments = gather_arguments(problem, strides_of_pool(tensors), config)
        pointers = {name: tensors[name] for name in ("y", "indices", "dx")}
        launch_kernel(problem, kernel, grid_of(problem, arguments), pointers, arguments, config)


SOLVERS: tuple[Solver, ...] = (UnpoolClaim(), UnpoolGather())
