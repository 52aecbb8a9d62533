"""Cases of the depthwise kernels: every combination of dims, layout, dtype and pass, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np
import torch
from fprop_cases import DTYPES, LAYOUTS, as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton.conv_collect import CollectDepthwise
from gpuconv.backends.triton.conv_march import MarchDepthwise
from gpuconv.backends.triton.march_lanes import march_of
from gpuconv.problem import ConvProblem

SOLVERS = {
    "fprop": MarchDepthwise(),
    "dgrad": MarchDepthwise(),
    "transposed": MarchDepthwise(),
    "wgrad": CollectDepthwise(),
}

SIZES = {1: 29, 2: (7, 14), 3: (2, 4, 9)}

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"pads": (1, 1)},
    "vectors": {"size": {1: 40, 2: (6, 24), 3: (3, 4, 16)}, "pads": (1, 1), "c": 24},
    "asymmetric": {"kernel": {1: 4, 2: (3, 5), 3: (1, 2, 3)}, "pads": (0, 2)},
    "stride 2": {"stride": 2, "pads": (1, 1)},
    "stride 2, even": {"stride": 2, "kernel": {1: 4, 2: 4, 3: 2}, "pads": (1, 0)},
    "stride 3": {"stride": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "kernel": 3, "pads": (2, 1)},
    "stride over kernel": {"stride": {1: 4, 2: (4, 3), 3: (2, 3, 4)}, "kernel": 2, "pads": (0, 1)},
    "dilated": {"dilation": {1: 3, 2: (2, 3), 3: (1, 2, 2)}, "pads": (2, 3)},
    "dilated, stride 3": {"stride": {1: 3, 2: (3, 1), 3: (1, 3, 1)}, "dilation": 2, "pads": (2, 2)},
    "stride and dilation with a divisor": {
        "stride": {1: 2, 2: 2, 3: (1, 2, 2)}, "dilation": {1: 2, 2: (1, 2), 3: (1, 1, 4)}, "pads": (3, 3),
        "size": {1: 32, 2: (6, 16), 3: (2, 4, 16)},
    },
    "multiplier": {"multiplier": 3, "c": 5, "pads": (1, 0)},
    "multiplier, stride 2": {"multiplier": 2, "c": 9, "stride": 2, "pads": (1, 2)},
    "long": {"kernel": {1: 7, 2: (5, 1), 3: (1, 4, 1)}, "pads": (3, 3)},
    "epilogue": {
        "bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1),
        "size": {1: 32, 2: (6, 16), 3: (3, 4, 8)},
    },
    "relu": {"bias": True, "residual": True, "activation": "relu", "stride": {1: 2, 2: 2, 3: 1}, "pads": (1, 0)},
    "64-bit": {"index64": True, "pads": (1, 1), "stride": {1: 1, 2: (2, 1), 3: (2, 1, 1)}, "bias": True},
    "64-bit, vectors": {
        "index64": True, "size": {1: 24, 2: (5, 16), 3: (2, 4, 8)}, "pads": (1, 1), "multiplier": 2, "c": 4,
    },
    "kernel over input": {
        "size": {1: 4, 2: (2, 3), 3: (1, 2, 3)}, "kernel": {1: 7, 2: (3, 4), 3: (2, 3, 3)}, "pads": (3, 2),
    },
    "depth": {
        "kernel": {1: 2, 2: 2, 3: (3, 2, 2)}, "stride": {1: 1, 2: 1, 3: (2, 1, 1)},
        "dilation": {1: 2, 2: 1, 3: (3, 1, 1)}, "size": {1: 30, 2: (7, 9), 3: (9, 4, 5)}, "pads": (2, 1),
    },
    "depth, shared divisor": {
        "kernel": {1: 2, 2: 2, 3: (3, 2, 2)}, "stride": {1: 1, 2: 1, 3: (4, 1, 1)},
        "dilation": {1: 3, 2: 1, 3: (2, 1, 1)}, "size": {1: 30, 2: (7, 9), 3: (11, 4, 5)}, "pads": (2, 1),
    },
    "one by one": {"kernel": 1, "stride": {1: 2, 2: (1, 2), 3: (2, 1, 2)}},
    "one channel": {"c": 1, "multiplier": 6, "pads": (1, 1)},
}  # fmt: skip

OF_GRADIENTS: dict[str, dict[str, Any]] = {
    "stride 2, vectors": {"stride": 2, "pads": (1, 1), "size": {1: 48, 2: (5, 24), 3: (2, 4, 16)}},
    "stride 3, vectors": {"stride": 3, "kernel": 4, "pads": (2, 1), "size": {1: 24, 2: (6, 12), 3: (3, 5, 12)}},
    "stride over kernel, vectors": {
        "stride": 4, "kernel": 2, "pads": (1, 1), "size": {1: 40, 2: (6, 16), 3: (4, 5, 8)},
    },
    "epilogue, stride 2, vectors": {
        "bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "multiplier": 2, "c": 5,
        "stride": 2, "kernel": {1: 5, 2: (3, 5), 3: 2}, "pads": (1, 1), "size": {1: 48, 2: (5, 24), 3: (2, 4, 16)},
    },
}  # fmt: skip
"""Branches of contiguous gradients alone, whose lanes write vectors of the columns that phases of a stride give."""


@dataclass(frozen=True)
class Case:
    """One pass of one depthwise problem; sizes follow from the branch."""

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
        value = (BRANCHES | OF_GRADIENTS)[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return the option for each axis."""
        value = self.option(name, default)
        return tuple(value) if isinstance(value, tuple) else (value,) * self.ndim


