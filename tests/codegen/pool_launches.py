"""The launches that a pooling plan makes, recorded without running them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from gpuconv.arrays import TORCH
from gpuconv.backends.base import Plan
from gpuconv.backends.triton import (
    columns as triton_columns,
)
from gpuconv.backends.triton import (
    pool_adaptive,
    pool_fractional,
    pool_global,
    pool_tiled,
    pool_unpool,
    pool_windows,
)
from gpuconv.backends.triton.launch import for_triton
from gpuconv.problem import PoolProblem

POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip

LAUNCHING = (
    triton_columns, pool_adaptive, pool_fractional, pool_global, pool_tiled,
    pool_unpool, pool_windows,
)  # fmt: skip
"""Modules whose `launch_kernel` is recorded."""

_TILE = ("TILE_P", "TILE_Q", "BLOCK", "BLOCK_M", "BLOCK_K", "BLOCK_L", "BLOCK_W", "BLOCK_Q",
         "BLOCK_S", "LANES", "TT", "BC", "TQ")  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch of a plan: the kernel, every argument (pointers as types), and its options.

    `number` counts the launches of a plan from 0.
    """

    problem: PoolProblem
    solver: str
    number: int
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: dict[str, Any]

    @property
    def tile(self) -> str:
        """The tile in words."""
        return "x".join(str(self.arguments[name]) for name in _TILE if name in self.arguments)


def _empty(shape: tuple[int, ...], dtype: str, layout: str) -> torch.Tensor:
    return TORCH.empty(shape, dtype, "meta", layout)


def tensors_of(problem: PoolProblem, workspace: int) -> dict[str, torch.Tensor]:
    """Return tensors without memory, in the formats of the problem, for a launch."""
    tensors = {"y": _empty(problem.y_shape, problem.dtype, problem.y_format)}
    if problem.kind == "fprop" or problem.pool == "lp":
        tensors["x"] = _empty(problem.x_shape, problem.dtype, problem.x_format)
    if problem.kind == "bwd":
        tensors["dx"] = _empty(problem.x_shape, problem.dtype, problem.x_format)
    if problem.pool == "max_unpool":
        tensors["indices"] = _empty(problem.x_shape, "int64", problem.x_format)
    elif problem.return_indices or (problem.kind == "bwd" and problem.pool.endswith("max")):
        tensors["indices"] = _empty(problem.y_shape, problem.index_dtype, problem.y_format)
    if problem.pool == "fractional_max" and (problem.kind == "fprop" or problem.offsets):
        tensors["samples"] = _empty((problem.n, problem.c, problem.ndim), problem.dtype, "contiguous")
    if workspace:
        tensors["workspace"] = _empty((workspace,), "uint8", "contiguous")
    return tensors


def launches(plan: Plan, tensors: Mapping[str, torch.Tensor] | None = None) -> list[Launch]:
    """Return the launches of a plan, in order, on `tensors` or else on those that its problem describes."""
    problem: Any = plan.problem
    recorded: list[Launch] = []

    def record(
        _: Any, kernel: Any, grid: tuple[int, ...], pointers: Mapping[str, Any], arguments: Any, config: Any
    ) -> None:
        types = {f"{name}_ptr": t if t is None else POINTERS[t.dtype] for name, t in pointers.items()}
        everything = types | for_triton(arguments)
        recorded.append(Launch(problem, plan.solver.id, len(recorded), kernel.load(), grid, everything, dict(config)))

    with ExitStack() as stack:
        for module in LAUNCHING:
            stack.enter_context(mock.patch.object(module, "launch_kernel", record))
        given = tensors_of(problem, plan.workspace) if tensors is None else tensors
        plan.solver.launch(problem, given, plan.config)
    return recorded
