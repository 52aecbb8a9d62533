"""What the solvers of the CuPy backend share: sources compiled once, arrays shared by DLPack, and the launch.

CuPy is imported when a plan is made, never before: who computes with torch alone does not pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS, ArrayKind, with_memory
from ...costs import warn_once
from ...packs import (
    CudaEntry,
    DriverError,
    Found,
    PackedCuda,
    PackError,
    any_packs,
    load,
    look_up_cuda,
    note,
    packs,
    refuse_to_compile,
)
from ...problem import Call, Problem, itemsize
from ..base import Plan, Solver

__all__ = [
    "OPTIONS",
    "CupySolver",
    "Launch",
    "Results",
    "Sort",
    "Strides",
    "Workspace",
    "capability",
    "device_index",
]

OPTIONS = ("-std=c++17", "-I")
"""Options of the compiler.

CuPy puts ``-ftz=true`` behind the options of a module, which would flush subnormal float32 numbers to zero, in
comparisons as well; the last such option wins. So the last option here is one that takes the next word as its value:
the directory ``-ftz=true``, in which the compiler looks for headers that no source includes.
"""

_MOST_BLOCKS = 2**31 - 1

Results = dict[str, tuple[tuple[int, ...], str, str]]
"""Shape, dtype and memory format of each array that a call returns, by name and in the order of the result."""

Workspace = dict[str, tuple[str, int]]
"""Dtype and number of elements of each array that a plan needs beside inputs and results, by name."""

Strides = Mapping[str, Sequence[int]]
"""Strides in elements of each input and result of a call, by name. What a call does not have is not in it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel: `grid` blocks of `block` threads.

    `source` names a file of :mod:`gpuconv.kernels.cu`, `kernel` is the C++ name of a kernel in it with its template
    arguments. `arrays` names the pointer arguments in order (None, or a name that the call does not have: a null
    pointer); `params` is the struct that comes after them, as a NumPy record
    (or an array of one) with the alignment of C++.
    """

    source: str
    kernel: str
    grid: int
    block: int
    arrays: tuple[str | None, ...]
    params: np.void | np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Sort:
    """A step between launches: the places of the first `count` elements of an array, in the order of its values.

    Launches that come after it know the places, 64-bit integers, by the name `into`; equal elements keep their order.
    """

    array: str
    count: int
    into: str


def device_index(device: str) -> int:
    """Return the number in ``"cuda:1"``; a bare ``"cuda"`` is 0."""
    return int(device.partition(":")[2] or 0)


def capability(device: str) -> int:
    """Return the compute capability of a device as one number, 90 for sm_90."""
    import cupy

    return int(cupy.cuda.Device(device_index(device)).compute_capability)


class _Kernel:
    """A kernel to call with grid, block and arguments: from a pack where one has it, else compiled by CuPy."""

    def __init__(self, source: str, kernel: str) -> None:
        self.source, self.kernel = source, kernel
        self._lock = Lock()
        self._compiled: Any = None
        self._packed: tuple[Any, dict[int, PackedCuda | None]] = (None, {})
        """The packs that were asked, and what they have for each device."""

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: Sequence[Any]) -> None:
        packed = self._from_pack() if any_packs(kind=CudaEntry) else None
        note(packed is not None)
        if packed is None:
            self._from_source()(grid, block, arguments)
            return
        import cupy

        stream = cupy.cuda.get_current_stream().ptr
        packed.launch(grid[0], block[0], stream, [_bytes_of(argument) for argument in arguments])

    def _from_pack(self) -> PackedCuda | None:
        """Return what packs have for the current device, and the driver takes."""
        import cupy

        device = cupy.cuda.Device()
        asked, known = self._packed
        if asked is not packs():
            self._packed = (packs(), known := {})
        if device.id not in known:
            from ...kernels.cu import source as text_of

            found = look_up_cuda(text_of(self.source), self.kernel, OPTIONS, divmod(int(device.compute_capability), 10))
            known[device.id] = next(self._loaded(found, device), None)
        return known[device.id]

    def _loaded(self, found: Sequence[Found], device: Any) -> Iterator[PackedCuda]:
        for each in found:
            try:
                yield load(each, device.id, lambda: device)
            except (DriverError, PackError) as error:
                folder = each.pack.folder
                warn_once(f"{folder} {self.kernel}", "pack %s: %s; CuPy compiles such kernels", folder, error)

    def _from_source(self) -> Any:
        with self._lock:
            if self._compiled is None:
                refuse_to_compile(f"{self.source}.cu: {self.kernel}")
                import cupy

                from ...kernels.cu import source as text_of

                module = cupy.RawModule(code=text_of(self.source), options=OPTIONS, name_expressions=(self.kernel,))
                self._compiled = module.get_function(self.kernel)
            return self._compiled


def _bytes_of(argument: Any) -> bytes:
    """Return what a kernel gets: the address of a CuPy array, or the value of a host array of one element."""
    if isinstance(argument, np.ndarray):
        return argument.tobytes()
    return int(argument.data.ptr).to_bytes(8, "little")


class _Kernels:
    """The kernels of a process by source and name; each is compiled by one thread, once for each device by CuPy."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[tuple[str, str], Any] = {}

    def find(self, source: str, kernel: str) -> Any:
        """Return the kernel as something to call with grid, block and arguments."""
        key = (source, kernel)
        found = self._found.get(key)
        if found is not None:
            return found
        with self._lock:
            return self._found.setdefault(key, _Kernel(source, kernel))

    def clear(self) -> None:
        """Forget every kernel (for tests, which change sources)."""
        with self._lock:
            self._found.clear()


