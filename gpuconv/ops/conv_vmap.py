"""One more batch axis for a convolution operator: folded into N, into the channels of each group, or into the groups.

With one operand batched nothing is copied more often than it has to be: the axis joins N, or the channels of that
operand which the other one does not have. With both, every element of the batch becomes a set of groups of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["fold"]

Tensor = Any
Fold = Callable[[Tensor], Tensor]


def _join(tensor: Tensor, axis: int) -> Tensor:
    """Move the leading batch axis in front of the channels, and make it one axis with them."""
    return tensor.movedim(0, axis).flatten(axis, axis + 1)


def _split(tensor: Tensor, axis: int, batch: int) -> Tensor:
    """Undo :func:`_join`."""
    return tensor.unflatten(axis, (batch, tensor.shape[axis] // batch)).movedim(axis, 0)


def _join_within(tensor: Tensor, axis: int, groups: int) -> Tensor:
    """Put the leading batch axis inside each group of the channels at `axis` (counted without the batch axis)."""
    channels = tensor.shape[axis + 1]
    return tensor.unflatten(axis + 1, (groups, channels // groups)).movedim(0, axis + 1).flatten(axis, axis + 2)


def _split_within(tensor: Tensor, axis: int, groups: int, batch: int) -> Tensor:
    """Undo :func:`_join_within`."""
    sizes = (groups, batch, tensor.shape[axis] // (groups * batch))
    return tensor.unflatten(axis, sizes).movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def _folds(kind: str, groups: int, batch: int, first: bool, second: bool) -> tuple[Fold, Fold, Fold, int]:
    """Return how to fold each operand, how to unfold the result, and the number of groups."""

    def same(tensor: Tensor) -> Tensor:
        return tensor

    def over_images() -> tuple[Fold, Fold]:
        return lambda t: t.flatten(0, 1), lambda t: t.unflatten(0, (batch, t.shape[0] // batch))

    def over(axis: int) -> tuple[Fold, Fold]:
        return lambda t: _join(t, axis), lambda t: _split(t, axis, batch)

    def within(axis: int) -> tuple[Fold, Fold]:
        return lambda t: _join_within(t, axis, groups), lambda t: _split_within(t, axis, groups, batch)

    if first and second:
        activations, weights = over(1), over(0)
        if kind == "wgrad":
            return activations[0], activations[0], weights[1], groups * batch
        return activations[0], weights[0], activations[1], groups * batch
    if first:
        if kind == "wgrad":  # the channels of x are the second axis of the weight, within its group
            return within(1)[0], same, over(1)[1], groups
        return over_images()[0], same, over_images()[1], groups
    if kind == "fprop":  # more output channels in each group
        return same, within(0)[0], within(1)[1], groups
    if kind == "wgrad":
        return same, within(1)[0], within(0)[1], groups
    return same, over(1)[0], within(1)[1], groups  # dgrad: more input channels in each group


def fold(
    kind: str, groups: int, batch: int, first: Tensor, first_dim: int | None, second: Tensor, second_dim: int | None,
    operator: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:  # fmt: skip
    """Run `operator` (first, second, groups) over a batch axis of one or both operands; the result has it in front.

    `kind` says which operator it is, and with it what the axes of the operands are: ``"fprop"`` (x, w), ``"dgrad"`` and
    ``"transposed"`` (dy, w), ``"wgrad"`` (x, dy).
    """
    of_first, of_second, unfold, count = _folds(kind, groups, batch, first_dim is not None, second_dim is not None)
    if first_dim is not None:
        first = first.movedim(first_dim, 0)
    if second_dim is not None:
        second = second.movedim(second_dim, 0)
    return unfold(operator(of_first(first), of_second(second), count))
