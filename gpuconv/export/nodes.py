"""Small pieces of ONNX graphs, recorded while ``torch.onnx.export`` calls a translator.

A ``Value`` is a tensor of the graph. Of the arguments of operators that are integers, some may be values: sizes that
torch traced. Only operators of opset 18 are used, which newer ones know as well, but for the one that opset 19 brought.
Importing this module imports onnxscript.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import opset18, opset19

__all__ = [
    "FLOATS",
    "Value",
    "constant",
    "fixed",
    "integers",
    "known_sizes",
    "op",
    "op19",
    "pad",
    "refuse",
    "require_floats",
    "size_at",
    "slice_axis",
    "traced",
]

Value = Any

op: Any = opset18
op19: Any = opset19

FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def refuse(what: str, reason: str) -> NotImplementedError:
    """Return the error for what ONNX cannot express."""
    return NotImplementedError(f"{what} cannot be exported to ONNX: {reason}")


def require_floats(what: str, x: Value) -> None:
    """Refuse tensors of other numbers than ``FLOATS``."""
    if x.dtype not in FLOATS:
        raise refuse(what, f"ONNX's operator takes floating-point numbers, not {x.dtype.name}")


def constant(value: Any, dtype: Any) -> Value:
    """Return a constant of the type of a tensor of the graph."""
    return op.Constant(value=ir.tensor(np.asarray(value, dtype.numpy())))


def integers(values: Sequence[Any]) -> Value:
    """Return a 1-D int64 tensor of integers, of which some may be values."""
    if all(isinstance(value, int) for value in values):
        return op.Constant(value=ir.tensor(np.asarray(values, np.int64)))
    parts = [integers([value]) if isinstance(value, int) else op.Reshape(value, integers([-1])) for value in values]
    return op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]


def fixed(what: str, **settings: Sequence[Any] | Any) -> None:
    """Refuse settings that follow from sizes which are not known: ONNX has them as attributes.

    Raises
    ------
    NotImplementedError
        If one is not an integer, or not only integers.
    """
    for name, setting in settings.items():
        items = setting if isinstance(setting, Sequence) else (setting,)
        if not all(isinstance(item, int) for item in items):
            raise refuse(what, f"{name} follows from a size that is dynamic; export with that size, or name {name}")


def known_sizes(x: Value) -> tuple[int | None, ...]:
    """Return the spatial sizes of a tensor, None for each that is dynamic."""
    return tuple(size if isinstance(size, int) else None for size in x.shape.dims[2:])


def size_at(x: Value, axis: int) -> Value:
    """Return a size when the model runs, as a tensor of one element."""
    return op.Shape(x, start=axis, end=axis + 1)


def slice_axis(x: Value, axis: int, start: Any, end: Any) -> Value:
    """Return the elements from `start` to `end`, which may lie beyond the last one."""
    return op.Slice(x, integers([start]), integers([end]), integers([axis]))


def pad(x: Value, lo: Sequence[int], hi: Sequence[int], mode: str = "constant", value: Value | None = None) -> Value:
    """Return a tensor with padded spatial axes."""
    return op.Pad(x, integers([0, 0, *lo, 0, 0, *hi]), value, mode=mode)


def traced(value: Value) -> Any:
    """Return what torch traced for a value: a tensor without memory, a symbolic size, or None if that is not known."""
    producer = value.producer()
    node = (value.meta if producer is None else producer.meta).get("node")
    return None if node is None else node.meta.get("val")
