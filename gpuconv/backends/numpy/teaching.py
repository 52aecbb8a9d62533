"""Three ways to see a convolution, each as short as it can be: its definition, one product of matrices, a matrix.

They are for reading and for testing the solvers; no solver calls them. All take arrays with a batch axis, in 1, 2 or 3
dimensions, and compute in the type of the arrays. Per spatial axis there is one number in `stride` and in `dilation`,
and one pair (lo, hi) of zeros in `padding`.

Letters: input ``x`` is [N, C, *size], filter ``w`` is [K, C/G, *kernel], output ``y`` is [N, K, *out]. Group g maps
the channels of x from ``g * C/G`` on to the channels of y from ``g * K/G`` on. Along an axis, output o reads through
tap t the input element ``o * stride + t * dilation - lo``; elements outside the input are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from ...shapes import conv_output_size, conv_transpose_output_size, effective_kernel, map_axes

__all__ = ["direct", "im2col_gemm", "toeplitz_conv", "toeplitz_conv_transpose", "toeplitz_matrix"]

Array = np.ndarray[Any, Any]
Ints = Sequence[int]
Pairs = Sequence[tuple[int, int]]


def direct(x: Array, w: Array, stride: Ints, padding: Pairs, dilation: Ints, groups: int) -> Array:
    """Convolve by the definition: every output is the sum of a window of the padded input times the filter.

    Examples
    --------
    >>> x, w = np.array([[[1, 2, 3, 4]]]), np.array([[[1, 10]]])
    >>> direct(x, w, stride=(2,), padding=[(1, 0)], dilation=(1,), groups=1)
    array([[[10, 32]]])
    """
    out = _output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    extents = map_axes(effective_kernel, w.shape[2:], dilation)
    y = np.zeros((len(x), len(w), *out), x.dtype)
    for of_x, of_y in _groups(w, groups):
        for o in np.ndindex(*out):
            starts = [i * s for i, s in zip(o, stride)]
            window = [slice(a, a + extent, d) for a, extent, d in zip(starts, extents, dilation)]
            values = padded[:, of_x, *window]  # [N, C/G, *kernel]
            y[:, of_y, *o] = values.reshape(len(x), w[0].size) @ w[of_y].reshape(-1, w[0].size).T
    return y


def im2col_gemm(x: Array, w: Array, stride: Ints, padding: Pairs, dilation: Ints, groups: int) -> Array:
    """Convolve by one product of matrices, after copying what each tap reads into a row of its own (im2col).

    The price is memory: the matrix of columns is as many times larger than the output as a filter has weights.

    Examples
    --------
    >>> x, w = np.array([[[1, 2, 3]]]), np.array([[[1, 10]]])
    >>> im2col_gemm(x, w, stride=(1,), padding=[(0, 0)], dilation=(1,), groups=1)
    array([[[21, 32]]])
    """
    n, c = x.shape[:2]
    k, kernel = len(w), w.shape[2:]
    out = _output_size(x.shape[2:], kernel, stride, padding, dilation)
    channels_first = np.pad(x, [(0, 0), (0, 0), *padding]).swapaxes(0, 1)
    columns = np.empty((c, *kernel, n, *out), x.dtype)
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, d in zip(tap, dilation)]
        reads = [slice(a, a + (o - 1) * s + 1, s) for a, o, s in zip(starts, out, stride)]
        columns[:, *tap] = channels_first[:, :, *reads]
    rows = w.reshape(groups, k // groups, w[0].size)  # [G, K/G, C/G * taps]
    product = rows @ columns.reshape(groups, w[0].size, n * prod(out))  # [G, K/G, N * positions]
    return product.reshape(k, n, *out).swapaxes(0, 1)


def toeplitz_matrix(
    w: Array, size: Ints, stride: Ints, padding: Pairs, dilation: Ints, groups: int, out: Ints | None = None
) -> Array:
    """Return the convolution of one image of spatial `size` as a matrix: ``y.ravel() == matrix @ x.ravel()``.

    A convolution is linear, so there is one. Its rows repeat the filter, shifted by the stride from row to row; in 1-D
    with stride 1 it is a Toeplitz matrix, hence the name. Its transpose is the transposed convolution.

    `out` limits the rows to the first outputs along each axis; the default is all of them.

    Examples
    --------
    >>> toeplitz_matrix(np.array([[[1, 2]]]), size=(4,), stride=(1,), padding=[(0, 0)], dilation=(1,), groups=1)
    array([[1, 2, 0, 0],
           [0, 1, 2, 0],
           [0, 0, 1, 2]])
    """
    out = _output_size(size, w.shape[2:], stride, padding, dilation) if out is None else out
    c = w.shape[1] * groups
    matrix = np.zeros((len(w), *out, c, *size), w.dtype)
    for o in np.ndindex(*out):
        for tap in np.ndindex(*w.shape[2:]):
            i = [a * s + t * d - lo for a, s, t, d, (lo, _) in zip(o, stride, tap, dilation, padding)]
            if all(0 <= at < end for at, end in zip(i, size)):
                for of_x, of_y in _groups(w, groups):
                    matrix[of_y, *o, of_x, *i] = w[:, :, *tap][of_y]
    return matrix.reshape(len(w) * prod(out), c * prod(size))


def toeplitz_conv(x: Array, w: Array, stride: Ints, padding: Pairs, dilation: Ints, groups: int) -> Array:
    """Convolve by multiplying each image with :func:`toeplitz_matrix`."""
    size = x.shape[2:]
    out = _output_size(size, w.shape[2:], stride, padding, dilation)
    matrix = toeplitz_matrix(w, size, stride, padding, dilation, groups)
    y: Array = x.reshape(len(x), matrix.shape[1]) @ matrix.T
    return y.reshape(len(x), len(w), *out)


def toeplitz_conv_transpose(
    y: Array, w: Array, stride: Ints, padding: Pairs, dilation: Ints, groups: int, output_padding: Ints
) -> Array:
    """Convolve transposed: multiply each image with the transpose of the matrix that maps the result's size to y's.

    `w` is [K, C/G, *kernel] as above, with K the channels of the argument and C those of the result.
    """
    lo, hi = zip(*padding, strict=True)
    out, kernel = y.shape[2:], w.shape[2:]
    size = map_axes(conv_transpose_output_size, out, kernel, stride, lo, hi, dilation, output_padding)
    matrix = toeplitz_matrix(w, size, stride, padding, dilation, groups, out)
    x: Array = y.reshape(len(y), len(matrix)) @ matrix
    return x.reshape(len(y), w.shape[1] * groups, *size)


def _output_size(size: Ints, kernel: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> tuple[int, ...]:
    lo, hi = zip(*padding, strict=True)
    return map_axes(conv_output_size, size, kernel, stride, lo, hi, dilation)


def _groups(w: Array, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the channels of x and of y that belong to each group."""
    k, c = len(w) // groups, w.shape[1]
    for g in range(groups):
        yield slice(g * c, (g + 1) * c), slice(g * k, (g + 1) * k)
