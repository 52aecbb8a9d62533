"""CuPy's part, played on the host: arrays in host memory that say they are on ``cuda:0``, and kernels compiled by g++.

Installed as ``sys.modules["cupy"]`` by the lane's conftest, so that gpuconv's own host code (plans, structs, grids,
launches) runs as it is. It has what gpuconv uses of CuPy and no more. Every array lies between guard bands; results are
full of NaN before a kernel runs.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from host_compiler import Library, compiled, launcher, unit_text

GUARD = 4096
"""Bytes of the band on each side of an array; a multiple of every alignment."""

SENTINEL = 0x5A


class BFloat16:
    """The dtype that ml_dtypes gives CuPy; held as its bits."""

    name = "bfloat16"
    itemsize = 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16)

    def __hash__(self) -> int:
        return hash("bfloat16")


bfloat16 = BFloat16()


@dataclass
class Memory:
    """One allocation with its bands. What a kernel must leave alone is compared with `before`."""

    buffer: np.ndarray
    before: np.ndarray
    covered: np.ndarray
    written: bool

    def check(self, name: str) -> None:
        same = (self.buffer == self.before) | (self.covered if self.written else False)
        if not same.all():
            where = int(np.argmin(same)) - GUARD
            what = "wrote outside of its array" if self.written else "changed an input or the memory around it"
            raise AssertionError(f"{name}: a kernel {what}, {where} bytes from its beginning")


class ndarray:  # noqa: N801, CuPy's name
    """A view of host memory that says it is on a GPU."""

    __array_ufunc__ = None  # NumPy must not take it for one of its own
    device = SimpleNamespace(id=0)

    def __init__(self, host: np.ndarray, dtype: Any, memory: Memory) -> None:
        self.host, self.dtype, self.memory = host, dtype, memory
        self.data = SimpleNamespace(ptr=host.__array_interface__["data"][0], device_id=0)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.host.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self.host.strides

    @property
    def itemsize(self) -> int:
        return self.host.itemsize

    @property
    def ndim(self) -> int:
        return self.host.ndim

    @property
    def size(self) -> int:
        return self.host.size

    def __getitem__(self, key: Any) -> ndarray:
        if isinstance(key, ndarray):
            return _made(self.host[key.host], self.dtype)
        for part in key if isinstance(key, tuple) else (key,):
            if part is not None and part is not Ellipsis and type(part) is not slice and part != 0:
                raise NotImplementedError(f"gpuconv indexes arrays with None, 0, slices and arrays only, not {key!r}")
        return ndarray(self.host[key], self.dtype, self.memory)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.host[_host(key)] = _host(value)
        self.memory.before = self.memory.buffer.copy()

    def swapaxes(self, one: int, other: int) -> ndarray:
        return ndarray(self.host.swapaxes(one, other), self.dtype, self.memory)

    def squeeze(self, axis: int) -> ndarray:
        return ndarray(self.host.squeeze(axis), self.dtype, self.memory)

    def reshape(self, *shape: int) -> ndarray:
        host = self.host.reshape(shape)
        shared = np.shares_memory(host, self.memory.buffer)
        return ndarray(host, self.dtype, self.memory) if shared else _made(host, self.dtype)

    def any(self) -> ndarray:
        return _made(np.asarray(self.host.any()))

    def astype(self, dtype: Any) -> ndarray:
        return guarded(asnumpy(self), "bfloat16" if dtype == bfloat16 else np.dtype(dtype).name)

    def __truediv__(self, divisor: int) -> ndarray:
        return guarded(self.host / divisor, self.dtype.name)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")  # as CuPy


def _operator(name: str) -> Any:
    """Return an operator of integers and truth values: gpuconv computes with no others in CuPy's own kernels."""

    def operate(self: ndarray, other: Any) -> ndarray:
        if self.dtype.kind not in "ib":
            raise NotImplementedError(f"gpuconv computes with integers only, not {self.dtype}")
        return _made(getattr(self.host, name)(_host(other)))

    return operate


