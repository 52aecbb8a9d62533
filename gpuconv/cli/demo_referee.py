"""Who says what the results of the demonstration should be: torch, or the definition itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..backends.numpy import teaching
from .demo_parts import Array
from .demo_steps import Step, pads_of

__all__ = ["Theirs", "by_definition", "in_torch"]


class Theirs(NamedTuple):
    """A step as torch's functions compute it."""

    run: Callable[[], Any]
    calls: tuple[str, ...]
    """The functions, in order."""
    copied: int
    """Bytes of a padded copy of the input."""


def in_torch(step: Step, x: Array, wide: bool = False) -> Theirs:
    """Return a step in torch on the CPU, in float32 or, where `wide`, in float64."""
    torch = import_module("torch")
    functional = torch.nn.functional
    dtype = torch.float64 if wide else torch.float32
    source = torch.from_numpy(x).to(dtype)
    options, calls, pads, copied = dict(step.options), [], [], 0
    vectors = {name: torch.from_numpy(vector).to(dtype) for name, vector in step.vectors.items()}
    mode, activation = options.pop("padding_mode", "zeros"), options.pop("activation", None)
    weights = () if step.weight is None else (torch.from_numpy(step.weight).to(dtype), vectors.get("bias"))
    if weights:
        sides = pads_of(step)
        if mode != "zeros" or any(lo != hi for lo, hi in sides):
            options.pop("padding")
            pads = [side for pair in reversed(sides) for side in pair]
            calls.append("pad")
            padded = prod(size + sum(pair) for size, pair in zip(x.shape[2:], sides, strict=True))
            copied = x.itemsize * prod(x.shape[:2]) * padded
    calls.append(step.op)
    ones = (1,) * (x.ndim - 2)
    scale, shift = (vectors[name].reshape(-1, *ones) if name in vectors else None for name in ("scale", "shift"))
    calls += [name for name, used in (("mul", scale is not None), ("add", shift is not None)) if used]
    calls += [*(["add"] if step.residual else []), *([activation] if activation else [])]
    convolve, activate = getattr(functional, step.op), getattr(torch, activation) if activation else None

    def run() -> Any:
        y = functional.pad(source, pads, mode="constant" if mode == "zeros" else mode) if pads else source
        y = convolve(y, *weights, **options)
        y = y if scale is None else y * scale
        y = y if shift is None else y + shift
        y = y + source if step.residual else y
        return y if activate is None else activate(y)

    return Theirs(run, tuple(calls), copied)


def _windows(x: Array, size: int, stride: int) -> Array:
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]


_ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
    None: lambda y: y,
    "relu": lambda y: np.maximum(y, 0),
    "tanh": np.tanh,
}


def by_definition(step: Step, x: Array) -> Array:
    """Compute a step from its definition in float64, slowly."""
    wide, options = x.astype(np.float64), step.options
    if step.weight is not None:
        return _convolved(step, wide, step.weight.astype(np.float64))
    if step.op == "adaptive_avg_pool2d":
        sizes = zip(x.shape[2:], options["output_size"], strict=True)
        cuts = [[(o * size // n, -(-(o + 1) * size // n)) for o in range(n)] for size, n in sizes]
        return np.stack([np.stack([wide[..., a:b, c:d].mean((2, 3)) for c, d in cuts[1]], -1) for a, b in cuts[0]], -2)
    size = options["kernel_size"]
    windows = _windows(wide, size, options.get("stride", size))
    if step.op == "max_pool2d":
        return windows.max((-2, -1))
    if step.op == "avg_pool2d":
        return windows.mean((-2, -1))
    p = options["norm_type"]
    norms: Array = (windows**p).sum((-2, -1)) ** (1 / p)
    return norms


def _convolved(step: Step, wide: Array, w: Array) -> Array:
    options, ndim = step.options, wide.ndim - 2
    strides, dilations = (options.get("stride", 1),) * ndim, (options.get("dilation", 1),) * ndim
    grid = (strides, [(0, 0)] * ndim, dilations, options.get("groups", 1))
    if step.op == "conv_transpose2d":
        whole, pad = teaching.toeplitz_conv_transpose(wide, w, *grid, (0, 0)), options["padding"]
        return whole[:, :, pad:-pad, pad:-pad]
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    mode: Any = modes[options.get("padding_mode", "zeros")]
    y: Array = teaching.direct(np.pad(wide, [(0, 0), (0, 0), *pads_of(step)], mode=mode), w, *grid)
    bias, scale, shift = (step.vectors.get(name) for name in ("bias", "scale", "shift"))
    ones = (1,) * ndim
    y = y if bias is None else y + bias.reshape(-1, *ones)
    y = y if scale is None else y * scale.reshape(-1, *ones)
    y = y if shift is None else y + shift.reshape(-1, *ones)
    return _ACTIVATIONS[options.get("activation")](y + wide if step.residual else y)
