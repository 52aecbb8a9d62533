"""Cases of the window pools: every combination of dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import isinf, prod
from typing import Any

import numpy as np
import torch
from fprop_cases import DTYPES, as_numpy
from harness import ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics
from gpuconv.arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from gpuconv.backends.axes import three
from gpuconv.dispatch import select
from gpuconv.problem import PoolProblem
from gpuconv.shapes import effective_kernel

LAYOUTS = ("contiguous", "channels_last", "strided", "permuted")

Branches = dict[str, dict[str, Any]]

_TILED: Branches = {
    "tiled 2 stride 2": {"kernel": 2, "stride": 2},
    "tiled 3 stride 2": {"kernel": 3, "stride": 2, "pads": (1, 1), "ceil": True},
    "tiled 3 stride 1": {"kernel": 3, "stride": 1, "pads": (1, 1), "special": True},
    "tiled in runs": {
        "kernel": 3, "stride": {1: 2, 2: (1, 2), 3: (1, 2, 2)}, "pads": (1, 1), "c": 16, "n": 1, "special": True,
        "size": {1: 96, 2: (7, 32), 3: (2, 5, 32)},
    },
    "tiled runs of stride 1": {
        "kernel": {1: 5, 2: (2, 3), 3: (1, 3, 2)}, "stride": 1, "pads": {1: (2, 2), 2: ((0, 1), (1, 1)), 3: (0, 1)},
        "c": 8, "n": 1, "size": {1: 96, 2: (6, 32), 3: (2, 5, 32)},
    },
    "tiled dilated": {"kernel": 3, "stride": {1: 1, 2: (2, 1), 3: 1}, "dilation": 2, "pads": (1, 1), "special": True},
    "tiled asymmetric": {"kernel": 4, "stride": {1: 3, 2: (3, 2), 3: 2}, "pads": (2, 1), "ceil": True},
    "tiled over input": {
        "kernel": {1: 5, 2: (5, 4), 3: 4}, "stride": 1, "pads": 2, "size": {1: 3, 2: (2, 3), 3: (2, 3, 2)},
        "special": True, "n": 5, "c": 7,
    },
    "tiled stride over kernel": {"kernel": 2, "stride": {1: 4, 2: (3, 4), 3: 3}, "pads": (0, 1), "ceil": True},
    "tiled 64-bit": {"kernel": 3, "stride": 2, "pads": (1, 1), "index64": True, "special": True},
}  # fmt: skip

_GENERAL: Branches = {
    "general 3 stride 2": {"kernel": 3, "stride": 2, "pads": (1, 1), "special": True},
    "general stride 6": {"kernel": 3, "stride": {1: 6, 2: (6, 1), 3: (1, 2, 6)}, "pads": (1, 0), "ceil": True},
    "general dilated": {
        "kernel": {1: 4, 2: (3, 2), 3: 2}, "stride": {1: 2, 2: (1, 3), 3: 2}, "dilation": {1: 4, 2: (2, 5), 3: 3},
        "pads": (1, 1), "special": True,
    },
    "general over input": {
        "kernel": {1: 9, 2: (6, 7), 3: 3}, "stride": 1, "pads": {1: 4, 2: 3, 3: 1},
        "size": {1: 4, 2: (4, 3), 3: (2, 3, 2)}, "n": 3, "c": 7, "special": True,
    },
    "general 64-bit": {"kernel": 3, "stride": 2, "pads": (0, 1), "index64": True, "ceil": True},
}  # fmt: skip

_SEPARABLE: Branches = {
    "separable 7 by 9": {
        "kernel": {2: (7, 9), 3: (3, 2, 5)}, "stride": {2: 2, 3: (1, 1, 2)}, "pads": {2: (3, 3), 3: (1, 1)},
        "ceil": True, "special": True,
    },
    "separable stride 1": {"kernel": {2: (6, 5), 3: (3, 3, 3)}, "stride": 1, "pads": {2: (2, 1), 3: (1, 1)}},
    "separable over input": {
        "kernel": {2: (9, 8), 3: (4, 5, 3)}, "stride": {2: (1, 2), 3: 1}, "pads": {2: 4, 3: ((2, 2), (2, 2), (1, 1))},
        "size": {2: (5, 4), 3: (2, 3, 2)}, "special": True, "n": 3, "c": 7,
    },
    "separable dilated": {
        "kernel": {2: (5, 6), 3: (2, 4, 4)}, "stride": 2, "dilation": {2: (2, 1), 3: (1, 2, 1)}, "pads": (1, 1),
        "special": True,
    },
    "separable 31": {
        "kernel": {2: (31, 31), 3: (1, 31, 29)}, "stride": {2: (2, 3), 3: (1, 3, 4)},
        "pads": {2: 15, 3: ((0, 0), (15, 15), (14, 14))}, "size": {2: (17, 34), 3: (2, 9, 20)}, "n": 1, "c": 3,
        "special": True,
    },
    "separable 64-bit": {
        "kernel": {2: (6, 6), 3: (3, 3, 3)}, "stride": {2: (3, 2), 3: (2, 1, 2)}, "pads": (1, 1), "index64": True,
    },
}  # fmt: skip

_LONG: Branches = {"general 31": {"kernel": 31, "stride": 3, "pads": (15, 15), "size": 41, "special": True}}
"""What a separable pool is in one dimension."""


_OVERLAPPING: Branches = {
    "tiled overlapping": {"kernel": 3, "stride": 1, "pads": (1, 1), "size": {2: (7, 12), 3: (3, 5, 8)}, "c": 3},
    "tiled overlapping 5": {"kernel": {2: (5, 4), 3: (2, 4, 3)}, "stride": 1, "pads": (1, 2), "n": 1, "c": 4},
    "tiled overlapping over input": {
        "kernel": {2: (4, 5), 3: (2, 3, 2)}, "stride": 1, "pads": 2, "size": {2: (2, 3), 3: (2, 2, 3)}, "n": 3, "c": 2,
    },
    "tiled overlapping dilated": {
        "kernel": 2, "stride": 1, "dilation": {2: (1, 2), 3: (2, 1, 3)}, "pads": (1, 1),
        "size": {2: (6, 10), 3: (3, 4, 6)}, "n": 1, "c": 3,
    },
    "tiled overlapping 64-bit": {"kernel": 3, "stride": 1, "pads": (1, 0), "index64": True, "n": 1, "c": 3},
}  # fmt: skip
"""Windows at every place, whose maxima and taps of 16-bit numbers are found by keys."""


def _kinds(branches: Branches, kind: str, **options: Any) -> Branches:
    return {f"{kind} {name}": {**branch, **options} for name, branch in branches.items()}


def _rotating(branches: Branches, name: str, values: tuple[Any, ...]) -> Branches:
    return {key: {name: values[i % len(values)], **branch} for i, (key, branch) in enumerate(branches.items())}


NORMS = (2.0, 1.0, 3.0, float("inf"), 1.5, -float("inf"), 5.0)


def _branches(family: str) -> dict[int, Branches]:
    """Return the branches of a family by number of dimensions."""
    found = {}
    for ndim in (1, 2, 3):
        large = _LONG if ndim == 1 else _SEPARABLE
        forward = _kinds(_TILED | _GENERAL | large, "fprop")
        backward = _kinds(({} if family == "lp" else _TILED) | _GENERAL | large, "bwd")
        if family == "max":
            forward = _rotating(forward, "numbers", ("positions", "none", "taps"))
            backward = _rotating(backward, "numbers", ("positions", "taps"))
            for name, branch in list(backward.items()):
                if "separable" in name:
                    branch["numbers"] = "taps"
                    backward[f"{name}, positions"] = {**branch, "numbers": "positions"}
        elif family == "avg":
            forward = _rotating(_rotating(forward, "include_pad", (True, False)), "divisor", (None, None, None, 7))
            backward = _rotating(_rotating(backward, "include_pad", (False, True)), "divisor", (None, -3, None))
        else:
            forward = _rotating(forward, "norm", NORMS)
            for name, branch in forward.items():
                branch["norm"] = 1.0 + len(name) % 2 if "tiled" in name else branch["norm"]
            backward = _rotating(backward, "norm", NORMS)
        found[ndim] = forward | backward
    return found


FAMILIES = ("max", "avg", "lp")
BRANCHES = {family: _branches(family) for family in FAMILIES}
OVERLAPPING = _kinds(_OVERLAPPING, "fprop", numbers="taps", special=True)

_SIZES = {1: (29,), 2: (9, 11), 3: (5, 6, 7)}


@dataclass(frozen=True)
class PoolCase:
    """One problem for a pooling kernel; sizes follow from the branch, whose name begins with the pass and solver."""

    family: str
    ndim: int
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        """Name of the case in reports."""
        return f"{self.family}-{self.ndim}d-{self.layout}-{self.dtype}-{self.branch}"

    @property
    def kind(self) -> str:
        """Which pass the case runs."""
        return self.branch.split()[0]

    @property
    def solver(self) -> str:
        """Id of the solver that the case forces."""
        return f"triton.pool.{self.family}.{self.kind}.{self.branch.split()[1]}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        value = (BRANCHES[self.family][self.ndim] | OVERLAPPING)[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    def axes(self, name: str, default: Any) -> tuple[int, ...]:
        """Return an option as one integer per axis."""
        value = self.option(name, default)
        return (value,) * self.ndim if isinstance(value, int) else value


def all_cases(family: str, count: int = 144) -> list[PoolCase]:
    """Return `count` cases: every (dims, layout, dtype) three times, and every branch in its number of dims."""
    cases: dict[tuple[Any, ...], PoolCase] = {}
    combinations = list(product((1, 2, 3), DTYPES, LAYOUTS))
    for number in range(count):
        ndim, dtype, layout = combinations[number % len(combinations)]
        names = list(BRANCHES[family][ndim])
        turn = number // len(combinations) * 16 + number % 16  # every branch of a dimension in turn
        case = PoolCase(family, ndim, layout, dtype, names[turn % len(names)])
        cases[ndim, layout, dtype, case.branch] = case
    return list(cases.values())


def with_layout(values: torch.Tensor, layout: str) -> torch.Tensor:
    """Return `values` with other strides: channels innermost, every other element, or W before H (C before N)."""
    if layout == "channels_last":
        return values.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        return values.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "permuted":
        axes = (0, 1) if values.ndim == 3 else (-1, -2)
        return values.transpose(*axes).contiguous().transpose(*axes)
    return values.contiguous()


class PoolInputs:
    """Inputs of a case, drawn from its name, with its problem and the float64 reference of its result."""

    def __init__(self, case: PoolCase, integers: bool = False, dtype: torch.dtype | None = None) -> None:
        self.case = case
        self.dtype = dtype or DTYPES[case.dtype]
        self.generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim = case.ndim
        size, kernel = case.axes("size", _SIZES[ndim]), case.axes("kernel", None)
        if ndim == 3 and case.family != "max":  # torch's rule: a 3-D kernel must not exceed the input
            size = tuple(map(max, size, map(effective_kernel, kernel, case.axes("dilation", 1))))
        self.shape = (case.option("n", 2), case.option("c", 5), *size)
        pads = case.option("pads", 0)
        if isinstance(pads, int):
            pads = (pads, pads)
        self.pads = tuple(pads) if isinstance(pads[0], tuple) else (pads,) * ndim
        self.pads = tuple(
            tuple(min(pad, extent // 2) for pad in pair) for pair, extent in zip(self.pads, kernel, strict=True)
        )
        self.kernel, self.stride = kernel, case.axes("stride", 1)
        self.dilation = case.axes("dilation", 1) if case.family != "lp" else (1,) * ndim
        self.norm = case.option("norm", 2.0)
        self.x = with_layout(self.draw(self.shape, integers).to(self.dtype), case.layout)
        self.problem = self._problem()
        self.grad = self.indices = None
        if case.kind == "bwd":
            layout = "contiguous" if case.layout == "channels_last" and sum(map(ord, case.id)) % 2 else case.layout
            self.grad = with_layout(self.draw(self.problem.y_shape, integers, special=False).to(self.dtype), layout)
            if case.family == "max":
                positions = self.forward(self.x, "numpy", indices=True)[1]
                self.indices = with_layout(positions, layout)

    def draw(self, shape: tuple[int, ...], integers: bool, special: bool = True) -> torch.Tensor:
        """Return random values; where the branch is special with ties, infinities and NaN."""
        generator = self.generator
        if integers:
            return torch.randint(-3, 4, shape, generator=generator).double()
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        of_x = special and self.case.family == "lp" and not isinf(self.norm) and self.norm != 2
        x = x.abs() + 0.1 if of_x else x  # powers that do not cancel
        if special and self.case.option("special", False):
            pick = torch.rand(shape, generator=generator)
            x = (x * 2).round()
            x[pick < 0.04] = float("nan")
            x[pick > 0.97] = float("inf")
            if not of_x:
                x[(pick > 0.04) & (pick < 0.3)] = -float("inf")
        return x

    def forward(self, x: torch.Tensor, backend: str, indices: bool = False, run: Any = None) -> Any:
        """Call the public function of the forward pass, or ``run(function, *arguments)``."""
        case = self.case
        function = getattr(gpuconv, f"{case.family}_pool{case.ndim}d")
        options: dict[str, Any] = {"ceil_mode": case.option("ceil", False), "padding": self.pads, "backend": backend}
        call = run or (lambda function, *args, **kw: function(*args, **kw))
        if case.family == "max":
            return call(
                function, x, self.kernel, self.stride, dilation=self.dilation, return_indices=indices, **options
            )
        if case.family == "lp":
            kernel = self.kernel[0] if case.ndim == 1 else self.kernel
            return call(function, x, self.norm, kernel, self.stride, **options)
        options |= {"dilation": self.dilation, "count_include_pad": case.option("include_pad", True)}
        if case.ndim > 1:
            options["divisor_override"] = case.option("divisor", None)
        return call(function, x, self.kernel, self.stride, **options)

    def _problem(self) -> PoolProblem:
        numbers = self.case.option("numbers", "none")
        explanation = self.forward(self.x, "triton", numbers != "none", run=gpuconv.explain)
        problem = explanation.problem
        assert isinstance(problem, PoolProblem)
        return replace(problem, kind=self.case.kind, offsets=numbers == "taps")

    def backward(self, x: torch.Tensor, grad: torch.Tensor, magnitude: bool = False) -> torch.Tensor:
        """Call the public backward function of the NumPy backend in the type of `x`."""
        case = self.case
        name = "with_indices_backward" if case.family == "max" else "backward"
        function = getattr(gpuconv, f"{case.family}_pool{case.ndim}d_{name}")
        ceil = case.option("ceil", False)
        if case.family == "max":
            windows = (self.kernel, self.stride, self.pads, self.dilation, ceil)
            return function(grad, x, *windows, self.indices, backend="numpy")
        if case.family == "lp":
            kernel = self.kernel[0] if case.ndim == 1 else self.kernel
            options = {"padding": self.pads, "backend": "numpy"}
            return function(grad, x, self.norm, kernel, self.stride, ceil, **options)
        options = {"dilation": self.dilation, "backend": "numpy"}
        if case.ndim > 1:
            options["divisor_override"] = case.option("divisor", None)
            if magnitude and options["divisor_override"]:
                options["divisor_override"] = abs(options["divisor_override"])
        windows = (self.kernel, self.stride, self.pads, ceil, case.option("include_pad", True))
        return function(grad, x, *windows, **options)

    def taps(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the in-window taps of positions in the plane."""
        problem = self.problem
        rest, taps = positions, torch.zeros_like(positions)
        scale = 1
        for axis in reversed(range(problem.ndim)):
            coordinate = rest % problem.input_size[axis]
            rest = rest // problem.input_size[axis]
            shape = [1] * positions.ndim
            shape[2 + axis] = -1
            start = torch.arange(problem.output_size[axis]).view(shape) * problem.stride[axis] - problem.pad_lo[axis]
            taps = taps + (coordinate - start) // problem.dilation[axis] * scale
            scale *= problem.kernel[axis]
        return taps.to(getattr(torch, problem.offset_dtype))

    def numbers(self) -> torch.Tensor | None:
        """Return the indices that a backward launch reads."""
        if self.indices is None or not self.problem.offsets:
            return self.indices
        layout = "permuted" if self.case.layout == "permuted" else "contiguous"
        return with_layout(self.taps(self.indices), layout)


