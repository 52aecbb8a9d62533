"""The formulas the other way round: which input sizes, and which padding, give a wanted output size."""

from .axes import Size, ceil_div
from .conv import conv_transpose_output_size, effective_kernel

__all__ = [
    "conv_padding_totals",
    "conv_transpose_input_size",
    "conv_transpose_padding_total",
    "pool_input_sizes",
    "split_padding",
]


def pool_input_sizes(
    output: Size,
    kernel: Size,
    stride: Size,
    pad_lo: Size = 0,
    pad_hi: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> range:
    """All input sizes from 1 up whose pooling has the given output size: the inverse of `pool_output_size`.

    Without `ceil_mode` this is `conv_input_sizes`. With it ``o`` windows are enough for a size ``n`` where the last
    one reaches the end, ``n <= (o - 1) s + t + 1 - pad_lo - pad_hi``, or where one more would start in the padding
    behind the input, ``n <= o s - pad_lo``. With ``f(o)`` the larger of the two bounds, the sizes are those from
    ``f(o - 1) + 1`` to ``f(o)``. Source: `pool_output_size` (PyTorch's ``Pool.h``) solved for ``n``, for
    ``pad_hi <= t`` and ``pad_lo <= t``, which every padding that pooling accepts satisfies.

    Examples
    --------
    >>> pool_input_sizes(3, 2, 2), pool_input_sizes(3, 2, 2, ceil_mode=True)
    (range(6, 8), range(5, 7))
    """
    extent = effective_kernel(kernel, dilation) - pad_lo - pad_hi
    if not ceil_mode:
        least = (output - 1) * stride + extent
        return range(max(1, least), max(1, least + stride))

    def most(windows: Size) -> Size:
        return max((windows - 1) * stride + extent, windows * stride - pad_lo)

    return range(max(1, most(output - 1) + 1), max(1, most(output) + 1))


def conv_transpose_input_size(
    output: Size,
    kernel: Size,
    stride: Size = 1,
    pad_lo: Size = 0,
    pad_hi: Size = 0,
    dilation: Size = 1,
    output_padding: Size = 0,
) -> Size:
    """The one input size whose transposed convolution has the given output size.

    ``n = (o + pad_lo + pad_hi - t - 1 - output_padding) / s + 1``. Source: `conv_transpose_output_size` (Dumoulin &
    Visin, relationship 14) solved for ``n``.

    Where the division leaves a rest, or ``n`` would be below 1, there is none: ``ValueError``, which names the sizes
    next to it.

    Examples
    --------
    >>> conv_transpose_input_size(703, 4, 7, 5, 5, 6, 1)
    100
    """
    spread = output + pad_lo + pad_hi - effective_kernel(kernel, dilation) - output_padding
    size, rest = spread // stride + 1, spread % stride
    if not rest and size >= 1:
        return size
    below, above = (
        conv_transpose_output_size(max(1, n), kernel, stride, pad_lo, pad_hi, dilation, output_padding)
        for n in (size, size + 1)
    )
    if size < 1:
        raise ValueError(f"no input size gives {output}: the least one, 1, gives {below}")
    more = output_padding + rest
    hint = f"; output_padding={more} gives {output} from {size}" if more < max(stride, dilation) else ""
    raise ValueError(f"no input size gives {output}: {size} gives {below} and {size + 1} gives {above}{hint}")


def conv_padding_totals(size: Size, output: Size, kernel: Size, stride: Size = 1, dilation: Size = 1) -> range:
    """All totals ``pad_lo + pad_hi`` with which a convolution has the given output size.

    ``o = (n + P - t - 1) // s + 1`` holds exactly for ``(o - 1) s + t + 1 - n <= P < o s + t + 1 - n``. Source:
    `conv_output_size` (Dumoulin & Visin, relationship 15) solved for ``P``. Totals below 0, which would crop the
    input, are left out: the range is empty where padding alone cannot make the output so small.

    Examples
    --------
    >>> conv_padding_totals(224, 112, 7, 2), conv_padding_totals(8, 8, 4)
    (range(5, 7), range(3, 4))
    """
    least = (output - 1) * stride + effective_kernel(kernel, dilation) - size
    return range(max(0, least), max(0, least + stride))


def conv_transpose_padding_total(
    size: Size, output: Size, kernel: Size, stride: Size = 1, dilation: Size = 1, output_padding: Size = 0
) -> Size:
    """The total ``pad_lo + pad_hi`` with which a transposed convolution has the given output size.

    ``P = (n - 1) s + t + 1 + output_padding - o``: `conv_transpose_output_size` (Dumoulin & Visin, relationship 14)
    solved for it. Padding only takes away here, so a larger output than without it raises ``ValueError``.

    Examples
    --------
    >>> conv_transpose_padding_total(14, 28, 4, 2)
    2
    """
    most = conv_transpose_output_size(size, kernel, stride, 0, 0, dilation, output_padding)
    if output > most:
        raise ValueError(f"no padding gives {output}: without any the output has {most}, and padding takes away")
    return most - output


def split_padding(total: Size) -> tuple[Size, Size]:
    """Split a total into ``(pad_lo, pad_hi)``; an odd element lies after the input, as in torch's ``"same"``.

    Examples
    --------
    >>> split_padding(4), split_padding(3)
    ((2, 2), (1, 2))
    """
    return total // 2, ceil_div(total, 2)
