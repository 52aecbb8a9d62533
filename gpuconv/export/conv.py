"""Convolutions and transposed convolutions with their epilogue, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from .. import shapes
from .nodes import (
    Value,
    constant,
    fixed,
    integers,
    known_sizes,
    op,
    op19,
    pad,
    refuse,
    require_floats,
    slice_axis,
    traced,
)

__all__ = ["TRANSLATORS"]

Sizes = Sequence[int]


def _gelu(y: Value, dtype: Any) -> Value:
    half = op.Mul(y, constant(0.5, dtype))
    return op.Mul(half, op.Add(op.Erf(op.Mul(y, constant(sqrt(0.5), dtype))), constant(1, dtype)))


def _gelu_tanh(y: Value, dtype: Any) -> Value:
    cubed = op.Mul(op.Mul(op.Mul(y, y), y), constant(0.044715, dtype))
    inner = op.Tanh(op.Mul(op.Add(y, cubed), constant(sqrt(2 / 3.141592653589793), dtype)))
    return op.Mul(op.Mul(y, constant(0.5, dtype)), op.Add(inner, constant(1, dtype)))


_ACTIVATIONS: dict[str, Callable[[Value, Any], Value]] = {
    "relu": lambda y, _: op.Relu(y),
    "relu6": lambda y, dtype: op.Clip(y, constant(0, dtype), constant(6, dtype)),
    "hardswish": lambda y, _: op.HardSwish(y),
    "silu": lambda y, _: op.Mul(y, op.Sigmoid(y)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": lambda y, _: op.Sigmoid(y),
    "tanh": lambda y, _: op.Tanh(y),
}


def _per_channel(vector: Value, ndim: int) -> Value:
    """Show a vector over the channels so that it broadcasts against images."""
    return op.Reshape(vector, integers([1, -1, *(1,) * ndim]))


def _epilogue(
    y: Value, dtype: Any, ndim: int, scale: Value, shift: Value, residual: Value, activation: str | None
) -> Value:
    """Return ``activation(y * scale + shift + residual)``; what is None is left out."""
    if scale is not None:
        y = op.Mul(y, _per_channel(scale, ndim))
    if shift is not None:
        y = op.Add(y, _per_channel(shift, ndim))
    if residual is not None:
        y = op.Add(y, residual)
    if activation is None:
        return y
    if activation not in _ACTIVATIONS:
        raise refuse("a convolution", f"there is no translation of activation={activation!r}")
    return _ACTIVATIONS[activation](y, dtype)


def _padded(what: str, x: Value, mode: str, lo: Sizes, hi: Sizes) -> Value:
    """Return an image padded by something else than zeros."""
    if mode in ("reflect", "replicate"):
        return pad(x, lo, hi, {"reflect": "reflect", "replicate": "edge"}[mode])
    if mode != "circular":
        raise refuse(what, f"there is no translation of padding_mode={mode!r}")
    for axis, (size, before, after) in enumerate(zip(known_sizes(x), lo, hi), 2):
        if size is not None and max(before, after) > size:
            raise refuse(what, f"circular padding of {(before, after)} goes around an axis of {size} more than once")
        last = 2**31 - 1
        parts = [slice_axis(x, axis, -before, last)] if before else []
        parts += [x, *([slice_axis(x, axis, 0, after)] if after else [])]
        x = op.Concat(*parts, axis=axis) if len(parts) > 1 else x
    return x


def _fprop(
    x: Value, w: Value, bias: Value, scale: Value, shift: Value, residual: Value, stride: Sizes, pad_lo: Sizes,
    pad_hi: Sizes, dilation: Sizes, groups: int, padding_mode: str, activation: str | None, **_: Any,
) -> Value:  # fmt: skip
    """Convolution: y of x and w."""
    what, dtype, ndim = f"conv{len(stride)}d", x.dtype, len(stride)
    require_floats(what, x)
    fixed(what, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation, groups=groups)
    if padding_mode != "zeros" and any((*pad_lo, *pad_hi)):
        x, pad_lo, pad_hi = _padded(what, x, padding_mode, pad_lo, pad_hi), (0,) * ndim, (0,) * ndim
    pads = [*pad_lo, *pad_hi]
    y = op.Conv(x, w, bias, strides=list(stride), pads=pads, dilations=list(dilation), group=groups)
    return _epilogue(y, dtype, ndim, scale, shift, residual, activation)


def _dgrad(
    dy: Value, w: Value, bias: Value, scale: Value, shift: Value, residual: Value, input_size: Sequence[Any],
    stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, groups: int, padding_mode: str,
    activation: str | None, **_: Any,
) -> Value:  # fmt: skip
    """Transposed convolution, or the gradient of a convolution's input, which is one without an epilogue."""
    ndim, dtype = len(stride), dy.dtype
    what = f"conv_transpose{ndim}d"
    require_floats(what, dy)
    fixed(what, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation, groups=groups)
    if padding_mode != "zeros" and any((*pad_lo, *pad_hi)):
        raise refuse(f"conv{ndim}d_input_grad", f"padding_mode={padding_mode!r} has no ConvTranspose")
    common = {"strides": list(stride), "dilations": list(dilation), "group": groups}
    axes = (stride, pad_lo, pad_hi, dilation)
    added = _output_padding(dy, w, input_size, *axes)
    if added is not None and all(0 <= extra < s for extra, s in zip(added, stride)):
        pads = [*pad_lo, *pad_hi]
        y = op.ConvTranspose(dy, w, bias, pads=pads, output_padding=added, **common)
    else:
        most = [max(s, d) for s, d in zip(stride, dilation)]
        y = pad(op.ConvTranspose(dy, w, None, **common), (0,) * ndim, most)
        for axis, (lo, size) in enumerate(zip(pad_lo, input_size), 2):
            y = slice_axis(y, axis, lo, op.Add(integers([lo]), integers([size])))
        y = y if bias is None else op.Add(y, _per_channel(bias, ndim))
    return _epilogue(y, dtype, ndim, scale, shift, residual, activation)


