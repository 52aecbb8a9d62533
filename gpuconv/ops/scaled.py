"""Convolutions of 8-bit tensors with scales: straight to the dispatcher, or by the operator ``gpuconv::scaled_fprop``.

There are no gradients: 8-bit numbers have none, and those of scales and bias are refused. So there are two tiers here:
what torch traces, transforms or watches goes by the operator, everything else to the dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from ..arrays import TORCH
from ..config import forced_backend
from ..dispatch import explaining, keyed, run, scaled_call
from ..errors import invalid
from ..normalize import (
    ACTIVATIONS,
    OPERANDS,
    SCALES,
    ScaledExtras,
    check_bias,
    check_choice,
    check_rank,
    check_scale,
    formats_of,
    geometry_of,
    is_number,
    out_dtype_of,
    pads_of,
    same_device,
)
from . import conv_fake, conv_traced
from .conv_library import LIBRARY, Geometry, chosen_backend, records
from .tiers import DIRECT, repeated, tier_of

__all__ = ["convolution", "scaled_fprop"]

Tensor = Any

_TENSORS = ("input", "weight", "bias", *SCALES)


def _refuse_gradients(op: str, tensors: Sequence[Any]) -> None:
    """Refuse tensors whose gradient would be recorded, or that have a tangent: there are no derivatives.

    Raises
    ------
    RuntimeError
        If there is one.
    """
    grad, forward = torch.is_grad_enabled(), forward_ad._current_level >= 0
    if not (grad or forward):
        return
    for name, tensor in zip(_TENSORS, tensors):
        if not isinstance(tensor, torch.Tensor):
            continue
        if grad and tensor.requires_grad:
            wanted = "without requires_grad (this function is forward only; detach it, or call under torch.no_grad())"
            raise invalid(op, name, tuple(tensor.shape), wanted)
        if forward and forward_ad.unpack_dual(tensor).tangent is not None:
            raise invalid(op, name, tuple(tensor.shape), "without a tangent (this function has no derivatives)")


def convolution(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: ScaledExtras,
) -> Any:  # fmt: skip
    """Run a convolution on 8-bit tensors. Arguments: see :func:`gpuconv.scaled_conv2d`."""
    geometry = (stride, padding, dilation, groups)
    _refuse_gradients(op, (input, weight, bias, *extras[:3]))
    if torch.compiler.is_compiling():
        return _traced(op, ndim, input, weight, bias, *geometry, extras)
    arrays, settings, of_key = keyed(input, weight, bias, geometry, extras)
    result, key = repeated(op, arrays, settings, of_key)
    if result is not None:
        return result
    if tier_of(*arrays) != DIRECT and not explaining():
        return _traced(op, ndim, input, weight, bias, *geometry, extras)
    return run(scaled_call(op, ndim, input, weight, bias, *geometry, extras, key))


def _traced(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: ScaledExtras,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::scaled_fprop``, of what torch may be tracing. Arguments: see :func:`convolution`."""
    scales = extras.scales
    tensors = {name: None if is_number(scale) else scale for name, scale in scales.items()}
    factors = [scale if is_number(scale) else 1.0 for scale in scales.values()]
    required = ("input", "weight", *(name for name in SCALES[:2] if not is_number(scales[name])))
    conv_traced._check_tensors(op, {"input": input, "weight": weight, "bias": bias, **tensors}, required)
    dtype = TORCH.dtype(input)
    out_dtype = out_dtype_of(op, extras.out_dtype, "torch", dtype, extras.output_scale)
    if extras.activation is not None:
        check_choice(op, "activation", extras.activation, ACTIVATIONS)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    unbatched = check_rank(op, "input", conv_traced._shape(input), ndim, True)
    check_rank(op, "weight", conv_traced._shape(weight), ndim, False)
    pad_lo, pad_hi = pads_of(op, padding, conv_traced._shape(input)[-ndim:], conv_traced._shape(weight)[2:], geometry)
    common = (geometry.stride, pad_lo, pad_hi, geometry.dilation, geometry.groups)
    traced = torch.compiler.is_compiling()
    options = (out_dtype, extras.activation, extras.backend if traced else forced_backend(extras.backend) or "auto")
    y = scaled_fprop(
        conv_traced._batched(input, unbatched), weight, bias, *tensors.values(), *factors, *common, *options
    )
    return y.squeeze(0) if unbatched else y


def _arguments(args: Sequence[Any]) -> tuple[str, Geometry, ScaledExtras]:
    """Return name, geometry and keyword arguments of the function that the operator stands for."""
    x, tensors, factors, (out_dtype, activation, backend) = args[0], args[3:6], args[6:9], args[14:17]
    scales = [factor if tensor is None else tensor for tensor, factor in zip(tensors, factors)]
    if out_dtype != TORCH.dtype(x):
        scales[2] = None
    extras = ScaledExtras(scales[0], scales[1], scales[2], out_dtype, activation, backend)
    stride, pad_lo, pad_hi, dilation, groups = args[9:14]
    return f"scaled_conv{x.dim() - 2}d", Geometry(stride, pad_lo, pad_hi, dilation, groups, "zeros"), extras


def _real(*args: Any) -> Tensor:
    """Convolution: y of x, w, their scales and a bias."""
    x, w, bias = args[:3]
    op, geometry, extras = _arguments(args)
    extras = extras._replace(backend=chosen_backend(extras.backend))
    of_conv = (geometry.stride, geometry.pads, geometry.dilation, geometry.groups)
    return run(scaled_call(op, x.dim() - 2, x, w, bias, *of_conv, extras))


def _fake(*args: Any) -> Tensor:
    """Return an empty y."""
    x, w, bias = args[:3]
    op, geometry, extras = _arguments(args)
    named = {"input": x, "weight": w}
    conv_fake._check_options(op, "zeros", extras.activation, "fused", None, extras.backend)
    conv_fake._check_tensors(op, named, OPERANDS)
    same_device(op, TORCH, named | {"bias": bias} | dict(zip(SCALES, args[3:6])))
    shape = conv_fake.fprop_shape(op, x, w, geometry)
    for name, scale in extras.scales.items():
        if scale is not None:
            check_scale(op, TORCH, name, scale, w.shape[0] if name == "weight_scale" else None)
    check_bias(op, TORCH, bias, w.shape[0])
    out_dtype = getattr(torch, out_dtype_of(op, extras.out_dtype, "torch", TORCH.dtype(x), extras.output_scale))
    return conv_fake._empty(x, shape, formats_of(TORCH, x, False, w)[2], out_dtype)


_SCHEMA = (
    "Tensor x, Tensor w, Tensor? bias, Tensor? input_scale, Tensor? weight_scale, Tensor? output_scale, "
    "float input_factor, float weight_factor, float output_factor, "
    "SymInt[] stride, SymInt[] pad_lo, SymInt[] pad_hi, SymInt[] dilation, SymInt groups, "
    "str out_dtype, str? activation, str? backend"
)

LIBRARY.define(f"scaled_fprop({_SCHEMA}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
LIBRARY.impl("scaled_fprop", _real, "CompositeExplicitAutograd")
torch.library.register_fake("gpuconv::scaled_fprop", _fake, lib=LIBRARY)
scaled_fprop = torch.ops.gpuconv.scaled_fprop.default


def _autograd(*args: Any) -> Tensor:
    if records(*args[:6]):
        _refuse_gradients(f"scaled_conv{args[0].dim() - 2}d", args[:6])
    with torch._C._AutoDispatchBelowAutograd():
        return scaled_fprop(*args)


LIBRARY.impl("scaled_fprop", _autograd, "Autograd")
