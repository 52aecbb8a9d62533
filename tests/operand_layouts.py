"""Ways in which the elements of an operand may lie in memory, each among values that no kernel may read.

A layout is made in NumPy as a flat buffer and a view of it, so that every library can show the same memory as its own
array: by shape, strides and offset in elements.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

GUARD = 64
"""Elements on each side of a view; 64 of one byte are a multiple of every alignment."""

SIGNED = ("reversed", "channels_last reversed")
"""Layouts with negative strides, which torch does not have."""

ODD = ("read-only", "field", "unaligned", "swapped")
"""Layouts that only NumPy has: what may not be written, strides and addresses that are no multiples of an element, and
the other order of bytes."""


@dataclass(frozen=True)
class Placed:
    """Elements in a buffer of poison: a view by shape, strides and offset in elements."""

    buffer: np.ndarray
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self) -> np.ndarray:
        """Return the view as NumPy's array."""
        step = self.buffer.itemsize
        return np.ndarray(
            self.shape, self.buffer.dtype, self.buffer, self.offset * step, [stride * step for stride in self.strides]
        )


def _dense(shape: Sequence[int], order: Sequence[int], gap: int = 1, margin: int = 0) -> list[int]:
    """Return strides of axes in `order`, the outermost first: elements `gap` apart, lines `margin` longer than full."""
    strides, step = [0] * len(shape), gap
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1) + margin
    return strides


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes with channels innermost."""
    return (0, *range(2, len(shape)), 1) if len(shape) > 2 else tuple(range(len(shape)))


def _first(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(shape)))


def _expanded(*axes: int) -> Callable[[Sequence[int]], list[int]]:
    def strides(shape: Sequence[int]) -> list[int]:
        fixed = {min(axis, len(shape) - 1) % len(shape) for axis in axes} if axes else set(range(len(shape)))
        dense = _dense([1 if axis in fixed else size for axis, size in enumerate(shape)], _first(shape))
        return [0 if axis in fixed else step for axis, step in enumerate(dense)]

    return strides


STRIDES: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "offset": lambda shape: _dense(shape, _first(shape)),
    "channels_last offset": lambda shape: _dense(shape, _last(shape)),
    "gaps": lambda shape: _dense(shape, _first(shape), gap=2),
    "margins": lambda shape: _dense(shape, _first(shape), margin=1),
    "channels_last gaps": lambda shape: _dense(shape, _last(shape), gap=2),
    "channels_last margins": lambda shape: _dense(shape, _last(shape), margin=8),
    "transposed": lambda shape: _dense(shape, _first(shape)[::-1]),
    "expanded images": _expanded(0),
    "expanded channels": _expanded(1),
    "expanded lines": _expanded(-1),
    "expanded": _expanded(),
    "overlapping": lambda shape: [1] * len(shape),
    "reversed": lambda shape: [-step for step in _dense(shape, _first(shape), margin=1)],
    "channels_last reversed": lambda shape: [-step for step in _dense(shape, _last(shape))],
}
"""Strides in elements of a shape by the layout's name; every one starts an odd number of elements into its buffer."""

OF_POSITIONS = tuple(name for name in STRIDES if name not in ("expanded lines", "expanded", "overlapping"))
"""Layouts of indices: neighbours in a plane must be able to differ."""


def place(values: np.ndarray, layout: str) -> Placed:
    """Return `values` in a layout; where elements share memory, one of their values."""
    shape = values.shape
    strides = STRIDES[layout](shape)
    steps = [] if 0 in shape else [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    begin = GUARD + 1 - sum(step for step in steps if step < 0)
    poison = np.nan if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    buffer = np.full(2 * GUARD + 2 + sum(map(abs, steps)), poison, values.dtype)
    buffer = _aligned(buffer)
    placed = Placed(buffer, shape, tuple(strides), begin)
    placed.view()[...] = values
    return placed


def _aligned(buffer: np.ndarray) -> np.ndarray:
    """Return a copy that begins at a multiple of 64 bytes."""
    raw = np.empty(buffer.nbytes + 64, np.uint8)
    first = -raw.__array_interface__["data"][0] % 64
    copy = raw[first : first + buffer.nbytes].view(buffer.dtype)
    copy[...] = buffer
    return copy


def odd(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values` in one of the layouts `ODD`."""
    if layout == "read-only":
        result = values.copy()
        result.flags.writeable = False
        return result
    if layout == "swapped":
        return values.astype(values.dtype.newbyteorder())
    if layout == "field":
        record = np.zeros(values.shape, np.dtype([("before", np.uint8), ("value", values.dtype)]))
        record["value"] = values
        return record["value"]
    raw = np.zeros(values.nbytes + 1, np.uint8)
    result = raw[1:].view(values.dtype).reshape(values.shape)
    result[...] = values
    return result


def drawn(names: Sequence[T], count: int, *key: object) -> list[T]:
    """Return `count` of `names`, other ones for other keys."""
    order = np.random.default_rng(zlib.crc32(repr(key).encode())).permutation(len(names))
    return [names[place] for place in order[:count]]
