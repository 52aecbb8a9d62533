"""Depthwise problems with large windows as the banded kernels take them: blocks, bands and every argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem
from ...shapes import ceil_div
from ..axes import reach, two
from .common import VECTORS, Strides
from .runs_axes import forward_of

__all__ = [
    "TOGETHER",
    "Band",
    "Banded",
    "band_of",
    "banded_arguments",
    "banded_of",
    "pack_arguments",
    "packed_elements",
    "reciprocal",
]

TOGETHER = 8
"""Channels that are loaded together where they are innermost, and copies of a window."""

_PACK_BLOCK = 2048
"""Elements that a program of the packing kernel writes."""


@dataclass(frozen=True, slots=True)
class Banded:
    """A pass as a convolution of stride 1 of a source to a result: 2-D, 1-D with a first axis of one row.

    A data gradient is the convolution of y with the window turned round. `apart` tells of source and of result whether
    channels lie between its columns. `vec` are the columns of the source, and `vo` those of the result, that begin at
    multiples of their number in every row of planes: one where channels lie between them.
    """

    grad: bool
    over_channels: bool
    images: int
    channels: int
    source_size: tuple[int, int]
    result_size: tuple[int, int]
    kernel: tuple[int, int]
    pad: tuple[int, int]
    apart: tuple[bool, bool]

    @property
    def vec(self) -> int:
        return 1 if self.apart[0] else gcd(8, self.source_size[1])

    @property
    def vo(self) -> int:
        return 1 if self.apart[1] else gcd(8, self.result_size[1])


@dataclass(frozen=True, slots=True)
class Band:
    """The matrix of a channel's weights: blocks of the result, the columns of the source that they read, the copies.

    A block reads `width` columns from `start` on in each of `rows` rows; its first tap is `off` columns further. Copies
    have `lines` rows of `pitch` columns, and the first has its window from column `lead` on.
    """

    start: int
    off: int
    rows: int
    width: int
    lines: int
    pitch: int
    blocks: tuple[int, int]

    @property
    def depth(self) -> int:
        """Elements of the source that a block reads."""
        return self.rows * self.width

    @property
    def lead(self) -> int:
        return (self.pitch - self.width) // TOGETHER * TOGETHER

    @property
    def elements(self) -> int:
        """Elements of the copies of a channel."""
        return TOGETHER * self.lines * self.pitch


@lru_cache(maxsize=1024)
def banded_of(problem: ConvProblem) -> Banded:
    """Return what a depthwise problem of stride 1, 1-D or 2-D, is to the banded kernels."""
    forward = forward_of(problem)
    apart = tuple(each == CHANNELS_LAST and problem.c > 1 for each in (forward.x_format, forward.y_format))
    return Banded(
        problem.kind != "fprop", all(apart), problem.n, problem.c, two(forward.input_size, 1),
        two(forward.output_size, 1), two(problem.kernel, 1), two(forward.pad_lo, 0), (apart[0], apart[1]),
    )  # fmt: skip


def band_of(banded: Banded, config: Mapping[str, Any]) -> Band:
    """Return the band of a tile; where vectors of columns are read it begins at a multiple of theirs."""
    tp, tq, (taps_h, taps_w), pad = config["TP"], config["TQ"], banded.kernel, banded.pad[1]
    start = -ceil_div(pad, config.get("VEC", 1)) * config.get("VEC", 1)
    off = -start - pad
    width = ceil_div(tq + taps_w - 1 + off, TOGETHER) * TOGETHER
    blocks = ceil_div(banded.result_size[0], tp), ceil_div(banded.result_size[1], tq)
    pitch = width + (tq - 1 + off) // TOGETHER * TOGETHER
    return Band(start, off, tp + taps_h - 1, width, taps_h + 2 * (tp - 1), pitch, blocks)


def packed_elements(banded: Banded, config: Mapping[str, Any]) -> int:
    """Return the number of elements of the packed copies."""
    return banded.channels * band_of(banded, config).elements


def _four(strides: Sequence[int]) -> tuple[int, ...]:
    """Return strides of batch, channel, rows and columns; a row of a 1-D problem has none."""
    return (*strides[:2], *two(strides[2:], 0))


def _wide(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> bool:
    """Tell whether an offset within an image, a packed element or a number of blocks may not fit in 32 bits."""
    banded = banded_of(problem)
    band = band_of(banded, config)
    shapes = {"x": problem.x_shape, "y": problem.y_shape, "residual": problem.result_shape}
    offsets = [reach(shapes[name][1:], steps[1:]) for name, steps in strides.items() if name in shapes]
    offsets += [reach(problem.w_shape, strides["w"]), packed_elements(banded, config) + _PACK_BLOCK]
    offsets += [reach((problem.c,), strides[name]) for name in VECTORS if name in strides]
    # A block at the edge computes offsets of what lies outside, and masks them.
    sides = [(shapes[name], strides[name]) for name in shapes if name in strides]
    steps = [step for side in sides for size, step in zip(*(part[2:] for part in side), strict=True) if size > 1]
    beside = max(map(abs, steps), default=0)
    offsets.append(max(offsets) + beside * (band.rows + band.width + max(banded.pad[0], 0)))
    return max(*offsets, problem.n * band.blocks[0] * band.blocks[1] + config["BM"]) >= 2**31


def pack_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the packing kernel but its pointers, by name.

    Parameters
    ----------
    problem
        A depthwise problem of stride 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    """
    banded = banded_of(problem)
    band = band_of(banded, config)
    of_channel, _, of_row, of_column = _four(strides["w"])
    offset = 0
    if banded.grad:  # the window turned round
        offset = (banded.kernel[0] - 1) * of_row + (banded.kernel[1] - 1) * of_column
        of_row, of_column = -of_row, -of_column
    return {
        "channels": banded.channels, "elements": packed_elements(banded, config), "w_offset": offset,
        "w_stride_c": of_channel, "w_stride_r": of_row, "w_stride_s": of_column, "R": banded.kernel[0],
        "S": banded.kernel[1], "TP": config["TP"], "PITCH": band.pitch, "LEAD": band.lead,
        "INDEX64": bool(config.get("INDEX64")) or _wide(problem, strides, config), "BLOCK": _PACK_BLOCK,
    }  # fmt: skip


