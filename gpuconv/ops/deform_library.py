"""Deformable convolution as operators: ``gpuconv::deform_fprop``, ``deform_dgrad`` and ``deform_wgrad``; their fakes.

One schema serves 1-D to 3-D; sizes may be symbolic. ``deform_dgrad`` returns a gradient for each name of ``grads``,
which are some of ``x``, ``offset`` and ``mask`` in that order. Derivatives, autocast and vmap are registered by
:mod:`.deform_autograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch

from .. import shapes
from ..arrays import CONTIGUOUS, TORCH
from ..dispatch import prepared, run
from ..normalize import DEFORM_DTYPES, check_dtypes, effective_precision, formats_of, memory_format, same_device
from ..problem import Call, ConvProblem, DeformProblem
from . import conv_fake
from .conv_library import LIBRARY, chosen_backend
from .deform_composed import Form

__all__ = ["OPERATORS", "TENSORS", "launch_dgrad", "launch_fprop", "launch_wgrad", "operator"]

Tensor = Any
Shown = tuple[Sequence[int], str]
"""Shape and memory format of a result."""

_FORM = (
    "SymInt[] stride, SymInt[] pad_lo, SymInt[] pad_hi, SymInt[] dilation, SymInt groups, SymInt offset_groups, "
    "str? precision, str? backend"
)

TENSORS = {
    "deform_fprop": "Tensor x, Tensor offset, Tensor? mask, Tensor w, Tensor? bias",
    "deform_dgrad": "Tensor dy, Tensor x, Tensor offset, Tensor? mask, Tensor w",
    "deform_wgrad": "Tensor dy, Tensor x, Tensor offset, Tensor? mask",
}
"""The tensors of each operator, by name."""

_REST = {"deform_fprop": "", "deform_dgrad": "str[] grads, ", "deform_wgrad": "SymInt[] kernel, "}


def _output_size(form: Form, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    axes = (size, kernel, form.stride, form.pad_lo, form.pad_hi, form.dilation)
    return shapes.map_axes(shapes.conv_output_size, *axes)


# Launches: on tensors that have values, and record no gradient.


@lru_cache(maxsize=4096)
def _problem(
    kind: str, form: Form, x_shape: tuple[int, ...], k: int, kernel: tuple[int, ...], dtype: str, device: str,
    formats: tuple[str, str, str], mask: bool, bias: bool, grads: tuple[str, ...],
) -> DeformProblem:  # fmt: skip
    """Return the problem of a pass; `formats` are those of x, w and y."""
    n, c, *size = x_shape
    ndim, output = len(size), _output_size(form, size, kernel)
    op = f"deform_conv{ndim}d" + {"fprop": "", "dgrad": "_input_grad", "wgrad": "_weight_grad"}[kind]
    stride, pad_lo, pad_hi, dilation = (tuple(part) for part in form[:4])
    conv = ConvProblem(
        op, kind, n, c, k, form.groups, tuple(size), kernel, output, stride, pad_lo, pad_hi, dilation, "zeros", dtype,
        device, TORCH.name, *formats, bias=bias, precision=form.precision or "ieee",
    )  # fmt: skip
    return DeformProblem(op, conv, form.offset_groups, mask, grads)


def _as_key(x: Tensor, form: Form) -> Form:
    """Return a form whose sequences are tuples, the precision that holds, and no backend, which the call has."""
    precision = effective_precision("deform_conv", form.precision, TORCH.dtype(x), TORCH.device(x))
    stride, pad_lo, pad_hi, dilation = (tuple(part) for part in form[:4])
    return Form(stride, pad_lo, pad_hi, dilation, form.groups, form.offset_groups, precision, None)


def _format(tensor: Tensor) -> str:
    return memory_format(tensor.shape, tensor.stride())


def launch_fprop(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor, form: Form) -> Tensor:
    """Return y; of no channels, y has none either, as that of a convolution."""
    if not x.shape[1]:
        w, bias = w[:0], None if bias is None else bias[:0]
    problem = _problem(
        "fprop", _as_key(x, form), tuple(x.shape), w.shape[0], tuple(w.shape[2:]), TORCH.dtype(x), TORCH.device(x),
        formats_of(TORCH, x, False, w), mask is not None, bias is not None, (),
    )  # fmt: skip
    arrays = {"x": x, "offset": offset, "mask": mask, "w": w, "bias": bias}
    return run(prepared(Call(problem, arrays, TORCH, False, form.backend)))


def launch_dgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, grads: Sequence[str], form: Form
) -> tuple[Tensor, ...]:
    """Return the gradients that are named."""
    problem = _problem(
        "dgrad", _as_key(x, form), tuple(x.shape), w.shape[0], tuple(w.shape[2:]), TORCH.dtype(x), TORCH.device(x),
        (_format(x), _format(w), _format(dy)), mask is not None, False, tuple(grads),
    )  # fmt: skip
    arrays = {"y": dy, "x": x, "offset": offset, "mask": mask, "w": w}
    found: tuple[Tensor, ...] = run(prepared(Call(problem, arrays, TORCH, False, form.backend)))
    return found


def launch_wgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel: Sequence[int], form: Form, bias: bool = False
) -> Any:
    """Return the gradient of w; with `bias` that of the bias as well."""
    y_format, x_format, w_format = formats_of(TORCH, dy, False, x)
    problem = _problem(
        "wgrad", _as_key(x, form), tuple(x.shape), dy.shape[1], tuple(kernel), TORCH.dtype(x), TORCH.device(x),
        (x_format, w_format, y_format), mask is not None, bias, (),
    )  # fmt: skip
    arrays = {"y": dy, "x": x, "offset": offset, "mask": mask}
    return run(prepared(Call(problem, arrays, TORCH, False, form.backend)))


# Shapes: checked where operators are called, with values or without.


def _require(op: str, condition: Any, text: str) -> None:
    torch._check(condition, lambda: f"{op}: {text}")


def _check(
    op: str, named: dict[str, Tensor], kernel: Sequence[int], w_shape: Sequence[int] | None, form: Form
) -> tuple[int, ...]:
    """Check the tensors of an operator, by the names of a function's arguments; return the output's spatial size."""
    conv_fake._check_options(op, "zeros", None, "fused", form.precision, form.backend)
    check_dtypes(op, TORCH, named, DEFORM_DTYPES)
    same_device(op, TORCH, named)
    x, offset, ndim = named["input"], named["offset"], len(kernel)
    for name, tensor in named.items():
        if name != "bias" and tensor is not None:
            _require(op, tensor.dim() == ndim + 2, f"{name} must have {ndim + 2} axes")
    geometry = (form.stride, form.pad_lo, form.pad_hi, form.dilation, form.groups, "zeros")
    output = conv_fake._output_size(op, x.shape[2:], kernel, geometry)
    _require(op, x.shape[1] % form.groups == 0, "input must have channels that groups divides")
    _require(op, x.shape[1] % form.offset_groups == 0, "offset must be of groups that divide the input's channels")
    if w_shape is not None:
        _require(op, x.shape[1] == w_shape[1] * form.groups, "weight must have the input's channels per group")
        _require(op, w_shape[0] % form.groups == 0, "weight must be of a first axis that the groups divide")
    per_tap = {"offset": ndim, "mask": 1}
    for name, factor in per_tap.items():
        tensor = offset if name == "offset" else named.get("mask")
        if tensor is None:
            continue
        channels = form.offset_groups * prod(kernel) * factor
        _require(op, tensor.shape[1] == channels, f"{name} must have {factor} channels for each tap and group")
        _require(op, tensor.shape[0] == x.shape[0], f"{name} must have the batch of input")
        for size, wanted in zip(tensor.shape[2:], output):
            _require(op, size == wanted, f"{name} must be of the output's size")
    return output


def _check_dy(op: str, dy: Tensor, x: Tensor, output: Sequence[int]) -> None:
    _require(op, dy.shape[0] == x.shape[0], "grad_output must have the batch of input")
    for size, wanted in zip(dy.shape[2:], output):
        _require(op, size == wanted, "grad_output must be of the output's size")


def _shown_fprop(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor, *rest: Any) -> list[Shown]:
    """Describe y."""
    op, form = f"deform_conv{x.dim() - 2}d", Form(*rest)
    named = {"input": x, "offset": offset, "mask": mask, "weight": w, "bias": bias}
    output = _check(op, named, w.shape[2:], w.shape, form)
    if bias is not None:
        _require(op, bias.dim() == 1, "bias must be 1-D, one element per output channel")
        _require(op, bias.shape[0] == w.shape[0], "bias must have one element per output channel")
    channels = 0 if conv_fake.is_zero(x.shape[1]) else w.shape[0]
    return [((x.shape[0], channels, *output), formats_of(TORCH, x, False, w)[2])]


def _shown_dgrad(
    dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, grads: Sequence[str], *rest: Any
) -> list[Shown]:
    """Describe the gradients, one for each name of `grads`."""
    op, form = f"deform_conv{x.dim() - 2}d_input_grad", Form(*rest)
    known = ("x", "offset", "mask")[: 2 if mask is None else 3]
    _require(op, list(grads) == [name for name in known if name in grads], f"grads must be some of {known}, in order")
    named = {"input": x, "grad_output": dy, "offset": offset, "mask": mask, "weight": w}
    _check_dy(op, dy, x, _check(op, named, w.shape[2:], w.shape, form))
    _require(op, dy.shape[1] == w.shape[0], "grad_output must have the channels of weight's first axis")
    formats = {"x": _format(x)}
    tensors = {"x": x, "offset": offset, "mask": mask}
    return [(tensors[name].shape, formats.get(name, CONTIGUOUS)) for name in grads]


def _shown_wgrad(dy: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel: Sequence[int], *rest: Any) -> list[Shown]:
    """Describe dw."""
    op, form = f"deform_conv{x.dim() - 2}d_weight_grad", Form(*rest)
    named = {"input": x, "grad_output": dy, "offset": offset, "mask": mask}
    _check_dy(op, dy, x, _check(op, named, kernel, None, form))
    _require(op, dy.shape[1] % form.groups == 0, "grad_output must have channels that the groups divide")
    shape = (dy.shape[1], x.shape[1] // form.groups, *kernel)
    return [(shape, formats_of(TORCH, dy, False, x)[2])]


_SHOWN: dict[str, Callable[..., list[Shown]]] = {
    "deform_fprop": _shown_fprop,
    "deform_dgrad": _shown_dgrad,
    "deform_wgrad": _shown_wgrad,
}
_LAUNCHES: dict[str, Callable[..., Any]] = {
    "deform_fprop": launch_fprop,
    "deform_dgrad": launch_dgrad,
    "deform_wgrad": launch_wgrad,
}


def _define(name: str) -> Any:
    count = TENSORS[name].count("Tensor") + bool(_REST[name])
    results = "Tensor[]" if name == "deform_dgrad" else "Tensor"
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    LIBRARY.define(f"{name}({TENSORS[name]}, {_REST[name]}{_FORM}) -> {results}", tags=tags)
    shown, launch, several = _SHOWN[name], _LAUNCHES[name], results == "Tensor[]"

    def real(*args: Any) -> Any:
        shown(*args)  # its checks
        form = Form(*args[count:])
        found = launch(*args[:count], form._replace(backend=chosen_backend(form.backend)))
        return list(found) if several else found

    def fake(*args: Any) -> Any:
        found = [conv_fake._empty(args[0], shape, layout) for shape, layout in shown(*args)]
        return found if several else found[0]

    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpuconv::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.gpuconv, name).default


OPERATORS = {name: _define(name) for name in TENSORS}
"""The operators, by name."""


def operator(name: str, *args: Any) -> Any:
    """Call an operator."""
    return OPERATORS[name](*args)
