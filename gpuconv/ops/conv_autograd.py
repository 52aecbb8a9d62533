"""Convolutions that record gradients: one ``autograd.Function`` for three operators that are each other's derivatives.

``fprop(x, w)``, ``dgrad(dy, w)`` and ``wgrad(x, dy)`` are linear in each operand (dgrad conjugates its weight and wgrad
its input, as the gradients of complex convolutions do), and their derivatives are:

========== =================== ===================
operator   by the first        by the second
========== =================== ===================
fprop      ``dgrad(g, w)``     ``wgrad(x, g)``
dgrad      ``fprop(g, w)``     ``wgrad(g, dy)``
wgrad      ``dgrad(dy, g)``    ``fprop(x, g)``
========== =================== ===================

So derivatives of every order are convolutions again. A transposed convolution is dgrad without the conjugate.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from ..arrays import TORCH
from ..dispatch import prepared, run
from ..normalize import result_formats
from ..problem import Call, ConvProblem
from .conv_library import geometry_of, reached, run_problem
from .conv_vmap import fold
from .epilogue import per_channel
from .tangents import primals, tangent_rule

__all__ = ["OPERANDS", "PLAIN", "apply", "bilinear", "functionalizes", "needs_operator"]

Tensor = Any

OPERANDS = {"fprop": "xw", "dgrad": "yw", "transposed": "yw", "wgrad": "xy"}
"""Letters of the operands of each pass, in the order in which functions take them."""

_NAMES = {
    "fprop": "conv{}d",
    "dgrad": "conv{}d_input_grad",
    "transposed": "conv_transpose{}d",
    "wgrad": "conv{}d_weight_grad",
}

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors that mean nothing beyond their values."""


@lru_cache(maxsize=4096)
def _describe(
    problem: ConvProblem, kind: str, groups: int, bias: bool,
    first: tuple[int, ...], first_strides: tuple[int, ...], second: tuple[int, ...], second_strides: tuple[int, ...],
) -> ConvProblem:  # fmt: skip
    """Return the problem of pass `kind` on operands of these shapes, with the geometry of `problem`."""
    ours, others, results = result_formats(first, first_strides, second, second_strides)
    if kind == "fprop":
        c, k, formats = first[1], second[0], (ours, others, results)
    elif kind == "wgrad":
        # The output's gradient comes first where formats are decided, as in the function that a user calls.
        ours, others, results = result_formats(second, second_strides, first, first_strides)
        c, k, formats = first[1], second[1], (others, results, ours)
    else:
        c, k, formats = second[1] * groups, second[0], (results, others, ours)
    return replace(
        problem, op=_NAMES[kind].format(problem.ndim), kind=kind, n=first[0], c=c, k=k, groups=groups,
        x_format=formats[0], w_format=formats[1], y_format=formats[2], bias=bias, rounding="fused",
    )  # fmt: skip


def bilinear(
    problem: ConvProblem,
    kind: str,
    backend: str,
    first: Tensor,
    second: Tensor,
    bias: Tensor | None = None,
    groups: int | None = None,
) -> Tensor:
    """Run pass `kind` on its operands (see `OPERANDS`), with the geometry of `problem`. Differentiable.

    `backend` is what the user forced, ``"auto"`` for nothing: context variables are lost on autograd's threads.
    """
    groups = problem.groups if groups is None else groups
    operands = (first.shape, first.stride(), second.shape, second.stride())
    return apply(_describe(problem, kind, groups, bias is not None, *operands), backend, first, second, bias)


def functionalizes() -> bool:
    """Tell whether ``torch.func.functionalize`` is among the transforms: it takes operators and no functions."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in stack)


def apply(problem: ConvProblem, backend: str, first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
    """Run `problem`, which has no epilogue but a bias, on its operands. Differentiable."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        if functionalizes():
            return run_problem(problem, backend, first, second, bias)
        return _Bilinear.apply(first, second, bias, problem, backend)
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return _launch(problem, backend, first, second, bias)
    first, second, bias = unwrap_dead_wrappers((first, second, bias))
    return _apply(first, second, bias, problem, backend)


def needs_operator(*tensors: Tensor | None) -> bool:
    """Tell whether something wants to see an operator: a dispatch mode, a tensor subclass, a tensor without memory."""
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(
        tensor is not None and (type(tensor) not in PLAIN or tensor.is_meta or tensor._is_zerotensor())
        for tensor in tensors
    )


