"""Cases of the forward kernel: every combination of dims, layout and dtype, each with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton import conv_fprop
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm, workspace_parts
from gpuconv.problem import ConvProblem

TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "num_warps": 4, "num_stages": 2}
"""The smallest tile, so that small problems have several tiles on each axis and several reduction steps."""

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

LAYOUTS = ("contiguous", "channels_last", "mixed", "contiguous weights", "strided")
"""Of x and w: "mixed" has w alone channels-last, "contiguous weights" x alone."""

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"c": 18},
    "strided": {"stride": 2, "dilation": 2, "pads": (2, 3), "n": 3},
    "stride over kernel": {"stride": 4, "kernel": 2, "pads": (0, 1), "size": {1: 100, 2: 17, 3: 8}, "n": 2, "c": 20},
    "grouped": {"groups": 3, "bias": True, "pads": (1, 0)},
    "depthwise": {"groups": 3, "c": 3, "k": 6, "pads": (1, 1), "bias": True},
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"},
    "relu": {"activation": "relu", "residual": True, "pads": (1, 0)},
    "silu": {"activation": "silu", "scale": True, "shift": True},
    "many taps": {
        "size": {1: 50, 2: 6, 3: 3}, "kernel": {1: 33, 2: 6, 3: 4}, "pads": {1: (1, 2), 2: (1, 2), 3: (1, 1)},
        "n": 2, "c": 3,
    },
    "kernel over input": {
        "size": {1: 7, 2: 3, 3: 2}, "kernel": {1: 11, 2: 5, 3: 3}, "pads": {1: (9, 9), 2: (3, 2), 3: (1, 1)},
        "n": 4, "c": 5,
    },
    "reflect": {"padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)}},
    "replicate": {"padding_mode": "replicate", "pads": (1, 4), "stride": 2, "n": 3},
    "circular": {"padding_mode": "circular", "pads": {1: (3, 2), 2: (1, 2), 3: (1, 1)}},
    "circular twice": {
        "padding_mode": "circular", "size": {1: 5, 2: 5, 3: 2}, "pads": {1: (13, 17), 2: (7, 9), 3: (3, 4)},
        "stride": {1: 1, 2: 2, 3: 2},
    },
    "64-bit": {"index64": True, "pads": (0, 1)},
    "64-bit grouped": {"index64": True, "groups": 2, "c": 6, "k": 70, "padding_mode": "replicate", "pads": (0, 1)},
    "three splits": {
        "splits": 3, "kernel": {1: 4, 2: 2, 3: 2}, "c": {1: 18, 2: 18, 3: 13}, "bias": True, "scale": True,
        "shift": True, "residual": True, "activation": "gelu", "size": {1: 30, 2: 6, 3: 4}, "pads": (0, 1),
    },
    "three splits, grouped": {
        "splits": 3, "kernel": {1: 4, 2: 2, 3: 2}, "groups": 2, "c": {1: 36, 2: 36, 3: 26}, "k": 70, "stride": 2,
        "pads": (1, 1), "n": 3, "index64": True, "residual": True, "size": {1: 30, 2: 7, 3: 6},
    },
    "8 channels": {"c": 8, "k": 40, "pads": (1, 1), "residual": True},
    "24 channels": {"c": 24, "k": 40, "pads": (0, 1), "bias": True},
    "40 channels": {"c": 40, "k": 56, "kernel": 2, "pads": (1, 0), "index64": True},
    "8 channels, grouped, reflect": {
        "c": 24, "groups": 3, "k": 72, "padding_mode": "reflect", "pads": {1: (2, 3), 2: (2, 1), 3: (1, 1)},
    },
    "packed": {"packed": True, "c": 24, "pads": (1, 0)},
    "packed, grouped": {"packed": True, "groups": 2, "c": {1: 64, 2: 32, 3: 32}, "k": 70, "index64": True},
    "packed, three splits": {
        "packed": True, "splits": 3, "kernel": {1: 4, 2: 2, 3: 2}, "c": {1: 24, 2: 24, 3: 8}, "k": 40,
        "activation": "silu", "size": {1: 30, 2: 6, 3: 4}, "pads": (0, 1),
    },
    "packed, many taps": {
        "packed": True, "size": {1: 40, 2: 7, 3: 3}, "kernel": {1: 33, 2: 6, 3: 3},
        "pads": {1: (4, 5), 2: (2, 2), 3: (0, 1)}, "n": {1: 2, 2: 1, 3: 2}, "c": 24,
    },
    "one by one": {"kernel": 1, "c": 40},
    "one by one strided": {"kernel": 1, "c": 40, "stride": 2, "size": {1: 99, 2: 17, 3: 8}},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One problem for the forward kernel; sizes follow from the branch. `flat` steps go over channels and taps."""

    ndim: int
    layout: str
    dtype: str
    branch: str
    flat: bool = False

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}" + "-flat" * self.flat

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value


