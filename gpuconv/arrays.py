"""The kinds of array that gpuconv accepts, behind one small interface.

A kind knows how to read an array's shape, dtype, strides and device, how to allocate an output in a memory format, and
how to show a host array to NumPy without a copy. Nothing here imports an array library that the user has not imported.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

__all__ = [
    "CHANNELS_LAST",
    "CONTIGUOUS",
    "TORCH",
    "ArrayKind",
    "bfloat16_bits",
    "channels_last_strides",
    "common_kind",
    "contiguous_strides",
    "is_channels_last",
    "is_cupy",
    "is_torch",
    "kind_of",
    "register_kind",
    "unsqueezed_strides",
    "with_memory",
]

CONTIGUOUS = "contiguous"
CHANNELS_LAST = "channels_last"


def bfloat16_bits(values: Any) -> Any:
    """Round float32 to the nearest bfloat16, ties to even, and return its bits as uint16. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a row-major tensor (axes of size 0 count as 1, as in torch)."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * max(size, 1)
    return tuple(reversed(strides))


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of an ``N, C, *spatial`` tensor whose channels are innermost.

    Axes of size 0 count as 0 here, unlike in :func:`contiguous_strides`; as in torch.
    """
    _, c, *spatial = shape
    strides: list[int] = []
    step = c
    for size in reversed(spatial):
        strides.append(step)
        step = step * size
    return (step, 1, *reversed(strides))


def unsqueezed_strides(shape: Sequence[int], strides: Sequence[int], axis: int) -> tuple[int, ...]:
    """Return the strides after ``unsqueeze(axis)``; the new axis gets ``size * stride`` of the next, as in torch."""
    new = shape[axis] * strides[axis] if axis < len(shape) else 1
    return (*strides[:axis], new, *strides[axis:])


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Decide whether an ``N, C, *spatial`` tensor (rank 4 or 5) is channels-last, as torch's ``suggest_memory_format``.

    Strides must not decrease along C, W, H, (D,) N. Ambiguous cases (every stride equal to the channel stride, a zero
    stride of C, an empty axis) count as contiguous. Rule: ``is_channels_last_strides_2d`` in torch's
    ``c10/core/MemoryFormat.h``.
    """
    if strides[1] == 0:
        return False
    smallest = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < smallest:
            return False
        if axis == 0 and smallest == strides[1]:
            return False
        smallest = strides[axis] * shape[axis] if shape[axis] > 1 else strides[axis]
    return True


class ArrayKind(ABC):
    """One array library. Instances are stateless singletons."""

    name: str

    @abstractmethod
    def owns(self, array: object) -> bool:
        """Tell whether `array` belongs to this library."""

    @abstractmethod
    def dtype(self, array: Any) -> str:
        """Return the element type by NumPy's name, for example ``"float32"`` or ``"bfloat16"``."""

    @abstractmethod
    def device(self, array: Any) -> str:
        """Return the device, for example ``"cpu"`` or ``"cuda:0"``."""

    @abstractmethod
    def strides(self, array: Any) -> tuple[int, ...]:
        """Return the strides in elements."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: str, device: str, memory_format: str) -> Any:
        """Allocate an uninitialised array in a memory format."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """Show a host array as NumPy without a copy. bfloat16 and float8 appear as their bits, in unsigned integers."""

    def check(self, op: str, argument: str, array: Any) -> None:  # noqa: B027
        """Refuse an array of this library whose elements do not lie at strides in memory."""

    def shape(self, array: Any) -> tuple[int, ...]:
        """Return the shape."""
        return tuple(array.shape)

    def add_batch(self, array: Any) -> Any:
        """Return a view with a leading axis of size 1."""
        return array[None]

    def drop_batch(self, array: Any) -> Any:
        """Return a view without the leading axis of size 1."""
        return array[0]


class _NumpyKind(ArrayKind):
    name = "numpy"

    def owns(self, array: object) -> bool:
        # A masked array is refused: its mask would silently be ignored.
        return isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)

    def dtype(self, array: np.ndarray) -> str:
        return array.dtype.name

    def device(self, array: np.ndarray) -> str:
        return "cpu"

    def strides(self, array: np.ndarray) -> tuple[int, ...]:
        return tuple(stride // array.itemsize for stride in array.strides)

    def empty(self, shape: Sequence[int], dtype: str, device: str, memory_format: str) -> np.ndarray:
        if memory_format == CHANNELS_LAST:
            n, c, *spatial = shape
            return np.moveaxis(np.empty((n, *spatial, c), dtype), -1, 1)
        return np.empty(tuple(shape), dtype)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.name == "bfloat16":  # of ml_dtypes, as JAX has it
            return array.view(np.uint16)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def is_torch(array: object) -> bool:
    """Tell whether `array` is a ``torch.Tensor``, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def with_memory(array: Any) -> Any:
    """Return a torch tensor whose values are those in its memory: none to be negated or conjugated when read, and not
    the zeros of autograd, which have none.
    """
    array = array.detach().resolve_conj().resolve_neg()
    return sys.modules["torch"].zeros_like(array) if array._is_zerotensor() else array


@lru_cache(maxsize=4096)
def _new_strides(shape: tuple[int, ...], memory_format: str) -> tuple[int, ...]:
    return channels_last_strides(shape) if memory_format == CHANNELS_LAST else contiguous_strides(shape)


class _Memory:
    """What NumPy makes an array of, without a copy: a tensor's memory, and the tensor itself to keep it alive."""

    __slots__ = ("__array_interface__", "tensor")
    __array_interface__: dict[str, Any]
    tensor: Any


