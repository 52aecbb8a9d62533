"""Autocast: convolutions compute in its dtype, as torch's own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import gpuconv
import gpuconv.ops.conv
from gpuconv.testing import forbid_aten

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 4, 6, 6).to(dtype), torch.randn(6, 4, 3, 3), torch.randn(6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_dtypes_are_torchs(name: str, dtype: torch.dtype) -> None:
    """In every tier; gradients have the dtype of the leaves."""
    x, w, b = (t.requires_grad_() for t in operands())
    if name == "conv_transpose2d":
        x, b = torch.randn(2, 6, 6, 6, requires_grad=True), torch.randn(4, requires_grad=True)
    for grad in (False, True):
        found: list[list[torch.Tensor]] = []
        for fn in (getattr(gpuconv, name), getattr(F, name)):
            with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
                y = fn(x, w, b)
            assert y.dtype is dtype
            found.append([y, *(torch.autograd.grad(y.sum(), (x, w, b)) if grad else ())])
        for ours, theirs in zip(*found):
            assert ours.dtype is theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)
    with forbid_aten(), torch.autocast("cpu", dtype):
        y = getattr(gpuconv, name)(x, w, b)
        assert y.dtype is dtype
        assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, w, b))] == [torch.float32] * 3


def test_mixed_dtypes_are_cast_to_one() -> None:
    x, w, b = operands(torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        assert gpuconv.conv2d(x, w, b).dtype is F.conv2d(x, w, b).dtype is torch.bfloat16
        y = gpuconv.conv2d(x, w, b, scale=b, residual=torch.zeros(2, 6, 4, 4), activation="relu")
        assert y.dtype is torch.bfloat16
        x = x.double()
        assert gpuconv.conv2d(x, w.double()).dtype is F.conv2d(x, w.double()).dtype is torch.float64
        with torch.autocast("cpu", enabled=False):
            assert gpuconv.conv2d(x.float(), w).dtype is torch.float32


def test_gradient_functions() -> None:
    x, w, _ = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = gpuconv.conv2d(x, w)
        assert gpuconv.conv2d_input_grad(x.shape, w, y).dtype is torch.bfloat16
        assert gpuconv.conv2d_weight_grad(x, w.shape, y).dtype is torch.bfloat16


def test_the_operator_itself_is_autocast() -> None:
    x, w, b = operands()
    geometry = ((1, 1), (0, 0), (0, 0), (1, 1), 1, "zeros")
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.ops.gpuconv.fprop(x, w, b, None, None, None, *geometry, None, "fused", None, None)
        assert y.dtype is torch.bfloat16
        assert torch.ops.gpuconv.wgrad(x, y, (3, 3), *geometry, None, None).dtype is torch.bfloat16


def test_backward_under_autocast_computes_in_the_dtype_of_the_forward_pass() -> None:
    def gradient(fn: Callable[..., torch.Tensor]) -> torch.Tensor:
        x, w, b = (t.detach().requires_grad_() for t in values)
        y = fn(x, w, b)
        with torch.autocast("cpu", torch.bfloat16):
            return torch.autograd.grad(y.square().sum(), w)[0]

    values = operands()
    expected = gradient(F.conv2d)
    torch.testing.assert_close(gradient(gpuconv.conv2d), expected, rtol=1e-4, atol=1e-4)
    with forbid_aten():
        ours = gradient(gpuconv.conv2d)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_compiled() -> None:
    x, w, b = operands()

    def f(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return gpuconv.conv2d(x, w, b)

    y = torch.compile(f, fullgraph=True, backend="aot_eager")(x, w.requires_grad_(), b)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, f(x, w, b))
    (grad,) = torch.autograd.grad(y.sum(), w)
    assert grad.dtype is torch.float32
