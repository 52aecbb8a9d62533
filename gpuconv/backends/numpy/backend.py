"""The NumPy backend: the reference implementation, and the fallback where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence

from ...problem import Problem
from ..base import Backend, Solver
from . import conv, conv_deform, conv_scaled, pool

__all__ = ["BACKEND"]


class NumpyBackend(Backend):
    """Runs on host memory: numpy arrays and torch CPU tensors."""

    name = "numpy"

    def missing(self) -> str | None:
        return None

    def why_not(self, problem: Problem, forced: bool) -> str | None:
        if problem.device != "cpu":
            return f"arrays are on {problem.device}, this backend reads host memory (cpu) only"
        return None

    def solvers(self) -> Sequence[Solver]:
        return (*conv.SOLVERS, *conv_deform.SOLVERS, *conv_scaled.SOLVERS, *pool.SOLVERS)


BACKEND = NumpyBackend()
