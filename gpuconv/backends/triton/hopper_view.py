"""A dense convolution as the Hopper kernels take it: sizes of three axes, where taps begin and which way they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod

from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div, phase_size, tap_step
from ..axes import three
from .turns import in_order

__all__ = ["Dense", "columns_as_channels", "dense_of", "number_of", "phases_of", "refusal", "together"]

_MOST_SEGMENTS = 64
"""Segments of a signal at most: pixels of a strip, which a tile of one image has of as many segments."""

_MOST_PIXELS = 2**31 - 2**17
"""Pixels of a result: their number, and that of a tile more, is a signed 32-bit integer."""

_NUMBERS = {"float16": "fp16", "bfloat16": "bf16", "float32": "tf32"}


def number_of(problem: ConvProblem) -> str:
    """Return in what the problem is multiplied, as tensor maps name it."""
    return _NUMBERS[problem.dtype]


@dataclass(frozen=True, slots=True)
class Dense:
    """Sums over taps and `reduced` channels of a source, [N, *size, reduced], times weights: [N, *output, channels].

    Position o of an axis and tap r meet source position ``o stride + first + r step``, and tap (t, r, s) is number
    ``order[0] + t order[1] + r order[2] + s order[3]`` of the weights. `turned` says that weights are read as [tap,
    reduced, channels]. `source` and `result` are the letters of the tensors. Position o is position ``at + o spread``
    of the result, which has `whole` of them: one phase of a gradient of larger stride. A convolution of one tap that
    leaves every position where it is has one row of pixels. A signal in `segments`, if not 0, has one in each
    column, whose positions go along rows.
    """

    source: str
    result: str
    n: int
    reduced: int
    channels: int
    size: tuple[int, ...]
    output: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    first: tuple[int, ...]
    step: tuple[int, ...]
    order: tuple[int, int, int, int]
    turned: bool
    item: int
    whole: tuple[int, ...]
    spread: tuple[int, ...] = (1, 1, 1)
    at: tuple[int, ...] = (0, 0, 0)
    segments: int = 0

    @property
    def flat(self) -> bool:
        """Whether result and source are one row of pixels each."""
        still = self.stride == self.spread == (1, 1, 1) and self.first == (0, 0, 0)
        return prod(self.taps) == 1 and still and self.size == self.output

    @property
    def pixels(self) -> int:
        """Positions of the result, images included."""
        return self.n * prod(self.output)

    @property
    def walked(self) -> tuple[int, int, int, int]:
        """Images, planes, rows and columns of the result as tiles cut it."""
        o, p, q = self.output
        return (1, 1, 1, self.pixels) if self.flat else (self.n, o, p, q)

    @property
    def foldable(self) -> list[int]:
        """In how many segments a signal may be cut: each as long as taps reach, and as many of x as of the result."""
        length, first, step = self.output[2], self.first[2], self.step[2]
        alone = self.size == self.output == self.whole == (1, 1, length) and self.taps[:2] == (1, 1)
        if not alone or self.taps[2] == 1 or self.first[:2] != (0, 0) or (self.stride[2], self.spread[2]) != (1, 1):
            return []
        reach = max(abs(first), abs(first + (self.taps[2] - 1) * step))
        return [count for count in range(1, _MOST_SEGMENTS + 1) if length % count == 0 and length // count >= reach]

    def folded(self, segments: int) -> Dense:
        """Return a signal in segments, one of :attr:`foldable`: columns, along whose rows the taps go."""
        sides = (1, self.output[2] // segments, segments)
        begin, _, _, by = self.order
        return replace(
            self, size=sides, output=sides, whole=sides, taps=(1, self.taps[2], 1), first=(0, self.first[2], 0),
            step=(0, self.step[2], 0), order=(begin, 0, by, 0), segments=segments,
        )  # fmt: skip

    @property
    def empty(self) -> bool:
        """Whether no tap meets a position: the one that stands for them is no number of the weights, and so zero."""
        return self.order[0] < 0

    def upwards(self, axes: tuple[int, ...]) -> Dense:
        """Return the same with taps of some axes walked in the order of the positions that they meet."""
        first, step, order = list(self.first), list(self.step), list(self.order)
        for axis in axes:
            if step[axis] < 0:
                first[axis] += (self.taps[axis] - 1) * step[axis]
                order[0] += (self.taps[axis] - 1) * order[1 + axis]
                step[axis], order[1 + axis] = -step[axis], -order[1 + axis]
        begin, by_d, by_h, by_w = order
        return replace(self, first=tuple(first), step=tuple(step), order=(begin, by_d, by_h, by_w))

    @property
    def outermost(self) -> int:
        """The outermost axis along which the result has more than one position; the last, if there is none."""
        return next((axis for axis, size in enumerate(self.whole) if size > 1), 2)

    def reads(self, begin: int, end: int) -> tuple[int, int]:
        """Return which rows of the source some rows of the result read, along the outermost axis; one at least."""
        axis = self.outermost
        taps = (self.first[axis], self.first[axis] + (self.taps[axis] - 1) * self.step[axis])
        size, stride = self.size[axis], self.stride[axis]
        low = min(max(begin * stride + min(taps), 0), size - 1)
        high = min(max((end - 1) * stride + max(taps) + 1, low + 1), size)
        return low, high

    def rows(self, begin: int, end: int, apart: bool) -> Dense:
        """Return the part of some rows of the result, along the outermost axis, from the rows of the source it reads.

        The source's rows are a tensor of their own, and so are those of the result if they are `apart`.
        """
        axis = self.outermost
        low, high = self.reads(begin, end)

        def put(values: tuple[int, ...], value: int) -> tuple[int, ...]:
            return (*values[:axis], value, *values[axis + 1 :])

        moved = put(self.first, self.first[axis] + begin * self.stride[axis] - low)
        part = replace(self, size=put(self.size, high - low), output=put(self.output, end - begin), first=moved)
        if apart:
            return replace(part, whole=part.output)
        return replace(part, at=put(self.at, begin))

    def steps(self, block_c: int) -> int:
        """Return the products of a tile, one for each tap and block of channels; without taps of one block of zeros."""
        return prod(self.taps) * (1 if self.empty else ceil_div(self.reduced, block_c))


_NOWHERE = -(2**30)
"""Where the first position of a phase without taps lies in the source. A phase has 2**30 positions at most, as there
are two phases or more, and all of them lie in front of the source, where zeros are read."""


def columns_as_channels(problem: ConvProblem) -> int:
    """Return how many neighbouring columns of a gradient are taken for more channels of one: 1, or more.

    That is the largest m that divides stride, window, low pad and size along the last axis: of a stride m s, position
    ``m (s g + h) + i`` meets the taps ``m (s j + f) + i`` alone, of every i as many. With channels innermost, m
    positions of x and m taps of w lie in one run: a gradient of stride s with m times the channels and 1 / m of the
    columns, pads and taps, which is the same in memory.
    """
    most = gcd(problem.stride[-1], problem.kernel[-1], problem.pad_lo[-1], problem.input_size[-1])
    if problem.kind not in ("dgrad", "transposed") or problem.dilation[-1] > 1:
        return 1
    return most if itemsize(problem.dtype) == 2 and in_order(problem, "x") else 1


def dense_of(problem: ConvProblem) -> Dense:
    """Return the forward pass, or the largest phase of a data gradient, as the kernels take it."""
    return phases_of(problem)[0]


def phases_of(problem: ConvProblem) -> list[Dense]:
    """Return the convolutions of stride 1 that a data gradient is, the largest with taps first; a forward pass is one.

    Weights of float32 gradients are packed with channels swapped: tf32 products want what is reduced innermost. Phases
    of the last axis may be channels: see :func:`columns_as_channels`.
    """
    size, output, taps = three(problem.input_size, 1), three(problem.output_size, 1), three(problem.kernel, 1)
    stride, dilation, pad = three(problem.stride, 1), three(problem.dilation, 1), three(problem.pad_lo, 0)
    item, numbers = itemsize(problem.dtype), (taps[1] * taps[2], taps[2], 1)
    if problem.kind == "fprop":
        first = tuple(-lo for lo in pad)
        return [
            Dense(
                "x", "y", problem.n, problem.c, problem.k, size, output, taps, stride, first, dilation, (0, *numbers),
                False, item, output,
            )
        ]  # fmt: skip
    merged = columns_as_channels(problem)
    size, taps, pad = ((*sides[:2], sides[2] // merged) for sides in (size, taps, pad))
    stride = (*stride[:2], stride[2] // merged)
    numbers = (taps[1] * taps[2], taps[2], 1)
    axes = [_phases(*axis, none=-prod(taps)) for axis in zip(size, taps, stride, dilation, pad, strict=True)]
    found = []
    for chosen in product(*axes):
        begin = sum(phase.tap * number for phase, number in zip(chosen, numbers, strict=True))
        by_d, by_h, by_w = (phase.tap_step * number for phase, number in zip(chosen, numbers, strict=True))
        order = (begin, by_d, by_h, by_w)
        found.append(
            Dense(
                "y", "x", problem.n, problem.k, merged * problem.c, output, tuple(phase.positions for phase in chosen),
                tuple(phase.taps for phase in chosen), (1, 1, 1), tuple(phase.first for phase in chosen),
                tuple(phase.step for phase in chosen), order, item == 2, item, size, stride,
                tuple(phase.at for phase in chosen),
            )
        )  # fmt: skip
    return sorted(found, key=lambda dense: (dense.empty, -prod(dense.taps) * prod(dense.output)))


def together(phases: Sequence[Dense]) -> Dense:
    """Return phases as one launch has them: that which is first, with as many positions as any has along each axis."""
    output = tuple(max(sizes) for sizes in zip(*(phase.output for phase in phases), strict=True))
    return replace(phases[0], output=output) if len(phases) > 1 else phases[0]


@dataclass(frozen=True, slots=True)
class _Phase:
    """Positions of an axis that are equal modulo the stride, and the taps that meet them: one nowhere, if none does."""

    at: int
    positions: int
    taps: int
    tap: int
    tap_step: int
    first: int
    step: int


def _phases(size: int, taps: int, stride: int, dilation: int, pad: int, none: int) -> list[_Phase]:
    """Return the phases of one axis of a data gradient: position i meets y at (i + pad - tap dilation) / stride.

    `none` is the tap of a phase that has none: so far below 0 that no other axis brings it to a number of the weights.
    """
    found, apart = [], tap_step(stride, dilation)
    for at in range(min(stride, size)):
        positions = phase_size(size - at, stride)
        here = [tap for tap in range(taps) if (at + pad - tap * dilation) % stride == 0]
        if here:
            first = (at + pad - here[0] * dilation) // stride
            found.append(_Phase(at, positions, len(here), here[0], apart, first, -apart * dilation // stride))
        else:
            found.append(_Phase(at, positions, 1, none, 0, _NOWHERE, 0))
    return found


def refusal(problem: ConvProblem) -> str | None:
    """Return why no Hopper kernel takes a problem, whatever its pass, or None."""
    if problem.dtype not in _NUMBERS:
        return f"multiplies {', '.join(_NUMBERS)}, not {problem.dtype}"
    if problem.dtype == "float32" and problem.precision != "tf32":
        return f"multiplies float32 in tf32, and precision is {problem.precision}"
    if problem.groups != 1:
        return f"is for 1 group, not {problem.groups}"
    if problem.padding_mode != "zeros":
        return f"pads with zeros, not {problem.padding_mode}"
    unit = 16 // itemsize(problem.dtype)
    for name, channels in (("input", problem.c), ("output", problem.k)):
        if channels % unit or not channels:
            return f"copies 16 bytes at once: {channels} {name} channels are no multiple of {unit}"
    if 0 in (*problem.x_shape, *problem.y_shape):
        return "has nothing to multiply"
    if max(problem.n * prod(problem.output_size), problem.n * prod(problem.input_size)) > _MOST_PIXELS:
        return f"counts at most {_MOST_PIXELS:,} pixels"
    if max(*problem.kernel, *problem.dilation, *problem.stride) >= 2**15:
        return "counts taps and their steps in 16 bits"
    return None
