"""The calls of the forward pools: max, average, power, unpooling, fractional, unfold and fold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isinf, prod
from typing import Any

import numpy as np

from ..arrays import CONTIGUOUS, common_kind
from ..errors import invalid
from ..problem import Call
from ..shapes import conv_output_size, conv_transpose_output_size, map_axes
from .common import int_tuple, integer
from .pool import (
    FLOATS,
    INTEGERS,
    Source,
    Windows,
    boolean,
    check_dtype,
    check_elements,
    check_like,
    check_sizes,
    neutral_windows,
    pool_call,
    positive,
    read_source,
    windows_of,
)

__all__ = [
    "COLUMNS",
    "avg_call",
    "avg_windows",
    "fold_call",
    "fractional_call",
    "low_rank",
    "lp_call",
    "lp_types",
    "lp_windows",
    "max_call",
    "norm_of",
    "unfold_call",
    "unpool_call",
]

COLUMNS = ("bool", *FLOATS, "complex64", "complex128")
_NUMBERS = (int, float, np.floating, np.integer)
_ALL_INTEGERS = ("bool", *INTEGERS, "uint16", "uint32", "uint64")


def _one_or_each(op: str, argument: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return `value` as :func:`int_tuple` does, but refuse a sequence of one, as torch does for some functions."""
    items = int_tuple(op, argument, value, ndim)
    if isinstance(value, Sequence) and len(value) != ndim:
        raise invalid(op, argument, value, f"an integer or {ndim} of them, one per spatial axis")
    return items


def low_rank(pool: str, ndim: int) -> type[Exception]:
    """Return the class that torch raises for an input of too low a rank."""
    indexed = {"avg": (2,), "lp": (2,), "fractional_max": (2, 3)}
    return IndexError if ndim in indexed.get(pool, ()) else RuntimeError


