"""Receptive fields as they flow through a graph: what each element of a tensor sees of the input, axis by axis.

Along one axis of the input the elements of a tensor are in one of three states. On a :class:`Grid` they see an interval
each, the same again and again from one period to the next: a convolution has period 1, an upsampling by 2 period 2. Or
each sees the ``WHOLE`` axis, or it is ``UNKNOWN``. Padding counts as pixels of the input, as it does in
:func:`gpuconv.shapes.receptive_field`: an interval may reach beyond the input, and its length does not depend on where
it lies. Source of the arithmetic: Araujo, Norris & Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019, whose fields with one step per axis are those of period 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from math import gcd, lcm, prod

__all__ = ["Factor", "Field", "Grid", "Seen", "State", "union", "union_of"]

_MOST = 4096
"""Longest period that is followed."""


class Seen(Enum):
    """What all elements see where no interval says it."""

    WHOLE = "whole"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Grid:
    """Element ``q p + r`` sees the pixels from ``lows[r] + q step`` to ``highs[r] + q step``, ``p`` the period.

    Where ``lows[r]`` is None it sees nothing, as an output of a transposed convolution that no tap reaches.
    """

    lows: tuple[int | None, ...]
    highs: tuple[int | None, ...]
    step: int

    def at(self, index: int) -> tuple[int, int] | None:
        """Return the first and the last pixel that an element sees, or None."""
        turn, place = divmod(index, len(self.lows))
        low, high = self.lows[place], self.highs[place]
        return None if low is None or high is None else (low + turn * self.step, high + turn * self.step)

    @property
    def size(self) -> int:
        """Pixels that one element sees at most."""
        return max((high - low + 1 for low, high in self._spans()), default=0)

    def _spans(self) -> Iterable[tuple[int, int]]:
        return ((a, b) for a, b in zip(self.lows, self.highs, strict=True) if a is not None and b is not None)

    @property
    def jump(self) -> Fraction:
        """Pixels between the fields of neighbours, on average over a period."""
        return Fraction(self.step, len(self.lows))

    @property
    def start(self) -> float | None:
        """Centre of what element 0 sees; pixels are counted from 0 and have their centres at integers."""
        span = self.at(0)
        return None if span is None else (span[0] + span[1]) / 2

    def moved(self, positions: Callable[[int], Iterable[int]], out: int = 1, into: int = 1) -> Grid | Seen:
        """Return what elements see whose ``i``-th takes those of this grid at ``positions(i)``.

        `positions` must repeat: ``positions(i + out)`` are those of ``i``, all `into` further.
        """
        period = len(self.lows)
        turns = period // gcd(period, into)
        if out * turns > _MOST:
            return Seen.UNKNOWN
        spans = [[span for span in map(self.at, positions(i)) if span] for i in range(out * turns)]
        lows = tuple(min((low for low, _ in each), default=None) for each in spans)
        highs = tuple(max((high for _, high in each), default=None) for each in spans)
        return Grid(lows, highs, self.step * (into * turns) // period)._shortest()

    def _shortest(self) -> Grid:
        """Return the same with the shortest period."""
        period = len(self.lows)
        for shorter in range(1, period):
            if period % shorter == 0 and self.step * shorter % period == 0:
                found = Grid(self.lows[:shorter], self.highs[:shorter], self.step * shorter // period)
                if all(found.at(i) == self.at(i) for i in range(period)):
                    return found
        return self

    def windows(self, taps: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Grid | Seen:
        """Return what windows of `taps` elements see, the first `pad` elements before the first."""
        return self.moved(lambda i: (i * stride - pad + dilation * k for k in range(taps)), into=stride)

    def spread(self, taps: int, stride: int, pad: int, dilation: int) -> Grid | Seen:
        """Return what a transposed convolution sees: ``i`` takes ``(i + pad - dilation k) / stride`` where whole."""

        def positions(i: int) -> Iterable[int]:
            places = (i + pad - dilation * k for k in range(taps))
            return (place // stride for place in places if place % stride == 0)

        return self.moved(positions, out=stride)


State = Grid | Seen
Factor = tuple[int, int | None]
"""A size, and the axis of the input along which it runs, or None."""


def union(one: State, other: State) -> State:
    """Return what elements see that see both; of two grids with different jumps that is not known."""
    if Seen.WHOLE in (one, other):
        return Seen.WHOLE
    if not isinstance(one, Grid) or not isinstance(other, Grid):
        return Seen.UNKNOWN
    if one == other:
        return one
    period = lcm(len(one.lows), len(other.lows))
    steps = {grid.step * (period // len(grid.lows)) for grid in (one, other)}
    if len(steps) > 1 or period > _MOST:
        return Seen.UNKNOWN
    spans = [[span for span in (one.at(i), other.at(i)) if span] for i in range(period)]
    lows = tuple(min((low for low, _ in each), default=None) for each in spans)
    highs = tuple(max((high for _, high in each), default=None) for each in spans)
    return Grid(lows, highs, steps.pop())._shortest()


@dataclass(frozen=True, slots=True)
class Field:
    """What the elements of a tensor see: a state for each axis of the input, and where that axis runs in the tensor.

    `dims` has the factors of each dimension of the tensor, so that one that was merged can be taken apart again.
    """

    seen: tuple[State, ...]
    dims: tuple[tuple[Factor, ...], ...]

    @staticmethod
    def of_input(shape: Sequence[int]) -> Field:
        """Return that of an input ``N, C, *spatial``: each element sees itself."""
        axes = range(len(shape) - 2)
        spatial = [((int(size), axis),) for axis, size in zip(axes, shape[2:], strict=True)]
        return Field(tuple(Grid((0,), (0,), 1) for _ in axes), (((shape[0], None),), ((shape[1], None),), *spatial))

    def axes_in(self, dims: Iterable[int]) -> set[int]:
        """Return the axes of the input that run in some dimensions."""
        return {axis for dim in dims for _, axis in self.dims[dim] if axis is not None}

    def with_seen(self, axes: Iterable[int], state: State) -> Field:
        """Return the same with another state of some axes; what sees a whole axis goes on to."""
        wanted = set(axes)
        seen = tuple(state if axis in wanted and old is not Seen.WHOLE else old for axis, old in enumerate(self.seen))
        return replace(self, seen=seen)

    def unknown(self, shape: Sequence[int]) -> Field:
        """Return that of a result of which nothing is known, but for axes that are seen whole already."""
        seen = tuple(state if state is Seen.WHOLE else Seen.UNKNOWN for state in self.seen)
        return Field(seen, tuple(((int(size), None),) for size in shape))

    def mixed(self, dims: Iterable[int]) -> Field:
        """Return that of a result whose elements see everything along some dimensions, which stay."""
        return self.with_seen(self.axes_in(dims), Seen.WHOLE)

    def without(self, dims: Iterable[int], keep: bool = False) -> Field:
        """Return that of a sum over some dimensions, which go, or stay with size 1."""
        gone = set(dims)
        left = [((1, None),) if dim in gone else old for dim, old in enumerate(self.dims) if keep or dim not in gone]
        return replace(self.mixed(gone), dims=tuple(left))

    def along(self, dim: int, size: int, change: Callable[[Grid], State]) -> Field:
        """Return the same with a dimension of another size, along which `change` says what elements see."""
        axes = self.axes_in([dim])
        if not axes:
            return self.with_dim(dim, ((size, None),))
        labelled = [place for place, (_, axis) in enumerate(self.dims[dim]) if axis is not None]
        before = prod(length for length, _ in self.dims[dim][: labelled[0]])
        after = prod(length for length, _ in self.dims[dim][labelled[0] + 1 :])
        if len(labelled) > 1 or before != 1:
            return self.with_seen(axes, Seen.UNKNOWN).with_dim(dim, ((size, None),))
        (axis,) = axes
        state = self.seen[axis]
        if isinstance(state, Grid) and after != 1:  # elements in a row that see the same
            state = state.moved(lambda i: (i // after,), out=after)
        if isinstance(state, Grid):
            state = change(state)
        seen = (*self.seen[:axis], state, *self.seen[axis + 1 :])
        return replace(self, seen=seen).with_dim(dim, ((size, axis),))

    def with_dim(self, dim: int, factors: tuple[Factor, ...]) -> Field:
        """Return the same with other factors of a dimension."""
        return replace(self, dims=(*self.dims[:dim], factors, *self.dims[dim + 1 :]))

    def viewed(self, shape: Sequence[int]) -> Field:
        """Return that of the same elements in another shape; an axis that is cut in parts is not followed."""
        left = [factor for dim in self.dims for factor in dim if factor != (1, None)]
        dims: list[tuple[Factor, ...]] = []
        lost: set[int] = set()
        if 0 in shape or any(size == 0 for size, _ in left):
            return self.unknown(shape)
        for size in shape:
            taken: list[Factor] = []
            rest = int(size)
            while rest > 1:
                length, axis = left.pop(0)
                common = gcd(rest, length)
                if common == 1 < length:
                    return self.unknown(shape)
                if common < length:  # a part of the factor
                    lost |= set() if axis is None else {axis}
                    axis = None
                    left.insert(0, (length // common, None))
                taken.append((common, axis))
                rest //= common
            dims.append(tuple(taken) or ((1, None),))
        return replace(self.with_seen(lost, Seen.UNKNOWN), dims=tuple(dims))


def union_of(fields: Sequence[Field], shapes: Sequence[Sequence[int]], shape: Sequence[int]) -> Field:
    """Return that of an elementwise result of `shape`, of fields of tensors that are broadcast to it."""
    found = _broadcast(fields[0], shapes[0], shape)
    for field, own in zip(fields[1:], shapes[1:], strict=True):
        found = _both(found, _broadcast(field, own, shape))
    return found


def _broadcast(field: Field, own: Sequence[int], shape: Sequence[int]) -> Field:
    if tuple(own) == tuple(shape):
        return field
    more = len(shape) - len(own)
    dims = [((int(size), None),) for size in shape[:more]]
    lost: set[int] = set()
    for dim, (size, wanted) in enumerate(zip(own, shape[more:], strict=True)):
        if size == wanted:
            dims.append(field.dims[dim])  # type: ignore[arg-type]
        else:
            lost |= field.axes_in([dim])
            dims.append(((int(wanted), None),))
    return replace(field.with_seen(lost, Seen.UNKNOWN), dims=tuple(dims))


def _both(one: Field, other: Field) -> Field:
    """Return the union of two fields of the same shape."""
    where = [{axis: dim for dim in range(len(f.dims)) for axis in f.axes_in([dim])} for f in (one, other)]
    dims, lost = [], set()
    for dim, (first, second) in enumerate(zip(one.dims, other.dims, strict=True)):
        axes = [field.axes_in([dim]) for field in (one, other)]
        dims.append(first if axes[0] or not axes[1] else second)
        if all(axes) and first != second:
            lost |= axes[0] | axes[1]
    lost |= {axis for axis in where[0].keys() & where[1].keys() if where[0][axis] != where[1][axis]}
    seen = tuple(map(union, one.seen, other.seen))
    return Field(seen, tuple(dims)).with_seen(lost, Seen.UNKNOWN)
