"""Tuning: lists of problems, which configs are timed, what is written, the command, and when nothing is timed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tuning_cases import H200, conv, pool, pretended

import gpuconv
from gpuconv import config, dispatch
from gpuconv.backends.base import Plan
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm
from gpuconv.costs import constants
from gpuconv.costs import measured as cache
from gpuconv.dispatch.problems import from_json, problem_to_json, to_json
from gpuconv.problem import ConvProblem
from gpuconv.tuning import search as tuning
from gpuconv.tuning.search import Record, samples_from_json, tune
from gpuconv.tuning.trial import Trial

REPO = Path(__file__).resolve().parents[2]
FPROP = FpropImplicitGemm()
PROBLEM = conv(32, 76, 56, 64)  # which the general solver alone takes


class FakeTimer:
    """Invents a time for each plan, from its config, and launches nothing."""

    launches = False

    def __init__(self, time: Callable[[Plan], float] = lambda plan: 10.0) -> None:
        self.time = time
        self.plans: list[Plan] = []

    def __call__(self, plan: Plan, launch: Callable[[], Any]) -> float:
        self.plans.append(plan)
        return self.time(plan)


def narrow_is_fast(plan: Plan) -> float:
    """Time as nobody would guess: the fewer stages and the wider the tile, the faster."""
    return 100.0 + plan.config["num_stages"] - plan.config["BLOCK_N"] / 64


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "_considered", set())
    with pretended(monkeypatch, tmp_path):
        yield tmp_path


# lists of problems


def test_problems_survive_json():
    problems = [
        PROBLEM,
        conv(1, 3, (5, 6, 7), 4, kind="wgrad", dtype="float32", precision="tf32", bias=True),
        conv(4, 8, 9, 8, groups=4, activation="relu", residual=True, scale=True, shift=True, kind="transposed"),
        pool(2, 3, 8, return_indices=True, offsets=True),
        pool(2, 3, 8, pool="lp", norm_type=float("inf")),
        pool(2, 3, 8, pool="avg", divisor_override=7, count_include_pad=False, ceil_mode=True),
    ]
    assert from_json(json.loads(json.dumps(to_json(problems), allow_nan=False))) == problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=2), "schema 1"),
        (lambda data: data["problems"].append([]), "problem 1: a problem must be an object"),
        (lambda data: data["problems"][0].update(type="matmul"), "of type 'conv', 'pool', 'scaled' or 'deform'"),
        (lambda data: data["problems"][0].update(stride=2), r"stride must be tuple\[int, \.\.\.\], but got 2"),
        (lambda data: data["problems"][0].update(n=True), "n must be int, but got True"),
        (lambda data: data["problems"][0].pop("kernel"), "needs kernel"),
        (lambda data: data["problems"][0].update(colour="red"), "has no colour"),
        (lambda data: data["problems"][0].update(_hash=3), "has no _hash"),
    ],
)
def test_bad_lists_of_problems_are_refused(change, message):
    data = json.loads(json.dumps(to_json([PROBLEM])))
    change(data)
    with pytest.raises(ValueError, match=f"list.json.*{message}"):
        from_json(data, "list.json")


def test_record_problems_collects_each_once_from_every_thread():
    x, w = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)

    def other() -> None:
        gpuconv.max_pool2d(x, 2)

    with gpuconv.record_problems() as outer:
        gpuconv.conv2d(x, w)
        with gpuconv.record_problems() as inner:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            gpuconv.conv2d(x, w)
            gpuconv.conv2d(x, w)
    gpuconv.conv2d(x, w, stride=2)
    assert [problem.op for problem in inner] == ["max_pool2d", "conv2d"]
    assert [problem.op for problem in outer] == ["conv2d", "max_pool2d"]
    assert from_json(json.loads(json.dumps(to_json(outer)))) == outer


def test_record_problems_sees_a_model_forward_and_backward():
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    layer = torch.nn.Parameter(torch.ones(4, 3, 3, 3))
    with gpuconv.record_problems() as problems:
        gpuconv.conv2d(x, layer, padding=1).sum().backward()
    assert [problem.kind for problem in problems] == ["fprop", "dgrad", "wgrad"]


# tuning


def test_tune_finds_what_the_timer_likes_and_the_next_process_uses_it(gpu):
    seen = []
    problems = [PROBLEM, pool(32, 64, 112), conv(32, 64, 56, 64, kind="dgrad")]
    problems[1:1] = [replace(PROBLEM, n=31), replace(PROBLEM, device="cuda:0", op="conv2d")]  # the first's bucket
    times = FakeTimer(lambda plan: narrow_is_fast(plan) if "BLOCK_N" in plan.config else 50.0)
    records = tune(problems, timer=times, progress=lambda *arguments: seen.append(arguments))
    assert [(done, total) for done, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [record for *_, record in seen] == records and all(record.saved for record in records)
    first = records[0]
    assert first.problem == PROBLEM and first.gpu == "NVIDIA H200"
    assert len(first.timings) in (8, 9)  # the default may be among the best eight
    assert first.timings[0].default and first.timings[0].config == FPROP.default(PROBLEM)
    fastest = min(first.timings, key=lambda timing: timing.microseconds)
    assert first.best == fastest and not fastest.default
    before = FPROP.plan(PROBLEM).config
    assert before.items() >= FPROP.default(PROBLEM).items(), "a running process keeps its plans"
    cache.forget()
    assert FPROP.plan(PROBLEM).config.items() >= dict(fastest.config).items() != before
    assert FPROP.estimated(PROBLEM).microseconds == fastest.microseconds
    solvers = {timing.solver for timing in records[1].timings}
    assert solvers == {"triton.pool.max.fprop.tiled", "triton.pool.max.fprop.general"}, "defaults race, too"
    explained = gpuconv.Explanation(PROBLEM, tuple(dispatch.candidates(PROBLEM, "triton")), None)
    assert f"estimate {fastest.microseconds:,.1f} us (tuned)" in str(explained)


def test_the_model_chooses_what_is_timed(gpu):
    timer = FakeTimer()
    tune([PROBLEM], timer=timer, most=3)
    found = FPROP.configs(PROBLEM)
    ranked = sorted(found, key=lambda config: FPROP.modelled(PROBLEM, [config])[0])
    timed = [plan.config for plan in timer.plans]
    expected = [found[0], *(config for config in ranked[:3] if config != found[0])]
    assert len(timed) == len(expected)
    assert all(config.items() >= wanted.items() for config, wanted in zip(timed, expected, strict=True))


def test_a_config_that_fails_is_noted_and_passed_over(gpu):
    def time(plan: Plan) -> float:
        if not plan.config.items() >= FPROP.default(PROBLEM).items():
            raise RuntimeError("out of resource: shared memory\nmore")
        return 7.0

    (record,) = tune([PROBLEM], timer=FakeTimer(time))
    assert record.best.default and record.best.microseconds == 7.0
    failed = [timing for timing in record.timings if timing.microseconds is None]
    assert failed and {timing.reason for timing in failed} == {"RuntimeError: out of resource: shared memory more"}
    assert len(record.samples) == 1

    def fail(plan: Plan) -> float:
        raise RuntimeError("no driver")

    (record,) = tune([conv(8, 8, 8, 8)], timer=FakeTimer(fail))
    assert record.best is None and not record.saved and record.samples == []


def test_a_budget_ends_a_run_and_keeps_what_was_found(gpu, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: clock[0])

    def time(plan: Plan) -> float:
        clock[0] += 1.0
        return 10.0

    problems = [conv(n, 64, 56, 64) for n in (1, 4, 16)]
    records = tune(problems, timer=FakeTimer(time), budget_s=12.0)
    assert len(records) == 2 and len(records[1].timings) < len(records[0].timings)
    data = json.loads(cache.cache_path("NVIDIA H200").read_text())
    assert len(data["sections"][0]["entries"]) == 2


def test_records_become_samples_and_fitted_constants(gpu):
    slow = constants.shipped()["h200"][1].replaced({"efficiency_pointer": 0.2, "fixed_us": 6.0}, "assumed")

    def time(plan: Plan) -> float:
        return float(tuning_estimate(plan, slow))

    problems = [conv(n, c, size, c) for n, c, size in ((32, 64, 56), (256, 256, 14), (64, 512, 28), (1, 64, 14))]
    records = tune(problems, timer=FakeTimer(time))
    samples = [sample for record in records for sample in record.samples]
    read = samples_from_json(json.loads(json.dumps([record.to_json() for record in records])))
    assert [replace(sample, config=dict(sample.config)) for sample in samples] == read
    before = FPROP.rank(conv(128, 256, 28, 256))
    fitted = tuning.fit_to_user(read, H200)
    assert fitted.gpu == "NVIDIA H200" and fitted.sources["efficiency_pointer"] == "fitted"
    assert FPROP.rank(conv(128, 256, 28, 256)) == before, "a running process keeps its constants"
    constants._of_name.cache_clear()
    assert constants.constants_of("cuda:0") == fitted
    assert FPROP.rank(conv(128, 256, 28, 256)) > 1.5 * before
    path = constants.user_constants_path("NVIDIA H200")
    path.write_text(path.read_text()[:-20])
    constants._of_name.cache_clear()
    assert FPROP.rank(conv(128, 256, 28, 256)) == before, "a broken file is ignored"
    with pytest.raises(ValueError, match="record 0: is not a record"):
        samples_from_json([{"problem": problem_to_json(PROBLEM)}])


def tuning_estimate(plan: Plan, model: constants.Constants) -> float:
    from gpuconv.costs.model import estimate

    return float(estimate(plan.solver.work(plan.problem, [plan.config]), model)[0])


# not here, not now


def test_tune_needs_a_gpu_and_not_a_graph(gpu, monkeypatch):
    with pytest.raises(ValueError, match="must be on a CUDA device"):
        tune([replace(PROBLEM, device="cpu")], timer=FakeTimer())
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="CUDA graph is captured"):
            tune([PROBLEM], timer=FakeTimer())
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(RuntimeError, match="model is compiled"):
            tune([PROBLEM], timer=FakeTimer())


def tuned_problems(monkeypatch) -> list[ConvProblem]:
    """Have `consider` put problems in a list in place of tuning them."""
    tuned: list[Any] = []
    found = Record(PROBLEM, "NVIDIA H200", (), False, 0.0)
    monkeypatch.setattr(tuning, "tune", lambda problems: tuned.extend(problems) or [found])
    return tuned


def test_switched_on_each_new_problem_is_tuned_once(gpu, monkeypatch):
    tuned = tuned_problems(monkeypatch)
    dispatch.select(PROBLEM, "triton")
    assert tuned == []
    with gpuconv.use_tuning(True):
        for problem in (PROBLEM, PROBLEM, conv(8, 64, 56, 64), replace(PROBLEM, n=30)):
            dispatch.select(problem, "triton")
    dispatch.select(conv(4, 64, 56, 64), "triton")
    assert tuned == [PROBLEM, conv(8, 64, 56, 64)]
    monkeypatch.setenv("GPUCONV_TUNE", "on")
    with gpuconv.use_tuning(False):
        dispatch.select(conv(2, 64, 56, 64), "triton")
    dispatch.select(conv(1, 64, 56, 64), "triton")
    assert tuned[2:] == [conv(1, 64, 56, 64)]


def test_switched_on_nothing_is_tuned_in_a_graph_or_again(gpu, monkeypatch):
    tune([conv(8, 64, 56, 64)], timer=FakeTimer())
    tuned = tuned_problems(monkeypatch)
    with gpuconv.use_tuning(True):
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            dispatch.select(PROBLEM, "triton")
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            dispatch.select(PROBLEM, "triton")
        dispatch.select(conv(8, 64, 56, 64), "triton")
        assert tuned == []
        dispatch.select(PROBLEM, "triton")  # the first moment at which it may be
        assert tuned == [PROBLEM]
        x, w = np.ones((1, 1, 8), np.float32), np.ones((1, 1, 3), np.float32)
        gpuconv.conv1d(x, w)
    assert tuned == [PROBLEM]


def test_switched_on_a_call_survives_tuning_that_fails(gpu, monkeypatch, caplog):
    def fail(problems: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "tune", fail)
    with gpuconv.use_tuning(True), caplog.at_level(logging.WARNING, "gpuconv"):
        assert dispatch.select(PROBLEM, "triton").solver.id == FPROP.id
    assert "was not tuned: CUDA out of memory" in caplog.text


def test_settings_are_checked(monkeypatch):
    with pytest.raises(TypeError, match="tune must be True or False"), gpuconv.use_tuning("on"):
        pass
    monkeypatch.setenv("GPUCONV_TUNE", "yes")
    with pytest.raises(ValueError, match="GPUCONV_TUNE must be one of 'read', 'on', 'off', but got 'yes'"):
        config.tuning_mode()
    for value, inside in (
        ("read", ("on", "read")),
        ("on", ("on", "read")),
        ("off", ("on", "off")),
        ("", ("on", "read")),
    ):
        monkeypatch.setenv("GPUCONV_TUNE", value)
        for tune_it, mode in zip((True, False), inside, strict=True):
            with gpuconv.use_tuning(tune_it):
                assert config.tuning_mode() == mode


# trials


@pytest.mark.parametrize(
    "problem",
    [
        conv(2, 3, 6, 4, bias=True, residual=True, scale=True, shift=True, activation="relu"),
        conv(2, 3, 6, 4, kind="dgrad"),
        conv(2, 3, 6, 4, kind="transposed", bias=True),
        conv(2, 3, 6, 4, kind="wgrad", dtype="bfloat16"),
        pool(2, 3, 8),
        pool(2, 3, 8, kind="bwd", offsets=True),
        pool(2, 3, 9, kind="bwd", dilation=(2, 2), output_size=(4, 4)),
        pool(2, 3, 8, kind="bwd", pool="lp", norm_type=2.0),
        pool(2, 3, 8, pool="max_unpool", input_size=(4, 4), output_size=(8, 8)),
        pool(2, 3, 8, dtype="uint8"),
        pool(2, 3, 8, pool="fractional_max", dtype="float32"),
    ],
    ids=lambda problem: f"{problem.op} {problem.kind} {getattr(problem, 'pool', '')} {problem.dtype}",
)
def test_trials_have_the_arrays_of_a_call(problem):
    problem = replace(problem, device="cpu")
    arrays = Trial(problem).arrays
    shapes = {"x": problem.x_shape, "y": problem.y_shape, "w": getattr(problem, "w_shape", None)}
    for name, array in arrays.items():
        if array is not None:
            wanted = torch.int64 if name == "indices" and not problem.offsets else getattr(torch, problem.dtype)
            assert array.dtype == wanted or (name == "indices" and array.dtype == torch.int8)
            assert tuple(array.shape) == shapes.get(name, tuple(array.shape))
            assert name in ("bias", "scale", "shift", "samples") or array.stride()[1] == 1, "channels-last"
            assert array.abs().max() > 0
    # The NumPy solvers, which check indices, run on them.
    result = Trial(problem).launcher(dispatch.select(problem, "numpy"))()
    assert tuple(result.shape) == problem.result_shape


def test_trials_compare_results():
    trial = Trial(replace(conv(1, 1, 4, 1), device="cpu"))
    ours = torch.tensor([1.0, float("nan"), float("inf")])
    assert trial.same(ours, ours.clone()) and trial.same((ours, ours), (ours, ours))
    assert not trial.same(ours, torch.tensor([1.0 + 1e-6, float("nan"), float("inf")]))
    rounded = Trial(replace(conv(1, 1, 4, 1, activation="gelu"), device="cpu"))
    assert rounded.same(torch.tensor([1.0]), torch.tensor([1.0 + 1e-7]))
    assert not rounded.same(torch.tensor([1.0]), torch.tensor([1.0 + 1e-5]))


# the command


def run_command(*arguments: str) -> Any:
    pytest.importorskip("typer", reason="the command line needs typer")
    from typer.testing import CliRunner

    from gpuconv.cli.main import app

    return CliRunner().invoke(app, ["tune", *arguments])


def test_the_command_tunes_writes_and_fits(gpu, monkeypatch, tmp_path):
    problems, output = tmp_path / "problems.json", tmp_path / "out.json"
    problems.write_text(json.dumps(to_json([PROBLEM, conv(1, 512, 7, 512)])))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tuning, "CudaTimer", lambda: FakeTimer(lambda plan: plan.problem.flops / 1e7))
    done = run_command(str(problems), "--most", "2", "--output", str(output), "--fit")
    assert done.exit_code == 0, done.output
    assert "2 of 2 problems timed, 2 kept" in done.output and "nvidia-h200.json" in done.output
    assert "efficiency_pointer" in done.output
    records = json.loads(output.read_text())["records"]
    assert [record["gpu"] for record in records] == ["NVIDIA H200"] * 2
    assert constants.user_constants_path("NVIDIA H200").exists()
    again = run_command("--samples", str(output), "--fit")
    assert again.exit_code == 0, again.output
    foreign = tmp_path / "foreign.json"
    foreign.write_text(output.read_text().replace("NVIDIA H200", "NVIDIA A100-SXM4-80GB"))
    mixed = run_command("--samples", str(output), "--samples", str(foreign), "--fit")
    assert mixed.exit_code == 2 and "of one GPU" in mixed.output
    assert run_command("--samples", str(foreign), "--fit").exit_code == 0
    assert constants.user_constants_path("NVIDIA A100-SXM4-80GB").exists()


def test_the_command_says_what_is_wrong(gpu, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    done = run_command(str(bad))
    assert done.exit_code == 2 and "bad.json: must be an object with schema 1" in done.output
    bad.write_text("{")
    assert run_command(str(bad)).exit_code == 2
    done = run_command("--samples", str(bad), "--fit")
    assert done.exit_code == 2
    assert run_command().exit_code == 2
    bad.write_text(json.dumps(to_json([replace(PROBLEM, device="cpu")])))
    done = run_command(str(bad))
    assert done.exit_code == 2 and "one is on 'cpu'" in done.output


# two processes

TUNER = """
import json, sys
from gpuconv.dispatch.problems import from_json
from gpuconv.tuning.search import tune

def timer(plan, launch):
    return 5.0

timer.launches = False
problems = from_json(json.loads(sys.stdin.readline()))
print(sum(record.saved for record in tune(problems, timer=timer, most=1)))
"""


def test_processes_that_tune_at_once_lose_nothing(tmp_path):
    """Each tunes problems of its own, on the interpreter in the place of a GPU; the file has all of them."""
    environment = os.environ | {
        "GPUCONV_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO), "TRITON_INTERPRET": "1",
    }  # fmt: skip
    lists = [[replace(conv(n, c, 7, 16), device="cpu") for n in (1, 2, 4)] for c in (16, 32)]
    tuners = [
        subprocess.Popen(
            [sys.executable, "-c", TUNER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in lists
    ]
    for tuner, problems in zip(tuners, lists, strict=True):
        tuner.stdin.write(json.dumps(to_json(problems)) + "\n")
        tuner.stdin.flush()
    assert [tuner.communicate(timeout=120)[0].strip() for tuner in tuners] == ["3", "3"]
    (section,) = json.loads((tmp_path / "tuned" / "triton-interpreter.json").read_text())["sections"]
    assert section["entries"].keys() == {cache.key_of(problem) for problems in lists for problem in problems}
