"""Cases of the convolution kernels in CUDA C++: what each computes, and the check of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from unittest import mock

import numpy as np
from conv_branches import BRANCHES, CHANNELS, SIZES
from harness import (
    FORWARD,
    ORDERS,
    Ran,
    _forget_plans,
    announce,
    as_held,
    capability,
    close,
    on_device,
    run,
)

import gpuconv
from gpuconv import dispatch, shapes
from gpuconv.backends.base import Plan
from gpuconv.backends.cupy.common import CupySolver
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.normalize.conv import Extras, weight_grad_call
from gpuconv.problem import itemsize

LAYOUTS = ("contiguous", "channels_last", "mixed", "contiguous weights", "strided", "reversed")
"""Of the arrays: "mixed" has w alone channels-last, "contiguous weights" all but w."""

CORES = (
    ("float32", "plain"), ("float16", "tensor"), ("float64", "plain"), ("bfloat16", "tensor"), ("float16", "plain"),
    ("bfloat16", "plain"),
)  # fmt: skip
"""Element types, and which units multiply them."""


@dataclass(frozen=True)
class Case:
    """One call of one kernel family; sizes follow from the branch."""

    kind: str
    ndim: int
    layout: str
    dtype: str
    core: str
    branch: str

    @property
    def id(self) -> str:
        return f"{self.ndim}d-{self.layout}-{self.dtype}-{self.core}-{self.branch}"

    @property
    def solver(self) -> str:
        pass_, _, depthwise = self.kind.partition(" ")
        return f"cupy.conv.{pass_}.{depthwise or 'tiled'}"

    @property
    def pass_(self) -> str:
        return self.kind.partition(" ")[0]

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.kind][self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return an option as one integer per axis."""
        value = self.option(name, default)
        return (value,) * self.ndim if isinstance(value, int) else value


def cases_of(kind: str, count: int) -> list[Case]:
    """Return `count` cases: layouts, cores and dims in rotation, and with each the branches in turn.

    A branch that names cores runs on those alone: 64-bit variants and padding modes exist in few types.
    """
    names, cases = list(BRANCHES[kind]), []
    for number in range(count):
        branch, turn = names[number % len(names)], number // len(names)
        options = BRANCHES[kind][branch]
        cores, layouts = options.get("cores", CORES), options.get("layouts", LAYOUTS)
        possible = [
            Case(kind, 1 + (number + turn + dims) % 3, layout, *cores[(turn + number) % len(cores)], branch)
            for layout in (layouts[(2 * turn + number + step) % len(layouts)] for step in range(len(layouts)))
            for dims in range(3)
        ]
        new = [case for case in possible if case not in cases]
        cases += new[:1]
    return cases


def with_layout(values: np.ndarray, layout: str) -> np.ndarray:
    """Return `values` with other strides."""
    if layout == "channels_last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    if layout == "strided":
        return np.swapaxes(np.ascontiguousarray(np.repeat(np.swapaxes(values, 0, -1), 2, axis=1)), 0, -1)[:, ::2]
    if layout == "reversed":
        return np.ascontiguousarray(values[..., ::-1])[..., ::-1]
    return np.ascontiguousarray(values)


def weight_and_bias_grad(x: Any, w_shape: Any, grad: Any, *, backend: str, **options: Any) -> Any:
    """Compute the gradients of weight and bias by one problem, as the backward pass of a convolution with bias does."""
    extras = Extras(options["padding_mode"], backend=backend)
    settings = (options["stride"], options["padding"], options["dilation"], options["groups"])
    call = weight_grad_call("weight_and_bias_grad", len(w_shape) - 2, x, w_shape, grad, *settings, extras)
    call.problem = replace(call.problem, bias=True)
    call.prepared = None
    return dispatch.run(call)


@contextmanager
def configured(settings: dict[str, Any]) -> Iterator[None]:
    """Change the configuration of plans: a smaller tile, more splits, 64-bit offsets."""
    make = CupySolver.plan

    def plan(solver: CupySolver, problem: Any) -> Plan:
        config = make(solver, problem).config | settings
        scratch = solver.workspace(problem, config)
        return Plan(solver, problem, sum(itemsize(dtype) * elements for dtype, elements in scratch.values()), config)

    _forget_plans()
    CACHE.clear()
    with mock.patch.object(CupySolver, "plan", plan):
        yield
    _forget_plans()
    CACHE.clear()


