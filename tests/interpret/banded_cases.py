"""Cases of the banded kernels: every combination of dims, layout, dtype and pass, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import depthwise_cases
import torch
from fprop_cases import LAYOUTS, as_numpy
from harness import ORDERS

from gpuconv import numerics
from gpuconv.backends.triton.banded_blocks import banded_of
from gpuconv.backends.triton.conv_banded import BandedDepthwise, refusal
from gpuconv.problem import ConvProblem

SOLVER = BandedDepthwise()

KINDS = ("fprop", "dgrad", "transposed")

DTYPES = ("float16", "bfloat16")

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"kernel": {1: 7, 2: (5, 7)}, "pads": (3, 2), "c": 5},
    "vectors": {"kernel": {1: 9, 2: (7, 5)}, "pads": (3, 2), "size": {1: 48, 2: (9, 24)}, "c": 8},
    "vectors of two": {"kernel": 5, "pads": (1, 3), "size": {1: 46, 2: (7, 18)}, "c": 10},
    "vectors of four, none of the result": {"kernel": {1: 6, 2: (2, 6)}, "size": {1: 36, 2: (6, 20)}, "c": 3},
    "no padding": {"kernel": {1: 8, 2: (3, 6)}, "size": {1: 39, 2: (8, 24)}, "c": 3},
    "padding over the window": {"kernel": {1: 5, 2: (2, 5)}, "pads": (9, 7), "size": {1: 24, 2: (5, 16)}, "c": 8},
    "kernel over input": {"kernel": {1: 13, 2: (5, 9)}, "size": {1: 5, 2: (3, 4)}, "pads": (6, 5), "n": 5, "c": 3},
    "tall": {"kernel": {1: 15, 2: (11, 2)}, "pads": (4, 1), "c": 5},
    "wide": {
        "kernel": {1: 17, 2: (1, 13)}, "dilation": {1: 1, 2: (3, 1)}, "pads": (2, 5), "size": {1: 40, 2: (6, 24)},
        "c": 4,
    },
    "one column": {"kernel": {1: 5, 2: (9, 1)}, "dilation": {1: 1, 2: (1, 2)}, "pads": (2, 1), "c": 8},
    "largest": {"kernel": {1: 31, 2: (31, 31)}, "pads": (15, 15), "size": {1: 40, 2: (5, 16)}, "c": 2, "n": 1},
    "epilogue": {
        "bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "kernel": {1: 7, 2: 5},
        "pads": (2, 2), "size": {1: 32, 2: (6, 16)}, "c": 8,
    },
    "relu": {"bias": True, "residual": True, "activation": "relu", "kernel": {1: 5, 2: (5, 3)}, "pads": (1, 2), "c": 9},
    "64-bit": {"index64": True, "kernel": {1: 5, 2: (3, 5)}, "pads": (1, 1), "bias": True, "residual": True, "c": 5},
    "64-bit, vectors": {"index64": True, "kernel": 5, "size": {1: 24, 2: (5, 16)}, "pads": (2, 2), "c": 8},
    "one channel": {"kernel": {1: 9, 2: (5, 5)}, "c": 1, "pads": (2, 4), "n": 7},
    "one image": {"kernel": {1: 9, 2: (7, 7)}, "n": 1, "c": 24, "size": {1: 64, 2: (3, 5)}, "pads": (3, 3)},
}  # fmt: skip


@dataclass(frozen=True)
class Case(depthwise_cases.Case):
    """One pass of one problem; sizes follow from the branch."""

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.branch].get(name, default)
        if name == "c" and value > 1 and self.layout in ("channels_last", "contiguous weights"):
            return -(-value // 8) * 8
        return value[self.ndim] if isinstance(value, dict) else value


def all_cases() -> list[Case]:
    """Return the cases: each (dims, layout, dtype, pass) has several branches in rotation."""
    names = list(BRANCHES)
    cases = []
    for number, (kind, ndim, layout, dtype) in enumerate(product(KINDS, (1, 2), LAYOUTS, DTYPES)):
        cases += [
            Case(kind, ndim, layout, dtype, names[(2 * number + number // 20 + step) % len(names)]) for step in range(2)
        ]
    return list(dict.fromkeys(cases))


class Inputs(depthwise_cases.Inputs):
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def problem(self) -> ConvProblem:
        """Return the problem of the case, which the solver has nothing against but perhaps its tiles."""
        kind = "fprop" if self.case.kind == "fprop" else "dgrad"
        problem = self.call(f"triton.conv.{kind}.implicit_gemm", explain=True).problem
        assert refusal(problem) is None, refusal(problem)
        return problem


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis and several steps."""
    banded, turn = banded_of(problem), sum(map(ord, case.id))
    tp, tq = (1, 16) if banded.result_size[0] == 1 else ((2, 8), (4, 8), (1, 16))[turn % 3]
    config: dict[str, Any] = {"TP": tp, "TQ": tq, "BM": 16, "num_warps": 1, "num_stages": 1}
    config |= {"INDEX64": case.option("index64", False)}
    if banded.over_channels:
        return config | {"BK": 16}
    return config | {"BK": (16, 32)[turn % 2], "VEC": banded.vec, "VO": banded.vo}


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    return depthwise_cases.launch(inputs, problem, order, config or config_of(inputs.case, problem), SOLVER)


def check_case(case: Case, orders: tuple[str, ...] = ORDERS) -> None:
    """Assert that the kernels compute `case` within tolerance; every third twice, the same bits in another order."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    result = launch(inputs, problem, "forward")
    numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
    if len(orders) > 1 and sum(map(ord, case.id)) % 3 == 0:
        other = launch(inputs, problem, ORDERS[1 + len(case.id) % 2])
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
