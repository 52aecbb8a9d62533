"""Every size formula of the library, one axis at a time.

Reference, Triton, CuPy, fake kernels and modules all compute their sizes here and nowhere else.

Conventions
-----------
- One call describes one axis; `map_axes` applies a function to all axes of a problem.
- ``pad_lo`` and ``pad_hi`` are the padding before the first and after the last element. A symmetric padding ``p``
  is ``pad_lo = pad_hi = p``. Negative padding (cropping) follows the same formulas.
- In the docstrings ``n`` is the input size, ``o`` the output size, ``k`` the kernel, ``s`` the stride, ``d`` the
  dilation and ``t = d * (k - 1)`` the distance between the first and the last tap.
- Nothing is validated or clamped: a formula may return a size <= 0, which callers report as the user error it is.
  Functions that search for a parameter raise ``ValueError`` when no value exists.
- Formulas use only ``+ - * //`` and, where a decision cannot be avoided, a comparison (``min`` and ``max`` are
  one), so they also work on ``torch.SymInt``; ``//`` rounds towards minus infinity. `conv_input_sizes`,
  `adaptive_windows` and `fractional_pool_starts` return as many values as an argument says: plain ints only.

References
----------
- V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285; cited as
  "Dumoulin & Visin" with the number of the relationship.
- A. Araujo, W. Norris and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.
- B. Graham, "Fractional Max-Pooling", 2014, arXiv:1412.6071.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

__all__ = [
    "Layer",
    "ReceptiveField",
    "Size",
    "adaptive_longest",
    "adaptive_window",
    "adaptive_windows",
    "columns_shape",
    "conv_input_sizes",
    "conv_output_size",
    "conv_transpose_output_padding",
    "conv_transpose_output_size",
    "effective_kernel",
    "fractional_pool_starts",
    "map_axes",
    "multiply_output_padding",
    "pad_causal",
    "pad_divide",
    "pad_full",
    "pad_half",
    "pad_same",
    "pad_same_lower",
    "pad_same_upper",
    "pad_valid",
    "pool_output_size",
    "pool_reads",
    "pool_window",
    "receptive_field",
]

Size: TypeAlias = int
"""A size: an ``int``, or a ``torch.SymInt`` while torch traces (SymInt is typed as int on purpose)."""

Layer: TypeAlias = tuple[Size, Size, Size, Size]
"""One layer of `receptive_field`: ``(kernel, stride, pad_lo, dilation)``."""

T = TypeVar("T")

_SIGNIFICAND_BITS: Final = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


def map_axes(fn: Callable[..., T], *per_axis: Iterable[Any]) -> tuple[T, ...]:
    """Apply a one-axis formula to every axis: one iterable per argument of `fn`, one entry per axis in each.

    Iterables of different lengths raise ``ValueError``.

    Examples
    --------
    >>> map_axes(conv_output_size, (50, 100), (3, 5))
    (48, 96)
    """
    return tuple(fn(*axis) for axis in zip(*per_axis, strict=True))


def effective_kernel(kernel: Size, dilation: Size = 1) -> Size:
    """Extent of a dilated kernel: ``d * (k - 1) + 1`` (Dumoulin & Visin, section 5.1, ``k + (k - 1)(d - 1)``)."""
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
    """Length of the longest window of an adaptive pooling, ``ceil((n - 1) / o) + 1`` with ``n / o`` in lowest terms."""
    common = math.gcd(size, output)
    return (size // common + output // common - 2) // (output // common) + 1


def columns_shape(n: Size, c: Size, kernel: Sequence[Size], output: Sequence[Size]) -> tuple[Size, Size, Size]:
    """Shape ``(N, C R S, P Q)`` of what unfold makes of an image, one column per window (``torch.nn.Unfold``)."""
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


def pad_valid() -> tuple[Size, Size]:
    """No padding, ``padding="valid"`` of torch (Dumoulin & Visin, relationship 5): ``(0, 0)``."""
    return 0, 0


def pad_same(kernel: Size, dilation: Size = 1) -> tuple[Size, Size]:
    """Padding that keeps the size at stride 1, ``padding="same"`` of torch.

    Source: ``torch.nn.Conv2d`` and PyTorch's ``aten/src/ATen/native/Convolution.cpp``: in total ``t`` elements, of
    which ``t // 2`` lie before the input; where ``t`` is odd the extra one lies after it. For even ``t`` this is
    the half padding of Dumoulin & Visin, relationship 3.

    Examples
    --------
    >>> pad_same(5, 6), pad_same(4)
    ((12, 12), (1, 2))
    """
    total = dilation * (kernel - 1)
    pad_lo = total // 2
    return pad_lo, total - pad_lo


def pad_same_upper(size: Size, kernel: Size, stride: Size = 1, dilation: Size = 1) -> tuple[Size, Size]:
    """Padding with which the output size is ``ceil(n / s)``; the odd element lies after the input.

    Source: ONNX ``Conv``, ``auto_pad="SAME_UPPER"``, which is TensorFlow's ``"SAME"``: in total
    ``max((ceil(n / s) - 1) * s + t + 1 - n, 0)``. It is `pad_same` at stride 1.

    Examples
    --------
    >>> pad_same_upper(224, 7, 2)
    (2, 3)
    """
    output = (size + stride - 1) // stride
    total = max(0, (output - 1) * stride + effective_kernel(kernel, dilation) - size)
    pad_lo = total // 2
    return pad_lo, total - pad_lo


def pad_same_lower(size: Size, kernel: Size, stride: Size = 1, dilation: Size = 1) -> tuple[Size, Size]:
    """Padding with which the output size is ``ceil(n / s)``; the odd element lies before the input.

    Source: ONNX ``Conv``, ``auto_pad="SAME_LOWER"``: the mirror image of `pad_same_upper`.
    """
    pad_hi, pad_lo = pad_same_upper(size, kernel, stride, dilation)
    return pad_lo, pad_hi


def pad_half(kernel: Size, dilation: Size = 1) -> tuple[Size, Size]:
    """Half padding ``(h, h)`` with ``h = (t + 1) // 2``, half of the effective kernel rounded down.

    Source: Dumoulin & Visin, relationship 3, with the effective kernel for ``k``. At stride 1 it keeps the size
    where the effective kernel is odd and gives one more where it is even. At dilation 1 it is the most that torch's
    pooling accepts; with dilation torch still accepts no more than ``k // 2``.

    Examples
    --------
    >>> pad_half(3), pad_half(4)
    ((1, 1), (2, 2))
    """
    half = effective_kernel(kernel, dilation) // 2
    return half, half


def pad_full(kernel: Size, dilation: Size = 1) -> tuple[Size, Size]:
    """Full padding ``(t, t)``: every window that touches the input; ``o = n + t`` at stride 1.

    Source: Dumoulin & Visin, relationship 4, with the effective kernel for ``k``.
    """
    total = dilation * (kernel - 1)
    return total, total


def pad_causal(kernel: Size, dilation: Size = 1) -> tuple[Size, Size]:
    """Causal padding ``(t, 0)``: at stride 1 it keeps the size, and output ``i`` sees no input after ``i``.

    Source: van den Oord et al. 2016, "WaveNet", arXiv:1609.03499, section 2.1.
    """
    return dilation * (kernel - 1), 0


def pad_divide(kernel: Size, stride: Size, dilation: Size = 1) -> Size:
    """The least symmetric padding ``p`` with which the output size is ``n / s`` for every ``n`` that ``s`` divides.

    Source: `conv_output_size` (Dumoulin & Visin, relationship 15) with ``n = m s``. It is ``m`` exactly when
    ``(2 p - t - 1) // s == -1``, that is, when ``t + 1 - s <= 2 p <= t``. The cases of ``u = t + 1 - s``:

    - ``u >= 0`` and even: ``p = u / 2``.
    - ``u >= 0`` and odd: ``p = (u + 1) / 2``, as ``u // 2`` is one too small. Then ``2 p = t + 2 - s``, which is at
      most ``t`` only for ``s >= 2``. At ``s = 1``, where ``u = t`` is odd, no symmetric padding keeps the size.
    - ``u < 0`` (the stride exceeds the effective kernel): ``p = 0``.

    A size ``n = m s + r`` with ``0 < r < s`` gives ``m`` (the floor of ``n / s``) where ``r + 2 p <= t`` and
    ``m + 1`` (the ceiling) where ``r + 2 p > t``: for even ``u >= 0`` always the floor; for odd ``u >= 0`` the
    floor except at ``r = s - 1``; for ``u < 0`` the ceiling where the remainder holds a whole kernel, ``r > t``.

    ``s = 1`` with odd ``t`` raises ``ValueError`` (`pad_same` has the asymmetric padding for it).

    Examples
    --------
    >>> pad_divide(7, 5, 6), conv_output_size(100, 7, 5, 16, 16, 6)
    (16, 20)
    """
    total = dilation * (kernel - 1)
    pad = (total + 2 - stride) // 2
    if pad < 0:
        return 0
    if 2 * pad > total:
        raise ValueError(
            f"pad_divide: no symmetric padding keeps the size at stride={stride} with kernel={kernel} and "
            f"dilation={dilation}: dilation * (kernel - 1) = {total} must be even"
        )
    return pad


def multiply_output_padding(kernel: Size, stride: Size, pad_lo: Size, pad_hi: Size, dilation: Size = 1) -> Size:
    """The ``output_padding`` with which the output size of a transposed convolution is ``n * s``.

    Source: `conv_transpose_output_size` (Dumoulin & Visin, relationship 14) set equal to ``n s``, which leaves
    ``pad_lo + pad_hi + s - t - 1`` for every ``n``. With ``pad_lo = pad_hi = pad_divide(kernel, stride, dilation)``
    it is 0 or 1 unless the stride exceeds the effective kernel.

    A negative value, or one that breaks torch's rule ``output_padding < max(stride, dilation)``, raises
    ``ValueError``.

    Examples
    --------
    >>> multiply_output_padding(4, 5, 1, 1), conv_transpose_output_size(100, 4, 5, 1, 1, 1, 3)
    (3, 500)
    """
    output_padding = pad_lo + pad_hi + stride - effective_kernel(kernel, dilation)
    if output_padding < 0 or (output_padding >= stride and output_padding >= dilation):
        raise ValueError(
            f"multiply_output_padding: kernel={kernel}, stride={stride}, padding=({pad_lo}, {pad_hi}) and "
            f"dilation={dilation} need output_padding={output_padding}, which must be at least 0 and smaller than "
            f"either stride or dilation"
        )
    return output_padding


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What one output of a stack of layers sees of the input, along one axis.

    Coordinates count input pixels from 0: pixel ``i`` has its centre at ``i`` (not at ``i + 0.5``), and pixels in
    the padding before the input have negative coordinates.

    Attributes
    ----------
    size : int
        Length of the receptive field in pixels, from its first to its last tap.
    jump : int
        Distance between the receptive fields of neighbouring outputs: the product of the strides.
    start : float
        Centre of the receptive field of output 0; a multiple of 1/2. Output ``i`` sees the pixels from
        ``start + i * jump - (size - 1) / 2`` to ``start + i * jump + (size - 1) / 2``, both included.
    """

    size: Size
    jump: Size
    start: float


def receptive_field(layers: Iterable[Layer]) -> ReceptiveField:
    """Receptive field of a stack of convolutions or poolings along one axis.

    Source: Araujo, Norris & Sim 2019: size, effective stride and effective padding, with the effective kernel for
    ``k`` and pixels counted from 0 as there. Composed front to back: with ``j`` the jump before a layer, the layer
    adds ``t * j`` to the size and ``(t / 2 - pad_lo) * j`` to the start, and multiplies the jump by ``s``.

    An empty stack sees its own pixel: ``ReceptiveField(1, 1, 0.0)``.

    Examples
    --------
    >>> receptive_field([(7, 2, 3, 1), (3, 2, 1, 1)])
    ReceptiveField(size=11, jump=4, start=0.0)
    """
    size, jump, start = 1, 1, 0.0
    for kernel, stride, pad_lo, dilation in layers:
        total = dilation * (kernel - 1)
        size = size + total * jump
        start = start + (total - 2 * pad_lo) * jump / 2
        jump = jump * stride
    return ReceptiveField(size, jump, start)
