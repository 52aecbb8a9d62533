"""What a first call allocated and launched, and how to do the same again.

Imports torch. A recording is trusted only where it saw everything: allocations, views and kernels. Anything else that
runs on tensors, or a pointer of unknown origin, and calls of that kind go the ordinary way each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..config import logger
from .layout import Layout, Parameter, layout_of, pack
from .maps import MapError, TensorMap, encode, replace_address
from .native import native, native_if_built

__all__ = ["Recording", "Replay", "active_recording", "hooked", "record"]

Tensor = Any
Guard = Callable[[], AbstractContextManager[object]]

Replay = Callable[[Sequence[int]], Any]
"""Repeats a call on the addresses of its arrays, in order (0 for None): the result, or None where it cannot now."""

_recording: ContextVar[Recording | None] = ContextVar("gpuconv_recording", default=None)

_ALLOCATIONS = (torch.ops.aten.empty, torch.ops.aten.empty_strided)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """One launch: the kernel, its grid, the arguments by name, and where its addresses come from: (slot, offset)."""

    compiled: Any
    layout: Layout
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    pointers: Mapping[str, tuple[int, int]]


class Recording(TorchDispatchMode):
    """Records what runs inside its ``with`` block on `arrays`, which it stands for by aliases of its own.

    An array may come twice in a call, and not in the next: aliases tell which of its places a pointer came from.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping what follows, which imports its compiler, and Triton, at the first allocation."""
        return False

    def __init__(self, arrays: Mapping[str, Tensor | None]) -> None:
        super().__init__()
        self.arrays = {name: None if array is None else array.detach() for name, array in arrays.items()}
        self.allocated: list[Tensor] = []
        self.kernels: list[_Kernel] = []
        self.refusal: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.allocated.append(result)
        elif not func.is_view:
            self.refuse(f"{func} runs beside the kernels")
        return result

    def __enter__(self) -> Recording:
        self._token = _recording.set(self)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        _recording.reset(self._token)

    def refuse(self, reason: str) -> None:
        """Say why calls of this kind cannot be repeated."""
        self.refusal = self.refusal or reason

    def add(self, compiled: Any, grid: Sequence[int], arguments: Mapping[str, Any]) -> None:
        """Record a launch of `compiled`."""
        layout = layout_of(compiled, arguments)
        if layout.refusal is not None:
            self.refuse(layout.refusal)
            return
        pointers = {p.name: self._origin(arguments[p.name]) for p in layout.parameters if p.has_address}
        x, y, z = (*grid, 1, 1)[:3]
        scalars = {
            name: _without_memory(value) for name, value in arguments.items() if not isinstance(value, torch.Tensor)
        }
        self.kernels.append(_Kernel(compiled, layout, (x, y, z), scalars, pointers))

    def _origin(self, tensor: Tensor | TensorMap) -> tuple[int, int]:
        """Return the slot of the array or allocation that `tensor` is or lies in, and the bytes in front of it."""
        if isinstance(tensor, TensorMap):
            slot, offset = self._origin(tensor.tensor)
            return slot, offset + tensor.offset * tensor.type.itemsize
        for slot, array in enumerate(self.arrays.values()):
            if array is tensor:
                return slot, 0
        storage = tensor.untyped_storage().data_ptr()
        for place, allocation in enumerate(self.allocated):
            if storage and allocation.untyped_storage().data_ptr() == storage:
                return len(self.arrays) + place, tensor.data_ptr() - allocation.data_ptr()
        self.refuse("a pointer is neither an array of the call nor allocated by it")
        return 0, 0

    def result(self, array: Tensor) -> int:
        """Return which allocation is `array`, a result of the call."""
        for place, allocation in enumerate(self.allocated):
            same = array.data_ptr() == allocation.data_ptr() != 0
            if same and array.shape == allocation.shape and array.stride() == allocation.stride():
                return place
        self.refuse("a result is none of the allocations")
        return 0


@dataclass(frozen=True, slots=True)
class _Address:
    """Stands for a tensor without keeping its memory."""

    address: int

    def data_ptr(self) -> int:
        return self.address


def _without_memory(value: Any) -> Any:
    return replace(value, tensor=_Address(value.tensor.data_ptr())) if isinstance(value, TensorMap) else value


def active_recording() -> Recording | None:
    """Return the recording that this call belongs to, if there is one."""
    return _recording.get()


_NO_HOOKS = SimpleNamespace(launch_enter_hook=SimpleNamespace(calls=()), launch_exit_hook=SimpleNamespace(calls=()))


def _runtime() -> Any:
    """Return Triton's settings of the runtime; where nobody has imported it, such without hooks."""
    triton = sys.modules.get("triton")
    return _NO_HOOKS if triton is None else triton.knobs.runtime


