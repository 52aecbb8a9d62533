"""How many bytes the NumPy convolutions allocate beyond operands and result, from the sizes alone.

The solvers size their chunks by these bounds and state them in their plans. A bound adds up every array that may be
alive at once: copies in the compute type, padded slabs, columns, products, and the temporaries of the epilogue and of
rounding. What a loop allocates counts twice, as the names of one round hold on to their arrays until the next is built.
Operands that NumPy cannot read as they lie (foreign byte order, lazily conjugated by torch) are copied beside that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .common import compute_dtype

__all__ = ["BOUNDS", "Chunk", "largest_box", "result_domain"]

_OVERHEAD = 64 << 10
"""Python objects of a call: slices, views, boxes."""

_FLOAT_OBJECT = 40
"""A Python float and the reference to it, which the error function needs per element."""


def largest_box(sizes: Sequence[int], positions: int) -> tuple[int, ...]:
    """Return the extents of the largest box that :func:`.common.boxes` cuts."""
    extents = list(sizes)
    for axis, size in enumerate(sizes):
        length = max(1, min(size, positions // max(prod(sizes[axis + 1 :]), 1)))
        extents[axis] = ceil_div(size, ceil_div(size, length)) if size else 0
        if length > 1:
            break
    return tuple(extents)


def _widening(problem: ConvProblem) -> int:
    """Return the bytes per element while an operand is turned into its compute type.

    bfloat16 goes through two copies, float8 through a table, to which indices are of 64 bits.
    """
    return {"bfloat16": 8, "float16": 4, "float8_e4m3fn": 8}.get(problem.dtype, 0)


def _weights(problem: ConvProblem, block: int) -> int:
    """Return the bytes of a block of weights in their compute type, conjugated, and ordered for a product."""
    size = compute_dtype(problem.dtype).itemsize
    conjugated = size if problem.dtype.startswith("complex") else 0
    return block * (_widening(problem) + conjugated + 2 * size)


def _storing(problem: ConvProblem, epilogue: bool) -> int:
    """Return the bytes per element of the result between the sum and the store, the sum included."""
    size = compute_dtype(problem.dtype).itemsize
    temporaries = 24 if problem.dtype == "bfloat16" else size
    if epilogue:
        temporaries += _widening(problem) + (6 * size if problem.activation else 0)
        temporaries += _FLOAT_OBJECT if problem.activation == "gelu" else 0
        temporaries += size if problem.rounding == "torch" else 0
    return size + temporaries


def _slab(problem: ConvProblem, channels: int, extents: Sequence[int]) -> int:
    """Return the bytes of the padded input that a box of outputs reads, as gathered and in its compute type."""
    axes = zip(extents, problem.stride, problem.dilation, problem.kernel, strict=True)
    box = [max(0, e - 1) * s + d * (k - 1) + 1 for e, s, d, k in axes]
    size = compute_dtype(problem.dtype).itemsize
    gathered = itemsize(problem.dtype) if problem.padding_mode != "zeros" else 0
    return channels * prod(box) * (size + _widening(problem) + gathered)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of work of the NumPy convolutions: some groups, parts of their channels, and a box of positions.

    Channels of x and of y of a group are cut into `c_parts` and `k_parts`. `cells` are the positions of the result of a
    data gradient that are summed before they are stored.
    """

    positions: int
    groups: int = 1
    c_parts: int = 1
    k_parts: int = 1
    cells: int = 1

    def channels(self, problem: ConvProblem) -> tuple[int, int]:
        """Return the most channels of x and of y that a piece has."""
        c, k = problem.c // problem.groups, problem.k // problem.groups
        return self.groups * ceil_div(c, self.c_parts), self.groups * ceil_div(k, self.k_parts)


def _block(problem: ConvProblem, chunk: Chunk) -> int:
    """Return the weights of a piece; pieces of several groups have those of all groups, which are one array."""
    c, k = chunk.channels(problem)
    return prod(problem.w_shape) if chunk.groups > 1 else c * k * prod(problem.kernel)


def fprop_bytes(problem: ConvProblem, chunk: Chunk) -> int:
    """Return the bound for a forward pass."""
    c, k = chunk.channels(problem)
    extents = largest_box(problem.output_size, chunk.positions)
    size = compute_dtype(problem.dtype).itemsize
    columns = 2 * c * prod(problem.kernel) * prod(extents) * size
    stored = k * prod(extents) * (size * (1 + (chunk.c_parts > 1)) + _storing(problem, True))
    return _OVERHEAD + _weights(problem, _block(problem, chunk)) + _slab(problem, c, extents) + columns + stored


def wgrad_bytes(problem: ConvProblem, chunk: Chunk) -> int:
    """Return the bound for a weight gradient."""
    c, k = chunk.channels(problem)
    extents = largest_box(problem.output_size, chunk.positions)
    size = compute_dtype(problem.dtype).itemsize
    conjugated = problem.dtype.startswith("complex")
    columns = (2 + conjugated) * c * prod(problem.kernel) * prod(extents) * size  # a tap's products are less
    dy = 2 * k * prod(extents) * (size + _widening(problem))
    sums = (_block(problem, chunk) + problem.k) * (size + _storing(problem, False))
    return _OVERHEAD + _slab(problem, c, extents) + columns + dy + sums


def dgrad_bytes(problem: ConvProblem, chunk: Chunk) -> int:
    """Return the bound for a data gradient. Padding modes other than zeros sum into whole images."""
    c, k = chunk.channels(problem)
    size = compute_dtype(problem.dtype).itemsize
    folded = problem.padding_mode != "zeros"
    cells = min(chunk.cells, prod(result_domain(problem)))
    positions = min(chunk.positions, prod(problem.output_size))
    target = c * cells * (size + (2 * size if folded else _storing(problem, True)))
    columns = c * prod(problem.kernel) * positions * size
    dy = k * positions * (2 * size + _widening(problem))
    return _OVERHEAD + _weights(problem, _block(problem, chunk)) + target + columns + dy + c * plane_bytes(problem)


def plane_bytes(problem: ConvProblem) -> int:
    """Return what a channel of the image takes that a data gradient sums into: nothing, unless padding shows it."""
    if problem.kind not in ("dgrad", "transposed") or problem.padding_mode == "zeros":
        return 0
    return prod(problem.input_size) * (compute_dtype(problem.dtype).itemsize + _storing(problem, False))


def result_domain(problem: ConvProblem) -> tuple[int, ...]:
    """Return the sizes of what a data gradient is summed into: the input, padded unless the padding is zeros."""
    if problem.padding_mode == "zeros":
        return problem.input_size
    axes = zip(problem.input_size, problem.pad_lo, problem.pad_hi, strict=True)
    return tuple(i + lo + hi for i, lo, hi in axes)


BOUNDS = {"fprop": fprop_bytes, "wgrad": wgrad_bytes, "dgrad": dgrad_bytes, "transposed": dgrad_bytes}
"""The bound of each pass."""
