"""The convolutions as operators of ``torch.library``: ``gpuconv::fprop``, ``gpuconv::dgrad`` and ``gpuconv::wgrad``.

They are for what must see an operator: ``torch.compile``, ``torch.export``, dispatch modes, fake tensors and tensor
subclasses. One schema serves 1-D to 3-D; sizes may be symbolic. ``backend`` and ``precision`` are arguments because
autograd runs on threads of its own, where context variables are lost; where they are None, the environment variable
``GPUCONV_BACKEND`` and ``torch.backends.cudnn.conv.fp32_precision`` count when the operator runs.

Derivatives are those of :mod:`.conv_autograd`, written with these operators. They are registered as a kernel for
autograd, not by ``register_autograd``: the function that the latter makes raises under ``torch.func.grad`` and loses
the tangents of ``torch.func.jvp`` without a word. Where something is recorded, that kernel composes an epilogue beyond
a bias out of torch's elementwise operators, which torch differentiates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .. import shapes
from ..config import forced_backend
from ..dispatch import conv_call, conv_transpose_call, input_grad_call, run, weight_grad_call
from ..normalize import Extras
from ..problem import ConvProblem
from .conv_fake import fake_dgrad, fake_fprop, fake_wgrad, is_zero
from .conv_vmap import fold
from .epilogue import compose, per_channel, steps
from .tangents import primals, tangent_rule

__all__ = [
    "LIBRARY",
    "REAL",
    "Geometry",
    "autocast",
    "chosen_backend",
    "dgrad",
    "fprop",
    "geometry_of",
    "no_autocast",
    "reached",
    "records",
    "run_problem",
    "wgrad",
]

Tensor = Any

_GEOMETRY = "SymInt[] stride, SymInt[] pad_lo, SymInt[] pad_hi, SymInt[] dilation, SymInt groups, str padding_mode"
_EPILOGUE = "Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual"
_FINISH = "str? activation, str rounding"
_OPTIONS = "str? precision, str? backend"


class Geometry(NamedTuple):
    """What the three operators have in common, in the order of their schemas."""

    stride: Sequence[int]
    pad_lo: Sequence[int]
    pad_hi: Sequence[int]
    dilation: Sequence[int]
    groups: int
    padding_mode: str

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """Padding as functions take it."""
        return tuple(zip(self.pad_lo, self.pad_hi))


def chosen_backend(argument: str | None) -> str:
    """Return what is forced, by the argument or the environment: never by a context variable, see above."""
    return argument or forced_backend(os.environ.get("GPUCONV_BACKEND") or "auto") or "auto"


def _extras(
    geometry: Geometry, residual: Any, scale: Any, shift: Any,
    activation: str | None, rounding: str, precision: str | None, backend: str | None,
) -> Extras:  # fmt: skip
    backend = chosen_backend(backend)
    return Extras(geometry.padding_mode, activation, residual, scale, shift, precision, backend, rounding)


def _real_fprop(x: Tensor, w: Tensor, bias: Any, scale: Any, shift: Any, residual: Any, *rest: Any) -> Tensor:
    """Convolution: y of x and w."""
    geometry = Geometry(*rest[:6])
    extras = _extras(geometry, residual, scale, shift, *rest[6:])
    ndim, (stride, _, _, dilation, groups, _) = x.dim() - 2, geometry
    return run(conv_call(f"conv{ndim}d", ndim, x, w, bias, stride, geometry.pads, dilation, groups, extras))


def _real_dgrad(dy: Tensor, w: Tensor, bias: Any, scale: Any, shift: Any, residual: Any, *rest: Any) -> Tensor:
    """Data gradient: dx of dy and w; or, where `transposed`, the transposed convolution with its epilogue."""
    input_size, geometry, transposed = rest[0], Geometry(*rest[1:7]), rest[-1]
    extras = _extras(geometry, residual, scale, shift, *rest[7:-1])
    ndim, (stride, _, _, dilation, groups, _) = dy.dim() - 2, geometry
    if not transposed:
        x_size = (dy.shape[0], w.shape[1] * groups, *input_size)
        name = f"conv{ndim}d_input_grad"
        return run(input_grad_call(name, ndim, x_size, w, dy, stride, geometry.pads, dilation, groups, extras))
    axes = (dy.shape[2:], w.shape[2:], stride, geometry.pad_lo, geometry.pad_hi, dilation)
    least = shapes.map_axes(shapes.conv_transpose_output_size, *axes)
    output_padding = tuple(wanted - size for wanted, size in zip(input_size, least))
    arguments = (stride, geometry.pads, output_padding, groups, dilation, None)
    return run(conv_transpose_call(f"conv_transpose{ndim}d", ndim, dy, w, bias, *arguments, extras))


def _real_wgrad(x: Tensor, dy: Tensor, kernel: Sequence[int], *rest: Any) -> Tensor:
    """Weight gradient: dw of x and dy."""
    geometry, (precision, backend) = Geometry(*rest[:6]), rest[6:]
    extras = Extras(geometry.padding_mode, precision=precision, backend=chosen_backend(backend))
    ndim, (stride, _, _, dilation, groups, _) = x.dim() - 2, geometry
    w_size = (dy.shape[1], x.shape[1] // groups, *kernel)
    name = f"conv{ndim}d_weight_grad"
    return run(weight_grad_call(name, ndim, x, w_size, dy, stride, geometry.pads, dilation, groups, extras))


REAL: dict[str, Callable[..., Tensor]] = {"fprop": _real_fprop, "dgrad": _real_dgrad, "wgrad": _real_wgrad}
"""What each operator does with tensors that have values, by its name."""

LIBRARY = torch.library.Library("gpuconv", "DEF")


def _define(name: str, schema: str, real: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Any:
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    LIBRARY.define(f"{name}({schema}) -> Tensor", tags=tags)
    LIBRARY.impl(name, real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpuconv::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.gpuconv, name).default


fprop = _define(
    "fprop",
    f"Tensor x, Tensor w, {_EPILOGUE}, {_GEOMETRY}, {_FINISH}, {_OPTIONS}",
    _real_fprop,
    fake_fprop,
)
dgrad = _define(
    "dgrad",
    f"Tensor dy, Tensor w, {_EPILOGUE}, SymInt[] input_size, {_GEOMETRY}, {_FINISH}, {_OPTIONS}, bool transposed",
    _real_dgrad,
    fake_dgrad,
)
wgrad = _define("wgrad", f"Tensor x, Tensor dy, SymInt[] kernel, {_GEOMETRY}, {_OPTIONS}", _real_wgrad, fake_wgrad)


def geometry_of(problem: ConvProblem) -> Geometry:
    """Return the geometry of a problem."""
    p = problem
    return Geometry(p.stride, p.pad_lo, p.pad_hi, p.dilation, p.groups, p.padding_mode)


def run_problem(problem: ConvProblem, backend: str, first: Tensor, second: Tensor, bias: Tensor | None) -> Tensor:
    """Run a problem that has no epilogue but a bias by its operator."""
    p, geometry = problem, geometry_of(problem)
    if p.kind == "fprop":
        return fprop(first, second, bias, None, None, None, *geometry, None, p.rounding, p.precision, backend)
    if p.kind == "wgrad":
        return wgrad(first, second, p.kernel, *geometry, p.precision, backend)
    options = (None, p.rounding, p.precision, backend, p.kind == "transposed")
    return dgrad(first, second, bias, None, None, None, p.input_size, *geometry, *options)


def reached(grad: Tensor, size: Sequence[int], kernel: Sequence[int], geometry: Geometry) -> tuple[Tensor, Geometry]:
    """Return the gradient of a transposed convolution's result, and the geometry with which it maps back to `size`.

    An output padding of a stride or more, which a dilation allows, undoes padding at the high end and then adds
    elements that no product reaches. As it stands, the convolution in the other direction would have more outputs than
    `size`.
    """
    pad_hi = list(geometry.pad_hi)
    axes = zip(size, kernel, geometry.stride, geometry.pad_lo, geometry.pad_hi, geometry.dilation)
    for axis, (i, k, s, lo, hi, d) in enumerate(axes):
        most = shapes.conv_transpose_output_size(i, k, s, lo, hi, d) + s - 1
        excess = grad.shape[axis + 2] - most
        if excess > hi:
            grad = grad.narrow(axis + 2, 0, most + hi)
            pad_hi[axis] = 0
        elif excess > 0:
            pad_hi[axis] = hi - excess
    return grad, geometry._replace(pad_hi=tuple(pad_hi))


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Derivatives compute in the types of the forward pass, also where backward is called under autocast."""
    device: str = tensor.device.type
    if not torch._C._is_any_autocast_enabled() or tensor.is_meta or not torch.is_autocast_enabled(device):
        return nullcontext()  # "meta" has no autocast to ask for
    return torch.amp.autocast(device, enabled=False)


