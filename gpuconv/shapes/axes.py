"""What every formula stands on: sizes, all axes at once, division that rounds up."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

__all__ = [
    "Size",
    "ceil_div",
    "map_axes",
]

Size: TypeAlias = int
"""A size: an ``int``, or a ``torch.SymInt`` while torch traces (SymInt is typed as int on purpose)."""

T = TypeVar("T")


def map_axes(fn: Callable[..., T], *per_axis: Iterable[Any]) -> tuple[T, ...]:
    """Apply a one-axis formula to every axis: one iterable per argument of `fn`, one entry per axis in each.

    Iterables of different lengths raise ``ValueError``.

    Examples
    --------
    >>> from gpuconv.shapes import conv_output_size
    >>> map_axes(conv_output_size, (50, 100), (3, 5))
    (48, 96)
    """
    return tuple(fn(*axis) for axis in zip(*per_axis, strict=True))


def ceil_div(size: Size, step: Size) -> Size:
    """How many steps cover a size: ``ceil(size / step)``, of integers of any sign and a positive step.

    Examples
    --------
    >>> ceil_div(7, 2), ceil_div(8, 2)
    (4, 4)
    """
    return -(-size // step)
