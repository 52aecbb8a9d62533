"""How the NumPy pooling solvers cut a problem into tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from math import prod

import numpy as np

from ...arrays import CHANNELS_LAST, CONTIGUOUS
from ...config import workspace_limit
from ...problem import PoolProblem
from ...shapes import ceil_div
from .common import Box, boxes, kept, parts_per_axis
from .pool_axes import Axis, axes_of, slabs_in, slabs_out
from .pool_products import way_of

__all__ = [
    "TILE",
    "Rows",
    "Step",
    "dense_view",
    "flat_targets",
    "largest_tile",
    "pieces",
    "read_at_once",
    "row_ranges",
    "row_shape",
    "steps",
    "tile_size",
    "tiles",
    "weight",
]

TILE = 1 << 20
"""Elements of one tile, the input and the temporaries together: 4 MiB of float32. The passes touch a part at a time, so
smaller tiles cost more calls than they save misses."""


def tile_size() -> int:
    """Return the elements of a tile under the workspace limit of this call, of which temporaries are many times."""
    return min(TILE, max(1 << 13, workspace_limit() >> 7))


Rows = tuple[slice, slice]
"""Ranges of N and of C."""


def _cut(problem: PoolProblem, sizes: Sequence[int], weight: int, fmt: str) -> tuple[int, int, int]:
    """Return how many images and channels a tile has, and how many positions of one plane (0 means all)."""
    tile = tile_size()
    n, c = max(problem.n, 1), max(problem.c, 1)
    plane = max(prod(sizes) * weight, 1)
    if fmt == CHANNELS_LAST and c * weight <= tile:
        if plane * c <= tile:
            return max(1, min(n, tile // (plane * c))), c, 0
        return 1, c, tile // (c * weight)
    if plane <= tile:
        rows = tile // plane
        return (min(n, rows // c), c, 0) if rows >= c else (1, rows, 0)
    return 1, 1, max(tile // weight, 1)


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


@dataclass(frozen=True, slots=True)
class Step:
    """One tile of the result: where it is, what it is made of, and the windows between the two, relative to both."""

    box: Box
    target: tuple[slice, ...]
    """The tile, by N C and the spatial axes."""
    source: tuple[slice, ...]
    """The part of the other side (the input, or the gradient of the output) that it is made of."""
    axes: tuple[Axis, ...]
    way: str
    """How to sum over the windows."""
    size: int = 0
    """Elements of the source."""


_KEPT = 8
"""Steps of a problem that are kept for its next call. One with more of them takes long in any case."""


def weight(problem: PoolProblem) -> int:
    """Return the elements that a position of the result costs: its share of the other side, and itself twice.

    A power pool has its powers besides, and its backward pass the windows around the position.
    """
    forward = problem.kind == "fprop"
    sides = (problem.input_size, problem.output_size)
    source, target = sides if forward else reversed(sides)
    powers = (1 if forward else 3) if problem.pool == "lp" else 0
    return ceil_div(prod(source), max(prod(target), 1)) + 2 + powers


def steps(problem: PoolProblem) -> Iterable[Step]:
    """Cut the result of a max, average or power pool into tiles."""
    first = _first_steps(problem, tile_size())
    return first if len(first) <= _KEPT else _every_step(problem)


@kept
def _first_steps(problem: PoolProblem, tile: int) -> tuple[Step, ...]:
    return tuple(islice(_every_step(problem), _KEPT + 1))


def _every_step(problem: PoolProblem) -> Iterator[Step]:
    forward = problem.kind == "fprop"
    axes, slabs = axes_of(problem), slabs_out if forward else slabs_in
    sizes = problem.output_size if forward else problem.input_size
    every, grid = tiles(problem, sizes, weight(problem), problem.result_format)
    for box, rows in product(grid, every):
        read, local = slabs(axes, box)
        target = (*rows, *(slice(*bounds) for bounds in box))
        size = prod(part.stop - part.start for part in (*rows, *read))
        yield Step(box, target, (*rows, *read), local, way_of(local), size)


def read_at_once(problem: PoolProblem) -> int:
    """Return how many elements of the input a tile reads at most at once; larger windows are read in pieces."""
    return 4 * tile_size()


def pieces(problem: PoolProblem, step: Step) -> list[Step]:
    """Cut what a step of a forward pass reads into pieces, in the order of its elements.

    The target of a piece are its windows, relative to those of the step.
    """
    lead, sizes = [bounds.stop - bounds.start for bounds in step.source[:2]], []
    for bounds in step.source[2:]:
        sizes.append(bounds.stop - bounds.start)
    found = []
    for box in boxes(sizes, max(1, read_at_once(problem) // max(1, prod(lead)))):
        windows, local = slabs_in(step.axes, box)
        read = [slice(part.start + a, part.start + b) for part, (a, b) in zip(step.source[2:], box)]
        found.append(Step(box, windows, (*step.source[:2], *read), local, way_of(local)))
    return found


def row_ranges(problem: PoolProblem, plane: int) -> Sequence[Rows]:
    """Cut N C into ranges that one tile each has room for, at `plane` elements per row."""
    if problem.n * problem.c * plane > tile_size() * _KEPT:
        return tiles(problem, (1,), plane, CONTIGUOUS)[0]
    return _kept_ranges(problem, plane, tile_size())


@lru_cache(maxsize=256)
def _kept_ranges(problem: PoolProblem, plane: int, tile: int) -> list[Rows]:
    return tiles(problem, (1,), plane, CONTIGUOUS)[0]


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
