"""What stands around the Hopper kernels: tensors as maps describe them, weights packed, columns as channels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST, channels_last_strides
from ...problem import ConvProblem
from .hopper_view import Dense
from .turns import in_order, in_runs, launch_turn, plane_strides

__all__ = [
    "WeightsPass",
    "aligned",
    "channels_last",
    "repeat",
    "turned_elements",
    "weights_pass",
    "with_columns_as_channels",
]


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


def with_columns_as_channels(tensor: Any, merged: int) -> Any:
    """Return a view of a tensor whose columns lie side by side, `merged` of them as the channels of one."""
    n, c, *rest = tensor.shape
    steps = list(tensor.stride())
    shape = (n, merged * c, *rest[:-1], rest[-1] // merged)
    return tensor.as_strided(shape, (*steps[:-1], merged * c))


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
        of_k, of_c, of_t = plane_strides(w)
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
