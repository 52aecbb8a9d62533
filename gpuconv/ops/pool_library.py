"""The pools as operators of ``torch.library``, under ``gpuconv::``, for what must see an operator.

============================= ============================================ ============================================
operator                      takes                                        gives
============================= ============================================ ============================================
``avg_pool``                  x                                            averages (also adaptive)
``max_pool``                  x                                            maxima (also adaptive)
``max_pool_with_indices``     x, samples of a fractional pool              maxima and where they are
``lp_pool``                   x                                            power averages
``max_unpool``                x, positions                                 x at these positions of a plane of zeros
``max_pool_gather``           x, indices                                   the elements at the indices
``unfold``                    x                                            its windows as columns
``fold``                      columns                                      the image that they add up to
``<pool>_backward``           dy, what the pool saved                      the gradient by the pool's x
============================= ============================================ ============================================

The pool is linear in its first operand or, with its indices given, the derivative is: ``avg_pool`` and its backward are
each other's derivatives, as are ``max_pool_gather`` and ``max_pool_backward``, ``unfold`` and ``fold``. All tensors
have a batch axis. One list of other arguments serves all (:class:`gpuconv.ops.pool_fake.Form`); sizes may be symbolic,
and ``backend`` is among them because autograd runs on threads of its own, where context variables are lost.

Derivatives, autocast and vmap are registered by :mod:`gpuconv.ops.pool_autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from math import prod
from typing import Any

import torch

from ..arrays import CONTIGUOUS, TORCH
from ..dispatch import prepared, run
from ..normalize import lp_types, memory_format
from ..problem import Call, PoolProblem
from ..shapes import pool_reads
from .conv_library import LIBRARY, chosen_backend
from .pool_fake import RESULTS, Form, column_windows, fake, input_format, output_size, window

__all__ = ["OPERATORS", "TENSORS", "launch", "op_name", "operator"]

Tensor = Any

TENSORS = {
    "avg_pool": "Tensor x",
    "avg_pool_backward": "Tensor dy",
    "max_pool": "Tensor x",
    "max_pool_with_indices": "Tensor x, Tensor? samples",
    "max_pool_backward": "Tensor dy, Tensor indices, Tensor? samples",
    "max_pool_gather": "Tensor x, Tensor indices, Tensor? samples",
    "lp_pool": "Tensor x",
    "lp_pool_backward": "Tensor dy, Tensor x",
    "max_unpool": "Tensor x, Tensor indices",
    "max_unpool_backward": "Tensor dy, Tensor indices",
    "unfold": "Tensor x",
    "fold": "Tensor columns",
}
"""The tensors of each operator, by name."""

_FORM = (
    "str pool, SymInt[] kernel, SymInt[] stride, SymInt[] pad_lo, SymInt[] pad_hi, SymInt[] dilation, SymInt[] size, "
    "bool ceil_mode, bool count_include_pad, SymInt? divisor_override, float norm_type, bool whole, bool offsets, "
    "str format, str? backend"
)


def _fractional_starts(form: Form, samples: Tensor, axis: int, size: int, output: int) -> Tensor:
    """Return the first element of every window of a fractional pool along an axis, N x C x `output`.

    ``shapes.fractional_pool_starts`` on tensors: every operation rounds as torch's kernels do, which compute 16-bit
    floats in float32 on a GPU.
    """
    dtype = samples.dtype if samples.device.type == "cpu" or samples.dtype is torch.float64 else torch.float32
    # torch's 2-D kernel takes its samples as (W, H), its 3-D kernel as (D, H, W).
    sample = samples[..., 1 - axis if form.ndim == 2 else axis, None].to(dtype)
    last = torch.full_like(sample, size - form.kernel[axis], dtype=torch.int64)
    if output == 1:
        return last
    alpha = sample.new_tensor(size - form.kernel[axis]) / sample.new_tensor(output - 1)
    steps = torch.arange(output - 1, device=samples.device).to(dtype)
    return torch.cat((((steps + sample) * alpha).long() - (sample * alpha).long(), last), -1)


def _positions(
    form: Form, offsets: Tensor, samples: Tensor | None, size: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Return the positions in a plane of `size` that in-window offsets mean, and which of them are no padding.

    Only a dilation can make a window of padding alone; without one the second result is ``None``: all of them.
    """
    output = offsets.shape[2:]
    kernel = window(form, size, output)
    left, result, pitch, inside = offsets.long(), torch.zeros_like(offsets, dtype=torch.int64), 1, None
    for axis in range(form.ndim - 1, -1, -1):
        places, step = torch.arange(output[axis], device=offsets.device), 1
        if form.by_stride:
            start, step = places * form.stride[axis] - form.pad_lo[axis], form.dilation[axis]
        elif form.pool == "fractional_max":
            start = _fractional_starts(form, samples, axis, size[axis], output[axis])
        else:
            start = places * size[axis] // output[axis]
        tap, left = left % kernel[axis], left // kernel[axis]
        ones = (1,) * (form.ndim - 1 - axis)
        start = start.reshape(*start.shape[:-1], *(1,) * (axis if start.dim() > 1 else 0), start.shape[-1], *ones)
        at = start + tap * step
        if max(form.dilation) > 1:
            within = (at >= 0) & (at < size[axis])
            inside = within if inside is None else inside & within
        result = result + at * pitch
        pitch = pitch * size[axis]
    return (result, None) if inside is None else (torch.where(inside, result, 0), inside)


