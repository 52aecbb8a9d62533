"""Depthwise convolution and its data gradient on the marching kernels: problems, tiles, arguments and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import Any

from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import (
    VECTORS,
    Memo,
    TritonConv,
    accumulator_type,
    remembered,
    strides_of,
)
from .launch import launch_kernel
from .march_costs import LONGEST_STEP, MOST_REGISTERS, LaneCosts, lane_tiles
from .march_lanes import march_arguments, march_of

__all__ = ["SOLVERS", "MarchDepthwise"]

_AS_GOOD = 1.005
"""Times of the best modelled one that are as good: of tiles that memory bounds, that which computes least is taken."""

_MOST_TAPS = 128
"""Weights that a lane keeps in registers at most."""


class MarchDepthwise(TritonConv):
    """Depthwise convolution on the plain cores: every row of the source is loaded once, sums stay in registers."""

    id = "triton.conv.depthwise.march"
    kinds = ("fprop", "dgrad", "transposed")

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.c != problem.groups or problem.c == 0:
            per_group = problem.c // max(problem.groups, 1)
            return f"takes one input channel per group, not {per_group}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros alone, not {problem.padding_mode}"
        if problem.kind != "fprop":
            plane = list(zip(problem.stride, problem.dilation, problem.kernel, strict=True))[-2:]
            refused = [(stride, dilation) for stride, dilation, taps in plane if taps > 1 and gcd(stride, dilation) > 1]
            if refused:
                stride, dilation = refused[0]
                return f"takes gradients whose stride and dilation share no divisor, not {stride} and {dilation}"
        if march_of(problem).longest_step > LONGEST_STEP:
            return f"unrolls strides up to {LONGEST_STEP}, not {max(problem.stride)}"
        march = march_of(problem)
        most = _MOST_TAPS // max(itemsize(problem.dtype) // 4, 1)
        if march.taps > most:
            return f"keeps at most {most} weights of a channel in registers, not {march.taps}"
        if not _fitting(problem):
            return f"has no tile that keeps {march.taps} weights and {march.rows.open} open rows in registers"
        return None

    def default(self, problem: Problem) -> dict[str, Any]:
        return self.leanest(problem, self.variants(problem), _AS_GOOD)

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _fitting(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return LaneCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        return Plan(self, problem, 0, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        march = march_of(problem)
        arguments = remembered(memo, "march", march_arguments, problem, strides_of(tensors), config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("y", "x") if march.grad else ("x", "y")
        pointers = {"source": tensors[source], "w": tensors["w"], "result": tensors[result]}
        pointers |= {name: tensors.get(name) for name in (*VECTORS, "residual")}
        vertical = arguments["chunks"] * arguments["phases_h"] * arguments["result_d"]
        if march.over_channels:
            tiles = ceil_div(march.channels, arguments["BC"]) * arguments["tiles_w"] * problem.n
            kernel = KernelReference("conv.march", "_conv_march_last_kernel")
            launch_kernel(problem, kernel, (tiles * vertical,), pointers, arguments, config)
        else:
            grid = (arguments["tiles"] * vertical,)
            kernel = KernelReference("conv.march", "_conv_march_rows_kernel")
            launch_kernel(problem, kernel, grid, pointers, arguments, config)


@lru_cache(maxsize=512)
def _fitting(problem: ConvProblem) -> list[dict[str, Any]]:
    """Return the configs of a problem whose registers suffice, each with several heights."""
    tiles = list(lane_tiles(problem))
    steps = max(march_of(problem).rows.steps, 1)  # an empty batch may have no rows
    if not tiles:
        return []
    found = LaneCosts(problem, [{**tile, "steps": steps} for tile in tiles]).registers() <= MOST_REGISTERS
    heights = {max(ceil_div(steps, parts), 1) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32)}
    heights = {steps, *(height for height in heights if height >= min(steps, 4))}
    return [
        {**tile, "steps": height} for tile, fits in zip(tiles, found, strict=True) if fits for height in sorted(heights)
    ]


SOLVERS: tuple[Solver, ...] = (MarchDepthwise(),)
