"""Cases of the kernel over runs: every combination of pass, dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from fprop_cases import DTYPES, LAYOUTS, as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton.conv_runs import ForwardRuns, GradientRuns
from gpuconv.backends.triton.runs_axes import forward_of, most_columns, most_slices, runs_of
from gpuconv.problem import ConvProblem

SOLVERS = {"fprop": ForwardRuns(), "dgrad": GradientRuns(), "transposed": GradientRuns()}

SIZES = {1: 29, 2: (9, 13), 3: (4, 5, 6)}

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
    "seven": {"c": 7, "kernel": {1: 5, 2: (3, 2), 3: (2, 1, 3)}, "pads": (1, 0)},
    "asymmetric": {"kernel": {1: 4, 2: (3, 5), 3: (1, 2, 3)}, "pads": (0, 2)},
    "stride over kernel": {"stride": {1: 4, 2: (4, 3), 3: (2, 3, 4)}, "kernel": 2, "pads": (0, 1)},
    "strides apart": {"stride": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "kernel": 3, "pads": (2, 1)},
    "rows alone": {"kernel": {1: 1, 2: (5, 1), 3: (1, 4, 1)}, "pads": {1: (0, 0), 2: (0, 0), 3: (0, 0)}},
    "kernel over input": {"size": {1: 4, 2: (2, 3), 3: (1, 2, 3)}, "kernel": {1: 7, 2: (3, 4), 3: (2, 3, 3)},
                          "pads": (3, 2)},
    "one by one": {"kernel": 1, "stride": {1: 2, 2: (1, 2), 3: (2, 1, 2)}},
    "depth": {"kernel": {1: 3, 2: 3, 3: (5, 2, 2)}, "stride": {1: 1, 2: 1, 3: (2, 1, 1)},
              "dilation": {1: 1, 2: 1, 3: (3, 1, 1)}, "size": {1: 30, 2: (7, 9), 3: (11, 3, 4)}, "pads": (2, 1)},
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1),
                 "size": {1: 32, 2: (6, 16), 3: (3, 4, 8)}, "k": 24},
    "relu": {"bias": True, "residual": True, "activation": "relu", "stride": {1: 2, 2: 2, 3: 1}, "pads": (1, 0)},
    "64-bit": {"index64": True, "pads": (1, 1), "stride": {1: 1, 2: (2, 1), 3: (2, 1, 1)}, "bias": True},
    "64-bit, stem": {"index64": True, "stride": 2, "kernel": {1: 7, 2: 5, 3: 3}, "pads": (2, 2),
                     "residual": True, "k": 32},
    "one image, one row": {"n": 1, "size": {1: 9, 2: (1, 9), 3: (1, 1, 9)}, "pads": (1, 1), "kernel": 3},
    "side by side": {"c": 2, "k": 2, "cols": 4, "BLOCK_N": 8, "pads": (1, 1), "kernel": 3, "residual": True,
                     "size": {1: 32, 2: (5, 16), 3: (3, 3, 8)}},
    "side by side, odd": {"c": 4, "k": 4, "cols": 4, "BLOCK_N": 16, "pads": (1, 2), "kernel": 3, "bias": True,
                          "size": {1: 29, 2: (4, 11), 3: (3, 2, 7)}},
    "one filter": {"c": 3, "k": 1, "cols": 8, "BLOCK_N": 8, "pads": (2, 2), "kernel": 5,
                   "size": {1: 32, 2: (5, 16), 3: (2, 5, 8)}},
    "far filters": {"c": 2, "k": 5, "cols": 2, "BLOCK_N": 8, "pads": (1, 1), "kernel": 3, "residual": True,
                    "size": {1: 32, 2: (5, 12), 3: (3, 3, 8)}},
    "shared stem": {"cols": 2, "BLOCK_N": 16, "stride": {1: 2, 2: 2, 3: (1, 2, 2)}, "kernel": {1: 7, 2: 7, 3: 3},
                    "pads": (3, 3), "k": 9, "size": {1: 40, 2: (9, 16), 3: (2, 5, 8)}},
    "64-bit, columns": {"index64": True, "c": 2, "k": 2, "cols": 2, "BLOCK_N": 8, "pads": (1, 1), "kernel": 3,
                        "residual": True},
}  # fmt: skip

PHASES: dict[str, dict[str, Any]] = {
    "phases": {"stride": 2, "pads": (1, 1), "c": 8, "k": 6, "kernel": 3, "size": {1: 40, 2: (8, 12), 3: (4, 6, 8)}},
    "phases, four taps": {"stride": 2, "pads": (1, 1), "k": 3, "kernel": 4, "size": {1: 31, 2: (7, 10), 3: (5, 4, 7)}},
    "phases, odd": {"stride": 2, "pads": (2, 0), "k": 5, "kernel": 3, "c": 4},
    "phases, apart": {"stride": {1: 3, 2: (3, 2), 3: (1, 2, 3)}, "pads": (1, 2), "k": 4,
                      "kernel": {1: 7, 2: (5, 4), 3: (2, 3, 4)}, "size": {1: 40, 2: (11, 9), 3: (3, 5, 8)}},
    "phases over kernel": {"stride": {1: 4, 2: (4, 3), 3: (2, 3, 2)}, "kernel": 2, "pads": (0, 1), "k": 2},
    "phases, patches": {"stride": 2, "kernel": 2, "c": 16, "k": 8, "size": {1: 32, 2: (8, 8), 3: (4, 4, 6)}},
    "phases, epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "k": 3,
                         "stride": 2, "pads": (1, 0), "kernel": 3},
    "phases, 64-bit": {"index64": True, "bias": True, "residual": True, "stride": 2, "pads": (1, 1), "k": 4, "c": 4,
                       "kernel": 3},
    "phases, many": {"c": 40, "k": 2, "stride": 2, "pads": (1, 1), "kernel": 3, "n": 1,
                     "size": {1: 24, 2: (5, 6), 3: (3, 4, 4)}},
    "phases, depth": {"stride": {1: 2, 2: (2, 1), 3: (1, 2, 2)}, "dilation": {1: 1, 2: 1, 3: (2, 1, 1)}, "pads": (1, 1),
                      "k": 4, "size": {1: 30, 2: (7, 9), 3: (7, 4, 5)}, "kernel": 3},
    "phases, one": {"k": 1, "stride": 2, "kernel": 3, "pads": (1, 1)},
    "phases, shared": {"c": 2, "k": 2, "cols": 2, "BLOCK_N": 16, "stride": 2, "pads": (1, 1), "kernel": 3,
                       "residual": True, "size": {1: 32, 2: (6, 12), 3: (3, 4, 8)}},
}  # fmt: skip
"""Of data gradients and transposed convolutions alone; x has channels innermost."""

LAST_RESULT = ("channels_last", "mixed", "contiguous weights")


DTYPES_BY_TURNS = ("float16", "float32", "bfloat16", "float32")


@dataclass(frozen=True)
class Case:
    """One problem for the kernel over runs; sizes follow from the branch."""

    ndim: int
    layout: str
    dtype: str
    branch: str
    kind: str = "fprop"

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.kind}-{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = (BRANCHES | PHASES)[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return the option for each axis."""
        value = self.option(name, default)
        return tuple(value) if isinstance(value, tuple) else (value,) * self.ndim


