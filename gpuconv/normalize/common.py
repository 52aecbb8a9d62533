"""From what the user wrote to canonical tuples and problems. Every user error is raised here.

Exception classes are torch's: ``TypeError`` for an argument of the wrong type, ``RuntimeError`` for most wrong values,
``ValueError`` where torch says so. This module has the helpers that convolution and pooling share;
:mod:`.conv` and :mod:`.pool` use them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import index
from typing import Any

from ..arrays import CHANNELS_LAST, CONTIGUOUS, ArrayKind, is_channels_last, unsqueezed_strides
from ..costs import device_elsewhere
from ..errors import invalid

__all__ = [
    "int_tuple",
    "integer",
    "is_compiling",
    "is_symbolic",
    "memory_format",
    "pad_pairs",
    "same_device",
]

AXES = ("D", "H", "W")


def is_symbolic(value: object) -> bool:
    """Tell whether `value` is a ``torch.SymInt``, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.SymInt)


def is_compiling() -> bool:
    """Tell whether ``torch.compile`` or ``torch.export`` traces this call, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def integer(op: str, argument: str, value: object) -> int:
    """Return `value` as an int; anything with ``__index__`` but ``bool`` is an integer, as in torch.

    A ``torch.SymInt``, a size while torch traces, is returned as it is: ``__index__`` would fix its value.

    Raises
    ------
    TypeError
        If `value` is no integer.
    ValueError
        If it does not fit into 64 bits.
    """
    if type(value) is not int:
        if isinstance(value, bool):
            raise invalid(op, argument, value, "an integer", TypeError)
        if is_symbolic(value):
            return value  # type: ignore[return-value]
        try:
            value = index(value)  # type: ignore[arg-type]
        except TypeError:
            raise invalid(op, argument, value, "an integer", TypeError) from None
    if not -(2**63) <= value < 2**63:
        raise invalid(op, argument, value, "an integer of 64 bits", ValueError)
    return value


def int_tuple(op: str, argument: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return `value`, an integer or a list or tuple of 1 or `ndim` integers, as a tuple of `ndim` integers.

    Raises
    ------
    TypeError
        If `value` or an element is not an integer.
    RuntimeError
        If a list or tuple has another length.
    """
    if isinstance(value, list | tuple):
        items = tuple(integer(op, argument, item) for item in value)
        if len(items) == 1:
            return items * ndim
        if len(items) != ndim:
            raise invalid(op, argument, value, f"one integer or {ndim} of them, one per spatial axis")
        return items
    return (integer(op, argument, value),) * ndim


def pad_pairs(op: str, argument: str, value: Any, ndim: int) -> tuple[tuple[int, int], ...] | None:
    """Return `value` as (lo, hi) pairs if it is a list or tuple with a pair in it, else ``None``.

    Raises
    ------
    RuntimeError
        If there is not one pair per spatial axis, or a pair has another length than 2.
    TypeError
        If an element is not an integer.
    """
    if not isinstance(value, list | tuple) or not any(isinstance(item, list | tuple) for item in value):
        return None
    required = f"an integer, {ndim} integers, or {ndim} pairs ((lo, hi), ...)"
    pairs = []
    for item in value:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise invalid(op, argument, value, required)
        pairs.append((integer(op, argument, item[0]), integer(op, argument, item[1])))
    if len(pairs) != ndim:
        raise invalid(op, argument, value, required)
    return tuple(pairs)


def memory_format(shape: Sequence[int], strides: Sequence[int]) -> str:
    """Return the memory format of an ``N, C, *spatial`` array, ``"contiguous"`` or ``"channels_last"``, as in torch.

    Ranks 4 and 5 follow :func:`gpuconv.arrays.is_channels_last`; rank 3 is classified with a unit height axis put in.
    """
    if len(shape) == 3:
        strides = unsqueezed_strides(shape, strides, 2)
        shape = (*shape[:2], 1, shape[2])
    return CHANNELS_LAST if is_channels_last(shape, strides) else CONTIGUOUS


def batched_strides(shape: Sequence[int], strides: Sequence[int], unbatched: bool) -> tuple[int, ...]:
    """Return the strides after a batch axis is put in front of an unbatched array."""
    return unsqueezed_strides(shape, strides, 0) if unbatched else tuple(strides)


def same_device(op: str, kind: ArrayKind, named: dict[str, Any]) -> str:
    """Return the one device of all arrays in `named` (``None`` values are skipped), or the GPU that is explained.

    Raises
    ------
    RuntimeError
        If two arrays are on different devices.
    """
    devices = {argument: kind.device(array) for argument, array in named.items() if array is not None}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{argument} on {device}" for argument, device in devices.items())
        raise RuntimeError(f"{op}: all arrays must be on one device, but got {found}")
    return device_elsewhere() or next(iter(devices.values()))
