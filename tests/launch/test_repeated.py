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


def _named(facts: Any) -> Any:
    """Return facts of launches with the addresses of the arrays of these calls by name."""
    arrays = {name: value for name, value in globals().items() if isinstance(value, torch.Tensor)}
    names = {value.data_ptr().to_bytes(8, "little"): name for name, value in arrays.items()}
    if isinstance(facts, list | tuple):
        return [_named(each) for each in facts]
    return names.get(facts, facts) if isinstance(facts, bytes) else facts


def _asked(gpu: StubGpu, name: str, made: list[torch.Tensor]) -> Any:
    made.clear()
    gpu.reset()
    CALLS[name]()
    return _named([_facts(launch, made) for launch in gpu.launches()])


@pytest.mark.parametrize("through", ["native", "python"])
def test_calls_that_look_alike(gpu: StubGpu, through: str) -> None:
    with launcher(through), allocations() as made:
        expected = {}
        for name in CALLS:
            CACHE.clear()
            expected[name] = _asked(gpu, name, made)
            assert expected[name]
        CACHE.clear()
        order = [name for name in CALLS for _ in range(3)] + random.Random(0).choices(list(CALLS), k=100)
        for place, name in enumerate(order):
            assert _asked(gpu, name, made) == expected[name], f"{name} after {order[:place]}"


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
