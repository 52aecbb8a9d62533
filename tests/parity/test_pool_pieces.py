"""NumPy pools with windows longer than a tile, and adaptive ones with more windows than elements, against torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.backends.numpy import pool_tiles as tiles
from gpuconv.dispatch.plan_cache import CACHE

COUNT = 200 if os.environ.get("GPUCONV_TEST_FULL") == "1" else 60
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.fixture(params=[1 << 5, 1 << 7])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make tiles of so few elements that windows of a small test are read in pieces."""

    def forget() -> None:
        tiles._first_steps.cache_clear()
        tiles._kept_ranges.cache_clear()
        CACHE.clear()

    forget()
    monkeypatch.setattr(tiles, "tile_size", lambda: request.param)
    yield request.param
    forget()


def drawn(rng: np.random.Generator) -> tuple[str, torch.Tensor, tuple[Any, ...]]:
    """Draw a pool, its input (with ties, NaN or infinities) and its arguments."""
    ndim = int(rng.integers(1, 4))
    size = [int(v) for v in rng.integers(3, {1: 200, 2: 30, 3: 12}[ndim], ndim)]
    shape = (*(int(v) for v in rng.integers(1, 4, 2)), *size)
    x = torch.from_numpy(rng.integers(-9, 10, shape) / 4)
    if rng.random() < 0.3:
        x.view(-1)[int(rng.integers(0, x.numel()))] = float("nan")
    if rng.random() < 0.2:
        x.fill_(-float("inf"))
    kernel = [int(rng.integers(1, n + 1)) for n in size]
    stride, dilation = (tuple(int(v) for v in rng.integers(1, most, ndim)) for most in (5, 3))
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    out = tuple(int(v) for v in rng.integers(1, 2 * max(size), ndim))
    pool = str(rng.choice(["max", "avg", "lp", "adaptive_avg", "adaptive_max"]))
    if pool == "lp":
        x = torch.from_numpy(rng.random(shape) + 0.1)
    first = kernel[0] if ndim == 1 else tuple(kernel)
    arguments: dict[str, tuple[Any, ...]] = {
        "max": (tuple(kernel), stride, padding, dilation, bool(rng.random() < 0.5), True),
        "avg": (tuple(kernel), stride, padding, bool(rng.random() < 0.5), bool(rng.random() < 0.5)),
        "lp": (float(rng.choice([1.0, 2.0, 3.0])), first, stride[0] if ndim == 1 else stride),
        "adaptive_avg": (out,),
        "adaptive_max": (out, True),
    }
    # Of a channels-last 3-D window with nothing but -inf torch gives an index of depth 0, which may lie outside of it.
    if ndim > 1 and rng.random() < 0.3 and not (ndim == 3 and x.isinf().all()):
        x = x.contiguous(memory_format=LAST[ndim])
    return f"{pool}_pool{ndim}d", x, arguments[pool]


def test_pieces_are_torchs(tile: int) -> None:
    rng, compared = np.random.default_rng(tile), 0
    while compared < COUNT:
        name, x, arguments = drawn(rng)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        try:
            theirs = getattr(F, name)(inputs[0], *arguments)
        except RuntimeError:
            continue
        ours = getattr(gpuconv, name)(inputs[1], *arguments)
        compared += 1
        if not isinstance(theirs, tuple):
            theirs, ours = (theirs,), (ours,)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our, their, equal_nan=True)
        dy = torch.from_numpy(rng.random(theirs[0].shape))
        theirs[0].backward(dy)
        ours[0].backward(dy)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_global_pool_of_a_large_plane_keeps_under_the_limit(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan states less than the limit, and the call allocates no more."""
    import tracemalloc

    monkeypatch.setenv("GPUCONV_WORKSPACE", str(16 << 20))
    x = np.ones((1, 1, 1500, 1600), dtype)
    x[0, 0, 1200, 1300] = 2
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (gpuconv.adaptive_avg_pool2d, (x, 1)),
        (gpuconv.avg_pool2d, (x, (1500, 1600))),
        (gpuconv.adaptive_max_pool2d, (x, 1)),
        (gpuconv.adaptive_max_pool2d, (x, 1, True)),
        (gpuconv.lp_pool2d, (x, 2.0, (1500, 1600))),
    ]
    values = (1 + 1 / x.size, 1 + 1 / x.size, 2, 2, (x.size + 3) ** 0.5)
    for (pool, arguments), value in zip(calls, values, strict=True):
        stated = gpuconv.explain(pool, *arguments).plan
        assert stated is not None and stated.workspace <= 16 << 20
        pool(*arguments)
        tracemalloc.start()
        result = pool(*arguments)
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert allocated <= stated.workspace + (64 << 10), (pool.__name__, allocated, stated.workspace)
        first = result[0] if isinstance(result, tuple) else result
        assert abs(float(first.ravel()[0]) / value - 1) < 2e-3
        if isinstance(result, tuple):
            assert result[1].ravel()[0] == 1200 * 1600 + 1300


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_windows_of_adaptive_pools_are_torchs_at_any_count(ndim: int) -> None:
    """Also where windows are many times more than elements; gradients are sums over the windows of an element."""
    size = {1: (37,), 2: (11, 13), 3: (5, 7, 4)}[ndim]
    for factor in (0.3, 1, 1.7, 9):
        out = tuple(max(1, round(n * factor)) for n in size)
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        for name in ("adaptive_avg", "adaptive_max"):
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            options = (True,) if name == "adaptive_max" else ()
            theirs, ours = (
                getattr(module, f"{name}_pool{ndim}d")(each, out, *options)
                for module, each in zip((F, gpuconv), inputs, strict=True)
            )
            torch.testing.assert_close(ours, theirs)
            for y in (theirs, ours):
                (y[0] if options else y).square().sum().backward()
            torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


def test_no_call_of_numpy_per_window() -> None:
    """An adaptive pool of many windows makes few calls: the longest window's elements, not one a window."""
    from gpuconv.backends.numpy.pool_axes import axes_of

    problem: Any = gpuconv.explain(gpuconv.adaptive_avg_pool1d, np.zeros((1, 8, 1000), np.float32), 15999).problem
    (axis,) = axes_of(problem)
    assert not axis.by_window and axis.kernel == 2
    begin, end, local = axis.slab_in(300, 400)
    reads = [set(range(axis.window(o).start, axis.window(o).stop)) for o in range(axis.out)]
    assert [o for o in range(axis.out) if reads[o] & set(range(300, 400))] == list(range(begin, end))
    assert [local.window(o - begin) for o in range(begin, end)] == [
        slice(max(min(reads[o]), 300) - 300, min(max(reads[o]) + 1, 400) - 300, 1) for o in range(begin, end)
    ]
