"""Windows as columns, and columns added back into an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..normalize import fold_call, unfold_call
from .launch import launch

__all__ = ["fold", "unfold"]

Array = Any
Ints = int | Sequence[int]


def unfold(
    input: Array,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Ints = 0,
    stride: Ints = 1,
    *,
    backend: str | None = None,
) -> Array:
    """Copy the windows of an image into columns: ``torch.nn.functional.unfold``. :func:`fold` is its gradient.

    Shapes: input ``(N, C, H, W)`` or ``(C, H, W)``, result ``(N, C R S, P Q)`` or ``(C R S, P Q)``. Floats, complex
    numbers and bool.

    Parameters
    ----------
    input
        Image ``(N, C, H, W)`` or ``(C, H, W)``; contiguous, channels-last or any strides.
    kernel_size, dilation, padding, stride
        Integers, or one for each of the two axes, of the window; torch's order. Paddings are symmetric.
    backend
        Backend or solver id to force for this call.

    Raises
    ------
    RuntimeError
        If a value or the rank is out of range (``IndexError`` for an input of 2 axes or fewer), or there is no window.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not one of those above.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.unfold(np.arange(4.0).reshape(1, 1, 2, 2), (1, 2))
    array([[[0., 2.],
            [1., 3.]]])
    """
    return launch(unfold_call, "unfold", 2, input, kernel_size, dilation, padding, stride, backend)


def fold(
    input: Array,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Ints = 0,
    stride: Ints = 1,
    *,
    backend: str | None = None,
) -> Array:
    """Add columns back into an image: ``torch.nn.functional.fold``. :func:`unfold` is its gradient.

    Shapes: input ``(N, C R S, P Q)`` or ``(C R S, P Q)``, result ``(N, C, H, W)`` or ``(C, H, W)`` with `output_size`
    ``(H, W)``. Floats, complex numbers and bool; 16-bit floats add in float32.

    Parameters
    ----------
    input
        Columns ``(N, C R S, L)`` or ``(C R S, L)``, with as many positions ``L`` as the window has in the image.
    output_size
        Size ``(H, W)`` of the image, or an integer for both.
    kernel_size, dilation, padding, stride
        Integers, or one for each of the two axes, of the window; torch's order. Paddings are symmetric.
    backend
        Backend or solver id to force for this call.

    Raises
    ------
    RuntimeError
        If a value or the rank is out of range, or the input does not have the columns of such an image.
    TypeError
        If an argument is of the wrong type.
    NotImplementedError
        If the element type is not one of those above.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.fold(np.ones((1, 2, 4)), (2, 3), (1, 2))
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    return launch(fold_call, "fold", 2, input, output_size, kernel_size, dilation, padding, stride, backend)
