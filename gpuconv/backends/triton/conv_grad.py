"""The gradient solvers of the Triton backend, transposed convolution among them: their problems, tiles and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...config import workspace_limit
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div, map_axes, phase_size, phase_taps, tap_step
from ..axes import three
from ..base import Plan, Solver
from ..conv_common import images_of
from .common import (
    VECTORS,
    Memo,
    Strides,
    TritonConv,
    accumulator_type,
    bound_registers,
    choose_tile,
    conv_arguments,
    index64,
    remembered,
    strides_of,
)
from .launch import launch_kernel
from .tuned import split_variants, tile_variants
from .units import UNIT, in_units

__all__ = [
    "SOLVERS",
    "DgradImplicitGemm",
    "WgradSplitK",
    "dgrad_arguments",
    "wgrad_arguments",
    "wgrad_sum_arguments",
]

_PROGRAMS = 2 * 132
"""How many programs a weight gradient is split into: two for each multiprocessor of an H100 or H200."""

_LEAST_STEPS = 4
"""Reduction steps of a split at least: what four of them read is as much as its partial sums cost to write and read."""

_SUM_BLOCK = 1024
"""Elements of one program of the pass that adds the splits."""


_UNITS_X = (("x_stride_c",), ("c_per_group", *(f"x_stride_{axis}" for axis in "ndhw")))
_UNITS_Y = (("y_stride_k",), ("k_per_group", *(f"y_stride_{axis}" for axis in "nopq")))
"""What a load of 16 bytes along the channels of x, or of y, needs to be multiples, see :func:`.in_units`."""


def _channels_in_runs(problem: ConvProblem) -> bool:
    """Tell whether x, w and y lie channels innermost in runs that kernels read 16 bytes at a time.

    The JIT looks for multiples of 16; 16-bit problems can be told in units of 8.
    """
    innermost = problem.x_format == problem.w_format == problem.y_format == CHANNELS_LAST
    run = UNIT if itemsize(problem.dtype) == 2 and not problem.index64 else 16
    return innermost and problem.c // problem.groups % run == 0 and problem.k // problem.groups % run == 0


def _phase_rows(problem: ConvProblem) -> int:
    """Return how many positions of x the largest stride phase has, images of the batch included."""
    return problem.n * prod(map_axes(phase_size, problem.input_size, problem.stride))


def _tap_bits(problem: ConvProblem) -> bool:
    """Tell whether one word has a bit for every tap of a phase; only zero padding needs no more than that."""
    taps = prod(map_axes(phase_taps, problem.kernel, problem.stride, problem.dilation))
    return problem.padding_mode == "zeros" and taps <= 32


def dgrad_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the data gradient kernel but its pointers, by name.

    Parameters
    ----------
    problem
        The problem, ``dgrad`` or ``transposed``; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile, see :meth:`DgradImplicitGemm.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    rows = _phase_rows(problem)
    steps = map_axes(tap_step, problem.stride, problem.dilation)
    # pow(dilation / g, -1, stride / g); modulo 1 it is 0
    axes = zip(problem.stride, problem.dilation, steps, strict=True)
    inverses = [pow(dilation * step // stride, -1, step) for stride, dilation, step in axes]
    images = three(images_of(problem), 1)
    wide = max(problem.stride) ** 2 >= 2**31 or index64(problem, strides, rows + config["BLOCK_M"])
    arguments = conv_arguments(problem, strides) | {
        "tiles_m": ceil_div(rows, config["BLOCK_M"]),
        "tiles_n": ceil_div(problem.c // problem.groups, config["BLOCK_N"]),
        "images": prod(images),
        "images_h": images[1],
        "images_w": images[2],
        "PADDING_MODE": problem.padding_mode,
        "INDEX64": bool(config.get("INDEX64")) or wide,
        "TAP_BITS": _tap_bits(problem),
    }
    arguments |= zip(("pad_high_d", "pad_high_h", "pad_high_w"), three(problem.pad_hi, 0), strict=True)
    arguments |= zip(("STEP_D", "STEP_H", "STEP_W"), three(steps, 1), strict=True)
    arguments |= zip(("INVERSE_D", "INVERSE_H", "INVERSE_W"), three(inverses, 0), strict=True)
    of_c = (("x_stride_c", "w_stride_c"), (*_UNITS_X[1], *(f"w_stride_{axis}" for axis in "ktrs")))
    arguments = in_units(arguments, {"UNIT_C": of_c, "UNIT_K": _UNITS_Y})
    return arguments | {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")}


class DgradImplicitGemm(TritonConv):
    """General data gradient and transposed convolution: one dense convolution per stride phase, in one launch."""

    id = "triton.conv.dgrad.implicit_gemm"
    kinds = ("dgrad", "transposed")

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, ConvProblem)
        sizes = (_phase_rows(problem), problem.c // problem.groups, problem.k // problem.groups)
        return bound_registers("dgrad", _dgrad_tile(problem, sizes))

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        for tile in tile_variants(problem, self.default(problem)):
            yield bound_registers("dgrad", tile)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        extra = {"phases": prod(problem.stride), "images of a position": prod(images_of(problem))}
        return Plan(self, problem, 0, {**config, **extra})

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        kernel = KernelReference("conv.dgrad", "_conv_dgrad_implicit_gemm_kernel")
        arguments = remembered(memo, "gemm", dgrad_arguments, problem, strides_of(tensors), config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {name: tensors.get(name) for name in ("x", "w", "y", *VECTORS, "residual")}
        tiles = arguments["groups"] * arguments["tiles_m"] * arguments["tiles_n"]
        launch_kernel(problem, kernel, (prod(problem.stride) * tiles,), pointers, arguments, config)


def _with_warps(problem: ConvProblem, tile: dict[str, int]) -> dict[str, int]:
    """Return `tile` with the warps that hold its accumulator and addresses without spilling.

    Gradients address more per element than the forward pass, and four warps spill what eight hold; ptxas cuts eight
    warps to 128 registers where a 16-bit tile of 128 x 64 needs more, and four get by.
    """
    area = tile["BLOCK_M"] * tile["BLOCK_N"]
    if itemsize(problem.dtype) == 2 and area == 128 * 64:
        return tile | {"num_warps": 4}
    if area == 128 * 128:
        return tile
    return tile | {"num_warps": 8} if area >= 64 * 32 or problem.index64 else tile


def _dgrad_tile(problem: ConvProblem, sizes: tuple[int, int, int]) -> dict[str, int]:
    """Return the tile of a data gradient of `sizes` (rows of a phase, columns, channels of y in a group)."""
    tile = choose_tile(problem, sizes, _channels_in_runs(problem))
    if itemsize(problem.dtype) == 2 and tile["BLOCK_N"] == 64 and not _tap_bits(problem):
        # Bounds computed for each row and step leave fewer registers.
        tile |= {"BLOCK_M": min(tile["BLOCK_M"], 64), "BLOCK_K": min(tile["BLOCK_K"], 32)}
    if problem.dtype == "float32" and problem.precision == "ieee" and tile["BLOCK_N"] == 64:
        # The plain cores hold what they multiply in registers, and ptxas spills one of 64 x 64 whatever the warps.
        return tile | {"BLOCK_N": 32, "num_warps": 4}
    if problem.k // problem.groups % 16 and not _channels_in_runs(problem):
        return tile | {"num_warps": 4}
    return _with_warps(problem, tile) if itemsize(problem.dtype) != 2 or problem.index64 else tile


def _wgrad_tile(problem: ConvProblem) -> dict[str, int]:
    """Return the tile of a weight gradient: channels of one tap where they fill its columns, else of several taps."""
    k, c, taps = problem.k // problem.groups, problem.c // problem.groups, prod(problem.kernel)
    pixels = problem.n * prod(problem.output_size)
    tile = choose_tile(problem, (k, c, pixels), _channels_in_runs(problem))
    while c % tile["BLOCK_N"] and tile["BLOCK_N"] > 32:
        tile["BLOCK_N"] //= 2
    if c % tile["BLOCK_N"] == 0 and (tile["BLOCK_N"] >= 32 or taps == 1):
        if problem.dtype == "float32" and problem.precision == "ieee" and tile["BLOCK_M"] * tile["BLOCK_N"] >= 64 * 64:
            # On the plain cores each thread holds what it multiplies: a shorter step leaves room for it.
            return tile | {"BLOCK_K": min(tile["BLOCK_K"], 16), "num_warps": 4, "ONE_TAP": 1}
        if tile["BLOCK_M"] * tile["BLOCK_N"] < 64 * 32:
            tile["num_warps"] = 4
        return _with_warps(problem, tile) | {"ONE_TAP": 1}
    tile = _with_warps(problem, choose_tile(problem, (k, taps * c, pixels), vector=False))
    if problem.bias and problem.ndim == 3 and tile["BLOCK_M"] * tile["BLOCK_N"] == 16 * 64:
        # A tap for each column, of three coordinates, and the sums of the bias: four warps spill.
        tile["num_warps"] = 8
    return tile | {"ONE_TAP": 0}


def _wgrad_tiles(problem: ConvProblem, config: Mapping[str, int]) -> tuple[int, int]:
    """Return the number of tiles of rows and of columns in one group."""
    k, c, taps = problem.k // problem.groups, problem.c // problem.groups, prod(problem.kernel)
    block = config["BLOCK_N"]
    return ceil_div(k, config["BLOCK_M"]), taps * ceil_div(c, block) if config["ONE_TAP"] else ceil_div(taps * c, block)


def _partial_elements(problem: ConvProblem) -> int:
    """Return how many partial sums one split has: those of the weight and, behind them, those of the bias."""
    return prod(problem.w_shape) + (problem.k if problem.bias else 0)


def _partial_bytes(problem: ConvProblem) -> int:
    """Return the bytes of the partial sums of one split."""
    return _partial_elements(problem) * (8 if problem.dtype == "float64" else 4)


def _splits(problem: ConvProblem, config: Mapping[str, int]) -> int:
    """Return how many splits fill the GPU, long enough to pay for their partial sums and within the workspace limit."""
    steps = ceil_div(problem.n * prod(problem.output_size), config["BLOCK_K"])
    tiles = problem.groups * prod(_wgrad_tiles(problem, config))
    wanted = min(ceil_div(_PROGRAMS, max(tiles, 1)), steps // _LEAST_STEPS)
    affordable = workspace_limit() // max(_partial_bytes(problem), 1)
    if min(wanted, affordable) < 2:
        return 1
    # As many as are not empty once all have the same number of steps.
    return ceil_div(steps, ceil_div(steps, min(wanted, affordable)))


def wgrad_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the split-K weight gradient kernel but its pointers, by name.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w`` and ``y``. Partial sums, of more than one split, have strides of their own.
    config
        The tile and the splits, see :meth:`WgradSplitK.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    splits, elements = config["splits"], _partial_elements(problem)
    pixels = problem.n * prod(problem.output_size)
    steps = ceil_div(pixels, config["BLOCK_K"])
    per_split = ceil_div(steps, splits) * config["BLOCK_K"]
    wide = index64(problem, strides, max(pixels + per_split, splits * elements))
    tiles_m, tiles_n = _wgrad_tiles(problem, config)
    arguments = conv_arguments(problem, strides) | {
        "pixels": pixels,
        "pixels_per_split": per_split,
        "tiles_m": tiles_m,
        "tiles_n": tiles_n,
        "w_stride_split": 0,
        "PADDING_MODE": problem.padding_mode,
        "INDEX64": bool(config.get("INDEX64")) or wide,
        "ONE_TAP": bool(config["ONE_TAP"]),
    }
    del arguments["n"]  # pixels say it
    arguments = in_units(arguments, {"UNIT_C": _UNITS_X, "UNIT_K": _UNITS_Y})
    if splits > 1:
        c = problem.c // problem.groups
        t, r, s = three(problem.kernel, 1)
        arguments |= {"w_stride_split": elements, "w_stride_k": t * r * s * c, "w_stride_c": 1}
        arguments |= {"w_stride_t": r * s * c, "w_stride_r": s * c, "w_stride_s": c}
    return arguments | {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")}


def wgrad_sum_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, as :func:`wgrad_arguments`."""
    elements = _partial_elements(problem)
    used = ("c_per_group", *(f"w_stride_{axis}" for axis in "kctrs"), "T", "R", "S")
    arguments = conv_arguments(problem, strides)
    return {name: arguments[name] for name in used} | {
        "splits": config["splits"],
        "elements": elements,
        "weights": prod(problem.w_shape),
        "INDEX64": bool(config.get("INDEX64")) or index64(problem, strides, (config["splits"] + 1) * elements),
        "BLOCK": _SUM_BLOCK,
    }


