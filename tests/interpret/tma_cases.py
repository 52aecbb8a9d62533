"""Cases of the plain TMA kernel: every combination of pass, dims, layout and dtype, with branches in rotation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import runs_cases
import torch
from fprop_cases import DTYPES as TYPES
from fprop_cases import as_numpy, with_layout
from harness import ORDERS, Guarded, guard_input, guard_output, program_order
from rolling_cases import with_gaps

import gpuconv
from gpuconv import numerics
from gpuconv.backends.triton.conv_tma import SOLVERS as BOTH
from gpuconv.backends.triton.conv_tma import TmaConv
from gpuconv.backends.triton.hopper_view import phases_of
from gpuconv.backends.triton.tma_costs import box_of
from gpuconv.problem import ConvProblem

SOLVERS: dict[str, TmaConv] = {kind: solver for solver in BOTH for kind in solver.kinds}

KINDS = tuple(SOLVERS)

DTYPES = ("float16", "bfloat16", "float32")

LAYOUTS = ("channels_last", "contiguous weights", "gaps", "wide gaps")
"""Of x, w and the residual; "gaps" has rows that are 5 channels apart, which maps cannot describe, "wide gaps" 8."""

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"pads": (1, 1)},
    "blocks of channels": {"c": 40, "pads": (1, 0), "size": {1: 20, 2: (4, 6), 3: (2, 3, 4)}},
    "many filters": {"k": 72, "pads": (1, 1), "size": {1: 12, 2: (3, 5), 3: (2, 3, 3)}, "n": 1},
    "asymmetric": {"kernel": {1: 4, 2: (5, 3), 3: (2, 3, 2)}, "pads": (0, 3)},
    "long": {"kernel": {1: 7, 2: (7, 1), 3: (1, 6, 1)}, "pads": {1: (3, 3), 2: (3, 3), 3: (2, 2)}},
    "across": {"kernel": {1: 5, 2: (1, 5), 3: (1, 3, 5)}, "pads": (2, 1)},
    "dilated": {"dilation": {1: 3, 2: (2, 3), 3: (2, 3, 2)}, "pads": (2, 3), "size": {1: 29, 2: (9, 13), 3: (5, 4, 6)}},
    "dilation over size": {"dilation": {1: 9, 2: (6, 2), 3: (4, 2, 1)}, "pads": {1: (8, 8), 2: (6, 5), 3: (2, 3)},
                           "size": {1: 6, 2: (4, 5), 3: (3, 3, 4)}},
    "padding over the window": {"pads": (5, 4), "size": {1: 9, 2: (3, 4), 3: (2, 3, 2)}},
    "kernel over input": {"size": {1: 4, 2: (2, 3), 3: (1, 2, 3)}, "kernel": {1: 7, 2: (3, 4), 3: (2, 3, 3)},
                          "pads": (3, 2)},
    "one by one": {"kernel": 1, "c": 40, "n": 3},
    "one by one, padded": {"kernel": 1, "pads": (1, 2)},
    "epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu", "pads": (1, 1)},
    "relu": {"bias": True, "residual": True, "activation": "relu", "kernel": 3, "pads": (1, 0)},
    "one by one, epilogue": {"kernel": 1, "scale": True, "residual": True, "activation": "gelu"},
    "one image, one row": {"n": 1, "size": {1: 9, 2: (1, 9), 3: (1, 1, 9)}, "pads": (1, 1), "kernel": 3},
    "many images": {"n": 9, "size": {1: 3, 2: (3, 2), 3: (2, 2, 1)}, "pads": (1, 1)},
    "groups": {"groups": 2, "c": 128, "k": 128, "size": {1: 7, 2: (2, 4), 3: (2, 2, 2)}, "pads": (1, 1), "bias": True,
               "residual": True, "n": 1},
    "groups of few": {"groups": 3, "c": 192, "k": 192, "size": {1: 5, 2: (2, 3), 3: (1, 2, 2)}, "n": 1, "kernel": 1,
                      "shift": True},
}  # fmt: skip

STRIDED: dict[str, dict[str, Any]] = {
    "one by one, strided": {"kernel": 1, "stride": {1: 2, 2: (2, 3), 3: (2, 1, 3)}},
    "one by one, strided and padded": {"kernel": 1, "stride": {1: 3, 2: (2, 3), 3: (2, 1, 3)}, "pads": (2, 1)},
    "taps on the stride": {"stride": 2, "dilation": 2, "pads": (1, 2), "kernel": {1: 4, 2: (3, 2), 3: (2, 3, 2)}},
    "stride across one tap": {"stride": {1: 2, 2: (1, 2), 3: (2, 1, 3)}, "kernel": {1: 1, 2: (3, 1), 3: (1, 3, 1)},
                              "pads": (1, 0), "bias": True},
}  # fmt: skip
"""Of forward passes: what every stride-th position shows."""

PHASES: dict[str, dict[str, Any]] = {
    "phases": {"stride": 2, "pads": (1, 1), "kernel": 3, "size": {1: 29, 2: (6, 9), 3: (3, 4, 5)}},
    "phases, four taps": {"stride": 2, "pads": (1, 1), "kernel": 4, "size": {1: 31, 2: (7, 10), 3: (5, 4, 6)}},
    "phases apart": {"stride": {1: 3, 2: (3, 2), 3: (1, 2, 3)}, "pads": (1, 2),
                     "kernel": {1: 7, 2: (5, 4), 3: (2, 3, 4)}, "size": {1: 31, 2: (8, 9), 3: (3, 5, 6)}},
    "phases without taps": {"stride": {1: 4, 2: (4, 3), 3: (2, 3, 2)}, "kernel": {1: 2, 2: 2, 3: (1, 2, 2)},
                            "pads": (0, 1), "bias": True},
    "phases, dilated": {"stride": 2, "dilation": {1: 3, 2: (3, 2), 3: (1, 3, 2)}, "pads": (3, 2), "kernel": 3,
                        "size": {1: 29, 2: (9, 8), 3: (4, 7, 5)}},
    "phases, epilogue": {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu",
                         "stride": 2, "pads": (1, 0), "kernel": 3},
}  # fmt: skip
"""Of data gradients and transposed convolutions."""

SIZES = {1: 29, 2: (6, 7), 3: (3, 4, 3)}


@dataclass(frozen=True)
class Case(runs_cases.Case):
    """One pass of one problem; sizes follow from the branch."""

    def option(self, name: str, default: Any) -> Any:
        """Return what the branch says about `name`; a dict holds one value per number of dimensions."""
        default = {"c": 16, "k": 24, "size": SIZES[self.ndim]}.get(name, default)
        value = (BRANCHES | STRIDED | PHASES)[self.branch].get(name, default)
        return value[self.ndim] if isinstance(value, dict) else value

    @property
    def runs(self) -> bool:
        """Whether there is such a case: weights of groups of float32 gradients are not packed."""
        return not (self.kind != "fprop" and self.dtype == "float32" and "groups" in self.branch)


def all_cases() -> list[Case]:
    """Return the cases: each (pass, dims, layout, dtype) has two branches in rotation, every branch has each pass."""
    cases = []
    for number, (kind, ndim, layout, dtype) in enumerate(product(KINDS, (1, 2, 3), LAYOUTS, DTYPES)):
        names = [*BRANCHES, *(STRIDED if kind == "fprop" else PHASES)]
        some = (names[(2 * number + number // 12 + step) % len(names)] for step in range(2))
        cases += [Case(ndim, layout, dtype, branch, kind) for branch in some]
    for kind in KINDS:
        names = [*BRANCHES, *(STRIDED if kind == "fprop" else PHASES)]
        for number, (branch, again) in enumerate(product(names, range(2))):
            place = number + KINDS.index(kind) + number // 12 + again
            cases.append(Case(1 + place % 3, LAYOUTS[place // 2 % 4], DTYPES[place // 3 % 3], branch, kind))
    return [case for case in dict.fromkeys(cases) if case.runs]


def _laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "wide gaps":
        last = values.movedim(1, -1)
        return torch.cat([last, last[..., :1].repeat_interleave(8, -1)], -1)[..., : values.shape[1]].movedim(-1, 1)
    return with_gaps(values) if layout == "gaps" else with_layout(values, "channels_last")


class Inputs(runs_cases.Inputs):
    """Inputs of a case, drawn from its name, and the call of the public function."""

    def __init__(self, case: Case, integers: bool = False) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
        ndim, c, k, groups = case.ndim, case.option("c", 16), case.option("k", 24), case.option("groups", 1)
        if case.kind != "fprop":
            c, k = k, c
        size, kernel = case.axes("size", SIZES[ndim]), case.axes("kernel", {1: 3, 2: 3, 3: 2}[ndim])
        lo, hi = case.option("pads", (0, 0))

        def draw(*shape: int) -> torch.Tensor:
            if integers:
                return torch.randint(-3, 4, shape, generator=generator).to(TYPES[case.dtype])
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(TYPES[case.dtype])

        weights_lie = "contiguous" if case.layout == "contiguous weights" else case.layout
        self.x = _laid_out(draw(case.option("n", 2), c, *size), case.layout)
        w = draw(k, c // groups, *kernel)
        self.w = w if weights_lie == "contiguous" else _laid_out(w, weights_lie)
        self.geometry: dict[str, Any] = {
            "stride": case.axes("stride", 1), "padding": tuple((lo, hi) for _ in range(ndim)),
            "dilation": case.axes("dilation", 1), "groups": groups,
        }  # fmt: skip
        y = getattr(gpuconv, f"conv{ndim}d")(self.x.double(), self.w.double(), backend="numpy", **self.geometry)
        self.epilogue: dict[str, Any] = {}
        if case.kind != "dgrad":
            channels, shape = (k, y.shape) if case.kind == "fprop" else (c, self.x.shape)
            self.epilogue = {name: draw(channels) for name in ("bias", "scale", "shift") if case.option(name, False)}
            if "bias" in self.epilogue:  # read by its stride
                self.epilogue["bias"] = self.epilogue["bias"].repeat_interleave(3)[::3]
            if case.option("residual", False):
                self.epilogue["residual"] = _laid_out(draw(*shape), case.layout)
            self.epilogue["activation"] = case.option("activation", None)
        y = y if case.kind == "fprop" else draw(*y.shape)
        self.y = _laid_out(y.to(TYPES[case.dtype]), case.layout)

    def problem(self) -> ConvProblem:
        """Return the problem of the case, with channels-last tensors, whatever those of size 1 are taken for."""
        kind = "fprop" if self.case.kind == "fprop" else "dgrad"
        problem = self.call(f"triton.conv.{kind}.implicit_gemm", explain=True).problem
        problem = replace(problem, x_format="channels_last", y_format="channels_last", precision="tf32")
        assert SOLVERS[self.case.kind].why_not(problem) is None, SOLVERS[self.case.kind].why_not(problem)
        return problem


def config_of(case: Case, problem: ConvProblem) -> dict[str, Any]:
    """Return a small tile, so that small problems have several tiles on each axis, with options by turns."""
    turn, (dense, *_) = sum(map(ord, case.id)), phases_of(problem)
    positions, least = (16, 32)[turn // 2 % 2], 16 // dense.item
    box = dict(zip(("TILE_N", "TILE_O", "TILE_P", "TILE_Q"), box_of(positions, dense.walked), strict=True))
    if turn % 3 == 0:  # another box, of which parts lie beside the result
        box |= {"TILE_N": positions // 8, "TILE_O": 1, "TILE_P": 2, "TILE_Q": 4}
    elif turn % 3 == 1 and case.ndim == 3:
        box |= {"TILE_N": 1, "TILE_O": 2, "TILE_P": 2, "TILE_Q": positions // 4}
    depth = max((2, 4)[turn // 5 % 2] * least, 16)
    return {
        "form": "of a test", **box, "BLOCK_K": (16, 32)[turn // 3 % 2], "BLOCK_C": depth,
        "num_warps": 1, "num_stages": 1,
    }  # fmt: skip


def launch(inputs: Inputs, problem: ConvProblem, order: str, config: dict[str, Any] | None = None) -> torch.Tensor:
    """Launch the kernels of the case between guard bands; inputs must stay, and the result be written whole."""
    config, solver, result = config or config_of(inputs.case, problem), SOLVERS[inputs.case.kind], problem.result
    guarded: dict[str, Guarded] = {name: guard_input(getattr(inputs, name)) for name in "xwy" if name != result}
    guarded |= {k: guard_input(v) for k, v in inputs.epilogue.items() if isinstance(v, torch.Tensor)}
    shape = getattr(inputs, result).shape
    strides = with_layout(torch.empty(shape), "channels_last").stride()
    guarded[result] = guard_output(shape, strides, getattr(inputs, result).dtype)
    written = {result}
    for name, (dtype, elements) in solver.parts(solver.bind(problem, config)).items():
        guarded[name] = guard_output((elements,), (1,), getattr(torch, dtype))
        written.add(name)
    tensors: dict[str, torch.Tensor | None] = dict.fromkeys(("bias", "scale", "shift", "residual"))
    tensors.update({name: placed.tensor for name, placed in guarded.items()})
    with program_order(order):
        solver.launch(problem, tensors, config)
    for name, placed in guarded.items():
        placed.check(name, written=name in written)
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
