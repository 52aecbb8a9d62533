"""What the dispatcher would launch for a problem on a GPU by name, told without launching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..backends import Plan
from ..backends.triton.backend import BACKEND, missing_compiler_of
from ..backends.triton.dry import launches_of_plan
from ..config import workspace_limit
from ..costs import Gpu, assuming, shipped
from ..packs import KernelReference, key_of
from ..problem import Problem, placed
from ..tuning.search import options_of

__all__ = ["Launch", "Variants", "gpus_of", "launches_of", "plans_for"]

Variants = Literal["first", "solvers", "tuned"]


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


def plans_for(problem: Problem, variants: Variants = "first") -> list[Plan]:
    """Return plans of the Triton backend for the GPU that is assumed, that of the dispatcher first.

    The dispatcher takes the lowest estimate of those that fit the limit on workspaces.

    Raises
    ------
    ValueError
        If `variants` is none of :data:`Variants`.
    """
    if variants not in get_args(Variants):
        raise ValueError(f"variants must be one of {', '.join(get_args(Variants))}, but got {variants!r}")
    found: list[tuple[float, int, Plan]] = []
    for place, solver in enumerate(BACKEND.solvers()):
        if solver.why_not(problem) is None and missing_compiler_of(solver) is None:
            plan = solver.plan(problem)
            if plan.workspace <= workspace_limit():
                found.append((solver.rank(problem), place, plan))
    found.sort(key=lambda entry: entry[:2])
    plans = [plan for _, _, plan in found]
    if variants == "tuned":
        solvers = [plan.solver for plan in plans]
        return [option.solver.bind(problem, option.config) for option in options_of(problem, solvers)]
    return plans if variants == "solvers" else plans[:1]


def launches_of(problems: Iterable[Problem], gpu: Gpu, variants: Variants = "first") -> dict[str, Launch]:
    """Return the launches of problems on a GPU, by what they are known by.

    Parameters
    ----------
    problems
        Problems of torch tensors. On which device they say they are does not matter.
    gpu
        The GPU whose constants and capability decide.
    variants
        Which plans count: the one that the dispatcher would take (``"first"``), those of all solvers that take the
        problem (``"solvers"``), or what tuning times (``"tuned"``).
    """
    found: dict[str, Launch] = {}
    with assuming(gpu):
        for problem in problems:
            for plan in plans_for(placed(problem, array="torch"), variants):
                for told in launches_of_plan(plan):
                    key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
                    launch = Launch(key, told.kernel, plan.solver.id, arguments, dict(told.options))
                    found.setdefault(key, launch)
    return found