class WgradSplitK(TritonConv):
    """General weight gradient: the reduction over pixels in splits, whose partial sums a second pass adds in order.

    The bias gradient rides along: the sums of ``y`` come from the tiles that the products read.
    """

    id = "triton.conv.wgrad.split_k"
    kinds = ("wgrad",)

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, ConvProblem)
        config = bound_registers("wgrad", _wgrad_tile(problem))
        return config | {"splits": _splits(problem, config)}

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        default = self.default(problem)
        c, one = problem.c // problem.groups, default["ONE_TAP"]
        most = workspace_limit() // max(_partial_bytes(problem), 1)
        for tile in tile_variants(problem, default):
            block = tile["BLOCK_N"]
            if one and (c % block or (block < 32 and prod(problem.kernel) > 1)):
                continue  # columns of such a tile belong to more than one tap
            config = bound_registers("wgrad", tile)
            steps = ceil_div(problem.n * prod(problem.output_size), config["BLOCK_K"])
            for splits in split_variants(_splits(problem, config), steps, most):
                yield config | {"splits": splits}

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        splits = config["splits"]
        workspace = splits * _partial_bytes(problem) if splits > 1 else 0
        return Plan(self, problem, workspace, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        strides = strides_of(tensors)
        arguments = remembered(memo, "gemm", wgrad_arguments, problem, strides, config)
        splits = config["splits"]
        grid = (splits * arguments["groups"] * arguments["tiles_m"] * arguments["tiles_n"],)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {name: tensors[name] for name in "xyw"} | {"bias": tensors.get("bias")}
        if splits > 1:
            pointers["w"] = tensors["workspace"]
            pointers["bias"] = tensors["workspace"][prod(problem.w_shape) :] if problem.bias else None
        kernel = KernelReference("conv.wgrad", "_conv_wgrad_split_k_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
        if splits > 1:
            pointers = {"partial": pointers["w"], "w": tensors["w"], "bias": tensors.get("bias")}
            arguments = remembered(memo, "sum", wgrad_sum_arguments, problem, strides, config)
            grid = (ceil_div(arguments["elements"], _SUM_BLOCK),)
            options = {"num_warps": 4, "num_stages": 3}
            kernel = KernelReference("conv.wgrad", "_conv_wgrad_sum_kernel")
            launch_kernel(problem, kernel, grid, pointers, arguments, options)


SOLVERS: tuple[Solver, ...] = (DgradImplicitGemm(), WgradSplitK())
