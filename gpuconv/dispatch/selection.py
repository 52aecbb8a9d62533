"""From a problem to a plan: ranked solvers that each say why not.

Backends are asked in the order of DESIGN: Triton, CuPy, NumPy, each deciding whether it takes the problem's arrays.
Within the first backend that has a solver, the lowest estimate wins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

from ..backends import Backend, Plan, Solver
from ..config import BACKENDS, tuning_mode, workspace_limit
from ..errors import NoSolverError, WorkspaceWarning
from ..problem import Problem, steps_of
from .explanation import Candidate, no_solver

__all__ = [
    "COMPOSED",
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

COMPOSED: dict[str, list[Solver]] = {}
"""By backend, solvers that run the steps of a problem one after the other, each by a plan of that backend: they are
asked for problems of several steps alone."""

FORGETTERS: list[Callable[[], None]] = []
"""Called when solvers are added or taken away: what keeps plans puts itself here."""


@lru_cache(maxsize=1)
def backends() -> dict[str, Backend]:
    """Return the backends of this version by name, in the order in which they are asked."""
    return {name: import_module(f"..backends.{name}", __package__).BACKEND for name in BACKENDS}


_warned: set[str] = set()
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
        If it is not a :class:`Solver`, or its id is not a string.
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
    id = getattr(solver, "id", None)
    if not isinstance(id, str):
        raise TypeError(f"register_solver: id of the solver must be a string, but got {id!r}")
    name, dot, rest = id.partition(".")
    if name not in _registered or not dot or not rest:
        known = ", ".join(f"{backend}.<words>" for backend in BACKENDS)
        raise ValueError(f"register_solver: id must be one of {known}, but got {id!r}")
    if any(id == other.id for other in solvers_of(name)):
        raise ValueError(f"register_solver: there is a solver {id!r} already")
    _registered[name].append(solver)
    _forget_plans()
    return solver


def unregister_solver(id: str) -> None:
    """Take a registered solver out again.

    Raises
    ------
    TypeError
        If `id` is not a string.
    ValueError
        If none of that id was registered.

    Examples
    --------
    >>> import gpuconv.solvers
    >>> try:
    ...     gpuconv.solvers.unregister_solver("numpy.conv.fprop.mine")
    ... except ValueError:
    ...     print("there is none of that id")
    there is none of that id
    """
    if not isinstance(id, str):
        raise TypeError(f"unregister_solver: id must be a string, but got {id!r}")
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


def candidates(problem: Problem, backend: str | None = None) -> list[Candidate]:
    """Return every solver for `problem`, the one that will run first, then by order of preference, refusals last.

    A solver that needs more workspace than the limit is refused as the call would refuse it.

    Parameters
    ----------
    problem
        The problem.
    backend
        A backend or solver id that the user forced, or ``None``.
    """
    return _settled(problem, backend, workspace_limit(), True)[0]


def _ranked(problem: Problem, backend: str | None) -> list[Candidate]:
    """Return every solver for `problem` by order of preference, refusals last; the workspace is not looked at."""
    forced_name = backend.partition(".")[0] if backend else None
    ranked: list[tuple[tuple[bool, int, float], Candidate]] = []
    for order, (name, found) in enumerate(backends().items()):
        if forced_name is not None and name != forced_name:
            refusal: str | None = f"backend {forced_name!r} was forced"
        else:
            refusal = found.why_not(problem, forced_name == name)
        composed = COMPOSED.get(name, []) if len(steps_of(problem)) > 1 else []
        for solver in (*solvers_of(name), *composed):
            reason = refusal or solver.why_not(problem)
            if reason is None and solver not in composed:  # those ask for plans of their steps
                reason = found.lacks(solver, problem)
            if reason is None and backend is not None and "." in backend and backend != solver.id:
                reason = f"solver {backend!r} was forced"
            found_time = None if reason else solver.estimated(problem)
            time, source = (None, None) if found_time is None else (found_time.microseconds, found_time.source)
            ranked.append(((reason is not None, order, time or 0.0), Candidate(solver, name, reason, time, source)))
    ranked.sort(key=lambda entry: entry[0])
    return [candidate for _, candidate in ranked]


def _settled(problem: Problem, backend: str | None, limit: int, every: bool) -> tuple[list[Candidate], Plan | None]:
    """Return what :func:`candidates` does, and the plan that will run or ``None``.

    Unless `every` is asked for, no solver is planned behind the one that will run. Where every solver needs more
    workspace than `limit`, the first that must always answer goes over it.
    """
    within: list[Candidate] = []
    over: list[tuple[Candidate, Plan]] = []
    refused: list[Candidate] = []
    chosen: Plan | None = None
    for candidate in _ranked(problem, backend):
        if candidate.reason is not None:
            refused.append(candidate)
            continue
        plan = candidate.solver.plan(problem) if every or chosen is None else None
        if plan is not None and plan.workspace > limit:
            over.append((candidate, plan))
            continue
        within.append(candidate)
        chosen = chosen or plan
    if chosen is None:
        for place, (candidate, plan) in enumerate(over):
            if candidate.solver.always_answers:
                within, chosen = [candidate], plan
                del over[place]
                break
    for candidate, plan in over:
        reason = f"needs {plan.workspace} B of workspace, the limit is {limit} B"
        within.append(Candidate(candidate.solver, candidate.backend, reason, None))
    return within + refused, chosen


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
    return no_solver(problem, backend, found, candidates(problem) if backend else found)


@lru_cache(maxsize=1024)
def _plan(problem: Problem, backend: str | None, limit: int) -> Plan:
    found, plan = _settled(problem, backend, limit, False)
    if plan is None:
        raise _no_solver(problem, backend, found)
    return plan


def planned(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan of `problem`, and tune nothing.

    Raises
    ------
    NoSolverError
        If no solver can run it; the message says why, and what would help.
    """
    return _plan(problem, backend, workspace_limit())


def select(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan that will run `problem`, which is tuned first where tuning is on.

    Raises
    ------
    NoSolverError
        As :func:`planned`.

    Warns
    -----
    WorkspaceWarning
        If the plan needs more workspace than the limit, as the reference does where it cannot do with less; once per
        operation and process.
    """
    if tuning_mode() == "on":
        for tune in TUNERS:
            for step in steps_of(problem):
                tune(step)
    limit = workspace_limit()
    plan = _plan(problem, backend, limit)
    if plan.workspace > limit:
        _warn_of_workspace(plan, limit)
    return plan


def _warn_of_workspace(plan: Plan, limit: int) -> None:
    op = plan.problem.op
    if op in _warned:
        return
    _warned.add(op)
    warnings.warn(
        f"{op}: {plan.solver.id} needs {plan.workspace} B of workspace, the limit is {limit} B (GPUCONV_WORKSPACE); "
        "it runs all the same, as it is the reference. Further calls of this operation do not warn",
        WorkspaceWarning,
        stacklevel=2,
    )
