"""A dense convolution as the Hopper kernels take it: sizes of three axes, where taps begin and which way they go."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from ..axes import three

__all__ = ["Dense", "dense_of", "in_order", "number_of", "refusal"]

_MOST_PIXELS = 2**31 - 2**17
"""Pixels of a result: their number, and that of a tile more, is a signed 32-bit integer."""

_NUMBERS = {"float16": "fp16", "bfloat16": "bf16", "float32": "tf32"}


def number_of(problem: ConvProblem) -> str:
    """Return in what the problem is multiplied, as tensor maps name it."""
    return _NUMBERS[problem.dtype]


@dataclass(frozen=True, slots=True)
class Dense:
    """Sums over taps and `reduced` channels of a source, [N, *size, reduced], times weights: [N, *output, channels].

    Position o of an axis and tap r meet source position ``o stride + first + r step``. `turned` says that weights are
    read as [tap, reduced, channels], where a step is negative as well: a data gradient. `source` and `result` are the
    letters of the tensors. A convolution of one tap that leaves every position where it is has one row of pixels.
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
    turned: bool
    item: int

    @property
    def flat(self) -> bool:
        """Whether result and source are one row of pixels each."""
        still = self.stride == (1, 1, 1) and self.first == (0, 0, 0)
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
    def upwards(self) -> tuple[int, ...]:
        """Where the source's lowest position of result 0 lies, for kernels whose offsets go up."""
        if all(step >= 0 for step in self.step):
            return self.first
        return tuple(at + (tap - 1) * step for at, tap, step in zip(self.first, self.taps, self.step, strict=True))

    def steps(self, block_c: int) -> int:
        """Return the products of a tile, one for each tap and block of channels."""
        return prod(self.taps) * ceil_div(self.reduced, block_c)


def dense_of(problem: ConvProblem) -> Dense:
    """Return the forward pass, or a data gradient of stride 1, as the kernels take it.

    Of float32 the gradient's weights are packed, with taps in the opposite order: it is a forward pass then.
    """
    size, output, taps = three(problem.input_size, 1), three(problem.output_size, 1), three(problem.kernel, 1)
    stride, dilation, pad = three(problem.stride, 1), three(problem.dilation, 1), three(problem.pad_lo, 0)
    item = itemsize(problem.dtype)
    if problem.kind == "fprop":
        first = tuple(-lo for lo in pad)
        return Dense("x", "y", problem.n, problem.c, problem.k, size, output, taps, stride, first, dilation, False, item)
    turned, step = item == 2, dilation
    first = tuple(lo - (tap - 1) * by for lo, tap, by in zip(pad, taps, dilation, strict=True))
    if turned:
        first, step = pad, tuple(-by for by in dilation)
    return Dense("y", "x", problem.n, problem.k, problem.c, output, size, taps, stride, first, step, turned, item)


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


def in_order(problem: ConvProblem, letter: str) -> bool:
    """Tell whether x, w or y lies with channels innermost."""
    layout = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}[letter]
    positions = {"x": problem.input_size, "w": problem.kernel, "y": problem.output_size}[letter]
    return layout == CHANNELS_LAST or prod(positions) == 1
