"""The benchmark's parity gate: its tolerance is the library's rule, its referee is right, nothing wrong gets by."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import gpuconv
from bench import contenders, measure, micro, parity_calls, referee
from bench.calls import aten_call, make_tensors, our_call
from bench.cases import DTYPES
from bench.parity import conv_problem, judge, parity_problems, pool_problem
from bench.timing import Clock, HostClock, Timing
from bench.tuning import samples_of
from gpuconv import numerics
from gpuconv.problem import ConvProblem

RULES = [(dtype, precision) for dtype, precision in DTYPES.values()] + [("float64", "ieee"), ("float32", "tf32x3")]


@pytest.mark.parametrize(("dtype", "precision"), RULES)
def test_tolerance_is_the_rule_of_numerics(dtype, precision, torch_rng):
    reference = torch.randn(1000, dtype=torch.float64, generator=torch_rng) * 10.0 ** torch.arange(-40, 10, 0.05)
    magnitude = reference.abs() * 3
    ours = referee.tolerance(reference, magnitude, dtype, 576, precision).numpy()
    np.testing.assert_allclose(ours, numerics.tolerance(reference.numpy(), magnitude.numpy(), dtype, 576, precision))


@cache
def problems():
    return tuple(parity_problems("cuda:0"))


EVERY = {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"}

CONVOLUTIONS = {
    "1-D": ((2, 4, 9), (6, 4, 3), {"padding": 1, "stride": 2}),
    "2-D": ((2, 4, 7, 7), (6, 2, 3, 3), {"padding": 1, "dilation": 2, "groups": 2}),
    "3-D": ((2, 3, 5, 4, 5), (4, 3, 2, 3, 2), {"stride": (2, 1, 1)}),
    "reflect": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": (2, 1), "padding_mode": "reflect"}),
    "replicate": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    "circular": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": (2, 1), "padding_mode": "circular"}),
    "asymmetric": ((2, 3, 5, 6), (4, 3, 3, 2), {"padding": (0, 1), "padding_high": (2, 0)}),
    "epilogue": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1, **EVERY}),
    "empty": ((0, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
}

POOLS = {
    "max": ("max", (2, 3, 7, 7), 3, {"stride": 2, "padding": 1}),
    "max 3-D": ("max", (2, 3, 4, 5, 6), 2, {"stride": 2, "ceil_mode": True}),
    "avg": ("avg", (2, 3, 7, 7), 3, {"stride": 2, "padding": 1}),
    "adaptive_avg": ("adaptive_avg", (2, 3, 7, 5), 3, {}),
    "adaptive_max": ("adaptive_max", (2, 3, 7, 5), 3, {}),
}


def small():
    """Yield (name, problem): every pass, padding mode and pool."""
    for name, (x, w, options) in CONVOLUTIONS.items():
        kinds = ["fprop"] if "bias" in options else ["fprop", "dgrad", "wgrad"]
        kinds += ["transposed"] if not {"padding_mode", "padding_high"} & set(options) else []
        for kind in kinds:
            yield f"{name} {kind}", conv_problem(x, w, kind, "float64", device="cpu", **options)
    for name, (pool, x, window, options) in POOLS.items():
        for kind in ("fprop", "bwd"):
            yield f"{name} {kind}", pool_problem(pool, x, window, kind, "float64", device="cpu", **options)


@pytest.mark.parametrize("problem", [pytest.param(problem, id=name) for name, problem in small()])
def test_referee_agrees_with_the_numpy_backend(problem):
    tensors = make_tensors(problem, "cpu")
    result = our_call(problem, tensors, "numpy")()
    found = referee.verdict(problem, tensors, result)
    assert found.ok, found


def test_torch_s_own_calls_pass_the_gate():
    for kind in ("fprop", "dgrad", "wgrad", "transposed"):
        problem = conv_problem((2, 8, 9, 9), (12, 8, 3, 3), kind, "float32", stride=2, padding=1, device="cpu")
        tensors = make_tensors(problem, "cpu")
        for layout in ("channels_last", "contiguous"):
            call = contenders.CONTENDERS[f"torch_{layout}"].call(problem, tensors)
            assert referee.verdict(problem, tensors, call()).ok, (kind, layout)


def _spoiled(change):
    problem = conv_problem((2, 8, 9, 9), (12, 8, 3, 3), number="float32", padding=1, device="cpu")
    tensors = make_tensors(problem, "cpu")
    return referee.verdict(problem, tensors, change(aten_call(problem, tensors)()))


@pytest.mark.parametrize(
    "change",
    (
        lambda y: y.index_fill(1, torch.tensor([3]), float("nan")),
        lambda y: y.roll(1, -1),
        lambda y: torch.where(torch.arange(y.numel()).reshape(y.shape) == 5, y + 1e-3, y),
        lambda y: y * (1 + 1e-5),
        lambda y: y[:1],
        torch.zeros_like,
    ),
    ids=("nan", "shifted", "one element", "scaled", "shape", "zeros"),
)
def test_gate_refuses(change):
    assert _spoiled(lambda y: y).ok
    found = _spoiled(change)
    assert not found.ok and found["why"]


def test_results_and_workspaces_are_poisoned():
    x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3)
    with referee.poisoned():
        assert torch.empty(3).isnan().all() and (torch.empty(3, dtype=torch.int8) == 127).all()
        result = gpuconv.conv2d(x, w, backend="numpy")
    assert not result.isnan().any()
    assert "filled" not in torch.empty.__qualname__ and "empty" not in vars(gpuconv.arrays.TORCH)


class _Wrong(contenders.Torch):
    def call(self, problem, tensors):
        call = super().call(problem, tensors)
        return lambda: call() * 1.01


class _NoClock(HostClock):
    def kernel(self, calls, bytes_per_set):
        raise AssertionError("a wrong result must not be timed")


def test_a_wrong_contender_gets_no_time(monkeypatch):
    problem = conv_problem((1, 8, 5, 5), (8, 8, 3, 3), number="float32", device="cpu")
    monkeypatch.setitem(contenders.CONTENDERS, "torch_contiguous", _Wrong("contiguous"))
    (record,) = measure.measure(problem, ["torch_contiguous"], _NoClock())
    assert record["status"] == "wrong" and "kernel" not in record and "out of tolerance" in record["gate"]["why"]


def test_a_solver_that_is_not_for_gpus_gets_no_time(monkeypatch):
    """Outside the interpreter a CPU tensor runs on the NumPy backend: its time must not appear as a kernel's."""
    problem = conv_problem((1, 8, 5, 5), (8, 8, 3, 3), number="float32", device="cpu")
    ours = contenders.CONTENDERS["gpuconv"]
    monkeypatch.setattr(ours, "call", lambda problem, tensors: our_call(problem, tensors, "numpy"), raising=False)
    (record,) = measure.measure(problem, ["gpuconv"], _NoClock())
    assert record["status"] == "error" and "numpy.conv.fprop" in record["why"]