@lru_cache(maxsize=4096)
def _interface(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    """Return NumPy's description of a tensor but for its address; see :meth:`ArrayKind.to_numpy`."""
    name = str(dtype).removeprefix("torch.")
    found = np.dtype({"bfloat16": "uint16", "float8_e4m3fn": "uint8"}.get(name, name))
    in_bytes = tuple(stride * found.itemsize for stride in strides)
    return {"version": 3, "shape": tuple(shape), "strides": in_bytes, "typestr": found.str}


class _TorchKind(ArrayKind):
    name = "torch"

    def owns(self, array: object) -> bool:
        return is_torch(array)

    def check(self, op: str, argument: str, array: Any) -> None:
        """Raise torch's class for sparse, nested and oneDNN's tensors."""
        torch = sys.modules["torch"]
        if array.layout is torch.strided and not array.is_nested:
            return
        found, way = f"one of layout {array.layout}", "Tensor.to_dense()"
        if array.is_nested:
            found, way = "a nested tensor", "torch.nested.to_padded_tensor()"
        convolves = op.startswith("conv") and not array.is_nested  # torch says there that types differ
        text = f"{op}: {argument} must be a dense strided tensor, but got {found}; {way} makes one"
        raise (RuntimeError if convolves else NotImplementedError)(text)

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def device(self, array: Any) -> str:
        return str(array.device)

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(array.stride())

    def empty(self, shape: Sequence[int], dtype: str, device: str, memory_format: str) -> Any:
        torch = sys.modules["torch"]
        shape = tuple(shape)
        return torch.empty_strided(
            shape, _new_strides(shape, memory_format), dtype=getattr(torch, dtype), device=device
        )

    def to_numpy(self, array: Any) -> np.ndarray:
        # Not by Tensor.numpy(), which for ever forbids to resize the storage: FSDP frees parameters by resizing.
        if not array.is_cpu:
            raise TypeError(f"a tensor on {array.device} lies outside of the memory that NumPy reads")
        if array.is_neg() or array.is_conj():
            array = array.detach().clone()
        address = array.data_ptr()
        if not address and array.numel():
            if not array._is_zerotensor():
                raise RuntimeError("the memory of a tensor was freed, by resizing its storage")
            array = sys.modules["torch"].zeros_like(array)  # zeros of autograd, that have no memory
            address = array.data_ptr()
        memory = _Memory()
        memory.__array_interface__ = _interface(array.shape, array.stride(), array.dtype).copy()
        memory.__array_interface__["data"] = (address, False)
        memory.tensor = array
        view: np.ndarray = np.asarray(memory)
        return view


def is_cupy(array: object) -> bool:
    """Tell whether `array` is a ``cupy.ndarray``, without importing CuPy."""
    cupy = sys.modules.get("cupy")
    # While CuPy is being imported the module is there and the class is not.
    return cupy is not None and isinstance(array, getattr(cupy, "ndarray", ()))


class _CupyKind(ArrayKind):
    name = "cupy"

    def owns(self, array: object) -> bool:
        return is_cupy(array)

    def dtype(self, array: Any) -> str:
        name: str = array.dtype.name  # ml_dtypes gives its types names as well: bfloat16
        return name

    def device(self, array: Any) -> str:
        return f"cuda:{array.device.id}"

    def strides(self, array: Any) -> tuple[int, ...]:
        return tuple(stride // array.itemsize for stride in array.strides)

    def empty(self, shape: Sequence[int], dtype: str, device: str, memory_format: str) -> Any:
        cupy = sys.modules["cupy"]
        kind = cupy.dtype("bfloat16") if dtype == "bfloat16" else dtype
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            if memory_format == CHANNELS_LAST:
                n, c, *spatial = shape
                return cupy.moveaxis(cupy.empty((n, *spatial, c), kind), -1, 1)
            return cupy.empty(tuple(shape), kind)

    def to_numpy(self, array: Any) -> np.ndarray:
        raise TypeError(
            "a cupy.ndarray lies in GPU memory; NumPy cannot read it without a copy (cupy.asnumpy makes one)"
        )


TORCH: Final[ArrayKind] = _TorchKind()
"""The kind of ``torch.Tensor``."""

_KINDS: list[ArrayKind] = [_NumpyKind(), TORCH, _CupyKind()]


def register_kind(kind: ArrayKind) -> None:
    """Add a kind of array; later kinds are asked last."""
    _KINDS.append(kind)


def kind_of(array: object) -> ArrayKind | None:
    """Return the kind that owns `array`, or ``None``."""
    return next((kind for kind in _KINDS if kind.owns(array)), None)


def common_kind(op: str, named: dict[str, Any], required: Sequence[str] = ()) -> ArrayKind:
    """Return the one kind of all arrays in `named`; ``None`` is skipped, but not for a name in `required`.

    Raises
    ------
    TypeError
        If a value is not an array that gpuconv knows, or if two values are of different kinds.
    RuntimeError, NotImplementedError
        If a tensor is sparse, nested, or of another layout that has no strides.
    """
    kind: ArrayKind | None = None
    first = ""
    for argument, array in named.items():
        if array is None and argument not in required:
            continue
        found = kind_of(array)
        if found is None:
            known = ", ".join(k.name for k in _KINDS)
            raise TypeError(f"{op}: {argument} must be an array ({known}), but got {type(array).__name__}")
        found.check(op, argument, array)
        if kind is not None and found is not kind:
            raise TypeError(
                f"{op}: {argument} must be a {kind.name} array like {first}, but got a {found.name} array; "
                "kinds of array do not mix in one call"
            )
        kind, first = found, first or argument
    if kind is None:
        raise TypeError(f"{op}: at least one array is required, but got none")
    return kind
