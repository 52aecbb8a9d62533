"""The weight gradient of convolutions with few channels on one side on the kernel over runs: problems and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem
from ...shapes import ceil_div
from ..axes import three
from ..base import Plan, Solver
from .common import Memo, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel
from .runs_wgrad_axes import fold_arguments, fold_tile, gradient_arguments, tile_of
from .runs_wgrad_costs import GradientCosts, roles, run_configs

__all__ = ["SOLVERS", "GradientOfRuns"]


class GradientOfRuns(TritonConv):
    """Weight gradient with few channels on one side: products of runs of neighbouring elements on tensor cores.

    A plan is two launches: the second adds the splits of the first.
    """

    id = "triton.conv.wgrad.runs"
    kinds = ("wgrad",)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.groups != 1:
            return f"takes one group, not {problem.groups}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros alone, not {problem.padding_mode}"
        if problem.bias:
            return "computes the gradient of the weight alone, not of a bias beside it"
        if problem.dtype == "float32" and problem.precision == "tf32x3":
            return "forms one product of two operands, not the three of tf32x3"
        if 0 in (problem.c, problem.k, problem.n, *problem.input_size, *problem.output_size):
            return "has nothing to compute without images, channels or positions"
        dilation, kernel = three(problem.dilation, 1), three(problem.kernel, 1)
        if any(step > 1 and taps > 1 for step, taps in zip(dilation[1:], kernel[1:], strict=True)):
            return f"takes windows of neighbouring rows and columns, not dilation {problem.dilation}"
        if not roles(problem):
            return f"takes few channels on one side, for x at any stride, not {problem.c} and {problem.k}"
        if not run_configs(problem, workspace_limit()):
            return f"has no tile for a window of {problem.kernel} and {problem.c} to {problem.k} channels"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from run_configs(problem, workspace_limit())

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return GradientCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        item = 8 if problem.dtype == "float64" else 4
        return Plan(self, problem, config["splits"] * tile_of(problem, config).elements * item, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        strides, tile = strides_of(tensors), tile_of(problem, config)
        arguments = remembered(memo, "gradient", gradient_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("y", "x") if tile.runs.swapped else ("x", "y")
        pointers = {"source": tensors[source], "result": tensors[result], "partial": tensors["workspace"]}
        grid = (config["splits"] * tile.tiles_k * tile.blocks,)
        kernel = KernelReference("conv.runs_wgrad", "_conv_runs_wgrad_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
        arguments = remembered(memo, "fold", fold_arguments, problem, strides, config)
        pointers = {"partial": tensors["workspace"], "w": tensors["w"]}
        folded = fold_tile(problem, config)
        grid = (ceil_div(prod(problem.w_shape), folded["BLOCK"]),)
        kernel = KernelReference("conv.runs_wgrad", "_conv_runs_fold_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, folded)


SOLVERS: tuple[Solver, ...] = (GradientOfRuns(),)