def test_missing_packages_are_not_run():
    problem = conv_problem((1, 8, 5, 5), (8, 8, 3, 3), number="float32", device="cpu")
    records = list(measure.measure(problem, ["flag_gems", "tileops", "inductor"], HostClock()))
    assert [record["status"] for record in records] == ["not run"] * 3 and all(record["why"] for record in records)


def test_settings_come_back():
    before = (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark)
    problem = conv_problem((1, 8, 5, 5), (8, 8, 3, 3), number="tf32", device="cpu")
    with contenders.settings(problem):
        assert torch.backends.cudnn.benchmark and torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"  # as Inductor asks; it raises where both names were used
    with contenders.settings(replace(problem, precision="ieee")):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark) == before


def test_parity_judges_the_forced_solver():
    problem = conv_problem((2, 8, 6, 6), (8, 8, 3, 3), number="float32", padding=1, device="cpu")
    fields = judge(problem, "numpy.conv.fprop.im2col", "cpu")
    assert fields["status"] == "ok" and fields["exact"] and fields["repeats"]
    pool = pool_problem("max", (2, 8, 6, 6), 2, number="float32", stride=2, device="cpu", return_indices=True)
    assert judge(pool, "numpy.pool.max.fprop", "cpu")["indices"]


def test_parity_notices_a_wrong_solver(monkeypatch):
    solver = next(s for s in gpuconv.dispatch.backends()["numpy"].solvers() if s.id == "numpy.conv.fprop.im2col")
    run = type(solver).run
    monkeypatch.setattr(type(solver), "run", lambda self, plan, call: run(self, plan, call) + 1e-3)
    problem = conv_problem((2, 8, 6, 6), (8, 8, 3, 3), number="float32", padding=1, device="cpu")
    fields = judge(problem, solver.id, "cpu")
    assert fields["status"] == "wrong" and not fields["gate"]["ok"] and fields["exact"] is False


def test_parity_covers_passes_numbers_and_layouts():
    convolutions = [p for p in problems() if isinstance(p, ConvProblem)]
    assert {p.kind for p in convolutions} == {"fprop", "dgrad", "wgrad", "transposed"}
    assert {p.ndim for p in convolutions} == {1, 2, 3}
    assert {p.padding_mode for p in convolutions} == {"zeros", "reflect", "replicate", "circular"}
    assert {p.dtype for p in problems()} == {"float16", "bfloat16", "float32", "float64"}
    assert {p.x_format for p in problems()} == {"channels_last", "contiguous"}
    assert len(set(problems())) == len(problems())


