"""Calls that look alike, one after another: each launches what it launches when nothing is remembered.

Same shapes, strides and types throughout, so that nothing but the operation, the arguments and the places of the arrays
tells these calls apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from launch_cases import B, W, half
from stub_gpu import StubGpu, launcher
from test_launch import _facts, allocations

import gpuconv
from gpuconv.dispatch import plan_cache
from gpuconv.dispatch.plan_cache import CACHE

X, DY, OTHER = half(2, 32, 12, 12), half(2, 32, 12, 12), half(2, 32, 12, 12)
SCALE, SHIFT = half(32), half(32)
W2, LEAF, LEAF_W = half(32, 32, 3, 3), X.clone().requires_grad_(), W.clone().requires_grad_()
LP = {"norm_type": 2.0, "kernel_size": 3, "stride": 1, "padding": 1, "backend": "triton"}


def _lp_gradient() -> torch.Tensor:
    """Return what autograd's rule gives, which lists the arrays in another order than the function."""
    return torch.autograd.grad(gpuconv.lp_pool2d(LEAF, **LP), LEAF, DY)[0]


def _lp_gradient_of_a_function() -> torch.Tensor:
    return gpuconv.lp_pool2d_backward(DY, LEAF.detach(), **LP)


def _conv_gradients() -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(gpuconv.conv2d(LEAF, LEAF_W, padding=1, backend="triton"), (LEAF, LEAF_W), DY)


CALLS: dict[str, Callable[[], Any]] = {
    "conv": lambda: gpuconv.conv2d(X, W, B, padding=1),
    "another input": lambda: gpuconv.conv2d(OTHER, W, B, padding=1),
    "another weight": lambda: gpuconv.conv2d(X, W2, B, padding=1),
    "scale and shift": lambda: gpuconv.conv2d(X, W, scale=SCALE, shift=SHIFT, padding=1),
    "shift and scale": lambda: gpuconv.conv2d(X, W, scale=SHIFT, shift=SCALE, padding=1),
    "residual": lambda: gpuconv.conv2d(X, W, residual=OTHER, padding=1),
    "the other way round": lambda: gpuconv.conv2d(OTHER, W, residual=X, padding=1),
    "residual is the input": lambda: gpuconv.conv2d(X, W, residual=X, padding=1),
    "input gradient": lambda: gpuconv.conv2d_input_grad(X.shape, W, DY, padding=1),
    "weight gradient": lambda: gpuconv.conv2d_weight_grad(X, W.shape, DY, padding=1),
    "its operands swapped": lambda: gpuconv.conv2d_weight_grad(DY, W.shape, X, padding=1),
    "gradients": _conv_gradients,
    "power pool's gradient": _lp_gradient,
    "power pool's gradient, of a function": _lp_gradient_of_a_function,
    "power pool's gradient, swapped": lambda: gpuconv.lp_pool2d_backward(X, DY, **LP),
    "average pool": lambda: gpuconv.avg_pool2d(X, 3, 1, 1),
    "average pool without the padding": lambda: gpuconv.avg_pool2d(X, 3, 1, 1, count_include_pad=False),
}


LINE, LINE2, LINE_W = half(2, 32, 40), half(2, 32, 40), half(32, 32, 3)
VOLUME, VOLUME2, VOLUME_W = half(1, 32, 6, 6, 6), half(1, 32, 6, 6, 6), half(32, 32, 3, 3, 3)
DEPTHWISE_W, OTHER_DEPTHWISE_W, GROUPED_W, POINTWISE_W = (
    half(*shape) for shape in ((32, 1, 3, 3), (32, 1, 3, 3), (32, 4, 3, 3), (32, 32, 1, 1))
)
OFFSET, OTHER_OFFSET, MASK = half(2, 18, 12, 12), half(2, 18, 12, 12), half(2, 9, 12, 12)
CAUSAL_W = half(32, 4)
WIDE, WIDE_WINDOW_W = half(2, 32, 24, 24), half(32, 1, 7, 7)
SAMPLES, OTHER_SAMPLES = half(2, 32, 2), half(2, 32, 2)
PLACES, OTHER_PLACES = (torch.arange(144).flip(0).expand(2, 32, 144).reshape(2, 32, 12, 12).clone() for _ in range(2))

