"""Causal and separable convolutions by the Triton kernels: results, states, gradients, every variant."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten


def drawn(rng, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=rng).to(dtype)


def laid(x, last):
    return x.transpose(1, 2).contiguous().transpose(1, 2) if last else x


def by_triton(plans):
    return {plan.solver.id.partition(".")[0] for plan in plans} == {"triton"}


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("variant", ["plain", "state", "packed"])
def test_forward_and_backward(variant, last, torch_rng):
    x, w, b = laid(drawn(torch_rng, 2, 5, 11), last), drawn(torch_rng, 5, 4), drawn(torch_rng, 5)
    before = drawn(torch_rng, 2, 5, 3)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    options = {"activation": "silu", "backend": "triton"}
    ids = torch.tensor([[0] * 4 + [1] * 7, [2] * 9 + [3] * 2], dtype=torch.int32)
    with record_plans() as plans:
        if variant == "state":
            leaves.append(before.requires_grad_())
            y, state = gpuconv.causal_conv1d(*leaves[:3], initial_state=before, return_state=True, **options)
            assert torch.equal(state, x[..., -3:])
        else:
            y = gpuconv.causal_conv1d(*leaves, **options, seq_idx=ids if variant == "packed" else None)
        ours = torch.autograd.grad(y.square().sum(), leaves)
    assert by_triton(plans) and {plan.problem.kind for plan in plans} == {"fprop", "dgrad", "wgrad"}

    def plain(x, before):
        return F.silu(F.conv1d(torch.cat([before, x], -1), w[:, None], b, groups=5))

    none = torch.zeros(1, 5, 3)
    if variant == "packed":
        rows = [(x[:1, :, :4], x[:1, :, 4:]), (x[1:, :, :9], x[1:, :, 9:])]
        expected = torch.cat([torch.cat([plain(part, none) for part in row], -1) for row in rows])
    else:
        expected = plain(x, before if variant == "state" else none.expand(2, 5, 3))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # fused into one launch
        fused = gpuconv.causal_conv1d(*leaves[:3], **options) if variant == "plain" else y
    torch.testing.assert_close(fused, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_steps(dtype, torch_rng):
    x, w, b = (drawn(torch_rng, *shape, dtype=dtype) for shape in ((2, 5, 6), (5, 4), (5,)))
    options = {"activation": "silu", "backend": "triton"}
    whole = gpuconv.causal_conv1d(x, w, b, **options)
    exact = F.silu(F.conv1d(F.pad(x.double(), (3, 0)), w.double()[:, None], b.double(), groups=5))
    torch.testing.assert_close(whole.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
    cache = drawn(torch_rng, 4, 5, 5, dtype=dtype)
    kept, entries = cache.clone(), torch.tensor([2, 0], dtype=torch.int32)
    cache[[2, 0]] = 0
    with record_plans() as plans, forbid_aten():
        steps = [
            gpuconv.causal_conv1d_update(
                x[..., at], cache, w, b, cache_seqlens=torch.full((2,), at), conv_state_indices=entries, **options
            )
            for at in range(6)
        ]
    assert by_triton(plans) and len(plans) == 6
    torch.testing.assert_close(torch.stack(steps, -1), whole)
    assert torch.equal(cache[[1, 3]], kept[[1, 3]])
    assert torch.equal(cache[[2, 0]], x[..., [5, 1, 2, 3, 4]])


@pytest.mark.parametrize("name", ["depthwise_separable_conv2d", "separable_conv2d"])
def test_separable(name, torch_rng):
    shapes = [(4, 1, 3, 2), (3, 4, 1, 1)] if "depthwise" in name else [(3, 4, 3, 1), (3, 3, 1, 2)]
    x = drawn(torch_rng, 2, 4, 5, 6).to(memory_format=torch.channels_last)
    w, v, b = (drawn(torch_rng, *shape) for shape in (*shapes, (3,)))
    leaves = [t.requires_grad_() for t in (x, w, v, b)]
    with record_plans() as plans:
        y = getattr(gpuconv, name)(x, w, v, None, b, padding=1, between="relu", backend="triton")
        ours = torch.autograd.grad(y.square().sum(), leaves)
    assert by_triton(plans) and len(plans) == 6
    if "depthwise" in name:
        expected = F.conv2d(F.conv2d(x, w, padding=1, groups=4).relu(), v, b)
    else:
        expected = F.conv2d(F.conv2d(x, w, padding=(1, 0)).relu(), v, b, padding=(0, 1))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
