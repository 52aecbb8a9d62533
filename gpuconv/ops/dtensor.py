"""What our operators do with ``torch.distributed.tensor.DTensor``: where each operand has to be, and where results are.

:mod:`.shardings` says along which axes the tensors of an operator are sharded together. Of these ways the one is taken
that sends the least bytes, each dimension of the mesh for itself; operands are redistributed to it, each process runs
the operator on what it has (with the groups that it has), and results say where they are. So operands that fit each
other cost no communication, forward or backward, and a sum of terms (``Partial``) is left to whoever needs it whole.

What is added to a sum is added on the first process of the dimension alone. An activation is not linear: with one,
channels that are summed over are gathered, or the batch is sharded instead. A tensor that is sharded along a spatial
dimension is refused: borders of the neighbours would be needed.

The rules are registered by ``torch.library.register_torch_dispatch`` when ``torch.distributed.tensor`` is imported, not
before. That serves where its own registrations do not: those hand the arguments of all processes together to each, but
a process has groups of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from ..errors import invalid
from .conv_library import LIBRARY
from .imported import when_imported
from .pool_fake import Form
from .pool_library import TENSORS, op_name
from .shardings import ONCE, SUM, WHOLE, Sharding, axes_of, cut, shardings

__all__ = ["watch"]

Tensor = Any

_DEFORMABLE = {"deform_fprop": "", "deform_dgrad": "_input_grad", "deform_wgrad": "_weight_grad"}
"""Operators of deformable convolution, and the ends of the names that messages have for them."""

_OPERATORS = ("fprop", "dgrad", "wgrad", "scaled_fprop", *_DEFORMABLE, *TENSORS)

_USERS = {"x": "input", "w": "weight", "dy": "grad_output", "columns": "input", "samples": "_random_samples"}
"""What users call the operands of operators, where it is something else."""


def watch() -> None:
    """Register the rules, now if ``torch.distributed.tensor`` is there, else when it is imported."""
    when_imported("torch.distributed.tensor", _register)


def _register(module: Any) -> None:
    for name in _OPERATORS:
        torch.library.register_torch_dispatch(f"gpuconv::{name}", module.DTensor, _rule, lib=LIBRARY)


def _rule(cls: Any, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
    """Run an operator, some of whose arguments are DTensors. This is below autograd, which records the operator."""
    names = [argument.name for argument in func._schema.arguments]
    with torch.no_grad():
        return _Call(cls, func, dict(zip(names, args)) | dict(kwargs or {})).run()


class _Call:
    """A call of an operator whose tensors are distributed over a mesh."""

    def __init__(self, cls: Any, func: Any, arguments: dict[str, Any]) -> None:
        from torch.distributed import tensor as module  # it is imported: its tensors are here

        self.cls, self.func, self.module, self._sum = cls, func, module, module.Partial()
        self.name = func._schema.name.partition("::")[2]
        self.op, self.users = _called(self.name, arguments)
        names = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
        self.mesh = next(arguments[key].device_mesh for key in names if isinstance(arguments[key], cls))
        self.arguments = arguments | {key: self._distributed(key, arguments[key]) for key in names}
        self.tensors: dict[str, Tensor] = {key: self.arguments[key] for key in names}
        self.parts = [self.mesh.size(dim) for dim in range(self.mesh.ndim)]
        without_values = {key: _without_values(tensor) for key, tensor in self.tensors.items()}
        results = func(*(self.arguments | without_values).values())
        self.results: tuple[Tensor, ...] = tuple(results) if isinstance(results, tuple | list) else (results,)
        self.axes = axes_of(self.name, self.arguments, names, len(self.results))
        self._refuse_spatial()

    def _distributed(self, key: str, tensor: Tensor) -> Tensor:
        """Return an operand as a DTensor on the mesh of the call.

        Raises
        ------
        RuntimeError
            If it is on another mesh, or a plain tensor that is no scalar, as for torch's operators.
        """
        user = self.users.get(key, key)
        if isinstance(tensor, self.cls):
            if tensor.device_mesh != self.mesh:
                raise invalid(self.op, user, tensor.device_mesh, f"on the mesh of the other tensors, {self.mesh}")
            return tensor
        if tensor.numel() != 1 and not self.cls._op_dispatcher._allow_implicit_replication:
            raise invalid(self.op, user, type(tensor).__name__, "a DTensor, as others are (see distribute_tensor)")
        return self.cls.from_local(tensor, self.mesh, run_check=False)  # replicated

    def _refuse_spatial(self) -> None:
        """Refuse operands that are sharded along an axis without a letter.

        Raises
        ------
        RuntimeError
            If there is one; it says what to redistribute.
        """
        for key, word in self.axes.operands.items():
            tensor, user = self.tensors[key], self.users.get(key, key)
            for placement in tensor.placements:
                axis = getattr(placement, "dim", None)
                if axis is None or axis < len(word):
                    continue
                letters = ", ".join(_letters(key, tensor.dim() - 2))
                required = (
                    f"whole along the spatial dimensions of ({letters}): redistribute dimension {axis} of {user} "
                )
                raise invalid(self.op, user, tensor.placements, required + "to Replicate()")

    def run(self) -> Any:
        """Choose a sharding for each dimension of the mesh, and run the operator on what each process has."""
        chosen = self._choose()
        tensors = {}
        for key, tensor in self.tensors.items():
            placements = [self._placement(way.operands[key]) for way in chosen]
            same = tuple(placements) == tuple(tensor.placements)
            tensors[key] = tensor if same else tensor.redistribute(self.mesh, placements)
        coordinate = self.mesh.get_coordinate()
        if coordinate is None:  # this process is not of the mesh
            values = [torch.empty(0, dtype=result.dtype, device=self.mesh.device_type) for result in self.results]
        else:
            values = self._local(chosen, coordinate, {key: tensor.to_local() for key, tensor in tensors.items()})
        results = tuple(
            self.cls.from_local(
                value, self.mesh, [self._placement(way.results[number]) for way in chosen],
                run_check=False, shape=result.shape, stride=result.stride(),
            )
            for number, (value, result) in enumerate(zip(values, self.results))
        )  # fmt: skip
        if self.name == "deform_dgrad":  # returns a list, of one gradient too
            return list(results)
        return results if len(results) > 1 else results[0]

    def _choose(self) -> list[Sharding]:
        """Return for each dimension of the mesh the way that moves the least bytes to it, the same on all processes."""
        chosen: list[Sharding] = []
        counts = {letter: {units} for letter, units in self.axes.units.items()}
        for dim, parts in enumerate(self.parts):
            ways = [way for way in shardings(self.axes) if self._fits(way, counts, dim)]
            costs = [self._cost(way, dim) for way in ways]
            way = ways[costs.index(min(costs))]
            if way.letter:
                counts[way.letter] = {size for units in counts[way.letter] for size in cut(units, parts)}
            chosen.append(way)
        return chosen

    def _placement(self, place: int) -> Any:
        """Return a place as torch's placement."""
        return self.module.Replicate() if place == WHOLE else self._sum if place == SUM else self.module.Shard(place)

    def _fits(self, way: Sharding, counts: Mapping[str, set[int]], dim: int) -> bool:
        """Tell whether dimension `dim` of the mesh can shard operands so.

        The axes of a letter, which may be of different sizes, have to be cut at the same places. `counts` has how many
        of each letter's units processes have after the dimensions before. An operand cannot be made a sum.
        """
        if any(place == SUM and self.tensors[key].placements[dim] != self._sum for key, place in way.operands.items()):
            return False
        if not way.letter:
            return True
        parts = self.parts[dim]
        tensors = [(self.tensors[key], axis) for key, axis in way.operands.items() if axis >= 0]
        tensors += [(result, axis) for result, axis in zip(self.results, way.results) if axis >= 0]
        units = self.axes.units[way.letter]
        multiples = {tensor.shape[axis] // units for tensor, axis in tensors} if units else {1}
        return all(
            cut(count * multiple, parts) == [multiple * size for size in cut(count, parts)]
            for multiple in multiples
            for count in counts[way.letter]
        )

    def _cost(self, way: Sharding, dim: int) -> tuple[float, float]:
        """Return the bytes to be sent for a way to shard dimension `dim` of the mesh, and those to be cut away."""
        sent = cut_away = 0.0
        for key, place in way.operands.items():
            tensor = self.tensors[key]
            now, wanted = tensor.placements[dim], self._placement(place)
            if now == wanted:
                continue
            others = [parts for other, parts in enumerate(self.parts) if other != dim and _sharded(tensor, other)]
            size = tensor.numel() * tensor.element_size() / prod(others)
            if now.is_replicate():
                cut_away += size
            elif now.is_partial():
                sent += size if place >= 0 else 2 * size
            else:
                sent += size / self.parts[dim] if place >= 0 else size
        return sent, cut_away

    def _local(self, chosen: Sequence[Sharding], coordinate: Sequence[int], tensors: dict[str, Tensor]) -> list[Tensor]:
        """Run the operator on what the process at `coordinate` of the mesh has."""
        arguments = self.arguments | tensors
        shapes = [list(result.shape) for result in self.results]
        for way, parts, place in zip(chosen, self.parts, coordinate):
            for shape, axis in zip(shapes, way.results):
                if axis >= 0:
                    shape[axis] = cut(shape[axis], parts)[place]
            if way.letter == "G":
                arguments["groups"] = cut(arguments["groups"], parts)[place]
            if SUM in way.results and place > 0:
                arguments |= {key: None for key in ONCE if key in arguments}
        hollow = any(prod(shape) == 0 < result.numel() for shape, result in zip(shapes, self.results))
        hollow = hollow or any(tensors[key].numel() == 0 < self.tensors[key].numel() for key in tensors)
        if hollow:  # nothing is here, and so nothing is added
            device = next(iter(tensors.values())).device
            return [
                torch.zeros(shape, dtype=result.dtype, device=device) for shape, result in zip(shapes, self.results)
            ]
        results = self.func(*arguments.values())
        values = list(results) if isinstance(results, tuple | list) else [results]
        assert [list(value.shape) for value in values] == shapes
        return values


def _called(name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return what users call an operation, and those of its operands that have other names there."""
    if name in TENSORS:
        form = Form(*(arguments[field] for field in Form._fields))
        return op_name(form, name.endswith("_backward")), _USERS
    ndim = arguments["w" if "w" in arguments else "x"].dim() - 2
    if name in _DEFORMABLE:
        return f"deform_conv{ndim}d{_DEFORMABLE[name]}", _USERS
    if name == "dgrad" and arguments["transposed"]:
        return f"conv_transpose{ndim}d", _USERS | {"dy": "input"}
    label = {"fprop": "conv{}d", "dgrad": "conv{}d_input_grad", "wgrad": "conv{}d_weight_grad"}
    return label.get(name, "scaled_conv{}d").format(ndim), _USERS


def _letters(key: str, ndim: int) -> list[str]:
    """Return the letters of all axes of an operand, for messages."""
    if key in ("columns", "samples"):
        return ["N", "C", "L" if key == "columns" else "axis"]
    return [*("KC" if key == "w" else "NC"), *("TRS" if key == "w" else "DHW")[3 - ndim :]]


def _without_values(tensor: Tensor) -> Tensor:
    """Return a tensor without memory of the size that all processes together have."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _sharded(tensor: Tensor, dim: int) -> bool:
    """Tell whether a tensor is sharded over a dimension of its mesh."""
    return getattr(tensor.placements[dim], "dim", None) is not None
