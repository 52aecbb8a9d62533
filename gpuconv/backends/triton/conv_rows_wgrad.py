"""The weight gradient of grouped convolution of few channels per group on the row kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...config import workspace_limit
from ...costs import constants
from ...costs import model as cost_model
from ...costs.constants import PATHS, PIPES
from ...costs.model import Work
from ...costs.work import pipe_of
from ...packs.identity import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import Memo, Strides, TritonConv, accumulator_type, power_of_two, remembered, strides_of
from .launch import launch_kernel
from .rows_blocks import blocks_of, refusal, rows_of, sides, wide
from .units import in_units

__all__ = ["SOLVERS", "RowGradient", "fold_arguments", "gradient_arguments"]

_FOLD = {"BLOCK_S": 16, "BLOCK": 128, "num_warps": 4, "num_stages": 1}
"""Splits and elements of one step of the pass that adds the splits."""

_PER_STEP, _PER_LOAD, _PER_ITEM = 26.0, 9.0, 120.0
"""Instructions of a thread per row, per load of 16 bytes of it, and per item. Read off compiled loops."""


def _powers(problem: ConvProblem) -> tuple[int, int]:
    """Return the taps along each axis, filled up to powers of two."""
    r, s = rows_of(problem).kernel
    return power_of_two(r), power_of_two(s)


def _height(problem: ConvProblem) -> int:
    """Return the rows of x, padding included, that taps lead to."""
    rows = rows_of(problem)
    return (rows.result_size[0] - 1) * rows.stride[0] + (rows.kernel[0] - 1) * rows.dilation[0] + 1


def _elements(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return how many sums a split has."""
    r, s = _powers(problem)
    return blocks_of(rows_of(problem), config) * r * s * int(config["BC"]) * int(config["BO"])


