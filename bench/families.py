"""Families of layers: what a kernel finds easy or hard about one, whatever pass of it runs.

A layer is in the first of these families that it fits; C are its input channels, K its filters:

===================== =========================================================================================
family                layers
===================== =========================================================================================
pooling               every pool
transposed            transposed convolutions, of any window and groups
depthwise             one input channel a group (and more than one group)
grouped               more than one group
3-D, few channels     three spatial axes and C at most 32: runs of memory that tensor cores use badly
stem                  C at most 4, as the first layer of a network that sees images or sound has
few filters           K at most 8: most of a tile of products has no filter
dilated               taps that lie apart along some axis
1x1                   one tap
dense 3-D             three spatial axes
dense                 the rest
===================== =========================================================================================
"""

from __future__ import annotations

from gpuconv.problem import ConvProblem, Problem

__all__ = ["FAMILIES", "family_of_layer"]

FAMILIES = (
    "depthwise", "grouped", "stem", "3-D, few channels", "few filters", "transposed", "dilated", "1x1",
    "dense 3-D", "dense", "pooling",
)  # fmt: skip
"""In the order in which reports show them."""

_STEM, _THIN, _FILTERS = 4, 32, 8
"""The most channels of a stem and of a thin volume, and the most filters that are few."""


def family_of_layer(forward: Problem) -> str:
    """Return the family of the layer whose forward pass is `forward`, of kind ``"fprop"`` or ``"transposed"``."""
    if not isinstance(forward, ConvProblem):
        return "pooling"
    if forward.kind == "transposed":
        return "transposed"
    if forward.groups > 1:
        return "depthwise" if forward.groups == forward.c else "grouped"
    if forward.ndim == 3 and forward.c <= _THIN:
        return "3-D, few channels"
    if forward.c <= _STEM:
        return "stem"
    if forward.k <= _FILTERS:
        return "few filters"
    if max(forward.dilation) > 1:
        return "dilated"
    if max(forward.kernel) == 1:
        return "1x1"
    return "dense 3-D" if forward.ndim == 3 else "dense"
