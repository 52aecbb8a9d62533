"""Padding by name, and the padding and output padding that give a wanted size."""

from .axes import Size
from .conv import effective_kernel

__all__ = [
    "multiply_output_padding",
    "pad_causal",
    "pad_divide",
    "pad_full",
    "pad_half",
    "pad_same",
    "pad_same_lower",
    "pad_same_upper",
    "pad_valid",
]


def pad_valid() -> tuple[Size, Size]:
    """No padding, ``padding="valid"`` of torch (Dumoulin & Visin, relationship 5): ``(0, 0)``.

    Examples
    --------
    >>> pad_valid()
    (0, 0)
    """
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

    Examples
    --------
    >>> pad_same_lower(224, 7, 2)
    (3, 2)
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

    Examples
    --------
    >>> pad_full(3), pad_full(3, 2)
    ((2, 2), (4, 4))
    """
    total = dilation * (kernel - 1)
    return total, total


def pad_causal(kernel: Size, dilation: Size = 1) -> tuple[Size, Size]:
    """Causal padding ``(t, 0)``: at stride 1 it keeps the size, and output ``i`` sees no input after ``i``.

    Source: van den Oord et al. 2016, "WaveNet", arXiv:1609.03499, section 2.1.

    Examples
    --------
    >>> pad_causal(3, 2)
    (4, 0)
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
    >>> from gpuconv.shapes import conv_output_size
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
    >>> from gpuconv.shapes import conv_transpose_output_size
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
