"""Tensor maps: how a kernel's boxes lie in a tensor, for the Tensor Memory Accelerator of sm_90 and later.

A kernel is compiled for a :class:`MapType`: the box, its type and how it lies in shared memory. A launch brings a
:class:`TensorMap`: that, and a tensor with sizes and strides. The driver makes 128 bytes of it, which the kernel takes
as one parameter; behind them come, as Triton has it, the sizes (32 bits each) and the strides (64 bits each).
Nothing here imports torch or Triton.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = [
    "MAP_BYTES", "MapError", "MapType", "TensorMap", "copies_as_told", "encode", "is_map", "parse_map_type",
    "replace_address",
]  # fmt: skip

MAP_BYTES = 128
"""Bytes of a ``CUtensorMap``."""

_ALIGNMENT = 64
"""Of a ``CUtensorMap`` (CUDA driver API, 6.39)."""

_MOST_AXES = 5

_ELEMENTS = {"fp16": (6, 2), "bf16": (9, 2), "fp32": (7, 4), "tf32": (11, 4)}
"""``CUtensorMapDataType`` and bytes of an element; of tf32 TMA rounds float32 to it as it reads."""

_SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
"""``CUtensorMapSwizzle`` by the bytes that are swizzled together."""

_PROMOTION = 2
"""``CU_TENSOR_MAP_L2_PROMOTION_L2_128B``."""

_TYPE = re.compile(
    r"(tma|im2col([345]))\.(fp16|bf16|fp32|tf32)\.(\d{1,4}(?:x\d{1,4}){1,4})\.(0|32|64|128)(?:\.(\d|all))?"
)


class MapError(RuntimeError):
    """The driver refused a tensor map, or has no function for one; the message says what and why."""


@dataclass(frozen=True, slots=True)
class MapType:
    """What a kernel is compiled for.

    Attributes
    ----------
    dtype
        ``fp16``, ``bf16``, ``fp32`` or ``tf32``.
    box
        Elements of a box along each axis, of both CTAs of a cluster; of the im2col mode, pixels and channels.
    swizzle
        Bytes that are swizzled together: 32, 64, 128, or 0 for none.
    split
        The axis of the box that two CTAs of a cluster have one half each of, ``"all"`` where both have the whole, or
        None without clusters.
    axes
        Axes of the tensor in the im2col mode; 0 in the tiled one, where the box has as many.
    """

    dtype: str
    box: tuple[int, ...]
    swizzle: int
    split: int | str | None = None
    axes: int = 0

    @property
    def rank(self) -> int:
        """Axes of the tensor."""
        return self.axes or len(self.box)

    @property
    def sizes(self) -> list[int]:
        """The bytes of each parameter that it takes: the map, sizes, strides."""
        return [MAP_BYTES, *[4] * self.rank, *[8] * self.rank]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return _ELEMENTS[self.dtype][1]

    @property
    def message(self) -> tuple[int, ...]:
        """The elements along each axis of what one instruction copies: a row is no longer than what is swizzled."""
        own = [size // 2 if axis == self.split else size for axis, size in enumerate(self.box)]
        if self.swizzle:
            own[-1] = min(own[-1], self.swizzle // self.itemsize)
        return tuple(own)

    def __str__(self) -> str:
        mode = f"im2col{self.axes}" if self.axes else "tma"
        split = "" if self.split is None else f".{self.split}"
        return f"{mode}.{self.dtype}.{'x'.join(map(str, self.box))}.{self.swizzle}{split}"


@lru_cache(maxsize=1024)
def _parsed(text: str) -> MapType | None:
    found = _TYPE.fullmatch(text)
    if found is None:
        return None
    axes, dtype, box, swizzle, split = found.groups()[1:]
    sizes = tuple(map(int, box.split("x")))
    type = MapType(dtype, sizes, int(swizzle), int(split) if split and split.isdigit() else split, int(axes or 0))
    wrong = (axes and len(sizes) != 2) or (isinstance(type.split, int) and type.split >= len(sizes))
    return type if all(sizes) and not wrong and str(type) == text else None


def is_map(type: str) -> bool:
    """Tell whether the type of a parameter is that of a tensor map."""
    return _parsed(type) is not None


def parse_map_type(text: str) -> MapType:
    """Return the type that ``str`` gave `text` for.

    Raises
    ------
    ValueError
        If it is none.
    """
    type = _parsed(text)
    if type is None:
        raise ValueError(f"{text!r:.80} is no type of a tensor map")
    return type


def copies_as_told(metadata: Any, types: Sequence[MapType]) -> bool:
    """Tell whether a kernel that Triton compiled copies boxes as maps of `types`, in order, are made.

    How a box lies in shared memory is what Gluon is told, and what plain Triton chooses.
    """
    made = [
        (tuple(found["block_size"]), found["swizzle"]) for found in getattr(metadata, "tensordesc_meta", None) or ()
    ]
    return made == [(type.message, _SWIZZLES[type.swizzle]) for type in types]


@dataclass(frozen=True, slots=True, eq=False)
class TensorMap:
    """A tensor as an argument of a kernel that reads or writes boxes of it.

    Attributes
    ----------
    tensor
        A torch tensor, which has the address.
    type
        What the kernel is compiled for.
    shape, strides
        Sizes and strides in elements, outermost axis first; the last axis has stride 1.
    offset
        Elements from the address of `tensor` to the first element of the map.
    lower, upper, steps
        Of the im2col mode: the corners of the positions that a box may begin at, relative to the first and the last
        position of each spatial axis, and the distance of neighbouring positions.
    """

    tensor: Any
    type: MapType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def address(self) -> int:
        """Where the map begins."""
        start: int = self.tensor.data_ptr()
        return start + self.offset * self.type.itemsize

    def scalars(self) -> list[bytes]:
        """Return the parameters behind the map: sizes and strides."""
        sizes = [int(size).to_bytes(4, "little", signed=True) for size in self.shape]
        return sizes + [int(stride).to_bytes(8, "little", signed=True) for stride in self.strides]


@lru_cache(maxsize=1)
def _driver() -> Any:
    """Open the driver.

    Raises
    ------
    MapError
        If there is none, or it is older than tensor maps (CUDA 12.0).
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
        functions = [library.cuTensorMapEncodeTiled, library.cuTensorMapEncodeIm2col, library.cuTensorMapReplaceAddress]
    except (OSError, AttributeError) as error:
        raise MapError(f"tensor maps cannot be made: {error}") from None
    numbers = ctypes.c_void_p
    head: list[Any] = [numbers, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, numbers, numbers]
    tail: list[Any] = [numbers, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    functions[0].argtypes = [*head, numbers, *tail]
    functions[1].argtypes = [*head, numbers, numbers, ctypes.c_uint, ctypes.c_uint, *tail]
    functions[2].argtypes = [numbers, ctypes.c_void_p]
    return library


class _Aligned:
    """Memory for one map, at a multiple of 64 bytes."""

    def __init__(self, content: bytes = bytes(MAP_BYTES)) -> None:
        self._memory = ctypes.create_string_buffer(MAP_BYTES + _ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT
        ctypes.memmove(self.address, content, MAP_BYTES)

    def content(self) -> bytes:
        return ctypes.string_at(self.address, MAP_BYTES)


def _array(kind: Any, values: Any) -> Any:
    """Return a C array of values, the innermost axis first."""
    values = list(values)[::-1]
    return (kind * len(values))(*values)


def encode(map: TensorMap) -> bytes:
    """Return the 128 bytes of a tensor map.

    Raises
    ------
    MapError
        If the driver refuses it: an address or stride that 16 does not divide, corners that are too far.
    """
    driver, type, made = _driver(), map.type, _Aligned()
    number, item = _ELEMENTS[type.dtype]
    strides = _array(ctypes.c_uint64, [stride * item for stride in map.strides[:-1]])
    steps = _array(ctypes.c_uint32, (1, *(map.steps or (1,) * (type.rank - 2)), 1))
    common = (made.address, number, type.rank, map.address, _array(ctypes.c_uint64, map.shape), strides)
    end = (steps, 0, _SWIZZLES[type.swizzle], _PROMOTION, 0)
    if type.axes:
        pixels, channels = type.message
        corners = (_array(ctypes.c_int, map.lower), _array(ctypes.c_int, map.upper))
        code = driver.cuTensorMapEncodeIm2col(*common, *corners, channels, pixels, *end)
    else:
        code = driver.cuTensorMapEncodeTiled(*common, _array(ctypes.c_uint32, type.message), *end)
    if code:
        raise MapError(f"CUDA error {code} for a map {type} of {map.shape} by {map.strides} at {map.address:#x}")
    content = made.content()
    return content if type.axes else _repaired(map, content)


@lru_cache(maxsize=1)
def _driver_version() -> int:
    version = ctypes.c_int()
    return version.value if _driver().cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def _repaired(map: TensorMap, content: bytes) -> bytes:
    """Clear a bit that drivers up to 13.1 set for tensors under 128 KiB, as CUTLASS and Triton do (CUTLASS b7ecaa6)."""
    last = sum((size - 1) * stride for size, stride in zip(map.shape, map.strides, strict=True)) * map.type.itemsize
    if last + 1 >= 128 << 10 or _driver_version() > 13010:
        return content
    word = int.from_bytes(content[8:16], "little") & ~(1 << 21)
    return content[:8] + word.to_bytes(8, "little") + content[16:]


def replace_address(content: bytes, address: int) -> bytes:
    """Return the bytes of a map that begins elsewhere.

    Raises
    ------
    MapError
        If the driver refuses the address.
    """
    made = _Aligned(content)
    code = _driver().cuTensorMapReplaceAddress(made.address, address)
    if code:
        raise MapError(f"CUDA error {code} for a map at {address:#x}")
    return made.content()
