"""Convolutions of 8-bit operands with scales: problems, and calls whose results are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.arrays import CHANNELS_LAST
from gpuconv.problem import ScaledProblem

from .parity import conv_problem

__all__ = ["FORMS", "GEOMETRIES", "ours", "scaled_problem", "tensors_of", "theirs"]

Tensors = Mapping[str, torch.Tensor]

FORMS = {
    "float16": ("int8", "bfloat16"),
    "bfloat16": ("float8_e4m3fn", "float32"),
    "float32": ("int8", "int8"),
    "float64": ("float8_e4m3fn", "float8_e4m3fn"),
}
"""Types of the operands and of the result that stand for a number format of other calls."""

GEOMETRIES = (((1, 1, 1), 40, 1), ((2, 1, 1), 24, 1), ((1, 2, 2), 7, 1), ((1, 1, 1), 48, 3))
"""Stride, padding and dilation, filters, and groups (where they divide the channels)."""

_INPUT_SCALE, _OUTPUT_SCALE = 0.5, 4.0


def scaled_problem(
    x: Sequence[int], w: Sequence[int], dtype: str = "int8", layout: str = CHANNELS_LAST, out_dtype: str = "bfloat16",
    bias: str | None = None, activation: str | None = None, weight_scale: str = "channels", **geometry: Any,
) -> ScaledProblem:  # fmt: skip
    """Describe a convolution of shapes `x` and `w`, all of whose tensors are in memory format `layout`."""
    conv = conv_problem(x, w, "fprop", "float16", layout, **geometry)
    name = f"scaled_conv{len(w) - 2}d"
    conv = replace(conv, op=name, dtype=dtype, bias=bias is not None, activation=activation)
    output_scale = "number" if out_dtype == dtype else None
    return ScaledProblem(name, conv, out_dtype, "number", weight_scale, output_scale, bias)


def tensors_of(x: torch.Tensor, number: str, filters: int, groups: int) -> dict[str, torch.Tensor]:
    """Return input, weights and scales of the weights: integers from -3 to 3, and powers of two."""
    dtype = getattr(torch, FORMS[number][0])
    channels = x.shape[1] // groups
    w = torch.arange(filters * channels * 9, device=x.device).mul(5).remainder(7).sub(3)
    scales = 2.0 ** torch.arange(filters, device=x.device).remainder(3).sub(1)
    return {"x": x.round().clamp(-3, 3).to(dtype), "w": w.reshape(filters, channels, 3, 3).to(dtype), "scales": scales}


def ours(tensors: Tensors, backend: str | None, number: str, geometry: tuple[int, int, int], groups: int) -> Any:
    """Run a call of gpuconv."""
    dtype, out_dtype = FORMS[number]
    options = dict(zip(("stride", "padding", "dilation"), geometry)) | {"groups": groups, "backend": backend}
    options |= {"output_scale": _OUTPUT_SCALE} if dtype == out_dtype else {}
    scales = {"input_scale": _INPUT_SCALE, "weight_scale": tensors["scales"]}
    return gpuconv.scaled_conv2d(tensors["x"], tensors["w"], **options, **scales, out_dtype=out_dtype)


def theirs(tensors: Tensors, number: str, geometry: tuple[int, int, int], groups: int) -> torch.Tensor:
    """Return what torch makes of the same tensors in float64, rounded as the call rounds."""
    stride, padding, dilation = geometry
    sums = F.conv2d(tensors["x"], tensors["w"], None, stride, padding, dilation, groups)
    y = sums * (_INPUT_SCALE * tensors["scales"])[:, None, None]
    dtype, out_dtype = FORMS[number]
    if dtype == out_dtype:
        y = y / _OUTPUT_SCALE
        y = y.round().clamp(-128, 127) if dtype == "int8" else y.clamp(-448, 448)
    return y.to(getattr(torch, out_dtype)).double()
