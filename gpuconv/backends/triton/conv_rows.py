"""Grouped convolution of few channels per group, and of few filters, on the row kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import VECTORS, Memo, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel
from .rows_blocks import (
    blocks_of,
    images_at_a_time,
    in_turned,
    pack_arguments,
    packed_elements,
    refusal,
    rows_arguments,
    rows_of,
    turned_elements,
)
from .rows_costs import RowCosts, row_tiles

__all__ = ["SOLVERS", "RowProducts"]

_PACK = {"num_warps": 4, "num_stages": 1}


class RowProducts(TritonConv):
    """Forward pass and data gradient: products of rows with block-diagonal weights on tensor cores."""

    id = "triton.conv.grouped.rows"
    kinds = ("fprop", "dgrad", "transposed")

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = refusal(problem)
        if reason is not None:
            return reason
        if not images_at_a_time(problem):
            return f"copies what it reads, an image at least, over half of the limit of {workspace_limit()} bytes"
        if _configs(problem):
            return None
        tile = next(row_tiles(problem), None)
        if tile is not None:
            return f"packs weights into {_bytes(problem, tile)} bytes, over the limit of {workspace_limit()}"
        rows = rows_of(problem)
        return f"has no tile for {rows.inside} to {rows.outside} channels and a window of {problem.kernel}"

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _configs(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return RowCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        return Plan(self, problem, _bytes(problem, config), dict(config))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        assert isinstance(plan.problem, ConvProblem)
        return {name: (plan.problem.dtype, elements) for name, elements in _parts(plan.problem, plan.config).items()}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        if config["PACKED"]:
            arguments = remembered(memo, "pack", pack_arguments, problem, strides_of(tensors), config)
            grid = (ceil_div(arguments["elements"], arguments["BLOCK"]),)
            kernel = KernelReference("conv.rows", "_conv_rows_pack_kernel")
            pointers = {"w": tensors["w"], "packed": tensors["packed"]}
            launch_kernel(problem, kernel, grid, pointers, arguments, _PACK)
        most = problem.n
        for name, elements in turned_elements(problem).items():
            most = tensors[name].numel() // (elements // problem.n)
        for first in range(0, problem.n, most):
            images = min(most, problem.n - first)
            part = problem if images == problem.n else replace(problem, n=images)
            self._part(part, in_turned(problem, tensors, first, images), config, memo)

    def _part(self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo) -> None:
        """Launch the row kernel for some images."""
        rows = rows_of(problem)
        arguments = remembered(memo, f"rows of {problem.n}", rows_arguments, problem, strides_of(tensors), config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("y", "x") if rows.grad else ("x", "y")
        pointers = {"w": tensors["w"], "packed": tensors.get("packed")}
        pointers |= {"source": tensors[source], "result": tensors[result]}
        pointers |= {name: tensors.get(name) for name in (*VECTORS, "residual")}
        programs = blocks_of(rows, config) * arguments["tiles"] * arguments["chunks"] * rows.axis.phases
        kernel = KernelReference("conv.rows", "_conv_rows_kernel")
        launch_kernel(problem, kernel, (programs,), pointers, arguments, config)


def _parts(problem: ConvProblem, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the elements of each tensor of the workspace, by name."""
    packed = {"packed": packed_elements(rows_of(problem), config)} if config["PACKED"] else {}
    images, turned = images_at_a_time(problem), turned_elements(problem).items()
    return packed | {name: elements // problem.n * images for name, elements in turned}


def _bytes(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return the bytes of the workspace."""
    return sum(_parts(problem, config).values()) * itemsize(problem.dtype)


def _configs(problem: ConvProblem) -> list[dict[str, Any]]:
    """Return the configs of a problem, each tile with several heights."""
    steps = max(rows_of(problem).axis.steps, 1)  # an empty batch may have no rows
    heights = {max(ceil_div(steps, parts), 1) for parts in (1, 2, 3, 4, 6, 8, 12, 16)}
    heights = {steps, *(height for height in heights if height >= min(steps, 4))}
    tiles = [tile for tile in row_tiles(problem) if _bytes(problem, tile) <= workspace_limit()]
    return [{**tile, "steps": height} for tile in tiles for height in sorted(heights)]


SOLVERS: tuple[Solver, ...] = (RowProducts(),)