def hooked() -> bool:
    """Tell whether somebody wants to see launches (profilers do), which Triton's own path serves."""
    runtime = _runtime()
    hooks = (runtime.launch_enter_hook, runtime.launch_exit_hook)
    return any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def _scalars(kernel: _Kernel) -> dict[str, bytes]:
    return {p.name: pack(p.type, kernel.arguments[p.name]) for p in kernel.layout.parameters if not p.has_address}


def _described(kernel: _Kernel, parameter: Parameter, scalars: Mapping[str, bytes]) -> list[Any]:
    """Return what the extension takes for a parameter: bytes, or (slot, offset, aligned or the bytes of a map)."""
    if parameter.name in scalars:
        return [scalars[parameter.name]]
    origin = kernel.pointers[parameter.name]
    if not parameter.is_map:
        return [(*origin, parameter.aligned)]
    map = kernel.arguments[parameter.name]
    return [(*origin, encode(map)), *map.scalars()]


def _sender(kernels: Sequence[_Kernel], slots: int, device: int, guard: Guard) -> Callable[..., bool]:
    """Return what launches `kernels`: called with the stream and the address of every slot.

    It returns False, and launches nothing, where an address is not aligned as a kernel expects.
    """
    packed = any(_is_packed(kernel) for kernel in kernels)  # they ask for no compiler, and get none
    plain = all(kernel.layout.plain for kernel in kernels)
    module = None if not plain else native_if_built() if packed else native()
    if module is None:
        return _from_python(kernels, guard)
    described = []
    for kernel in kernels:
        scalars = _scalars(kernel)
        parameters = [taken for p in kernel.layout.parameters for taken in _described(kernel, p, scalars)]
        parameters += [bytes(8)] * 2  # no scratch memory
        compiled, metadata = kernel.compiled, kernel.compiled.metadata
        sizes = (32 * metadata.num_warps, metadata.shared, getattr(metadata, "num_ctas", 1))
        described.append((compiled.function, kernel.grid, *sizes, tuple(parameters)))
    plan = module.make(tuple(kernel.compiled for kernel in kernels), device, slots, tuple(described))
    launch = module.launch

    def send(stream: int, *addresses: int) -> bool:
        done: bool = launch(plan, stream, *addresses)
        return done

    return send


def _is_packed(kernel: _Kernel) -> bool:
    return getattr(kernel.compiled, "layout", None) is kernel.layout


_Step = Callable[[int, Sequence[int]], None]
"""Launches one kernel on a stream, given the address of every slot."""


def _through_triton(kernel: _Kernel) -> _Step:
    """Return what launches through the launcher that Triton made for a kernel."""
    names, compiled, grid = list(kernel.compiled.src.signature), kernel.compiled, kernel.grid
    template = [kernel.arguments.get(name) for name in names]
    places = [(names.index(name), *origin) for name, origin in kernel.pointers.items()]
    maps = {place: map for place, map in enumerate(template) if isinstance(map, TensorMap)}

    def launch(stream: int, addresses: Sequence[int]) -> None:
        arguments = template.copy()
        for place, slot, offset in places:
            address = addresses[slot] + offset
            arguments[place] = _descriptor(maps[place], address) if place in maps else address
        launched = (*grid, stream, compiled.function, compiled.packed_metadata)
        compiled.run(*launched, None, None, None, *arguments)

    return launch


def _descriptor(map: TensorMap, address: int) -> Any:
    """Return what Triton's launcher reads of a tensor descriptor, of a tensor at an address."""
    return SimpleNamespace(
        base=SimpleNamespace(data_ptr=lambda: address), shape=list(map.shape), strides=list(map.strides),
        padding="zero", round_f32_to_tf32=map.type.dtype == "tf32", pixel_box_lower_corner=list(map.lower),
        pixel_box_upper_corner=list(map.upper), element_strides=[1, *map.steps, 1] if map.steps else None,
    )  # fmt: skip


