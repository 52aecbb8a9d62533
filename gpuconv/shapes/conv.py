"""Convolution and transposed convolution: sizes both ways, and stride phases."""

import math

from .axes import Size, ceil_div

__all__ = [
    "conv_input_sizes",
    "conv_output_size",
    "conv_transpose_output_padding",
    "conv_transpose_output_size",
    "effective_kernel",
    "phase_size",
    "phase_taps",
    "tap_step",
]


def effective_kernel(kernel: Size, dilation: Size = 1) -> Size:
    """Extent of a dilated kernel: ``d * (k - 1) + 1`` (Dumoulin & Visin, section 5.1, ``k + (k - 1)(d - 1)``).

    Examples
    --------
    >>> effective_kernel(3), effective_kernel(5, 7)
    (3, 29)
    """
    return dilation * (kernel - 1) + 1


def conv_output_size(
    size: Size, kernel: Size, stride: Size = 1, pad_lo: Size = 0, pad_hi: Size = 0, dilation: Size = 1
) -> Size:
    """Output size of a convolution: ``(n + pad_lo + pad_hi - t - 1) // s + 1``.

    Source: the Shape section of ``torch.nn.Conv2d``; Dumoulin & Visin, relationship 15 (relationship 6 for d = 1),
    with ``2p`` written as ``pad_lo + pad_hi``.

    It is <= 0 exactly when the kernel does not fit into the padded input.

    Examples
    --------
    >>> conv_output_size(100, 5, 2, 6, 6, 7)
    42
    """
    return (size + pad_lo + pad_hi - effective_kernel(kernel, dilation)) // stride + 1


def conv_input_sizes(
    output: Size, kernel: Size, stride: Size = 1, pad_lo: Size = 0, pad_hi: Size = 0, dilation: Size = 1
) -> range:
    """All input sizes from 1 up whose convolution has the given output size: the inverse of `conv_output_size`.

    ``o = (n - c) // s + 1`` with ``c = t + 1 - pad_lo - pad_hi`` holds exactly for the ``s`` consecutive sizes
    ``n = (o - 1) * s + c + r``, ``0 <= r < s``. Source: `conv_output_size` solved for ``n``; ``r`` is the ``a`` of
    Dumoulin & Visin, relationship 14, the rows that a stride skips. The range is shorter than ``s``, or empty,
    where sizes below 1 were left out.

    Examples
    --------
    >>> conv_input_sizes(4, 3, 2)
    range(9, 11)
    """
    least = (output - 1) * stride + effective_kernel(kernel, dilation) - pad_lo - pad_hi
    return range(max(1, least), least + stride)


def conv_transpose_output_size(
    size: Size,
    kernel: Size,
    stride: Size = 1,
    pad_lo: Size = 0,
    pad_hi: Size = 0,
    dilation: Size = 1,
    output_padding: Size = 0,
) -> Size:
    """Output size of a transposed convolution: ``(n - 1) * s - pad_lo - pad_hi + t + output_padding + 1``.

    Source: the Shape section of ``torch.nn.ConvTranspose2d``; Dumoulin & Visin, relationship 14, with ``a`` as
    ``output_padding`` and the effective kernel for ``k``.

    Examples
    --------
    >>> conv_transpose_output_size(100, 4, 7, 5, 5, 6, 1)
    703
    """
    return (size - 1) * stride - pad_lo - pad_hi + effective_kernel(kernel, dilation) + output_padding


def conv_transpose_output_padding(
    size: Size,
    output_size: Size,
    kernel: Size,
    stride: Size = 1,
    pad_lo: Size = 0,
    pad_hi: Size = 0,
    dilation: Size = 1,
) -> Size:
    """The ``output_padding``, from 0 to ``s - 1``, with which a transposed convolution has a wanted output size.

    Source: ``torch.nn.ConvTransposeNd._output_padding``. As there, the sizes from
    ``conv_transpose_output_size(...)`` up to that plus ``s - 1`` are accepted, even where ``d > s`` and an explicit
    ``output_padding`` could go on to ``d - 1``: these are the sizes that the forward convolution maps to `size`.

    Any other `output_size` raises ``ValueError``.

    Examples
    --------
    >>> conv_transpose_output_padding(2, 4, 3, 2, 1, 1)
    1
    """
    least = conv_transpose_output_size(size, kernel, stride, pad_lo, pad_hi, dilation)
    most = least + stride - 1
    if output_size < least or output_size > most:
        raise ValueError(
            f"conv_transpose: requested an output_size of {output_size}, but valid sizes range from {least} to {most} "
            f"(for an input size of {size})"
        )
    return output_size - least


def phase_size(size: Size, stride: Size) -> Size:
    """Positions of the largest stride phase of an axis: of those of the input that are equal modulo the stride.

    Each phase of a data gradient or transposed convolution is a dense convolution of its own. Of ``n`` consecutive
    positions the most frequent residue has ``ceil(n / s)``.

    Examples
    --------
    >>> phase_size(7, 2)
    4
    """
    return ceil_div(size, stride)


def tap_step(stride: Size, dilation: Size = 1) -> Size:
    """Distance between two taps that one stride phase reads: ``s / gcd(s, d)``.

    Tap ``k`` reaches the phase of residue ``r`` where ``d k = r`` modulo ``s``: if it does, so does every
    ``s / gcd(s, d)``-th from it, and no other.

    Examples
    --------
    >>> tap_step(2), tap_step(4, 2), tap_step(2, 2)
    (2, 2, 1)
    """
    return stride // math.gcd(stride, dilation)


def phase_taps(kernel: Size, stride: Size, dilation: Size = 1) -> Size:
    """Most taps along an axis that one stride phase reads: ``ceil(k / tap_step)``, see `tap_step`.

    Examples
    --------
    >>> phase_taps(3, 2), phase_taps(3, 1)
    (2, 3)
    """
    return ceil_div(kernel, tap_step(stride, dilation))
