"""What the convolution operators return, without values: shape, dtype, device and strides, also of symbolic sizes.

Sizes come from ``shapes`` and memory formats from the rule that real calls follow. No problem is built: sizes may be
symbolic, and hashing one would fix it. Conditions on sizes go through ``torch._check``, which a trace keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import shapes
from ..arrays import CHANNELS_LAST, TORCH, channels_last_strides
from ..config import validate_backend
from ..normalize import (
    ACTIVATIONS,
    CONV_DTYPES,
    FLOATS,
    PADDING_MODES,
    PRECISIONS,
    ROUNDINGS,
    TRANSPOSED_DTYPES,
    bias_may_differ,
    check_choice,
    check_dtypes,
    formats_of,
    same_device,
)

__all__ = ["fake_dgrad", "fake_fprop", "fake_wgrad", "fprop_shape", "is_zero"]

Tensor = Any
Sizes = Sequence[int]


def _require(op: str, condition: Any, text: str) -> None:
    torch._check(condition, lambda: f"{op}: {text}")


def is_zero(size: Any) -> bool:
    """Tell whether a size is zero; a symbolic one is not (torch traces 0 as a constant)."""
    return isinstance(size, int) and size == 0


def _empty(like: Tensor, shape: Sizes, memory_format: str, dtype: Any = None) -> Tensor:
    dtype = like.dtype if dtype is None else dtype
    if memory_format == CHANNELS_LAST:
        return torch.empty_strided(shape, channels_last_strides(shape), dtype=dtype, device=like.device)
    return torch.empty(shape, dtype=dtype, device=like.device)


def _check_options(
    op: str, padding_mode: str, activation: str | None, rounding: str, precision: str | None, backend: str | None
) -> None:
    check_choice(op, "padding_mode", padding_mode, PADDING_MODES)
    if activation is not None:
        check_choice(op, "activation", activation, ACTIVATIONS)
    check_choice(op, "rounding", rounding, ROUNDINGS)
    if precision is not None:
        check_choice(op, "precision", precision, PRECISIONS)
    if backend is not None:
        validate_backend(backend, "backend")


def _check_tensors(op: str, named: dict[str, Tensor | None], dtypes: tuple[str, ...]) -> None:
    check_dtypes(op, TORCH, named, dtypes)
    same_device(op, TORCH, named)


def _check_epilogue(op: str, channels: int, shape: Sizes, vectors: dict[str, Any], residual: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None:
            _require(op, vector.dim() == 1, f"{name} must be 1-D, one element per output channel")
            _require(op, vector.shape[0] == channels, f"{name} must have one element per output channel")
    if residual is not None:
        _require(op, residual.dim() == len(shape), "residual must be of the output's shape")
        for size, wanted in zip(residual.shape, shape):
            _require(op, size == wanted, "residual must be of the output's shape")


def _output_size(op: str, size: Sizes, kernel: Sizes, geometry: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the convolution's output size; `geometry` is stride, pad_lo, pad_hi, dilation, groups, padding mode."""
    stride, pad_lo, pad_hi, dilation, _, mode = geometry
    for i, k, lo, hi, d in zip(size, kernel, pad_lo, pad_hi, dilation, strict=True):
        extent = shapes.effective_kernel(k, d)
        _require(op, extent <= i + lo + hi, "weight must be no larger than the padded input")
        if mode == "reflect":
            _require(op, lo < i, "padding must be less than the input size with padding_mode='reflect'")
            _require(op, hi < i, "padding must be less than the input size with padding_mode='reflect'")
    return shapes.map_axes(shapes.conv_output_size, size, kernel, stride, pad_lo, pad_hi, dilation)


