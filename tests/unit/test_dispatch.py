"""Which solver runs, and whether the library says so."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import dispatch
from gpuconv.backends.base import Backend, Plan, Solver
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.problem import Call, ConvProblem, Problem

REPO = Path(__file__).resolve().parents[2]
IM2COL, TAPS = "numpy.conv.fprop.im2col", "numpy.conv.fprop.taps"


def x_w(channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((2, channels, 8, 8), np.float32), np.ones((4, channels, 3, 3), np.float32)


# explain


def test_explain_says_what_would_run() -> None:
    x, w = x_w()
    bias = np.ones(4, np.float32)
    explanation = gpuconv.explain(gpuconv.conv2d, x, w, bias, stride=2, padding=1, activation="relu")
    assert isinstance(explanation, gpuconv.Explanation)
    assert explanation.solver == IM2COL
    assert explanation.plan is not None and explanation.plan.solver.id == IM2COL
    problem = explanation.problem
    assert isinstance(problem, ConvProblem)
    assert (problem.op, problem.kind) == ("conv2d", "fprop")
    assert (problem.x_shape, problem.w_shape, problem.y_shape) == ((2, 3, 8, 8), (4, 3, 3, 3), (2, 4, 4, 4))
    assert problem.flops == 2 * 2 * 4 * 4 * 4 * 3 * 9
    assert problem.min_bytes == 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 16 + 4)
    assert problem.reduction_length == 27
    assert explanation.candidates[0].solver.id == IM2COL and explanation.candidates[0].reason is None
    assert explanation.candidates[0].estimate > 0
    ids = [candidate.solver.id for candidate in explanation.candidates]
    assert sorted(ids) == sorted(solver.id for backend in dispatch.backends().values() for solver in backend.solvers())
    assert len(set(ids)) == len(ids)


def test_explain_runs_nothing() -> None:
    huge = np.broadcast_to(np.float32(1), (2**16, 4, 2**12, 2**12))
    explanation = gpuconv.explain(gpuconv.conv2d, huge, np.ones((4, 4, 3, 3), np.float32))
    assert explanation.problem.index64
    assert explanation.solver == IM2COL


def test_explain_raises_what_the_call_raises_and_then_calls_run_again() -> None:
    x, w = x_w()
    with pytest.raises(RuntimeError, match="stride must be positive"):
        gpuconv.explain(gpuconv.conv2d, x, w, stride=0)
    assert isinstance(gpuconv.conv2d(x, w), np.ndarray)


@pytest.mark.parametrize("fn", [len, np.asarray])
def test_explain_wants_a_function_of_gpuconv(fn) -> None:
    with pytest.raises(TypeError, match="fn must be a function of gpuconv"):
        gpuconv.explain(fn, [1])


@pytest.mark.parametrize("result", ["conv2d", np.ones(3)])
def test_explain_of_a_result_says_how_to_ask(result) -> None:
    with pytest.raises(
        TypeError, match=r"fn must be a function of gpuconv, .*explain\(gpuconv.conv2d, x, w\); but got"
    ):
        gpuconv.explain(result)


def test_explain_of_what_nothing_can_run() -> None:
    x, w = x_w()
    explanation = gpuconv.explain(gpuconv.conv2d, x, w, backend="cupy")
    assert explanation.plan is None and explanation.solver is None
    assert all(candidate.reason for candidate in explanation.candidates)


def test_explain_covers_gradients_and_transposed() -> None:
    x, w = x_w()
    dy = np.ones((2, 4, 6, 6), np.float32)
    calls = {
        "numpy.conv.dgrad.col2im": (gpuconv.conv2d_input_grad, x.shape, w, dy),
        "numpy.conv.wgrad.im2col": (gpuconv.conv2d_weight_grad, x, w.shape, dy),
    }
    for solver, call in calls.items():
        assert gpuconv.explain(*call).solver == solver
    transposed = gpuconv.explain(gpuconv.conv_transpose2d, dy, w)
    assert transposed.solver == "numpy.conv.dgrad.col2im"
    assert transposed.problem.kind == "transposed" and transposed.problem.x_shape == (2, 3, 8, 8)


# choosing


class FakeSolver(Solver):
    def __init__(self, id: str, estimate: float, reason: str | None = None, workspace: int = 0) -> None:
        self.id, self.estimate, self.reason, self.workspace = id, estimate, reason, workspace

    def why_not(self, problem: Problem) -> str | None:
        return self.reason

    def rank(self, problem: Problem) -> float:
        assert self.reason is None, "rank() of a solver that refused"
        return self.estimate

    def plan(self, problem: Problem) -> Plan:
        return Plan(self, problem, self.workspace)

    def run(self, plan: Plan, call: Call) -> str:
        return self.id


class FakeBackend(Backend):
    def __init__(self, name: str, *solvers: FakeSolver, reason: str | None = None) -> None:
        self.name, self._solvers, self.reason = name, solvers, reason

    def missing(self) -> str | None:
        return None

    def why_not(self, problem: Problem, forced: bool) -> str | None:
        return self.reason

    def solvers(self) -> tuple[FakeSolver, ...]:
        return self._solvers


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Replace the backends for one test."""
    dispatch.selection._plan.cache_clear()
    CACHE.clear()

    def replace(*backends: FakeBackend) -> None:
        monkeypatch.setattr(dispatch.selection, "backends", lambda: {backend.name: backend for backend in backends})

    yield replace
    dispatch.selection._plan.cache_clear()
    CACHE.clear()


