"""Arguments of convolutions of 8-bit operands with scales, to calls. Every error of their users is raised here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from ..arrays import ArrayKind, common_kind, kind_of
from ..errors import invalid
from ..problem import Call, ConvProblem, ScaledProblem
from .common import same_device
from .conv import ACTIVATIONS, Extras, check_choice, check_dtypes, conv_call

__all__ = [
    "BIAS_DTYPES",
    "OPERANDS",
    "SCALES",
    "ScaledExtras",
    "check_bias",
    "check_scale",
    "dtype_name",
    "is_number",
    "out_dtype_of",
    "scale_factors",
    "scaled_call",
]

OPERANDS = ("int8", "float8_e4m3fn")
"""Types of input and weight; NumPy and CuPy have the first alone."""

BIAS_DTYPES = ("float32", "float16", "bfloat16")

SCALES = ("input_scale", "weight_scale", "output_scale")

_FLOATS = ("bfloat16", "float16", "float32")


class ScaledExtras(NamedTuple):
    """The keyword-only arguments, as the user wrote them, but for `out_dtype`: its name."""

    input_scale: Any
    weight_scale: Any
    output_scale: Any = None
    out_dtype: str | None = None
    activation: str | None = None
    backend: str | None = None

    @property
    def scales(self) -> dict[str, Any]:
        """The three scales by name."""
        return dict(zip(SCALES, self[:3], strict=True))


def is_number(value: Any) -> bool:
    """Tell whether a scale is a number, of which a size that torch traces is one."""
    if isinstance(value, float | int):
        return not isinstance(value, bool)
    torch = sys.modules.get("torch")
    return isinstance(value, Real) or (torch is not None and isinstance(value, torch.SymFloat | torch.SymInt))


def dtype_name(op: str, value: Any) -> str | None:
    """Return the name of a type, given by its name or as torch or NumPy has it.

    Raises
    ------
    TypeError
        If it is no type.
    """
    if value is None or isinstance(value, str):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    try:
        return np.dtype(value).name
    except TypeError:
        raise invalid(op, "out_dtype", value, "a type or the name of one", TypeError) from None


def out_dtype_of(op: str, name: str | None, kind: str, dtype: str, output_scale: Any) -> str:
    """Return the type of the result, checked with `output_scale`, which 8-bit results alone have.

    Parameters
    ----------
    op
        The operation.
    name
        What the user wants, or None.
    kind
        Library of the arrays.
    dtype
        Type of the operands.
    output_scale
        The scale of the result, or None.

    Raises
    ------
    ValueError
        If there is no such result, or the scale is missing or too much.
    """
    found = ("bfloat16" if kind == "torch" else "float32") if name is None else name
    known = (*(_FLOATS[1:] if kind == "numpy" else _FLOATS), dtype)
    check_choice(op, "out_dtype", found, known)
    if found == dtype and output_scale is None:
        raise invalid(op, "output_scale", None, f"given with out_dtype={found!r}", ValueError)
    if found != dtype and output_scale is not None:
        required = f"None with out_dtype={found!r}: results of {dtype} alone are divided by it"
        raise invalid(op, "output_scale", output_scale, required, ValueError)
    return found


def check_scale(op: str, kind: ArrayKind, argument: str, value: Any, channels: Any) -> str:
    """Return what a scale is, ``"number"``, ``"array"`` (one element) or ``"channels"`` (one for each filter).

    `channels` is None for a scale that has one element. Sizes may be traced: then a vector counts as one of channels.

    Raises
    ------
    RuntimeError
        If it has another shape or type.
    """
    if is_number(value):
        return "number"
    shape, dtype = kind.shape(value), kind.dtype(value)
    if dtype != "float32":
        raise invalid(op, f"dtype of {argument}", dtype, "float32")
    if all(isinstance(size, int) and size == 1 for size in shape):
        return "array"
    if channels is None:
        raise invalid(op, argument, shape, "a number or an array of one element")
    if len(shape) != 1 or (isinstance(channels, int) and isinstance(shape[0], int) and shape[0] != channels):
        required = f"a number, an array of one element, or 1-D with {channels} elements, one per filter"
        raise invalid(op, argument, shape, required)
    return "channels"


def check_bias(op: str, kind: ArrayKind, bias: Any, channels: int) -> str | None:
    """Return the type of a bias.

    Raises
    ------
    RuntimeError
        If it has another shape than ``(channels,)``, or another type than :data:`BIAS_DTYPES`.
    """
    if bias is None:
        return None
    if kind.shape(bias) != (channels,):
        raise invalid(op, "bias", kind.shape(bias), f"1-D with {channels} elements, one per output channel")
    dtype = kind.dtype(bias)
    if dtype not in BIAS_DTYPES:
        raise invalid(op, "dtype of bias", dtype, f"one of {', '.join(BIAS_DTYPES)}")
    return dtype


def scale_factors(scales: Mapping[str, Any]) -> dict[str, float]:
    """Return the scales that are numbers, by name; 1 where a scale is an array or None."""
    return {name: float(value) if is_number(value) else 1.0 for name, value in scales.items()}


def scaled_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: ScaledExtras,
) -> Call:  # fmt: skip
    """Check the arguments of a convolution with scales and describe it; see :func:`gpuconv.scaled_conv2d`."""
    arrays = {name: value for name, value in extras.scales.items() if not is_number(value)}
    for name, value in arrays.items():
        missing = value is None and name in SCALES[:2]
        if missing or (value is not None and kind_of(value) is None):
            raise invalid(op, name, value, "a number or a float32 array", TypeError)
    named = {"input": input, "weight": weight, "bias": bias, **arrays}
    kind = common_kind(op, named, ("input", "weight"))
    geometry, plain = (stride, padding, dilation, groups), Extras(backend=extras.backend)
    dtypes = OPERANDS if kind.name == "torch" else OPERANDS[:1]
    check_dtypes(op, kind, {"input": input}, dtypes)
    call = conv_call(op, ndim, input, weight, None, *geometry, plain, dtypes)
    conv = call.problem
    assert isinstance(conv, ConvProblem)
    channels = kind.shape(weight)[0]
    given = {
        name: check_scale(op, kind, name, value, channels if name == "weight_scale" else None)
        for name, value in extras.scales.items()
        if value is not None
    }
    same_device(op, kind, named)
    if extras.activation is not None:
        check_choice(op, "activation", extras.activation, ACTIVATIONS)
    problem = ScaledProblem(
        op,
        replace(conv, bias=bias is not None, activation=extras.activation),
        out_dtype_of(op, extras.out_dtype, kind.name, conv.dtype, extras.output_scale),
        **given,
        bias_dtype=check_bias(op, kind, bias, channels),
    )
    scales = dict.fromkeys(SCALES) | arrays
    found = {"x": call.arrays["x"], "w": call.arrays["w"], "bias": bias, **scales}
    return Call(problem, found, kind, call.unbatched, extras.backend, extra=scale_factors(extras.scales))
