"""The weight gradient of grouped convolution of few channels per group on the row kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import Memo, Strides, TritonConv, accumulator_type, remembered, strides_of
from .launch import launch_kernel
from .rows_blocks import blocks_of, in_turned, refusal, rows_of, sides, turned_elements, wide
from .rows_wgrad_costs import FOLD, GradientCosts, elements_of, gradient_tiles, lane_of, steps_of
from .units import in_units

__all__ = ["SOLVERS", "RowGradient", "fold_arguments", "gradient_arguments"]


def gradient_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of a split but its pointers, by name; see :func:`.rows_arguments`."""
    rows, lane = rows_of(problem), lane_of(problem, config["V"])
    steps = steps_of(problem, config)
    found: dict[str, Any] = {
        "images": problem.n, "groups": rows.groups, "blocks": blocks_of(rows, config), "lanes_w": lane.lanes,
        "steps": steps, "steps_per_split": ceil_div(steps, config["splits"]), "elements": elements_of(problem),
        "CACHE": ".ca" if config["CACHED"] else "", "pad_d": rows.depth.pad,
        "pad_h": rows.pad[0], "pad_w": rows.pad[1], "DEEP": rows.depth.there, "T": rows.depth.taps,
        "R": rows.kernel[0], "S": rows.kernel[1], "STRIDE_D": rows.depth.stride, "STRIDE_H": rows.stride[0],
        "STRIDE_W": rows.stride[1], "DILATION_D": rows.depth.dilation, "DILATION_H": rows.dilation[0],
        "DILATION_W": rows.dilation[1] if rows.kernel[1] > 1 else 1,
        "PITCH": lane.pitch, "XW": lane.columns, "CG": rows.inside, "KG": rows.outside,
        "EVEN": rows.groups % config["PER"] == 0, "BIAS": problem.bias, "PRECISION": problem.precision,
        "INDEX64": bool(config.get("INDEX64")) or wide(problem, strides),
        **{name: config[name] for name in ("PER", "U", "V", "BM", "BC", "BO")},
    }  # fmt: skip
    for name, size in (("x", rows.source_size), ("y", rows.result_size)):
        found |= {f"{name}_h": size[0], f"{name}_w": size[1]}
    found |= {"x_d": rows.depth.source, "y_d": rows.depth.result}
    found |= sides(problem, strides, ("x", "y"), ("x", "y"))
    found["y_stride_k"] = found.pop("y_stride_c")
    return in_units(found, {
        "UNIT": (("x_stride_c",), [f"x_stride_{axis}" for axis in "ndhw"]),
        "RESULT_UNIT": (("y_stride_k",), [f"y_stride_{axis}" for axis in "ndhw"]),
    })  # fmt: skip


def fold_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, by name."""
    rows, elements = rows_of(problem), elements_of(problem)
    splits = config["splits"]
    found: dict[str, Any] = {
        "splits": splits, "filters": problem.k, "elements": elements, "weights": prod(problem.w_shape),
        "T": rows.depth.taps, "R": rows.kernel[0], "S": rows.kernel[1], "CG": rows.inside,
        "BLOCK_S": FOLD["BLOCK_S"], "BLOCK": FOLD["BLOCK"],
    }  # fmt: skip
    given = sides(problem, strides, ("w",), ("w",))
    found |= {f"w_stride_{to}": given[f"w_stride_{axis}"] for to, axis in zip("kctrs", "ncdhw", strict=True)}
    largest = (splits + FOLD["BLOCK_S"]) * elements
    reached = max(sum(found[f"w_stride_{axis}"] for axis in "kctrs") * max(problem.w_shape), largest)
    return found | {"INDEX64": bool(config.get("INDEX64")) or reached >= 2**31}


class RowGradient(TritonConv):
    """Weight gradient: products of rows on tensor cores, whose splits a second kernel adds; a bias rides along."""

    id = "triton.conv.grouped.wgrad"
    kinds = ("wgrad",)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = refusal(problem)
        if reason is not None:
            return reason
        if _configs(problem):
            return None
        if gradient_tiles(problem):
            return f"keeps sums of a split, and contiguous tensors turned, over the limit of {workspace_limit()} bytes"
        rows = rows_of(problem)
        return f"has no tile for {rows.inside} to {rows.outside} channels and a window of {problem.kernel}"

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _configs(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return GradientCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        item = 8 if problem.dtype == "float64" else 4
        used = config["splits"] * elements_of(problem) * item + _turned_bytes(problem)
        return Plan(self, problem, used, dict(config))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        problem = plan.problem
        assert isinstance(problem, ConvProblem)
        sums = "float64" if problem.dtype == "float64" else "float32"
        found = {"workspace": (sums, plan.config["splits"] * elements_of(problem))}
        return found | {name: (problem.dtype, elements) for name, elements in turned_elements(problem).items()}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        tensors = in_turned(problem, tensors, 0, problem.n)
        strides = strides_of(tensors)
        arguments = remembered(memo, "rows", gradient_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {"x": tensors["x"], "y": tensors["y"], "partial": tensors["workspace"]}
        grid = (config["splits"] * arguments["T"] * arguments["blocks"],)
        kernel = KernelReference("conv.rows_wgrad", "_conv_rows_wgrad_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
        arguments = remembered(memo, "fold", fold_arguments, problem, strides, config)
        pointers = {"partial": tensors["workspace"], "w": tensors["w"], "bias": tensors.get("bias")}
        grid = (ceil_div(arguments["elements"], FOLD["BLOCK"]),)
        kernel = KernelReference("conv.rows_wgrad", "_conv_rows_fold_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, FOLD)


def _turned_bytes(problem: ConvProblem) -> int:
    return sum(turned_elements(problem).values()) * itemsize(problem.dtype)


_PROGRAMS = (132, 264, 396, 528, 792)
"""Numbers of programs that splits are chosen for: multiples of the multiprocessors of an H100 or H200."""


def _configs(problem: ConvProblem) -> list[dict[str, Any]]:
    """Return the configs of a problem: tiles, each with several numbers of splits."""
    found = []
    sums = 8 if problem.dtype == "float64" else 4
    for tile in gradient_tiles(problem):
        blocks, steps = blocks_of(rows_of(problem), tile), steps_of(problem, tile)
        most = max(workspace_limit() - _turned_bytes(problem), 0) // max(elements_of(problem) * sums, 1)
        beside = blocks * rows_of(problem).depth.taps  # programs of a split
        wanted = {ceil_div(steps, ceil_div(steps, max(programs // beside, 1))) for programs in _PROGRAMS}
        found += [{**tile, "splits": splits} for splits in sorted({min(splits, most) for splits in wanted}) if splits]
    return found


SOLVERS: tuple[Solver, ...] = (RowGradient(),)