for _name in ("add", "radd", "sub", "rsub", "mul", "mod", "and", "eq", "ge", "lt"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _host(value: Any) -> Any:
    """Return what NumPy takes in place of an array, a sequence of them, or a number."""
    if isinstance(value, list | tuple):
        return type(value)(map(_host, value))
    return value.host if isinstance(value, ndarray) else value


def _made(host: np.ndarray, dtype: Any = None) -> ndarray:
    """Return a result of an operation, among NaN as every array that a kernel reads."""
    array = _place(host.shape, host.strides, host.dtype if dtype is None else dtype, 0xFF, False)
    array.host[...] = host
    array.memory.before = array.memory.buffer.copy()
    return array


int64, promote_types = np.int64, np.promote_types


def concatenate(arrays: Any, axis: int) -> ndarray:
    return _made(np.concatenate(_host(arrays), axis), arrays[0].dtype)


def stack(arrays: Any, axis: int) -> ndarray:
    return _made(np.stack(_host(arrays), axis), arrays[0].dtype)


def where(mask: ndarray, one: ndarray, other: ndarray) -> ndarray:
    return _made(np.where(mask.host, one.host, other.host), one.dtype)


def argmax(array: ndarray, axis: int) -> ndarray:
    return _made(np.asarray(np.argmax(array.host, axis)))


def argsort(array: ndarray) -> ndarray:
    return _made(np.argsort(array.host, kind="stable").astype(np.int64))


def arange(count: int) -> ndarray:
    return _made(np.arange(count))


def take_along_axis(array: ndarray, places: ndarray, axis: int) -> ndarray:
    return _made(np.take_along_axis(array.host, places.host, axis), array.dtype)


def dtype(name: str) -> Any:
    return bfloat16 if name == "bfloat16" else np.dtype(name)


def _host_dtype(dtype: Any) -> np.dtype:
    return np.dtype(np.uint16) if dtype == bfloat16 else np.dtype(dtype)


def _place(shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, fill: int, written: bool) -> ndarray:
    held = _host_dtype(dtype)
    steps = [] if 0 in shape else [(size - 1) * step for size, step in zip(shape, strides)]
    extent = 0 if 0 in shape else held.itemsize + sum(map(abs, steps))
    first = GUARD - sum(step for step in steps if step < 0)
    raw = np.full(extent + 2 * GUARD + 64, fill, np.uint8)
    shift = -raw.__array_interface__["data"][0] % 64
    buffer = raw[shift : shift + extent + 2 * GUARD]

    def view(flat: np.ndarray) -> np.ndarray:
        return np.ndarray(shape, held, flat, first, strides)

    covered = np.zeros(len(buffer), np.uint8)
    if extent:
        view(covered)[...] = np.frombuffer(b"\xff" * held.itemsize, held)[0]
    memory = Memory(buffer, buffer, covered != 0, written)
    ALLOCATED.append(memory)
    return ndarray(view(buffer), dtype, memory)


ALLOCATED: list[Memory] = []
"""Every allocation since the harness last forgot them."""


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """Allocate a row-major array full of NaN (all bits set), between bands of a sentinel."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    held = _host_dtype(dtype)
    strides = np.empty(shape, held).strides
    array = _place(shape, strides, dtype if dtype == bfloat16 else held, SENTINEL, True)
    array.host.view(np.uint8 if array.size == 0 else held)[...] = 0
    array.memory.buffer[array.memory.covered] = 0xFF
    array.memory.before = array.memory.buffer.copy()
    return array


def moveaxis(array: ndarray, source: int, destination: int) -> ndarray:
    return ndarray(np.moveaxis(array.host, source, destination), array.dtype, array.memory)


def guarded(values: np.ndarray, dtype: str) -> ndarray:
    """Copy host values, strides included, to where everything around and between the elements is NaN.

    bfloat16 is given as float32 and rounded to nearest even.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        host = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
        unit = values.itemsize
    else:
        host, unit = values.astype(dtype, order="K", copy=False), values.itemsize
    itemsize = host.itemsize
    strides = tuple(step // unit * itemsize for step in values.strides)
    array = _place(values.shape, strides, bfloat16 if dtype == "bfloat16" else np.dtype(dtype), 0xFF, False)
    array.host[...] = host
    array.memory.before = array.memory.buffer.copy()
    return array


def asnumpy(array: ndarray) -> np.ndarray:
    """Return a copy on the host; bfloat16 becomes float32."""
    if array.dtype == bfloat16:
        return (array.host.astype(np.uint32) << 16).view(np.float32)
    return array.host.copy()


@dataclass
class Machine:
    """How launches run, and a record of them. The harness changes it; one for the process."""

    orders: tuple[int, int] = (0, 0)
    seed: int = 1
    mode: str = "library"
    capability: str = "90"
    mutate: Any = None
    units: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    record: list[tuple[str, int, int]] = field(default_factory=list)


MACHINE = Machine()

_libraries: dict[tuple[str, tuple[str, ...]], Library] = {}


class _Function:
    def __init__(self, code: str, kernel: str) -> None:
        self.code, self.kernel = code, kernel

    def _unit(self) -> tuple[str, ...]:
        """Return the kernels that are compiled together with this one: what the harness announced."""
        together = (unit for unit in MACHINE.units.get(self.code, []) if self.kernel in unit)
        return next(together, (self.kernel,))

    def __call__(self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
        MACHINE.record.append((self.kernel, grid[0], block[0]))
        if MACHINE.mode != "library":
            self._in_program(grid[0], block[0], args)
            return
        unit = self._unit()
        key = (self.code, unit)
        if key not in _libraries:
            _libraries[key] = Library(self.code, unit)
        held: list[np.ndarray] = []
        for argument in args:
            value = np.asarray(argument.data.ptr, np.uintp) if isinstance(argument, ndarray) else argument
            if not isinstance(value, np.ndarray) or value.size != 1:
                raise TypeError(f"{self.kernel}: an argument is neither an array nor one host element: {argument!r}")
            held.append(value)
        addresses = [value.__array_interface__["data"][0] for value in held]
        problem = _libraries[key].launch(self.kernel, grid[0], block[0], addresses, MACHINE.orders, MACHINE.seed)
        if problem:
            raise RuntimeError(f"{self.kernel}: {problem}")

    def _in_program(self, grid: int, block: int, args: tuple[Any, ...]) -> None:
        """Run a launch in a program of its own, where every array lies alone in memory."""
        prefix = launcher(MACHINE.mode)
        if prefix is None:
            pytest.skip(f"not run: g++ of this host has no working sanitizer of kind {MACHINE.mode!r}")
        program = compiled(unit_text(self.code, (self.kernel,)), MACHINE.mode)
        parts = [struct.pack("<7q", 0, grid, block, *MACHINE.orders, MACHINE.seed, len(args))]
        views = []
        for argument in args:
            if not isinstance(argument, ndarray):
                value = np.asarray(argument).tobytes()
                parts += [struct.pack("<3q", 0, len(value), 0), value]
                continue
            view = _extent(argument)
            views.append(view)
            parts += [struct.pack("<3q", 1, len(view), argument.data.ptr % 64), view.tobytes()]
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"".join(parts))
            file.flush()
            done = _run([*prefix, str(program), file.name])
            if done.returncode != 0:
                raise RuntimeError(f"{self.kernel} ({MACHINE.mode}): exit status {done.returncode}\n{done.stderr}")
            with open(file.name, "rb") as result:
                for view in views:
                    view[:] = np.frombuffer(result.read(len(view)), np.uint8)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    env = {**os.environ, **options}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def _extent(array: ndarray) -> np.ndarray:
    """Return the bytes from the first element of an array to its last."""
    if array.size == 0:
        return np.zeros(0, np.uint8)
    if min(array.strides) < 0:
        raise NotImplementedError("a program for a sanitizer gets an array by its first byte: no negative strides")
    extent = array.itemsize + sum((size - 1) * step for size, step in zip(array.shape, array.strides))
    start = array.data.ptr - array.memory.buffer.__array_interface__["data"][0]
    return array.memory.buffer[start : start + extent]


class RawModule:
    """A source text of which single kernels are compiled when they are first launched."""

    def __init__(self, *, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]) -> None:
        if "-std=c++17" not in options:
            raise ValueError("the sources are C++17")
        self.code = MACHINE.mutate(code) if MACHINE.mutate else code
        self.names = name_expressions

    def get_function(self, name: str) -> _Function:
        if name not in self.names:
            raise ValueError(f"{name} is not among the name expressions {self.names}")
        return _Function(self.code, name)


class _Scope:
    """A device or a stream: entered and left, in the right order, which `entered` shows to tests."""

    entered: ClassVar[list[_Scope]] = []

    def __init__(self, number: int = 0) -> None:
        self.number = self.ptr = self.id = number

    @property
    def compute_capability(self) -> str:
        return MACHINE.capability

    def __enter__(self) -> _Scope:
        _Scope.entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert _Scope.entered.pop() is self


cuda = SimpleNamespace(
    Device=_Scope,
    Stream=SimpleNamespace(from_external=lambda stream: _Scope(stream.__cuda_stream__()[1])),
    get_current_stream=_Scope,
    runtime=SimpleNamespace(driverGetVersion=lambda: 13000, getDeviceCount=lambda: 1),
)

random = SimpleNamespace(
    random_sample=lambda shape, dtype: guarded(np.random.random_sample(shape), np.dtype(dtype).name),
    randint=lambda low, high, shape: guarded(np.random.randint(low, high, shape), "int64"),
)

__version__ = "14.0.0+host"


def install() -> None:
    """Become ``cupy`` for this process."""
    sys.modules["cupy"] = sys.modules[__name__]