class Inputs:
    """Inputs of a case, drawn from its name, on the host in float64 as the element type holds them."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        rng = np.random.default_rng(sum(map(ord, case.id)))
        ndim, groups, kind = case.ndim, case.option("groups", 1), case.kind
        c, k = (case.option(name, default) for name, default in zip("ck", CHANNELS[kind], strict=True))
        c, k = (value[ndim] if isinstance(value, dict) else value for value in (c, k))
        n, size = case.option("n", 2 if ndim < 3 else 1), case.axes("size", SIZES[kind][ndim])
        kernel = case.axes("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        stride, dilation = case.axes("stride", 1), case.axes("dilation", 1)
        pads = case.option("pads", (0, 0))
        lo, hi = zip(*(pads if isinstance(pads[0], tuple) else (pads,) * ndim), strict=True)
        output = shapes.map_axes(shapes.conv_output_size, size, kernel, stride, lo, hi, dilation)
        self.x_shape, self.w_shape, self.y_shape = (n, c, *size), (k, c // groups, *kernel), (n, k, *output)

        def draw(shape: tuple[int, ...], layout: str) -> np.ndarray:
            values = rng.integers(-3, 4, shape).astype(float) if integers else rng.standard_normal(shape)
            return as_held(with_layout(values, layout) if len(shape) > 1 else values, case.dtype)

        layout = {"mixed": "contiguous", "contiguous weights": "channels_last"}.get(case.layout, case.layout)
        of_w = {"mixed": "channels_last", "contiguous weights": "contiguous"}.get(case.layout, case.layout)
        result = self.y_shape if case.pass_ == "fprop" else self.x_shape
        channels = result[1]
        self.arrays: dict[str, np.ndarray] = {}
        if case.pass_ in ("fprop", "wgrad"):
            self.arrays["x"] = draw(self.x_shape, layout)
        if case.pass_ != "wgrad":
            self.arrays["w"] = draw(self.w_shape, of_w)
        if case.pass_ != "fprop":
            self.arrays["y"] = draw(self.y_shape, layout)
        self.arrays |= {
            name: draw((channels,), "") for name in ("bias", "scale", "shift") if case.option(name, False)
        } if case.pass_ in ("fprop", "transposed") else {}  # fmt: skip
        if case.option("residual", False) and case.pass_ in ("fprop", "transposed"):
            self.arrays["residual"] = draw(result, case.layout)
        self.activation = case.option("activation", None)
        self.options: dict[str, Any] = {
            "stride": stride, "padding": tuple(zip(lo, hi, strict=True)), "dilation": dilation, "groups": groups,
        }  # fmt: skip
        if case.pass_ == "transposed":
            self.options["output_size"] = size
        else:
            self.options["padding_mode"] = case.option("padding_mode", "zeros")

    def call(self, run: Callable[..., Any], arrays: dict[str, Any], activation: bool = True, **more: Any) -> Any:
        """Return ``run(function, *arguments)`` with the public function of the pass on `arrays`."""
        case, options = self.case, {**self.options, **more}
        if case.pass_ == "dgrad":
            function = getattr(gpuconv, f"conv{case.ndim}d_input_grad")
            return run(function, self.x_shape, arrays["w"], arrays["y"], **options)
        if case.pass_ == "wgrad":
            function = getattr(gpuconv, f"conv{case.ndim}d_weight_grad")
            function = weight_and_bias_grad if case.option("bias", False) else function
            return run(function, arrays["x"], self.w_shape, arrays["y"], **options)
        extras = {name: arrays.get(name) for name in ("bias", "scale", "shift", "residual")}
        extras["activation"] = self.activation if activation else None
        if case.pass_ == "fprop":
            return run(getattr(gpuconv, f"conv{case.ndim}d"), arrays["x"], arrays["w"], **extras, **options)
        return run(getattr(gpuconv, f"conv_transpose{case.ndim}d"), arrays["y"], arrays["w"], **extras, **options)

    def references(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each result of the NumPy backend in float64 with its magnitude of the tolerance rule.

        An activation with a slope above 1 (at most 1.5, hardswish) passes errors on enlarged by as much.
        """

        def on_numpy(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
            found = function(*args, **kwargs, backend="numpy")
            return found if isinstance(found, tuple) else (found,)

        slope = 1.5 if self.activation else 1.0
        exact = self.call(on_numpy, self.arrays)
        absolute = {name: np.abs(values) for name, values in self.arrays.items()}
        magnitude = self.call(on_numpy, absolute, activation=False)
        return [(one, slope * other) for one, other in zip(exact, magnitude, strict=True)]

    def run(self, orders: Any = ORDERS) -> Any:
        """Run the case on the host's CuPy."""
        case = self.case
        settings: dict[str, Any] = {"tile": case.option("tile", "small")} if case.solver.endswith("tiled") else {}
        settings |= {"INDEX64": True} if case.option("index64", False) else {}
        settings |= {"splits": case.option("splits", 3)} if case.kind == "wgrad" else {}
        arrays = {name: on_device(values, case.dtype) for name, values in self.arrays.items()}
        with ExitStack() as stack:
            if case.core == "plain" and case.dtype in ("float16", "bfloat16"):
                stack.enter_context(capability(70))
            stack.enter_context(configured(settings))
            ran: Any = self.call(run, arrays, solver=case.solver, orders=orders)
        assert ran is None or any(("Tensor" in kernel) == (case.core == "tensor") for kernel in ran.kernels)
        return ran


def orders_of(case: Case) -> tuple[tuple[int, int], ...]:
    """Return the orders of blocks and threads of a case: forward and one more."""
    return ORDERS[0], ORDERS[1 + sum(map(ord, case.id)) % 3]


def check_case(case: Case, orders: Any = None) -> Ran:
    """Assert that the kernel computes `case` within tolerance, the same bits in every order."""
    inputs = Inputs(case)
    ran = inputs.run(orders or orders_of(case))
    for result, (exact, magnitude) in zip(ran.results, inputs.references(), strict=True):
        close(result, exact, magnitude, ran.plan)
    return ran


def check_exact(case: Case) -> None:
    """Assert that small integers come out exactly, whatever the type: all sums are whole numbers that it holds."""
    inputs = Inputs(case, integers=True)
    for result, (exact, _) in zip(inputs.run(((FORWARD, FORWARD),)).results, inputs.references(), strict=True):
        assert np.array_equal(result, as_held(exact, case.dtype))


def tiles_and_steps(case: Case) -> tuple[int, int, int]:
    """Return how many tiles of rows and of columns (in all groups), and how many steps of a reduction, a case has."""
    inputs = Inputs(case)
    (n, c, *size), (k, _, *kernel), (_, _, *output) = inputs.x_shape, inputs.w_shape, inputs.y_shape
    groups, side = inputs.options["groups"], {"large": 128, "medium": 64}.get(case.option("tile", "small"), 32)
    wide = case.option("index64", False) or case.option("padding_mode", "zeros") != "zeros"
    side = 64 if wide else side
    depth = 32 if case.core == "tensor" else 8 if case.dtype == "float64" else 16
    if case.pass_ == "fprop":
        rows, columns, reduction = n * prod(output), k // groups, c // groups * prod(kernel)
    elif case.pass_ == "wgrad":
        rows, columns, reduction = c // groups * prod(kernel), k // groups, n * prod(output)
    else:
        rows, columns, reduction = n * prod(size), c // groups, k // groups * prod(kernel)
    return -(-rows // side), -(-columns // side) * groups, -(-reduction // depth)


def announce_cases(cases: list[Case]) -> None:
    """Have all kernels that `cases` launch compiled a few at a time."""
    found: dict[str, list[str]] = {}

    def note(solver: CupySolver, plan: Plan, call: Any, results: Any) -> None:
        arrays = {name: array for name, array in {**call.arrays, **results}.items() if array is not None}
        strides = {name: call.kind.strides(array) for name, array in arrays.items()}
        for launch in solver.launches(plan.problem, strides, plan.config):
            found.setdefault(launch.source, []).append(launch.kernel)

    with mock.patch.object(CupySolver, "_launch", note), mock.patch(f"{__name__}.run", _only_plan):
        for case in cases:
            Inputs(case).run(())
    for source, kernels in found.items():
        announce(source, sorted(set(kernels)))


def _only_plan(function: Callable[..., Any], *args: Any, solver: str, orders: Any, **kwargs: Any) -> None:
    function(*args, **kwargs, backend=solver)
