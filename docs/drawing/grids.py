"""Arrays as grids of cells: numbers, windows over them, matrices, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ["COLOURS", "matrix", "numbers", "pictures", "sliding", "windows"]

Array = np.ndarray[Any, Any]

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#64b5cd", "#ccb974")
FAINT = "#eef1f6"
CELL = 0.34
"""Side of a cell in inches."""


def _cell(axes: Any, row: float, column: float, text: str = "", colour: str = "white", **more: Any) -> None:
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="#8a93a6", linewidth=0.8, **more))
    if text:
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5)


def _bare(axes: Any, height: float, width: float) -> None:
    axes.set_xlim(-0.15, width + 0.15)
    axes.set_ylim(height + 0.15, -0.15)
    axes.set_aspect("equal")
    axes.axis("off")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def numbers(arrays: Mapping[str, Array], marked: Mapping[str, Sequence[tuple[int, int]]] | None = None) -> Figure:
    """Draw matrices side by side under their names; `marked` are cells (row, column) in colour, by name."""
    shown = {name: np.atleast_2d(array) for name, array in arrays.items()}
    sizes = [array.shape for array in shown.values()]
    widths = [width + 0.8 for _, width in sizes]
    figure = Figure(figsize=(CELL * sum(widths) + 0.2, CELL * max(height for height, _ in sizes) + 0.7))
    grid = figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0]
    for axes, (name, array) in zip(grid, shown.items()):
        for place in np.ndindex(*array.shape):
            colour = "#ffd8a8" if place in (marked or {}).get(name, ()) else FAINT
            _cell(axes, place[0], place[1], _text(array[place]), colour)
        _bare(axes, *array.shape)
        axes.set_title(name, fontsize=9, pad=3)
    figure.tight_layout(pad=0.3)
    return figure


def sliding(x: Array, w: Array, y: Array, at: Sequence[tuple[int, int]], stride: int = 1) -> Figure:
    """Draw where a filter stands on its input for some outputs, one row for each: input, filter, output."""
    rows, (kernel_h, kernel_w) = len(at), w.shape
    widths = [x.shape[1], kernel_w, y.shape[1]]
    figure = Figure(figsize=(CELL * (sum(widths) + 3), rows * (CELL * (x.shape[0] + 0.6) + 0.25)))
    grid = figure.subplots(rows, 3, squeeze=False, width_ratios=widths)
    for row, (p, q) in zip(grid, at):
        inside = {(p * stride + r, q * stride + s) for r in range(kernel_h) for s in range(kernel_w)}
        for axes, array, lit in ((row[0], x, inside), (row[1], w, set()), (row[2], y, {(p, q)})):
            for place in np.ndindex(*array.shape):
                colour = "#ffd8a8" if place in lit else ("#dbe7f6" if array is w else FAINT)
                _cell(axes, place[0], place[1], _text(array[place]), colour)
            _bare(axes, *array.shape)
    for axes, name in zip(grid[0], ("input", "filter", "output")):
        axes.set_title(name, fontsize=9, pad=3)
    figure.tight_layout(pad=0.3)
    return figure


def windows(
    size: int,
    kernel: int,
    stride: int = 1,
    pad_lo: int = 0,
    pad_hi: int = 0,
    dilation: int = 1,
    out: int | None = None,
    title: str = "",
    starts: Sequence[int] = (),
) -> Figure:
    """Draw one axis: the input with its padding above, a row for each output below, with the taps that it reads."""
    from gpuconv.shapes import conv_output_size

    count = conv_output_size(size, kernel, stride, pad_lo, pad_hi, dilation) if out is None else out
    total = size + pad_lo + pad_hi
    figure = Figure(figsize=(min(0.3 * total + 1.3, 6.2), 0.24 * (count + 2) + (0.4 if title else 0.2)))
    axes = figure.subplots()
    for i in range(total):
        real = pad_lo <= i < pad_lo + size
        _cell(
            axes,
            0,
            i,
            str(i - pad_lo) if real else "0",
            FAINT if real else "white",
            **({} if real else {"hatch": "////"}),
        )
    for o in range(count):
        first = starts[o] if starts else o * stride
        taps = [first + t * dilation for t in range(kernel)]
        axes.plot([taps[0] + 0.5, taps[-1] + 0.5], [o + 1.8] * 2, color="#b9c2d3", linewidth=1, zorder=0)
        for tap in taps:
            _cell(axes, o + 1.4, tap, "", COLOURS[o % len(COLOURS)])
        axes.text(total + 0.4, o + 1.9, f"output {o}", va="center", fontsize=8)
    axes.set_xlim(-0.2, total + 3.6)
    axes.set_ylim(count + 1.7, -0.2)
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9, loc="left", pad=3)
    figure.tight_layout(pad=0.2)
    return figure


def matrix(
    values: Array, weights: Sequence[Any] | None = None, title: str = "", across: str = "", down: str = ""
) -> Figure:
    """Draw a matrix by the colours of its values; `weights` are the values that get a colour of their own."""
    height, width = values.shape
    scale = min(0.28, 5.2 / width, 4.0 / height)
    figure = Figure(figsize=(scale * width + 0.6, scale * height + 0.75))
    axes = figure.subplots()
    if weights is None:
        axes.imshow(values, cmap="Blues", interpolation="nearest")
    else:
        codes = np.zeros(values.shape, int)
        for place, weight in enumerate(weights):
            codes[values == weight] = place + 1
        axes.imshow(codes, cmap=ListedColormap(["white", *COLOURS[: len(weights)]]), vmin=0, vmax=len(weights))
    axes.set_xticks(np.arange(-0.5, width), [])
    axes.set_yticks(np.arange(-0.5, height), [])
    axes.tick_params(length=0)
    if max(height, width) <= 40:
        axes.grid(color="#d5dae3", linewidth=0.5)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    if title:
        axes.set_title(title, fontsize=9, pad=4)
    figure.tight_layout(pad=0.3)
    return figure


def pictures(images: Mapping[str, Array], columns: int = 2, cmap: str = "gray") -> Figure:
    """Draw pictures [H, W] or [H, W, 3] under their names, `columns` side by side."""
    rows = -(-len(images) // columns)
    height, width = next(iter(images.values())).shape[:2]
    tile = 5.2 / columns
    figure = Figure(figsize=(5.4, rows * (tile * height / width + 0.3)))
    grid: Callable[..., Any] = figure.subplots
    for axes in grid(rows, columns, squeeze=False).ravel():
        axes.axis("off")
    for axes, (name, image) in zip(figure.axes, images.items()):
        axes.imshow(image, cmap=cmap, interpolation="nearest")
        axes.set_title(name, fontsize=9, pad=3)
    figure.tight_layout(pad=0.3)
    return figure
