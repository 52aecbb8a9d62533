"""Every function under ``functionalize``, batched gradients, ``jit.trace``, and the ways that PyTorch runs a model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian, jacobian
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch_calls import CALLS, operands

import gpuconv

NAMES = [str(call) for call in CALLS]


def squares(function):
    return lambda *tensors: function(*tensors).square().sum()


def close(actual, expected):
    torch.testing.assert_close(actual, expected)


TRANSFORMS = {
    "plain": lambda f, d, remove: functionalize(f, remove=remove),
    "of grad": lambda f, d, remove: functionalize(grad(squares(f), d), remove=remove),
    "in grad": lambda f, d, remove: grad(functionalize(squares(f), remove=remove), d),
    "of vmap": lambda f, d, remove: functionalize(vmap(grad(squares(f), d)), remove=remove),
    "in vmap": lambda f, d, remove: vmap(functionalize(f, remove=remove)),
    "of jvp": lambda f, d, remove: functionalize(lambda *t: jvp(f, t, t)[1], remove=remove),
}


@pytest.mark.parametrize("remove", ("mutations", "mutations_and_views"))
@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_functionalize(call, remove, torch_rng, full):
    tensors = operands(call, torch_rng)
    places = tuple(range(len(tensors)))
    for name, transform in TRANSFORMS.items():
        if not full and name not in ("plain", "of vmap"):
            continue
        given = [torch.stack([t, 2 * t]) for t in tensors] if "vmap" in name else tensors
        theirs, ours = (transform(call.of(module), places, remove)(*given) for module in (F, gpuconv))
        close(ours, theirs)


def test_functionalize_of_a_recorded_gradient():
    """The derivative of what was recorded outside runs inside."""
    x, w = (torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(2, 2, 3, 3))
    for call in (lambda m: m.conv2d(x, w), lambda m: m.max_pool2d(x, 2)):
        theirs, ours = (
            functionalize(lambda g, m=m, call=call: torch.autograd.grad(call(m), x, g)[0])(torch.ones_like(call(m)))
            for m in (F, gpuconv)
        )
        close(ours, theirs)


def test_a_functionalized_graph_has_operators():
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    graph = make_fx(functionalize(grad(squares(lambda a: gpuconv.conv2d(a, w)))))(x)
    targets = {str(node.target) for node in graph.graph.nodes if "gpuconv" in str(node.target)}
    assert targets == {"gpuconv.fprop.default", "gpuconv.dgrad.default"}
    close(graph(x), grad(squares(lambda a: F.conv2d(a, w)))(x))


def batched(function, tensors):
    """Return gradients of two cotangents at once, and of these again."""
    y = function(*tensors)
    dy = torch.linspace(0, 1, y.numel(), dtype=y.dtype).reshape(y.shape).requires_grad_()
    first = torch.autograd.grad(y, tensors, torch.stack([dy, 2 - dy]), is_grads_batched=True, retain_graph=True)
    once = torch.autograd.grad(y, tensors, dy, create_graph=True)
    both = [torch.stack([t, t + 1]).detach() for t in once]
    second = torch.autograd.grad(once, [*tensors, dy], both, is_grads_batched=True, allow_unused=True)
    return first, [torch.zeros(()) if t is None or not t.any() else t for t in second]


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_batched_gradients(call, torch_rng):
    tensors = [t.requires_grad_() for t in operands(call, torch_rng)]
    close(batched(call.of(gpuconv), tensors), batched(call.of(F), tensors))


@pytest.mark.parametrize("call", [call for call in CALLS if call.ndim == 2], ids=str)
def test_vectorised_jacobians_and_hessians(call, torch_rng):
    tensors = tuple(operands(call, torch_rng))

    def some(module):
        return lambda *t: call.of(module)(*t).reshape(-1)[:7]

    def along(module):  # a curve through the tensors, for a small hessian
        steps = [torch.arange(t.numel(), dtype=t.dtype).reshape(t.shape).cos() for t in tensors]
        return lambda a: squares(call.of(module))(*(t + s * v for t, s, v in zip(tensors, a, steps)))

    close(jacobian(some(gpuconv), tensors, vectorize=True), jacobian(some(F), tensors))
    at = torch.zeros(len(tensors), dtype=torch.float64)
    close(hessian(along(gpuconv), at, vectorize=True), hessian(along(F), at))


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_jit_trace_is_refused_in_one_way(call, torch_rng, recwarn):
    tensors = tuple(operands(call, torch_rng))
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace cannot record gpuconv"):
        torch.jit.trace(call.of(gpuconv), tensors)
    assert not [w for w in recwarn if issubclass(w.category, torch.jit.TracerWarning) and "gpuconv" in w.filename]
