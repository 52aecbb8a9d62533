"""Pooling: output sizes, and the windows of pools that no stride describes."""

import math
from collections.abc import Sequence
from typing import Final, Literal

from .axes import Size
from .conv import conv_output_size, effective_kernel

__all__ = [
    "adaptive_longest",
    "adaptive_window",
    "adaptive_windows",
    "columns_shape",
    "fractional_pool_starts",
    "pool_output_size",
    "pool_reads",
    "pool_window",
]

_SIGNIFICAND_BITS: Final = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


def pool_output_size(
    size: Size,
    kernel: Size,
    stride: Size,
    pad_lo: Size = 0,
    pad_hi: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Size:
    """Output size of a pooling.

    Source: ``pooling_output_shape_pad_lr`` in PyTorch's ``aten/src/ATen/native/Pool.h``; without `ceil_mode` it is
    `conv_output_size` (Dumoulin & Visin, relationship 7, with padding and dilation added).

    With `ceil_mode` the division rounds up, and then one window is taken off if the last would start at or beyond
    ``n``, that is, in the padding after the input: the last window must start inside the input or in the padding
    before it. As in torch only one window is taken off, which is enough for every padding that pooling accepts
    (``pad_hi <= k // 2``).

    Examples
    --------
    >>> pool_output_size(7, 2, 3), pool_output_size(7, 2, 3, ceil_mode=True)
    (2, 3)
    """
    if not ceil_mode:
        return conv_output_size(size, kernel, stride, pad_lo, pad_hi, dilation)
    output = conv_output_size(size + stride - 1, kernel, stride, pad_lo, pad_hi, dilation)
    if (output - 1) * stride >= size + pad_lo:
        return output - 1
    return output


def pool_window(
    index: Size, size: Size, kernel: Size, stride: Size, pad_lo: Size, pad_hi: Size, dilation: Size = 1
) -> tuple[Size, Size]:
    """Bounds ``(start, end)`` of one pooling window in input coordinates, the padding included.

    Source: the loops of ``avg_pool2d`` in PyTorch (``aten/src/ATen/native/cpu/AvgPoolKernel.cpp``):
    ``start = index * s - pad_lo`` and ``end = min(start + t + 1, n + pad_hi)``.

    `start` is not clipped, so it is negative in the padding before the input. `end` (exclusive) is clipped to
    ``n + pad_hi``, which only a last window in ceil mode exceeds. Hence ``end - start`` is torch's divisor with
    ``count_include_pad=True`` (padding counts, what ceil mode adds beyond the padding does not), and
    ``min(end, n) - max(start, 0)`` is the one with ``count_include_pad=False``.

    Examples
    --------
    >>> pool_window(0, 7, 3, 2, 1, 1), pool_window(3, 7, 3, 2, 1, 1)
    ((-1, 2), (5, 8))
    """
    start = index * stride - pad_lo
    end = start + effective_kernel(kernel, dilation)
    return start, min(end, size + pad_hi)


def adaptive_window(index: Size, size: Size, output: Size) -> tuple[Size, Size]:
    """Bounds ``(start, end)`` of one window of an adaptive pooling: ``floor(i n / o)`` and ``ceil((i + 1) n / o)``.

    Source: ``start_index`` and ``end_index`` in PyTorch's ``aten/src/ATen/native/AdaptivePooling.h``. Windows
    overlap by one element wherever ``o`` does not divide ``i n``, and cover the input without gaps.

    Examples
    --------
    >>> [adaptive_window(i, 7, 3) for i in range(3)]
    [(0, 3), (2, 5), (4, 7)]
    """
    return index * size // output, ((index + 1) * size + output - 1) // output


def adaptive_windows(size: Size, output: Size) -> tuple[tuple[Size, ...], tuple[Size, ...]]:
    """All windows of an adaptive pooling as ``(starts, ends)``; see `adaptive_window`.

    Examples
    --------
    >>> adaptive_windows(7, 3)
    ((0, 2, 4), (3, 5, 7))
    """
    windows = [adaptive_window(index, size, output) for index in range(output)]
    return tuple(start for start, _ in windows), tuple(end for _, end in windows)


def adaptive_longest(size: Size, output: Size) -> Size:
    """Length of the longest window of an adaptive pooling, ``ceil((n - 1) / o) + 1`` with ``n / o`` in lowest terms.

    Source: `adaptive_window`: the largest ``ceil((i + 1) n / o) - floor(i n / o)`` of ``0 <= i < o``.

    Examples
    --------
    >>> adaptive_longest(7, 3), max(end - start for start, end in zip(*adaptive_windows(7, 3)))
    (3, 3)
    """
    common = math.gcd(size, output)
    return (size // common + output // common - 2) // (output // common) + 1


def pool_reads(index: Size, size: Size, kernel: Size, stride: Size, pad_lo: Size, dilation: Size = 1) -> bool:
    """Whether one pooling window reads an element: a dilated one may have all of its taps in the padding.

    Examples
    --------
    >>> pool_reads(0, 1, 2, 1, 1, 2), pool_reads(0, 2, 2, 1, 1, 2)
    (False, True)
    """
    start = index * stride - pad_lo
    first = start if start >= 0 else start % dilation
    return first < size and first <= start + (kernel - 1) * dilation


def columns_shape(n: Size, c: Size, kernel: Sequence[Size], output: Sequence[Size]) -> tuple[Size, Size, Size]:
    """Shape ``(N, C R S, P Q)`` of what unfold makes of an image, one column per window.

    Source: the Shape section of ``torch.nn.Unfold``.

    Examples
    --------
    >>> columns_shape(2, 3, (2, 2), (4, 5))
    (2, 12, 20)
    """
    return n, c * math.prod(kernel), math.prod(output)


def fractional_pool_starts(
    size: int,
    output: int,
    kernel: int,
    sample: float,
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "float32",
) -> tuple[int, ...]:
    """First element of each window of a fractional max pooling.

    Source: Graham 2014, section 2 (a pseudo-random sequence), as in PyTorch's ``generate_intervals``
    (``aten/src/ATen/native/FractionalMaxPooling.h``): with ``alpha = (n - k) / (o - 1)`` window ``i < o - 1``
    starts at ``int((i + sample) * alpha) - int(sample * alpha)``, and the last one at ``n - k``.

    Parameters
    ----------
    size, output, kernel : int
        Input size, output size and window length.
    sample : float
        A number in [0, 1): one entry of torch's ``_random_samples``, whose last axis is (width, height) in 2-D but
        (depth, height, width) in 3-D.
    dtype : str, default "float32"
        The type that every operation rounds to, which decides products close to an integer. On the CPU torch
        computes in the dtype of the input, the 16-bit ones included; on CUDA 16-bit inputs compute in float32.

    Examples
    --------
    >>> fractional_pool_starts(10, 4, 2, 0.5)
    (0, 3, 5, 8)
    """
    if output < 1:
        return ()
    bits = _SIGNIFICAND_BITS[dtype]
    last = size - kernel
    if output == 1:
        return (last,)
    alpha = _round(_round(last, bits) / _round(output - 1, bits), bits)
    sample = _round(sample, bits)
    base = int(_round(sample * alpha, bits))
    starts = [int(_round(_round(_round(i, bits) + sample, bits) * alpha, bits)) - base for i in range(output - 1)]
    return (*starts, last)


def _round(value: float, bits: int) -> float:
    """Round to a significand of `bits` bits, ties to even: IEEE rounding except for overflow and subnormals."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(fraction, bits)), exponent - bits)
