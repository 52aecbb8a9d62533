"""Convolutions of 8-bit numbers, int8 or float8_e4m3fn, with scales: inference of quantised networks."""

from __future__ import annotations

from typing import Any

from ..dispatch import run, scaled_call
from ..normalize import ScaledExtras, dtype_name
from ..ops import operators
from .conv import Array, Ints, Padding

__all__ = ["scaled_conv1d", "scaled_conv2d", "scaled_conv3d"]


def _convolve(
    op: str, ndim: int, input: Array, weight: Array, bias: Array | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, given: tuple[Any, ...],
) -> Array:  # fmt: skip
    input_scale, weight_scale, output_scale, out_dtype, activation, backend = given
    named = dtype_name(op, out_dtype)
    extras = ScaledExtras(input_scale, weight_scale, output_scale, named, activation, backend)
    ops = operators(input)
    if ops is not None:
        return ops.ops_scaled.convolution(op, ndim, input, weight, bias, stride, padding, dilation, groups, extras)
    return run(scaled_call(op, ndim, input, weight, bias, stride, padding, dilation, groups, extras))


def scaled_conv1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    input_scale: Any,
    weight_scale: Any,
    output_scale: Any = None,
    out_dtype: Any = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Array:
    """Convolve a sequence of 8-bit numbers with scales: :func:`scaled_conv2d` along one axis.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, weight ``(K, C/G, S)``, bias ``(K,)``; result ``(N, K, Q)`` or ``(K,
    Q)``. Arguments and errors: see :func:`scaled_conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.array([[[1, 2, 3, 4]]], np.int8), np.array([[[1, -1]]], np.int8)
    >>> gpuconv.scaled_conv1d(x, w, input_scale=0.5, weight_scale=2.0)
    array([[[-1., -1., -1.]]], dtype=float32)
    """
    extras = (input_scale, weight_scale, output_scale, out_dtype, activation, backend)
    return _convolve("scaled_conv1d", 1, input, weight, bias, stride, padding, dilation, groups, extras)


def scaled_conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    input_scale: Any,
    weight_scale: Any,
    output_scale: Any = None,
    out_dtype: Any = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Array:
    """Convolve an image of 8-bit numbers, each of which stands for itself times a scale.

    Computes ``activation(conv(input, weight) * (input_scale * weight_scale) + bias)``, which
    ``torch.nn.functional.conv2d`` has for no 8-bit type on a GPU. Products are summed in 32 bits: those of int8 in
    int32, exactly (sums of more than 131071 products may leave int32, and wrap around as it does), those of float8 in
    float32. The rest is computed in float32, and rounded once, to `out_dtype`. (Where the product with the scales and
    the sum with the bias are one instruction, as on a GPU, it rounds once for both. Tensor cores of Hopper keep fewer
    bits than float32 within the 128 products of float8, at most, that they add up in one go.)

    8-bit results are divided by `output_scale`, rounded to nearest, ties to even, and saturated: to [-128, 127], where
    NaN becomes 0, or to [-448, 448], where NaN stays NaN. Forward only: nothing here has a gradient. On torch tensors
    it is an operator to ``torch.compile`` and ``torch.export``.

    Parameters
    ----------
    input
        ``(N, C, H, W)`` or unbatched ``(C, H, W)``, int8, or torch's float8_e4m3fn (which NumPy and CuPy do not have);
        contiguous, channels-last or any strides. Padding is the number 0.
    weight
        ``(K, C/G, R, S)``, of the dtype and device of `input`.
    bias
        ``(K,)``, float32, float16 or bfloat16, or None.
    stride, padding, dilation, groups
        As in :func:`conv2d`.
    input_scale
        What an element of `input` is multiplied by: a number, or a float32 array of one element.
    weight_scale
        The same of `weight`; a float32 array may also be ``(K,)``, with a scale for each filter.
    output_scale
        What an 8-bit result is multiplied by to stand for itself: as `input_scale`. Other results have none.
    out_dtype
        Type of the result: ``"bfloat16"``, ``"float16"``, ``"float32"`` or the type of `input`, by name or as the
        library has it; default: bfloat16 for torch tensors, float32 for other arrays, which have
        no bfloat16 here.
    activation
        As in :func:`conv2d`, before the division by `output_scale`.
    backend
        As in :func:`conv2d`.

    Returns
    -------
    array
        ``(N, K, P, Q)`` or unbatched, as :func:`conv2d` has it.

    Raises
    ------
    RuntimeError
        For sizes, dtypes and devices that do not fit together, and for a tensor that requires a gradient while
        gradients are recorded. `NoSolverError` is one: GPUs before compute capability 8.9 do not multiply float8.
    TypeError
        For an argument of the wrong type or a mix of array kinds.
    ValueError
        For an unknown out_dtype, activation or backend, and for an `output_scale` that is missing or too much.
    NotImplementedError
        For an input that is of no 8-bit type, or of unsigned numbers.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.full((1, 1, 4, 4), 7, np.int8), np.ones((2, 1, 3, 3), np.int8)
    >>> scales = {"input_scale": 0.5, "weight_scale": np.array([1, 2], np.float32)}
    >>> gpuconv.scaled_conv2d(x, w, **scales, output_scale=0.5, out_dtype="int8")[0, :, 0, 0]
    array([ 63, 126], dtype=int8)
    """
    extras = (input_scale, weight_scale, output_scale, out_dtype, activation, backend)
    return _convolve("scaled_conv2d", 2, input, weight, bias, stride, padding, dilation, groups, extras)


def scaled_conv3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    input_scale: Any,
    weight_scale: Any,
    output_scale: Any = None,
    out_dtype: Any = None,
    activation: str | None = None,
    backend: str | None = None,
) -> Array:
    """Convolve a volume of 8-bit numbers with scales: :func:`scaled_conv2d` along three axes.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, weight ``(K, C/G, T, R, S)``, bias ``(K,)``; result
    ``(N, K, O, P, Q)`` or ``(K, O, P, Q)``. Arguments and errors: see :func:`scaled_conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 2, 4, 4, 4), np.int8), np.ones((5, 2, 3, 3, 3), np.int8)
    >>> gpuconv.scaled_conv3d(x, w, padding=1, input_scale=1.0, weight_scale=1.0).shape
    (1, 5, 4, 4, 4)
    """
    extras = (input_scale, weight_scale, output_scale, out_dtype, activation, backend)
    return _convolve("scaled_conv3d", 3, input, weight, bias, stride, padding, dilation, groups, extras)
