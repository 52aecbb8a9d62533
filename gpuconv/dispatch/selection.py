"""From a problem to a plan: ranked solvers that each say why not.

Backends are asked in the order of DESIGN: Triton, CuPy, NumPy, each deciding whether it takes the problem's arrays.
Within the first backend that has a solver, the lowest estimate wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

from ..backends.base import Backend, Plan, Solver
from ..config import BACKENDS, tuning_mode, workspace_limit
from ..errors import NoSolverError
from ..problem import Problem

__all__ = [
    "FORGETTERS",
    "TUNERS",
    "Candidate",
    "backends",
    "candidates",
    "planned",
    "register_solver",
    "select",
    "solver_of",
    "solvers_of",
    "unregister_solver",
]

TUNERS: list[Callable[[Problem], None]] = []
"""Called with each problem that a call meets while tuning is on, before it is planned."""

FORGETTERS: list[Callable[[], None]] = []
"""Called when solvers are added or taken away: what keeps plans puts itself here."""


@lru_cache(maxsize=1)
def backends() -> dict[str, Backend]:
    """Return the backends of this version by name, in the order in which they are asked."""
    return {name: import_module(f"..backends.{name}", __package__).BACKEND for name in BACKENDS}


_registered: dict[str, list[Solver]] = {name: [] for name in BACKENDS}


def solvers_of(name: str) -> tuple[Solver, ...]:
    """Return the solvers of a backend: its own, and those that were registered for it."""
    return (*backends()[name].solvers(), *_registered[name])


def register_solver(solver: Solver) -> Solver:
    """Add a solver of your own to a backend: from then on it is asked for every problem, as the library's own are.

    Parameters
    ----------
    solver
        The solver. Its `id` is ``"<backend>.<words>"``, with the backend whose arrays it runs on: ``triton``, ``cupy``
        or ``numpy``.

    Returns
    -------
    Solver
        The same solver.

    Raises
    ------
    TypeError
        If it is not a :class:`Solver`.
    ValueError
        If its id names no backend, or another solver has it.

    Examples
    --------
    >>> import gpuconv, gpuconv.solvers
    >>> class Never(gpuconv.solvers.Solver):
    ...     id = "numpy.never"
    ...     def why_not(self, problem): return "is an example"
    ...     def rank(self, problem): return 0.0
    ...     def plan(self, problem): raise NotImplementedError
    ...     def run(self, plan, call): raise NotImplementedError
    >>> gpuconv.register_solver(Never()).id
    'numpy.never'
    >>> gpuconv.solvers.unregister_solver("numpy.never")
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"register_solver: solver must be a gpuconv.solvers.Solver, but got {solver!r}")
    name, dot, rest = solver.id.partition(".")
    if name not in _registered or not dot or not rest:
        known = ", ".join(f"{backend}.<words>" for backend in BACKENDS)
        raise ValueError(f"register_solver: id must be one of {known}, but got {solver.id!r}")
    if any(solver.id == other.id for other in solvers_of(name)):
        raise ValueError(f"register_solver: there is a solver {solver.id!r} already")
    _registered[name].append(solver)
    _forget_plans()
    return solver


def unregister_solver(id: str) -> None:
    """Take a registered solver out again.

    Raises
    ------
    ValueError
        If none of that id was registered.
    """
    found = _registered.get(id.partition(".")[0], [])
    place = next((place for place, solver in enumerate(found) if solver.id == id), None)
    if place is None:
        raise ValueError(f"unregister_solver: no solver {id!r} was registered")
    del found[place]
    _forget_plans()


def _forget_plans() -> None:
    """Forget every choice that was made before the solvers changed."""
    _plan.cache_clear()
    for forget in FORGETTERS:
        forget()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solver in the race for a problem: either its estimate in microseconds or the reason why it cannot run.

    `source` says where the estimate comes from, see :class:`.backends.base.Estimate`.
    """

    solver: Solver
    backend: str
    reason: str | None
    estimate: float | None
    source: str | None = None


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
        for solver in solvers_of(name):
            reason = refusal or solver.why_not(problem)
            if reason is None and backend is not None and "." in backend and backend != solver.id:
                reason = f"solver {backend!r} was forced"
            found_time = None if reason else solver.estimated(problem)
            time, source = (None, None) if found_time is None else (found_time.microseconds, found_time.source)
            ranked.append(((reason is not None, order, time or 0.0), Candidate(solver, name, reason, time, source)))
    ranked.sort(key=lambda entry: entry[0])
    return [candidate for _, candidate in ranked]


def solver_of(id: str) -> Solver:
    """Return the solver of an id.

    Raises
    ------
    ValueError
        If no backend of this version has it.
    """
    name = id.partition(".")[0]
    for solver in solvers_of(name) if name in BACKENDS else ():
        if solver.id == id:
            return solver
    raise ValueError(f"there is no solver {id!r}")


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


def planned(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan of `problem`, and tune nothing.

    Raises
    ------
    NoSolverError
        If no solver can run it; the message lists every candidate and its reason.
    """
    return _plan(problem, backend, workspace_limit())


def select(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan that will run `problem`, which is tuned first where tuning is on.

    Raises
    ------
    NoSolverError
        As :func:`planned`.
    """
    if tuning_mode() == "on":
        for tune in TUNERS:
            tune(problem)
    return planned(problem, backend)
