"""What the pooling solvers of every GPU backend check alike."""

from __future__ import annotations

from collections.abc import Sequence

from ..problem import PoolProblem, Problem

__all__ = ["FLOATS", "INTEGERS", "refusal"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


def refusal(problem: Problem, pools: Sequence[str], kind: str, dtypes: Sequence[str]) -> str | None:
    """Return why `problem` is not pass `kind` of one of `pools` in one of `dtypes`, or None."""
    if not isinstance(problem, PoolProblem):
        return "solves poolings, not convolutions"
    if problem.pool not in pools or problem.kind != kind:
        return f"solves {' and '.join(pools)} ({kind}), not {problem.pool} ({problem.kind})"
    if problem.dtype not in dtypes:
        return f"computes {', '.join(dtypes)}, not {problem.dtype}"
    return None