def max_call(
    op: str, ndim: int, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
    return_indices: bool, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of a max pool."""
    source = read_source(op, ndim, "input", input, {})
    check_sizes(source)
    windows = windows_of(source, kernel_size, stride, padding, dilation, ceil_mode)
    indices = bool(return_indices)
    check_dtype(source, FLOATS if ndim == 1 and not indices else (*FLOATS, *INTEGERS))
    return pool_call(source, "max", windows, {"x": input}, backend, ceil_mode=ceil_mode, return_indices=indices)


def avg_windows(
    source: Source, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, divisor: Any
) -> tuple[Windows, int | None]:
    """Return the windows of an average pool and its `divisor_override`.

    Raises
    ------
    RuntimeError
        If the divisor is 0, or a 3-D kernel exceeds its input, and as :func:`windows_of`.
    """
    if divisor is not None and integer(source.op, "divisor_override", divisor) == 0:
        raise invalid(source.op, "divisor_override", divisor, "an integer other than zero")
    check_sizes(source)
    fits = len(source.size) == 3  # torch's rule for avg_pool3d alone
    windows = windows_of(source, kernel_size, stride, padding, dilation, ceil_mode, fits)
    return windows, None if divisor is None else integer(source.op, "divisor_override", divisor)


def avg_call(
    op: str, ndim: int, input: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of an average pool."""
    source = read_source(op, ndim, "input", input, {}, low_rank("avg", ndim))
    include = boolean(op, "count_include_pad", count_include_pad)
    windows, divisor = avg_windows(source, kernel_size, stride, padding, dilation, ceil_mode, divisor_override)
    check_dtype(source, (*FLOATS, "int64"))
    return pool_call(
        source, "avg", windows, {"x": input}, backend,
        ceil_mode=ceil_mode, count_include_pad=include, divisor_override=divisor,
    )  # fmt: skip


def lp_windows(source: Source, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, extreme: bool) -> Windows:
    """Return the windows of a power pool. As in torch a sequence has one entry per axis, and 1-D takes none."""
    ndim = len(source.size)
    if isinstance(kernel_size, Sequence):
        if ndim > 1 and len(kernel_size) != ndim:
            raise invalid(source.op, "kernel_size", kernel_size, f"an integer or {ndim} of them", ValueError)
        if ndim == 1 and len(kernel_size) == 1 and not extreme:
            raise invalid(source.op, "kernel_size", kernel_size, "an integer", TypeError)
    check_sizes(source)
    return windows_of(source, kernel_size, stride, padding, 1, ceil_mode, ndim == 3 and not extreme)


def norm_of(op: str, value: Any) -> float:
    """Return the power of a power pool as a float.

    Raises
    ------
    TypeError
        If it is not a number.
    """
    if isinstance(value, _NUMBERS):
        return float(value)
    raise invalid(op, "norm_type", value, "a number", TypeError)


def lp_types(dtype: str, p: float, whole: bool) -> dict[str, Any]:
    """Return in which types a power pool of integers computes, and its result; nothing for floats.

    `whole` tells whether the power was given as an integer.
    """
    if isinf(p):
        return {"compute": dtype if dtype in INTEGERS else None}
    if dtype not in _ALL_INTEGERS:
        return {}
    return {"compute": "int64" if whole else "float32", "result": "float32", "integer_power": whole}


def lp_call(
    op: str, ndim: int, input: Any, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool, padding: Any,
    backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of a power pool.

    Element types follow torch's powers: an integer raises integers in their own type (and only int64 has averages), a
    float raises them in float32.
    """
    source = read_source(op, ndim, "input", input, {}, low_rank("lp", ndim))
    p = norm_of(op, norm_type)
    windows = lp_windows(source, kernel_size, stride, padding, ceil_mode, isinf(p))
    whole = isinstance(norm_type, (int, np.integer))
    if isinf(p):
        check_dtype(source, FLOATS if ndim == 1 else (*FLOATS, *INTEGERS))
    elif source.dtype in _ALL_INTEGERS:
        if whole and p < 0:
            raise invalid(op, "norm_type", norm_type, "non-negative for integers")
        if whole:
            check_dtype(source, ("int64",) if isinstance(norm_type, bool) else ("bool", "int64"))
    else:
        check_dtype(source, FLOATS)
    if p == 0:
        raise invalid(op, "norm_type", norm_type, "other than zero", ZeroDivisionError)
    extra = lp_types(source.dtype, p, whole)
    return pool_call(source, "lp", windows, {"x": input}, backend, extra=extra, ceil_mode=ceil_mode, norm_type=p)


def _unpool_size(source: Source, kernel: Any, stride: Any, padding: Any, output_size: Any) -> tuple[int, ...]:
    """Return the large side: `output_size`, or the least one whose pool has the size of the input."""
    op, ndim = source.op, len(source.size)
    default = map_axes(conv_transpose_output_size, source.size, kernel, stride, padding, padding)
    if output_size is None:
        wanted = default
    else:
        if not isinstance(output_size, Sequence) or isinstance(output_size, str):
            raise invalid(op, "output_size", output_size, f"a sequence of {ndim} or {ndim + 2} integers", TypeError)
        sizes = output_size[2:] if len(output_size) == ndim + 2 else output_size
        if len(sizes) != ndim:
            required = f"a sequence of {ndim} or {ndim + 2} integers"
            raise invalid(op, "output_size", output_size, required, ValueError)
        wanted = tuple(integer(op, "output_size", size) for size in sizes)
        for size, least, step in zip(wanted, default, stride):
            if not least - step < size < least + step:
                required = f"within stride={stride} of {default}, the size without it"
                raise invalid(op, "output_size", output_size, required, ValueError)
    if min(wanted) < 0:
        raise invalid(op, "output_size", wanted, "non-negative (computed from the other arguments)", ValueError)
    return wanted


def unpool_call(
    op: str, ndim: int, input: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any,
    backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of a max unpooling."""
    if indices is None:
        raise invalid(op, "indices", indices, "an array", TypeError)
    rank = len(common_kind(op, {"input": input, "indices": indices}).shape(input))
    source = read_source(op, ndim, "input", input, {"indices": indices}, IndexError if rank < ndim else RuntimeError)
    kernel = int_tuple(op, "kernel_size", kernel_size, ndim)
    steps = kernel if stride is None else int_tuple(op, "stride", stride, ndim)
    pads = int_tuple(op, "padding", padding, ndim)
    output = _unpool_size(source, kernel, steps, pads, output_size)
    check_like(source, "indices", indices, source.shape, "int64")
    check_sizes(source, not source.unbatched)
    check_elements(op, "output_size", output_size, (source.n, source.c, *output))
    if ndim == 3:
        positive(op, "stride", steps, stride)
    check_dtype(source, FLOATS)
    return pool_call(
        source, "max_unpool", neutral_windows(kernel, output), {"x": input, "indices": indices}, backend,
        formats=(source.format, source.format if ndim == 2 else CONTIGUOUS),
    )  # fmt: skip


def _ratio_size(source: Source, output_ratio: Any) -> tuple[int, ...]:
    op, ndim = source.op, len(source.size)
    several = isinstance(output_ratio, Sequence) and not isinstance(output_ratio, str)
    ratios = tuple(output_ratio) if several else (output_ratio,) * ndim
    if len(ratios) > ndim:
        raise invalid(op, "output_ratio", output_ratio, f"a number or {ndim} of them, one per spatial axis", ValueError)
    if len(ratios) < ndim:
        raise invalid(op, "output_ratio", output_ratio, f"a number or {ndim} of them, one per spatial axis", IndexError)
    if not all(isinstance(ratio, _NUMBERS) for ratio in ratios):
        raise invalid(op, "output_ratio", output_ratio, "numbers", TypeError)
    return tuple(int(size * ratio) for size, ratio in zip(source.size, ratios))


def _draw(source: Source) -> Any:
    """Return uniform samples in [0, 1), one per row and axis, from the generator of the array's own library."""
    shape = (source.n, source.c, len(source.size))
    if source.kind.name == "torch":
        torch = sys.modules["torch"]
        return torch.rand(*shape, dtype=getattr(torch, source.dtype), device=source.device)
    if source.kind.name == "cupy":
        return _draw_on_device(shape, source)
    samples = np.random.random_sample(shape).astype(source.dtype)
    below_one = np.nextafter(samples.dtype.type(1), samples.dtype.type(0))
    return np.minimum(samples, below_one)


def _draw_on_device(shape: tuple[int, ...], source: Source) -> Any:
    """Return uniform samples from CuPy's generator, on the device of the array."""
    cupy = sys.modules["cupy"]
    with cupy.cuda.Device(int(source.device.partition(":")[2])):
        if source.dtype in ("float32", "float64"):
            return cupy.random.random_sample(shape, dtype=source.dtype)
        # As many steps between 0 and 1 as the type can tell apart below 1: rounding another number could give 1.
        steps = 2 ** {"float16": 11, "bfloat16": 8}[source.dtype]
        whole = cupy.random.randint(0, steps, shape)
        return (whole.astype("float32") / steps).astype(cupy.dtype(source.dtype))


def fractional_call(
    op: str, ndim: int, input: Any, kernel_size: Any, output_size: Any, output_ratio: Any, return_indices: bool,
    samples: Any, backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of a fractional max pool."""
    source = read_source(op, ndim, "input", input, {"_random_samples": samples}, low_rank("fractional_max", ndim))
    if output_size is None and output_ratio is None:
        raise invalid(op, "output_size", None, "given where output_ratio is not", ValueError)
    if output_size is None:
        output_size = _ratio_size(source, output_ratio)
    kernel = _one_or_each(op, "kernel_size", kernel_size, ndim)
    output = _one_or_each(op, "output_size", output_size, ndim)
    if samples is None:
        check_dtype(source, FLOATS)
        samples = _draw(source)
    found = source.kind.shape(samples)
    if source.kind.dtype(samples) != source.dtype:
        raise invalid(op, "_random_samples (dtype)", source.kind.dtype(samples), f"{source.dtype}, as the input")
    if len(found) != 3 or found[0] < source.n or found[1:] != (source.c, ndim):
        required = f"of shape ({source.n}, {source.c}, {ndim}): N, C and one per spatial axis"
        raise invalid(op, "_random_samples (shape)", found, required)
    check_sizes(source, not source.unbatched)
    positive(op, "kernel_size", kernel, kernel_size)
    if min(output) < 0:
        raise invalid(op, "output_size", output_size, "non-negative")
    for size, out, extent in zip(source.size, output, kernel):
        if out + extent - 1 > size - (ndim == 3):
            most = "less than" if ndim == 3 else "at most"
            required = f"such that output_size + kernel_size - 1 is {most} the input, {source.size}"
            raise invalid(op, "kernel_size", kernel_size, required)
    check_dtype(source, FLOATS)
    drawn = samples[: source.n]
    call = pool_call(
        source, "fractional_max", neutral_windows(kernel, output), {"x": input}, backend,
        formats=(source.format, CONTIGUOUS), return_indices=bool(return_indices),
    )  # fmt: skip
    return Call(call.problem, {**call.arrays, "samples": drawn}, call.kind, call.unbatched, backend)


def _column_windows(
    source: Source, size: tuple[int, ...], kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> Windows:
    op = source.op
    kernel = _one_or_each(op, "kernel_size", kernel_size, 2)
    rate = _one_or_each(op, "dilation", dilation, 2)
    pads = _one_or_each(op, "padding", padding, 2)
    steps = _one_or_each(op, "stride", stride, 2)
    positive(op, "kernel_size", kernel, kernel_size)
    positive(op, "dilation", rate, dilation)
    positive(op, "stride", steps, stride)
    if min(pads) < 0:
        raise invalid(op, "padding", padding, "non-negative")
    output = map_axes(conv_output_size, size, kernel, steps, pads, pads, rate)
    if min(output) < 1:
        required = f"such that an image of {size} has a window, and not {output} of them"
        raise invalid(op, "kernel_size", kernel_size, required)
    return Windows(kernel, steps, pads, pads, rate, output)


def unfold_call(
    op: str, ndim: int, input: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any, backend: str | None
) -> Call:
    """Return the call of an unfold."""
    source = read_source(op, ndim, "input", input, {}, IndexError)
    windows = _column_windows(source, source.size, kernel_size, dilation, padding, stride)
    check_sizes(source)
    check_elements(op, "padding", padding, (source.n, source.c, *windows.kernel, *windows.output))
    check_dtype(source, COLUMNS)
    return pool_call(source, "unfold", windows, {"x": input}, backend, formats=(source.format, CONTIGUOUS))


def fold_call(
    op: str, ndim: int, input: Any, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any,
    backend: str | None,
) -> Call:  # fmt: skip
    """Return the call of a fold, which is described by the image that it makes."""
    columns = read_source(op, 1, "input", input, {})
    size = _one_or_each(op, "output_size", output_size, ndim)
    windows = _column_windows(columns, size, kernel_size, dilation, padding, stride)
    check_sizes(columns)
    taps = prod(windows.kernel)
    if columns.c % taps:
        required = f"with a channel axis that kernel_size={windows.kernel} divides ({taps})"
        raise invalid(op, "input (shape)", columns.shape, required)
    if columns.size != (prod(windows.output),):
        required = f"with {prod(windows.output)} columns, one per window of {windows.output}"
        raise invalid(op, "input (shape)", columns.shape, required)
    positive(op, "output_size", size, output_size)
    check_elements(op, "output_size", output_size, (columns.n, columns.c // taps, *size))
    check_dtype(columns, COLUMNS)
    image = Source(
        op, columns.kind, input, columns.n, columns.c // taps, size, columns.dtype, columns.device, CONTIGUOUS,
        columns.unbatched,
    )  # fmt: skip
    return pool_call(image, "fold", windows, {"y": input}, backend)
