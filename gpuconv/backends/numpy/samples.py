"""Where a deformable convolution samples its input: the corners around each position, as rows of an image, and weights.

An image lies as rows of channels, one for each element, with a row of zeros behind them: what is outside reads that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from ...problem import ConvProblem, DeformProblem
from .columns import box_slices
from .common import Box, compute_dtype, widen

__all__ = ["Samples", "image_rows", "samples_of"]


@dataclass(slots=True)
class Samples:
    """Positions of one group of offsets in a box of outputs: arrays of [outputs, taps], over axes or corners.

    Corner ``(0, 1)`` is the lower neighbour along the first axis and the higher along the second.
    """

    lower: list[np.ndarray]
    """Lower neighbour along each axis, 0 where the position is not in [-1, size)."""

    fraction: list[np.ndarray]
    """How far above it the position is, in [0, 1)."""

    near: np.ndarray
    """Where the position is in [-1, size) along every axis: there it has a gradient."""

    there: np.ndarray
    """Where it is in (-1, size): there is a sample."""

    whole: np.ndarray
    """1, and NaN where the position is NaN along an axis."""

    size: tuple[int, ...]

    def corners(self) -> list[tuple[int, ...]]:
        """Return the corners."""
        return list(product((0, 1), repeat=len(self.size)))

    def rows(self, corner: Sequence[int], sampled: bool) -> np.ndarray:
        """Return the rows of an image that hold a corner, of `sampled` positions or of those with a gradient."""
        inside = self.there if sampled else self.near
        row = np.zeros(inside.shape, np.intp)
        for lower, size, high in zip(self.lower, self.size, corner, strict=True):
            at = lower + high
            inside = inside & (at >= 0) & (at < size)
            row *= size
            row += at
        row[~inside] = prod(self.size)
        return row

    def weight(self, corner: Sequence[int], along: int | None = None) -> np.ndarray:
        """Return the weight of a corner, or its derivative by the position along an axis."""
        found = self.whole
        for axis, (fraction, high) in enumerate(zip(self.fraction, corner, strict=True)):
            if axis == along:
                found = found if high else -found
            else:
                found = found * (fraction if high else 1 - fraction)
        return found


def _positions(conv: ConvProblem, axis: int, box: Box) -> np.ndarray:
    """Return the positions along an axis without offsets, [outputs, taps], as integers."""
    start, stop = box[axis]
    outputs = np.arange(start, stop) * conv.stride[axis] - conv.pad_lo[axis]
    taps = np.arange(conv.kernel[axis]) * conv.dilation[axis]
    ones = [1] * conv.ndim
    ones[axis] = -1
    along = outputs.reshape(*ones, *(1,) * conv.ndim) + taps.reshape(ones)
    extent = [stop - start for start, stop in box]
    return np.broadcast_to(along, (*extent, *conv.kernel)).reshape(prod(extent), prod(conv.kernel))


def samples_of(problem: DeformProblem, offset: np.ndarray, group: int, box: Box) -> Samples:
    """Return the positions of a group of offsets in a box of outputs; `offset` is of one image."""
    conv, taps = problem.conv, problem.taps
    dtype = compute_dtype(conv.dtype)
    lowers, fractions = [], []
    broken = np.zeros((prod(stop - start for start, stop in box), taps), bool)
    near = ~broken
    there = ~broken
    for axis in range(conv.ndim):
        first = group * taps * conv.ndim + axis
        channels = slice(first, first + (taps - 1) * conv.ndim + 1, conv.ndim)
        moved = widen(offset[(channels, *box_slices(box))], conv.dtype).reshape(taps, -1).T
        position = _positions(conv, axis, box).astype(dtype) + moved
        size = conv.input_size[axis]
        broken |= np.isnan(position)
        along = (position >= -1) & (position < size)
        near &= along
        there &= along & (position > -1)
        position[~along] = 0
        lower = np.floor(position)
        position -= lower
        lowers.append(lower.astype(np.intp))
        fractions.append(position)
    whole = np.where(broken, np.array(np.nan, dtype), np.array(1, dtype))
    return Samples(lowers, fractions, near, there, whole, conv.input_size)


def image_rows(image: np.ndarray) -> np.ndarray:
    """Return an image of [channels, ...] as rows of channels, and a row of zeros."""
    rows = np.zeros((prod(image.shape[1:]) + 1, len(image)), image.dtype)
    rows[:-1] = np.moveaxis(image, 0, -1).reshape(-1, len(image))
    return rows
