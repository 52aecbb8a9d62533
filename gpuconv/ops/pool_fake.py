"""What the pooling operators return, without values: shape, dtype, device and strides, also of symbolic sizes.

Sizes come from ``shapes`` and memory formats from the rule that real calls follow. No problem is built: sizes may be
symbolic, and hashing one would fix it. Conditions on sizes go through ``torch._check``, which a trace keeps. The real
operators run the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from .. import shapes
from ..arrays import CHANNELS_LAST, CONTIGUOUS, TORCH, channels_last_strides
from ..config import validate_backend
from ..errors import invalid
from ..normalize import COLUMNS, INTEGERS, adaptive_kernel, lp_types, memory_format, same_device
from ..normalize import POOL_FLOATS as FLOATS
from ..problem import offset_dtype

__all__ = ["AS_INPUT", "RESULTS", "Form", "column_windows", "fake", "input_format", "output_size", "window"]

Tensor = Any
Sizes = Sequence[int]

AS_INPUT = "as_input"
"""Memory format of a result that follows the strides of the input; the others are named by :mod:`gpuconv.arrays`."""

_POOLS = {
    "avg_pool": ("avg", "adaptive_avg"),
    "avg_pool_backward": ("avg", "adaptive_avg"),
    "max_pool": ("max", "adaptive_max"),
    "max_pool_with_indices": ("max", "adaptive_max", "fractional_max"),
    "max_pool_backward": ("max", "adaptive_max", "fractional_max"),
    "max_pool_gather": ("max", "adaptive_max", "fractional_max"),
    "lp_pool": ("lp",),
    "lp_pool_backward": ("lp",),
    "max_unpool": ("max_unpool",),
    "max_unpool_backward": ("max_unpool",),
    "unfold": ("unfold",),
    "fold": ("fold",),
}


class Form(NamedTuple):
    """A pooling operator without its tensors, in the order of the operators' schemas.

    `size` is the spatial size of the result where nothing else says it: of pools whose windows no stride describes, of
    unpooling and of every backward pass; elsewhere it is empty. `format` is the memory format of the result.
    """

    pool: str
    kernel: Sequence[int]
    stride: Sequence[int]
    pad_lo: Sequence[int]
    pad_hi: Sequence[int]
    dilation: Sequence[int]
    size: Sequence[int]
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None
    norm_type: float
    whole: bool
    """Whether the power was given as an integer, which decides in what type integers are raised."""
    offsets: bool
    """Whether indices are in-window offsets, not positions in a plane."""
    format: str
    backend: str | None

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def by_stride(self) -> bool:
        """Whether a stride says where windows are."""
        return self.pool in ("max", "avg", "lp")


def _require(op: str, condition: Any, text: str) -> None:
    torch._check(condition, lambda: f"{op}: {text}")


def _check_backend(backend: str | None) -> None:
    """Refuse what is no backend."""
    if backend is not None:
        validate_backend(backend, "backend")


def input_format(form: Form, tensor: Tensor) -> str:
    """Return the memory format of the result of `form` on `tensor`."""
    return memory_format(tensor.shape, tensor.stride()) if form.format == AS_INPUT else form.format


class Result(NamedTuple):
    """A result without values, on the device of the first operand."""

    dtype: Any
    shape: Sizes
    format: str


def _empty(result: Result, device: Any) -> Tensor:
    if result.format == CHANNELS_LAST:
        strides = channels_last_strides(result.shape)
        return torch.empty_strided(result.shape, strides, dtype=result.dtype, device=device)
    return torch.empty(result.shape, dtype=result.dtype, device=device)


def _check(op: str, form: Form, named: dict[str, Any], dtypes: Sequence[str]) -> None:
    """Check what every operator requires: the pool, ranks of the windows and tensors, devices, the dtype of data."""
    if form.pool not in _POOLS[op]:
        raise invalid(op, "pool", form.pool, "one of " + ", ".join(_POOLS[op]), ValueError)
    _check_backend(form.backend)
    for values in (form.stride, form.pad_lo, form.pad_hi, form.dilation):
        _require(op, len(values) == form.ndim, "stride, padding and dilation must have one entry per spatial axis")
    same_device(op, TORCH, named)
    data = [name for name in named if name in ("x", "dy")]
    for name in data:
        dtype = TORCH.dtype(named[name])
        if dtype not in dtypes:
            raise invalid(op, f"{name} (dtype)", dtype, "one of " + ", ".join(dtypes), NotImplementedError)
        _require(op, named[name].dim() == form.ndim + 2, f"{name} must have a batch, a channel and the spatial axes")
    for name in data[1:]:
        _require(op, named[name].dtype == named[data[0]].dtype, f"{name} must be of the dtype of {data[0]}")


def _same_shape(op: str, name: str, shape: Sizes, wanted: Sizes) -> None:
    _require(op, len(shape) == len(wanted), f"{name} must be of the shape that the other arguments give")
    for size, expected in zip(shape, wanted):
        _require(op, size == expected, f"{name} must be of the shape that the other arguments give")


def output_size(op: str, form: Form, size: Sizes) -> tuple[int, ...]:
    """Return the spatial size that a pool makes of `size`, without `form.size` where strides say it."""
    if not form.by_stride:
        _require(op, len(form.size) == form.ndim, "size must have one entry per spatial axis")
        return tuple(form.size)
    for k, s, lo, hi, d in zip(form.kernel, form.stride, form.pad_lo, form.pad_hi, form.dilation):
        for value in (k, s, d):
            _require(op, value >= 1, "kernel, stride and dilation must be greater than zero")
        for value in (lo, hi):
            _require(op, value >= 0, "padding must be non-negative")
    ceil = (form.ceil_mode,) * form.ndim
    axes = (size, form.kernel, form.stride, form.pad_lo, form.pad_hi, form.dilation, ceil)
    output = shapes.map_axes(shapes.pool_output_size, *axes)
    for out in output:
        _require(op, out >= 1, "every output axis must have a window")
    return output


def column_windows(form: Form, size: Sizes) -> tuple[int, ...]:
    """Return the number of windows along each axis that ``unfold`` makes columns of."""
    axes = (size, form.kernel, form.stride, form.pad_lo, form.pad_hi, form.dilation)
    output = shapes.map_axes(shapes.conv_output_size, *axes)
    for out in output:
        _require(form.pool, out >= 1, "every axis must have a window")
    return output


def window(form: Form, size: Sizes, output: Sizes) -> Sizes:
    """Return the kernel: of an adaptive pool the largest window. `size` is that of the large side."""
    if not form.pool.startswith("adaptive"):
        return form.kernel
    known = all(isinstance(n, int) for n in (*size, *output))
    return (adaptive_kernel if known else adaptive_kernel.__wrapped__)(tuple(size), tuple(output))


def _index_dtype(form: Form, size: Sizes, output: Sizes) -> Any:
    return getattr(torch, offset_dtype(prod(window(form, size, output)))) if form.offsets else torch.int64


def _check_indices(op: str, form: Form, indices: Tensor, samples: Tensor | None, size: Sizes) -> None:
    _require(op, indices.dim() == form.ndim + 2, "indices must have a batch, a channel and the spatial axes")
    wanted = _index_dtype(form, size, indices.shape[2:])
    _require(op, indices.dtype == wanted, f"indices must be {wanted}, but got {indices.dtype}")
    if form.pool == "fractional_max" and form.offsets:
        _require(op, samples is not None, "samples must be given, as offsets are relative to the windows")
    if form.by_stride:
        form = form._replace(size=())
        _same_shape(op, "indices", indices.shape[2:], output_size(op, form, size))


def _avg_pool(x: Tensor, form: Form) -> Result:
    """Describe y."""
    op, one = "avg_pool", form.pool == "adaptive_avg" and all(isinstance(n, int) and n == 1 for n in form.size)
    also = ("complex64", "complex128") if one else ("int64",) if form.pool == "avg" else ()
    _check(op, form, {"x": x}, (*FLOATS, *also))
    return Result(x.dtype, (*x.shape[:2], *output_size(op, form, x.shape[2:])), input_format(form, x))


def _avg_pool_backward(dy: Tensor, form: Form) -> Result:
    """Describe dx."""
    op = "avg_pool_backward"
    _check(op, form, {"dy": dy}, (*FLOATS, "complex64", "complex128"))
    if form.by_stride:
        _same_shape(op, "dy", dy.shape[2:], output_size(op, form, form.size))
    return Result(dy.dtype, (*dy.shape[:2], *form.size), input_format(form, dy))


def _max_pool(x: Tensor, form: Form) -> Result:
    """Describe y."""
    _check("max_pool", form, {"x": x}, (*FLOATS, *INTEGERS))
    return Result(x.dtype, (*x.shape[:2], *output_size("max_pool", form, x.shape[2:])), input_format(form, x))


def _max_pool_with_indices(x: Tensor, samples: Tensor | None, form: Form) -> tuple[Result, Result]:
    """Describe y and the indices."""
    op = "max_pool_with_indices"
    _check(op, form, {"x": x, "samples": samples}, (*FLOATS, *INTEGERS))
    _require(op, (samples is not None) == (form.pool == "fractional_max"), "samples must be given to fractional pools")
    output = output_size(op, form, x.shape[2:])
    if samples is not None:
        _same_shape(op, "samples", samples.shape, (*x.shape[:2], form.ndim))
        _require(op, samples.dtype == x.dtype, "samples must be of the dtype of x")
    shape, fmt = (*x.shape[:2], *output), input_format(form, x)
    return Result(x.dtype, shape, fmt), Result(_index_dtype(form, x.shape[2:], output), shape, fmt)


def _max_pool_backward(dy: Tensor, indices: Tensor, samples: Tensor | None, form: Form) -> Result:
    """Describe dx."""
    op = "max_pool_backward"
    _check(op, form, {"dy": dy, "indices": indices, "samples": samples}, FLOATS)
    _check_indices(op, form, indices, samples, form.size)
    _same_shape(op, "indices", indices.shape, dy.shape)
    return Result(dy.dtype, (*dy.shape[:2], *form.size), input_format(form, dy))


def _max_pool_gather(x: Tensor, indices: Tensor, samples: Tensor | None, form: Form) -> Result:
    """Describe a tensor like the indices."""
    op = "max_pool_gather"
    _check(op, form, {"x": x, "indices": indices, "samples": samples}, FLOATS)
    _check_indices(op, form, indices, samples, x.shape[2:])
    _same_shape(op, "indices", indices.shape[:2], x.shape[:2])
    return Result(x.dtype, indices.shape, input_format(form, x))


def _lp_pool(x: Tensor, form: Form) -> Result:
    """Describe y."""
    _check("lp_pool", form, {"x": x}, ("bool", *FLOATS, *INTEGERS, "uint16", "uint32", "uint64"))
    dtype = lp_types(TORCH.dtype(x), form.norm_type, form.whole).get("result")
    shape = (*x.shape[:2], *output_size("lp_pool", form, x.shape[2:]))
    return Result(x.dtype if dtype is None else getattr(torch, dtype), shape, input_format(form, x))


def _lp_pool_backward(dy: Tensor, x: Tensor, form: Form) -> Result:
    """Describe dx."""
    op = "lp_pool_backward"
    _check(op, form, {"dy": dy, "x": x}, FLOATS)
    _same_shape(op, "dy", dy.shape, (*x.shape[:2], *output_size(op, form, x.shape[2:])))
    return Result(x.dtype, x.shape, input_format(form, x))


def _max_unpool(x: Tensor, indices: Tensor, form: Form) -> Result:
    """Describe a plane of the large size."""
    op = "max_unpool"
    _check(op, form, {"x": x, "indices": indices}, FLOATS)
    _require(op, indices.dtype == torch.int64, f"indices must be torch.int64, but got {indices.dtype}")
    _same_shape(op, "indices", indices.shape, x.shape)
    return Result(x.dtype, (*x.shape[:2], *output_size(op, form, x.shape[2:])), input_format(form, x))


def _max_unpool_backward(dy: Tensor, indices: Tensor, form: Form) -> Result:
    """Describe a tensor like the indices."""
    op = "max_unpool_backward"
    _check(op, form, {"dy": dy, "indices": indices}, FLOATS)
    _require(op, indices.dtype == torch.int64, f"indices must be torch.int64, but got {indices.dtype}")
    _same_shape(op, "indices", indices.shape, (*dy.shape[:2], *form.size))
    return Result(dy.dtype, indices.shape, input_format(form, dy))


def _unfold(x: Tensor, form: Form) -> Result:
    """Describe the columns."""
    _check("unfold", form, {"x": x}, COLUMNS)
    windows = column_windows(form, x.shape[2:])
    return Result(x.dtype, shapes.columns_shape(x.shape[0], x.shape[1], form.kernel, windows), CONTIGUOUS)


def _fold(columns: Tensor, form: Form) -> Result:
    """Describe the image."""
    op, taps = "fold", prod(form.kernel)
    _check(op, form, {"columns": columns}, COLUMNS)
    _require(op, columns.dim() == 3, "columns must have a batch, a channel and one more axis")
    _require(op, columns.shape[1] % taps == 0, "the windows must divide the channels of columns")
    _require(op, columns.shape[2] == prod(column_windows(form, form.size)), "there must be one column per window")
    return Result(columns.dtype, (columns.shape[0], columns.shape[1] // taps, *form.size), CONTIGUOUS)


RESULTS: dict[str, Callable[..., Any]] = {
    "avg_pool": _avg_pool,
    "avg_pool_backward": _avg_pool_backward,
    "max_pool": _max_pool,
    "max_pool_with_indices": _max_pool_with_indices,
    "max_pool_backward": _max_pool_backward,
    "max_pool_gather": _max_pool_gather,
    "lp_pool": _lp_pool,
    "lp_pool_backward": _lp_pool_backward,
    "max_unpool": _max_unpool,
    "max_unpool_backward": _max_unpool_backward,
    "unfold": _unfold,
    "fold": _fold,
}
"""What checks the operands of each operator and describes its result, by name."""


def fake(name: str, tensors: Sequence[Tensor | None], form: Form) -> Any:
    """Return the result of an operator without values."""
    results, device = RESULTS[name](*tensors, form), tensors[0].device  # type: ignore[union-attr]
    if isinstance(results, Result):
        return _empty(results, device)
    return tuple(_empty(result, device) for result in results)
