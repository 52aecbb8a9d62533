"""Derivatives of the pools: rules that serve both ``autograd.Function`` (eager) and the operators of ``torch.library``.

Average pools, unpooling, and maxima once it is known where they are, are linear:

======================= ============================================
operator                derivative (its adjoint)
======================= ============================================
``avg_pool``            ``avg_pool_backward``
``max_pool_backward``   ``max_pool_gather``
``max_unpool``          ``max_unpool_backward``, a read at positions
``unfold``              ``fold``
======================= ============================================

and the other way round, but for ``max_unpool_backward``, whose adjoint adds at positions that no window bounds; torch's
``index_put`` does that. The derivative of a maximum is ``max_pool_backward`` at the indices that the forward pass
saved: in-window offsets of a byte or two, or the int64 positions where the user asked for them. A power pool's are
powers and average pools again. So derivatives of every order are pools, and forward mode needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isinf, prod
from typing import Any, NamedTuple

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ..errors import invalid
from ..normalize import memory_format
from .conv_autograd import functionalizes, needs_operator
from .conv_library import LIBRARY, autocast, no_autocast, records
from .pool_fake import AS_INPUT, Form
from .pool_library import OPERATORS, TENSORS, launch, operator
from .pool_vmap import folded
from .tangents import primals, tangent_rule

__all__ = ["apply", "autocasts_to_float32"]

Tensor = Any
Tensors = Sequence[Any]


class _Tier(NamedTuple):
    """How rules run operators: without recording anything (what is below autograd), and differentiably."""

    below: Callable[[str, Tensors, Form], Any]
    call: Callable[[str, Tensors, Form], Any]
    linear: Callable[..., Any]
    maximum: Callable[..., Any]
    power: Callable[..., Any]
    power_backward: Callable[..., Any]


def _format(form: Form, x: Tensor) -> str:
    """Return the memory format of a gradient by `x`."""
    own = form.format == AS_INPUT or form.pool in ("fractional_max", "max_unpool")
    return memory_format(x.shape, x.stride()) if own else form.format


def _of_derivatives(form: Form) -> Form:
    """Return the form of the derivatives: a forced solver solves one pass, its backend all of them."""
    return form._replace(backend=form.backend and form.backend.partition(".")[0])


def _add_at(values: Tensor, positions: Tensor, size: Sequence[int]) -> Tensor:
    """Add `values` at positions of planes of `size` that are otherwise zero.

    This is torch's ``index_put``: in a fixed order on CUDA, on the CPU only under ``use_deterministic_algorithms``.
    """
    rows, plane = values.shape[0] * values.shape[1], prod(size)
    first = torch.arange(rows, device=values.device).reshape(*values.shape[:2], *(1,) * len(size)) * plane
    zeros = values.new_zeros(rows * plane)
    total = zeros.index_put(((positions + first).reshape(-1),), values.reshape(-1), accumulate=True)
    return total.reshape(*values.shape[:2], *size)


def _check_adaptive(form: Form, grad: Tensor) -> None:
    """Refuse to differentiate an adaptive pool without outputs, as torch does; its mean, of size 1, has a gradient."""
    mean = form.pool == "adaptive_avg" and all(size == 1 for size in grad.shape[2:])
    if form.pool.startswith("adaptive") and not mean and 0 in grad.shape[1:]:
        required = "of a pool with channels and outputs"
        raise invalid(form.pool + "_pool", "grad_output (shape)", tuple(grad.shape), required)


_ADJOINT = {
    "avg_pool": "avg_pool_backward",
    "avg_pool_backward": "avg_pool",
    "max_pool_backward": "max_pool_gather",
    "max_pool_gather": "max_pool_backward",
    "max_unpool": "max_unpool_backward",
    "unfold": "fold",
    "fold": "unfold",
}


class _Linear:
    """An operator that is linear in its first tensor."""

    @staticmethod
    def forward(tensor: Tensor, indices: Any, samples: Any, name: str, form: Form, tier: _Tier) -> Tensor:
        return tier.below(name, _with(name, tensor, indices, samples), form)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensor, indices, samples, ctx.name, form, ctx.tier = inputs
        ctx.form, ctx.size, ctx.format = _of_derivatives(form), tuple(tensor.shape[2:]), _format(form, tensor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(indices, samples)
        ctx.save_for_forward(indices, samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        indices, samples = ctx.saved_tensors
        with no_autocast(grad):
            if ctx.name == "max_unpool_backward":
                return _add_at(grad, indices, ctx.size), *(None,) * 5
            name, form = _ADJOINT[ctx.name], ctx.form._replace(size=ctx.size, format=ctx.format)
            if ctx.name == "avg_pool":
                _check_adaptive(form, grad)
            if form.by_stride and not name.endswith("_backward"):
                form = form._replace(size=())
            elif form.pool in ("unfold", "fold"):
                form = form._replace(pool=name, size=ctx.size if name == "fold" else ())
            return ctx.tier.call(name, _with(name, grad, indices, samples), form), *(None,) * 5

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        indices, samples = primals(ctx)
        if tangent is None:
            return None
        return ctx.tier.call(ctx.name, _with(ctx.name, tangent, indices, samples), ctx.form)


def _with(name: str, tensor: Tensor, indices: Any, samples: Any) -> Tensors:
    """Return as many tensors as the operator takes."""
    return (tensor, indices, samples)[: TENSORS[name].count("Tensor")]


class _Maximum:
    """Maxima and where they are."""

    @staticmethod
    def forward(x: Tensor, samples: Any, form: Form, tier: _Tier) -> tuple[Tensor, Tensor]:
        return tier.below("max_pool_with_indices", (x, samples), form)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, samples, form, ctx.tier = inputs
        ctx.form, ctx.size, ctx.format = _of_derivatives(form), tuple(x.shape[2:]), _format(form, x)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], samples)
        ctx.save_for_forward(output[1], samples)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        form = ctx.form._replace(size=ctx.size, format=ctx.format)
        _check_adaptive(form, grad)
        with no_autocast(grad):
            return ctx.tier.call("max_pool_backward", (grad, *ctx.saved_tensors), form), None, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        if tangent is None:
            return None, None
        return ctx.tier.call("max_pool_gather", (tangent, *primals(ctx)), ctx.form), None


class _Powers:
    """What a power pool ``r(a(f(x)))`` is made of: ``f(x) = x^p``, ``a`` the sum of a window, ``r`` the root.

    Where a window sums to 0 the derivatives of the root count as 0, as in torch.
    """

    def __init__(self, x: Tensor, form: Form, tier: _Tier) -> None:
        self.x, self.p, self.tier = x, form.norm_type, tier
        self.taps = prod(form.kernel)
        self.form = form._replace(pool="avg", count_include_pad=True, divisor_override=None, norm_type=0.0)

    def windows(self, values: Tensor) -> Tensor:
        """Sum over windows, as if windows that ceil mode cut off were whole."""
        return self.tier.call("avg_pool", (values,), self.form) * self.taps

    def spread(self, values: Tensor) -> Tensor:
        """Apply the adjoint of :meth:`windows`."""
        form = self.form._replace(size=tuple(self.x.shape[2:]), format=_format(self.form, self.x))
        return self.tier.call("avg_pool_backward", (values,), form) * self.taps

    def slope(self, order: int = 1) -> Tensor:
        """Return the derivative of ``f`` at x."""
        factor = self.p if order == 1 else self.p * (self.p - 1)
        if factor == 0:
            return torch.zeros_like(self.x)
        return factor * self.x.pow(self.p - order)

    def root(self, order: int) -> Tensor:
        """Return the derivative of ``r`` at the sums of the windows."""
        sums, q = self.windows(self.x.pow(self.p)), 1 / self.p
        factor = q if order == 1 else q * (q - 1)
        if factor == 0:
            return torch.zeros_like(sums)
        return torch.where(sums == 0, 0, factor * sums.pow(q - order))


class _Power:
    """A power pool with a finite power."""

    @staticmethod
    def forward(x: Tensor, form: Form, tier: _Tier) -> Tensor:
        return tier.below("lp_pool", (x,), form)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, form, ctx.tier = inputs
        ctx.form = _of_derivatives(form)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 3
        with no_autocast(grad):
            return ctx.tier.call("lp_pool_backward", (grad, *ctx.saved_tensors), ctx.form), None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:
        (x,) = primals(ctx)
        if tangent is None:
            return None
        powers = _Powers(x, ctx.form, ctx.tier)
        return powers.root(1) * powers.windows(powers.slope() * tangent)


class _PowerBackward:
    """The gradient of a power pool, ``f'(x) a^T(r' dy)``."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, form: Form, tier: _Tier) -> Tensor:
        return tier.below("lp_pool_backward", (dy, x), form)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        dy, x, form, ctx.tier = inputs
        ctx.form = _of_derivatives(form)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x)
        ctx.save_for_forward(dy, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        dy, x = ctx.saved_tensors
        by_dy = by_x = None
        with no_autocast(grad):
            powers = _Powers(x, ctx.form, ctx.tier)
            slope, root = powers.slope(), powers.root(1)
            reached = powers.windows(slope * grad)
            if ctx.needs_input_grad[0]:
                by_dy = root * reached
            if ctx.needs_input_grad[1]:
                by_x = powers.slope(2) * grad * powers.spread(root * dy)
                by_x = by_x + slope * powers.spread(powers.root(2) * dy * reached)
        return by_dy, by_x, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, of_dy: Tensor | None, of_x: Tensor | None, *_: None) -> Tensor | None:
        dy, x = primals(ctx)
        powers = _Powers(x, ctx.form, ctx.tier)
        slope, root = powers.slope(), powers.root(1)
        result = None
        if of_dy is not None:
            result = slope * powers.spread(root * of_dy)
        if of_x is not None:
            inner = powers.root(2) * powers.windows(slope * of_x) * dy
            term = powers.slope(2) * of_x * powers.spread(root * dy) + slope * powers.spread(inner)
            result = term if result is None else result + term
        return result