def autocast(*tensors: Tensor | None, dtype: Any = None) -> tuple[Tensor | None, ...]:
    """Cast what autocast of the first tensor's device casts, to the type that is set there; not float64, as torch.

    With `dtype` they are cast to that.
    """
    device: str = tensors[0].device.type  # type: ignore[union-attr]
    dtype = torch.get_autocast_dtype(device) if dtype is None else dtype

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.device.type == device and tensor.dtype is not torch.float64
        return tensor.to(dtype) if eligible else tensor

    return tuple(None if tensor is None else cast(tensor) for tensor in tensors)


def _leading(tensor: Tensor | None, dim: int | None) -> Tensor | None:
    """Put the batch axis in front; an axis of 1 where there is none."""
    if tensor is None:
        return None
    return tensor[None] if dim is None else tensor.movedim(dim, 0)


def _with_epilogue(y: Tensor, tensors: Sequence[Tensor | None], dims: Sequence[int | None], activation: Any) -> Tensor:
    """Apply bias, scale, shift and residual, with or without a batch axis, to a batch of results."""
    *vectors, residual = (_leading(tensor, dim) for tensor, dim in zip(tensors, dims))
    ones = (1,) * (y.dim() - 3)
    bias, scale, shift = (None if v is None else v.reshape(v.shape[0], 1, v.shape[1], *ones) for v in vectors)
    return steps(y if bias is None else y + bias, scale, shift, residual, activation)


