"""The forward convolution solver of the Triton backend: which problems it takes, with which tiles, how it launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST, channels_last_strides
from ...config import workspace_limit
from ...costs import Work, conv_gemm, conv_work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..axes import reach
from ..base import Plan, Solver
from .common import (
    VECTORS,
    Memo,
    Strides,
    TritonConv,
    accumulator_type,
    bound_registers,
    choose_tile,
    conv_arguments,
    format_strides,
    index64,
    power_of_two,
    remembered,
    strides_of,
)
from .launch import launch_kernel
from .tuned import split_variants, tile_variants
from .units import divide_by_eight

__all__ = [
    "SOLVERS",
    "FpropImplicitGemm",
    "fprop_arguments",
    "fprop_pack_arguments",
    "fprop_sum_arguments",
    "is_flat",
    "packed_weights",
    "partial_sums",
    "reach",
    "workspace_parts",
]

_PROGRAMS = 132
"""Multiprocessors of an H100 or H200: a reduction is split where tiles would leave at least half of them idle."""

_LEAST_STEPS = 8
"""Reduction steps of a split at least: they read about twice what its partial sums cost to write and read again."""

_FLAT_CHANNELS = 7
"""Channels of a group up to which the reduction goes over channels and taps in one row."""

_PER_FLAT_LOAD = (22.0, 26.0)
"""Instructions of a load of x and of w in such a step, each with a channel and a tap of its own.

Read off compiled loops of windows beyond 32 taps, on Hopper."""

_PACK_ELEMENTS = 512
"""Elements of one program of the pass that packs weights."""

_SUM_TILE = {"BLOCK_M": 16, "BLOCK_N": 64}
"""Rows and channels of one program of the pass that adds the splits."""

_SMALL_PASS = {"num_warps": 4, "num_stages": 3}


def packed_weights(problem: ConvProblem) -> tuple[str, int]:
    """Return the dtype and number of elements of the weights packed as K x T R S C/G."""
    return problem.dtype, prod(problem.w_shape)


def partial_sums(problem: ConvProblem, splits: int) -> tuple[str, int]:
    """Return the dtype and number of elements of the partial sums of `splits` splits."""
    return "float64" if problem.dtype == "float64" else "float32", splits * prod(problem.y_shape)


def _bytes(part: tuple[str, int]) -> int:
    dtype, elements = part
    return itemsize(dtype) * elements


def workspace_parts(problem: ConvProblem, config: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Return dtype and number of elements of each tensor that the workspace consists of, by name."""
    parts = {"packed": packed_weights(problem)} if config.get("packed") else {}
    splits = config.get("splits", 1)
    return parts | ({"partial": partial_sums(problem, splits)} if splits > 1 else {})


def _packs(problem: ConvProblem) -> bool:
    """Tell whether weights are packed: 16-bit ones that would be read 2 bytes at a time, and packed, 16.

    Weights of one tap lie K x C/G already. Where C/G is no multiple of 8, rows of packed weights start anywhere; where
    it is not one of 16, what the compiler knows of it (see :func:`divide_by_eight`) depends on x too.
    """
    c = problem.c // problem.groups
    in_rows = problem.w_format == CHANNELS_LAST or prod(problem.kernel) == 1
    if itemsize(problem.dtype) != 2 or in_rows or c == 0:
        return False
    unit = 8 if problem.x_format == CHANNELS_LAST else 16
    return c % unit == 0 and _bytes(packed_weights(problem)) <= workspace_limit()


def is_flat(problem: ConvProblem) -> bool:
    """Tell whether a step goes over channels and taps in one row: of so few channels most of 16 would be zeros."""
    return problem.c // problem.groups <= _FLAT_CHANNELS and prod(problem.kernel) > 1


