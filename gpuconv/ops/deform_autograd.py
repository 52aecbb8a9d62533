"""Derivatives of deformable convolution: a rule that serves both ``autograd.Function`` (eager) and the operators.

The gradients of ``deform_fprop`` are ``deform_dgrad`` and ``deform_wgrad``, of which only what is wanted is computed.
Gradients of these, which no kernel computes, come from their composition of torch's operators
(:mod:`.deform_composed`): it runs wherever something records them. The output is linear in everything but the offsets,
so tangents are forward passes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .conv_autograd import functionalizes, needs_operator
from .conv_library import LIBRARY, autocast, no_autocast, records
from .deform_composed import Form, composed_dgrad, composed_wgrad, moved
from .deform_library import OPERATORS, TENSORS, launch_dgrad, launch_fprop, launch_wgrad, operator
from .epilogue import per_channel
from .tangents import primals, tangent_rule

__all__ = ["apply"]

Tensor = Any

_GRADS = ("x", "offset", "mask")


class _Tier(NamedTuple):
    """How the rule runs operators: forward without recording anything, and differentiably."""

    below: Callable[..., Tensor]
    fprop: Callable[..., Tensor]
    dgrad: Callable[..., Any]
    wgrad: Callable[..., Any]
    """Takes, after the operator's arguments, whether the bias's gradient is wanted; returns both, or w's and None."""


class _Rule:
    """A deformable convolution."""

    @staticmethod
    def forward(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor, form: Form, tier: _Tier) -> Tensor:
        return tier.below(x, offset, mask, w, bias, form)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, form, ctx.tier = inputs
        ctx.given = form
        # A forced solver solves one pass, its backend all of them.
        ctx.form = form._replace(backend=form.backend and form.backend.partition(".")[0])
        ctx.output_shape, ctx.bias_shape = output.shape, None if tensors[4] is None else tensors[4].shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:4])
        ctx.save_for_forward(*tensors[:4])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        x, offset, mask, w = ctx.saved_tensors
        wanted, form = ctx.needs_input_grad, ctx.form
        if isinstance(x.shape[1], int) and x.shape[1] == 0:
            shapes = (x.shape, offset.shape, None if mask is None else mask.shape, w.shape, ctx.bias_shape)
            return *(grad.new_zeros(shape) if needed else None for shape, needed in zip(shapes, wanted)), None, None
        with no_autocast(grad):
            names = [name for name, needed in zip(_GRADS, wanted) if needed]
            found: dict[str, Tensor] = {}
            if names:
                found = dict(zip(names, ctx.tier.dgrad(grad, x, offset, mask, w, names, form)))
            by_weight = by_bias = None
            if wanted[3]:
                by_weight, by_bias = ctx.tier.wgrad(grad, x, offset, mask, w.shape[2:], form, wanted[4])
            if wanted[4] and by_bias is None:
                by_bias = grad.sum((0, *range(2, grad.dim())))
        return *(found.get(name) for name in _GRADS), by_weight, by_bias, None, None

    @staticmethod
    @tangent_rule
    def jvp(
        ctx: Any, of_x: Tensor, of_offset: Tensor, of_mask: Tensor, of_w: Tensor, of_bias: Tensor, *_: None
    ) -> Tensor:
        x, offset, mask, w = primals(ctx)
        fprop, form, terms = ctx.tier.fprop, ctx.given, []
        if of_x is not None:
            terms.append(fprop(of_x, offset, mask, w, None, form))
        if of_mask is not None:
            terms.append(fprop(x, offset, of_mask, w, None, form))
        if of_w is not None:
            terms.append(fprop(x, offset, mask, of_w, None, form))
        if of_offset is not None:
            terms.append(moved(x, offset, of_offset, mask, w, form))
        if of_bias is not None:
            terms.append(per_channel(of_bias, x.dim() - 2).expand(ctx.output_shape))
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


# Eager: a function of every level of transforms, which launches.


