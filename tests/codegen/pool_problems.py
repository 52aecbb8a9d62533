"""Pooling problems of the codegen lane: the layers of real networks, large ones of each kind, and awkward ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST
from gpuconv.problem import PoolProblem

WORKLOADS = Path(__file__).parents[2] / "bench" / "workloads"
BATCH = 32


def pool_problem(
    pool: str,
    x: Sequence[int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    dtype: str = "float16",
    layout: str = CHANNELS_LAST,
    kind: str = "fprop",
    ceil_mode: bool = False,
    **options: Any,
) -> PoolProblem:
    """Describe a pool of an input of shape `x` on a GPU."""
    ndim = len(x) - 2

    def axes(value: int | Sequence[int]) -> tuple[int, ...]:
        return (value,) * ndim if isinstance(value, int) else tuple(value)

    window, steps, pads, rate = axes(kernel), axes(stride), axes(padding), axes(dilation)
    ceil = (ceil_mode,) * ndim
    output = shapes.map_axes(shapes.pool_output_size, tuple(x[2:]), window, steps, pads, pads, rate, ceil)
    return PoolProblem(
        op=f"{pool}_pool{ndim}d", pool=pool, kind=kind, n=x[0], c=x[1], input_size=tuple(x[2:]), kernel=window,
        output_size=output, stride=steps, pad_lo=pads, pad_hi=pads, dilation=rate, dtype=dtype, device="cuda:0",
        array="torch", x_format=layout, y_format=layout, ceil_mode=ceil_mode, **options,
    )  # fmt: skip
