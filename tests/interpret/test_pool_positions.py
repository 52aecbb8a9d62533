"""Gradients of large max pools from positions, axis after axis: as taps give them, and right for any positions."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import ORDERS, program_order
from mutants import mutant
from position_cases import CASES, Given, crossing, located, outside, referee

from gpuconv.backends.triton import pool_windows
from gpuconv.dispatch import record_plans, select


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of kernels that are launched."""
    names: list[str] = []
    launch = pool_windows.launch_kernel

    def count(problem: Any, kernel: Any, *args: Any) -> None:
        names.append(kernel.name)
        launch(problem, kernel, *args)

    monkeypatch.setattr(pool_windows, "launch_kernel", count)
    return names


def by_taps(one: Given) -> torch.Tensor:
    """Return what the passes make of the taps of maxima, which is what autograd saves."""
    id = "triton.pool.max.bwd.separable"
    with record_plans() as plans:
        one.gradient("separable")
    problem = replace(plans[0].problem, offsets=True)
    plan, taps = select(problem, id), located(one)[0].to(getattr(torch, problem.offset_dtype))
    assert plan.solver.id == id and plan.workspace < plans[0].workspace
    dx, workspace = torch.full_like(one.x, float("nan")), torch.empty(plan.workspace, dtype=torch.uint8)
    plan.solver.launch(problem, {"y": one.grad, "indices": taps, "dx": dx, "workspace": workspace}, plan.config)
    return dx