def _launch(problem: ConvProblem, backend: str, first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
    # Legacy vmap, which is_grads_batched= uses, loops over operators and knows nothing of functions.
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    if needs_operator(first, second, bias) or is_batched(first) or is_batched(second):
        return run_problem(problem, backend, first, second, bias)
    arrays = dict(zip(OPERANDS[problem.kind], (first, second)))
    if problem.kind in ("fprop", "transposed"):
        arrays |= {"bias": bias, "residual": None, "scale": None, "shift": None}
    return run(prepared(Call(problem, arrays, TORCH, False, backend)))


def _weight_and_bias(problem: ConvProblem, backend: str, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the gradients by weight and by bias of a convolution from one launch, where nothing differentiates them.

    None where something does, or wants to see operators: they have one result.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0 or not (problem.c and problem.k):
        return None
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    if transformed or needs_operator(x, dy) or is_batched(x) or is_batched(dy):
        return None
    described = _describe(problem, "wgrad", problem.groups, True, x.shape, x.stride(), dy.shape, dy.stride())
    result: tuple[Tensor, Tensor] = run(prepared(Call(described, {"x": x, "y": dy}, TORCH, False, backend)))
    return result


def _of_derivatives(backend: str) -> str:
    """Return what a forced backend or solver forces for the derivatives: a solver solves one pass, its backend all."""
    return backend.partition(".")[0]


class _Bilinear(torch.autograd.Function):
    """One of the operators. `problem` says which, and everything but the values; see the module's docstring."""

    @staticmethod
    def forward(first: Tensor, second: Tensor, bias: Tensor | None, problem: ConvProblem, backend: str) -> Tensor:
        return _launch(problem, backend, first, second, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, _, ctx.problem, backend = inputs
        ctx.backend = _of_derivatives(backend)
        ctx.output_shape = output.shape
        ctx.set_materialize_grads(False)
        # The derivative by one operand reads the other alone.
        ctx.save_for_backward(first if ctx.needs_input_grad[1] else None, second if ctx.needs_input_grad[0] else None)
        ctx.save_for_forward(first, second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        first, second = ctx.saved_tensors
        problem: ConvProblem = ctx.problem
        wanted, common = ctx.needs_input_grad, (ctx.backend,)
        by_first = by_second = by_bias = None
        if problem.kind == "fprop":
            by_first = bilinear(problem, "dgrad", *common, grad, second) if wanted[0] else None
            both = _weight_and_bias(problem, *common, first, grad) if wanted[1] and wanted[2] else None
            if both is not None:
                return by_first, *both, None, None
            by_second = bilinear(problem, "wgrad", *common, first, grad) if wanted[1] else None
        elif problem.kind == "dgrad":
            by_first = bilinear(problem, "fprop", *common, grad, second) if wanted[0] else None
            by_second = bilinear(problem, "wgrad", *common, grad, first) if wanted[1] else None
        elif problem.kind == "transposed":
            inside, geometry = reached(grad, problem.output_size, problem.kernel, geometry_of(problem))
            problem = replace(problem, input_size=tuple(inside.shape[2:]), pad_hi=tuple(geometry.pad_hi))
            by_first = bilinear(problem, "fprop", *common, inside, second.conj()) if wanted[0] else None
            by_second = bilinear(problem, "wgrad", *common, inside, first).conj() if wanted[1] else None
        else:
            by_first = bilinear(problem, "dgrad", *common, second, grad) if wanted[0] else None
            by_second = bilinear(problem, "fprop", *common, first, grad) if wanted[1] else None
        if wanted[2]:
            by_bias = grad.sum((0, *range(2, grad.dim())))
        return by_first, by_second, by_bias, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, of_first: Tensor | None, of_second: Tensor | None, of_bias: Tensor | None, *_: None) -> Tensor:
        first, second = primals(ctx)
        problem: ConvProblem = ctx.problem
        result = None
        if of_first is not None:
            result = bilinear(problem, problem.kind, ctx.backend, of_first, second, of_bias)
        if of_second is not None:
            bias = of_bias if of_first is None else None
            term = bilinear(problem, problem.kind, ctx.backend, first, of_second, bias)
            result = term if result is None else result + term
        return per_channel(of_bias, problem.ndim).expand(ctx.output_shape) if result is None else result

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        first: Tensor,
        second: Tensor,
        bias: Tensor | None,
        problem: ConvProblem,
        backend: str,
    ) -> tuple[Tensor, int]:
        def operator(first: Tensor, second: Tensor, groups: int) -> Tensor:
            return bilinear(problem, problem.kind, backend, first, second, None, groups)

        first_dim, second_dim, bias_dim = in_dims[:3]
        if first_dim is None and second_dim is None:
            result = operator(first, second, problem.groups)[None]
        else:
            arguments = (first, first_dim, second, second_dim)
            result = fold(problem.kind, problem.groups, info.batch_size, *arguments, operator)
        if bias is not None:
            bias = bias[None] if bias_dim is None else bias.movedim(bias_dim, 0)
            result = result + bias.reshape(bias.shape[0], 1, bias.shape[1], *(1,) * problem.ndim)
        return result, 0


# Without transforms, `Function.apply` adds to this an inspection of the signature, which costs more than the rest.
_apply = super(torch.autograd.Function, _Bilinear).apply
