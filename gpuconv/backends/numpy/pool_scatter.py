"""Pools that go by positions: gradients of maxima, unpooling, fractional windows, unfold and fold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS, bfloat16_bits
from ...problem import Call, PoolProblem
from ...shapes import columns_shape
from .common import compute_dtype, narrow, widen
from .pool_axes import Regular, axes_of, slabs_in
from .pool_offsets import first_elements, reading_windows, to_offsets, to_positions
from .pool_tiles import Rows, dense_view, flat_targets, row_ranges, tiles
from .pool_windows import lp_extremes

__all__ = [
    "PIECE",
    "fold_forward",
    "fractional_forward",
    "fractional_starts",
    "lp_extreme_backward",
    "max_backward",
    "unfold_forward",
    "unpool_backward",
    "unpool_forward",
]

PIECE = 1 << 20
"""Elements of a plane that are gathered or scattered at once; longer planes are worked on in pieces."""


def _checked(op: str, indices: np.ndarray, plane: int) -> np.ndarray:
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= plane):
        bad = int(indices[(indices < 0) | (indices >= plane)].flat[0])
        raise RuntimeError(f"{op}: indices must be positions in a plane of {plane} elements, but got {bad}")
    return indices


def _row_tiles(problem: PoolProblem, plane: int) -> Sequence[Rows]:
    return row_ranges(problem, max(plane, 1))


def max_backward(call: Call) -> Any:
    """Add each output's gradient to the element that its window took (max, adaptive max, fractional max).

    Sums are taken in a fixed order, as a rule in the type that the pool computes in, for long planes in float64.
    """
    problem: Any = call.problem
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, problem.x_format)
    dx = call.kind.to_numpy(out)
    dy, indices = call.kind.to_numpy(call.arrays["y"]), call.kind.to_numpy(call.arrays["indices"])
    plane = prod(problem.input_size)
    for rows in _row_tiles(problem, plane + prod(problem.output_size)):
        where, inside = _positions_of(call, rows, indices[rows])
        grads = widen(dy[rows], problem.dtype)
        grads = grads if inside is None else np.where(inside, grads, 0)
        where = _checked(problem.op, where, plane).reshape(-1, prod(problem.output_size))
        grads = grads.reshape(where.shape)
        _scatter_rows(where, grads, plane, dx[rows], problem.dtype)
    return out


def _positions_of(call: Call, rows: Rows, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the positions that `indices` are or mean, and which of their windows read an element (``None``: all)."""
    problem: Any = call.problem
    if not problem.offsets:
        return indices, reading_windows(problem)
    taps = prod(problem.kernel)
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= taps):
        raise RuntimeError(f"{problem.op}: indices must be taps of a window of {taps} elements")
    if problem.pool != "fractional_max":
        whole = tuple((0, out) for out in problem.output_size)
        return to_positions(problem, indices, first_elements(problem, whole, CONTIGUOUS))
    starts = _row_starts(problem, _samples(call)[rows])
    flat = indices.reshape(len(starts[0]), *problem.output_size)
    return to_positions(problem, flat, _grid(starts))[0].reshape(indices.shape), None


def _scatter_rows(where: np.ndarray, grads: np.ndarray, plane: int, out: np.ndarray, dtype: str) -> None:
    """Write to `out` (n x c x *spatial) the sums of `grads` by position; `where` and `grads` are rows x outputs."""
    rows = len(where)
    if plane <= PIECE:
        flat = where + np.arange(0, rows * plane, plane, dtype=np.int64)[:, None] if rows > 1 else where
        direct = out.dtype == grads.dtype and out.flags.c_contiguous
        sums = out if direct else np.empty(out.shape, grads.dtype)
        sums.fill(0)
        np.add.at(sums.reshape(-1), flat.ravel(), grads.ravel())
        if not direct:
            narrow(sums, dtype, out)
        return
    target, source, weights = out.reshape(-1), where.ravel(), grads.ravel()
    assert np.shares_memory(target, out)
    for begin in range(0, plane, PIECE):
        length = min(PIECE, plane - begin)
        total = np.zeros(length)
        for part in (slice(i, i + PIECE) for i in range(0, source.size, PIECE)):
            local = source[part] - begin
            inside = (local >= 0) & (local < length)
            total += np.bincount(local[inside], weights[part][inside], length)
        narrow(total, dtype, target[begin : begin + length])


def lp_extreme_backward(call: Call) -> Any:
    """Run the backward pass of a power pool with an infinite power: the gradient goes to the extreme of ``|x|``."""
    problem: Any = call.problem
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, problem.x_format)
    dx = call.kind.to_numpy(out)
    dy, x = call.kind.to_numpy(call.arrays["y"]), call.kind.to_numpy(call.arrays["x"])
    plane = prod(problem.input_size)
    for rows in _row_tiles(problem, 2 * (plane + prod(problem.output_size))):
        values = widen(x[rows], problem.dtype).reshape(-1, *problem.input_size)
        where = lp_extremes(problem, values).reshape(len(values), -1)
        grads = widen(dy[rows], problem.dtype).reshape(where.shape)
        grads = grads * np.sign(np.take_along_axis(values.reshape(len(values), plane), where, 1))
        _scatter_rows(where, grads, plane, dx[rows], problem.dtype)
    return out


