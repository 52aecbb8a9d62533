"""The calls of the backward pools: each is described by the problem of its forward call, with `kind` ``"bwd"``."""

from __future__ import annotations

from math import isinf
from typing import Any

from ..errors import invalid
from ..problem import Call
from .common import int_tuple
from .pool import (
    FLOATS,
    Source,
    Windows,
    adaptive_windows_of,
    boolean,
    check_dtype,
    check_like,
    check_sizes,
    neutral_windows,
    pool_call,
    read_source,
    windows_of,
)
from .pool_forward import avg_windows, lp_windows, norm_of

__all__ = [
    "adaptive_backward_call",
    "avg_backward_call",
    "fractional_backward_call",
    "lp_backward_call",
    "max_backward_call",
    "unpool_backward_call",
]


def _source(op: str, ndim: int, input: Any, grad_output: Any, **others: Any) -> Source:
    source = read_source(op, ndim, "input", input, {"grad_output": grad_output, **others})
    check_dtype(source, FLOATS)
    return source


def _like_output(source: Source, windows: Windows, grad_output: Any, indices: Any = None) -> None:
    lead = (source.c,) if source.unbatched else (source.n, source.c)
    shape = (*lead, *windows.output)
    check_like(source, "grad_output", grad_output, shape, source.dtype)
    if indices is not None:
        check_like(source, "indices", indices, shape, "int64")


def max_backward_call(
    op: str, ndim: int, grad_output: Any, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, indices: Any, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of the backward pass of a max pool."""
    source = _source(op, ndim, input, grad_output, indices=indices)
    check_sizes(source)
    windows = windows_of(source, kernel_size, stride, padding, dilation, ceil_mode)
    _like_output(source, windows, grad_output, indices)
    arrays = {"y": grad_output, "indices": indices}
    return pool_call(source, "max", windows, arrays, backend, kind="bwd", ceil_mode=ceil_mode)


def avg_backward_call(
    op: str, ndim: int, grad_output: Any, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of the backward pass of an average pool."""
    source = _source(op, ndim, input, grad_output)
    include = boolean(op, "count_include_pad", count_include_pad)
    windows, divisor = avg_windows(source, kernel_size, stride, padding, dilation, ceil_mode, divisor_override)
    _like_output(source, windows, grad_output)
    return pool_call(
        source, "avg", windows, {"y": grad_output}, backend, kind="bwd",
        ceil_mode=ceil_mode, count_include_pad=include, divisor_override=divisor,
    )  # fmt: skip


def lp_backward_call(
    op: str, ndim: int, grad_output: Any, input: Any, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool,
    padding: Any, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of the backward pass of a power pool."""
    source = _source(op, ndim, input, grad_output)
    p = norm_of(op, norm_type)
    if p == 0:
        raise invalid(op, "norm_type", norm_type, "other than zero", ZeroDivisionError)
    windows = lp_windows(source, kernel_size, stride, padding, ceil_mode, isinf(p))
    _like_output(source, windows, grad_output)
    arrays = {"x": input, "y": grad_output}
    options: dict[str, Any] = {"ceil_mode": ceil_mode, "norm_type": p}
    return pool_call(source, "lp", windows, arrays, backend, kind="bwd", **options)


def adaptive_backward_call(
    op: str, ndim: int, grad_output: Any, pool: str, input: Any, indices: Any, backend: str | None
) -> Call:
    """Return the call of the backward pass of an adaptive pool; its windows follow from the shape of `grad_output`."""
    source = _source(op, ndim, input, grad_output, indices=indices)
    grad_shape = source.kind.shape(grad_output)
    if len(grad_shape) != len(source.shape):
        raise invalid(op, "grad_output (shape)", grad_shape, f"of {len(source.shape)} axes, as the input")
    if 0 in grad_shape[1:]:
        raise invalid(op, "grad_output (shape)", grad_shape, "non-empty in every axis but the first")
    windows = adaptive_windows_of(source, grad_shape[-ndim:])
    _like_output(source, windows, grad_output, indices)
    arrays = {"y": grad_output} if indices is None else {"y": grad_output, "indices": indices}
    return pool_call(source, pool, windows, arrays, backend, kind="bwd")


def fractional_backward_call(
    op: str, ndim: int, grad_output: Any, input: Any, kernel_size: Any, output_size: Any, indices: Any,
    backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of the backward pass of a fractional max pool."""
    source = _source(op, ndim, input, grad_output, indices=indices)
    kernel = int_tuple(op, "kernel_size", kernel_size, ndim)
    windows = neutral_windows(kernel, int_tuple(op, "output_size", output_size, ndim))
    _like_output(source, windows, grad_output, indices)
    arrays = {"y": grad_output, "indices": indices}
    return pool_call(source, "fractional_max", windows, arrays, backend, kind="bwd")


def unpool_backward_call(op: str, ndim: int, grad_output: Any, input: Any, indices: Any, backend: str | None) -> Call:
    """Return the call of the backward pass of an unpooling; the large side is the shape of `grad_output`."""
    source = _source(op, ndim, input, grad_output, indices=indices)
    check_like(source, "indices", indices, source.shape, "int64")
    large = source.kind.shape(grad_output)[-ndim:]
    windows = neutral_windows((1,) * ndim, large)
    _like_output(source, windows, grad_output)
    arrays = {"y": grad_output, "indices": indices}
    return pool_call(source, "max_unpool", windows, arrays, backend, kind="bwd")
