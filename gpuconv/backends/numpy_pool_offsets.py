"""Positions in a plane and in-window offsets, the two ways to say which element a window took.

An offset is the tap ``(t R + r) S + s`` of the window: with the first element of every window it gives the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..arrays import CHANNELS_LAST
from ..problem import PoolProblem
from ..shapes import adaptive_windows
from .numpy_common import Box

__all__ = ["first_elements", "to_offsets", "to_positions"]


@lru_cache(maxsize=256)
def _firsts(problem: PoolProblem) -> tuple[np.ndarray, ...]:
    """Return, per axis, the first element of every window; it may lie in the padding."""
    if problem.pool.startswith("adaptive"):
        sizes = zip(problem.input_size, problem.output_size)
        return tuple(np.array(adaptive_windows(n, o)[0] if o else (), np.int64) for n, o in sizes)
    axes = zip(problem.output_size, problem.stride, problem.pad_lo)
    return tuple(np.arange(out, dtype=np.int64) * stride - lo for out, stride, lo in axes)


def first_elements(problem: PoolProblem, box: Box, fmt: str) -> list[np.ndarray]:
    """Return the first elements of the windows in `box`, per axis, to broadcast against a tile of that format."""
    behind = fmt == CHANNELS_LAST
    shapes = [(-1, *(1,) * (problem.ndim - 1 - axis + behind)) for axis in range(problem.ndim)]
    firsts = zip(_firsts(problem), box, shapes)
    return [first[start:stop].reshape(shape) for first, (start, stop), shape in firsts]


def to_offsets(problem: PoolProblem, positions: np.ndarray, firsts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the in-window offsets of positions; `firsts` are the first elements of their windows, per axis."""
    left, offsets, pitch = positions, np.zeros(positions.shape, np.int64), 1
    for axis in range(problem.ndim - 1, -1, -1):
        left, at = np.divmod(left, problem.input_size[axis])
        at -= firsts[axis]
        if problem.dilation[axis] != 1:
            at //= problem.dilation[axis]
        offsets += at * pitch
        pitch *= problem.kernel[axis]
    return offsets


def to_positions(problem: PoolProblem, offsets: np.ndarray, firsts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the positions that in-window offsets mean; the inverse of :func:`to_offsets`."""
    left, positions, pitch = offsets.astype(np.int64), np.zeros(offsets.shape, np.int64), 1
    for axis in range(problem.ndim - 1, -1, -1):
        left, tap = np.divmod(left, problem.kernel[axis])
        positions += (firsts[axis] + tap * problem.dilation[axis]) * pitch
        pitch *= problem.input_size[axis]
    return positions
