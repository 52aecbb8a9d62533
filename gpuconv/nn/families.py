"""Which modules of torch have one of ours, and why a given module cannot become it.

Importing this module imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..normalize import CONV_DTYPES, FLOATS, PADDING_MODES
from . import conv, lazy, pool

__all__ = ["FAMILIES", "functions_in", "name_of", "torch_class", "why_not"]

Module = Any

FAMILIES: dict[type, type] = {
    getattr(torch.nn, name): getattr(room, name) for room in (conv, lazy, pool) for name in room.__all__
}
"""The modules of torch that are replaced, each with ours."""

_NAMES = {cls.__name__ for cls in FAMILIES}
_LAZY = tuple(getattr(torch.nn, name) for name in lazy.__all__)
_CALLED = ("forward", "_conv_forward", "_output_padding", "__call__", "_call_impl", "_wrapped_call_impl")
"""Methods that a call of torch's modules goes through."""

_DTYPES = {*CONV_DTYPES, "complex32"}
_FUNCTION = re.compile(r"conv(?!ert)|pool|fold|im2col|col2im")


def torch_class(module: Module) -> type | None:
    """Return the class of ``torch.nn`` that a module is of, among those that have one of ours, or None."""
    return next((cls for cls in type(module).__mro__ if cls in FAMILIES), None)


def name_of(module: Module) -> str:
    """Return the name of a module's class, of a TorchScript module that of the class which was compiled."""
    return str(module.original_name if isinstance(module, torch.jit.ScriptModule) else type(module).__name__)


def functions_in(module: Module) -> dict[str, int]:
    """Return how often a module that runs an FX graph calls each of torch's functions that have one of ours."""
    graph = vars(module).get("_graph", vars(module).get("graph"))  # no property is called
    counts: dict[str, int] = {}
    if not isinstance(graph, torch.fx.Graph):
        return counts
    for node in graph.nodes:
        home = getattr(node.target, "namespace", None) or getattr(node.target, "__module__", None) or "torch"
        name = str(getattr(node.target, "__name__", "")).partition(".")[0]
        if node.op == "call_function" and not str(home).startswith("gpuconv") and _FUNCTION.search(name):
            counts[name] = counts.get(name, 0) + 1
    return counts


def why_not(module: Module) -> str | None:
    """Return why a module stays as it is, None where it can be replaced, and "" where it is none of these modules."""
    theirs = torch_class(module)
    if theirs is None:
        return _foreign(module)
    if issubclass(type(module), FAMILIES[theirs]):
        return "already one of gpuconv.nn"
    reasons = (_of_class(module, theirs), _of_object(module, theirs), _of_padding(module), _of_tensors(module))
    return next(filter(None, reasons), None)


def _foreign(module: Module) -> str:
    """Return the reason for modules that are of none of torch's classes, but would be expected in a report."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript: it is compiled, and has no class to change" if name_of(module) in _NAMES else ""
    if functions := functions_in(module):
        calls = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in functions.items())
        return f"an FX graph that calls functions of torch, which are no modules: {calls}"
    home = type(module).__module__
    quantized = home.startswith("torch.ao.nn.") and ".quantized" in home and "Conv" in name_of(module)
    return "quantized" if quantized else ""


def _of_class(module: Module, theirs: type) -> str | None:
    """Return what the class of a module has that torch's class `theirs` has not, and that would be lost."""
    cls = type_before_parametrizations(module)
    if any(base.__module__.startswith("torch.distributed.") for base in type(module).__mro__):
        return "torch.distributed made its class: replace modules before they are sharded"
    for name in _CALLED:
        if getattr(cls, name, None) is not getattr(theirs, name, None):
            quantized = cls.__module__.startswith("torch.ao.nn.")
            return "quantization-aware" if quantized else f"{cls.__name__} has a {name} of its own"
    if theirs in _LAZY and cls is not theirs:
        return "a lazy module of another class than torch's: replace modules after their first call"
    return None


def _of_object(module: Module, theirs: type) -> str | None:
    """Return what was changed on the module itself that would be lost, or would mean something else."""
    for name in _CALLED:
        if name in vars(module):
            return f"its {name} was changed on the object"
    if getattr(module, "qconfig", None) is not None:
        return "prepared for quantization, which goes by torch's classes"
    for name in getattr(FAMILIES[theirs], "_beyond", ()):
        if hasattr(module, name):
            return f"it has an attribute {name!r} of its own, which means something to gpuconv.nn.{theirs.__name__}"
    return None


def _of_padding(module: Module) -> str | None:
    """Return what is amiss with the padding of a module whose attributes were changed after it was made."""
    mode = getattr(module, "padding_mode", "zeros")
    if mode not in PADDING_MODES:
        return f"padding_mode={mode!r} is none of {', '.join(PADDING_MODES)}"
    if getattr(module, "transposed", False) and mode != "zeros":
        return f"padding_mode={mode!r} of a transposed convolution"
    if mode == "zeros" or tuple(module._reversed_padding_repeated_twice) == tuple(_reversed_pads(module)):
        return None
    return f"padding={module.padding!r} was set after it was made, which torch ignores with padding_mode={mode!r}"


def _reversed_pads(module: Module) -> Iterator[int]:
    """Yield the numbers that torch's constructor keeps for ``torch.nn.functional.pad``: the last axis comes first."""
    for axis in reversed(range(len(module.kernel_size))):
        if isinstance(module.padding, str):
            total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
            yield from (total // 2, total - total // 2)
        else:
            yield from (module.padding[axis],) * 2


def _of_tensors(module: Module) -> str | None:
    """Return what is special about the tensors that a module computes with, and is not computed with by gpuconv."""
    buffers = ((name, tensor) for name, tensor in module.named_buffers() if name in ("weight", "bias"))
    for name, tensor in (*module.named_parameters(), *buffers):
        dtype, device = str(tensor.dtype).removeprefix("torch."), tensor.device.type
        if device not in ("cpu", "cuda", "meta"):
            return f"its {name} is on {device}"
        if is_traceable_wrapper_subclass(tensor):
            kind = type(tensor)
            sharded = kind.__module__.startswith("torch.distributed.")
            return f"its {name} is a {kind.__name__}" + (": replace modules before they are sharded" if sharded else "")
        if tensor.layout is not torch.strided:
            return f"its {name} has the layout {str(tensor.layout).removeprefix('torch.')}"
        if dtype not in _DTYPES:
            return f"its {name} is of {dtype}"
        if device != "cpu" and dtype not in FLOATS[:4]:
            return f"its {name} is of {dtype} and on {device}: gpuconv computes that on CPUs alone"
    return None