def fprop_shape(op: str, x: Tensor, w: Tensor, geometry: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the shape of y; `geometry` is stride, pad_lo, pad_hi, dilation, groups, padding mode."""
    groups = geometry[4]
    _require(op, x.dim() == w.dim(), "input and weight must be of one rank")
    _require(op, x.shape[1] == w.shape[1] * groups, "weight must have the input's channels per group")
    _require(op, w.shape[0] % groups == 0, "weight must be of a first axis that groups divides")
    channels = 0 if is_zero(x.shape[1]) else w.shape[0]  # as in torch
    return (x.shape[0], channels, *_output_size(op, x.shape[2:], w.shape[2:], geometry))


def fake_fprop(
    x: Tensor, w: Tensor, bias: Any, scale: Any, shift: Any, residual: Any,
    stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, groups: int, padding_mode: str,
    activation: str | None, rounding: str, precision: str | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """Return an empty y."""
    op = f"conv{x.dim() - 2}d"
    _check_options(op, padding_mode, activation, rounding, precision, backend)
    named = {"input": x, "weight": w, "bias": bias, "scale": scale, "shift": shift, "residual": residual}
    _check_tensors(op, named, CONV_DTYPES if activation is None else FLOATS[:4])
    shape = fprop_shape(op, x, w, (stride, pad_lo, pad_hi, dilation, groups, padding_mode))
    _check_epilogue(op, shape[1], shape, {"bias": bias, "scale": scale, "shift": shift}, residual)
    return _empty(x, shape, formats_of(TORCH, x, False, w)[2])


def fake_dgrad(
    dy: Tensor, w: Tensor, bias: Any, scale: Any, shift: Any, residual: Any, input_size: Sizes,
    stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, groups: int, padding_mode: str,
    activation: str | None, rounding: str, precision: str | None, backend: str | None, transposed: bool,
) -> Tensor:  # fmt: skip
    """Return an empty dx."""
    op = f"conv_transpose{dy.dim() - 2}d" if transposed else f"conv{dy.dim() - 2}d_input_grad"
    _check_options(op, padding_mode, activation, rounding, precision, backend)
    named = {"input": dy, "weight": w, "bias": bias, "scale": scale, "shift": shift, "residual": residual}
    empty = transposed and bias is not None and is_zero(dy.shape[0])
    if empty and bias_may_differ(TORCH.dtype(dy), TORCH.dtype(bias)):
        named["bias"] = None
    _check_tensors(op, named, FLOATS[:4] if activation else TRANSPOSED_DTYPES if transposed else FLOATS)
    _require(op, dy.dim() == w.dim(), "input and weight must be of one rank")
    _require(op, dy.shape[1] == w.shape[0], "input must have the channels of weight's first axis")
    if transposed:
        axes = (dy.shape[2:], w.shape[2:], stride, pad_lo, pad_hi, dilation)
        least = shapes.map_axes(shapes.conv_transpose_output_size, *axes)
        if is_zero(dy.shape[0]):  # an empty batch may have any output padding, as in torch
            least = tuple(input_size)
        for wanted, size, s, d in zip(input_size, least, stride, dilation, strict=True):
            _require(op, wanted >= size, "input_size must be reachable")
            _require(op, wanted < size + torch.sym_max(s, d), "input_size must be reachable")
    else:
        geometry = (stride, pad_lo, pad_hi, dilation, groups, padding_mode)
        for size, wanted in zip(dy.shape[2:], _output_size(op, input_size, w.shape[2:], geometry), strict=True):
            _require(op, size == wanted, "grad_output must be of the output's shape")
    channels = w.shape[1] * groups
    shape = (dy.shape[0], channels, *input_size)
    _check_epilogue(op, channels, shape, {"bias": bias, "scale": scale, "shift": shift}, residual)
    return _empty(dy, shape, formats_of(TORCH, dy, False, w)[2])


def fake_wgrad(
    x: Tensor, dy: Tensor, kernel: Sizes,
    stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, groups: int, padding_mode: str,
    precision: str | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """Return an empty dw."""
    op = f"conv{x.dim() - 2}d_weight_grad"
    _check_options(op, padding_mode, None, "fused", precision, backend)
    _check_tensors(op, {"input": x, "grad_output": dy}, FLOATS)
    _require(op, x.dim() == dy.dim(), "input and grad_output must be of one rank")
    _require(op, x.shape[0] == dy.shape[0], "input and grad_output must be of one batch")
    _require(op, x.shape[1] % groups == 0, "input must have channels that groups divides")
    geometry = (stride, pad_lo, pad_hi, dilation, groups, padding_mode)
    for size, wanted in zip(dy.shape[2:], _output_size(op, x.shape[2:], kernel, geometry), strict=True):
        _require(op, size == wanted, "grad_output must be of the output's shape")
    shape = (dy.shape[1], x.shape[1] // groups, *kernel)
    return _empty(x, shape, formats_of(TORCH, dy, False, x)[2])
