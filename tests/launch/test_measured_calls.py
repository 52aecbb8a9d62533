"""What the report judges and times are replays, as the calls of users are, and on poisoned memory while it judges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from launch_cases import CALLS, DY, B, W, X
from stub_gpu import launcher
from triton.runtime.jit import JITFunction

import gpuconv
from bench import measure, referee
from bench.parity import conv_problem, thrice
from bench.timing import HostClock
from gpuconv.dispatch.plan_cache import CACHE

FORCED = {
    "triton.conv.fprop.implicit_gemm": lambda: gpuconv.conv2d(
        X, W, B, padding=1, backend="triton.conv.fprop.implicit_gemm"
    ),
    "triton.conv.wgrad.split_k": lambda: gpuconv.conv2d_weight_grad(X, W.shape, DY, padding=1, backend="triton"),
    "triton.pool.max.fprop.general": lambda: gpuconv.max_pool2d(X, 3, 2, 1, backend="triton.pool.max.fprop.general"),
}


@contextmanager
def look_ups() -> Iterator[list[int]]:
    """Count how often Triton looks a kernel up, which a replay does not do."""
    seen: list[int] = []
    original = JITFunction.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda *args, **kwargs: seen.append(1) or original(*args, **kwargs))
        yield seen


@pytest.mark.parametrize("name", ("fprop", "fprop, packed and split", "wgrad", "max_pool", "lp_pool", "unfold"))
def test_calls_are_replayed_on_poisoned_memory_and_after_it(gpu, name):
    launches, call = CALLS[name]
    with referee.poisoned(), look_ups() as seen:
        first = call()
        assert len(seen) == launches
        again = [call() for _ in range(3)]
        assert referee.replayed() and len(seen) == launches and len(gpu.launches()) == 4 * launches
    for result in (first, *again):  # the stub computes nothing: what is there was there before the launch
        assert torch.isnan(result).all()
    with look_ups() as seen:
        results = [call() for _ in range(4)]
        assert len(seen) == launches and referee.replayed()
    assert "filled" not in torch.empty_strided.__qualname__ and len(results) == 4


def test_a_replay_from_before_does_not_escape_the_poison(gpu):
    for _ in range(3):
        gpuconv.conv2d(X, W, padding=1)
    with referee.poisoned():
        assert torch.isnan(gpuconv.conv2d(X, W, padding=1)).all()
    assert len(CACHE) == 0


@pytest.mark.parametrize("solver", FORCED)
def test_parity_makes_a_call_as_users_repeat_it(gpu, solver):
    with look_ups() as seen:
        results, fields, ran = thrice(FORCED[solver])
    assert set(ran) == {solver} and fields["replayed"] is True and len(results) == 3
    assert len(seen) < 3 * len(gpu.launches()) / 2  # one of them at least did not go through Triton


def test_parity_says_where_a_call_cannot_be_replayed(gpu):
    with launcher("triton"):
        _, fields, _ = thrice(FORCED["triton.conv.fprop.implicit_gemm"])
    assert fields["replayed"] is False


def test_the_benchmark_times_replays(gpu, monkeypatch):
    """Eager time is that of calls which look nothing up: a poisoned first call used to keep all later ones from it."""
    problem = conv_problem((2, 32, 12, 12), (32, 32, 3, 3), padding=1)
    monkeypatch.setattr(referee.Referee, "verdict", lambda self, result: referee.Verdict(ok=True))
    clock, counts = HostClock(samples=5), []
    eager = HostClock.eager

    def counted(self, calls):
        calls[0]()  # the first of a kind is recorded
        with look_ups() as seen:
            timing = eager(self, calls)
        counts.append(len(seen))
        return timing

    monkeypatch.setattr(HostClock, "eager", counted)
    (record,) = measure.measure(problem, ["gpuconv"], clock)
    assert record["status"] == "ok" and record["replayed"] is True and counts == [0, 0]