def _tile(problem: ConvProblem, packed: bool) -> dict[str, int]:
    """Return the tile of a problem, as large as its sizes and registers allow."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    w_rows = packed or problem.w_format == CHANNELS_LAST or prod(problem.kernel) == 1
    innermost = problem.x_format == problem.y_format == CHANNELS_LAST and w_rows
    vector = innermost and c % 8 == 0 and k % 8 == 0
    if is_flat(problem):
        tile = choose_tile(problem, (problem.n * prod(problem.output_size), k, c * prod(problem.kernel)), False)
        # Bits that tell for each row which taps are inside take the registers of a longer step.
        depth = min(tile["BLOCK_K"], 16) if prod(problem.kernel) <= 32 else tile["BLOCK_K"]
        return tile | {"BLOCK_K": depth, "num_stages": 2, "flat": True}
    tile = choose_tile(problem, (problem.n * prod(problem.output_size), k, c), vector)
    # Only weights are copied asynchronously then; x comes through registers, which a third stage would take.
    return tile | {"num_stages": 2} if packed and not innermost else tile


def _steps(problem: ConvProblem, config: Mapping[str, int]) -> int:
    """Return the reduction steps of a tile."""
    c, taps = problem.c // problem.groups, prod(problem.kernel)
    return ceil_div(c * taps, config["BLOCK_K"]) if config.get("flat") else taps * ceil_div(c, config["BLOCK_K"])


def _tiles(problem: ConvProblem, config: Mapping[str, int]) -> tuple[int, int]:
    """Return the number of tiles of rows and of columns in one group."""
    rows, columns = problem.n * prod(problem.output_size), problem.k // problem.groups
    return ceil_div(rows, config["BLOCK_M"]), ceil_div(columns, config["BLOCK_N"])


def _splits(problem: ConvProblem, config: Mapping[str, int], room: int) -> int:
    """Return how many splits fill one wave of programs, none too short and all with partial sums within `room` bytes.

    With no more than half a wave of tiles, and 2 * _LEAST_STEPS reduction steps, there are two at least. Splits times
    tiles are one wave at most: their partial sums take no more than the accumulators of that many programs.
    """
    steps = _steps(problem, config)
    wave = _PROGRAMS // max(problem.groups * prod(_tiles(problem, config)), 1)
    wanted = min(wave, steps // _LEAST_STEPS, room // max(_bytes(partial_sums(problem, 1)), 1))
    if wanted < 2:
        return 1
    # As many as are not empty once all have the same number of steps.
    return ceil_div(steps, ceil_div(steps, wanted))


def _room(problem: ConvProblem, packed: bool) -> int:
    """Return the bytes that are left for partial sums."""
    return workspace_limit() - (_bytes(packed_weights(problem)) if packed else 0)


_IN_UNITS: dict[str, dict[str, str | None]] = {
    "c_per_group": {
        "x_stride_n": "n", "x_stride_d": "d", "x_stride_h": "h", "x_stride_w": "w",
        "w_stride_k": None, "w_stride_t": "T", "w_stride_r": "R", "w_stride_s": "S",
    },
    "k_per_group": {
        "y_stride_split": None, "y_stride_n": "n", "y_stride_o": "o", "y_stride_p": "p", "y_stride_q": "q",
        "residual_stride_n": "n", "residual_stride_o": "o", "residual_stride_p": "p", "residual_stride_q": "q",
    },
}  # fmt: skip
"""Strides that share a unit with a number of channels, and the size of their axis (or None: of any size)."""


def _unit(arguments: dict[str, Any], channels: str) -> int:
    """Give `channels` and the strides beside it in units of 8 where that helps; return the unit.

    The stride of an axis of size 1 is never used: 0, a multiple of every unit, takes its place.
    """
    if arguments[channels] % 16 != 8:
        return 1
    strides = _IN_UNITS[channels]
    used = [name for name, size in strides.items() if size is None or arguments[size] != 1]
    unit = divide_by_eight(arguments, [channels, *used])
    if unit > 1:
        arguments.update({name: 0 for name in strides if name not in used})
    return unit


def fprop_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the forward kernel but its pointers, by name.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous. Packed weights and partial sums, of more than one split, have their own.
    config
        The tile and the steps, see :meth:`FpropImplicitGemm.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    rows, splits = problem.n * prod(problem.output_size), config.get("splits", 1)
    strides, plain, partial = dict(strides), problem, 0
    if config.get("packed"):
        strides["w"] = channels_last_strides(problem.w_shape)
    if splits > 1:
        strides["y"] = channels_last_strides(problem.y_shape)
        for name in (*VECTORS, "residual"):
            strides.pop(name, None)
        plain = replace(problem, residual=False, activation=None, rounding="fused")
        partial = prod(problem.y_shape)
    tiles_m, tiles_n = _tiles(problem, config)
    wide = index64(problem, strides, max(rows + config["BLOCK_M"], splits * partial))
    arguments = conv_arguments(plain, strides) | {
        "tiles_m": tiles_m,
        "tiles_n": tiles_n,
        "steps_per_split": ceil_div(_steps(problem, config), splits),
        "y_stride_split": partial,
        "PADDING_MODE": problem.padding_mode,
        "INDEX64": bool(config.get("INDEX64")) or wide,
        "TAP_BITS": problem.padding_mode == "zeros" and prod(problem.kernel) <= 32,
        "FLAT": bool(config.get("flat")),
    }
    arguments["UNIT_C"] = _unit(arguments, "c_per_group")
    arguments["UNIT_K"] = _unit(arguments, "k_per_group")
    return arguments | {name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")}


def fprop_pack_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the kernel that packs weights but its pointers, as :func:`fprop_arguments`."""
    used = ("c_per_group", *(f"w_stride_{axis}" for axis in "kctrs"), "T", "R", "S")
    arguments = conv_arguments(problem, strides)
    taps = min(power_of_two(prod(problem.kernel)), 32)
    return {name: arguments[name] for name in used} | {
        "INDEX64": bool(config.get("INDEX64")) or index64(problem, strides, 0),
        "BLOCK_T": taps,
        "BLOCK_C": _PACK_ELEMENTS // taps,
    }


