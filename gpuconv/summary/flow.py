"""What each operator of torch does to receptive fields (:mod:`.fields`): from those of operands to those of results.

Elementwise operators take the union of their operands, convolutions and pools widen, products and attention see the
whole of what they sum over, views move dimensions. Of an operator that is not listed nothing is known.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from math import floor, gcd
from typing import Any

import torch

from ..shapes import adaptive_window
from .fields import Field, Grid, Seen, State, union_of

__all__ = ["propagate", "window_of"]

Tensor = Any
Fields = Callable[[Any], Field | None]

_RULES: dict[str, Callable[..., Any]] = {}


def _rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the rule of operators by their names, without namespace and overload."""

    def register(rule: Callable[..., Any]) -> Callable[..., Any]:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    return [each for value in values for each in _tensors(value)] if isinstance(values, list | tuple) else []


def propagate(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, field_of: Fields
) -> list[Field | None]:
    """Return the fields of the tensors that an operator returned, in order; None of one that sees nothing of the input.

    Parameters
    ----------
    func, args, kwargs, result
        The operator, its arguments and what it returned.
    field_of
        What is known of an operand.
    """
    outputs = _tensors(result)
    seeing = [tensor for tensor in _tensors([*args, *kwargs.values()]) if field_of(tensor) is not None]
    if not seeing:
        return [None] * len(outputs)
    name = func._schema.name.partition("::")[2]
    rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
    if rule is not None:
        bound = _bound(func, args, kwargs)
        found = rule(bound, outputs, field_of)
        return found if isinstance(found, list) else [found] * len(outputs)
    if _elementwise(func):
        return [_union(seeing, output.shape, field_of) for output in outputs]
    return [_unknown(seeing, output, field_of) for output in outputs]


_UNTAGGED = {
    "_prelu_kernel", "floor_divide", "hardswish", "log_sigmoid_forward", "masked_fill", "rrelu_with_noise", "rsub",
    "tril", "triu",
}  # fmt: skip
"""Operators that take each element alone, and that torch does not mark so."""


def _elementwise(func: Any) -> bool:
    """Tell whether each element of the result takes that of the operands alone.

    Of many operators in place (``gelu_``, ``mish_``, ``abs_``) only the others of the name are marked by torch.
    """
    namespace, _, name = func._schema.name.partition("::")
    plain = name.removesuffix("_")
    if torch.Tag.pointwise in func.tags or plain in _UNTAGGED:
        return True
    if namespace != "aten" or plain == name:
        return False
    packet = getattr(torch.ops.aten, plain, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, one).tags for one in packet.overloads())


class _Bound(dict[str, Any]):
    """Arguments of an operator by name; what was not given has the schema's default."""

    def field(self, name: str, field_of: Fields) -> Field | None:
        return field_of(self[name])


def _bound(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> _Bound:
    names = [argument.name for argument in func._schema.arguments]
    found = _Bound({argument.name: argument.default_value for argument in func._schema.arguments})
    found.update(zip(names, args))
    found.update(kwargs)
    return found


def _union(tensors: Sequence[Tensor], shape: Sequence[int], field_of: Fields) -> Field | None:
    """Return the union of what tensors see that are broadcast to a shape."""
    fields = [(field_of(tensor), tuple(tensor.shape)) for tensor in tensors]
    known = [(field, own) for field, own in fields if field is not None]
    return union_of([field for field, _ in known], [own for _, own in known], tuple(shape)) if known else None


def _unknown(tensors: Sequence[Tensor], output: Tensor, field_of: Fields) -> Field:
    """Return that of a result of which nothing is known but that it comes from `tensors`."""
    fields = [field for field in map(field_of, tensors) if field is not None]
    whole = [all(field.seen[axis] is Seen.WHOLE for field in fields) for axis in range(len(fields[0].seen))]
    found = fields[0].with_seen([axis for axis, each in enumerate(whole) if not each], Seen.UNKNOWN)
    return found.unknown(output.shape)


def _numbers(value: Any, count: int, default: Sequence[int] = ()) -> list[int]:
    """Return an argument of one or `count` numbers as `count` of them."""
    listed = list(value) if isinstance(value, list | tuple) else [value]
    listed = listed or list(default)
    return [int(each) for each in (listed * count if len(listed) == 1 else listed)]


def _first(bound: _Bound, field_of: Fields, *names: str) -> tuple[Tensor, Field] | None:
    """Return the first operand and its field; None where the others see something too."""
    first, *others = (bound[name] for name in names)
    field = field_of(first)
    return (
        None
        if field is None or any(field_of(other) is not None for other in others if other is not None)
        else (first, field)
    )


def window_of(
    field: Field, output: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int],
    dilation: Sequence[int], transposed: bool = False,
) -> Field:  # fmt: skip
    """Return what a convolution or pool sees, on ``N C *spatial``; `output` has all sizes of the result.

    `pads` are those before the first element.
    """
    ndim = len(kernel)
    channel = len(output) - ndim - 1
    found = field.with_seen(field.axes_in(range(channel + 1)), Seen.UNKNOWN)
    dims = tuple(((int(size), None),) for size in output[: channel + 1])
    found = Field(found.seen, (*dims, *found.dims[channel + 1 :]))
    for axis in range(ndim):
        taps, step, pad, apart = kernel[axis], stride[axis], pads[axis], dilation[axis]

        def change(grid: Grid, taps: int = taps, step: int = step, pad: int = pad, apart: int = apart) -> State:
            return grid.spread(taps, step, pad, apart) if transposed else grid.windows(taps, step, pad, apart)

        found = found.along(channel + 1 + axis, int(output[channel + 1 + axis]), change)
    return found


