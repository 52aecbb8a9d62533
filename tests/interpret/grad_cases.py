"""Cases of the gradient kernels: every combination of dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from fprop_cases import DTYPES, LAYOUTS, as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order
from triton.runtime import interpreter

import gpuconv
from gpuconv import numerics, shapes
from gpuconv.arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from gpuconv.backends.triton import conv_grad
from gpuconv.backends.triton.conv_grad import DgradImplicitGemm, WgradSplitK
from gpuconv.problem import ConvProblem

TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "num_warps": 4, "num_stages": 2}
"""The smallest tile, so that small problems have several tiles on each axis and several reduction steps."""

Branches = dict[str, dict[str, Any]]

_PHASES: Branches = {
    "stride 1": {"pads": (1, 0)},
    "stride 2": {"stride": 2, "pads": (1, 1), "size": {1: 75, 2: 12, 3: (6, 7, 7)}},
    "stride 3": {
        "stride": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "pads": (2, 0), "size": {1: 110, 2: (16, 13), 3: (4, 9, 6)},
    },
    "stride 2 dilation 2": {"stride": 2, "dilation": 2, "pads": (2, 1), "size": {1: 75, 2: 12, 3: (6, 7, 7)}},
    "stride 2 dilation 3": {"stride": 2, "dilation": 3, "pads": (3, 2), "size": {1: 75, 2: 12, 3: (6, 7, 7)}},
    "stride 3 dilation 2": {
        "stride": {1: 3, 2: (3, 1), 3: (3, 1, 2)}, "dilation": 2, "pads": (1, 3),
        "size": {1: 110, 2: (16, 7), 3: (9, 4, 5)},
    },
    "stride 4 dilation 2": {
        "stride": {1: 4, 2: (4, 2), 3: (1, 4, 2)}, "dilation": {1: 2, 2: (2, 1), 3: (1, 2, 2)}, "pads": (3, 4),
        "size": {1: 140, 2: (21, 11), 3: (4, 12, 6)},
    },
    "stride 4 dilation 6": {
        "stride": {1: 4, 2: (2, 4), 3: (2, 4, 1)}, "dilation": {1: 6, 2: (3, 6), 3: (3, 6, 2)}, "pads": (5, 7),
        "size": {1: 140, 2: (11, 21), 3: (5, 12, 4)},
    },
    "stride over kernel": {
        "stride": {1: 5, 2: (3, 4), 3: (3, 1, 4)}, "kernel": 2, "pads": (0, 1),
        "size": {1: 173, 2: (17, 25), 3: (8, 4, 13)},
        "k": {1: 40, 2: 40, 3: 13}, "bias": True,
    },
    "grouped": {"groups": 3, "c": 21, "k": 51, "pads": (1, 0), "bias": True},
    "grouped stride 2": {
        "groups": 2, "c": 36, "k": 10, "stride": 2, "pads": (0, 1), "size": {1: 75, 2: 12, 3: (6, 7, 7)},
    },
    "depthwise": {"groups": 3, "c": 3, "k": 6, "pads": (1, 1), "bias": True},
    "many taps": {
        "kernel": {1: 33, 2: 6, 3: (3, 4, 3)}, "pads": {1: (17, 16), 2: (3, 2), 3: (1, 2)}, "c": 3, "k": 3, "groups": 3,
    },
    "kernel over input": {
        "size": {1: 7, 2: 4, 3: 2}, "kernel": {1: 11, 2: 5, 3: 3}, "pads": {1: (9, 9), 2: (3, 2), 3: (1, 1)},
        "n": {1: 5, 2: 3, 3: 5}, "c": {1: 37, 2: 3, 3: 37}, "k": {1: 5, 2: 3, 3: 5}, "groups": {1: 1, 2: 3, 3: 1},
    },
    "64-bit": {
        "index64": True, "stride": {1: 2, 2: (1, 2), 3: 1}, "pads": (0, 1), "size": {1: 75, 2: (6, 13), 3: (3, 3, 4)},
    },
    "one by one": {"kernel": 1, "k": 40},
    "units of 8": {"c": 40, "k": 24, "pads": (1, 0)},
    "units of 8, grouped, stride 2": {
        "c": 48, "k": 16, "groups": 2, "stride": 2, "pads": (1, 1), "size": {1: 75, 2: 12, 3: (6, 7, 7)}, "bias": True,
        "residual": True,
    },
    "one by one stride 2": {"kernel": 1, "k": 40, "stride": 2, "size": {1: 75, 2: 12, 3: (6, 7, 7)}, "bias": True},
    "wide stride": {
        "stride": {1: 9, 2: (9, 1), 3: (9, 1, 1)}, "size": {1: 40, 2: (12, 6), 3: (11, 3, 3)},
        "n": {1: 8, 2: 4, 3: 2}, "c": 3, "k": 6, "groups": 3,
    },
}  # fmt: skip

BRANCHES: dict[str, Branches] = {
    "dgrad": _PHASES | {
        "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: ((2, 1), (0, 1)), 3: ((1, 1), (0, 1), (0, 0))}},
        "reflect stride 2": {
            "padding_mode": "reflect", "stride": 2,
            "pads": {1: (5, 3), 2: ((1, 2), (0, 1)), 3: ((0, 1), (0, 0), (2, 1))},
            "size": {1: 75, 2: 12, 3: (6, 7, 7)},
        },
        "replicate": {
            "padding_mode": "replicate", "pads": {1: (1, 4), 2: ((1, 2), (1, 0)), 3: (1, 0)},
            "stride": {1: 2, 2: 1, 3: 1},
            "size": {1: 75, 2: 6, 3: (3, 3, 4)},
        },
        "replicate dilated": {
            "padding_mode": "replicate", "pads": {1: (5, 4), 2: ((2, 1), (0, 1)), 3: ((1, 1), (0, 0), (1, 1))},
            "stride": {1: 4, 2: (2, 1), 3: (2, 1, 1)},
            "dilation": {1: 6, 2: 2, 3: 2}, "size": {1: 140, 2: (11, 7), 3: (5, 3, 4)},
        },
        "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: ((1, 1), (1, 0), (0, 0))}},
        "circular twice": {
            "padding_mode": "circular", "size": {1: 5, 2: (5, 4), 3: (2, 3, 2)},
            "pads": {1: (13, 17), 2: ((7, 9), (0, 1)), 3: ((0, 0), (0, 1), (3, 4))},
            "stride": {1: 1, 2: 2, 3: (1, 1, 2)},
            "n": {1: 7, 2: 6, 3: 6}, "c": {1: 37, 2: 6, 3: 6}, "groups": {1: 1, 2: 3, 3: 3}, "k": 6,
        },
        "64-bit circular": {"index64": True, "padding_mode": "circular", "pads": (0, 1), "groups": 2, "c": 36, "k": 10},
    },
    "transposed": _PHASES | {
        "epilogue": {
            "bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu", "stride": 2,
            "pads": (1, 1),
            "size": {1: 75, 2: 12, 3: (6, 7, 7)},
        },
        "relu": {"activation": "relu", "residual": True, "pads": (1, 0)},
        "silu without taps": {
            "activation": "silu", "scale": True, "shift": True, "stride": {1: 4, 2: (1, 4), 3: (1, 4, 1)},
            "kernel": 2, "k": 20,
            "size": {1: 140, 2: (6, 24), 3: (3, 13, 3)},
        },
    },
    "wgrad": {
        "plain": {"pads": (1, 0)},
        "one split": {"splits": 1, "pads": (0, 1), "bias": True},
        "one tap": {"bias": True, "one_tap": True, "c": 20, "kernel": {1: 3, 2: 2, 3: (2, 1, 2)}},
        "one tap strided": {
            "one_tap": True, "c": 20, "stride": 2, "kernel": {1: 3, 2: 2, 3: (1, 2, 2)}, "pads": (1, 1),
            "size": {1: 90, 2: 14, 3: (8, 7, 8)},
        },
        "strided": {"bias": True, "stride": 2, "dilation": 2, "pads": (2, 3), "size": {1: 90, 2: 14, 3: (8, 7, 8)}},
        "stride over kernel": {
            "stride": 4, "kernel": 2, "pads": (0, 1), "c": {1: 20, 2: 10, 3: 5},
            "size": {1: 170, 2: 26, 3: (14, 13, 14)},
        },
        "stride 3 dilation 2": {"stride": 3, "dilation": 2, "pads": (1, 3), "size": {1: 130, 2: 20, 3: (11, 11, 10)}},
        "grouped": {"groups": 3, "c": 15, "k": 102, "pads": (1, 0), "bias": True},
        "grouped, one split": {"groups": 3, "c": 15, "k": 102, "pads": (1, 0), "splits": 1, "bias": True},
        "depthwise": {
            "bias": True, "groups": 3, "c": 3, "k": 105, "kernel": {1: 40, 2: 6, 3: (3, 4, 3)},
            "pads": {1: (20, 20), 2: (3, 3), 3: (2, 2)},
        },
        "many taps": {"c": 1, "kernel": {1: 40, 2: 6, 3: (3, 4, 3)}, "pads": {1: (20, 20), 2: (3, 2), 3: (2, 1)}},
        "kernel over input": {
            "size": {1: 9, 2: 4, 3: 2}, "kernel": {1: 15, 2: 7, 3: 3}, "pads": {1: (9, 9), 2: (5, 3), 3: (2, 1)},
            "n": {1: 5, 2: 3, 3: 4}, "c": {1: 4, 2: 1, 3: 2}, "bias": True,
        },
        "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)}},
        "replicate": {"padding_mode": "replicate", "pads": (1, 4), "stride": 2, "size": {1: 90, 2: 14, 3: (8, 7, 8)}},
        "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: (1, 1)}, "one_tap": True, "c": 16},
        "circular twice": {
            "padding_mode": "circular", "size": {1: 5, 2: (5, 4), 3: 2}, "pads": {1: (13, 17), 2: (7, 9), 3: (3, 4)},
            "stride": {1: 1, 2: (2, 1), 3: (2, 1, 1)}, "n": {1: 2, 2: 1, 3: 2},
        },
        "64-bit": {"index64": True, "pads": (0, 1), "bias": True},
        "64-bit, one split": {
            "index64": True, "groups": 2, "c": 12, "k": 70, "padding_mode": "replicate", "splits": 1, "bias": True,
        },
        "one by one": {"kernel": 1, "c": 40, "bias": True},
        "units of 8": {"c": {1: 24, 2: 8, 3: 8}, "k": 40, "pads": (1, 0), "bias": True},
        "units of 8, one tap": {"c": 16, "k": 80, "groups": 2, "one_tap": True, "kernel": {1: 3, 2: 2, 3: (2, 1, 2)}},
        "one by one strided": {
            "kernel": 1, "c": 40, "stride": 2, "one_tap": True, "size": {1: 90, 2: 14, 3: (8, 7, 8)},
        },
    },
}  # fmt: skip

_SIZES = {
    "dgrad": {1: 29, 2: 6, 3: (3, 3, 4)},
    "transposed": {1: 29, 2: 6, 3: (3, 3, 4)},
    "wgrad": {1: 41, 2: 8, 3: (4, 5, 4)},
}
_CHANNELS = {"dgrad": (37, 13), "transposed": (37, 13), "wgrad": ({1: 13, 2: 5, 3: 5}, 37)}
_SOLVERS = {"dgrad": DgradImplicitGemm, "transposed": DgradImplicitGemm, "wgrad": WgradSplitK}


@dataclass(frozen=True)
class GradCase:
    """One problem for a gradient kernel; sizes follow from the branch."""

    kind: str
    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.kind}-{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.kind][self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return an option as one integer per axis."""
        value = self.option(name, default)
        return (value,) * self.ndim if isinstance(value, int) else value


