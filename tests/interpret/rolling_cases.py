"""Cases of the rolling kernel: every combination of pass, dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import runs_cases
import torch
from fprop_cases import as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

from gpuconv import numerics
from gpuconv.backends.triton.conv_rolling import ForwardRolling, GradientRolling
from gpuconv.backends.triton.rolling_costs import rolled
from gpuconv.backends.triton.runs_axes import forward_of
from gpuconv.problem import ConvProblem

SOLVERS = {"fprop": ForwardRolling(), "dgrad": GradientRolling(), "transposed": GradientRolling()}

KINDS = tuple(SOLVERS)

DTYPES = ("float16", "bfloat16")

LAYOUTS = ("channels_last", "contiguous weights", "gaps")
"""Of x and w; "gaps" has every other channel of rows that are apart, of both and of the residual."""

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"pads": (1, 1)},
    "two blocks of channels": {"c": 48, "k": 20, "pads": (1, 0), "size": {1: 20, 2: (4, 6), 3: (2, 3, 4)}},
    "many channels": {"c": 64, "k": 5, "pads": (1, 1), "size": {1: 12, 2: (3, 5), 3: (2, 3, 3)}, "n": 1},
    "asymmetric": {"kernel": {1: 4, 2: (5, 3), 3: (2, 3, 2)}, "pads": (0, 3)},
    "two rows": {"kernel": {1: 2, 2: (2, 4), 3: (2, 1, 2)}, "pads": (1, 0), "k": 33},
    "long": {"kernel": {1: 7, 2: (7, 1), 3: (1, 6, 1)}, "pads": {1: (3, 3), 2: (3, 3), 3: (2, 2)}},
    "eight rows": {"kernel": {1: 8, 2: (2, 8), 3: (1, 1, 8)}, "pads": (4, 3)},
    "nine rows, dilated": {"kernel": {1: 9, 2: (9, 1), 3: (1, 2, 9)}, "dilation": {1: 3, 2: (2, 1), 3: (1, 2, 2)},
                           "pads": (9, 8)},
    "eleven rows": {"kernel": {1: 11, 2: (2, 11), 3: (1, 1, 11)}, "pads": (5, 5), "bias": True},
    "thirteen rows": {"kernel": {1: 13, 2: (13, 2), 3: (1, 13, 1)}, "pads": (6, 7), "k": 33},
    "sixteen rows": {"kernel": {1: 16, 2: (16, 1), 3: (2, 1, 16)}, "pads": (7, 8), "index64": True},
    "across": {"kernel": {1: 5, 2: (1, 5), 3: (1, 3, 5)}, "pads": (2, 1)},
    "dilated": {"dilation": {1: 3, 2: (2, 3), 3: (2, 3, 2)}, "pads": (2, 3), "size": {1: 29, 2: (9, 13), 3: (5, 4, 6)}},
    "dilation over size": {"dilation": {1: 9, 2: (6, 2), 3: (4, 2, 1)}, "pads": (8, 8),
                           "size": {1: 6, 2: (4, 5), 3: (3, 3, 4)}},
    "padding over the window": {"pads": (5, 4), "size": {1: 9, 2: (3, 4), 3: (2, 3, 2)}},
    "kernel over input": {"size": {1: 4, 2: (2, 3), 3: (1, 2, 3)}, "kernel": {1: 7, 2: (3, 4), 3: (2, 3, 3)},
                          "pads": (3, 2)},
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1),
                 "k": 24},
    "relu": {"bias": True, "residual": True, "activation": "relu", "kernel": 3, "pads": (1, 0), "k": 7},
    "64-bit": {"index64": True, "pads": (1, 1), "bias": True},
    "64-bit, dilated": {"index64": True, "dilation": 2, "pads": (2, 2), "residual": True, "k": 32},
    "one filter": {"k": 1, "kernel": {1: 7, 2: 3, 3: 3}, "pads": (1, 1)},
    "one image, one row": {"n": 1, "size": {1: 9, 2: (1, 9), 3: (1, 1, 9)}, "pads": (1, 1), "kernel": 3},
}  # fmt: skip

STRIDED: dict[str, dict[str, Any]] = {
    "stride across": {"stride": {1: 1, 2: (1, 2), 3: (2, 1, 3)}, "pads": (1, 1), "kernel": 3},
    "stride down": {"stride": {1: 1, 2: (3, 1), 3: (2, 2, 1)}, "kernel": {1: 3, 2: (3, 2), 3: (3, 1, 2)},
                    "pads": (1, 2)},
}  # fmt: skip
"""Of the forward pass alone, which moves on by more along the axes that it does not go down."""


@dataclass(frozen=True)
class Case(runs_cases.Case):
    """One pass of one problem; sizes follow from the branch."""

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        default = {"c": 16, "size": {1: 29, 2: (6, 9), 3: (3, 4, 5)}[self.ndim]}.get(name, default)
        value = (BRANCHES | STRIDED)[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value


def all_cases() -> list[Case]:
    """Return the cases: each (pass, dims, layout, dtype) has two branches in rotation, every branch has each pass."""
    names = list(BRANCHES)
    cases = []
    for number, (kind, ndim, layout, dtype) in enumerate(product(KINDS, (1, 2, 3), LAYOUTS, DTYPES)):
        some = (names[(2 * number + number // 9 + step) % len(names)] for step in range(2))
        cases += [Case(ndim, layout, dtype, branch, kind) for branch in some]
    for number, (branch, kind) in enumerate(product(names, KINDS)):
        place = number + number // 3
        cases.append(Case(1 + place % 3, LAYOUTS[place // 2 % 3], DTYPES[place % 2], branch, kind))
    for number, (branch, ndim) in enumerate(product(STRIDED, (1, 2, 3))):
        cases.append(Case(ndim, LAYOUTS[number % 3], DTYPES[number % 2], branch))
    return list(dict.fromkeys(cases))


def with_gaps(values: torch.Tensor) -> torch.Tensor:
    """Return `values` channels-last, in rows that are five channels apart."""
    last = values.movedim(1, -1)
    return torch.cat([last, last[..., :5]], -1).contiguous()[..., : values.shape[1]].movedim(-1, 1)


class Inputs(runs_cases.Inputs):
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        super().__init__(case, integers)
        self.y = with_layout(self.y, "channels_last")
        if case.layout == "gaps":
            self.x, self.w, self.y = (with_gaps(tensor) for tensor in (self.x, self.w, self.y))
            if self.epilogue.get("residual") is not None:
                self.epilogue["residual"] = with_gaps(self.epilogue["residual"])
        else:
            self.x = with_layout(self.x, "channels_last")

    def problem(self) -> ConvProblem:
        """Return the problem of the case, with channels-last tensors, whatever those of size 1 are taken for."""
        kind = "fprop" if self.case.kind == "fprop" else "dgrad"
        problem = self.call(f"triton.conv.{kind}.implicit_gemm", explain=True).problem
        return replace(problem, x_format="channels_last", y_format="channels_last")


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis, with options by turns."""
    turn, forward, rows = sum(map(ord, case.id)), forward_of(problem), rolled(problem).rows
    whole = 1 << (rows - 1).bit_length()
    split = whole > rows and turn % 2 == 0
    depths = [side for side in (16, 32, 64) if forward.c % side == 0]
    return {
        "BLOCK_M": (16, 32)[turn // 2 % 2], "BLOCK_N": (16, 32)[turn // 3 % 2], "BLOCK_K": depths[turn % len(depths)],
        "ROWS": whole // 2 if split else whole, "MORE": 1 << (rows - whole // 2 - 1).bit_length() if split else 0,
        "steps": 1 + turn % 4, "INDEX64": case.option("index64", False), "num_warps": 1, "num_stages": 1,
    }  # fmt: skip


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernel of the case between guard bands; inputs must stay, and the result be written whole."""
    config, solver, result = config or config_of(inputs.case, problem), SOLVERS[inputs.case.kind], problem.result
    assert not solver.parts(solver.bind(problem, config))
    guarded: dict[str, Guarded] = {name: guard_input(getattr(inputs, name)) for name in "xwy" if name != result}
    guarded |= {k: guard_input(v) for k, v in inputs.epilogue.items() if isinstance(v, torch.Tensor)}
    given = getattr(inputs, result)
    guarded[result] = guard_output(given.shape, given.stride(), given.dtype)
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    with program_order(order):
        solver.launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name == result)
    return guarded[result].tensor


def check_case(case: Case, orders: tuple[str, ...] | None = None) -> None:
    """Assert that the kernel computes `case` within tolerance; every third twice, the same bits in another order."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    first, *others = orders or ("forward", *ORDERS[1 : 1 + (sum(map(ord, case.id)) % 3 == 0)])
    result = launch(inputs, problem, first)
    numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
    for order in others:
        other = launch(inputs, problem, order)
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
