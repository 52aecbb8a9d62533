"""Cases of the weight gradient over runs: every combination of dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from fprop_cases import DTYPES, LAYOUTS, as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton.conv_runs_wgrad import GradientOfRuns
from gpuconv.backends.triton.runs_wgrad_axes import gradient_of, tile_of
from gpuconv.problem import ConvProblem
from gpuconv.shapes import ceil_div

SOLVER = GradientOfRuns()

SIZES = {1: 29, 2: (7, 13), 3: (4, 5, 6)}
SMALL = {2: (4, 5), 3: (6, 2, 3)}

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"pads": (1, 1)},
    "stem": {"size": {1: 40, 2: (11, 16), 3: (3, 7, 10)}, "kernel": {1: 7, 2: 7, 3: (1, 7, 7)},
             "stride": {1: 2, 2: 2, 3: (1, 2, 2)}, "pads": {1: (3, 3), 2: (3, 3), 3: (3, 3)}},
    "stride 2": {"stride": 2, "pads": (1, 1), "size": {1: 32, 2: (8, 12), 3: (5, 6, 8)}, "k": 24},
    "stride 2, odd": {"stride": 2, "pads": (1, 0), "k": 5},
    "patches": {"stride": {1: 4, 2: 4, 3: (2, 4, 4)}, "kernel": {1: 4, 2: 4, 3: (2, 4, 4)}, "k": 40,
                "size": {1: 48, 2: (8, 16), 3: (4, 8, 8)}},
    "four channels": {"c": 4, "pads": (1, 1), "size": {1: 32, 2: (6, 8), 3: (3, 4, 8)}, "k": 32},
    "one channel": {"c": 1, "pads": (1, 1)},
    "one channel, stem": {"c": 1, "stride": 2, "kernel": {1: 7, 2: 5, 3: 3}, "pads": (2, 1),
                          "size": {1: 40, 2: (8, 16), 3: (4, 6, 8)}},
    "two to two": {"c": 2, "k": 2, "pads": (1, 1)},
    "sixteen": {"c": 16, "k": 16, "pads": (1, 1), "size": {1: 16, 2: (5, 6), 3: (3, 4, 4)}, "n": 1},
    "thirty-two": {"c": 32, "k": 8, "pads": (1, 1), "size": {1: 16, 2: (4, 6), 3: (3, 3, 4)}, "n": 1},
    "seven": {"c": 7, "kernel": {1: 5, 2: (3, 2), 3: (2, 1, 3)}, "pads": (1, 0)},
    "asymmetric": {"kernel": {1: 4, 2: (3, 5), 3: (1, 2, 3)}, "pads": (0, 2)},
    "stride over kernel": {"stride": {1: 4, 2: (4, 3), 3: (2, 3, 4)}, "kernel": 2, "pads": (0, 1)},
    "strides apart": {"stride": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "kernel": 3, "pads": (2, 1)},
    "rows alone": {"kernel": {1: 1, 2: (5, 1), 3: (1, 4, 1)}, "pads": {1: (0, 0), 2: (0, 0), 3: (0, 0)}},
    "kernel over input": {"size": {1: 4, 2: (2, 3), 3: (1, 2, 3)}, "kernel": {1: 7, 2: (3, 4), 3: (2, 3, 3)},
                          "pads": (3, 2)},
    "depth": {"kernel": {1: 3, 2: 3, 3: (3, 2, 2)}, "stride": {1: 1, 2: 1, 3: (2, 1, 1)},
              "dilation": {1: 1, 2: 1, 3: (3, 1, 1)}, "size": {1: 30, 2: (7, 9), 3: (9, 3, 4)}, "pads": (2, 1)},
    "depth of x": {"kernel": {1: 3, 2: 3, 3: (3, 2, 2)}, "dilation": {1: 1, 2: 1, 3: (2, 1, 1)}, "fixed": True,
                   "size": {1: 30, 2: (7, 9), 3: (7, 3, 4)}, "pads": (2, 1), "c": 4},
    "few filters": {"c": 20, "k": 1, "swapped": True, "pads": (1, 1)},
    "few filters, far": {"c": 16, "k": 3, "swapped": True, "pads": (0, 2),
                         "kernel": {1: 7, 2: (2, 4), 3: (1, 2, 3)}},
    "few filters, deep": {"c": 9, "k": 2, "swapped": True, "kernel": {1: 5, 2: 3, 3: (3, 2, 2)},
                          "dilation": {1: 1, 2: 1, 3: (2, 1, 1)}, "pads": (2, 1),
                          "size": {1: 30, 2: (6, 9), 3: (6, 4, 5)}},
    "64-bit": {"index64": True, "pads": (1, 1), "stride": {1: 1, 2: (2, 1), 3: (2, 1, 1)}},
    "64-bit, stem": {"index64": True, "stride": 2, "kernel": {1: 7, 2: 5, 3: 3}, "pads": (2, 2), "k": 32},
    "64-bit, few filters": {"index64": True, "c": 12, "k": 2, "swapped": True, "pads": (1, 0)},
    "one image, one row": {"n": 1, "size": {1: 9, 2: (1, 9), 3: (1, 1, 9)}, "pads": (1, 1), "kernel": 3},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One weight gradient; sizes follow from the branch."""

    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    @property
    def turn(self) -> int:
        """A number by which options come by turns."""
        return sum(map(ord, self.id))

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = BRANCHES[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return the option for each axis."""
        value = self.option(name, default)
        return tuple(value) if isinstance(value, tuple) else (value,) * self.ndim


def all_cases() -> list[Case]:
    """Return the cases: each (dims, layout, dtype) has two branches in rotation, and each branch other layouts."""
    names = list(BRANCHES)
    cases = []
    for number, (ndim, layout, dtype) in enumerate(product((1, 2, 3), LAYOUTS, DTYPES)):
        cases += [Case(ndim, layout, dtype, names[(3 * number + number // 8 + step) % len(names)]) for step in range(2)]
    for number, (branch, ndim) in enumerate(product(names, (2, 3))):
        dtype = ("bfloat16", "float16", "float32")[number // 2 % 3]
        cases.append(Case(ndim, LAYOUTS[(number + number // 5) % len(LAYOUTS)], dtype, branch))
    return list(dict.fromkeys(cases))


class Inputs:
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False, small: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(case.turn)
        ndim, c, k = case.ndim, case.option("c", 3), case.option("k", 19)
        size = SMALL[ndim] if small else case.axes("size", SIZES[ndim])
        n, kernel = 1 if small else case.option("n", 2), case.axes("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        of_x, of_y, of_w = {
            "mixed": ("contiguous", "channels_last", "channels_last"),
            "contiguous weights": ("channels_last", "channels_last", "contiguous"),
        }.get(case.layout, (case.layout,) * 3)
        self.x = with_layout(draw(n, c, *size), of_x)
        self.w = with_layout(draw(k, c, *kernel), of_w)
        self.geometry = {
            "stride": case.axes("stride", 1), "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.axes("dilation", 1),
        }  # fmt: skip
        y = getattr(gpuconv, f"conv{ndim}d")(self.x.double(), self.w.double(), backend="numpy", **self.geometry)
        self.y = with_layout(draw(*y.shape), of_y)

    def call(self, backend: str | None, cast: Any = lambda tensor: tensor, explain: bool = False) -> Any:
        """Run or explain the case through the public function."""
        arguments = (cast(self.x), tuple(self.w.shape), cast(self.y))
        function = getattr(gpuconv, f"conv{self.case.ndim}d_weight_grad")
        options = {**self.geometry, "backend": backend}
        return gpuconv.explain(function, *arguments, **options) if explain else function(*arguments, **options)

    def problem(self) -> ConvProblem:
        """Return the problem of the case, which the solver must take."""
        explanation = self.call(SOLVER.id, explain=True)
        assert explanation.solver == SOLVER.id, explanation
        return explanation.problem

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the float64 result of the NumPy backend and the magnitude of the tolerance rule."""
        magnitude = self.call("numpy", lambda tensor: tensor.double().abs()).numpy()
        return self.call("numpy", torch.Tensor.double).numpy(), magnitude


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis, with options by turns."""
    turn, swapped = case.turn, case.option("swapped", False)
    runs = gradient_of(problem, swapped)
    fixed = not swapped and runs.stride[:2] == (1, 1) and (case.option("fixed", False) or turn % 3 == 0)
    cols, lines = (1, 2, 4)[turn // 2 % 3], (1, 2, 4)[turn // 3 % 3]
    config = {
        "SWAPPED": swapped, "FIXED_RUNS": fixed, "COLS": cols, "LINES": lines,
        "KB": runs.filters if runs.filters < 16 or turn % 2 else 16,
        "PER": min(1 + turn // 5 % 3, ceil_div(runs.lines, lines)), "BM": 16, "steps": 1 + turn % 3,
        "splits": 1, "num_warps": 1, "num_stages": 1 + turn // 7 % 2,
        "INDEX64": case.option("index64", False),
    }  # fmt: skip
    tile = tile_of(problem, config)
    items = ceil_div(tile.lanes, 16) * ceil_div(tile.positions[1], config["steps"])
    return config | {"splits": min((1, 2, 3, 5)[turn % 4], items)}


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    config = config or config_of(inputs.case, problem)
    guarded: dict[str, Guarded] = {name: guard_input(getattr(inputs, name)) for name in ("x", "y")}
    guarded["w"] = guard_output(inputs.w.shape, inputs.w.stride(), inputs.w.dtype)
    ((dtype, elements),) = SOLVER.parts(SOLVER.bind(problem, config)).values()
    guarded["workspace"] = guard_output((elements,), (1,), getattr(torch, dtype))
    with program_order(order):
        SOLVER.launch(problem, {name: placed.tensor for name, placed in guarded.items()}, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in ("w", "workspace"))
    return guarded["w"].tensor


def check_case(case: Case, orders: tuple[str, ...] | None = None) -> None:
    """Assert that the kernels compute `case` within tolerance, the same bits in two program orders."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    first, *others = orders or ("forward", ORDERS[1 + len(case.id) % 2])
    result = launch(inputs, problem, first)
    numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
    for order in others:
        other = launch(inputs, problem, order)
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
