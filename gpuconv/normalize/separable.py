"""Arguments of separable convolutions, checked, and given to the two convolutions that they are composed of."""

from __future__ import annotations

from typing import Any

from ..arrays import ArrayKind, common_kind
from ..errors import invalid
from .common import int_tuple
from .conv import ACTIVATIONS, check_choice, check_rank, explicit_pads

__all__ = ["along_axes", "check_depthwise_separable", "check_separable", "check_separable_epilogue"]

Axes = tuple[dict[str, Any], dict[str, Any]]


def check_separable_epilogue(op: str, between: Any, activation: Any) -> None:
    """Check both activations before anything runs."""
    for argument, value in (("between", between), ("activation", activation)):
        if value is not None:
            check_choice(op, argument, value, ACTIVATIONS)


def _channels(op: str, kind: ArrayKind, input: Any) -> int:
    unbatched = check_rank(op, "input", kind.shape(input), 2, True)
    return kind.shape(input)[0 if unbatched else 1]


def _check_bias(op: str, kind: ArrayKind, argument: str, bias: Any, channels: int) -> None:
    if bias is not None and kind.shape(bias) != (channels,):
        raise invalid(op, argument, kind.shape(bias), f"1-D with {channels} elements, one per channel of its step")


def check_depthwise_separable(op: str, named: dict[str, Any]) -> ArrayKind:
    """Check shapes by the names that the user knows. Shapes: see :func:`gpuconv.depthwise_separable_conv2d`."""
    kind = common_kind(op, named, ("input", "depthwise_weight", "pointwise_weight"))
    c = _channels(op, kind, named["input"])
    depthwise, pointwise = (kind.shape(named[f"{name}_weight"]) for name in ("depthwise", "pointwise"))
    if len(depthwise) != 4 or depthwise[1] != 1 or not c or depthwise[0] % c or not depthwise[0]:
        required = f"of shape (M, 1, R, S) with M a multiple of the input's {c} channels"
        raise invalid(op, "depthwise_weight", depthwise, required)
    if len(pointwise) != 4 or pointwise[1:] != (depthwise[0], 1, 1):
        required = f"of shape (K, {depthwise[0]}, 1, 1), after the depthwise weight {depthwise}"
        raise invalid(op, "pointwise_weight", pointwise, required)
    _check_bias(op, kind, "depthwise_bias", named["depthwise_bias"], depthwise[0])
    _check_bias(op, kind, "pointwise_bias", named["pointwise_bias"], pointwise[0])
    return kind


def check_separable(op: str, named: dict[str, Any], groups: int) -> ArrayKind:
    """Check shapes by the names that the user knows. Shapes: see :func:`gpuconv.separable_conv2d`."""
    kind = common_kind(op, named, ("input", "column_weight", "row_weight"))
    if groups < 1:
        raise invalid(op, "groups", groups, "positive")
    c = _channels(op, kind, named["input"])
    column, row = (kind.shape(named[f"{name}_weight"]) for name in ("column", "row"))
    if len(column) != 4 or column[3] != 1 or column[1] * groups != c:
        required = f"of shape (M, C/G, R, 1), for {c} channels and groups={groups}"
        raise invalid(op, "column_weight", column, required)
    if len(row) != 4 or row[2] != 1 or row[1] * groups != column[0]:
        required = f"of shape (K, M/G, 1, S), for the {column[0]} channels of the columns and groups={groups}"
        raise invalid(op, "row_weight", row, required)
    _check_bias(op, kind, "column_bias", named["column_bias"], column[0])
    _check_bias(op, kind, "row_bias", named["row_bias"], row[0])
    return kind


def along_axes(op: str, stride: Any, padding: Any, dilation: Any) -> Axes:
    """Return stride, padding and dilation of the convolution along H and of that along W."""
    high, wide = int_tuple(op, "stride", stride, 2)
    far, further = int_tuple(op, "dilation", dilation, 2)
    if isinstance(padding, str):  # a kernel of one element has no padding, whatever its name
        if padding == "same" and max(high, wide) > 1:
            raise invalid(op, "stride", stride, "1 with padding='same' ('same_upper' and 'same_lower' accept a stride)")
        pads: tuple[Any, Any] = (padding, padding)
    else:
        lo, hi = explicit_pads(op, padding, 2)
        pads = (((lo[0], hi[0]), (0, 0)), ((0, 0), (lo[1], hi[1])))
    column = {"stride": (high, 1), "padding": pads[0], "dilation": (far, 1)}
    return column, {"stride": (1, wide), "padding": pads[1], "dilation": (1, further)}
