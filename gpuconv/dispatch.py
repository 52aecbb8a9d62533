"""From a call to a plan: ranked solvers that each say why not, and an explanation of the choice.

Backends are asked in the order of DESIGN: Triton, CuPy, NumPy, each deciding whether it takes the problem's arrays.
Within the first backend that has a solver, the lowest estimate wins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from typing import Any

from .arrays import ArrayKind
from .backends.base import Backend, Plan, Solver
from .config import BACKENDS, forced_backend, logger, tuning_mode, workspace_limit
from .errors import NoSolverError, WorkspaceWarning
from .explaining import Candidate, Explanation, no_solver
from .problem import Call, Problem

__all__ = [
    "OBSERVERS",
    "Candidate",
    "Explanation",
    "backends",
    "candidates",
    "explain",
    "explaining",
    "record_plans",
    "record_problems",
    "run",
    "select",
    "solver_of",
    "without_batch",
]

_MODULES = {"triton": "triton_backend", "cupy": "cupy_backend", "numpy": "numpy_backend"}

_explaining: ContextVar[bool] = ContextVar("gpuconv_explaining", default=False)
_record: ContextVar[list[Plan] | None] = ContextVar("gpuconv_record", default=None)
_recorders: list[dict[Problem, None]] = []
_logged: set[tuple[str, str]] = set()
_warned: set[str] = set()

OBSERVERS: list[object] = []
"""One object for every explanation and recording under way, in any thread: they want each call."""


@lru_cache(maxsize=1)
def backends() -> dict[str, Backend]:
    """Return the backends of this version by name, in the order in which they are asked."""
    found: dict[str, Backend] = {}
    for name in BACKENDS:
        if name in _MODULES:
            found[name] = import_module(f".backends.{_MODULES[name]}", __package__).BACKEND
    return found


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
        for solver in found.solvers():
            reason = refusal or solver.why_not(problem)
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
    found = backends().get(id.partition(".")[0])
    for solver in found.solvers() if found else ():
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


def select(problem: Problem, backend: str | None = None) -> Plan:
    """Return the plan that will run `problem`.

    Raises
    ------
    NoSolverError
        If no solver can; the message says why, and what would help.

    Warns
    -----
    WorkspaceWarning
        If the plan needs more workspace than the limit, as the reference does where it cannot do with less; once per
        operation and process.
    """
    if tuning_mode() == "on" and not explaining():
        import_module(".tuning.tune", __package__).consider(problem)
    limit = workspace_limit()
    plan = _plan(problem, backend, limit)
    if plan.workspace > limit and not explaining():
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


def explaining() -> bool:
    """Tell whether this call is being explained (see :func:`explain`), not run."""
    return _explaining.get()


def run(call: Call) -> Any:
    """Run `call` and return its result (without the batch axis that was added to unbatched input)."""
    if explaining():
        return _explanation(call.problem, forced_backend(call.backend))
    prepared, result = call.prepared, None
    if prepared is None:
        plan = select(call.problem, forced_backend(call.backend))
    else:
        if prepared.plan is None:
            prepared.plan = select(call.problem, forced_backend(call.backend))
        plan = prepared.plan
    if _recorders:
        for recorder in tuple(_recorders):
            recorder.setdefault(call.problem)
    recorded = _record.get()
    if recorded is not None:
        recorded.append(plan)
    if (call.problem.op, plan.solver.id) not in _logged:
        _logged.add((call.problem.op, plan.solver.id))
        logger.info("%s runs on %s", call.problem.op, plan.solver.id)
    if prepared is not None and prepared.replay:
        addresses = [0 if array is None else array.data_ptr() for array in call.arrays.values()]
        result = prepared.replay(addresses)
    if result is None:
        result = plan.run(call)
    return without_batch(call.kind, result) if call.unbatched else result


def without_batch(kind: ArrayKind, result: Any) -> Any:
    """Return the result, or the results, of a call without the batch axis that was added."""
    if isinstance(result, tuple):
        return tuple(kind.drop_batch(array) for array in result)
    return kind.drop_batch(result)


@contextmanager
def record_problems() -> Iterator[list[Problem]]:
    """Collect the distinct problems of every call made inside the ``with`` block, by any thread, in order.

    Backward passes run on other threads, so all count. The list is filled when the block ends. Write it with
    ``json.dump(gpuconv.tuning.problems.to_json(problems), file)`` for ``gpuconv tune``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     for _ in range(2):
    ...         y = gpuconv.conv1d(np.ones((1, 1, 4)), np.ones((1, 1, 3)))
    >>> [(problem.op, problem.y_shape) for problem in problems]
    [('conv1d', (1, 1, 2))]
    """
    problems: list[Problem] = []
    seen: dict[Problem, None] = {}
    _recorders.append(seen)
    OBSERVERS.append(seen)
    try:
        yield problems
    finally:
        place = next(place for place, each in enumerate(_recorders) if each is seen)
        del _recorders[place]
        place = next(place for place, each in enumerate(OBSERVERS) if each is seen)
        del OBSERVERS[place]
        problems.extend(seen)


@contextmanager
def record_plans() -> Iterator[list[Plan]]:
    """Collect the plan of every call made inside the ``with`` block (in this thread), in order."""
    plans: list[Plan] = []
    token = _record.set(plans)
    OBSERVERS.append(token)
    try:
        yield plans
    finally:
        OBSERVERS.remove(token)
        _record.reset(token)


def _explanation(problem: Problem, backend: str | None) -> Explanation:
    found = candidates(problem, backend)
    try:
        return Explanation(problem, tuple(found), select(problem, backend))
    except NoSolverError as error:
        return Explanation(problem, tuple(found), None, str(error).partition("\n")[0])


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
    if not callable(fn):
        wanted = "a function of gpuconv, and its arguments follow it, as in explain(gpuconv.conv2d, x, w)"
        raise TypeError(f"explain: fn must be {wanted}; but got {type(fn).__name__}")
    token = _explaining.set(True)
    OBSERVERS.append(token)
    try:
        explanation = fn(*args, **kwargs)
    finally:
        OBSERVERS.remove(token)
        _explaining.reset(token)
    if not isinstance(explanation, Explanation):
        raise TypeError(f"explain: fn must be a function of gpuconv that runs one problem, but got {fn!r}")
    return explanation
