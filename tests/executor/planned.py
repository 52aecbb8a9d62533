"""Runs a plan of the product on tensors of the CPU: Hopper kernels over the machine, the plain ones interpreted.

What a card would be told is what the machine is told: tensor maps with their sizes, strides and corners, grids and
every constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gluon_model import Edit, rebuild
from hopper_cases import MODULES
from machine import Executor
from prover import Recorder
from tensors import Layout, Map, MapIm2col, Pointer

from gpuconv.arrays import TORCH
from gpuconv.backends.base import Plan
from gpuconv.backends.triton.interpreter import repair_interpreter
from gpuconv.backends.triton.launch import for_triton, listening
from gpuconv.launcher.maps import MapType, TensorMap
from gpuconv.problem import Call, placed

__all__ = ["record", "run"]


class _Memory:
    """Storages of tensors as float32, by their address, while a kernel runs."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[torch.Tensor, np.ndarray]] = {}

    def flat(self, tensor: torch.Tensor) -> np.ndarray:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.held:
            elements = storage.nbytes() // tensor.element_size()
            whole = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (elements,))
            self.held[storage.data_ptr()] = whole, whole.float().numpy().copy()
        return self.held[storage.data_ptr()][1]

    def write_back(self) -> None:
        for whole, values in self.held.values():
            whole.copy_(torch.from_numpy(values))


def _layout(type: MapType) -> Layout:
    return (
        Layout() if type.split is None else Layout((tuple(int(axis == type.split) for axis in range(len(type.box))),))
    )


def _map(map: TensorMap, memory: _Memory) -> Map:
    """Return the machine's map, which sees what the driver would: boxes and corners are checked there."""
    flat = memory.flat(map.tensor)[map.tensor.storage_offset() + map.offset :]
    assert (map.tensor.data_ptr() + map.offset * map.tensor.element_size()) % 16 == 0, "no multiple of 16 bytes"
    last = sum((size - 1) * step for size, step in zip(map.shape, map.strides, strict=True))
    assert 0 <= last < len(flat), "a map goes beyond its tensor"
    array = np.lib.stride_tricks.as_strided(flat, map.shape, tuple(4 * step for step in map.strides))
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(map.type.dtype, "float32")
    known = {"dtype": dtype, "itemsize": map.type.itemsize, "layout": _layout(map.type)}
    if not map.type.axes:
        return Map(array, map.type.box, **known)
    return MapIm2col(array, map.type.box, strides=map.steps, lower=map.lower, upper=map.upper, **known)


def _given(arguments: Mapping[str, Any], memory: _Memory) -> dict[str, Any]:
    """Return arguments as the machine has them."""
    given = {}
    for name, value in arguments.items():
        if isinstance(value, TensorMap):
            given[name] = _map(value, memory)
        elif isinstance(value, torch.Tensor):
            given[name] = Pointer(memory.flat(value)[value.storage_offset() :])
            if name == "parts_ptr":  # what no program has written is nothing to go by
                given[name].array[:] = np.nan
        else:
            given[name] = value
    return given


def _execute(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, Any], seed: int,
    edits: Sequence[Edit],
) -> Executor:  # fmt: skip
    memory, machine = _Memory(), Executor(seed, options["num_ctas"])
    given = _given(arguments, memory)
    machine.grid = (*grid, 1, 1)[:3]
    function = getattr(rebuild(machine, MODULES, edits), kernel.name)
    machine.run(lambda: function(**given), machine.grid)
    memory.write_back()
    return machine


def record(
    plan: Plan, arrays: Mapping[str, torch.Tensor | None], edits: Sequence[Edit] = (), **changes: Any
) -> Recorder:
    """Record the one launch of a plan of a Hopper kernel, with all tiles in one program and changed arguments."""
    problem: Any = placed(plan.problem, device="cpu", array="torch")
    found: list[Recorder] = []

    def listen(_: Any, kernel: Any, grid: tuple[int, ...], arguments: Any, options: Any) -> None:
        machine = Recorder(options["num_ctas"])
        machine.grid = (1, 1, 1)
        function = getattr(rebuild(machine, MODULES, edits), kernel.name)
        given = _given(arguments, _Memory()) | {"programs": 1} | changes
        found.append(machine.record(lambda: function(**given)))

    with listening(listen):
        replace(plan, problem=problem).run(Call(problem, arrays, TORCH))
    (recorder,) = found
    return recorder


def run(
    plan: Plan, arrays: Mapping[str, torch.Tensor | None], seed: int = 0, edits: Sequence[Edit] = (),
    machines: list[Executor] | None = None,
) -> Any:  # fmt: skip
    """Return what a plan computes for tensors of the CPU, with pieces of the Hopper kernels' source replaced.

    The machines that ran the kernels, which have counted bytes and products, are added to `machines`.
    """
    repair_interpreter()
    problem: Any = placed(plan.problem, device="cpu", array="torch")
    ran = []

    def listen(_: Any, kernel: Any, grid: tuple[int, ...], arguments: Any, options: Any) -> None:
        ran.append(kernel.id)
        if kernel.module.startswith("hopper."):
            machine = _execute(kernel, grid, arguments, options, seed, edits)
            if machines is not None:
                machines.append(machine)
        else:
            kernel.load()[grid](**for_triton(arguments), **options)

    with listening(listen):
        result = replace(plan, problem=problem).run(Call(problem, arrays, TORCH))
    assert any("hopper" in id for id in ran)
    return result
