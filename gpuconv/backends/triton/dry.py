"""What a plan launches, told without launching: on arrays without memory, which need no GPU and no Triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...arrays import CONTIGUOUS, TORCH
from ...problem import Call, ConvProblem, DeformProblem, PoolProblem, Problem, ScaledProblem, SeparableProblem, placed
from ..base import Plan
from .columns import columns_shape
from .launch import listening

__all__ = ["Told", "launches_of_plan"]


class _Unallocated(type(TORCH)):  # type: ignore[misc]
    """Torch's tensors, of which only a description is made, whatever device they are for."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: str, layout: str) -> Any:
        return super().empty(shape, dtype, "meta", layout)


_UNALLOCATED = _Unallocated()


@dataclass(frozen=True)
class Told:
    """One launch: the kernel, every argument by name, and options of the compiler."""

    kernel: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]


def _empty(shape: tuple[int, ...], dtype: str, layout: str) -> Any:
    import torch  # noqa: F401  which TORCH looks for

    return _UNALLOCATED.empty(shape, dtype, "meta", layout)


def _conv_arrays(problem: ConvProblem) -> dict[str, Any]:
    formats = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}
    found: dict[str, Any] = {
        name: _empty(shape, problem.dtype, formats[name]) for name, shape in shapes.items() if name != problem.result
    }
    if problem.kind == "wgrad":
        return found
    channels = problem.k if problem.kind == "fprop" else problem.c
    for name in ("bias", "scale", "shift"):
        found[name] = _empty((channels,), problem.dtype, CONTIGUOUS) if getattr(problem, name) else None
    residual = problem.residual
    found["residual"] = _empty(problem.result_shape, problem.dtype, problem.result_format) if residual else None
    return found


def _separable_arrays(problem: SeparableProblem) -> dict[str, Any]:
    first, second = (_conv_arrays(step) for step in problem.steps)
    named = {"pointwise": second["w"], "pointwise_bias": second["bias"], "residual": second["residual"]}
    return {name: first[name] for name in ("x", "w", "bias")} | named


def _scaled_arrays(problem: ScaledProblem) -> dict[str, Any]:
    found = {name: array for name, array in _conv_arrays(problem.conv).items() if name in ("x", "w")}
    found["bias"] = None if problem.bias_dtype is None else _empty((problem.conv.k,), problem.bias_dtype, CONTIGUOUS)
    sizes = {"array": (1,), "channels": (problem.conv.k,)}
    for name in ("input_scale", "weight_scale", "output_scale"):
        size = sizes.get(getattr(problem, name))
        found[name] = None if size is None else _empty(size, "float32", CONTIGUOUS)
    return found


def _deform_arrays(problem: DeformProblem) -> dict[str, Any]:
    conv = problem.conv
    found = {name: array for name, array in _conv_arrays(conv).items() if name in ("x", "w", "y", "bias")}
    if conv.kind == "dgrad":  # which reads the input as well as the gradient of the output
        del found["bias"]
        found["x"] = _empty(conv.x_shape, conv.dtype, conv.x_format)
    found["offset"] = _empty(problem.offset_shape, conv.dtype, CONTIGUOUS)
    return found | {"mask": _empty(problem.mask_shape, conv.dtype, CONTIGUOUS) if problem.mask else None}


def _pool_arrays(problem: PoolProblem) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if problem.pool == "fold":
        return {"y": _empty(columns_shape(problem), problem.dtype, CONTIGUOUS)}
    if problem.kind == "fprop" or problem.pool == "lp":
        found["x"] = _empty(problem.x_shape, problem.dtype, problem.x_format)
    if problem.kind == "bwd":
        found["y"] = _empty(problem.y_shape, problem.dtype, problem.y_format)
    if problem.pool == "max_unpool":
        found["indices"] = _empty(problem.x_shape, "int64", problem.x_format)
    elif problem.kind == "bwd" and problem.pool.endswith("max"):
        found["indices"] = _empty(problem.y_shape, problem.index_dtype, problem.y_format)
    if problem.pool == "fractional_max" and (problem.kind == "fprop" or problem.offsets):
        found["samples"] = _empty((problem.n, problem.c, problem.ndim), problem.dtype, CONTIGUOUS)
    return found


def launches_of_plan(plan: Plan) -> list[Told]:
    """Return the launches of a plan, in order, on arrays in the memory formats of its problem.

    A plan that was made for one GPU stays what it is: the config in it decides.
    """
    told: list[Told] = []

    def note(_: Problem, kernel: Any, grid: tuple[int, ...], arguments: Any, options: Any) -> None:
        told.append(Told(kernel, arguments, options))

    device = plan.problem.device if plan.problem.device.startswith("cuda") else "cuda:0"  # kernels may differ by it
    problem: Any = placed(plan.problem, device=device, array="torch")
    if isinstance(problem, SeparableProblem):
        arrays = _separable_arrays(problem)
    elif isinstance(problem, ScaledProblem):
        arrays = _scaled_arrays(problem)
    elif isinstance(problem, DeformProblem):
        arrays = _deform_arrays(problem)
    else:
        arrays = _conv_arrays(problem) if isinstance(problem, ConvProblem) else _pool_arrays(problem)
    with listening(note):
        replace(plan, problem=problem).run(Call(problem, arrays, _UNALLOCATED))
    return told
