"""Cubins through the CUDA driver: loaded once per device, launched from Python, with ``ctypes`` alone."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import prod
from types import SimpleNamespace
from typing import Any

from ..launcher import PORTABLE_CLUSTER, Layout, MapError, TensorMap, encode, pack
from .elf import parameter_sizes
from .index import CudaEntry, Entry, PackError, read_cubin
from .search import Found

__all__ = ["DriverError", "PackedCuda", "PackedKernel", "load"]

_SHARED_BY_DEFAULT = 48 << 10
"""Bytes of shared memory that a block may have without asking (CUDA C++ Programming Guide, 16.8)."""

_MAX_DYNAMIC_SHARED = 8
"""``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``."""

_PREFER_SHARED = 1
"""``CU_FUNC_CACHE_PREFER_SHARED``."""

_NON_PORTABLE_CLUSTER = 14
"""``CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED``: asked for clusters of more than 8 blocks."""

_SCRATCH = (bytes(8), bytes(8))
"""Pointers to scratch memory behind the parameters of Triton's kernels, null for those here."""


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``: what it is, and a union of 64 bytes, at a multiple of 8."""

    _fields_ = [("id", ctypes.c_int), ("padding", ctypes.c_int), ("value", ctypes.c_uint * 16)]

    CLUSTER, SCHEDULING = 4, 5  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, ..._CLUSTER_SCHEDULING_POLICY_PREFERENCE
    SPREAD = 1


class _Config(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


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
    library.cuFuncSetCacheConfig.argtypes = [pointer, ctypes.c_int]
    library.cuCtxGetCurrent.argtypes = [ctypes.POINTER(pointer)]
    library.cuCtxSetCurrent.argtypes = [pointer]
    library.cuDeviceGet.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_int]
    library.cuDevicePrimaryCtxRetain.argtypes = [ctypes.POINTER(pointer), ctypes.c_int]
    library.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, ctypes.POINTER(pointer), pointer]
    library.cuLaunchKernelEx.argtypes = [ctypes.POINTER(_Config), pointer, ctypes.POINTER(pointer), pointer]
    return library


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise DriverError(f"{what}: CUDA error {code}: {(text.value or b'unknown').decode()}")


def _ensure_context(device: int) -> None:
    """Give a thread that has no context that of a device.

    A new thread has none, and no guard and no allocation that is served from a cache makes one.
    """
    driver, context, number = _driver(), ctypes.c_void_p(), ctypes.c_int()
    _check(driver.cuCtxGetCurrent(ctypes.byref(context)), "the context of this thread")
    if context.value is None:
        _check(driver.cuDeviceGet(ctypes.byref(number), device), f"device {device}")
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number), f"context of device {device}")
        _check(driver.cuCtxSetCurrent(context), f"context of device {device}")


def _launch(
    device: int, function: int, grid: Sequence[int], block: int, shared: int, stream: int, values: Sequence[bytes],
    cluster: tuple[int, int, int], what: str,
) -> None:  # fmt: skip
    """Launch a function on blocks of `grid`, of clusters if there are any, with the bytes of every parameter."""
    buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
    places = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
    x, y, z = (*grid, 1, 1)[:3]
    if not x * y * z:
        return
    _ensure_context(device)
    if cluster == (1, 1, 1):
        code = _driver().cuLaunchKernel(function, x, y, z, block, 1, 1, shared, stream, places, None)
    else:
        # As Triton does: a program of the grid is a cluster along the first axis, and clusters are spread.
        attributes = (_Attribute * 2)()
        attributes[0].id, attributes[1].id = _Attribute.CLUSTER, _Attribute.SCHEDULING
        attributes[0].value[:3] = cluster
        attributes[1].value[0] = _Attribute.SPREAD
        blocks = [size * blocks for size, blocks in zip((x, y, z), cluster)]
        number = ctypes.c_uint * 3
        config = _Config(number(*blocks), number(block, 1, 1), shared, stream, attributes, len(attributes))
        code = _driver().cuLaunchKernelEx(ctypes.byref(config), function, places, None)
    _check(code, f"launch of {what}")


class PackedKernel:
    """A function of a loaded cubin, in the place of a compiled kernel of Triton's.

    It has what a recording asks of one: `function`, `metadata` and `layout`.
    """

    def __init__(self, entry: Entry, function: int, device: int) -> None:
        self.entry, self.function, self.device = entry, function, device
        self.layout: Layout = entry.layout
        self.metadata = SimpleNamespace(
            name=entry.name, num_warps=entry.warps, shared=entry.shared, num_ctas=prod(entry.cluster)
        )

    def bytes_of(self, arguments: Mapping[str, Any]) -> list[bytes]:
        """Return the bytes of every parameter of a launch; tensors stand for their addresses.

        Raises
        ------
        DriverError
            If the driver refuses a tensor map.
        """
        found = []
        for parameter in self.layout.parameters:
            value = arguments[parameter.name]
            if isinstance(value, TensorMap):
                try:
                    found += [encode(value), *value.scalars()]
                except MapError as error:
                    raise DriverError(f"{self.entry.name}: {error}") from None
            elif parameter.is_pointer:
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
        entry, values = self.entry, (*parameters, *_SCRATCH)
        block, told = 32 * entry.warps, (entry.cluster, entry.name)
        _launch(self.device, self.function, grid, block, entry.shared, stream, values, *told)


class PackedCuda:
    """A function of a loaded cubin that NVRTC made of CUDA C++."""

    def __init__(self, entry: CudaEntry, function: int, device: int) -> None:
        self.entry, self.function, self.device = entry, function, device

    def launch(self, grid: int, block: int, stream: int, parameters: Sequence[bytes]) -> None:
        """Launch `grid` blocks of `block` threads with the bytes of every parameter, in the current context.

        Raises
        ------
        DriverError
            If the driver refuses the launch.
        """
        _launch(self.device, self.function, (grid,), block, 0, stream, parameters, (1, 1, 1), self.entry.name)


Loaded = PackedKernel | PackedCuda

_loaded: dict[tuple[Any, ...], Loaded | DriverError] = {}
"""By device, and by entry: several may share a cubin and differ in what they call its parameters."""

_modules: dict[tuple[int, str], int] = {}
_lock = threading.Lock()


def load(found: Found, device: int, guard: Callable[[], Any]) -> Any:
    """Return the kernel of an entry on a device: its cubin is read, checked and loaded at the first call.

    That is a :class:`PackedKernel`, or a :class:`PackedCuda` for a :class:`.index.CudaEntry`.

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
        If the cubin is missing or damaged, or takes other parameters than the entry has.
    """
    entry = found.entry
    place = (device, type(entry), found.pack.folder, entry.arch, entry.key, entry.cubin)
    known = _loaded.get(place)
    if known is None:
        with _lock:
            known = _loaded.get(place)
            if known is None:
                try:
                    with guard():
                        function = _function(found, device)
                    kind = PackedKernel if isinstance(entry, Entry) else PackedCuda
                    known = kind(entry, function, device)  # type: ignore[arg-type]
                except DriverError as error:
                    known = error
                _loaded[place] = known
    if isinstance(known, DriverError):
        raise known
    return known


def check_parameters(entry: Entry, cubin: bytes) -> None:
    """See that a cubin, as far as it says so, takes what a launch of the entry would hand to it.

    Raises
    ------
    PackError
        If it does not: the driver would read beyond what it is given.
    """
    sizes = [size for parameter in entry.layout.parameters for size in parameter.sizes]
    taken = parameter_sizes(cubin, entry.name)
    sizes += map(len, _SCRATCH)
    if taken is not None and taken != sizes:
        raise PackError(
            f"{entry.name} takes {len(taken)} parameters of {sum(taken)} bytes, not {len(sizes)} of {sum(sizes)}"
        )


def _function(found: Found, device: int) -> int:
    """Load the module of a cubin, unless it is, and return the address of a function of it."""
    entry, index = found.entry, found.pack.index
    assert index is not None
    launched = entry if isinstance(entry, Entry) else None  # what CUDA C++ declares has its size in the cubin
    driver, module = _driver(), ctypes.c_void_p(_modules.get((device, entry.cubin)))
    _ensure_context(device)
    image = read_cubin(found.pack.folder, index, entry.cubin)
    if launched is not None:
        check_parameters(launched, image)
    if not module.value:
        _check(driver.cuModuleLoadData(ctypes.byref(module), image), f"cubin of {entry.name} for {entry.arch}")
        _modules[device, entry.cubin] = module.value or 0
    function = ctypes.c_void_p()
    name = entry.name.encode()
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name), f"{entry.name} in its cubin")
    if launched is not None and prod(launched.cluster) > PORTABLE_CLUSTER:
        code = driver.cuFuncSetAttribute(function, _NON_PORTABLE_CLUSTER, 1)
        _check(code, f"clusters of {prod(launched.cluster)} blocks for {entry.name}")
    if launched is not None and launched.shared > _SHARED_BY_DEFAULT:
        code = driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, launched.shared)
        _check(code, f"{launched.shared:,} bytes of shared memory for {entry.name}")
        _check(driver.cuFuncSetCacheConfig(function, _PREFER_SHARED), f"shared memory for {entry.name}")  # as Triton
    return function.value or 0


def forget() -> None:
    """Load again what is asked for next. Functions that were handed out stay what they are."""
    with _lock:
        _loaded.clear()
        _modules.clear()