def test_lowest_estimate_of_the_first_backend_wins(install) -> None:
    install(
        FakeBackend("triton", FakeSolver("triton.slow", 9.0), FakeSolver("triton.fast", 5.0)),
        FakeBackend("numpy", FakeSolver("numpy.fastest", 1.0)),
    )
    assert gpuconv.conv2d(*x_w()) == "triton.fast"
    assert gpuconv.conv2d(*x_w(), backend="numpy") == "numpy.fastest"
    assert gpuconv.conv2d(*x_w(), backend="triton.slow") == "triton.slow"
    found = dispatch.candidates(gpuconv.explain(gpuconv.conv2d, *x_w()).problem)
    assert [candidate.solver.id for candidate in found] == ["triton.fast", "triton.slow", "numpy.fastest"]


def test_refusals_are_passed_over_and_listed_last(install) -> None:
    install(
        FakeBackend("triton", FakeSolver("triton.any", 1.0), reason="no CUDA device"),
        FakeBackend("cupy", FakeSolver("cupy.odd", 1.0, "needs an odd size, the problem has 8")),
        FakeBackend("numpy", FakeSolver("numpy.any", 7.0)),
    )
    assert gpuconv.conv2d(*x_w()) == "numpy.any"
    found = dispatch.candidates(gpuconv.explain(gpuconv.conv2d, *x_w()).problem)
    assert [candidate.reason for candidate in found] == [None, "no CUDA device", "needs an odd size, the problem has 8"]


@pytest.mark.parametrize("forced", ["triton", "triton.any", "cupy", "cupy.odd"])
def test_a_forced_backend_or_solver_never_falls_back(install, forced: str) -> None:
    install(
        FakeBackend("triton", FakeSolver("triton.any", 1.0), reason="no CUDA device"),
        FakeBackend("cupy", FakeSolver("cupy.odd", 1.0, "needs an odd size, the problem has 8")),
        FakeBackend("numpy", FakeSolver("numpy.any", 7.0)),
    )
    with pytest.raises(gpuconv.NoSolverError) as caught:
        gpuconv.conv2d(*x_w(), backend=forced)
    text = str(caught.value)
    assert text.startswith(f"conv2d: backend={forced!r} cannot run this call: ")
    others = "cupy.odd, numpy.any" if forced.startswith("triton") else "triton.any, numpy.any"
    assert f"  {others}: backend {forced.partition('.')[0]!r} was forced" in text
    assert ("  triton.any: no CUDA device" in text) == forced.startswith("triton")
    assert ("  cupy.odd: needs an odd size" in text) == forced.startswith("cupy")


def test_workspace_decides_among_solvers(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeBackend("numpy", FakeSolver("numpy.greedy", 1.0, workspace=4096), FakeSolver("numpy.modest", 2.0)))
    assert gpuconv.conv2d(*x_w()) == "numpy.greedy"
    monkeypatch.setenv("GPUCONV_WORKSPACE", "4096")
    assert gpuconv.conv2d(*x_w()) == "numpy.greedy"
    monkeypatch.setenv("GPUCONV_WORKSPACE", "4095")
    assert gpuconv.conv2d(*x_w()) == "numpy.modest"
    with pytest.raises(gpuconv.NoSolverError, match=r"numpy.greedy: needs 4096 B of workspace, the limit is 4095 B"):
        gpuconv.conv2d(*x_w(), backend="numpy.greedy")


# forcing


def test_forced_solver_runs() -> None:
    x, w = x_w(channels=1)
    with dispatch.record_plans() as plans:
        outputs = [gpuconv.conv2d(x, w, backend=solver) for solver in (IM2COL, TAPS, "numpy")]
    fastest = min((IM2COL, TAPS), key=lambda id: dispatch.solver_of(id).rank(plans[0].problem))
    assert [plan.solver.id for plan in plans] == [IM2COL, TAPS, fastest]
    assert all((output == 9).all() for output in outputs)