@pytest.mark.parametrize("name", CASES)
def test_positions_of_maxima_give_what_taps_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what autograd gets, which saves taps: one addition per axis, not one over the window's area.

    So the launch over all axes, which adds in another order, has left the result alone.
    """
    one = CASES[name]()
    names = _counted(monkeypatch)
    found = one.gradient("separable")
    axes = sum(side > 1 for side in one.window[0])
    assert names == ["_pool_max_taps_kernel", *["_pool_max_bwd_general_kernel"] * (axes + 1)]
    assert torch.equal(found, by_taps(one))
    general = one.gradient("general")
    assert not torch.equal(found, general) and torch.allclose(found, general, atol=1e-5)
    assert torch.allclose(found.double(), referee(one), atol=1e-5)


def test_the_referee_is_torch_where_positions_lie_in_windows() -> None:
    one = crossing(CASES["3-D"]())
    kernel, stride, padding, dilation = one.window
    arguments = (one.grad, one.x, kernel, stride, padding, dilation, False, one.indices)
    theirs = torch.ops.aten.max_pool3d_with_indices_backward(*arguments)
    assert bool(located(one)[1].all()) and torch.allclose(referee(one).float(), theirs, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CASES)
def test_positions_that_no_max_pool_chose_are_right_too(name: str, order: str) -> None:
    """Windows that choose two elements of one line: the launch over all axes computes everything again."""
    one = crossing(CASES[name]())
    with program_order(order):
        found = one.gradient("separable")
        assert torch.equal(found, one.gradient("general"))
    assert torch.allclose(found.double(), referee(one), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_positions_outside_of_their_window_are_left_out(name: str) -> None:
    one = outside(CASES[name]())
    for solver in ("separable", "general"):
        assert torch.allclose(one.gradient(solver).double(), referee(one), atol=1e-5)
    nowhere = Given(one.grad, one.x, one.window, torch.full_like(one.indices, 2**33 + 1))
    assert not nowhere.gradient("separable").any()


@pytest.mark.parametrize("place", (8, 8 * 9, 8 * 9 + 8, 81, 2**32, -(2**32)))
def test_a_position_beside_its_window_alone_is_left_out(place: int) -> None:
    """Right of it, below, or of no plane: the tap that it would be is another one, and no conflict tells of it."""
    x, window = torch.zeros(1, 1, 9, 9), ((6, 6), (3, 3), (0, 0), (1, 1))
    indices = torch.full((1, 1, 2, 2), -1)
    indices[0, 0, 0, 0] = place
    assert not Given(torch.ones(1, 1, 2, 2), x, window, indices).gradient("separable").any()


@pytest.mark.parametrize("two", (False, True))
def test_one_window_in_conflict_is_enough(two: bool) -> None:
    """Two windows of one column of y that choose neighbours: the smallest conflict, between the first and last rows."""
    x, window = torch.zeros(1, 1, 9, 9), ((9, 9), (1, 1), (4, 4), (1, 1))
    indices = torch.full((1, 1, 9, 9), 4 * 9 + 4)
    indices[0, 0, 0, 8] += int(two)  # of columns 4 to 8
    grad = torch.ones(1, 1, 9, 9)
    found = Given(grad, x, window, indices).gradient("separable")
    expected = torch.zeros(9, 9)
    expected[4, 4], expected[4, 5] = 81 - two, two
    assert torch.equal(found[0, 0], expected)


MUTANTS = {
    "pool/taps.py": {
        "tap of another row": ("(t * R + r) * S + s, -1)", "(t * R + r) * R + s, -1)"),
        "planes and lines mixed up": ("tap_of(line % h, i_p", "tap_of(line, i_p"),
        "columns and rows mixed up": ("tap_of(position % w, i_q", "tap_of(position % h, i_q"),
        "taps outside of windows": ("exists & reads_t & reads_r & reads_s", "exists & reads_t & reads_r"),
        "positions outside of planes": ("tl.where(exists & reads_t", "tl.where(reads_t"),
        "the flag forgotten": ("tl.store(conflict_ptr, 0)", "tl.store(conflict_ptr, 1)"),
    },
    "pool/max.py": {
        "conflicts not looked at": ("if tl.load(conflict_ptr) == 0:", "if tl.load(conflict_ptr) != 0:"),
        "everything again at any rate": ("if tl.load(conflict_ptr) == 0:", "if tl.load(conflict_ptr) == 2:"),
        "conflicts not seen": ("& (left != number % BELOW), 1, crossed)", "& (left < 0), 1, crossed)"),
        "every second window a conflict": ("& (left != number % BELOW), 1, crossed)", ", 1, crossed)"),
        "conflicts of the last window alone": (
            "crossed = tl.where(hit & (left >= 0) & (left != number % BELOW), 1, crossed)",
            "crossed = tl.where(hit & (left >= 0) & (left != number % BELOW), 1, 0)",
        ),
    },
}  # fmt: skip
EVERY = {f"{file}: {name}": (file, *change) for file, changes in MUTANTS.items() for name, change in changes.items()}
KERNELS = {"pool.max": "_pool_max_bwd_general_kernel", "pool.taps": "_pool_max_taps_kernel"}


def _noticed() -> bool:
    """Tell whether what every mutant must be noticed by fails."""
    try:
        for name in ("2-D", "3-D"):
            one = CASES[name]()
            assert torch.equal(one.gradient("separable"), by_taps(one))
            for other in (crossing(one), outside(one)):
                assert torch.allclose(other.gradient("separable").double(), referee(other), atol=1e-5)
        test_one_window_in_conflict_is_enough(True)
        for place in (8, 81, 2**32):
            test_a_position_beside_its_window_alone_is_left_out(place)
    except Exception:  # any failure counts: wrong values, an access outside of memory
        return True
    return False


def test_the_real_kernels_pass() -> None:
    assert not _noticed()


@pytest.mark.parametrize("name", EVERY)
def test_mutant_is_noticed(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file, old, new = EVERY[name]
    module = file.removesuffix(".py").replace("/", ".")
    kernel = KERNELS[module]
    target = importlib.import_module(f"gpuconv.kernels.tl.{module}")
    monkeypatch.setattr(target, kernel, mutant(tmp_path, name, module, kernel, file, old, new))
    assert _noticed(), f"nothing noticed the mutation {name!r}"
