"""Sizes and strides as kernels take them: of three spatial axes, whatever the problem has."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["five", "reach", "three", "two"]


def two(values: Sequence[int], fill: int) -> tuple[int, int]:
    """Put a leading axis in front, so that 1-D looks like 2-D."""
    first, second = (fill,) * (2 - len(values)) + tuple(values)
    return first, second


def three(values: Sequence[int], fill: int) -> tuple[int, ...]:
    """Put leading axes in front, so that 1-D and 2-D look like 3-D."""
    return (fill,) * (3 - len(values)) + tuple(values)


def five(strides: Sequence[int]) -> tuple[int, ...]:
    """Return strides of batch, channel and three spatial axes; a leading spatial axis of size 1 has stride 0."""
    return (*strides[:2], *three(strides[2:], 0))


def reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the largest distance in elements between two elements of a tensor (0 when it is empty)."""
    if 0 in shape:
        return 0
    return sum((size - 1) * abs(stride) for size, stride in zip(shape, strides, strict=True))
