"""What the dispatcher would launch for a problem on a GPU by name, told without launching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..arrays import CONTIGUOUS, TORCH
from ..backends.triton.backend import BACKEND
from ..backends.triton.launch import listening
from ..config import workspace_limit
from ..costs.constants import Gpu, assuming, shipped
from ..packs.identity import KernelReference, key_of
from ..problem import Call, ConvProblem, PoolProblem, Problem

__all__ = ["Launch", "gpus_of", "launches_of", "plan_for"]

_META = "meta"


@dataclass(frozen=True)
class Launch:
    """A launch as a pack knows it: kernel, solver, options, and what the compiler is told of each argument."""

    key: str
    kernel: KernelReference
    solver: str
    told: Mapping[str, Any]
    options: Mapping[str, Any]


def gpus_of(arch: str) -> list[Gpu]:
    """Return the GPUs of an architecture whose constants are shipped, by name; plans differ between them.

    Raises
    ------
    ValueError
        If `arch` is no architecture, such as ``sm_90``, or one older than all whose constants are shipped.
    """
    number = arch.removeprefix("sm_")
    if number == arch or not number.isdecimal() or len(number) < 2:
        raise ValueError(f"arch must be a GPU architecture such as sm_90, but got {arch!r}")
    capability = (int(number[:-1]), int(number[-1]))
    found = [
        Gpu((data.get("names") or [stem])[0], capability)
        for stem, (data, _) in shipped().items()
        if tuple(data["capability"]) == capability
    ]
    if not found and capability < min(tuple(data["capability"]) for data, _ in shipped().values()):
        raise ValueError(f"arch {arch} is older than every GPU whose constants are shipped")
    return found or [Gpu(arch, capability)]


def _empty(shape: tuple[int, ...], dtype: str, layout: str) -> Any:
    return TORCH.empty(shape, dtype, _META, layout)


def _arrays(problem: Problem) -> dict[str, Any]:
    """Return the arrays of a call, by name, without memory."""
    if isinstance(problem, ConvProblem):
        formats = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}
        shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}
        found = {
            name: _empty(shape, problem.dtype, formats[name])
            for name, shape in shapes.items()
            if name != problem.result
        }
        if problem.kind == "wgrad":
            return found
        channels = problem.k if problem.kind == "fprop" else problem.c
        for name in ("bias", "scale", "shift"):
            found[name] = _empty((channels,), problem.dtype, CONTIGUOUS) if getattr(problem, name) else None
        residual = problem.residual
        found["residual"] = _empty(problem.result_shape, problem.dtype, problem.result_format) if residual else None
        return found
    return _pool_arrays(problem)


def _pool_arrays(problem: PoolProblem) -> dict[str, Any]:
    found: dict[str, Any] = {}
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


def plan_for(problem: Problem) -> Any:
    """Return the plan of the Triton backend that the dispatcher would take, of the GPU that is assumed; None if none.

    That is the one with the lowest estimate of those that fit the limit on workspaces.
    """
    found: list[tuple[float, int, Any]] = []
    for place, solver in enumerate(BACKEND.solvers()):
        if solver.why_not(problem) is None:
            plan = solver.plan(problem)
            if plan.workspace <= workspace_limit():
                found.append((solver.rank(problem), place, plan))
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def launches_of(problems: Iterable[Problem], gpu: Gpu) -> dict[str, Launch]:
    """Return the launches of problems on a GPU, by what they are known by.

    Parameters
    ----------
    problems
        Problems of torch tensors. On which device they say they are does not matter.
    gpu
        The GPU whose constants and capability decide.
    """
    found: dict[str, Launch] = {}
    solver = ""

    def note(
        _: Problem, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], options: dict[str, Any]
    ) -> None:
        assert isinstance(kernel, KernelReference), kernel
        key, told = key_of(kernel, arguments, options, aligned=True)
        found.setdefault(key, Launch(key, kernel, solver, told, dict(options)))

    with assuming(gpu), listening(note):
        for problem in problems:
            described = replace(problem, device=_META, array="torch")
            plan = plan_for(described)
            if plan is not None:
                solver = plan.solver.id
                plan.run(Call(described, _arrays(described), TORCH))
    return found