def banded_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of a banded kernel but its pointers, by name, as :func:`pack_arguments`."""
    banded = banded_of(problem)
    band = band_of(banded, config)
    found: dict[str, Any] = {
        "images": banded.images,
        "steps": ceil_div(band.depth, config["BK"]),
        "GRAD": banded.grad,
        "ACTIVATION": problem.finish,
        "INDEX64": bool(config.get("INDEX64")) or _wide(problem, strides, config),
        "KW": band.width,
        "PITCH": band.pitch,
    }
    found |= {name: config[name] for name in ("TP", "TQ", "BM", "BK")}
    found |= zip("RS", banded.kernel, strict=True)
    for name, pair in (("source", banded.source_size), ("result", banded.result_size)):
        found |= {f"{name}_h": pair[0], f"{name}_w": pair[1]}
    found |= zip(("pad_h", "pad_w"), banded.pad, strict=True)
    for axis, blocks in zip("hw", band.blocks, strict=True):
        magic, log = reciprocal(blocks)
        found |= {f"blocks_{axis}": blocks, f"magic_{axis}": magic, f"log_{axis}": log}
    names = ("y", "x") if banded.grad else ("x", "y")
    sides = {"source": strides[names[0]], "result": strides[names[1]], "residual": strides.get("residual", (0,) * 4)}
    sizes = {"source": banded.source_size, "result": banded.result_size, "residual": banded.result_size}
    for name, steps in sides.items():
        counts = (banded.images, banded.channels, *sizes[name])
        one = [step if count > 1 else 0 for step, count in zip(_four(steps), counts, strict=True)]
        found |= zip((f"{name}_stride_{axis}" for axis in "nchw"), one, strict=True)
    many = problem.c > 1
    found |= {f"{name}_stride": strides[name][0] if name in strides and many else 1 for name in VECTORS}
    written = ("result", "residual") if problem.residual else ("result",)
    if banded.over_channels:
        return found | _in_channels(found, banded, written)
    blocks = banded.images * band.blocks[0] * band.blocks[1]
    found |= {"tiles": ceil_div(blocks, config["BM"]), "START": band.start, "OFF": band.off}
    for vector, of in (("VEC", ("source",)), ("VO", written)):
        found |= _in_columns(found, vector, of, config[vector])
    return found


def reciprocal(divisor: int) -> tuple[int, int]:
    """Return what numbers below 2**31 are multiplied by, as a signed 32-bit integer, and shifted by, for a division.

    Source: T. Granlund, P. L. Montgomery, Division by Invariant Integers using Multiplication, PLDI 1994, section 4.
    """
    log = (divisor - 1).bit_length()
    magic = ceil_div(1 << (31 + log), divisor)
    return magic - (1 << 32) if magic >= 1 << 31 else magic, log


def _in_columns(arguments: Mapping[str, Any], vector: str, names: Sequence[str], most: int) -> dict[str, Any]:
    """Return the vector of columns of tensors, and their sizes and strides divided by it."""
    used = [f"{name}_stride_{axis}" for name in names for axis in "nch"] + [f"{names[0]}_w"]
    beside = all(arguments[f"{name}_stride_w"] in (0, 1) for name in names)
    width = gcd(most, *(arguments[name] for name in used)) if beside else 1
    # Kernels multiply these by the vector, in the 32 bits in which Triton passes what is divided.
    undone = [arguments[name] for name in (f"{names[0]}_w", *(f"{name}_stride_h" for name in names))]
    width = 1 if undone[0] == 1 or max(undone) >= 2**31 else width
    return {vector: width} | {name: arguments[name] // width for name in used}


def _in_channels(arguments: Mapping[str, Any], banded: Banded, written: Sequence[str]) -> dict[str, Any]:
    """Return what kernels over channels alone have: units of strides, as far as these need no 64 bits."""
    found: dict[str, Any] = {"channels": banded.channels}
    for unit, names in (("UNIT", ("source",)), ("RESULT_UNIT", written)):
        used = [f"{name}_stride_{axis}" for name in names for axis in "nhw"]
        width = 1 if arguments["INDEX64"] else gcd(TOGETHER, *(arguments[name] for name in used))
        found |= {unit: width} | {name: arguments[name] // width for name in used}
    return found
