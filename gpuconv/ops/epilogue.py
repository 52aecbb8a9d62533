"""The epilogue of a convolution in torch's elementwise operators.

A kernel fuses ``activation((conv + bias) * scale + shift + residual)`` into its store. The convolution operators are
bilinear only without it, so where a gradient may be asked for, it is computed here, outside of them, and torch
differentiates it. A 16-bit result is then rounded once more per step than the fused one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["compose", "per_channel", "steps"]

Tensor = Any

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def per_channel(vector: Tensor, ndim: int) -> Tensor:
    """Show a vector over the channels as ``(K, 1, 1)``, which broadcasts against ``(N, K, P, Q)``."""
    return vector.reshape(vector.shape[0], *(1,) * ndim)


def compose(
    y: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    """Return ``activation(y * scale + shift + residual)``, `y` with a batch axis; what is None is left out."""
    ndim = y.dim() - 2
    scale, shift = (None if vector is None else per_channel(vector, ndim) for vector in (scale, shift))
    return steps(y, scale, shift, residual, activation)


def steps(
    y: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, activation: str | None
) -> Tensor:
    """Return ``activation(y * scale + shift + residual)`` of tensors that broadcast; what is None is left out."""
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    if residual is not None:
        y = y + residual
    return y if activation is None else _ACTIVATIONS[activation](y)
