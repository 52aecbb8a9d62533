"""The pooling cases of the benchmarks: layers of real networks, and what pooling libraries find hard."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

__all__ = ["CASES", "PoolCase"]


@dataclass(frozen=True)
class PoolCase:
    """One forward call: a function of ``gpuconv`` and ``torch.nn.functional`` by name, and its arguments."""

    name: str
    function: str
    shape: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def min_bytes(self, output: tuple[int, ...], itemsize: int, index_bytes: int = 0) -> int:
        """Return the bytes that must move: the input read once, the output and its indices written once."""
        return prod(self.shape) * itemsize + prod(output) * (itemsize + index_bytes)


_SAME = {"stride": 1, "padding": 1}
_STEM = {"stride": 2, "padding": 1}

CASES = (
    PoolCase("ResNet stem, max 3x3/s2", "max_pool2d", (64, 64, 112, 112), (3,), _STEM),
    PoolCase("VGG, max 2x2/s2", "max_pool2d", (32, 64, 224, 224), (2,)),
    PoolCase("VGG, max 2x2/s2 at 28", "max_pool2d", (32, 512, 28, 28), (2,)),
    PoolCase("Inception, average 3x3/s1", "avg_pool2d", (64, 288, 35, 35), (3,), _SAME),
    PoolCase("Inception, average 3x3/s1, 256 channels", "avg_pool2d", (64, 256, 32, 32), (3,), _SAME),
    PoolCase("3-D U-Net, max 2x2x2/s2", "max_pool3d", (2, 32, 128, 128, 128), (2,)),
    PoolCase("large window, max 13x13/s1", "max_pool2d", (32, 256, 20, 20), (13,), {"stride": 1, "padding": 6}),
    PoolCase("large window, max 31x31/s1", "max_pool2d", (8, 64, 128, 128), (31,), {"stride": 1, "padding": 15}),
    PoolCase("large window, average 31x31/s1", "avg_pool2d", (8, 64, 128, 128), (31,), {"stride": 1, "padding": 15}),
    PoolCase("global average, ResNet head", "adaptive_avg_pool2d", (256, 2048, 7, 7), (1,)),
    PoolCase("global average, 8x8", "adaptive_avg_pool2d", (256, 2048, 8, 8), (1,)),
    PoolCase("global average, batch 1", "adaptive_avg_pool2d", (1, 64, 512, 512), (1,)),
    PoolCase("global maximum, batch 1", "adaptive_max_pool2d", (1, 64, 512, 512), (1,)),
    PoolCase("adaptive average 7x7 of 56x56", "adaptive_avg_pool2d", (32, 512, 56, 56), (7,)),
    PoolCase("adaptive average 7x7 of 64x64", "adaptive_avg_pool2d", (32, 512, 64, 64), (7,)),
    PoolCase("adaptive maximum 7x7 of 64x64", "adaptive_max_pool2d", (32, 512, 64, 64), (7,)),
    PoolCase("adaptive average 6x6 of 13x13, AlexNet", "adaptive_avg_pool2d", (256, 256, 13, 13), (6,)),
)
