"""Tensors turned to channels innermost in front of a launch, and back behind it."""

from __future__ import annotations

from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...packs import KernelReference
from ...problem import ConvProblem
from ...shapes import ceil_div
from .launch import launch_kernel

__all__ = ["in_order", "in_runs", "launch_turn", "plane_strides", "runs", "turn", "turn_back"]

_TILE = {"BLOCK_R": 64, "BLOCK_C": 64, "num_warps": 4}
_TURN = KernelReference("conv.layout", "_conv_turn_kernel")


def in_order(problem: ConvProblem, letter: str) -> bool:
    """Tell whether x, w or y lies with channels innermost."""
    layout = {"x": problem.x_format, "w": problem.w_format, "y": problem.y_format}[letter]
    _, channels, *positions = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape}[letter]
    return layout == CHANNELS_LAST or prod(positions) == 1 or channels == 1


def launch_turn(
    problem: ConvProblem, source: Any, result: Any, sizes: tuple[int, int, int], firsts: tuple[int, int],
    source_strides: tuple[int, int, int], result_strides: tuple[int, int, int],
) -> None:  # fmt: skip
    """Copy ``[batches, rows, columns]``, both sides by strides of those axes, from an element of either side on."""
    batches, rows, columns = sizes
    arguments: dict[str, Any] = {"rows": rows, "columns": columns}
    arguments |= {"source_first": firsts[0], "result_first": firsts[1]}
    for side, strides in (("source", source_strides), ("result", result_strides)):
        arguments |= zip((f"{side}_stride_{axis}" for axis in "brc"), strides, strict=True)
    reached = [
        abs(first) + sum(size * abs(step) for size, step in zip(sizes, strides, strict=True))
        for first, strides in zip(firsts, (source_strides, result_strides), strict=True)
    ]
    arguments |= {"INDEX64": max(reached) >= 2**31, "BLOCK_R": _TILE["BLOCK_R"], "BLOCK_C": _TILE["BLOCK_C"]}
    grid = (batches * ceil_div(rows, _TILE["BLOCK_R"]) * ceil_div(columns, _TILE["BLOCK_C"]),)
    launch_kernel(problem, _TURN, grid, {"source": source, "result": result}, arguments, _TILE)


def plane_strides(tensor: Any) -> tuple[int, int, int]:
    """Return strides of image, channel and position of a tensor whose positions lie in one run."""
    last = max((axis for axis in range(2, tensor.dim()) if tensor.shape[axis] > 1), default=None)
    return tensor.stride(0), tensor.stride(1), 1 if last is None else tensor.stride(last)


def runs(tensor: Any) -> bool:
    """Tell whether the positions of a tensor have one stride."""
    step = None
    for axis in range(tensor.dim() - 1, 1, -1):
        if tensor.shape[axis] > 1:
            if step is not None and tensor.stride(axis) != step:
                return False
            step = (tensor.stride(axis) if step is None else step) * tensor.shape[axis]
    return True


def in_runs(tensor: Any) -> Any:
    """Return a tensor whose positions have one stride: itself, or a contiguous copy."""
    return tensor if runs(tensor) else tensor.contiguous()


def turn(
    problem: ConvProblem, tensor: Any, result: Any, first: int, n: int, channels: int, run: tuple[int, int]
) -> None:
    """Copy `n` images from `first` on to `result`, channels innermost: of each, a run of positions (first, number).

    The positions of `tensor` have one stride, see :func:`in_runs`.
    """
    of_n, of_c, of_p = plane_strides(tensor)
    at, positions = run
    sides = ((of_n, of_c, of_p), (positions * channels, 1, channels))
    launch_turn(problem, tensor, result, (n, channels, positions), (first * of_n + at * of_p, 0), *sides)


def turn_back(
    problem: ConvProblem, source: Any, tensor: Any, first: int, n: int, channels: int, run: tuple[int, int]
) -> None:
    """Copy `n` images with channels innermost to a run of positions of those from `first` on, which are contiguous."""
    of_n, of_c, of_p = plane_strides(tensor)
    at, positions = run
    sides = ((positions * channels, channels, 1), (of_n, of_p, of_c))
    launch_turn(problem, source, tensor, (n, positions, channels), (0, first * of_n + at * of_p), *sides)