@dataclass(frozen=True, slots=True)
class _Form:
    """An operator without its tensors: which one, and every other argument."""

    kind: str
    geometry: Geometry
    input_size: Sequence[int]
    kernel: Sequence[int]
    output_size: Sequence[int]
    """Spatial sizes of dy where the operator is dgrad."""
    precision: str | None
    backend: str | None
    rounding: str = "fused"

    def __call__(self, first: Tensor, second: Tensor, bias: Tensor | None = None, kind: str = "") -> Tensor:
        kind, options = kind or self.kind, (self.precision, self.backend)
        if kind == "wgrad":
            return wgrad(first, second, self.kernel, *self.geometry, *options)
        if kind == "fprop":
            return fprop(first, second, bias, None, None, None, *self.geometry, None, self.rounding, *options)
        sizes = (self.input_size, *self.geometry)
        return dgrad(first, second, bias, None, None, None, *sizes, None, self.rounding, *options, kind == "transposed")

    @property
    def of_derivatives(self) -> _Form:
        """The form of the derivatives: a forced solver solves one pass, its backend all of them."""
        return replace(self, backend=self.backend and self.backend.partition(".")[0])


def _form(name: str, args: Sequence[Any]) -> _Form:
    first, second = args[:2]
    if name == "wgrad":
        return _Form(name, Geometry(*args[3:9]), first.shape[2:], args[2], (), *args[9:])
    if name == "fprop":
        rounding, precision, backend = args[13:]
        return _Form(name, Geometry(*args[6:12]), first.shape[2:], second.shape[2:], (), precision, backend, rounding)
    rounding, precision, backend, transposed = args[14:]
    kind, sizes = "transposed" if transposed else "dgrad", (args[6], second.shape[2:], first.shape[2:])
    return _Form(kind, Geometry(*args[7:13]), *sizes, precision, backend, rounding)