def test_figures_against_ceilings():
    problem = conv_problem((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    limits = {"copy": 4.0e6, "float16": 700e6}
    floor = max(problem.flops / 700e6, problem.min_bytes / 4.0e6)
    found = measure.figures(problem, 2 * floor, limits)
    assert found["roofline"] == pytest.approx(0.5)
    assert found["tflops"] == pytest.approx(problem.flops / (2 * floor) / 1e6)
    assert measure.figures(problem, floor, {})["roofline"] is None
    pool = pool_problem("max", (32, 64, 56, 56), 2, stride=2)
    assert measure.figures(pool, pool.min_bytes / 4.0e6, limits)["roofline"] == pytest.approx(1)


def test_percentiles_stay_within_the_samples():
    timing = HostClock(samples=5).eager([lambda: None])
    assert isinstance(timing, Timing) and 0 <= timing.p20 <= timing.p50 <= timing.p80 and timing.samples == 5
    assert issubclass(HostClock, Clock)


def _plan(*arguments, **options):
    """Return the general Triton plan of a convolution on a GPU that need not be there."""
    problem = conv_problem(*arguments, **options)
    id = "triton.conv.wgrad.split_k" if problem.kind == "wgrad" else "triton.conv.fprop.implicit_gemm"
    return gpuconv.dispatch.solver_of(id).plan(problem)


def test_sweeps_ask_about_forms_of_the_hopper_kernels():
    problem = conv_problem((32, 256, 14, 14), (256, 256, 3, 3), padding=1)
    plan = gpuconv.dispatch.solver_of("triton.conv.fprop.hopper").plan(problem)
    asked = [(question, answer) for question, answer, _ in micro.variants(plan)]
    assert asked[0] == ("form", plan.config["form"]) and {question for question, _ in asked} == {"form"}
    forms = [answer for _, answer in asked]
    assert len(set(forms)) == len(forms) > 4 and any("2 x" in form for form in forms)
    shared = replace(plan, config=plan.config | {"form": "pixels 128x128", "stream": True})
    answers = {answer: changed.config for _, answer, changed in micro.variants(shared)}
    assert answers["pixels 128x128"]["stream"] and "stream" not in answers["pixels 128x128, whole tiles"]


def test_sweeps_ask_about_bounds_splits_warps_and_stages():
    bounded = _plan((2, 512, 14, 14), (100, 512, 3, 3), padding=1, stride=3)
    answers = [(question, answer) for question, answer, _ in micro.variants(bounded)]
    assert ("warps x stages", "4 x 2") in answers and len(set(answers)) == len(answers)
    plain = {name: value for name, value in bounded.config.items() if name != "maxnreg"}
    with_bound = replace(bounded, config=plain | {"maxnreg": 255})
    bounds = {answer: plan.config for question, answer, plan in micro.variants(with_bound) if question == "maxnreg"}
    assert bounds == {"none": plain, "255": plain | {"maxnreg": 255}}


@pytest.mark.parametrize("kind", ("fprop", "wgrad"))
def test_other_splits_have_the_workspace_that_they_need(kind):
    plan = _plan((1, 512, 7, 7) if kind == "fprop" else (32, 64, 28, 28), (64, 512 if kind == "fprop" else 64, 3, 3),
                 kind, padding=1)  # fmt: skip
    splits = {int(answer): changed for question, answer, changed in micro.variants(plan) if question == "splits"}
    assert plan.config["splits"] > 1 and {1, plan.config["splits"]} <= set(splits)
    for number, changed in splits.items():
        assert changed.config["splits"] == number
        if kind == "wgrad":
            sums = 4 * number * 64 * 64 * 9
            assert changed.workspace == (sums if number > 1 else 0)


def test_samples_for_the_fit_are_our_kernel_times_of_triton_convolutions():
    problem = conv_problem((32, 64, 56, 56), (64, 64, 3, 3), padding=1)
    record = {"problem": "p", "solver": "triton.conv.fprop.implicit_gemm", "config": {}, "kernel": {"p50": 7.0}}
    records = [
        record | {"stage": "micro"},
        record | {"stage": "benchmark", "contender": "gpuconv"},
        record | {"stage": "benchmark", "contender": "torch_contiguous"},
        record | {"stage": "micro", "solver": "cupy.conv.fprop"},
        {"stage": "micro", "problem": "p", "status": "wrong"},
        record | {"stage": "micro", "problem": "unknown"},
    ]
    assert samples_of(records, {"p": problem}) == [(problem, record["solver"], {}, 7.0)] * 2


@pytest.mark.parametrize(("number", "layout"), [("float32", "contiguous"), ("float16", "channels_last")])
def test_plain_calls_agree_with_torch(number, layout):
    """Functions that no network is made of: all are right on the NumPy backend, and what is not right is noticed."""
    names, kinds = set(), set()
    for call in parity_calls.calls("cpu", number, layout, (1, 2)):
        solver = gpuconv.explain(call.ours, call.tensors, "numpy").solver
        assert parity_calls.judge_call(call, solver)["status"] == "ok", call.key
        names.add(call.name)
        kinds.add(call.copies)
        shifted = replace(call, theirs=lambda tensors, call=call: call.theirs(tensors) * 1.01 + 0.01)
        assert parity_calls.judge_call(shifted, solver)["status"] == "wrong", call.key
        other = parity_calls.judge_call(call, "numpy")
        assert other["status"] == "wrong" and "was forced, but" in other["why"]
    assert names == {
        "max_pool2d_backward", "lp_pool2d", "lp_pool2d_backward", "fractional_max_pool2d",
        "fractional_max_pool2d_backward", "max_unpool2d", "max_unpool2d_backward", "unfold", "fold",
        "scaled_conv2d", "deform_conv2d",
    } and kinds == {True, False}  # fmt: skip
