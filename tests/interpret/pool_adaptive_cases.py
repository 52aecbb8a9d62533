"""Cases of the adaptive, global, fractional and unpooling kernels: dims, layouts and dtypes, branches in rotation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from fprop_cases import DTYPES, as_numpy, with_layout
from harness import GUARD, ORDERS, Guarded, guard_input, guard_output, program_order

import gpuconv
from gpuconv import numerics, shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS, channels_last_strides, contiguous_strides
from gpuconv.backends.numpy.pool_scatter import fractional_starts
from gpuconv.backends.triton import (
    backend as triton_backend,
)
from gpuconv.backends.triton import (
    pool_global,
    pool_unpool,
)
from gpuconv.backends.triton.pool_common import Workspace
from gpuconv.dispatch import run
from gpuconv.problem import PoolProblem

LAYOUTS = ("contiguous", "channels_last", "strided", "sliced")

TILE = {"num_warps": 4, "num_stages": 2}

WINDOW = {"solver": "window", "tile": {"BLOCK_M": 8, "BLOCK_L": 4}}
SPLIT = {"solver": "split", "tile": {"BLOCK_K": 4, "BLOCK_L": 4, "splits": 3}}
LINES = {"solver": "lines", "tile": {"BLOCK_M": 8, "BLOCK_Q": 4}}
GATHER = {"solver": "gather", "kind": "bwd", "tile": {"BLOCK_M": 8, "BLOCK_L": 4}}
CLAIM = {"solver": "claim", "tile": {"BLOCK_K": 8, "BLOCK_L": 4, "parts": 1}}

_RAGGED = {"size": {1: (23,), 2: (8, 11), 3: (5, 3, 11)}, "out": {1: (9,), 2: (3, 9), 3: (3, 1, 9)}}
_LARGER = {"size": {1: (5,), 2: (3, 4), 3: (2, 3, 4)}, "out": {1: (9,), 2: (5, 9), 3: (3, 2, 9)}}
_EVEN = {"size": {1: (27,), 2: (6, 18), 3: (2, 4, 18)}, "out": {1: (9,), 2: (3, 9), 3: (1, 2, 9)}}
_GLOBAL = {"size": {1: (41,), 2: (6, 7), 3: (3, 3, 5)}, "out": {1: (1,), 2: (1, 1), 3: (1, 1, 1)}}
_FEW = {"size": {1: (77,), 2: (5, 17), 3: (5, 11, 2)}, "out": {1: (3,), 2: (1, 3), 3: (2, 3, 1)}}
_BACK = {"size": {1: (11,), 2: (5, 9), 3: (2, 3, 9)}, "out": {1: (7,), 2: (3, 4), 3: (1, 2, 5)}}
_BACK_LARGER = {"size": {1: (9,), 2: (4, 9), 3: (2, 2, 9)}, "out": {1: (20,), 2: (6, 11), 3: (3, 2, 11)}}
_BACK_GLOBAL = {"size": {1: (11,), 2: (3, 9), 3: (2, 2, 9)}, "out": {1: (1,), 2: (1, 1), 3: (1, 1, 1)}}
_FRACTIONAL = {
    "size": {2: (9, 11), 3: (4, 5, 11)},
    "out": {2: (5, 9), 3: (2, 2, 9)},
    "window": {2: (2, 2), 3: (2, 3, 2)},
}
_FRACTIONAL_BACK = {
    "size": {2: (5, 9), 3: (3, 3, 9)},
    "out": {2: (3, 5), 3: (2, 1, 5)},
    "window": {2: (2, 3), 3: (1, 2, 3)},
}
_ONE_OUT = {"size": {2: (5, 11), 3: (3, 5, 11)}, "out": {2: (1, 9), 3: (1, 3, 9)}, "window": {2: (2, 2), 3: (2, 2, 2)}}
_UNPOOL = {"size": {1: (21,), 2: (3, 9), 3: (2, 2, 9)}, "out": {1: (43,), 2: (8, 13), 3: (5, 6, 8)}}

Branches = dict[str, dict[str, Any]]

_AVERAGE: Branches = {
    "window ragged": WINDOW | _RAGGED,
    "window larger output": WINDOW | _LARGER,
    "window even": WINDOW | _EVEN,
    "window specials": WINDOW | _RAGGED | {"values": "specials"},
    "window 64-bit": WINDOW | _RAGGED | {"index64": True},
    "split global": SPLIT | _GLOBAL,
    "split ragged": SPLIT | _FEW,
    "split one": SPLIT | _GLOBAL | {"tile": {"BLOCK_K": 4, "BLOCK_L": 4, "splits": 1}},
    "split specials": SPLIT | _FEW | {"values": "specials"},
    "split 64-bit": SPLIT | _GLOBAL | {"index64": True},
    "lines ragged": LINES | _RAGGED,
    "lines larger output": LINES | _LARGER,
    "lines global": LINES | _GLOBAL | {"tile": {"BLOCK_M": 4, "BLOCK_Q": 4}},
    "lines specials": LINES | _RAGGED | {"values": "specials"},
    "lines 64-bit": LINES | _RAGGED | {"index64": True},
    "gather ragged": GATHER | _BACK,
    "gather larger output": GATHER | _BACK_LARGER,
    "gather global": GATHER | _BACK_GLOBAL,
    "gather specials": GATHER | _BACK | {"values": "specials"},
    "gather 64-bit": GATHER | _BACK | {"index64": True},
}

BRANCHES: dict[str, Branches] = {
    "adaptive_avg": _AVERAGE,
    "adaptive_max": _AVERAGE | {
        "window offsets": WINDOW | _RAGGED | {"offsets": True, "values": "ties"},
        "window no indices": WINDOW | _RAGGED | {"indices": False, "values": "specials"},
        "window ties": WINDOW | _RAGGED | {"values": "ties"},
        "split offsets": SPLIT | _FEW | {"offsets": True, "values": "specials"},
        "split one offsets": SPLIT | _FEW | {
            "offsets": True, "values": "ties", "tile": {"BLOCK_K": 4, "BLOCK_L": 4, "splits": 1},
        },
        "split one specials": SPLIT | _FEW | {
            "values": "specials", "tile": {"BLOCK_K": 4, "BLOCK_L": 4, "splits": 1},
        },
        "split one -inf": SPLIT | _FEW | {
            "values": "-inf", "tile": {"BLOCK_K": 4, "BLOCK_L": 4, "splits": 1},
        },
        "split no indices": SPLIT | _FEW | {"indices": False, "values": "specials"},
        "split ties": SPLIT | _FEW | {"values": "ties"},
        "split -inf": SPLIT | _FEW | {"values": "-inf"},
        "lines offsets": LINES | _RAGGED | {"offsets": True, "values": "specials"},
        "lines no indices": LINES | _RAGGED | {"indices": False, "values": "specials"},
        "lines ties": LINES | _RAGGED | {"values": "ties"},
        "lines -inf": LINES | _RAGGED | {"values": "-inf"},
        "gather offsets": GATHER | _BACK | {"offsets": True, "values": "ties"},
        "gather offsets larger output": GATHER | _BACK_LARGER | {"offsets": True},
        "gather ties": GATHER | _BACK_LARGER | {"values": "ties"},
    },
    "fractional": {
        "window": WINDOW | _FRACTIONAL,
        "window offsets": WINDOW | _FRACTIONAL | {"offsets": True},
        "window ties": WINDOW | _FRACTIONAL | {"values": "ties"},
        "window specials": WINDOW | _FRACTIONAL | {"values": "specials"},
        "window -inf": WINDOW | _FRACTIONAL | {"values": "-inf"},
        "window no indices": WINDOW | _FRACTIONAL | {"indices": False, "values": "specials"},
        "window one output": WINDOW | _ONE_OUT | {"tile": {"BLOCK_M": 4, "BLOCK_L": 4}},
        "window 64-bit": WINDOW | _FRACTIONAL | {"index64": True, "values": "specials"},
        "gather": GATHER | _FRACTIONAL_BACK,
        "gather offsets": GATHER | _FRACTIONAL_BACK | {"offsets": True},
        "gather ties": GATHER | _FRACTIONAL_BACK | {"values": "ties"},
        "gather one output": GATHER | _ONE_OUT | {"offsets": True},
        "gather 64-bit": GATHER | _FRACTIONAL_BACK | {"index64": True},
    },
    "unpool": {
        "claim random": CLAIM | _UNPOOL,
        "claim same": CLAIM | _UNPOOL | {"targets": "same"},
        "claim distinct": CLAIM | _UNPOOL | {"targets": "distinct", "values": "specials"},
        "claim parts": CLAIM | _UNPOOL | {"tile": {"BLOCK_K": 8, "BLOCK_L": 4, "parts": 3}},
        "claim apart": CLAIM | _UNPOOL | {"tile": {"BLOCK_K": 8, "BLOCK_L": 4, "parts": 2}, "apart": True},
        "claim 64-bit": CLAIM | _UNPOOL | {"index64": True},
        "claim smaller output": CLAIM | {
            "size": {1: (21,), 2: (4, 6), 3: (2, 3, 4)}, "out": {1: (19,), 2: (3, 7), 3: (2, 2, 5)},
        },
        "gather random": GATHER | _UNPOOL,
        "gather 64-bit": GATHER | _UNPOOL | {"index64": True, "values": "specials"},
    },
}  # fmt: skip

_POOL = {"fractional": "fractional_max", "unpool": "max_unpool"}
SOLVERS = {solver.id: solver for solver in triton_backend.BACKEND.solvers()}


@dataclass(frozen=True)
class PoolCase:
    """One problem for a kernel; sizes follow from the branch."""

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
        """Pass of the case."""
        return self.option("kind", "fprop")

    @property
    def solver(self) -> str:
        """Full id of the solver that the case forces."""
        name = {"fractional": "fractional_max", "unpool": "max_unpool"}.get(self.family, "adaptive")
        return f"triton.pool.{name}.{self.kind}.{self.option('solver', None)}"

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict by numbers of dimensions holds one value for each."""
        value = BRANCHES[self.family][self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) and name != "tile" else value


