"""The picture of the demonstration: tiles of one size, each under its operation, and times."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..config import VERSION
from .demo_parts import Array

__all__ = ["Bar", "Tile", "draw"]

_COLUMNS, _TILE, _GAP, _HEAD, _TOP = 6, 2.75, 0.22, 0.72, 0.85  # inches
_OURS, _THEIRS = "#1f6f8b", "#c9ced6"


class Tile(NamedTuple):
    """A picture [C, H, W] in 0..1, and what stands above it."""

    title: str
    detail: str
    run: str
    picture: Array
    alone: bool = False


class Bar(NamedTuple):
    """Milliseconds of an operation, here and in torch, if it is there."""

    title: str
    ours: float
    theirs: float | None


def draw(path: Path, tiles: Sequence[Tile], bars: Sequence[Bar], device: str) -> None:
    """Draw rows of tiles; those of what torch has no call for are a row of their own, with the times beside them."""
    figure_module = import_module("matplotlib.figure")
    common, alone = [t for t in tiles if not t.alone], [t for t in tiles if t.alone]
    rows = -(-len(common) // _COLUMNS)
    height = _TILE * common[0].picture.shape[1] / common[0].picture.shape[2]
    whole = (_COLUMNS * (_TILE + _GAP) + _GAP, (rows + 1) * (height + _HEAD) + _TOP + 0.75)
    figure = figure_module.Figure(figsize=whole, facecolor="white")
    title = f"gpuconv {VERSION}: one photograph, {len(tiles) - 1} operations"
    figure.text(_GAP / whole[0], 1 - 0.25 / whole[1], title, fontsize=19, va="top")

    def place(index: int, top: float, columns: float = 1.0) -> Any:
        row, column = divmod(index, _COLUMNS)
        left, bottom = _GAP + column * (_TILE + _GAP), whole[1] - top - (row + 1) * (height + _HEAD)
        width = columns * (_TILE + _GAP) - _GAP
        return figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))

    for index, tile in enumerate(common):
        _show(place(index, _TOP), tile, height / _TILE)
    under = _TOP + rows * (height + _HEAD) + 0.42
    heading = "One call here; torch.nn.functional needs several" if alone else "Times"
    figure.text(_GAP / whole[0], 1 - (under - 0.02) / whole[1], heading, fontsize=15, va="bottom")
    for index, tile in enumerate(alone):
        _show(place(index, under), tile, height / _TILE)
    _times(place(4, under, 2.0), bars, device)
    figure.savefig(path, dpi=100)


def _show(axes: Any, tile: Tile, ratio: float) -> None:
    """Show a picture in a frame of a given ratio of height and width, whole and in its own ratio."""
    pixels = tile.picture.transpose(1, 2, 0) if len(tile.picture) == 3 else tile.picture[0]
    rows, columns = pixels.shape[:2]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    spare = rows / columns / ratio
    if spare > 1.02:
        axes.set_xlim(columns * (0.5 - spare / 2) - 0.5, columns * (0.5 + spare / 2) - 0.5)
    elif spare < 0.98:
        axes.set_ylim(rows * (0.5 + 0.5 / spare) - 0.5, rows * (0.5 - 0.5 / spare) - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(tile.title, (0, 1), (0, 28), fontsize=12.5, fontweight="bold", **above)
    axes.annotate(f"{tile.detail}\n{tile.run}", (0, 1), (0, 4), fontsize=8, color="0.3", **above)


def _times(axes: Any, bars: Sequence[Bar], device: str) -> None:
    """Draw milliseconds on a logarithmic scale: a bar for each operation, and a mark where torch is."""
    shown = list(reversed(bars))
    places = range(len(shown))
    box = axes.get_position()
    axes.set_position((box.x0 + box.width * 0.24, box.y0 + box.height * 0.1, box.width * 0.74, box.height * 0.9))
    axes.barh([p + 0.2 for p in places], [bar.ours for bar in shown], 0.38, color=_OURS, label="gpuconv")
    theirs = [(p - 0.2, bar.theirs) for p, bar in zip(places, shown) if bar.theirs is not None]
    if theirs:
        axes.barh([p for p, _ in theirs], [ms for _, ms in theirs], 0.38, color=_THEIRS, label="torch")
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    axes.set_xscale("log")
    axes.set_yticks(list(places), [bar.title for bar in shown], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("ms, median of 3 calls of this run", fontsize=8)
    axes.annotate("Milliseconds", (0, 1), (0, 28), xycoords="axes fraction", textcoords="offset points", va="bottom",
                  fontsize=12.5, fontweight="bold")  # fmt: skip
    axes.annotate(device, (0, 1), (0, 15), xycoords="axes fraction", textcoords="offset points", va="bottom",
                  fontsize=8, color="0.3")  # fmt: skip
