"""Pools, unpooling, unfold and fold as ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isinf, prod
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from .. import shapes
from .nodes import Value, constant, fixed, integers, known_sizes, op, pad, refuse, require_floats, size_at, slice_axis

__all__ = ["TRANSLATORS"]

Sizes = Sequence[int]


class _Windows(NamedTuple):
    """Windows of a pool that strides describe, with what ceil mode adds."""

    kernel: Sizes
    stride: Sizes
    pad_lo: Sizes
    pad_hi: Sizes
    dilation: Sizes
    extra: Sizes
    """Elements behind the padding that the last window along each axis reaches."""
    cut: bool
    """Whether the extra elements are as many as may be needed, as the sizes are dynamic: there may be a window more."""

    @property
    def pads(self) -> list[int]:
        """The padding as ONNX has it, the extra elements among it."""
        return [*self.pad_lo, *(hi + extra for hi, extra in zip(self.pad_hi, self.extra))]

    def finish(self, y: Value, x: Value) -> Value:
        """Cut off the windows that start behind the input."""
        if not self.cut:
            return y
        for axis, (s, lo) in enumerate(zip(self.stride, self.pad_lo), 2):
            last = op.Div(op.Add(size_at(x, axis), integers([lo - 1])), integers([s]))
            y = slice_axis(y, axis, 0, op.Add(last, integers([1])))
        return y


def _windows(
    what: str, x: Value, kernel: Sizes, stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, ceil_mode: bool
) -> _Windows:
    fixed(what, kernel_size=kernel, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation)
    extra, cut = [], False
    for size, k, s, lo, hi, d in zip(known_sizes(x), kernel, stride, pad_lo, pad_hi, dilation, strict=True):
        if not ceil_mode:
            extra.append(0)
        elif size is None:
            extra.append(s - 1)
            cut = True
        else:
            output = shapes.pool_output_size(size, k, s, lo, hi, d, True)
            extra.append(max(0, (output - 1) * s + shapes.effective_kernel(k, d) - size - lo - hi))
    return _Windows(kernel, stride, pad_lo, pad_hi, dilation, extra, cut)


def _sums(x: Value, windows: _Windows, channels: int, dtype: Any, pads: list[int]) -> Value:
    """Return the sum of every window."""
    ones = constant(np.ones((channels, 1, *windows.kernel)), dtype)
    return op.Conv(
        x, ones, None, group=channels, pads=pads, strides=list(windows.stride), dilations=list(windows.dilation)
    )


def _counts(x: Value, windows: _Windows, dtype: Any, with_padding: bool) -> Value:
    """Return how many elements every window has, with or without those of the padding; never the extra ones."""
    ndim = len(windows.kernel)
    shape = op.Concat(integers([1, 1]), op.Shape(x, start=2), axis=0)
    plane, pads = op.Expand(constant(1, dtype), shape), windows.pads
    if with_padding:
        plane = pad(plane, windows.pad_lo, windows.pad_hi, value=constant(1, dtype))
        pads = [*(0,) * ndim, *windows.extra]
    return _sums(plane, windows, 1, dtype, pads)


def _channels(what: str, x: Value) -> int:
    channels = x.shape.dims[1]
    if not isinstance(channels, int):
        raise refuse(what, "its number of channels is dynamic")
    return channels


def _avg_pool(x: Value, pool: str, size: Sequence[Any], **form: Any) -> Value:
    what = f"{pool}_pool{len(form['kernel'])}d"
    require_floats(what, x)
    if pool == "adaptive_avg":
        return _adaptive(what, x, size, op.GlobalAveragePool, op.AveragePool, op.ReduceMean)
    windows = _form_windows(what, x, form)
    divisor, include = form["divisor_override"], form["count_include_pad"]
    if divisor is None and not any(windows.extra) and max(windows.dilation) == 1:
        return op.AveragePool(
            x, kernel_shape=list(windows.kernel), strides=list(windows.stride), pads=windows.pads,
            count_include_pad=int(include),
        )  # fmt: skip
    total = _sums(x, windows, _channels(what, x), x.dtype, windows.pads)
    fixed(what, divisor_override=divisor or 0)
    counts = constant(divisor, x.dtype) if divisor is not None else _counts(x, windows, x.dtype, include)
    return windows.finish(op.Div(total, counts), x)


def _form_windows(what: str, x: Value, form: dict[str, Any]) -> _Windows:
    names = ("kernel", "stride", "pad_lo", "pad_hi", "dilation", "ceil_mode")
    return _windows(what, x, *(form[name] for name in names))


def _lp_pool(x: Value, norm_type: float, **form: Any) -> Value:
    what, dtype = f"lp_pool{len(form['kernel'])}d", x.dtype
    require_floats(what, x)
    windows = _form_windows(what, x, form)
    if isinf(norm_type):
        values = op.Abs(x)
        y = _maxima(values if norm_type > 0 else op.Neg(values), windows, dtype)[0]
        return y if norm_type > 0 else op.Neg(y)
    powers = x if norm_type == 1 else op.Mul(x, x) if norm_type == 2 else op.Pow(x, constant(norm_type, dtype))
    total = _sums(powers, windows, _channels(what, x), dtype, windows.pads)
    if any(windows.extra):
        share = op.Div(total, _counts(x, windows, dtype, True))
        total = op.Mul(share, constant(prod(windows.kernel), dtype))
    if norm_type != 1:
        total = op.Sqrt(total) if norm_type == 2 else op.Pow(total, constant(1 / norm_type, dtype))
    return windows.finish(total, x)


_SMALL = (ir.DataType.INT8, ir.DataType.UINT8)


def _maxima(x: Value, windows: _Windows, dtype: Any, indices: bool = False) -> tuple[Value, Value | None]:
    """Return the maxima of windows and, if asked for, their positions in a plane of the input."""
    ndim, pads, given = len(windows.kernel), windows.pads, x
    if any(p >= k for p, k in zip(pads, (*windows.kernel, *windows.kernel))):  # which runtimes refuse
        lowest = np.iinfo(dtype.numpy()).min if dtype in _SMALL else -inf
        x, pads = pad(x, pads[:ndim], pads[ndim:], value=constant(lowest, dtype)), [0] * (2 * ndim)
    y, places = op.MaxPool(
        x, kernel_shape=list(windows.kernel), strides=list(windows.stride), dilations=list(windows.dilation), pads=pads
    )
    y = windows.finish(y, given)
    return y, windows.finish(_in_plane(places, x, given, windows.pad_lo), given) if indices else None


def _in_plane(places: Value, x: Value, given: Value, pad_lo: Sizes) -> Value:
    """Return positions in a plane of `given`, of those in the whole of `x`, which may be padded."""
    left = op.Mod(places, op.ReduceProd(op.Shape(x, start=2), keepdims=1))
    if x is given:
        return left
    position, pitch = None, integers([1])
    for axis in range(len(pad_lo) - 1, -1, -1):
        at = op.Sub(op.Mod(left, size_at(x, axis + 2)), integers([pad_lo[axis]]))
        left, step = op.Div(left, size_at(x, axis + 2)), op.Mul(at, pitch)
        position = step if position is None else op.Add(position, step)
        pitch = op.Mul(pitch, size_at(given, axis + 2))
    return position


def _max_pool(x: Value, pool: str, size: Sequence[Any], indices: bool = False, **form: Any) -> Any:
    what, ndim = f"{pool}_pool{len(form['kernel'])}d", len(form["kernel"])
    if pool == "fractional_max":
        raise refuse(what, "ONNX has no pool with random windows")
    if pool == "max":
        if x.dtype not in _SMALL:
            require_floats(what, x)
        windows = _form_windows(what, x, form)
        y, positions = _maxima(x, windows, x.dtype, indices)
        return (y, positions) if indices else y
    require_floats(what, x)
    if not indices:
        return _adaptive(what, x, size, op.GlobalMaxPool, _regular_max, op.ReduceMax)
    fixed(what, output_size=size)
    if all(out == 1 for out in size):
        flat = op.Reshape(x, integers([0, 0, -1]))
        positions = op.ArgMax(flat, axis=2, keepdims=1)
        return op.GlobalMaxPool(x), op.Reshape(positions, integers([0, 0, *(1,) * ndim]))
    known = known_sizes(x)
    if any(n is None or n % out for n, out in zip(known, size)):
        raise refuse(what, f"indices of unequal windows: output_size={tuple(size)} of an input of {known}")
    kernel = [n // out for n, out in zip(known, size) if n is not None]
    return _maxima(x, _Windows(kernel, kernel, *((0,) * ndim,) * 2, (1,) * ndim, (0,) * ndim, False), x.dtype, True)


def _max_pool_with_indices(x: Value, samples: Value, **form: Any) -> Any:
    if form["offsets"] and form["pool"] != "fractional_max":
        raise refuse("gpuconv::max_pool_with_indices", "it keeps positions in windows for a gradient")
    return _max_pool(x, indices=True, **form)


def _regular_max(x: Value, **settings: Any) -> Value:
    return op.MaxPool(x, **settings)[0]


def _adaptive(what: str, x: Value, size: Sequence[Any], whole: Any, pool: Any, reduce: Any) -> Value:
    """Return a pool whose windows share out the input: one, equal ones, or by slices along one axis after another."""
    fixed(what, output_size=size)
    if all(out == 1 for out in size):
        return whole(x)
    known = known_sizes(x)
    sizes = [n for n in known if n is not None]
    if len(sizes) < len(known):
        raise refuse(what, f"its windows follow from sizes that are dynamic: output_size={tuple(size)}")
    if all(n and n % out == 0 for n, out in zip(sizes, size)):
        kernel = [n // out for n, out in zip(sizes, size)]
        return pool(x, kernel_shape=kernel, strides=kernel)
    for axis, (n, out) in enumerate(zip(sizes, size), 2):
        parts = [
            reduce(slice_axis(x, axis, *bounds), integers([axis]), keepdims=1)
            for bounds in zip(*shapes.adaptive_windows(n, out))
        ]
        x = op.Concat(*parts, axis=axis)
    return x


def _max_unpool(x: Value, indices: Value, size: Sequence[Any], **_: Any) -> Value:
    what = f"max_unpool{len(size)}d"
    require_floats(what, x)
    ends = integers(size)
    batch = op.Shape(x, start=0, end=2)
    plane = op.Expand(constant(0, x.dtype), op.Concat(batch, op.ReduceProd(ends, keepdims=1), axis=0))
    flat = [op.Reshape(value, integers([0, 0, -1])) for value in (indices, x)]
    return op.Reshape(op.ScatterElements(plane, *flat, axis=2), op.Concat(batch, ends, axis=0))


def _unfold(x: Value, kernel: Sizes, stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes, **_: Any) -> Value:
    ndim = len(kernel)
    fixed("unfold", kernel_size=kernel, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation)
    rows = _channels("unfold", x) * prod(kernel)
    y = pad(x, pad_lo, pad_hi) if any((*pad_lo, *pad_hi)) else x
    for axis in range(ndim):
        reach = dilation[axis] * (kernel[axis] - 1)
        count = op.Sub(op.Squeeze(size_at(y, 2 + 2 * axis)), constant(reach, ir.DataType.INT64))
        zero, step = (constant(value, ir.DataType.INT64) for value in (0, stride[axis]))
        taps = np.arange(kernel[axis])[:, None] * dilation[axis]
        places = op.Add(op.Range(zero, count, step), constant(taps, ir.DataType.INT64))
        y = op.Gather(y, places, axis=2 + 2 * axis)
    order = [0, 1, *(2 + 2 * axis for axis in range(ndim)), *(3 + 2 * axis for axis in range(ndim))]
    return op.Reshape(op.Transpose(y, perm=order), integers([0, rows, -1]))


def _fold(
    columns: Value, size: Sequence[Any], kernel: Sizes, stride: Sizes, pad_lo: Sizes, pad_hi: Sizes, dilation: Sizes,
    **_: Any,
) -> Value:  # fmt: skip
    fixed("fold", kernel_size=kernel, stride=stride, padding=[*pad_lo, *pad_hi], dilation=dilation)
    require_floats("fold", columns)
    return op.Col2Im(
        columns, integers(size), integers(kernel), dilations=list(dilation), pads=[*pad_lo, *pad_hi],
        strides=list(stride),
    )  # fmt: skip


TRANSLATORS: dict[str, Callable[..., Any]] = {
    "avg_pool": _avg_pool,
    "fold": _fold,
    "lp_pool": _lp_pool,
    "max_pool": _max_pool,
    "max_pool_with_indices": _max_pool_with_indices,
    "max_unpool": _max_unpool,
    "unfold": _unfold,
}
"""What makes nodes of the pools, by the name of the operator."""
