"""How the NumPy pooling solvers cut a problem into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from ..arrays import CHANNELS_LAST, CONTIGUOUS
from ..problem import PoolProblem
from .numpy_common import Box, boxes, parts_per_axis

__all__ = ["TILE", "Rows", "dense_view", "flat_targets", "largest_tile", "row_shape", "tiles"]

TILE = 1 << 20
"""Elements of one tile, the input and the temporaries together: 4 MiB of float32. The passes touch a part at a time, so
smaller tiles cost more calls than they save misses."""

Rows = tuple[slice, slice]
"""Ranges of N and of C."""


def _cut(problem: PoolProblem, sizes: Sequence[int], weight: int, fmt: str) -> tuple[int, int, int]:
    """Return how many images and channels a tile has, and how many positions of one plane (0 means all)."""
    n, c = max(problem.n, 1), max(problem.c, 1)
    plane = max(prod(sizes) * weight, 1)
    if fmt == CHANNELS_LAST and c * weight <= TILE:
        if plane * c <= TILE:
            return max(1, min(n, TILE // (plane * c))), c, 0
        return 1, c, TILE // (c * weight)
    if plane <= TILE:
        rows = TILE // plane
        return (min(n, rows // c), c, 0) if rows >= c else (1, rows, 0)
    return 1, 1, max(TILE // weight, 1)


def tiles(problem: PoolProblem, sizes: Sequence[int], weight: int, fmt: str) -> tuple[list[Rows], Iterator[Box]]:
    """Cut a grid of N C `sizes` into row ranges and boxes, one of each to a tile; a position costs `weight` elements.

    A tile has either whole planes or a box of one; channels-last tiles have all channels unless those are too many.
    """
    images, channels, positions = _cut(problem, sizes, weight, fmt)
    rows = [
        (slice(i, min(problem.n, i + images)), slice(j, min(problem.c, j + channels)))
        for i in range(0, problem.n, images)
        for j in range(0, problem.c, channels)
    ]
    return rows, boxes(sizes, positions or prod(sizes))


def largest_tile(problem: PoolProblem, sizes: Sequence[int], weight: int, fmt: str) -> tuple[int, tuple[int, ...]]:
    """Return the rows (N times C) and the lengths per axis that no tile of :func:`tiles` exceeds."""
    images, channels, positions = _cut(problem, sizes, weight, fmt)
    parts = parts_per_axis(sizes, positions or prod(sizes))
    if not all(parts):
        return images * channels, tuple(min(size, 1) for size in sizes)
    return images * channels, tuple(min(size, size // count + 1) for size, count in zip(sizes, parts))


def row_shape(array: np.ndarray, fmt: str) -> np.ndarray:
    """Return a tile of N C *spatial as rows x *spatial (contiguous) or N x *spatial x C (channels-last)."""
    if fmt == CHANNELS_LAST:
        return np.moveaxis(array, 1, -1)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def dense_view(out: np.ndarray, fmt: str) -> np.ndarray:
    """Return a freshly allocated output as the flat array of its memory."""
    dense = np.moveaxis(out, 1, -1) if fmt == CHANNELS_LAST else out
    flat = dense.reshape(-1)
    assert np.shares_memory(flat, out) or out.size == 0
    return flat


def flat_targets(problem: PoolProblem, rows: Rows, positions: np.ndarray, plane: int, fmt: str) -> np.ndarray:
    """Return where `positions` (N C *; flat in a plane of `plane` elements) lie in the memory of an N C plane array."""
    shape = positions.shape
    tail = (1,) * (len(shape) - 2)
    n = np.arange(rows[0].start, rows[0].start + shape[0], dtype=np.int64).reshape(-1, 1, *tail)
    c = np.arange(rows[1].start, rows[1].start + shape[1], dtype=np.int64).reshape(1, -1, *tail)
    if fmt == CONTIGUOUS:
        return positions + (n * problem.c + c) * plane
    return positions * problem.c + (n * plane * problem.c + c)
