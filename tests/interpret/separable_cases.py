"""Cases of the kernel of depthwise and pointwise convolutions: layouts, dtypes, and branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from fprop_cases import DTYPES, LAYOUTS, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv.backends.triton.conv_separable import FusedSeparable
from gpuconv.problem import SeparableProblem

SOLVER = FusedSeparable()
OPERATION = gpuconv.depthwise_separable_conv2d

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2, "padding": 1, "size": (11, 14)},
    "strides apart": {"stride": (1, 3), "padding": (2, 0), "kernel": (2, 4), "size": (9, 16)},
    "dilation": {"dilation": 2, "padding": 2, "size": (10, 11)},
    "dilations apart": {"dilation": (3, 2), "stride": (2, 3), "padding": ((1, 2), (0, 3)), "size": (14, 17)},
    "epilogue": {"biases": True, "between": "relu6", "activation": "silu", "residual": True, "padding": 1},
    "between": {"biases": True, "between": "gelu", "padding": "same"},
    "multiplier": {"multiplier": 3, "padding": 1, "c": 7},
    "wide": {"c": 40, "k": 37, "padding": 1},
    "even": {"c": 32, "k": 32, "padding": 1, "size": (8, 8), "biases": True},
    "five": {"kernel": 5, "padding": 2},
    "row": {"kernel": (1, 7), "padding": (0, 3)},
    "one by one": {"kernel": 1, "k": 3},
    "one position": {"size": (3, 3), "n": 3},
    "64-bit": {"index64": True, "biases": True, "residual": True, "stride": (2, 1), "padding": 1},
}


@dataclass(frozen=True)
class Case:
    """One problem; sizes follow from the branch."""

    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`."""
        return BRANCHES[self.branch].get(name, default)


def all_cases() -> list[Case]:
    """Return the cases: each branch in four layouts, types in rotation."""
    dtypes = [name for name in DTYPES if name != "float64"]
    return [
        Case(LAYOUTS[(number + number // 5) % len(LAYOUTS)], dtypes[(number + number // 4) % len(dtypes)], branch)
        for number, (branch, _) in enumerate(product(BRANCHES, range(4)))
    ]


class Inputs:
    """Arguments of a case, drawn from its name."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-2, 3, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        n, c, k = case.option("n", 2), case.option("c", 20), case.option("k", 19)
        m, kernel, size = c * case.option("multiplier", 1), case.option("kernel", 3), case.option("size", (7, 9))
        r, s = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        layout = "channels_last" if case.layout == "contiguous weights" else case.layout
        of_weights = "channels_last" if case.layout == "mixed" else case.layout
        geometry = {name: case.option(name, default) for name, default in _GEOMETRY.items()}
        self.options = geometry | {name: case.option(name, None) for name in ("between", "activation")}
        self.tensors = {
            "input": with_layout(draw(n, c, *size), layout),
            "depthwise_weight": with_layout(draw(m, 1, r, s), of_weights),
            "pointwise_weight": with_layout(draw(k, m, 1, 1), of_weights),
        }
        if case.option("biases", False):
            self.tensors |= {"depthwise_bias": draw(m), "pointwise_bias": draw(2 * k)[::2]}
        if case.option("residual", False):
            self.tensors["residual"] = with_layout(draw(*self.call("numpy").shape), layout)

    def call(self, backend: str, cast: Any = lambda tensor: tensor, explain: bool = False) -> Any:
        """Run or explain the case through the public function."""
        options = {name: cast(tensor) for name, tensor in self.tensors.items()} | self.options | {"backend": backend}
        return gpuconv.explain(OPERATION, **options) if explain else OPERATION(**options)

    def problem(self) -> SeparableProblem:
        """Return the problem of the case."""
        explanation = self.call(SOLVER.id, explain=True)
        assert explanation.solver == SOLVER.id, explanation
        return explanation.problem

    def unfused(self) -> torch.Tensor:
        """Return what the two steps compute in the type of the case, by the reference."""
        return self.call("numpy")


_GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}


def config_of(case: Case) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis, with options by turns."""
    turn = sum(map(ord, case.id))
    cols = (1, 2, 4)[turn % 3]
    return {
        "BLOCK_M": (16, 32)[turn // 2 % 2], "BLOCK_N": 16, "BLOCK_C": 16, "TILE_Q": max((2, 4, 8)[turn // 3 % 3], cols),
        "COLS": cols, "INDEX64": case.option("index64", False), "num_warps": 1, "num_stages": 1,
    }  # fmt: skip


_NAMES = {
    "x": "input", "w": "depthwise_weight", "pointwise": "pointwise_weight", "bias": "depthwise_bias",
    "pointwise_bias": "pointwise_bias", "residual": "residual",
}  # fmt: skip


def launch(inputs: Inputs, problem: SeparableProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernel of the case between guard bands; inputs must stay, and the result be written whole."""
    given = {name: inputs.tensors.get(argument) for name, argument in _NAMES.items()}
    guarded: dict[str, Guarded] = {name: guard_input(tensor) for name, tensor in given.items() if tensor is not None}
    result = with_layout(torch.empty(problem.result_shape), problem.result_format)
    guarded["y"] = guard_output(result.shape, result.stride(), DTYPES[inputs.case.dtype])
    tensors = dict.fromkeys(given) | {name: placed.tensor for name, placed in guarded.items()}
    with program_order(order):
        SOLVER.launch(problem, tensors, config or config_of(inputs.case))
    for name, placed in guarded.items():
        placed.check(name, written=name == "y")
    return guarded["y"].tensor


def check_case(case: Case, orders: tuple[str, ...] | None = None) -> None:
    """Assert that the kernel computes what the two steps do, the same bits in two program orders."""
    inputs = Inputs(case)
    problem = inputs.problem()
    first, *others = orders or ("forward", ORDERS[1 + len(case.id) % 2])
    result = launch(inputs, problem, first)
    expected, exact = inputs.unfused(), inputs.call("numpy", torch.Tensor.double)
    # A sum that rounds the other way between the steps is a rounding of one operand of the second.
    allowed = 4 * torch.finfo(expected.dtype).eps * (exact.abs() + _magnitude(inputs))
    assert ((result.double() - exact).abs() <= allowed).all()
    assert ((result.double() - expected.double()).abs() <= 2 * allowed).all()
    for order in others:
        other = launch(inputs, problem, order)
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _magnitude(inputs: Inputs) -> torch.Tensor:
    """Return the second step of the magnitudes of the first: what a rounding between the steps is a fraction of."""
    given = {name: tensor.double().abs() for name, tensor in inputs.tensors.items()}
    options = inputs.options | {"between": None, "activation": None}
    return OPERATION(**given, **options, backend="numpy")