def _seen(*tensors: Tensor | None) -> bool:
    """Tell whether something wants to see operators, legacy vmap included: it loops over them."""
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    return needs_operator(*tensors) or any(tensor is not None and is_batched(tensor) for tensor in tensors)


def _recording() -> bool:
    """Tell whether something may record a gradient of gradients, or transforms them."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or torch.is_grad_enabled() or forward_ad._current_level >= 0


def _launched(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor, form: Form) -> Tensor:
    tensors = (x, offset, mask, w, bias)
    return operator("deform_fprop", *tensors, *form) if _seen(*tensors) else launch_fprop(*tensors, form)


def _launched_dgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, grads: Sequence[str], form: Form
) -> Any:
    tensors = (dy, x, offset, mask, w)
    if torch._C._functorch.is_legacy_batchedtensor(dy):  # it loops over operators, but not over those with lists
        return composed_dgrad(*tensors, grads, form)
    if _recording() or _seen(*tensors):
        return operator("deform_dgrad", *tensors, grads, *form)
    return launch_dgrad(*tensors, grads, form)


def _launched_wgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel: Sequence[int], form: Form, bias: bool
) -> tuple[Tensor, Tensor | None]:
    tensors = (dy, x, offset, mask)
    if _recording() or _seen(*tensors):
        return operator("deform_wgrad", *tensors, kernel, *form), None
    found = launch_wgrad(*tensors, kernel, form, bias)
    return found if bias else (found, None)


class _Function(_Rule, torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, dims: Any, *args: Any) -> tuple[Tensor, int]:
        *tensors, form, _ = args
        return _vmap_fprop(apply, info.batch_size, dims, tensors, form)


def apply(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor, form: Form) -> Tensor:
    """Run a deformable convolution, recording what has to be recorded.

    `form.backend` is what the user forced, or ``"auto"``.
    """
    tensors = (x, offset, mask, w, bias)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if functionalizes():
            return operator("deform_fprop", *tensors, *form)
        return _Function.apply(*tensors, form, _TRANSFORMED)
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return _launched(*tensors, form)
    # Without transforms, `Function.apply` adds to this an inspection of the signature, which costs more than the rest.
    return _plain_apply(*unwrap_dead_wrappers(tensors), form, _TRANSFORMED)


_plain_apply = super(torch.autograd.Function, _Function).apply
_TRANSFORMED = _Tier(_launched, apply, _launched_dgrad, _launched_wgrad)


# Operators: a function of one level, inside of the operator's kernel for autograd.


def _below_autograd(*args: Any) -> Tensor:
    *tensors, form = args
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._functorch.peek_interpreter_stack() is None:
            return operator("deform_fprop", *tensors, *form)
        # A function's forward runs without gradients, but the next level has to record those of its own.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return operator("deform_fprop", *tensors, *form)


class _Operator(_Rule, _SingleLevelFunction):
    pass


_OPERATORS = _Tier(
    _below_autograd,
    lambda *args: operator("deform_fprop", *args[:-1], *args[-1]),
    lambda *args: operator("deform_dgrad", *args[:-1], *args[-1]),
    lambda *args: (operator("deform_wgrad", *args[:-2], *args[-2]), None),
)


def _autograd_fprop(*args: Any) -> Tensor:
    if not records(*args[:5]):
        with torch._C._AutoDispatchBelowAutograd():
            return operator("deform_fprop", *args)
    with enable_single_level_autograd_function():
        return _Operator.apply(*args[:5], Form(*args[5:]), _OPERATORS)


def _gradients_recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether gradients are differentiated: by autograd at this level, or by a tangent."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _autograd_dgrad(*args: Any) -> Any:
    if not _gradients_recorded(args[:5]):
        with torch._C._AutoDispatchBelowAutograd():
            return operator("deform_dgrad", *args)
    dy, x, offset, mask, w, grads, *form = args
    return composed_dgrad(dy, x, offset, mask, w, grads, Form(*form))


def _autograd_wgrad(*args: Any) -> Any:
    if not _gradients_recorded(args[:4]):
        with torch._C._AutoDispatchBelowAutograd():
            return operator("deform_wgrad", *args)
    dy, x, offset, mask, kernel, *form = args
    return composed_wgrad(dy, x, offset, mask, kernel, Form(*form))


# One more batch axis: folded into N where the weights have none, a loop where they do.


def _front(tensor: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Return a tensor with the batch axis in front, and joined with N."""
    if tensor is None:
        return None
    found = tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return found.flatten(0, 1)


