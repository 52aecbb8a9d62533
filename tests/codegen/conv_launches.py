"""The launches that a convolution plan makes, recorded without running them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from pool_launches import POINTERS, Launch

from gpuconv.arrays import CONTIGUOUS, TORCH
from gpuconv.backends.base import Plan
from gpuconv.backends.triton.launch import for_triton


def launches_of(plan: Plan, modules: Iterable[ModuleType]) -> list[Launch]:
    """Return the launches of a plan of a solver in one of `modules`, in order, on tensors without memory."""
    problem: Any = plan.problem
    recorded: list[Launch] = []

    def record(
        _: Any, kernel: Any, grid: tuple[int, ...], pointers: Mapping[str, Any], arguments: Any, config: Any
    ) -> None:
        types = {f"{name}_ptr": t if t is None else POINTERS[t.dtype] for name, t in pointers.items()}
        given, kernel = types | for_triton(arguments), kernel.load()
        given = {name: given[name] for name in kernel.arg_names}
        recorded.append(Launch(problem, plan.solver.id, len(recorded), kernel, grid, given, dict(config)))

    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape, "residual": problem.result_shape}
    formats = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format, "residual": problem.result_format}
    tensors: dict[str, Any] = {
        name: TORCH.empty(shape, problem.dtype, "meta", formats[name])
        for name, shape in shapes.items()
        if name != "residual" or problem.residual
    }
    for name in ("bias", "scale", "shift"):
        if getattr(problem, name):
            tensors[name] = TORCH.empty((problem.k,), problem.dtype, "meta", CONTIGUOUS)
    for name, (dtype, elements) in plan.solver.parts(plan).items():  # type: ignore[attr-defined]
        tensors[name] = torch.empty(elements, dtype=getattr(torch, dtype), device="meta")
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "launch_kernel", record))
        plan.solver.launch(problem, tensors, plan.config)  # type: ignore[attr-defined]
    return recorded
