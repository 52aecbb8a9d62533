"""The gradient solvers of the CuPy backend, transposed convolution among them."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod
from typing import Any

from ...arrays import CONTIGUOUS
from ...config import workspace_limit
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div, map_axes, phase_size
from ..axes import three
from ..base import Solver
from ..conv_common import images_of
from .common import Launch, Results, Strides, Workspace
from .conv_common import C_TYPES, TiledConv, choose_variant, conv_params, format_strides, variants, wide_index

__all__ = ["SOLVERS", "DgradTiled", "TransposedTiled", "WgradTiled"]

_BLOCKS = 2 * 132
"""How many blocks a weight gradient is split into: two for each multiprocessor of an H100 or H200."""

_SPLIT_PIXELS = 256
"""Pixels of a split at least: reading them costs more than writing and reading the partial sums."""

_SUM_THREADS = 256


class DgradTiled(TiledConv):
    """General data gradient: one dense convolution for each stride phase, in one launch."""

    id = "cupy.conv.dgrad.tiled"
    kinds: tuple[str, ...] = ("dgrad",)
    kernel = "conv_dgrad"

    def sizes(self, problem: ConvProblem) -> tuple[int, int, int]:
        rows = problem.n * prod(map_axes(phase_size, problem.input_size, problem.stride))
        return rows, problem.c // problem.groups, problem.groups * prod(problem.stride)

    def configuration(self, problem: ConvProblem) -> dict[str, Any]:
        extra = {"phases": prod(problem.stride), "images of a position": prod(images_of(problem))}
        return super().configuration(problem) | extra

    def launches(self, problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        rows, columns, copies = self.sizes(problem)
        variant = choose_variant(problem, strides, config, wide_index(problem, strides, rows, problem.reduction_length))
        params = conv_params(problem, strides)
        params["tiles_m"], params["tiles_n"] = tiles = variant.tiles(rows, columns)
        params["images"] = three(images_of(problem), 1)
        axes = list(zip(problem.stride, problem.dilation, strict=True))
        steps = [stride // gcd(stride, dilation) for stride, dilation in axes]
        # pow(dilation / g, -1, stride / g); modulo 1 it is 0
        inverses = [
            pow(dilation * step // stride, -1, step) for (stride, dilation), step in zip(axes, steps, strict=True)
        ]
        params["step"], params["inverse"] = three(steps, 1), three(inverses, 0)
        arrays = ("y", "w", "bias", "scale", "shift", "residual", "x")
        name = variant.name(self.kernel)
        return [Launch(self.kernel, name, copies * prod(tiles), variant.threads, arrays, params[()])]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        return [("conv_dgrad", variant.name("conv_dgrad")) for variant in variants("x")]


class TransposedTiled(DgradTiled):
    """Transposed convolution: the data gradient with an epilogue."""

    id = "cupy.conv.transposed.tiled"
    kinds = ("transposed",)


def _partial_elements(problem: ConvProblem) -> int:
    """Return how many partial sums one split has: those of the weight and, behind them, those of the bias."""
    return prod(problem.w_shape) + (problem.k if problem.bias else 0)


def _partial_type(problem: ConvProblem) -> str:
    return "float64" if problem.dtype == "float64" else "float32"


class WgradTiled(TiledConv):
    """General weight gradient: the reduction over pixels in splits, whose partial sums a second pass adds in order.

    The bias gradient rides along: the sums of ``y`` come from the tiles that the products read.
    """

    id = "cupy.conv.wgrad.tiled"
    kinds = ("wgrad",)
    kernel = "conv_wgrad"

    def sizes(self, problem: ConvProblem) -> tuple[int, int, int]:
        rows = problem.c // problem.groups * prod(problem.kernel)
        return rows, problem.k // problem.groups, problem.groups

    def results(self, problem: ConvProblem) -> Results:
        found = super().results(problem)
        return found | ({"bias": ((problem.k,), problem.dtype, CONTIGUOUS)} if problem.bias else {})

    def configuration(self, problem: ConvProblem) -> dict[str, Any]:
        config = super().configuration(problem)
        # Splits fill the GPU: tiles need not.
        rows, columns, _ = self.sizes(problem)
        config["tile"] = "small" if min(rows, columns) <= 32 else "large" if min(rows, columns) >= 128 else "medium"
        variant = choose_variant(problem, format_strides(problem), config, problem.index64)
        config |= {"tile": variant.tile, "kernel": variant.name(self.kernel)}
        tiles = prod(variant.tiles(rows, columns)) * problem.groups
        return config | {"splits": self._splits(problem, tiles)}

    @staticmethod
    def _splits(problem: ConvProblem, tiles: int) -> int:
        """Return how many splits fill the GPU, long enough to pay and within the workspace limit."""
        pixels = problem.n * prod(problem.output_size)
        of_one = _partial_elements(problem) * itemsize(_partial_type(problem))
        wanted = min(ceil_div(_BLOCKS, tiles), pixels // _SPLIT_PIXELS, workspace_limit() // max(of_one, 1))
        if wanted < 2:
            return 1
        # As many as are not empty once all have the same number of pixels.
        return ceil_div(pixels, ceil_div(pixels, wanted))

    def workspace(self, problem: ConvProblem, config: Mapping[str, Any]) -> Workspace:
        splits = config["splits"]
        return {"partial": (_partial_type(problem), splits * _partial_elements(problem))} if splits > 1 else {}

    def launches(self, problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        rows, columns, _ = self.sizes(problem)
        splits, elements = config["splits"], _partial_elements(problem)
        pixels = problem.n * prod(problem.output_size)
        wide = wide_index(problem, strides, pixels, rows, splits * elements)
        variant = choose_variant(problem, strides, config, wide)
        params = conv_params(problem, strides)
        params["tiles_m"], params["tiles_n"] = tiles = variant.tiles(rows, columns)
        params["splits"], params["per_split"] = splits, ceil_div(pixels, splits)
        params["taps_inside"] = variant.layout == "CONTIGUOUS"
        arrays = ("x", "y", "w", "bias", "partial" if splits > 1 else None)
        name, grid = variant.name(self.kernel), splits * problem.groups * prod(tiles)
        launches = [Launch(self.kernel, name, grid, variant.threads, arrays, params[()])]
        if splits > 1:
            name = f"conv_wgrad_sum<{C_TYPES[problem.dtype]}, {str(variant.wide).lower()}>"
            grid = ceil_div(elements, _SUM_THREADS)
            launches.append(Launch(self.kernel, name, grid, _SUM_THREADS, ("partial", "w", "bias"), params[()]))
        return launches

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        sums = [f"conv_wgrad_sum<{name}, {wide}>" for name in C_TYPES.values() for wide in ("false", "true")]
        return [("conv_wgrad", name) for name in [*(variant.name("conv_wgrad") for variant in variants("w")), *sums]]


SOLVERS: tuple[Solver, ...] = (DgradTiled(), TransposedTiled(), WgradTiled())