def _record(tier: _Tier, name: str, tensors: Tensors, form: Form) -> Any:
    """Run an operator by the functions of `tier`."""
    if name == "max_pool_with_indices":
        return tier.maximum(*tensors, form, tier)
    if name == "max_pool":
        sizes = (*tensors[0].shape[2:], *form.kernel, *form.size)
        known = all(isinstance(size, int) for size in sizes)  # the type of offsets depends on the windows
        return tier.maximum(*tensors, None, form._replace(offsets=known), tier)[0]
    if name == "lp_pool":
        x = tensors[0]
        return _extremes(tier, x, form) if isinf(form.norm_type) else tier.power(x, form, tier)
    if name == "lp_pool_backward":
        if isinf(form.norm_type):
            return _extremes_backward(tier, tensors[0], tensors[1], form)
        return tier.power_backward(*tensors, form, tier)
    return tier.linear(*tensors, *(None,) * (3 - len(tensors)), name, form, tier)


def _extremes(tier: _Tier, x: Tensor, form: Form) -> Tensor:
    """Run a power pool with an infinite power, as torch composes it."""
    maximum = form._replace(pool="max", norm_type=0.0)
    if form.norm_type == inf:
        return tier.call("max_pool", (x.abs(),), maximum)
    return -tier.call("max_pool", (-x.abs(),), maximum)


