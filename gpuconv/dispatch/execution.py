"""A described call is run: by a plan that is kept, or a repeated launch; what watches calls learns of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..arrays import ArrayKind
from ..backends import Plan
from ..config import forced_backend, logger
from ..problem import Call, Problem, steps_of
from .selection import select

__all__ = [
    "OBSERVERS",
    "explaining",
    "observed",
    "record_plans",
    "record_problems",
    "run",
    "without_batch",
]

Observe = Callable[[Problem, str | None], Any]
"""Takes a problem and the backend that is forced; what it returns is returned in place of the call's result."""

_observer: ContextVar[Observe | None] = ContextVar("gpuconv_observer", default=None)
_record: ContextVar[list[Plan] | None] = ContextVar("gpuconv_record", default=None)
_recorders: list[dict[Problem, None]] = []
_logged: set[tuple[str, str]] = set()

OBSERVERS: list[object] = []
"""One object for every explanation and recording under way, in any thread: they want each call."""


def explaining() -> bool:
    """Tell whether this call is being explained (see :func:`.explanation.explain`), not run."""
    return _observer.get() is not None


@contextmanager
def observed(observe: Observe) -> Iterator[None]:
    """Inside the ``with`` block no call runs (in this thread): `observe` gets its problem, and answers for it."""
    token = _observer.set(observe)
    OBSERVERS.append(token)
    try:
        yield
    finally:
        OBSERVERS.remove(token)
        _observer.reset(token)


def run(call: Call) -> Any:
    """Run `call` and return its result (without the batch axis that was added to unbatched input)."""
    observe = _observer.get()
    if observe is not None:
        return observe(call.problem, forced_backend(call.backend))
    prepared, result = call.prepared, None
    if prepared is None:
        plan = select(call.problem, forced_backend(call.backend))
    else:
        if prepared.plan is None:
            prepared.plan = select(call.problem, forced_backend(call.backend))
        plan = prepared.plan
    if _recorders:
        for recorder in tuple(_recorders):
            for step in steps_of(call.problem):
                recorder.setdefault(step)
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
    ``json.dump(gpuconv.tuning.to_json(problems), file)`` for ``gpuconv tune``.

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
