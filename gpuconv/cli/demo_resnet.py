"""The convolutions and poolings of ResNet-50 in one forward pass, compared with torch layer by layer.

Layers follow He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition", table 1, with the stride on
the 3x3 of a bottleneck ("v1.5"). Weights are random (He initialisation). Batch normalisation is folded into a scale and
a shift per channel, which the convolution applies in its store, together with the shortcut and the ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np

from ..dispatch import record_plans
from ..functional import conv2d
from .demo_parts import Array, aligned, processor, public_function, timed

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
    """A forward pass in progress: the rows of its table, the totals and the largest error so far."""

    def __init__(self) -> None:
        self.torch = import_module("torch")
        self.random = np.random.default_rng(0)
        self.rows: list[list[str]] = []
        self.milliseconds = self.theirs = self.error = 0.0
        self.count = 0

    def record(self, name: str, ours: Any, theirs: Any) -> Array:
        """Run one layer by gpuconv, and by torch in float32 for its time and in float64 as the referee."""
        with record_plans() as plans:
            result, milliseconds = timed(ours)
        _, torch_milliseconds = timed(theirs(self.torch.float32))
        expected = theirs(self.torch.float64)().numpy()
        error = float(np.abs(result - expected).max() / np.abs(expected).max())
        shape = "x".join(map(str, result.shape[1:]))
        self._row(name, shape, plans[-1].solver.id, milliseconds, torch_milliseconds, error)
        self.milliseconds += milliseconds
        self.theirs += torch_milliseconds
        self.error = max(self.error, error)
        self.count += 1
        done: Array = result
        return done

    def _row(self, name: str, shape: str, solver: str, ours: float, theirs: float, error: float) -> None:
        self.rows.append([name, shape, solver, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}", f"{error:.1e}"])

    def total(self) -> str:
        """Return the table, with a last row of totals."""
        self._row(f"{self.count} layers", "", "", self.milliseconds, self.theirs, self.error)
        columns = ["layer", "result", "solver that ran", ">ms", ">torch ms", ">here/torch", ">error"]
        return aligned(f"ResNet-50, batch 1, 224x224, float32, on {processor()}", columns, self.rows)

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

        def theirs(dtype: Any) -> Any:
            given = [None if a is None else self.torch.from_numpy(a).to(dtype) for a in arrays]
            x, w, scale, shift, residual = given

            def run() -> Any:
                y = self.torch.nn.functional.conv2d(x, w, **place)
                y = y * scale[:, None, None] + shift[:, None, None]  # type: ignore[index]
                y = y if residual is None else y + residual
                return y.relu() if activation else y

            return run

        return self.record(layer.name, ours, theirs)

    def pool(self, name: str, op: str, x: Array, options: dict[str, int]) -> Array:
        """Run a pooling."""
        own, function = public_function(op), getattr(self.torch.nn.functional, op)

        def theirs(dtype: Any) -> Any:
            given = self.torch.from_numpy(x).to(dtype)
            return lambda: function(given, **options)

        return self.record(name, lambda: own(x, **options), theirs)


def _prepared(photo: Array) -> Array:
    """Cut a square out of the photograph, take 224x224 of its pixels, and normalise each colour."""
    side = min(photo.shape[2:])
    picked = np.arange(224) * side // 224
    x = photo[:, :, picked][..., picked]
    return np.ascontiguousarray((x - x.mean((2, 3), keepdims=True)) / x.std((2, 3), keepdims=True))


def run_resnet(photo: Array, say: Callable[[str], None]) -> float:
    """Run the pass, `say` its table and totals, and return the largest error of any layer."""
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
    say(run.total())
    say(
        "Times: medians of 3 calls of this run, here with scale, shift, shortcut and ReLU fused, in torch as functions "
        "of their own.\n"
        "Errors: against torch.nn.functional in float64, relative to its largest value. Every layer, there and here,\n"
        "reads what gpuconv computed before."
    )
    return run.error
