"""From what the user wrote to the operators of :mod:`gpuconv.ops.conv_library`, for calls that torch may be tracing.

Sizes may be symbolic, so nothing here builds a problem. What the user wrote is brought into canonical form here, by the
same functions as everywhere; sizes are checked by the operators, fake or real.
"""

from __future__ import annotations

from typing import Any

import torch

from ..arrays import TORCH
from ..config import forced_backend
from ..costs import device_elsewhere
from ..errors import invalid
from ..normalize import (
    ACTIVATIONS,
    PADDING_MODES,
    PRECISIONS,
    ROUNDINGS,
    Extras,
    Geometry,
    check_choice,
    check_rank,
    effective_precision,
    explicit_pads,
    geometry_of,
    pads_of,
    sizes_of,
    transposed_sizes,
)
from . import conv_library

__all__ = ["convolution", "input_gradient", "transposed_convolution", "weight_gradient"]

Tensor = Any


def _check_tensors(op: str, named: dict[str, Any], required: tuple[str, ...]) -> None:
    for argument, tensor in named.items():
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or argument in required):
            raise TypeError(f"{op}: {argument} must be a torch array, but got {type(tensor).__name__}")
        if tensor is not None:
            TORCH.check(op, argument, tensor)


def _options(op: str, tensor: Tensor, extras: Extras) -> tuple[str | None, str | None]:
    """Check the choices in `extras`; return precision and backend for the operator.

    Where nothing compiles, the settings that hold now are captured. A compiled graph keeps what the arguments say.
    """
    check_choice(op, "padding_mode", extras.padding_mode, PADDING_MODES)
    if extras.activation is not None:
        check_choice(op, "activation", extras.activation, ACTIVATIONS)
    check_choice(op, "rounding", extras.rounding, ROUNDINGS)
    if extras.precision is not None:
        check_choice(op, "precision", extras.precision, PRECISIONS)
    if torch.compiler.is_compiling():
        return extras.precision, extras.backend
    dtype, device = str(tensor.dtype).removeprefix("torch."), device_elsewhere() or str(tensor.device)
    return effective_precision(op, extras.precision, dtype, device), forced_backend(extras.backend) or "auto"


_MESSAGES_TRACED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
"""Whether Dynamo follows a message that is made of the arguments of a function; torch 2.11 breaks the graph at it."""


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _batched(tensor: Tensor | None, unbatched: bool) -> Tensor | None:
    return tensor.unsqueeze(0) if unbatched and tensor is not None else tensor


def convolution(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::fprop``. Arguments: see :func:`gpuconv.conv2d`."""
    named = {"input": input, "weight": weight, "bias": bias}
    named |= {"residual": extras.residual, "scale": extras.scale, "shift": extras.shift}
    _check_tensors(op, named, ("input", "weight"))
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    unbatched = check_rank(op, "input", _shape(input), ndim, True)
    check_rank(op, "weight", _shape(weight), ndim, False)
    pad_lo, pad_hi = pads_of(op, padding, _shape(input)[-ndim:], _shape(weight)[2:], geometry)
    precision, backend = _options(op, input, extras)
    x, residual = _batched(input, unbatched), _batched(extras.residual, unbatched)
    common = (geometry.stride, pad_lo, pad_hi, geometry.dilation, geometry.groups, extras.padding_mode)
    fused = (extras.scale, extras.shift, residual)
    y = conv_library.fprop(x, weight, bias, *fused, *common, extras.activation, extras.rounding, precision, backend)
    return y.squeeze(0) if unbatched else y


def transposed_convolution(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any, output_size: Any, extras: Extras,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::dgrad`` as an operation. Arguments: see :func:`gpuconv.conv_transpose2d`."""
    named = {"input": input, "weight": weight, "bias": bias}
    named |= {"residual": extras.residual, "scale": extras.scale, "shift": extras.shift}
    _check_tensors(op, named, ("input", "weight"))
    if isinstance(padding, str):
        raise invalid(op, "padding", padding, "integers or pairs ((lo, hi), ...)", TypeError)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    unbatched = check_rank(op, "input", _shape(input), ndim, True)
    check_rank(op, "weight", _shape(weight), ndim, False)
    pad_lo, pad_hi = explicit_pads(op, padding, ndim)
    geometry = Geometry(geometry.stride, geometry.dilation, geometry.groups, pad_lo, pad_hi)
    size, kernel = _shape(input)[-ndim:], _shape(weight)[2:]
    empty = not unbatched and isinstance(input.shape[0], int) and input.shape[0] == 0
    input_size = transposed_sizes(op, ndim, size, kernel, geometry, output_padding, output_size, empty)
    precision, backend = _options(op, input, extras)
    dy, residual = _batched(input, unbatched), _batched(extras.residual, unbatched)
    common = (input_size, geometry.stride, pad_lo, pad_hi, geometry.dilation, geometry.groups, extras.padding_mode)
    fused = (extras.scale, extras.shift, residual)
    x = conv_library.dgrad(
        dy, weight, bias, *fused, *common, extras.activation, extras.rounding, precision, backend, True
    )
    return x.squeeze(0) if unbatched else x


def input_gradient(
    op: str, ndim: int, input_size: Any, weight: Tensor, grad_output: Tensor,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::dgrad``. Arguments: see :func:`gpuconv.conv2d_input_grad`."""
    _check_tensors(op, {"grad_output": grad_output, "weight": weight}, ("grad_output", "weight"))
    check_rank(op, "weight", _shape(weight), ndim, False)
    n, c, *size = sizes_of(op, "input_size", input_size, ndim)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    check_rank(op, "grad_output", _shape(grad_output), ndim, False)
    _require(op, n == grad_output.shape[0], "input_size must have the batch of grad_output")
    _require(op, c == weight.shape[1] * geometry.groups, "input_size must have the channels of weight times groups")
    pad_lo, pad_hi = pads_of(op, padding, tuple(size), _shape(weight)[2:], geometry)
    precision, backend = _options(op, grad_output, extras)
    common = (tuple(size), geometry.stride, pad_lo, pad_hi, geometry.dilation, geometry.groups, extras.padding_mode)
    nothing = (None,) * 4
    return conv_library.dgrad(grad_output, weight, *nothing, *common, None, "fused", precision, backend, False)


def weight_gradient(
    op: str, ndim: int, input: Tensor, weight_size: Any, grad_output: Tensor,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::wgrad``. Arguments: see :func:`gpuconv.conv2d_weight_grad`."""
    _check_tensors(op, {"grad_output": grad_output, "input": input}, ("grad_output", "input"))
    check_rank(op, "input", _shape(input), ndim, False)
    k, per_group, *kernel = sizes_of(op, "weight_size", weight_size, ndim)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    check_rank(op, "grad_output", _shape(grad_output), ndim, False)
    _require(op, k == grad_output.shape[1], "weight_size must have the channels of grad_output")
    _require(op, per_group * geometry.groups == input.shape[1], "weight_size must have the input's channels per group")
    pad_lo, pad_hi = pads_of(op, padding, _shape(input)[2:], tuple(kernel), geometry)
    precision, backend = _options(op, input, extras)
    common = (tuple(kernel), geometry.stride, pad_lo, pad_hi, geometry.dilation, geometry.groups, extras.padding_mode)
    return conv_library.wgrad(input, grad_output, *common, precision, backend)


def _require(op: str, condition: Any, text: str) -> None:
    if torch.compiler.is_compiling() and not _MESSAGES_TRACED:
        torch._check(condition)
        return
    torch._check(condition, lambda: f"{op}: {text}")
