"""Pools at pseudo-random windows, and the undoing of maximum pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import fractional_call, unpool_call
from .launch import launch

__all__ = [
    "fractional_max_pool2d",
    "fractional_max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

Array = Any
Ints = int | Sequence[int]


def fractional_max_pool2d(
    input: Array,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
    *,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take maxima over windows at pseudo-random places: ``torch.nn.functional.fractional_max_pool2d`` (Graham 2014).

    Parameters
    ----------
    input
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``. Floats.
    kernel_size
        Elements of a window: an integer or one per axis.
    output_size, output_ratio
        Size of the output, or its share of the input per axis; one of the two.
    return_indices
        Whether to return the positions of the maxima too, flat in the spatial axes (int64).
    _random_samples
        Numbers in [0, 1) of shape ``(N, C, 2)``. Without them they are drawn: by ``torch.rand`` for tensors, which
        ``torch.manual_seed`` governs, by ``numpy.random`` for numpy arrays and by ``cupy.random`` for CuPy's.
    backend
        Backend or solver id to force for this call.

    Returns
    -------
    Array
        Array of shape ``(N, C, P, Q)`` or ``(C, P, Q)``, contiguous, or that array and the positions.

    Raises
    ------
    ValueError
        If neither size nor ratio is given, or the ratio is too long.
    RuntimeError
        If a size or the samples are out of range (``IndexError`` for an input of too low a rank).
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not a float.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.fractional_max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2, output_size=2).shape
    (1, 1, 2, 2)
    """
    args = (input, kernel_size, output_size, output_ratio, return_indices, _random_samples, backend)
    return launch(fractional_call, "fractional_max_pool2d", 2, *args)


def fractional_max_pool3d(
    input: Array,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Array | None = None,
    *,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Take maxima over windows at pseudo-random places: ``torch.nn.functional.fractional_max_pool3d``.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, samples
    ``(N, C, 3)``. Arguments and errors are those of :func:`fractional_max_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.fractional_max_pool3d(np.arange(64.0).reshape(1, 1, 4, 4, 4), 2, output_size=2).shape
    (1, 1, 2, 2, 2)
    """
    args = (input, kernel_size, output_size, output_ratio, return_indices, _random_samples, backend)
    return launch(fractional_call, "fractional_max_pool3d", 3, *args)


def max_unpool1d(
    input: Array,
    indices: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Put maxima back to their places among zeros: ``torch.nn.functional.max_unpool1d``; see :func:`max_unpool2d`.

    Shapes: input and indices ``(N, C, Q)`` or ``(C, Q)``, result ``(N, C, W)`` or ``(C, W)``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_unpool1d(np.array([[[5.0]]]), np.array([[[1]]]), 2).ravel()
    array([0., 5.])
    """
    return launch(unpool_call, "max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size, backend)


def max_unpool2d(
    input: Array,
    indices: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Put maxima back to their places among zeros: ``torch.nn.functional.max_unpool2d``.

    Parameters
    ----------
    input, indices
        Maxima (floats) and their positions (int64, flat in the spatial axes of the result), of one shape,
        ``(N, C, P, Q)`` or ``(C, P, Q)``. Of equal positions the last wins. On a GPU positions outside the result,
        which torch's CUDA kernel stops the process for, are left out: reading them back to raise would have to wait.
    kernel_size, stride, padding
        Those of the pool that is undone.
    output_size
        Size of the result, alone or after N and C, where several sizes pool to that of the input.
    backend
        Backend or solver id to force for this call.

    Returns
    -------
    Array
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``.

    Raises
    ------
    ValueError
        If `output_size` is of another length, or not a size that this pool maps to that of the input.
    RuntimeError
        If shapes differ or an axis is empty; on the CPU also if a position is outside the result.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not a float.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_unpool2d(np.array([[[[5.0]]]]), np.array([[[[1]]]]), 2).ravel()
    array([0., 5., 0., 0.])
    """
    return launch(unpool_call, "max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size, backend)


def max_unpool3d(
    input: Array,
    indices: Array,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Put maxima back to their places among zeros: ``torch.nn.functional.max_unpool3d``; see :func:`max_unpool2d`.

    Shapes: input and indices ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``, result ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.max_unpool3d(np.array([[[[[5.0]]]]]), np.array([[[[[1]]]]]), 2).ravel()
    array([0., 5., 0., 0., 0., 0., 0., 0.])
    """
    return launch(unpool_call, "max_unpool3d", 3, input, indices, kernel_size, stride, padding, output_size, backend)
