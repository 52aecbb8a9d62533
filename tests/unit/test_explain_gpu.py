"""Calls explained on a GPU by name: as the model sees that GPU, whatever is here and whatever was asked before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_explaining import CALLS

import gpuconv
from bench.cases import layer_problems, networks
from bench.model_gap import choose
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.costs import constants
from gpuconv.costs.constants import device_of_name, gpu_names, on_gpu, shipped
from gpuconv.dispatch import execution
from gpuconv.dispatch.explainer import _explanation

X, W = np.ones((8, 64, 28, 28), np.float16), np.ones((64, 64, 3, 3), np.float16)


def test_names() -> None:
    assert gpu_names() == ("a100", "b200", "h100", "h200")
    for name in ("h200", "H200", " NVIDIA H200", "nvidia h200 nvl"):
        assert device_of_name(name) == "cuda:h200"
    assert device_of_name("NVIDIA A100-SXM4-80GB") == device_of_name("default_80") == "cuda:a100"
    assert {constants.constants_of(device_of_name(stem)).gpu for stem in shipped()} == {
        found.gpu for _, found in shipped().values()
    }
    for stem, (data, found) in shipped().items():
        device = device_of_name(stem)
        assert constants.gpu_of(device) == constants.Gpu(data["names"][0], tuple(data["capability"]))
        assert constants.constants_of(device) is found


def test_names_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"gpu must be one of a100, b200, h100, h200, but got 'rtx'"):
        gpuconv.explain(gpuconv.conv2d, X, W, gpu="rtx")
    with pytest.raises(TypeError, match="gpu must be a name such as 'h200', but got 200"):
        gpuconv.explain(gpuconv.conv2d, X, W, gpu=200)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [CHANNELS_LAST, CONTIGUOUS])
def test_is_what_the_page_of_modelled_times_has(layout: str) -> None:
    """The solver, its time and the roofline are those of `bench/model_gap.py`, which goes another way there."""
    found = shipped()["h200"][1]
    for layer in networks()["mobilenet_v2"]["layers"][:12] + networks()["resnet50"]["layers"][:8]:
        problem = next(iter(layer_problems(layer, 8, "inference", "bfloat16", layout)))
        theirs = choose(problem, found)
        ours = _explanation(replace(problem, device=device_of_name("h200")), None)
        chosen = ours.candidates[0]
        assert (ours.solver, chosen.estimate) == (theirs.solver, pytest.approx(theirs.us))
        assert ours.to_json()["roofline"]["microseconds"] == pytest.approx(theirs.least_us)


@pytest.mark.parametrize("network", networks())
def test_every_layer_says_what_runs_and_why_nothing_else(network: str) -> None:
    """Each pass of each layer: the solver that runs is the first, and every other has its time or its reason."""
    found = {problem for layer in networks()[network]["layers"]
             for problem in layer_problems(layer, 32, "training", "bfloat16", CHANNELS_LAST)}  # fmt: skip
    assert found
    for problem in found:
        explanation = _explanation(replace(problem, device=device_of_name("h200")), None)
        text, shown = explanation.render(everything=True), filter(explanation.concerns, explanation.candidates)
        able = [candidate for candidate in shown if candidate.reason is None]
        assert able and explanation.solver == able[0].solver.id, problem
        assert [candidate.estimate for candidate in able] == sorted(candidate.estimate for candidate in able)
        for candidate in filter(explanation.concerns, explanation.candidates):
            assert candidate.solver.id in text and (candidate.reason is None or candidate.reason in text), problem
        if explanation.solver.endswith(".hopper"):
            assert "form" in explanation.plan.config and "config" in text


def test_gpus_do_not_mix() -> None:
    """Hopper's kernels are of sm_90 alone, in whatever order one process asks."""
    for name, hopper in [("a100", False), ("h200", True), ("a100", False), ("h100", True), ("b200", False)]:
        explanation = gpuconv.explain(gpuconv.conv2d, X, W, padding=1, gpu=name)
        assert (explanation.solver == "triton.conv.fprop.hopper") == hopper, name
        assert explanation.to_json()["gpu"] == shipped()[device_name(name)][1].gpu


def device_name(name: str) -> str:
    return next(stem for stem, (data, _) in shipped().items() if data["names"][0].lower() == name)


