"""Element types and tiles that the NumPy solvers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar

import numpy as np

from ...arrays import bfloat16_bits
from ...config import workspace_limit
from ...numerics import e4m3_values
from ...problem import PoolProblem
from ...shapes import ceil_div

__all__ = [
    "Box",
    "boxes",
    "compute_dtype",
    "kept",
    "narrow",
    "parts_per_axis",
    "rounded",
    "shown_runs",
    "widen",
    "workspace_target",
]

Box = tuple[tuple[int, int], ...]
"""A rectangle of positions: (start, stop) per axis."""

_FEW_WINDOWS = 1 << 12
"""Windows, summed over the axes, up to which what is derived from a problem counts as short."""

Derive = TypeVar("Derive", bound=Callable[..., Any])


def kept(derive: Derive) -> Derive:
    """Keep what a function derives from a problem, its first argument, for the problems that were seen last.

    That may be as long as the axes have windows. Of problems with many, only the last two are kept: they may take
    hundreds of megabytes.
    """
    short, long = lru_cache(maxsize=256)(derive), lru_cache(maxsize=2)(derive)

    @wraps(derive)
    def find(problem: PoolProblem, *rest: Any) -> Any:
        return (short if sum(problem.output_size) <= _FEW_WINDOWS else long)(problem, *rest)

    def clear() -> None:
        short.cache_clear()
        long.cache_clear()

    find.cache_clear = clear  # type: ignore[attr-defined]
    return find  # type: ignore[return-value]


@lru_cache(maxsize=64)
def compute_dtype(dtype: str) -> np.dtype:
    """Return the type in which a problem of type `dtype` is computed: float32 for smaller floats, else `dtype`."""
    return np.dtype("float32" if dtype in ("float16", "bfloat16", "float8_e4m3fn") else dtype)


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return `array` (bfloat16 and float8 as their bits) in its compute type; a view where nothing changes."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e4m3fn":
        return e4m3_values(array)
    return array.astype(compute_dtype(dtype), copy=False)


def narrow(values: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """Write compute-type `values` to `out`, of element type `dtype` (bfloat16 as its bits), rounding once."""
    out[...] = bfloat16_bits(values) if dtype == "bfloat16" else values


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return compute-type `values` as they are after a store in `dtype`."""
    stored = bfloat16_bits(values) if dtype == "bfloat16" else values.astype(dtype)
    return widen(stored, dtype)


def workspace_target() -> int:
    """Return how many bytes one chunk of work may allocate: a quarter of the limit, as temporaries come on top."""
    return max(workspace_limit() // 4, 1 << 16)


def parts_per_axis(sizes: Sequence[int], positions: int) -> list[int]:
    """Return into how many parts :func:`boxes` cuts each axis."""
    lengths = list(sizes)
    for axis in range(len(sizes)):
        inner = 1
        for size in sizes[axis + 1 :]:
            inner *= size
        lengths[axis] = max(1, min(sizes[axis], positions // max(inner, 1)))
        if lengths[axis] > 1:
            break
    return [ceil_div(size, length) if size else 0 for size, length in zip(sizes, lengths, strict=True)]


def boxes(sizes: Sequence[int], positions: int) -> Iterator[Box]:
    """Cut a grid of `sizes` into boxes of at most `positions` positions (at least one), keeping inner axes whole first.

    An axis is cut into nearly equal parts. Yields nothing when an axis is empty.
    """
    yield from _boxes(sizes, parts_per_axis(sizes, positions))


def _boxes(sizes: Sequence[int], parts: Sequence[int]) -> Iterator[Box]:
    if not sizes:
        yield ()
        return
    for part in range(parts[0]):
        first = part * sizes[0] // parts[0], (part + 1) * sizes[0] // parts[0]
        for rest in _boxes(sizes[1:], parts[1:]):
            yield (first, *rest)


def shown_runs(size: int, start: int, stop: int, mode: str) -> Iterator[tuple[slice, slice]]:
    """Yield what the padded coordinates in ``[start, stop)`` show, along an axis of `size` elements, in runs.

    A run is (slice of the coordinates, from `start` on; slice of the input); one of ``"replicate"`` padding shows one
    element many times. Coordinates count from the first element of the unpadded input. `mode` is ``"reflect"``
    (mirrored at the edges without repeating them), ``"replicate"`` or ``"circular"`` (wraps any number of times), as
    ``torch.nn.functional.pad``.
    """
    if mode == "circular":
        at = start
        while at < stop:
            first = at % size
            length = min(size - first, stop - at)
            yield slice(at - start, at - start + length), slice(first, first + length)
            at += length
        return
    if start < 0:
        end = min(stop, 0)
        yield slice(0, end - start), slice(-start, -end, -1) if mode == "reflect" else slice(0, 1)
    if max(start, 0) < min(stop, size):
        first, last = max(start, 0), min(stop, size)
        yield slice(first - start, last - start), slice(first, last)
    if stop > size:
        first, mirror = max(start, size), 2 * (size - 1)
        behind = None if mirror < stop else mirror - stop
        shown = slice(mirror - first, behind, -1) if mode == "reflect" else slice(size - 1, size)
        yield slice(first - start, stop - start), shown