FAMILIES: dict[str, dict[str, Callable[[], Any]]] = {
    "of a line": {
        "conv": lambda: gpuconv.conv1d(LINE, LINE_W, padding=1),
        "another input": lambda: gpuconv.conv1d(LINE2, LINE_W, padding=1),
        "gradient": lambda: gpuconv.conv1d_input_grad(LINE.shape, LINE_W, LINE2, padding=1),
    },
    "of a volume": {
        "conv": lambda: gpuconv.conv3d(VOLUME, VOLUME_W, padding=1),
        "another input": lambda: gpuconv.conv3d(VOLUME2, VOLUME_W, padding=1),
        "weight gradient": lambda: gpuconv.conv3d_weight_grad(VOLUME, VOLUME_W.shape, VOLUME2, padding=1),
    },
    "depthwise": {
        "conv": lambda: gpuconv.conv2d(X, DEPTHWISE_W, padding=1, groups=32),
        "another weight": lambda: gpuconv.conv2d(X, OTHER_DEPTHWISE_W, padding=1, groups=32),
        "transposed": lambda: gpuconv.conv_transpose2d(X, DEPTHWISE_W, padding=1, groups=32),
        "weight gradient": lambda: gpuconv.conv2d_weight_grad(X, DEPTHWISE_W.shape, DY, padding=1, groups=32),
        "of 49 taps": lambda: gpuconv.conv2d(WIDE, WIDE_WINDOW_W, padding=3, groups=32),
    },
    "grouped": {
        "conv": lambda: gpuconv.conv2d(X, GROUPED_W, B, padding=1, groups=8),
        "another bias": lambda: gpuconv.conv2d(X, GROUPED_W, SCALE, padding=1, groups=8),
        "weight gradient": lambda: gpuconv.conv2d_weight_grad(X, GROUPED_W.shape, DY, padding=1, groups=8),
        "its operands swapped": lambda: gpuconv.conv2d_weight_grad(DY, GROUPED_W.shape, X, padding=1, groups=8),
    },
    "separable": {
        "conv": lambda: gpuconv.depthwise_separable_conv2d(X, DEPTHWISE_W, POINTWISE_W, padding=1),
        "another filter": lambda: gpuconv.depthwise_separable_conv2d(X, OTHER_DEPTHWISE_W, POINTWISE_W, padding=1),
        "two biases": lambda: gpuconv.depthwise_separable_conv2d(X, DEPTHWISE_W, POINTWISE_W, SCALE, SHIFT, padding=1),
        "swapped": lambda: gpuconv.depthwise_separable_conv2d(X, DEPTHWISE_W, POINTWISE_W, SHIFT, SCALE, padding=1),
    },
    "deformable": {
        "conv": lambda: gpuconv.deform_conv2d(X, OFFSET, W, padding=1),
        "other offsets": lambda: gpuconv.deform_conv2d(X, OTHER_OFFSET, W, padding=1),
        "masked": lambda: gpuconv.deform_conv2d(X, OFFSET, W, padding=1, mask=MASK),
        "another weight": lambda: gpuconv.deform_conv2d(X, OFFSET, W2, padding=1, mask=MASK),
    },
    "causal": {
        "conv": lambda: gpuconv.causal_conv1d(LINE, CAUSAL_W, B),
        "another bias": lambda: gpuconv.causal_conv1d(LINE, CAUSAL_W, SCALE),
        "activated": lambda: gpuconv.causal_conv1d(LINE, CAUSAL_W, B, activation="silu"),
    },
    "pools of other kinds": {
        "fractional": lambda: gpuconv.fractional_max_pool2d(X, 2, 5, _random_samples=SAMPLES),
        "other samples": lambda: gpuconv.fractional_max_pool2d(X, 2, 5, _random_samples=OTHER_SAMPLES),
        "unpool": lambda: gpuconv.max_unpool2d(X, PLACES, 1, output_size=(12, 12)),
        "other places": lambda: gpuconv.max_unpool2d(X, OTHER_PLACES, 1, output_size=(12, 12)),
        "adaptive": lambda: gpuconv.adaptive_max_pool2d(X, 5),
        "adaptive, of another input": lambda: gpuconv.adaptive_max_pool2d(OTHER, 5),
    },
}


def _named(facts: Any, met: dict[int, int]) -> Any:
    """Return facts of launches with the addresses of the arrays of these calls by name.

    What was allocated is numbered by when it is met: a first call may allocate what it only asks the shape of.
    """
    arrays = {name: value for name, value in globals().items() if isinstance(value, torch.Tensor)}
    names = {value.data_ptr().to_bytes(8, "little"): name for name, value in arrays.items()}
    if isinstance(facts, list | tuple) and facts and facts[0] == "allocation":
        return ["allocation", met.setdefault(facts[1], len(met)), *facts[2:]]
    if isinstance(facts, list | tuple):
        return [_named(each, met) for each in facts]
    return names.get(facts, facts) if isinstance(facts, bytes) else facts


def _asked(gpu: StubGpu, call: Callable[[], Any], made: list[torch.Tensor]) -> Any:
    made.clear()
    gpu.reset()
    call()
    return _named([_facts(launch, made) for launch in gpu.launches()], {})


def _check(gpu: StubGpu, through: str, calls: dict[str, Callable[[], Any]]) -> None:
    """Make each call three times in a row, and all of them in a random order."""
    with launcher(through), allocations() as made:
        expected = {}
        for name, call in calls.items():
            CACHE.clear()
            expected[name] = _asked(gpu, call, made)
            assert expected[name]
        CACHE.clear()
        order = [name for name in calls for _ in range(3)] + random.Random(0).choices(list(calls), k=100)
        for place, name in enumerate(order):
            assert _asked(gpu, calls[name], made) == expected[name], f"{name} after {order[:place]}"


@pytest.mark.parametrize("through", ["native", "python"])
def test_calls_that_look_alike(gpu: StubGpu, through: str) -> None:
    _check(gpu, through, CALLS)


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_of_a_family_that_look_alike(gpu: StubGpu, family: str) -> None:
    _check(gpu, "native", FAMILIES[family])


def test_a_name_of_torch_s_setting_is_no_precision(gpu: StubGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch calls "none" follows from its setting, and is an error where the user asks for it."""
    x, w, conv = torch.zeros(1, 8, 6, 6), torch.zeros(8, 8, 3, 3), torch.backends.cudnn.conv
    monkeypatch.setattr(plan_cache, "_precision", lambda array: conv.fp32_precision)  # of tensors that say is_cuda
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "none"
        for _ in range(2):
            gpuconv.conv2d(x, w)
            with pytest.raises(ValueError, match="precision"):
                gpuconv.conv2d(x, w, precision="none")
    finally:
        conv.fp32_precision = before
