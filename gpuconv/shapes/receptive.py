"""Receptive fields of stacks of layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from .axes import Size

__all__ = [
    "Layer",
    "ReceptiveField",
    "receptive_field",
]

Layer: TypeAlias = tuple[Size, Size, Size, Size]
"""One layer of :func:`receptive_field`, ``(kernel, stride, pad_lo, dilation)``."""


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What one output of a stack of layers sees of the input, along one axis.

    Coordinates count input pixels from 0: pixel ``i`` has its centre at ``i`` (not at ``i + 0.5``), and pixels in
    the padding before the input have negative coordinates.

    Attributes
    ----------
    size : int
        Length of the receptive field in pixels, from its first to its last tap.
    jump : int
        Distance between the receptive fields of neighbouring outputs: the product of the strides.
    start : float
        Centre of the receptive field of output 0; a multiple of 1/2. Output ``i`` sees the pixels from
        ``start + i * jump - (size - 1) / 2`` to ``start + i * jump + (size - 1) / 2``, both included.

    Examples
    --------
    >>> field = receptive_field([(3, 2, 1, 1)])  # output 4 sees the pixels 7, 8 and 9
    >>> field.start + 4 * field.jump, field.size
    (8.0, 3)
    """

    size: Size
    jump: Size
    start: float


def receptive_field(layers: Iterable[Layer]) -> ReceptiveField:
    """Receptive field of a stack of convolutions or poolings along one axis.

    Source: Araujo, Norris & Sim 2019: size, effective stride and effective padding, with the effective kernel for
    ``k`` and pixels counted from 0 as there. Composed front to back: with ``j`` the jump before a layer, the layer
    adds ``t * j`` to the size and ``(t / 2 - pad_lo) * j`` to the start, and multiplies the jump by ``s``.

    An empty stack sees its own pixel: ``ReceptiveField(1, 1, 0.0)``.

    Examples
    --------
    >>> receptive_field([(7, 2, 3, 1), (3, 2, 1, 1)])
    ReceptiveField(size=11, jump=4, start=0.0)
    """
    size, jump, start = 1, 1, 0.0
    for kernel, stride, pad_lo, dilation in layers:
        total = dilation * (kernel - 1)
        size = size + total * jump
        start = start + (total - 2 * pad_lo) * jump / 2
        jump = jump * stride
    return ReceptiveField(size, jump, start)
