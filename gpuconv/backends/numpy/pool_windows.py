"""Max, average and power pools, regular and adaptive: forward and the backward passes that need no indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from math import frexp, isinf, prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST, CONTIGUOUS
from ...problem import Call, PoolProblem
from .common import Box, compute_dtype, narrow, widen
from .pool_axes import (
    Axis,
    Ragged,
    Regular,
    axes_of,
    counts_in,
    divisor_of,
    reduce_windows,
    slabs_out,
    spread_windows,
    tap_slices,
)
from .pool_offsets import first_elements, to_offsets
from .pool_products import PASSES, spread, sum_windows
from .pool_tiles import Step, pieces, read_at_once, row_shape, steps

__all__ = [
    "avg_backward",
    "avg_forward",
    "lp_backward",
    "lp_extremes",
    "lp_forward",
    "max_forward",
]


def _bounds(part: Sequence[slice]) -> Box:
    """Return the spatial box of a part of an N C *spatial array."""
    return tuple((bounds.start, bounds.stop) for bounds in part[2:])


def _lowest(dtype: np.dtype) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def max_forward(call: Call) -> Any:
    """Run a max pool, regular or adaptive."""
    problem: Any = call.problem
    out = call.kind.empty(problem.y_shape, problem.dtype, problem.device, problem.y_format)
    x, y = call.kind.to_numpy(call.arrays["x"]), call.kind.to_numpy(out)
    indices = where = None
    if problem.return_indices:
        indices = call.kind.empty(problem.y_shape, problem.index_dtype, problem.device, problem.y_format)
        where = call.kind.to_numpy(indices)
    fmt = problem.y_format
    neutral = _lowest(compute_dtype(problem.dtype))
    for step in steps(problem):
        ys = row_shape(y[step.target], fmt)
        at: Any = None
        if step.size <= read_at_once(problem):
            xs = widen(row_shape(x[step.source], fmt), problem.dtype)
            best = ys if ys.dtype == xs.dtype else np.empty(ys.shape, xs.dtype)
            reduce_windows(np.maximum, xs, step.axes, best, neutral)
            if where is not None:
                at = _argmax(xs, best, step.axes, step.source[2:], problem.input_size, fmt)
        else:
            best = np.full(ys.shape, neutral, compute_dtype(problem.dtype))
            at = _max_in_pieces(problem, step, x, best, where is not None)
        if best is not ys:
            narrow(best, problem.dtype, ys)
        if where is not None:
            if problem.offsets:
                at = to_offsets(problem, at, first_elements(problem, step.box, fmt))
            elif max(problem.dilation) > 1:  # windows of padding alone: some element of the plane
                at = np.minimum(at, prod(problem.input_size) - 1)
            row_shape(where[step.target], fmt)[...] = at
    return out if indices is None else (out, indices)


def _max_in_pieces(
    problem: PoolProblem, step: Step, x: np.ndarray, best: np.ndarray, positions: bool
) -> np.ndarray | None:
    """Raise `best`, which starts as the least number, to the maxima of a step; return their positions if asked for."""
    fmt, neutral = problem.y_format, _lowest(best.dtype)
    at = np.full(best.shape, -1, np.int64) if positions else None
    for piece in pieces(problem, step):
        xs = widen(row_shape(x[piece.source], fmt), problem.dtype)
        part = best[(slice(None), *piece.target)]
        found = np.empty(part.shape, part.dtype)
        reduce_windows(np.maximum, xs, piece.axes, found, neutral)
        if at is not None:
            where = at[(slice(None), *piece.target)]
            taken = (found > part) | (where < 0)
            if best.dtype.kind == "f":
                taken |= np.isnan(found)
            taken &= _some(piece.axes, fmt)
            seen = _argmax(xs, found, piece.axes, piece.source[2:], problem.input_size, fmt)
            np.copyto(where, seen, where=taken)
        np.maximum(part, found, out=part)
    if at is not None and np.min(at) < 0:  # windows without an element
        pitches = _pitches(problem.input_size)
        places = [axis.starts if isinstance(axis, Ragged) else axis.first() for axis in step.axes]
        places = [(place + part.start) * pitch for place, part, pitch in zip(places, step.source[2:], pitches)]
        first: np.ndarray = reduce(np.add.outer, places)
        np.copyto(at, first[..., None] if fmt == CHANNELS_LAST else first, where=at < 0)
    return at


def _some(axes: Sequence[Axis], fmt: str) -> np.ndarray:
    """Return which windows of a slab have an element in it, to broadcast against them."""
    every = [
        np.array([len(range(*axis.window(o).indices(axis.size))) > 0 for o in range(axis.out)], np.bool_)
        if isinstance(axis, Regular) and axis.dilation > 1
        else np.ones(axis.out, np.bool_)
        for axis in axes
    ]
    grid: np.ndarray = reduce(np.logical_and.outer, every)
    return grid[..., None] if fmt == CHANNELS_LAST else grid


def _reduce_step(
    problem: PoolProblem, step: Step, values: Callable[[Any], np.ndarray], op: np.ufunc, neutral: Any, total: np.ndarray
) -> None:
    """Write `op` over the windows of a step to `total`; `values` gives what a part of the input counts for."""

    def reduced(source: Any, axes: Sequence[Axis], way: str, out: np.ndarray) -> None:
        if op is np.add and problem.pool != "lp":
            sum_windows(values(source), axes, way, out)
        else:
            reduce_windows(op, values(source), axes, out, neutral)

    if step.size <= read_at_once(problem):
        reduced(step.source, step.axes, step.way, total)
        return
    total.fill(neutral)
    for piece in pieces(problem, step):
        part = total[(slice(None), *piece.target)]
        found = np.empty(part.shape, part.dtype)
        reduced(piece.source, piece.axes, piece.way, found)
        op(part, found, out=part)


def _argmax(
    x: np.ndarray, best: np.ndarray, axes: Sequence[Axis], read: Sequence[slice], sizes: Sequence[int], fmt: str
) -> np.ndarray:
    """Return the position in its plane of the element that each window took: the first maximum, or the last NaN."""
    windows = prod(axis.out for axis in axes)
    regular = [axis for axis in axes if isinstance(axis, Regular)]
    if windows < prod(axis.kernel for axis in axes):
        return _argmax_by_window(x, best, axes, read, sizes, fmt)
    if len(regular) < len(axes):
        return _argmax_by_ragged_tap(x, best, axes, read, sizes, fmt)
    return _argmax_by_tap(x, best, regular, read, sizes, fmt)


def _pitches(sizes: Sequence[int]) -> list[int]:
    return [prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _argmax_by_tap(
    x: np.ndarray, best: np.ndarray, axes: Sequence[Regular], read: Sequence[slice], sizes: Sequence[int], fmt: str
) -> np.ndarray:
    taps = tap_slices(axes)
    count = len(taps)
    code_type = np.min_scalar_type(count)
    code = np.zeros(best.shape, code_type)
    has_nan = best.dtype.kind == "f" and bool(np.isnan(np.min(best, initial=np.inf)))
    last_nan = np.zeros(best.shape, code_type) if has_nan else None
    for t, (windows, elements) in enumerate(taps):
        seen = x[(slice(None), *elements)]
        part = code[(slice(None), *windows)]
        hit = seen == best[(slice(None), *windows)]
        np.maximum(part, np.multiply(hit, code_type.type(count - t), dtype=code_type), out=part)
        if last_nan is not None:
            part = last_nan[(slice(None), *windows)]
            np.maximum(part, np.multiply(np.isnan(seen), code_type.type(t + 1), dtype=code_type), out=part)
    pitches = _pitches(sizes)
    steps = [np.arange(axis.kernel) * axis.dilation * pitch for axis, pitch in zip(axes, pitches)]
    table = np.append(reduce(np.add.outer, steps).ravel()[::-1], 0)  # by count - tap, moved up by one below
    table = np.concatenate(([0], table[:count])).astype(np.int64)
    starts = [
        (np.arange(axis.out) * axis.stride - axis.lo + part.start) * pitch
        for axis, part, pitch in zip(axes, read, pitches)
    ]
    base = reduce(np.add.outer, starts)
    base = base[..., None] if fmt == CHANNELS_LAST else base
    at: np.ndarray = np.take(table, code)
    at += base
    if last_nan is not None:
        np.copyto(
            at, np.take(table, np.where(last_nan, count + 1 - last_nan.astype(np.int64), 0)) + base, where=last_nan > 0
        )
        code |= last_nan
    if not code.all():
        firsts = [(axis.first() + part.start) * pitch for axis, part, pitch in zip(axes, read, pitches)]
        first = reduce(np.add.outer, firsts)
        np.copyto(at, first[..., None] if fmt == CHANNELS_LAST else first, where=code == 0)
    return at


def _argmax_by_ragged_tap(
    x: np.ndarray, best: np.ndarray, axes: Sequence[Axis], read: Sequence[slice], sizes: Sequence[int], fmt: str
) -> np.ndarray:
    """Return the positions for windows of an adaptive pool. Where one is shorter than others, its last tap repeats."""
    if fmt != CHANNELS_LAST:  # rows innermost, so that what a tap of every window reads is a few long rows
        x, best = (np.ascontiguousarray(np.moveaxis(values, 0, -1))[None] for values in (x, best))
    elements = [
        np.minimum(axis.starts + np.arange(axis.kernel)[:, None], axis.ends - 1)
        if isinstance(axis, Ragged)
        else np.arange(axis.out) * axis.stride + np.arange(axis.kernel)[:, None]
        for axis in axes
    ]  # per axis: taps x windows
    count = prod(axis.kernel for axis in axes)
    code_type = np.min_scalar_type(count)
    code = np.zeros(best.shape, code_type)
    nan = np.isnan(best) if best.dtype.kind == "f" and np.isnan(np.min(best, initial=np.inf)) else None
    for t, taps in enumerate(product(*(range(axis.kernel) for axis in axes))):
        seen = x[(slice(None), *np.ix_(*(each[tap] for each, tap in zip(elements, taps))))]
        np.maximum(code, np.multiply(seen == best, code_type.type(count - t), dtype=code_type), out=code)
        if nan is not None:  # the last one wins
            np.copyto(code, code_type.type(count - t), where=nan & np.isnan(seen))
    left = count - code.astype(np.int64)
    at = np.zeros(best.shape, np.int64)
    for i in range(len(axes) - 1, -1, -1):
        left, tap = np.divmod(left, axes[i].kernel) if i else (left, left)
        place = np.arange(axes[i].out).reshape(-1, *(1,) * (len(axes) - i))
        at += np.take((elements[i] + read[i].start) * _pitches(sizes)[i], tap * axes[i].out + place)
    return at if fmt == CHANNELS_LAST else np.moveaxis(at[0], -1, 0)


def _argmax_by_window(
    x: np.ndarray, best: np.ndarray, axes: Sequence[Axis], read: Sequence[slice], sizes: Sequence[int], fmt: str
) -> np.ndarray:
    if fmt == CHANNELS_LAST:
        x, best = np.moveaxis(x, -1, 1), np.moveaxis(best, -1, 1)
    lead = x.shape[: x.ndim - len(axes)]
    at: Any = np.empty(best.shape, np.int64)
    pitches = _pitches(sizes)
    has_nan = best.dtype.kind == "f" and bool(np.isnan(np.min(best, initial=np.inf)))
    for o in product(*(range(axis.out) for axis in axes)):
        parts = [axis.window(i) for axis, i in zip(axes, o)]
        inside: Any = (..., *parts)
        here: Any = (..., *o)
        window = x[inside]
        window = window.reshape(*lead, prod(window.shape[len(lead) :]))
        if not window.shape[-1]:  # padding alone
            at[here] = sum((part.start + begin.start) * pitch for part, begin, pitch in zip(parts, read, pitches))
            continue
        taken = window.argmax(-1)
        if has_nan:
            last = window.shape[-1] - 1 - np.isnan(window[..., ::-1]).argmax(-1)
            taken = np.where(np.isnan(best[here]), last, taken)
        places = [
            (np.arange(part.start, part.stop, part.step) + begin.start) * pitch
            for part, begin, pitch in zip(parts, read, pitches)
        ]
        at[here] = np.take(reduce(np.add.outer, places).ravel(), taken)
    return np.moveaxis(at, 1, -1) if fmt == CHANNELS_LAST else at


def _divide(total: np.ndarray, divisor: Any, out: np.ndarray) -> None:
    """Write ``total / divisor``; integers are cut off towards zero, as in C."""
    if total.dtype.kind in "fc":
        if np.ndim(divisor) == 0 and frexp(abs(divisor.real))[0] == 0.5:  # a power of two: the product is the same
            np.multiply(total, 1 / divisor, out=out)
        else:
            np.divide(total, divisor, out=out)
        return
    quotient, rest = np.divmod(total, divisor)
    quotient += (rest != 0) & ((total < 0) != (np.asarray(divisor) < 0))
    out[...] = quotient


def _divisor(problem: PoolProblem, box: Box, dtype: np.dtype, fmt: str) -> Any:
    """Return what the sums in `box` are divided by: a scalar where it is the same everywhere."""
    common = divisor_of(problem, box)
    if common is not None:
        return dtype.type(common)
    grid: np.ndarray = reduce(np.multiply.outer, counts_in(problem, box)).astype(dtype)
    return grid[..., None] if fmt == CHANNELS_LAST else grid


def avg_forward(call: Call) -> Any:
    """Run an average pool, regular or adaptive."""
    problem: Any = call.problem
    out = call.kind.empty(problem.y_shape, problem.dtype, problem.device, problem.y_format)
    x, y = call.kind.to_numpy(call.arrays["x"]), call.kind.to_numpy(out)
    fmt, dtype = problem.y_format, compute_dtype(problem.dtype)
    for step in steps(problem):
        ys = row_shape(y[step.target], fmt)
        total = ys if ys.dtype == dtype else np.empty(ys.shape, dtype)
        _reduce_step(problem, step, lambda source: widen(row_shape(x[source], fmt), problem.dtype), np.add, 0, total)
        _divide(total, _divisor(problem, step.box, dtype, fmt), total)
        if total is not ys:
            narrow(total, problem.dtype, ys)
    return out


def avg_backward(call: Call) -> Any:
    """Run the backward pass of an average pool, regular or adaptive."""
    problem: Any = call.problem
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, problem.x_format)
    dy, dx = call.kind.to_numpy(call.arrays["y"]), call.kind.to_numpy(out)
    fmt = problem.x_format
    for step in steps(problem):
        grads = widen(row_shape(dy[step.source], fmt), problem.dtype)
        share = np.empty(grads.shape, grads.dtype)
        if share.size:
            _divide(grads, _divisor(problem, _bounds(step.source), grads.dtype, fmt), share)
        xs = row_shape(dx[step.target], fmt)
        total = xs if xs.dtype == grads.dtype else np.empty(xs.shape, grads.dtype)
        spread(share, step.axes, step.way, total)
        if total is not xs:
            narrow(total, problem.dtype, xs)
    return out


def _power(x: np.ndarray, p: float, integer: bool) -> np.ndarray:
    """Return ``x ** p``. Small whole powers are products, as in torch."""
    if p == 1:
        return x
    if p == 2:
        return np.multiply(x, x)
    if p == 3:
        return np.multiply(np.multiply(x, x), x)
    return np.power(x, int(p) if integer else x.dtype.type(p))


def _lp_input(x: np.ndarray, call: Call) -> np.ndarray:
    """Return a tile of the input in the type that the powers are computed in."""
    dtype = call.problem.dtype
    if call.extra.get("compute") is not None:
        return x.astype(call.extra["compute"], copy=False)
    return widen(x, dtype)


def lp_forward(call: Call) -> Any:
    """Run a power-average pool: ``(sum of x ** p over the window) ** (1 / p)``, or the extremes of ``|x|``."""
    problem: Any = call.problem
    p, integer = problem.norm_type, bool(call.extra.get("integer_power"))
    out_dtype = call.extra.get("result", problem.dtype)
    out = call.kind.empty(problem.y_shape, out_dtype, problem.device, problem.y_format)
    x, y = call.kind.to_numpy(call.arrays["x"]), call.kind.to_numpy(out)
    fmt, dtype = problem.y_format, _lp_input(x[:0, :0], call).dtype

    def powers(source: Any) -> np.ndarray:
        return _power(_lp_input(row_shape(x[source], fmt), call), p, integer)

    def magnitudes(source: Any) -> np.ndarray:
        values = np.abs(_lp_input(row_shape(x[source], fmt), call))
        return values if p > 0 else np.negative(values)

    for step in steps(problem):
        ys = row_shape(y[step.target], fmt)
        total = np.empty(ys.shape, dtype)
        if isinf(p):
            _reduce_step(problem, step, magnitudes, np.maximum, _lowest(total.dtype), total)
            if p < 0:
                np.negative(total, out=total)
        else:
            _reduce_step(problem, step, powers, np.add, 0, total)
            total = _lp_root(problem, total, _divisor(problem, step.box, dtype, fmt))
        narrow(total, out_dtype, ys)
    return out


def _lp_scale(problem: PoolProblem, total: np.ndarray, divisor: Any) -> np.ndarray:
    """Return ``sum / divisor * taps``, as torch does: the sum, but for windows that ceil mode cut off."""
    taps = prod(problem.kernel)
    if total.dtype.kind == "f" and np.ndim(divisor) == 0 and divisor == taps:
        return total
    scaled = np.empty_like(total)
    _divide(total, divisor, scaled)
    return np.multiply(scaled, total.dtype.type(taps), out=scaled)


def _lp_root(problem: PoolProblem, total: np.ndarray, divisor: Any) -> np.ndarray:
    scaled = _lp_scale(problem, total, divisor)
    if scaled.dtype.kind != "f":
        scaled = scaled.astype(np.float32)
    scaled = scaled + scaled.dtype.type(0)  # -0 becomes 0, as in torch, and does not turn the sign of an infinite root
    p = problem.norm_type
    if p == 1:
        return scaled
    return np.sqrt(scaled) if p == 2 else np.power(scaled, scaled.dtype.type(1.0 / p))


def lp_backward(call: Call) -> Any:
    """Run the backward pass of a power-average pool with a finite power. The gradient is 0 where a window sums to 0."""
    problem: Any = call.problem
    p = problem.norm_type
    out = call.kind.empty(problem.x_shape, problem.dtype, problem.device, problem.x_format)
    dx = call.kind.to_numpy(out)
    dy, x = call.kind.to_numpy(call.arrays["y"]), call.kind.to_numpy(call.arrays["x"])
    fmt, room = problem.x_format, read_at_once(problem) // 4
    kept: dict[Any, np.ndarray] = {}  # of windows that many tiles share, as those of large pools
    for step in steps(problem):
        xs = row_shape(dx[step.target], fmt)
        if any(stop == start for start, stop in _bounds(step.source)):
            xs[...] = 0
            continue
        place = tuple((part.start, part.stop) for part in step.source)
        share = kept.get(place)
        if share is None:
            share = _lp_share(problem, dy, x, step.source)
            room -= share.size
            if room >= 0:
                kept[place] = share
        result = np.empty(xs.shape, share.dtype)
        spread_windows(share, step.axes, result)
        inner = widen(row_shape(x[step.target], fmt), problem.dtype)
        if p != 1:
            result *= _power(inner, p - 1, False) * inner.dtype.type(p)
        narrow(result, problem.dtype, xs)
    return out


def _lp_share(problem: PoolProblem, dy: np.ndarray, x: np.ndarray, source: tuple[slice, ...]) -> np.ndarray:
    """Return what the elements of each window in `source` of a power pool get, but for their own power."""
    p, fmt, windows = problem.norm_type, problem.x_format, _bounds(source)
    read, around = slabs_out(axes_of(problem), windows)
    grads = widen(row_shape(dy[source], fmt), problem.dtype)
    total = np.empty(grads.shape, grads.dtype)
    size = prod(part.stop - part.start for part in (*source[:2], *read))
    step = Step(windows, source, (*source[:2], *read), around, PASSES, size)

    def powers(part: Any) -> np.ndarray:
        return _power(widen(row_shape(x[part], fmt), problem.dtype), p, False)

    _reduce_step(problem, step, powers, np.add, 0, total)
    divisor = _divisor(problem, windows, grads.dtype, fmt)
    scaled = _lp_scale(problem, total, divisor)
    slope = np.power(scaled, scaled.dtype.type(1.0 / p - 1.0)) * (prod(problem.kernel) / divisor / p)
    share: np.ndarray = np.where(total == 0, 0, grads * slope.astype(grads.dtype, copy=False))
    return share


def lp_extremes(problem: PoolProblem, values: np.ndarray) -> np.ndarray:
    """Return where in its plane each window of `values` (rows x *spatial) has its largest (or smallest) ``|x|``."""
    magnitude = np.abs(values) if problem.norm_type > 0 else np.negative(np.abs(values))
    axes = axes_of(problem)
    best = np.empty((len(values), *problem.output_size), values.dtype)
    reduce_windows(np.maximum, magnitude, axes, best, -np.inf)
    whole = tuple(slice(0, size) for size in problem.input_size)
    return _argmax(magnitude, best, axes, whole, problem.input_size, CONTIGUOUS)
