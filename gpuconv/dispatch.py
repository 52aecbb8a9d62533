"""From a call to a plan: ranked solvers that each say why not, and an explanation of the choice.

Backends are asked in the order of DESIGN: Triton, CuPy, NumPy, each deciding whether it takes the problem's arrays.
Within the first backend that has a solver, the lowest estimate wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from .backends.base import Backend, Plan, Solver
from .config import BACKENDS, forced_backend, logger, workspace_limit
from .errors import NoSolverError
from .problem import Call, ConvProblem, Problem

__all__ = [
    "Candidate",
    "Explanation",
    "backends",
    "candidates",
    "explain",
    "explaining",
    "record_plans",
    "run",
    "select",
]

_MODULES = {"triton": "triton_backend", "cupy": "cupy_backend", "numpy": "numpy_backend"}

_explaining: ContextVar[bool] = ContextVar("gpuconv_explaining", default=False)
_record: ContextVar[list[Plan] | None] = ContextVar("gpuconv_record", default=None)
_logged: set[tuple[str, str]] = set()


@lru_cache(maxsize=1)
def backends() -> dict[str, Backend]:
    """Return the backends of this version by name, in the order in which they are asked."""
    found: dict[str, Backend] = {}
    for name in BACKENDS:
        if name in _MODULES:
            found[name] = import_module(f".backends.{_MODULES[name]}", __package__).BACKEND
    return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solver in the race for a problem: either its estimate in microseconds or the reason why it cannot run."""

    solver: Solver
    backend: str
    reason: str | None
    estimate: float | None


def candidates(problem: Problem, backend: str | None = None) -> list[Candidate]:
    """Return every solver for `problem`, the one that will run first, then by order of preference, refusals last.

    Parameters
    ----------
    problem
        The problem.
    backend
        A backend or solver id that the user forced, or ``None``.
    """
    forced_name = backend.partition(".")[0] if backend else None
    ranked: list[tuple[tuple[bool, int, float], Candidate]] = []
    for order, (name, found) in enumerate(backends().items()):
        if forced_name is not None and name != forced_name:
            refusal: str | None = f"backend {forced_name!r} was forced"
        else:
            refusal = found.why_not(problem, forced_name == name)
        for solver in found.solvers():
            reason = refusal or solver.why_not(problem)
            if reason is None and backend is not None and "." in backend and backend != solver.id:
                reason = f"solver {backend!r} was forced"
            estimate = None if reason else solver.rank(problem)
            key = (reason is not None, order, estimate or 0.0)
            ranked.append((key, Candidate(solver, name, reason, estimate)))
    ranked.sort(key=lambda entry: entry[0])
    return [candidate for _, candidate in ranked]


def _no_solver(problem: Problem, backend: str | None, found: list[Candidate]) -> NoSolverError:
    if backend is None:
        asked = "no solver"
    else:
        asked = f"no solver of backend {backend!r}" if "." not in backend else f"solver {backend!r} does not exist or"
    lines = [f"{problem.op}: {asked} can run this problem"]
    lines += [f"  {name}: {text}" for name, text in problem.describe()]
    lines.append("candidates:")
    lines += [f"  {candidate.solver.id}: {candidate.reason}" for candidate in found]
    return NoSolverError("\n".join(lines))


@lru_cache(maxsize=1024)
def _plan(problem: Problem, backend: str | None, limit: int) -> Plan:
    found = candidates(problem, backend)
    for candidate in found:
        if candidate.reason is not None:
            break
        plan = candidate.solver.plan(problem)
        if plan.workspace <= limit:
            return plan
        found = [
            Candidate(c.solver, c.backend, f"needs {plan.workspace} B of workspace, the limit is {limit} B", None)
            if c is candidate
            else c
            for c in found
        ]
    raise _no_solver(problem, backend, found)


def select(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan that will run `problem`.

    Raises
    ------
    NoSolverError
        If no solver can; the message lists every candidate and its reason.
    """
    return _plan(problem, backend, workspace_limit())


def explaining() -> bool:
    """Tell whether this call is being explained (see :func:`explain`), not run."""
    return _explaining.get()


def run(call: Call) -> Any:
    """Run `call` and return its result (without the batch axis that was added to unbatched input)."""
    if explaining():
        return _explanation(call.problem, forced_backend(call.backend))
    prepared = call.prepared
    if prepared is None:
        plan = select(call.problem, forced_backend(call.backend))
    else:
        if prepared.plan is None:
            prepared.plan = select(call.problem, forced_backend(call.backend))
        plan = prepared.plan
    recorded = _record.get()
    if recorded is not None:
        recorded.append(plan)
    if (call.problem.op, plan.solver.id) not in _logged:
        _logged.add((call.problem.op, plan.solver.id))
        logger.info("%s runs on %s", call.problem.op, plan.solver.id)
    result = plan.run(call)
    if not call.unbatched:
        return result
    if isinstance(result, tuple):
        return tuple(call.kind.drop_batch(array) for array in result)
    return call.kind.drop_batch(result)


@contextmanager
def record_plans() -> Iterator[list[Plan]]:
    """Collect the plan of every call made inside the ``with`` block (in this thread), in order."""
    plans: list[Plan] = []
    token = _record.set(plans)
    try:
        yield plans
    finally:
        _record.reset(token)


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
            verdict = f"not here: {candidate.reason}" if candidate.reason else f"estimate {candidate.estimate:,.1f} us"
            lines.append(f"  {place}. {candidate.solver.id.ljust(ids)}  {verdict}")
        if len(shown) < len(self.candidates):
            lines.append(f"  and {len(self.candidates) - len(shown)} solvers of other operations")
        return "\n".join(lines)


def _roofline(problem: Problem) -> str:
    if not problem.device.startswith("cuda"):
        return "not computed: the arrays are not on a GPU"
    return "not computed: no measured ceilings for this GPU yet"


def _explanation(problem: Problem, backend: str | None) -> Explanation:
    found = candidates(problem, backend)
    try:
        plan: Plan | None = select(problem, backend)
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
    token = _explaining.set(True)
    try:
        explanation = fn(*args, **kwargs)
    finally:
        _explaining.reset(token)
    if not isinstance(explanation, Explanation):
        raise TypeError(f"explain: fn must be a function of gpuconv that runs one problem, but got {fn!r}")
    return explanation
