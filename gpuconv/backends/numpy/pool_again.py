"""Means and maxima of whole planes of a dense NumPy array, repeated: two NumPy calls and no more.

A global pool takes less time than finding out that it is one. What :mod:`.pool_windows` does in general is here
reduced to what is left of it for one shape.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from math import prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS
from ...problem import Call
from .pool_axes import divisor_of
from .pool_products import MOST_ONES, WHOLE, ones, sum_rows
from .pool_tiles import Step, read_at_once, steps

__all__ = ["again"]

_MEANS, _MAXIMA = ("avg", "adaptive_avg"), ("max", "adaptive_max")

Repeat = Callable[[np.ndarray], np.ndarray]

_MOST_STARTS = 1 << 10
"""Rows up to which the starts of their planes are kept: 8 KiB for one entry of the plan cache."""


def again(call: Call) -> Repeat | None:
    """Return what repeats `call` on another array of the same shape, strides and dtype, bit for bit.

    None unless its windows are whole planes, in one tile, of a C-contiguous NumPy array of floats that compute in their
    own type. All of that follows from what the plan cache knows the call by.
    """
    problem: Any = call.problem
    if problem.kind != "fprop" or problem.pool not in (*_MEANS, *_MAXIMA) or problem.return_indices:
        return None
    x = call.arrays["x"]
    if call.kind.name != "numpy" or x.dtype not in (np.float32, np.float64) or not x.dtype.isnative:
        return None
    parts = tuple(islice(steps(problem), 2))
    dense = x.flags.c_contiguous and problem.y_format == CONTIGUOUS and x.size > 0
    if not dense or len(parts) != 1 or not _is_whole(parts[0], problem) or parts[0].size > read_at_once(problem):
        return None
    rows, plane = problem.n * problem.c, prod(problem.input_size)
    shape = problem.y_shape[1:] if call.unbatched else problem.y_shape
    if problem.pool in _MAXIMA:
        return _maxima(shape, rows, plane, x.dtype)
    divisor = divisor_of(problem, parts[0].box)
    return None if divisor is None else _means(shape, rows, plane, x.dtype, x.dtype.type(divisor))


def _is_whole(step: Step, problem: Any) -> bool:
    """Tell whether a tile is the whole result, made of windows that read every element of their planes.

    A window that is the whole of what its tile reads may leave out a part of the plane: a stride or padding ends it.
    """
    everything = tuple(slice(0, size) for size in problem.x_shape)
    outputs = tuple(slice(0, size) for size in problem.y_shape)
    return step.way == WHOLE and step.source == everything and step.target == outputs


def _quiet(repeat: Repeat) -> Repeat:
    """Return `repeat` without NumPy's reports of floating-point errors."""
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        quiet: Repeat = np.errstate(all="ignore")(repeat)
        return quiet

    def with_state(x: np.ndarray) -> np.ndarray:  # as a decorator, errstate of NumPy 1 is shared by threads
        with np.errstate(all="ignore"):
            return repeat(x)

    return with_state


def _means(shape: tuple[int, ...], rows: int, plane: int, dtype: np.dtype, divisor: Any) -> Repeat:
    vector = ones(plane, dtype) if plane <= MOST_ONES else None  # a part of one that many share

    def means(x: np.ndarray) -> np.ndarray:
        result = np.empty(shape, dtype)
        sums = result.reshape(rows)
        if vector is not None:
            np.dot(x.reshape(rows, plane), vector, out=sums)
        else:
            sum_rows(x.reshape(rows, plane), sums)
        np.divide(sums, divisor, out=sums)
        return result

    return _quiet(means)


def _maxima(shape: tuple[int, ...], rows: int, plane: int, dtype: np.dtype) -> Repeat:
    kept = np.arange(0, rows * plane, plane) if rows <= _MOST_STARTS else None

    def maxima(x: np.ndarray) -> np.ndarray:
        result = np.empty(shape, dtype)
        starts = np.arange(0, rows * plane, plane) if kept is None else kept
        np.maximum.reduceat(x.reshape(-1), starts, out=result.reshape(rows))
        return result

    return _quiet(maxima)
