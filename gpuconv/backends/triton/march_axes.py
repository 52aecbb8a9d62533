"""The axes of a depthwise convolution as the marching kernels walk them: forward, and the gradient of any stride."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from ...shapes import ceil_div

__all__ = ["MarchAxis", "forward_axis", "gradient_axis"]


@dataclass(frozen=True, slots=True)
class MarchAxis:
    """One axis, taken apart into phases whose windows have no dilation.

    In phase f the source position i is ``source + f * source_phase + i * source_pitch`` and the result position j is
    ``result + f * result_phase + j * result_pitch``. A step reads `reads` source positions and closes `writes` of the
    result; one of the two is 1. Forward, tap r leads from result position j to source position
    ``reads * j + r``; in a gradient, from source position i to result position ``writes * i + r - lead``. `count`
    result positions of a phase begin at 0.
    """

    taps: int
    reads: int
    writes: int
    phases: int
    source: int
    source_phase: int
    source_pitch: int
    result: int
    result_phase: int
    result_pitch: int
    count: int
    lead: int = 0

    @property
    def in_vectors(self) -> bool:
        """Whether neighbouring positions of a window lie side by side and begin at multiples of what a lane reads."""
        return self.phases == 1 and self.writes == 1 and self.source_pitch == self.result_pitch == 1

    @property
    def results_in_vectors(self) -> bool:
        """Whether the results of a lane lie side by side and begin at multiples of what a lane writes."""
        return self.phases == self.result_pitch == 1 and self.result == 0

    @property
    def open(self) -> int:
        """Result positions that a step adds to or closes."""
        return max(ceil_div(self.taps, self.reads), self.writes)

    @property
    def warm(self) -> int:
        """Steps before the first that add to the results which it closes."""
        return ceil_div(self.open, self.writes) - 1

    @property
    def steps(self) -> int:
        """Steps that close every result of a phase."""
        return ceil_div(self.count, self.writes)


def forward_axis(taps: int, stride: int, dilation: int, pad: int, size: int) -> MarchAxis:
    """Return the axis of ``result[j] = sum_r source[j stride + r dilation - pad] w[r]``, with `size` results.

    With g the greatest common divisor of stride and dilation, results ``f + (dilation / g) j`` of a phase f read
    ``f stride - pad + dilation ((stride / g) j + r)``.
    """
    shared = gcd(stride, dilation)
    phases = dilation // shared
    return MarchAxis(
        taps, stride // shared, 1, phases, -pad, stride, dilation, 0, 1, phases, ceil_div(size, phases)
    )  # fmt: skip


def gradient_axis(taps: int, stride: int, dilation: int, pad: int, size: int, *, columns: bool = False) -> MarchAxis:
    """Return the axis of the sum over ``source[p] w[r]`` of every ``p stride + r dilation - pad = result``.

    Stride and dilation must have no common divisor. Sources ``p = f + dilation i`` of a phase f then add to the results
    ``f stride - pad + dilation (stride i + r)``, which no other phase does. Positions begin at the last multiple of the
    stride that is not behind the first result of any phase; those of `columns`, whose windows are taken apart when a
    kernel is compiled, at the first result itself where there is one phase, so that lanes write whole vectors.
    """
    if columns and dilation == 1:
        return MarchAxis(taps, 1, stride, 1, pad // stride, 1, 1, 0, stride, 1, size, pad % stride)
    lowest = (pad - (dilation - 1) * stride) // dilation
    start = lowest // stride * stride
    highest = (size - 1 + pad) // dilation
    return MarchAxis(
        taps, 1, stride, dilation, dilation * (start // stride), 1, dilation, dilation * start - pad, stride, dilation,
        highest - start + 1,
    )  # fmt: skip
