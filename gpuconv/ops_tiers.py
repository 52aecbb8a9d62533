"""The cheap test per call that chooses between the tiers of :mod:`gpuconv.ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from .ops_autograd import PLAIN

__all__ = ["DIRECT", "OPERATOR", "RECORDED", "autocasts", "tier_of"]

Tensor = Any

DIRECT, RECORDED, OPERATOR = 1, 2, 3


def tier_of(*tensors: Tensor | None) -> int:
    """Choose the tier of a call. What is no tensor is left to the checks of the first tier."""
    if torch._C._get_tracing_state() is not None:  # it would record the result as a constant
        raise NotImplementedError("torch.jit.trace cannot record gpuconv; torch.export and torch.compile can")
    operator, grad = torch._C._len_torch_dispatch_stack() > 0, torch.is_grad_enabled()
    recorded = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
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
    """Tell whether autocast is on for the device of a tensor."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type)
