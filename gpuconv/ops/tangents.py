"""Forward mode over forward mode: rules for tangents whose own tangents an outer level records.

torch turns forward mode off while it runs the ``jvp`` of an ``autograd.Function``, and gives it tensors that are saved
with the tangents of the level in work. So what the rule computes would have no tangents for the levels further out,
without an error: the second derivatives of nested ``torch.func.jvp`` would lack terms.

Every level that torch has is its level 0, also where a compiled graph enters it and ``forward_ad`` does not know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.autograd import forward_ad

__all__ = ["primals", "tangent_rule"]

Tensor = Any


def tangent_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``jvp`` that computes with forward mode on. It reads :func:`primals`, not ``ctx.saved_tensors``."""

    @wraps(rule)
    def jvp(*arguments: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            return rule(*arguments)

    return jvp


def primals(ctx: Any) -> tuple[Tensor, ...]:
    """Return the saved tensors without their tangents of this level, with those of levels further out."""
    return tuple(
        tensor if tensor is None or (not tensor.is_floating_point() and not tensor.is_complex())
        else forward_ad.unpack_dual(tensor, level=0).primal
        for tensor in ctx.saved_tensors
    )  # fmt: skip