def _items(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    tiles = ceil_div(problem.n * rows_of(problem).result_size[1], config["BM"])
    return tiles * ceil_div(_height(problem), config["steps"])


def gradient_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel of a split but its pointers, by name; see :func:`.rows_arguments`."""
    rows, (r, s) = rows_of(problem), _powers(problem)
    items = _items(problem, config)
    found: dict[str, Any] = {
        "images": problem.n, "groups": rows.groups, "steps": config["steps"],
        "tiles": ceil_div(problem.n * rows.result_size[1], config["BM"]), "blocks": blocks_of(rows, config),
        "items": items, "items_per_split": ceil_div(items, config["splits"]), "pad_h": rows.pad[0],
        "pad_w": rows.pad[1], "R": rows.kernel[0], "S": rows.kernel[1], "RP": r, "SP": s, "STRIDE_H": rows.stride[0],
        "STRIDE_W": rows.stride[1], "DILATION_H": rows.dilation[0], "DILATION_W": rows.dilation[1],
        "CG": rows.inside, "KG": rows.outside, "EVEN": rows.groups % config["PER"] == 0,
        "PRECISION": problem.precision, "INDEX64": bool(config.get("INDEX64")) or wide(problem, strides),
        **{name: config[name] for name in ("PER", "BM", "BC", "BO")},
    }  # fmt: skip
    for name, size in (("x", rows.source_size), ("y", rows.result_size)):
        found |= {f"{name}_h": size[0], f"{name}_w": size[1]}
    found |= sides(problem, strides, ("x", "y"), ("x", "y"))
    found["y_stride_k"] = found.pop("y_stride_c")
    return in_units(found, {
        "UNIT": (("x_stride_c",), [f"x_stride_{axis}" for axis in "nhw"]),
        "RESULT_UNIT": (("y_stride_k",), [f"y_stride_{axis}" for axis in "nhw"]),
    })  # fmt: skip


def fold_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel that adds the splits but its pointers, by name."""
    rows, (r, s), elements = rows_of(problem), _powers(problem), _elements(problem, config)
    found: dict[str, Any] = {
        "splits": config["splits"], "elements": elements, "weights": prod(problem.w_shape), "R": rows.kernel[0],
        "S": rows.kernel[1], "RP": r, "SP": s, "CG": rows.inside, "KG": rows.outside,
        "BLOCK_S": _FOLD["BLOCK_S"], "BLOCK": _FOLD["BLOCK"], **{name: config[name] for name in ("PER", "BC", "BO")},
    }  # fmt: skip
    given = sides(problem, strides, ("w",), ("w",))
    found |= {f"w_stride_{to}": given[f"w_stride_{axis}"] for to, axis in zip("kcrs", "nchw", strict=True)}
    largest = (config["splits"] + _FOLD["BLOCK_S"]) * elements
    reached = max(sum(found[f"w_stride_{axis}"] for axis in "kcrs") * max(problem.w_shape), largest)
    return found | {"INDEX64": bool(config.get("INDEX64")) or reached >= 2**31}


class RowGradient(TritonConv):
    """Weight gradient: products of rows on tensor cores, whose splits a second kernel adds."""

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
        if problem.bias:
            return "computes the gradient of the weight alone, not of a bias beside it"
        if not _configs(problem):
            rows = rows_of(problem)
            return f"has no tile for {rows.inside} to {rows.outside} channels and a window of {rows.kernel}"
        return None

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, ConvProblem)
        configs = _configs(problem)
        times = cost_model.estimate(_work(problem, configs), constants.constants_of(problem.device))
        return configs[int(np.argmin(times))]

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _configs(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return _work(problem, configs)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        item = 8 if problem.dtype == "float64" else 4
        return Plan(self, problem, config["splits"] * _elements(problem, config) * item, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        strides = strides_of(tensors)
        arguments = remembered(memo, "rows", gradient_arguments, problem, strides, config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        pointers = {"x": tensors["x"], "y": tensors["y"], "partial": tensors["workspace"]}
        grid = (config["splits"] * arguments["blocks"],)
        kernel = KernelReference("conv.rows_wgrad", "_conv_rows_wgrad_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
        arguments = remembered(memo, "fold", fold_arguments, problem, strides, config)
        pointers = {"partial": tensors["workspace"], "w": tensors["w"]}
        grid = (ceil_div(arguments["weights"], _FOLD["BLOCK"]),)
        kernel = KernelReference("conv.rows_wgrad", "_conv_rows_fold_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, _FOLD)


def _tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles whose registers and shared memory suffice."""
    rows, (r, s), item = rows_of(problem), _powers(problem), itemsize(problem.dtype)
    words = max(item // 4, 1)
    for side in (16, 32):
        per = max(min(side // max(rows.inside, rows.outside), rows.groups), 1)
        bc, bo = max(power_of_two(per * rows.inside), 16), max(power_of_two(per * rows.outside), 16)
        if max(bc, bo) > side:
            continue
        for bm, warps in product((16, 32, 64, 128), (4, 8)):
            sums, loaded = s * bc * r * bo / (32 * warps), bm * (s * bc + r * bo) / (32 * warps)
            fits = 40 + sums * words + 0.5 * loaded * item / 4 + 3 * loaded * item / 16 <= 190
            if fits and loaded >= 8 and bm * (s * bc + r * bo) * item <= 160 << 10:
                yield {"BM": bm, "BC": bc, "BO": bo, "PER": per, "num_warps": warps, "num_stages": 1}


def _configs(problem: ConvProblem) -> list[dict[str, Any]]:
    """Return the configs of a problem: tiles, each with several heights of an item and numbers of splits."""
    height, found = _height(problem), []
    sums = 8 if problem.dtype == "float64" else 4
    for tile in _tiles(problem):
        blocks, elements = blocks_of(rows_of(problem), tile), _elements(problem, tile)
        for parts in (1, 2, 4):
            config = {**tile, "steps": ceil_div(height, parts)}
            most = min(_items(problem, config), workspace_limit() // max(elements * sums, 1))
            wanted = {min(ceil_div(programs, blocks), most) for programs in (132, 264, 528, 792)}
            found += [{**config, "splits": splits} for splits in sorted(wanted) if splits >= 1]
    return found


def _work(problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> Work:
    """Describe the launches for the cost model."""
    rows, (r, s), item = rows_of(problem), _powers(problem), itemsize(problem.dtype)
    names = ("BM", "BC", "BO", "num_warps", "steps", "splits", "PER")
    bm, bc, bo, warps, steps, splits, per = (np.array([config[name] for config in configs], float) for name in names)
    blocks = np.ceil(rows.groups / per)
    ks, width, threads = s * bc, r * bo, 32 * warps
    items = np.array([_items(problem, config) for config in configs], float)
    walked = np.ceil(items / splits) * steps
    side = [
        16 // item if (config["PER"] * each) % (16 // item) == 0 and each * rows.groups % (16 // item) == 0 else 1
        for config in configs for each in (rows.inside, rows.outside)
    ]  # fmt: skip
    loads = bm * (ks / np.array(side[::2]) + width / np.array(side[1::2])) / threads
    used = 40 + ks * width * max(item // 4, 1) / threads + loads * 5
    shared = bm * (ks + width) * item
    resident = np.floor(np.minimum(65536 / (np.minimum(used, 255) * threads), 64 / warps))
    resident = np.clip(np.minimum(resident, np.floor((228 << 10) / (shared + 1024))), 1, 32)
    pipe, factor = pipe_of(problem)
    four = (warps >= 4) & (ks >= 64) & (item < 4)
    products = np.where(four, 0.0, 2.5 * bm / 16 * ks * width / (16 * 8) / warps)
    if PIPES[pipe].startswith("fma"):
        products = 1.25 * bm * ks * width / threads
    elif factor > 1:
        products = products + 8.0 * bm * (ks + width) / threads  # what three products are split from
    per_row = _PER_STEP + _PER_LOAD * loads + products
    # As issued: loads, their way to shared memory, and operands, those of a product of single warps once for each.
    again = np.where(four, 1.0, np.maximum(np.sqrt(warps), 1.0))
    moved = bm * (ks + width) * item * (2 + again) * walked
    columns = bm * rows.stride[1] + rows.dilation[1] * (rows.kernel[1] - 1)
    read = (columns * per * rows.inside + bm * per * rows.outside) * item * walked
    sums = 8 if item == 8 else 4
    return Work(
        programs=blocks * splits,
        resident=resident,
        pipe=np.full(len(configs), pipe),
        path=np.full(len(configs), PATHS.index("register")),
        flops=2 * factor * bm * ks * width * walked,
        feed=np.minimum(width / 64, 1.0),
        l2_bytes=read + ks * width * sums,
        dram_bytes=float(problem.min_bytes),
        instructions=warps * (per_row * walked + _PER_ITEM * np.ceil(items / splits) + 100),
        chain=walked + 3,
        extra_bytes=2 * splits * blocks * ks * width * sums,
        launches=2.0,
        l1_bytes=moved,
    )


SOLVERS: tuple[Solver, ...] = (RowGradient(),)