def _output_padding(dy: Value, w: Value, input_size: Sequence[Any], *axes: Sizes) -> list[int] | None:
    """Return the output padding along every axis, or None where it differs from run to run, or may."""
    kernel, known = w.shape.dims[2:], known_sizes(dy)
    sizes: Sequence[Any] = known
    if None in known or not all(isinstance(size, int) for size in input_size):
        first, wanted = traced(dy), [size if isinstance(size, int) else traced(size) for size in input_size]
        sizes = getattr(first, "shape", ())[2:]
        if not sizes or None in wanted:
            return None
        input_size = wanted
    least = shapes.map_axes(shapes.conv_transpose_output_size, sizes, kernel, *axes)
    added = [_as_integer(size - smallest) for size, smallest in zip(input_size, least, strict=True)]
    return None if None in added else [extra for extra in added if extra is not None]


def _as_integer(size: Any) -> int | None:
    """Return a size as an integer if it is the same in every run; a symbolic one is an expression of sympy."""
    if isinstance(size, int):
        return size
    expression = size.node.expr.expand()
    return int(expression) if expression.is_Integer else None


def _deform_fprop(
    x: Value, offset: Value, mask: Value, w: Value, bias: Value, stride: Sizes, pad_lo: Sizes, pad_hi: Sizes,
    dilation: Sizes, groups: int, offset_groups: int, **_: Any,
) -> Value:  # fmt: skip
    """Deformable convolution: the layouts of offsets and mask are ONNX's, which took them from torchvision."""
    what = f"deform_conv{len(stride)}d"
    require_floats(what, x)
    fixed(what, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation, groups=groups)
    return op19.DeformConv(
        x, w, offset, bias, mask, strides=list(stride), pads=[*pad_lo, *pad_hi], dilations=list(dilation), group=groups,
        offset_group=offset_groups,
    )  # fmt: skip


TRANSLATORS: dict[str, Callable[..., Value]] = {"deform_fprop": _deform_fprop, "dgrad": _dgrad, "fprop": _fprop}
"""What makes nodes of the convolutions, by the name of the operator."""
