"""The pools of ``torch.nn.functional``, plus keyword-only extras: maxima, averages and norms over windows.

Pools without a stride are in :mod:`.pool_adaptive` and :mod:`.pool_fractional`, gradients in the ``_backward`` modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import avg_call, lp_call, max_call
from .launch import launch

__all__ = [
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]

Array = Any
"""A ``torch.Tensor``, ``cupy.ndarray`` or ``numpy.ndarray``; all arrays of a call, and its result, are of one kind."""

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]


def max_pool1d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take the maximum over windows of a sequence: ``torch.nn.functional.max_pool1d``; see :func:`max_pool2d`.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, result ``(N, C, Q)`` or ``(C, Q)``. Arguments and errors are those of
    :func:`max_pool2d`; integers need `return_indices`, as in torch.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_pool1d(np.arange(6.0).reshape(1, 1, 6), 2).ravel()
    array([1., 3., 5.])
    """
    return launch(
        max_call, "max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, backend
    )


def max_pool2d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take the maximum over windows of an image: ``torch.nn.functional.max_pool2d``, plus asymmetric and named padding.

    NaN wins; of equal maxima the first does. On torch tensors this and every other pool is differentiable to every
    order, follows autocast, and is an operator to ``torch.compile``, ``torch.export`` and ``torch.func``. The gradient
    saves where the maxima are as offsets in their windows (int8 up to 128 elements, then int16, int32), or as
    positions if `return_indices` asks for these.

    Parameters
    ----------
    input
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``. Floats and integers.
    kernel_size, dilation
        Elements of a window per axis, and the distance between them: an integer or one per axis.
    stride
        Distance between windows; the kernel where omitted.
    padding
        Elements of -inf before and after each axis, at most half a kernel: an integer, one per axis, ``(lo, hi)``
        pairs,
        ``"valid"``, ``"same"`` (stride 1 only), ``"same_upper"`` or ``"same_lower"``.
    ceil_mode
        Whether a last window may hang over the end.
    return_indices
        Whether to return the positions of the maxima too, flat in the spatial axes (int64).
    backend
        Backend or solver id to force for this call.

    Returns
    -------
    Array
        Array of shape ``(N, C, P, Q)`` or ``(C, P, Q)``, or that array and the positions.

    Raises
    ------
    RuntimeError
        If a value or the rank is out of range, or an output axis would be empty.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If torch's CPU kernel does not have the element type.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).ravel()
    array([ 5.,  7., 13., 15.])
    """
    return launch(
        max_call, "max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, backend
    )


def max_pool3d(
    input: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take the maximum over windows of a volume: ``torch.nn.functional.max_pool3d``; see :func:`max_pool2d`.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``. Arguments
    and errors are those of :func:`max_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_pool3d(np.arange(8.0).reshape(1, 1, 2, 2, 2), 2).ravel()
    array([7.])
    """
    return launch(
        max_call, "max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, backend
    )


def avg_pool1d(
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
    """Average over windows of a sequence: ``torch.nn.functional.avg_pool1d``; see :func:`avg_pool2d`.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, result ``(N, C, Q)`` or ``(C, Q)``.
    Arguments and errors are those of :func:`avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool1d(np.arange(6.0).reshape(1, 1, 6), 2).ravel()
    array([0.5, 2.5, 4.5])
    """
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, None, backend)
    return launch(avg_call, "avg_pool1d", 1, *args)


def avg_pool2d(
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
    """Average over windows of an image: ``torch.nn.functional.avg_pool2d``, plus dilation and paddings.

    Parameters
    ----------
    input
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``. Floats and int64 (whose averages are cut off towards zero,
        as in torch).
    kernel_size, stride, padding, ceil_mode, backend
        As for :func:`max_pool2d`; the padding is of zeros.
    count_include_pad
        Whether the padding counts in the divisor. What ceil mode adds beyond the padding never does.
    divisor_override
        Divisor of every window, instead of its number of elements.
    dilation
        Distance between the elements of a window.

    Returns
    -------
    Array
        Array of shape ``(N, C, P, Q)`` or ``(C, P, Q)``.

    Raises
    ------
    RuntimeError
        If a value or the rank is out of range (``IndexError`` for an input of 2 axes or fewer), the divisor is 0, or an
        output axis would be empty.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not one of those above.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).ravel()
    array([ 2.5,  4.5, 10.5, 12.5])
    """
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, backend)
    return launch(avg_call, "avg_pool2d", 2, *args)


def avg_pool3d(
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
    """Average over windows of a volume: ``torch.nn.functional.avg_pool3d``; see :func:`avg_pool2d`.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``.
    Arguments and errors are those of :func:`avg_pool2d`; a kernel must not exceed the input, as in
    torch. 16-bit floats are accepted, as torch does on CUDA and not on the CPU.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.avg_pool3d(np.arange(8.0).reshape(1, 1, 2, 2, 2), 2).ravel()
    array([3.5])
    """
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override, backend)
    return launch(avg_call, "avg_pool3d", 3, *args)


def lp_pool1d(
    input: Array,
    norm_type: float,
    kernel_size: int,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Take the p-norm over windows of a sequence: ``torch.nn.functional.lp_pool1d``; see :func:`lp_pool2d`.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, result ``(N, C, Q)`` or ``(C, Q)``.
    Arguments and errors are those of :func:`lp_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.lp_pool1d(np.array([[[3.0, 4.0, 6.0, 8.0]]]), 2, 2).ravel()
    array([ 5., 10.])
    """
    return launch(lp_call, "lp_pool1d", 1, input, norm_type, kernel_size, stride, ceil_mode, padding, backend)


def lp_pool2d(
    input: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Take the p-norm over windows of an image: ``torch.nn.functional.lp_pool2d``, plus padding.

    The result is ``(sum of x ** p) ** (1 / p)``, without an absolute value, as in torch: NaN where an odd power sums to
    less than 0. A window that ceil mode cut off counts as if its mean were that of a whole one. An infinite `norm_type`
    takes the largest ``|x|``, and minus infinity the smallest.

    Parameters
    ----------
    input
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``. Floats; integers as torch's powers take them (the result is
        float32).
    norm_type
        The power ``p``.
    kernel_size, stride, ceil_mode, padding, backend
        As for :func:`max_pool2d`; the padding is of zeros, and left out where `norm_type` is infinite.

    Returns
    -------
    Array
        Array of shape ``(N, C, P, Q)`` or ``(C, P, Q)``.

    Raises
    ------
    RuntimeError
        If a value or the rank is out of range (``IndexError`` for an input of 2 axes or fewer).
    ValueError
        If `kernel_size` is a sequence of another length than the spatial axes.
    ZeroDivisionError
        If `norm_type` is 0.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If torch does not have the element type.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.lp_pool2d(np.array([[[[3.0, 4.0]]]]), 2, (1, 2)).ravel()
    array([5.])
    """
    return launch(lp_call, "lp_pool2d", 2, input, norm_type, kernel_size, stride, ceil_mode, padding, backend)


def lp_pool3d(
    input: Array,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
    *,
    padding: Padding = 0,
    backend: str | None = None,
) -> Array:
    """Take the p-norm over windows of a volume: ``torch.nn.functional.lp_pool3d``; see :func:`lp_pool2d`.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``.
    Arguments and errors are those of :func:`lp_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.lp_pool3d(np.array([[[[[3.0, 4.0]]]]]), 2, (1, 1, 2)).ravel()
    array([5.])
    """
    return launch(lp_call, "lp_pool3d", 3, input, norm_type, kernel_size, stride, ceil_mode, padding, backend)
