"""Pooling problems of the codegen lane: the layers of real networks, large ones of each kind, and awkward ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
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


def _networks() -> Iterator[tuple[str, PoolProblem]]:
    """Yield the window pools of every workload that are not aligned like those below, at batch 32 in float16."""
    seen = set()
    for path in sorted(WORKLOADS.glob("*.json")):
        for layer in json.loads(path.read_text())["layers"]:
            pool = layer["op"].partition("_pool")[0]
            if pool not in ("max", "avg", "lp"):
                continue
            windows = {key: tuple(layer[key]) for key in ("stride", "padding", "dilation")}
            for layout in (CHANNELS_LAST, CONTIGUOUS):
                kernel = tuple(layer["kernel_size"])
                problem = pool_problem(pool, (BATCH, *layer["input"]), kernel, layout=layout, **windows)
                # Sizes change constants and a few instructions; what counts is the window and what is aligned.
                sizes = (problem.input_size[-1], problem.output_size[-1])
                aligned = [size % 16 == 0 for size in ((problem.c,) if layout == CHANNELS_LAST else sizes)]
                which = (pool, kernel, *windows.values(), layout, *aligned)
                if not all(aligned) and which not in seen:
                    seen.add(which)
                    yield f"{path.stem} {layer['op']} {'x'.join(map(str, layer['input']))} {layout}", problem


def _small_windows() -> Iterator[tuple[str, PoolProblem]]:
    """Yield the windows that networks use most, forward and backward, aligned, in both layouts."""
    large = (BATCH, 64, 112, 112)
    windows = (("2x2/s2", (2, 2, 0)), ("3x3/s2", (3, 2, 1)), ("3x3/s1", (3, 1, 1)))
    for layout, (name, window) in product((CHANNELS_LAST, CONTIGUOUS), windows):
        for dtype in ("float16", "float32"):
            common: dict[str, Any] = {"dtype": dtype, "layout": layout}
            tail = f"{name} {dtype} {layout}"
            yield f"max {tail}", pool_problem("max", large, *window, **common)
            if dtype == "float16":
                yield f"avg {tail}", pool_problem("avg", large, *window, **common)
        common = {"layout": layout}
        tail = f"{name} float16 {layout}"
        yield f"max with taps {tail}", pool_problem("max", large, *window, return_indices=True, offsets=True, **common)
        yield f"max backward {tail}", pool_problem("max", large, *window, kind="bwd", offsets=True, **common)
        yield f"avg backward {tail}", pool_problem("avg", large, *window, kind="bwd", **common)
    for layout in (CHANNELS_LAST, CONTIGUOUS):
        tail = f"float16 {layout}"
        stem = ("max", large, 3, 2, 1)
        yield f"max with positions 3x3/s2 {tail}", pool_problem(*stem, layout=layout, return_indices=True)
        yield f"max backward of positions 3x3/s2 {tail}", pool_problem(*stem, layout=layout, kind="bwd")
        inception = ("avg", (BATCH, 192, 32, 32), 3, 1, 1)
        options = {"layout": layout, "count_include_pad": False}
        yield f"avg without padding 3x3/s1 {tail}", pool_problem(*inception, **options)
        yield f"max 2x2x2/s2 {tail}", pool_problem("max", (4, 32, 32, 64, 64), 2, 2, layout=layout)
        yield f"max 3x3x3/s2 {tail}", pool_problem("max", (4, 32, 32, 64, 64), 3, 2, 1, layout=layout)
        yield f"lp 2 2x2/s2 {tail}", pool_problem("lp", large, 2, 2, layout=layout, norm_type=2.0)


def _general_backward(layout: str) -> Iterator[tuple[str, PoolProblem]]:
    """Yield gradients that the general kernels compute: of powers, and of few elements in 3-D."""
    same: dict[str, Any] = {"kind": "bwd", "layout": layout}
    yield f"lp 2 2x2/s2 backward {layout}", pool_problem("lp", (BATCH, 64, 112, 112), 2, 2, norm_type=2.0, **same)
    yield f"lp 2 4/s4 backward {layout}", pool_problem("lp", (8, 64, 4096), 4, 4, norm_type=2.0, **same)
    yield f"max 2x2x2 backward {layout}", pool_problem("max", (2, 16, 8, 9, 10), 2, 2, **same)
    yield f"avg 2x2x2 backward {layout}", pool_problem("avg", (2, 16, 8, 9, 10), 2, 2, **same)


def _awkward() -> Iterator[tuple[str, PoolProblem]]:
    """Yield large windows, which take a launch per axis, and what keeps compilers from wide accesses."""
    spatial_pyramid = (8, 512, 32, 32)
    for layout in (CHANNELS_LAST, CONTIGUOUS):
        same = {"layout": layout}
        yield f"max 13x13/s1 {layout}", pool_problem("max", spatial_pyramid, 13, 1, 6, return_indices=True, **same)
        yield (
            f"max 13x13/s1 backward {layout}",
            pool_problem("max", spatial_pyramid, 13, 1, 6, kind="bwd", offsets=True, **same),
        )
        positions = pool_problem("max", spatial_pyramid, 13, 1, 6, kind="bwd", **same)
        yield f"max 13x13/s1 backward of positions {layout}", positions
        yield f"avg 31x31/s1 {layout}", pool_problem("avg", spatial_pyramid, 31, 1, 15, count_include_pad=False, **same)
        yield f"avg 31x31/s1 backward {layout}", pool_problem("avg", spatial_pyramid, 31, 1, 15, kind="bwd", **same)
        yield from _general_backward(layout)
    square = (8, 64, 56, 56)
    yield "lp 3 3x3/s1 backward", pool_problem("lp", square, 3, 1, 1, kind="bwd", norm_type=3.0)
    yield "lp inf 3x3/s2 backward", pool_problem("lp", square, 3, 2, 1, kind="bwd", norm_type=float("inf"))
    yield "lp 1.5 2x2/s2", pool_problem("lp", square, 2, 2, norm_type=1.5)
    yield (
        "float64 3x3/s2",
        pool_problem("max", square, 3, 2, 1, dtype="float64", layout=CONTIGUOUS, return_indices=True),
    )
    yield "bfloat16 3x3/s2", pool_problem("avg", square, 3, 2, 1, dtype="bfloat16")
    yield "uint8 2x2/s2", pool_problem("max", square, 2, 2, dtype="uint8", return_indices=True, offsets=True)
    yield "int64 3x3/s2", pool_problem("max", square, 3, 2, 1, dtype="int64")
    yield "3 channels", pool_problem("max", (8, 3, 57, 57), 3, 2, 1)
    yield "odd width", pool_problem("max", (8, 64, 57, 57), 3, 2, 1, layout=CONTIGUOUS)
    yield "width 28 to 14", pool_problem("max", (8, 64, 28, 28), 2, 2, layout=CONTIGUOUS)
    yield "dilated 3x3", pool_problem("max", square, 3, 1, 1, 2, layout=CONTIGUOUS)
    yield "5x5/s1 with taps", pool_problem("max", square, 5, 1, 2, return_indices=True, offsets=True)
    yield "5x5/s1 backward", pool_problem("max", square, 5, 1, 2, kind="bwd", offsets=True)
    yield "ceil 3x3/s2", pool_problem("avg", square, 3, 2, 0, ceil_mode=True)
    yield "1-D 4/s4", pool_problem("avg", (8, 64, 4096), 4, 4, layout=CONTIGUOUS)
    yield "stride 7", pool_problem("max", (8, 64, 224, 224), 7, 7, return_indices=True)
    yield "64-bit 3x3/s2", pool_problem("max", (512, 64, 320, 320), 3, 2, 1, return_indices=True)
    yield (
        "64-bit contiguous 3-D",
        pool_problem("avg", (1, 16, 600, 600, 600), 3, 2, 1, dtype="float32", layout=CONTIGUOUS),
    )


def problems() -> Iterator[tuple[str, PoolProblem]]:
    """Yield every problem of the table by name."""
    yield from _networks()
    yield from _small_windows()
    yield from _awkward()
