"""What the operators of this library do to receptive fields: rules of :mod:`.flow` for those that a model calls.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import Any

from .flow import Fields, _Bound, _rule, _union, _unknown, adaptive, window_of

Tensor = Any


@_rule("fprop", "dgrad")
def _convolution(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """A convolution, or a transposed one, and the residual that is added to it."""
    backwards = "dy" in bound
    x, w, residual, output = bound["dy" if backwards else "x"], bound["w"], bound["residual"], outputs[0]
    others = [bound[name] for name in ("w", "bias", "scale", "shift") if bound[name] is not None]
    field = field_of(x)
    if field is None or any(field_of(other) is not None for other in others):
        seeing = [tensor for tensor in (x, residual, *others) if tensor is not None and field_of(tensor) is not None]
        return _unknown(seeing, output, field_of)
    geometry = (w.shape[2:], bound["stride"], bound["pad_lo"], bound["dilation"])
    found = window_of(field, output.shape, *geometry, transposed=backwards)
    if residual is None or field_of(residual) is None:
        return found
    return _union([output, residual], output.shape, lambda tensor: found if tensor is output else field_of(tensor))


@_rule("avg_pool", "max_pool", "max_pool_with_indices", "lp_pool")
def _pool(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    x, output = bound["x"], outputs[0]
    field = field_of(x)
    if field is None:
        return None
    if bound["pool"].startswith("adaptive"):
        return adaptive(field, x.shape, output.shape, range(2, x.dim()))
    if bound["pool"] not in ("avg", "max", "lp"):
        return _unknown([x], output, field_of)
    return window_of(field, output.shape, bound["kernel"], bound["stride"], bound["pad_lo"], bound["dilation"])
