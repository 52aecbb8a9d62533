"""One kernel or two steps: what the dispatcher takes for depthwise and pointwise convolutions, and how it says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tuning_cases import conv, pretended

from gpuconv.costs.constants import shipped
from gpuconv.costs.work import roofline
from gpuconv.dispatch import candidates, explainer, select
from gpuconv.problem import ConvProblem, PoolProblem, Problem, SeparableProblem, placed, steps_of

FUSED, STEPS = "triton.conv.separable.fused", "triton.conv.separable.steps"


def both(n: int, c: int, size: int, k: int, kernel: int = 3, stride: int = 1, **options: Any) -> SeparableProblem:
    """Describe a layer of a MobileNet on a GPU."""
    first = conv(n, c, size, c, kernel, stride, groups=c, bias=True, activation="relu6", **options)
    second = conv(n, c, first.output_size, k, 1, bias=True, **options)
    return SeparableProblem("depthwise_separable_conv2d", first, second)


@pytest.mark.parametrize(
    ("problem", "first"),
    [(both(32, 128, 56, 128, stride=2), FUSED), (both(32, 128, 56, 128), FUSED), (both(32, 512, 14, 512), STEPS)],
)
def test_the_lower_estimate_wins(problem: Problem, first: str, monkeypatch: Any, tmp_path: Any) -> None:
    """Few channels are filtered once for all filters; of many the depthwise part would be computed again and again."""
    with pretended(monkeypatch, tmp_path):
        found = [each for each in candidates(problem, "triton") if each.reason is None]
        plan = select(problem, "triton")
        parts = [candidates(step, "triton")[0] for step in steps_of(problem)]
    assert [each.solver.id for each in found] == [first, ({FUSED, STEPS} - {first}).pop()]
    assert found[0].estimate < found[1].estimate and plan.solver.id == first
    (steps,) = (each for each in found if each.solver.id == STEPS)
    assert steps.estimate == pytest.approx(sum(part.estimate for part in parts))
    if first == STEPS:
        named = {"depthwise": parts[0].solver.id, "pointwise": parts[1].solver.id}
        assert plan.config == named


def test_an_explanation_shows_both_with_their_estimates(monkeypatch: Any, tmp_path: Any) -> None:
    with pretended(monkeypatch, tmp_path):
        found = explainer._explanation(both(32, 128, 56, 128), "triton")
        text, data = str(found), found.to_json()
    assert f"1. {FUSED}" in text and f"2. {STEPS}" in text and text.count("of the roofline") == 3
    assert "pointwise w" in text and "between" in text and len(text.splitlines()) <= 30
    assert data["problem"]["type"] == "separable" and json.dumps(data)
    assert [each["id"] for each in data["solvers"][:2]] == [FUSED, STEPS]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float64"}, "computes float16, bfloat16, float32, not float64"),
        ({"padding_mode": "reflect"}, "pads with zeros alone, not reflect"),
        ({"kernel": (31, 31)}, "takes windows of 7 columns at most, not 31"),
        ({"dilation": (1, 99)}, "has 64 input columns at most in its code, not 202"),
    ],
)
def test_what_the_kernel_refuses_is_left_to_the_steps(
    changes: Any, reason: str, monkeypatch: Any, tmp_path: Any
) -> None:
    problem = both(2, 16, 28, 16)
    first, second = replace(problem.depthwise, **changes), problem.pointwise
    second = replace(second, dtype=first.dtype)
    with pretended(monkeypatch, tmp_path):
        found = {each.solver.id: each.reason for each in candidates(SeparableProblem("op", first, second), "triton")}
    assert found[FUSED] == reason and found[STEPS] is None


def test_costs_are_those_of_both_without_what_is_between() -> None:
    problem = both(32, 128, 56, 64)
    image = 2 * 32 * 128 * 56 * 56
    assert problem.flops == problem.depthwise.flops + problem.pointwise.flops
    assert problem.min_bytes == problem.depthwise.min_bytes + problem.pointwise.min_bytes - 2 * image
    constants = shipped()["h200"][1]
    time, bound, rate = roofline(problem, constants)
    assert (bound, rate) == ("memory", "dram_tb_s") and time == pytest.approx(problem.min_bytes / 4.3e6)
    wide = roofline(both(32, 2048, 56, 2048), constants)
    assert wide[1:] == ("arithmetic", "tensor16_tflops")


def test_steps_and_places_of_problems() -> None:
    problem = both(2, 16, 28, 16)
    assert steps_of(problem) == (problem.depthwise, problem.pointwise)
    assert steps_of(problem.depthwise) == (problem.depthwise,)
    moved = placed(problem, device="cpu")
    assert {step.device for step in steps_of(moved)} == {"cpu"} == {moved.device}
    assert placed(problem.depthwise, array="cupy").array == "cupy"
    assert isinstance(problem.depthwise, ConvProblem) and not isinstance(problem, ConvProblem | PoolProblem)


def test_with_packs_alone_the_steps_run(monkeypatch: Any, tmp_path: Any) -> None:
    """Packs are made of recorded problems, and those are the steps: no pack has the kernel of both."""
    problem = both(32, 128, 56, 128)
    monkeypatch.setenv("GPUCONV_PACKS_ONLY", "1")
    with pretended(monkeypatch, tmp_path):
        found = {each.solver.id: each.reason for each in candidates(problem, "triton")}
        plan = select(problem, "triton")
    assert found[FUSED] == "GPUCONV_PACKS_ONLY=1 forbids to compile, and no pack is for this GPU"
    assert found[STEPS] is None and plan.solver.id == STEPS
