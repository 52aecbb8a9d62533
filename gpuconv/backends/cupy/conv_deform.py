"""Deformable convolution on the CuPy backend: the three passes, their launches and pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS
from ...config import workspace_limit
from ...problem import Call, ConvProblem, DeformProblem, Problem, itemsize
from ...shapes import ceil_div
from ..axes import five, reach
from ..base import Plan, Solver
from .common import CupySolver, Launch, Results, Sort, Strides, Workspace
from .conv_common import C_TYPES, PARAMS, TILES, conv_params, tile_for, wide_index

__all__ = ["DEFORM_PARAMS", "SOLVERS", "DeformDgrad", "DeformFprop", "DeformWgrad"]

_LONGS = ("segment", "per_offset", "first_n", "first_channel", "channels", "width", "samples", "cells")

DEFORM_PARAMS = np.dtype(
    [("conv", PARAMS), ("offset_stride", np.int64, (5,)), ("mask_stride", np.int64, (5,))]
    + [(name, np.int64) for name in _LONGS]
    + [("offset_groups", np.int32), ("axes", np.int32)],
    align=True,
)
"""The struct ``DeformParams`` of ``kernels/cu/deform.cuh``."""

_SHAPES = {"medium": ("Plain<64, 64, 4, 4>", 256), "small": ("Plain<32, 32, 4, 4>", 64)}
"""Name and threads of each tile; sides are those of ``TILES``."""

_THREADS = 256
_GATHER_THREADS = 128

_BLOCKS = 2 * 132
"""How many blocks a weight gradient is split into: two for each multiprocessor of an H100 or H200."""

_SPLIT_PIXELS = 256
_MOST_SPLITS = 64

_SORT_BYTES = 32
"""Bytes of a sample while CuPy sorts: its place, a copy of its key, and both again where a radix sort puts them."""

_FLOPS_PER_US = 15e6
"""Products of the plain core, a guess as that of the other convolutions: 15 TFLOP/s, of every type."""

_SAMPLED_PER_US = 1e6
"""Corners that are loaded in a microsecond, a guess: 4 in a cycle by each multiprocessor of an H100 or H200."""


def _segment(problem: DeformProblem) -> int:
    """Return how many channels side by side share a group and an offset group, wherever they begin; 0 of none."""
    return gcd(problem.conv.c // problem.conv.groups, problem.conv.c // problem.offset_groups)


def _sums(problem: DeformProblem) -> str:
    """Return the type in which sums are kept."""
    return "float64" if problem.dtype == "float64" else "float32"


@dataclass(frozen=True, slots=True)
class _Variant:
    """One instantiation of a tiled kernel."""

    dtype: str
    dims: int | None
    wide: bool
    tile: str

    def name(self, kernel: str) -> str:
        """Return the C++ name of `kernel` in this variant."""
        dims = () if self.dims is None else (str(self.dims),)
        arguments = (C_TYPES[self.dtype], *dims, str(self.wide).lower(), _SHAPES[self.tile][0])
        return f"{kernel}<{', '.join(arguments)}>"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _SHAPES[self.tile][1]

    def tiles(self, rows: int, columns: int) -> tuple[int, int]:
        """Return how many tiles rows and columns take."""
        m, n = TILES[self.tile]
        return ceil_div(rows, m), ceil_div(columns, n)


def _variants(dims: tuple[int | None, ...]) -> list[_Variant]:
    """Return every variant that there is: offsets of 64 bits come in one tile, and with three axes alone."""
    narrow = [_Variant(dtype, n, False, tile) for dtype in C_TYPES for n in dims for tile in _SHAPES]
    return [*narrow, *(_Variant(dtype, dims[-1], True, "medium") for dtype in C_TYPES)]


def _variant(problem: DeformProblem, config: Mapping[str, Any], wide: bool, sampled: bool = True) -> _Variant:
    dims = 3 if wide or problem.ndim == 3 else 2
    return _Variant(problem.dtype, dims if sampled else None, wide, "medium" if wide else config["tile"])


def _wide(problem: DeformProblem, strides: Strides, config: Mapping[str, Any], *counts: int) -> bool:
    """Tell whether an offset of any array, or one of `counts`, may not fit in 32-bit arithmetic."""
    shapes = problem.shapes
    found = [reach(shapes[name], strides[name]) for name in ("offset", "mask") if name in strides]
    of_conv = {name: strides[name] for name in ("x", "w", "y", "bias") if name in strides}
    most = (*counts, *found, prod(problem.offset_shape))
    return bool(config.get("INDEX64")) or wide_index(problem.conv, of_conv, *most)


def _params(problem: DeformProblem, strides: Strides) -> np.ndarray:
    """Return the struct of a problem as an array of no axes; what one pass alone needs is left 0."""
    params = np.zeros((), DEFORM_PARAMS)
    params["conv"] = conv_params(problem.conv, strides)
    for name in ("offset", "mask"):
        params[f"{name}_stride"] = five(strides[name]) if name in strides else 0
    params["segment"] = _segment(problem)
    params["per_offset"] = max(problem.conv.c // problem.offset_groups, 1)
    params["offset_groups"], params["axes"] = problem.offset_groups, problem.ndim
    return params


def _tile(conv: ConvProblem, rows: int, columns: int, copies: int) -> str:
    found = tile_for(conv, max(rows, 1), max(columns, 1), max(copies, 1))
    return "medium" if found == "large" else found


class _Deform(CupySolver):
    """What the three passes share."""

    kind: str
    kernel: str

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, DeformProblem) and problem.conv.kind == self.kind

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, DeformProblem):
            return "samples between elements, as deformable convolution does, which is another operation"
        if problem.conv.kind != self.kind:
            return f"solves {self.kind}, not {problem.conv.kind}"
        return None

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate: a guess until a GPU run fits a cost model.

        It assumes 15 TFLOP/s of products, padded to tiles 32 wide and segments to 16 deep, 1e12 loads of corners a
        second, and 1.5 TB/s of what must move at least.
        """
        assert isinstance(problem, DeformProblem)
        conv, segment = problem.conv, max(_segment(problem), 1)
        columns = max(conv.k // conv.groups, 1)
        padded = ceil_div(columns, 32) * 32 / columns * ceil_div(segment, 16) * 16 / segment
        samples = conv.n * conv.c * problem.taps * prod(conv.output_size) * 2**problem.ndim
        passes = ceil_div(columns, 64) if conv.kind != "dgrad" else 1
        return 6 + max(
            conv.flops * padded / _FLOPS_PER_US + samples * passes / _SAMPLED_PER_US, problem.min_bytes / 1.5e6
        )

    def _named(self, problem: DeformProblem, config: dict[str, Any]) -> dict[str, Any]:
        return config | {"kernel": _variant(problem, config, problem.index64).name(self.kernel)}

    @classmethod
    def instantiations(cls) -> list[tuple[str, str]]:
        return [(f"conv_deform_{cls.kind}", variant.name(cls.kernel)) for variant in _variants((2, 3))]


class DeformFprop(_Deform):
    """Forward: an implicit GEMM that interpolates what it loads; nothing is stored in between."""

    id = "cupy.conv.deform.fprop"
    kind = "fprop"
    kernel = "conv_deform_fprop"

    def results(self, problem: DeformProblem) -> Results:
        conv = problem.conv
        return {"y": (conv.y_shape, conv.dtype, conv.y_format)}

    @staticmethod
    def _sizes(problem: DeformProblem) -> tuple[int, int]:
        conv = problem.conv
        return conv.n * prod(conv.output_size), conv.k // conv.groups

    def configuration(self, problem: DeformProblem) -> dict[str, Any]:
        tile = _tile(problem.conv, *self._sizes(problem), problem.conv.groups)
        return self._named(problem, {"tile": tile})

    def launches(self, problem: DeformProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        rows, columns = self._sizes(problem)
        variant = _variant(problem, config, _wide(problem, strides, config, rows))
        params = _params(problem, strides)
        params["conv"]["tiles_m"], params["conv"]["tiles_n"] = tiles = variant.tiles(rows, columns)
        grid, arrays = problem.conv.groups * prod(tiles), ("x", "offset", "mask", "w", "bias", "y")
        return [Launch(self.kernel, variant.name(self.kernel), grid, variant.threads, arrays, params[()])]


class DeformWgrad(_Deform):
    """Weight gradient: the reduction over positions in splits, whose partial sums a second pass adds in order."""

    id = "cupy.conv.deform.wgrad"
    kind = "wgrad"
    kernel = "conv_deform_wgrad"

    def results(self, problem: DeformProblem) -> Results:
        conv = problem.conv
        found: Results = {"w": (conv.w_shape, conv.dtype, conv.w_format)}
        return found | ({"bias": ((conv.k,), conv.dtype, CONTIGUOUS)} if conv.bias else {})

    @staticmethod
    def _elements(problem: DeformProblem) -> int:
        """Return how many partial sums one split has: those of the weight and, behind them, those of the bias."""
        return prod(problem.conv.w_shape) + (problem.conv.k if problem.conv.bias else 0)

    @staticmethod
    def _tiles(problem: DeformProblem, tile: str) -> tuple[int, int]:
        conv, segment, (m, n) = problem.conv, _segment(problem), TILES[tile]
        of_group = conv.c // conv.groups // segment * ceil_div(segment, n) if segment else 1
        return ceil_div(conv.k // conv.groups, m), of_group

    def configuration(self, problem: DeformProblem) -> dict[str, Any]:
        conv = problem.conv
        tile = "small" if min(conv.k // conv.groups, _segment(problem)) <= 32 else "medium"
        tiles = conv.groups * problem.taps * prod(self._tiles(problem, tile))
        pixels = conv.n * prod(conv.output_size)
        room = workspace_limit() // max(self._elements(problem) * itemsize(_sums(problem)), 1)
        splits = max(min(_BLOCKS // max(tiles, 1), pixels // _SPLIT_PIXELS, _MOST_SPLITS, room), 1)
        # As many as are not empty once all have the same number of pixels.
        splits = ceil_div(pixels, ceil_div(pixels, splits)) if splits > 1 else 1
        return self._named(problem, {"tile": tile, "splits": splits})

    def workspace(self, problem: DeformProblem, config: Mapping[str, Any]) -> Workspace:
        splits = config["splits"]
        return {"partial": (_sums(problem), splits * self._elements(problem))} if splits > 1 else {}

    def launches(self, problem: DeformProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        conv, splits, elements = problem.conv, config["splits"], self._elements(problem)
        pixels = conv.n * prod(conv.output_size)
        wide = _wide(problem, strides, config, pixels, splits * elements)
        variant = _variant(problem, config, wide)
        tiles = self._tiles(problem, variant.tile)
        params = _params(problem, strides)
        of_conv = params["conv"]
        of_conv["tiles_m"], of_conv["tiles_n"] = tiles
        of_conv["splits"], of_conv["per_split"] = splits, ceil_div(pixels, splits)
        grid = splits * conv.groups * problem.taps * prod(tiles)
        arrays = ("y", "x", "offset", "mask", "w", "bias", "partial" if splits > 1 else None)
        launches = [Launch(self.kernel, variant.name(self.kernel), grid, variant.threads, arrays, params[()])]
        if splits > 1:
            name = f"conv_wgrad_sum<{C_TYPES[problem.dtype]}, {str(wide).lower()}>"
            blocks = ceil_div(elements, _THREADS)
            launches.append(Launch("conv_wgrad", name, blocks, _THREADS, ("partial", "w", "bias"), of_conv[()]))
        return launches

    @classmethod
    def instantiations(cls) -> list[tuple[str, str]]:
        sums = [f"conv_wgrad_sum<{name}, {wide}>" for name in C_TYPES.values() for wide in ("false", "true")]
        return [*super().instantiations(), *(("conv_wgrad", name) for name in sums)]


class DeformDgrad(_Deform):
    """Gradients of input, offset and mask, whichever are wanted; the input's by sorted samples, in pieces."""

    id = "cupy.conv.deform.dgrad"
    kind = "dgrad"
    kernel = "conv_deform_offsets"
    source = "conv_deform_dgrad"
    always_answers = True

    def results(self, problem: DeformProblem) -> Results:
        conv, formats = problem.conv, {"x": problem.conv.x_format}
        return {
            f"{name}_grad": (problem.shapes[name], conv.dtype, formats.get(name, CONTIGUOUS)) for name in problem.grads
        }

    def run(self, plan: Plan, call: Call) -> Any:
        found = super().run(plan, call)
        return found if isinstance(found, tuple) else (found,)

    def configuration(self, problem: DeformProblem) -> dict[str, Any]:
        conv = problem.conv
        tile = _tile(conv, conv.n * prod(conv.output_size), _segment(problem), problem.offset_groups * problem.taps)
        return self._named(problem, {"tile": tile} | self._pieces(problem))

    @staticmethod
    def _lists(problem: DeformProblem) -> int:
        """Return how many lists of samples an image has."""
        return problem.offset_groups * prod(size + 1 for size in problem.conv.input_size)

    @staticmethod
    def _samples(problem: DeformProblem) -> int:
        """Return how many samples an image has, whatever the channels."""
        return problem.offset_groups * problem.taps * prod(problem.conv.output_size)

    def _image_bytes(self, problem: DeformProblem, channels: int) -> int:
        """Return the workspace of one image for the gradient of so many channels of the input."""
        columns = problem.taps * prod(problem.conv.output_size) * channels * itemsize(_sums(problem))
        return columns + self._samples(problem) * (8 + _SORT_BYTES) + 8 * (self._lists(problem) + 1)

    def _pieces(self, problem: DeformProblem) -> dict[str, int]:
        """Return how many images and channels are in work at a time: whole groups, or a part of one.

        One of each at least, whatever the limit: the lists of one image's samples may take more.
        """
        conv, room = problem.conv, workspace_limit()
        if "x" not in problem.grads or not conv.c:
            return {"images": max(conv.n, 1), "channels": max(conv.c, 1)}
        per_group = conv.c // conv.groups
        whole = [per_group * part for part in range(1, conv.groups + 1) if conv.groups % part == 0]
        parts = [part for part in range(1, per_group) if per_group % part == 0]
        fits = [channels for channels in (*parts, *whole) if self._image_bytes(problem, channels) <= room]
        channels = max(fits, default=1)
        images = room // self._image_bytes(problem, channels)
        return {"images": max(min(images, conv.n), 1), "channels": channels}

    def workspace(self, problem: DeformProblem, config: Mapping[str, Any]) -> Workspace:
        if "x" not in problem.grads:
            return {}
        images = config["images"]
        columns = problem.taps * prod(problem.conv.output_size) * config["channels"]
        return {
            "columns": (_sums(problem), images * columns),
            "keys": ("int64", images * self._samples(problem)),
            "starts": ("int64", images * self._lists(problem) + 1),
        }

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, DeformProblem)
        found = super().plan(problem)
        sorting = found.config["images"] * self._samples(problem) * _SORT_BYTES if "x" in problem.grads else 0
        return Plan(self, problem, found.workspace + sorting, found.config)

    def launches(self, problem: DeformProblem, strides: Strides, config: Mapping[str, Any]) -> Sequence[Launch | Sort]:
        given = {name: steps for name, steps in strides.items() if not name.endswith("_grad")}
        launches: list[Launch | Sort] = []
        if {"offset", "mask"} & set(problem.grads):
            launches.append(self._of_offsets(problem, given, config))
        if "x" in problem.grads and 0 not in problem.conv.x_shape:
            of_x = strides["x_grad"]
            for first in range(0, problem.conv.n, config["images"]):
                launches += self._of_input(problem, {**given, "x": of_x}, config, first)
        return launches

    def _of_offsets(self, problem: DeformProblem, strides: Strides, config: Mapping[str, Any]) -> Launch:
        rows = problem.conv.n * prod(problem.conv.output_size)
        variant = _variant(problem, config, _wide(problem, strides, config, rows))
        grid = variant.tiles(rows, 1)[0] * problem.offset_groups * problem.taps
        arrays = ("y", "x", "offset", "mask", "w", "offset_grad", "mask_grad")
        params = _params(problem, strides)[()]
        return Launch(self.source, variant.name(self.kernel), grid, variant.threads, arrays, params)

    def _of_input(
        self, problem: DeformProblem, strides: Strides, config: Mapping[str, Any], first: int
    ) -> list[Launch | Sort]:
        """Return the launches of one piece of the images: lists of samples, then column gradients and their sums.

        The arrays are those of all images: `strides` has the gradient's for ``x``.
        """
        conv, channels = problem.conv, config["channels"]
        images = min(config["images"], conv.n - first)
        rows, elements = images * prod(conv.output_size), images * prod(conv.input_size) * channels
        samples, lists = images * self._samples(problem), images * self._lists(problem)
        params = _params(problem, strides)
        params["conv"]["n"], params["first_n"], params["samples"] = images, first, samples
        params["cells"] = self._lists(problem) // problem.offset_groups
        params["channels"], params["width"] = channels, min(channels, conv.c // conv.groups)
        counts = (rows * problem.taps * channels, elements, samples, lists)
        wide = _wide(problem, strides, config, *counts)
        name = C_TYPES[problem.dtype]
        cells, starts = f"conv_deform_cells<{name}>", "conv_deform_starts<long long>"
        searched = ("keys", "order", "starts")
        blocks = ceil_div(samples, _THREADS), ceil_div(lists + 1, _THREADS)
        found: list[Launch | Sort] = [
            Launch(self.source, cells, blocks[0], _THREADS, ("offset", "keys"), params.copy()[()]),
            Sort("keys", samples, "order"),
            Launch(self.source, starts, blocks[1], _THREADS, searched, params.copy()[()]),
        ]
        variant = _variant(problem, config, wide, sampled=False)
        width = int(params["width"])
        tiles_m, tiles_n = variant.tiles(rows, width)
        params["conv"]["tiles_n"] = tiles_n = tiles_n * (channels // width)
        gather = f"conv_deform_gather<{name}, {str(wide).lower()}>"
        gathered = ("offset", "mask", "columns", "order", "starts", "x_grad")
        for first_channel in range(0, conv.c, channels):
            params["first_channel"] = first_channel
            of_piece = params.copy()[()]
            found += [
                Launch(self.source, variant.name("conv_deform_columns"), tiles_m * problem.taps * tiles_n,
                       variant.threads, ("y", "w", "columns"), of_piece),
                Launch(self.source, gather, ceil_div(elements, _GATHER_THREADS), _GATHER_THREADS, gathered, of_piece),
            ]  # fmt: skip
        return found

    @classmethod
    def instantiations(cls) -> list[tuple[str, str]]:
        columns = [variant.name("conv_deform_columns") for variant in _variants((None,))]
        types = C_TYPES.values()
        names = [*columns, *(f"conv_deform_cells<{name}>" for name in types), "conv_deform_starts<long long>"]
        names += [f"conv_deform_gather<{name}, {wide}>" for name in types for wide in ("false", "true")]
        return [*super().instantiations(), *((cls.source, name) for name in names)]


SOLVERS: tuple[Solver, ...] = (DeformFprop(), DeformDgrad(), DeformWgrad())
