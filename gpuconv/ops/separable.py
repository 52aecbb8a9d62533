"""Depthwise and pointwise convolution of torch tensors in one call, where nothing asks for more than its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..arrays import TORCH
from ..costs import device_elsewhere
from ..dispatch import explaining, run, separable_call
from ..normalize import Extras
from .tiers import DIRECT, autocasts, repeated, tier_of

__all__ = ["separable"]


def _without_memory(given: tuple[Any, ...]) -> bool:
    """Tell whether meta tensors stand for some on a GPU by name, where a call is explained that records no gradient."""
    if not explaining() or device_elsewhere() is None:
        return False
    recorded = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in given)
    return not recorded and all(tensor is None or tensor.is_meta for tensor in given)


def separable(
    op: str, arrays: Mapping[str, Any], geometry: tuple[Any, ...], between: str | None, extras: Extras
) -> Any | None:
    """Run both as one problem, or return None: gradients, transforms, traces and autocast are of two calls.

    Arguments: see :func:`gpuconv.dispatch.separable.separable_call`.
    """
    if torch.compiler.is_compiling():
        return None
    given = tuple(arrays.values())
    result, key = repeated(op, given, (*geometry, between), extras)
    if result is not None:
        return result
    if autocasts(arrays["x"]) or (tier_of(*given) != DIRECT and not _without_memory(given)):
        return None
    call = separable_call(op, TORCH, arrays, geometry, between, extras, key)
    return None if call is None else run(call)