def fprop_sum_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, int]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, as :func:`fprop_arguments`."""
    used = ("o", "p", "q", *(f"{tensor}_stride_{axis}" for tensor in ("y", "residual") for axis in "nkopq"))
    used += tuple(f"{name}_stride" for name in VECTORS)
    arguments = conv_arguments(problem, strides)
    elements = prod(problem.y_shape)
    wide = index64(problem, strides, config["splits"] * elements + _SUM_TILE["BLOCK_M"] * problem.k)
    return {name: arguments[name] for name in used} | {
        "splits": config["splits"],
        "elements": elements,
        "rows": problem.n * prod(problem.output_size),
        "k": problem.k,
        "ACTIVATION": problem.finish,
        "INDEX64": bool(config.get("INDEX64")) or wide,
        **_SUM_TILE,
    }


class FpropImplicitGemm(TritonConv):
    """General forward convolution: pointer loads, any strides, every floating dtype.

    A plan is one launch, to which two small ones may come: before it, weights are packed; after it, splits are added.
    """

    id = "triton.conv.fprop.implicit_gemm"
    kinds = ("fprop",)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        gemm = conv_gemm(problem)
        if configs[0].get("flat"):
            row = gemm.depth * prod(problem.kernel)
            gemm = replace(gemm, taps=1, depth=row, widths=(gemm.item, gemm.item), per_load=_PER_FLAT_LOAD)
        return conv_work(problem, configs, gemm)

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, ConvProblem)
        packed = _packs(problem)
        config = bound_registers("fprop", _tile(problem, packed)) | {"packed": packed}
        return config | {"splits": _splits(problem, config, _room(problem, packed))}

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        default = self.default(problem)
        room = _room(problem, default["packed"])
        for tile in tile_variants(problem, default):
            config = bound_registers("fprop", tile)
            usual = _splits(problem, config, room)
            most = room // max(_bytes(partial_sums(problem, 1)), 1)
            for splits in split_variants(usual, _steps(problem, config), most):
                yield config | {"splits": splits}

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        planned = fprop_arguments(problem, format_strides(problem), config)
        config = {**config, "unit_c": planned["UNIT_C"], "unit_k": planned["UNIT_K"]}
        return Plan(self, problem, sum(map(_bytes, workspace_parts(problem, config).values())), config)

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        assert isinstance(plan.problem, ConvProblem)
        return workspace_parts(plan.problem, plan.config)

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        strides = strides_of(tensors)
        operands = {name: tensors[name] for name in ("x", "w", "y", *VECTORS, "residual")}
        if config.get("packed"):
            self._pack(problem, tensors, strides, config, memo)
            operands["w"] = tensors["packed"]
        splits = config.get("splits", 1)
        if splits > 1:
            operands |= dict.fromkeys((*VECTORS, "residual")) | {"y": tensors["partial"]}
        arguments = remembered(memo, "gemm", fprop_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        grid = (splits * arguments["groups"] * arguments["tiles_m"] * arguments["tiles_n"],)
        kernel = KernelReference("conv.fprop", "_conv_fprop_implicit_gemm_kernel")
        launch_kernel(problem, kernel, grid, operands, arguments, config)
        if splits > 1:
            self._add_splits(problem, tensors, strides, config, memo)

    @staticmethod
    def _pack(
        problem: ConvProblem, tensors: Mapping[str, Any], strides: Strides, config: Mapping[str, int], memo: Memo
    ) -> None:
        kernel = KernelReference("conv.fprop", "_conv_fprop_pack_kernel")
        arguments = remembered(memo, "pack", fprop_pack_arguments, problem, strides, config)
        taps, c = prod(problem.kernel), problem.c // problem.groups
        grid = (problem.k * ceil_div(taps, arguments["BLOCK_T"]) * ceil_div(c, arguments["BLOCK_C"]),)
        launch_kernel(problem, kernel, grid, {name: tensors[name] for name in ("w", "packed")}, arguments, _SMALL_PASS)

    @staticmethod
    def _add_splits(
        problem: ConvProblem, tensors: Mapping[str, Any], strides: Strides, config: Mapping[str, int], memo: Memo
    ) -> None:
        kernel = KernelReference("conv.fprop", "_conv_fprop_sum_kernel")
        arguments = remembered(memo, "sum", fprop_sum_arguments, problem, strides, config)
        pointers = {name: tensors[name] for name in ("partial", "y", *VECTORS, "residual")}
        grid = (ceil_div(arguments["rows"], arguments["BLOCK_M"]) * ceil_div(problem.k, arguments["BLOCK_N"]),)
        launch_kernel(problem, kernel, grid, pointers, arguments, _SMALL_PASS)


SOLVERS: tuple[Solver, ...] = (FpropImplicitGemm(),)
