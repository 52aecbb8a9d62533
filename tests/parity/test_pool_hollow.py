"""Windows of padding alone, which a dilation makes: their index is an element of the plane, and takes no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hollow_windows import hollow_cases
from torch.autograd import forward_ad

import gpuconv


def in_plane(case, indices):
    """Check the indices: torch's where torch has one, and elsewhere an element of the plane."""
    indices = torch.as_tensor(indices)
    assert torch.equal(indices[case.reads], case.indices[case.reads])
    assert int(indices.min()) >= 0 and int(indices.max()) < case.x[0, 0].numel()


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_indices_and_explicit_gradient(ndim):
    for number, case in enumerate(hollow_cases(ndim, 25)):
        backward = getattr(gpuconv, f"{case.name}_with_indices_backward")
        dy = torch.randn(case.y.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        for arrays in ((case.x, dy), (case.x.numpy(), dy.numpy())):
            y, indices = getattr(gpuconv, case.name)(arrays[0], *case.args, return_indices=True)
            np.testing.assert_array_equal(y, case.y)
            in_plane(case, indices)
            np.testing.assert_allclose(backward(arrays[1], arrays[0], *case.args, indices), case.gradient(dy))


@pytest.mark.parametrize("indices", (False, True))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_derivatives_of_every_kind_leave_them_out(ndim, indices):
    def pool(case, x):
        result = getattr(gpuconv, case.name)(x, *case.args, return_indices=indices)
        return result[0] if indices else result

    for number, case in enumerate(hollow_cases(ndim, 12, seed=1)):
        rng = torch.Generator().manual_seed(number)
        dy = torch.randn(case.y.shape, generator=rng, dtype=torch.float64, requires_grad=True)
        v = torch.randn(case.x.shape, generator=rng, dtype=torch.float64)
        x = case.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(pool(case, x), x, dy, create_graph=True)
        torch.testing.assert_close(grad.detach(), case.gradient(dy.detach()))
        torch.testing.assert_close(torch.autograd.grad(grad, dy, v)[0], case.gathered(v))
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(pool(case, forward_ad.make_dual(case.x, v))).tangent
        torch.testing.assert_close(tangent, case.gathered(v))


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_unpooling_takes_the_indices(ndim):
    for case in hollow_cases(ndim, 12, seed=2):
        y, indices = getattr(gpuconv, case.name)(case.x, *case.args, return_indices=True)
        kernel, stride, padding, *_ = case.args
        size = tuple(int(n) for n in case.x.shape[2:])
        default = [(o - 1) * s - 2 * p + k for o, s, p, k in zip(y.shape[2:], stride, padding, kernel)]
        size = tuple(max(n, d) for n, d in zip(size, default))
        if any(abs(n - d) >= s for n, d, s in zip(size, default, stride)):
            continue
        plane = getattr(gpuconv, f"max_unpool{ndim}d")(y, indices, kernel, stride, padding, size)
        assert plane.shape[2:] == size
