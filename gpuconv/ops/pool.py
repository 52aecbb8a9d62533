"""Pools of torch tensors, in the three tiers of :mod:`gpuconv.ops`.

1. Nothing records a gradient and no transform is active: straight to the dispatcher.
2. Gradients, forward-mode tangents or ``torch.func`` transforms: ``autograd.Function``
   (:mod:`gpuconv.ops.pool_autograd`).
3. Compiling, exporting, a dispatch mode, a tensor subclass or a meta tensor: ``torch.library`` operators
   (:mod:`gpuconv.ops.pool_library`).

Arguments are brought into canonical form by the same functions in every tier. Sizes may be symbolic in the third; the
problem that describes the call is then no more than a record of them: it is neither hashed nor compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..arrays import TORCH
from ..config import forced_backend
from ..dispatch import CACHE, explaining, run
from ..normalize import Extras
from ..problem import Call, PoolProblem
from . import tiers
from .conv_library import autocast
from .pool_autograd import apply, autocasts_to_float32
from .pool_fake import AS_INPUT, Form
from .pool_library import known, operator
from .tiers import DIRECT, OPERATOR, autocasts, refuse_tracing, repeated, tier_of

__all__ = ["pooling"]

Tensor = Any

_NO_PRECISION = Extras(precision="ieee")
"""What a pool has of the keyword arguments of a convolution: nothing, and torch's precision does not matter to it."""

_FAMILIES = {"adaptive_avg": "avg_pool", "avg": "avg_pool", "lp": "lp_pool", "max_unpool": "max_unpool"}


def pooling(describe: Callable[..., Call], op: str, ndim: int, array: Tensor, *arguments: Any) -> Any:
    """Run the call that `describe` makes of the arguments, on torch tensors."""
    arrays: tuple[Tensor, ...] = ()
    key = None
    if not torch.compiler.is_compiling() and tiers.on_gpu(array):
        given = (array, *arguments)
        arrays = tuple([value for value in given if isinstance(value, torch.Tensor)])
        settings = tuple(["tensor" if isinstance(value, torch.Tensor) else value for value in arguments])
        result, key = repeated(op, arrays, settings, _NO_PRECISION)
        if result is not None:
            return result
    refuse_tracing()
    if not op.endswith("_backward") and autocasts(array) and array.device.type == "cpu":
        array, *rest = _cast(op, ndim, array, *arguments)
        arguments = tuple(rest)
    call = describe(op, ndim, array, *arguments)
    if torch.compiler.is_compiling():
        return _finish(call, operator(*_operation(call, call.backend)))
    tier = tier_of(*call.arrays.values())
    if explaining():
        return run(call)
    if tier == DIRECT:
        call = known(call)
        result = run(call)
        if key is not None and call.prepared is not None and call.prepared.replay and _in_order(call, arrays):
            CACHE.keep(key, replace(call.prepared, unbatched=call.unbatched))
        return result
    operation = _operation(call, forced_backend(call.backend) or "auto")
    return _finish(call, operator(*operation) if tier == OPERATOR else apply(*operation))


def _in_order(call: Call, arrays: tuple[Tensor, ...]) -> bool:
    """Tell whether the arrays of a call are `arrays`, in the order in which the user gave them, and no two the same."""
    values = tuple(call.arrays.values())
    addresses = {array.data_ptr() for array in arrays}
    if not len(values) == len(arrays) == len(addresses):
        return False
    for value, array in zip(values, arrays, strict=True):
        batched = call.unbatched and value.data_ptr() == array.data_ptr() and value.shape[1:] == array.shape
        if value is not array and not batched:
            return False
    return True


def _cast(op: str, ndim: int, *arguments: Any) -> tuple[Any, ...]:
    """Cast tensors as autocast on the CPU does for this pool."""
    pool = "max_unpool" if "unpool" in op else op.partition("_pool")[0]
    if not autocasts_to_float32(pool, ndim, pool == "max" and bool(arguments[-2])):
        return arguments
    return tuple(
        autocast(value, dtype=torch.float32)[0] if isinstance(value, torch.Tensor) else value for value in arguments
    )


def _name(problem: PoolProblem) -> str:
    """Return the name of the operator that runs a problem."""
    if problem.pool in ("unfold", "fold"):
        return str(problem.pool)
    name = _FAMILIES.get(problem.pool, "max_pool")
    if problem.kind == "bwd":
        return f"{name}_backward"
    indices = name == "max_pool" and (problem.return_indices or problem.pool == "fractional_max")
    return "max_pool_with_indices" if indices else name


def _operation(call: Call, backend: str | None) -> tuple[str, tuple[Tensor | None, ...], Form]:
    """Return the name of the operator that runs a call, its tensors, and its other arguments."""
    problem: Any = call.problem
    name, arrays = _name(problem), call.arrays
    backward = problem.kind == "bwd"
    tensors: tuple[Tensor | None, ...] = (arrays["y" if backward or name == "fold" else "x"],)
    if name in ("max_pool_backward", "max_unpool", "max_unpool_backward"):
        tensors += (arrays["indices"],)
    if name in ("max_pool_backward", "max_pool_with_indices"):
        tensors += (arrays.get("samples"),)
    if name == "lp_pool_backward":
        tensors += (arrays["x"],)
    by_stride = problem.pool in ("max", "avg", "lp")
    if backward:
        size = () if name == "lp_pool_backward" else problem.input_size
    else:
        size = () if by_stride or name == "unfold" else problem.input_size if name == "fold" else problem.output_size
    follows = problem.pool != "fractional_max" and (problem.pool != "max_unpool" or problem.ndim == 2)
    exact = backward or call.unbatched or not follows
    p = problem
    # The indices of a fractional pool that the user did not ask for serve its gradient alone.
    unasked = name == "max_pool_with_indices" and not p.return_indices
    offsets = p.offsets or (unasked and all(isinstance(size, int) for size in p.kernel))
    if _is_hollow(call):
        tensors = tuple(None if tensor is None else tensor.transpose(0, 1) for tensor in tensors)
    form = Form(
        p.pool, p.kernel, p.stride, p.pad_lo, p.pad_hi, p.dilation, size, p.ceil_mode, p.count_include_pad,
        p.divisor_override, p.norm_type, bool(call.extra.get("integer_power")), offsets,
        p.result_format if exact else AS_INPUT, backend,
    )  # fmt: skip
    return name, tensors, form


def _is_hollow(call: Call) -> bool:
    """Tell whether a call without a batch has no channels either.

    torch takes the channels of an adaptive pool for a batch there, which may be empty where gradients are wanted; so
    do operators.
    """
    assert isinstance(call.problem, PoolProblem)
    channels = call.problem.c
    return call.unbatched and isinstance(channels, int) and channels == 0


def _finish(call: Call, result: Any) -> Any:
    """Leave out indices that the user did not ask for, and the batch axis that was added."""
    problem: Any = call.problem
    if isinstance(result, tuple) and not problem.return_indices:
        result = result[0]
    if not call.unbatched:
        return result
    results = result if isinstance(result, tuple) else (result,)
    if _is_hollow(call):
        results = tuple(one.transpose(0, 1) for one in results)
    dropped = tuple(TORCH.drop_batch(one) for one in results)
    return dropped if isinstance(result, tuple) else dropped[0]
