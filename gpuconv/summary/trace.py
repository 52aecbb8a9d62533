"""A model runs once on meta tensors, which have shapes and no memory, and every module and operator is written down.

What runs is a copy: parameters and buffers become meta tensors of the same shapes and strides before anything is
copied, and hooks are on the copy alone. Importing this module imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from numbers import Integral, Number
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..arrays import CHANNELS_LAST
from ..costs import on_gpu
from ..normalize import result_formats
from . import flow_library as _library_rules  # noqa: F401  (registers what the library's own operators do)
from . import flow_views as _view_rules  # noqa: F401  (registers what views do)
from .fields import Field
from .flow import propagate
from .report import Row
from .steps import Asked, Planner, Step, adaptive_problem, flops_of, problem_of, separable_problem

__all__ = ["Trace", "meta_copy", "meta_inputs", "spatial_input", "trace"]

Tensor = Any

_FIELD = "_gpuconv_field"

_LEAVES = (
    "activation", "adaptive", "batchnorm", "channelshuffle", "conv", "distance", "fold", "instancenorm", "linear",
    "normalization", "padding", "pixelshuffle", "pooling", "rnn", "sparse", "upsampling",
)  # fmt: skip
"""Modules of ``torch.nn.modules`` whose classes are layers."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

_NOT_LAYERS = (torch.nn.Identity,)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples, mappings and objects with fields of a model's output."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def _bytes(tensors: Any) -> int:
    distinct = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def _meta(tensor: Tensor, dtype: Any = None) -> Tensor:
    """Return a meta tensor of the same shape and strides; floating ones are of `dtype` where that is given."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=wanted, device="meta")


def _plain_tensors(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield tensors that a module has as plain attributes, also in lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _plain_tensors(each, depth - 1)


def meta_copy(model: Any, dtype: Any = None) -> Any:
    """Return a copy of a model in evaluation mode whose tensors are on ``meta``; floating ones are of `dtype`.

    Raises
    ------
    ValueError
        If a parameter has no shape yet, as those of lazy modules.
    TypeError
        If the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, torch.nn.parameter.UninitializedTensorMixin):
            raise ValueError(f"summarize: {name} has no shape yet; call the model once before")
        memo[id(parameter)] = torch.nn.Parameter(_meta(parameter, dtype), requires_grad=False)
    for buffer in model.buffers():
        memo.setdefault(id(buffer), _meta(buffer, dtype))
    for module in model.modules():
        for value in vars(module).values():
            for tensor in _plain_tensors(value):
                memo.setdefault(id(tensor), _meta(tensor, dtype))
    keep = list(memo.values())  # deepcopy holds what it copied by its id alone
    try:
        found = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(f"summarize: the model cannot be copied: {type(error).__name__}: {error}") from error
    del keep
    return found.eval()


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def meta_inputs(given: Any, dtype: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments as meta tensors, of a size, a tensor, or several of them.

    A size becomes a tensor of `dtype`, a tensor keeps its type (floating ones become `dtype`) and its strides. Numbers,
    strings and None that have a name stay what they are.

    Raises
    ------
    TypeError
        If `given` is something else.
    """

    def one(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return _meta(value, dtype)
        if isinstance(value, list | tuple) and value and all(map(_is_size, value)):
            return torch.empty(tuple(map(int, value)), dtype=dtype, device="meta")
        raise TypeError(
            f"summarize: input must be a size such as (1, 3, 224, 224), a tensor, or a list or mapping of them, "
            f"but got {type(value).__name__}: {value!r}"[:300]
        )

    if isinstance(given, Mapping):
        plain = (Number, str, type(None))
        return (), {name: value if isinstance(value, plain) else one(value) for name, value in given.items()}
    if isinstance(given, list | tuple) and not any(map(_is_size, given)):
        return tuple(map(one, given)), {}
    return (one(given),), {}


def spatial_input(model: Any, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the sizes of the spatial axes of the first input that is an image, a volume or, of models that convolve or
    pool, a sequence with channels; else nothing."""
    convolves = any(_layer_module(module) in ("conv", "pooling") for module in model.modules())
    for tensor in tensors:
        if tensor.dim() in (4, 5) or (tensor.dim() == 3 and convolves):
            return tuple(tensor.shape[2:])
    return ()


def _layer_module(module: Any) -> str | None:
    """Return the file of ``torch.nn.modules``, or of the library's modules, that a layer's class is from, else None."""
    for base in type(module).__mro__:
        room, _, name = base.__module__.rpartition(".")
        if room == "torch.nn.modules" and name in _LEAVES and base not in _NOT_LAYERS:
            return name
        if room == "gpuconv.nn" and base.__name__ not in ("Extended",):
            return "pooling" if name == "pool" else "conv"
    return "activation" if type(module).__module__.endswith(".activations") else None


def _with_format(func: Any, args: Sequence[Any], result: Any) -> Any:
    """Return the result of an operator; of a convolution channels-last where real tensors are, which meta forgets."""
    if func is not torch.ops.aten.convolution.default or result.dim() not in _CHANNELS_LAST:
        return result
    x, w = args[:2]
    *_, found = result_formats(x.shape, x.stride(), w.shape, w.stride())
    last = found == CHANNELS_LAST
    return result.contiguous(memory_format=_CHANNELS_LAST[result.dim()]) if last else result


def _kind(module: Any) -> str:
    name = type(module).__name__
    return f"gpuconv.{name}" if type(module).__module__.startswith("gpuconv.") else name


@dataclass(slots=True, eq=False)
class _Record:
    """A row that is being written."""

    name: str
    kind: str
    module: Any
    layer: bool
    output: tuple[int, ...] | None = None
    parameters: int = 0
    flops: int = 0
    moved: int = 0
    seen: Field | None = None
    steps: list[Step] = field(default_factory=list)

    def row(self) -> Row:
        solvers = dict.fromkeys(step.solver or "none" for step in self.steps)
        times = [step.microseconds for step in self.steps if step.microseconds is not None]
        return Row(
            self.name, self.kind, self.output, self.parameters, self.flops, self.moved,
            None if self.seen is None else self.seen.seen, " + ".join(solvers) or None,
            sum(times) if times else None, sum(step.least_us for step in self.steps) if times else None,
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Frame:
    """A module whose forward is running: its row, or None, and what it was called with."""

    name: str
    module: Any
    record: _Record | None
    layer: bool
    inputs: list[Tensor]


class Trace(TorchDispatchMode):
    """Writes down modules (by hooks) and operators (by dispatch) of one forward pass of a meta copy."""

    def __init__(self, model: Any, device: str | None, image: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.image = model, image
        self.planner = None if device is None else Planner(device)
        self.records: list[_Record] = []
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[_Frame] = []
        self._counted: set[int] = set()
        self._hooks: list[Any] = []

    def field_of(self, tensor: Any) -> Field | None:
        """Return what the elements of a tensor see, or None."""
        found: Field | None = getattr(tensor, _FIELD, None)
        return found

    # operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _with_format(func, args, func(*args, **kwargs))
        if self.image:
            self._follow(func, args, kwargs, result)
        flops = flops_of(func, args, kwargs, result)
        step = None if self.planner is None else self.planner.step(problem_of(func, args))
        if (flops or step) and self._stack:
            record = self._innermost()
            record.flops += flops
            if step is not None:
                record.steps.append(step)
            if not record.layer:
                record.moved += _bytes([*tensors_in([*args, *kwargs.values()]), *tensors_in([result])])
        return result

    def _follow(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        outputs = list(tensors_in([result]))
        fields = propagate(func, args, kwargs, result, self.field_of)
        for output, found in zip(outputs, fields, strict=True):
            setattr(output, _FIELD, found)
            base = output._base if func._schema.is_mutable else None
            written = found or (base is not None and self.field_of(base))
            if base is not None and written:  # a part was written: of the rest nothing is said
                setattr(base, _FIELD, written.unknown(base.shape))

    def _innermost(self) -> _Record:
        """Return the row of the module that runs; one that is none by itself gets one for what it computes."""
        frame = self._stack[-1]
        if frame.record is None:
            frame.record = _Record(frame.name, f"{_kind(frame.module)} (functions)", frame.module, False)
            self.records.append(frame.record)
        return frame.record

    # modules

    def watch(self) -> None:
        """Put hooks on every module of the copy."""
        for module in self.model.modules():
            self._hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave, with_kwargs=True))

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        parent = self._stack[-1] if self._stack else None
        name, record = self._names.get(id(module), type(module).__name__), None
        layer = _layer_module(module) is not None
        if parent is not None and parent.layer:
            record, layer = parent.record, True
        elif layer or next(module.parameters(recurse=False), None) is not None:
            record = _Record(name, _kind(module), module, layer)
            record.parameters, size = self._owned(module, layer)
            record.moved += size
            self.records.append(record)
        self._stack.append(_Frame(name, module, record, layer, list(tensors_in([args, kwargs]))))

    def _owned(self, module: Any, recurse: bool) -> tuple[int, int]:
        """Return the parameters of a module that no row has, and the bytes of all its tensors."""
        listed = list(module.parameters(recurse=recurse))
        new = [each for each in listed if id(each) not in self._counted]
        self._counted.update(map(id, new))
        size = sum(each.numel() * each.element_size() for each in [*listed, *module.buffers(recurse=recurse)])
        return sum(each.numel() for each in new), size

    def _leave(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        frame = self._stack.pop()
        record = frame.record
        if record is None or record.module is not module:
            return
        results = list(tensors_in([output]))
        if record.layer:
            record.moved += _bytes([*frame.inputs, *results])
        if results:
            record.output = tuple(results[0].shape)
            record.seen = self.field_of(results[0])
        if self.planner is not None and frame.inputs:
            with torch.utils._python_dispatch._disable_current_modes():
                step = self.planner.step(_asked_as_one(module, args, kwargs, record))
            record.steps = record.steps if step is None else [step]

    def place(self) -> str:
        """Return in words which module runs, and on what."""
        if not self._stack:
            return "summarize: outside of any module"
        frame = self._stack[-1]
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in frame.inputs) or "no tensor"
        return f"summarize: in {frame.name or 'the model'} ({_kind(frame.module)}), called with {shapes}"

    def rows(self) -> tuple[Row, ...]:
        """Return the rows, and behind them modules that were not called, whose parameters belong to no other."""
        for name, module in self.model.named_modules():
            count, size = self._owned(module, False)
            if count:
                self.records.append(_Record(name, _kind(module), module, True, parameters=count, moved=size))
        return tuple(record.row() for record in self.records)


_ADAPTIVE = (torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d)


def _asked_as_one(module: Any, args: Any, kwargs: Any, record: _Record) -> Asked | None:
    """Return the problem of a module whose operators do not show it: a pool to one element, which torch computes as a
    mean, and the library's separable convolution, which without gradients may be one kernel; None of others."""
    if isinstance(module, _ADAPTIVE) and not record.steps:
        return adaptive_problem(next(tensors_in([args, kwargs])), module.output_size, int(type(module).__name__[-2]))
    if type(module).__name__ == "DepthwiseSeparableConv2d" and type(module).__module__.startswith("gpuconv."):
        return separable_problem(lambda: type(module).forward(module, *args, **kwargs))
    return None


def trace(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: str | None) -> tuple[Row, ...]:
    """Run a meta copy once and return its rows; `device` is that of a GPU by name, or None."""
    tensors = list(tensors_in([args, kwargs]))
    image = spatial_input(model, tensors)
    for tensor in tensors:
        if image and tuple(tensor.shape[2:]) == image:
            setattr(tensor, _FIELD, Field.of_input(tensor.shape))
    traced = Trace(model, device, image)
    traced.watch()
    try:
        with torch.no_grad(), torch.device("meta"), nullcontext() if device is None else on_gpu(device), traced:
            model(*args, **kwargs)
    except Exception as error:
        error.add_note(traced.place())
        raise
    return traced.rows()
