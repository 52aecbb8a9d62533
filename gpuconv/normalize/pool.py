"""From the arguments of a pooling call to a :class:`gpuconv.problem.Call`. Every user error of a pool is raised here.

Exception classes are torch's, as probed on its CPU kernels; where they differ between functions (an ``IndexError`` for
a tensor of too low a rank in some) the difference is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from ..arrays import CONTIGUOUS, ArrayKind, common_kind
from ..errors import invalid
from ..problem import Call, PoolProblem
from ..shapes import adaptive_longest, effective_kernel, map_axes, pad_half, pad_same, pad_same_lower, pad_same_upper
from ..shapes import pool_output_size as output_size_of
from .common import AXES, int_tuple, integer, is_compiling, is_symbolic, memory_format, pad_pairs, same_device

__all__ = [
    "FLOATS",
    "INTEGERS",
    "Source",
    "Windows",
    "adaptive_call",
    "adaptive_kernel",
    "adaptive_windows_of",
    "boolean",
    "check_dtype",
    "check_elements",
    "check_like",
    "check_sizes",
    "neutral_windows",
    "pool_call",
    "positive",
    "read_source",
    "windows_of",
]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


@dataclass(frozen=True, slots=True)
class Source:
    """The input of a pooling call, with the batch axis that it may lack."""

    op: str
    kind: ArrayKind
    array: Any
    n: int
    c: int
    size: tuple[int, ...]
    dtype: str
    device: str
    format: str
    unbatched: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that the user passed."""
        return (self.c, *self.size) if self.unbatched else (self.n, self.c, *self.size)

    def batched(self, array: Any) -> Any:
        """Return `array` with the batch axis."""
        return self.kind.add_batch(array) if self.unbatched else array


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a pool in canonical tuples."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad_lo: tuple[int, ...]
    pad_hi: tuple[int, ...]
    dilation: tuple[int, ...]
    output: tuple[int, ...]


def read_source(
    op: str, ndim: int, argument: str, array: Any, others: dict[str, Any], low_rank: type[Exception] = RuntimeError
) -> Source:
    """Check that `array` is an ``(N), C, *spatial`` array beside arrays of its kind on its device, and describe it.

    Raises
    ------
    TypeError
        If an array is of an unknown kind, or of another one.
    RuntimeError
        If the rank is wrong (`low_rank` where it is too low), or the devices differ.
    """
    if array is None:
        raise invalid(op, argument, array, "an array", TypeError)
    named = {argument: array, **others}
    kind = common_kind(op, named)
    shape = kind.shape(array)
    axes = ", ".join(AXES[-ndim:])
    if len(shape) not in (ndim + 1, ndim + 2):
        required = f"an array of shape (N, C, {axes}) or (C, {axes})"
        raise invalid(op, f"{argument} (shape)", shape, required, low_rank if len(shape) <= ndim else RuntimeError)
    unbatched = len(shape) == ndim + 1
    n, c, *size = (1, *shape) if unbatched else shape
    # Of unbatched arrays torch's C W and C H W come out contiguous, and C D H W keeps C innermost.
    fmt = CONTIGUOUS
    if not unbatched:
        fmt = memory_format(shape, kind.strides(array))
    elif ndim == 3 and 0 not in shape:
        strides = kind.strides(array)
        outer = max([n * s for n, s in zip(shape, strides)])
        fmt = memory_format((1, *shape), (outer, *strides))
    device = same_device(op, kind, named)
    return Source(op, kind, array, n, c, tuple(size), kind.dtype(array), device, fmt, unbatched)


def check_dtype(source: Source, allowed: Sequence[str], argument: str = "input") -> None:
    """Refuse element types that torch's CPU kernel of this operation does not have.

    Raises
    ------
    NotImplementedError
        If the element type is not in `allowed`.
    """
    if source.dtype not in allowed:
        required = "one of " + ", ".join(allowed)
        raise invalid(source.op, f"{argument} (dtype)", source.dtype, required, NotImplementedError)


def boolean(op: str, argument: str, value: object) -> bool:
    """Return `value` if it is a bool.

    Raises
    ------
    TypeError
        Otherwise: an integer is no bool here, as in torch.
    """
    if value is True or value is False:
        return value is True
    raise invalid(op, argument, value, "a bool", TypeError)


def check_sizes(source: Source, channels: bool = True) -> None:
    """Refuse an input with an empty spatial axis, or (with `channels`) without channels; the batch may be empty.

    Raises
    ------
    RuntimeError
        If an axis is empty.
    """
    if not all(source.size) or (channels and not source.c):
        raise invalid(source.op, "input (shape)", source.shape, "non-empty in every axis but the batch")


