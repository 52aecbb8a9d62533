"""The im2col matrix of a box of output positions, and the views that each tap of a filter reads.

Padding is handled here, once for every pass: zero padding by leaving out what reads nothing, the other modes by
gathering the slab of padded input that a box reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...problem import ConvProblem
from .common import Box, compute_dtype, shown_runs, widen

__all__ = ["Index", "box_slices", "columns_of", "position_views", "shown_boxes", "source_of", "tap_views"]

Index = tuple[Any, ...]
"""An index of an array: integers and slices, one per axis."""

Tap = tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]


def shown_boxes(problem: ConvProblem, box: Box) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield the runs of a box of padded coordinates: (slices of the box, slices of the input)."""
    axes = zip(problem.input_size, box, strict=True)
    runs = [list(shown_runs(size, start, stop, problem.padding_mode)) for size, (start, stop) in axes]
    for combination in product(*runs):
        yield tuple(place for place, _ in combination), tuple(shown for _, shown in combination)


def tap_views(problem: ConvProblem, positions: Box, origin: Sequence[int], size: Sequence[int]) -> Iterator[Tap]:
    """Yield each tap with the part of the output box that reads inside the source, and what it reads there.

    `positions` is a box of output positions and `origin` the input coordinate of the source's first element, `size` its
    extent. Yields (tap, slices of the box, slices of the source); taps that read nothing but padding are left out.
    """
    for tap in np.ndindex(*problem.kernel):
        inside, source = [], []
        for axis, (start, stop) in enumerate(positions):
            stride = problem.stride[axis]
            offset = tap[axis] * problem.dilation[axis] - problem.pad_lo[axis] - origin[axis]
            first = max(start, -(offset // stride))
            last = min(stop, (size[axis] - 1 - offset) // stride + 1)
            if first >= last:
                break
            inside.append(slice(first - start, last - start))
            source.append(slice(first * stride + offset, (last - 1) * stride + offset + 1, stride))
        else:
            yield tap, tuple(inside), tuple(source)


def position_views(problem: ConvProblem, positions: Box, origin: Sequence[int], size: Sequence[int]) -> Iterator[Tap]:
    """Yield each position of a box of outputs with the taps that are inside the source, and what they read there.

    As :func:`tap_views`, the other way round: (place in the box, slices of the taps, slices of the source). These are
    fewer where outputs are fewer than taps.
    """
    extents = tuple(stop - start for start, stop in positions)
    for place in np.ndindex(*extents):
        taps, source = [], []
        for axis, (start, _) in enumerate(positions):
            step = problem.dilation[axis]
            offset = (start + place[axis]) * problem.stride[axis] - problem.pad_lo[axis] - origin[axis]
            first = max(0, -(offset // step))
            last = min(problem.kernel[axis], (size[axis] - 1 - offset) // step + 1)
            if first >= last:
                break
            taps.append(slice(first, last))
            source.append(slice(first * step + offset, (last - 1) * step + offset + 1, step))
        else:
            yield place, tuple(taps), tuple(source)


def _input_box(problem: ConvProblem, positions: Box) -> Box:
    """Return the padded input coordinates that a box of output positions reads."""
    axes = zip(positions, problem.stride, problem.pad_lo, problem.kernel, problem.dilation, strict=True)
    return tuple((a * s - p, (b - 1) * s - p + d * (k - 1) + 1) for (a, b), s, p, k, d in axes)


def source_of(problem: ConvProblem, image: np.ndarray, positions: Box) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return what the taps of a box read, and the input coordinate of its first element.

    Zero padding reads the image itself. The other modes gather the padded slab of the box, and of this box alone; a box
    that reads no padding is a view.
    """
    if problem.padding_mode == "zeros":
        return image, (0,) * problem.ndim
    box = _input_box(problem, positions)
    origin = tuple(start for start, _ in box)
    if all(start >= 0 and stop <= size for (start, stop), size in zip(box, problem.input_size, strict=True)):
        return image[(slice(None), *box_slices(box))], origin
    slab = np.empty_like(image, shape=(len(image), *(stop - start for start, stop in box)))
    for place, shown in shown_boxes(problem, box):
        slab[(slice(None), *place)] = image[(slice(None), *shown)]
    return slab, origin


def _padded(problem: ConvProblem, image: np.ndarray, positions: Box, channels_last: bool) -> np.ndarray | None:
    """Return the slab of the image that a box reads, padding included; a view of the image where there is no padding.

    Returns None where padding needs a slab larger than the columns, as large dilations do.
    """
    if problem.padding_mode != "zeros":
        return widen(source_of(problem, image, positions)[0], problem.dtype)
    box = _input_box(problem, positions)
    part = tuple((max(a, 0), min(b, size)) for (a, b), size in zip(box, problem.input_size, strict=True))
    if part == box:
        return widen(image[(slice(None), *box_slices(part))], problem.dtype)
    sizes = [b - a for a, b in box]
    if prod(sizes) > prod(problem.kernel) * prod(b - a for a, b in positions) or any(a >= b for a, b in part):
        return None
    dtype = compute_dtype(problem.dtype)
    shape = (*sizes, len(image)) if channels_last else (len(image), *sizes)
    slab = np.moveaxis(np.zeros(shape, dtype), -1, 0) if channels_last else np.zeros(shape, dtype)
    inside = tuple((a - lo, b - lo) for (a, b), (lo, _) in zip(part, box, strict=True))
    slab[(slice(None), *box_slices(inside))] = widen(image[(slice(None), *box_slices(part))], problem.dtype)
    return slab


def columns_of(problem: ConvProblem, image: np.ndarray, positions: Box, channels_last: bool) -> np.ndarray:
    """Return the im2col matrix of a box: [channels x taps, positions]; channels-last, [positions, taps x channels].

    One strided copy of a padded slab; a view of the image for a pointwise convolution.
    """
    extent = tuple(stop - start for start, stop in positions)
    channels, kernel, rows = len(image), problem.kernel, len(image) * prod(problem.kernel)
    slab = _padded(problem, image, positions, channels_last)
    if slab is None:
        return _columns_by_tap(problem, image, positions, channels_last)
    if slab.shape[1:] == extent and rows == channels:  # pointwise: the slab itself
        slab = slab.reshape(rows, prod(extent))
        return slab.T if channels_last else slab
    channel, *steps = slab.strides
    over_taps = _scaled(steps, problem.dilation, kernel)
    over_positions = _scaled(steps, problem.stride, extent)
    if channels_last:
        windows = as_strided(slab, (*extent, *kernel, channels), (*over_positions, *over_taps, channel))
        return windows.reshape(prod(extent), rows)
    windows = as_strided(slab, (channels, *kernel, *extent), (channel, *over_taps, *over_positions))
    return windows.reshape(rows, prod(extent))


def _scaled(steps: Sequence[int], factors: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """Return the steps in bytes times the factors; none along an axis of one, where any factor is allowed."""
    return tuple(a * b if count > 1 else 0 for a, b, count in zip(steps, factors, counts, strict=True))


def _columns_by_tap(problem: ConvProblem, image: np.ndarray, positions: Box, channels_last: bool) -> np.ndarray:
    """Return the im2col matrix of a zero-padded box without a slab: each tap copies what it reads inside the image."""
    origin = (0,) * problem.ndim
    extent = tuple(stop - start for start, stop in positions)
    dtype = compute_dtype(problem.dtype)
    shape = (len(image), *problem.kernel, *extent)
    columns = np.zeros((*extent, *problem.kernel, len(image)) if channels_last else shape, dtype)
    for tap, inside, read in tap_views(problem, positions, origin, problem.input_size):
        values = widen(image[(slice(None), *read)], problem.dtype)
        target = np.moveaxis(columns, -1, 0) if channels_last else columns
        place: Index = (*inside, *tap) if channels_last else (*tap, *inside)
        target[(slice(None), *place)] = values
    return columns.reshape((prod(extent), -1) if channels_last else (-1, prod(extent)))


def box_slices(positions: Box) -> tuple[slice, ...]:
    """Return a box as an index."""
    return tuple(slice(start, stop) for start, stop in positions)
