"""Convolutions of torch tensors, in three tiers that one cheap test per call chooses between.

1. Nothing records a gradient and no transform is active: straight to the dispatcher, or where the same call was made
   before and can be repeated, straight to its launches.
2. Gradients, forward-mode tangents or ``torch.func`` transforms: ``autograd.Function`` (:mod:`.conv_autograd`).
3. Compiling, exporting, a dispatch mode, a tensor subclass or a meta tensor: ``torch.library`` operators
   (:mod:`.conv_library`), which cost more per call than the others.

Pools take the same tiers in :mod:`.pool`. Importing this module imports torch and registers the operators of
both; the public functions do so at the first tensor they see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..config import forced_backend
from ..dispatch import conv_call, conv_transpose_call, explaining, input_grad_call, run, weight_grad_call
from ..normalize import Extras
from ..problem import Call, ConvProblem
from . import conv_traced, dtensor, flops, late
from . import deform as ops_deform
from . import pool as ops_pool
from . import scaled as ops_scaled
from . import separable as ops_separable
from .conv_autograd import OPERANDS, apply
from .conv_library import autocast
from .epilogue import compose
from .tiers import OPERATOR, RECORDED, autocasts, repeated, tier_of

__all__ = [
    "convolution",
    "input_gradient",
    "ops_deform",
    "ops_pool",
    "ops_scaled",
    "ops_separable",
    "transposed_convolution",
    "weight_gradient",
]

Tensor = Any

_EPILOGUE = ("scale", "shift", "residual")


def _recorded(call: Call) -> Tensor:
    """Run a call in the second tier. An epilogue beyond a bias is composed outside of the bilinear operator."""
    problem, arrays = call.problem, call.arrays
    assert isinstance(problem, ConvProblem)
    activation, used = problem.activation, [name for name in _EPILOGUE if arrays.get(name) is not None]
    if activation is not None or used:
        rounding = problem.rounding if problem.bias else "fused"
        problem = replace(problem, activation=None, scale=False, shift=False, residual=False, rounding=rounding)
    first, second = (arrays[name] for name in OPERANDS[problem.kind])
    result = apply(problem, forced_backend(call.backend) or "auto", first, second, arrays.get("bias"))
    if activation is not None or used:
        result = compose(result, arrays["scale"], arrays["shift"], arrays["residual"], activation)
    return call.kind.drop_batch(result) if call.unbatched else result


def _cast(
    input: Tensor, weight: Tensor, bias: Tensor | None, extras: Extras
) -> tuple[Tensor, Tensor, Tensor | None, Extras]:
    """Cast every tensor of a call as autocast asks, all of them to one type."""
    tensors = (input, weight, bias, extras.scale, extras.shift, extras.residual)
    if not all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in tensors):
        return input, weight, bias, extras
    input, weight, bias, scale, shift, residual = autocast(*tensors)
    return input, weight, bias, extras._replace(scale=scale, shift=shift, residual=residual)


def _in_complex64(
    run: Callable[..., Any], op: str, ndim: int, tensors: tuple[Any, ...], geometry: tuple[Any, ...], extras: Extras
) -> Any:
    """Run a convolution of complex numbers of 32 bits, which no kernel has, in those of 64: no product rounds."""
    wide = [None if tensor is None else tensor.to(torch.complex64) for tensor in tensors]
    input, weight, bias, scale, shift, residual = wide
    result = run(op, ndim, input, weight, bias, *geometry, extras._replace(scale=scale, shift=shift, residual=residual))
    return result.to(torch.complex32) if isinstance(result, torch.Tensor) else result


def _of_complex32(tensors: tuple[Any, ...]) -> bool:
    """Tell whether all tensors of a call are complex numbers of 32 bits."""
    given = [tensor for tensor in tensors if tensor is not None]
    return all(isinstance(tensor, torch.Tensor) and tensor.dtype is torch.complex32 for tensor in given)


def convolution(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Any:  # fmt: skip
    """Run a convolution on torch tensors. Arguments: see :func:`gpuconv.conv2d`."""
    key = None
    if not torch.compiler.is_compiling():
        _, _, residual, scale, shift, *_ = extras  # of a tuple this takes half as long as attributes
        arrays = (input, weight, bias, residual, scale, shift)
        result, key = repeated(op, arrays, (stride, padding, dilation, groups), extras)
        if result is not None:
            return result
    if autocasts(input):
        input, weight, bias, extras = _cast(input, weight, bias, extras)
    if input.dtype is torch.complex32:
        tensors = (input, weight, bias, extras.scale, extras.shift, extras.residual)
        if _of_complex32(tensors):
            return _in_complex64(convolution, op, ndim, tensors, (stride, padding, dilation, groups), extras)
    arguments = (op, ndim, input, weight, bias, stride, padding, dilation, groups, extras)
    if torch.compiler.is_compiling():
        return conv_traced.convolution(*arguments)
    tier = tier_of(input, weight, bias, extras.scale, extras.shift, extras.residual)
    if tier == OPERATOR and not explaining():
        return conv_traced.convolution(*arguments)
    call = conv_call(*arguments, key)
    return _recorded(call) if tier == RECORDED and not explaining() else run(call)


def transposed_convolution(
    op: str, ndim: int, input: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any, output_size: Any, extras: Extras,
) -> Any:  # fmt: skip
    """Run a transposed convolution on torch tensors. Arguments: see :func:`gpuconv.conv_transpose2d`."""
    key, geometry = None, (stride, padding, output_padding, groups, dilation, output_size)
    if not torch.compiler.is_compiling():
        _, _, residual, scale, shift, *_ = extras  # of a tuple this takes half as long as attributes
        arrays = (input, weight, bias, residual, scale, shift)
        result, key = repeated(op, arrays, geometry, extras)
        if result is not None:
            return result
    if autocasts(input):
        input, weight, bias, extras = _cast(input, weight, bias, extras)
    if input.dtype is torch.complex32:
        tensors = (input, weight, bias, extras.scale, extras.shift, extras.residual)
        if _of_complex32(tensors):
            return _in_complex64(transposed_convolution, op, ndim, tensors, geometry, extras)
    arguments = (op, ndim, input, weight, bias, *geometry, extras)
    if torch.compiler.is_compiling():
        return conv_traced.transposed_convolution(*arguments)
    tier = tier_of(input, weight, bias, extras.scale, extras.shift, extras.residual)
    if tier == OPERATOR and not explaining():
        return conv_traced.transposed_convolution(*arguments)
    call = conv_transpose_call(*arguments, key)
    return _recorded(call) if tier == RECORDED and not explaining() else run(call)


def input_gradient(
    op: str, ndim: int, input_size: Any, weight: Tensor, grad_output: Tensor,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Any:  # fmt: skip
    """Run a data gradient on torch tensors. Arguments: see :func:`gpuconv.conv2d_input_grad`."""
    key = None
    if not torch.compiler.is_compiling():
        settings = (input_size, stride, padding, dilation, groups)
        result, key = repeated(op, (grad_output, weight), settings, extras)
        if result is not None:
            return result
    if autocasts(grad_output):
        grad_output, weight, _, extras = _cast(grad_output, weight, None, extras)
    arguments = (op, ndim, input_size, weight, grad_output, stride, padding, dilation, groups, extras)
    if torch.compiler.is_compiling():
        return conv_traced.input_gradient(*arguments)
    tier = tier_of(weight, grad_output)
    if tier == OPERATOR and not explaining():
        return conv_traced.input_gradient(*arguments)
    call = input_grad_call(*arguments, key)
    return _recorded(call) if tier == RECORDED and not explaining() else run(call)


def weight_gradient(
    op: str, ndim: int, input: Tensor, weight_size: Any, grad_output: Tensor,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Any:  # fmt: skip
    """Run a weight gradient on torch tensors. Arguments: see :func:`gpuconv.conv2d_weight_grad`."""
    key = None
    if not torch.compiler.is_compiling():
        settings = (weight_size, stride, padding, dilation, groups)
        result, key = repeated(op, (grad_output, input), settings, extras)
        if result is not None:
            return result
    if autocasts(input):
        input, grad_output, _, extras = _cast(input, grad_output, None, extras)
    arguments = (op, ndim, input, weight_size, grad_output, stride, padding, dilation, groups, extras)
    if torch.compiler.is_compiling():
        return conv_traced.weight_gradient(*arguments)
    tier = tier_of(input, grad_output)
    if tier == OPERATOR and not explaining():
        return conv_traced.weight_gradient(*arguments)
    call = weight_grad_call(*arguments, key)
    return _recorded(call) if tier == RECORDED and not explaining() else run(call)


flops.watch()
dtensor.watch()
late.operators = sys.modules[__name__]
