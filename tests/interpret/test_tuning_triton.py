"""Tuning with kernels that run: configs compute the same, and the next process plans with the fastest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import dispatch
from gpuconv.costs import measured as cache
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.tuning import search as tuning
from gpuconv.tuning import trial
from gpuconv.tuning.search import tune


@pytest.fixture
def new_process(monkeypatch, tmp_path):
    """Return a function that forgets plans and tables, as a new process would have none."""
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(tmp_path))

    def forget() -> None:
        cache.forget()
        dispatch.selection._plan.cache_clear()
        CACHE.clear()

    forget()
    yield forget
    monkeypatch.undo()
    forget()


def calls():
    rng = np.random.default_rng(0)

    def integers(*shape):
        return torch.from_numpy(rng.integers(-2, 3, shape).astype(np.float32))

    x = integers(1, 16, 3, 3).to(memory_format=torch.channels_last)
    yield "conv2d", lambda backend: gpuconv.conv2d(x, integers(32, 16, 1, 1).abs(), backend=backend)
    grad = integers(1, 32, 3, 3)
    yield "conv2d_weight_grad", lambda backend: gpuconv.conv2d_weight_grad(x, (32, 16, 1, 1), grad, backend=backend)
    yield "max_pool2d", lambda backend: gpuconv.max_pool2d(x, 2, backend=backend)


@pytest.mark.parametrize(("op", "call"), list(calls()), ids=lambda value: value if isinstance(value, str) else "")
def test_tuned_configs_compute_the_same(new_process, op, call):
    with gpuconv.record_problems() as problems, dispatch.record_plans() as before:
        call("triton")
    assert [problem.op for problem in problems] == [op] and problems[0].device == "cpu"
    launched = []

    def timer(plan, launch):
        launched.append(dict(plan.config))
        return 100.0 - len(launched)  # the last is the fastest

    (record,) = tune(problems, timer=timer, most=3)
    assert record.saved and record.gpu == "Triton interpreter"
    assert [timing.reason for timing in record.timings] == [None] * len(launched) and len(launched) >= 3
    new_process()
    with dispatch.record_plans() as after:
        call("triton")
    best = record.best
    assert after[0].solver.id == best.solver and after[0].config.items() >= best.config.items()
    assert after[0].config != before[0].config or after[0].solver is not before[0].solver


def test_a_config_that_computes_something_else_is_refused(new_process, monkeypatch):
    call = dict(calls())["conv2d"]
    with gpuconv.record_problems() as problems:
        call("triton")
    run = trial.Trial.launcher

    def launcher(self, plan):
        launch = run(self, plan)
        wrong = plan.config["num_warps"] == 8
        return lambda: launch() + 1 if wrong else launch()

    monkeypatch.setattr(tuning.Trial, "launcher", launcher)
    (record,) = tune(problems, timer=lambda plan, launch: 1.0 / plan.config["num_warps"], most=4)
    assert record.timings[0].default and record.timings[0].config["num_warps"] == 4
    refused = {timing.config["num_warps"] for timing in record.timings if timing.reason}
    assert refused == {8} and record.best.config["num_warps"] == 4
    assert {timing.reason for timing in record.timings if timing.reason} == {
        "ValueError: computes something else than the default"
    }
