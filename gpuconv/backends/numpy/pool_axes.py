"""Windows along one axis, and the passes over them that the NumPy pooling solvers are made of.

A pool over a box of H W is a pass over H and then one over W: maxima and sums are separable. Every pass is a handful of
NumPy calls on strided views, one per tap of the window (or one per window where windows are longer than they are many).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ...problem import PoolProblem
from ...shapes import adaptive_longest, adaptive_window, effective_kernel, pool_window
from .common import Box, kept

__all__ = [
    "Axis",
    "Ragged",
    "Regular",
    "axes_of",
    "counts_in",
    "divisor_of",
    "reduce_windows",
    "slabs_in",
    "slabs_out",
    "spread_windows",
    "tap_slices",
]


def _at(axis: int, part: Any) -> tuple[Any, ...]:
    return (*(slice(None),) * axis, part)


@dataclass(frozen=True, slots=True)
class Regular:
    """Windows at a fixed stride: ``o`` reads ``o * stride - lo + t * dilation``, ``t < kernel``, inside the input."""

    size: int
    out: int
    kernel: int
    stride: int
    lo: int
    dilation: int

    @property
    def identity(self) -> bool:
        """Whether window ``o`` is element ``o``."""
        return self.kernel == 1 and self.stride == 1 and self.lo == 0 and self.out == self.size

    @property
    def by_window(self) -> bool:
        """Whether to reduce window by window: they are fewer than their elements."""
        return self.out < self.kernel

    def tap(self, t: int) -> tuple[slice, slice]:
        """Return the windows whose tap `t` is inside the input, and the elements that it reads."""
        first = t * self.dilation - self.lo
        begin = max(0, -(first // self.stride))
        end = max(begin, min(self.out, (self.size - 1 - first) // self.stride + 1))
        start = first + begin * self.stride
        if end == begin:
            return slice(0, 0), slice(0, 0)
        return slice(begin, end), slice(start, start + (end - begin - 1) * self.stride + 1, self.stride)

    def window(self, o: int) -> slice:
        """Return the elements of window `o` that are inside the input."""
        start = o * self.stride - self.lo
        skipped = -(min(start, 0) // self.dilation)
        end = min(start + (self.kernel - 1) * self.dilation + 1, self.size)
        start += skipped * self.dilation
        return slice(start, max(start, end), self.dilation)

    def cut(self, lo: int, hi: int) -> Iterator[int]:
        """Yield the windows that are not whole in the input with `lo` and `hi` elements of padding."""
        last = self.size + hi + self.lo - effective_kernel(self.kernel, self.dilation)
        begin = min(self.out, max(0, -((lo - self.lo) // self.stride)))
        end = min(self.out, max(begin, last // self.stride + 1))
        yield from range(begin)
        yield from range(end, self.out)

    def first(self) -> np.ndarray:
        """Return the position of the first element of each window that is not before the input."""
        return np.array([self.window(o).start for o in range(self.out)], np.int64)

    def slab_out(self, begin: int, end: int) -> tuple[int, int, Regular]:
        """Return the input range that windows `begin` to `end` read, and these windows relative to it."""
        start = begin * self.stride - self.lo
        stop = start + (end - begin - 1) * self.stride + effective_kernel(self.kernel, self.dilation)
        a = min(max(start, 0), self.size)
        b = max(a, min(stop, self.size))
        return a, b, Regular(b - a, end - begin, self.kernel, self.stride, a - start, self.dilation)

    def slab_in(self, begin: int, end: int) -> tuple[int, int, Regular]:
        """Return the windows that may read elements `begin` to `end`, relative to that range."""
        extent = effective_kernel(self.kernel, self.dilation)
        a = min(max(0, -((extent - 1 - begin - self.lo) // self.stride)), self.out)
        b = max(a, min(self.out, (end - 1 + self.lo) // self.stride + 1))
        lo = self.lo + begin - a * self.stride
        return a, b, Regular(end - begin, b - a, self.kernel, self.stride, lo, self.dilation)

    def reduce(self, op: np.ufunc, x: np.ndarray, axis: int, out: np.ndarray, neutral: object) -> None:
        """Write ``op`` over each window of `x` to `out`."""
        if self.by_window:
            for o in range(self.out):
                op.reduce(x[_at(axis, self.window(o))], axis=axis, out=out[_at(axis, o)], initial=neutral)
            return
        full, rest = _sorted_taps(self)
        if len(full) > 1:
            op(x[_at(axis, full[0])], x[_at(axis, full[1])], out=out)
        elif full:
            np.copyto(out, x[_at(axis, full[0])])
        else:
            out.fill(neutral)
        for read in full[2:]:
            op(out, x[_at(axis, read)], out=out)
        for windows, read in rest:
            part = out[_at(axis, windows)]
            op(part, x[_at(axis, read)], out=part)

    def spread(self, y: np.ndarray, axis: int, out: np.ndarray) -> None:
        """Add each window's `y` to the elements of `out`, which are zero, that it reads."""
        if self.by_window:
            for o in range(self.out):
                part = out[_at(axis, self.window(o))]
                np.add(part, y[_at(axis, slice(o, o + 1))], out=part)
            return
        for t in range(self.kernel):
            windows, read = self.tap(t)
            part = out[_at(axis, read)]
            np.add(part, y[_at(axis, windows)], out=part)