def _extremes_backward(tier: _Tier, dy: Tensor, x: Tensor, form: Form) -> Tensor:
    magnitude = x.detach().abs() if form.norm_type == inf else -x.detach().abs()
    form = form._replace(pool="max", norm_type=0.0)
    _, indices = tier.call("max_pool_with_indices", (magnitude, None), form)
    back = form._replace(size=tuple(x.shape[2:]), format=_format(form, x))
    return tier.call("max_pool_backward", (dy, indices, None), back) * x.sign()


# Eager: functions of every level of transforms, which launch.


def _launch(name: str, tensors: Tensors, form: Form) -> Any:
    # Legacy vmap, which is_grads_batched= uses, loops over operators and knows nothing of functions.
    legacy = any(tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
    return operator(name, tensors, form) if legacy or needs_operator(*tensors) else launch(name, tensors, form)


def apply(name: str, tensors: Tensors, form: Form) -> Any:
    """Run an operator, recording what has to be recorded. `form.backend` is what the user forced, or ``"auto"``."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if functionalizes():
            return operator(name, tensors, form)
        return _record(_TRANSFORMED, name, tensors, form)
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return _launch(name, tensors, form)
    return _record(_EAGER, name, unwrap_dead_wrappers(tuple(tensors)), form)


class _LinearFunction(_Linear, torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, dims: Any, tensor: Tensor, indices: Any, samples: Any, name: str, form: Form, _: Any) -> Any:
        return folded(apply, info.batch_size, dims, name, _with(name, tensor, indices, samples), form)


class _MaximumFunction(_Maximum, torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, samples: Any, form: Form, _: Any) -> Any:
        return folded(apply, info.batch_size, dims, "max_pool_with_indices", (x, samples), form)


class _PowerFunction(_Power, torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, form: Form, _: Any) -> Any:
        return folded(apply, info.batch_size, dims, "lp_pool", (x,), form)


class _PowerBackwardFunction(_PowerBackward, torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, dims: Any, dy: Tensor, x: Tensor, form: Form, _: Any) -> Any:
        return folded(apply, info.batch_size, dims, "lp_pool_backward", (dy, x), form)


_FUNCTIONS = (_LinearFunction, _MaximumFunction, _PowerFunction, _PowerBackwardFunction)
_TRANSFORMED = _Tier(_launch, apply, *(function.apply for function in _FUNCTIONS))
# Without transforms, `Function.apply` adds to this an inspection of the signature, which costs more than the rest.
_EAGER = _Tier(_launch, apply, *(super(torch.autograd.Function, function).apply for function in _FUNCTIONS))


# Operators: functions of one level, inside of the operators' kernels for autograd.


def _below_autograd(name: str, tensors: Tensors, form: Form) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._functorch.peek_interpreter_stack() is None:
            return operator(name, tensors, form)
        # A function's forward runs without gradients, but the next level has to record those of its own.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return operator(name, tensors, form)


class _LinearOperator(_Linear, _SingleLevelFunction):
    pass


class _MaximumOperator(_Maximum, _SingleLevelFunction):
    pass


class _PowerOperator(_Power, _SingleLevelFunction):
    pass


class _PowerBackwardOperator(_PowerBackward, _SingleLevelFunction):
    pass


_OPERATORS = _Tier(
    _below_autograd, operator, _LinearOperator.apply, _MaximumOperator.apply, _PowerOperator.apply,
    _PowerBackwardOperator.apply,
)  # fmt: skip


def autocasts_to_float32(pool: str, ndim: int, indices: bool) -> bool:
    """Tell whether torch's autocast on the CPU runs this pool in float32; on a GPU it runs none so.

    `indices` tells whether the user asked for positions: torch's list has no max pool with these.
    """
    return (ndim == 3 and not (pool == "max" and indices)) or pool in ("fractional_max", "max_unpool")


def _register(name: str) -> None:
    """Register what autograd, autocast and vmap do."""
    count, op = TENSORS[name].count("Tensor"), OPERATORS[name]

    def autograd(*args: Any) -> Any:
        if not records(*args[:count]):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        with enable_single_level_autograd_function():
            return _record(_OPERATORS, name, args[:count], Form(*args[count:]))

    def vmap(info: Any, dims: Sequence[int | None], *args: Any) -> Any:
        return folded(operator, info.batch_size, dims, name, args[:count], Form(*args[count:]))

    LIBRARY.impl(name, autograd, "Autograd")
    torch.library.register_vmap(op, vmap, lib=LIBRARY)
    if name.endswith("_backward") or name == "max_pool_gather":
        return
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def cast(*args: Any) -> Any:
        form = Form(*args[count:])
        tensors = args[:count]
        if autocasts_to_float32(form.pool, form.ndim, name == "max_pool_with_indices"):
            tensors = autocast(*tensors, dtype=torch.float32)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*tensors, *form)

    LIBRARY.impl(name, cast, "AutocastCPU")


for _name in OPERATORS:
    _register(_name)