def config_of(inputs: PoolInputs) -> dict[str, Any]:
    """Return the configuration of the plan with the largest tile of which there are at least three per axis."""
    plan = select(inputs.problem, inputs.case.solver)
    config, problem = dict(plan.config), inputs.problem
    sizes = three(problem.output_size if problem.kind == "fprop" else problem.input_size, 1)
    last = problem.result_format == CHANNELS_LAST
    if "TILE_P" in config:
        config["TILE_P"] = min(config["TILE_P"], 4 if problem.offsets else 2)
        strides = three(problem.stride, 1) if problem.kind == "bwd" else (1, 1, 1)
        tile_h, tile_w = config["TILE_P"] * strides[1], config["TILE_Q"] * strides[2]
        sizes = (sizes[0], -(-sizes[1] // tile_h), -(-sizes[2] // tile_w))
    lanes = problem.c if last else sizes[2]
    rows = problem.n * problem.c * prod(sizes) // lanes
    if "TILE_P" in config and not last:
        rows, lanes = rows * lanes, 1

    def third(count: int) -> int:
        return 1 << max((count - 1) // 2, 1).bit_length() - 1

    config |= {"BLOCK_M": third(rows), "BLOCK_L": third(lanes)}
    if inputs.case.option("index64", False):
        config["INDEX64"] = True
    return config


def launch(inputs: PoolInputs, order: str) -> dict[str, torch.Tensor]:
    """Launch the kernels on guarded copies of the inputs, programs in `order`; check the guards; return the results."""
    problem = inputs.problem
    plan = select(problem, inputs.case.solver)
    assert plan.solver.id == inputs.case.solver
    layout = channels_last_strides if problem.result_format == CHANNELS_LAST else contiguous_strides
    guarded: dict[str, Guarded] = {}
    result = {"fprop": "y", "bwd": "dx"}[problem.kind]
    guarded[result] = guard_output(problem.result_shape, layout(problem.result_shape), inputs.dtype)
    written = {result, "workspace"}
    if problem.kind == "fprop" or problem.pool == "lp":
        guarded["x"] = guard_input(inputs.x)
    if problem.kind == "bwd":
        guarded["y"] = guard_input(inputs.grad)
        if inputs.indices is not None:
            guarded["indices"] = guard_input(inputs.numbers())
    elif problem.return_indices:
        of_indices = getattr(torch, problem.index_dtype)
        guarded["indices"] = guard_output(problem.y_shape, layout(problem.y_shape), of_indices)
        written.add("indices")
    if plan.workspace:
        guarded["workspace"] = guard_output((plan.workspace,), (1,), torch.uint8)
    tensors = {name: placed.tensor for name, placed in guarded.items()}
    with program_order(order):
        plan.solver.launch(problem, tensors, config_of(inputs))
    for name, placed in guarded.items():
        placed.check(name, written=name in written)
    return {name: tensors[name] for name in (result, "indices") if name in written and name in tensors}


def orders_of(case: PoolCase) -> tuple[str, ...]:
    """Return the program orders of a case: one of the three in turn, and where it is forward another, for its bits."""
    number = sum(map(ord, case.id)) % 6
    return ("forward", ORDERS[1 + number // 3]) if number % 3 == 0 else (ORDERS[number % 3],)


def reference(inputs: PoolInputs) -> tuple[np.ndarray, np.ndarray, torch.Tensor | None]:
    """Return the float64 result of the NumPy backend, the magnitude of the tolerance rule, and expected indices."""
    x = inputs.x.double()
    if inputs.case.kind == "bwd":
        grad = inputs.grad.double()
        of_x = x if inputs.case.family != "lp" else x.abs()
        return inputs.backward(x, grad).numpy(), inputs.backward(of_x, grad.abs(), magnitude=True).numpy(), None
    if inputs.case.family == "max":
        y, indices = inputs.forward(x, "numpy", indices=True)
        return y.numpy(), np.abs(y.numpy()), inputs.taps(indices) if inputs.problem.offsets else indices
    magnitude = np.abs(inputs.forward(x.abs(), "numpy").numpy())
    return inputs.forward(x, "numpy").numpy(), magnitude, None


def check(inputs: PoolInputs, orders: tuple[str, ...]) -> None:
    """Assert that the kernels compute the case within tolerance (maxima exactly), the same bits in every order."""
    case = inputs.case
    expected, magnitude, indices = reference(inputs)
    first: dict[str, torch.Tensor] = {}
    for order in orders:
        results = launch(inputs, order)
        if not first:
            first = results
            value = as_numpy(next(iter(results.values())))
            if case.kind == "fprop" and (case.family == "max" or isinf(inputs.norm)):
                np.testing.assert_array_equal(value, expected.astype(value.dtype))
            else:
                length = inputs.problem.reduction_length
                with np.errstate(invalid="ignore"):
                    numerics.assert_close(value, expected, np.nan_to_num(magnitude), case.dtype, length)
            if "indices" in results:
                assert torch.equal(results["indices"], indices)
        for name, result in results.items():
            bits = (tensor.contiguous().view(torch.uint8) for tensor in (first[name], result))
            assert torch.equal(*bits), (order, name)


def check_case(case: PoolCase, orders: tuple[str, ...]) -> None:
    """Check the random inputs of a case."""
    check(PoolInputs(case), orders)
