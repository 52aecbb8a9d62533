"""Gradients of the pools in :mod:`gpuconv.functional.pool_adaptive` as explicit functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import adaptive_backward_call, fractional_backward_call, unpool_backward_call
from .launch import launch

__all__ = [
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool1d_backward",
    "max_unpool2d_backward",
    "max_unpool3d_backward",
]

Array = Any
Ints = int | Sequence[int]


def adaptive_avg_pool1d_backward(grad_output: Array, input: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.adaptive_avg_pool1d` with respect to its input.

    Shapes: `grad_output` ``(N, C, Q)`` or ``(C, Q)``, `input` and result ``(N, C, W)`` or ``(C, W)``.
    Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1)), np.arange(2.0).reshape(1, 1, 2)
    >>> gpuconv.adaptive_avg_pool1d_backward(dy, x).ravel()
    array([0.5, 0.5])
    """
    return launch(
        adaptive_backward_call, "adaptive_avg_pool1d_backward", 1, grad_output, "adaptive_avg", input, None, backend
    )


def adaptive_avg_pool2d_backward(grad_output: Array, input: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.adaptive_avg_pool2d` with respect to its input.

    Shapes: `grad_output` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result ``(N, C, H, W)`` or ``(C, H, W)``.
    Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.adaptive_avg_pool2d_backward(dy, x).ravel()
    array([0.5, 0.5])
    """
    return launch(
        adaptive_backward_call, "adaptive_avg_pool2d_backward", 2, grad_output, "adaptive_avg", input, None, backend
    )


def adaptive_avg_pool3d_backward(grad_output: Array, input: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.adaptive_avg_pool3d` with respect to its input.

    Shapes: `grad_output` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result ``(N, C, D, H, W)`` or ``(C, D,
    H, W)``. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.adaptive_avg_pool3d_backward(dy, x).ravel()
    array([0.5, 0.5])
    """
    return launch(
        adaptive_backward_call, "adaptive_avg_pool3d_backward", 3, grad_output, "adaptive_avg", input, None, backend
    )


def adaptive_max_pool1d_backward(
    grad_output: Array, input: Array, indices: Array, *, backend: str | None = None
) -> Array:
    """Gradient of :func:`gpuconv.adaptive_max_pool1d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, Q)`` or ``(C, Q)``, `input` and result
    ``(N, C, W)`` or ``(C, W)``. `indices` are what the forward call returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1)), np.arange(2.0).reshape(1, 1, 2)
    >>> gpuconv.adaptive_max_pool1d_backward(dy, x, np.array([[[1]]])).ravel()
    array([0., 1.])
    """
    return launch(
        adaptive_backward_call, "adaptive_max_pool1d_backward", 1, grad_output, "adaptive_max", input, indices, backend
    )


def adaptive_max_pool2d_backward(
    grad_output: Array, input: Array, indices: Array, *, backend: str | None = None
) -> Array:
    """Gradient of :func:`gpuconv.adaptive_max_pool2d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result
    ``(N, C, H, W)`` or ``(C, H, W)``. `indices` are what the forward call returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.adaptive_max_pool2d_backward(dy, x, np.array([[[[1]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        adaptive_backward_call, "adaptive_max_pool2d_backward", 2, grad_output, "adaptive_max", input, indices, backend
    )


def adaptive_max_pool3d_backward(
    grad_output: Array, input: Array, indices: Array, *, backend: str | None = None
) -> Array:
    """Gradient of :func:`gpuconv.adaptive_max_pool3d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result
    ``(N, C, D, H, W)`` or ``(C, D, H, W)``. `indices` are what the forward call returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.adaptive_max_pool3d_backward(dy, x, np.array([[[[[1]]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        adaptive_backward_call, "adaptive_max_pool3d_backward", 3, grad_output, "adaptive_max", input, indices, backend
    )


def fractional_max_pool2d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    output_size: Ints,
    indices: Array,
    *,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.fractional_max_pool2d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, P, Q)`` or ``(C, P, Q)``, `input` and result
    ``(N, C, H, W)`` or ``(C, H, W)``. `indices` are what the forward call returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 2)
    >>> gpuconv.fractional_max_pool2d_backward(dy, x, (1, 2), 1, np.array([[[[1]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        fractional_backward_call,
        "fractional_max_pool2d_backward",
        2,
        grad_output,
        input,
        kernel_size,
        output_size,
        indices,
        backend,
    )


def fractional_max_pool3d_backward(
    grad_output: Array,
    input: Array,
    kernel_size: Ints,
    output_size: Ints,
    indices: Array,
    *,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`gpuconv.fractional_max_pool3d` with respect to its input.

    Shapes: `grad_output` and `indices` ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `input` and result
    ``(N, C, D, H, W)`` or ``(C, D, H, W)``. `indices` are what the forward call returned.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.ones((1, 1, 1, 1, 1)), np.arange(2.0).reshape(1, 1, 1, 1, 2)
    >>> gpuconv.fractional_max_pool3d_backward(dy, x, (1, 1, 2), 1, np.array([[[[[1]]]]])).ravel()
    array([0., 1.])
    """
    return launch(
        fractional_backward_call,
        "fractional_max_pool3d_backward",
        3,
        grad_output,
        input,
        kernel_size,
        output_size,
        indices,
        backend,
    )


def max_unpool1d_backward(grad_output: Array, input: Array, indices: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.max_unpool1d` with respect to its input: `grad_output` at `indices`.

    Shapes: `input`, `indices` and result ``(N, C, Q)`` or ``(C, Q)``, `grad_output`
    ``(N, C, W)`` or ``(C, W)``. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.arange(2.0).reshape(1, 1, 2), np.ones((1, 1, 1))
    >>> gpuconv.max_unpool1d_backward(dy, x, np.array([[[1]]])).ravel()
    array([1.])
    """
    return launch(unpool_backward_call, "max_unpool1d_backward", 1, grad_output, input, indices, backend)


def max_unpool2d_backward(grad_output: Array, input: Array, indices: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.max_unpool2d` with respect to its input: `grad_output` at `indices`.

    Shapes: `input`, `indices` and result ``(N, C, P, Q)`` or ``(C, P, Q)``, `grad_output`
    ``(N, C, H, W)`` or ``(C, H, W)``. Only the shape and format of `input` are read. A position outside of
    `grad_output` raises RuntimeError on the CPU; on a GPU its gradient is 0.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.arange(2.0).reshape(1, 1, 1, 2), np.ones((1, 1, 1, 1))
    >>> gpuconv.max_unpool2d_backward(dy, x, np.array([[[[1]]]])).ravel()
    array([1.])
    """
    return launch(unpool_backward_call, "max_unpool2d_backward", 2, grad_output, input, indices, backend)


def max_unpool3d_backward(grad_output: Array, input: Array, indices: Array, *, backend: str | None = None) -> Array:
    """Gradient of :func:`gpuconv.max_unpool3d` with respect to its input: `grad_output` at `indices`.

    Shapes: `input`, `indices` and result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, `grad_output`
    ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Only the shape and format of `input` are read.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> dy, x = np.arange(2.0).reshape(1, 1, 1, 1, 2), np.ones((1, 1, 1, 1, 1))
    >>> gpuconv.max_unpool3d_backward(dy, x, np.array([[[[[1]]]]])).ravel()
    array([1.])
    """
    return launch(unpool_backward_call, "max_unpool3d_backward", 3, grad_output, input, indices, backend)
