"""Positions in a plane and in-window offsets, the two ways to say which element a window took.

An offset is the tap ``(t R + r) S + s`` of the window: with the first element of every window it gives the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...problem import PoolProblem
from ...shapes import adaptive_window, pool_reads
from .common import Box, kept

__all__ = ["first_elements", "reading_windows", "to_offsets", "to_positions"]


@kept
def _firsts(problem: PoolProblem) -> tuple[np.ndarray, ...]:
    """Return, per axis, the first element of every window; it may lie in the padding."""
    if problem.pool.startswith("adaptive"):
        sizes = zip(problem.input_size, problem.output_size)
        every: list[Any] = [np.arange(o, dtype=np.int64) for o in problem.output_size]
        firsts: list[Any] = [adaptive_window(each, n, max(o, 1))[0] for each, (n, o) in zip(every, sizes)]
        return tuple(firsts)
    axes = zip(problem.output_size, problem.stride, problem.pad_lo)
    return tuple(np.arange(out, dtype=np.int64) * stride - lo for out, stride, lo in axes)


def first_elements(problem: PoolProblem, box: Box, fmt: str) -> list[np.ndarray]:
    """Return the first elements of the windows in `box`, per axis, to broadcast against a tile of that format."""
    behind = fmt == CHANNELS_LAST
    shapes = [(-1, *(1,) * (problem.ndim - 1 - axis + behind)) for axis in range(problem.ndim)]
    firsts = zip(_firsts(problem), box, shapes)
    return [first[start:stop].reshape(shape) for first, (start, stop), shape in firsts]


@lru_cache(maxsize=256)
def reading_windows(problem: PoolProblem) -> np.ndarray | None:
    """Return which windows read an element, and not padding alone, as a dilation can make them; ``None``: all of them.

    The position of the maximum of a window of padding is some element of the plane, which gets no gradient of it.
    """
    if problem.pool != "max" or max(problem.dilation) == 1:
        return None
    axes = zip(
        problem.output_size, problem.input_size, problem.kernel, problem.stride, problem.pad_lo, problem.dilation
    )
    lines = [[pool_reads(i, *axis) for i in range(out)] for out, *axis in axes]
    return None if all(map(all, lines)) else reduce(np.multiply.outer, [np.array(line) for line in lines])


def to_offsets(problem: PoolProblem, positions: np.ndarray, firsts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the in-window offsets of positions; `firsts` are the first elements of their windows, per axis.

    A window without an element, which a dilation can make of padding alone, gets some tap of the padding.
    """
    left, offsets, pitch = positions, np.zeros(positions.shape, np.int64), 1
    for axis in range(problem.ndim - 1, -1, -1):
        left, at = np.divmod(left, problem.input_size[axis])
        at -= firsts[axis]
        if max(problem.dilation) > 1:  # of any axis: positions beyond the end of one count on in the next
            at = np.clip(at // problem.dilation[axis], 0, problem.kernel[axis] - 1)
        offsets += at * pitch
        pitch *= problem.kernel[axis]
    return offsets


def to_positions(
    problem: PoolProblem, offsets: np.ndarray, firsts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the positions that in-window offsets mean, and which of them are no padding (``None``: all of them)."""
    left, positions, pitch = offsets.astype(np.int64), np.zeros(offsets.shape, np.int64), 1
    inside = np.ones(offsets.shape, np.bool_) if max(problem.dilation) > 1 else None
    for axis in range(problem.ndim - 1, -1, -1):
        left, tap = np.divmod(left, problem.kernel[axis])
        at = firsts[axis] + tap * problem.dilation[axis]
        if inside is not None:
            inside &= (at >= 0) & (at < problem.input_size[axis])
        positions += at * pitch
        pitch *= problem.input_size[axis]
    if inside is None or inside.all():
        return positions, None
    return np.where(inside, positions, 0), inside
