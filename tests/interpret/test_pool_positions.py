"""Gradients of large max pools from positions, axis after axis: as taps give them, and right for any positions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from harness import ORDERS, program_order
from mutants import mutant

import gpuconv
from gpuconv.backends.triton import pool_windows
from gpuconv.dispatch import record_plans, select

LAST = torch.channels_last
WIDE = ((6, 7), (2, 1), (2, 3), (1, 2))
"""Kernel, stride, padding and dilation."""


@dataclass
class Given:
    """A gradient of y, x, the window, and positions of windows."""

    grad: torch.Tensor
    x: torch.Tensor
    window: tuple[Any, ...]
    indices: torch.Tensor

    def gradient(self, solver: str) -> torch.Tensor:
        """Return the gradient of x by a solver."""
        function = getattr(gpuconv, f"max_pool{self.x.ndim - 2}d_with_indices_backward")
        return function(self.grad, self.x, *self.window, False, self.indices, backend=f"triton.pool.max.bwd.{solver}")


def given(size: tuple[int, ...] = (2, 3, 17, 14), window: tuple[Any, ...] = WIDE, layout: Any = None) -> Given:
    """Return a max pool of random numbers, with many ties, and a gradient whose sums are rounded."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(size, generator=generator).mul(2).round()
    _, indices = getattr(gpuconv, f"max_pool{len(size) - 2}d")(x, *window, return_indices=True, backend="numpy")
    grad = torch.randn(indices.shape, generator=generator)
    tensors = [tensor.to(memory_format=layout) if layout else tensor for tensor in (grad, x, indices)]
    return Given(tensors[0], tensors[1], window, tensors[2])


def crossing(one: Given) -> Given:
    """Return `one` with positions drawn from the window of each output, so that windows of a line disagree."""
    generator = torch.Generator().manual_seed(7)
    kernel, stride, padding, dilation = one.window
    position = torch.zeros((), dtype=torch.int64)
    for axis, size in enumerate(one.x.shape[2:]):
        shape = [1] * one.x.ndim
        shape[2 + axis] = -1
        start = torch.arange(one.grad.shape[2 + axis]).view(shape) * stride[axis] - padding[axis]
        tap = torch.randint(0, kernel[axis], one.grad.shape, generator=generator)
        place = (start + tap * dilation[axis]).clamp(0, size - 1)
        position = position * size + place
    return Given(one.grad, one.x, one.window, position)


def outside(one: Given) -> Given:
    """Return `one` with some positions that their window, or no plane, has."""
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randint(0, 6, one.indices.shape, generator=generator)
    kept, plane = torch.rand(drawn.shape, generator=generator) < 0.5, one.x[0, 0].numel()
    strange = torch.tensor([0, plane, -1, plane - 1, 2**32 + 5, -(2**40)])[drawn]
    return Given(one.grad, one.x, one.window, torch.where(kept, one.indices, strange))


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of kernels that are launched."""
    names: list[str] = []
    launch = pool_windows.launch_kernel

    def count(problem: Any, kernel: Any, *args: Any) -> None:
        names.append(kernel.__name__)
        launch(problem, kernel, *args)

    monkeypatch.setattr(pool_windows, "launch_kernel", count)
    return names


CASES: dict[str, Callable[[], Given]] = {
    "2-D": given,
    "2-D channels last": lambda: given(layout=LAST),
    "2-D dilated by stride": lambda: given((1, 2, 23, 20), ((5, 6), (3, 2), (2, 3), (3, 2))),
    "3-D": lambda: given((1, 2, 7, 9, 8), ((4, 3, 5), (1, 2, 1), (2, 1, 2), (1, 1, 1))),
    "3-D along two axes": lambda: given((2, 2, 9, 3, 8), ((6, 1, 5), (2, 1, 2), (1, 0, 2), (1, 1, 1))),
}


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


def located(one: Given) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tap of each window that reads its position, and which windows have one."""
    rest, taps, scale = one.indices, torch.zeros_like(one.indices), 1
    reads = (rest >= 0) & (rest < one.x[0, 0].numel())
    for axis in reversed(range(one.x.ndim - 2)):
        kernel, stride, padding, dilation = (sides[axis] for sides in one.window)
        size, shape = one.x.shape[2 + axis], [1] * one.x.ndim
        shape[2 + axis] = -1
        distance = rest % size - (torch.arange(one.grad.shape[2 + axis]) * stride - padding).view(shape)
        reads = reads & (distance >= 0) & (distance % dilation == 0) & (distance // dilation < kernel)
        taps = taps + distance // dilation * scale
        rest, scale = rest // size, scale * kernel
    return taps, reads


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


def referee(one: Given) -> torch.Tensor:
    """Return the gradient in float64: each window's goes to its position, where one of its taps reads that."""
    reads = located(one)[1]
    dx = torch.zeros(one.x.shape, dtype=torch.float64).flatten(2)
    grad = torch.where(reads, one.grad, 0.0).double()
    return dx.scatter_add(2, torch.where(reads, one.indices, 0).flatten(2), grad.flatten(2)).view(one.x.shape)


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
