"""Sums over windows as products with matrices of zeros and ones, and their adjoint.

With ``A[o, i]`` telling whether window ``o`` reads element ``i`` of an axis, the sums of an image ``X`` over the
windows of both its axes are ``A_h X A_w^T``, and what windows ``Y`` give back to the image is ``A_h^T Y A_w``. Where
windows are few this beats passes over strided views, whose loops are short, although most products are with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from .pool_axes import Axis, Regular, reduce_windows, spread_windows

__all__ = ["FEW", "MOST_ONES", "PASSES", "WHOLE", "ones", "spread", "sum_rows", "sum_windows", "way_of"]

WHOLE, FEW, PASSES = "whole", "few", "passes"
"""The ways to sum: one window that is the whole box; few windows, by products; passes over strided views."""

_MOST_REGULAR, _MOST_RAGGED = 8, 64
"""Windows of an axis up to which products win, measured on 3 to 512 channels of 14x14 to 500x500 in float32: passes are
fast where a stride connects the windows and slow where none does."""

_LARGEST = 1 << 16
"""Elements of the largest matrix that is kept."""

MOST_ONES = 1 << 20
"""Elements of the longest vector of ones that is kept: longer rows are summed in pieces of it."""


def way_of(axes: Sequence[Axis]) -> str:
    """Return how to sum over the windows of `axes`."""
    if all(axis.out == 1 and axis.window(0) == slice(0, axis.size, 1) for axis in axes):
        return WHOLE
    most = [_MOST_REGULAR if isinstance(axis, Regular) else _MOST_RAGGED for axis in axes]
    few = all(axis.out <= limit and axis.out * axis.size <= _LARGEST for axis, limit in zip(axes, most))
    return FEW if few else PASSES


@lru_cache(maxsize=64)
def _kept_ones(length: int, dtype: np.dtype) -> np.ndarray:
    vector = np.ones(length, dtype)
    vector.flags.writeable = False
    return vector


def ones(length: int, dtype: np.dtype) -> np.ndarray:
    """Return a vector of at most `MOST_ONES` ones, which may not be written to.

    Vectors of all lengths are parts of a few that are kept, whose lengths are powers of two.
    """
    return _kept_ones(1 << (length - 1).bit_length(), dtype)[:length]


def sum_rows(x: np.ndarray, out: np.ndarray) -> None:
    """Write the sum of every row of `x` to `out`: products with ones, which keep NaN and infinities."""
    length = x.shape[1]
    np.dot(x[:, :MOST_ONES], ones(min(length, MOST_ONES), x.dtype), out=out)
    for begin in range(MOST_ONES, length, MOST_ONES):
        part = x[:, begin : begin + MOST_ONES]
        out += np.dot(part, ones(part.shape[1], x.dtype))


def _sum_planes(x: np.ndarray, out: np.ndarray) -> None:
    """Write the sums over the middle axis of `x` (images x positions x channels) to `out`, as :func:`sum_rows`."""
    length = x.shape[1]
    np.matmul(ones(min(length, MOST_ONES), x.dtype), x[:, :MOST_ONES], out=out)
    for begin in range(MOST_ONES, length, MOST_ONES):
        part = x[:, begin : begin + MOST_ONES]
        out += np.matmul(ones(part.shape[1], x.dtype), part)


@lru_cache(maxsize=64)
def _matrices(axis: Axis, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return which elements each window reads: windows x elements, and turned; both as BLAS likes them best."""
    matrix = np.zeros((axis.out, axis.size), dtype)
    for o in range(axis.out):
        matrix[o, axis.window(o)] = 1
    turned = np.ascontiguousarray(matrix.T)
    matrix.flags.writeable = turned.flags.writeable = False
    return matrix, turned


def _multiply(factors: Sequence[tuple[np.ndarray, np.ndarray]], x: np.ndarray, out: np.ndarray) -> None:
    """Multiply axis ``1 + i`` of `x` by ``factors[i]``, as new x old size and turned, and write the result to `out`."""
    shape = list(x.shape)
    for i, (matrix, turned) in enumerate(factors, 1):
        lead, rest = prod(shape[:i]), prod(shape[i + 1 :])
        new, old = matrix.shape
        shape[i] = new
        last = i == len(factors) and out.flags.c_contiguous  # which a tile of some of the channels is not
        y = out if last else np.empty(shape, x.dtype)
        if rest == 1:
            np.matmul(x.reshape(lead, old), turned, out=y.reshape(lead, new))
        else:
            np.matmul(matrix, x.reshape(lead, old, rest), out=y.reshape(lead, new, rest))
        x = y
    if x is not out:
        np.copyto(out, x)


def sum_windows(x: np.ndarray, axes: Sequence[Axis], way: str, out: np.ndarray) -> None:
    """Write the sum of every window to `out`. Axis ``i`` of the windows is axis ``1 + i`` of `x` and `out`."""
    if x.dtype.kind != "f" or way == PASSES:
        reduce_windows(np.add, x, axes, out, 0)
    elif way == WHOLE and x.ndim == 1 + len(axes):
        sum_rows(x.reshape(len(x), prod(x.shape[1:])), out.reshape(len(x)))
    elif way == WHOLE:
        n, *plane, c = x.shape
        _sum_planes(x.reshape(n, prod(plane), c), out.reshape(n, c))
    else:
        _multiply([_matrices(axis, x.dtype) for axis in axes], x, out)
        # NaN and infinities times zero make every sum of their plane NaN: such input, which is rare, is summed again.
        if not np.isfinite(out).all():
            reduce_windows(np.add, x, axes, out, 0)


def spread(y: np.ndarray, axes: Sequence[Axis], way: str, out: np.ndarray) -> None:
    """Write to each element of `out` the sum of `y` over the windows that read it: the adjoint of summing windows."""
    if way == WHOLE:
        np.copyto(out, y)
    elif way == FEW and y.dtype.kind == "f" and np.isfinite(y).all():
        _multiply([_matrices(axis, y.dtype)[::-1] for axis in axes], y, out)
    else:
        spread_windows(y, axes, out)
