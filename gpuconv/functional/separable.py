"""Convolutions in two steps: depthwise and pointwise, or along the columns and along the rows.

Each is the composition of two calls of :func:`gpuconv.conv2d`, whose epilogues hold biases and activations; the first
has a kernel of its own as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays import ArrayKind
from ..normalize import (
    Extras,
    along_axes,
    check_depthwise_separable,
    check_separable,
    check_separable_epilogue,
    integer,
)
from ..ops import operators
from .compose import explaining, result_of
from .conv import Array, Ints, Padding, _convolve

__all__ = ["depthwise_separable_conv2d", "separable_conv2d"]


def _step(op: str, input: Array, weight: Array, bias: Array | None, geometry: Mapping[str, Any], extras: Extras) -> Any:
    stride, padding, dilation = geometry["stride"], geometry["padding"], geometry["dilation"]
    return _convolve(op, 2, input, weight, bias, stride, padding, dilation, geometry["groups"], extras)


def _both(kind: ArrayKind, input: Array, first: tuple[Any, ...], second: tuple[Any, ...]) -> Array:
    """Run two steps, one after the other, each given by operation, weight, bias, geometry and extras."""
    inner = _step(first[0], input, *first[1:])
    if not explaining():
        return _step(second[0], inner, *second[1:])
    return inner.followed_by(_step(second[0], result_of(kind, inner, input), *second[1:]))


def depthwise_separable_conv2d(
    input: Array,
    depthwise_weight: Array,
    pointwise_weight: Array,
    depthwise_bias: Array | None = None,
    pointwise_bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    padding_mode: str = "zeros",
    between: str | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Filter each channel of an image by itself, then mix the channels of each position: a MobileNet layer.

    Computes ``conv2d(conv2d(input, depthwise_weight, depthwise_bias, ..., groups=C, activation=between),
    pointwise_weight, pointwise_bias, residual=residual, activation=activation)``, and is equal to it, gradients
    included. Of a 16-bit type the intermediate image is rounded to that type, as there. On a GPU, and where nothing is
    differentiated, traced or transformed, one kernel may compute both: the dispatcher ranks it against the two steps.

    Parameters
    ----------
    input
        ``(N, C, H, W)`` or unbatched ``(C, H, W)``; contiguous, channels-last or any strides.
    depthwise_weight
        ``(M, 1, R, S)``, M a multiple of C: ``M / C`` filters of each channel.
    pointwise_weight
        ``(K, M, 1, 1)``.
    depthwise_bias, pointwise_bias
        ``(M,)`` and ``(K,)``, or None.
    stride, padding, dilation, padding_mode
        Of the depthwise convolution, as in :func:`conv2d`.
    between, activation
        Activations after the depthwise and after the pointwise convolution, or None; those of :func:`conv2d`.
    residual
        Added before the last activation; of the shape of the result.
    precision, backend
        Of both, as in :func:`conv2d`. A solver id must solve both: ``triton.conv.separable.fused`` and
        ``triton.conv.separable.steps`` do, elsewhere a backend is what to force.

    Returns
    -------
    array
        ``(N, K, P, Q)`` or unbatched, P and Q as :func:`conv2d` has them; channels-last if input or a weight is.

    Raises
    ------
    RuntimeError, TypeError, ValueError, NotImplementedError
        As :func:`conv2d`. Where one of the two convolutions refuses, the message names it.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 2, 4, 4)), np.ones((2, 1, 3, 3))
    >>> gpuconv.depthwise_separable_conv2d(x, w, np.ones((3, 2, 1, 1)), stride=2, padding=1, between="relu6")[0, 0]
    array([[ 8., 12.],
           [12., 12.]])
    """
    op = "depthwise_separable_conv2d"
    named = {
        "input": input, "depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight,
        "depthwise_bias": depthwise_bias, "pointwise_bias": pointwise_bias, "residual": residual,
    }  # fmt: skip
    kind = check_depthwise_separable(op, named)
    check_separable_epilogue(op, between, activation)
    groups = kind.shape(input)[-3]
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    plain = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    extras = Extras(padding_mode, between, precision=precision, backend=backend)
    last = Extras("zeros", activation, residual, precision=precision, backend=backend)
    ops = operators(input)
    if ops is not None:
        arrays = {
            "x": input, "w": depthwise_weight, "bias": depthwise_bias, "pointwise": pointwise_weight,
            "pointwise_bias": pointwise_bias, "residual": residual,
        }  # fmt: skip
        of_both = last._replace(padding_mode=padding_mode)
        result = ops.ops_separable.separable(op, arrays, (stride, padding, dilation), between, of_both)
        if result is not None:
            return result
    first = (f"{op} (depthwise)", depthwise_weight, depthwise_bias, geometry, extras)
    return _both(kind, input, first, (f"{op} (pointwise)", pointwise_weight, pointwise_bias, plain, last))


def separable_conv2d(
    input: Array,
    column_weight: Array,
    row_weight: Array,
    column_bias: Array | None = None,
    row_bias: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    between: str | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Convolve an image along its columns, then along its rows: ``R + S`` products instead of ``R S``.

    Computes ``conv2d(conv2d(input, column_weight, column_bias, ..., activation=between), row_weight, row_bias, ...,
    residual=residual, activation=activation)``, the first along H and the second along W, and is equal to it, gradients
    included. Without biases and activations, and with one filter per channel (``groups=C``), it is the convolution with
    the outer product of both filters.

    Parameters
    ----------
    input
        ``(N, C, H, W)`` or unbatched ``(C, H, W)``; contiguous, channels-last or any strides.
    column_weight
        ``(M, C/G, R, 1)``: filters along H.
    row_weight
        ``(K, M/G, 1, S)``: filters along W.
    column_bias, row_bias
        ``(M,)`` and ``(K,)``, or None.
    stride, padding, dilation
        As in :func:`conv2d`; of each pair the first number belongs to the columns and the second to the rows.
    groups
        Of both.
    padding_mode
        As in :func:`conv2d`. The rows pad what the columns have returned.
    between, activation
        Activations after the columns and after the rows, or None; those of :func:`conv2d`.
    residual
        Added before the last activation; of the shape of the result.
    precision, backend
        Of both, as in :func:`conv2d`.

    Returns
    -------
    array
        ``(N, K, P, Q)`` or unbatched, P and Q as :func:`conv2d` has them; channels-last if input or a weight is.

    Raises
    ------
    RuntimeError, TypeError, ValueError, NotImplementedError
        As :func:`conv2d`. Where one of the two convolutions refuses, the message names it.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, smooth = np.eye(4).reshape(1, 1, 4, 4), np.array([1.0, 2.0, 1.0])
    >>> gpuconv.separable_conv2d(x, smooth.reshape(1, 1, 3, 1), smooth.reshape(1, 1, 1, 3))[0, 0]
    array([[6., 4.],
           [4., 6.]])
    """
    op = "separable_conv2d"
    named = {
        "input": input, "column_weight": column_weight, "row_weight": row_weight,
        "column_bias": column_bias, "row_bias": row_bias, "residual": residual,
    }  # fmt: skip
    groups = integer(op, "groups", groups)
    kind = check_separable(op, named, groups)
    check_separable_epilogue(op, between, activation)
    columns, rows = along_axes(op, stride, padding, dilation)
    extras = Extras(padding_mode, between, precision=precision, backend=backend)
    last = Extras(padding_mode, activation, residual, precision=precision, backend=backend)
    first = (f"{op} (columns)", column_weight, column_bias, columns | {"groups": groups}, extras)
    return _both(kind, input, first, (f"{op} (rows)", row_weight, row_bias, rows | {"groups": groups}, last))
