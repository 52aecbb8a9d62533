"""Cases of the row kernels: every combination of dims, layout, dtype and pass, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any
from unittest import mock

import numpy as np
import torch
from fprop_cases import DTYPES, as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton import conv_rows
from gpuconv.backends.triton.common import power_of_two
from gpuconv.backends.triton.conv_rows import RowProducts
from gpuconv.backends.triton.conv_rows_wgrad import RowGradient
from gpuconv.backends.triton.rows_blocks import refusal, rows_of
from gpuconv.problem import ConvProblem
from gpuconv.shapes import ceil_div

SOLVERS = {"fprop": RowProducts(), "dgrad": RowProducts(), "transposed": RowProducts(), "wgrad": RowGradient()}

LAYOUTS = ("channels_last", "contiguous weights", "strided", "contiguous")
"""Of what a launch gets; the problem is that of channels-last arrays, but for the last, which is turned in parts."""

SIZES = {1: (29,), 2: (7, 9), 3: (4, 5, 6)}

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"pads": (1, 1)},
    "eights": {"groups": 4, "c": 8, "k": 8, "pads": (1, 1)},
    "odd groups": {"groups": 5, "c": 3, "k": 6, "pads": (1, 0)},
    "more out": {"groups": 3, "c": 2, "k": 12, "pads": (0, 2)},
    "more in": {"groups": 3, "c": 12, "k": 2, "pads": (2, 0)},
    "wide groups": {"groups": 2, "c": 24, "k": 20, "pads": (1, 1), "n": 1},
    "stride 2": {"stride": 2, "pads": (1, 1)},
    "stride 3, dilated": {"stride": {1: 3, 2: (3, 1)}, "dilation": {1: 2, 2: (2, 3)}, "pads": (3, 2)},
    "dilated": {"dilation": {1: 3, 2: (2, 3)}, "pads": (2, 3)},
    "shared divisor": {
        "stride": {1: 2, 2: (2, 4)}, "dilation": {1: 4, 2: (4, 2)}, "pads": (2, 3), "size": {1: 33, 2: (11, 12)},
    },
    "stride 2, a rest": {"stride": 2, "pads": (1, 1), "size": {1: 32, 2: (8, 10)}, "groups": 4, "c": 8, "k": 8},
    "unequal strides": {"stride": {1: 3, 2: (2, 3)}, "kernel": {1: 5, 2: (3, 5)}, "pads": (2, 2), "packed": True},
    "stride over kernel": {"stride": {1: 4, 2: (3, 2)}, "kernel": {1: 3, 2: (2, 1)}, "pads": (1, 0)},
    "stride 2, dilated rows": {
        "stride": {1: 2, 2: (2, 3)}, "dilation": {1: 1, 2: (3, 1)}, "pads": (2, 1), "groups": 3, "c": 2, "k": 12,
    },
    "stride 2, epilogue": {
        "bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "stride": 2, "pads": (0, 1),
    },
    "stride 2, 64-bit": {"index64": True, "stride": {1: 2, 2: (1, 2)}, "pads": (1, 0), "groups": 5, "c": 3, "k": 6},
    "long": {"kernel": {1: 7, 2: (1, 5)}, "pads": (3, 2)},
    "depth alone": {
        "stride": {1: 1, 2: 1, 3: (2, 1, 1)}, "dilation": {1: 1, 2: 1, 3: (2, 1, 1)},
        "kernel": {1: 3, 2: 2, 3: (3, 2, 2)}, "pads": (1, 3),
    },
    "tall": {"kernel": {1: 5, 2: (5, 2)}, "pads": (2, 1)},
    "few taps": {"kernel": {1: 2, 2: (1, 2)}, "stride": {1: 2, 2: (1, 2)}},
    "kernel over input": {"size": {1: 4, 2: (2, 3)}, "kernel": {1: 6, 2: (3, 4)}, "pads": (3, 2), "n": 5},
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1)},
    "relu": {"bias": True, "residual": True, "activation": "relu", "pads": (1, 0), "groups": 4, "c": 8, "k": 8},
    "64-bit": {"index64": True, "pads": (1, 1), "bias": True},
    "64-bit, packed": {"index64": True, "packed": True, "pads": (1, 1), "groups": 4, "c": 8, "k": 8},
    "packed": {"packed": True, "pads": (1, 1), "groups": 5, "c": 4, "k": 4},
    "few": {"groups": 1, "c": 20, "k": 3, "pads": (1, 1)},
    "few, in blocks": {"groups": 1, "c": 40, "k": 8, "pads": (1, 1), "bias": True, "n": 1},
    "few, stride 2": {"groups": 1, "c": 20, "k": 3, "stride": 2, "pads": (1, 0), "n": 1},
    "few, packed": {"groups": 1, "c": 33, "k": 1, "packed": True, "pads": (2, 1), "n": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One pass of one problem; sizes follow from the branch, for channels of the source and of the result."""

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
        """Return what the branch says about `name`; a dict holds one value per number of dimensions.

        In 3-D the first axis, of four positions at most, is as the last one.
        """
        value = BRANCHES[self.branch].get(name, default)
        if isinstance(value, dict) and self.ndim == 3 and 3 not in value:
            two = value[2]
            if not isinstance(two, tuple):
                return two
            return (min(two[1], 4) if name == "size" else two[1], *two)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return the option for each axis."""
        value = self.option(name, default)
        return tuple(value) if isinstance(value, tuple) else (value,) * self.ndim

    @property
    def refused(self) -> bool:
        """Whether the row kernels do not take it."""
        if self.kind == "wgrad":
            return self.option("groups", 2) == 1
        if self.kind == "fprop":
            return False
        taps, strides, dilations = self.axes("kernel", 3), self.axes("stride", 1), self.axes("dilation", 1)
        along_w = min(taps[-1], strides[-1], dilations[-1]) > 1
        return along_w or any(map(gcd_over_one, taps[-2:-1], strides[-2:-1], dilations[-2:-1]))


def gcd_over_one(taps: int, stride: int, dilation: int) -> bool:
    """Tell whether the stride and dilation of an axis of several taps have a common divisor."""
    return taps > 1 and gcd(stride, dilation) > 1


def all_cases() -> list[Case]:
    """Return the cases: each (dims, layout, dtype, pass) has several branches in rotation."""
    names = list(BRANCHES)
    cases = []
    for number, (kind, ndim, layout, dtype) in enumerate(product(SOLVERS, (1, 2, 3), LAYOUTS, DTYPES)):
        for step in range(3):
            case = Case(kind, ndim, layout, dtype, names[(3 * number + number // 28 + step) % len(names)])
            cases += [] if case.refused else [case]
    return list(dict.fromkeys(cases))


class Inputs:
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        groups, n = case.option("groups", 6), case.option("n", 3 if case.layout == "contiguous" else 2)
        c, k = case.option("c", 4), case.option("k", 4)
        if case.kind in ("dgrad", "transposed"):
            c, k = k, c
        size = case.axes("size", SIZES[case.ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        layout = "contiguous" if case.layout == "contiguous" else "channels_last"
        self.x = with_layout(draw(n, c * groups, *size), layout)
        self.w = draw(k * groups, c, *case.axes("kernel", 3))
        self.w = with_layout(self.w, "channels_last")
        self.geometry = {
            "stride": case.axes("stride", 1), "padding": ((lo, hi),) * case.ndim,
            "dilation": case.axes("dilation", 1), "groups": groups,
        }  # fmt: skip
        if case.ndim == 3:
            self.geometry["padding"] = ((hi, lo), (lo, hi), (lo, hi))
        y = getattr(gpuconv, f"conv{case.ndim}d")(self.x.double(), self.w.double(), backend="numpy", **self.geometry)
        self.y = with_layout(draw(*y.shape), layout)
        of_result = {"fprop": (k * groups, y.shape), "transposed": (c * groups, self.x.shape)}
        self.epilogue: dict[str, Any] = {}
        if case.kind in of_result:
            channels, shape = of_result[case.kind]
            self.epilogue = {name: draw(channels) for name in ("bias", "scale", "shift") if case.option(name, False)}
            if case.option("residual", False):
                self.epilogue["residual"] = with_layout(draw(*shape), layout)
            self.epilogue["activation"] = case.option("activation", None)

    def call(self, backend: str | None, cast: Any = lambda tensor: tensor, explain: bool = False) -> Any:
        """Run or explain the case through the public function."""
        case, ndim = self.case, self.case.ndim
        x, w, y = cast(self.x), cast(self.w), cast(self.y)
        epilogue = {k: cast(v) if isinstance(v, torch.Tensor) else v for k, v in self.epilogue.items()}
        options = {**self.geometry, "backend": backend}
        name, arguments = {
            "fprop": (f"conv{ndim}d", (x, w)),
            "dgrad": (f"conv{ndim}d_input_grad", (tuple(x.shape), w, y)),
            "wgrad": (f"conv{ndim}d_weight_grad", (x, tuple(w.shape), y)),
            "transposed": (f"conv_transpose{ndim}d", (y, w)),
        }[case.kind]
        if case.kind == "transposed":
            options["output_size"] = tuple(x.shape[2:])
        function = getattr(gpuconv, name)
        options |= epilogue
        return gpuconv.explain(function, *arguments, **options) if explain else function(*arguments, **options)

    def problem(self) -> ConvProblem:
        """Return the problem of the case, which the solver has nothing against but perhaps its registers.

        A weight gradient with a bias has a second result, the sums of y.
        """
        kind = "dgrad" if self.case.kind == "transposed" else self.case.kind
        problem = self.call(f"triton.conv.{kind}.implicit_gemm", explain=True).problem
        if kind == "wgrad":
            problem = replace(problem, bias=self.case.option("bias", False))
        assert refusal(problem) is None, refusal(problem)
        return problem

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 result of the NumPy backend and the magnitude of the tolerance rule."""
        activation = self.epilogue.get("activation")
        reference = self.call("numpy", torch.Tensor.double).numpy()
        self.epilogue |= {"activation": None} if "activation" in self.epilogue else {}
        magnitude = self.call("numpy", lambda tensor: tensor.double().abs()).numpy()
        self.epilogue |= {"activation": activation} if "activation" in self.epilogue else {}
        return reference, magnitude * (1.5 if activation else 1.0)


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis."""
    rows, turn = rows_of(problem), sum(map(ord, case.id))
    widest = max(rows.inside, rows.outside)
    per = max(min(16 // widest, rows.groups), 1) if rows.groups > 1 else 1
    bc = max(power_of_two(per * rows.inside), 16) if rows.groups > 1 else 16
    config: dict[str, Any] = {"BM": 16, "BC": bc, "PER": per, "num_warps": 1, "num_stages": 1}
    config |= {"INDEX64": case.option("index64", False), "BO": max(power_of_two(per * rows.outside), 16)}
    if case.kind == "wgrad":
        step = {"U": (1, 2, 4)[turn % 3], "V": (2, 1, 4)[turn // 3 % 3], "CACHED": turn % 2}
        return config | step | {"splits": (1, 3, 4)[turn // 2 % 3]}
    parts = ceil_div(rows.inside, bc)
    packed = case.option("packed", turn // 2 % 2)
    return config | {"steps": 2 + turn % 3, "BLOCKS": parts, "AHEAD": turn % 2, "PACKED": int(packed)}


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    case, solver = inputs.case, SOLVERS[inputs.case.kind]
    config = config or config_of(case, problem)
    written = problem.result
    guarded: dict[str, Guarded] = {}
    for name, tensor in {"x": inputs.x, "w": inputs.w, "y": inputs.y, **inputs.epilogue}.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        given = tensor
        if case.layout == "strided" and tensor.ndim > 1:
            given = with_layout(tensor, "strided")
        elif case.layout == "contiguous weights" and name == "w":
            given = tensor.contiguous()
        elif case.layout == "contiguous" and name in ("x", "y") and len(case.id) % 2:  # rows of a wider tensor
            given = torch.nn.functional.pad(tensor, (0, 1))[..., :-1]
        if name == written:
            guarded[name] = guard_output(given.shape, given.stride(), given.dtype)
        else:
            guarded[name] = guard_input(given)
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    names = {written}
    if problem.kind == "wgrad" and problem.bias:
        guarded["bias"] = guard_output((problem.k,), (1,), inputs.w.dtype)
        tensors["bias"] = guarded["bias"].tensor
        names.add("bias")
    with mock.patch.object(conv_rows, "images_at_a_time", lambda problem: min(problem.n, 2)):  # and one for the rest
        parts = solver.parts(solver.bind(problem, config))
    for name, (dtype, elements) in parts.items():
        guarded[name] = guard_output((elements,), (1,), getattr(torch, dtype))
        tensors[name] = guarded[name].tensor
        names.add(name)
    with program_order(order):
        solver.launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in names)
    if problem.kind == "wgrad" and problem.bias:
        check_bias(inputs, problem, guarded["bias"].tensor)
    return guarded[written].tensor


def check_bias(inputs: Inputs, problem: ConvProblem, of_bias: torch.Tensor) -> None:
    """Assert that the gradient of the bias is the sum of y."""
    y = inputs.y.double().transpose(0, 1).flatten(1)
    numerics.assert_close(
        as_numpy(of_bias), y.sum(1).numpy(), y.abs().sum(1).numpy(), inputs.case.dtype, problem.reduction_length
    )


def check_case(case: Case, orders: tuple[str, ...] = ORDERS) -> None:
    """Assert that the kernels compute `case` within tolerance, the same bits in two program orders."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    result = launch(inputs, problem, "forward")
    numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
    if len(orders) > 1:
        other = launch(inputs, problem, ORDERS[1 + len(case.id) % 2])
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