@lru_cache(maxsize=256)
def _sorted_taps(axis: Regular) -> tuple[list[slice], list[tuple[slice, slice]]]:
    """Return what those taps read that every window has; of the others, which windows have them and what they read."""
    taps = [axis.tap(t) for t in range(axis.kernel)]
    every, none = slice(0, axis.out), slice(0, 0)
    full = [read for windows, read in taps if windows == every]
    return full, [tap for tap in taps if tap[0] != every and tap[0] != none]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Windows of an adaptive pool of `whole` elements into `windows`: `out` of them from `skipped` on.

    They are cut off to the `size` elements from `begin` on, and places count from there.
    """

    size: int
    out: int
    whole: int
    windows: int
    skipped: int = 0
    begin: int = 0

    @property
    def starts(self) -> np.ndarray:
        """First element of each window."""
        return np.clip(self._bounds()[0], 0, self.size)

    @property
    def ends(self) -> np.ndarray:
        """Element behind the last one of each window."""
        return np.clip(self._bounds()[1], 0, self.size)

    def _bounds(self) -> tuple[Any, Any]:
        every: Any = np.arange(self.skipped, self.skipped + self.out, dtype=np.int64)
        start, end = adaptive_window(every, self.whole, self.windows) if self.out else (every, every)
        return start - self.begin, end - self.begin

    @property
    def kernel(self) -> int:
        """Elements of the longest window."""
        return int((self.ends - self.starts).max(initial=0))

    @property
    def identity(self) -> bool:
        """Whether window ``o`` is element ``o``."""
        return False

    @property
    def by_window(self) -> bool:
        """Whether to reduce window by window: they are fewer than their elements."""
        return self.out <= adaptive_longest(self.whole, self.windows)

    def window(self, o: int) -> slice:
        """Return the elements of window `o`."""
        start, end = adaptive_window(self.skipped + o, self.whole, self.windows)
        return slice(max(start - self.begin, 0), min(end - self.begin, self.size), 1)

    def slab_out(self, begin: int, end: int) -> tuple[int, int, Ragged]:
        """Return the input range that windows `begin` to `end` read, and these windows relative to it."""
        a, b = self.window(begin).start, self.window(end - 1).stop
        return a, b, Ragged(b - a, end - begin, self.whole, self.windows, self.skipped + begin, self.begin + a)

    def slab_in(self, begin: int, end: int) -> tuple[int, int, Ragged]:
        """Return the windows that may read elements `begin` to `end`, relative to that range."""
        # A window reads an element where the element, seen as a window of a pool of the windows, reads the window.
        a = adaptive_window(self.begin + begin, self.windows, self.whole)[0] - self.skipped if self.out else 0
        b = adaptive_window(self.begin + end - 1, self.windows, self.whole)[1] - self.skipped if self.out else 0
        a = min(max(a, 0), self.out)
        b = min(max(a, b), self.out)
        return a, b, Ragged(end - begin, b - a, self.whole, self.windows, self.skipped + a, self.begin + begin)

    def reduce(self, op: np.ufunc, x: np.ndarray, axis: int, out: np.ndarray, neutral: object) -> None:
        """Write ``op`` over each window of `x` to `out`."""
        if self.by_window:
            for o in range(self.out):
                op.reduce(x[_at(axis, self.window(o))], axis=axis, out=out[_at(axis, o)], initial=neutral)
            return
        starts, lengths = self.starts, self.ends - self.starts
        if not lengths.all():  # windows of which a slab has nothing
            out.fill(neutral)
        for t in range(int(lengths.max(initial=0))):
            longer = lengths > t
            if longer.all():
                if t:
                    op(out, np.take(x, starts + t, axis), out=out)
                else:
                    np.take(x, starts, axis, out=out, mode="clip")  # which, other than "raise", needs no copy
                continue
            where = _at(axis, np.flatnonzero(longer))
            out[where] = op(out[where], np.take(x, starts[longer] + t, axis))

    def spread(self, y: np.ndarray, axis: int, out: np.ndarray) -> None:
        """Add each window's `y` to the elements of `out`, which are zero, that it reads."""
        if self.by_window:
            for o in range(self.out):
                part = out[_at(axis, self.window(o))]
                np.add(part, y[_at(axis, slice(o, o + 1))], out=part)
            return
        # The windows that read an element are next to one another: those of an adaptive pool of the windows.
        turned = Ragged(self.out, self.size, self.windows, self.whole, self.begin, self.skipped)
        turned.reduce(np.add, y, axis, out, 0)


