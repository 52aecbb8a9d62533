"""The photograph of the demonstration, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from .demo_parts import Array, public_function

__all__ = ["Step", "ours", "pads_of", "photograph", "steps"]


def _clipped(y: Array) -> Array:
    return y[0].clip(0, 1)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of the demonstration; `view` turns its result into a picture [C, H, W] in 0..1."""

    title: str
    op: str
    options: dict[str, Any]
    weight: Array | None = None
    view: Callable[[Array], Array] = field(default=_clipped)
    source: str = "photograph"
    residual: bool = False
    note: str = ""
    alone: bool = False
    """Whether torch has no such call."""
    take: Callable[[Array], Array] = field(default=lambda x: x)
    """What makes the argument of the source."""
    vectors: dict[str, Array] = field(default_factory=dict)
    """Bias, scale and shift, one number per channel."""


def photograph(quick: bool) -> Array:
    """Return matplotlib's sample photograph (a U.S. Navy portrait of Grace Hopper) as [1, 3, H, W] in 0..1."""
    cbook, image = import_module("matplotlib.cbook"), import_module("PIL.Image")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = np.asarray(image.open(file).convert("RGB"), np.float32) / 255
    pixels = pixels[:592, :512]
    if quick:
        pixels = pixels.reshape(148, 4, 128, 4, 3).mean((1, 3), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def ours(step: Step, x: Array) -> Array:
    """Run a step by gpuconv."""
    arrays = [x] if step.weight is None else [x, step.weight]
    options = {**step.options, **step.vectors, **({"residual": x} if step.residual else {})}
    result: Array = public_function(step.op)(*arrays, **options)
    return result


def pads_of(step: Step) -> tuple[tuple[int, int], ...]:
    """Return the padding of a convolution as pairs, one per axis."""
    assert step.weight is not None
    padding, kernel = step.options.get("padding", 0), step.weight.shape[2:]
    if padding == "causal":
        return tuple(((k - 1) * step.options.get("dilation", 1), 0) for k in kernel)
    return padding if isinstance(padding, tuple) else ((padding, padding),) * len(kernel)


def _gaussian(size: int, sigma: float) -> Array:
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def _per_channel(kernel: Array) -> Array:
    """Return the depthwise weight [3, 1, R, S] of one kernel for each colour."""
    return np.repeat(kernel[None, None], 3, 0).astype(np.float32)


def _sobel() -> Array:
    """Return the weight [2, 3, 3, 3] of Sobel's two derivatives of the luminance."""
    across = np.outer([1, 2, 1], [-1, 0, 1])
    luminance = np.array([0.299, 0.587, 0.114])
    return (np.stack([across, across.T])[:, None] * luminance[None, :, None, None]).astype(np.float32)


def _oriented(size: int, directions: int) -> Array:
    """Return the weight [3 * directions, 1, R, S] of waves under a Gaussian (Gabor filters), for each colour."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    waves = []
    for angle in np.arange(directions) * np.pi / directions:
        wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 5) * _gaussian(size, size / 5)
        waves.append(wave - wave.mean())
    return np.tile(np.stack(waves)[:, None], (3, 1, 1, 1)).astype(np.float32)


def _bilinear(factor: int) -> Array:
    """Return the kernel that makes a transposed convolution of stride `factor` a bilinear interpolation."""
    line = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    return np.outer(line, line)


def _fading(length: int) -> Array:
    """Return the weight [3, 1, S] whose last tap, the element itself, counts most and earlier ones ever less."""
    line = np.exp(-np.arange(length)[::-1] / (length / 3))
    return np.repeat((line / line.sum())[None, None], 3, 0).astype(np.float32)


def _stretched(y: Array) -> Array:
    """Stretch to 0..1 between the first and the last percentile."""
    low, high = np.percentile(y, (1, 99))
    stretched: Array = ((y - low) / max(high - low, 1e-12)).clip(0, 1)
    return stretched


def _stretched_first(y: Array) -> Array:
    return _stretched(y[0])


def _magnitude(y: Array) -> Array:
    return 1 - _stretched(np.hypot(y[0, 0], y[0, 1]))[None]


def _energy(y: Array) -> Array:
    """Show the strongest of the oriented responses of each colour."""
    return _stretched(np.abs(y[0].reshape(3, -1, *y.shape[2:])).max(1))


def _rows(x: Array) -> Array:
    """Return the rows of a photograph as sequences [H, 3, W], and the other way round."""
    return np.ascontiguousarray(x[0].transpose(1, 0, 2))


def _from_rows(y: Array) -> Array:
    return y.transpose(1, 0, 2).clip(0, 1)


def _vector(*values: float) -> Array:
    return np.array(values, np.float32)


def steps(height: int, width: int) -> list[Step]:
    """Return what is done to a photograph of this size: eleven operations, and four that torch has no call for."""
    ring = np.full((3, 3), -1 / 8)
    ring[1, 1] = 1
    sharpen = _gaussian(5, 1.0) * -1.5
    sharpen[2, 2] += 1.5
    emboss = np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]])
    depthwise = {"groups": 3, "padding_mode": "reflect"}
    blur = {**depthwise, "padding": 7}
    tint = {"bias": _vector(0, 0, 0), "scale": _vector(0.5, 0.4, 0.3), "shift": _vector(0.1, 0, -0.05)}
    wrapped = {"groups": 3, "padding_mode": "circular", "padding": ((1, height // 4), (width // 4, 1))}
    frame = ((height // 6, height // 6), (width // 6, width // 6))
    return [
        Step("Gaussian blur", "conv2d", blur, _per_channel(_gaussian(15, 3.0)), note="15x15 depthwise, reflect"),
        Step("Sharpen", "conv2d", {**depthwise, "padding": 2, "activation": "relu"}, _per_channel(sharpen),
             residual=True, note="5x5 depthwise + residual, relu"),
        Step("Edges (Sobel)", "conv2d", {"padding": 1, "padding_mode": "replicate"}, _sobel(), _magnitude,
             note="3x3 dense, replicate"),
        Step("Dilated", "conv2d", {**depthwise, "padding": 6, "dilation": 6}, _per_channel(ring), _stretched_first,
             note="3x3, dilation 6"),
        Step("Grouped", "conv2d", {"groups": 3, "padding": 5}, _oriented(11, 4), _energy,
             note="11x11, 3 groups of 4 filters"),
        Step("Strided", "conv2d", {**depthwise, "padding": 4, "stride": 4}, _per_channel(_gaussian(9, 2.0)),
             note="9x9, stride 4"),
        Step("Transposed", "conv_transpose2d", {"groups": 3, "padding": 2, "stride": 4}, _per_channel(_bilinear(4)),
             source="Strided", note="bilinear 8x8 of Strided"),
        Step("Max pool", "max_pool2d", {"kernel_size": 8, "stride": 8}, note="8x8, stride 8"),
        Step("Average pool", "avg_pool2d", {"kernel_size": 8, "stride": 8}, note="8x8, stride 8"),
        Step("Adaptive average", "adaptive_avg_pool2d", {"output_size": (37, 32)}, note="to a given size"),
        Step("Lp pool", "lp_pool2d", {"norm_type": 4.0, "kernel_size": 4}, view=_stretched_first, note="4x4, p = 4"),
        Step("Fused epilogue", "conv2d", {**depthwise, "padding": 1, "activation": "tanh"}, _per_channel(emboss),
             residual=True, vectors=tint, note="bias, scale, shift, residual, tanh", alone=True),
        Step("Asymmetric padding", "conv2d", wrapped, _per_channel(_gaussian(3, 0.6)),
             note="circular: below and at the left", alone=True),
        Step("Causal padding", "conv1d", {"groups": 3, "padding": "causal"}, _fading(max(width // 8, 2)), _from_rows,
             note="rows see what is left of them", alone=True, take=_rows),
        Step("Reflect, no copy", "conv2d", {**depthwise, "padding": frame}, _per_channel(_gaussian(3, 0.6)),
             note="a frame that is never stored", alone=True),
    ]  # fmt: skip