KERNELS = _Kernels()
"""The kernels of this process. CuPy keeps the binaries on disk below it."""


@contextmanager
def _device_and_stream(kind: ArrayKind, device: str) -> Iterator[None]:
    """Make CuPy launch on `device`, and where arrays are torch's, on torch's current stream of that device."""
    import cupy

    index = device_index(device)
    if kind.name != "torch":
        with cupy.cuda.Device(index):
            yield
        return
    import torch

    # torch exports tensors of its current device only.
    stream = cupy.cuda.Stream.from_external(torch.cuda.current_stream(index))
    with torch.cuda.device(index), cupy.cuda.Device(index), stream:
        yield


def _shared(kind: ArrayKind, array: Any) -> Any:
    """Show an array as CuPy's, in the same memory. Only its address counts: bfloat16 goes as int16."""
    if array is None or kind.name != "torch":
        return array
    import cupy
    import torch

    array = with_memory(array)
    return cupy.from_dlpack(array.view(torch.int16) if array.dtype is torch.bfloat16 else array)


def _sorted(keys: Any) -> Any:
    """Return the places of keys in their order. CuPy's sort is stable."""
    import cupy

    return cupy.argsort(keys)


_NULL = np.zeros((), np.uintp)
"""A null pointer as an argument of a kernel. CuPy passes host arrays of one element by value, structs as well."""


class CupySolver(Solver):
    """A solver that launches CUDA C++ kernels through CuPy, on CuPy's arrays or torch's."""

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate from 20 TFLOP/s and 1.5 TB/s: a guess until a GPU run fits a cost model."""
        return 5 + max(problem.flops / 20e6, problem.min_bytes / 1.5e6)

    def results(self, problem: Any) -> Results:
        """Return what a call of `problem` returns."""
        raise NotImplementedError

    def workspace(self, problem: Any, config: Mapping[str, Any]) -> Workspace:
        """Return the scratch arrays that `config` needs."""
        return {}

    def configuration(self, problem: Any) -> dict[str, Any]:
        """Return the tile and the other choices of a plan, which ``explain`` shows."""
        return {}

    def launches(self, problem: Any, strides: Strides, config: Mapping[str, Any]) -> Sequence[Launch | Sort]:
        """Return the launches that compute `problem`, in order; one with a grid of 0 blocks is left out."""
        raise NotImplementedError

    def instantiations(self) -> list[tuple[str, str]]:
        """Return (source, kernel) of every kernel that :meth:`launches` can ask for."""
        raise NotImplementedError

    def plan(self, problem: Problem) -> Plan:
        config = self.configuration(problem)
        scratch = self.workspace(problem, config)
        return Plan(self, problem, sum(itemsize(dtype) * elements for dtype, elements in scratch.values()), config)

    def run(self, plan: Plan, call: Call) -> Any:
        problem, kind = plan.problem, call.kind
        with _device_and_stream(kind, problem.device):
            results = {
                name: kind.empty(shape, dtype, problem.device, layout)
                for name, (shape, dtype, layout) in self.results(problem).items()
            }
            if any(0 not in kind.shape(array) for array in results.values()):
                self._launch(plan, call, results)
        found = tuple(results.values())
        return found[0] if len(found) == 1 else found

    def _launch(self, plan: Plan, call: Call, results: Mapping[str, Any]) -> None:
        kind, problem = call.kind, plan.problem
        given = {name: array for name, array in {**call.arrays, **results}.items() if array is not None}
        memo = call.prepared.memo if call.prepared else {}
        if "launches" not in memo:
            strides = {name: kind.strides(array) for name, array in given.items()}
            memo["launches"] = self.launches(problem, strides, plan.config)
        scratch = {
            name: kind.empty((elements,), dtype, problem.device, CONTIGUOUS)
            for name, (dtype, elements) in self.workspace(problem, plan.config).items()
        }
        shared = {name: _shared(kind, array) for name, array in (given | scratch).items()}
        for launch in memo["launches"]:
            if isinstance(launch, Sort):
                shared[launch.into] = _sorted(shared[launch.array][: launch.count])
                continue
            if launch.grid == 0:
                continue
            if launch.grid > _MOST_BLOCKS:
                raise RuntimeError(
                    f"{problem.op}: {launch.kernel} would need {launch.grid} blocks; a grid has {_MOST_BLOCKS} at most"
                )
            pointers = [_NULL if name is None else shared.get(name, _NULL) for name in launch.arrays]
            kernel = KERNELS.find(launch.source, launch.kernel)
            kernel((launch.grid,), (launch.block,), (*pointers, np.asarray(launch.params)))