def unpool_forward(call: Call) -> Any:
    """Write each input element to its position in a plane of zeros; of equal positions the last wins."""
    problem: Any = call.problem
    out = call.kind.empty(problem.y_shape, problem.dtype, problem.device, problem.y_format)
    y = call.kind.to_numpy(out)
    y.fill(0)
    flat = dense_view(y, problem.y_format)
    x, indices = call.kind.to_numpy(call.arrays["x"]), call.kind.to_numpy(call.arrays["indices"])
    plane = prod(problem.output_size)
    if not plane:  # torch looks at no index then
        return out
    every, grid = tiles(problem, problem.input_size, 2, CONTIGUOUS)
    for box, rows in product(grid, every):
        part = (*rows, *(slice(*bounds) for bounds in box))
        where = flat_targets(problem, rows, _checked(problem.op, indices[part], plane), plane, problem.y_format)
        flat[where.ravel()] = x[part].ravel()
    return out


def unpool_backward(call: Call) -> Any:
    """Read each element's gradient from its position in the large plane."""
    problem: Any = call.problem
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, problem.x_format)
    dx = call.kind.to_numpy(out)
    dy, indices = call.kind.to_numpy(call.arrays["y"]), call.kind.to_numpy(call.arrays["indices"])
    plane = prod(problem.output_size)
    for rows in _row_tiles(problem, plane + prod(problem.input_size)):
        where = _checked(problem.op, indices[rows], plane)
        grads = dy[rows].reshape(*where.shape[:2], plane)
        taken = np.take_along_axis(grads, where.reshape(*where.shape[:2], -1), 2)
        dx[rows] = taken.reshape(where.shape)
    return out


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return widen(bfloat16_bits(values), dtype) if dtype == "bfloat16" else values


def fractional_starts(size: int, out: int, kernel: int, samples: np.ndarray, dtype: str) -> np.ndarray:
    """Return the first element of each window for every sample: ``shapes.fractional_pool_starts`` on arrays.

    Every operation rounds to `dtype`, as torch's does on the CPU. Shape: samples ``R``, result ``R x out``.
    """
    last = np.full((len(samples), 1), size - kernel, np.int64)
    if out == 1:
        return last
    work = np.dtype("float32" if dtype == "bfloat16" else dtype)
    alpha = _rounded(
        _rounded(np.array([size - kernel], work), dtype) / _rounded(np.array([out - 1], work), dtype), dtype
    )
    sample = samples.astype(work, copy=False)[:, None]
    steps = _rounded(np.arange(out - 1).astype(work), dtype)[None]
    moved = _rounded(_rounded(steps + sample, dtype) * alpha, dtype)
    base = _rounded(sample * alpha, dtype)
    starts = np.trunc(moved).astype(np.int64) - np.trunc(base).astype(np.int64)
    return np.concatenate((starts, last), 1)


def fractional_forward(call: Call) -> Any:
    """Run a fractional max pool: windows of their own for every row, from `samples`."""
    problem: Any = call.problem
    out = call.kind.empty(problem.y_shape, problem.dtype, problem.device, CONTIGUOUS)
    y, x = call.kind.to_numpy(out), call.kind.to_numpy(call.arrays["x"])
    samples = _samples(call)
    indices = where = None
    if problem.return_indices:
        indices = call.kind.empty(problem.y_shape, problem.index_dtype, problem.device, CONTIGUOUS)
        where = call.kind.to_numpy(indices)
    plane = prod(problem.input_size)
    if not y.size:
        return out if indices is None else (out, indices)
    for rows in _row_tiles(problem, plane + 4 * prod(problem.output_size)):
        values = widen(x[rows], problem.dtype).reshape(-1, plane)
        starts = _row_starts(problem, samples[rows])
        best, at = _fractional_rows(problem, values, starts)
        narrow(best.reshape(y[rows].shape), problem.dtype, y[rows])
        if where is not None and problem.offsets:
            at = to_offsets(problem, at.reshape(len(at), *problem.output_size), _grid(starts))
        if where is not None:
            where[rows] = at.reshape(y[rows].shape)
    return out if indices is None else (out, indices)


def _samples(call: Call) -> np.ndarray:
    """Return the samples of a fractional pool in the type that places are computed in."""
    samples = widen(call.kind.to_numpy(call.arrays["samples"]), call.problem.dtype)
    return samples.astype(np.float16) if call.problem.dtype == "float16" else samples


