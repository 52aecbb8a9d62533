"""Arguments of convolutions to calls. Every user error of the convolution functions is raised here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from .. import shapes
from ..arrays import CHANNELS_LAST, CONTIGUOUS, ArrayKind, common_kind
from ..errors import invalid
from ..problem import Call, ConvProblem
from .common import batched_strides, int_tuple, integer, memory_format, pad_pairs, same_device

__all__ = [
    "ACTIVATIONS",
    "CONV_DTYPES",
    "FLOATS",
    "PADDING_MODES",
    "PRECISIONS",
    "ROUNDINGS",
    "TRANSPOSED_DTYPES",
    "Extras",
    "Geometry",
    "bias_may_differ",
    "check_choice",
    "check_dtypes",
    "check_padding_mode",
    "check_rank",
    "conv_call",
    "conv_transpose_call",
    "effective_precision",
    "explicit_pads",
    "formats_of",
    "geometry_of",
    "input_grad_call",
    "pads_of",
    "result_formats",
    "rounding_of",
    "sizes_of",
    "transposed_sizes",
    "weight_grad_call",
]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh")
PRECISIONS = ("ieee", "tf32", "tf32x3")
ROUNDINGS = ("fused", "torch")

_PADDING_STRINGS = ("valid", "same", "same_upper", "same_lower", "causal")
FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
CONV_DTYPES = (*FLOATS, "uint8", "int8", "int16", "int32", "int64")
TRANSPOSED_DTYPES = (*FLOATS, "int64")

Pads = tuple[tuple[int, ...], tuple[int, ...]]


class Extras(NamedTuple):
    """The keyword-only arguments that go beyond torch, as the user wrote them. A tuple: one is made for every call."""

    padding_mode: str = "zeros"
    activation: str | None = None
    residual: Any = None
    scale: Any = None
    shift: Any = None
    precision: str | None = None
    backend: str | None = None
    rounding: str = "fused"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Checked integers of a convolution, one per spatial axis."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pad_lo: tuple[int, ...] = ()
    pad_hi: tuple[int, ...] = ()


def check_choice(op: str, argument: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise invalid(op, argument, value, "one of " + ", ".join(repr(choice) for choice in choices), ValueError)


def effective_precision(op: str, requested: str | None, dtype: str, device: str) -> str:
    """Return the precision of fp32 products. Only float32 on a GPU has a choice; it follows torch's cuDNN setting."""
    if requested is not None:
        check_choice(op, "precision", requested, PRECISIONS)
    if dtype != "float32":
        return "ieee"
    if requested is not None:
        return requested
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def check_rank(op: str, argument: str, shape: tuple[int, ...], ndim: int, batch_optional: bool) -> bool:
    """Check the rank of an array; return whether its batch axis is missing."""
    if len(shape) == ndim + 2:
        return False
    if batch_optional and len(shape) == ndim + 1:
        return True
    required = f"{ndim + 2}-D" + (f" (batched) or {ndim + 1}-D (unbatched)" if batch_optional else "")
    raise invalid(op, argument, shape, f"{required}; its shape has {len(shape)} axes")


def geometry_of(op: str, ndim: int, stride: Any, dilation: Any, groups: Any) -> Geometry:
    strides = int_tuple(op, "stride", stride, ndim)
    dilations = int_tuple(op, "dilation", dilation, ndim)
    group_count = integer(op, "groups", groups)
    if min(strides) < 1:
        raise invalid(op, "stride", stride, "positive")
    if min(dilations) < 1:
        raise invalid(op, "dilation", dilation, "positive")
    if group_count < 1:
        raise invalid(op, "groups", groups, "positive")
    return Geometry(strides, dilations, group_count)