def test_forced_solver_refuses_with_its_reason() -> None:
    with pytest.raises(gpuconv.NoSolverError) as caught:
        gpuconv.conv2d(*x_w(), backend=TAPS)
    assert f"  {TAPS}: needs 1 input channel per group, the problem has 3" in str(caught.value)
    assert f"  {IM2COL}: solver {TAPS!r} was forced" in str(caught.value)


@pytest.mark.parametrize("solver", ["numpy.conv.fprop.nonsense", "numpy.", "numpy.conv.fprop"])
def test_unknown_solver(solver: str) -> None:
    with pytest.raises(gpuconv.NoSolverError, match=f"^conv2d: backend={solver!r} names no solver; "):
        gpuconv.conv2d(*x_w(), backend=solver)


def test_arrays_elsewhere_are_refused_with_the_device() -> None:
    x, w = (torch.from_numpy(array).to("meta") for array in x_w())
    explanation = gpuconv.explain(gpuconv.conv2d, x, w)
    assert explanation.plan is None
    reasons = {candidate.solver.id: candidate.reason for candidate in explanation.candidates}
    assert str(reasons[IM2COL]).startswith("arrays are on meta")


def test_use_backend_is_local_to_the_thread() -> None:
    x, w = x_w(channels=1)
    seen: dict[str, str] = {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        with dispatch.record_plans() as plans:
            gpuconv.conv2d(x, w)
        seen["other thread"] = plans[0].solver.id
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with gpuconv.use_backend(TAPS), dispatch.record_plans() as plans:
        inside.set()
        assert done.wait(10)
        gpuconv.conv2d(x, w)
    thread.join()
    assert seen == {"other thread": IM2COL}
    assert [plan.solver.id for plan in plans] == [TAPS]


def test_use_backend_is_local_to_the_task() -> None:
    x, w = x_w(channels=1)
    order: list[str] = []

    async def task(solver: str, first: asyncio.Event, second: asyncio.Event) -> str:
        with gpuconv.use_backend(solver):
            first.set()
            await second.wait()  # both tasks are inside their blocks now
            with dispatch.record_plans() as plans:
                gpuconv.conv2d(x, w)
        order.append(solver)
        return plans[0].solver.id

    async def main() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task(IM2COL, a, b), task(TAPS, b, a))

    assert asyncio.run(main()) == [IM2COL, TAPS]
    assert len(order) == 2


def test_argument_wins_over_context() -> None:
    x, w = x_w(channels=1)
    with dispatch.record_plans() as plans, gpuconv.use_backend(IM2COL):
        gpuconv.conv2d(x, w)
        gpuconv.conv2d(x, w, backend=TAPS)
        gpuconv.conv2d(x, w, backend="auto")
    fastest = min((IM2COL, TAPS), key=lambda id: dispatch.solver_of(id).rank(plans[0].problem))
    assert [plan.solver.id for plan in plans] == [IM2COL, TAPS, fastest]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("GPUCONV_")}
    env["PYTHONPATH"] = str(REPO)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


CODE = """
import numpy as np, gpuconv
x, w = np.ones((1, 1, 4)), np.ones((1, 1, 2))
print(gpuconv.explain(gpuconv.conv1d, x, w).solver)
with gpuconv.use_backend("numpy.conv.fprop.im2col"):
    print(gpuconv.explain(gpuconv.conv1d, x, w).solver)
gpuconv.conv1d(x, w)
"""


def test_environment_variable_forces() -> None:
    done = run_python(CODE, GPUCONV_BACKEND=TAPS)
    assert (done.returncode, done.stdout.split()) == (0, [TAPS, IM2COL]), done.stderr
    done = run_python(CODE, GPUCONV_BACKEND="auto")
    assert (done.returncode, done.stdout.split()) == (0, [IM2COL, IM2COL]), done.stderr
    done = run_python(CODE, GPUCONV_BACKEND="cupy")
    assert done.stdout.split() == ["None", IM2COL]
    assert done.returncode == 1 and "NoSolverError" in done.stderr and "GPUCONV_BACKEND=cupy cannot" in done.stderr


def test_environment_variable_is_checked() -> None:
    done = run_python(CODE, GPUCONV_BACKEND="cudnn")
    assert done.returncode == 1
    assert "ValueError: environment variable GPUCONV_BACKEND must be one of 'auto', 'triton'" in done.stderr
    assert "but got 'cudnn'" in done.stderr


# workspace


