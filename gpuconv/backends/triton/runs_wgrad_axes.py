"""What the kernels of weight gradients over runs compute of a problem, and all their arguments but the pointers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from ..axes import reach, three
from .common import Strides, conv_arguments, index64, power_of_two

__all__ = [
    "GradientRuns",
    "Tile",
    "fold_arguments",
    "fold_tile",
    "gradient_arguments",
    "gradient_of",
    "items_of",
    "tile_of",
]

_FOLDED = 4096
"""Numbers that a program of the pass that adds splits has in flight."""


@dataclass(frozen=True, slots=True)
class GradientRuns:
    """The sides of a weight gradient: runs are of the source, lanes are columns of the result.

    Source and result are x and y; `swapped`, for stride 1, y and x, and taps are turned round. Position i of the result
    is `off` before its row of lanes, what a tap t meets of the source at ``i stride + t dilation - pad``.
    """

    swapped: bool
    over_planes: bool
    last: bool
    channels: int
    filters: int
    taps: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation_d: int
    source_size: tuple[int, int, int]
    result_size: tuple[int, int, int]
    lanes_size: tuple[int, int, int]
    pad: tuple[int, int, int]
    off: tuple[int, int, int]
    images: int
    most_vec: int

    @property
    def elements(self) -> int:
        """Elements of a run for one column of the source."""
        return 1 if self.over_planes else self.channels

    @property
    def planes(self) -> int:
        """Runs of one row, a power of two: one per channel where these are not innermost."""
        return power_of_two(self.channels) if self.over_planes else 1

    @property
    def lines(self) -> int:
        """Filter rows of all depths."""
        return self.taps[0] * self.taps[1]


def _axes(values: tuple[int, ...], fill: int) -> tuple[int, int, int]:
    d, h, w = three(values, fill)
    return d, h, w


@lru_cache(maxsize=4096)
def gradient_of(problem: ConvProblem, swapped: bool) -> GradientRuns:
    """Return the sides of a weight gradient, `swapped` only if its strides are 1."""
    kernel, stride = _axes(problem.kernel, 1), _axes(problem.stride, 1)
    dilation, pad = _axes(problem.dilation, 1), _axes(problem.pad_lo, 0)
    x, y = _axes(problem.input_size, 1), _axes(problem.output_size, 1)
    extra = ((kernel[0] - 1) * dilation[0], kernel[1] - 1, kernel[2] - 1)
    most = 16 // itemsize(problem.dtype)
    planes = {"x": problem.x_format != CHANNELS_LAST, "y": problem.y_format != CHANNELS_LAST}
    if not swapped:
        return GradientRuns(
            False, planes["x"] and problem.c > 1, not planes["y"], problem.c, problem.k, kernel, stride, dilation[0],
            x, y, y, pad, (0, 0, 0), problem.n, most,
        )  # fmt: skip
    # Lanes are the positions of x with its padding; planes begin so that their vectors are aligned.
    off = (pad[0], pad[1], ceil_div(pad[2], most) * most if planes["x"] else pad[2])
    more = off[2] - pad[2]
    lanes = (y[0] + extra[0], y[1] + extra[1], y[2] + extra[2] + more)
    return GradientRuns(
        True, planes["y"] and problem.k > 1, not planes["x"], problem.k, problem.c, kernel, (1, 1, 1), dilation[0],
        y, x, lanes, (extra[0], extra[1], extra[2] + more), off, problem.n, most,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tile:
    """What a config makes of a problem: runs of `run` elements, `lead` of them before the first that counts."""

    runs: GradientRuns
    fixed_runs: bool
    cols: int
    vec: int
    lead: int
    used: int
    run: int
    m: int
    kb: int
    lines: int
    per: int

    @property
    def depth(self) -> int:
        """Elements of the source of a lane and a filter row."""
        return self.runs.planes * self.run

    @property
    def fixed(self) -> int:
        """Rows of a product: elements of the side that is loaded once."""
        return self.depth if self.fixed_runs else self.m

    @property
    def moving(self) -> int:
        """Columns of a product."""
        return self.lines * (self.m if self.fixed_runs else self.depth)

    @property
    def blocks(self) -> int:
        """Programs among which filter rows are divided."""
        return ceil_div(self.runs.lines, self.lines * self.per)

    @property
    def tiles_k(self) -> int:
        """Programs among which channels of the result are divided."""
        return ceil_div(self.runs.filters, self.kb)

    @property
    def elements(self) -> int:
        """Sums of a split."""
        return self.tiles_k * self.blocks * self.per * self.fixed * self.moving

    @property
    def positions(self) -> tuple[int, int, int]:
        """Slices, rows and groups of columns that lanes are at."""
        depth, rows, width = self.runs.lanes_size
        if self.fixed_runs:  # positions of x with its padding
            depth += (self.runs.taps[0] - 1) * self.runs.dilation_d
            rows += self.runs.taps[1] - 1
        return depth, rows, ceil_div(width, self.cols)

    @property
    def lanes(self) -> int:
        """Lanes of a row of all images."""
        depth, _, groups = self.positions
        return self.runs.images * depth * groups


@lru_cache(maxsize=8192)
def _tile(problem: ConvProblem, swapped: bool, fixed_runs: bool, cols: int, kb: int, lines: int, per: int) -> Tile:
    runs = gradient_of(problem, swapped)
    elements = runs.elements
    vec = gcd(runs.most_vec, runs.stride[2] * cols * elements, runs.source_size[2] * elements)
    lead = -runs.pad[2] * elements % vec
    used = ((cols - 1) * runs.stride[2] + runs.taps[2]) * elements
    run = max(power_of_two(lead + used), vec, 16 // min(runs.planes, 16))
    m = max(power_of_two(cols * kb), 16)
    return Tile(runs, fixed_runs, cols, vec, lead, used, run, m, kb, lines, per)


def tile_of(problem: ConvProblem, config: Mapping[str, Any]) -> Tile:
    """Return what `config` makes of a problem."""
    names = ("SWAPPED", "FIXED_RUNS", "COLS", "KB", "LINES", "PER")
    swapped, fixed_runs, *rest = (config[name] for name in names)
    return _tile(problem, bool(swapped), bool(fixed_runs), *rest)


def _of_both(tile: Tile, last: bool) -> dict[str, Any]:
    """Return the constants that both kernels have."""
    runs = tile.runs
    return {
        "C": runs.channels, "T": runs.taps[0], "R": runs.taps[1], "S": runs.taps[2], "STRIDE_W": runs.stride[2],
        "SWAPPED": runs.swapped, "FIXED_RUNS": tile.fixed_runs, "PLANES": runs.over_planes, "LEAD": tile.lead,
        "RUN": tile.run, "CHANNELS": runs.planes, "LAST": last, "COLS": tile.cols, "KB": tile.kb, "LINES": tile.lines,
        "PER": tile.per, "BLOCKS": tile.blocks, "M": tile.m,
    }  # fmt: skip


def _strided(arguments: Mapping[str, Any], side: str, axes: str, sizes: tuple[int, ...]) -> list[int]:
    """Return the strides of a side along axes; 0 along those of size 1."""
    return [arguments[f"{side}_stride_{axis}"] if size > 1 else 0 for axis, size in zip(axes, sizes, strict=True)]


def _source(runs: GradientRuns, tile: Tile, arguments: Mapping[str, Any], wide: bool) -> dict[str, Any]:
    """Return what describes the source: whether runs are dense, its unit, and strides in it."""
    side, axes = ("y", "nkopq") if runs.swapped else ("x", "ncdhw")
    n, c, d, h, w = _strided(arguments, side, axes, (runs.images, runs.channels, *runs.source_size))
    dense = (runs.over_planes or runs.channels == 1 or c == 1) and (runs.source_size[2] == 1 or w == runs.elements)
    numbers = {"row_size": runs.source_size[2] * runs.elements}
    numbers |= {"source_stride_n": n, "source_stride_d": d, "source_stride_h": h}
    numbers |= {"source_stride_c": c} if runs.over_planes else {}
    unit = gcd(tile.vec, *numbers.values()) if dense and not wide else 1
    found = {"source_stride_c": c, "source_stride_w": w} | {name: value // unit for name, value in numbers.items()}
    return found | {"DENSE": dense, "VEC": tile.vec, "UNIT": unit}


def _result(runs: GradientRuns, tile: Tile, arguments: Mapping[str, Any], wide: bool) -> dict[str, Any]:
    """Return what describes the result: which axis is innermost, and what is in units of theirs."""
    side, axes = ("x", "ncdhw") if runs.swapped else ("y", "nkopq")
    n, k, o, p, q = _strided(arguments, side, axes, (runs.images, runs.filters, *runs.result_size))
    width = runs.result_size[2]
    last = k == 1 or runs.filters == 1
    dense = last and tile.tiles_k == 1 and (width == 1 or q == runs.filters)
    numbers = {"result_stride_n": n, "result_stride_o": o, "result_stride_p": p}
    if dense:
        numbers["q"] = width * runs.filters
    else:
        numbers |= {"result_stride_q": q, "k": runs.filters} if last else {"result_stride_k": k, "q": width}
    unit = gcd(runs.most_vec, *numbers.values()) if not wide else 1
    found = {"result_stride_k": k, "result_stride_q": q, "k": runs.filters, "q": width}
    found |= {name: value // unit for name, value in numbers.items()}
    return found | {"LAST": last, "RESULT_DENSE": dense, "RESULT_UNIT": unit}


def items_of(tile: Tile, config: Mapping[str, Any]) -> int:
    """Return how many items of `steps` rows of lanes there are."""
    return ceil_div(tile.lanes, config["BM"]) * ceil_div(tile.positions[1], config["steps"])


def gradient_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of a split but its pointers, by name.

    Parameters
    ----------
    problem
        A weight gradient; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``y`` and ``w``.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    """
    tile, arguments = tile_of(problem, config), conv_arguments(problem, strides)
    runs, (depth, _, groups) = tile.runs, tile.positions
    tiles, items = ceil_div(tile.lanes, config["BM"]), items_of(tile, config)
    wide = bool(config.get("INDEX64")) or index64(problem, strides, tile.lanes + config["BM"])
    of_result = _result(runs, tile, arguments, wide)
    found = _of_both(tile, of_result["LAST"]) | _source(runs, tile, arguments, wide) | of_result
    return found | {
        "n": runs.images, "depth": depth, "groups": groups, "steps": config["steps"], "tiles": tiles, "items": items,
        "items_per_split": ceil_div(items, config["splits"]), "tiles_k": tile.tiles_k,
        "d": runs.source_size[0], "h": runs.source_size[1], "o": runs.result_size[0], "p": runs.result_size[1],
        "pad_d": runs.pad[0], "pad_h": runs.pad[1], "off_d": runs.off[0], "off_h": runs.off[1],
        "STRIDE_D": runs.stride[0], "STRIDE_H": runs.stride[1], "DILATION_D": runs.dilation_d, "PAD_W": runs.pad[2],
        "OFF_W": runs.off[2], "PRECISION": problem.precision, "INDEX64": wide, "BM": config["BM"],
        "HELD": tile.per > 1 and config["num_stages"] == 1,
    }  # fmt: skip


