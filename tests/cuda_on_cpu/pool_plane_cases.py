"""Cases of fractional pools and unpooling on CUDA sources: every dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import harness
import numpy as np
from pool_cases import DTYPES, LAYOUTS, dispatched, wide_indices, with_layout

from gpuconv.normalize.pool_backward import fractional_backward_call, unpool_backward_call
from gpuconv.normalize.pool_forward import fractional_call, unpool_call

_WINDOWS = {
    "plain": {}, "ties": {"values": "ties"}, "specials": {"values": "specials"}, "-inf": {"values": "-inf"},
    "taps": {"taps": True}, "taps of ties": {"taps": True, "values": "ties"}, "64-bit": {"wide": True},
    "64-bit taps": {"wide": True, "taps": True}, "one output": {"out": {2: (1, 7), 3: (1, 3, 5)}, "taps": True},
    "no indices": {"indices": False, "values": "specials"},
}  # fmt: skip
_TARGETS = {
    "random": {}, "same": {"targets": "same"}, "distinct": {"targets": "distinct", "values": "specials"},
    "64-bit": {"wide": True}, "outside": {"targets": "outside"}, "many planes": {"n": 3, "c": 9},
}  # fmt: skip
BRANCHES = {"fractional": _WINDOWS, "unpool": _TARGETS}


@dataclass(frozen=True)
class Case:
    """One problem; sizes follow from the branch."""

    family: str
    kind: str
    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        return f"{self.family}-{self.kind}-{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        value = BRANCHES[self.family][self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value


def all_cases(family: str, kind: str) -> list[Case]:
    """Return every (dims, layout, dtype), fractional pools (which have two numbers of dims) one and a half times."""
    dims = (2, 3) if family == "fractional" else (1, 2, 3)
    names = [name for name, options in BRANCHES[family].items() if kind == "fprop" or options.get("indices", True)]
    combinations = list(product(dims, LAYOUTS, DTYPES))
    cases = []
    for number in range(60):
        ndim, layout, dtype = combinations[number % len(combinations)]
        place = number + number // len(combinations) * 3
        cases.append(Case(family, kind, ndim, layout, dtype, names[place % len(names)]))
    return cases


def _draw(random: np.random.Generator, shape: tuple[int, ...], values: str) -> np.ndarray:
    x = random.standard_normal(shape) if values != "ties" else random.integers(-2, 3, shape).astype(float)
    pick = random.random(shape)
    if values in ("specials", "-inf"):
        x[pick < (0.9 if values == "-inf" else 0.15)] = -np.inf
    if values == "specials":
        x[pick > 0.97] = np.nan
        x[(pick > 0.95) & (pick < 0.97)] = np.inf
    return x


def _held(case: Case, values: np.ndarray) -> np.ndarray:
    """Return values as the kernels compute on them: float32 for 16-bit types, as torch on CUDA."""
    held = harness.as_held(with_layout(values, case.layout), case.dtype)
    return held if case.dtype == "float64" else held.astype(np.float32)


def _fractional(case: Case, orders: Any) -> tuple[harness.Ran, tuple[np.ndarray, ...], np.ndarray | None]:
    """Run a fractional case; return also what the NumPy backend computes, and the magnitude where that is a sum."""
    random, ndim = np.random.default_rng(sum(map(ord, case.id))), case.ndim
    shape = (2, 3, *({2: (9, 11), 3: (4, 6, 11)}[ndim]))
    window, out = {2: (2, 3), 3: (2, 3, 2)}[ndim], case.option("out", {2: (5, 7), 3: (2, 3, 7)})
    x = _held(case, _draw(random, shape, case.option("values", "plain")))
    samples = _held(case, np.minimum(random.random((2, 3, ndim)), 0.98))
    taps = True if case.option("taps", False) else None
    forward = partial(dispatched, fractional_call, f"fractional_max_pool{ndim}d", ndim)
    options = (window, out, None, case.option("indices", True))
    expected = forward(x, *options, samples, offsets=taps, backend="numpy")
    on_device = partial(harness.on_device, dtype=case.dtype)
    solver = "cupy.pool.fractional_max.fprop.window"
    if case.kind == "fprop":
        with wide_indices() if case.option("wide", False) else nullcontext():
            run = partial(forward, on_device(x), *options, on_device(samples), offsets=taps)
            ran = harness.run(run, solver=solver, orders=orders)
        return ran, expected if isinstance(expected, tuple) else (expected,), None

    positions = forward(x, *options, samples, backend="numpy")[1]
    grad = _held(case, random.standard_normal(positions.shape))
    backward = partial(dispatched, fractional_backward_call, f"fractional_max_pool{ndim}d_backward", ndim)
    given = (x.astype(float), window, out, positions)
    exact, magnitude = (backward(g, *given, backend="numpy") for g in (grad.astype(float), np.abs(grad.astype(float))))
    indices = harness.on_device(with_layout(positions, case.layout), "int64")
    more: dict[str, Any] = {}
    if taps:
        chosen = harness.on_device(with_layout(expected[1], case.layout), expected[1].dtype.name)
        more = {"offsets": chosen, "samples": on_device(samples)}
    with wide_indices() if case.option("wide", False) else nullcontext():
        run = partial(backward, on_device(grad), on_device(x), window, out, indices, **more)
        ran = harness.run(run, solver="cupy.pool.fractional_max.bwd.gather", orders=orders)
    return ran, (exact,), magnitude


def _targets(random: np.random.Generator, case: Case, shape: tuple[int, ...], plane: int) -> np.ndarray:
    targets = case.option("targets", "random")
    if targets == "same":
        return np.full(shape, plane - 1)
    if targets == "distinct":
        rows = [random.permutation(plane)[: prod(shape[2:])] for _ in range(prod(shape[:2]))]
        return np.stack(rows).reshape(shape)
    return random.integers(0, plane, shape)


def _unpool(case: Case, orders: Any) -> tuple[harness.Ran, tuple[np.ndarray, ...], np.ndarray | None]:
    """Run a case of unpooling; see `_fractional`."""
    random, ndim = np.random.default_rng(sum(map(ord, case.id))), case.ndim
    small = (case.option("n", 2), case.option("c", 5), *({1: (300,), 2: (3, 9), 3: (2, 3, 5)}[ndim]))
    large = {1: (600,), 2: (6, 19), 3: (4, 7, 9)}[ndim]
    x = _held(case, _draw(random, small, case.option("values", "plain")))
    targets = _targets(random, case, small, prod(large))
    given = targets.copy()
    if case.option("targets", "random") == "outside":  # these are left out; the NumPy backend refuses them
        given[..., 0], given[..., 1] = -1, 2**33
    indices = harness.on_device(with_layout(given, case.layout), "int64")
    on_device, wide = partial(harness.on_device, dtype=case.dtype), case.option("wide", False)
    if case.kind == "fprop":
        forward = partial(dispatched, unpool_call, f"max_unpool{ndim}d", ndim)
        expected = forward(x, targets, 2, None, 0, large, backend="numpy")
        if (given != targets).any():
            expected = np.zeros_like(expected)
            for n, c in product(*map(range, small[:2])):
                plane = expected[n, c].reshape(-1)
                for value, target in zip(x[n, c].ravel(), given[n, c].ravel(), strict=True):
                    if 0 <= target < plane.size:
                        plane[target] = value
                expected[n, c] = plane.reshape(large)
        with wide_indices() if wide else nullcontext():
            run = partial(forward, on_device(x), indices, 2, None, 0, large)
            ran = harness.run(run, solver="cupy.pool.max_unpool.fprop.tiles", orders=orders)
        return ran, (expected,), None
    grad = _held(case, random.standard_normal((*small[:2], *large)))
    backward = partial(dispatched, unpool_backward_call, f"max_unpool{ndim}d_backward", ndim)
    expected = backward(grad, x, targets, backend="numpy")
    expected[given != targets] = 0
    with wide_indices() if wide else nullcontext():
        run = partial(backward, on_device(grad), on_device(x), indices)
        ran = harness.run(run, solver="cupy.pool.max_unpool.bwd.gather", orders=orders)
    return ran, (expected,), None


def check(case: Case, orders: Any = harness.ORDERS) -> None:
    """Assert that the kernels compute a case: sums within tolerance, everything else exactly."""
    run = _fractional if case.family == "fractional" else _unpool
    ran, expected, magnitude = run(case, orders)
    assert len(ran.results) == len(expected)
    if magnitude is not None:
        harness.close(ran.result, expected[0], magnitude, ran.plan)
        return
    for result, wanted in zip(ran.results, expected, strict=True):
        np.testing.assert_array_equal(result.astype(wanted.dtype), wanted)
    if case.option("wide", False):
        assert all(kernel.endswith("true>") or "clear" in kernel for kernel in ran.kernels)
