"""Cases of the pools on CUDA sources: every combination of dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import isinf
from typing import Any
from unittest import mock

import harness
import numpy as np

from gpuconv import dispatch, numerics
from gpuconv.backends.cupy import pool as cupy_pool
from gpuconv.backends.cupy import pool_planes
from gpuconv.normalize.pool import adaptive_call
from gpuconv.normalize.pool_backward import (
    adaptive_backward_call,
    avg_backward_call,
    lp_backward_call,
    max_backward_call,
)
from gpuconv.normalize.pool_forward import avg_call, lp_call, max_call
from gpuconv.problem import Call
from gpuconv.shapes import effective_kernel

DTYPES = ("float32", "float16", "bfloat16", "float64")
LAYOUTS = ("contiguous", "channels_last", "strided", "permuted", "reversed")
FAMILIES = ("max", "avg", "lp", "adaptive_avg", "adaptive_max")

Branches = dict[str, dict[str, Any]]

_WINDOWS: Branches = {
    "2 stride 2": {"kernel": 2, "stride": 2, "c": 8},
    "3 stride 2": {"kernel": 3, "stride": 2, "pads": (1, 1), "ceil": True, "special": True},
    "3 stride 1": {"kernel": 3, "stride": 1, "pads": (1, 1), "c": 16, "n": 1, "special": True},
    "asymmetric": {"kernel": 4, "stride": {1: 3, 2: (3, 2), 3: 2}, "pads": (2, 1), "ceil": True},
    "dilated": {
        "kernel": {1: 4, 2: (3, 2), 3: 2}, "stride": {1: 2, 2: (1, 3), 3: 2}, "dilation": {1: 4, 2: (2, 5), 3: 3},
        "pads": (1, 1), "special": True, "c": 8,
    },
    "over input": {
        "kernel": {1: 9, 2: (6, 7), 3: 3}, "stride": 1, "pads": {1: (4, 4), 2: (3, 3), 3: (1, 1)},
        "size": {1: 4, 2: (4, 3), 3: (2, 3, 2)}, "special": True, "n": 3, "c": 7,
    },
    "stride over kernel": {"kernel": 2, "stride": {1: 4, 2: (3, 4), 3: 3}, "pads": (0, 1), "ceil": True, "c": 8},
    # Windows without an element have no tap of their own: any will do, so only positions are compared.
    "of padding": {"kernel": 2, "stride": 1, "dilation": 5, "pads": (3, 3), "size": 2, "numbers": "positions"},
    "31": {
        "kernel": {1: 31, 2: (31, 30), 3: (1, 31, 29)}, "stride": {1: 3, 2: (5, 4), 3: (1, 5, 6)},
        "pads": {1: ((15, 15),), 2: ((15, 15), (14, 15)), 3: ((0, 0), (15, 15), (14, 14))},
        "size": {1: 41, 2: (17, 22), 3: (2, 9, 14)}, "n": 1, "c": 2, "special": True,
    },
    "64-bit": {"kernel": 3, "stride": 2, "pads": (0, 1), "wide": True, "ceil": True, "c": 8, "special": True},
}  # fmt: skip

_LARGE: Branches = {
    "7 by 9": {
        "kernel": {1: 33, 2: (7, 9), 3: (3, 4, 5)}, "stride": 2, "pads": (1, 1), "ceil": True, "special": True,
        "size": {1: 60, 2: (12, 17), 3: (5, 6, 7)},
    },
    "31": {
        **_WINDOWS["31"], "c": 3, "kernel": {1: 63, 2: (31, 30), 3: (1, 31, 29)},
        "pads": {1: ((31, 31),), 2: ((15, 15), (14, 15)), 3: ((0, 0), (15, 15), (14, 14))},
    },
    "global": {
        "kernel": {1: 41, 2: (6, 7), 3: (3, 4, 5)}, "stride": 1, "size": {1: 41, 2: (6, 7), 3: (3, 4, 5)}, "c": 8,
        "special": True,
    },
    "over input": {
        "kernel": {1: 39, 2: (9, 8), 3: (4, 5, 3)}, "stride": 1, "pads": {1: (19, 19), 2: (4, 4), 3: (1, 1)},
        "size": {1: 5, 2: (5, 4), 3: (2, 3, 2)}, "special": True, "n": 3,
    },
    "dilated": {
        "kernel": {1: 32, 2: (6, 6), 3: (3, 4, 3)}, "stride": 2, "dilation": {1: 2, 2: (2, 1), 3: (1, 2, 1)},
        "pads": (1, 1), "special": True, "size": {1: 70, 2: (13, 9), 3: (5, 9, 5)},
    },
    "64-bit": {"kernel": {1: 40, 2: (6, 8), 3: (3, 4, 3)}, "stride": 3, "wide": True, "size": {1: 50, 2: 11, 3: 5}},
}  # fmt: skip

_ADAPTIVE: Branches = {
    "ragged": {"size": {1: 23, 2: (8, 11), 3: (5, 3, 7)}, "out": {1: 9, 2: (3, 9), 3: (3, 1, 5)}, "special": True},
    "larger output": {"size": {1: 5, 2: (3, 4), 3: (2, 3, 4)}, "out": {1: 9, 2: (5, 9), 3: (3, 2, 7)}, "c": 8},
    "even": {
        "size": {1: 27, 2: (6, 12), 3: (2, 4, 6)},
        "out": {1: 9, 2: (3, 6), 3: (1, 2, 3)},
        "special": True,
        "c": 8,
    },
    "ties": {"size": {1: 23, 2: (8, 11), 3: (5, 3, 7)}, "out": {1: 7, 2: (3, 4), 3: (2, 2, 3)}, "ties": True, "c": 8},
    "global": {"size": {1: 41, 2: (6, 7), 3: (3, 4, 5)}, "out": 1, "special": True, "c": 8},
    "64-bit": {"size": {1: 23, 2: (8, 11), 3: (5, 3, 7)}, "out": {1: 9, 2: (3, 9), 3: (3, 1, 5)}, "wide": True},
}
_ADAPTIVE_LARGE: Branches = {
    "global": {"size": {1: 301, 2: (17, 19), 3: (5, 6, 7)}, "out": 1, "special": True},
    "ragged": {"size": {1: 77, 2: (9, 37), 3: (5, 11, 7)}, "out": {1: 2, 2: (2, 3), 3: (2, 3, 1)}, "special": True},
    "ties": {
        "size": {1: 77, 2: (9, 37), 3: (5, 11, 7)},
        "out": {1: 2, 2: (2, 3), 3: (2, 3, 1)},
        "ties": True,
        "c": 40,
        "numbers": "positions",
    },
    "64-bit": {"size": {1: 99, 2: (9, 37), 3: (5, 11, 7)}, "out": {1: 2, 2: 2, 3: (2, 3, 1)}, "wide": True},
}

NORMS = (2.0, 1.0, 3.0, float("inf"), 1.5, -float("inf"), 5.0)
_NUMBERS = ("positions", "taps", "none")


def _named(solver: str, branches: Branches) -> Branches:
    return {f"{solver} {name}": options for name, options in branches.items()}


def _rotating(branches: Branches, **values: tuple[Any, ...]) -> Branches:
    """Give each branch one of the values in turn, for every option that it does not have."""
    return {
        key: {**{name: options[i % len(options)] for name, options in values.items()}, **branch}
        for i, (key, branch) in enumerate(branches.items())
    }


def _branches(family: str, kind: str) -> Branches:
    adaptive = family.startswith("adaptive")
    small, large = (_ADAPTIVE, _ADAPTIVE_LARGE) if adaptive else (_WINDOWS, _LARGE)
    if kind == "bwd":
        found = _named("gather", small | ({} if adaptive else {"global": _LARGE["global"]}))
    else:
        found = _named("window", small) | _named("block", large)
    if family.endswith("max"):
        found = _rotating(found, numbers=_NUMBERS if kind == "fprop" else _NUMBERS[:2])
        if family == "max" and kind == "bwd":
            del found["gather of padding"]  # windows without an element have no index
    elif family == "avg":
        divisors = (None, None, None, 7) if kind == "fprop" else (None, -3, None)
        found = _rotating(found, include_pad=(True, False), divisor=divisors)
    elif family == "lp":
        found = _rotating(found, norm=NORMS)
    return found


BRANCHES = {(family, kind): _branches(family, kind) for family in FAMILIES for kind in ("fprop", "bwd")}


@dataclass(frozen=True)
class PoolCase:
    """One problem for a kernel; sizes follow from the branch, whose first word is the end of the solver's id."""

    family: str
    kind: str
    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        return f"{self.family}-{self.kind}-{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    @property
    def solver(self) -> str:
        return f"cupy.pool.{self.family}.{self.kind}.{self.branch.split()[0]}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.family, self.kind][self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return an option as one integer per axis."""
        value = self.option(name, default)
        return (value,) * self.ndim if isinstance(value, int) else value


