"""Causal and separable convolutions: what they refuse, how they are explained, and what they cost in calls."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv.dispatch import record_plans, record_problems

X, W, B = np.ones((2, 3, 5)), np.ones((3, 4)), np.ones(3)
STATE, IDS = np.zeros((2, 3, 3)), np.zeros((2, 5), np.int32)
IMAGE = np.ones((2, 4, 6, 7))
DEPTHWISE, POINTWISE = np.ones((8, 1, 3, 3)), np.ones((5, 8, 1, 1))
COLUMNS, ROWS = np.ones((6, 2, 3, 1)), np.ones((8, 3, 1, 2))
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")

CAUSAL = [
    ({"x": X[0]}, RuntimeError, r"x must be 3-D, \(batch, dim, seqlen\), but got \(3, 5\)"),
    ({"x": X[:, :0], "weight": W[:0]}, RuntimeError, "x must be of at least one channel, its second axis, but got"),
    ({"x": X.astype(np.int64)}, NotImplementedError, "dtype of x must be one of float16, bfloat16, .* got 'int64'"),
    ({"x": X.astype(complex)}, NotImplementedError, "dtype of x must be one of .* got 'complex128'"),
    ({"x": X.tolist()}, TypeError, "x must be an array"),
    ({"weight": W.T}, RuntimeError, r"weight must be of shape \(3, width\) or .* but got \(4, 3\)"),
    ({"weight": W[:, :0]}, RuntimeError, "weight must be of shape .* with a width of at least 1"),
    ({"weight": np.ones((3, 2, 4))}, RuntimeError, "weight must be of shape"),
    ({"weight": W.astype(int)}, NotImplementedError, "dtype of weight must be one of"),
    ({"weight": None}, TypeError, "weight must be an array"),
    ({"bias": np.ones(4)}, RuntimeError, r"bias must be of shape \(3,\), one element per channel, but got \(4,\)"),
    ({"activation": "rulu"}, ValueError, "activation must be one of 'relu', .*, 'swish', but got 'rulu'"),
    ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ({"backend": "tritn"}, ValueError, "backend must be one of"),
]
SEQUENCES = [
    *CAUSAL,
    (
        {"initial_state": STATE[..., 1:]},
        RuntimeError,
        r"initial_state must be of shape \(2, 3, 3\), .* got \(2, 3, 2\)",
    ),
    ({"initial_state": STATE.astype(np.float32)}, RuntimeError, "dtype of initial_state must be float64, the dtype of"),
    ({"seq_idx": IDS[:, 1:]}, RuntimeError, r"seq_idx must be of shape \(2, 5\), \(batch, seqlen\), but got \(2, 4\)"),
    ({"seq_idx": IDS.astype(float)}, RuntimeError, "dtype of seq_idx must be int32 or int64, but got 'float64'"),
    ({"seq_idx": IDS, "initial_state": STATE}, ValueError, "initial_state must be None with seq_idx"),
    ({"seq_idx": IDS, "return_state": True}, ValueError, "return_state must be False with seq_idx"),
]
STEPS = [
    *((given, error, text) for given, error, text in CAUSAL if "x" not in given),
    ({"x": X[0, 0]}, RuntimeError, r"x must be 2-D, \(batch, dim\), or 3-D"),
    ({"state": STATE[..., 1:]}, RuntimeError, "state must be of a state_len, its last axis, of at least width - 1 = 3"),
    ({"state": STATE[:1]}, RuntimeError, r"state must be of shape \(2, 3, state_len\), but got \(1, 3, 3\)"),
    ({"state": STATE[:, 1:], "conv_state_indices": IDS[:, 0]}, RuntimeError, r"state must be of shape \(entries, 3, "),
    ({"state": STATE[:0], "conv_state_indices": IDS[:, 0]}, RuntimeError, "state must be of at least one entry"),
    ({"state": STATE.astype(np.float32)}, RuntimeError, "dtype of state must be float64, the dtype of x, but got 'fl"),
    ({"state": np.broadcast_to(STATE[:1], STATE.shape)}, ValueError, "state must be writeable"),
    ({"state": None}, TypeError, "state must be an array"),
    ({"cache_seqlens": IDS[0]}, RuntimeError, r"cache_seqlens must be of shape \(2,\), \(batch,\), but got \(5,\)"),
    ({"conv_state_indices": B[:2]}, RuntimeError, "dtype of conv_state_indices must be int32 or int64"),
]


@pytest.mark.parametrize(("given", "error", "text"), SEQUENCES)
def test_causal_conv1d_refuses(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text if "backend" in given else f"^causal_conv1d: {text}"):
        gpuconv.causal_conv1d(**{"x": X, "weight": W, "bias": B, **given})


@pytest.mark.parametrize(("given", "error", "text"), STEPS)
def test_causal_conv1d_update_refuses(given: dict[str, Any], error: type[Exception], text: str) -> None:
    state = STATE.copy()
    with pytest.raises(error, match=text if "backend" in given else f"^causal_conv1d_update: {text}"):
        gpuconv.causal_conv1d_update(**{"x": X + 1, "state": state, "weight": W, "bias": B, **given})
    assert not state.any()


SEPARABLE = [
    ("depthwise", {"input": IMAGE[0, 0]}, RuntimeError, r"input must be 4-D \(batched\) or 3-D"),
    ("depthwise", {"depthwise_weight": DEPTHWISE[:6]}, RuntimeError, "depthwise_weight must be .* input's 4 channels"),
    ("depthwise", {"depthwise_weight": np.ones((8, 2, 3, 3))}, RuntimeError, r"depthwise_weight must be of shape \(M,"),
    ("depthwise", {"pointwise_weight": POINTWISE[:, 1:]}, RuntimeError, r"pointwise_weight must be of shape \(K, 8, 1"),
    ("depthwise", {"pointwise_weight": POINTWISE[..., 0]}, RuntimeError, "pointwise_weight must be of shape"),
    ("depthwise", {"depthwise_bias": B}, RuntimeError, "depthwise_bias must be 1-D with 8 elements"),
    ("depthwise", {"pointwise_bias": B}, RuntimeError, "pointwise_bias must be 1-D with 5 elements"),
    ("depthwise", {"pointwise_weight": None}, TypeError, "pointwise_weight must be an array"),
    (
        "separable",
        {"column_weight": DEPTHWISE},
        RuntimeError,
        r"column_weight must be of shape \(M, C/G, R, 1\), for 4",
    ),
    ("separable", {"column_weight": COLUMNS[:, 1:]}, RuntimeError, "column_weight must be .* and groups=2"),
    (
        "separable",
        {"row_weight": ROWS[:, 1:]},
        RuntimeError,
        r"row_weight must be of shape \(K, M/G, 1, S\), for the 6",
    ),
    ("separable", {"row_weight": ROWS.swapaxes(2, 3)}, RuntimeError, "row_weight must be of shape"),
    ("separable", {"column_bias": B}, RuntimeError, "column_bias must be 1-D with 6 elements"),
    ("separable", {"row_bias": B}, RuntimeError, "row_bias must be 1-D with 8 elements"),
    ("separable", {"groups": 0}, RuntimeError, "groups must be positive"),
    ("separable", {"groups": 2.0}, TypeError, "groups must be an integer"),
    ("separable", {"padding": "same", "stride": (1, 2)}, RuntimeError, "stride must be 1 with padding='same'"),
]
BOTH = [
    ({"between": "rulu"}, ValueError, "between must be one of 'relu'"),
    ({"activation": "swish"}, ValueError, "activation must be one of 'relu'"),
    ({"padding": "sam"}, RuntimeError, "padding must be a size or one of"),
    ({"padding": -1}, RuntimeError, "padding must be non-negative"),
    ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
    ({"stride": 0}, RuntimeError, "stride must be positive"),
    ({"dilation": 9}, RuntimeError, "weight must be no larger than the padded input"),
    ({"residual": IMAGE}, RuntimeError, "residual must be of the output's shape"),
    ({"residual": IMAGE.astype(np.float32)}, RuntimeError, "dtype of residual must be float64, the dtype of input"),
    ({"precision": "fp8"}, ValueError, "precision must be one of"),
    ({"backend": "tritn"}, ValueError, "backend must be one of"),
]
SEPARABLE += [(name, *row) for name in ("depthwise", "separable") for row in BOTH]


def call(name: str, **given: Any) -> Any:
    if name == "depthwise":
        arrays = {"input": IMAGE, "depthwise_weight": DEPTHWISE, "pointwise_weight": POINTWISE}
        return gpuconv.depthwise_separable_conv2d(**{**arrays, **given})
    return gpuconv.separable_conv2d(
        **{"input": IMAGE, "column_weight": COLUMNS, "row_weight": ROWS, "groups": 2, **given}
    )


@pytest.mark.parametrize(("name", "given", "error", "text"), SEPARABLE)
def test_separable_refuses(name: str, given: dict[str, Any], error: type[Exception], text: str) -> None:
    """Where one of the two convolutions refuses, the message says which."""
    op, step = {
        "depthwise": ("depthwise_separable_conv2d", "(depthwise|pointwise)"),
        "separable": ("separable_conv2d", "(columns|rows)"),
    }[name]
    with pytest.raises(error, match=text if "backend" in given else rf"^{op}( \({step}\))?: {text}"):
        call(name, **given)


@needs_torch
def test_kinds_and_devices_do_not_mix() -> None:
    import torch

    x, w = torch.from_numpy(X), torch.from_numpy(W)
    with pytest.raises(TypeError, match="causal_conv1d: weight must be a torch array like x, but got a numpy array"):
        gpuconv.causal_conv1d(x, W)
    with pytest.raises(RuntimeError, match="causal_conv1d: all arrays must be on one device, but got x on cpu, w"):
        gpuconv.causal_conv1d(x, w.to("meta"))
    with pytest.raises(RuntimeError, match="causal_conv1d_update: all arrays must be on one device"):
        gpuconv.causal_conv1d_update(x, torch.zeros(2, 3, 3).double(), w, cache_seqlens=torch.zeros(2).int().to("meta"))
    with pytest.raises(
        TypeError, match="depthwise_separable_conv2d: pointwise_weight must be a torch array like input"
    ):
        call("depthwise", input=torch.from_numpy(IMAGE), depthwise_weight=torch.from_numpy(DEPTHWISE))
    with pytest.raises(NotImplementedError, match="causal_conv1d: x must be a dense strided tensor"):
        gpuconv.causal_conv1d(x.to_sparse(), w)


# explanations


def test_a_causal_convolution_is_explained_by_its_depthwise_one() -> None:
    found = gpuconv.explain(gpuconv.causal_conv1d, X, W, B, activation="swish", return_state=True)
    problem = found.problem
    assert (problem.op, problem.kind, problem.groups, problem.activation) == ("causal_conv1d", "fprop", 3, "silu")
    assert (problem.pad_lo, problem.pad_hi, problem.y_shape) == ((3,), (0,), (2, 3, 5))
    assert found.solver == "numpy.conv.fprop.taps" and found.steps == (found,)
    with record_plans() as plans:
        gpuconv.causal_conv1d(X, W, B, activation="swish")
    assert [(plan.problem, plan.solver.id) for plan in plans] == [(problem, found.solver)]
    last = X.swapaxes(1, 2).copy().swapaxes(1, 2)
    image = gpuconv.explain(gpuconv.causal_conv1d, last, W).problem
    assert (image.y_shape, image.y_format) == ((2, 3, 1, 5), "channels_last")


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "state": (gpuconv.causal_conv1d, {"x": X, "weight": W, "initial_state": STATE}),
    "packed": (gpuconv.causal_conv1d, {"x": X, "weight": W, "seq_idx": IDS}),
    "empty": (gpuconv.causal_conv1d, {"x": X[..., :0], "weight": W}),
    "mixed": (gpuconv.causal_conv1d, {"x": X.astype(np.float16), "weight": W}),
    "step": (gpuconv.causal_conv1d_update, {"x": X[..., 0], "state": STATE + 1, "weight": W}),
    "circle": (gpuconv.causal_conv1d_update, {"x": X, "state": STATE + 1, "weight": W, "cache_seqlens": IDS[:, 0]}),
    "entry": (gpuconv.causal_conv1d_update, {"x": X, "state": STATE + 1, "weight": W, "conv_state_indices": IDS[:, 0]}),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_explained_is_what_runs(variant: str, last: bool) -> None:
    """One problem, the same; and an explanation changes no state."""
    function, given = VARIANTS[variant]
    given = dict(given)
    if last and given["x"].ndim == 3:
        given["x"] = given["x"].swapaxes(1, 2).copy().swapaxes(1, 2)
    before = {name: value.copy() for name, value in given.items()}
    found = gpuconv.explain(function, **given)
    for name, value in before.items():
        np.testing.assert_array_equal(given[name], value)
    with record_problems() as problems:
        function(**given)
    assert problems == [found.problem]


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("name", ["depthwise", "separable"])
def test_separable_convolutions_are_explained_in_two_steps(name: str, unbatched: bool) -> None:
    image = IMAGE[0] if unbatched else IMAGE
    options = {"input": image, "padding": 1, "stride": 2, "between": "relu6", "activation": "silu"}
    found = gpuconv.explain(lambda: call(name, **options))
    with record_problems() as problems:
        call(name, **options)
    assert [step.problem for step in found.steps] == problems and len(problems) == 2
    assert [problem.activation for problem in problems] == ["relu6", "silu"]
    assert found.solver == found.steps[0].solver and all(step.then == () for step in found.steps)
    text = str(found)
    assert text == f"step 1 of 2\n{found.steps[0]}\n\nstep 2 of 2\n{found.steps[1]}"
    data = found.to_json()
    assert data == {**found.steps[0].to_json(), "then": [found.steps[1].to_json()]} and json.dumps(data)


def test_a_step_that_cannot_run_says_so() -> None:
    found = gpuconv.explain(lambda: call("depthwise", backend="numpy.conv.fprop.taps"))
    assert [step.solver for step in found.steps] == ["numpy.conv.fprop.taps", None]
    assert "needs 1 input channel per group, the problem has 8" in str(found.steps[1]).splitlines()[0]
    with pytest.raises(
        gpuconv.NoSolverError, match=r"^depthwise_separable_conv2d \(pointwise\): backend='numpy.conv.f"
    ):
        call("depthwise", backend="numpy.conv.fprop.taps")


@needs_torch
def test_explanations_of_tensors() -> None:
    import torch

    x, w = torch.from_numpy(X), torch.from_numpy(W).requires_grad_()
    assert gpuconv.explain(gpuconv.causal_conv1d, x, w, seq_idx=torch.from_numpy(IDS)).problem.array == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        found = gpuconv.explain(
            gpuconv.separable_conv2d, *(torch.ones(s) for s in ((1, 2, 5, 5), (2, 2, 3, 1), (3, 2, 1, 3)))
        )
    assert [step.problem.dtype for step in found.steps] == ["bfloat16"] * 2
