"""The call itself, any problem at all, and what holds of every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..arrays import ArrayKind
from .composed import ScaledProblem, SeparableProblem
from .conv import ConvProblem
from .deform import DeformProblem
from .pool import PoolProblem

__all__ = ["Call", "Prepared", "Problem", "placed", "steps_of"]

Problem = ConvProblem | PoolProblem | SeparableProblem | ScaledProblem | DeformProblem


def steps_of(problem: Problem) -> tuple[ConvProblem | PoolProblem | ScaledProblem | DeformProblem, ...]:
    """Return the problems that compute the same as one that several make up; another alone."""
    return problem.steps if isinstance(problem, SeparableProblem) else (problem,)


def placed(problem: Problem, **where: str) -> Problem:
    """Return `problem` with another ``device`` or ``array``."""
    if isinstance(problem, SeparableProblem):
        first, second = (replace(step, **where) for step in problem.steps)  # type: ignore[arg-type]
        return SeparableProblem(problem.op, first, second)
    if isinstance(problem, ScaledProblem | DeformProblem):
        return replace(problem, conv=replace(problem.conv, **where))  # type: ignore[arg-type]
    return replace(problem, **where)  # type: ignore[arg-type]


@dataclass(slots=True)
class Prepared:
    """What the plan cache keeps of a call: all but its arrays.

    `plan` is put in by the dispatcher when the call runs first, `memo` is for the plan's solver: what it derives from
    strides, for example. `replay` repeats the launches of the first run on the addresses of other arrays
    (:data:`gpuconv.launcher.record.Replay`); False where that is impossible. `used` orders calls by their last use.
    """

    problem: Problem
    kind: ArrayKind
    unbatched: bool
    backend: str
    plan: Any = None
    memo: dict[str, Any] = field(default_factory=dict)
    replay: Any = None
    used: int = 0


@dataclass(slots=True)
class Call:
    """One call on its way: the problem, its arrays (with a batch axis, by name) and how to hand the result back.

    Names of arrays: ``x``, ``w``, ``y`` (the gradient of y where a backward pass reads it), ``bias``, ``residual``,
    ``scale``, ``shift``, ``indices``, ``samples``; those of other problems are theirs to say.
    """

    problem: Problem
    arrays: Mapping[str, Any]
    kind: ArrayKind
    unbatched: bool = False
    backend: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    prepared: Prepared | None = None
