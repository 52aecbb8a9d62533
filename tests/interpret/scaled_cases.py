"""Cases of the kernel of 8-bit operands with scales: every combination of dims, layout and dtype, branches by turns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from fprop_cases import LAYOUTS, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order
from scaled_referee import DTYPES, check, emulated

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from gpuconv.backends.triton.conv_scaled import SOLVERS, scaled_arguments
from gpuconv.problem import ScaledProblem

SOLVER = SOLVERS[0]

TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "GROUP_M": 2, "num_warps": 1, "num_stages": 1}
"""The smallest tile, so that small problems have several tiles on each axis and several reduction steps."""

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"c": 37, "pads": (1, 0)},
    "numbers": {"c": 37, "scales": ("number", "number", "number"), "out": "8-bit"},
    "arrays": {"scales": ("array", "array", "array"), "out": "8-bit", "bias": "float32", "pads": (0, 1)},
    "channels": {"scales": ("array", "channels", "number"), "out": "8-bit", "bias": "float16"},
    "strided scales": {"scales": ("number", "strided", "array"), "bias": "float32", "bias_step": 3},
    "strided": {"stride": 2, "dilation": 2, "pads": (2, 3), "n": 3, "out": "float16"},
    "stride over kernel": {"stride": 4, "kernel": 2, "pads": (0, 1), "size": {1: 100, 2: 17, 3: 8}, "c": 50},
    "grouped": {"groups": 3, "bias": "bfloat16", "pads": (1, 0), "out": "bfloat16"},
    "grouped, 8-bit": {"groups": 2, "c": 66, "k": 38, "out": "8-bit", "scales": ("number", "channels", "array")},
    "depthwise": {"groups": 3, "c": 3, "k": 6, "pads": (1, 1), "bias": "float32", "n": 3},
    "relu": {"activation": "relu", "pads": (1, 0), "out": "8-bit", "bias": "float32"},
    "gelu": {"activation": "gelu", "bias": "float32", "small": True},
    "many taps": {
        "size": {1: 50, 2: 6, 3: 3}, "kernel": {1: 33, 2: 6, 3: 4}, "pads": {1: (1, 2), 2: (1, 2), 3: (1, 1)}, "c": 3,
        "out": "8-bit",
    },
    "kernel over input": {
        "size": {1: 7, 2: 3, 3: 2}, "kernel": {1: 11, 2: 5, 3: 3}, "pads": {1: (9, 9), 2: (3, 2), 3: (1, 1)},
        "n": 4, "c": 5, "out": "bfloat16",
    },
    "64-bit": {"index64": True, "pads": (0, 1), "out": "8-bit"},
    "64-bit grouped": {"index64": True, "groups": 2, "c": 6, "k": 70, "pads": (0, 1), "bias": "float32"},
    "16 channels": {"c": 16, "k": 40, "pads": (1, 1), "out": "float16"},
    "packed": {"packed": True, "c": 48, "pads": (1, 0), "out": "8-bit"},
    "packed, grouped": {"packed": True, "groups": 2, "c": 64, "k": 38, "index64": True},
    "one by one": {"kernel": 1, "c": 100, "size": {1: 99, 2: 9, 3: 4}},
    "one by one strided": {"kernel": 1, "c": 70, "stride": 2, "size": {1: 99, 2: 17, 3: 8}, "out": "bfloat16"},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One problem; sizes follow from the branch."""

    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value


def all_cases() -> list[Case]:
    """Return the cases, all distinct: every (dims, layout, dtype) has four branches in rotation."""
    names = list(BRANCHES)
    cases = []
    for shift, dtype in enumerate(DTYPES):
        for number, (ndim, layout) in enumerate(product((1, 2, 3), LAYOUTS)):
            places = range(4 * number + 10 * shift, 4 * number + 10 * shift + 4)
            cases += [Case(ndim, layout, dtype, names[place % len(names)]) for place in places]
    return cases