def explicit_pads(op: str, padding: Any, ndim: int) -> Pads:
    """Return (lo, hi) pads of integers or pairs."""
    pairs = pad_pairs(op, "padding", padding, ndim)
    if pairs is None:
        pairs = tuple((pad, pad) for pad in int_tuple(op, "padding", padding, ndim))
    if min(min(pair) for pair in pairs) < 0:
        raise invalid(op, "padding", padding, "non-negative")
    return tuple(lo for lo, _ in pairs), tuple(hi for _, hi in pairs)


def pads_of(op: str, padding: Any, size: tuple[int, ...], kernel: tuple[int, ...], geometry: Geometry) -> Pads:
    """Return (lo, hi) pads of integers, pairs or a padding string."""
    if not isinstance(padding, str):
        return explicit_pads(op, padding, len(kernel))
    if padding not in _PADDING_STRINGS:
        raise invalid(op, "padding", padding, "a size or one of " + ", ".join(map(repr, _PADDING_STRINGS)))
    if padding == "same" and max(geometry.stride) > 1:
        raise invalid(
            op, "stride", geometry.stride, "1 with padding='same' ('same_upper' and 'same_lower' accept a stride)"
        )
    pairs = []
    for i, k, s, d in zip(size, kernel, geometry.stride, geometry.dilation, strict=True):
        if padding == "valid":
            pairs.append(shapes.pad_valid())
        elif padding == "same":
            pairs.append(shapes.pad_same(k, d))
        elif padding == "causal":
            pairs.append(shapes.pad_causal(k, d))
        else:
            solve = shapes.pad_same_upper if padding == "same_upper" else shapes.pad_same_lower
            pairs.append(solve(i, k, s, d))
    return tuple(lo for lo, _ in pairs), tuple(hi for _, hi in pairs)


def check_dtypes(op: str, kind: ArrayKind, named: dict[str, Any], allowed: tuple[str, ...]) -> str:
    dtypes = {argument: kind.dtype(array) for argument, array in named.items() if array is not None}
    first, dtype = next(iter(dtypes.items()))
    for argument, other in dtypes.items():
        if other != dtype:
            raise invalid(op, f"dtype of {argument}", other, f"{dtype}, the dtype of {first}")
    if dtype not in allowed:
        raise invalid(op, f"dtype of {first}", dtype, "one of " + ", ".join(allowed), NotImplementedError)
    return dtype


def bias_may_differ(dtype: str, bias: str) -> bool:
    """Tell whether torch adds a bias of another type to the empty result of a transposed convolution."""
    return (dtype in FLOATS[:4] and "complex" not in bias) or (dtype == "int64" and ("int" in bias or bias == "bool"))


def _check_weight(op: str, w_shape: tuple[int, ...], groups: int) -> None:
    if min(w_shape[2:]) < 1:
        raise invalid(op, "weight", w_shape, "of a kernel size of at least 1 along every axis")
    if w_shape[0] < groups or w_shape[0] % groups:
        raise invalid(op, "weight", w_shape, f"of a first axis that groups={groups} divides, and at least {groups}")


def _check_vector(op: str, kind: ArrayKind, argument: str, array: Any, channels: int) -> None:
    if array is not None and kind.shape(array) != (channels,):
        raise invalid(op, argument, kind.shape(array), f"1-D with {channels} elements, one per output channel")


def check_padding_mode(
    op: str, mode: str, size: tuple[int, ...], pad_lo: tuple[int, ...], pad_hi: tuple[int, ...]
) -> None:
    check_choice(op, "padding_mode", mode, PADDING_MODES)
    if mode != "reflect":
        return
    for i, lo, hi in zip(size, pad_lo, pad_hi, strict=True):
        if max(lo, hi) >= i:
            raise invalid(op, "padding", (lo, hi), f"less than the input size {i} with padding_mode='reflect'")


