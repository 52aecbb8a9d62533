"""Why a call runs what it runs: the problem, what it costs, and every solver with its estimate or its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..backends.base import Plan
from ..costs.constants import constants_of, gpu_of
from ..costs.work import roofline
from ..errors import NoSolverError
from ..problem import ConvProblem, Problem
from .execution import observed
from .selection import Candidate, candidates, planned

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would run, and why. ``str()`` renders it; the fields carry the same facts."""

    problem: Problem
    candidates: tuple[Candidate, ...]
    plan: Plan | None

    @property
    def solver(self) -> str | None:
        """Id of the solver that would run, or ``None``."""
        return self.plan.solver.id if self.plan else None

    def concerns(self, candidate: Candidate) -> bool:
        """Tell whether a solver is for this operation at all: its id names the family, and the pool."""
        _, family, kind, *_ = (*candidate.solver.id.split("."), "", "")
        if isinstance(self.problem, ConvProblem):
            return family == "conv"
        pool = self.problem.pool
        return family == "pool" and (kind == pool or (kind == "adaptive" and pool.startswith("adaptive_")))

    def facts(self) -> list[tuple[str, str]]:
        """Return rows (name, text): the problem, its costs, and what would run."""
        problem = self.problem
        rows = [*problem.describe()]
        rows.append(("FLOPs", f"{problem.flops:,}"))
        rows.append(("bytes at least", f"{problem.min_bytes:,}"))
        rows.append(("intensity", f"{problem.flops / max(problem.min_bytes, 1):.2f} FLOP per byte"))
        rows.append(("roofline", _roofline(problem)))
        if self.plan is not None:
            rows.append(("runs on", self.plan.solver.id))
            rows.append(("workspace", f"at most {self.plan.workspace:,} bytes"))
            rows += [(f"config {name}", str(value)) for name, value in self.plan.config.items()]
        return rows

    def __str__(self) -> str:
        rows = self.facts()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {text}" for name, text in rows]
        lines.append("solvers, best first:")
        shown = [c for c in self.candidates if c.reason is None or self.concerns(c)]
        ids = max((len(c.solver.id) for c in shown), default=0)
        for place, candidate in enumerate(shown, 1):
            verdict = f"not here: {candidate.reason}" if candidate.reason else _shown(candidate)
            lines.append(f"  {place}. {candidate.solver.id.ljust(ids)}  {verdict}")
        if len(shown) < len(self.candidates):
            lines.append(f"  and {len(self.candidates) - len(shown)} solvers of other operations")
        return "\n".join(lines)


def _shown(candidate: Candidate) -> str:
    return f"estimate {candidate.estimate:,.1f} us ({candidate.source})"


def _roofline(problem: Problem) -> str:
    if not problem.device.startswith("cuda"):
        return "not computed: the arrays are not on a GPU"
    if gpu_of(problem.device) is None:
        return "not computed: the GPU is not known before torch has initialised it"
    constants = constants_of(problem.device)
    time, bound, rate = roofline(problem, constants)
    sources = f"{constants.values[rate]:g} {_UNITS[bound]}, {constants.sources[rate]}"
    return f"{time:,.1f} us, bound by {bound} ({sources})"


_UNITS = {"memory": "TB/s", "arithmetic": "TFLOP/s"}


def _explanation(problem: Problem, backend: str | None) -> Explanation:
    found = candidates(problem, backend)
    try:
        plan: Plan | None = planned(problem, backend)
    except NoSolverError:
        plan = None
    return Explanation(problem, tuple(found), plan)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say what ``fn(*args, **kwargs)`` would run, without running it.

    Parameters
    ----------
    fn
        A function of gpuconv that takes arrays, for example ``gpuconv.conv2d``.
    *args, **kwargs
        Its arguments; bad ones raise what the call would raise.

    Returns
    -------
    Explanation
        The problem, sizes, FLOPs, bytes, and each solver with its estimate or the reason why it cannot run.

    Raises
    ------
    TypeError
        If `fn` is not a function of gpuconv that reaches the dispatcher.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    >>> gpuconv.explain(gpuconv.conv2d, x, w).solver
    'numpy.conv.fprop.im2col'
    """
    with observed(_explanation):
        explanation = fn(*args, **kwargs)
    if not isinstance(explanation, Explanation):
        raise TypeError(f"explain: fn must be a function of gpuconv that runs one problem, but got {fn!r}")
    return explanation
