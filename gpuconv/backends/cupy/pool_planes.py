"""The pooling solvers of the CuPy backend whose windows or places differ from plane to plane: fractional, unpooling."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...problem import itemsize
from ...shapes import ceil_div
from ..axes import three
from ..base import Solver
from .common import Launch, Strides
from .pool_common import (
    C_TYPES,
    FLOATS,
    THREADS,
    CupyPool,
    compute_type,
    dense_strides,
    kernel_name,
    pool_launch,
    pool_params,
    wide_index,
)

__all__ = ["SOLVERS", "FractionalGather", "FractionalWindow", "UnpoolGather", "UnpoolTiles"]

_SIGNIFICAND_BITS = {"float32": 24, "float64": 53}

_MANY_PLANES = 8 * 132
"""Planes from which on unpooling takes small tiles, in which fewer elements are compared with each other."""


class _Fractional(CupyPool):
    pools = ("fractional_max",)

    def fields(self, problem: Any, strides: Strides) -> dict[str, Any]:
        """Return the fields of the struct that say where the windows of a plane begin."""
        dtype = np.dtype(compute_type(problem.dtype)).type
        alphas, slack = [], 0
        for size, out, window in zip(problem.input_size, problem.output_size, problem.kernel):
            # As torch on CUDA: 16-bit samples compute in float32, and so does their even distance.
            alphas.append(float(dtype(size - window) / dtype(max(out - 1, 1))))
            # A start is less than two from its even place, by its two truncations, and a few roundings on numbers up to
            # the size move it past a few integers more where those are not exact.
            slack = max(slack, 2 + (12 * size >> _SIGNIFICAND_BITS[compute_type(problem.dtype)]))
        found = dict(zip(("alpha_d", "alpha_h", "alpha_w"), three(alphas, 0)))  # type: ignore[arg-type]
        found["slack"] = slack
        if "samples" in strides:
            outer, inner, step = strides["samples"]
            # torch's 2-D kernel takes its samples as (W, H), its 3-D kernel as (D, H, W); an axis of size 1 needs none.
            places = (0, step, 0) if problem.ndim == 2 else (0, step, 2 * step)
            found |= {"samples_stride_n": outer, "samples_stride_c": inner}
            found |= zip(("sample_d", "sample_h", "sample_w"), places)
        return found


class FractionalWindow(_Fractional):
    """Fractional max pools in which a thread walks through the window of its output."""

    id = "cupy.pool.fractional_max.fprop.window"
    kind = "fprop"

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        fields = self.fields(problem, strides)
        params = pool_params(problem, {"x": strides["x"]}, prod(problem.y_shape), **fields)
        kernel = kernel_name("pool_fractional_fprop", C_TYPES[problem.dtype], wide_index(problem, strides))
        return [pool_launch("pool_fractional", kernel, ("x", "samples", "y", "indices"), params)]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        return _each("pool_fractional", "pool_fractional_fprop")


class FractionalGather(_Fractional):
    """Gradients of fractional max pools: an element gathers from the windows that may contain it.

    Indices that are taps of a window need the samples of the forward call, in ``call.arrays["samples"]``.
    """

    id = "cupy.pool.fractional_max.bwd.gather"
    kind = "bwd"

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        read = {name: strides[name] for name in ("y", "indices")}
        fields = self.fields(problem, strides)
        params = pool_params(problem, read, prod(problem.x_shape), **fields)
        kernel = kernel_name("pool_fractional_bwd", C_TYPES[problem.dtype], wide_index(problem, strides))
        return [pool_launch("pool_fractional", kernel, ("y", "indices", "samples", "dx"), params)]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        return _each("pool_fractional", "pool_fractional_bwd")


class UnpoolTiles(CupyPool):
    """Max unpooling, a block to each plane, which works through it tile by tile: the last of equal indices stays."""

    id = "cupy.pool.max_unpool.fprop.tiles"
    pools = ("max_unpool",)
    kind = "fprop"

    def configuration(self, problem: Any) -> dict[str, Any]:
        if problem.y_format == CHANNELS_LAST:
            return {"strips": 8, "threads": THREADS}
        strips = 64 if problem.n * problem.c >= _MANY_PLANES else THREADS
        return {"strips": strips, "threads": strips}

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        of_type, elements = C_TYPES[problem.dtype], prod(problem.y_shape)
        clear = pool_params(problem, {}, elements)
        clearing = ceil_div(elements * itemsize(problem.dtype), 16 * THREADS)
        planes, threads, strips = problem.n * problem.c, config["threads"], config["strips"]
        read = {"x": strides["x"], "indices": strides["indices"]}
        read["y"] = dense_strides(problem.y_shape, problem.y_format)
        params = pool_params(problem, read, planes, strips=strips)
        kernel = kernel_name("pool_unpool_fprop", of_type, wide_index(problem, strides))
        arrays = ("x", "indices", "y")
        return [
            Launch("pool_unpool", kernel_name("pool_unpool_clear", of_type), clearing, THREADS, ("y",), clear),
            Launch("pool_unpool", kernel, ceil_div(planes, threads // strips), threads, arrays, params),
        ]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        clear = [("pool_unpool", kernel_name("pool_unpool_clear", C_TYPES[dtype])) for dtype in FLOATS]
        return clear + _each("pool_unpool", "pool_unpool_fprop")


class UnpoolGather(CupyPool):
    """The gradient of max unpooling: each element reads the gradient at its index."""

    id = "cupy.pool.max_unpool.bwd.gather"
    pools = ("max_unpool",)
    kind = "bwd"

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        params = pool_params(problem, {name: strides[name] for name in ("y", "indices")}, prod(problem.x_shape))
        kernel = kernel_name("pool_unpool_bwd", C_TYPES[problem.dtype], wide_index(problem, strides))
        return [pool_launch("pool_unpool", kernel, ("y", "indices", "dx"), params)]

    @staticmethod
    def instantiations() -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        return _each("pool_unpool", "pool_unpool_bwd")


def _each(source: str, kernel: str) -> list[tuple[str, str]]:
    return [(source, kernel_name(kernel, C_TYPES[dtype], wide)) for dtype in FLOATS for wide in (False, True)]


SOLVERS: tuple[Solver, ...] = (FractionalWindow(), FractionalGather(), UnpoolTiles(), UnpoolGather())
