"""NumPy convolutions in pieces of their weights, and the choice between their solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.backends.numpy import chunks
from gpuconv.dispatch import candidates, record_plans


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pieces of any size, and a limit under which the weights below are cut along both kinds of channels."""
    monkeypatch.setattr(chunks, "_LEAST", 1 << 16)
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(200 << 10))
    chunks.column_chunk.cache_clear()
    chunks.tap_chunk.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups, last", [(1, False), (2, False), (1, True)])
def test_cut_weights_give_torchs_results(dtype: torch.dtype, groups: int, last: bool) -> None:
    torch.manual_seed(groups)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 24 * groups, 9, 8, dtype=dtype).contiguous(memory_format=layout)
    w, bias = torch.randn(20 * groups, 24, 5, 4, dtype=dtype) / 8, torch.randn(20 * groups, dtype=dtype)
    ours, theirs = ([each.clone().requires_grad_() for each in (x, w, bias)] for _ in range(2))
    with record_plans() as plans:
        y = gpuconv.conv2d(*ours, stride=2, padding=1, groups=groups)
        y.backward(torch.ones_like(y))
    assert all(plan.workspace <= 200 << 10 for plan in plans)
    assert any("parts of K" in plan.config for plan in plans) and any("parts of C" in plan.config for plan in plans)
    wide = dtype if dtype in (torch.float64, torch.complex128) else torch.float64
    exact = [each.detach().to(wide).requires_grad_() for each in theirs]
    expected = F.conv2d(*exact, stride=2, padding=1, groups=groups)
    expected.backward(torch.ones_like(expected))
    for our, their in zip((y, *(each.grad for each in ours)), (expected, *(each.grad for each in exact)), strict=True):
        torch.testing.assert_close(our.to(wide), their, **({} if wide == dtype else {"rtol": 2e-2, "atol": 2e-1}))


@pytest.mark.parametrize("groups, multiplier", [(1, 5), (6, 1), (6, 2)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_gradients_with_more_taps_than_outputs_are_torchs(groups: int, multiplier: int, mode: str) -> None:
    """They are scattered output by output; every solver that takes the problem."""
    c = 3 if groups == 1 else groups
    x = torch.randn(2, c, 12, 13, dtype=torch.float64, requires_grad=True)
    w = torch.randn(groups * multiplier, c // groups, 5, 6, dtype=torch.float64)
    padded = F.pad(x, (2, 2, 1, 1), mode="circular" if mode == "circular" else "constant")
    y = F.conv2d(padded, w, stride=(3, 2), dilation=(2, 1), groups=groups)
    dy = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, dy)
    geometry: dict[str, Any] = {"stride": (3, 2), "padding": (1, 2), "dilation": (2, 1), "groups": groups}
    for solver in ("numpy.conv.dgrad.col2im", "numpy.conv.dgrad.taps")[: 1 + (c == groups)]:
        found = gpuconv.conv2d_input_grad(x.shape, w, dy, padding_mode=mode, backend=solver, **geometry)
        torch.testing.assert_close(found, expected)


def test_filters_longer_than_the_limit_run_with_a_warning() -> None:
    from gpuconv import dispatch

    dispatch.selection._warned.discard("conv1d")
    x, w = np.ones((1, 1, 40_000), np.float32), np.ones((1, 1, 39_999), np.float32)
    with pytest.warns(gpuconv.WorkspaceWarning, match="conv1d: numpy.conv.fprop"):
        np.testing.assert_array_equal(gpuconv.conv1d(x, w), [[[39_999, 39_999]]])


ONE_CHANNEL = {
    "first layer on grey images": ((8, 1, 28, 28), (64, 1, 7, 7), 1),
    "short-time Fourier transform": ((1, 1, 6000), (1026, 1, 1024), 256),
    "depthwise": ((4, 96, 28, 28), (96, 1, 3, 3), 1),
}


@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_one_channel_per_group_runs_on_what_does_fewer_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps for depthwise layers, columns where a channel of x has many of y, unless the estimates are close."""
    monkeypatch.delenv("GPUCONV_WORKSPACE")
    x_shape, w_shape, stride = ONE_CHANNEL[name]
    ndim, rng = len(x_shape) - 2, np.random.default_rng(0)
    x, w = rng.random(x_shape, np.float32), rng.random(w_shape, np.float32)
    geometry: dict[str, Any] = {"stride": stride, "groups": x_shape[1]}
    dy = gpuconv.__dict__[f"conv{ndim}d"](x, w, **geometry)
    depthwise = x_shape[1] > 1
    calls = {f"conv{ndim}d_input_grad": (x_shape, w, dy), f"conv{ndim}d_weight_grad": (x, w_shape, dy)}
    for op, arguments in calls.items():
        fn = getattr(gpuconv, op)
        chosen, other = candidates(gpuconv.explain(fn, *arguments, **geometry).problem)[:2]
        assert chosen.reason is None and other.reason is None
        assert chosen.solver.id.endswith("taps") == depthwise or chosen.estimate > 0.5 * other.estimate
