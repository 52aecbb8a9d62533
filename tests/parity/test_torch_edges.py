"""Edges at which torch accepts what looks wrong: no channels, no elements, rare types; the same result or class."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.testing import forbid_aten


def outcome(module, name, tensors, *args, **kwargs):
    """Describe the result and every gradient, or return the class of the error."""
    tensors = [t if t is None else t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
    try:
        y = getattr(module, name)(*tensors, *args, **kwargs)
    except Exception as error:
        return type(error)
    y = y[0] if isinstance(y, tuple) else y
    found = [(tuple(y.shape), y.dtype)]
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    if y.requires_grad:
        try:
            found += [(tuple(t.shape), t.dtype) for t in torch.autograd.grad(y, wanted, torch.ones_like(y))]
        except Exception as error:
            found.append(type(error))
    return found


def same(name, tensors, *args, **kwargs):
    expected = outcome(F, name, tensors, *args, **kwargs)
    with forbid_aten():
        actual = outcome(gpuconv, name, tensors, *args, **kwargs)
    assert actual == expected, (name, [t if t is None else tuple(t.shape) for t in tensors], args, kwargs)


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_empty_axes_of_pools(ndim):
    sizes = [(0,) * ndim, (5,) * (ndim - 1) + (0,), (5,) * ndim, (1,) * ndim]
    for batch, c, size in itertools.product(((), (0,), (2,)), (0, 1, 4), sizes):
        x = torch.zeros(*batch, c, *size)
        for k, s, p in ((2, 2, 1), (3, 1, 1), (1, 1, 0)):
            for indices in (False, True):
                same(f"max_pool{ndim}d", [x], k, s, p, return_indices=indices)
            same(f"avg_pool{ndim}d", [x], k, s, p)
            same(f"lp_pool{ndim}d", [x], 2, k, s)
        for output in (0, 1, 2):
            for name in (f"adaptive_avg_pool{ndim}d", f"adaptive_max_pool{ndim}d"):
                same(name, [x], output)


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_empty_axes_of_convolutions(ndim, transposed):
    sizes = [(0,) * ndim, (5,) * (ndim - 1) + (0,), (5,) * ndim]
    for batch, c, k, size in itertools.product(((), (0,), (2,)), (0, 4), (0, 2), sizes):
        for padding, groups, bias in ((0, 1, True), (1, 1, False), (1, 2, True)):
            if transposed and k == 0:
                continue  # torch fails there with an index
            w = (c, k, *(2,) * ndim) if transposed else (k, c // groups, *(2,) * ndim)
            out = k * groups if transposed else k
            tensors = [torch.zeros(*batch, c, *size), torch.zeros(w), torch.zeros(out) if bias else None]
            name = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
            same(name, tensors, padding=padding, groups=groups)


@pytest.mark.parametrize("kind", ("avg", "max"))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_no_channels_have_gradients_without_a_batch_alone(ndim, kind):
    name = f"adaptive_{kind}_pool{ndim}d"
    for module in (F, gpuconv):
        x = torch.zeros(0, *(6,) * ndim, requires_grad=True)
        y = getattr(module, name)(x, 2)
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
        batched = torch.zeros(1, 0, *(6,) * ndim, requires_grad=True)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(getattr(module, name)(batched, 2).sum(), batched)
    compiled = torch.compile(lambda t: getattr(gpuconv, name)(t, 2), backend="aot_eager", fullgraph=True)
    assert torch.autograd.grad(compiled(x).sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_the_bias_of_an_empty_batch_may_be_of_another_type(ndim):
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64)
    for dtype, bias, n in itertools.product(kinds, kinds, (0, 1)):
        if n and dtype is not bias:
            continue  # torch's own kernels differ over these
        x, w = torch.zeros(n, 2, *(4,) * ndim, dtype=dtype), torch.zeros(2, 2, *(2,) * ndim, dtype=dtype)
        for name in (f"conv{ndim}d", f"conv_transpose{ndim}d"):
            same(name, [x, w, torch.zeros(2, dtype=bias)])


def test_a_fake_bias_of_an_empty_batch():
    x, w, b = (
        torch.zeros(s, device="meta", dtype=t) for s, t in (((0, 2, 4), None), ((2, 3, 2), None), (3, torch.half))
    )
    assert gpuconv.conv_transpose1d(x, w, b).shape == (0, 3, 5)
    with pytest.raises(RuntimeError, match="dtype of bias"):
        gpuconv.conv_transpose1d(x, w, b.to(torch.complex64))


@pytest.mark.parametrize("name", [f"conv{kind}{ndim}d" for kind in ("", "_transpose") for ndim in (1, 2, 3)])
def test_complex_numbers_of_32_bits(name, torch_rng):
    def tensor(*shape):
        real = torch.randint(-3, 4, (*shape, 2), generator=torch_rng).float()
        return torch.view_as_complex(real).to(torch.complex32).requires_grad_()

    ndim = int(name[-2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the type is experimental
        tensors = [tensor(2, 2, *(4,) * ndim), tensor(2, 2, *(2,) * ndim), tensor(2)]
        results = []
        for module in (F, gpuconv):
            y = getattr(module, name)(*tensors, stride=2)
            assert y.dtype is torch.complex32
            results.append(y.to(torch.complex64))
        assert torch.equal(*results)  # small integers are exact
        y = getattr(gpuconv, name)(*tensors, stride=2)
        gradients = torch.autograd.grad(torch.view_as_real(y).sum(), tensors)
        assert [t.dtype for t in gradients] == [torch.complex32] * 3
        with pytest.raises(RuntimeError, match="dtype of weight"):
            getattr(gpuconv, name)(tensors[0], tensors[1].to(torch.complex64))
        wide = [t.detach().to(torch.complex64).requires_grad_() for t in tensors]
        y = getattr(F, name)(*wide, stride=2)
        expected = torch.autograd.grad(torch.view_as_real(y).sum(), wide)
        assert all(torch.equal(ours.to(torch.complex64), theirs) for ours, theirs in zip(gradients, expected))


def test_explain_of_complex_numbers_of_32_bits():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(1, 1, 4, dtype=torch.complex32)
        assert gpuconv.explain(gpuconv.conv1d, x, x[..., :2]).solver.startswith("numpy.conv.fprop")


@pytest.mark.parametrize("include", (False, True))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_average_windows_as_large_as_the_padded_input(ndim, include, torch_rng):
    """With pairs of pads, a window may exceed the input in 3-D as in 1-D and 2-D; with torch's form it may not."""
    x = torch.rand(1, 2, *(3,) * ndim, generator=torch_rng, dtype=torch.float64)
    pads = ((1, 2), (2, 1), (0, 2))[:ndim]
    kernel = tuple(3 + lo + hi for lo, hi in pads)
    y = getattr(gpuconv, f"avg_pool{ndim}d")(x, kernel, 1, pads, False, include)
    count = torch.tensor(kernel).prod() if include else 3**ndim
    torch.testing.assert_close(y.flatten(), x.flatten(2).sum(-1).flatten() / count)
    if ndim == 3:
        for module in (F, gpuconv):
            with pytest.raises(RuntimeError, match=r"(kernel|pad)"):
                module.avg_pool3d(x, 5, 1, 1)