def _at(tensor: Tensor | None, dim: int | None, place: int) -> Tensor | None:
    return tensor if tensor is None or dim is None else tensor.select(dim, place)


def _vmap_fprop(run: Callable[..., Tensor], batch: int, dims: Sequence[Any], tensors: Sequence[Any], form: Form) -> Any:
    x, offset, mask, w, bias = tensors
    if dims[3] is None:
        images = [_front(tensor, dim, batch) for tensor, dim in zip((x, offset, mask), dims)]
        y = run(*images, w, bias if dims[4] is None else None, form)
        y = y.unflatten(0, (batch, y.shape[0] // batch))
        if bias is None or dims[4] is None:
            return y, 0
        bias = bias.movedim(dims[4], 0)
        return y + bias.reshape(batch, 1, -1, *(1,) * (y.dim() - 3)), 0
    each = [run(*(_at(tensor, dim, i) for tensor, dim in zip(tensors, dims)), form) for i in range(batch)]
    return torch.stack(each), 0


def _rule_fprop(info: Any, dims: Sequence[Any], *args: Any) -> Any:
    def run(*given: Any) -> Tensor:
        return operator("deform_fprop", *given[:-1], *given[-1])

    return _vmap_fprop(run, info.batch_size, dims, args[:5], Form(*args[5:]))


def _rule_dgrad(info: Any, dims: Sequence[Any], *args: Any) -> Any:
    batch, tensors, rest = info.batch_size, args[:5], args[5:]
    if dims[4] is None:
        images = [_front(tensor, dim, batch) for tensor, dim in zip(tensors[:4], dims)]
        found = operator("deform_dgrad", *images, tensors[4], *rest)
        return [one.unflatten(0, (batch, one.shape[0] // batch)) for one in found], [0] * len(found)
    each = [operator("deform_dgrad", *(_at(t, dim, i) for t, dim in zip(tensors, dims)), *rest) for i in range(batch)]
    found = [torch.stack(one) for one in zip(*each)]
    return found, [0] * len(found)


def _rule_wgrad(info: Any, dims: Sequence[Any], *args: Any) -> Any:
    tensors, rest = args[:4], args[4:]
    places = range(info.batch_size)
    each = [operator("deform_wgrad", *(_at(t, dim, i) for t, dim in zip(tensors, dims)), *rest) for i in places]
    return torch.stack(each), 0


_AUTOGRAD = {"deform_fprop": _autograd_fprop, "deform_dgrad": _autograd_dgrad, "deform_wgrad": _autograd_wgrad}
_VMAP = {"deform_fprop": _rule_fprop, "deform_dgrad": _rule_dgrad, "deform_wgrad": _rule_wgrad}


def _autocast_to_float32(device: str) -> None:
    """Have autocast run the forward pass in float32, with a result in the type of the input, as torchvision's."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))
    count = TENSORS["deform_fprop"].count("Tensor")

    def cast(*args: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            found = operator("deform_fprop", *autocast(*args[:count], dtype=torch.float32), *args[count:])
            return found.to(args[0].dtype)

    LIBRARY.impl("deform_fprop", cast, f"Autocast{device}")


for _name, _operator in OPERATORS.items():
    LIBRARY.impl(_name, _AUTOGRAD[_name], "Autograd")
    torch.library.register_vmap(_operator, _VMAP[_name], lib=LIBRARY)
for _device in ("CPU", "CUDA"):
    _autocast_to_float32(_device)
