"""Sizes and strides in units of 8, so that the compiler of Triton sees multiples of 8 and not of 16 alone.

Its JIT specialises kernels for integers that 16 divides. Channels innermost in runs of 8, 24 or 40 elements of 16 bits
could be read 16 bytes at a time as well, but the compiler cannot know it. So their sizes and strides are passed divided
by 8, and the kernel multiplies them by a constant 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["UNIT", "divide_by_eight", "in_units"]

UNIT = 8
"""Elements of 16 bits in a load of 16 bytes."""


def _helps(numbers: Sequence[int]) -> bool:
    """Tell whether all of `numbers` are multiples of 8, but not all of 16."""
    return all(number % UNIT == 0 for number in numbers) and any(number % (2 * UNIT) for number in numbers)


def divide_by_eight(arguments: dict[str, Any], names: Sequence[str]) -> int:
    """Divide the numbers `names` by 8, in place, where that tells the compiler more; return the unit, 8 or 1."""
    if not _helps([arguments[name] for name in names]):
        return 1
    arguments.update({name: arguments[name] // UNIT for name in names})
    return UNIT


def in_units(arguments: Mapping[str, Any], sides: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
    """Return `arguments` with the numbers of each side divided by 8 where that is what makes them known multiples.

    Parameters
    ----------
    arguments
        Arguments of a kernel by name. The 64-bit variant keeps its numbers: divided, they might look like 32-bit ones.
    sides
        For each constexpr that tells the unit to the kernel, the strides that must be 1 and the numbers to divide.
    """
    result = dict(arguments)
    for unit, (innermost, names) in sides.items():
        numbers = [arguments[name] for name in names]
        result[unit] = 1
        if _helps(numbers) and not arguments["INDEX64"] and all(arguments[name] == 1 for name in innermost):
            result |= {unit: UNIT} | {name: number // UNIT for name, number in zip(names, numbers)}
    return result
