"""Gradients of the pools in :mod:`gpuconv.functional.pool` as explicit functions; names are aten's where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import avg_backward_call, lp_backward_call, max_backward_call
from .launch import launch

__all__ = [
    "avg_pool1d_backward",
    "avg_pool2d_backward",
    "avg_pool3d_backward",
    "lp_pool1d_backward",
    "lp_pool2d_backward",
    "lp_pool3d_backward",
    "max_pool1d_with_indices_backward",
    "max_pool2d_with_indices_backward",
    "max_pool3d_with_indices_backward",
]

Array = Any
Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]


def max_pool1d_with_indices_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
    indices: Array,
    *,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.max_pool1d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, Q)`` or ``(C, Q)``, `input` and result
    ``(N, C, W)`` or ``(C, W)``. The other arguments are those of the forward call; `indices` are what it returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1)), np.arange(2.0).reshape(1, 1, 2)
    >>> gpuconv.max_pool1d_with_indices_backward(dy, x, 2, None, 0, 1, False, np.array([[[1]]])).ravel()
    array([0., 1.])
    """
    return launch(
        max_backward_call,
        "max_pool1d_with_indices_backward",
        1,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        indices,
        backend,
    )


def max_pool2d_with_indices_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
    indices: Array,
    *,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.max_pool2d` with respect to its input, as ``aten::max_pool2d_with_indices_backward``.

    Shapes: `grad_output` and `indices` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result
    ``(N, C, H, W)`` or ``(C, H, W)``. The other arguments are those of the forward call; `indices` are what it
    returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.max_pool2d_with_indices_backward(dy, x, (1, 2), None, 0, 1, False, np.array([[[[1]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        max_backward_call,
        "max_pool2d_with_indices_backward",
        2,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        indices,
        backend,
    )


def max_pool3d_with_indices_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
    indices: Array,
    *,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.max_pool3d` with respect to its input, as ``aten::max_pool3d_with_indices_backward``.

    Shapes: `grad_output` and `indices` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result
    ``(N, C, D, H, W)`` or ``(C, D, H, W)``. The other arguments are those of the forward call; `indices` are what it
    returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.max_pool3d_with_indices_backward(dy, x, (1, 1, 2), None, 0, 1, False, np.array([[[[[1]]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        max_backward_call,
        "max_pool3d_with_indices_backward",
        3,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        indices,
        backend,
    )


def avg_pool1d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    dilation: Ints = 1,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.avg_pool1d` with respect to its input.

    Shapes: `grad_output` ``(N, C, Q)`` or ``(C, Q)``, `input` and result ``(N, C, W)`` or ``(C, W)``.
    The other arguments are those of the forward call. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1)), np.arange(2.0).reshape(1, 1, 2)
    >>> gpuconv.avg_pool1d_backward(dy, x, 2).ravel()
    array([0.5, 0.5])
    """
    return launch(
        avg_backward_call,
        "avg_pool1d_backward",
        1,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        count_include_pad,
        None,
        backend,
    )


def avg_pool2d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.avg_pool2d` with respect to its input, as ``aten::avg_pool2d_backward``.

    Shapes: `grad_output` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result ``(N, C, H, W)`` or ``(C, H, W)``.
    The other arguments are those of the forward call. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.avg_pool2d_backward(dy, x, (1, 2)).ravel()
    array([0.5, 0.5])
    """
    return launch(
        avg_backward_call,
        "avg_pool2d_backward",
        2,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        count_include_pad,
        divisor_override,
        backend,
    )


def avg_pool3d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Ints = 1,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.avg_pool3d` with respect to its input, as ``aten::avg_pool3d_backward``.

    Shapes: `grad_output` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result ``(N, C, D, H, W)`` or ``(C, D,
    H, W)``. The other arguments are those of the forward call. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.avg_pool3d_backward(dy, x, (1, 1, 2)).ravel()
    array([0.5, 0.5])
    """
    return launch(
        avg_backward_call,
        "avg_pool3d_backward",
        3,
        grad_output,
        input,
        kernel_size,
        stride,
        padding,
        dilation,
        ceil_mode,
        count_include_pad,
        divisor_override,
        backend,
    )


def lp_pool1d_backward(
    grad_output: Array,
    input: Array,
    norm_type: float,
    kernel_size: int,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.lp_pool1d` with respect to its input; 0 where a window sums to 0, as in torch.

    Shapes: `grad_output` ``(N, C, Q)`` or ``(C, Q)``, `input` and result ``(N, C, W)`` or ``(C, W)``.
    The other arguments are those of the forward call.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1)), np.arange(2.0).reshape(1, 1, 2)
    >>> gpuconv.lp_pool1d_backward(dy, x, 1, 2).ravel()
    array([1., 1.])
    """
    return launch(
        lp_backward_call,
        "lp_pool1d_backward",
        1,
        grad_output,
        input,
        norm_type,
        kernel_size,
        stride,
        ceil_mode,
        padding,
        backend,
    )


def lp_pool2d_backward(
    grad_output: Array,
    input: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.lp_pool2d` with respect to its input; 0 where a window sums to 0, as in torch.

    Shapes: `grad_output` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result ``(N, C, H, W)`` or ``(C, H, W)``.
    The other arguments are those of the forward call.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.lp_pool2d_backward(dy, x, 1, (1, 2)).ravel()
    array([1., 1.])
    """
    return launch(
        lp_backward_call,
        "lp_pool2d_backward",
        2,
        grad_output,
        input,
        norm_type,
        kernel_size,
        stride,
        ceil_mode,
        padding,
        backend,
    )


def lp_pool3d_backward(
    grad_output: Array,
    input: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.lp_pool3d` with respect to its input; 0 where a window sums to 0, as in torch.

    Shapes: `grad_output` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result ``(N, C, D, H, W)`` or ``(C, D,
    H, W)``. The other arguments are those of the forward call.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.lp_pool3d_backward(dy, x, 1, (1, 1, 2)).ravel()
    array([1., 1.])
    """
    return launch(
        lp_backward_call,
        "lp_pool3d_backward",
        3,
        grad_output,
        input,
        norm_type,
        kernel_size,
        stride,
        ceil_mode,
        padding,
        backend,
    )
