"""Convolutions, with the signatures of ``torch.nn.functional`` and keyword-only extras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dispatch import conv_call, conv_transpose_call, run
from ..normalize import Extras
from ..ops import operators

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]

Array = Any
"""A ``torch.Tensor``, ``cupy.ndarray`` or ``numpy.ndarray``; all arrays of a call, and its result, are of one kind."""

Ints = int | Sequence[int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]
PadPairs = int | Sequence[int] | Sequence[Sequence[int]]


def _convolve(
    op: str, ndim: int, input: Array, weight: Array, bias: Array | None,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Array:  # fmt: skip
    ops = operators(input)
    if ops is not None:
        return ops.convolution(op, ndim, input, weight, bias, stride, padding, dilation, groups, extras)
    return run(conv_call(op, ndim, input, weight, bias, stride, padding, dilation, groups, extras))


def _convolve_transposed(op: str, ndim: int, input: Array, *arguments: Any) -> Array:
    ops = operators(input)
    if ops is not None:
        return ops.transposed_convolution(op, ndim, input, *arguments)
    return run(conv_transpose_call(op, ndim, input, *arguments))


def conv1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Convolve a sequence: ``torch.nn.functional.conv1d``, plus the extras of :func:`conv2d`.

    Shapes: input ``(N, C, W)`` or ``(C, W)``, weight ``(K, C/G, S)``, bias ``(K,)``; result ``(N, K, Q)`` or ``(K,
    Q)``. Arguments and errors: see :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv1d(np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 3)), padding="causal")
    array([[[0., 1., 3., 6., 9.]]])
    """
    extras = Extras(padding_mode, activation, residual, scale, shift, precision, backend, rounding)
    return _convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, extras)


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Convolve an image: ``torch.nn.functional.conv2d``, plus keyword-only extras.

    Computes ``activation((conv(input, weight) + bias) * scale + shift + residual)``; what is not given is left out.
    As everywhere in deep learning this is a cross-correlation: the filter is not flipped.

    On torch tensors it is differentiable to every order, follows autocast, and is an operator to ``torch.compile``,
    ``torch.export`` and the transforms of ``torch.func``. Where a gradient is recorded only the bias is fused: the rest
    of the epilogue runs in torch's elementwise operators.

    Parameters
    ----------
    input
        ``(N, C, H, W)`` or unbatched ``(C, H, W)``; contiguous, channels-last or any strides.
    weight
        ``(K, C/G, R, S)``, of the dtype and device of `input`.
    bias
        ``(K,)`` or None.
    stride, dilation
        Positive, one integer or one per spatial axis.
    padding
        Non-negative, one integer or one per spatial axis; pairs ``((lo, hi), ...)``; ``"valid"``; ``"same"`` (stride 1
        only, as torch); ``"same_upper"`` or ``"same_lower"`` (ONNX's, with any stride: the output has
        ``ceil(size / stride)`` elements); ``"causal"`` (``d (k - 1)`` in front and nothing behind, along every axis).
    groups
        Divides C and K.
    padding_mode
        ``"zeros"``, ``"reflect"`` (pads smaller than the input), ``"replicate"`` or ``"circular"`` (may wrap several
        times).
    activation
        ``"relu"``, ``"relu6"``, ``"hardswish"``, ``"silu"``, ``"gelu"``, ``"gelu_tanh"``, ``"sigmoid"`` or ``"tanh"``.
    residual
        Added before the activation; of the shape of the result.
    scale, shift
        ``(K,)``: an affine map per output channel, for example a folded batch normalisation.
    precision
        Products of float32 on a GPU: ``"ieee"``, ``"tf32"`` or ``"tf32x3"``; None follows
        ``torch.backends.cudnn.conv.fp32_precision`` (without torch: ieee). Other dtypes, and the NumPy backend, do not
        use it.
    rounding
        Of a 16-bit result with a bias or other extras: ``"fused"`` computes them in float32 and rounds once;
        ``"torch"`` rounds after the convolution and after each step, as torch's operators do one after another on a
        GPU, for results that are to agree with theirs. Gradients are the same. (Where gradients are recorded and
        inductor compiles, it fuses steps in float32 unless ``torch._inductor.config.emulate_precision_casts`` is set.)
    backend
        A backend (``"triton"``, ``"cupy"``, ``"numpy"``) or a solver id to force; None lets the dispatcher choose.

    Returns
    -------
    array
        ``(N, K, P, Q)`` or unbatched, with ``P = (H + pads - dilation * (R - 1) - 1) // stride + 1``; channels-last if
        input or weight is.

    Raises
    ------
    RuntimeError
        For sizes, dtypes and devices that do not fit together, as torch (`NoSolverError` is one).
    TypeError
        For an argument of the wrong type or a mix of array kinds.
    ValueError
        For an unknown padding_mode, activation, precision, rounding or backend.
    NotImplementedError
        For a dtype that torch does not convolve.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    >>> gpuconv.conv2d(x, w, padding=((1, 0), (0, 0))).tolist()
    [[[[6.0, 6.0], [9.0, 9.0], [9.0, 9.0]]]]
    """
    extras = Extras(padding_mode, activation, residual, scale, shift, precision, backend, rounding)
    return _convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, extras)


def conv3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Convolve a volume: ``torch.nn.functional.conv3d``, plus the extras of :func:`conv2d`.

    Shapes: input ``(N, C, D, H, W)`` or ``(C, D, H, W)``, weight ``(K, C/G, T, R, S)``, bias ``(K,)``; result
    ``(N, K, O, P, Q)`` or ``(K, O, P, Q)``. Arguments and errors: see :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv3d(np.ones((1, 2, 4, 4, 4)), np.ones((5, 2, 3, 3, 3)), stride=(1, 2, 2), padding=1).shape
    (1, 5, 4, 2, 2)
    """
    extras = Extras(padding_mode, activation, residual, scale, shift, precision, backend, rounding)
    return _convolve("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, extras)


def conv_transpose1d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: PadPairs = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Transposed convolution of a sequence: ``torch.nn.functional.conv_transpose1d``, with extras.

    Shapes: input ``(N, K, Q)`` or ``(K, Q)``, weight ``(K, C/G, S)``, bias ``(C,)``; result ``(N, C, W)`` or ``(C,
    W)``. Arguments, extras and errors: see :func:`conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv_transpose1d(np.ones((1, 1, 2)), np.ones((1, 1, 3)), stride=2)
    array([[[1., 1., 2., 1., 1.]]])
    """
    extras = Extras("zeros", activation, residual, scale, shift, precision, backend, rounding)
    geometry = (stride, padding, output_padding, groups, dilation, output_size)
    return _convolve_transposed("conv_transpose1d", 1, input, weight, bias, *geometry, extras)


def conv_transpose2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: PadPairs = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Transposed convolution of an image: ``torch.nn.functional.conv_transpose2d``, plus keyword-only extras.

    The gradient of :func:`conv2d` with respect to its input, as an operation of its own. Letters are those of that
    convolution: the argument here is its output, the result its input.

    Parameters
    ----------
    input
        ``(N, K, P, Q)`` or unbatched ``(K, P, Q)``.
    weight
        ``(K, C/G, R, S)``.
    bias
        ``(C,)`` or None.
    stride, dilation, groups
        As in :func:`conv2d`; note torch's order, `groups` before `dilation`.
    padding
        Non-negative, one integer, one per spatial axis, or pairs ``((lo, hi), ...)``; takes away from the result.
    output_padding
        Extra size at the high end, smaller than stride or dilation.
    output_size
        The wanted size of the result (spatial, or with batch and channels), instead of `output_padding`.
    activation, residual, scale, shift, precision, rounding, backend
        As in :func:`conv2d`.

    Returns
    -------
    array
        ``(N, C, H, W)`` or unbatched, with ``H = (P - 1) * stride - pads + dilation * (R - 1) + output_padding + 1``.

    Raises
    ------
    RuntimeError, TypeError, NotImplementedError
        As :func:`conv2d`.
    ValueError
        For an `output_size` that no `output_padding` reaches, and as :func:`conv2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3))
    >>> gpuconv.conv_transpose2d(x, w, stride=2, padding=1, output_size=(4, 4)).shape
    (1, 1, 4, 4)
    """
    extras = Extras("zeros", activation, residual, scale, shift, precision, backend, rounding)
    geometry = (stride, padding, output_padding, groups, dilation, output_size)
    return _convolve_transposed("conv_transpose2d", 2, input, weight, bias, *geometry, extras)


def conv_transpose3d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Ints = 1,
    padding: PadPairs = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    *,
    output_size: Ints | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    precision: str | None = None,
    rounding: str = "fused",
    backend: str | None = None,
) -> Array:
    """Transposed convolution of a volume: ``torch.nn.functional.conv_transpose3d``, with extras.

    Shapes: input ``(N, K, O, P, Q)`` or ``(K, O, P, Q)``, weight ``(K, C/G, T, R, S)``, bias ``(C,)``; result
    ``(N, C, D, H, W)`` or ``(C, D, H, W)``. Arguments, extras and errors: see :func:`conv_transpose2d`.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> gpuconv.conv_transpose3d(np.ones((1, 4, 2, 2, 2)), np.ones((4, 3, 2, 2, 2)), stride=2).shape
    (1, 3, 4, 4, 4)
    """
    extras = Extras("zeros", activation, residual, scale, shift, precision, backend, rounding)
    geometry = (stride, padding, output_padding, groups, dilation, output_size)
    return _convolve_transposed("conv_transpose3d", 3, input, weight, bias, *geometry, extras)
