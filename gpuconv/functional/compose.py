"""What functions that are composed of others need of arrays, in the library that the arrays are of.

Nothing here computes a convolution: arrays are joined, masked, cast and shown with another axis.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..arrays import CHANNELS_LAST, CONTIGUOUS, TORCH, ArrayKind
from ..dispatch import Explanation
from ..dispatch import explaining as _explaining
from ..normalize import is_compiling, memory_format

__all__ = [
    "as_image",
    "cast",
    "explaining",
    "joined",
    "library",
    "lines_last",
    "masked",
    "placeholder",
    "result_of",
    "zero",
    "zeros",
]

Array = Any


def library(kind: ArrayKind) -> Any:
    """Return the module of a kind of array; ``concatenate``, ``stack``, ``where`` and more are the same in all."""
    return sys.modules[kind.name]


def explaining() -> bool:
    """Tell whether calls are explained, not run; never while torch traces, which cannot follow the question."""
    return not is_compiling() and _explaining()


def placeholder(kind: ArrayKind, like: Array, shape: Sequence[int], last: bool) -> Array:
    """Return an array of the dtype and device of `like`, for explanations, which look at no values."""
    return kind.empty(shape, kind.dtype(like), kind.device(like), CHANNELS_LAST if last else CONTIGUOUS)


def result_of(kind: ArrayKind, explanation: Explanation, like: Array) -> Array:
    """Return an array as the explained call of `like` would return, without its values: for what comes after it."""
    problem = explanation.steps[-1].problem
    found = kind.empty(problem.result_shape, problem.dtype, problem.device, problem.result_format)
    return kind.drop_batch(found) if len(kind.shape(like)) < len(problem.result_shape) else found


def zeros(kind: ArrayKind, like: Array, shape: Sequence[int]) -> Array:
    """Return zeros of the dtype and on the device of `like`."""
    if kind is TORCH:
        return like.new_zeros(tuple(shape))
    array = kind.empty(shape, kind.dtype(like), kind.device(like), CONTIGUOUS)
    array[...] = 0
    return array


def zero(kind: ArrayKind, like: Array) -> Any:
    """Return a zero that leaves the dtype of `like` as it is; torch takes a number, which needs no launch."""
    return 0 if kind is TORCH else zeros(kind, like, ())


def cast(kind: ArrayKind, array: Array, dtype: Any) -> Array:
    """Return an array as one of a type of its library; itself if it is of that."""
    if array is None or array.dtype == dtype:
        return array
    return array.to(dtype) if kind is TORCH else array.astype(dtype)


def lines_last(kind: ArrayKind, array: Array) -> bool:
    """Tell whether an ``(N, C, W)`` array has its channels innermost, as torch decides for an image of one line."""
    return memory_format(kind.shape(array), kind.strides(array)) == CHANNELS_LAST


def joined(kind: ArrayKind, parts: Sequence[Array], last: bool) -> Array:
    """Join ``(N, C, W)`` arrays along W, into memory of their own: with `last`, channels innermost."""
    if last:
        return library(kind).concatenate([part.swapaxes(1, 2) for part in parts], axis=1).swapaxes(1, 2)
    return library(kind).concatenate(list(parts), axis=2)


def masked(kind: ArrayKind, mask: Array, array: Array, last: bool) -> Array:
    """Return an ``(N, C, W)`` array with zeros where a mask ``(N, W)`` is false, in the format that it has."""
    where, nothing = library(kind).where, zero(kind, array)
    if last:
        return where(mask[:, :, None], array.swapaxes(1, 2), nothing).swapaxes(1, 2)
    return where(mask[:, None], array, nothing)


def as_image(kind: ArrayKind, array: Array) -> Array:
    """Show an ``(N, C, W)`` array with channels innermost as the image ``(N, C, 1, W)`` in that format.

    An axis that NumPy's None puts in has a stride of 0, which is no step over the lines of such an image.
    """
    if kind is TORCH:
        return array.unsqueeze(2)
    n, c, w = array.shape
    return array.swapaxes(1, 2).reshape(n, 1, w, c).swapaxes(1, 3).swapaxes(2, 3)
