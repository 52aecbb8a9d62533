"""The cheap test per call that chooses between the tiers of :mod:`gpuconv.ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from ..dispatch import CACHE, OBSERVERS, UnkeyedError, conv_key, plan_cache, signatures, without_batch
from ..launcher import native
from ..normalize import Extras
from ..packs import any_packs
from .conv_autograd import PLAIN, functionalizes

__all__ = ["DIRECT", "OPERATOR", "RECORDED", "autocasts", "on_gpu", "refuse_tracing", "repeated", "tier_of"]

Tensor = Any

plan_cache.PLAIN.update(PLAIN)

DIRECT, RECORDED, OPERATOR = 1, 2, 3


def refuse_tracing() -> None:
    """Refuse ``torch.jit.trace``, which would record the result as a constant.

    Raises
    ------
    NotImplementedError
        Where it is tracing.
    """
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError("torch.jit.trace cannot record gpuconv; torch.export and torch.compile can")


def tier_of(*tensors: Tensor | None) -> int:
    """Choose the tier of a call. What is no tensor is left to the checks of the first tier."""
    refuse_tracing()
    transformed, grad = torch._C._functorch.peek_interpreter_stack() is not None, torch.is_grad_enabled()
    operator = torch._C._len_torch_dispatch_stack() > 0 or (transformed and functionalizes())
    recorded = transformed or forward_ad._current_level >= 0
    for tensor in tensors:  # one plain loop: this is on the path of every call
        if tensor is None:
            continue
        if type(tensor) not in PLAIN:
            if not isinstance(tensor, torch.Tensor):
                return DIRECT
            operator = True
        elif tensor.is_meta:
            operator = True
        recorded = recorded or (grad and tensor.requires_grad)
    return OPERATOR if operator else RECORDED if recorded else DIRECT


def autocasts(input: Tensor) -> bool:
    """Tell whether autocast is on for the device of a tensor; "meta" has none, and cannot be asked."""
    return torch._C._is_any_autocast_enabled() and not input.is_meta and torch.is_autocast_enabled(input.device.type)


def on_gpu(tensor: Tensor) -> bool:
    """Tell whether calls on a tensor launch kernels, which can be repeated."""
    return bool(tensor.is_cuda)


def _observed(
    tracing: Any = torch._C._get_tracing_state,
    modes: Any = torch._C._len_torch_dispatch_stack,
    transforms: Any = torch._C._functorch.peek_interpreter_stack,
    autocast: Any = torch._C._is_any_autocast_enabled,
) -> bool:
    """Tell whether something other than a gradient wants more than the first tier, for whatever tensors."""
    return bool(
        OBSERVERS
        or modes()
        or transforms() is not None
        or tracing() is not None
        or forward_ad._current_level >= 0
        or autocast()
    )


def repeated(op: str, arrays: tuple[Tensor | None, ...], settings: tuple[Any, ...], extras: Extras) -> tuple[Any, Any]:
    """Repeat a call of the first tier that was made before: return its result or None, and its key if that is known.

    Arguments: see :func:`.plan_cache.conv_key`. That an entry can be replayed says that its arrays are on a GPU.
    """
    if _observed():
        return None, None
    grad, sign = torch.is_grad_enabled(), native.SIGN
    try:
        # in C where launches go through C; the two kinds of keys never equal
        signed, addresses = (sign and sign(arrays, grad, PLAIN)) or signatures(arrays, grad)
        key = conv_key(op, arrays, signed, settings, extras)
        entry = CACHE.peek(key)
    except (UnkeyedError, RuntimeError, TypeError):  # also of tensors without memory, and of keys that have no hash
        return None, None
    if entry is None and type(arrays[0]) in PLAIN and on_gpu(arrays[0]):
        # A new call is the time to build it, and to notice that another launcher is wanted. Packs need no compiler.
        native.native_if_built() if any_packs() else native.native()
        if native.SIGN is not sign:
            return repeated(op, arrays, settings, extras)
    if entry is None or not entry.replay:
        return None, key
    result = entry.replay(addresses)
    CACHE.touch(entry)
    if entry.unbatched and result is not None:
        result = without_batch(entry.kind, result)
    return result, key
