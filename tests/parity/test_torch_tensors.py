"""Tensors that are no dense ones in memory: sparse, nested and on the meta device, and storages after a call."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_calls import CALLS, TorchCall, operands

import gpuconv
import gpuconv.nn
from gpuconv.arrays import TORCH
from gpuconv.testing import forbid_aten

NAMES = [str(call) for call in CALLS]


def as_nested(t, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(t.unbind(0)), **options)


ODD = {
    "coo": lambda t: t.to_sparse(),
    "csr": lambda t: t.to_sparse_csr(dense_dim=t.dim() - 2),
    "csc": lambda t: t.to_sparse_csc(dense_dim=t.dim() - 2),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "nested": as_nested,
    "jagged": lambda t: as_nested(t, layout=torch.jagged),
}


def error_of(function, *tensors):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*tensors)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_layouts_without_strides_are_refused_by_name(call, kind, torch_rng):
    """With torch's class, or NotImplementedError, which is a RuntimeError, where torch stumbles or has an answer."""
    if "unpool" in call.name or "fractional" in call.name:
        call = call._replace(name="max_pool2d", shapes=((2, 4, 6, 5),), args=(2,), kwargs={})
    for place, argument in enumerate(("input", "weight", "bias")[: len(call.shapes)]):
        tensors = operands(call, torch_rng, dtype=torch.float32)
        if tensors[place].dim() == 1 and kind in ("csr", "csc", "jagged"):
            continue
        tensors[place] = ODD[kind](tensors[place])
        theirs, ours = (error_of(call.of(module), *tensors) for module in (F, gpuconv))
        assert str(ours).startswith(f"{call.name}: {argument} must be a dense strided tensor"), ours
        assert isinstance(ours, NotImplementedError) or type(theirs) is type(ours) or theirs is None or kind == "mkldnn"


def test_indices_and_gradients_without_strides_are_refused():
    x = torch.randn(1, 2, 4, 4)
    y, indices = gpuconv.max_pool2d(x, 2, return_indices=True)
    for call, argument in (
        (lambda: gpuconv.max_unpool2d(y, indices.to_sparse(), 2), "indices"),
        (lambda: gpuconv.max_pool2d_with_indices_backward(y.to_sparse(), x, 2, 2, 0, 1, False, indices), "grad_output"),
        (lambda: gpuconv.conv2d(x, torch.randn(2, 2, 1, 1), residual=x.to_sparse()), "residual"),
        (lambda: gpuconv.conv2d_input_grad(x.shape, torch.randn(2, 2, 1, 1), x.to_sparse()), "grad_output"),
        (lambda: gpuconv.conv2d_weight_grad(x.to_sparse(), (2, 2, 1, 1), x), "input"),
    ):
        with pytest.raises(RuntimeError, match=f": {argument} must be a dense strided tensor"):
            call()


def described(tensors):
    return [None if t is None else (tuple(t.shape), t.dtype, t.stride()) for t in tensors]


def derivatives(call: TorchCall, tensors):
    """Describe the result, first and second derivatives; those of functions that are linear may be absent."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = call.of(gpuconv)(*tensors)
    dy = torch.ones_like(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    second = torch.autograd.grad(first, [*tensors, dy], [torch.ones_like(t) for t in first], allow_unused=True)
    return described([y, *first, *second])


def channels_last(t):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.to(memory_format=formats[t.dim()]) if t.dim() in formats else t


@pytest.mark.parametrize("form", (lambda t: t, channels_last), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_derivatives_without_memory_are_those_with(call, form, torch_rng):
    tensors = [form(t) for t in operands(call, torch_rng)]
    with forbid_aten():
        expected = derivatives(call, tensors)
        with torch.device("meta"):
            assert derivatives(call, [form(t.to("meta")) for t in tensors]) == expected
    with FakeTensorMode() as mode:
        assert derivatives(call, [mode.from_tensor(t) for t in tensors]) == expected
    with torch.autocast("cpu", torch.bfloat16):  # which the meta device does not have
        assert derivatives(call, [form(t.to("meta")) for t in tensors]) == expected


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_storages_stay_resizable(call, torch_rng):
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [t.requires_grad_() for t in operands(call, torch_rng, dtype=dtype)]
        y = call.of(gpuconv)(*tensors)
        gradients = torch.autograd.grad(y, tensors, torch.ones_like(y))
        assert all(t.untyped_storage().resizable() for t in (*tensors, y, *gradients))


def test_a_view_of_a_tensor_keeps_its_memory():
    t = torch.arange(6.0).reshape(2, 3)
    view = TORCH.to_numpy(t.T)
    assert np.shares_memory(view, TORCH.to_numpy(t))
    assert view.strides == (4, 12)
    del t
    np.testing.assert_array_equal(view, [[0, 3], [1, 4], [2, 5]])
    view[0, 0] = 7  # writeable, as results are written through such views


def test_views_of_lazy_tensors_have_their_values():
    z = torch.tensor([1 + 2j, 3 - 1j])
    np.testing.assert_array_equal(TORCH.to_numpy(z.conj()), [1 - 2j, 3 + 1j])
    np.testing.assert_array_equal(TORCH.to_numpy(z.conj().imag), [-2, 1])
    np.testing.assert_array_equal(TORCH.to_numpy(torch._efficientzerotensor((2, 2))), np.zeros((2, 2)))
    assert TORCH.to_numpy(torch.empty(0, 3)).shape == (0, 3)
    assert TORCH.to_numpy(torch.ones(1, dtype=torch.bfloat16)).dtype == np.uint16


def test_freed_memory_is_not_read():
    x = torch.ones(1, 1, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="freed"):
        gpuconv.avg_pool1d(x, 2)
    with pytest.raises(TypeError, match="meta"):
        TORCH.to_numpy(torch.ones(2, device="meta"))
