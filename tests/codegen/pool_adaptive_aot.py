"""Compile what the solvers of adaptive, global, fractional and unpooling problems launch, without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import triton
from aot import CUOBJDUMP, report, specialise
from triton.backends.compiler import GPUTarget

from gpuconv.arrays import TORCH
from gpuconv.backends import triton_pool_adaptive, triton_pool_fractional, triton_pool_global, triton_pool_unpool
from gpuconv.backends.base import Plan
from gpuconv.problem import PoolProblem

MODULES = (triton_pool_adaptive, triton_pool_global, triton_pool_unpool, triton_pool_fractional)

POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def _meta(shape: tuple[int, ...], dtype: str, layout: str) -> torch.Tensor:
    return TORCH.empty(shape, dtype, "meta", layout)


def tensors_of(problem: PoolProblem, plan: Plan) -> dict[str, torch.Tensor]:
    """Return tensors without memory of a problem, as the dispatcher would pass them to the solver."""
    x = _meta(problem.x_shape, problem.dtype, problem.x_format)
    tensors = {"x" if problem.kind == "fprop" else "dx": x}
    tensors["y"] = _meta(problem.y_shape, problem.dtype, problem.y_format)
    if problem.pool == "max_unpool":
        tensors["indices"] = _meta(problem.x_shape, "int64", problem.x_format)
    elif problem.return_indices or (problem.kind == "bwd" and problem.pool.endswith("max")):
        tensors["indices"] = _meta(problem.y_shape, problem.index_dtype, problem.y_format)
    if problem.pool == "fractional_max" and (problem.kind == "fprop" or problem.offsets):
        tensors["samples"] = _meta((problem.n, problem.c, problem.ndim), problem.dtype, "contiguous")
    if plan.workspace:
        tensors["workspace"] = _meta((plan.workspace,), "uint8", "contiguous")
    return tensors


def launches(plan: Plan, problem: PoolProblem, config: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """Return (kernel, arguments with pointers as types, configuration, grid) of every launch of a plan."""
    caught: list[tuple[Any, ...]] = []

    def catch(_: Any, kernel: Any, grid: Any, pointers: Any, arguments: Any, options: Any) -> None:
        types = {f"{name}_ptr": None if t is None else POINTERS[t.dtype] for name, t in pointers.items()}
        caught.append((kernel, types | dict(arguments), options, grid))

    originals = [module.launch_kernel for module in MODULES]
    for module in MODULES:
        module.launch_kernel = catch
    try:
        plan.solver.launch(problem, tensors_of(problem, plan), config or plan.config)
    finally:
        for module, original in zip(MODULES, originals, strict=True):
            module.launch_kernel = original
    return caught


def compile_launch(kernel: Any, arguments: Mapping[str, Any], config: Mapping[str, Any], capability: int) -> Any:
    """Compile one launch and return the row of the report, with global loads and stores by width in bits."""
    options = {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
    source = specialise(kernel, arguments)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    row: dict[str, Any] = report(compiled).row()
    del row["wide_async"]
    for kind, operation in (("loads", "ld"), ("stores", "st")):
        widths: Counter[int] = Counter()
        for found in re.findall(operation + r"\.global[\w.:]*?((?:\.v\d)?\.[bfsu]\d+)", compiled.asm["ptx"]):
            vector, _, scalar = found.rpartition(".")
            widths[int(vector[2:] or 1) * int(scalar[1:])] += 1
        row[kind] = {str(width): count for width, count in sorted(widths.items(), reverse=True)}
    return row | {"loop": _loop(compiled)}


def _loop(compiled: Any) -> dict[str, int]:
    """Return how many instructions the innermost loop that loads most has, and how many bytes a thread loads there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-sass", cubin.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);", re.MULTILINE)
    code = [(int(address, 16), operation, rest) for address, operation, rest in line.findall(sass)]
    best = {"instructions": 0, "bytes": 0}
    for address, operation, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if operation.startswith("BRA") else None
        if target is None or int(target[1], 16) >= address:
            continue
        body = [op for place, op, _ in code if int(target[1], 16) <= place <= address]
        loaded = sum(_width(op) for op in body if op.startswith("LDG"))
        if loaded and (not best["bytes"] or len(body) / loaded < best["instructions"] / best["bytes"]):
            best = {"instructions": len(body), "bytes": loaded}
    return best


def _width(operation: str) -> int:
    """Return the bytes that a global load reads."""
    for part, size in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in operation.split(".")[1:]:
            return size
    return 4