Axis: TypeAlias = Regular | Ragged


@kept
def axes_of(problem: PoolProblem) -> tuple[Axis, ...]:
    """Return the windows of `problem`, one axis at a time."""
    if not problem.pool.startswith("adaptive"):
        per_axis = zip(
            problem.input_size, problem.output_size, problem.kernel, problem.stride, problem.pad_lo, problem.dilation
        )
        return tuple(Regular(*axis) for axis in per_axis)
    axes: list[Axis] = []
    for size, out in zip(problem.input_size, problem.output_size):
        if out and size and size % out == 0:
            axes.append(Regular(size, out, size // out, size // out, 0, 1))
        else:
            axes.append(Ragged(size, out, size, out))
    return tuple(axes)


@kept
def _counts(problem: PoolProblem) -> tuple[np.ndarray, ...]:
    """Return, per axis, by how many elements the sum of each window is divided; the divisor is their product."""
    counts = []
    for i, axis in enumerate(axes_of(problem)):
        if isinstance(axis, Ragged):
            counts.append(axis.ends - axis.starts)
            continue
        include = problem.count_include_pad and not problem.pool.startswith("adaptive")
        pads = (problem.pad_lo[i], problem.pad_hi[i]) if include else (0, 0)
        found = np.full(axis.out, axis.kernel, np.int64)
        for o in axis.cut(*pads):  # the others are whole
            if include:
                start, end = pool_window(o, axis.size, axis.kernel, axis.stride, *pads, axis.dilation)
                found[o] = (end - start + axis.dilation - 1) // axis.dilation
            else:
                found[o] = len(range(*axis.window(o).indices(axis.size)))
        counts.append(found)
    return tuple(counts)


def counts_in(problem: PoolProblem, box: Box) -> list[np.ndarray]:
    """Return, per axis, by how many elements the sums of the windows in `box` are divided."""
    return [count[start:stop] for count, (start, stop) in zip(_counts(problem), box)]


@kept
def divisor_of(problem: PoolProblem, box: Box) -> int | None:
    """Return what the sum of every window in `box` is divided by, or None if that differs."""
    if problem.divisor_override is not None:
        return problem.divisor_override
    parts = counts_in(problem, box)
    if all(part[0] == part[-1] and (part == part[0]).all() for part in parts):
        return prod(int(part[0]) for part in parts)
    return None


def slabs_out(axes: Sequence[Axis], box: Box) -> tuple[tuple[slice, ...], tuple[Axis, ...]]:
    """Return the input box that the windows in the output `box` read, and the windows relative to it."""
    parts = [axis.slab_out(*bounds) for axis, bounds in zip(axes, box)]
    return tuple(slice(a, b) for a, b, _ in parts), tuple(axis for _, _, axis in parts)


def slabs_in(axes: Sequence[Axis], box: Box) -> tuple[tuple[slice, ...], tuple[Axis, ...]]:
    """Return the output box whose windows may read the input `box`, and the windows relative to it."""
    parts = [axis.slab_in(*bounds) for axis, bounds in zip(axes, box)]
    return tuple(slice(a, b) for a, b, _ in parts), tuple(axis for _, _, axis in parts)


def reduce_windows(op: np.ufunc, x: np.ndarray, axes: Sequence[Axis], out: np.ndarray, neutral: object) -> None:
    """Write ``op`` over every window to `out`. Axis ``i`` of the windows is axis ``1 + i`` of `x` and `out`."""
    work = [i for i, axis in enumerate(axes) if not axis.identity]
    if not work:
        np.copyto(out, x)
        return
    # Maxima of one plane as those of many: which of the zeros, or of the NaNs, wins depends on the order.
    by_row = x.ndim == 1 + len(axes) and (len(x) > 1 or (op is np.maximum and _whole(axes)))
    if by_row and any(axis.by_window for axis in axes):
        _reduce_rows(op, x, axes, out, neutral)
        return
    for i in work:
        shape = (*x.shape[: 1 + i], axes[i].out, *x.shape[2 + i :])
        y = out if i == work[-1] else np.empty(shape, x.dtype)
        axes[i].reduce(op, x, 1 + i, y, neutral)
        x = y


def _whole(axes: Sequence[Axis]) -> bool:
    """Tell whether there is one window, which reads every element."""
    return all(axis.out == 1 and axis.window(0) == slice(0, axis.size, 1) for axis in axes)


def _reduce_rows(op: np.ufunc, x: np.ndarray, axes: Sequence[Axis], out: np.ndarray, neutral: object) -> None:
    """Reduce rows x *spatial with windows that are few and long: per window, a NumPy loop over W would be short.

    Whole planes are one reduction each (of floats a sum is a product with ones, which keeps NaN and infinities);
    others are turned so that the rows are innermost.
    """
    rows = len(x)
    if _whole(axes):
        planes = x.reshape(rows, -1)
        if op is np.add and x.dtype.kind == "f":
            np.matmul(planes, np.ones(planes.shape[1], x.dtype), out=out.reshape(rows))
        elif planes.size:  # faster than a reduction of an axis
            op.reduceat(planes.reshape(-1), np.arange(0, planes.size, planes.shape[1]), out=out.reshape(rows))
        else:
            out.fill(neutral)
        return
    turned = np.ascontiguousarray(np.moveaxis(x, 0, -1))[None]
    result = np.empty((1, *out.shape[1:], rows), x.dtype)
    reduce_windows(op, turned, axes, result, neutral)
    np.copyto(out, np.moveaxis(result[0], -1, 0))


def spread_windows(y: np.ndarray, axes: Sequence[Axis], out: np.ndarray) -> None:
    """Write to each element of `out` the sum of `y` over the windows that read it: the adjoint of summing windows."""
    for i in range(len(axes) - 1, -1, -1):
        shape = (*y.shape[: 1 + i], axes[i].size, *y.shape[2 + i :])
        x = out if i == 0 else np.empty(shape, y.dtype)
        x.fill(0)
        axes[i].spread(y, 1 + i, x)
        y = x


def tap_slices(axes: Sequence[Regular]) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Return, for every tap of a box window in row-major order, the windows that have it and the elements it reads."""
    per_axis = [[axis.tap(t) for t in range(axis.kernel)] for axis in axes]
    return [(tuple(w for w, _ in taps), tuple(r for _, r in taps)) for taps in product(*per_axis)]
