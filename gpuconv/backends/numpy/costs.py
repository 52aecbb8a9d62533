"""How long the NumPy solvers take, from counts of what they do: calls of NumPy, elements that they move, and products.

The constants are those of one core of a server of 2026. Only orders of magnitude and the order of solvers count.
"""

from __future__ import annotations

from math import inf, isinf, prod

from ...problem import ConvProblem, DeformProblem, PoolProblem
from ...shapes import ceil_div
from .chunks import column_chunk, tap_chunk
from .common import compute_dtype, parts_per_axis
from .pool_tiles import tile_size
from .workspace import Chunk, result_domain

__all__ = ["columns_us", "deform_us", "pool_us", "taps_us"]

_BOX_US = 25.0
"""What a piece of work costs apart from its elements: views, slices, and the calls of NumPy on them."""

_TAP_US = 6.0
"""What a tap of a piece costs apart from its elements."""

_MATRIX_US = 1.0
"""What one of many matrices of a product costs apart from its elements."""

_COPIED_PER_US = 700.0
"""Elements that are copied into columns, or added from them."""

_MULTIPLIED_PER_US = 500.0
"""Elements that are multiplied by a factor and added, by a loop over views."""

_MOVED_PER_US = 4000.0
"""Bytes that are read or written once."""

_FLOPS_PER_US = {"float32": 50e3, "float64": 25e3, "complex64": 12e3, "complex128": 6e3}
"""Rates of BLAS by type; integers have none."""

_FLOPS_WITHOUT_BLAS = 1e3


def _moved_us(problem: ConvProblem) -> float:
    return problem.min_bytes / _MOVED_PER_US


def _product_us(problem: ConvProblem, rows: int) -> float:
    """Return the time of the products; with few rows they read columns faster than they multiply."""
    rate = _FLOPS_PER_US.get(compute_dtype(problem.dtype).name, _FLOPS_WITHOUT_BLAS)
    return problem.flops / min(rate, max(rate * rows / 16, _FLOPS_WITHOUT_BLAS))


def _pieces(sizes: tuple[int, ...], positions: int) -> int:
    return prod(parts_per_axis(sizes, positions))


