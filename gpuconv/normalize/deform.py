"""Arguments of deformable convolutions to calls. Every user error of theirs is raised here."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ..arrays import ArrayKind, common_kind
from ..errors import invalid
from ..problem import Call, ConvProblem, DeformProblem
from .common import same_device
from .conv import FLOATS, Extras, check_dtypes, check_rank, conv_call

__all__ = ["DEFORM_DTYPES", "check_offsets", "deform_call", "groups_of", "offset_groups_of"]

DEFORM_DTYPES = FLOATS[:4]
"""Types of every array: the real floats."""

Shape = Sequence[Any]


def groups_of(op: str, channels: Any, w_shape: Shape) -> Any:
    """Return the groups of a convolution of so many channels with a weight.

    Raises
    ------
    RuntimeError
        If the channels of the weight do not divide those of the input.
    """
    per_group = w_shape[1]
    if isinstance(per_group, int) and per_group == 0:
        if isinstance(channels, int) and channels == 0:
            return 1
        raise invalid(op, "weight", tuple(w_shape), f"of a second axis that divides the input's {channels} channels")
    if channels % per_group:
        required = f"of a second axis that divides the input's {channels} channels (they make the groups)"
        raise invalid(op, "weight", tuple(w_shape), required)
    return channels // per_group


def offset_groups_of(op: str, offset: Shape, kernel: Shape) -> Any:
    """Return the groups of offsets: channels of `offset` (of a batch) over taps and axes.

    Raises
    ------
    RuntimeError
        If the number of channels is no positive multiple of those, or the filter has no taps.
    """
    if any(isinstance(size, int) and size < 1 for size in kernel):
        raise invalid(op, "weight", f"one of {tuple(kernel)}", "of a kernel size of at least 1 along every axis")
    step = len(kernel) * prod(kernel)
    if offset[1] % step or offset[1] // step < 1:
        required = f"of a multiple of {step} channels ({len(kernel)} axes x {prod(kernel)} taps)"
        raise invalid(op, "offset", tuple(offset), required)
    return offset[1] // step


def check_offsets(op: str, problem: DeformProblem, offset: Shape, mask: Shape | None) -> None:
    """Check the shapes of ``offset`` and ``mask``, of a batch, against what the problem has.

    Raises
    ------
    RuntimeError
        If one is different, or the groups of offsets do not divide the channels of the input.
    """
    groups, conv = problem.offset_groups, problem.conv
    if conv.c % groups:
        required = f"of groups that divide the input's {conv.c} channels (it has {groups} groups)"
        raise invalid(op, "offset", tuple(offset), required)
    for name, found, wanted in (("offset", offset, problem.offset_shape), ("mask", mask, problem.mask_shape)):
        if found is not None and tuple(found) != wanted:
            sizes = f"the output's size {conv.output_size}"
            required = f"of shape {wanted} (batch, channels of {groups} groups, {sizes})"
            raise invalid(op, name, tuple(found), required)


def _batched(kind: ArrayKind, array: Any, unbatched: bool) -> Any:
    return kind.add_batch(array) if unbatched and array is not None else array


def deform_call(
    op: str, ndim: int, input: Any, offset: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, mask: Any, backend: str | None,
) -> Call:  # fmt: skip
    """Check the arguments of a deformable convolution and describe it; see :func:`gpuconv.deform_conv2d`."""
    named = {"input": input, "offset": offset, "mask": mask, "weight": weight, "bias": bias}
    kind = common_kind(op, named, ("input", "offset", "weight"))
    check_dtypes(op, kind, {"input": input}, DEFORM_DTYPES)
    unbatched = check_rank(op, "input", kind.shape(input), ndim, True)
    check_rank(op, "weight", kind.shape(weight), ndim, False)
    for name in ("offset", "mask"):
        array = named[name]
        if array is not None and check_rank(op, name, kind.shape(array), ndim, True) != unbatched:
            required = "without a batch axis, as input is" if unbatched else "with a batch axis, as input is"
            raise invalid(op, name, kind.shape(array), required)
    groups = groups_of(op, kind.shape(input)[-ndim - 1], kind.shape(weight))
    extras = Extras(backend=backend)
    call = conv_call(op, ndim, input, weight, bias, stride, padding, dilation, groups, extras, DEFORM_DTYPES)
    check_dtypes(op, kind, named, DEFORM_DTYPES)
    same_device(op, kind, named)
    conv = call.problem
    assert isinstance(conv, ConvProblem)
    shapes = {
        name: (1,) * unbatched + kind.shape(named[name]) for name in ("offset", "mask") if named[name] is not None
    }
    problem = DeformProblem(op, conv, offset_groups_of(op, shapes["offset"], conv.kernel), mask is not None)
    check_offsets(op, problem, shapes["offset"], shapes.get("mask"))
    arrays = {
        "x": call.arrays["x"], "offset": _batched(kind, offset, unbatched), "mask": _batched(kind, mask, unbatched),
        "w": call.arrays["w"], "bias": call.arrays["bias"],
    }  # fmt: skip
    return Call(problem, arrays, kind, unbatched, backend)
