"""Into which pieces the NumPy convolutions cut their work, so that they keep under the workspace limit."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod

from ...problem import ConvProblem
from ...shapes import ceil_div
from .common import compute_dtype, workspace_target
from .workspace import BOUNDS, Chunk, largest_box, plane_bytes, result_domain

__all__ = ["column_chunk", "tap_chunk"]

_COLUMN_BYTES = 8 << 20
"""Size of one chunk of columns: small enough for the last cache between the copy and the product, and large enough that
NumPy asks for huge pages (from 4 MiB on); without them page faults can take longer than the copy."""

_LEAST = 256 << 10
"""No limit makes pieces smaller than so many bytes: handling them would take far longer than their sums. What cannot be
cut, a channel of an image that is summed into, does not count."""

_FEW = 32
"""Positions below which products are not made smaller, as long as something else can be cut."""

_TWICE = 1.5
"""How often an output of a data gradient may be computed on average."""

_TAP_BYTES = 256 << 10
"""Size of one chunk of the taps solvers that need no columns: accumulator and product stay in the L2 cache."""


@lru_cache(maxsize=1024)
def column_chunk(problem: ConvProblem, limit: int) -> Chunk:
    """Return the pieces of the solvers around columns, whose bound is under `limit` where that is possible.

    A data gradient is cut along the channels of x first, as its products lose nothing by it; the other passes along
    those of y. Then come positions, and last the channels that are summed over.
    """
    limit = max(limit, _LEAST + plane_bytes(problem))
    bound, scatters = BOUNDS[problem.kind], problem.kind in ("dgrad", "transposed")
    c, k = problem.c // problem.groups, problem.k // problem.groups
    first, last = ("c_parts", "k_parts") if scatters else ("k_parts", "c_parts")
    most = {"c_parts": max(c, 1), "k_parts": max(k, 1)}
    chunk = _with_positions(problem, Chunk(1))
    while bound(problem, replace(_least_of(problem, chunk), **{first: most[first]})) > limit:
        parts = getattr(chunk, last)
        if parts >= most[last]:
            break
        chunk = _with_positions(problem, replace(chunk, **{last: min(2 * parts, most[last])}))
    while bound(problem, chunk) > limit:
        parts = getattr(chunk, first)
        smaller = [replace(chunk, **{first: min(2 * parts, most[first])})] if parts < most[first] else []
        if chunk.positions > 1 or chunk.cells > 1:
            smaller.append(replace(chunk, positions=ceil_div(chunk.positions, 2), cells=ceil_div(chunk.cells, 2)))
        if not smaller:
            break
        chunk = min(smaller, key=lambda each: bound(problem, each))
    return chunk


def _least_of(problem: ConvProblem, chunk: Chunk) -> Chunk:
    """Return `chunk` with as few positions, and cells, as products are worth."""
    cells = min(chunk.cells, _FEW * prod(problem.stride))
    return replace(chunk, positions=min(chunk.positions, _FEW), cells=cells)


def _with_positions(problem: ConvProblem, chunk: Chunk) -> Chunk:
    """Return `chunk` with as many positions as columns of a good size have, of a data gradient with its cells.

    The cells of a data gradient are so many that few outputs belong to two boxes of them: those are computed twice.
    """
    size = compute_dtype(problem.dtype).itemsize
    scatters = problem.kind in ("dgrad", "transposed")
    while True:
        c, k = chunk.channels(problem)
        rows = c * prod(problem.kernel) + k
        if problem.padding_mode != "zeros":
            rows += c * prod(problem.stride)
        positions = max(1, min(_COLUMN_BYTES, workspace_target()) // max(1, rows * size))
        if not scatters:
            return replace(chunk, positions=positions)
        cells = max(positions * prod(problem.stride), _COLUMN_BYTES // max(1, 4 * c * size))
        per_group = problem.c // problem.groups
        if chunk.c_parts >= per_group or _computed_twice(problem, cells) <= _TWICE:
            break
        chunk = replace(chunk, c_parts=min(2 * chunk.c_parts, per_group))
    while cells < prod(result_domain(problem)) and _computed_twice(problem, cells) > _TWICE:
        cells *= 2
    return replace(chunk, positions=positions, cells=cells)


def _computed_twice(problem: ConvProblem, cells: int) -> float:
    """Return how often an output of a data gradient is computed, where the result is cut into boxes of `cells`."""
    often = 1.0
    domain = result_domain(problem)
    for axis, length in enumerate(largest_box(domain, cells)):
        if 0 < length < domain[axis]:
            reach, stride = problem.dilation[axis] * (problem.kernel[axis] - 1), problem.stride[axis]
            reached = min(problem.output_size[axis], (length + reach - 1) // stride + 1)
            often *= max(1.0, reached * ceil_div(domain[axis], length) / max(problem.output_size[axis], 1))
    return often


@lru_cache(maxsize=1024)
def tap_chunk(problem: ConvProblem, limit: int) -> Chunk:
    """Return the pieces of the taps solvers: several groups, or some positions of one."""
    budget, per_position, sizes = _TAP_BYTES, 1, problem.output_size
    if problem.kind == "fprop":  # columns and their product
        budget = _COLUMN_BYTES // 2 // (prod(problem.kernel) + problem.k // problem.groups)
    elif problem.kind != "wgrad":
        per_position, sizes = prod(problem.stride), problem.input_size
    cells = max(1, budget // compute_dtype(problem.dtype).itemsize)
    while True:
        block = max(1, min(problem.groups, cells // max(1, prod(sizes))))
        positions = max(1, cells // block // per_position)
        chunk = Chunk(positions, block, cells=max(1, positions * prod(problem.stride)))
        if BOUNDS[problem.kind](problem, chunk) <= max(limit, _LEAST + plane_bytes(problem)) or cells == 1:
            return chunk
        cells //= 2
