"""The pooling solvers of the CuPy backend: max, average, power and adaptive pools, forward and backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isinf, prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import PoolProblem, Problem
from ...shapes import ceil_div
from ..base import Solver
from .columns import SOLVERS as COLUMN_SOLVERS
from .common import Launch, Strides, Workspace
from .pool_common import (
    C_TYPES,
    FLOATS,
    INTEGERS,
    THREADS,
    CupyPool,
    compute_type,
    dense_strides,
    kernel_name,
    lanes_of,
    pool_launch,
    pool_params,
    wide_index,
    window_class,
)
from .pool_planes import SOLVERS as PLANE_SOLVERS

__all__ = ["SOLVERS", "BlockPool", "GatherPool", "WindowPool"]

_RESIDENT = 132 * 1024
"""Threads that a GPU of 132 multiprocessors works on at a time, by the registers of these kernels."""

_TAP_US = 0.1
"""A guess, until a GPU run fits a cost model, at how long a thread waits for one element of its window."""

_COMBINE_US = 0.3

_SMALL_WINDOW = 32
"""Elements of a window below which threads that share one have nothing to share."""

POOLS = ("max", "avg", "lp", "adaptive_avg", "adaptive_max")


def _largest(problem: PoolProblem) -> bool:
    """Tell whether a window becomes its largest element, and not a sum."""
    return problem.pool.endswith("max") or (problem.pool == "lp" and isinf(problem.norm_type))


def _dtypes(pool: str, kind: str) -> tuple[str, ...]:
    if kind == "bwd":
        return FLOATS
    return {"max": (*FLOATS, *INTEGERS), "avg": (*FLOATS, "int64")}.get(pool, FLOATS)


def _of_pool(pool: str) -> list[str]:
    """Return the kinds of kernel that a forward pass of a pool runs: "max", or what becomes of a sum."""
    if pool == "lp":
        return ["max", "ROOT"]
    return ["max"] if pool.endswith("max") else ["AVERAGE"]


def _variants(dtype: str, powers: bool = False) -> list[tuple[int, bool]]:
    """Return the (LANES, WIDE) that kernels are compiled for: one lane for powers, which cost more than loads."""
    sizes = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}
    return [(1, False), (1, True)] + ([(sizes[dtype], False)] if dtype in sizes and not powers else [])


class _Pool(CupyPool):
    def __init__(self, pool: str) -> None:
        self.pools = (pool,)
        self.dtypes = _dtypes(pool, self.kind)

    @property
    def windows(self) -> str:
        """The kernels' name of how windows follow each other."""
        return "Adaptive" if self.pools[0].startswith("adaptive") else "Strided"