class Inputs:
    """Inputs of a case, drawn from its name."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim, groups = case.ndim, case.option("groups", 1)
        n = case.option("n", 1 if ndim == 3 else 2)
        c = case.option("c", 13 * groups)
        k = case.option("k", 37 if groups == 1 else 17 * groups)
        size, kernel = case.option("size", {1: 29, 2: 6, 3: 4}[ndim]), case.option("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if case.dtype == "int8":
                most = 4 if case.option("small", False) else 128
                return torch.randint(-most, most, shape, generator=generator).to(torch.int8)
            return torch.randn(*shape, generator=generator).to(torch.float8_e4m3fn)

        x_layout = "channels_last" if case.layout == "contiguous weights" else case.layout
        self.x = with_layout(draw(n, c, *(size + axis for axis in range(ndim))), x_layout)
        weight_layout = "channels_last" if case.layout == "mixed" else case.layout
        self.w = with_layout(draw(k, c // groups, *(kernel,) * ndim), weight_layout)
        self.geometry = {
            "stride": case.option("stride", 1),
            "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.option("dilation", 1),
            "groups": groups,
        }
        bias = case.option("bias", None)
        step = case.option("bias_step", 1)
        self.bias = (
            None if bias is None else torch.randn(k * step, generator=generator).to(getattr(torch, bias))[::step]
        )
        self.out_dtype = case.option("out", "float32").replace("8-bit", case.dtype)
        self.options = {"out_dtype": self.out_dtype, "activation": case.option("activation", None)}
        self.options |= {name: self._scale(how, k, generator) for name, how in self._scales(case).items()}
        self.function = getattr(gpuconv, f"scaled_conv{ndim}d")

    def _scales(self, case: Case) -> dict[str, str]:
        names = ("input_scale", "weight_scale", "output_scale")
        given = dict(zip(names, case.option("scales", ("number", "channels", "number"))))
        if self.out_dtype != case.dtype:
            del given["output_scale"]
        return given

    @staticmethod
    def _scale(how: str, k: int, generator: torch.Generator) -> Any:
        drawn = torch.rand(2 * k, generator=generator) / 8 + 1 / 64
        return {"number": float(drawn[0]), "array": drawn[:1], "channels": drawn[:k], "strided": drawn[::2]}[how]

    def call(self, backend: str, explain: bool = False) -> Any:
        """Run or explain the case through the public function."""
        options = {**self.geometry, **self.options, "backend": backend}
        if explain:
            return gpuconv.explain(self.function, self.x, self.w, self.bias, **options)
        return self.function(self.x, self.w, self.bias, **options)

    def problem(self) -> ScaledProblem:
        """Return the problem of the case."""
        explanation = self.call(SOLVER.id, explain=True)
        assert explanation.solver == SOLVER.id, explanation
        return explanation.problem

    def emulated(self) -> Any:
        """Return what torch computes of the case, see :func:`scaled_referee.emulated`."""
        return emulated(self.x, self.w, self.bias, **self.geometry, **self.options)


def config_of(case: Case) -> dict[str, Any]:
    """Return the config that the case launches with."""
    return TILE | {"packed": case.option("packed", False), "INDEX64": case.option("index64", False)}


def tiles(problem: ScaledProblem, config: dict[str, Any]) -> tuple[int, int, int]:
    """Return how many tiles of rows, tiles of columns in all groups, and reduction steps a case has."""
    conv = problem.conv
    strides = {name: contiguous_strides(getattr(conv, f"{name}_shape")) for name in "xwy"}
    found = scaled_arguments(problem, strides, config)
    steps = found["T"] * found["R"] * found["S"] * -(-found["c_per_group"] // config["BLOCK_K"])
    return found["tiles_m"], found["tiles_n"] * found["groups"], steps


def launch(inputs: Inputs, problem: ScaledProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch on guarded copies of the inputs, programs in `order`; check the guards; return the output."""
    config = config or config_of(inputs.case)
    given = {"x": inputs.x, "w": inputs.w, "bias": inputs.bias}
    scales = {name: inputs.options.get(name) for name in ("input_scale", "weight_scale", "output_scale")}
    numbers = {name: scale for name, scale in scales.items() if isinstance(scale, float)}
    given |= {name: scale if isinstance(scale, torch.Tensor) else None for name, scale in scales.items()}
    guarded: dict[str, Guarded] = {name: guard_input(tensor) for name, tensor in given.items() if tensor is not None}
    layout = channels_last_strides if problem.result_format == CHANNELS_LAST else contiguous_strides
    out_dtype = getattr(torch, problem.out_dtype)
    guarded["y"] = guard_output(problem.result_shape, layout(problem.result_shape), out_dtype)
    if config["packed"]:
        guarded["packed"] = guard_output((inputs.w.numel(),), (1,), inputs.w.dtype)
    tensors = dict.fromkeys(given) | {name: placed.tensor for name, placed in guarded.items()}
    with program_order(order):
        SOLVER.launch(problem, tensors, config, numbers)
    for name, placed in guarded.items():
        placed.check(name, written=name in ("y", "packed"))
    return guarded["y"].tensor


def check_case(case: Case, orders: tuple[str, ...] | None = None) -> None:
    """Assert that the kernel computes `case`, the same bits in every program order."""
    inputs = Inputs(case)
    problem = inputs.problem()
    first, *others = orders or ("forward", ORDERS[1 + len(case.id) % 2])
    result = launch(inputs, problem, first)
    check(result, inputs.emulated(), problem.reduction_length, case.dtype)
    for order in others:
        other = launch(inputs, problem, order)
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), order