def fold_tile(problem: ConvProblem, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the tile of the pass that adds the splits: few weights at a time, for all multiprocessors to have some."""
    block = min(max(power_of_two(prod(problem.w_shape) // 256), 8), 64)
    terms = power_of_two(config["splits"] * config["COLS"])
    return {"BLOCK": block, "BLOCK_S": min(max(terms, 8), _FOLDED // block), "num_warps": 8, "num_stages": 1}


def fold_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, as :func:`gradient_arguments`."""
    tile, arguments = tile_of(problem, config), conv_arguments(problem, strides)
    folded = fold_tile(problem, config)
    last = _result(tile.runs, tile, arguments, False)["LAST"]
    result, source = ("c", "k") if tile.runs.swapped else ("k", "c")
    found = _of_both(tile, last) | {"BLOCK": folded["BLOCK"], "BLOCK_S": folded["BLOCK_S"]}
    found |= {"w_stride_result": arguments[f"w_stride_{result}"], "w_stride_source": arguments[f"w_stride_{source}"]}
    found |= {f"w_stride_{axis}": arguments[f"w_stride_{axis}"] for axis in "trs"}
    reached = max(reach(problem.w_shape, strides["w"]), (config["splits"] + folded["BLOCK_S"]) * tile.elements)
    return found | {
        "splits": config["splits"], "elements": tile.elements, "weights": prod(problem.w_shape),
        "INDEX64": bool(config.get("INDEX64")) or reached >= 2**31,
    }  # fmt: skip
