"""Cubins through the CUDA driver: loaded once per device, launched from Python, with ``ctypes`` alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ..launcher.layout import Layout, pack
from .index import read_cubin
from .search import Found

__all__ = ["DriverError", "PackedKernel", "load"]

_SHARED_BY_DEFAULT = 48 << 10
"""Bytes of shared memory that a block may have without asking (CUDA C++ Programming Guide, 16.8)."""

_MAX_DYNAMIC_SHARED = 8
"""``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``."""

_SCRATCH = 2
"""Pointers to scratch memory behind the parameters, null for the kernels here."""


class DriverError(RuntimeError):
    """The CUDA driver refused something; the message says what and why."""


@lru_cache(maxsize=1)
def _driver() -> Any:
    """Open the driver.

    Raises
    ------
    DriverError
        If there is none.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"libcuda.so.1 cannot be opened: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    library.cuModuleLoadData.argtypes = [ctypes.POINTER(pointer), ctypes.c_char_p]
    library.cuModuleGetFunction.argtypes = [ctypes.POINTER(pointer), pointer, ctypes.c_char_p]
    library.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    library.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, ctypes.POINTER(pointer), pointer]
    return library


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise DriverError(f"{what}: CUDA error {code}: {(text.value or b'unknown').decode()}")


class PackedKernel:
    """A function of a loaded cubin, in the place of a compiled kernel of Triton's.

    It has what a recording asks of one: `function`, `metadata` and `layout`.
    """

    def __init__(self, found: Found, function: int) -> None:
        self.entry, self.function = found.entry, function
        self.layout: Layout = found.entry.layout
        self.metadata = SimpleNamespace(
            name=found.entry.name, num_warps=found.entry.warps, shared=found.entry.shared, num_ctas=1
        )

    def bytes_of(self, arguments: Mapping[str, Any]) -> list[bytes]:
        """Return the bytes of every parameter of a launch; tensors stand for their addresses."""
        found = []
        for parameter in self.layout.parameters:
            value = arguments[parameter.name]
            if parameter.is_pointer:
                address = value if isinstance(value, int) else value.data_ptr()
                found.append(address.to_bytes(8, "little"))
            else:
                found.append(pack(parameter.type, value))
        return found

    def launch(self, grid: Sequence[int], stream: int, parameters: Sequence[bytes]) -> None:
        """Launch with the bytes of every parameter, in the context that is current.

        Raises
        ------
        DriverError
            If the driver refuses the launch.
        """
        values = [ctypes.create_string_buffer(value, len(value)) for value in (*parameters, *[bytes(8)] * _SCRATCH)]
        places = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        x, y, z = (*grid, 1, 1)[:3]
        if not x * y * z:
            return
        block, shared = 32 * self.entry.warps, self.entry.shared
        code = _driver().cuLaunchKernel(self.function, x, y, z, block, 1, 1, shared, stream, places, None)
        _check(code, f"launch of {self.entry.name}")


_loaded: dict[tuple[int, str, str], PackedKernel | DriverError] = {}
_modules: dict[tuple[int, str], int] = {}
_lock = threading.Lock()


def load(found: Found, device: int, guard: Callable[[], Any]) -> PackedKernel:
    """Return the kernel of an entry on a device: its cubin is read, checked and loaded at the first call.

    Parameters
    ----------
    found
        What :func:`.search.look_up` returned.
    device
        The index of the device.
    guard
        Makes a context in which that device is the current one.

    Raises
    ------
    DriverError
        If the driver refuses the cubin, now or at an earlier call.
    PackError
        If the cubin is missing or damaged.
    """
    entry = found.entry
    place = (device, entry.cubin, entry.name)
    known = _loaded.get(place)
    if known is None:
        with _lock:
            known = _loaded.get(place)
            if known is None:
                try:
                    with guard():
                        known = PackedKernel(found, _function(found, device))
                except DriverError as error:
                    known = error
                _loaded[place] = known
    if isinstance(known, DriverError):
        raise known
    return known


def _function(found: Found, device: int) -> int:
    """Load the module of a cubin, unless it is, and return the address of a function of it."""
    entry, index = found.entry, found.pack.index
    assert index is not None
    if entry.cluster != (1, 1, 1) or entry.tensor_maps:
        raise DriverError(f"{entry.name} needs clusters or tensor maps, which are not launched from packs yet")
    driver, module = _driver(), ctypes.c_void_p(_modules.get((device, entry.cubin)))
    if not module.value:
        image = read_cubin(found.pack.folder, index, entry.cubin)
        _check(driver.cuModuleLoadData(ctypes.byref(module), image), f"cubin of {entry.name} for {entry.arch}")
        _modules[device, entry.cubin] = module.value or 0
    function = ctypes.c_void_p()
    name = entry.name.encode()
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name), f"{entry.name} in its cubin")
    if entry.shared > _SHARED_BY_DEFAULT:
        code = driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, entry.shared)
        _check(code, f"{entry.shared:,} bytes of shared memory for {entry.name}")
    return function.value or 0


def forget() -> None:
    """Load again what is asked for next. Functions that were handed out stay what they are."""
    with _lock:
        _loaded.clear()
        _modules.clear()