def all_cases() -> list[Case]:
    """Return the cases: each (dims, layout, dtype, pass) has two branches in rotation."""
    names = list(BRANCHES)
    cases = []
    for number, (kind, ndim, layout, dtype) in enumerate(product(SOLVERS, (1, 2, 3), LAYOUTS, DTYPES)):
        for step in range(2):
            branch = names[(2 * number + number // 7 + step) % len(names)]
            refused = kind in ("dgrad", "transposed") and branch == "stride and dilation with a divisor"
            cases += [] if refused else [Case(kind, ndim, layout, dtype, branch)]
    for number, (kind, ndim, branch) in enumerate(product(("dgrad", "transposed"), (1, 2, 3), OF_GRADIENTS)):
        dtype = list(DTYPES)[(number + number // 4) % len(DTYPES)]
        cases.append(Case(kind, ndim, "contiguous", dtype, branch))
    return list(dict.fromkeys(cases))


class Inputs:
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim = case.ndim
        # The interpreter takes a minute for weight gradients of many channels and 27 taps.
        c, multiplier, n = (
            case.option("c", 7 if (case.kind, ndim) == ("wgrad", 3) else 19),
            case.option("multiplier", 1),
            case.option("n", 2),
        )
        size = case.axes("size", SIZES[ndim])
        kernel = case.axes("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(DTYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DTYPES[case.dtype])

        layout = "channels_last" if case.layout == "contiguous weights" else case.layout
        self.x = with_layout(draw(n, c, *size), "contiguous" if layout == "mixed" else layout)
        self.w = with_layout(draw(c * multiplier, 1, *kernel), "channels_last" if layout == "mixed" else case.layout)
        self.geometry = {
            "stride": case.axes("stride", 1), "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.axes("dilation", 1), "groups": c,
        }  # fmt: skip
        y = getattr(gpuconv, f"conv{ndim}d")(self.x.double(), self.w.double(), backend="numpy", **self.geometry)
        self.y = with_layout(draw(*y.shape), "contiguous" if layout == "mixed" else layout)
        of_result = {"fprop": (c * multiplier, y.shape), "transposed": (c, self.x.shape)}
        self.epilogue: dict[str, Any] = {}
        if case.kind in of_result:
            channels, shape = of_result[case.kind]
            self.epilogue = {name: draw(channels) for name in ("bias", "scale", "shift") if case.option(name, False)}
            if case.option("residual", False):
                self.epilogue["residual"] = with_layout(draw(*shape), "contiguous" if layout == "mixed" else layout)
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
        return (
            gpuconv.explain(function, *arguments, **options, **epilogue)
            if explain
            else function(*arguments, **options, **epilogue)
        )

    def problem(self) -> ConvProblem:
        """Return the problem of the case."""
        solver = SOLVERS[self.case.kind]
        explanation = self.call(solver.id, explain=True)
        assert explanation.solver == solver.id, explanation
        return explanation.problem

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
    march, turn = march_of(problem), sum(map(ord, case.id))
    config: dict[str, Any] = {"steps": 3 + turn % 3, "num_warps": 1, "num_stages": 1}
    config |= {"INDEX64": case.option("index64", False)}
    columns = march.columns
    if case.kind == "wgrad":
        config |= {"UNROLL": 1 + turn % 2, "splits": (1, 3, 4)[turn % 3]}
        config["steps"] = 2 * config["steps"]
    else:
        config["AHEAD"] = turn // 2 % 2
    if march.over_channels:
        wide = 1 if march.result_size[2] == 1 else columns.writes * 2
        return config | {"TQ": wide, "TT": 1 if wide == 1 else 4, "BC": (32, 16)[turn % 4 == 0]}
    plain = columns.writes == 1  # the arguments know whether columns come in vectors
    tq = 8 if plain else 4 * columns.writes if case.branch in OF_GRADIENTS else 2 * columns.writes
    vec = gcd(8, tq * columns.reads, march.source_size[2]) if plain else 1
    vo = gcd((2, 4, 8)[turn % 3], tq, march.result_size[2])
    return config | {"TQ": tq, "LANES": (64, 128)[turn % 2], "VEC": vec, "VO": vo}


def launch(
    inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None, solver: Any = None
) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    case, solver = inputs.case, solver or SOLVERS[inputs.case.kind]
    config = config or config_of(case, problem)
    written = problem.result
    given = {"x": inputs.x, "w": inputs.w, "y": inputs.y}
    guarded: dict[str, Guarded] = {}
    for name, tensor in given.items():
        if name == written:
            guarded[name] = guard_output(tensor.shape, tensor.stride(), tensor.dtype)
        else:
            guarded[name] = guard_input(tensor)
    guarded |= {k: guard_input(v) for k, v in inputs.epilogue.items() if isinstance(v, torch.Tensor)}
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    names = {written}
    for name, (dtype, elements) in solver.parts(solver.bind(problem, config)).items():
        guarded[name] = guard_output((elements,), (1,), getattr(torch, dtype))
        tensors[name] = guarded[name].tensor
        names.add(name)
    with program_order(order):
        solver.launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in names)
    return guarded[written].tensor


def check_case(case: Case) -> None:
    """Assert that the kernels compute `case` within tolerance; every third twice, the same bits in another order."""
    inputs = Inputs(case)
    problem = inputs.problem()
    reference, magnitude = inputs.reference()
    result = launch(inputs, problem, "forward")
    numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
    if sum(map(ord, case.id)) % 3 == 0:
        other = launch(inputs, problem, ORDERS[1 + len(case.id) % 2])
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