def _reading_windows(form: Form, size: tuple[int, ...], output: tuple[int, ...], device: Any) -> Tensor | None:
    """Return which windows of a max pool read an element, and not padding alone; ``None``: all of them."""
    if form.pool != "max" or max(form.dilation) == 1:
        return None
    axes = zip(output, size, form.kernel, form.stride, form.pad_lo, form.dilation)
    lines = [[pool_reads(i, *axis) for i in range(out)] for out, *axis in axes]
    if all(map(all, lines)):
        return None
    return reduce(
        torch.logical_and, torch.meshgrid([torch.tensor(line, device=device) for line in lines], indexing="ij")
    )


def _gather(x: Tensor, indices: Any, samples: Tensor | None, form: Form) -> Tensor:
    """Read `x` at the indices: the backward pass of an unpooling to the size of `x`."""
    if form.offsets:
        positions, inside = _positions(form, indices, samples, x.shape[2:])
    else:
        positions, inside = indices, _reading_windows(form, tuple(x.shape[2:]), tuple(indices.shape[2:]), x.device)
    ones, zeros = (1,) * form.ndim, (0,) * form.ndim
    unpool = Form(
        "max_unpool", ones, ones, zeros, zeros, ones, tuple(indices.shape[2:]), False, True, None, 0.0, False, False,
        form.format, form.backend,
    )  # fmt: skip
    result = launch("max_unpool_backward", (x, positions), unpool)
    return result if inside is None else torch.where(inside, result, 0)


def op_name(form: Form, backward: bool) -> str:
    """Return what users call the function that an operator runs."""
    if form.pool in ("unfold", "fold"):
        return form.pool
    base = form.pool if form.pool == "max_unpool" else f"{form.pool}_pool"
    suffix = "_with_indices_backward" if form.pool == "max" else "_backward"
    return f"{base}{form.ndim}d{suffix if backward else ''}"


@lru_cache(maxsize=4096)
def _problem(
    name: str, form: Form, n: int, c: int, size: tuple[int, ...], output: tuple[int, ...] | None, dtype: str,
    device: str, x_format: str, y_format: str,
) -> PoolProblem:  # fmt: skip
    """Return the problem of an operator; `output` is ``None`` where it follows from `size`."""
    backward = name.endswith("_backward")
    output = output_size(name, form, size) if output is None else output
    kernel = tuple(window(form, size, output))
    return PoolProblem(
        op_name(form, backward), form.pool, "bwd" if backward else "fprop", n, c, size, kernel, output,
        tuple(form.stride), tuple(form.pad_lo), tuple(form.pad_hi), tuple(form.dilation), dtype, device, TORCH.name,
        x_format, y_format, form.ceil_mode, form.count_include_pad, form.divisor_override, form.norm_type,
        name == "max_pool_with_indices", form.offsets,
    )  # fmt: skip


