"""The weight gradient of depthwise convolution on the collecting kernels: problems, tiles, arguments, launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import Memo, Strides, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel
from .march_costs import LONGEST_STEP, MOST_REGISTERS, LaneCosts, lane_tiles
from .march_lanes import march_arguments, march_of

__all__ = ["SOLVERS", "CollectDepthwise", "collect_arguments", "splits_arguments"]

_MOST_TAPS = 64
"""Sums that a lane keeps in registers at most."""

_SUM = {"BLOCK_S": 32, "BLOCK": 64, "num_warps": 4, "num_stages": 1}
"""Splits and elements of one step of the pass that adds the splits."""

_SHARED = (
    "channels", "source_d", "source_h", "source_w", "result_d", "result_h", "result_w", "steps", "chunks", "phases_h",
    "phases_w", "pad_d", "pad_h", "pad_w", "T", "R", "S", "A", "AW", "STRIDE_D", "STRIDE_H", "STRIDE_W", "DILATION_D",
    "DILATION_H", "DILATION_W", "MULTIPLES", "FIRST", "LAST", "SHIFT", "DEPTH", "INDEX64", "TQ",
    *(f"{side}_{axis}{part}" for side in ("source", "result") for axis in ("row", "column")
      for part in ("", "_phase", "_pitch")),
    *(f"{side}_stride_{axis}" for side in ("source", "result") for axis in "ncdhw"),
)  # fmt: skip
"""Arguments that the kernels take as :func:`.march_arguments` gives them."""


def _elements(problem: ConvProblem) -> int:
    """Return how many sums a split has: those of the weight and, behind them, those of the bias."""
    return prod(problem.w_shape) + (problem.k if problem.bias else 0)


def _split_bytes(problem: ConvProblem) -> int:
    """Return the bytes of the sums of one split."""
    return _elements(problem) * (8 if problem.dtype == "float64" else 4)


def collect_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the collecting kernel but its pointers, by name; as :func:`.march_arguments`."""
    march = march_of(problem)
    given = march_arguments(problem, strides, config)
    splits, taps = config["splits"], march.taps
    own = ("tiles_w", "UNIT", "RESULT_UNIT", "TT", "BC") if march.over_channels else ("VEC", "VO", "LANES")
    found = {name: given[name] for name in (*_SHARED, *own)}
    if march.over_channels:
        across = given["tiles_w"] * problem.n
    else:
        groups = given["groups"]
        found |= {"groups": groups, "tiles": ceil_div(problem.n * groups, config["LANES"])}
        across = found["tiles"]
    items = across * found["chunks"] * found["phases_h"] * found["result_d"]
    found |= {"n": problem.n, "items": items, "items_per_split": ceil_div(items, splits), "UNROLL": config["UNROLL"]}
    found |= {"BIAS": problem.bias, "w_stride_split": 0}
    if splits == 1:
        return found | {name: given[name] for name in ("w_stride_k", "w_stride_t", "w_stride_r", "w_stride_s")}
    _, r, s = march.kernel
    found |= {"w_stride_split": _elements(problem), "w_stride_k": taps, "w_stride_t": r * s, "w_stride_r": s}
    return found | {"w_stride_s": 1}


def splits_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, as :func:`collect_arguments`."""
    given, elements = march_arguments(problem, strides, config), _elements(problem)
    used = ("w_stride_k", "w_stride_t", "w_stride_r", "w_stride_s", "T", "R", "S")
    wide = given["INDEX64"] or (config["splits"] + _SUM["BLOCK_S"]) * elements >= 2**31
    return {name: given[name] for name in used} | {
        "splits": config["splits"],
        "elements": elements,
        "weights": prod(problem.w_shape),
        "INDEX64": wide,
        "BLOCK_S": _SUM["BLOCK_S"],
        "BLOCK": _SUM["BLOCK"],
    }


class CollectDepthwise(TritonConv):
    """Weight gradient of depthwise convolution on the plain cores; the bias gradient rides along."""

    id = "triton.conv.depthwise.collect"
    kinds = ("wgrad",)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.c != problem.groups or problem.c == 0:
            return f"takes one input channel per group, not {problem.c // max(problem.groups, 1)}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros alone, not {problem.padding_mode}"
        if march_of(problem).longest_step > LONGEST_STEP:
            return f"unrolls strides up to {LONGEST_STEP}, not {max(problem.stride)}"
        taps, most = march_of(problem).taps, _MOST_TAPS // max(itemsize(problem.dtype) // 4, 1)
        if taps > most:
            return f"keeps at most {most} sums of a channel in registers, not {taps}"
        if not _fitting(problem, workspace_limit()):
            return f"has no tile that keeps {taps} sums and a window of rows in registers"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _fitting(problem, workspace_limit())

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return LaneCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        workspace = config["splits"] * _split_bytes(problem) if config["splits"] > 1 else 0
        return Plan(self, problem, workspace, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        march, strides = march_of(problem), strides_of(tensors)
        arguments = remembered(memo, "collect", collect_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {name: tensors[name] for name in "xyw"} | {"bias": tensors.get("bias")}
        if config["splits"] > 1:
            pointers["w"] = tensors["workspace"]
            pointers["bias"] = tensors["workspace"][prod(problem.w_shape) :] if problem.bias else None
        across = ceil_div(problem.k, config["BC"]) if march.over_channels else problem.k
        side = "last" if march.over_channels else "rows"
        kernel = KernelReference("conv.collect", f"_conv_collect_{side}_kernel")
        launch_kernel(problem, kernel, (config["splits"] * across,), pointers, arguments, config)
        if config["splits"] > 1:
            pointers = {"partial": pointers["w"], "w": tensors["w"], "bias": tensors.get("bias")}
            arguments = remembered(memo, "sum", splits_arguments, problem, strides, config)
            grid = (ceil_div(arguments["elements"], _SUM["BLOCK"]),)
            kernel = KernelReference("conv.splits", "_conv_sum_splits_kernel")
            launch_kernel(problem, kernel, grid, pointers, arguments, _SUM)


@lru_cache(maxsize=512)
def _fitting(problem: ConvProblem, room: int) -> list[dict[str, Any]]:
    """Return configs whose registers suffice and whose splits take `room` bytes at most, of several heights."""
    march = march_of(problem)
    height = march.rows.steps + march.rows.warm
    tiles = [{**tile, "steps": height, "UNROLL": 1, "splits": 1} for tile in lane_tiles(problem)]
    if not tiles:
        return []
    costs = LaneCosts(problem, tiles)
    fits = costs.registers() <= MOST_REGISTERS
    found = []
    # Left to itself ptxas spills some of these to fit one more block.
    tiles = [tile | ({"maxnreg": 255} if "LANES" in tile and tile["TQ"] == 16 else {}) for tile in tiles]
    for tile, across, items in zip(np.array(tiles)[fits], costs.programs[fits], costs.items[fits], strict=True):
        for parts in (1, 2, 4, 8, 16):
            steps = ceil_div(height, parts)
            if parts > 1 and steps < 4:
                continue
            unroll = 2 if march.taps <= 9 and steps % 2 == 0 else 1
            most = min(int(items) * ceil_div(height, steps), room // max(_split_bytes(problem), 1))
            wanted = {max(min(ceil_div(programs, int(across)), most), 1) for programs in (132, 264, 528, 1056)}
            found += [{**tile, "steps": steps, "UNROLL": unroll, "splits": splits} for splits in sorted(wanted)]
    return found


SOLVERS: tuple[Solver, ...] = (CollectDepthwise(),)
