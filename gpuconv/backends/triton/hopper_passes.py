"""What stands around the Hopper kernels: tensors turned to channels innermost and back, weights packed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST, channels_last_strides
from ...packs.identity import KernelReference
from ...problem import ConvProblem
from ...shapes import ceil_div
from .hopper_view import Dense, in_order
from .launch import launch_kernel

__all__ = [
    "WeightsPass", "aligned", "channels_last", "in_runs", "launch_turn", "repeat", "turn", "turn_back",
    "turned_elements", "weights_pass", "with_columns_as_channels",
]  # fmt: skip

_TILE = {"BLOCK_R": 64, "BLOCK_C": 64, "num_warps": 4}
_TURN = KernelReference("conv.layout", "_conv_turn_kernel")


def channels_last(tensor: Any) -> Any:
    """Return a tensor with channels innermost and nothing in between: itself, or a copy."""
    wanted = channels_last_strides(tuple(tensor.shape))
    sides = zip(tensor.shape, tensor.stride(), wanted, strict=True)
    return tensor if all(size == 1 or has == wants for size, has, wants in sides) else _copied(tensor)


def _copied(tensor: Any) -> Any:
    """Return a copy with channels innermost, in memory of its own."""
    shape = tuple(tensor.shape)
    return tensor.new_empty_strided(shape, channels_last_strides(shape)).copy_(tensor)


def aligned(tensor: Any, dense_rows: bool = False) -> Any:
    """Return a tensor that a tensor map can describe: itself, or a copy with channels innermost.

    Its address, and strides of axes longer than 1, are multiples of 16 bytes; with `dense_rows` its pixels lie in one
    row.
    """
    if dense_rows:
        tensor = channels_last(tensor)
    item = tensor.element_size()
    longer = [
        (axis, step) for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)) if size > 1
    ]
    fits = all(step == 1 if axis == 1 else step > 0 and step * item % 16 == 0 for axis, step in longer)
    return tensor if fits and tensor.data_ptr() % 16 == 0 else _copied(tensor)


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


def _plane(tensor: Any) -> tuple[int, int, int]:
    """Return strides of image, channel and position of a tensor whose positions lie in one run."""
    last = max((axis for axis in range(2, tensor.dim()) if tensor.shape[axis] > 1), default=None)
    return tensor.stride(0), tensor.stride(1), 1 if last is None else tensor.stride(last)


def with_columns_as_channels(tensor: Any, merged: int) -> Any:
    """Return a view of a tensor whose columns lie side by side, `merged` of them as the channels of one."""
    n, c, *rest = tensor.shape
    steps = list(tensor.stride())
    shape = (n, merged * c, *rest[:-1], rest[-1] // merged)
    return tensor.as_strided(shape, (*steps[:-1], merged * c))


def in_runs(tensor: Any) -> Any:
    """Return a tensor whose positions have one stride: itself, or a contiguous copy."""
    step, runs = None, True
    for axis in range(tensor.dim() - 1, 1, -1):
        if tensor.shape[axis] > 1:
            runs = runs and (step is None or tensor.stride(axis) == step)
            step = (tensor.stride(axis) if step is None else step) * tensor.shape[axis]
    return tensor if runs else tensor.contiguous()


def turn(
    problem: ConvProblem, tensor: Any, result: Any, first: int, n: int, channels: int, run: tuple[int, int]
) -> None:
    """Copy `n` images from `first` on to `result`, channels innermost: of each, a run of positions (first, number).

    The positions of `tensor` have one stride, see :func:`in_runs`.
    """
    of_n, of_c, of_p = _plane(tensor)
    at, positions = run
    sides = ((of_n, of_c, of_p), (positions * channels, 1, channels))
    launch_turn(problem, tensor, result, (n, channels, positions), (first * of_n + at * of_p, 0), *sides)


def turn_back(
    problem: ConvProblem, source: Any, tensor: Any, first: int, n: int, channels: int, run: tuple[int, int]
) -> None:
    """Copy `n` images with channels innermost to a run of positions of those from `first` on, which are contiguous."""
    of_n, of_c, of_p = _plane(tensor)
    at, positions = run
    sides = ((positions * channels, channels, 1), (of_n, of_p, of_c))
    launch_turn(problem, source, tensor, (n, positions, channels), (0, first * of_n + at * of_p), *sides)


def repeat(problem: ConvProblem, vector: Any, result: Any, times: int) -> None:
    """Write a vector to `result` so many times, one behind the other."""
    channels = vector.shape[0]
    launch_turn(problem, vector, result, (1, times, channels), (0, 0), (0, 0, vector.stride(0)), (0, channels, 1))


def turned_elements(problem: ConvProblem, part: Dense) -> dict[str, int]:
    """Return the elements of each tensor, images included, that is turned of a part, by its name in a workspace."""
    found = {}
    if not in_order(problem, part.source):
        found[f"{part.source}_turned"] = part.n * part.reduced * prod(part.size)
    if not in_order(problem, part.result):
        found[f"{part.result}_turned"] = part.n * part.channels * prod(part.whole)
        if problem.residual:
            found["residual_turned"] = found[f"{part.result}_turned"]
    return found


@dataclass(frozen=True, slots=True)
class WeightsPass:
    """The pass that packs weights: `elements` of them, or none where they are read as they lie."""

    elements: int
    swapped: bool

    def launch(self, problem: ConvProblem, w: Any, packed: Any) -> None:
        """Copy w [K, C, taps] to [K, taps, C] or, `swapped`, to [C, taps, K]."""
        taps = prod(problem.kernel)
        w = in_runs(w)
        of_k, of_c, of_t = _plane(w)
        k, c = problem.k, problem.c
        if not self.swapped:
            launch_turn(problem, w, packed, (k, c, taps), (0, 0), (of_k, of_c, of_t), (taps * c, 1, c))
        elif problem.w_format == CHANNELS_LAST:
            launch_turn(problem, w, packed, (taps, k, c), (0, 0), (of_t, of_k, of_c), (k, 1, taps * k))
        else:
            launch_turn(problem, w, packed, (c, k, taps), (0, 0), (of_c, of_k, of_t), (taps * k, 1, k))


def weights_pass(problem: ConvProblem, dense: Dense) -> WeightsPass:
    """Return how weights are packed: where channels are not innermost, and for gradients in tf32."""
    swapped = problem.kind != "fprop" and not dense.turned
    packs = swapped or not in_order(problem, "w")
    return WeightsPass(prod(problem.w_shape) if packs else 0, swapped)
