"""How many bytes the NumPy convolutions allocate beyond operands and result, from the sizes alone.

The solvers size their chunks by these bounds and state them in their plans. A bound adds up every array that may be
alive at once: copies in the compute type, padded slabs, columns, products, and the temporaries of the epilogue and of
rounding. What a loop allocates counts twice, as the names of one round hold on to their arrays until the next is built.
Operands that NumPy cannot read as they lie (foreign byte order, lazily conjugated by torch) are copied beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...problem import ConvProblem, itemsize
from .common import compute_dtype

__all__ = ["dgrad_bytes", "fprop_bytes", "largest_box", "wgrad_bytes"]

_OVERHEAD = 64 << 10
"""Python objects of a call: slices, views, boxes."""

_FLOAT_OBJECT = 40
"""A Python float and the reference to it, which the error function needs per element."""


def largest_box(sizes: Sequence[int], positions: int) -> tuple[int, ...]:
    """Return the extents of the largest box that :func:`.numpy_common.boxes` cuts."""
    extents = list(sizes)
    for axis, size in enumerate(sizes):
        length = max(1, min(size, positions // max(prod(sizes[axis + 1 :]), 1)))
        extents[axis] = -(-size // -(-size // length)) if size else 0
        if length > 1:
            break
    return tuple(extents)


def _widening(problem: ConvProblem) -> int:
    """Return the bytes per element while an operand is turned into its compute type (bfloat16 through two copies)."""
    return {"bfloat16": 8, "float16": 4}.get(problem.dtype, 0)


def _weights(problem: ConvProblem) -> int:
    """Return the bytes of the weights in their compute type, conjugated, and one group's rows ordered for a product."""
    size = compute_dtype(problem.dtype).itemsize
    conjugated = size if problem.dtype.startswith("complex") else 0
    weights = prod(problem.w_shape)
    return weights * (_widening(problem) + conjugated) + 2 * weights // problem.groups * size


def _storing(problem: ConvProblem, epilogue: bool) -> int:
    """Return the bytes per element of the result between the sum and the store, the sum included."""
    size = compute_dtype(problem.dtype).itemsize
    temporaries = 24 if problem.dtype == "bfloat16" else size
    if epilogue:
        temporaries += _widening(problem) + (6 * size if problem.activation else 0)
        temporaries += _FLOAT_OBJECT if problem.activation == "gelu" else 0
    return size + temporaries


def _slab(problem: ConvProblem, channels: int, extents: Sequence[int]) -> int:
    """Return the bytes of the padded input that a box of outputs reads, as gathered and in its compute type."""
    axes = zip(extents, problem.stride, problem.dilation, problem.kernel, strict=True)
    box = [max(0, e - 1) * s + d * (k - 1) + 1 for e, s, d, k in axes]
    size = compute_dtype(problem.dtype).itemsize
    gathered = itemsize(problem.dtype) if problem.padding_mode != "zeros" else 0
    return channels * prod(box) * (size + _widening(problem) + gathered)


def fprop_bytes(problem: ConvProblem, groups: int, positions: int) -> int:
    """Return the bound for a forward pass that takes `groups` groups and a box of `positions` outputs at a time."""
    c, k = groups * (problem.c // problem.groups), groups * (problem.k // problem.groups)
    extents = largest_box(problem.output_size, positions)
    size = compute_dtype(problem.dtype).itemsize
    columns = 2 * c * prod(problem.kernel) * prod(extents) * size
    stored = k * prod(extents) * (size + _storing(problem, True))
    return _OVERHEAD + _weights(problem) + _slab(problem, c, extents) + columns + stored


def wgrad_bytes(problem: ConvProblem, groups: int, positions: int) -> int:
    """Return the bound for a weight gradient that takes `groups` groups and a box of `positions` outputs at a time."""
    c, k = groups * (problem.c // problem.groups), groups * (problem.k // problem.groups)
    extents = largest_box(problem.output_size, positions)
    size = compute_dtype(problem.dtype).itemsize
    conjugated = problem.dtype.startswith("complex")
    columns = (2 + conjugated) * c * prod(problem.kernel) * prod(extents) * size  # a tap's products are less
    dy = 2 * k * prod(extents) * (size + _widening(problem))
    sums = (prod(problem.w_shape) + problem.k) * (size + _storing(problem, False))
    return _OVERHEAD + _slab(problem, c, extents) + columns + dy + sums


def dgrad_bytes(problem: ConvProblem, groups: int, positions: int, parts: int = 1) -> int:
    """Return the bound for a data gradient that takes `groups` groups and `positions` outputs at a time.

    A box of the result holds ``positions * prod(stride)`` elements per channel. Padding modes other than zeros sum into
    whole images; `parts` cuts the input channels of a group.
    """
    c, k = groups * -(-problem.c // problem.groups // parts), groups * (problem.k // problem.groups)
    size = compute_dtype(problem.dtype).itemsize
    folded = problem.padding_mode != "zeros"
    axes = zip(problem.input_size, problem.pad_lo, problem.pad_hi, strict=True)
    padded = prod(i + lo + hi for i, lo, hi in axes)
    cells = min(max(1, positions * prod(problem.stride)), padded if folded else prod(problem.input_size))
    positions = min(positions, prod(problem.output_size))
    target = c * cells * (size + (2 * size if folded else _storing(problem, True)))
    columns = c * prod(problem.kernel) * positions * size
    dy = k * positions * (2 * size + _widening(problem))
    images = c * prod(problem.input_size) * (size + _storing(problem, False)) if folded else 0
    return _OVERHEAD + _weights(problem) + target + columns + dy + images
