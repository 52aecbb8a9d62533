"""Deformable convolutions: what they refuse, how they are described, recorded, remembered and estimated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv.costs.constants import shipped
from gpuconv.costs.work import roofline
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.dispatch.problems import from_json, to_json
from gpuconv.problem import DeformProblem, placed, steps_of

torch = pytest.importorskip("torch")

X, W, B = np.ones((2, 4, 6, 7), np.float32), np.ones((6, 2, 3, 3), np.float32), np.ones(6, np.float32)
OFFSET, MASK = np.zeros((2, 36, 4, 5), np.float32), np.ones((2, 18, 4, 5), np.float32)

REFUSED = [
    ({"input": X.astype(np.complex64)}, NotImplementedError, "dtype of input must be one of float16, bfloat16"),
    ({"input": X.astype(np.int32), "weight": W.astype(np.int32), "bias": None}, NotImplementedError, "dtype of input"),
    ({"offset": OFFSET.astype(np.float64)}, RuntimeError, "dtype of offset must be float32, the dtype of input, but"),
    ({"mask": MASK.astype(np.float16)}, RuntimeError, "dtype of mask must be float32, the dtype of input, but got"),
    ({"input": X.tolist()}, TypeError, "input must be an array"),
    ({"offset": None}, TypeError, "offset must be an array"),
    ({"input": X[0, 0]}, RuntimeError, "input must be 4-D"),
    ({"input": X[0]}, RuntimeError, "offset must be without a batch axis, as input is"),
    ({"mask": MASK[0]}, RuntimeError, "mask must be with a batch axis, as input is"),
    ({"weight": W[0]}, RuntimeError, "weight must be 4-D"),
    ({"weight": W[:, :0]}, RuntimeError, "weight must be of a second axis that divides the input's 4 channels"),
    ({"input": X[:, :3]}, RuntimeError, "weight must be of a second axis that divides the input's 3 channels"),
    ({"weight": W[:5], "bias": None}, RuntimeError, "weight must be of a first axis that groups=2 divides"),
    ({"bias": B[1:]}, RuntimeError, "bias must be 1-D with 6 elements"),
    ({"offset": OFFSET[:, :35]}, RuntimeError, r"offset must be of a multiple of 18 channels \(2 axes x 9 taps\)"),
    ({"offset": OFFSET[:, :0]}, RuntimeError, "offset must be of a multiple of 18 channels"),
    ({"offset": np.zeros((2, 54, 4, 5), np.float32)}, RuntimeError, "offset must be of groups that divide the input's"),
    ({"offset": OFFSET[:1]}, RuntimeError, r"offset must be of shape \(2, 36, 4, 5\)"),
    ({"offset": OFFSET[..., 1:]}, RuntimeError, r"offset must be of shape \(2, 36, 4, 5\)"),
    ({"mask": MASK[:, 1:]}, RuntimeError, r"mask must be of shape \(2, 18, 4, 5\)"),
    ({"mask": MASK[:, :, 1:]}, RuntimeError, r"mask must be of shape \(2, 18, 4, 5\)"),
    ({"stride": 0}, RuntimeError, "stride must be positive"),
    ({"padding": "sam"}, RuntimeError, "padding must be a size or one of"),
    ({"padding": -1}, RuntimeError, "padding must be non-negative"),
    ({"dilation": 9}, RuntimeError, "weight must be no larger than the padded input"),
    ({"backend": "tritn"}, ValueError, "backend must be one of"),
]


def call(**given: Any) -> Any:
    return gpuconv.deform_conv2d(**{"input": X, "offset": OFFSET, "weight": W, "bias": B, "mask": MASK, **given})


@pytest.mark.parametrize(("given", "error", "text"), REFUSED)
def test_refuses(given: dict[str, Any], error: type[Exception], text: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=text if "backend" in given else f"^deform_conv2d: ({text})"):
            call(**given)


def test_kinds_and_devices_do_not_mix() -> None:
    with pytest.raises(TypeError, match="deform_conv2d: mask must be a numpy array like input, but got a torch array"):
        call(mask=torch.ones(2, 18, 4, 5))
    x, w = torch.from_numpy(X), torch.from_numpy(W)
    with pytest.raises(RuntimeError, match="deform_conv2d: all arrays must be on one device"):
        gpuconv.deform_conv2d(x, torch.ones(OFFSET.shape, device="meta"), w)
    with pytest.raises(NotImplementedError, match="deform_conv2d: offset must be a dense strided tensor"):
        gpuconv.deform_conv2d(x, torch.from_numpy(OFFSET).to_sparse(), w)


def test_an_explanation_says_what_is_deformed() -> None:
    found = gpuconv.explain(call)
    text, problem = str(found), found.problem
    assert found.solver == "numpy.conv.deform.im2col"
    assert "offset           2x36x4x5, groups 2" in text and "mask             2x18x4x5" in text
    assert isinstance(problem, DeformProblem) and steps_of(problem) == (problem,)
    assert (problem.kind, problem.ndim, problem.n, problem.offset_groups, problem.mask) == ("fprop", 2, 2, 2, True)
    assert problem.min_bytes == 4 * (X.size + OFFSET.size + MASK.size + W.size + B.size + 2 * 6 * 20)
    samples = 2 * 4 * 9 * 20
    assert problem.flops == problem.conv.flops + samples * (8 + 1)
    grads = replace(problem, conv=replace(problem.conv, kind="dgrad", bias=False), grads=("x", "offset", "mask"))
    assert grads.flops == problem.conv.flops + samples * (4 * 8 + 1) and grads.result_shape == X.shape
    assert grads.min_bytes == 4 * (2 * (X.size + OFFSET.size + MASK.size) + W.size + 2 * 6 * 20)
    assert "gradients of     x, offset, mask" in "\n".join(f"{name:16} {value}" for name, value in grads.describe())
    large = replace(problem, conv=replace(problem.conv, output_size=(2**14, 2**13), k=1))
    assert large.index64 and not large.conv.index64 and not problem.index64
    assert placed(problem, device="cuda:0").device == "cuda:0"


def test_problems_are_recorded_and_read_again() -> None:
    x, w, offset = (torch.from_numpy(a).requires_grad_() for a in (X, W, OFFSET))
    with gpuconv.record_problems() as problems:
        gpuconv.deform_conv2d(x, offset, w).sum().backward()
    assert [problem.kind for problem in problems] == ["fprop", "dgrad", "wgrad"]
    data = json.loads(json.dumps(to_json(problems)))
    assert from_json(data) == problems
    data["problems"][1]["grads"] = ["x", 7]
    with pytest.raises(ValueError, match="grads must be tuple"):
        from_json(data)


def test_the_same_call_is_not_analysed_again() -> None:
    call()
    hits = CACHE.hits
    call()
    assert CACHE.hits == hits + 1
    call(padding=((1, 1), (1, 1)), offset=np.zeros((2, 36, 6, 7), np.float32), mask=None)
    with pytest.raises(RuntimeError, match="offset must be of shape"):
        call(padding=1)


def test_the_roofline_counts_the_product() -> None:
    problem = gpuconv.explain(call).problem
    large = replace(problem, conv=replace(problem.conv, dtype="float16", c=1024, k=4096, output_size=(64, 64)))
    for _, constants in shipped().values():
        time, bound, rate = roofline(large, constants)
        assert (bound, rate) == ("arithmetic", "tensor16_tflops")
        assert time == pytest.approx(large.conv.flops / (constants.values[rate] * 1e6))


def test_without_channels_or_images() -> None:
    assert call(input=X[:0], offset=OFFSET[:0], mask=MASK[:0]).shape == (0, 6, 4, 5)
    none = call(input=X[:, :0], weight=W[:, :0])
    assert none.shape == gpuconv.conv2d(X[:, :0], W[:, :0]).shape
    x, w, offset = (torch.from_numpy(a).requires_grad_() for a in (X[:, :0], W[:, :0], OFFSET))
    gpuconv.deform_conv2d(x, offset, w).sum().backward()
    assert not offset.grad.any() and w.grad.shape == w.shape