@pytest.mark.parametrize("call", CALLS)
def test_every_function(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCONV_BACKEND", raising=False)
    here = gpuconv.explain(CALLS[call])
    CALLS[call]()  # remembered, on the CPU
    there = gpuconv.explain(CALLS[call], gpu="h200")
    for step, same in zip(there.steps, here.steps, strict=True):
        assert (step.problem.device, step.problem.array) == ("cuda:h200", "torch")
        assert (step.problem.result_shape, step.problem.flops) == (same.problem.result_shape, same.problem.flops)
        assert step.solver is not None and step.solver.startswith("triton.")
    assert gpuconv.explain(CALLS[call]).solver == here.solver  # and nothing stays behind
    CALLS[call]()


def test_torch_tensors_without_memory() -> None:
    import torch

    x = torch.empty(32, 64, 28, 28, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    w = torch.empty(64, 64, 3, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    explanation = gpuconv.explain(gpuconv.conv2d, x, w, padding=1, gpu="h200")
    assert explanation.solver == "triton.conv.fprop.hopper"
    assert "channels_last" in str(explanation) and "torch on cuda:h200" in str(explanation)


def test_float32_has_the_precision_that_torch_sets() -> None:
    import torch

    x, w = torch.ones(1, 64, 8, 8), torch.ones(64, 64, 3, 3)
    setting = torch.backends.cudnn.conv.fp32_precision
    for wanted, found in (("tf32", "tf32"), ("ieee", "ieee")):
        try:
            torch.backends.cudnn.conv.fp32_precision = wanted
            assert gpuconv.explain(gpuconv.conv2d, x, w, gpu="h200").problem.precision == found
        finally:
            torch.backends.cudnn.conv.fp32_precision = setting
    assert gpuconv.explain(gpuconv.conv2d, x, w, gpu="h200", precision="tf32x3").problem.precision == "tf32x3"


def test_text_and_json() -> None:
    explanation = gpuconv.explain(gpuconv.conv2d, X, W, padding=1, gpu="h200")
    assert not constants.ELSEWHERE and constants.device_elsewhere() is None
    lines = str(explanation).splitlines()
    assert len(lines) <= 30
    assert "array            torch on cuda:h200: NVIDIA H200 by name, modelled and not measured" in lines
    assert "of the roofline" in lines[-1] and "(model)" in lines[-1]
    found = json.loads(json.dumps(explanation.to_json()))
    assert found["gpu"] == "NVIDIA H200" and found["roofline"]["bound"] in ("memory", "arithmetic")
    assert "gpu" not in gpuconv.explain(gpuconv.conv2d, X, W).to_json()


def test_a_failed_call_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError, match="conv2d"):
        gpuconv.explain(gpuconv.conv2d, X, W, stride=0, gpu="h200")
    assert not constants.ELSEWHERE and not execution.OBSERVERS
    with on_gpu("cuda:h200"), pytest.raises(gpuconv.NoSolverError):
        gpuconv.conv2d(X, W, backend="numpy")  # nothing runs there


def test_needs_numpy_alone() -> None:
    script = """
import sys, numpy as np, gpuconv
x, w = np.ones((8, 64, 28, 28), np.float16), np.ones((64, 64, 3, 3), np.float16)
print(gpuconv.explain(gpuconv.conv2d, x, w, padding=1, gpu="h200").solver)
print(sorted({"torch", "triton", "cupy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["triton.conv.fprop.hopper", "[]"]


def run(*arguments: str) -> Any:
    pytest.importorskip("typer", reason="the command line needs typer")
    from typer.testing import CliRunner

    from gpuconv.cli.main import app

    return CliRunner().invoke(app, ["explain", "conv2d", "--input", "8,64,28,28", "--weight", "64,64,3,3", *arguments])


def test_command_line() -> None:
    done = run("--gpu", "h200", "--dtype", "bfloat16", "--channels-last")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("runs on          triton.conv.fprop.hopper") and "NVIDIA H200" in done.stdout
    found = json.loads(run("--gpu", "a100", "--dtype", "float16", "--json").stdout)
    assert found["runs_on"] == "triton.conv.fprop.implicit_gemm" and "A100" in found["gpu"]
    assert json.loads(run("--gpu", "h200", "--array", "numpy", "--json").stdout)["problem"]["device"] == "cuda:h200"


def test_command_line_errors() -> None:
    done = run("--gpu", "rtx")
    assert done.exit_code == 2 and "gpu must be one of a100, b200, h100, h200, but got 'rtx'" in done.stderr
    done = run("--gpu", "h200", "--device", "cuda")
    assert done.exit_code == 2 and "give one of them" in done.stderr
