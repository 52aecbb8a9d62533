"""The NumPy pooling solvers: one per family and pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isinf, prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS
from ...problem import Call, PoolProblem, Problem
from ...shapes import ceil_div, effective_kernel
from ..base import Plan, Solver
from . import pool_scatter as scatter
from . import pool_windows as windows
from .costs import pool_us
from .pool_again import again
from .pool_tiles import largest_tile, read_at_once, weight

__all__ = ["SOLVERS", "NumpyPool"]


def _lp_backward(call: Call) -> Any:
    problem: Any = call.problem
    return scatter.lp_extreme_backward(call) if isinf(problem.norm_type) else windows.lp_backward(call)


_RUN: dict[tuple[str, str], Callable[[Call], Any]] = {
    ("max", "fprop"): windows.max_forward,
    ("max", "bwd"): scatter.max_backward,
    ("avg", "fprop"): windows.avg_forward,
    ("avg", "bwd"): windows.avg_backward,
    ("lp", "fprop"): windows.lp_forward,
    ("lp", "bwd"): _lp_backward,
    ("adaptive_avg", "fprop"): windows.avg_forward,
    ("adaptive_avg", "bwd"): windows.avg_backward,
    ("adaptive_max", "fprop"): windows.max_forward,
    ("adaptive_max", "bwd"): scatter.max_backward,
    ("fractional_max", "fprop"): scatter.fractional_forward,
    ("fractional_max", "bwd"): scatter.max_backward,
    ("max_unpool", "fprop"): scatter.unpool_forward,
    ("max_unpool", "bwd"): scatter.unpool_backward,
    ("unfold", "fprop"): scatter.unfold_forward,
    ("fold", "fprop"): scatter.fold_forward,
}


def _slab(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the elements that a box of windows, `lengths` per axis, reads at most."""
    return prod(min(n, max(length - 1, 0) * s + k) for n, k, s, length in zip(sizes, kernel, stride, lengths))


def _forward_bytes(problem: PoolProblem) -> int:
    rows, lengths = largest_tile(problem, problem.output_size, weight(problem), problem.y_format)
    if problem.pool.startswith("adaptive"):
        kernel: Sequence[int] = problem.kernel
        stride = [ceil_div(n, max(o, 1)) for n, o in zip(problem.input_size, problem.output_size)]
    else:
        kernel = [effective_kernel(k, d) for k, d in zip(problem.kernel, problem.dilation)]
        stride = list(problem.stride)
    read = min(rows * _slab(problem.input_size, kernel, stride, lengths), max(read_at_once(problem), 1))
    # A widened or raised copy of the input, one pass result per axis, and sums, codes and positions of the outputs.
    per_output = 72 if problem.offsets else 40
    if problem.pool == "adaptive_max" and problem.return_indices:
        per_output += 24  # maxima and what is compared with them, turned, and the tap of every axis
    parts = 2 if read == read_at_once(problem) else 1  # those of a piece besides
    return 3 * read * 8 + parts * rows * prod(lengths) * per_output


def _backward_bytes(problem: PoolProblem) -> int:
    rows, lengths = largest_tile(problem, problem.input_size, weight(problem), problem.x_format)
    span = [
        min(o, length // s + k + 1)
        for o, length, s, k in zip(problem.output_size, lengths, problem.stride, problem.kernel)
    ]
    if problem.pool.startswith("adaptive"):
        span = [
            min(o, ceil_div(length * o, max(n, 1)) + 2)
            for o, n, length in zip(problem.output_size, problem.input_size, lengths)
        ]
    mixed = prod(max(a, b) for a, b in zip(span, lengths))
    extent = [effective_kernel(k, d) for k, d in zip(problem.kernel, problem.dilation)]
    power = problem.pool == "lp"
    around = min(rows * _slab(problem.input_size, extent, problem.stride, span), read_at_once(problem)) if power else 0
    kept = read_at_once(problem) if power else 0
    return 8 * (rows * (2 * prod(span) + 2 * mixed + prod(lengths) + 6 * prod(span) * power) + 4 * around + kept)


def _position_bytes(problem: PoolProblem) -> int:
    """Return the bytes of the solvers that go by positions: 8 bytes a few times per position, and rows of planes."""
    planes, outputs = prod(problem.input_size), prod(problem.output_size)
    outputs *= 2 if problem.offsets else 1  # the positions that offsets mean
    if problem.pool == "max_unpool" and problem.kind == "fprop":
        rows, lengths = largest_tile(problem, problem.input_size, 2, CONTIGUOUS)
        return rows * prod(lengths) * 48
    scale = 2 if problem.pool == "lp" else 1
    rows, _ = largest_tile(problem, (1,), max(scale * (planes + outputs), 1), CONTIGUOUS)
    if problem.pool == "max_unpool":
        return rows * 8 * (6 * planes + outputs)
    if problem.kind == "fprop":
        return rows * 8 * (6 * outputs + planes)
    kept = 3 * planes if problem.pool == "lp" else 0
    return rows * 8 * (6 * scale * outputs + 5 * min(planes, scatter.PIECE) + kept)


class NumpyPool(Solver):
    """One pass of one pooling family, forward or backward, on NumPy views of host memory."""

    always_answers = True

    def __init__(self, pool: str, kind: str) -> None:
        self.pool, self.kind = pool, kind
        self.id = f"numpy.pool.{pool}.{kind}"
        self._run = _RUN[pool, kind]

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, PoolProblem) and (problem.pool, problem.kind) == (self.pool, self.kind)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, PoolProblem):
            return f"pools only, this is a convolution ({problem.op})"
        if (problem.pool, problem.kind) != (self.pool, self.kind):
            return f"{self.pool} {self.kind} only, this is {problem.pool} {problem.kind}"
        return None

    def rank(self, problem: Problem) -> float:
        """Return an estimate that counts elements and calls, see :mod:`.numpy_costs`."""
        assert isinstance(problem, PoolProblem)
        return pool_us(problem)

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, PoolProblem)
        if self.pool == "unfold":
            return Plan(self, problem, 0)
        if self.pool == "fold":
            rows, lengths = largest_tile(problem, problem.input_size, 2, CONTIGUOUS)
            return Plan(self, problem, rows * prod(lengths) * 32)
        by_position = self.pool in ("fractional_max", "max_unpool") or (
            self.kind == "bwd" and self.pool.endswith("max")
        )
        if by_position or (self.pool == "lp" and self.kind == "bwd" and isinf(problem.norm_type)):
            return Plan(self, problem, _position_bytes(problem))
        return Plan(self, problem, _forward_bytes(problem) if self.kind == "fprop" else _backward_bytes(problem))

    def run(self, plan: Plan, call: Call) -> Any:
        if call.prepared is not None and "again" not in call.prepared.memo:
            call.prepared.memo["again"] = again(call)
        with np.errstate(all="ignore"):
            return self._run(call)


SOLVERS: tuple[Solver, ...] = tuple(NumpyPool(pool, kind) for pool, kind in _RUN)
