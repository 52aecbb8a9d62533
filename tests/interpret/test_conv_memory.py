"""Forward and backward allocate their results and the workspace that their plans state, and nothing else."""

from __future__ import annotations

import gc

import pytest
import torch
from storages import recorded_storages
from triton.runtime.interpreter import InterpretedFunction

import gpuconv
from gpuconv.dispatch import record_plans

CASES = {
    "volume": ("conv3d", (1, 2, 6, 8, 8), (3, 2, 3, 3, 3), {"padding": 1}),
    "circular": ("conv2d", (1, 2, 16, 16), (3, 2, 3, 3), {"padding": (2, 1), "padding_mode": "circular"}),
}


@pytest.fixture(autouse=True)
def no_arguments_kept(monkeypatch):
    """The interpreter leaves the storages of a launch in a cycle of closures: free them as a launch on a GPU would."""
    start = InterpretedFunction.run

    def run(self, *args, **kwargs):
        start(self, *args, **kwargs)
        gc.collect()

    monkeypatch.setattr(InterpretedFunction, "run", run)


def train(op, x_shape, w_shape, options, before=None):
    """Run forward and backward; return what was allocated, the plans, and the bytes of all results."""
    x, w, b = (torch.randn(shape, requires_grad=True) for shape in (x_shape, w_shape, w_shape[:1]))
    fn = getattr(gpuconv, op)
    problem = gpuconv.explain(fn, x, w, b, **options, backend="triton").problem
    seed = torch.ones(problem.y_shape)
    with recorded_storages() as storages, record_plans() as plans:
        if before is not None:
            before(x)
        y = fn(x, w, b, **options, backend="triton")
        y.backward(seed)
    assert [plan.problem.kind for plan in plans] == ["fprop", "dgrad", "wgrad"]
    assert all(plan.solver.id.startswith("triton.") for plan in plans)
    return storages, plans, sum(tensor.nbytes for tensor in (y, x.grad, w.grad, b.grad))


def check(storages, plans, results):
    """Assert that each byte is accounted for, and that workspaces are gone when the next plan runs."""
    stated = [plan.workspace for plan in plans]
    assert storages.allocated == results + sum(stated), storages.changes
    assert storages.peak <= results + max(stated), storages.changes
    assert sum(storages.changes) == results, storages.changes


@pytest.mark.parametrize("name", CASES)
def test_results_and_stated_workspace_are_all_there_is(name):
    storages, plans, results = train(*CASES[name])
    assert plans[2].config["splits"] > 1 and plans[2].workspace > 0
    check(storages, plans, results)


@pytest.mark.parametrize("limit", (3 * 324 - 1, 2 * 324, 0))
def test_workspace_stays_within_its_bound(limit, monkeypatch):
    """A weight of 324 bytes with less room than it would like: fewer splits, at last one."""
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
    storages, plans, results = train("conv2d", (1, 3, 18, 18), (3, 3, 3, 3), {"padding": 1})
    assert all(plan.workspace <= limit for plan in plans)
    check(storages, plans, results)
    assert storages.peak <= results + limit


def test_a_padded_copy_would_be_noticed():
    copies = []

    def pad(x):
        copies.append(torch.nn.functional.pad(x.detach(), (1, 1, 2, 2), mode="circular"))

    storages, plans, results = train(*CASES["circular"], before=pad)
    stated = sum(plan.workspace for plan in plans)
    assert storages.allocated >= results + stated + copies[0].nbytes
    with pytest.raises(AssertionError):
        check(storages, plans, results)
