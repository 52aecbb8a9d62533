"""The solvers of unfold and fold of the CuPy backend."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ... import shapes
from ...arrays import CONTIGUOUS
from ...problem import PoolProblem
from ..axes import reach
from ..base import Solver
from .common import Launch, Results, Strides
from .pool_common import C_TYPES, FLOATS, CupyPool, kernel_name, pool_launch, pool_params, wide_index

__all__ = ["SOLVERS", "FoldGather", "UnfoldCopy"]


class _Columns(CupyPool):
    """A solver one side of which are columns, ``(N, C R S, P Q)``."""

    kind = "fprop"
    given: str
    """The operand: ``x``, the image, or ``y``, the columns."""

    def results(self, problem: Any) -> Results:
        if self.given == "x":
            return {"y": (_columns_shape(problem), problem.dtype, CONTIGUOUS)}
        return {"x": (problem.x_shape, problem.dtype, CONTIGUOUS)}

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        shape = problem.x_shape if self.given == "x" else _columns_shape(problem)
        elements = prod(_columns_shape(problem)) if self.given == "x" else prod(problem.x_shape)
        # Blocks reach over the end of a result by less than 2**16 elements.
        largest = max(prod(_columns_shape(problem)) + 2**16, reach(shape, strides[self.given]))
        wide = wide_index(problem, {}) or largest >= 2**31
        params = pool_params(problem, {self.given: strides[self.given]}, elements, channels_innermost=False)
        kernel = kernel_name(f"pool_{self.pools[0]}_fprop", C_TYPES[problem.dtype], wide)
        other = "y" if self.given == "x" else "x"
        return [pool_launch("pool_columns", kernel, (self.given, other), params)]

    def instantiations(self) -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        name = f"pool_{self.pools[0]}_fprop"
        variants = [(C_TYPES[dtype], wide) for dtype in FLOATS for wide in (False, True)]
        return [("pool_columns", kernel_name(name, *variant)) for variant in variants]


class UnfoldCopy(_Columns):
    """unfold: each element of the columns is copied from the image."""

    id = "cupy.pool.unfold.fprop.copy"
    pools = ("unfold",)
    given = "x"


class FoldGather(_Columns):
    """fold: each element of the image adds the columns that it is in."""

    id = "cupy.pool.fold.fprop.gather"
    pools = ("fold",)
    given = "y"


def _columns_shape(problem: PoolProblem) -> tuple[int, int, int]:
    return shapes.columns_shape(problem.n, problem.c, problem.kernel, problem.output_size)


SOLVERS: tuple[Solver, ...] = (UnfoldCopy(), FoldGather())
