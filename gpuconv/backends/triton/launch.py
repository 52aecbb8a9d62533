"""The one way to a launch: a pack where one has it, else Triton, which compiles it for the GPU or interprets it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...config import interpreting
from ...costs import constants_of, gpu_of, named_gpu, warn_once
from ...launcher import TensorMap
from ...packs import (
    DriverError,
    KernelReference,
    NotPackedError,
    PackedKernel,
    PackError,
    TypeName,
    any_packs,
    load,
    look_up,
    note,
    refuse_to_compile,
)
from ...problem import Problem
from . import common
from .gluon import descriptor, plain_descriptor
from .interpreter import repair_interpreter

__all__ = ["Listener", "capability_of", "for_triton", "launch_kernel", "listening", "multiprocessors_of"]

Listener = Callable[[Problem, Any, tuple[int, ...], dict[str, Any], dict[str, Any]], None]
"""Is told of launches: problem, kernel, grid, every argument by name, and options of the compiler."""

_listener: ContextVar[Listener | None] = ContextVar("gpuconv_launch_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of the launches inside the ``with`` block, instead of launching."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def capability_of(device: str) -> tuple[int, int] | None:
    """Return the compute capability of a CUDA device, or None where torch sees none."""
    gpu = gpu_of(device)
    if gpu is not None:
        return gpu.capability
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    found: tuple[int, int] = torch.cuda.get_device_capability(device)
    return found


def multiprocessors_of(device: str) -> int:
    """Return the multiprocessors of a CUDA device; where torch sees none, or a GPU is assumed, as its constants say."""
    torch = sys.modules.get("torch")
    gpu = gpu_of(device)
    here = device.startswith("cuda") and named_gpu(device) is None
    if torch is not None and here and torch.cuda.is_initialized():
        index = int(device.partition(":")[2] or 0)
        if gpu is not None and index < torch.cuda.device_count() and gpu.name == torch.cuda.get_device_name(index):
            return int(torch.cuda.get_device_properties(index).multi_processor_count)
    return int(constants_of(device).values["sms"])


def for_triton(arguments: Mapping[str, Any], plain: bool = False) -> dict[str, Any]:
    """Return arguments with Triton's types in the place of their names, and its descriptors of tensor maps.

    Those of `plain` Triton say nothing of how a box lies in shared memory, Gluon's do.
    """
    import triton.language as tl

    as_descriptor = plain_descriptor if plain else descriptor

    def as_triton_has_it(value: Any) -> Any:
        if isinstance(value, TypeName):
            return getattr(tl, value)
        return as_descriptor(value) if isinstance(value, TensorMap) else value

    return {name: as_triton_has_it(value) for name, value in arguments.items()}


def _is_gluon(function: Any) -> bool:
    return bool(getattr(function, "is_gluon", lambda: False)())


def launch_kernel(
    problem: Problem,
    kernel: Any,
    grid: tuple[int, ...],
    pointers: Mapping[str, Any],
    arguments: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    """Launch on the device of `problem`.

    Parameters
    ----------
    problem
        The problem that the launch is a part of.
    kernel
        A :class:`KernelReference`; or a ``@triton.jit`` function, which no pack has.
    grid
        The programs along each axis.
    pointers
        Tensors, or None, by name without the ending ``_ptr``.
    arguments
        Every other argument by name.
    config
        Options of the compiler, beside what it is not for.

    Raises
    ------
    NotPackedError
        If no pack has the launch, and Triton is not installed or may not compile it.
    """
    options = common.launch_options(config)
    named = {**{f"{name}_ptr": tensor for name, tensor in pointers.items()}, **arguments}
    listener = _listener.get()
    if listener is not None:
        listener(problem, kernel, grid, named, options)
        return
    on_gpu = problem.device.startswith("cuda")
    compiled = _from_pack(problem, kernel, grid, named, options) if on_gpu and any_packs() else None
    if on_gpu:
        note(compiled is not None)
    if compiled is None:
        if on_gpu:
            refuse_to_compile(f"{problem.op}: {getattr(kernel, 'id', kernel)}")
        if interpreting():
            repair_interpreter()
        try:
            function = kernel.load() if isinstance(kernel, KernelReference) else kernel
        except ModuleNotFoundError as error:  # solvers are told what packs lack for aligned arrays in their formats
            what = "its arrays lie otherwise in memory than those of the packs, and triton is not installed"
            raise NotPackedError(f"{problem.op}: no pack has {kernel.id} for this call: {what}") from error
        with common._device_guard(problem):
            compiled = function[grid](**for_triton(named, not _is_gluon(function)), **options)
    if on_gpu:
        from ...launcher.record import active_recording

        recording = active_recording()
        if recording is not None:
            recording.add(compiled, grid, named)


def _from_pack(
    problem: Problem, kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, Any]
) -> PackedKernel | None:
    """Launch what a pack has, and return it; None where none has it, or the driver does not take it."""
    import torch

    capability = capability_of(problem.device)
    if capability is None or not isinstance(kernel, KernelReference):
        return None
    index = int(problem.device.partition(":")[2] or 0)
    for found in look_up(kernel, arguments, options, capability):
        try:
            packed = load(found, index, lambda: common._device_guard(problem))
        except (DriverError, PackError) as error:
            about = f"{found.pack.folder} {found.entry.arch if isinstance(error, DriverError) else found.entry.cubin}"
            warn_once(about, "pack %s: %s; such launches go through Triton", found.pack.folder, error)
            continue
        with common._device_guard(problem):
            packed.launch(grid, torch._C._cuda_getCurrentRawStream(index), packed.bytes_of(arguments))
        return packed
    return None
