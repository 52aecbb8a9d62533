"""Calls of every function that takes arrays, in 1, 2 and 3 dimensions: which operands they have, and how they are made.

Values are small integers, whose sums are exact in every order: what a solver answers for an operand in any layout must
be bit for bit what it answers for a contiguous copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from operand_layouts import OF_POSITIONS, STRIDES, Placed, place

import gpuconv
from gpuconv.arrays import common_kind
from gpuconv.dispatch import candidates, record_problems
from gpuconv.dispatch.execution import run as run_call
from gpuconv.problem import Call, PoolProblem

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class OperandCall:
    """A call by name: `run` makes it of its operands by name and a backend; `exact` where results are sums.

    Operands that lie in no layout of a case are contiguous, or where `last` says so channels-last. A call that is one
    problem in one type alone names it as `dtype`.
    """

    name: str
    operands: dict[str, np.ndarray]
    run: Callable[[Arrays, str], Any]
    exact: bool = True
    last: bool = False
    dtype: str | None = None

    def solvers(self, arrays: Arrays, backend: str) -> list[str]:
        """Return the ids of all solvers of a backend that can make the call."""
        with record_problems() as problems:
            self.run(arrays, backend)
        found = candidates(problems[0], backend)
        if len(problems) > 1:  # the steps of a separable convolution, which one solver makes at once
            explained = gpuconv.explain(lambda: self.run(arrays, backend)).candidates
            found = [each for each in explained if each.solver.id.endswith(".fused")]
            assert found, self.name
        return [each.solver.id for each in found if each.reason is None]


def _integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float64)


def _forward(name: str, options: Mapping[str, Any]) -> Callable[[Arrays, str], Any]:
    function = getattr(gpuconv, name)

    def run(arrays: Arrays, backend: str) -> Any:
        extras = {key: arrays[key] for key in ("scale", "shift", "residual")}
        return function(arrays["input"], arrays["weight"], arrays["bias"], **extras, **options, backend=backend)

    return run


def convolutions(ndim: int, rng: np.random.Generator) -> list[OperandCall]:
    """Return a dense and a depthwise convolution, their gradients, and transposed convolutions."""
    n, size, kernel = {1: (2, (11,), (3,)), 2: (2, (5, 6), (3, 2)), 3: (1, (3, 4, 5), (2, 2, 2))}[ndim]
    found = []
    for kind, c, k, groups, options in (
        ("", 8, 16, 1, {"stride": 2, "padding": 1}),
        (" depthwise", 3, 3, 3, {"padding": 1}),
        (" reflected", 6, 4, 1, {"padding": 1, "padding_mode": "reflect"}),
    ):
        if "reflect" in kind and ndim == 3:
            continue  # every position has 27 images, which the interpreter takes one by one
        options = {**options, "groups": groups}
        x, w = _integers(rng, n, c, *size), _integers(rng, k, c // groups, *kernel)
        y = getattr(gpuconv, f"conv{ndim}d")(x, w, **options, backend="numpy")
        given = {"input": x, "weight": w, "residual": _integers(rng, *y.shape)}
        given |= {name: _integers(rng, k) for name in ("bias", "scale", "shift")}
        found.append(OperandCall(f"conv{ndim}d{kind}", given, _forward(f"conv{ndim}d", options)))
        found += _gradients(ndim, kind, x, w, _integers(rng, *y.shape), options)
        if "reflect" not in kind:
            z = getattr(gpuconv, f"conv_transpose{ndim}d")(y, w, **options, backend="numpy")
            given = {"input": _integers(rng, *y.shape), "weight": w, "residual": _integers(rng, *z.shape)}
            given |= {name: _integers(rng, z.shape[1]) for name in ("bias", "scale", "shift")}
            name = f"conv_transpose{ndim}d"
            found.append(OperandCall(f"{name}{kind}", given, _forward(name, options)))
    return found


def _gradients(
    ndim: int, kind: str, x: np.ndarray, w: np.ndarray, dy: np.ndarray, options: Mapping[str, Any]
) -> list[OperandCall]:
    by_input = getattr(gpuconv, f"conv{ndim}d_input_grad")
    by_weight = getattr(gpuconv, f"conv{ndim}d_weight_grad")

    def input_grad(arrays: Arrays, backend: str) -> Any:
        return by_input(x.shape, arrays["weight"], arrays["grad_output"], **options, backend=backend)

    def weight_grad(arrays: Arrays, backend: str) -> Any:
        return by_weight(arrays["input"], w.shape, arrays["grad_output"], **options, backend=backend)

    def weight_and_bias_grad(arrays: Arrays, backend: str) -> Any:
        return _with_bias(weight_grad, arrays, backend)

    return [
        OperandCall(f"conv{ndim}d_input_grad{kind}", {"weight": w, "grad_output": dy}, input_grad),
        OperandCall(f"conv{ndim}d_weight_grad{kind}", {"input": x, "grad_output": dy}, weight_grad),
        OperandCall(f"conv{ndim}d_weight_grad{kind} and bias", {"input": x, "grad_output": dy}, weight_and_bias_grad),
    ]


def same_sizes(rng: np.random.Generator) -> list[OperandCall]:
    """Return channels-last convolutions that keep their size, and their gradients, for what takes no others."""
    found = []
    for kind, c, groups, window in (
        (" grouped", 16, 4, 3),
        (" depthwise of 25 taps", 16, 16, 5),
        (" of 16 channels", 16, 1, 3),
        (" of 64 channels", 64, 1, 3),
    ):
        options = {"padding": window // 2, "groups": groups}
        x, w = _integers(rng, 2, c, 6, 8), _integers(rng, c, c // groups, window, window)
        given = {"input": x, "weight": w, "residual": _integers(rng, *x.shape)}
        given |= {name: _integers(rng, c) for name in ("bias", "scale", "shift")}
        found.append(OperandCall(f"conv2d{kind}", given, _forward("conv2d", options)))
        found += _gradients(2, kind, x, w, _integers(rng, *x.shape), options)
    return [replace(call, last=True) for call in found]


def composed(rng: np.random.Generator) -> list[OperandCall]:
    """Return a separable convolution in one launch, and one of 8-bit operands with scales: functions of our own."""
    x, y = _integers(rng, 2, 16, 6, 8), _integers(rng, 2, 32, 6, 8)
    separable = {"input": x, "depthwise": _integers(rng, 16, 1, 3, 3), "pointwise": _integers(rng, 32, 16, 1, 1)}
    separable |= {"depthwise_bias": _integers(rng, 16), "pointwise_bias": _integers(rng, 32), "residual": y}

    def separable_conv(arrays: Arrays, backend: str) -> Any:
        weights = [arrays[name] for name in ("depthwise", "pointwise", "depthwise_bias", "pointwise_bias")]
        return gpuconv.depthwise_separable_conv2d(
            arrays["input"], *weights, padding=1, residual=arrays["residual"], backend=backend
        )

    scaled = {
        "input": rng.integers(-9, 10, (2, 16, 6, 8), np.int8),
        "weight": rng.integers(-9, 10, (8, 16, 3, 3), np.int8),
    }
    scaled |= {"bias": _integers(rng, 8), "weight_scale": 2.0 ** rng.integers(-2, 3, 8)}

    def scaled_conv(arrays: Arrays, backend: str) -> Any:
        scales = {"input_scale": 0.5, "weight_scale": arrays["weight_scale"], "out_dtype": arrays["bias"].dtype}
        return gpuconv.scaled_conv2d(
            arrays["input"], arrays["weight"], arrays["bias"], padding=1, **scales, backend=backend
        )

    return [
        OperandCall("depthwise_separable_conv2d", separable, separable_conv, last=True, dtype="float16"),
        OperandCall("scaled_conv2d", scaled, scaled_conv, dtype="float32"),
    ]


def _problem(run: Callable[[Arrays, str], Any], arrays: Arrays, backend: str) -> Any:
    """Return the problem of a call, which is described and not made."""
    return gpuconv.explain(lambda: run(arrays, backend)).problem


def _with_bias(run: Callable[[Arrays, str], Any], arrays: Arrays, backend: str) -> Any:
    """Make the call of a weight gradient with the gradient of a bias beside it, as autograd does."""
    problem = replace(_problem(run, arrays, backend), bias=True)
    named = {"x": arrays["input"], "y": arrays["grad_output"]}
    return run_call(Call(problem, named, common_kind("weight_grad", named), False, backend))


def pools(ndim: int, rng: np.random.Generator) -> list[OperandCall]:
    """Return the window pools and their gradients, in 1-D and 2-D of windows that overlap and large ones as well."""
    x = _integers(rng, 2 if ndim == 1 else 1, 8, *(4, 7, 6)[3 - ndim :])
    found = []
    windows = [("", 2, 2, 1), (" overlapping", 3, 1, 0), (" large", 6, 2, 2)]
    for kind, kernel, stride, pad in windows[: 1 if ndim == 3 else 3]:
        window = {"kernel_size": kernel, "stride": stride, "padding": pad}
        found += _max_pool(ndim, kind, x, window, rng)
        found += _sum_pool(f"avg_pool{ndim}d", kind, x, (), window, rng)
        found += _sum_pool(f"lp_pool{ndim}d", kind, np.abs(x) + 1, (2.0,), window, rng, exact=False)
    found += _sum_pool(f"lp_pool{ndim}d", " infinite", x, (np.inf,), {"kernel_size": 3, "stride": 2}, rng)
    return found


def _max_pool(
    ndim: int, kind: str, x: np.ndarray, window: dict[str, int], rng: np.random.Generator
) -> list[OperandCall]:
    pool = getattr(gpuconv, f"max_pool{ndim}d")
    backward = getattr(gpuconv, f"max_pool{ndim}d_with_indices_backward")
    y, indices = pool(x, **window, return_indices=True, backend="numpy")
    order = (window["kernel_size"], window["stride"], window["padding"], 1, False)

    def forward(arrays: Arrays, backend: str) -> Any:
        return pool(arrays["input"], **window, backend=backend)

    def with_indices(arrays: Arrays, backend: str) -> Any:
        return pool(arrays["input"], **window, return_indices=True, backend=backend)

    def gradient(arrays: Arrays, backend: str) -> Any:
        return backward(arrays["grad_output"], arrays["input"], *order, arrays["indices"], backend=backend)

    operands = {"grad_output": _integers(rng, *y.shape), "input": x, "indices": indices}
    return [
        OperandCall(f"max_pool{ndim}d{kind}", {"input": x}, forward),
        OperandCall(f"max_pool{ndim}d{kind} with indices", {"input": x}, with_indices),
        OperandCall(f"max_pool{ndim}d{kind} gradient", operands, gradient),
        _by_offsets(f"max_pool{ndim}d{kind} gradient by offsets", x, operands, with_indices, gradient),
    ]


def _by_offsets(name: str, x: np.ndarray, operands: Arrays, forward: Any, gradient: Any) -> OperandCall:
    """Return the gradient of a max pool by the taps of its windows, which autograd saves."""
    problem: PoolProblem = replace(_problem(forward, {"input": x}, "numpy"), offsets=True)
    kind = common_kind("max_pool", {"x": x})
    _, offsets = run_call(Call(problem, {"x": x}, kind, False, "numpy"))

    def run(arrays: Arrays, backend: str) -> Any:
        problem = replace(_problem(gradient, arrays, backend), offsets=True)
        given = {"y": arrays["grad_output"], "indices": arrays["offsets"]}
        return run_call(Call(problem, given, common_kind("max_pool", given), False, backend))

    return OperandCall(name, {**operands, "offsets": offsets}, run)


def _sum_pool(
    name: str, kind: str, x: np.ndarray, before: tuple[float, ...], window: dict[str, int], rng: np.random.Generator,
    exact: bool = True,
) -> list[OperandCall]:  # fmt: skip
    pool, backward = getattr(gpuconv, name), getattr(gpuconv, f"{name}_backward")
    y = pool(x, *before, **window, backend="numpy")

    def forward(arrays: Arrays, backend: str) -> Any:
        return pool(arrays["input"], *before, **window, backend=backend)

    def gradient(arrays: Arrays, backend: str) -> Any:
        return backward(arrays["grad_output"], arrays["input"], *before, **window, backend=backend)

    operands = {"grad_output": _integers(rng, *y.shape), "input": x}
    return [
        OperandCall(f"{name}{kind}", {"input": x}, forward, exact),
        OperandCall(f"{name}{kind} gradient", operands, gradient, exact),
    ]


def other_pools(ndim: int, rng: np.random.Generator) -> list[OperandCall]:
    """Return adaptive and fractional pools, unpooling, their gradients, and in 2-D unfold and fold."""
    x = _integers(rng, 2, 8, *(5, 7, 6)[3 - ndim :])
    found = [*_adaptive(ndim, "", x, 3, rng), *_adaptive(ndim, " global", x, 1, rng), *_unpool(ndim, x, rng)]
    if ndim > 1:
        found += _fractional(ndim, x, rng)
    if ndim == 2:
        columns = gpuconv.unfold(x, 3, padding=1, stride=2, backend="numpy")
        found += [
            OperandCall(
                "unfold", {"input": x},
                lambda a, backend: gpuconv.unfold(a["input"], 3, padding=1, stride=2, backend=backend),
            ),
            OperandCall(
                "fold", {"input": _integers(rng, *columns.shape)},
                lambda a, backend: gpuconv.fold(a["input"], x.shape[2:], 3, padding=1, stride=2, backend=backend),
            ),
        ]  # fmt: skip
    return found


def _adaptive(ndim: int, kind: str, x: np.ndarray, out: int, rng: np.random.Generator) -> list[OperandCall]:
    found = []
    for name in (f"adaptive_avg_pool{ndim}d", f"adaptive_max_pool{ndim}d"):
        pool, backward = getattr(gpuconv, name), getattr(gpuconv, f"{name}_backward")
        extra: dict[str, Any] = {"return_indices": True} if "max" in name else {}
        y = pool(x, out, **extra, backend="numpy")
        operands = {"grad_output": _integers(rng, *(y[0] if extra else y).shape), "input": x}
        operands |= {"indices": y[1]} if extra else {}

        def forward(arrays: Arrays, backend: str, pool: Any = pool, extra: Any = extra) -> Any:
            return pool(arrays["input"], out, **extra, backend=backend)

        def gradient(arrays: Arrays, backend: str, backward: Any = backward) -> Any:
            return backward(*arrays.values(), backend=backend)

        found.append(OperandCall(f"{name}{kind}", {"input": x}, forward))
        # Quotients by the sizes of windows are added up in the order of a solver, which layouts do not change.
        found.append(OperandCall(f"{name}{kind} gradient", operands, gradient, exact="max" in name))
    return found


def _fractional(ndim: int, x: np.ndarray, rng: np.random.Generator) -> list[OperandCall]:
    name = f"fractional_max_pool{ndim}d"
    pool, backward = getattr(gpuconv, name), getattr(gpuconv, f"{name}_backward")
    samples = rng.integers(1, 8, (2, 8, ndim)) / 8
    y, indices = pool(x, 2, 3, return_indices=True, _random_samples=samples, backend="numpy")

    def forward(arrays: Arrays, backend: str) -> Any:
        given = {"return_indices": True, "_random_samples": arrays["samples"]}
        return pool(arrays["input"], 2, 3, **given, backend=backend)

    def gradient(arrays: Arrays, backend: str) -> Any:
        return backward(arrays["grad_output"], arrays["input"], 2, 3, arrays["indices"], backend=backend)

    operands = {"grad_output": _integers(rng, *y.shape), "input": x, "indices": indices}
    return [
        OperandCall(name, {"input": x, "samples": samples}, forward),
        OperandCall(f"{name} gradient", operands, gradient),
    ]


def _unpool(ndim: int, x: np.ndarray, rng: np.random.Generator) -> list[OperandCall]:
    name = f"max_unpool{ndim}d"
    unpool, backward = getattr(gpuconv, name), getattr(gpuconv, f"{name}_backward")
    y, indices = getattr(gpuconv, f"max_pool{ndim}d")(x, 2, return_indices=True, backend="numpy")

    def forward(arrays: Arrays, backend: str) -> Any:
        return unpool(arrays["input"], arrays["indices"], 2, output_size=x.shape[2:], backend=backend)

    def gradient(arrays: Arrays, backend: str) -> Any:
        return backward(arrays["grad_output"], arrays["input"], arrays["indices"], backend=backend)

    operands = {"grad_output": _integers(rng, *x.shape), "input": y, "indices": indices}
    return [
        OperandCall(name, {"input": y, "indices": indices}, forward),
        OperandCall(f"{name} gradient", operands, gradient),
    ]


def calls() -> dict[str, OperandCall]:
    """Return every call by its name."""
    rng = np.random.default_rng(0)
    found = [call for ndim in (1, 2, 3) for family in (convolutions, pools, other_pools) for call in family(ndim, rng)]
    found += same_sizes(rng)
    assert len({call.name for call in found}) == len(found)
    return {call.name: call for call in found}


def calls_of_triton() -> dict[str, OperandCall]:
    """Return these, and what Triton alone has solvers for."""
    return calls() | {call.name: call for call in composed(np.random.default_rng(1))}


def cases(names: Mapping[str, OperandCall]) -> list[tuple[str, str, str]]:
    """Return (call, operand, layout) of everything, the layouts with negative strides included."""
    return [
        (name, operand, layout)
        for name, call in names.items()
        for operand, values in call.operands.items()
        for layout in (OF_POSITIONS if values.dtype.kind == "i" else STRIDES)
    ]


_EXPECTED: dict[tuple[Any, ...], list[np.ndarray]] = {}
"""What solvers answered for contiguous arrays, which are the same in most layouts."""


def check(
    call: OperandCall,
    operand: str,
    layout: str,
    dtype: str,
    backend: str,
    show: Callable[[Placed], Any],
    host: Callable[[Any], np.ndarray],
) -> int:
    """Assert that every solver answers as for contiguous copies, and leaves memory alone; return how many there are.

    What answers for contiguous copies is the solver itself, or where it takes no such arrays the backend's choice.

    Parameters
    ----------
    call, operand, layout
        The call, and which of its operands lies in which layout; the others are contiguous.
    dtype
        Type of what is no index.
    backend
        The backend whose solvers are forced, each in turn.
    show
        Makes an array of a library of what lies in memory.
    host
        Returns a result of that library as a NumPy array.
    """
    values = {name: as_dtype(array, dtype) for name, array in call.operands.items()}
    placed = place(values[operand], layout)
    values[operand] = np.ascontiguousarray(placed.view())
    plain = {name: show(contiguous(array, call.last)) for name, array in values.items()}
    before = placed.buffer.copy()
    arrays = {**plain, operand: show(placed)}
    solvers, takers = call.solvers(arrays, backend), call.solvers(plain, backend)
    for solver in solvers:
        found = _results(call.run(arrays, solver))
        referee = solver if solver in takers else backend
        known = (call.name, referee, dtype, tuple(array.tobytes() for array in values.values()))
        if known not in _EXPECTED:
            _EXPECTED[known] = [host(one).copy() for one in _results(call.run(plain, referee))]
        expected = _EXPECTED[known]
        for one, other in zip(found, expected, strict=True):
            where = f"{call.name}, {operand} {layout}, {dtype}, {solver}"
            if call.exact:
                np.testing.assert_array_equal(host(one), other, where)
            else:
                np.testing.assert_allclose(host(one), other, rtol=2e-3 if dtype == "float16" else 1e-5, err_msg=where)
        assert placed.buffer.tobytes() == before.tobytes(), where
    return len(solvers)


def as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in `dtype`, unless they are indices."""
    return values.astype(dtype) if values.dtype.kind == "f" else values


def contiguous(values: np.ndarray, last: bool = False) -> Placed:
    """Return a contiguous array, or one with channels last, as what lies in memory."""
    last = last and values.ndim > 2
    dense = np.ascontiguousarray(np.moveaxis(values, 1, -1) if last else values)
    seen = np.moveaxis(dense, -1, 1) if last else dense
    strides = tuple(step // values.itemsize for step in seen.strides)
    return Placed(dense.reshape(-1), values.shape, strides, 0)


def _results(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
