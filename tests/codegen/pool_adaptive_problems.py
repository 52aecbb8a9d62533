"""Adaptive, global, fractional and unpooling problems of the codegen lane, with the solvers they show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.problem import PoolProblem
from gpuconv.shapes import adaptive_windows

FORMATS = (CHANNELS_LAST, CONTIGUOUS)


def pool_problem(
    pool: str,
    shape: Sequence[int],
    out: Sequence[int],
    dtype: str = "float16",
    layout: str = CHANNELS_LAST,
    kind: str = "fprop",
    **options: Any,
) -> PoolProblem:
    """Describe a pool of a tensor of `shape` to `out` on a GPU, as the functions would; windows of 2 where given."""
    size, ndim = tuple(shape[2:]), len(out)
    if pool.startswith("adaptive"):
        bounds = [adaptive_windows(a, b) for a, b in zip(size, out, strict=True)]
        kernel = tuple(max(end - start for start, end in zip(*pair, strict=True)) for pair in bounds)
    else:
        kernel = (2,) * ndim
    flat = pool == "fractional_max" or (pool == "max_unpool" and ndim != 2)
    y_format = CONTIGUOUS if flat and kind == "fprop" else layout
    options.setdefault("return_indices", pool in ("adaptive_max", "fractional_max") and kind == "fprop")
    return PoolProblem(
        f"{pool}{ndim}d", pool, kind, shape[0], shape[1], size, kernel, tuple(out), (1,) * ndim, (0,) * ndim,
        (0,) * ndim, (1,) * ndim, dtype, "cuda:0", "torch", layout, y_format, **options,
    )  # fmt: skip


def entries() -> Iterator[tuple[str, str, PoolProblem]]:
    """Yield the name of each entry, the id of its solver and its problem."""
    for pool in ("adaptive_avg", "adaptive_max"):
        for dtype, layout in (*product(("float16", "float32"), FORMATS), ("float64", CHANNELS_LAST)):
            name, window = f"{pool} {dtype} {layout}", "window" if layout == CHANNELS_LAST else "lines"
            aligned = ((32, 256, 64, 64), (16, 16))
            yield f"{name} 64 to 16", f"adaptive.fprop.{window}", pool_problem(pool, *aligned, dtype, layout)
            whole = pool_problem(pool, (32, 2048, 8, 8), (1, 1), dtype, layout)
            yield f"{name} global", "adaptive.fprop.split", whole
            backward = pool_problem(pool, *aligned, dtype, layout, "bwd", offsets=pool == "adaptive_max")
            yield f"{name} backward", "adaptive.bwd.gather", backward
        for layout in FORMATS:
            name, window = f"{pool} float16 {layout}", "window" if layout == CHANNELS_LAST else "lines"
            one = pool_problem(pool, (1, 64, 112, 112), (1, 1), "float16", layout)
            yield f"{name} global, batch 1", "adaptive.fprop.split", one
            ragged = pool_problem(pool, (32, 256, 56, 56), (7, 7), "float16", layout)
            yield f"{name} 56 to 7", f"adaptive.fprop.{window}", ragged
    for layout in FORMATS:
        name, window = f"adaptive_max float16 {layout}", "window" if layout == CHANNELS_LAST else "lines"
        ragged = pool_problem("adaptive_max", (32, 256, 56, 56), (7, 7), "float16", layout)
        yield f"{name} 56 to 7, split", "adaptive.fprop.split", ragged
        volume = pool_problem("adaptive_max", (4, 64, 16, 56, 48), (4, 7, 5), "float16", layout)
        yield f"{name} 3-D", f"adaptive.fprop.{window}", volume
        wide = pool_problem("adaptive_max", (512, 64, 320, 320), (16, 16), "float16", layout)
        yield f"{name} 64-bit", f"adaptive.fprop.{window}", wide
    ragged = pool_problem("adaptive_max", (32, 256, 56, 56), (7, 7), "float16", CONTIGUOUS)
    yield "adaptive_max float16 contiguous 56 to 7, window", "adaptive.fprop.window", ragged
    no_indices = pool_problem("adaptive_max", (32, 2048, 8, 8), (1, 1), return_indices=False)
    yield "adaptive_max float16 channels_last no indices global", "adaptive.fprop.split", no_indices
    plane = pool_problem("adaptive_max", (32, 256, 64, 64), (16, 16), "float16", CHANNELS_LAST, "bwd")
    yield "adaptive_max float16 channels_last plane indices backward", "adaptive.bwd.gather", plane
    brain = pool_problem("adaptive_avg", (32, 2048, 8, 8), (1, 1), "bfloat16")
    yield "adaptive_avg bfloat16 channels_last global", "adaptive.fprop.split", brain
    head = pool_problem("adaptive_avg", (32, 2048, 7, 7), (1, 1), "float16", CONTIGUOUS)
    yield "adaptive_avg float16 contiguous 7x7 global", "adaptive.fprop.split", head
    yield from _by_position()


def _by_position() -> Iterator[tuple[str, str, PoolProblem]]:
    small, large = (32, 64, 112, 112), (224, 224)
    chosen = (("float16", CHANNELS_LAST), ("float16", CONTIGUOUS), ("float32", CONTIGUOUS), ("float64", CHANNELS_LAST))
    for dtype, layout in chosen:
        name = f"{dtype} {layout}"
        unpool = pool_problem("max_unpool", small, large, dtype, layout)
        yield f"max_unpool {name}", "max_unpool.fprop.claim", unpool
        back = pool_problem("max_unpool", small, large, dtype, layout, "bwd")
        yield f"max_unpool {name} backward", "max_unpool.bwd.gather", back
        fractional = pool_problem("fractional_max", small, (80, 80), dtype, layout)
        yield f"fractional_max {name}", "fractional_max.fprop.window", fractional
        back = pool_problem("fractional_max", small, (80, 80), dtype, layout, "bwd")
        yield f"fractional_max {name} backward", "fractional_max.bwd.gather", back
    apart = pool_problem("max_unpool", (1, 4, 320, 320), (640, 640), "float16", CONTIGUOUS)
    yield "max_unpool float16 contiguous claims apart", "max_unpool.fprop.claim", apart
    wide = pool_problem("max_unpool", (512, 64, 160, 160), (320, 320), "float16", CONTIGUOUS)
    yield "max_unpool float16 contiguous 64-bit", "max_unpool.fprop.claim", wide
    volume = pool_problem("max_unpool", (4, 64, 8, 32, 32), (16, 64, 64), "float16", CHANNELS_LAST)
    yield "max_unpool float16 channels_last volume", "max_unpool.fprop.claim", volume
    taps = pool_problem("fractional_max", (32, 64, 112, 112), (80, 80), "float16", CONTIGUOUS, "bwd", offsets=True)
    yield "fractional_max float16 contiguous offsets backward", "fractional_max.bwd.gather", taps
    volume = pool_problem("fractional_max", (4, 64, 16, 56, 48), (8, 30, 32), "float16", CONTIGUOUS)
    yield "fractional_max float16 contiguous volume", "fractional_max.fprop.window", volume


ENTRIES = {name: (f"triton.pool.{solver}", problem) for name, solver, problem in entries()}
