"""Calls whose launches are compared: every pass, several launches in one call, absent pointers, several results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import gpuconv
from gpuconv.backends.triton.gluon import installed_triton

LAST = torch.channels_last


def half(*shape: int, last: bool = True) -> torch.Tensor:
    tensor = torch.zeros(shape, dtype=torch.float16)
    return tensor.to(memory_format=LAST) if last and len(shape) == 4 else tensor


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a contiguous tensor that starts 2 bytes behind a multiple of 16."""
    base = torch.zeros(tensor.numel() + 8, dtype=tensor.dtype)
    assert base.data_ptr() % 16 == 0
    return base[1 : tensor.numel() + 1].view(tensor.shape)


X, W, B = half(2, 32, 12, 12), half(32, 32, 3, 3), half(32)
DY = half(2, 32, 12, 12)
PLAIN_X, PLAIN_W = half(1, 128, 8, 8, last=False), half(64, 128, 3, 3, last=False)
UNALIGNED = unaligned(half(1, 32, 8, 8, last=False))
COLUMNS = half(2, 36, 144)
MANY_X, MANY_DY = half(8, 32, 12, 12), half(8, 32, 12, 12)
WIDE_X, WIDE_W, WIDE_B = half(2, 64, 12, 12), half(256, 64, 3, 3), half(256)
WIDE_DY, WIDE_RESULT, B64 = half(2, 256, 12, 12), half(2, 64, 24, 24), half(64)
CONTIGUOUS_X, CONTIGUOUS_W = half(2, 64, 12, 12, last=False), half(256, 64, 3, 3, last=False)
LEAVES = [tensor.clone().requires_grad_() for tensor in (MANY_X, W, B)]
POSITIONS = torch.arange(144).view(12, 12).expand(2, 32, 12, 12).to(memory_format=LAST)
X8, W8 = (torch.zeros(s, dtype=torch.int8).to(memory_format=LAST) for s in ((2, 32, 12, 12), (32, 32, 3, 3)))
F8, PLAIN_F8 = X8.to(torch.float8_e4m3fn), torch.zeros(32, 32, 3, 3).to(torch.float8_e4m3fn)
B8, ONE8 = torch.zeros(32), torch.zeros(1)
LEAF, POOLED = X.clone().requires_grad_(), half(2, 32, 6, 6)


def _backward() -> list[torch.Tensor]:
    y = gpuconv.conv2d(*LEAVES, padding=1)
    return [y.detach(), *torch.autograd.grad(y, LEAVES, MANY_DY)]


def _separable_pool() -> torch.Tensor:
    return gpuconv.max_pool2d(X, 7, 1, 3, backend="triton.pool.max.fprop.separable")


def _separable_pool_backward() -> torch.Tensor:
    backward = gpuconv.max_pool2d_with_indices_backward
    return backward(DY, X, 7, 1, 3, 1, False, POSITIONS, backend="triton.pool.max.bwd.separable")


def _pool_backward() -> list[torch.Tensor]:
    y = gpuconv.max_pool2d(LEAF, 2)
    return [y.detach(), *torch.autograd.grad(y, LEAF, POOLED)]


FPROP, DGRAD, WGRAD = (f"triton.conv.{kind}.hopper" for kind in ("fprop", "dgrad", "wgrad"))

OF_HOPPER: dict[str, tuple[int, Callable[[], Any]]] = {
    "hopper fprop": (1, lambda: gpuconv.conv2d(WIDE_X, WIDE_W, WIDE_B, padding=1, backend=FPROP)),
    "hopper fprop, stride 2": (1, lambda: gpuconv.conv2d(WIDE_X, WIDE_W, stride=2, padding=1, backend=FPROP)),
    "hopper fprop, residual": (
        1,
        lambda: gpuconv.conv2d(WIDE_X, WIDE_W, padding=1, residual=WIDE_DY, activation="relu", backend=FPROP),
    ),
    "hopper fprop, contiguous": (4, lambda: gpuconv.conv2d(CONTIGUOUS_X, CONTIGUOUS_W, padding=1, backend=FPROP)),
    "hopper transposed": (1, lambda: gpuconv.conv_transpose2d(WIDE_DY, WIDE_W, padding=1, backend=DGRAD)),
    "hopper dgrad": (
        1,
        lambda: gpuconv.conv2d_input_grad(WIDE_X.shape, WIDE_W, WIDE_DY, padding=1, backend=DGRAD),
    ),
    "hopper dgrad of stride 2": (
        1,
        lambda: gpuconv.conv2d_input_grad((2, 64, 23, 24), WIDE_W, WIDE_DY, stride=2, padding=1, backend=DGRAD),
    ),
    "hopper transposed of stride 2, residual": (
        1,
        lambda: gpuconv.conv_transpose2d(
            WIDE_DY, WIDE_W, B64, stride=2, padding=1, output_padding=1, residual=WIDE_RESULT, backend=DGRAD
        ),
    ),
    "hopper wgrad": (2, lambda: gpuconv.conv2d_weight_grad(WIDE_X, WIDE_W.shape, WIDE_DY, padding=1, backend=WGRAD)),
}
HOPPER = OF_HOPPER if (installed_triton() or (9,)) >= (3, 8) else {}
"""Calls through tensor maps, some of them with clusters, by solvers that are named; Triton 3.8 compiles them."""