def check_elements(op: str, argument: str, given: object, shape: Sequence[int]) -> None:
    """Refuse a result of more elements than 64 bits count, before anything is made of that size.

    Raises
    ------
    RuntimeError
        If `shape` has 2**63 elements or more. Symbolic sizes pass: the allocation checks them.
    """
    if not any(is_symbolic(size) for size in shape) and prod(shape) >= 2**63:
        raise invalid(op, argument, given, f"such that the result has fewer than 2**63 elements, and not {shape}")


def positive(op: str, argument: str, values: tuple[int, ...], given: object) -> tuple[int, ...]:
    """Return `values` if all are at least 1.

    Raises
    ------
    RuntimeError
        Otherwise.
    """
    if min(values) < 1:
        raise invalid(op, argument, given, "greater than zero")
    return values


def _pads(
    source: Source, padding: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Return one (lo, hi) pair per axis, each at most half a window."""
    op, ndim = source.op, len(kernel)
    if isinstance(padding, str):
        return _named_pads(source, padding, kernel, stride, dilation)
    pairs = pad_pairs(op, "padding", padding, ndim)
    # torch's own form is held to half the kernel, whatever the dilation; pairs to half the extent of the window.
    half = map_axes(pad_half, kernel) if pairs is None else map_axes(pad_half, kernel, dilation)
    if pairs is None:
        pairs = tuple((pad, pad) for pad in int_tuple(op, "padding", padding, ndim))
    for pair, (most, _) in zip(pairs, half):
        if min(pair) < 0:
            raise invalid(op, "padding", padding, "non-negative")
        if max(pair) > most:
            required = f"at most half of the window, which is {most} for kernel_size={kernel} and dilation={dilation}"
            raise invalid(op, "padding", padding, required)
    return pairs


def _named_pads(
    source: Source, padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        if max(stride) > 1:
            raise invalid(source.op, "padding", padding, f"'same_upper' or 'same_lower' where stride={stride} is not 1")
        return map_axes(pad_same, kernel, dilation)
    if padding == "same_upper":
        return map_axes(pad_same_upper, source.size, kernel, stride, dilation)
    if padding == "same_lower":
        return map_axes(pad_same_lower, source.size, kernel, stride, dilation)
    required = "integers, (lo, hi) pairs, 'same', 'same_upper', 'same_lower' or 'valid'"
    raise invalid(source.op, "padding", padding, required, TypeError)


def windows_of(
    source: Source, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, fits: bool = False
) -> Windows:
    """Return the windows of a max, average or power pool, with the output size.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    RuntimeError
        If a value is out of range, or an output axis would be empty; with `fits` also if a kernel exceeds the input
        without its padding, where that has torch's form.
    """
    op, ndim = source.op, len(source.size)
    kernel = int_tuple(op, "kernel_size", kernel_size, ndim)
    omitted = stride is None or (isinstance(stride, (tuple, list)) and not stride)
    steps = kernel if omitted else int_tuple(op, "stride", stride, ndim)
    rate = int_tuple(op, "dilation", dilation, ndim)
    boolean(op, "ceil_mode", ceil_mode)
    kernel = positive(op, "kernel_size", kernel, kernel_size)
    steps = positive(op, "stride", steps, stride)
    rate = positive(op, "dilation", rate, dilation)
    pairs = _pads(source, padding, kernel, steps, rate)
    pad_lo, pad_hi = tuple(lo for lo, _ in pairs), tuple(hi for _, hi in pairs)
    theirs = not isinstance(padding, str) and pad_pairs(op, "padding", padding, ndim) is None
    if (
        fits
        and theirs
        and any(size < extent for size, extent in zip(source.size, map_axes(effective_kernel, kernel, rate)))
    ):
        raise invalid(op, "kernel_size", kernel_size, f"no larger than the input, which is {source.size}")
    ceil = (ceil_mode,) * ndim
    output = map_axes(output_size_of, source.size, kernel, steps, pad_lo, pad_hi, rate, ceil)
    if min(output) < 1:
        required = f"such that every output axis has a window, and not {output} of an input of {source.size}"
        raise invalid(op, "kernel_size", kernel_size, required)
    return Windows(kernel, steps, pad_lo, pad_hi, rate, output)


def neutral_windows(kernel: tuple[int, ...], output: tuple[int, ...]) -> Windows:
    """Return windows whose places are not given by strides: adaptive, fractional and unpooling."""
    zeros, ones = (0,) * len(kernel), (1,) * len(kernel)
    return Windows(kernel, ones, zeros, zeros, ones, output)


def pool_call(
    source: Source,
    pool: str,
    windows: Windows,
    arrays: dict[str, Any],
    backend: str | None,
    *,
    kind: str = "fprop",
    formats: tuple[str, str] | None = None,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> Call:
    """Return the call of one pool. `arrays` come without the batch axis where the input does."""
    x_format, y_format = formats or (source.format, source.format)
    problem = PoolProblem(
        source.op, pool, kind, source.n, source.c, source.size, windows.kernel, windows.output, windows.stride,
        windows.pad_lo, windows.pad_hi, windows.dilation, source.dtype, source.device, source.kind.name,
        x_format, y_format, **options,
    )  # fmt: skip
    batched = {name: source.batched(array) for name, array in arrays.items()}
    return Call(problem, batched, source.kind, source.unbatched, backend, extra or {})


def check_like(source: Source, argument: str, array: Any, shape: tuple[int, ...], dtype: str | None = None) -> None:
    """Refuse a gradient or an array of indices whose shape or element type is not the expected one.

    Raises
    ------
    RuntimeError
        If it differs. `shape` is without the batch axis where the input is.
    """
    found = source.kind.shape(array)
    if found != shape:
        raise invalid(source.op, f"{argument} (shape)", found, f"{shape}, the shape of the other arrays of the call")
    if dtype is not None and source.kind.dtype(array) != dtype:
        raise invalid(source.op, f"{argument} (dtype)", source.kind.dtype(array), dtype)


def _adaptive_sizes(source: Source, output_size: Any) -> tuple[int, ...]:
    op, ndim = source.op, len(source.size)
    several = isinstance(output_size, Sequence) and not isinstance(output_size, str)
    if not several:
        sizes = (integer(op, "output_size", output_size),) * ndim
    else:
        given = [None if item is None and ndim > 1 else integer(op, "output_size", item) for item in output_size]
        if len(given) != ndim:
            raise invalid(op, "output_size", output_size, f"an integer or {ndim} of them, one per spatial axis")
        sizes = tuple(size if item is None else item for item, size in zip(given, source.size))
    if min(sizes) < 0:
        raise invalid(op, "output_size", output_size, "non-negative")
    return sizes


@lru_cache(maxsize=1024)
def adaptive_kernel(size: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, ...]:
    """Return the largest window of an adaptive pool, at least 1 in every axis."""
    return tuple((adaptive_longest(n, o) if o else 1) or 1 for n, o in zip(size, output))


def adaptive_windows_of(source: Source, output_size: Any) -> Windows:
    """Return the windows of an adaptive pool; `kernel` is the largest one, or 1 in a trace, where no solver reads it.

    Raises
    ------
    TypeError
        If `output_size` is not an integer or a sequence of them (and of ``None``, in 2-D and 3-D).
    RuntimeError
        If it has another length than the spatial axes, a negative entry, or too many elements.
    """
    output = _adaptive_sizes(source, output_size)
    if is_compiling() or any(is_symbolic(size) for size in (*source.size, *output)):
        return neutral_windows((1,) * len(output), output)
    check_elements(source.op, "output_size", output_size, (source.n, source.c, *output))
    return neutral_windows(adaptive_kernel(source.size, output), output)


def adaptive_call(
    op: str, ndim: int, input: Any, pool: str, output_size: Any, backend: str | None, indices: bool
) -> Call:
    """Return the call of an adaptive pool: `pool` is ``"adaptive_avg"`` or ``"adaptive_max"``."""
    if ndim > 1 and isinstance(output_size, Sequence) and not isinstance(output_size, str):
        rank = len(common_kind(op, {"input": input}).shape(input))
        if len(output_size) >= rank:  # torch looks at this before the rank itself
            required = f"an integer or {ndim} of them, and not as many as the input has axes ({rank})"
            raise invalid(op, "output_size", output_size, required, ValueError)
    source = read_source(op, ndim, "input", input, {})
    windows = adaptive_windows_of(source, output_size)
    one = pool == "adaptive_avg" and all(out == 1 for out in windows.output)
    if not one:  # torch takes the mean there, of empty axes (NaN) and of complex numbers too
        check_sizes(source, not source.unbatched and (pool == "adaptive_max" or ndim == 3))
        check_dtype(source, FLOATS)
    elif source.dtype not in (*FLOATS, "complex64", "complex128"):
        no_sum = "float8" in source.dtype or source.dtype == "complex32"  # torch has the type, and no sum of it
        error = NotImplementedError if no_sum else RuntimeError
        raise invalid(op, "input (dtype)", source.dtype, "a floating-point or complex type", error)
    return pool_call(source, pool, windows, {"x": input}, backend, return_indices=indices)
