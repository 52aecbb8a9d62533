"""The forward and the depthwise convolution solvers of the CuPy backend."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem, Problem
from ...shapes import ceil_div
from ..base import Solver
from .common import Launch, Strides
from .conv_common import (
    C_TYPES,
    PARAMS,
    CupyConv,
    TiledConv,
    choose_variant,
    conv_params,
    rank_of,
    variants,
    wide_index,
)
from .conv_grad import SOLVERS as GRADIENTS

__all__ = ["DEPTHWISE_PARAMS", "SOLVERS", "DgradDepthwise", "FpropDepthwise", "FpropTiled", "TransposedDepthwise"]


class FpropTiled(TiledConv):
    """General forward convolution as an implicit GEMM: any strides, every floating dtype."""

    id = "cupy.conv.fprop.tiled"
    kinds = ("fprop",)
    kernel = "conv_fprop"

    def sizes(self, problem: ConvProblem) -> tuple[int, int, int]:
        return problem.n * prod(problem.output_size), problem.k // problem.groups, problem.groups

    def launches(self, problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        rows, columns, _ = self.sizes(problem)
        variant = choose_variant(problem, strides, config, wide_index(problem, strides, rows, problem.reduction_length))
        params = conv_params(problem, strides)
        params["tiles_m"], params["tiles_n"] = tiles = variant.tiles(rows, columns)
        arrays = ("x", "w", "bias", "scale", "shift", "residual", "y")
        grid = problem.groups * prod(tiles)
        return [Launch(self.kernel, variant.name(self.kernel), grid, variant.threads, arrays, params[()])]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        return [("conv_fprop", variant.name("conv_fprop")) for variant in variants("y")]


DEPTHWISE_PARAMS = np.dtype(
    [
        ("conv", PARAMS), ("first_tap", np.int64), ("channels", np.int64),
        ("multiplier", np.int32), ("depth", np.int32), ("channels_inside", np.int32),
    ],
    align=True,
)  # fmt: skip
"""The struct ``DepthwiseParams`` of ``kernels/cu/conv_depthwise.cu``."""

_THREADS = 128
_RUN = 4
"""Neighbours of a row that one thread computes."""

_ROWS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))
"""Taps and stride along a row that have a kernel of their own."""


class _Depthwise(CupyConv):
    """One filter for each channel: no GEMM, each thread computes neighbours of a row."""

    kernel = "conv_depthwise"

    def refuse(self, problem: ConvProblem) -> str | None:
        per_group = problem.c // problem.groups
        return None if per_group == 1 else f"needs 1 input channel per group, the problem has {per_group}"

    def rank(self, problem: Problem) -> float:
        assert isinstance(problem, ConvProblem)
        return rank_of(problem, problem.flops, 5e6)

    def configuration(self, problem: ConvProblem) -> dict[str, Any]:
        return {"outputs of a thread": _RUN, "kernel": self._kernel(problem, problem.index64)}

    def _kernel(self, problem: ConvProblem, wide: bool) -> str:
        row = (problem.kernel[-1], problem.stride[-1])
        known = row in _ROWS and problem.dilation[-1] == 1 and problem.padding_mode == "zeros" and not wide
        taps, stride = row if known else (0, 0)
        return f"{self.kernel}<{C_TYPES[problem.dtype]}, {taps}, {stride}, {str(wide).lower()}>"

    def launch(
        self, problem: ConvProblem, params: np.ndarray, arrays: tuple[str, ...], config: Mapping[str, Any], wide: bool
    ) -> list[Launch]:
        """Return the launch of a struct that is complete but for the order of the result."""
        inside = problem.result_format == CHANNELS_LAST
        params["channels_inside"] = inside
        *lines, q = (int(size) for size in params["conv"]["out"])
        threads = problem.n * int(params["channels"]) * prod(lines) * ceil_div(q, _RUN)
        name = self._kernel(problem, wide or bool(config.get("INDEX64")))
        return [Launch(self.kernel, name, ceil_div(threads, _THREADS), _THREADS, arrays, params[()])]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        rows = [*((taps, stride, False) for taps, stride in _ROWS), (0, 0, False), (0, 0, True)]
        return [
            ("conv_depthwise", f"conv_depthwise<{name}, {taps}, {stride}, {str(wide).lower()}>")
            for name in C_TYPES.values()
            for taps, stride, wide in rows
        ]


class FpropDepthwise(_Depthwise):
    """Forward depthwise convolution, any channel multiplier."""

    id = "cupy.conv.fprop.depthwise"
    kinds = ("fprop",)

    def launches(self, problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        params = np.zeros((), DEPTHWISE_PARAMS)
        params["conv"] = conv_params(problem, strides)
        params["channels"], params["multiplier"], params["depth"] = problem.k, problem.k // problem.c, 1
        wide = wide_index(problem, strides, prod(problem.y_shape))
        return self.launch(problem, params, ("x", "w", "bias", "scale", "shift", "residual", "y"), config, wide)


class DgradDepthwise(_Depthwise):
    """Depthwise data gradient at stride 1, which is a depthwise convolution with its taps in reverse."""

    id = "cupy.conv.dgrad.depthwise"
    kinds = ("dgrad",)

    def refuse(self, problem: ConvProblem) -> str | None:
        if any(stride != 1 for stride in problem.stride):
            return f"needs stride 1, the problem has {'x'.join(map(str, problem.stride))}"
        if problem.padding_mode != "zeros":
            return f"needs padding mode zeros, the problem has {problem.padding_mode}"
        return super().refuse(problem)

    def launches(self, problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        params = np.zeros((), DEPTHWISE_PARAMS)
        conv = conv_params(problem, strides)
        taps = conv["kernel"] - 1
        params["first_tap"] = int((taps * conv["w_stride"][2:]).sum())
        conv["w_stride"][2:] *= -1
        conv["pad_lo"] = taps * conv["dilation"] - conv["pad_lo"]
        x, y = conv["x_stride"].copy(), conv["y_stride"].copy()
        conv["x_stride"], conv["y_stride"] = y, x
        size, out = conv["size"].copy(), conv["out"].copy()
        conv["size"], conv["out"] = out, size
        params["conv"] = conv
        params["channels"], params["multiplier"], params["depth"] = problem.c, 1, problem.k // problem.c
        wide = wide_index(problem, strides, prod(problem.x_shape))
        return self.launch(problem, params, ("y", "w", "bias", "scale", "shift", "residual", "x"), config, wide)


class TransposedDepthwise(DgradDepthwise):
    """Depthwise transposed convolution at stride 1: the data gradient with an epilogue."""

    id = "cupy.conv.transposed.depthwise"
    kinds = ("transposed",)


SOLVERS: tuple[Solver, ...] = (
    FpropTiled(), *GRADIENTS, FpropDepthwise(), DgradDepthwise(), TransposedDepthwise(),
)  # fmt: skip