def all_cases(family: str, kind: str) -> list[PoolCase]:
    """Return a case for every (dims, layout, dtype), and more until every branch is there in every number of dims."""
    names, combinations = list(BRANCHES[family, kind]), list(product((1, 2, 3), LAYOUTS, DTYPES))
    cases, turns = [], {1: 0, 2: 0, 3: 0}
    for ndim, layout, dtype in combinations:
        cases.append(PoolCase(family, kind, ndim, layout, dtype, names[turns[ndim] % len(names)]))
        turns[ndim] += 1
    return cases


def with_layout(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values` with other strides: channels innermost, every other element, W before H, or W backwards."""
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    if layout == "strided":
        return np.repeat(values, 2, axis=-1)[..., ::2]
    if layout == "permuted":
        axes = (0, 1) if values.ndim == 3 else (-1, -2)
        return np.ascontiguousarray(values.swapaxes(*axes)).swapaxes(*axes)
    if layout == "reversed":
        return np.ascontiguousarray(values[..., ::-1])[..., ::-1]
    return np.ascontiguousarray(values)


@contextmanager
def wide_indices() -> Iterator[None]:
    """Have the solvers launch their 64-bit variants."""
    with (
        mock.patch.object(cupy_pool, "wide_index", lambda *_: True),
        mock.patch.object(pool_planes, "wide_index", lambda *_: True),
    ):
        yield


def dispatched(
    describe: Callable[..., Call], *args: Any, offsets: Any = None, backend: str | None = None, **others: Any
) -> Any:
    """Run the call that `describe` makes of arguments, as the public functions do.

    `offsets` makes indices taps of their windows: True for those that come out, or the array of those that go in, with
    the `others` that the call then needs.
    """
    call = describe(*args, backend)
    if offsets is not None:
        arrays = dict(call.arrays) if offsets is True else {**call.arrays, "indices": offsets, **others}
        problem = replace(call.problem, offsets=True)
        call = Call(problem, arrays, call.kind, call.unbatched, call.backend, call.extra)
    return dispatch.run(call)


_SIZES = {1: (29,), 2: (9, 11), 3: (5, 6, 7)}


class Inputs:
    """Inputs of a case, drawn from its name, as float64 values that its type holds."""

    def __init__(self, case: PoolCase, integers: bool = False) -> None:
        self.case, self.integers = case, integers
        self.random = np.random.default_rng(sum(map(ord, case.id)))
        ndim = case.ndim
        size = case.axes("size", _SIZES[ndim])
        self.kernel, self.stride = case.axes("kernel", 1), case.axes("stride", 1)
        self.dilation = case.axes("dilation", 1) if case.family != "lp" else (1,) * ndim
        if ndim == 3 and case.family in ("avg", "lp"):  # torch's rule: a 3-D kernel must not exceed the input
            size = tuple(map(max, size, map(effective_kernel, self.kernel, self.dilation)))
        pads = case.option("pads", (0, 0))
        pairs = pads if isinstance(pads[0], tuple) else (pads,) * ndim
        extents = map(effective_kernel, self.kernel, self.dilation)
        self.pads = tuple(tuple(min(pad, extent // 2) for pad in pair) for pair, extent in zip(pairs, extents))
        self.norm = case.option("norm", 2.0)
        shape = (case.option("n", 2), case.option("c", 5), *size)
        self.x = self._held(self.draw(shape), case.layout)
        self.grad = self.indices = self.taps = None
        if case.kind == "bwd":
            forward = self.forward(self.x, indices=True, backend="numpy")
            y = forward[0] if isinstance(forward, tuple) else forward
            turned = case.layout == "channels_last" and sum(map(ord, case.id)) % 3 == 0
            layout = "contiguous" if turned else case.layout
            self.grad = self._held(self.draw(y.shape, special=False), layout)
            if case.family.endswith("max"):
                self.indices = with_layout(forward[1], layout)
            if self.numbers == "taps":
                self.taps = with_layout(self.forward(self.x, indices=True, backend="numpy", offsets=True)[1], layout)

    @property
    def numbers(self) -> str:
        """What the indices of the case are: "positions", "taps" or "none"."""
        return self.case.option("numbers", "none")

    @property
    def extreme(self) -> bool:
        """Whether the case compares elements and adds up none."""
        return self.case.family.endswith("max") or (self.case.family == "lp" and isinf(self.norm))

    def _held(self, values: np.ndarray, layout: str) -> np.ndarray:
        return harness.as_held(with_layout(values, layout), self.case.dtype)

    def draw(self, shape: tuple[int, ...], special: bool = True) -> np.ndarray:
        """Return random values; where the branch is special with ties, and in every other channel inf and NaN."""
        if self.integers or (special and self.case.option("ties", False)):
            return self.random.integers(-3, 4, shape).astype(float)
        x = self.random.standard_normal(shape)
        positive = special and self.case.family == "lp" and not isinf(self.norm) and self.norm != 2
        x = np.abs(x) + 0.1 if positive else x  # powers that do not cancel
        if special and self.case.option("special", False):
            pick = self.random.random(shape)
            pick[:, 1::2] = 0.5  # every other channel is finite, so that large windows have sums as well
            x = np.round(x * 2)
            x[pick < 0.04] = np.nan
            x[pick > 0.97] = np.inf
            if not positive:
                x[(pick > 0.04) & (pick < 0.3)] = -np.inf
        return x

    def forward(self, x: Any, indices: bool | None = None, offsets: bool | None = None, backend: Any = None) -> Any:
        """Run the forward call of the case on `x`, an array of any library."""
        case, ndim = self.case, self.case.ndim
        indices = self.numbers != "none" if indices is None else indices
        offsets = True if offsets and indices else None
        ceil = case.option("ceil", False)
        run = partial(dispatched, offsets=offsets, backend=backend)
        name = f"{case.family}_pool{ndim}d"
        windows = (self.kernel, self.stride)
        if case.family == "max":
            return run(max_call, name, ndim, x, *windows, self.pads, self.dilation, ceil, indices)
        if case.family == "avg":
            include, divisor = case.option("include_pad", True), case.option("divisor", None)
            return run(avg_call, name, ndim, x, *windows, self.pads, self.dilation, ceil, include, divisor)
        if case.family == "lp":
            kernel = self.kernel[0] if ndim == 1 else self.kernel
            return run(lp_call, name, ndim, x, self.norm, kernel, self.stride, ceil, self.pads)

        def describe(*arguments: Any) -> Call:
            return adaptive_call(*arguments, indices and case.family == "adaptive_max")

        return run(describe, name, ndim, x, case.family, case.axes("out", None))

    def backward(self, grad: Any, x: Any, indices: Any = None, taps: Any = None, backend: Any = None) -> Any:
        """Run the backward call of the case on arrays of any library."""
        case, ndim = self.case, self.case.ndim
        ceil = case.option("ceil", False)
        run = partial(dispatched, offsets=taps, backend=backend)
        name, windows = f"{case.family}_pool{ndim}d_backward", (self.kernel, self.stride)
        if case.family == "max":
            return run(max_backward_call, name, ndim, grad, x, *windows, self.pads, self.dilation, ceil, indices)
        if case.family == "avg":
            include, divisor = case.option("include_pad", True), case.option("divisor", None)
            options = (self.pads, self.dilation, ceil, include, divisor)
            return run(avg_backward_call, name, ndim, grad, x, *windows, *options)
        if case.family == "lp":
            kernel = self.kernel[0] if ndim == 1 else self.kernel
            return run(lp_backward_call, name, ndim, grad, x, self.norm, kernel, self.stride, ceil, self.pads)
        return run(adaptive_backward_call, name, ndim, grad, case.family, x, indices)

    def on_device(self, orders: Any = harness.ORDERS) -> harness.Ran:
        """Run the case on the host's CuPy, its solver forced."""
        case = self.case
        x = harness.on_device(self.x, case.dtype)
        if case.kind == "fprop":
            run = partial(self.forward, offsets=self.numbers == "taps")
            return harness.run(run, x, solver=case.solver, orders=orders)
        grad, indices = harness.on_device(self.grad, case.dtype), None
        if self.indices is not None:
            indices = harness.on_device(self.indices, "int64")
        taps = None if self.taps is None else harness.on_device(self.taps, self.taps.dtype.name)
        return harness.run(self.backward, grad, x, indices, taps, solver=case.solver, orders=orders)

    def expected(self) -> tuple[np.ndarray, ...]:
        """Return what the NumPy backend computes in float64: the result, its magnitude, and indices if any."""
        if self.case.kind == "bwd":
            exact = self.backward(self.grad, self.x, self.indices, backend="numpy")
            of_x = np.abs(self.x) if self.case.family == "lp" else self.x
            magnitude = self.backward(np.abs(self.grad), of_x, self.indices, backend="numpy")
            return exact, np.abs(magnitude)
        found = self.forward(self.x, offsets=self.numbers == "taps", backend="numpy")
        values = found[0] if isinstance(found, tuple) else found
        magnitude = np.abs(values)
        if not self.extreme:
            magnitude = np.abs(self.forward(np.abs(self.x), backend="numpy"))
        return (values, magnitude, *found[1:]) if isinstance(found, tuple) else (values, magnitude)


def check(inputs: Inputs, orders: Any = harness.ORDERS) -> harness.Ran:
    """Assert that the kernels compute a case: maxima and indices exactly, sums within tolerance."""
    case = inputs.case
    with wide_indices() if case.option("wide", False) else mock.patch.dict({}):
        ran = inputs.on_device(orders)
    result, magnitude, *indices = inputs.expected()
    if case.kind == "fprop" and inputs.extreme:
        np.testing.assert_array_equal(ran.results[0].astype(float), result)
    else:
        length = ran.plan.problem.reduction_length
        with np.errstate(invalid="ignore"):
            numerics.assert_close(ran.results[0], result, np.nan_to_num(magnitude), case.dtype, length)
    assert len(ran.results) == 1 + len(indices)
    if indices:
        assert ran.results[1].dtype == indices[0].dtype
        np.testing.assert_array_equal(ran.results[1], indices[0])
    if case.option("wide", False):
        assert all(kernel.endswith("true>") for kernel in ran.kernels), ran.kernels
    return ran


def some_orders(name: str) -> tuple[tuple[int, int], ...]:
    """Return the usual order of blocks and threads and one of the others, in turn over the names of cases."""
    return harness.ORDERS[0], harness.ORDERS[1 + sum(map(ord, name)) % (len(harness.ORDERS) - 1)]


def announce_pools() -> None:
    """Compile the kernels of a source together, in a few translation units."""
    pairs = sorted(harness.instantiations_of(cupy_pool.SOLVERS), key=lambda pair: "true>" in pair[1])
    for source in dict.fromkeys(source for source, _ in pairs):
        harness.announce(source, [kernel for name, kernel in pairs if name == source], chunk=20)
