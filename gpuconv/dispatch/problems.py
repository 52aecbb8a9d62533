"""Lists of problems as JSON: what :func:`gpuconv.record_problems` collected, for tuning and for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

from ..problem import ConvProblem, DeformProblem, PoolProblem, Problem, ScaledProblem, SeparableProblem

__all__ = ["SCHEMA", "from_json", "problem_from_json", "problem_to_json", "to_json"]

SCHEMA = 1

_TYPES = {"conv": ConvProblem, "pool": PoolProblem, "scaled": ScaledProblem, "deform": DeformProblem}
_ORIGIN = "problems"
_STEPS = ("depthwise", "pointwise")


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """Return one problem as plain data; fields at their default are left out."""
    if isinstance(problem, SeparableProblem):
        steps = {name: problem_to_json(getattr(problem, name)) for name in _STEPS}
        return {"type": "separable", "op": problem.op, **steps}
    found: dict[str, Any] = {"type": next(name for name, kind in _TYPES.items() if type(problem) is kind)}
    for field in fields(problem):
        value = getattr(problem, field.name)
        if isinstance(value, ConvProblem):
            found[field.name] = problem_to_json(value)
        elif field.init and value != field.default:
            # JSON has no infinity.
            found[field.name] = list(value) if isinstance(value, tuple) else str(value) if value in _INFINITE else value
    return found


_INFINITE = (float("inf"), float("-inf"))


def _value(name: str, kind: str, value: Any, origin: str) -> Any:
    """Return a field's value in its own type, from plain data."""
    if kind == "ConvProblem":
        found = problem_from_json(value, f"{origin}, {name}")
        if isinstance(found, ConvProblem):
            return found
    elif kind == "tuple[int, ...]":
        if isinstance(value, list) and all(type(item) is int for item in value):
            return tuple(value)
    elif kind == "tuple[str, ...]":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif kind == "float":
        if value in ("inf", "-inf") or type(value) in (int, float):
            return float(value)
    elif (value is None and kind.endswith("| None")) or type(value).__name__ == kind.partition(" ")[0]:
        return value
    raise ValueError(f"{origin}: {name} must be {kind}, but got {value!r}")


def problem_from_json(data: Any, origin: str = _ORIGIN) -> Problem:
    """Read what :func:`problem_to_json` returns.

    Raises
    ------
    ValueError
        If a field is unknown, missing or of another type; the message begins with `origin`.
    """
    kind = _TYPES.get(str(data.get("type"))) if isinstance(data, dict) else None
    if kind is None:
        required = "an object of type 'conv', 'pool', 'scaled' or 'deform'"
        raise ValueError(f"{origin}: a problem must be {required}, but got {str(data)[:80]!r}")
    known = {field.name: field for field in fields(kind) if field.init}
    unknown = sorted(data.keys() - known.keys() - {"type"})
    if unknown:
        raise ValueError(f"{origin}: a problem has no {', '.join(unknown)}")
    missing = [name for name, field in known.items() if name not in data and field.default is MISSING]
    if missing:
        raise ValueError(f"{origin}: a problem needs {', '.join(missing)}")
    values = {name: _value(name, str(known[name].type), data[name], origin) for name in data if name != "type"}
    problem: Problem = kind(**values)
    return problem


def to_json(problems: Iterable[Problem]) -> dict[str, Any]:
    """Return problems as plain data that ``json.dump`` writes and :func:`from_json` reads.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     _ = gpuconv.max_pool1d(np.ones((1, 1, 4)), 2)
    >>> to_json(problems)["problems"][0]["kernel"]
    [2]
    """
    return {"schema": SCHEMA, "problems": [problem_to_json(problem) for problem in problems]}


def from_json(data: Any, origin: str = _ORIGIN) -> list[Problem]:
    """Read what :func:`to_json` returns.

    Raises
    ------
    ValueError
        If it is something else; the message begins with `origin`, a file's name for example.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     _ = gpuconv.max_pool1d(np.ones((1, 1, 4)), 2)
    >>> from_json(to_json(problems)) == problems
    True
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("problems"), list):
        raise ValueError(f"{origin}: must be an object with schema {SCHEMA} and a list of problems")
    return [problem_from_json(item, f"{origin}, problem {place}") for place, item in enumerate(data["problems"])]