def columns_us(problem: ConvProblem, limit: int) -> float:
    """Return the microseconds of a solver around columns; `problem` is the one that it multiplies."""
    chunk = column_chunk(problem, limit)
    taps, outputs = prod(problem.kernel), prod(problem.output_size)
    images = problem.n * problem.groups * chunk.c_parts * chunk.k_parts
    copied = problem.n * problem.c * taps * outputs * (chunk.k_parts if problem.kind in ("fprop", "wgrad") else 1)
    found = _moved_us(problem) + _product_us(problem, problem.k // problem.groups)
    if problem.kind in ("fprop", "wgrad"):
        pointwise = taps == 1 and prod(problem.stride) == 1
        return (
            found
            + images * _pieces(problem.output_size, chunk.positions) * _BOX_US
            + (0.0 if pointwise else copied / _COPIED_PER_US)
        )
    boxes = _scattered(problem, chunk)
    steps = min(taps, ceil_div(outputs, boxes))  # a scatter goes by taps or by outputs
    return found + images * boxes * (_BOX_US + steps * _TAP_US) + copied / _COPIED_PER_US


def _scattered(problem: ConvProblem, chunk: Chunk) -> int:
    """Return how many boxes of outputs an image of a data gradient is scattered from."""
    return max(_pieces(result_domain(problem), chunk.cells), _pieces(problem.output_size, chunk.positions))


def taps_us(problem: ConvProblem, limit: int) -> float:
    """Return the microseconds of a solver that goes tap by tap."""
    chunk = tap_chunk(problem, limit)
    taps, outputs, multiplier = prod(problem.kernel), prod(problem.output_size), problem.k // problem.groups
    images = problem.n * ceil_div(problem.groups, chunk.groups)
    if problem.kind == "fprop":
        pieces = _pieces(problem.output_size, chunk.positions)
        copied = problem.n * problem.c * taps * outputs / _COPIED_PER_US
        calls = images * pieces * _BOX_US + problem.n * problem.groups * pieces * _MATRIX_US
        return _moved_us(problem) + calls + copied + _product_us(problem, multiplier)
    pieces, steps = _pieces(problem.output_size, chunk.positions), taps
    if problem.kind != "wgrad":
        pieces = _scattered(problem, chunk)
        steps = min(taps, ceil_div(outputs, pieces))
    multiplied = problem.flops / 2 / _MULTIPLIED_PER_US
    return _moved_us(problem) + images * pieces * (_BOX_US + steps * multiplier * _TAP_US) + multiplied


_SAMPLES_PER_US = 60.0
"""Elements of samples that are gathered and weighted, or added back, for each of their corners."""


def deform_us(problem: DeformProblem) -> float:
    """Return the microseconds of a deformable convolution."""
    conv = problem.conv
    passes = 1
    if conv.kind == "dgrad":
        passes = ("x" in problem.grads) + (problem.grads != ("x",))
    corners = conv.n * conv.c * problem.taps * prod(conv.output_size) * 2**conv.ndim
    boxes = conv.n * max(conv.groups, problem.offset_groups) * 2**conv.ndim
    return (
        _moved_us(conv)
        + _product_us(conv, conv.k // conv.groups)
        + boxes * _BOX_US
        + passes * corners / _SAMPLES_PER_US
    )


_READ_PER_US = 1500.0
"""Elements of windows that a pass over strided views reads, in the cache."""

_PLACED_PER_US = 80.0
"""Elements that are gathered from, or added to, places that an array says."""

_COMPARED_PER_US = 300.0
"""Elements of windows that are compared with the maxima, to find where those are."""

_POWERED_PER_US = 60.0
"""Powers and roots that are computed."""

_CALL_US = 3.0
"""What a call of NumPy on a view costs apart from its elements."""

_POOL_US = 25.0
"""What a pool costs apart from its elements."""

_POSITIONS = ("max_unpool", "fractional_max")
_COPIES = ("unfold", "fold")


def pool_us(problem: PoolProblem) -> float:
    """Return the microseconds of a pool."""
    rows, tile = problem.n * problem.c, tile_size()
    small, large = sorted((prod(problem.input_size), prod(problem.output_size)))
    found = _POOL_US + problem.min_bytes / _MOVED_PER_US + rows * (small + large) / tile * _CALL_US
    if problem.pool in _COPIES:
        return found + prod(problem.kernel) * _TAP_US + problem.y_elements / _COPIED_PER_US
    if problem.pool == "fractional_max" and problem.kind == "fprop":
        return found + (100 + 5 * prod(problem.kernel)) * _CALL_US + problem.flops / _PLACED_PER_US
    if problem.pool in _POSITIONS or (problem.kind == "bwd" and problem.pool.endswith("max")):
        return found + rows * small / _PLACED_PER_US
    found += _windows_us(problem, rows)
    if problem.return_indices:
        searches = min(prod(problem.kernel), prod(problem.output_size))  # by taps or by windows
        found += (30 + 6 * searches) * _CALL_US + problem.flops / _COMPARED_PER_US
    if problem.pool == "lp":
        read = min(prod(problem.x_shape), prod(problem.y_shape) * prod(problem.kernel))
        powers = read * (problem.norm_type not in (1, 2, 3, inf)) + prod(problem.y_shape)
        found += powers / _POWERED_PER_US
        if problem.kind == "bwd":
            found += _windows_us(problem, rows) + prod(problem.x_shape) / _MOVED_PER_US
            if isinf(problem.norm_type):
                searches = min(prod(problem.kernel), prod(problem.output_size))
                found += 6 * searches * _CALL_US + problem.flops / _COMPARED_PER_US
    return found


def _windows_us(problem: PoolProblem, rows: int) -> float:
    """Return the time of the passes over the windows, one axis after the other."""
    lengths, found = list(problem.input_size), 0.0
    for axis, (kernel, out) in enumerate(zip(problem.kernel, problem.output_size)):
        lengths[axis] = out
        read = rows * prod(lengths) * kernel
        calls = min(kernel, out) * max(1.0, rows * prod(problem.input_size) / tile_size())
        found += read / _READ_PER_US + calls * _CALL_US
    return found
