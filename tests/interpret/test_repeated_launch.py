"""A repeated call of our kernels derives nothing again, forward or backward."""

from typing import Any

import pytest
import torch

import gpuconv
from gpuconv import dispatch
from gpuconv.backends.triton import common as triton_common
from gpuconv.backends.triton import conv_fprop, conv_grad
from gpuconv.dispatch.plan_cache import CACHE


def _train(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    y = gpuconv.conv2d(x, w, b, padding=1, backend="triton")
    return [y, *torch.autograd.grad(y, (x, w, b), torch.ones_like(y))]


def test_a_repeated_step_derives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, dtype=torch.float16) for s in ((2, 16, 5, 5), (8, 16, 3, 3), (8,)))
    tensors = [tensor.requires_grad_() for tensor in (x, w, b)]
    first = _train(*tensors)
    assert (len(CACHE), CACHE.hits) == (4, 0)  # forward as the user calls it and as autograd does; two gradients

    def unwanted(*args: Any) -> None:
        raise AssertionError("derived again")

    names = ("fprop", "fprop_pack", "fprop_sum", "dgrad", "wgrad", "wgrad_sum")
    for module in (conv_fprop, conv_grad):
        for name in names:
            if hasattr(module, f"{name}_arguments"):
                monkeypatch.setattr(module, f"{name}_arguments", unwanted)
    monkeypatch.setattr(triton_common, "conv_arguments", unwanted)
    monkeypatch.setattr(dispatch.selection, "candidates", unwanted)
    for again, before in zip(_train(*tensors), first, strict=True):
        assert torch.equal(again, before)


def test_other_strides_are_derived_anew() -> None:
    torch.manual_seed(0)
    base, w = torch.randn(2, 4, 5, 12), torch.randn(3, 4, 2, 2)
    for x in (base[..., :6], base[..., ::2], base[..., 6:].contiguous()):
        expected = torch.nn.functional.conv2d(x, w)
        torch.testing.assert_close(gpuconv.conv2d(x, w, backend="triton"), expected)
        torch.testing.assert_close(gpuconv.conv2d(x, w, backend="triton"), expected)