def _columns(name: str, tensor: Tensor, form: Form) -> Any:
    """Run ``unfold`` or ``fold``: one describes its input as an image, the other its result."""
    unfolds = name == "unfold"
    size = tuple(tensor.shape[2:]) if unfolds else tuple(form.size)
    c = tensor.shape[1] if unfolds else tensor.shape[1] // prod(form.kernel)
    x_format = memory_format(tensor.shape, tensor.stride()) if unfolds else CONTIGUOUS
    kind = (TORCH.dtype(tensor), TORCH.device(tensor), x_format, CONTIGUOUS)
    problem = _problem(name, form, tensor.shape[0], c, size, column_windows(form, size), *kind)
    return run(known(Call(problem, {"x" if unfolds else "y": tensor}, TORCH, False, form.backend)))


def launch(name: str, tensors: Sequence[Tensor | None], form: Form) -> Any:
    """Run an operator on tensors that have values; no gradient is recorded."""
    first: Any = tensors[0]
    if name in ("unfold", "fold"):
        return _columns(name, first, form)
    if name == "max_pool_gather":
        return _gather(first, tensors[1], tensors[2], form)
    extra: dict[str, Any] = {}
    if not name.endswith("_backward"):
        size, output = tuple(first.shape[2:]), None
        x_format, y_format = memory_format(first.shape, first.stride()), input_format(form, first)
        arrays = {"x": first}
        if name == "max_pool_with_indices" and tensors[1] is not None:
            arrays["samples"] = tensors[1]
        if name == "max_unpool":
            arrays["indices"] = tensors[1]
        if name == "lp_pool":
            extra = lp_types(TORCH.dtype(first), form.norm_type, form.whole)
    else:
        x: Any = tensors[1] if name == "lp_pool_backward" else None
        size, output = tuple(form.size if x is None else x.shape[2:]), tuple(first.shape[2:])
        x_format = y_format = input_format(form, first if x is None else x)
        rest = {"x": x} if x is not None else dict(zip(("indices", "samples"), tensors[1:]))
        arrays = {"y": first} | {key: array for key, array in rest.items() if array is not None}
    kind = (TORCH.dtype(first), TORCH.device(first), x_format, y_format)
    problem = _problem(name, form, first.shape[0], first.shape[1], size, output, *kind)
    return run(known(Call(problem, arrays, TORCH, False, form.backend, extra)))


def known(call: Call) -> Call:
    """Return `call` with what is remembered of such calls, if it is on a GPU: its launches are."""
    return prepared(call) if call.problem.device.startswith("cuda") else call


def _define(name: str) -> Any:
    count = TENSORS[name].count("Tensor")
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    results = "(Tensor, Tensor)" if name == "max_pool_with_indices" else "Tensor"
    LIBRARY.define(f"{name}({TENSORS[name]}, {_FORM}) -> {results}", tags=tags)

    def real(*args: Any) -> Any:
        form = Form._make(tuple(value) if isinstance(value, list) else value for value in args[count:])
        RESULTS[name](*args[:count], form)
        return launch(name, args[:count], form._replace(backend=chosen_backend(form.backend)))

    def without_values(*args: Any) -> Any:
        return fake(name, args[:count], Form(*args[count:]))

    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpuconv::{name}", without_values, lib=LIBRARY)
    return getattr(torch.ops.gpuconv, name).default


OPERATORS = {name: _define(name) for name in TENSORS}
"""The operators, by name."""


def operator(name: str, tensors: Sequence[Tensor | None], form: Form) -> Any:
    """Call an operator."""
    return OPERATORS[name](*tensors, *form)