@pytest.mark.parametrize("limit", ["0", "1"])
def test_the_reference_goes_over_the_limit_with_one_warning(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    x, w = x_w()
    expected = gpuconv.conv2d(x, w), gpuconv.max_pool2d(x, 3)
    monkeypatch.setattr(dispatch.selection, "_warned", set())
    monkeypatch.setenv("GPUCONV_WORKSPACE", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained = gpuconv.explain(gpuconv.conv2d, x, w)
    assert explained.solver == IM2COL and explained.candidates[0].reason is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for array in (x, x[:1], torch.from_numpy(x)):
            y = gpuconv.conv2d(array, w if isinstance(array, np.ndarray) else torch.from_numpy(w))
            np.testing.assert_array_equal(np.asarray(y), expected[0][: len(y)])
            np.testing.assert_array_equal(np.asarray(gpuconv.max_pool2d(array, 3)), expected[1][: len(y)])
        gpuconv.conv2d(x, w, stride=2, backend=IM2COL)
    texts = [str(warning.message) for warning in caught]
    assert [warning.category for warning in caught] == [gpuconv.WorkspaceWarning] * 2
    assert texts[0].startswith(f"conv2d: {IM2COL} needs ") and f"B of workspace, the limit is {limit} B" in texts[0]
    assert texts[1].startswith("max_pool2d: numpy.pool.max.fprop needs ")


def test_explain_refuses_what_the_call_refuses(install, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = FakeSolver("numpy.reference", 3.0, workspace=9000)
    reference.always_answers = True
    solvers = (
        FakeSolver("numpy.greedy", 1.0, workspace=8192),
        FakeSolver("numpy.modest", 2.0, workspace=4096),
        reference,
    )
    install(FakeBackend("numpy", *solvers))
    monkeypatch.setattr(dispatch.selection, "_warned", {"conv2d"})
    reasons = [f"needs {solver.workspace} B of workspace, the limit is" for solver in solvers]
    for limit, order, refused in (
        ("9000", ["greedy", "modest", "reference"], []),
        ("8999", ["greedy", "modest", "reference"], [2]),
        ("4096", ["modest", "greedy", "reference"], [0, 2]),
        ("4095", ["reference", "greedy", "modest"], [0, 1]),
    ):
        monkeypatch.setenv("GPUCONV_WORKSPACE", limit)
        explained = gpuconv.explain(gpuconv.conv2d, *x_w())
        assert [candidate.solver.id for candidate in explained.candidates] == [f"numpy.{name}" for name in order]
        found = [candidate.reason for candidate in explained.candidates if candidate.reason]
        assert found == [f"{reasons[place]} {limit} B" for place in refused]
        assert gpuconv.conv2d(*x_w()) == explained.solver == f"numpy.{order[0]}"


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("groups", [1, 4])
def test_results_are_right_at_a_small_limit(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, groups: int, padding_mode: str
) -> None:
    x, w = (
        rng.integers(-4, 5, (2, 4, 150, 170)).astype(float),
        rng.integers(-4, 5, (8, 4 // groups, 3, 5)).astype(float),
    )
    geometry = {"padding": ((1, 2), (3, 0)), "groups": groups, "padding_mode": padding_mode, "dilation": 2}

    def results() -> list[np.ndarray]:
        y = gpuconv.conv2d(x, w, **geometry)
        plain = {key: value for key, value in geometry.items() if key != "padding_mode"}
        return [
            y,
            gpuconv.conv2d_input_grad(x.shape, w, y, **geometry),
            gpuconv.conv2d_weight_grad(x, w.shape, y, **geometry),
            gpuconv.conv_transpose2d(y, w, **plain),
        ]

    wide = results()
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(1 << 20))
    with dispatch.record_plans() as plans:
        narrow = results()
    assert all(plan.workspace <= 1 << 20 for plan in plans)
    for one, other in zip(wide, narrow):
        np.testing.assert_array_equal(one, other)


# records and the log


def test_record_plans_nests_and_stops() -> None:
    x, w = x_w()
    with dispatch.record_plans() as outer:
        gpuconv.conv2d(x, w)
        with dispatch.record_plans() as inner:
            gpuconv.conv2d(x, w, stride=2)
    gpuconv.conv2d(x, w)
    assert [plan.problem.stride for plan in outer] == [(1, 1)]
    assert [plan.problem.stride for plan in inner] == [(2, 2)]


def test_plans_are_kept() -> None:
    x, w = x_w()
    with dispatch.record_plans() as plans:
        gpuconv.conv2d(x, w)
        gpuconv.conv2d(x + 1, w.copy())
        gpuconv.conv2d(x, w, stride=2)
    assert plans[0] is plans[1]
    assert plans[0] is not plans[2]


def test_each_solver_is_logged_once_per_operation(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(dispatch.execution, "_logged", set())
    x, w = x_w()
    with caplog.at_level(logging.INFO, "gpuconv"):
        for _ in range(3):
            gpuconv.conv2d(x, w)
        gpuconv.conv_transpose2d(x[:, :1], w[:1])
    assert [record.getMessage() for record in caplog.records] == [
        f"conv2d runs on {IM2COL}",
        "conv_transpose2d runs on numpy.conv.dgrad.col2im",
    ]
