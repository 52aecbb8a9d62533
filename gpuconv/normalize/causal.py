"""Arguments of causal convolutions, checked. Every user error of these functions is raised here.

Exception classes are those of the compiled extension ``causal-conv1d`` where it refuses the same: ``RuntimeError`` for
shapes, types and devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..arrays import ArrayKind, common_kind
from ..errors import invalid
from .common import same_device
from .conv import ACTIVATIONS, FLOATS, check_choice

__all__ = ["CAUSAL_ACTIVATIONS", "Sequences", "activation_of", "sequence_arguments", "update_arguments"]

CAUSAL_ACTIVATIONS = (*ACTIVATIONS, "swish")

_INTEGERS = ("int32", "int64")


class Sequences(NamedTuple):
    """The checked sizes of a call. `mixed`: x, weight and bias are of more than one type."""

    kind: ArrayKind
    batch: int
    dim: int
    seqlen: int
    width: int
    mixed: bool


def activation_of(op: str, activation: str | None) -> str | None:
    """Return the activation by its name in an epilogue: ``"swish"`` is ``"silu"``."""
    if activation is None:
        return None
    check_choice(op, "activation", activation, CAUSAL_ACTIVATIONS)
    return "silu" if activation == "swish" else activation


def _check_shape(op: str, kind: ArrayKind, argument: str, array: Any, shape: tuple[int, ...], meaning: str) -> None:
    if array is not None and kind.shape(array) != shape:
        raise invalid(op, argument, kind.shape(array), f"of shape {shape}, {meaning}")


def _check_integers(op: str, kind: ArrayKind, argument: str, array: Any, shape: tuple[int, ...], meaning: str) -> None:
    _check_shape(op, kind, argument, array, shape, meaning)
    if array is not None and kind.dtype(array) not in _INTEGERS:
        raise invalid(op, f"dtype of {argument}", kind.dtype(array), "int32 or int64")


def _weight_sizes(op: str, kind: ArrayKind, weight: Any, dim: int) -> int:
    """Check the weight, ``(dim, width)`` or as a convolution's ``(dim, 1, width)``; return the width."""
    shape = kind.shape(weight)
    if len(shape) == 3 and shape[1] == 1:
        shape = (shape[0], shape[2])
    if len(shape) != 2 or shape[0] != dim or shape[1] < 1:
        required = f"of shape ({dim}, width) or ({dim}, 1, width) with a width of at least 1"
        raise invalid(op, "weight", kind.shape(weight), required)
    return shape[1]


def _sizes(op: str, kind: ArrayKind, x: Any, weight: Any, bias: Any) -> Sequences:
    """Check x as ``(batch, dim, seqlen)`` or ``(batch, dim)``, which is one position, the weight and the bias."""
    shape = kind.shape(x)
    batch, dim = shape[:2]
    if dim == 0:
        raise invalid(op, "x", shape, "of at least one channel, its second axis")
    width = _weight_sizes(op, kind, weight, dim)
    _check_shape(op, kind, "bias", bias, (dim,), "one element per channel")
    dtypes = {
        name: kind.dtype(array) for name, array in (("x", x), ("weight", weight), ("bias", bias)) if array is not None
    }
    for name, dtype in dtypes.items():
        if dtype not in FLOATS[:4]:
            raise invalid(op, f"dtype of {name}", dtype, "one of " + ", ".join(FLOATS[:4]), NotImplementedError)
    return Sequences(kind, batch, dim, shape[2] if len(shape) == 3 else 1, width, len(set(dtypes.values())) > 1)


def sequence_arguments(
    op: str, x: Any, weight: Any, bias: Any, initial_state: Any, return_state: bool, seq_idx: Any
) -> Sequences:
    """Check the arguments of a convolution of whole sequences. Shapes and errors: :func:`gpuconv.causal_conv1d`."""
    named = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state, "seq_idx": seq_idx}
    kind = common_kind(op, named, ("x", "weight"))
    if len(kind.shape(x)) != 3:
        raise invalid(op, "x", kind.shape(x), "3-D, (batch, dim, seqlen)")
    sizes = _sizes(op, kind, x, weight, bias)
    if seq_idx is not None:
        if initial_state is not None:
            raise ValueError(
                f"{op}: initial_state must be None with seq_idx: each sequence begins at its first element"
            )
        if return_state:
            raise ValueError(f"{op}: return_state must be False with seq_idx: a row has more than one last state")
        _check_integers(op, kind, "seq_idx", seq_idx, (sizes.batch, sizes.seqlen), "(batch, seqlen)")
    if initial_state is not None:
        shape = (sizes.batch, sizes.dim, sizes.width - 1)
        _check_shape(op, kind, "initial_state", initial_state, shape, "(batch, dim, width - 1)")
        _check_state_dtype(op, kind, "initial_state", initial_state, x)
    same_device(op, kind, named)
    return sizes


def _check_state_dtype(op: str, kind: ArrayKind, argument: str, state: Any, x: Any) -> None:
    if kind.dtype(state) != kind.dtype(x):
        raise invalid(op, f"dtype of {argument}", kind.dtype(state), f"{kind.dtype(x)}, the dtype of x")


def update_arguments(
    op: str, x: Any, state: Any, weight: Any, bias: Any, cache_seqlens: Any, conv_state_indices: Any
) -> Sequences:
    """Check the arguments of a step of decoding. Shapes and errors: :func:`gpuconv.causal_conv1d_update`."""
    named = {"x": x, "state": state, "weight": weight, "bias": bias}
    named |= {"cache_seqlens": cache_seqlens, "conv_state_indices": conv_state_indices}
    kind = common_kind(op, named, ("x", "state", "weight"))
    if len(kind.shape(x)) not in (2, 3):
        raise invalid(op, "x", kind.shape(x), "2-D, (batch, dim), or 3-D, (batch, dim, seqlen)")
    sizes = _sizes(op, kind, x, weight, bias)
    shape, rows = kind.shape(state), sizes.batch if conv_state_indices is None else None
    if len(shape) != 3 or shape[1] != sizes.dim or (rows is not None and shape[0] != rows):
        required = f"of shape ({'entries' if rows is None else rows}, {sizes.dim}, state_len)"
        raise invalid(op, "state", shape, required)
    if shape[2] < sizes.width - 1:
        raise invalid(op, "state", shape, f"of a state_len, its last axis, of at least width - 1 = {sizes.width - 1}")
    if rows is None and shape[0] == 0 and sizes.batch:
        raise invalid(op, "state", shape, "of at least one entry, which conv_state_indices choose from")
    _check_state_dtype(op, kind, "state", state, x)
    if isinstance(state, np.ndarray) and not state.flags.writeable:
        raise ValueError(f"{op}: state must be writeable, it is updated in place; but got a read-only array")
    for argument in ("cache_seqlens", "conv_state_indices"):
        _check_integers(op, kind, argument, named[argument], (sizes.batch,), "(batch,)")
    same_device(op, kind, named)
    return sizes