SIXTEEN_BIT = {
    "channels_last": ("8 channels", "24 channels", "40 channels", "8 channels, grouped, reflect"),
    "contiguous weights": ("packed", "packed, three splits", "packed, many taps"),
    "contiguous": ("packed, grouped",),
}
"""Branches of what 16-bit problems alone are planned with, in a layout that they are planned for."""


def all_cases() -> list[Case]:
    """Return the cases, all distinct.

    Every (dims, layout, dtype) has three branches in rotation, so that all branches meet all of them; those of
    SIXTEEN_BIT come with their layout in every number of dims besides.
    """
    names = list(BRANCHES)
    cases = []
    for number, (ndim, layout, dtype) in enumerate(product((1, 2, 3), LAYOUTS, DTYPES)):
        cases += [Case(ndim, layout, dtype, names[(3 * number + number // 6 + step) % len(names)]) for step in range(3)]
    for number, (layout, ndim) in enumerate(product(SIXTEEN_BIT, (1, 2, 3))):
        dtypes = ("float16", "bfloat16") if number % 2 else ("bfloat16", "float16")
        pairs = zip(dtypes * 2, SIXTEEN_BIT[layout], strict=False)
        cases += [Case(ndim, layout, dtype, branch) for dtype, branch in pairs]
    return list(dict.fromkeys(cases))


def with_layout(values: torch.Tensor, layout: str) -> torch.Tensor:
    """Return `values` with other strides: channels innermost, or every other element of a transposed buffer."""
    if layout == "channels_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        spread = values.transpose(0, -1).repeat_interleave(2, dim=1).contiguous().transpose(0, -1)
        return spread[:, ::2]
    return values.contiguous()


class Inputs:
    """Inputs of a case, drawn from its name, with the float64 reference and magnitude of its result."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim, groups = case.ndim, case.option("groups", 1)
        n = case.option("n", 1 if ndim == 3 else 2)
        c = case.option("c", 7 * groups if groups > 1 else 13)
        k = case.option("k", 37 if groups == 1 else 17 * groups)
        size, kernel = case.option("size", {1: 29, 2: 6, 3: 4}[ndim]), case.option("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        x_layout = "channels_last" if case.layout == "contiguous weights" else case.layout
        self.x = with_layout(draw(n, c, *(size + axis for axis in range(ndim))), x_layout)
        weight_layout = "channels_last" if case.layout == "mixed" else case.layout
        self.w = with_layout(draw(k, c // groups, *(kernel,) * ndim), weight_layout)
        self.vectors = {name: draw(k) for name in ("bias", "scale", "shift") if case.option(name, False)}
        self.options = {
            "stride": case.option("stride", 1),
            "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.option("dilation", 1),
            "groups": groups,
            "padding_mode": case.option("padding_mode", "zeros"),
        }
        self.activation = case.option("activation", None)
        self.function = getattr(gpuconv, f"conv{ndim}d")
        shape = self.function(self.x.double(), self.w.double(), backend="numpy", **self.options).shape
        self.residual = with_layout(draw(*shape), case.layout) if case.option("residual", False) else None

    def call(self, backend: str, dtype: torch.dtype | None = None, magnitude: bool = False) -> torch.Tensor:
        """Run the case through the public function; `magnitude` runs it on absolute values without activation."""

        def cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:
                return None
            tensor = tensor if dtype is None else tensor.to(dtype)
            return tensor.abs() if magnitude else tensor

        return self.function(
            cast(self.x),
            cast(self.w),
            cast(self.vectors.get("bias")),
            **self.options,
            scale=cast(self.vectors.get("scale")),
            shift=cast(self.vectors.get("shift")),
            residual=cast(self.residual),
            activation=None if magnitude else self.activation,
            backend=backend,
        )

    def problem(self) -> ConvProblem:
        """Return the problem of the case."""
        arguments = {
            "bias": self.vectors.get("bias"),
            "scale": self.vectors.get("scale"),
            "shift": self.vectors.get("shift"),
        }
        explanation = gpuconv.explain(
            self.function, self.x, self.w, **arguments, **self.options, residual=self.residual,
            activation=self.activation, backend=FpropImplicitGemm.id,
        )  # fmt: skip
        assert explanation.solver == FpropImplicitGemm.id, explanation
        return explanation.problem

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 result of the NumPy backend and the magnitude of the tolerance rule.

        An activation with a slope above 1 (at most 1.5, hardswish) passes errors on enlarged by as much.
        """
        reference = self.call("numpy", torch.float64).numpy()
        magnitude = self.call("numpy", torch.float64, magnitude=True).numpy()
        return reference, magnitude * (1.5 if self.activation else 1.0)


def config_of(case: Case) -> dict[str, int]:
    """Return the configuration that the case launches with."""
    given = {name: case.option(name, 0) for name in ("splits", "packed")}
    given["flat"] = case.flat
    return TILE | {name: value for name, value in given.items() if value} | {"INDEX64": case.option("index64", False)}


def tiles(problem: ConvProblem, config: dict[str, int]) -> tuple[int, int, int]:
    """Return how many tiles of rows, tiles of columns, and reduction steps the case has."""
    arguments = conv_fprop.fprop_arguments(problem, _strides(problem), config)
    steps = prod(problem.kernel) * -(-(problem.c // problem.groups) // TILE["BLOCK_K"])
    return arguments["tiles_m"], arguments["tiles_n"] * arguments["groups"], steps


def _strides(problem: ConvProblem) -> dict[str, tuple[int, ...]]:
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape, "residual": problem.y_shape}
    return {name: torch.empty(shape, device="meta").stride() for name, shape in shapes.items()}


def launch(inputs: Inputs, problem: ConvProblem, order: str) -> torch.Tensor:
    """Launch the kernel on guarded copies of the inputs, programs in `order`; check the guards; return the output."""
    from gpuconv.arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides

    given = {"x": inputs.x, "w": inputs.w, **inputs.vectors}
    if inputs.residual is not None:
        given["residual"] = inputs.residual
    guarded: dict[str, Guarded] = {name: guard_input(tensor) for name, tensor in given.items()}
    layout = channels_last_strides if problem.y_format == CHANNELS_LAST else contiguous_strides
    guarded["y"] = guard_output(problem.y_shape, layout(problem.y_shape), DTYPES[problem.dtype])
    config = config_of(inputs.case)
    for name, (dtype, elements) in workspace_parts(problem, config).items():
        guarded[name] = guard_output((elements,), (1,), DTYPES[dtype])
    written = {"y", *workspace_parts(problem, config)}
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    with program_order(order):
        FpropImplicitGemm().launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in written)
    return guarded["y"].tensor


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as NumPy; bfloat16 as the float32 of the same values."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def orders_of(case: Case) -> tuple[str, str]:
    """Return the program orders of a case: forward, and in turn reversed or shuffled."""
    return "forward", ORDERS[1 + len(case.id) % 2]


def check_case(case: Case, orders: tuple[str, ...]) -> None:
    """Assert that the kernel computes `case` within tolerance, the same bits in every program order."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    first: torch.Tensor | None = None
    for order in orders:
        result = launch(inputs, problem, order)
        if first is None:
            first = result
            numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
        assert torch.equal(first.contiguous().view(torch.uint8), result.contiguous().view(torch.uint8)), order
