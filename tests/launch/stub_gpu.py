"""Stands in for a GPU: a driver that remembers launches, and CPU tensors that gpuconv takes for CUDA ones.

Everything between the public functions and the driver's interface is the real thing: dispatcher, solvers, Triton's
compiler, its launchers, and ours. What only a GPU can show stays open: that kernels compute the right values, that
torch's CUDA allocator and streams behave as its CPU stand-ins here, and what a real capture refuses.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from gpuconv import arrays
from gpuconv.backends.triton import common as triton_common
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.launcher import native
from gpuconv.ops import tiers

SOURCE = Path(__file__).with_name("stub_libcuda.c")
BUILD = SOURCE.parents[2] / "build" / "stub-libcuda"


class _Launch(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_void_p), ("stream", ctypes.c_void_p), ("context", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("attributes", ctypes.c_uint), ("cluster", ctypes.c_uint * 3), ("scheduling", ctypes.c_uint),
        ("bytes", ctypes.c_int), ("arguments", ctypes.c_ubyte * 4096),
    ]  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One launch, as the driver was asked for it. `arguments` holds the bytes of each."""

    kernel: str
    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    attributes: int
    cluster: tuple[int, ...]
    scheduling: int
    context: int
    arguments: tuple[bytes, ...]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Build the stub and load it as ``libcuda.so.1``: whoever opens that name in this process gets this one."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / "libcuda.so.1"
    if not path.exists() or path.stat().st_mtime < SOURCE.stat().st_mtime:
        made = BUILD / f"{os.getpid()}.so"
        command = [os.environ.get("CC", "gcc"), "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*command, str(SOURCE), "-o", str(made)], check=True)
        os.replace(made, path)
    os.environ["TRITON_LIBCUDA_PATH"] = str(BUILD)
    stub = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    stub.stub_launch.restype = ctypes.POINTER(_Launch)
    stub.stub_name.restype, stub.stub_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    stub.stub_context.restype = ctypes.c_void_p
    stub.stub_declare.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    return stub


def parameter_sizes(ptx: str) -> list[int]:
    """Return the bytes of every parameter of the entry point of `ptx`, as the compiler declared them."""
    head = ptx.partition(".entry")[2].partition("{")[0].partition(")")[0]
    sizes = []
    for line in head.partition("(")[2].split(","):
        words = line.split()
        width = next(word for word in words if re.fullmatch(r"\.[busf]\d+", word))
        count = re.search(r"\[(\d+)\]", line)
        sizes.append(int(width[2:]) // 8 * (int(count[1]) if count else 1))
    return sizes


class StubGpu:
    """The stub driver of this process, and what was asked of it since :meth:`reset`."""

    def __init__(self) -> None:
        self.library = library()
        self.sizes: dict[int, list[int]] = {}
        self.streams = threading.local()
        self.device = 0
        self.others = self.library.stub_others
        self.fail = self.library.stub_fail
        self.context = self.library.stub_context

    def stream(self, device: int) -> int:
        """Return the stream of this thread, which `stream.value` sets."""
        return getattr(self.streams, "value", 0x5700)

    def reset(self) -> None:
        self.library.stub_reset()

    def declare(self, module: int, function: int, name: str, group: dict[str, str], hash: str) -> None:
        """Tell the stub what the compiler wrote of a function that was loaded."""
        path = next(path for file, path in group.items() if file.endswith(".ptx"))
        self.declare_sizes(function, parameter_sizes(Path(path).read_text()))

    def declare_sizes(self, function: int, sizes: list[int]) -> None:
        """Tell the stub the bytes of every parameter of a function that was loaded."""
        self.sizes[function] = sizes
        self.library.stub_declare(function, len(sizes), (ctypes.c_int * len(sizes))(*sizes))

    def launches(self) -> list[Launch]:
        return [self._launch(self.library.stub_launch(i).contents) for i in range(self.library.stub_launches())]

    def _launch(self, raw: _Launch) -> Launch:
        data, arguments = bytes(raw.arguments)[: raw.bytes], []
        for size in self.sizes[raw.function]:
            arguments.append(data[:size])
            data = data[size:]
        assert not data
        return Launch(
            self.library.stub_name(raw.function).decode(), raw.function, tuple(raw.grid), tuple(raw.block), raw.shared,
            raw.stream or 0, raw.attributes, tuple(raw.cluster), raw.scheduling, raw.context, tuple(arguments),
        )  # fmt: skip

    @contextmanager
    def on_device(self, problem: Any = None) -> Iterator[None]:
        """Do what the device guard of a problem does."""
        before, self.device = self.device, int(problem.device.partition(":")[2]) if problem else 0
        self.library.stub_set_device(self.device)
        try:
            yield
        finally:
            self.device = before
            self.library.stub_set_device(before)


def _driver(gpu: StubGpu) -> Any:
    from triton.backends.nvidia import driver as nvidia

    driver = nvidia.CudaDriver.__new__(nvidia.CudaDriver)
    driver.utils, driver.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
    driver.get_device_capability = lambda device=0: (9, 0)
    driver.get_current_stream = gpu.stream
    driver.get_current_device = lambda: gpu.device
    driver.set_current_device = lambda device: None
    return driver


@contextmanager
def stub_gpu(device: str = "cuda:0") -> Iterator[StubGpu]:
    """Take CPU tensors for tensors on `device` inside the ``with`` block."""
    gpu = StubGpu()
    from triton import knobs
    from triton.runtime import driver

    kind = type(arrays.TORCH)
    allocate = kind.empty
    library().stub_set_device(0)
    before = driver._active
    hook = knobs.runtime.kernel_load_end_hook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "device", lambda self, array: device)
        patch.setattr(kind, "empty", lambda self, shape, dtype, _, layout: allocate(self, shape, dtype, "cpu", layout))
        patch.setattr(tiers, "on_gpu", lambda tensor: True)
        patch.setattr(triton_common, "_device_guard", gpu.on_device)
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", gpu.stream, raising=False)
        patch.setattr(torch.cuda, "current_device", lambda: gpu.device)
        driver.set_active(_driver(gpu))
        hook.add(gpu.declare)
        CACHE.clear()
        gpu.reset()
        try:
            yield gpu
        finally:
            CACHE.clear()
            _forget_kernels()
            gc.collect()  # kernels unload their modules through the driver that is active
            hook.remove(gpu.declare)
            driver._active = before


def _forget_kernels() -> None:
    """Drop what Triton keeps for the stub's devices: functions of it mean nothing elsewhere."""
    from triton.runtime.jit import JITFunction

    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith("gpuconv.kernels.tl.") else ():
            if isinstance(value, JITFunction):
                value.device_caches.clear()


@contextmanager
def launcher(name: str) -> Iterator[None]:
    """Force a launcher (``GPUCONV_LAUNCHER``) inside the ``with`` block; ``"auto"`` forces none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUCONV_LAUNCHER", name)
        yield


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let the build of the C launcher fail, as on a host without a compiler."""
    from triton.runtime import build

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Failed to find C compiler.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_module_from_src", fails)
        native._built.cache_clear()
        try:
            yield
        finally:
            native._built.cache_clear()
