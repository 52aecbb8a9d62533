"""Adaptive pools: the windows follow from the sizes of input and output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import adaptive_call
from .launch import launch

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
]

Array = Any


def adaptive_avg_pool1d(input: Array, output_size: int | Sequence[int], *, backend: str | None = None) -> Array:
    """Average into a given output size: ``torch.nn.functional.adaptive_avg_pool1d``; see :func:`adaptive_avg_pool2d`.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, result ``(N, C, Q)`` or ``(C, Q)``.
    Errors are those of :func:`adaptive_avg_pool2d`; `output_size` has no ``None``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_avg_pool1d(np.arange(6.0).reshape(1, 1, 6), 2).ravel()
    array([1., 4.])
    """
    return launch(adaptive_call, "adaptive_avg_pool1d", 1, input, "adaptive_avg", output_size, backend, False)


def adaptive_avg_pool2d(input: Array, output_size: int | Sequence[int | None], *, backend: str | None = None) -> Array:
    """Average into a given output size: ``torch.nn.functional.adaptive_avg_pool2d``.

    Window ``i`` of an axis goes from ``floor(i n / o)`` to ``ceil((i + 1) n / o)``.

    Parameters
    ----------
    input
        Array of shape ``(N, C, H, W)`` or ``(C, H, W)``. Floats.
    output_size
        An integer, or one per axis; ``None`` keeps the size of that axis. It may be 0.
    backend
        Backend or solver id to force for this call.

    Returns
    -------
    Array
        Array of shape ``(N, C, P, Q)`` or ``(C, P, Q)``.

    Raises
    ------
    RuntimeError
        If the rank, an empty axis of the input or `output_size` is out of range.
    ValueError
        If `output_size` is as long as the shape of the input.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not a float.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).ravel()
    array([ 2.5,  4.5, 10.5, 12.5])
    """
    return launch(adaptive_call, "adaptive_avg_pool2d", 2, input, "adaptive_avg", output_size, backend, False)


def adaptive_avg_pool3d(input: Array, output_size: int | Sequence[int | None], *, backend: str | None = None) -> Array:
    """Average into a given output size: ``torch.nn.functional.adaptive_avg_pool3d``; see :func:`adaptive_avg_pool2d`.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or ``(C, O, P, Q)``.
    Errors are those of :func:`adaptive_avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_avg_pool3d(np.arange(8.0).reshape(1, 1, 2, 2, 2), 2).ravel()
    array([0., 1., 2., 3., 4., 5., 6., 7.])
    """
    return launch(adaptive_call, "adaptive_avg_pool3d", 3, input, "adaptive_avg", output_size, backend, False)


def adaptive_max_pool1d(
    input: Array, output_size: int | Sequence[int], return_indices: bool = False, *, backend: str | None = None
) -> Array | tuple[Array, Array]:
    """Take maxima into a given output size: ``torch.nn.functional.adaptive_max_pool1d``.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, result ``(N, C, Q)`` or
    ``(C, Q)``, with `return_indices` twice: the maxima and their positions, flat in the spatial axes. Windows
    and errors are those of :func:`adaptive_avg_pool1d`; NaN wins, and of equal maxima the first does.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_max_pool1d(np.arange(6.0).reshape(1, 1, 6), 2).ravel()
    array([2., 5.])
    """
    return launch(
        adaptive_call, "adaptive_max_pool1d", 1, input, "adaptive_max", output_size, backend, bool(return_indices)
    )


def adaptive_max_pool2d(
    input: Array, output_size: int | Sequence[int | None], return_indices: bool = False, *, backend: str | None = None
) -> Array | tuple[Array, Array]:
    """Take maxima into a given output size: ``torch.nn.functional.adaptive_max_pool2d``.

    Shapes: input ``(N, C, H, W)`` or ``(C, H, W)``, result ``(N, C, P, Q)`` or
    ``(C, P, Q)``, with `return_indices` twice: the maxima and their positions, flat in the spatial axes. Windows
    and errors are those of :func:`adaptive_avg_pool2d`; NaN wins, and of equal maxima the first does.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).ravel()
    array([ 5.,  7., 13., 15.])
    """
    return launch(
        adaptive_call, "adaptive_max_pool2d", 2, input, "adaptive_max", output_size, backend, bool(return_indices)
    )


def adaptive_max_pool3d(
    input: Array, output_size: int | Sequence[int | None], return_indices: bool = False, *, backend: str | None = None
) -> Array | tuple[Array, Array]:
    """Take maxima into a given output size: ``torch.nn.functional.adaptive_max_pool3d``.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, result ``(N, C, O, P, Q)`` or
    ``(C, O, P, Q)``, with `return_indices` twice: the maxima and their positions, flat in the spatial axes. Windows
    and errors are those of :func:`adaptive_avg_pool3d`; NaN wins, and of equal maxima the first does.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.adaptive_max_pool3d(np.arange(8.0).reshape(1, 1, 2, 2, 2), 2).ravel()
    array([0., 1., 2., 3., 4., 5., 6., 7.])
    """
    return launch(
        adaptive_call, "adaptive_max_pool3d", 3, input, "adaptive_max", output_size, backend, bool(return_indices)
    )
