"""The weight gradient on Hopper's tensor cores: both operands from shared memory, pixels split, sums added in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...launcher import MapType
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import Memo, remembered, strides_of
from .conv_grad import wgrad_sum_arguments
from .hopper_costs import gradient_work
from .hopper_forms import corners_of, reached
from .hopper_maps import im2col_map, row_map
from .hopper_passes import aligned, turned_elements
from .hopper_solver import HopperSolver
from .hopper_view import Dense, dense_of, number_of
from .hopper_wgrad_forms import GRADIENT_FORMS, gradient_configs
from .launch import launch_kernel
from .turns import in_runs, turn

__all__ = ["SOLVERS", "HopperGradient"]

_SUMS = {"BLOCK_R": 32, "BLOCK_C": 64, "num_warps": 4}


def _forward(problem: ConvProblem) -> Dense:
    """Return the forward pass whose weight's gradient this is."""
    return dense_of(replace(problem, kind="fprop", bias=False))


def _elements(problem: ConvProblem) -> int:
    """Return the partial sums of a split: of the weights, and behind them of the bias."""
    return prod(problem.w_shape) + (problem.k if problem.bias else 0)


def _most_splits(problem: ConvProblem) -> int:
    """Return for how many splits there is room, by the limit on workspaces and by the kernel's 32-bit numbers."""
    room = workspace_limit() - itemsize(problem.dtype) * sum(turned_elements(problem, _forward(problem)).values())
    return min(room // (4 * _elements(problem)), (2**31 - 1) // _elements(problem))


class HopperGradient(HopperSolver):
    """Weight gradient of 16-bit types by TMA and wgmma: runs of pixels, any stride, in splits added in order."""

    id = "triton.conv.wgrad.hopper"
    kinds = ("wgrad",)

    def hindrance(self, problem: ConvProblem) -> str | None:
        if itemsize(problem.dtype) != 2:
            return "multiplies pixels innermost, which tensor cores take of 16-bit types alone"
        dense = _forward(problem)
        if not dense.flat and not reached(dense):
            return "reaches strides of 8 and 255 elements of dilated window (31 in 3-D) from -128 to 127 (-16 to 15)"
        if next(gradient_configs(problem, dense, 1), None) is None:
            return f"has no form for a window of {prod(problem.kernel):,} taps"
        if _most_splits(problem) < 1:
            return f"has no room for its sums within {workspace_limit():,} bytes"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from gradient_configs(problem, _forward(problem), _most_splits(problem))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        turned = turned_elements(problem, _forward(problem))
        moved = float(2 * itemsize(problem.dtype) * sum(turned.values()))
        return gradient_work(problem, configs, [(moved, len(turned))] * len(configs))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        problem = plan.problem
        assert isinstance(problem, ConvProblem)
        turned = turned_elements(problem, _forward(problem))
        found = {"partial": ("float32", plan.config["splits"] * _elements(problem))}
        return found | {name: (problem.dtype, elements) for name, elements in turned.items()}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, Any], memo: Memo = None
    ) -> None:
        dense, form = _forward(problem), GRADIENT_FORMS[config["form"]]
        operands = {}
        for letter, channels, size in (("x", dense.reduced, dense.size), ("y", dense.channels, dense.output)):
            tensor = tensors[letter]
            if f"{letter}_turned" in tensors:
                turn(problem, in_runs(tensor), tensors[f"{letter}_turned"], 0, dense.n, channels, (0, prod(size)))
                tensor = tensors[f"{letter}_turned"]
            else:
                tensor = aligned(tensor, dense_rows=letter == "y" or dense.flat)
            operands[letter] = tensor
        partial, elements, splits = tensors["partial"], _elements(problem), config["splits"]
        arguments = _arguments(problem, dense, operands, config)
        taps = ceil_div(prod(dense.taps), form.taps)
        tiles = ceil_div(problem.k, form.channels_k) * ceil_div(problem.c, form.channels_c)
        kernel = KernelReference("hopper.wgrad", "_conv_wgrad_tiles_kernel")
        options = {"num_warps": form.warps, "num_ctas": 1}
        launch_kernel(problem, kernel, (tiles, taps, splits), {"dw": partial}, arguments, options)
        if problem.bias:
            _launch_column_sums(problem, dense, operands["y"], partial, splits)
        pointers = {"partial": partial, "w": tensors["w"], "bias": tensors.get("bias")}
        arguments = remembered(memo, "sum", wgrad_sum_arguments, problem, strides_of(tensors), config)
        grid = (ceil_div(elements, arguments["BLOCK"]),)
        kernel = KernelReference("conv.wgrad", "_conv_wgrad_sum_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, {"num_warps": 4, "num_stages": 3})


def _launch_column_sums(problem: ConvProblem, dense: Dense, y: Any, partial: Any, splits: int) -> None:
    """Add the gradient of y over pixels, in as many splits: behind the sums of the weights."""
    elements = _elements(problem)
    arguments = {
        "rows": dense.pixels, "columns": problem.k, "rows_per_split": ceil_div(dense.pixels, splits),
        "elements": elements, "first": prod(problem.w_shape),
        "INDEX64": max((dense.pixels + _SUMS["BLOCK_R"]) * problem.k, splits * elements) >= 2**31,
        "BLOCK_R": _SUMS["BLOCK_R"], "BLOCK_C": _SUMS["BLOCK_C"],
    }  # fmt: skip
    kernel = KernelReference("conv.layout", "_conv_column_sums_kernel")
    grid = (ceil_div(problem.k, _SUMS["BLOCK_C"]), splits)
    launch_kernel(problem, kernel, grid, {"matrix": y, "partial": partial}, arguments, _SUMS)


def _arguments(
    problem: ConvProblem, dense: Dense, operands: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every argument of the kernel but its pointer, by name."""
    form, number = GRADIENT_FORMS[config["form"]], number_of(problem)
    pixels = dense.pixels
    of_k, of_c = (MapType(number, (1, 1, 1, form.pixels, block), 128) for block in (form.channels_k, form.channels_c))
    o, p, q = (1, 1, pixels) if dense.flat else dense.output
    found: dict[str, Any] = {"dy_map": row_map(operands["y"], of_k, pixels, dense.channels)}
    if dense.flat:
        found["x_map"] = row_map(operands["x"], of_c, pixels, dense.reduced)
    else:
        axes = len(corners_of(dense)[0])
        type = MapType(number, (form.pixels, form.channels_c), 128, axes=axes + 2)
        found["x_map"] = im2col_map(dense, type, operands["x"], 0)
    found |= {"n": 1 if dense.flat else dense.n, "c": dense.reduced, "k": dense.channels, "o": o, "p": p, "q": q}
    found |= zip("trs", dense.taps, strict=True)
    found |= {"splits": config["splits"], "elements": _elements(problem)}
    for name, values in (("stride", dense.stride), ("first", dense.first), ("step", dense.step)):
        found |= zip((f"{name}_{axis}" for axis in "dhw"), values, strict=True)
    return found | {
        "TILE_N": 1, "TILE_P": 1, "TILE_Q": form.pixels, "BLOCK_K": form.channels_k, "BLOCK_C": form.channels_c,
        "TAPS": form.taps, "STAGES": form.stages, "AXES": config["AXES"], "INSTRUCTION_N": form.channels_c,
        "WARPS": form.warps, "PRODUCER_REGISTERS": form.producer,
    }  # fmt: skip


SOLVERS: tuple[Solver, ...] = (HopperGradient(),)