BOXES, BOXES_BACK = "triton.conv.fprop.tma", "triton.conv.dgrad.tma"
POINT_W, GROUPED_W = half(256, 64, 1, 1), half(256, 32, 3, 3)
SINGLE_X, SINGLE_W = WIDE_X.float(), WIDE_W.float()

TMA: dict[str, tuple[int, Callable[[], Any]]] = {
    "tma fprop": (1, lambda: gpuconv.conv2d(WIDE_X, WIDE_W, WIDE_B, padding=1, backend=BOXES)),
    "tma fprop, residual": (
        1,
        lambda: gpuconv.conv2d(WIDE_X, WIDE_W, padding=1, residual=WIDE_DY, activation="relu", backend=BOXES),
    ),
    "tma fprop, packed": (2, lambda: gpuconv.conv2d(WIDE_X, CONTIGUOUS_W, padding=1, backend=BOXES)),
    "tma fprop, every second position": (1, lambda: gpuconv.conv2d(WIDE_X, POINT_W, stride=2, backend=BOXES)),
    "tma fprop, groups": (1, lambda: gpuconv.conv2d(WIDE_X, GROUPED_W, groups=2, backend=BOXES)),
    "tma fprop, tf32": (
        1,
        lambda: gpuconv.conv2d(SINGLE_X, SINGLE_W, padding=1, precision="tf32", backend=BOXES),
    ),
    "tma transposed": (1, lambda: gpuconv.conv_transpose2d(WIDE_DY, WIDE_W, padding=1, backend=BOXES_BACK)),
    "tma dgrad of stride 2": (
        4,
        lambda: gpuconv.conv2d_input_grad((2, 64, 24, 24), WIDE_W, WIDE_DY, stride=2, padding=1, backend=BOXES_BACK),
    ),
}
"""Calls through tensor maps of plain Triton, by solvers that are named."""

NAMED = {**HOPPER, **TMA}
"""Calls by solvers that are named, which planning does not take by itself."""

CALLS: dict[str, tuple[int, Callable[[], Any]]] = {
    "fprop": (1, lambda: gpuconv.conv2d(X, W, B, padding=1)),
    "fprop without bias": (1, lambda: gpuconv.conv2d(X, W, padding=(1, 1))),
    "fprop, packed and split": (3, lambda: gpuconv.conv2d(PLAIN_X, PLAIN_W, padding=1)),
    "fprop, unbatched": (1, lambda: gpuconv.conv2d(X[0], W, B, padding=1)),
    "fprop, unaligned": (1, lambda: gpuconv.conv2d(UNALIGNED, W, padding=1)),
    "residual is the input": (1, lambda: gpuconv.conv2d(X, W, padding=1, residual=X, activation="relu")),
    "dgrad": (1, lambda: gpuconv.conv2d_input_grad(X.shape, W, DY, padding=1)),
    "transposed": (1, lambda: gpuconv.conv_transpose2d(DY, W, B, stride=2)),
    "wgrad": (2, lambda: gpuconv.conv2d_weight_grad(MANY_X, W.shape, MANY_DY, padding=1)),
    "forward and backward": (4, _backward),
    "scaled": (1, lambda: gpuconv.scaled_conv2d(X8, W8, B8, padding=1, input_scale=0.5, weight_scale=B8)),
    "scaled, 8-bit result": (
        1,
        lambda: gpuconv.scaled_conv2d(X8, W8, input_scale=ONE8, weight_scale=2.5, output_scale=0.3, out_dtype="int8"),
    ),
    "scaled, float8, packed": (
        2,
        lambda: gpuconv.scaled_conv2d(
            F8, PLAIN_F8, input_scale=ONE8, weight_scale=ONE8, output_scale=ONE8, out_dtype=torch.float8_e4m3fn
        ),
    ),
    "max_pool": (1, lambda: gpuconv.max_pool2d(X, 3, 2, 1)),
    "max_pool with indices": (1, lambda: gpuconv.max_pool2d(X, 3, 2, 1, return_indices=True)),
    "max_pool, axis after axis": (2, _separable_pool),
    "gradient of max_pool by positions, axis after axis": (4, _separable_pool_backward),
    "avg_pool, unbatched": (1, lambda: gpuconv.avg_pool2d(X[0], 2)),
    "lp_pool": (1, lambda: gpuconv.lp_pool2d(X, 2.0, 2)),
    "adaptive_avg_pool": (1, lambda: gpuconv.adaptive_avg_pool2d(X, 5)),
    "unfold": (1, lambda: gpuconv.unfold(X, 3, padding=1)),
    "fold, unbatched": (1, lambda: gpuconv.fold(COLUMNS[0], (12, 12), 3, padding=1)),
    "max_pool, forward and backward": (2, _pool_backward),
    **NAMED,
}
"""The number of launches, and the call."""
