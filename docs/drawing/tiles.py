"""What one program of a kernel computes: tiles, rings of slots, rows that stay open, phases, splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from .grids import COLOURS, FAINT

__all__ = [
    "banded",
    "bytes_of",
    "fields",
    "gather",
    "marching",
    "phases",
    "product",
    "ring",
    "runs",
    "separable",
    "splits",
]

LIT = "#ffb366"


def _canvas(width: float, height: float, inches: float = 0.32) -> tuple[Figure, Any]:
    inches = min(inches, 4.8 / width)
    figure = Figure(figsize=(width * inches, height * inches))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def _box(axes: Any, x: float, y: float, w: float, h: float, colour: str = FAINT, text: str = "", **more: Any) -> None:
    axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, edgecolor="#6b7488", linewidth=0.9, **more))
    if text:
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=8)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="#555", linewidth=1))


def _note(axes: Any, x: float, y: float, text: str, **more: Any) -> None:
    axes.text(x, y, text, fontsize=8, va="center", **{"ha": "center", **more})


def product(rows: str = "pixels", columns: str = "filters", inner: str = "channels and taps", tile: str = "") -> Figure:
    """One tile of a product of matrices: a band of either operand, and the sums in registers."""
    figure, axes = _canvas(18, 13)
    _box(axes, 1.5, 5.5, 7, 6)
    _box(axes, 10, 1, 6, 3.7)
    _box(axes, 10, 5.5, 6, 6)
    _box(axes, 1.5, 7, 7, 1.8, "#cfe0f5")
    _box(axes, 3.5, 7, 1.5, 1.8, COLOURS[0])
    _box(axes, 11.5, 1, 1.9, 3.7, "#d8efdc")
    _box(axes, 11.5, 2.0, 1.9, 0.9, COLOURS[2])
    _box(axes, 11.5, 7, 1.9, 1.8, LIT, tile)
    _arrow(axes, (5.1, 7.9), (11.4, 7.9))
    _arrow(axes, (12.45, 3.0), (12.45, 6.9))
    _note(axes, 5, 12.2, inner)
    _note(axes, 0.7, 8.5, rows, rotation=90)
    _note(axes, 13, 0.5, columns)
    _note(axes, 13, 12.2, "result")
    return figure


def gather(taps: int = 3, columns: str = "tile of columns, in registers only", row: str = "window") -> Figure:
    """A window and its column; of an implicit GEMM it is never in memory, each element is read where the tap points."""
    figure, axes = _canvas(20, 9)
    for place in np.ndindex(6, 6):
        _box(axes, 0.8 + place[1], 1.6 + place[0], 1, 1)
    for index, (r, s) in enumerate(np.ndindex(taps, taps)):
        if row == "window":
            _box(axes, 1.8 + s, 2.6 + r, 1, 1, COLOURS[index % 9])
        else:
            middle = (2.3 + s, 3.1 + r)
            at = (middle[0] + 0.6 * np.sin(2.4 * index), middle[1] + 0.6 * np.cos(2.4 * index))
            axes.plot([middle[0], at[0]], [middle[1], at[1]], color="#555", linewidth=0.8)
            axes.plot(*at, "o", color=COLOURS[index % 9], markersize=5, markeredgecolor="#333", markeredgewidth=0.6)
        _box(axes, 9.5 + index, 3.6, 1, 1, COLOURS[index % 9])
    for top in (1.6, 2.6, 4.6, 5.6, 6.6):
        for index in range(taps * taps):
            _box(axes, 9.5 + index, top, 1, 1)
    _arrow(axes, (5.1, 4.1), (9.3, 4.1))
    _note(axes, 3.8, 0.8, "input")
    _note(axes, 14, 0.8, columns)
    _note(axes, 14, 8.3, f"one row: the {row} of one pixel")
    return figure


def marching(
    kernel: int = 3,
    rows: int = 7,
    columns: int = 9,
    source: str = "input: each row is loaded once",
    kept: str = "result: {} rows open, in registers",
) -> Figure:
    """A program that goes down the rows: one row of the input serves all rows of the result that are open."""
    figure, axes = _canvas(2 * columns + 8, rows + 3)
    now, left = rows // 2 + 1, columns + 5
    for row in range(rows):
        for column in range(columns):
            _box(axes, 1 + column, 1.5 + row, 1, 1, LIT if row == now else ("#dfe5ee" if row < now else "white"))
            is_open = now - kernel < row <= now
            done = row <= now - kernel
            colour = COLOURS[row % 8] if is_open else ("#dfe5ee" if done else "white")
            _box(axes, left + column, 1.5 + row, 1, 1, colour)
    for row in range(now - kernel + 1, now + 1):
        _arrow(axes, (columns + 1.1, now + 2), (left - 0.1, row + 2))
    _note(axes, 1 + columns / 2, 0.8, source)
    _note(axes, left + columns / 2, 0.8, kept.format(kernel))
    return figure


def banded(size: int = 8, kernel: int = 5) -> Figure:
    """A line of results as a product with a matrix whose bands are the taps of the filter."""
    count = size + kernel - 1
    figure, axes = _canvas(count + size + 8, count + 3)
    for i in range(count):
        _box(axes, 1 + i, 1 + size / 2, 1, 1, "#cfe0f5")
    _note(axes, 1 + count / 2, 2.7 + size / 2, "a run of the input, shared by neighbouring lines")
    left = count + 3
    for o in range(size):
        for i in range(count):
            tap = i - o
            colour = COLOURS[tap % 9] if 0 <= tap < kernel else "white"
            _box(axes, left + o, 1 + i, 1, 1, colour)
    _note(axes, count + 2, 1.5 + size / 2, "x", fontweight="bold")
    _note(axes, left + size / 2, count + 1.7, f"{kernel} taps as bands: made once, in shared memory")
    return figure


def ring(
    slots: int = 4, producer: str = "producer warp: TMA", consumers: Sequence[str] = ("consumer 0", "consumer 1")
) -> Figure:
    """A ring of slots in shared memory: one warp fills it, others multiply out of it."""
    figure, axes = _canvas(20, 9)
    _box(axes, 0.6, 3.4, 5, 1.6, "#d8efdc", producer.replace(": ", ":\n"))
    for slot in range(slots):
        colour = (LIT, "#ffd9b3", "#cfe0f5", "white")[slot % 4]
        state = ("read", "full", "landing", "empty")[slot % 4]
        _box(axes, 7.4, 1.2 + slot * 1.6, 4.4, 1.3, colour, f"slot {slot}: {state}")
    for place, name in enumerate(consumers):
        _box(axes, 14.2, 1.8 + 3 * place, 5.2, 1.8, "#cfe0f5", f"{name}\nsums in registers")
        _arrow(axes, (11.9, 1.9), (14.1, 2.7 + 3 * place))
    _arrow(axes, (5.7, 4.2), (7.3, 5.0))
    _note(axes, 9.6, 0.6, "shared memory")
    _note(axes, 9.6, 8.2, "two barriers a slot: full, empty")
    return figure


def runs(kernel: int = 3, channels: int = 3, together: int = 4) -> Figure:
    """Neighbouring results of few channels share a run of the input; their weights stand side by side."""
    length = (kernel + together - 1) * channels
    figure, axes = _canvas(length + together + 6, length + 3.5)
    for e in range(length):
        _box(axes, 1 + e, 2, 1, 1, COLOURS[e % channels])
    for o in range(together):
        axes.plot(
            [1.1 + o * channels, 0.9 + (o + kernel) * channels], [3.6 + 0.7 * o] * 2, color=COLOURS[3 + o % 5], lw=3
        )
    _note(axes, 1 + length / 2, 1.2, f"one row of the input: pixels of {channels} channels")
    _note(axes, 1 + length / 2, 4.2 + 0.7 * together, f"windows of {together} neighbouring results")
    left = length + 3
    for o in range(together):
        for e in range(length):
            inside = o * channels <= e < (o + kernel) * channels
            _box(axes, left + o, 2 + e, 1, 1, COLOURS[3 + o % 5] if inside else "white")
    _note(axes, left + together / 2, 1.2, "weights")
    return figure


def separable() -> Figure:
    """Two convolutions in one program: the image between them is a tile in registers."""
    figure, axes = _canvas(22, 7)
    _box(axes, 0.8, 1.5, 4.2, 4, "#cfe0f5", "input tile\nwith its border")
    _box(axes, 7.9, 1.5, 5.2, 4, LIT, "image between:\nregisters only")
    _box(axes, 16.4, 1.5, 4.6, 4, "#d8efdc", "result tile")
    _arrow(axes, (5.1, 3.5), (7.8, 3.5))
    _arrow(axes, (13.2, 3.5), (16.3, 3.5))
    _note(axes, 6.4, 2.9, "depthwise")
    _note(axes, 14.7, 2.9, "1x1 product")
    return figure


def phases(stride: int = 2, size: int = 8, kernel: int = 3) -> Figure:
    """A transposed convolution by phases: results of one colour read the same taps, none a zero between."""
    figure, axes = _canvas(size + 10, size + 2)
    names = [*np.ndindex(stride, stride)]
    for row in range(size):
        for column in range(size):
            phase = names.index((row % stride, column % stride))
            _box(axes, 1 + column, 1 + row, 1, 1, COLOURS[phase])
    for place, (a, b) in enumerate(names):
        taps = len(range(a, kernel, stride)) * len(range(b, kernel, stride))
        _box(axes, size + 2, 1.6 + place * 1.7, 1, 1, COLOURS[place])
        _note(axes, size + 3.4, 2.1 + place * 1.7, f"phase {a},{b}: {taps} of {kernel * kernel} taps", ha="left")
    return figure


def splits(count: int = 4, what: str = "pixels", parts: str = "sums", result: str = "gradient") -> Figure:
    """A weight gradient: pixels in splits, each with sums of its own, which a second kernel adds in order."""
    figure, axes = _canvas(22, 2.1 * count + 1.6)
    for place in range(count):
        y = 1.2 + 2.1 * place
        _box(axes, 0.8, y, 6, 1.5, COLOURS[place], f"{what}, split {place}")
        _box(axes, 9.2, y, 4.8, 1.5, "#eef1f6", f"partial {parts} {place}")
        _arrow(axes, (6.9, y + 0.75), (9.1, y + 0.75))
        _arrow(axes, (14.1, y + 0.75), (16.8, 1.2 + 2.1 * count / 2 - 0.3))
    _box(axes, 16.9, 2.1 * count / 2 - 0.4, 4.8, 2.2, LIT, f"{result}:\n0 + 1 + 2 + ...")
    _note(axes, 11.6, 0.6, "float32, in the workspace")
    return figure


def fields(kernel: int = 3, stride: int = 2, outputs: int = 4) -> Figure:
    """A program that pools a tile of results loads what their windows cover once."""
    size = (outputs - 1) * stride + kernel
    figure, axes = _canvas(size + outputs + 6, size + 2)
    times = np.zeros((size, size), int)
    for o in np.ndindex(outputs, outputs):
        times[o[0] * stride : o[0] * stride + kernel, o[1] * stride : o[1] * stride + kernel] += 1
    shades = ("white", "#e3ecf8", "#b9d0ee", "#93b5e3", "#6c99d6", "#4c72b0")
    for place in np.ndindex(size, size):
        count = int(times[place])
        _box(axes, 1 + place[1], 1.2 + place[0], 1, 1, shades[min(count, 5)], str(count))
    for p, q in np.ndindex(outputs, outputs):
        _box(axes, size + 4 + q, 1.2 + (size - outputs) / 2 + p, 1, 1, LIT)
    _arrow(axes, (size + 1.2, 1.2 + size / 2), (size + 3.8, 1.2 + size / 2))
    _note(axes, 1 + size / 2, 0.6, "how many windows read an element")
    return figure


def bytes_of(parts: dict[str, float], unit: str = "MB") -> Figure:
    """One bar of what is read and written, in parts."""
    rows = -(-len(parts) // 2)
    height = 0.65 + 0.2 * rows
    figure = Figure(figsize=(4.6, height))
    axes = figure.add_axes((0.03, 0.25 / height, 0.94, 0.35 / height))
    left = 0.0
    for place, (name, size) in enumerate(parts.items()):
        axes.barh([0], [size], left=left, color=COLOURS[place % 9], label=f"{name}: {size:,.3g} {unit}")
        left += size
    axes.set_yticks([])
    axes.tick_params(labelsize=8)
    figure.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    return figure