def all_cases() -> list[Case]:
    """Return the cases: each (dims, layout, dtype) has three branches in rotation, and each branch three layouts."""
    names = list(BRANCHES)
    cases = []
    for number, (ndim, layout, dtype) in enumerate(product((1, 2, 3), LAYOUTS, DTYPES)):
        cases += [Case(ndim, layout, dtype, names[(3 * number + number // 8 + step) % len(names)]) for step in range(2)]
    for number, (branch, ndim) in enumerate(product(names, (2, 3))):
        dtype = ("bfloat16", "float16", "float32")[number // 2 % 3]
        cases.append(Case(ndim, LAYOUTS[(number + number // 5) % len(LAYOUTS)], dtype, branch))
    kinds = ("dgrad", "transposed")
    for number, (ndim, layout, dtype, kind) in enumerate(product((1, 2, 3), LAYOUTS, DTYPES, kinds)):
        turned = [name for name in names if set(Case(ndim, layout, dtype, name).axes("stride", 1)) == {1}]
        branch = turned[(number + number // 8) % len(turned)]
        cases.append(Case(ndim, layout, dtype, branch, kind))
    strided = [*PHASES, "stem", "stride 2", "stride 2, odd", "strides apart", "relu", "shared stem", "64-bit, stem"]
    for number, (branch, ndim) in enumerate(product(strided, (1, 2, 3))):
        layouts = LAYOUTS if branch == "phases, one" else LAST_RESULT
        kind = kinds[number % 2] if branch in PHASES and "residual" not in PHASES[branch] else "transposed"
        cases.append(Case(ndim, layouts[number % len(layouts)], DTYPES_BY_TURNS[number % 4], branch, kind))
    return list(dict.fromkeys(cases))


class Inputs:
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim, c, k = case.ndim, case.option("c", 3), case.option("k", 19)
        if case.kind != "fprop":  # y is what has few channels
            c, k = k, c
        size, kernel = case.axes("size", SIZES[ndim]), case.axes("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        layout = "channels_last" if case.layout == "contiguous weights" else case.layout
        self.x = with_layout(draw(case.option("n", 2), c, *size), layout)
        self.w = with_layout(draw(k, c, *kernel), "channels_last" if layout == "mixed" else case.layout)
        self.geometry = {
            "stride": case.axes("stride", 1), "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.axes("dilation", 1),
        }  # fmt: skip
        y = getattr(gpuconv, f"conv{ndim}d")(self.x.double(), self.w.double(), backend="numpy", **self.geometry)
        self.epilogue: dict[str, Any] = {}
        if case.kind != "dgrad":
            channels, shape = (k, y.shape) if case.kind == "fprop" else (c, self.x.shape)
            self.epilogue = {name: draw(channels) for name in ("bias", "scale", "shift") if case.option(name, False)}
            if case.option("residual", False):
                self.epilogue["residual"] = with_layout(draw(*shape), layout)
            self.epilogue["activation"] = case.option("activation", None)
        # "mixed" weights make results of contiguous inputs channels-last, as torch does
        y = y if case.kind == "fprop" else draw(*y.shape)
        self.y = with_layout(y.to(DTYPES[case.dtype]), "channels_last" if layout == "mixed" else layout)

    def call(self, backend: str | None, cast: Any = lambda tensor: tensor, explain: bool = False) -> Any:
        """Run or explain the case through the public function."""
        epilogue = {name: cast(v) if isinstance(v, torch.Tensor) else v for name, v in self.epilogue.items()}
        options, ndim, kind = {**self.geometry, "backend": backend, **epilogue}, self.case.ndim, self.case.kind
        x, w, y = cast(self.x), cast(self.w), cast(self.y)
        name, arguments = {
            "fprop": (f"conv{ndim}d", (x, w)),
            "dgrad": (f"conv{ndim}d_input_grad", (tuple(x.shape), w, y)),
            "transposed": (f"conv_transpose{ndim}d", (y, w)),
        }[kind]
        if kind == "transposed":
            options["output_size"] = tuple(x.shape[2:])
        function = getattr(gpuconv, name)
        return gpuconv.explain(function, *arguments, **options) if explain else function(*arguments, **options)

    def problem(self) -> ConvProblem:
        """Return the problem of the case."""
        solver = SOLVERS[self.case.kind]
        explanation = self.call(solver.id, explain=True)
        assert explanation.solver == solver.id, explanation
        return explanation.problem

    def reference(self) -> tuple[Any, Any]:
        """Return the float64 result of the NumPy backend and the magnitude of the tolerance rule."""
        reference = self.call("numpy", torch.Tensor.double).numpy()
        activation = self.epilogue.get("activation")
        self.epilogue |= {"activation": None} if activation else {}
        magnitude = self.call("numpy", lambda tensor: tensor.double().abs()).numpy()
        self.epilogue |= {"activation": activation} if activation else {}
        return reference, magnitude * (1.5 if activation else 1.0)


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis, with options by turns."""
    turn = sum(map(ord, case.id))
    forward = forward_of(problem)
    columns = min(case.option("cols", (1, 2, 1, 8)[turn // 5 % 4]), most_columns(forward))
    runs = runs_of(forward, columns)
    slices = [side for side in (1, 2, 4, 8) if side <= most_slices(forward) and runs.depth(side) >= 16]
    return {
        "BLOCK_M": (16, 32)[turn % 2], "BLOCK_N": case.option("BLOCK_N", (16, 8)[turn // 3 % 2]), "COLS": columns,
        "steps": 1 + turn % 3,
        "MERGED": turn % 3 == 0, "UNROLL": runs.open if turn // 2 % 2 else 1, "AHEAD": turn // 4 % 2,
        "SLICES": slices[turn % len(slices)],
        "INDEX64": case.option("index64", False), "num_warps": 1, "num_stages": 1,
    }  # fmt: skip


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    config, solver, result = config or config_of(inputs.case, problem), SOLVERS[inputs.case.kind], problem.result
    guarded: dict[str, Guarded] = {name: guard_input(getattr(inputs, name)) for name in "xwy" if name != result}
    guarded |= {k: guard_input(v) for k, v in inputs.epilogue.items() if isinstance(v, torch.Tensor)}
    given = getattr(inputs, result)
    guarded[result] = guard_output(given.shape, given.stride(), given.dtype)
    ((dtype, elements),) = solver.parts(solver.bind(problem, config)).values()
    guarded["spread"] = guard_output((elements,), (1,), getattr(torch, dtype))
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    with program_order(order):
        solver.launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in (result, "spread"))
    return guarded[result].tensor


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
