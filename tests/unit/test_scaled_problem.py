"""Convolutions of 8-bit operands with scales: what they refuse, how they are explained, recorded and estimated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tuning_cases import H200, pretended

import gpuconv
from gpuconv.costs.constants import PIPES, Gpu, constants_of_gpu, shipped
from gpuconv.costs.work import roofline
from gpuconv.dispatch import candidates, explainer, record_plans
from gpuconv.dispatch.problems import from_json, problem_from_json, to_json
from gpuconv.numerics import e4m3_bits, e4m3_values
from gpuconv.problem import ScaledProblem, placed, steps_of
from gpuconv.tuning import consider, tune

torch = pytest.importorskip("torch")

X, W, B = np.ones((2, 4, 6, 7), np.int8), np.ones((6, 2, 3, 3), np.int8), np.ones(6, np.float32)
ONE = np.ones(1, np.float32)
SCALES: dict[str, Any] = {"input_scale": 0.5, "weight_scale": B}
SOLVER = "triton.conv.scaled.implicit_gemm"

REFUSED = [
    ({"input": X.astype(np.float32)}, NotImplementedError, "dtype of input must be one of int8, but got 'float32'"),
    ({"input": X.astype(np.uint8), "weight": W.astype(np.uint8)}, NotImplementedError, "dtype of input must be one of"),
    ({"weight": W.astype(np.int16)}, RuntimeError, "dtype of weight must be int8, the dtype of input, but got 'int16'"),
    ({"input": X[:, :3]}, RuntimeError, r"input must be of 4 channels \(weight \(6, 2, 3, 3\) x 2 groups\)"),
    ({"input": X[0, 0]}, RuntimeError, "input must be 4-D"),
    ({"weight": W[0]}, RuntimeError, "weight must be 4-D"),
    ({"groups": 4}, RuntimeError, "weight must be of a first axis that groups=4 divides"),
    ({"input": X.tolist()}, TypeError, "input must be an array"),
    ({"bias": B[1:]}, RuntimeError, "bias must be 1-D with 6 elements, one per output channel, but got"),
    ({"bias": B.astype(np.int8)}, RuntimeError, "dtype of bias must be one of float32, float16, bfloat16, but got"),
    ({"bias": B.astype(np.float64)}, RuntimeError, "dtype of bias must be one of float32, float16, bfloat16, but got"),
    ({"input_scale": None}, TypeError, "input_scale must be a number or a float32 array, but got None"),
    ({"input_scale": "1"}, TypeError, "input_scale must be a number or a float32 array, but got '1'"),
    ({"weight_scale": [1.0]}, TypeError, "weight_scale must be a number or a float32 array, but got"),
    ({"out_dtype": ""}, ValueError, "out_dtype must be one of"),
    ({"weight_scale": None}, TypeError, "weight_scale must be a number or a float32 array, but got None"),
    ({"input_scale": "1"}, TypeError, "input_scale must be a number or a float32 array, but got"),
    ({"input_scale": True}, TypeError, "input_scale must be a number or a float32 array, but got True"),
    ({"input_scale": B}, RuntimeError, "input_scale must be a number or an array of one element, but got"),
    ({"input_scale": ONE.astype(np.float64)}, RuntimeError, "dtype of input_scale must be float32, but got 'float64'"),
    ({"weight_scale": B[1:]}, RuntimeError, "weight_scale must be .* or 1-D with 6 elements, one per filter, but got"),
    ({"weight_scale": B[:, None]}, RuntimeError, "weight_scale must be .* or 1-D with 6 elements, one per filter"),
    ({"weight_scale": B.astype(np.float16)}, RuntimeError, "dtype of weight_scale must be float32, but got 'float16'"),
    ({"out_dtype": "int8"}, ValueError, "output_scale must be given with out_dtype='int8', but got None"),
    ({"output_scale": 1.0}, ValueError, "output_scale must be None with out_dtype='float32': results of int8 alone"),
    ({"out_dtype": "int8", "output_scale": B}, RuntimeError, "output_scale must be a number or an array of one elem"),
    ({"out_dtype": "float64"}, ValueError, "out_dtype must be one of 'float16', 'float32', 'int8', but got 'float64'"),
    ({"out_dtype": "bfloat16"}, ValueError, "out_dtype must be one of 'float16', 'float32', 'int8', but got 'bfloat16"),
    ({"out_dtype": 7}, TypeError, "out_dtype must be a type or the name of one, but got 7"),
    ({"activation": "rulu"}, ValueError, "activation must be one of 'relu', .* but got 'rulu'"),
    ({"stride": 0}, RuntimeError, "stride must be positive"),
    ({"padding": "sam"}, RuntimeError, "padding must be a size or one of"),
    ({"padding": "same", "stride": 2}, RuntimeError, "stride must be 1 with padding='same'"),
    ({"dilation": 9}, RuntimeError, "weight must be no larger than the padded input"),
    ({"backend": "tritn"}, ValueError, "backend must be one of"),
]


def call(**given: Any) -> Any:
    return gpuconv.scaled_conv2d(**{"input": X, "weight": W, "bias": B, "groups": 2, **SCALES, **given})


@pytest.mark.parametrize(("given", "error", "text"), REFUSED)
def test_refuses(given: dict[str, Any], error: type[Exception], text: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=text if "backend" in given else f"^scaled_conv2d: {text}"):
            call(**given)


def test_kinds_and_devices_do_not_mix() -> None:
    with pytest.raises(
        TypeError, match="scaled_conv2d: weight_scale must be a numpy array like input, but got a torch"
    ):
        call(weight_scale=torch.ones(6))
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    with pytest.raises(
        RuntimeError, match=r"scaled_conv2d: all arrays must be on one device, but got .*input_scale on"
    ):
        gpuconv.scaled_conv2d(x, w, groups=2, input_scale=torch.ones(1, device="meta"), weight_scale=1.0)
    with pytest.raises(RuntimeError, match="dtype of weight must be float8_e4m3fn, the dtype of input"):
        gpuconv.scaled_conv2d(x.to(torch.float8_e4m3fn), w, groups=2, input_scale=1.0, weight_scale=1.0)
    with pytest.raises(
        ValueError, match="must be one of 'bfloat16', 'float16', 'float32', 'int8', but got 'float8_e4m3f"
    ):
        gpuconv.scaled_conv2d(x, w, groups=2, input_scale=1.0, weight_scale=1.0, out_dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("name", ["bias", "input_scale", "weight_scale", "output_scale"])
def test_gradients_are_refused(name: str) -> None:
    given: dict[str, Any] = {"bias": torch.ones(6), "input_scale": torch.ones(1), "weight_scale": torch.ones(6)}
    given |= {"output_scale": torch.ones(1), "out_dtype": "int8"}
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    expected = gpuconv.scaled_conv2d(x, w, groups=2, **given)
    given[name] = given[name].requires_grad_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=rf"scaled_conv2d: {name} must be without requires_grad \(this function"):
            gpuconv.scaled_conv2d(x, w, groups=2, **given)
        with torch.no_grad():
            assert torch.equal(gpuconv.scaled_conv2d(x, w, groups=2, **given), expected)


def test_an_explanation_says_what_the_scales_are() -> None:
    found = gpuconv.explain(gpuconv.scaled_conv2d, X, W, B, groups=2, **SCALES, out_dtype="int8", output_scale=ONE)
    text = str(found)
    assert found.solver == "numpy.conv.scaled.im2col" and text.splitlines()[0].endswith(found.solver)
    assert "int8 to int8, scales: input number, weight channels, output array" in text
    assert "epilogue         bias" in text and "operation        scaled_conv2d (fprop)" in text
    assert f"  {SOLVER}: arrays are on cpu" in text and "cupy" not in text
    problem = found.problem
    assert isinstance(problem, ScaledProblem) and steps_of(problem) == (problem,)
    assert problem.min_bytes == X.size + W.size + 2 * 6 * 4 * 5 + 6 * (4 + 4)
    assert problem.flops == 2 * 2 * 6 * 20 * 18 and problem.reduction_length == 18 and not problem.index64
    assert (problem.n, problem.ndim, problem.dtype, problem.device, problem.array) == (2, 2, "int8", "cpu", "numpy")


def test_problems_are_recorded_and_read_again() -> None:
    with gpuconv.record_problems() as problems, record_plans() as plans:
        call()
        call(out_dtype="int8", output_scale=2.0, activation="relu")
    assert len(problems) == len(plans) == 2
    data = json.loads(json.dumps(to_json(problems)))
    assert from_json(data) == problems
    broken = data["problems"][0] | {"conv": {"type": "pool"}}
    with pytest.raises(ValueError, match="problems, conv: a problem needs"):
        problem_from_json(broken)
    with pytest.raises(ValueError, match="conv: a problem must be an object"):
        problem_from_json(data["problems"][0] | {"conv": 7})
    with pytest.raises(ValueError, match="out_dtype must be str"):
        problem_from_json(data["problems"][0] | {"out_dtype": 7})


def test_estimates_are_those_of_8_bit_tensor_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    x, w = torch.empty(32, 256, 56, 56, dtype=torch.int8), torch.empty(256, 256, 3, 3, dtype=torch.int8)
    x, w = (t.to(memory_format=torch.channels_last) for t in (x[:1].expand(32, -1, -1, -1), w))
    problem = gpuconv.explain(gpuconv.scaled_conv2d, x, w, padding=1, input_scale=1.0, weight_scale=1.0).problem
    problem = placed(problem, device="cuda:0")
    constants = constants_of_gpu(H200)
    assert "tensor8" in PIPES and constants.values["tensor8_tflops"] == 1978.9
    assert constants.sources["tensor8_tflops"] == "datasheet"
    time, bound, rate = roofline(problem, constants)
    assert (bound, rate) == ("arithmetic", "tensor8_tflops")
    assert time == pytest.approx(problem.flops / (constants.values["tensor8_tflops"] * 1e6))
    with pretended(monkeypatch, tmp_path, H200):
        (found,) = [each for each in candidates(problem, "triton") if each.reason is None]
        half = replace(problem.conv, dtype="float16", op="conv2d")
        (general,) = [c for c in candidates(half, "triton") if c.solver.id == "triton.conv.fprop.implicit_gemm"]
        text = str(explainer._explanation(problem, "triton"))
    assert found.solver.id == SOLVER and found.source == "model"
    assert 1.5 < general.estimate / found.estimate < 2.3
    assert "of the roofline" in text and "bound by arithmetic (1978.9 TFLOP/s, datasheet)" in text


def test_every_gpu_has_a_rate_for_8_bits() -> None:
    for data, constants in shipped().values():
        assert constants.values["tensor8_tflops"] == pytest.approx(2 * constants.values["tensor16_tflops"], rel=1e-3)
        assert tuple(data["capability"]) >= (8, 0)


def test_older_gpus_and_other_backends_say_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    x, w = (torch.from_numpy(each).to(torch.float8_e4m3fn) for each in (X, W))
    options = {"groups": 2, "input_scale": 1.0, "weight_scale": 1.0}
    problem = placed(gpuconv.explain(gpuconv.scaled_conv2d, x, w, **options).problem, device="cuda:0")
    with pretended(monkeypatch, tmp_path, Gpu("NVIDIA A100", (8, 0))):
        found = explainer._explanation(problem, None)
    assert found.solver is None and "multiplies float8_e4m3fn on sm_89 and newer, not on sm_80" in str(found)
    with pytest.raises(gpuconv.NoSolverError, match="that backend has no solver of scaled_conv2d"):
        gpuconv.scaled_conv2d(x, w, **options, backend="cupy")


def test_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with gpuconv.record_problems() as problems:
        call()
    with pretended(monkeypatch, tmp_path, H200):
        assert tune(problems, timer=lambda plan, launch: 1.0) == []
        consider(placed(problems[0], device="cuda:0", array="torch"))


def test_float8_bits_and_values_are_torchs() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    values = e4m3_values(every.numpy())
    np.testing.assert_array_equal(values, every.view(torch.float8_e4m3fn).float().numpy())
    between = (values[:126] + values[1:127]) / 2
    around = [between, np.nextafter(between, np.float32(1e9)), np.nextafter(between, np.float32(-1e9)), values[:127]]
    points = np.concatenate([*around, *(-part for part in around)])
    expected = torch.from_numpy(points).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(e4m3_bits(points), expected)
    special = np.array([np.inf, -np.inf, 1e9, -449, np.nan], np.float32)
    assert e4m3_values(e4m3_bits(special)).tolist()[:4] == [448, -448, 448, -448] and e4m3_bits(special)[4] == 0x7F