@_rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def _convolution(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    found, w = _first(bound, field_of, "input", "weight"), bound["weight"]
    if found is None:
        return _unknown([t for t in (bound["input"], w) if field_of(t)], outputs[0], field_of)
    ndim = w.dim() - 2
    stride, pads, dilation = (_numbers(bound[name], ndim) for name in ("stride", "padding", "dilation"))
    return window_of(found[1], outputs[0].shape, w.shape[2:], stride, pads, dilation, bool(bound.get("transposed")))


@_rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d")
def _pool(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field, x = bound.field("self", field_of), bound["self"]
    assert field is not None
    ndim = len(bound["kernel_size"]) if len(bound["kernel_size"]) > 1 else x.dim() - 2
    kernel = _numbers(bound["kernel_size"], ndim)
    stride, pads = _numbers(bound["stride"], ndim, kernel), _numbers(bound["padding"], ndim)
    return window_of(field, outputs[0].shape, kernel, stride, pads, _numbers(bound.get("dilation", 1), ndim))


def adaptive(field: Field, before: Sequence[int], after: Sequence[int], dims: Iterable[int]) -> Field:
    """Return what an adaptive pool sees, whose windows follow from the sizes before and after."""
    for dim in dims:
        size, output = int(before[dim]), int(after[dim])
        if output == 1:
            field = field.without([dim], keep=True)
            continue
        common = gcd(size, output)

        def change(grid: Grid, size: int = size, output: int = output, common: int = common) -> State:
            return grid.moved(lambda i: range(*adaptive_window(i, size, output)), output // common, size // common)

        field = field.along(dim, output, change)
    return field


@_rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field, x = bound.field("self", field_of), bound["self"]
    assert field is not None
    ndim = len(bound["output_size"])
    return adaptive(field, x.shape, outputs[0].shape, range(x.dim() - ndim, x.dim()))


@_rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    return _resized(bound, outputs[0], field_of, lambda i, size, output: [i * size // output])


@_rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    if bound["align_corners"]:
        return _unknown([bound["self"]], outputs[0], field_of)

    def taps(i: int, size: int, output: int) -> list[int]:
        place = Fraction((2 * i + 1) * size, 2 * output) - Fraction(1, 2)
        return [floor(place)] if place.denominator == 1 else [floor(place), floor(place) + 1]

    return _resized(bound, outputs[0], field_of, taps)


@_rule("upsample_bicubic2d")
def _cubic(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    if bound["align_corners"]:
        return _unknown([bound["self"]], outputs[0], field_of)

    def taps(i: int, size: int, output: int) -> list[int]:
        place = Fraction((2 * i + 1) * size, 2 * output) - Fraction(1, 2)
        first = floor(place)
        return [first] if place.denominator == 1 else list(range(first - 1, first + 3))

    return _resized(bound, outputs[0], field_of, taps)


def _resized(bound: _Bound, output: Tensor, field_of: Fields, taps: Callable[[int, int, int], list[int]]) -> Field:
    """Return what an interpolation sees whose places follow from the sizes alone."""
    field, x = bound.field("self", field_of), bound["self"]
    assert field is not None
    scales = [value for name, value in bound.items() if name.startswith("scale") and value is not None]
    scales = [float(each) for value in scales for each in (value if isinstance(value, list | tuple) else [value])]
    for dim in range(2, x.dim()):
        size, wanted = int(x.shape[dim]), int(output.shape[dim])
        if scales and not any(abs(scale * size - wanted) < 1e-9 for scale in scales):
            return _unknown([x], output, field_of)  # a scale that the sizes do not say
        common = gcd(size, wanted)

        def change(grid: Grid, size: int = size, wanted: int = wanted, common: int = common) -> State:
            return grid.moved(lambda i: taps(i, size, wanted), wanted // common, size // common)

        field = field.along(dim, wanted, change)
    return field


@_rule("pixel_shuffle")
def _shuffle(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    r = int(bound["upscale_factor"])
    return _blocks(bound, outputs[0], field_of, lambda grid: grid.moved(lambda i: (i // r,), out=r))


@_rule("pixel_unshuffle")
def _unshuffle(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    r = int(bound["downscale_factor"])
    return _blocks(bound, outputs[0], field_of, lambda grid: grid.windows(r, r))


def _blocks(bound: _Bound, output: Tensor, field_of: Fields, change: Callable[[Grid], State]) -> Field:
    field = bound.field("self", field_of)
    assert field is not None
    last = output.dim() - 1
    for dim in (last - 1, last):
        field = field.along(dim, int(output.shape[dim]), change)
    return field.along(last - 2, int(output.shape[last - 2]), lambda grid: Seen.UNKNOWN)


@_rule("constant_pad_nd", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)))
def _padded(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field, pads = bound.field("self", field_of), bound.get("pad", bound.get("padding"))
    assert field is not None and pads is not None
    for place in range(len(pads) // 2):
        dim, lo = outputs[0].dim() - 1 - place, int(pads[2 * place])
        if pads[2 * place] or pads[2 * place + 1]:
            field = field.along(dim, int(outputs[0].shape[dim]), lambda grid, lo=lo: grid.windows(1, 1, lo))  # type: ignore[misc]
    return field


@_rule("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "linear", "addmv", "matmul")
def _product(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """Sum over the last dimension of one and the last but one (of `linear`: the last) of the other."""
    order = ("mat1", "batch1", "input", "mat", "self", "tensor")
    first = next(bound[name] for name in order if name in bound and (name != "self" or not _added(bound)))
    second = next(bound[name] for name in ("mat2", "batch2", "weight", "vec", "other", "tensor") if name in bound)
    output, found = outputs[0], None
    for tensor, summed in ((first, -1), (second, -1 if "weight" in bound or second.dim() == 1 else -2)):
        field = field_of(tensor)
        if field is None:
            continue
        left = field.without([tensor.dim() + summed])
        if tensor is first and second.dim() > 1:
            dims = (*left.dims, ((int(output.shape[-1]), None),))
        elif tensor is second and first.dim() > second.dim() - (second.dim() > 2):
            dims = (*(((int(size), None),) for size in output.shape[:-1]), left.dims[-1])
        elif tensor is second and second.dim() > 2:  # batched: rows come from the other
            dims = (*left.dims[:-1], ((int(output.shape[-2]), None),), left.dims[-1])
        else:
            dims = left.dims
        if len(dims) != output.dim():
            return _unknown([first, second] if field_of(first) and field_of(second) else [tensor], output, field_of)
        one = Field(left.seen, dims)
        found = one if found is None else union_of([found, one], [output.shape] * 2, output.shape)
    added = bound.get("self") if _added(bound) else bound.get("bias")
    if added is not None and field_of(added) is not None:
        return _unknown([added], output, field_of)
    return found


def _added(bound: _Bound) -> bool:
    """Tell whether `self` is what is added to a product."""
    return "mat1" in bound or "batch1" in bound or "mat" in bound


@_rule(
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_cudnn_attention",
    "scaled_dot_product_attention", "_scaled_dot_product_attention_math",
)  # fmt: skip
def _attention(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """Each query sees all keys and values."""
    output, found = outputs[0], []
    for name, gone in (("query", [-1]), ("key", [-2, -1]), ("value", [-2])):
        field = bound.field(name, field_of)
        if field is None:
            continue
        last = bound[name].dim()
        mixed = field.mixed([last + dim for dim in gone])
        own = name == "query"
        blank = tuple(((int(size), None),) for size in output.shape)
        found.append(Field(mixed.seen, (*mixed.dims[:-1], blank[-1]) if own else (*mixed.dims[:-2], *blank[-2:])))
    first = union_of(found, [output.shape] * len(found), output.shape) if found else None
    return [first, *(_unknown([bound["query"]], other, field_of) for other in outputs[1:])] if first else first


@_rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def _softmax(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    return field.mixed([int(bound["dim"]) % outputs[0].dim()])


@_rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "linalg_vector_norm", "norm",
    "logsumexp", "prod", "all", "any", "argmax", "argmin",
)  # fmt: skip
def _reduced(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    x = bound["self"]
    field = field_of(x)
    if field is None or isinstance(bound.get("other"), torch.Tensor):
        return _union([t for t in (x, bound.get("other")) if t is not None], outputs[0].shape, field_of)
    dims = bound.get("dim")
    listed = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return field.without([dim % x.dim() for dim in listed], bool(bound.get("keepdim")))


@_rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    x = bound["input"]
    field = field_of(x)
    if field is None:
        return None
    dims = range(x.dim() - len(bound["normalized_shape"]), x.dim())
    return [field.mixed(dims), *(field.without(dims, keep=True) for _ in outputs[1:])]


@_rule("native_group_norm")
def _group_norm(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    x = bound["input"]
    field = field_of(x)
    return None if field is None else [field.mixed(range(1, x.dim())), *(field.unknown(o.shape) for o in outputs[1:])]


@_rule(
    "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm",
)  # fmt: skip
def _batch_norm(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """With statistics of its own a batch norm sees everything, with running ones each element alone."""
    x = bound["input"]
    field = field_of(x)
    if field is None:
        return None
    found = field.mixed([0, *range(2, x.dim())]) if bound.get("training", bound.get("train")) else field
    return [found, *(field.unknown(output.shape) for output in outputs[1:])]


@_rule(
    "detach", "alias", "clone", "_to_copy", "contiguous", "lift_fresh", "native_dropout", "dropout", "copy",
    "view_of", "_conj", "to",
)  # fmt: skip
def _same(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    source = bound["src"] if "src" in bound else next(iter(bound.values()))
    return _union([source], outputs[0].shape, field_of)