def all_cases(kind: str, count: int = 108) -> list[GradCase]:
    """Return `count` cases: every (dims, layout, dtype) at least twice, and every branch in every number of dims."""
    names = list(BRANCHES[kind])
    combinations = list(product(LAYOUTS, DTYPES, (1, 2, 3)))
    cases = []
    for number in range(count):
        layout, dtype, ndim = combinations[number % len(combinations)]
        cases.append(GradCase(kind, ndim, layout, dtype, names[number // 3 % len(names)]))
    return cases


class GradInputs:
    """Inputs of a case, drawn from its name, with the float64 reference and magnitude of its result."""

    def __init__(self, case: GradCase, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim, groups = case.ndim, case.option("groups", 1)
        c, k = (case.option(name, default) for name, default in zip("ck", _CHANNELS[case.kind], strict=True))
        n, size = case.option("n", 2 if ndim == 1 else 1), case.axes("size", _SIZES[case.kind])
        kernel = case.axes("kernel", {1: 3, 2: 3, 3: 2})
        stride, dilation = case.axes("stride", 1), case.axes("dilation", 1)
        pads = case.option("pads", (0, 0))
        lo, hi = zip(*(pads if isinstance(pads[0], tuple) else (pads,) * ndim), strict=True)
        output = shapes.map_axes(shapes.conv_output_size, size, kernel, stride, lo, hi, dilation)
        self.x_shape, self.w_shape, y_shape = (n, c, *size), (k, c // groups, *kernel), (n, k, *output)

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        self.tensors = {"y": with_layout(draw(*y_shape), case.layout)}
        if case.kind == "wgrad":
            self.tensors["x"] = with_layout(draw(*self.x_shape), case.layout)
        else:
            weight_layout = "channels_last" if case.layout == "mixed" else case.layout
            self.tensors["w"] = with_layout(draw(*self.w_shape), weight_layout)
        if case.kind == "transposed":
            self.tensors |= {name: draw(c) for name in ("bias", "scale", "shift") if case.option(name, False)}
            if case.option("residual", False):
                self.tensors["residual"] = with_layout(draw(*self.x_shape), case.layout)
        self.options: dict[str, Any] = {
            "stride": stride, "padding": tuple(zip(lo, hi, strict=True)), "dilation": dilation, "groups": groups,
        }  # fmt: skip
        if case.kind == "transposed":
            self.options["output_size"] = size
        else:
            self.options["padding_mode"] = case.option("padding_mode", "zeros")

    def _apply(self, run: Any, backend: str, dtype: torch.dtype | None = None, magnitude: bool = False) -> Any:
        """Call ``run(function, *arguments)`` with the public function of the pass."""
        given = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in self.tensors.items()}
        if magnitude:
            given = {name: tensor.abs() for name, tensor in given.items()}
        options = {**self.options, "backend": backend}
        ndim = self.case.ndim
        if self.case.kind == "dgrad":
            function = getattr(gpuconv, f"conv{ndim}d_input_grad")
            return run(function, self.x_shape, given["w"], given["y"], **options)
        if self.case.kind == "wgrad":
            function = getattr(gpuconv, f"conv{ndim}d_weight_grad")
            return run(function, given["x"], self.w_shape, given["y"], **options)
        activation = None if magnitude else self.case.option("activation", None)
        extras = {name: given.get(name) for name in ("bias", "scale", "shift", "residual")}
        function = getattr(gpuconv, f"conv_transpose{ndim}d")
        return run(function, given["y"], given["w"], **extras, activation=activation, **options)

    def call(self, backend: str, dtype: torch.dtype | None = None, magnitude: bool = False) -> torch.Tensor:
        """Run the case through the public function; `magnitude` runs it on absolute values without activation."""
        return self._apply(lambda function, *args, **kw: function(*args, **kw), backend, dtype, magnitude)

    def problem(self) -> ConvProblem:
        """Return the problem of the case."""
        explanation = self._apply(gpuconv.explain, _SOLVERS[self.case.kind].id)
        assert explanation.solver == _SOLVERS[self.case.kind].id, explanation
        problem: ConvProblem = explanation.problem
        if self.case.kind == "wgrad":
            return replace(problem, bias=self.case.option("bias", False))
        return problem

    def bias_reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 gradient of the bias, which a weight gradient may have beside it, and its magnitude."""
        y = self.tensors["y"].double().transpose(0, 1).flatten(1)
        return y.sum(1).numpy(), y.abs().sum(1).numpy()

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 result of the NumPy backend and the magnitude of the tolerance rule.

        An activation with a slope above 1 (at most 1.5, hardswish) passes errors on enlarged by as much.
        """
        reference = self.call("numpy", torch.float64).numpy()
        magnitude = self.call("numpy", torch.float64, magnitude=True).numpy()
        return reference, magnitude * (1.5 if self.case.option("activation", None) else 1.0)


def config_of(case: GradCase) -> dict[str, int]:
    """Return the configuration that the case launches with."""
    config = TILE | ({"INDEX64": True} if case.option("index64", False) else {})
    if case.kind == "wgrad":
        config |= {"ONE_TAP": case.option("one_tap", False), "splits": case.option("splits", 3)}
    return config


def tiles(problem: ConvProblem, config: dict[str, int]) -> tuple[int, int, int]:
    """Return how many tiles of rows (of the largest phase), of columns in all groups, and reduction steps there are."""
    layouts = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape, "residual": problem.x_shape}
    strides = {name: contiguous_strides(shape) for name, shape in layouts.items()}
    if problem.kind == "wgrad":
        arguments = conv_grad.wgrad_arguments(problem, strides, config)
        steps = -(-arguments["pixels"] // config["BLOCK_K"])
    else:
        arguments = conv_grad.dgrad_arguments(problem, strides, config)
        taps = sum(len(phase) for _, phase in taps_of_phases(problem))
        steps = taps * -(-arguments["k_per_group"] // config["BLOCK_K"])
    return arguments["tiles_m"], arguments["tiles_n"] * arguments["groups"], steps


def taps_of_phases(problem: ConvProblem) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Yield the first position of each stride phase and the taps that reach its positions, found by trying all."""
    for position in product(*map(range, problem.stride)):
        axes = list(zip(position, problem.pad_lo, problem.dilation, problem.stride, strict=True))
        yield (
            position,
            [
                tap
                for tap in np.ndindex(*problem.kernel)
                if all((a + pad - t * dilation) % s == 0 for t, (a, pad, dilation, s) in zip(tap, axes, strict=True))
            ],
        )


def launch(inputs: GradInputs, problem: ConvProblem, order: str) -> tuple[torch.Tensor, ...]:
    """Launch the kernel on guarded copies of the inputs, programs in `order`; check the guards; return the results.

    There is one, and the gradient of the bias after it where a weight gradient has one.
    """
    guarded: dict[str, Guarded] = {name: guard_input(tensor) for name, tensor in inputs.tensors.items()}
    config = config_of(inputs.case)
    layout = channels_last_strides if problem.result_format == CHANNELS_LAST else contiguous_strides
    shape = problem.result_shape
    guarded[problem.result] = guard_output(shape, layout(shape), DTYPES[problem.dtype])
    results = [problem.result]
    if problem.kind == "wgrad" and problem.bias:
        guarded["bias"] = guard_output((problem.k,), (1,), DTYPES[problem.dtype])
        results.append("bias")
    written = {*results, "workspace"}
    if config.get("splits", 1) > 1:
        sums = torch.float64 if problem.dtype == "float64" else torch.float32
        of_split = prod(shape) + (problem.k if problem.bias else 0)
        guarded["workspace"] = guard_output((config["splits"] * of_split,), (1,), sums)
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    with program_order(order):
        _SOLVERS[problem.kind]().launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in written)
    return tuple(guarded[name].tensor for name in results)


def orders_of(case: GradCase) -> tuple[str, ...]:
    """Return the program orders of a case: one of the three in turn, and where it is forward another, for its bits."""
    number = sum(map(ord, case.id)) % 6
    return ("forward", ORDERS[1 + number // 3]) if number % 3 == 0 else (ORDERS[number % 3],)


def check_case(case: GradCase, orders: tuple[str, ...]) -> None:
    """Assert that the kernel computes `case` within tolerance, the same bits in every program order."""
    inputs = GradInputs(case)
    problem = inputs.problem()
    references = (inputs.reference(), inputs.bias_reference())
    first: tuple[torch.Tensor, ...] = ()
    for order in orders:
        results = launch(inputs, problem, order)
        if not first:
            first = results
            for result, expected in zip(results, references):
                numerics.assert_close(as_numpy(result), *expected, case.dtype, problem.reduction_length)
        for one, other in zip(first, results, strict=True):
            assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), order


@contextmanager
def counted_products() -> Iterator[list[int]]:
    """Count the ``tl.dot`` of each program that runs inside the ``with`` block, in the order in which they run."""
    counts: list[int] = []
    builder = interpreter.InterpreterBuilder
    multiply, place = builder.create_dot, builder.set_grid_idx

    def counting(self: Any, *args: Any) -> Any:
        counts[-1] += 1
        return multiply(self, *args)

    def placing(self: Any, *args: Any) -> None:
        counts.append(0)
        place(self, *args)

    builder.create_dot, builder.set_grid_idx = counting, placing
    try:
        yield counts
    finally:
        builder.create_dot, builder.set_grid_idx = multiply, place
