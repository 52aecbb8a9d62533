"""Sizes that every problem speaks of: bytes of an element, types that hold a tap, sizes in words."""

from __future__ import annotations

__all__ = ["dims", "itemsize", "offset_dtype"]

_ITEMSIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4, "complex32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8,
    "complex128": 16,
}  # fmt: skip


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of `dtype`."""
    return _ITEMSIZE[dtype]


def offset_dtype(taps: int) -> str:
    """Return the smallest signed integer type that holds every tap of a window of `taps` elements."""
    return "int8" if taps <= 2**7 else "int16" if taps <= 2**15 else "int32"


def dims(sizes: tuple[int, ...]) -> str:
    """Return sizes as people write them: ``3x3``."""
    return "x".join(str(size) for size in sizes)
