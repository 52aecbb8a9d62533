"""Deformable convolution, version 1 and, with a mask, version 2: the arguments and results of torchvision's."""

from __future__ import annotations

from typing import Any

from ..dispatch import deform_call, run
from ..ops import operators
from .conv import Array, Ints, Padding

__all__ = ["deform_conv1d", "deform_conv2d", "deform_conv3d"]


def _convolve(op: str, ndim: int, *arguments: Any) -> Array:
    ops = operators(arguments[0])
    if ops is not None:
        return ops.ops_deform.convolution(op, ndim, *arguments)
    return run(deform_call(op, ndim, *arguments))


def deform_conv1d(
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Convolve a sequence at positions that offsets move: :func:`deform_conv2d` along one axis, linear in between.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, offset ``(N, OG S, Q)``, mask ``(N, OG S, Q)``, weight ``(K, C/G, S)``,
    bias ``(K,)``; result ``(N, K, Q)`` or ``(K, Q)``. Arguments and errors: see :func:`deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.array([[[0.0, 10.0, 20.0, 30.0]]]), np.ones((1, 1, 1))
    >>> gpuconv.deform_conv1d(x, np.array([[[0.5, 0.0, -2.0, 0.25]]]), w)
    array([[[ 5. , 10. ,  0. , 22.5]]])
    """
    return _convolve("deform_conv1d", 1, input, offset, weight, bias, stride, padding, dilation, mask, backend)


def deform_conv2d(
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Convolve an image at positions that offsets move, times a mask: deformable convolution.

    Each tap of the filter reads the input at its own place plus an offset, in elements, that depends on the output
    position [1]_; with `mask`, what it reads is multiplied by a number that does as well [2]_. The signature and the
    results are those of ``torchvision.ops.deform_conv2d``; asymmetric and named padding, other numbers of axes, and
    NumPy and CuPy arrays come on top.

    Output position p reads, along each axis, position ``p * stride - pad_lo + tap * dilation + offset``, interpolated
    linearly between the two elements around it along each axis (bilinear in 2-D). Elements outside of the input are 0,
    and so is a sample at a position ``<= -1`` or ``>= size`` along any axis, whatever the input holds. Where an offset
    is NaN the sample is NaN (torchvision leaves it undefined). Positions and interpolation are computed in float32 for
    16-bit types; Triton's kernels round samples to 16 bits before they multiply them.

    Parameters
    ----------
    input
        ``(N, C, H, W)`` or unbatched ``(C, H, W)``; float16, bfloat16, float32 or float64.
    offset
        ``(N, 2 OG R S, P, Q)``, in elements of the input: for each of OG groups of offsets, for each tap of the filter
        (row by row), the offset down and the offset to the right. Group ``i`` moves the ``i``-th of OG equal parts of
        the input's channels. Without a batch axis if `input` has none.
    weight
        ``(K, C/G, R, S)``. Its second axis says how many groups G there are.
    bias
        ``(K,)``, or None.
    stride, padding, dilation
        As in :func:`conv2d`; padding is the number 0.
    mask
        ``(N, OG R S, P, Q)``, or None for a mask of 1.
    backend
        As in :func:`conv2d`.

    Returns
    -------
    array
        ``(N, K, P, Q)`` or ``(K, P, Q)``, in the dtype of `input`. Differentiable by every array, to every order;
        second derivatives of torch tensors are computed by torch's own operators. Under autocast it is computed in
        float32, and the result has the dtype of `input`, as torchvision's.

    Raises
    ------
    RuntimeError
        For sizes, dtypes and devices that do not fit together. `NoSolverError` is one.
    TypeError
        For an argument of the wrong type or a mix of array kinds.
    ValueError
        For an unknown backend.
    NotImplementedError
        For an input that is no real float.

    References
    ----------
    .. [1] J. Dai et al., "Deformable Convolutional Networks", 2017, arXiv:1703.06211.
    .. [2] X. Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", 2018, arXiv:1811.11168.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.arange(16.0).reshape(1, 1, 4, 4), np.ones((1, 1, 2, 2))
    >>> offset = np.zeros((1, 2 * 2 * 2, 3, 3))
    >>> bool((gpuconv.deform_conv2d(x, offset, w) == gpuconv.conv2d(x, w)).all())
    True
    >>> offset[:, 1::2] = 0.5  # half an element to the right
    >>> gpuconv.deform_conv2d(x, offset, w, mask=np.full((1, 4, 3, 3), 0.25))[0, 0, 0]
    array([3. , 4. , 3.5])
    """
    return _convolve("deform_conv2d", 2, input, offset, weight, bias, stride, padding, dilation, mask, backend)


def deform_conv3d(
    input: Array,
    offset: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    mask: Array | None = None,
    *,
    backend: str | None = None,
) -> Array:
    """Convolve a volume at positions that offsets move: :func:`deform_conv2d` along three axes, trilinear in between.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, offset ``(N, 3 OG T R S, O, P, Q)`` (along depth, height and
    width for each tap), mask ``(N, OG T R S, O, P, Q)``, weight ``(K, C/G, T, R, S)``, bias ``(K,)``; result
    ``(N, K, O, P, Q)`` or ``(K, O, P, Q)``. Arguments and errors: see :func:`deform_conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 2, 4, 4, 4), np.float32), np.ones((5, 2, 3, 3, 3), np.float32)
    >>> gpuconv.deform_conv3d(x, np.zeros((1, 3 * 27, 4, 4, 4), np.float32), w, padding=1).shape
    (1, 5, 4, 4, 4)
    """
    return _convolve("deform_conv3d", 3, input, offset, weight, bias, stride, padding, dilation, mask, backend)
