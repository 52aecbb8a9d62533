"""Calls for the ONNX tests, in families that are exported as one model each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

import gpuconv
import gpuconv.nn

__all__ = ["FAMILIES", "REFUSED", "Family", "images", "weights"]

Tensor = torch.Tensor

SIZES = ((15,), (9, 11), (5, 6, 7))


def images(batch: int, sizes: tuple[tuple[int, ...], ...] = SIZES) -> tuple[Tensor, ...]:
    """Return an image of 4 channels of each rank."""
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(batch, 4, *size, generator=generator) for size in sizes)


@cache
def weights(*shape: int) -> Tensor:
    """Return a filter, the same for the same shape: once made, it is a constant of what is exported."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


class Family(NamedTuple):
    """Calls by name, each of the 1-D, the 2-D and the 3-D image; and whether spatial sizes may be dynamic too."""

    calls: dict[str, Callable[[Tensor, Tensor, Tensor], Any]]
    dynamic: bool = False


W1, W2, W3 = weights(6, 4, 3), weights(6, 4, 3, 2), weights(6, 4, 2, 3, 2)
V, U = weights(6), weights(6) + 1
ASYMMETRIC = ((0, 1), (2, 1))

CONVOLUTIONS: dict[str, Any] = {
    "1-D, causal": lambda a, b, c: gpuconv.conv1d(a, W1, V, padding="causal", dilation=2),
    "1-D, channels of a strided causal module": lambda a, b, c: gpuconv.conv1d(a, W1, stride=2, padding=((2, 0),)),
    "2-D, asymmetric": lambda a, b, c: gpuconv.conv2d(b, W2, V, stride=(2, 1), padding=ASYMMETRIC),
    "2-D, same_upper": lambda a, b, c: gpuconv.conv2d(b, W2, V, stride=1, padding="same_upper"),
    "2-D, groups and dilation": lambda a, b, c: gpuconv.conv2d(b, weights(6, 2, 3, 3), groups=2, dilation=(2, 3)),
    "2-D, depthwise": lambda a, b, c: gpuconv.conv2d(b, weights(8, 1, 3, 3), groups=4, padding=1),
    "2-D, without a batch": lambda a, b, c: gpuconv.conv2d(b[0], W2, V),
    "3-D, asymmetric": lambda a, b, c: gpuconv.conv3d(c, W3, V, padding=((1, 0), (0, 2), (1, 1)), dilation=(2, 1, 1)),
    "depthwise separable": lambda a, b, c: gpuconv.depthwise_separable_conv2d(
        b, weights(4, 1, 3, 3), weights(6, 4, 1, 1), padding=1, between="relu", activation="silu"
    ),
    "causal_conv1d": lambda a, b, c: gpuconv.causal_conv1d(a, weights(4, 4), activation="silu"),
    **{
        f"{mode}, asymmetric": lambda a, b, c, mode=mode: gpuconv.conv2d(
            b, W2, V, padding=ASYMMETRIC, padding_mode=mode
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "3-D, circular": lambda a, b, c: gpuconv.conv3d(c, W3, padding=1, padding_mode="circular"),
}

ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh")


def _epilogue(b: Tensor, activation: str | None) -> Tensor:
    residual = b.mean(1, keepdim=True).expand(-1, 6, -1, -1)
    extras = {"residual": residual, "scale": U, "shift": V}
    return gpuconv.conv2d(b * 3, weights(6, 4, 3, 3), V, padding=1, activation=activation, **extras)


EPILOGUES: dict[str, Any] = {
    str(activation): lambda a, b, c, activation=activation: _epilogue(b, activation)
    for activation in (None, *ACTIVATIONS)
}
EPILOGUES |= {
    "transposed": lambda a, b, c: gpuconv.conv_transpose2d(
        b, weights(4, 6, 3, 3), V, stride=2, output_padding=1, scale=U, shift=V, activation="gelu"
    ),
    "1-D": lambda a, b, c: gpuconv.conv1d(a, W1, V, scale=U, activation="relu"),
    "3-D": lambda a, b, c: gpuconv.conv3d(c, W3, V, shift=U, activation="relu6"),
}

TRANSPOSED: dict[str, Any] = {
    "1-D": lambda a, b, c: gpuconv.conv_transpose1d(a, weights(4, 6, 4), V, stride=3, padding=1, output_padding=2),
    "2-D, asymmetric": lambda a, b, c: gpuconv.conv_transpose2d(
        b, weights(4, 6, 3, 2), V, stride=2, padding=((0, 1), (1, 0)), output_padding=(0, 1)
    ),
    "2-D, groups": lambda a, b, c: gpuconv.conv_transpose2d(b, weights(4, 3, 3, 3), V, stride=2, groups=2, dilation=2),
    "2-D, as large as it was": lambda a, b, c: gpuconv.conv_transpose2d(b, weights(4, 6, 2, 2), stride=2),
    "2-D, output padding of a stride": lambda a, b, c: gpuconv.conv_transpose2d(
        b, weights(4, 6, 3, 3), V, stride=1, padding=((1, 0), (0, 1)), dilation=3, output_padding=2
    ),
    "3-D": lambda a, b, c: gpuconv.conv_transpose3d(c, weights(4, 2, 2, 2, 2), stride=2, padding=1, output_padding=1),
}

TO_SIZE: dict[str, Any] = {
    "to the size of a skip connection": lambda a, b, c: gpuconv.conv_transpose2d(
        gpuconv.conv2d(b, weights(6, 4, 3, 3), stride=2, padding=1),
        weights(6, 4, 3, 3), V[:4], stride=2, padding=1, output_size=b.shape[2:],
    ),
}  # fmt: skip

MAXIMA: dict[str, Any] = {
    "1-D": lambda a, b, c: gpuconv.max_pool1d(a, 3, 2, padding=1),
    "2-D, asymmetric": lambda a, b, c: gpuconv.max_pool2d(b, 3, 2, padding=((0, 1), (1, 0))),
    "2-D, ceil": lambda a, b, c: gpuconv.max_pool2d(b, 2, 2, ceil_mode=True),
    "2-D, ceil with a dropped window": lambda a, b, c: gpuconv.max_pool2d(b, 2, 3, padding=1, ceil_mode=True),
    "2-D, dilated, padded by more than a kernel": lambda a, b, c: gpuconv.max_pool2d(
        b, 2, dilation=4, padding=((2, 2), (2, 1))
    ),
    "2-D, indices": lambda a, b, c: gpuconv.max_pool2d(b, 3, 2, padding=1, return_indices=True),
    "2-D, indices, ceil": lambda a, b, c: gpuconv.max_pool2d(b, 3, 2, ceil_mode=True, return_indices=True),
    "2-D, indices, dilated": lambda a, b, c: gpuconv.max_pool2d(
        b, 2, 1, padding=((2, 1), (1, 2)), dilation=3, return_indices=True
    ),
    "3-D, indices": lambda a, b, c: gpuconv.max_pool3d(c, 2, padding=1, return_indices=True),
    "there and back": lambda a, b, c: gpuconv.max_unpool2d(
        *gpuconv.max_pool2d(b, 2, return_indices=True), 2, output_size=b.shape[2:]
    ),
}

AVERAGES: dict[str, Any] = {
    "1-D": lambda a, b, c: gpuconv.avg_pool1d(a, 3, 2, padding=1),
    "2-D, padding counts": lambda a, b, c: gpuconv.avg_pool2d(b, 3, 2, padding=((0, 1), (1, 0))),
    "2-D, padding does not": lambda a, b, c: gpuconv.avg_pool2d(b, 3, 2, padding=1, count_include_pad=False),
    "2-D, ceil": lambda a, b, c: gpuconv.avg_pool2d(b, 4, 3, padding=1, ceil_mode=True),
    "2-D, ceil, padding does not": lambda a, b, c: gpuconv.avg_pool2d(
        b, 4, 3, padding=2, ceil_mode=True, count_include_pad=False
    ),
    "2-D, ceil with a dropped window": lambda a, b, c: gpuconv.avg_pool2d(b, 2, 3, padding=1, ceil_mode=True),
    "2-D, divisor": lambda a, b, c: gpuconv.avg_pool2d(b, 3, 2, divisor_override=5),
    "2-D, dilated": lambda a, b, c: gpuconv.avg_pool2d(b, 2, 2, dilation=3, padding=1, count_include_pad=False),
    "3-D, ceil": lambda a, b, c: gpuconv.avg_pool3d(c, 2, 2, ceil_mode=True),
    "lp 2": lambda a, b, c: gpuconv.lp_pool2d(b, 2, 3, 2),
    "lp 1, ceil": lambda a, b, c: gpuconv.lp_pool2d(b.abs(), 1, 2, 2, ceil_mode=True),
    "lp 4, ceil": lambda a, b, c: gpuconv.lp_pool1d(a, 4.0, 4, 3, ceil_mode=True),
    "lp of the largest": lambda a, b, c: gpuconv.lp_pool2d(b, float("inf"), 3, 2),
    "lp of the smallest": lambda a, b, c: gpuconv.lp_pool3d(c, float("-inf"), 2),
}

GLOBAL: dict[str, Any] = {
    "average": lambda a, b, c: gpuconv.adaptive_avg_pool2d(b, 1),
    "average, 1-D": lambda a, b, c: gpuconv.adaptive_avg_pool1d(a, 1),
    "maximum, 3-D": lambda a, b, c: gpuconv.adaptive_max_pool3d(c, 1),
    "maximum with its index": lambda a, b, c: gpuconv.adaptive_max_pool2d(b, 1, return_indices=True),
}

ADAPTIVE: dict[str, Any] = {
    "regular average": lambda a, b, c: gpuconv.adaptive_avg_pool2d(b, (3, 11)),
    "regular maximum": lambda a, b, c: gpuconv.adaptive_max_pool1d(a, 5),
    "regular maximum with indices": lambda a, b, c: gpuconv.adaptive_max_pool3d(c, (5, 2, 1), return_indices=True),
    "unequal average": lambda a, b, c: gpuconv.adaptive_avg_pool2d(b, (4, 3)),
    "unequal maximum": lambda a, b, c: gpuconv.adaptive_max_pool3d(c, (3, 4, 7)),
    "larger than the input": lambda a, b, c: gpuconv.adaptive_avg_pool1d(a, 20),
}

COLUMNS: dict[str, Any] = {
    "unfold": lambda a, b, c: gpuconv.unfold(b, (3, 2), dilation=(1, 2), padding=1, stride=(2, 1)),
    "fold": lambda a, b, c: gpuconv.fold(
        gpuconv.unfold(b, 3, stride=2, padding=1), b.shape[2:], 3, stride=2, padding=1
    ),
}

FAMILIES = {
    "convolutions": Family(CONVOLUTIONS, dynamic=True),
    "epilogues": Family(EPILOGUES, dynamic=True),
    "transposed": Family(TRANSPOSED, dynamic=True),
    "transposed to a size": Family(TO_SIZE, dynamic=True),
    "maxima": Family(MAXIMA, dynamic=True),
    "averages": Family(AVERAGES, dynamic=True),
    "global": Family(GLOBAL, dynamic=True),
    "adaptive": Family(ADAPTIVE),
    "columns": Family(COLUMNS, dynamic=True),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "gpuconv::wgrad": (
        lambda a, b, c: gpuconv.conv2d_weight_grad(b, (6, 4, 1, 1), b[:, :1].expand(-1, 6, -1, -1)),
        "it computes a gradient",
    ),
    "gpuconv::avg_pool_backward": (
        lambda a, b, c: gpuconv.avg_pool2d_backward(b[..., :4, :5], b, 2),
        "it computes a gradient",
    ),
    "fractional_max_pool2d": (
        lambda a, b, c: gpuconv.fractional_max_pool2d(b, 2, 3, _random_samples=torch.rand(2, 4, 2)),
        "random windows",
    ),
    "gpuconv::scaled_fprop": (
        lambda a, b, c: gpuconv.scaled_conv2d(b.to(torch.int8), W2.to(torch.int8), input_scale=0.1, weight_scale=0.1),
        "8-bit operands with scales",
    ),
    "avg_pool2d": (lambda a, b, c: gpuconv.avg_pool2d(b.long(), 2), "floating-point numbers, not INT64"),
    "adaptive_max_pool2d": (
        lambda a, b, c: gpuconv.adaptive_max_pool2d(b, (4, 3), return_indices=True),
        "indices of unequal windows",
    ),
    "conv2d": (
        lambda a, b, c: gpuconv.conv2d(b, W2, padding=((10, 0), (0, 0)), padding_mode="circular"),
        "more than once",
    ),
}
"""What is refused, by what the error names: the call, and a part of the reason."""
