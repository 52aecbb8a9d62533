"""Gradients of convolutions as explicit functions, for arrays without autograd and for hand-written backward passes.

Argument order is that of ``torch.nn.grad``; padding and padding mode go beyond it as in :mod:`gpuconv.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dispatch import input_grad_call, run, weight_grad_call
from ..normalize import Extras
from ..ops import operators
from .conv import Array, Ints, Padding

__all__ = [
    "conv1d_input_grad",
    "conv1d_weight_grad",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d_input_grad",
    "conv3d_weight_grad",
]


def _input_grad(op: str, ndim: int, input_size: Any, weight: Array, grad_output: Array, *arguments: Any) -> Array:
    ops = operators(grad_output)
    if ops is not None:
        return ops.input_gradient(op, ndim, input_size, weight, grad_output, *arguments)
    return run(input_grad_call(op, ndim, input_size, weight, grad_output, *arguments))


def _weight_grad(op: str, ndim: int, input: Array, weight_size: Any, grad_output: Array, *arguments: Any) -> Array:
    ops = operators(input)
    if ops is not None:
        return ops.weight_gradient(op, ndim, input, weight_size, grad_output, *arguments)
    return run(weight_grad_call(op, ndim, input, weight_size, grad_output, *arguments))


def conv1d_input_grad(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv1d` with respect to its input. See :func:`conv2d_input_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv1d_input_grad((1, 1, 4), np.ones((1, 1, 3)), np.ones((1, 1, 2)))
    array([[[1., 2., 2., 1.]]])
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _input_grad(
        "conv1d_input_grad", 1, input_size, weight, grad_output, stride, padding, dilation, groups, extras
    )


def conv2d_input_grad(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv2d` with respect to its input; argument order of ``torch.nn.grad.conv2d_input``.

    Parameters
    ----------
    input_size
        ``(N, C, H, W)``, the shape of the convolution's input.
    weight
        ``(K, C/G, R, S)``.
    grad_output
        ``(N, K, P, Q)``.
    stride, padding, dilation, groups, padding_mode, precision, backend
        Those of the convolution, see :func:`conv2d`.

    Returns
    -------
    array
        ``(N, C, H, W)``; channels-last if weight or grad_output is.

    Raises
    ------
    RuntimeError, TypeError, ValueError, NotImplementedError
        As :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> w, dy = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> gpuconv.conv2d_input_grad((1, 1, 3, 3), w, dy).tolist()
    [[[[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]]]
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _input_grad(
        "conv2d_input_grad", 2, input_size, weight, grad_output, stride, padding, dilation, groups, extras
    )


def conv3d_input_grad(
    input_size: Sequence[int],
    weight: Array,
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv3d` with respect to its input. See :func:`conv2d_input_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv3d_input_grad((1, 2, 4, 4, 4), np.ones((3, 2, 2, 2, 2)), np.ones((1, 3, 3, 3, 3))).shape
    (1, 2, 4, 4, 4)
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _input_grad(
        "conv3d_input_grad", 3, input_size, weight, grad_output, stride, padding, dilation, groups, extras
    )


def conv1d_weight_grad(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv1d` with respect to its weight. See :func:`conv2d_weight_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv1d_weight_grad(np.arange(4.0).reshape(1, 1, 4), (1, 1, 3), np.ones((1, 1, 2)))
    array([[[1., 3., 5.]]])
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _weight_grad(
        "conv1d_weight_grad", 1, input, weight_size, grad_output, stride, padding, dilation, groups, extras
    )


def conv2d_weight_grad(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv2d` with respect to its weight; argument order of ``torch.nn.grad.conv2d_weight``.

    Parameters
    ----------
    input
        ``(N, C, H, W)``.
    weight_size
        ``(K, C/G, R, S)``, the shape of the weight.
    grad_output
        ``(N, K, P, Q)``.
    stride, padding, dilation, groups, padding_mode, precision, backend
        Those of the convolution, see :func:`conv2d`.

    Returns
    -------
    array
        ``(K, C/G, R, S)``; channels-last if input or grad_output is.

    Raises
    ------
    RuntimeError, TypeError, ValueError, NotImplementedError
        As :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv2d_weight_grad(np.ones((2, 1, 3, 3)), (1, 1, 2, 2), np.ones((2, 1, 2, 2))).tolist()
    [[[[8.0, 8.0], [8.0, 8.0]]]]
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _weight_grad(
        "conv2d_weight_grad", 2, input, weight_size, grad_output, stride, padding, dilation, groups, extras
    )


def conv3d_weight_grad(
    input: Array,
    weight_size: Sequence[int],
    grad_output: Array,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    precision: str | None = None,
    backend: str | None = None,
) -> Array:
    """Gradient of :func:`conv3d` with respect to its weight. See :func:`conv2d_weight_grad`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv3d_weight_grad(np.ones((1, 2, 4, 4, 4)), (3, 2, 2, 2, 2), np.ones((1, 3, 3, 3, 3))).shape
    (3, 2, 2, 2, 2)
    """
    extras = Extras(padding_mode, precision=precision, backend=backend)
    return _weight_grad(
        "conv3d_weight_grad", 3, input, weight_size, grad_output, stride, padding, dilation, groups, extras
    )
