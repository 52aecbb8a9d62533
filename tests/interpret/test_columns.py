"""The kernels of unfold and fold against the reference, in the interpreter."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from fprop_cases import DTYPES, as_numpy, with_layout
from harness import ORDERS, guard_input, guard_output, program_order
from mutants import mutant

import gpuconv
from gpuconv import numerics
from gpuconv.arrays import TORCH
from gpuconv.backends.triton import columns as triton_columns
from gpuconv.costs.model import Work
from gpuconv.dispatch import record_plans
from gpuconv.normalize.pool_forward import fold_call, unfold_call

LAYOUTS = ("contiguous", "channels_last", "strided")
SOLVERS = {"unfold": triton_columns.UnfoldCopy(), "fold": triton_columns.FoldGather()}
TILES = {"unfold": {"BLOCK_M": 8, "BLOCK_L": 4}, "fold": {"BLOCK_M": 4, "BLOCK_L": 8}}

BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": (1, 2)},
    "strided": {"stride": (1, 2), "padding": 1},
    "dilated": {"dilation": (2, 3), "padding": (2, 1)},
    "dilated and strided": {"dilation": (2, 1), "stride": (3, 2), "padding": 2},
    "patches": {"kernel": (2, 3), "stride": (2, 3)},
    "gaps": {"kernel": (1, 2), "stride": 3},
    "64-bit": {"padding": 1, "index64": True},
    "specials": {"padding": 1, "values": "specials"},
}
"""What an image of 2 x 5 x 7 x 10 is unfolded with; windows of 3 x 2 unless they say otherwise."""


@dataclass(frozen=True)
class Case:
    """What is computed, how its operand lies, its type, and a branch."""

    op: str
    layout: str
    dtype: str
    branch: str

    @property
    def id(self) -> str:
        return f"{self.op}-{self.layout}-{self.dtype}-{self.branch}"

    def option(self, name: str, default: Any) -> Any:
        return BRANCHES[self.branch].get(name, default)


CASES = [Case(*parts) for parts in product(SOLVERS, LAYOUTS, DTYPES, BRANCHES)]


def call_of(case: Case) -> tuple[torch.Tensor, Any, tuple[Any, ...]]:
    """Return the operand of a case, its call and the other arguments of the function."""
    generator = torch.Generator().manual_seed(sum(map(ord, case.id)))
    windows = tuple(case.option(name, default) for name, default in _WINDOWS.items())
    image = torch.randn(2, 5, 7, 10, generator=generator, dtype=torch.float64)
    values = gpuconv.unfold(image, *windows)
    if case.op == "fold":
        values = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    operand = image if case.op == "unfold" else values
    if case.option("values", "") == "specials":
        chance = torch.rand(operand.shape, generator=generator)
        operand[chance < 0.1], operand[chance > 0.9] = float("nan"), float("inf")
    operand = with_layout(operand.to(DTYPES[case.dtype]), case.layout)
    if case.op == "unfold":
        return operand, unfold_call("unfold", 2, operand, *windows, "triton"), windows
    return operand, fold_call("fold", 2, operand, (7, 10), *windows, "triton"), ((7, 10), *windows)


_WINDOWS = {"kernel": (3, 2), "dilation": 1, "padding": 0, "stride": 1}


def launch(case: Case, order: str) -> torch.Tensor:
    """Launch on guarded tensors, programs in `order`; check the guards; return the result."""
    operand, call, _ = call_of(case)
    problem = call.problem
    shape = triton_columns.columns_shape(problem) if case.op == "unfold" else problem.x_shape
    read = guard_input(operand)
    written = guard_output(shape, torch.empty(shape).stride(), operand.dtype)
    tensors = {"x": read, "y": written} if case.op == "unfold" else {"y": read, "x": written}
    config = (
        TILES[case.op]
        | {"num_warps": 4, "num_stages": 2}
        | ({"INDEX64": True} if case.option("index64", False) else {})
    )
    with program_order(order):
        SOLVERS[case.op].launch(problem, {name: guarded.tensor for name, guarded in tensors.items()}, config)
    read.check("operand", False)
    written.check("result", True)
    return written.tensor


def orders_of(case: Case) -> tuple[str, str]:
    return "forward", ORDERS[1 + sum(map(ord, case.id)) % 2]


def check_case(case: Case, orders: tuple[str, ...]) -> None:
    """Assert that copies are exact, and sums within tolerance; other orders of programs change no bit."""
    result, *others = (launch(case, order) for order in orders)
    for other in others:
        assert torch.equal(result.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    operand, call, arguments = call_of(case)
    function = getattr(gpuconv, case.op)
    if case.op == "unfold":
        expected = function(operand, *arguments, backend="numpy")
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        return
    exact, magnitude = function(operand.double(), *arguments), function(operand.double().abs(), *arguments)
    taps = prod(call.problem.kernel)
    numerics.assert_close(as_numpy(result), exact.numpy(), magnitude.numpy(), case.dtype, taps)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case: Case) -> None:
    check_case(case, orders_of(case))


@pytest.mark.parametrize("op", SOLVERS)
def test_cases_are_distinct_and_have_several_ragged_tiles(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in CASES if case.op == op]
    assert len({(case.layout, case.dtype, case.branch) for case in cases}) == len(cases) >= 60
    assert {order for case in cases for order in orders_of(case)} == set(ORDERS)
    caught: list[Any] = []
    monkeypatch.setattr(triton_columns, "launch_kernel", lambda *given: caught.append(given))
    for case in cases:
        launch(case, "forward")
        _, _, (programs,), _, arguments, config = caught.pop()
        rows, lanes = SOLVERS[op].extent(call_of(case)[1].problem)
        tiles = arguments["tiles_l"]
        assert tiles >= 3 and programs // tiles >= 3, case.id
        assert rows % config["BLOCK_M"] or lanes % config["BLOCK_L"], case.id
        assert arguments["lanes"] == lanes and arguments["INDEX64"] == case.option("index64", False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_public_functions(dtype: str) -> None:
    """Both functions run these kernels with default tiles, gradients too; small integers come out exact."""
    for layout in LAYOUTS:
        x = with_layout(torch.randint(-3, 4, (2, 5, 11, 13)).to(DTYPES[dtype]), layout).requires_grad_()
        with record_plans() as plans:
            columns = gpuconv.unfold(x, (3, 2), (1, 2), 1, 2, backend="triton")
            image = gpuconv.fold(columns, (11, 13), (3, 2), (1, 2), 1, 2, backend="triton")
            (gradient,) = torch.autograd.grad(image.sum(), x)
        names = [plan.solver.id for plan in plans]
        assert names == [f"triton.pool.{name}" for name in ("unfold.fprop.copy", "fold.fprop.gather")] * 2
        times = torch.nn.functional.fold(torch.nn.functional.unfold(torch.ones(1, 1, 11, 13), (3, 2), (1, 2), 1, 2),
                                         (11, 13), (3, 2), (1, 2), 1, 2).to(x.dtype)  # fmt: skip
        assert torch.equal(columns, torch.nn.functional.unfold(x, (3, 2), (1, 2), 1, 2))
        assert torch.equal(image, x * times) and torch.equal(gradient, times.expand_as(x))
        assert columns.is_contiguous() and image.is_contiguous()


def test_empty_batches_and_other_types() -> None:
    assert gpuconv.unfold(torch.zeros(0, 3, 5, 5), 2, backend="triton").shape == (0, 12, 16)
    assert gpuconv.fold(torch.zeros(0, 12, 16), 5, 2, backend="triton").shape == (0, 3, 5, 5)
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(gpuconv.NoSolverError, match=f"not {str(dtype).removeprefix('torch.')}"):
            gpuconv.unfold(torch.zeros(1, 3, 5, 5, dtype=dtype), 2, backend="triton")


def test_estimates_count_the_columns() -> None:
    """The columns of large windows are many times the image, and so is the time."""
    estimates = []
    for kernel in (1, 3, 9):
        call = unfold_call("unfold", 2, torch.zeros(8, 64, 56, 56), kernel, 1, kernel // 2, 1, None)
        solver, problem = SOLVERS["unfold"], call.problem
        work = solver.work(problem, [solver.default(problem)])
        assert isinstance(work, Work) and TORCH.shape(call.arrays["x"]) == problem.x_shape
        estimates.append(problem.min_bytes)
    image = 4 * 8 * 64 * 56 * 56
    assert estimates == [2 * image, 10 * image, 82 * image]


PROBES = [case for case in CASES if case.layout != "contiguous" and case.dtype == "float32"]

MUTANTS = {
    "image rows unchecked": ("_unfold_kernel", "image = inside & (i_h >= 0) & (i_h < h) &", "image = inside &"),
    "image columns unchecked": ("_unfold_kernel", "& (i_w >= 0) & (i_w < w)\n", "\n"),
    "taps swapped": ("_unfold_kernel", "+ tap // S * DILATION_H", "+ tap % R * DILATION_H"),
    "lanes unmasked at the store": ("_unfold_kernel", "value, mask=inside)", "value, mask=i_n < n)"),
    "channels and taps swapped": ("_unfold_kernel", "(i_n * c + i_c) * (R * S) + tap", "(i_n * R * S + tap) * c + i_c"),
    "padding forgotten": ("_unfold_kernel", "lane % q * STRIDE_W - pad_w", "lane % q * STRIDE_W"),
    "last window forgotten": (
        "_fold_kernel",
        "DILATION_H * (R - 1) // STRIDE_H + 1",
        "DILATION_H * (R - 1) // STRIDE_H",
    ),
    "windows unchecked": ("_fold_kernel", "(i_p >= 0) & (i_p < p) &", "(i_p >= 0) &"),
    "taps between dilated ones": ("_fold_kernel", "& (left_w % DILATION_W == 0)", ""),
    "taps beyond the window": ("_fold_kernel", "& (s < S)", ""),
    "rows unmasked": ("_fold_kernel", "inside = (row < n * c) &", "inside = (row >= 0) &"),
    "neighbour's channel": ("_fold_kernel", "row % c * (R * S) * y_stride_k", "row % c * y_stride_k"),
}


def _noticed(kernel: str) -> bool:
    for case in PROBES:
        if case.op == kernel.split("_")[1]:
            try:
                check_case(case, ("forward",))
            except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
                return True
    return False


@pytest.mark.parametrize("op", SOLVERS)
def test_probes_pass_on_the_real_kernels(op: str) -> None:
    assert not _noticed(f"_{op}_kernel")


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, old, new = MUTANTS[name]
    target = importlib.import_module("gpuconv.kernels.tl.pool.columns")
    monkeypatch.setattr(target, kernel, mutant(tmp_path, name, "pool.columns", kernel, "pool/columns.py", old, new))
    assert _noticed(kernel), f"no probe noticed the mutation {name!r}"
