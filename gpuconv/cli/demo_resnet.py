"""The convolutions and poolings of ResNet-50 in one forward pass, compared with torch layer by layer.

Layers follow He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition", table 1, with the stride on
the 3x3 of a bottleneck ("v1.5"). Weights are random (He initialisation). Batch normalisation is folded into a scale and
a shift per channel, which the convolution applies in its store, together with the shortcut and the ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..dispatch import record_plans
from ..functional.conv import conv2d
from .demo_parts import Array, public_function, timed

__all__ = ["Layer", "layers", "run_resnet"]

_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution: k filters of c channels; `role` says where its result goes in a block."""

    name: str
    role: str  # "stem", "shortcut", "inner" or "last"
    c: int
    k: int
    kernel: int
    stride: int


def layers() -> Iterator[Layer]:
    """Yield the 53 convolutions in the order in which they run."""
    yield Layer("stem", "stem", 3, 64, 7, 2)
    c = 64
    for stage, blocks in enumerate(_BLOCKS):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            name = f"{stage + 2}.{block + 1}"  # the paper counts the stem as stage 1
            if block == 0:
                yield Layer(f"{name} shortcut", "shortcut", c, width * _EXPANSION, 1, stride)
            yield Layer(f"{name} reduce", "inner", c, width, 1, 1)
            yield Layer(f"{name} 3x3", "inner", width, width, 3, stride)
            yield Layer(f"{name} expand", "last", width, width * _EXPANSION, 1, 1)
            c = width * _EXPANSION


class _Pass:
    """A forward pass in progress: the table, the totals and the largest error so far."""

    def __init__(self) -> None:
        self.torch = import_module("torch")
        self.random = np.random.default_rng(0)
        title = "ResNet-50, batch 1, 224x224, float32"
        self.table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("layer", "result", "solver that ran", "ms", "error"):
            self.table.add_column(name, justify="right" if name in ("ms", "error") else "left", no_wrap=True)
        self.milliseconds = self.error = 0.0
        self.count = 0

    def record(self, name: str, ours: Any, referee: Any) -> Array:
        """Run one layer by gpuconv, and by torch in float64."""
        with record_plans() as plans:
            result, milliseconds = timed(ours)
        expected = referee().numpy()
        error = float(np.abs(result - expected).max() / np.abs(expected).max())
        shape = "x".join(map(str, result.shape[1:]))
        self.table.add_row(name, shape, plans[-1].solver.id, f"{milliseconds:.2f}", f"{error:.1e}")
        self.milliseconds += milliseconds
        self.error = max(self.error, error)
        self.count += 1
        done: Array = result
        return done

    def conv(self, layer: Layer, x: Array, residual: Array | None) -> Array:
        """Run a convolution with its folded batch normalisation, shortcut and ReLU."""
        fan_in = layer.c * layer.kernel**2
        w = self.random.standard_normal((layer.k, layer.c, layer.kernel, layer.kernel), np.float32) * sqrt(2 / fan_in)
        scale = self.random.uniform(0.5, 1.0, layer.k).astype(np.float32) * (0.5 if layer.role == "last" else 1.0)
        shift = self.random.normal(0, 0.1, layer.k).astype(np.float32)
        activation = None if layer.role == "shortcut" else "relu"
        place = {"stride": layer.stride, "padding": layer.kernel // 2}
        extras = {"scale": scale, "shift": shift, "residual": residual, "activation": activation}
        arrays = (x, w, scale, shift, residual)

        def ours() -> Array:
            result: Array = conv2d(x, w, **place, **extras)  # type: ignore[arg-type]
            return result

        def referee() -> Any:
            wide = [None if a is None else self.torch.from_numpy(a).double() for a in arrays]
            x, w, scale, shift, residual = wide
            y = self.torch.nn.functional.conv2d(x, w, **place)
            y = y * scale[:, None, None] + shift[:, None, None]  # type: ignore[index]
            y = y if residual is None else y + residual
            return y.relu() if activation else y

        return self.record(layer.name, ours, referee)

    def pool(self, name: str, op: str, x: Array, options: dict[str, int]) -> Array:
        """Run a pooling."""
        wide = self.torch.from_numpy(x).double()
        own, theirs = public_function(op), getattr(self.torch.nn.functional, op)
        return self.record(name, lambda: own(x, **options), lambda: theirs(wide, **options))


def _prepared(photo: Array) -> Array:
    """Cut a square out of the photograph, take 224x224 of its pixels, and normalise each colour."""
    side = min(photo.shape[2:])
    picked = np.arange(224) * side // 224
    x = photo[:, :, picked][..., picked]
    return np.ascontiguousarray((x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True))


def run_resnet(photo: Array, console: Console) -> float:
    """Run the pass, print its table and totals, and return the largest error of any layer."""
    run = _Pass()
    with run.torch.inference_mode():
        x = block_input = _prepared(photo)
        shortcut: Array | None = None
        for layer in layers():
            if layer.role == "stem":
                x = run.conv(layer, x, None)
                x = block_input = run.pool("max pool", "max_pool2d", x, {"kernel_size": 3, "stride": 2, "padding": 1})
            elif layer.role == "shortcut":
                shortcut = run.conv(layer, block_input, None)
            elif layer.role == "inner":
                x = run.conv(layer, x, None)
            else:
                x = block_input = run.conv(layer, x, block_input if shortcut is None else shortcut)
                shortcut = None
        run.pool("global average", "adaptive_avg_pool2d", x, {"output_size": 1})
    run.table.add_section()
    run.table.add_row(f"{run.count} layers", "", "", f"{run.milliseconds:.1f}", f"{run.error:.1e}")
    console.print(run.table)
    console.print(
        "Times: medians of 3 calls, with scale, shift, shortcut and ReLU fused. Errors: against torch.nn.functional on "
        "the CPU in float64, relative to its largest value. Every layer, there and here, reads what gpuconv computed "
        "before."
    )
    return run.error
