"""Cliffs of the NumPy backend: sizes at which the time per unit of work is far more than at smaller ones.

    python bench/cliffs.py [--only conv2d] [--factor 4] [--seconds 0.05]

Each row is a ladder: one function, one size that grows over decades, all others fixed. A unit of work is a
multiplication or a comparison of the dense definition, or an element that must move, whichever are more (where strides
grow, always an element). The row's growth is the largest ratio of the time per unit to that of any smaller rung. Times
are CPU times of one thread, the least of several. Prints a table and writes nothing; the exit status is 1 where a row
grows by more than the factor.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy loads its BLAS

import numpy as np  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv.problem import itemsize  # noqa: E402
from gpuconv.shapes import conv_output_size  # noqa: E402

Bound = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
BY_ELEMENT = ("stride",)
"""Sizes that take multiplications away but leave what must be read: the unit of work is an element."""

SPATIAL = {1: 1024, 2: 32, 3: 12}
LONG = {1: (64, 1024, 16384, 262144), 2: (8, 32, 128, 512), 3: (4, 12, 32, 64)}
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Ladder:
    """One function whose calls differ in one size."""

    name: str
    size: str
    values: tuple[int, ...]
    bind: Callable[[int], Bound]
    steps: Callable[[int], int] | None = None
    """Of two functions in one call, the multiplications of both; ``explain`` tells those of the first."""


def array(*shape: int) -> np.ndarray:
    """Return random numbers, none of which is 0."""
    return RNG.random(shape, np.float32) + np.float32(0.5)


def convolution(
    kind: str, ndim: int, n: int = 2, c: int = 8, k: int = 8, groups: int = 1, size: int = 0, kernel: int = 3,
    stride: int = 1, dilation: int = 1,
) -> Bound:  # fmt: skip
    """Return a convolution, a gradient of it, or the transposed one; `c` and `k` are channels of one group."""
    size = max(size or SPATIAL[ndim], (kernel - 1) * dilation + 1)
    out = (size - (kernel - 1) * dilation - 1) // stride + 1
    x, w, y = (n, c * groups, *(size,) * ndim), (k * groups, c, *(kernel,) * ndim), (n, k * groups, *(out,) * ndim)
    geometry = {"stride": stride, "dilation": dilation, "groups": groups}
    arguments: dict[str, tuple[str, tuple[Any, ...]]] = {
        "conv": (f"conv{ndim}d", (array(*x), array(*w))),
        "transposed": (f"conv_transpose{ndim}d", (array(*y), array(*w))),
        "input gradient": (f"conv{ndim}d_input_grad", (x, array(*w), array(*y))),
        "weight gradient": (f"conv{ndim}d_weight_grad", (array(*x), w, array(*y))),
    }
    name, given = arguments[kind]
    return getattr(gpuconv, name), given, geometry


def pooling(
    kind: str, backward: bool, ndim: int, n: int = 2, c: int = 8, size: int = 0, kernel: int = 3, stride: int = 2,
    outputs: int = 7, dilation: int = 1,
) -> Bound:  # fmt: skip
    """Return a pool or its gradient."""
    size = max(size or SPATIAL[ndim], (kernel - 1) * dilation + 1)
    x = array(n, c, *(size,) * ndim)
    if kind.startswith("adaptive"):
        pool, back = (getattr(gpuconv, f"{kind}_pool{ndim}d{end}") for end in ("", "_backward"))
        if kind == "adaptive_max":
            return (back, _with_indices(pool, x, outputs, True), {}) if backward else (pool, (x, outputs, True), {})
        return (back, (pool(x, outputs), x), {}) if backward else (pool, (x, outputs), {})
    pool = getattr(gpuconv, f"{kind}_pool{ndim}d")
    if kind == "max":
        geometry = (kernel, stride, 0, dilation, False)
        if not backward:
            return pool, (x, *geometry, True), {}
        y, indices = pool(x, *geometry, True)
        return getattr(gpuconv, f"max_pool{ndim}d_with_indices_backward"), (y, x, *geometry, indices), {}
    given = (2.0, kernel, stride) if kind == "lp" else (kernel, stride)
    if not backward:
        return pool, (x, *given), {}
    return getattr(gpuconv, f"{kind}_pool{ndim}d_backward"), (pool(x, *given), x, *given), {}


def _with_indices(pool: Callable[..., Any], x: np.ndarray, *given: Any) -> tuple[Any, ...]:
    y, indices = pool(x, *given)
    return y, x, indices


def other(kind: str, n: int = 2, c: int = 8, size: int = 32, kernel: int = 3) -> Bound:
    """Return what has no windows with strides of a pool: unfold, fold, unpooling, fractional pools."""
    x = array(n, c, size, size)
    if kind == "unfold":
        return gpuconv.unfold, (x, kernel), {}
    if kind == "fold":
        return gpuconv.fold, (gpuconv.unfold(x, kernel), size, kernel), {}
    if kind == "fractional":
        return gpuconv.fractional_max_pool2d, (x, kernel, (size - kernel) // 2 + 1), {"return_indices": True}
    y, indices = gpuconv.max_pool2d(x, 2, 2, return_indices=True)
    if kind == "unpool":
        return gpuconv.max_unpool2d, (y, indices, 2), {}
    return gpuconv.max_unpool2d_backward, (array(*x.shape), y, indices), {}


def composed(kind: str, n: int = 2, c: int = 8, k: int = 8, size: int = 0, kernel: int = 3) -> Bound:
    """Return what is made of convolutions, or is one with more than its operands: `k` filters of the last one."""
    size = max(size or (1024 if kind == "causal" else 32), kernel)
    if kind == "causal":
        return gpuconv.causal_conv1d, (array(n, c, size), array(c, kernel)), {}
    x = array(n, c, size, size)
    if kind == "deform":
        offset = RNG.random((n, 2 * kernel * kernel, size - kernel + 1, size - kernel + 1), np.float32) - np.float32(
            0.5
        )
        return gpuconv.deform_conv2d, (x, offset, array(k, c, kernel, kernel)), {}
    if kind == "scaled":
        x, w = ((10 * values).astype(np.int8) for values in (x, array(k, c, kernel, kernel)))
        return gpuconv.scaled_conv2d, (x, w), {"input_scale": 0.5, "weight_scale": 0.25}
    if kind == "depthwise separable":
        return gpuconv.depthwise_separable_conv2d, (x, array(c, 1, kernel, kernel), array(k, c, 1, 1)), {}
    if kind == "separable":
        return gpuconv.separable_conv2d, (x, array(k, c, kernel, 1), array(k, k, 1, kernel)), {}
    if kind == "fractional 3d":
        x = array(n, c, size // 2, size // 2, size // 2)
        return gpuconv.fractional_max_pool3d, (x, 2, size // 4), {"return_indices": True}
    padding = {"padding": kernel // 2, "padding_mode": kind}
    return gpuconv.conv2d, (x, array(k, c, kernel, kernel)), padding


def steps_of(kind: str, n: int = 2, c: int = 8, k: int = 8, size: int = 32, kernel: int = 3) -> int:
    """Return the multiplications of both convolutions of a composed function."""
    size = max(size, kernel)
    out = conv_output_size(size, kernel)
    if kind == "separable":
        return n * k * kernel * (c * out * size + k * out * out)
    return n * c * out * out * (kernel * kernel + k)


def _of(function: Callable[..., Any], kind: str, size: str) -> Callable[[int], Any]:
    """Return `function` of a kind and of one size, which a ladder gives."""
    return lambda value: function(kind, **{size: value})


def _composed_ladders() -> Iterator[Ladder]:
    modes = ("reflect", "replicate", "circular")
    for kind in ("deform", "scaled", "depthwise separable", "separable", *modes):
        steps = steps_of if kind.endswith("separable") else None
        sizes = {"n": (1, 8, 64), "c": (1, 8, 64, 256), "k": (1, 8, 64, 256), "size": (8, 32, 128), "kernel": (1, 3, 9)}
        for size, values in sizes.items():
            name = f"conv 2d {kind}" if kind in modes else f"{kind} 2d"
            yield Ladder(name, size, values, _of(composed, kind, size), steps and _of(steps, kind, size))
    for size, values in {"n": (1, 8, 64), "c": (1, 8, 64, 512), "size": LONG[1][:3], "kernel": (2, 8, 31)}.items():
        yield Ladder("causal 1d", size, values, _of(composed, "causal", size))
    for size, values in {"n": (1, 8, 64), "c": (1, 8, 64), "size": (16, 32, 128)}.items():
        yield Ladder("fractional 3d", size, values, _of(composed, "fractional 3d", size))


def ladders() -> Iterator[Ladder]:
    """Yield every ladder."""
    yield from _composed_ladders()
    for ndim in (1, 2, 3):
        kernels = {1: (1, 8, 64, 512), 2: (1, 3, 9, 27), 3: (1, 3, 9)}[ndim]
        sizes: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
            "n": ((1, 8, 64, 256), {}), "c": ((1, 8, 64, 256), {}), "k": ((1, 8, 64, 256), {}),
            "size": (LONG[ndim], {}), "kernel": (kernels, {"size": {1: 2048, 2: 48, 3: 14}[ndim]}),
            "groups": ((1, 8, 64, 256), {"c": 2, "k": 2}), "stride": ((1, 2, 4, 8), {"size": LONG[ndim][2], "n": 16}),
            "dilation": ((1, 2, 4), {"size": SPATIAL[ndim] * 2}),
        }  # fmt: skip
        depthwise = {"groups": ((1, 8, 64, 512), {"c": 1, "k": 1}), "multiplier": ((1, 8, 64, 512), {"c": 1}),
                     "kernel": (kernels, {"c": 1, "k": 1, "groups": 8})}  # fmt: skip
        for kind in ("conv", "input gradient", "weight gradient", "transposed"):
            for what, table in (("", sizes), (" depthwise", depthwise)):
                for size, (values, fixed) in table.items():
                    argument = "k" if size == "multiplier" else size

                    def bind(value: int, kind=kind, ndim=ndim, argument=argument, fixed=fixed) -> Bound:  # type: ignore[no-untyped-def]
                        return convolution(kind, ndim, **{**fixed, argument: value})

                    yield Ladder(f"{kind} {ndim}d{what}", size, values, bind)
        yield from _pool_ladders(ndim, kernels)
    for kind in ("unfold", "fold", "unpool", "unpool gradient", "fractional"):
        table = {"n": (1, 8, 64), "c": (1, 8, 64, 512), "size": (8, 32, 128, 512)}
        if not kind.startswith("unpool"):
            table["kernel"] = (2, 6, 18)
        for size, values in table.items():
            yield Ladder(f"{kind} 2d", size, values, lambda v, kind=kind, size=size: other(kind, **{size: v}))  # type: ignore[misc]


def _pool_ladders(ndim: int, kernels: tuple[int, ...]) -> Iterator[Ladder]:
    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max"):
        sizes: dict[str, tuple[int, ...]] = {"n": (1, 8, 64, 256), "c": (1, 8, 64, 512), "size": LONG[ndim]}
        if kind.startswith("adaptive"):
            sizes["outputs"] = {1: (2, 30, 700, 5000, 50000), 2: (2, 5, 30, 150), 3: (2, 3, 9, 30)}[ndim]
        else:
            sizes |= {"kernel": kernels, "stride": (1, 2, 4)}
            if kind == "max":
                sizes["dilation"] = (1, 2, 4)
        for backward in (False, True):
            for size, values in sizes.items():
                fixed = {"kernel": {"size": {1: 2048, 2: 48, 3: 14}[ndim], "stride": 1}}.get(size, {})
                if size == "outputs":
                    fixed = {"n": 4, "c": 16}

                def bind(value: int, kind=kind, backward=backward, size=size, fixed=fixed) -> Bound:  # type: ignore[no-untyped-def]
                    return pooling(kind, backward, ndim, **{**fixed, size: value})

                yield Ladder(f"{kind} pool {ndim}d{' gradient' if backward else ''}", size, values, bind)


def units(bound: Bound, size: str) -> int:
    """Return the units of work of a call whose `size` grows."""
    fn, args, kwargs = bound
    problem = gpuconv.explain(fn, *args, **kwargs).problem
    elements = problem.min_bytes // itemsize(problem.dtype)
    return elements if size in BY_ELEMENT else max(problem.flops // 2, elements)


def seconds(bound: Bound, spent: float) -> float:
    """Return the least CPU time of a call, in as many runs as fit into `spent` seconds, and at least two."""
    fn, args, kwargs = bound
    found, total, runs = float("inf"), 0.0, 0
    while runs < 3 or (total < spent and runs < 50):
        start = time.process_time()
        fn(*args, **kwargs)
        took = time.process_time() - start
        found, total, runs = min(found, took), total + took, runs + 1
        if runs > 1 and total > 10 * spent:
            break
    return found


def climb(ladder: Ladder, spent: float) -> tuple[float, list[float]]:
    """Return the growth of a ladder, and nanoseconds per unit of work, rung by rung."""
    rates = []
    for value in ladder.values:
        bound = ladder.bind(value)
        work = units(bound, ladder.size) if ladder.steps is None else ladder.steps(value)
        rates.append(seconds(bound, spent) / work * 1e9)
    growth = max(rate / min(rates[: place + 1]) for place, rate in enumerate(rates))
    return growth, rates


def main(arguments: list[str]) -> int:
    """Climb every ladder that was asked for, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="ladders whose name or size contains this, e.g. 'conv 2d'")
    parser.add_argument("--factor", type=float, default=4.0, help="the largest growth that is no cliff")
    parser.add_argument("--seconds", type=float, default=0.05, help="CPU time for a rung")
    chosen = parser.parse_args(arguments)
    print(f"{'ladder':32} {'size':10} {'growth':>6}  ns per unit of work")
    cliffs = rows = 0
    for ladder in ladders():
        if chosen.only not in f"{ladder.name} {ladder.size}":
            continue
        growth, rates = climb(ladder, chosen.seconds)
        for _ in range(2):  # another process may have disturbed it
            if growth > chosen.factor:
                growth, rates = min((growth, rates), climb(ladder, 2 * chosen.seconds))
        rows, cliffs = rows + 1, cliffs + (growth > chosen.factor)
        steps = "  ".join(f"{value}: {rate:.3g}" for value, rate in zip(ladder.values, rates, strict=True))
        mark = "  <-- cliff" if growth > chosen.factor else ""
        print(f"{ladder.name:32} {ladder.size:10} {growth:6.1f}  {steps}{mark}", flush=True)
    print(f"{rows} ladders, {cliffs} grow by more than {chosen.factor:g}")
    return 1 if cliffs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