def _row_starts(problem: PoolProblem, samples: np.ndarray) -> list[np.ndarray]:
    """Return the first element of each window of a fractional pool, per axis; rows x outputs of that axis."""
    # torch's 2-D kernel takes its samples as (W, H), its 3-D kernel as (D, H, W).
    order = (1, 0) if problem.ndim == 2 else tuple(range(problem.ndim))
    drawn = samples.reshape(-1, problem.ndim)
    return [
        _fitting(problem, axis, fractional_starts(*sizes, drawn[:, order[axis]], problem.dtype))
        for axis, sizes in enumerate(zip(problem.input_size, problem.output_size, problem.kernel))
    ]


def _grid(starts: list[np.ndarray]) -> list[np.ndarray]:
    """Shape the starts of every axis to broadcast against rows x *outputs."""
    ndim = len(starts)
    shapes = [(-1, *(1,) * axis, starts[axis].shape[1], *(1,) * (ndim - 1 - axis)) for axis in range(ndim)]
    return [start.reshape(shape) for start, shape in zip(starts, shapes)]


def _fitting(problem: PoolProblem, axis: int, starts: np.ndarray) -> np.ndarray:
    last = problem.input_size[axis] - problem.kernel[axis]
    if starts.size and (int(starts.min()) < 0 or int(starts.max()) > last):
        raise RuntimeError(f"{problem.op}: _random_samples must be numbers in [0, 1), but a window leaves the input")
    return starts


def _fractional_rows(
    problem: PoolProblem, values: np.ndarray, starts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maxima and their positions, rows x outputs. The first maximum wins, or the last NaN."""
    rows, ndim = len(values), problem.ndim
    first = np.zeros((rows,) + (1,) * ndim, np.int64)
    for axis, start in enumerate(starts):
        shape = [rows] + [1] * ndim
        shape[1 + axis] = problem.output_size[axis]
        first = first * problem.input_size[axis] + start.reshape(shape)
    first = np.ascontiguousarray(first.reshape(rows, -1))
    best = np.full(first.shape, -np.inf, values.dtype)
    at = first.copy()
    for taps in product(*(range(kernel) for kernel in problem.kernel)):
        shift = 0
        for tap, size in zip(taps, problem.input_size):
            shift = shift * size + tap
        position = first + shift
        seen = np.take_along_axis(values, position, 1)
        better = (seen > best) | np.isnan(seen)
        np.copyto(best, seen, where=better)
        np.copyto(at, position, where=better)
    return best, at


def unfold_forward(call: Call) -> Any:
    """Copy every window into a column: N, C*R*S, P*Q."""
    problem: Any = call.problem
    (r, s), (p, q) = problem.kernel, problem.output_size
    out = call.kind.empty(
        columns_shape(problem.n, problem.c, problem.kernel, problem.output_size),
        problem.dtype,
        problem.device,
        CONTIGUOUS,
    )
    x = call.kind.to_numpy(call.arrays["x"])
    y = call.kind.to_numpy(out).reshape(problem.n, problem.c, r, s, p, q)
    rows, cols = axes_of(problem)
    assert isinstance(rows, Regular) and isinstance(cols, Regular)
    if any(problem.pad_lo) or any(problem.pad_hi):
        y.fill(0)
    for i, j in product(range(r), range(s)):
        (ps, hs), (qs, ws) = rows.tap(i), cols.tap(j)
        y[:, :, i, j, ps, qs] = x[:, :, hs, ws]
    return out


def fold_forward(call: Call) -> Any:
    """Add the columns N, C*R*S, P*Q back into the image: the adjoint of unfold. 16-bit floats add in float32."""
    problem: Any = call.problem
    (r, s), (p, q) = problem.kernel, problem.output_size
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, CONTIGUOUS)
    x = call.kind.to_numpy(out)
    y = call.kind.to_numpy(call.arrays["y"]).reshape(problem.n, problem.c, r, s, p, q)
    axes = axes_of(problem)
    dtype = compute_dtype(problem.dtype)
    every, grid = tiles(problem, problem.input_size, 2, CONTIGUOUS)
    for box, rows in product(grid, every):
        (ps, qs), local = slabs_in(axes, box)
        image = x[(*rows, *(slice(*bounds) for bounds in box))]
        total = image if problem.dtype not in ("float16", "bfloat16") else np.empty(image.shape, dtype)
        total.fill(0)
        columns = y[(*rows, slice(None), slice(None), ps, qs)]
        for i, j in product(range(r), range(s)):
            (pt, hs), (qt, ws) = (axis.tap(t) for axis, t in zip(local, (i, j)) if isinstance(axis, Regular))
            total[:, :, hs, ws] += widen(columns[:, :, i, j, pt, qt], problem.dtype)
        if total is not image:
            narrow(total, problem.dtype, image)
    return out