class _Derivatives(_SingleLevelFunction):
    """An operator without an epilogue but a bias, for autograd; the counterpart of ``ops_autograd._Bilinear``.

    Inside of an operator one level of ``torch.func`` transforms is already being processed, and the call below autograd
    goes on to the next. A function of all levels would start again from the top, and cannot run here.
    """

    @staticmethod
    def forward(first: Tensor, second: Tensor, bias: Tensor | None, form: _Form) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if torch._C._functorch.peek_interpreter_stack() is None:
                return form(first, second, bias)
            # A function's forward runs without gradients, but the next level has to record those of its own.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return form(first, second, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, bias, form = inputs
        ctx.form, ctx.output_shape = form.of_derivatives, output.shape
        ctx.shapes = [None if tensor is None else tensor.shape for tensor in (first, second, bias)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(first if ctx.needs_input_grad[1] else None, second if ctx.needs_input_grad[0] else None)
        ctx.save_for_forward(first, second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        first, second = ctx.saved_tensors
        with no_autocast(grad):
            if _reaches_nothing(ctx.form, grad, ctx.shapes[0]):
                wanted = zip(ctx.shapes, ctx.needs_input_grad)
                return *(grad.new_zeros(shape) if needed else None for shape, needed in wanted), None
            by_first, by_second = _by_operands(ctx.form, grad, first, second, ctx.needs_input_grad)
            by_bias = grad.sum((0, *range(2, grad.dim()))) if ctx.needs_input_grad[2] else None
        return by_first, by_second, by_bias, None

    @staticmethod
    @tangent_rule
    def jvp(ctx: Any, of_first: Tensor | None, of_second: Tensor | None, of_bias: Tensor | None, *_: None) -> Tensor:
        first, second = primals(ctx)
        result = None
        if of_first is not None:
            result = ctx.form(of_first, second, of_bias)
        if of_second is not None:
            term = ctx.form(first, of_second, of_bias if of_first is None else None)
            result = term if result is None else result + term
        return per_channel(of_bias, first.dim() - 2).expand(ctx.output_shape) if result is None else result


def _reaches_nothing(form: _Form, grad: Tensor, first: tuple[Any, ...]) -> bool:
    """Tell whether a gradient is empty where the operators refuse what torch does not.

    That is without channels, and of a transposed convolution whose input has neither a batch nor positions.
    """
    empty = form.kind == "transposed" and is_zero(first[0]) and any(is_zero(size) for size in first[2:])
    return empty or any(is_zero(size) for size in grad.shape[1:2])


def _by_operands(
    form: _Form, grad: Tensor, first: Tensor, second: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by both operands; the table is in :mod:`gpuconv.ops.conv_autograd`."""
    by_first = by_second = None
    if form.kind == "fprop":
        by_first = form(grad, second, kind="dgrad") if wanted[0] else None
        by_second = form(first, grad, kind="wgrad") if wanted[1] else None
    elif form.kind == "dgrad":
        by_first = form(grad, second, kind="fprop") if wanted[0] else None
        by_second = form(grad, first, kind="wgrad") if wanted[1] else None
    elif form.kind == "transposed":
        inside, geometry = reached(grad, form.output_size, form.kernel, form.geometry)
        form = replace(form, geometry=geometry, input_size=inside.shape[2:])
        by_first = form(inside, second.conj(), kind="fprop") if wanted[0] else None
        by_second = form(inside, first, kind="wgrad").conj() if wanted[1] else None
    else:
        by_first = form(second, grad, kind="dgrad") if wanted[0] else None
        by_second = form(first, grad, kind="fprop") if wanted[1] else None
    return by_first, by_second


def _vmap(kind: str, operator: Any, tensors: int, groups_at: int, activation_at: int | None) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Tensor, int]:
        def plain(first: Tensor, second: Tensor, groups: int) -> Tensor:
            rest = list(args[tensors:])
            rest[groups_at - tensors] = groups
            if activation_at is not None:
                rest[activation_at - tensors] = None
            return operator(first, second, *(None,) * (tensors - 2), *rest)

        first, second, groups = args[0], args[1], args[groups_at]
        if in_dims[0] is None and in_dims[1] is None:
            y = plain(first, second, groups)[None]
        else:
            y = fold(kind, groups, info.batch_size, first, in_dims[0], second, in_dims[1], plain)
        if activation_at is not None:
            y = _with_epilogue(y, args[2:6], in_dims[2:6], args[activation_at])
        return y, 0

    return rule


def records(*tensors: Tensor | None) -> bool:
    """Tell whether a result computed from `tensors` has to be recorded: by autograd, a tangent, or a transform."""
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _register(operator: Any, name: str, tensors: int, activation_at: int | None) -> None:
    """Register what autograd, autocast and vmap do. `tensors` counts tensors, which come first among the arguments."""

    def autograd(*args: Any) -> Tensor:
        if not records(*args[:tensors]):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args)
        bias, scale, shift, residual = args[2:6] if activation_at is not None else (None,) * 4
        with enable_single_level_autograd_function():
            y = _Derivatives.apply(args[0], args[1], bias, _form(name, args))
        return compose(y, scale, shift, residual, None if activation_at is None else args[activation_at])

    LIBRARY.impl(name, autograd, "Autograd")

    for device in ("CPU", "CUDA"):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

        def cast(*args: Any, keys: Any = keys) -> Tensor:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(*autocast(*args[:tensors]), *args[tensors:])

        LIBRARY.impl(name, cast, f"Autocast{device}")


_register(fprop, "fprop", 6, 12)
_register(dgrad, "dgrad", 6, 13)
_register(wgrad, "wgrad", 2, None)
torch.library.register_vmap(fprop, _vmap("fprop", fprop, 6, 10, 12), lib=LIBRARY)
torch.library.register_vmap(dgrad, _vmap("dgrad", dgrad, 6, 11, 13), lib=LIBRARY)
torch.library.register_vmap(wgrad, _vmap("wgrad", wgrad, 2, 7, None), lib=LIBRARY)
