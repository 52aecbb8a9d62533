"""What `make card` packs is what the stages of the report launch: told by the calls; nothing is compiled."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from stub_gpu import StubGpu

from bench import calls as bench_calls
from bench import parity_calls
from bench import plan as bench_plan
from bench.card import FIRST, SECOND, wanted
from bench.cases import all_cases
from bench.gpu_report import arguments
from bench.parity import parity_problems
from bench.plan import ASSUMED, START, plan_text, planned, stage_items
from bench.stages import STAGES
from gpuconv.backends.triton.backend import BACKEND
from gpuconv.backends.triton.launch import listening
from gpuconv.costs.constants import assuming
from gpuconv.packing import gpus_of, launches_of
from gpuconv.packs.identity import key_of
from gpuconv.problem import ConvProblem, Problem

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
GPU = next(gpu for gpu in gpus_of("sm_90") if "H200" in gpu.name)


def problems(variants: Any) -> list[Problem]:
    """Return problems of the benchmark, or of parity and the sanitizer: all in full, in the gate some."""
    if FULL:
        return wanted(300, 12)[variants]
    listed = [case.problem for case in all_cases(["resnet50"])] if variants == "first" else parity_problems("cuda:0")
    return random.Random(0).sample([*listed], 30)


PLAIN = ("max", "avg", "adaptive_avg", "adaptive_max")
"""Pools that the benchmark has a call for; the others are below."""


def keys_of(run: Callable[[], Any]) -> set[str]:
    """Return what the launches of a call are known by."""
    found = set()

    def note(problem: Any, kernel: Any, grid: Any, arguments: Any, options: Any) -> None:
        found.add(key_of(kernel, arguments, options)[0])

    with listening(note):
        run()
    return found


def takers(problem: Problem) -> list[str]:
    return [
        solver.id
        for solver in BACKEND.solvers()
        if solver.why_not(problem) is None and BACKEND.lacks(solver, problem) is None
    ]


def undrawn(problem: Problem) -> dict[str, torch.Tensor]:
    """Return operands in memory that nobody touches: of a call of the benchmark they are gigabytes."""
    like = bench_calls.make_tensors(problem, "meta")
    return {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}


@pytest.mark.parametrize("variants", ["solvers", "first"])
def test_launches_are_those_that_were_packed(gpu: StubGpu, variants: Any) -> None:
    plain = [
        problem
        for problem in problems(variants)
        if isinstance(problem, ConvProblem) or getattr(problem, "pool", "") in PLAIN
    ]
    unplanned, launched = [], set()
    with assuming(GPU):
        packed = launches_of(plain, GPU, variants).keys()
        for problem in plain:
            tensors = undrawn(problem)
            for solver in takers(problem) if variants == "solvers" else [None]:
                found = keys_of(bench_calls.our_call(problem, tensors, solver))
                launched |= found
                if not found <= packed:
                    unplanned.append(f"{solver}: {problem}")
    assert not unplanned, "\n".join(unplanned)
    assert len(launched) >= 20


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_calls_launch_what_was_packed(gpu: StubGpu, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(type(BACKEND), "missing", lambda self: None)
    unplanned, launched = [], set()
    with assuming(GPU):
        packed = launches_of(parity_calls.call_problems(rounds=[("float16", layout)]), GPU, "solvers").keys()
        for call in parity_calls.calls("cpu", "float16", layout):
            for solver in parity_calls.solvers(call, "cuda:0", 4):
                if solver.startswith("triton."):
                    found = keys_of(lambda call=call, solver=solver: call.ours(call.tensors, solver))
                    launched |= found
                    if not found <= packed:
                        unplanned.append(f"{solver}: {call.key}")
        for key, build in parity_calls.separable():
            call = build(parity_calls.drawer("cpu", "float16", layout))
            found = keys_of(lambda call=call: call.ours(call.tensors, parity_calls.FUSED))
            launched |= found
            if not found or not found <= packed:
                unplanned.append(key)
    assert not unplanned, "\n".join(unplanned)
    assert len(launched) >= 20


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be as many items as there are today, without a list of them."""
    counts = {name: 3000 for name in STAGES} | {"ceilings": 6, "host": 2, "sanitizer": 2, "fit": 1}
    monkeypatch.setattr("bench.plan.stage_items", lambda options: counts)


@pytest.mark.parametrize(("words", "seconds"), [(FIRST, 540), (SECOND.format(folder="x"), 180)])
def test_the_two_commands_keep_their_minutes(counted: None, words: str, seconds: float) -> None:
    options = arguments(words.split())
    stages = list(planned(options, {}))
    assert sum(stage.given for stage in stages) + 20 == pytest.approx(options.budget) and options.budget <= seconds - 20
    assert all(stage.given >= START for stage in stages if stage.starts)
    assert next(stage for stage in stages if stage.stage == "parity").covered == 1
    assert [stage.stage for stage in stages] == [name for name in STAGES if name in options.stage]


def test_estimates_say_where_they_come_from(counted: None) -> None:
    options = arguments(["--stage", "parity", "benchmark", "--budget", "100"])
    assert {stage.source for stage in planned(options, {})} == {"assumed"}
    parity, benchmark = planned(options, {"parity": 0.5})
    assert (parity.source, parity.seconds, benchmark.source) == ("measured", 0.5, "assumed")
    assert set(ASSUMED) == set(STAGES)
    text = plan_text(options, {"parity": 0.5}).splitlines()
    assert text[1].split()[:4] == ["parity", str(parity.items), "0.50", "measured"]


def test_items_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.plan.parity_problems", lambda device: islice(parity_problems(device), 5))
    monkeypatch.setattr("bench.plan.call_problems", list)
    options = arguments(["--network", "resnet50", "--kind", "fprop"])
    counts = stage_items(options)
    cases = all_cases(["resnet50"], passes=["fprop"])
    assert counts.keys() == STAGES.keys() and counts["benchmark"] == len(cases) > counts["tune"] > 0
    assert counts["parity"] >= 10
    bench_plan._parity_items.cache_clear()
