"""Convolution with few input channels on the kernel over runs: problems, tiles, arguments and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ..axes import three
from ..base import Plan, Solver
from .common import VECTORS, Memo, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel
from .runs_axes import (
    forward_of,
    forward_strides,
    phases_of,
    runs_arguments,
    runs_of,
    spread_arguments,
    spread_elements,
)
from .runs_costs import RunCosts, run_tiles

__all__ = ["SOLVERS", "ForwardRuns", "GradientRuns"]

_MOST_CHANNELS = 16
"""Input channels at most: with more, a tap of a filter is a reduction that tensor cores are fed well with."""

_MOST_IN_PHASES = 64
"""Channels of y at most in a data gradient of another stride than 1: it has more filters, one of each phase."""

_MOST_PHASES = 16

_AS_GOOD = 1.02
"""Times of the best modelled one that are as good: an unrolled loop walks a few rows more, each with fewer moves."""

_SPREAD_PASS = {"num_warps": 4, "num_stages": 1}


class ForwardRuns(TritonConv):
    """Forward convolution of few channels: every input row is loaded once, as runs of neighbouring elements.

    A plan is two launches: a small one spreads the weights to the order of the runs.
    """

    id = "triton.conv.fprop.runs"
    kinds: tuple[str, ...] = ("fprop",)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.groups != 1:
            return f"takes one group, not {problem.groups}"
        reason = _refusal_of_phases(problem)
        if reason is not None:
            return reason
        forward, phases = forward_of(problem), phases_of(problem)
        most = _MOST_IN_PHASES if phases.count > 1 else _MOST_CHANNELS
        if not 1 <= forward.c <= most:
            return f"takes 1 to {most} input channels, not {forward.c}"
        if not forward.k:  # a data gradient of no channels
            return "has nothing to compute without channels of the result"
        if problem.padding_mode != "zeros":
            return f"pads with zeros alone, not {problem.padding_mode}"
        if problem.dtype == "float32" and problem.precision == "tf32x3":
            return "forms one product of two operands, not the three of tf32x3"
        dilation, kernel = three(forward.dilation, 1), three(forward.kernel, 1)
        if any(step > 1 and taps > 1 for step, taps in zip(dilation[1:], kernel[1:], strict=True)):
            return f"takes windows of neighbouring rows and columns, not dilation {problem.dilation}"
        config = self.default(problem)
        if not config:
            runs = runs_of(forward)
            held = f"{runs.taps[1]} filter rows of {runs.depth(1)} elements and {runs.open} open rows"
            return f"has no tile that holds {held}"
        needed, limit = spread_elements(forward, config) * itemsize(problem.dtype), workspace_limit()
        if needed > limit:
            return f"needs {needed} bytes of workspace for weights, more than the limit of {limit}"
        return None

    def default(self, problem: Problem) -> dict[str, Any]:
        """Return the config that the model likes best, unrolled by as much as makes its loop execute the least."""
        assert isinstance(problem, ConvProblem)
        configs = list(run_tiles(forward_of(problem), serial=False, **_costs_of(problem)))
        best = self.cheapest(problem, configs)
        alike = [config for config in configs if {**config, "UNROLL": best["UNROLL"]} == best]
        return self.leanest(problem, alike, _AS_GOOD)

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from run_tiles(forward_of(problem), **_costs_of(problem))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return RunCosts(forward_of(problem), configs, **_costs_of(problem)).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        elements = spread_elements(forward_of(problem), config)
        return Plan(self, problem, elements * itemsize(problem.dtype), dict(config))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        assert isinstance(plan.problem, ConvProblem)
        return {"spread": (plan.problem.dtype, spread_elements(forward_of(plan.problem), plan.config))}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        conv_runs_kernel = KernelReference("conv.runs", "_conv_runs_kernel")
        conv_runs_spread_kernel = KernelReference("conv.runs_spread", "_conv_runs_spread_kernel")
        forward, grad = forward_of(problem), problem.kind != "fprop"
        strides, offset = forward_strides(problem, strides_of(tensors))
        phases = phases_of(problem)
        arguments = dict(remembered(memo, "spread", spread_arguments, forward, strides, config, offset, phases))
        grid = (arguments.pop("programs"),)
        pointers = {name: tensors[name] for name in ("w", "spread")}
        launch_kernel(problem, conv_runs_spread_kernel, grid, pointers, arguments, _SPREAD_PASS)
        arguments = dict(remembered(memo, "runs", runs_arguments, forward, strides, config, grad, phases))
        grid = (arguments.pop("programs"),)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {name: tensors.get(name) for name in ("spread", *VECTORS, "residual")}
        pointers |= {"x": tensors["y"], "y": tensors["x"]} if grad else {"x": tensors["x"], "y": tensors["y"]}
        launch_kernel(problem, conv_runs_kernel, grid, pointers, arguments, config)


def _costs_of(problem: ConvProblem) -> dict[str, Any]:
    """Return what :class:`.RunCosts` is told of a problem beside the forward one."""
    return {"exact": problem.kind != "fprop", "phases": phases_of(problem).count}


def _refusal_of_phases(problem: ConvProblem) -> str | None:
    """Return why a data gradient of another stride than 1 is not taken; None if it is."""
    if problem.kind == "fprop" or all(step == 1 for step in problem.stride):
        return None
    if prod(problem.stride) > _MOST_PHASES:
        return f"computes up to {_MOST_PHASES} phases of a data gradient, not {prod(problem.stride)}"
    axes = zip(problem.stride, problem.dilation, problem.kernel, strict=True)
    if any(step > 1 and dilation > 1 and taps > 1 for step, dilation, taps in axes):
        return f"takes no dilation with the stride of a data gradient, but {problem.dilation} with {problem.stride}"
    if problem.c > 1 and problem.x_format != CHANNELS_LAST:
        return f"writes phases side by side: x must be {CHANNELS_LAST}, not {problem.x_format}"
    return None


class GradientRuns(ForwardRuns):
    """Data gradient, or transposed convolution, of few filters: the forward pass of y, window turned, in phases."""

    id = "triton.conv.dgrad.runs"
    kinds = ("dgrad", "transposed")


SOLVERS: tuple[Solver, ...] = (ForwardRuns(), GradientRuns())
