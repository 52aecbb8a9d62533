"""Depthwise convolution of stride 1 with large windows on the banded kernels: problems, tiles and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .banded_blocks import TOGETHER, banded_arguments, banded_of, pack_arguments, packed_elements
from .banded_costs import BandedCosts, banded_tiles
from .common import VECTORS, Memo, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel

__all__ = ["SOLVERS", "BandedDepthwise", "refusal"]

_FEWEST_TAPS, _MOST_TAPS = 5, 31
"""Taps along the longest axis of a window; shorter ones are for the plain cores."""

_PACK = {"num_warps": 4, "num_stages": 1}


class BandedDepthwise(TritonConv):
    """Depthwise convolution of stride 1 on tensor cores: blocks of results as products with banded matrices.

    A plan is two launches: a small one packs eight shifted copies of every window.
    """

    id = "triton.conv.depthwise.banded"
    kinds = ("fprop", "dgrad", "transposed")

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = refusal(problem)
        if reason is not None:
            return reason
        config = self.default(problem)
        if not config:
            return (
                f"has no tile for a window of {problem.kernel} and rows of {banded_of(problem).source_size[1]} columns"
            )
        needed, limit = self.bind(problem, config).workspace, workspace_limit()
        return f"packs weights into {needed} bytes, over the limit of {limit}" if needed > limit else None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from banded_tiles(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return BandedCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        elements = packed_elements(banded_of(problem), config)
        return Plan(self, problem, elements * itemsize(problem.dtype), dict(config))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        return {"packed": (plan.problem.dtype, plan.workspace // itemsize(plan.problem.dtype))}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        banded, strides = banded_of(problem), strides_of(tensors)
        arguments = remembered(memo, "pack", pack_arguments, problem, strides, config)
        grid = (ceil_div(arguments["elements"], arguments["BLOCK"]),)
        kernel = KernelReference("conv.banded", "_conv_banded_pack_kernel")
        pointers = {"w": tensors["w"], "packed": tensors["packed"]}
        launch_kernel(problem, kernel, grid, pointers, arguments, _PACK)
        arguments = remembered(memo, "banded", banded_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("y", "x") if banded.grad else ("x", "y")
        pointers = {"source": tensors[source], "packed": tensors["packed"], "result": tensors[result]}
        pointers |= {name: tensors.get(name) for name in (*VECTORS, "residual")}
        blocks = banded.images * arguments["blocks_h"] * arguments["blocks_w"]
        across = banded.channels // TOGETHER if banded.over_channels else banded.channels
        name = "last" if banded.over_channels else "rows"
        kernel = KernelReference("conv.banded", f"_conv_banded_{name}_kernel")
        launch_kernel(problem, kernel, (ceil_div(blocks, config["BM"]) * across,), pointers, arguments, config)


def refusal(problem: ConvProblem) -> str | None:
    """Return why no banded kernel takes a problem, with the numbers that say so; None if one may."""
    if itemsize(problem.dtype) != 2:
        return f"multiplies 16-bit numbers, not {problem.dtype}"
    if problem.ndim > 2:
        return f"has kernels for 1-D and 2-D, not {problem.ndim}-D"
    if problem.c != problem.groups or problem.k != problem.c:
        per_group = max(problem.groups, 1)
        return f"takes one channel to one per group, not {problem.c // per_group} to {problem.k // per_group}"
    if problem.padding_mode != "zeros":
        return f"pads with zeros alone, not {problem.padding_mode}"
    if max(problem.stride) > 1:
        return f"moves on by one position, not {problem.stride}"
    dilated = any(step > 1 and taps > 1 for step, taps in zip(problem.dilation, problem.kernel, strict=True))
    if dilated:
        return f"takes windows of neighbouring elements, not dilation {problem.dilation}"
    if not _FEWEST_TAPS <= max(problem.kernel) <= _MOST_TAPS:
        return f"takes {_FEWEST_TAPS} to {_MOST_TAPS} taps along the longest axis, not {max(problem.kernel)}"
    if 0 in (problem.c, problem.n, *problem.input_size, *problem.output_size):
        return "has nothing to compute without images, channels or positions"
    if banded_of(problem).over_channels and problem.c % TOGETHER:
        return f"reads {TOGETHER} channels at a time where they are innermost, which do not divide {problem.c}"
    return None


SOLVERS: tuple[Solver, ...] = (BandedDepthwise(),)
