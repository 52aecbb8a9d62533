"""The launches that a pooling plan makes, recorded without running them, and what the compiler makes of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from aot import CUOBJDUMP, report, specialise
from triton.backends.compiler import GPUTarget

from gpuconv.arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from gpuconv.backends import triton_pool_tiled, triton_pool_windows
from gpuconv.backends.triton_common import launch_options
from gpuconv.dispatch import select
from gpuconv.problem import PoolProblem

POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.uint8: "*u8", torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip

LAUNCHING = (triton_pool_tiled, triton_pool_windows)
"""Modules whose `launch_kernel` is recorded."""


@dataclass(frozen=True)
class Launch:
    """One launch of a plan: the kernel, every argument (pointers as types), and its options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: dict[str, Any]


def _empty(shape: tuple[int, ...], layout: str, dtype: str) -> torch.Tensor:
    strides = channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)
    return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device="meta")


def tensors_of(problem: PoolProblem, workspace: int) -> dict[str, torch.Tensor]:
    """Return tensors without memory, in the formats of the problem, for a launch."""
    tensors = {"y": _empty(problem.y_shape, problem.y_format, problem.dtype)}
    if problem.kind == "fprop" or problem.pool == "lp":
        tensors["x"] = _empty(problem.x_shape, problem.x_format, problem.dtype)
    if problem.kind == "bwd":
        tensors["dx"] = _empty(problem.x_shape, problem.x_format, problem.dtype)
    if problem.return_indices or (problem.kind == "bwd" and problem.pool == "max"):
        tensors["indices"] = _empty(problem.y_shape, problem.y_format, problem.index_dtype)
    if workspace:
        tensors["workspace"] = torch.empty(workspace, dtype=torch.uint8, device="meta")
    return tensors


def launches(problem: PoolProblem, solver: str | None = None) -> tuple[str, list[Launch]]:
    """Return the id of the solver that the dispatcher picks for `problem`, or of `solver`, and its launches."""
    plan = select(problem, solver or "triton")
    recorded: list[Launch] = []

    def record(
        problem: Any, kernel: Any, grid: tuple[int, ...], pointers: Mapping[str, Any], arguments: Any, config: Any
    ) -> None:
        types = {f"{name}_ptr": t if t is None else POINTERS[t.dtype] for name, t in pointers.items()}
        recorded.append(Launch(kernel, grid, types | dict(arguments), dict(config)))

    with (
        mock.patch.multiple(LAUNCHING[0], launch_kernel=record),
        mock.patch.multiple(LAUNCHING[1], launch_kernel=record),
    ):
        plan.solver.launch(problem, tensors_of(problem, plan.workspace), plan.config)
    return plan.solver.id, recorded


def compiled(launch: Launch, capability: int) -> Any:
    """Compile a launch for one compute capability, such as 90."""
    source = specialise(launch.kernel, launch.arguments)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch_options(launch.config))


def accesses(kernel: Any) -> dict[str, int]:
    """Count the loads from and stores to global memory in the SASS of a compiled kernel, by width in bits, and NOP."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        sass = subprocess.run([CUOBJDUMP, "--dump-sass", cubin], capture_output=True, text=True, check=True).stdout
    counts: dict[str, int] = {}
    for kind, rest in re.findall(r"\b(LDG|STG)([A-Z0-9_.]*)", sass):
        width = re.search(r"\.(U8|S8|U16|S16|64|128)\b", rest)
        name = f"{kind}{width[1].lstrip('US') if width else '32'}"
        counts[name] = counts.get(name, 0) + 1
    return counts | {"NOP": len(re.findall(r"\bNOP\b", sass))}


__all__ = ["Launch", "accesses", "compiled", "launches", "report", "tensors_of"]