def all_cases(family: str, count: int = 111) -> list[PoolCase]:
    """Return `count` cases: every (dims, layout, dtype), and every branch in every number of dims."""
    names = list(BRANCHES[family])
    dims = (2, 3) if family == "fractional" else (1, 2, 3)
    combinations = list(product(LAYOUTS, DTYPES, dims))
    cases = []
    for number in range(count):
        layout, dtype, ndim = combinations[number % len(combinations)]
        branch = names[number // len(dims) % len(names)]
        if BRANCHES[family][branch]["solver"] == "lines" and layout == "channels_last":
            layout = "contiguous"  # lines are of tensors whose last axis is innermost
        cases.append(PoolCase(family, ndim, layout, dtype, branch))
    return list(dict.fromkeys(cases))


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """Return `values` with other strides; ``"sliced"`` lines lie in longer ones."""
    if layout == "sliced":
        wider = values.new_zeros((*values.shape[:-1], values.shape[-1] + 3))
        wider[..., 1:-2] = values
        return wider[..., 1:-2]
    return with_layout(values, layout)


def _guard_integers(values: torch.Tensor, written: bool) -> Guarded:
    """Place an integer tensor between bands of -3; an output is filled with -7, which no index is."""
    extent = 1 + sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    buffer = torch.full((extent + 2 * GUARD,), -3, dtype=values.dtype)
    tensor = buffer.as_strided(values.shape, values.stride(), GUARD)
    covered = torch.zeros(len(buffer), dtype=torch.bool)
    covered.as_strided(values.shape, values.stride(), GUARD).fill_(True)
    tensor.fill_(-7) if written else tensor.copy_(values)
    return Guarded(tensor, buffer, buffer.clone(), covered)


def _check(placed: Guarded, name: str, written: bool) -> None:
    if placed.buffer.dtype in (torch.int8, torch.uint8):
        same = (placed.buffer == placed.before) | (placed.covered if written else False)
        assert bool(same.all()), f"{name}: the kernel wrote where it must not"
    else:
        placed.check(name, written)


class PoolInputs:
    """Inputs of a case, drawn from its name: tensors by the names of a call, and the problem."""

    def __init__(self, case: PoolCase) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        n, c = (2 if case.ndim == 1 else 1), 10
        size, out = case.option("size", None), case.option("out", None)
        self.x_shape, self.y_shape = (n, c, *size), (n, c, *out)
        self.window = case.option("window", None)
        self.x = laid_out(self.draw(self.x_shape), case.layout)
        self.y = laid_out(self.draw(self.y_shape), case.layout)
        self.samples = self._samples()
        self.plane_indices: torch.Tensor | None = None
        self.indices = self._indices()
        self.problem = self._problem()

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return values of the case's kind and type."""
        dtype, kind = DTYPES[self.case.dtype], self.case.option("values", "random")
        if kind == "ties":
            return torch.randint(-2, 3, shape, generator=self.generator).to(dtype)
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(dtype)
        if kind in ("specials", "-inf"):
            chance = torch.rand(shape, generator=self.generator)
            values[chance < (0.9 if kind == "-inf" else 0.15)] = float("-inf")
            if kind == "specials":
                values[chance > 0.97] = float("nan")
                values[(chance > 0.95) & (chance < 0.97)] = float("inf")
        return values

    def _samples(self) -> torch.Tensor | None:
        if self.case.family != "fractional":
            return None
        drawn = torch.rand((*self.x_shape[:2], self.case.ndim), generator=self.generator)
        samples = drawn.clamp(max=0.99).to(DTYPES[self.case.dtype])
        return samples.transpose(0, 1).contiguous().transpose(0, 1) if self.case.layout == "strided" else samples

    def _indices(self) -> torch.Tensor | None:
        """Return the indices that the case takes: those of a forward call, or positions of the large plane."""
        family = self.case.family
        if family == "unpool":
            shape, plane = self.x_shape, prod(self.y_shape[2:])
            targets = self.case.option("targets", "random")
            if targets == "distinct":
                rows = [torch.randperm(plane, generator=self.generator) for _ in range(prod(shape[:2]))]
                drawn = torch.stack(rows)[:, : prod(shape[2:])].reshape(shape)
            elif targets == "same":
                drawn = torch.full(shape, plane - 1)
            else:
                drawn = torch.randint(0, plane, shape, generator=self.generator)
            return laid_out(drawn, self.case.layout)
        if family == "adaptive_avg" or self.case.kind == "fprop":
            return None
        indices = self.plane_indices = self.forward("numpy")[1]
        if self.case.option("offsets", False):
            return laid_out(self.offsets(indices), self.case.layout)
        return laid_out(indices, self.case.layout)

    def forward(self, backend: str, x: torch.Tensor | None = None) -> Any:
        """Run the public forward function of the case, with indices where it has them."""
        case, x = self.case, self.x if x is None else x
        ndim, out = case.ndim, self.y_shape[2:]
        if case.family == "adaptive_avg":
            return getattr(gpuconv, f"adaptive_avg_pool{ndim}d")(x, out, backend=backend)
        indices = case.option("indices", True)
        if case.family == "adaptive_max":
            pool = getattr(gpuconv, f"adaptive_max_pool{ndim}d")
            return pool(x, out, return_indices=indices, backend=backend)
        if case.family == "fractional":
            pool, samples = getattr(gpuconv, f"fractional_max_pool{ndim}d"), self.samples
            options = {"return_indices": indices, "_random_samples": samples, "backend": backend}
            return pool(x, self.window, out, **options)
        return run(self._unpool_call(x, backend))

    def _unpool_call(self, x: torch.Tensor, backend: str) -> Any:
        """Return a call of unpooling to a size that needs no stride to have it."""
        from gpuconv.normalize.pool import neutral_windows, pool_call, read_source

        ndim = self.case.ndim
        source = read_source(f"max_unpool{ndim}d", ndim, "input", x, {"indices": self.indices})
        formats = (source.format, source.format if ndim == 2 else CONTIGUOUS)
        windows = neutral_windows((2,) * ndim, self.y_shape[2:])
        return pool_call(source, "max_unpool", windows, {"x": x, "indices": self.indices}, backend, formats=formats)

    def backward(self, backend: str, y: torch.Tensor | None = None) -> Any:
        """Run the public backward function of the case on plane indices."""
        case, y = self.case, self.y if y is None else y
        x, ndim = self.x.to(y.dtype), case.ndim
        name = {"fractional": "fractional_max_pool", "unpool": "max_unpool"}.get(case.family, f"{case.family}_pool")
        function = getattr(gpuconv, f"{name}{ndim}d_backward")
        if case.family == "adaptive_avg":
            return function(y, x, backend=backend)
        indices = self.indices if self.plane_indices is None else self.plane_indices
        if case.family == "fractional":
            return function(y, x, self.window, self.y_shape[2:], indices, backend=backend)
        return function(y, x, indices, backend=backend)

    def _problem(self) -> PoolProblem:
        function: Callable[[str], Any] = self.forward if self.case.kind == "fprop" else self.backward
        explanation = gpuconv.explain(lambda: function(self.case.solver))
        assert explanation.solver == self.case.solver, explanation
        return replace(explanation.problem, offsets=self.case.option("offsets", False))

    def offsets(self, indices: torch.Tensor) -> torch.Tensor:
        """Return plane indices as taps of their windows, computed from the windows' starts one axis at a time."""
        ndim, size, out = self.case.ndim, self.x_shape[2:], self.y_shape[2:]
        window = self.window or tuple(
            max(e - s for s, e in zip(*shapes.adaptive_windows(a, b), strict=True)) for a, b in zip(size, out)
        )
        rest, coordinates = indices.clone(), []
        for length in reversed(size):
            coordinates.insert(0, rest % length)
            rest = rest // length
        taps = torch.zeros_like(indices)
        for axis in range(ndim):
            shape = [1] * (ndim + 2)
            shape[2 + axis] = out[axis]
            if self.case.family == "fractional":
                drawn = as_numpy(self.samples[..., 1 - axis if ndim == 2 else axis]).reshape(-1)
                drawn = drawn.astype(np.float16) if self.case.dtype == "float16" else drawn
                starts = fractional_starts(size[axis], out[axis], window[axis], drawn, self.case.dtype)
                shape[:2] = self.x_shape[:2]
            else:
                starts = np.array(shapes.adaptive_windows(size[axis], out[axis])[0])
            taps = taps * window[axis] + coordinates[axis] - torch.from_numpy(starts).reshape(shape)
        taps_of_window = prod(window)
        return taps.to(torch.int8 if taps_of_window <= 128 else torch.int16)


def config_of(inputs: PoolInputs) -> dict[str, Any]:
    """Return the configuration that a case launches with."""
    case, problem = inputs.case, inputs.problem
    config = TILE | case.option("tile", {}) | ({"INDEX64": True} if case.option("index64", False) else {})
    layout = problem.result_format
    if case.option("solver", None) == "split":
        layout = problem.x_format
    config["CHANNELS_INNERMOST"] = layout == CHANNELS_LAST
    if case.option("solver", None) == "lines":
        config["BLOCK_W"] = 1 << (problem.input_size[-1] - 1).bit_length()
    if case.option("solver", None) == "claim":
        claim = {2: "int16", 4: "int32", 8: "int64"}[DTYPES[case.dtype].itemsize]
        config["claim"] = ("int64" if claim == "int32" else "int32") if case.option("apart", False) else claim
    return config


def workspace_bytes(problem: PoolProblem, config: dict[str, Any]) -> int:
    """Return the bytes of workspace that a launch with `config` takes."""
    space = Workspace()
    if config.get("splits", 1) > 1:
        pool_global.take_partial(space, problem, config["splits"])
    if "claim" in config:
        pool_unpool.take_claims(space, problem, config["claim"])
    return space.used


def launch(inputs: PoolInputs, order: str) -> dict[str, torch.Tensor]:
    """Launch the kernel of a case on guarded tensors, programs in `order`; check the guards; return its results."""
    problem, config = inputs.problem, config_of(inputs)
    forward = problem.kind == "fprop"
    layout = channels_last_strides if problem.result_format == CHANNELS_LAST else contiguous_strides
    shape = problem.result_shape
    result = "y" if forward else "dx"
    placed: dict[str, Guarded] = {result: guard_output(shape, layout(shape), DTYPES[problem.dtype])}
    written = {result, "workspace"}
    if inputs.case.family != "adaptive_avg":
        if forward and inputs.case.family != "unpool":
            if problem.return_indices:
                empty = torch.empty_strided(shape, layout(shape), dtype=getattr(torch, problem.index_dtype))
                placed["indices"] = _guard_integers(empty, written=True)
                written.add("indices")
        else:
            placed["indices"] = _guard_integers(inputs.indices, written=False)
    placed["x" if forward else "y"] = guard_input(inputs.x if forward else inputs.y)
    if inputs.samples is not None and (forward or problem.offsets):
        placed["samples"] = guard_input(inputs.samples)
    needed = workspace_bytes(problem, config)
    if needed:
        placed["workspace"] = _guard_integers(torch.empty(needed, dtype=torch.uint8), written=True)
    tensors = {name: guarded.tensor for name, guarded in placed.items()}
    with program_order(order):
        SOLVERS[inputs.case.solver].launch(problem, tensors, config)
    for name, guarded in placed.items():
        _check(guarded, name, name in written)
    return {name: tensors[name] for name in (result, "indices") if name in written}


def orders_of(case: PoolCase) -> tuple[str, ...]:
    """Return the program orders of a case: one of the three in turn, and where it is forward another, for its bits."""
    number = sum(map(ord, case.id)) % 6
    return ("forward", ORDERS[1 + number // 3]) if number % 3 == 0 else (ORDERS[number % 3],)


def check_case(case: PoolCase, orders: tuple[str, ...]) -> None:
    """Assert that the kernel computes `case`: maxima, indices and unpooled values exactly, sums within tolerance."""
    inputs = PoolInputs(case)
    first: dict[str, torch.Tensor] = {}
    for order in orders:
        results = launch(inputs, order)
        first = first or results
        for name, result in results.items():
            same = [each.flatten().contiguous().view(torch.uint8) for each in (first[name], result)]
            assert torch.equal(*same), (name, order)
    check_results(inputs, first)


def check_results(inputs: PoolInputs, results: dict[str, torch.Tensor]) -> None:
    """Compare results with those of the NumPy backend."""
    case, problem = inputs.case, inputs.problem
    function = inputs.forward if case.kind == "fprop" else inputs.backward
    if case.family == "adaptive_avg" or (case.kind == "bwd" and case.family != "unpool"):
        source = inputs.x if case.kind == "fprop" else inputs.y
        reference, magnitude = (
            function("numpy", source.double()).numpy(),
            function("numpy", source.double().abs()).numpy(),
        )
        result = results["y" if case.kind == "fprop" else "dx"]
        numerics.assert_close(as_numpy(result), reference, magnitude, case.dtype, problem.reduction_length)
        return
    expected = function("numpy")
    values, indices = expected if isinstance(expected, tuple) else (expected, None)
    torch.testing.assert_close(results["y" if case.kind == "fprop" else "dx"], values, rtol=0, atol=0, equal_nan=True)
    if indices is not None:
        wanted = inputs.offsets(indices) if problem.offsets else indices
        assert torch.equal(results["indices"].long(), wanted.long())