def _through_driver(kernel: _Kernel) -> _Step:
    """Return what launches a kernel from a pack."""
    compiled, grid = kernel.compiled, kernel.grid
    template: list[bytes] = []
    places = []
    for p in kernel.layout.parameters:
        if p.has_address:
            places.append((len(template), p.is_map, *kernel.pointers[p.name]))
        given = kernel.arguments.get(p.name)
        if isinstance(given, TensorMap):
            template += [encode(given), *given.scalars()]
        else:
            template.append(bytes(8) if given is None else pack(p.type, given))

    def launch(stream: int, addresses: Sequence[int]) -> None:
        parameters = template.copy()
        for place, is_map, slot, offset in places:
            address = addresses[slot] + offset
            here = parameters[place]
            parameters[place] = replace_address(here, address) if is_map else address.to_bytes(8, "little")
        compiled.launch(grid, stream, parameters)

    return launch


def _from_python(kernels: Sequence[_Kernel], guard: Guard) -> Callable[..., bool]:
    """Return what launches `kernels` without the extension."""
    for kernel in kernels:
        _scalars(kernel)  # raises OverflowError where the native launcher would
    steps = [_through_driver(kernel) if _is_packed(kernel) else _through_triton(kernel) for kernel in kernels]
    aligned = [
        kernel.pointers[p.name] for kernel in kernels for p in kernel.layout.parameters if p.has_address and p.aligned
    ]

    def send(stream: int, *addresses: int) -> bool:
        if any((addresses[slot] + offset) % 16 for slot, offset in aligned):
            return False
        with guard():
            for step in steps:
                step(stream, addresses)
        return True

    return send


def _replay(recording: Recording, results: Sequence[int], one: bool, index: int, guard: Guard) -> Replay:
    """Return the replay of a recording; `results` are allocations, handed back as a tuple unless there is `one`."""
    device = recording.allocated[0].device
    send = _sender(recording.kernels, len(recording.arrays) + len(recording.allocated), index, guard)
    specs = [(tuple(a.shape), a.stride(), a.dtype) for a in recording.allocated]
    runtime, stream_of, allocate = _runtime(), torch._C._cuda_getCurrentRawStream, torch.empty_strided

    def replay(addresses: Sequence[int]) -> Any:
        try:
            if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:
                return None
        except AttributeError:  # a function, or None, in the place of a chain of hooks
            if hooked():
                return None
        allocated = [allocate(shape, strides, dtype=dtype, device=device) for shape, strides, dtype in specs]
        if not send(stream_of(index), *addresses, *[array.data_ptr() for array in allocated]):
            return None
        return allocated[results[0]] if one else tuple([allocated[place] for place in results])

    if len(specs) > 1:
        return replay
    (shape, strides, dtype) = specs[0]

    def replay_into_one(addresses: Sequence[int]) -> Any:
        try:
            if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:
                return None
        except AttributeError:
            if hooked():
                return None
        result = allocate(shape, strides, dtype=dtype, device=device)
        return result if send(stream_of(index), *addresses, result.data_ptr()) else None

    return replay_into_one if one else replay


def record(
    run: Callable[[Mapping[str, Tensor | None]], Any], arrays: Mapping[str, Tensor | None], device: int, guard: Guard
) -> tuple[Any, Replay | None]:
    """Run a call on its arrays; return its result, and what repeats the call or None where that is impossible.

    Parameters
    ----------
    run
        Runs the call on arrays by name, all on one CUDA device.
    arrays
        The arrays; None for one that is not there.
    device
        The index of that device.
    guard
        Makes a context in which that device is the current one.
    """
    with Recording(arrays) as recording:
        result = run(recording.arrays)
    results = result if isinstance(result, tuple) else (result,)
    places = [recording.result(array) for array in results]
    if not recording.kernels:
        recording.refuse("it launches nothing")
    if recording.refusal is None:
        try:
            return result, _replay(recording, places, not isinstance(result, tuple), device, guard)
        except (OverflowError, MapError) as error:
            recording.refuse(str(error))
    logger.debug("calls are not repeated through the launcher: %s", recording.refusal)
    return result, None
