"""``rounding="torch"`` in every Triton convolution with an epilogue: bit for bit torch's steps where sums are exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.backends.triton import backend as triton_backend

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "triton.conv.fprop.implicit_gemm": ("conv2d", (2, 6, 7, 9), (5, 6, 3, 3), {"padding": 1}),
    "triton.conv.dgrad.implicit_gemm": ("conv_transpose2d", (2, 6, 5, 4), (6, 5, 3, 3), {"stride": 2}),
    "triton.conv.depthwise.march": ("conv2d", (2, 6, 9, 7), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "triton.conv.depthwise.banded": ("conv2d", (2, 8, 9, 17), (8, 1, 7, 7), {"padding": 3, "groups": 8}),
    "triton.conv.grouped.rows": ("conv2d", (2, 16, 9, 7), (16, 4, 3, 3), {"padding": 1, "groups": 4}),
    "triton.conv.fprop.runs": ("conv2d", (2, 3, 11, 10), (16, 3, 3, 3), {"padding": 1}),
    "triton.conv.fprop.rolling": ("conv2d", (2, 16, 8, 9), (16, 16, 3, 3), {"padding": 1}),
    "triton.conv.fprop.tma": ("conv2d", (2, 32, 8, 9), (32, 32, 3, 3), {"padding": 1}),
    "triton.conv.dgrad.tma": ("conv_transpose2d", (2, 32, 6, 5), (32, 32, 3, 3), {"padding": 1}),
    "triton.conv.dgrad.rolling": ("conv_transpose2d", (2, 16, 8, 9), (16, 16, 3, 3), {"padding": 1}),
    "triton.conv.dgrad.runs": ("conv_transpose2d", (2, 16, 8, 9), (16, 3, 2, 2), {"stride": 2}),
}

USED = [tuple(bool(number >> bit & 1) for bit in range(4)) for number in (1, 2, 4, 6, 8, 15)]
"""Which of bias, scale, shift and residual a call has."""


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("solver", LAYERS)
def test_steps_round_as_torchs(solver: str, dtype: torch.dtype, torch_rng: torch.Generator) -> None:
    name, x_shape, w_shape, geometry = LAYERS[solver]
    most = 15 if dtype is torch.bfloat16 else 47  # sums that the type does not hold
    x, w = (torch.randint(-most, most + 1, shape, generator=torch_rng).to(dtype) for shape in (x_shape, w_shape))
    x, w = (tensor.to(memory_format=torch.channels_last) for tensor in (x, w))
    sums = getattr(F, name)(x.float(), w.float(), **geometry).to(dtype)
    channels = sums.shape[1]
    bias, scale, shift = (torch.randn(channels, generator=torch_rng).to(dtype) * 37 for _ in range(3))
    residual = (torch.randn(sums.shape, generator=torch_rng) * 300).to(dtype)
    kept = dict(zip(("scale", "shift", "residual"), (scale / 64, shift, residual), strict=True))
    apart = 0
    for used in USED:
        expected, extras = sums, {key: kept[key] for key, wanted in zip(kept, used[1:], strict=True) if wanted}
        expected = expected + bias.reshape(-1, 1, 1) if used[0] else expected
        expected = expected * extras["scale"].reshape(-1, 1, 1) if used[1] else expected
        expected = expected + shift.reshape(-1, 1, 1) if used[2] else expected
        expected = (expected + residual if used[3] else expected).relu()
        call = {**geometry, **extras, "activation": "relu", "backend": solver}
        given = bias if used[0] else None
        assert torch.equal(getattr(gpuconv, name)(x, w, given, **call, rounding="torch"), expected)
        apart += not torch.equal(getattr(gpuconv, name)(x, w, given, **call), expected)
    assert apart >= 4


def test_every_solver_with_an_epilogue_is_here() -> None:
    others = ("wgrad", "collect", "separable", "scaled", "deform", "hopper")
    ids = {solver.id for solver in triton_backend.BACKEND.solvers() if solver.id.startswith("triton.conv.")}
    assert {one for one in ids if not any(word in one for word in others)} == set(LAYERS)