class WindowPool(_Pool):
    """Forward pools in which a thread walks through the windows of its outputs: any strides."""

    kind = "fprop"

    def __init__(self, pool: str) -> None:
        super().__init__(pool)
        self.id = f"cupy.pool.{pool}.fprop.window"

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate: the bytes that must move, or the elements that each thread waits for in turn."""
        assert isinstance(problem, PoolProblem)
        waves = ceil_div(prod(problem.y_shape), _RESIDENT)
        return super().rank(problem) + waves * prod(problem.kernel) * _TAP_US

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        wide = wide_index(problem, strides)
        powers = problem.pool == "lp" and not _largest(problem)
        lanes = 1 if powers else lanes_of(problem, {"x": strides["x"]}, wide)
        params = pool_params(problem, {"x": strides["x"]}, prod(problem.y_shape) // lanes)
        of_type = (C_TYPES[problem.dtype], window_class(problem))
        if _largest(problem):
            kernel = kernel_name("pool_max_fprop", *of_type, lanes, wide)
            return [pool_launch("pool_max", kernel, ("x", "y", "indices"), params)]
        kernel = kernel_name("pool_sum_fprop", *of_type, "ROOT" if powers else "AVERAGE", lanes, wide)
        return [pool_launch("pool_sum", kernel, ("x", None, "y"), params)]

    def instantiations(self) -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        found = []
        for dtype in self.dtypes:
            for finish in _of_pool(self.pools[0]):
                for variant in _variants(dtype, finish == "ROOT"):
                    if finish == "max":
                        name = kernel_name("pool_max_fprop", C_TYPES[dtype], self.windows, *variant)
                        found.append(("pool_max", name))
                    else:
                        name = kernel_name("pool_sum_fprop", C_TYPES[dtype], self.windows, finish, *variant)
                        found.append(("pool_sum", name))
        return found


class BlockPool(_Pool):
    """Forward pools of large windows, each of which several threads share and combine in a fixed order."""

    kind = "fprop"

    def __init__(self, pool: str) -> None:
        super().__init__(pool)
        self.id = f"cupy.pool.{pool}.fprop.block"

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is None and isinstance(problem, PoolProblem) and prod(problem.kernel) < _SMALL_WINDOW:
            sizes = "x".join(map(str, problem.kernel))
            return f"windows of {sizes} are small: one thread reads all {prod(problem.kernel)} elements"
        return reason

    def configuration(self, problem: Any) -> dict[str, Any]:
        # About eight elements for each thread, so that combining what they found is little beside.
        strips = 1 << max((prod(problem.kernel) // 8).bit_length() - 1, 0)
        most = THREADS // 32 if problem.result_format == CHANNELS_LAST else THREADS
        return {"strips": min(strips, most)}

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate, as :meth:`WindowPool.rank`."""
        assert isinstance(problem, PoolProblem)
        strips = self.configuration(problem)["strips"]
        waves = ceil_div(prod(problem.y_shape) * strips, _RESIDENT)
        return super().rank(problem) + waves * (ceil_div(prod(problem.kernel), strips) * _TAP_US + _COMBINE_US)

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        wide = wide_index(problem, strides)
        flat, x_strides = _flattened(problem, strides["x"])
        outputs, strips = prod(problem.y_shape), config["strips"]
        params = pool_params(flat, {"x": x_strides}, outputs, strips=strips)
        grid = ceil_div(outputs, THREADS // strips)
        of_type = (C_TYPES[problem.dtype], window_class(problem))
        if _largest(problem):
            kernel = kernel_name("pool_max_block", *of_type, wide)
            return [Launch("pool_block", kernel, grid, THREADS, ("x", "y", "indices"), params)]
        finish = "ROOT" if problem.pool == "lp" else "AVERAGE"
        kernel = kernel_name("pool_sum_block", *of_type, finish, wide)
        return [Launch("pool_block", kernel, grid, THREADS, ("x", "y"), params)]

    def instantiations(self) -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        found = []
        for dtype in self.dtypes:
            for finish in _of_pool(self.pools[0]):
                for wide in (False, True):
                    of_type = (C_TYPES[dtype], self.windows)
                    if finish == "max":
                        found.append(("pool_block", kernel_name("pool_max_block", *of_type, wide)))
                    else:
                        found.append(("pool_block", kernel_name("pool_sum_block", *of_type, finish, wide)))
        return found


def _flattened(problem: PoolProblem, strides: Sequence[int]) -> tuple[PoolProblem, Sequence[int]]:
    """Return a global pool whose plane is evenly spaced as one over a line, which needs no divisions; others as is."""
    whole = all(out == 1 for out in problem.output_size) and problem.kernel == problem.input_size
    steps = zip(strides[2:], strides[3:], problem.input_size[1:])
    if not whole or any(problem.pad_lo) or not all(outer == inner * size for outer, inner, size in steps):
        return problem, strides
    plane = (prod(problem.input_size),)
    flat = replace(
        problem, input_size=plane, kernel=plane, output_size=(1,), stride=(1,), pad_lo=(0,), pad_hi=(0,), dilation=(1,)
    )  # fmt: skip
    return flat, (*strides[:2], strides[-1])


class GatherPool(_Pool):
    """Backward pools in which an element of x gathers from the windows that contain it: any strides, no atomics."""

    kind = "bwd"

    def __init__(self, pool: str) -> None:
        super().__init__(pool)
        self.id = f"cupy.pool.{pool}.bwd.gather"

    def workspace(self, problem: Any, config: Mapping[str, Any]) -> Workspace:
        if problem.pool != "lp":
            return {}
        if _largest(problem):
            return {"taps": (problem.offset_dtype, prod(problem.y_shape))}
        return {"slopes": (compute_type(problem.dtype), prod(problem.y_shape))}

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> list[Launch]:
        if problem.pool == "lp":
            return self._power_launches(problem, strides)
        wide = wide_index(problem, strides)
        lanes = lanes_of(problem, {"y": strides["y"]}, wide)
        read = {name: strides[name] for name in ("y", "indices") if name in strides}
        params = pool_params(problem, read, prod(problem.x_shape) // lanes)
        of_type = C_TYPES[problem.dtype]
        if _largest(problem):
            kernel = kernel_name("pool_max_bwd", of_type, window_class(problem), lanes, wide)
            return [pool_launch("pool_max", kernel, ("y", "indices", None, "dx"), params)]
        kernel = kernel_name("pool_sum_bwd", of_type, False, window_class(problem), lanes, wide)
        return [pool_launch("pool_sum", kernel, ("y", None, "dx"), params)]

    def _power_launches(self, problem: PoolProblem, strides: Strides) -> list[Launch]:
        """Return the launches of a power pool: what each window chose, or its slope, and then the gather."""
        wide = wide_index(problem, strides)
        forward = replace(problem, kind="fprop")
        dense = dense_strides(problem.y_shape, problem.y_format)
        of_type = C_TYPES[problem.dtype]
        x, y = strides["x"], strides["y"]
        outputs, elements = prod(problem.y_shape), prod(problem.x_shape)
        if _largest(problem):
            lanes = lanes_of(forward, {"x": x}, wide)
            kernel = kernel_name("pool_max_fprop", of_type, "Strided", lanes, wide)
            taps = problem.offset_dtype
            params = pool_params(forward, {"x": x}, outputs // lanes, index_dtype=taps)
            first = pool_launch("pool_max", kernel, ("x", None, "taps"), params)
            lanes = lanes_of(problem, {"x": x, "y": y}, wide)
            kernel = kernel_name("pool_max_bwd", of_type, "Strided", lanes, wide)
            params = pool_params(problem, {"x": x, "y": y, "indices": dense}, elements // lanes, index_dtype=taps)
            return [first, pool_launch("pool_max", kernel, ("y", "taps", "x", "dx"), params)]
        kernel = kernel_name("pool_sum_fprop", of_type, "Strided", "SLOPE", 1, wide)
        first = pool_launch("pool_sum", kernel, ("x", "y", "slopes"), pool_params(forward, {"x": x, "y": y}, outputs))
        kernel = kernel_name("pool_sum_bwd", of_type, True, "Strided", 1, wide)
        params = pool_params(problem, {"x": x, "y": dense}, elements)
        return [first, pool_launch("pool_sum", kernel, ("slopes", "x", "dx"), params)]

    def instantiations(self) -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        pool, powers = self.pools[0], self.pools[0] == "lp"
        found = []
        for dtype in self.dtypes:
            name = C_TYPES[dtype]
            for variant in _variants(dtype):
                if powers:
                    found.append(("pool_max", kernel_name("pool_max_fprop", name, "Strided", *variant)))
                if powers or pool.endswith("max"):
                    found.append(("pool_max", kernel_name("pool_max_bwd", name, self.windows, *variant)))
            for variant in [] if pool.endswith("max") else _variants(dtype, powers):
                if powers:
                    found.append(("pool_sum", kernel_name("pool_sum_fprop", name, "Strided", "SLOPE", *variant)))
                found.append(("pool_sum", kernel_name("pool_sum_bwd", name, powers, self.windows, *variant)))
        return found


SOLVERS: tuple[Solver, ...] = (
    *(WindowPool(pool) for pool in POOLS),
    *(BlockPool(pool) for pool in POOLS),
    *(GatherPool(pool) for pool in POOLS),
    *PLANE_SOLVERS,
    *COLUMN_SOLVERS,
)
