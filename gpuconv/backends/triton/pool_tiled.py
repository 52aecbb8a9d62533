"""The solvers of small windows: tiles of outputs per thread, so that windows share what they load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...packs import KernelReference
from ...problem import PoolProblem, Problem, itemsize
from ...shapes import ceil_div
from ..axes import three
from ..base import Solver
from .common import Strides, power_of_two
from .pool_common import (
    FLOATS,
    INTEGERS,
    TritonPool,
    compute_type,
    launch_kernel,
    pool_arguments,
    strides_of_pool,
    triton_type,
    wide_index,
)
from .pool_windows import divisor_arguments, lowest

__all__ = ["SOLVERS", "TiledPool", "run_unit", "tiled_arguments", "tiled_grid"]

_LONGEST = 5
"""Taps of a window per axis at most: all are unrolled."""

_LONGEST_LINE = 16
"""Taps of a window along one axis alone at most."""

_TAPS = 64
_MANY_TAPS = 9
"""Elements of a window from which on a tile of several outputs would spill, and take minutes to compile."""

_STRIDE = 4
_DILATION = 3


def run_unit(problem: PoolProblem, strides: Mapping[str, Sequence[int]]) -> int:
    """Return in runs of how many elements, up to 16 bytes, the tensors are laid out: a power of two.

    It divides the size of the innermost axis, and every stride but that axis's.
    """
    unit = 16 // itemsize(problem.dtype)
    innermost = 1 if problem.result_format == CHANNELS_LAST else 1 + problem.ndim
    for name, steps in strides.items():
        shape = problem.x_shape if name in ("x", "dx") else problem.y_shape
        others = [step for axis, step in enumerate(steps) if axis != innermost]
        unit = gcd(unit, shape[innermost], *others)
    return unit


def _dense_unit(problem: PoolProblem) -> int:
    """Return the unit of dense tensors in the formats of the problem."""
    unit = 16 // itemsize(problem.dtype)
    if problem.result_format == CHANNELS_LAST:
        return gcd(unit, problem.c)
    return gcd(unit, problem.input_size[-1], problem.output_size[-1])


def _in_units(arguments: dict[str, Any], unit: int, innermost: str) -> dict[str, Any]:
    """Return the strides of `arguments` in units, but for those of the `innermost` axes (letters)."""
    return {
        name: value if "_stride_" not in name or name[-1] in innermost else value // unit
        for name, value in arguments.items()
    }


def _operation(problem: PoolProblem, config: Mapping[str, Any]) -> str:
    """Return what the forward kernel computes: sums, maxima, or maxima with numbers, "indexed" or in "keys".

    Keys take an instruction to compare and six to make: fewer where many windows read one element, which channels-last
    tiles have less of. They hold 16-bit numbers and places below 64.
    """
    if problem.pool != "max" or not problem.return_indices:
        return "max" if problem.pool == "max" else "sum"
    t, r, s = three(problem.kernel, 1)
    _, dilation_h, dilation_w = three(problem.dilation, 1)
    dense = (problem.ndim == 1 or problem.stride[-2] == 1) and problem.stride[-1] == 1 and min(r, s) > 1
    overlaps = dense and (problem.result_format != CHANNELS_LAST or r * s > _MANY_TAPS)
    last_row = (config["TILE_P"] - 1) // dilation_h + r - 1
    last_column = (config["TILE_Q"] - 1) // dilation_w + s - 1
    last_place = ((t - 1) * r + last_row) * s + last_column
    narrow = problem.dtype in ("float16", "bfloat16")
    return "keys" if problem.offsets and narrow and overlaps and last_place < 64 else "indexed"


def tiled_arguments(problem: PoolProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the tiled kernel of the pass but its pointers, by name.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements: forward of ``x`` and ``y``, which those of the indices equal; backward of ``y``, ``dx`` and
        ``indices``.
    config
        The tile, see :meth:`TiledPool.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    names = ("x", "y") if problem.kind == "fprop" else ("y", "dx", "indices")
    strides = {name: strides[name] for name in names if name in strides}
    last = problem.result_format == CHANNELS_LAST
    unit = run_unit(problem, strides)
    if problem.kind == "bwd":
        strides = {"indices": (0,) * (2 + problem.ndim), **strides}
    arguments = _in_units(pool_arguments(problem, strides), unit, "c" if last else "wq")
    arguments |= zip(("PAD_D", "PAD_H", "PAD_W"), three(problem.pad_lo, 0), strict=True)
    for name in ("pad_d", "pad_h", "pad_w"):
        del arguments[name]
    if problem.kind == "fprop":
        arguments |= {
            "OP": _operation(problem, config),
            "NORM": int(problem.norm_type),
            "OTHER": lowest(problem.dtype) if problem.pool == "max" else 0,
        }
    else:
        arguments["OP"] = "max" if problem.pool == "max" else "sum"
    return arguments | divisor_arguments(problem) | {
        "lanes": (problem.c if last else problem.input_size[-1]) // unit,
        "lanes_out": (problem.c if last else problem.output_size[-1]) // unit,
        "POSITIONS": not problem.offsets,
        "COMPUTE": triton_type(compute_type(problem.dtype)),
        "NARROW": itemsize(problem.dtype) == 2,
        "UNIT": unit,
        "INDEX64": bool(config.get("INDEX64")) or wide_index(problem, strides),
        "CHANNELS_INNERMOST": last,
    } | {name: config[name] for name in ("TILE_P", "TILE_Q", "BLOCK_M", "BLOCK_L")}  # fmt: skip


def tiled_grid(problem: PoolProblem, config: Mapping[str, Any]) -> tuple[int]:
    """Return the grid of a tiled kernel."""
    outer, height, width = three(problem.output_size, 1)
    tile_h, tile_w = config["TILE_P"], config["TILE_Q"]
    if problem.kind == "bwd":
        outer, height, width = three(problem.input_size, 1)
        _, stride_h, stride_w = three(problem.stride, 1)
        tile_h, tile_w = tile_h * stride_h, tile_w * stride_w
    rows = problem.n * outer * ceil_div(height, tile_h) * ceil_div(width, tile_w)
    if problem.result_format == CHANNELS_LAST:
        return (ceil_div(rows, config["BLOCK_M"]) * ceil_div(problem.c, config["BLOCK_L"]),)
    return (ceil_div(rows * problem.c, config["BLOCK_M"]),)


def _tile(problem: PoolProblem) -> dict[str, int]:
    """Return the tile of a problem: as many outputs as registers hold of which neighbours share loads."""
    _, _, q = three(problem.output_size, 1)
    unit = _dense_unit(problem)
    tile_p, shares_columns = _rows_of_tile(problem, unit)
    if problem.result_format == CHANNELS_LAST:
        lanes = min(power_of_two(problem.c), max(64, 32 // itemsize(problem.dtype)))
        tile_q = min(2 if shares_columns else 1, power_of_two(q))
        return {
            "TILE_P": tile_p, "TILE_Q": tile_q, "BLOCK_M": max(128 * unit // lanes, 1), "BLOCK_L": lanes,
            "num_warps": 4, "num_stages": 3,
        }  # fmt: skip
    # Windows that overlap share columns also where runs of them are not aligned, unless each element is apart.
    several = unit > 1 or problem.kernel[-1] > 3  # few windows share too little for loads of lanes that are apart
    overlap = problem.kind == "fprop" and problem.kernel[-1] > problem.stride[-1] == 1 and several
    tile_q = min(power_of_two(q), 16 // itemsize(problem.dtype)) if overlap else unit
    tile = {
        "TILE_P": tile_p, "TILE_Q": min(tile_q, 8), "BLOCK_M": 128, "BLOCK_L": 1, "num_warps": 4,
        "num_stages": 3,
    }  # fmt: skip
    # Without a bound ptxas spills a register of some to fit one more block.
    return tile | {"maxnreg": 255} if problem.dtype == "float64" or tile_q > unit else tile


def _rows_of_tile(problem: PoolProblem, unit: int) -> tuple[int, bool]:
    """Return how many rows of outputs a tile has, and whether channels-last ones have several columns."""
    _, r, s = three(problem.kernel, 1)
    _, stride_h, stride_w = three(problem.stride, 1)
    _, dilation_h, dilation_w = three(problem.dilation, 1)
    last, forward = problem.result_format == CHANNELS_LAST, problem.kind == "fprop"
    heavy = problem.return_indices or not forward
    shares_rows = r > stride_h and (dilation_h == 1 or (forward and not heavy and not last))
    shares_columns = s > stride_w and dilation_w == 1
    rows = 2 if heavy or stride_h > 1 else 4
    if heavy and problem.offsets and stride_h * stride_w == 1 and itemsize(problem.dtype) > 1:
        rows = 4  # taps take few registers, but a thread has 16 elements of one byte
    if prod(problem.kernel) > _MANY_TAPS:
        rows = 1 if heavy or problem.ndim == 3 else 2
        shares_columns = False
        if heavy and problem.offsets and problem.ndim == 2 and stride_h * stride_w == 1:
            rows, shares_columns = 2, True
    if not forward and stride_h * stride_w > 1:
        rows, shares_columns = 1, False  # the strides multiply the tile
    elif last and not heavy:
        rows = min(rows, 2)
    if forward and unit == 1 and not heavy and prod(problem.kernel) <= _MANY_TAPS:
        rows = 4 if last else 8  # most of the instructions are for addresses
    if not shares_rows:
        rows = 2 if forward and unit < 8 // itemsize(problem.dtype) and not last else 1
        if heavy and dilation_h > 1:
            rows = 1  # the kernel counts taps along rows of one window
    return min(rows, power_of_two(three(problem.output_size, 1)[1])), shares_columns


class TiledPool(TritonPool):
    """Pools with small windows, forward or backward."""

    def __init__(self, pool: str, kind: str) -> None:
        self.pools, self.kind = (pool,), kind
        self.id = f"triton.pool.{pool}.{kind}.tiled"
        if pool == "max" and kind == "fprop":
            self.dtypes = (*FLOATS, *INTEGERS)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason:
            return reason
        assert isinstance(problem, PoolProblem)
        longest = _LONGEST_LINE if self._takes_lines(problem) else _LONGEST
        if max(problem.kernel) > longest or prod(problem.kernel) > _TAPS:
            window = "x".join(map(str, problem.kernel))
            return f"windows of {window} are over {longest} a side or {_TAPS} elements, all of which are unrolled"
        if max(problem.stride) > _STRIDE:
            return f"strides of {problem.stride} are over {_STRIDE}"
        if max(problem.dilation) > _DILATION:
            return f"dilations of {problem.dilation} are over {_DILATION}"
        if problem.pool == "lp" and problem.norm_type not in (1, 2):
            return f"takes powers of 1 and 2, not {problem.norm_type:g}"
        return None

    def _takes_lines(self, problem: PoolProblem) -> bool:
        """Tell whether a window may be long: forward, along the last axis alone, without indices."""
        line = prod(problem.kernel) == problem.kernel[-1]
        return line and self.kind == "fprop" and not problem.return_indices

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return dict(_tile(problem))

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        pointers = {"y": tensors["y"], "indices": tensors.get("indices")}
        if problem.kind == "fprop":
            kernel = KernelReference("pool.tiled", "_pool_fprop_tiled_kernel")
            pointers["x"] = tensors["x"]
        else:
            kernel = KernelReference("pool.tiled_bwd", "_pool_bwd_tiled_kernel")
            pointers["dx"] = tensors["dx"]
        arguments = tiled_arguments(problem, strides_of_pool(tensors), config)
        launch_kernel(problem, kernel, tiled_grid(problem, config), pointers, arguments, config)


SOLVERS: tuple[Solver, ...] = (
    *(TiledPool(pool, "fprop") for pool in ("max", "avg", "lp")),
    *(TiledPool(pool, "bwd") for pool in ("max", "avg")),
)