def _output_size(op: str, size: tuple[int, ...], kernel: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    for i, k, lo, hi, d in zip(size, kernel, geometry.pad_lo, geometry.pad_hi, geometry.dilation, strict=True):
        extent = shapes.effective_kernel(k, d)
        if extent > i + lo + hi:
            fits = f"a kernel of effective size {extent} does not fit in {i}+{lo}+{hi}"
            raise invalid(op, "weight", kernel, f"no larger than the padded input: {fits}")
    return shapes.map_axes(
        shapes.conv_output_size, size, kernel, geometry.stride, geometry.pad_lo, geometry.pad_hi, geometry.dilation
    )


def _check_result(op: str, shape: tuple[int, ...]) -> None:
    if prod(shape) >= 2**63:
        raise invalid(op, "result", shape, "of fewer than 2**63 elements")


def _with_batch(kind: ArrayKind, array: Any, unbatched: bool) -> Any:
    return kind.add_batch(array) if unbatched and array is not None else array


def result_formats(
    first: tuple[int, ...], first_strides: tuple[int, ...], second: tuple[int, ...], second_strides: tuple[int, ...]
) -> tuple[str, str, str]:
    """Return the formats of two operands, given by shapes and strides, and of their result.

    The result is channels-last if either is. In 1-D only the second, the weight, decides, as in torch, which makes 1-D
    input contiguous before it looks (``aten/src/ATen/native/Convolution.cpp``, ``_convolution``).
    """
    ours, others = memory_format(first, first_strides), memory_format(second, second_strides)
    deciding = (others,) if len(first) == 3 else (ours, others)
    return ours, others, CHANNELS_LAST if CHANNELS_LAST in deciding else CONTIGUOUS


def formats_of(kind: ArrayKind, first: Any, unbatched: bool, weight: Any) -> tuple[str, str, str]:
    """Return the formats of the first operand, the weight, and the result: :func:`result_formats` of arrays."""
    shape = kind.shape(first)
    strides = batched_strides(shape, kind.strides(first), unbatched)
    shape = (1, *shape) if unbatched else shape
    return result_formats(shape, strides, kind.shape(weight), kind.strides(weight))


def _check_epilogue(
    op: str, kind: ArrayKind, extras: Extras, dtype: str, channels: int, result: tuple[int, ...], unbatched: bool
) -> None:
    check_choice(op, "rounding", extras.rounding, ROUNDINGS)
    if extras.activation is not None:
        check_choice(op, "activation", extras.activation, ACTIVATIONS)
        if dtype not in FLOATS[:4]:
            raise invalid(op, "dtype of input", dtype, "a real float with an activation", NotImplementedError)
    _check_vector(op, kind, "scale", extras.scale, channels)
    _check_vector(op, kind, "shift", extras.shift, channels)
    expected = result[1:] if unbatched else result
    if extras.residual is not None and kind.shape(extras.residual) != expected:
        raise invalid(op, "residual", kind.shape(extras.residual), f"of the output's shape {expected}")


def rounding_of(requested: str, dtype: str, bias: bool, *steps: Any) -> str:
    """Return the rounding of a problem: as requested where `steps` follow the convolution in 16 bits, else "fused"."""
    stepwise = dtype in FLOATS[:2] and (bias or any(step is not None for step in steps))
    return requested if stepwise else "fused"


def _epilogue(op: str, bias: Any, extras: Extras, dtype: str, device: str) -> dict[str, Any]:
    """Return the fields of a problem that say what follows its sums, and how products are formed."""
    residual, scale, shift, activation = extras.residual, extras.scale, extras.shift, extras.activation
    return {
        "bias": bias is not None, "activation": activation, "residual": residual is not None,
        "scale": scale is not None, "shift": shift is not None,
        "precision": effective_precision(op, extras.precision, dtype, device),
        "rounding": rounding_of(extras.rounding, dtype, bias is not None, residual, scale, shift, activation),
    }  # fmt: skip


def conv_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras, dtypes: tuple[str, ...] = CONV_DTYPES,
) -> Call:  # fmt: skip
    """Check the arguments of a convolution, of one of `dtypes`, and describe it; see :func:`gpuconv.conv2d`."""
    named = {"input": input, "weight": weight, "bias": bias}
    named |= {"residual": extras.residual, "scale": extras.scale, "shift": extras.shift}
    kind = common_kind(op, named, ("input", "weight"))
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    unbatched = check_rank(op, "input", kind.shape(input), ndim, True)
    check_rank(op, "weight", kind.shape(weight), ndim, False)
    n, c, *size_list = (1, *kind.shape(input)) if unbatched else kind.shape(input)
    size, w_shape = tuple(size_list), kind.shape(weight)
    groups = geometry.groups
    _check_weight(op, w_shape, groups)
    if c != w_shape[1] * groups:
        required = f"of {w_shape[1] * groups} channels (weight {w_shape} x {groups} groups)"
        raise invalid(op, "input", kind.shape(input), required)
    _check_vector(op, kind, "bias", bias, w_shape[0])
    pad_lo, pad_hi = pads_of(op, padding, size, w_shape[2:], geometry)
    geometry = Geometry(geometry.stride, geometry.dilation, groups, pad_lo, pad_hi)
    check_padding_mode(op, extras.padding_mode, size, pad_lo, pad_hi)
    output = _output_size(op, size, w_shape[2:], geometry)
    if n and c and 0 in size:
        required = "of non-empty spatial axes (only batch and channels may be empty)"
        raise invalid(op, "input", kind.shape(input), required)
    dtype = check_dtypes(op, kind, named, dtypes)
    device = same_device(op, kind, named)
    _check_result(op, (n, w_shape[0], *output))
    k = w_shape[0] if c else 0  # torch: no input channels, no output channels
    _check_epilogue(op, kind, extras, dtype, k, (n, k, *output), unbatched)
    x_format, w_format, y_format = formats_of(kind, input, unbatched, weight)
    problem = ConvProblem(
        op=op, kind="fprop", n=n, c=c, k=k, groups=groups, input_size=size, kernel=w_shape[2:], output_size=output,
        stride=geometry.stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=geometry.dilation,
        padding_mode=extras.padding_mode, dtype=dtype, device=device, array=kind.name,
        x_format=x_format, w_format=w_format, y_format=y_format, **_epilogue(op, bias, extras, dtype, device),
    )  # fmt: skip
    arrays = {
        "x": _with_batch(kind, input, unbatched), "w": weight if c else weight[:0],
        "bias": bias if c or bias is None else bias[:0], "residual": _with_batch(kind, extras.residual, unbatched),
        "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    return Call(problem, arrays, kind, unbatched, extras.backend)


def transposed_sizes(
    op: str,
    ndim: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    geometry: Geometry,
    op_pad: Any,
    wanted: Any,
    empty_batch: bool,
) -> tuple[int, ...]:
    """Return the output size of a transposed convolution from `output_padding` or from a wanted `output_size`.

    An empty batch may have an empty output and any output padding, as in torch.
    """
    extra = int_tuple(op, "output_padding", op_pad, ndim)
    axes = (size, kernel, geometry.stride, geometry.pad_lo, geometry.pad_hi, geometry.dilation)
    if wanted is not None:
        if max(extra) > 0:
            raise invalid(op, "output_padding", op_pad, "0 where output_size is given", ValueError)
        sizes = _wanted_size(op, ndim, wanted)
        try:
            extra = tuple(
                shapes.conv_transpose_output_padding(i, target, *rest)
                for target, (i, *rest) in zip(sizes, zip(*axes, strict=True), strict=True)
            )
        except ValueError as error:
            raise invalid(op, "output_size", wanted, f"reachable: {error}", ValueError) from None
    if any(size < 0 for size in extra):
        raise invalid(op, "output_padding", op_pad, "non-negative")
    for value, s, d in zip(extra, geometry.stride, geometry.dilation, strict=True):
        if value >= max(s, d) and not empty_batch:
            raise invalid(op, "output_padding", op_pad, f"smaller than stride {s} or dilation {d}")
    output = shapes.map_axes(shapes.conv_transpose_output_size, *axes, extra)
    if any(size < (0 if empty_batch else 1) for size in output):  # min() would relate symbolic sizes to each other
        pads = (geometry.pad_lo, geometry.pad_hi)
        raise invalid(op, "padding", pads, f"small enough for a non-empty output (it has size {output})")
    return output


def _wanted_size(op: str, ndim: int, wanted: Any) -> tuple[int, ...]:
    """Return the spatial part of an `output_size` that may carry the batch and channel axes too, as torch's modules."""
    if not isinstance(wanted, list | tuple):
        return (integer(op, "output_size", wanted),) * ndim
    sizes = tuple(integer(op, "output_size", item) for item in wanted)
    if len(sizes) not in (ndim, ndim + 1, ndim + 2):
        raise invalid(op, "output_size", wanted, f"{ndim} sizes (or {ndim + 2} with batch and channels)", ValueError)
    return sizes[-ndim:]


def conv_transpose_call(
    op: str,
    ndim: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    output_size: Any,
    extras: Extras,
) -> Call:
    """Check the arguments of a transposed convolution and describe it. See :func:`gpuconv.conv_transpose2d`."""
    named = {"input": input, "weight": weight, "bias": bias}
    named |= {"residual": extras.residual, "scale": extras.scale, "shift": extras.shift}
    kind = common_kind(op, named, ("input", "weight"))
    if isinstance(padding, str):
        raise invalid(op, "padding", padding, "integers or pairs ((lo, hi), ...)", TypeError)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    unbatched = check_rank(op, "input", kind.shape(input), ndim, True)
    check_rank(op, "weight", kind.shape(weight), ndim, False)
    n, k, *size_list = (1, *kind.shape(input)) if unbatched else kind.shape(input)
    size, w_shape, groups = tuple(size_list), kind.shape(weight), geometry.groups
    pad_lo, pad_hi = explicit_pads(op, padding, ndim)
    geometry = Geometry(geometry.stride, geometry.dilation, groups, pad_lo, pad_hi)
    _check_weight(op, w_shape, groups)
    if k != w_shape[0]:
        raise invalid(op, "input", kind.shape(input), f"of {w_shape[0]} channels, the first axis of weight {w_shape}")
    if w_shape[1] == 0:
        raise invalid(op, "weight", w_shape, "of a non-empty second axis")
    c = w_shape[1] * groups
    _check_vector(op, kind, "bias", bias, c)
    output = transposed_sizes(op, ndim, size, w_shape[2:], geometry, output_padding, output_size, n == 0)
    if n and 0 in size:
        raise invalid(op, "input", kind.shape(input), "of non-empty spatial axes (only the batch may be empty)")
    if n == 0 and bias is not None and bias_may_differ(kind.dtype(input), kind.dtype(bias)):
        named = {**named, "bias": None}
    dtype = check_dtypes(op, kind, named, TRANSPOSED_DTYPES)
    device = same_device(op, kind, named)
    _check_result(op, (n, c, *output))
    _check_epilogue(op, kind, extras, dtype, c, (n, c, *output), unbatched)
    y_format, w_format, x_format = formats_of(kind, input, unbatched, weight)
    problem = ConvProblem(
        op=op, kind="transposed", n=n, c=c, k=k, groups=groups, input_size=output, kernel=w_shape[2:],
        output_size=size, stride=geometry.stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=geometry.dilation,
        padding_mode="zeros", dtype=dtype, device=device, array=kind.name,
        x_format=x_format, w_format=w_format, y_format=y_format, **_epilogue(op, bias, extras, dtype, device),
    )  # fmt: skip
    arrays = {
        "y": _with_batch(kind, input, unbatched), "w": weight, "bias": bias,
        "residual": _with_batch(kind, extras.residual, unbatched), "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    return Call(problem, arrays, kind, unbatched, extras.backend)


def _grad_call(
    op: str,
    ndim: int,
    pass_: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    named: dict[str, Any],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    extras: Extras,
) -> Call:
    """Describe the gradient `pass_` of a convolution of batched `x_shape` with `w_shape`."""
    kind = common_kind(op, named, tuple(named))
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    grad = named["grad_output"]
    check_rank(op, "grad_output", kind.shape(grad), ndim, False)
    n, c, *size_list = x_shape
    size, groups = tuple(size_list), geometry.groups
    _check_weight(op, w_shape, groups)
    if c != w_shape[1] * groups:
        required = f"of {w_shape[1] * groups} channels (weight {w_shape} x {groups} groups)"
        raise invalid(op, "input size", x_shape, required)
    pad_lo, pad_hi = pads_of(op, padding, size, w_shape[2:], geometry)
    geometry = Geometry(geometry.stride, geometry.dilation, groups, pad_lo, pad_hi)
    check_padding_mode(op, extras.padding_mode, size, pad_lo, pad_hi)
    y_shape = (n, w_shape[0], *_output_size(op, size, w_shape[2:], geometry))
    if kind.shape(grad) != y_shape:
        raise invalid(op, "grad_output", kind.shape(grad), f"of the output's shape {y_shape}")
    dtype = check_dtypes(op, kind, named, FLOATS)
    device = same_device(op, kind, named)
    other = named["weight"] if pass_ == "dgrad" else named["input"]
    y_format, other_format, result_format = formats_of(kind, grad, False, other)
    x_format, w_format = (result_format, other_format) if pass_ == "dgrad" else (other_format, result_format)
    problem = ConvProblem(
        op=op, kind=pass_, n=n, c=c, k=w_shape[0], groups=groups, input_size=size, kernel=w_shape[2:],
        output_size=y_shape[2:], stride=geometry.stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=geometry.dilation,
        padding_mode=extras.padding_mode, dtype=dtype, device=device, array=kind.name,
        x_format=x_format, w_format=w_format, y_format=y_format,
        precision=effective_precision(op, extras.precision, dtype, device),
    )  # fmt: skip
    arrays = {"y": grad, "w": other} if pass_ == "dgrad" else {"y": grad, "x": other}
    return Call(problem, arrays, kind, False, extras.backend)


def sizes_of(op: str, argument: str, value: Any, ndim: int) -> tuple[int, ...]:
    sizes = int_tuple(op, argument, value, ndim + 2) if isinstance(value, list | tuple) else ()
    if len(sizes) != ndim + 2 or any(size < 0 for size in sizes):
        raise invalid(op, argument, value, f"{ndim + 2} non-negative sizes")
    return sizes


def input_grad_call(
    op: str, ndim: int, input_size: Any, weight: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Check the arguments of a data gradient and describe it. See :func:`gpuconv.conv2d_input_grad`."""
    named = {"grad_output": grad_output, "weight": weight}
    kind = common_kind(op, named, tuple(named))
    check_rank(op, "weight", kind.shape(weight), ndim, False)
    x_shape = sizes_of(op, "input_size", input_size, ndim)
    return _grad_call(
        op, ndim, "dgrad", x_shape, kind.shape(weight), named, stride, padding, dilation, groups, extras
    )  # fmt: skip


def weight_grad_call(
    op: str, ndim: int, input: Any, weight_size: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Check the arguments of a weight gradient and describe it. See :func:`gpuconv.conv2d_weight_grad`."""
    named = {"grad_output": grad_output, "input": input}
    kind = common_kind(op, named, tuple(named))
    check_rank(op, "input", kind.shape(input), ndim, False)
    w_shape = sizes_of(op, "weight_size", weight_size, ndim)
    return _grad_call(
        op, ndim, "wgrad", kind.shape(input), w_shape, named, stride, padding, dilation, groups, extras
    )  # fmt: skip
