"""What views, joins and copies do to receptive fields: rules of :mod:`.flow` for operators that move elements about.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import Any

import torch

from .fields import Field, Grid, Seen, State, union_of
from .flow import Fields, _Bound, _rule, _union, _unknown

Tensor = Any


@_rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
def _view(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    return None if field is None else field.viewed(outputs[0].shape)


@_rule("squeeze", "unsqueeze")
def _squeeze(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    if len(field.dims) == outputs[0].dim():
        return field
    if len(field.dims) < outputs[0].dim():
        dim = int(bound["dim"]) % outputs[0].dim()
        return Field(field.seen, (*field.dims[:dim], ((1, None),), *field.dims[dim:]))
    size, wanted = bound["self"].shape, bound.get("dim")
    chosen = range(len(size)) if wanted is None else [wanted] if isinstance(wanted, int) else wanted
    gone = {dim % len(size) for dim in chosen if size[dim] == 1}
    return Field(field.seen, tuple(old for dim, old in enumerate(field.dims) if dim not in gone))


@_rule("permute", "transpose", "t", "movedim")
def _permuted(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    order = list(range(len(field.dims)))
    if "dims" in bound:
        order = [dim % len(order) for dim in bound["dims"]]
    else:
        one, other = (
            (bound["dim0"] % len(order), bound["dim1"] % len(order)) if "dim0" in bound else (0, len(order) - 1)
        )
        order[one], order[other] = order[other], order[one]
    return Field(field.seen, tuple(field.dims[dim] for dim in order))


@_rule("expand", "expand_as")
def _expanded(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    return _union([bound["self"]], outputs[0].shape, field_of)


@_rule("slice", "narrow")
def _slice(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field, x = bound.field("self", field_of), bound["self"]
    assert field is not None
    dim, start, step = int(bound["dim"]) % x.dim(), int(bound.get("start") or 0), int(bound.get("step") or 1)
    return _cut(field, dim, int(outputs[0].shape[dim]), _from_front(start, int(x.shape[dim])), step)


def _from_front(start: int, size: int) -> int:
    return min(max(start + size if start < 0 else start, 0), size)


def _cut(field: Field, dim: int, size: int, start: int, step: int = 1) -> Field:
    """Return that of some elements of a dimension."""
    return field.along(dim, size, lambda grid: grid.windows(1, step, -start))


@_rule("select")
def _select(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field, x = bound.field("self", field_of), bound["self"]
    assert field is not None
    dim = int(bound["dim"]) % x.dim()
    index = int(bound["index"]) % max(int(x.shape[dim]), 1)

    def fixed(grid: Grid) -> State:
        span = grid.at(index)
        return Seen.UNKNOWN if span is None else Grid((span[0],), (span[1],), 0)

    found = field.along(dim, 1, fixed)
    return Field(found.seen, tuple(old for place, old in enumerate(found.dims) if place != dim))


@_rule("split", "split_with_sizes", "chunk", "unsafe_split")
def _split(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    dim, start, found = int(bound["dim"]) % outputs[0].dim(), 0, []
    for output in outputs:
        size = int(output.shape[dim])
        found.append(_cut(field, dim, size, start))
        start += size
    return found


@_rule("cat")
def _cat(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """Along channels the union of all; along positions of the input nothing is known of these."""
    output = outputs[0]
    dim, blank = int(bound["dim"]) % output.dim(), ((1, None),)
    parts = [
        found for found in map(field_of, bound["tensors"]) if found is not None and len(found.dims) == output.dim()
    ]
    if not parts:
        return _unknown([each for each in bound["tensors"] if field_of(each) is not None], output, field_of)
    axes = sorted(set().union(*(part.axes_in([dim]) for part in parts)))
    shape = [*output.shape[:dim], 1, *output.shape[dim + 1 :]]
    joined = union_of(
        [part.with_seen(axes, Seen.UNKNOWN).with_dim(dim, blank) for part in parts], [shape] * len(parts), shape
    )
    if not axes:
        return joined.with_dim(dim, ((int(output.shape[dim]), None),))
    first, *others = axes  # which still run there, whatever is summed over them later
    return joined.with_dim(dim, (*((1, axis) for axis in others), (int(output.shape[dim]), first)))


@_rule("stack")
def _stack(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """The union of all, with a dimension more."""
    output = outputs[0]
    dim = int(bound["dim"]) % output.dim()
    found = _union(bound["tensors"], (*output.shape[:dim], *output.shape[dim + 1 :]), field_of)
    assert found is not None
    return Field(found.seen, (*found.dims[:dim], ((int(output.shape[dim]), None),), *found.dims[dim:]))


@_rule("unbind")
def _unbind(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    return [_select(_Bound(bound, index=index), outputs, field_of) for index in range(len(outputs))]


@_rule("glu")
def _glu(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """One half of a dimension times the gate that the other is."""
    field, shape = bound.field("self", field_of), tuple(outputs[0].shape)
    assert field is not None
    dim = int(bound["dim"]) % len(shape)
    return union_of([_cut(field, dim, shape[dim], start) for start in (0, shape[dim])], [shape] * 2, shape)


@_rule("repeat")
def _repeated(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """Of what is repeated along positions of the input nothing is known."""
    field, repeats, shape = bound.field("self", field_of), list(bound["repeats"]), outputs[0].shape
    assert field is not None
    more = len(repeats) - len(field.dims)
    dims = [((int(size), None),) for size in shape[:more]]
    found = Field(field.seen, (*dims, *field.dims))
    for dim in range(len(repeats)):
        if repeats[dim] != 1:
            found = found.along(dim, int(shape[dim]), lambda grid: Seen.UNKNOWN)
    return found


@_rule("channel_shuffle", "native_channel_shuffle")
def _channels_shuffled(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    return field.with_seen(field.axes_in([1]), Seen.UNKNOWN)


@_rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "zero", "fill",
)  # fmt: skip
def _overwritten(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    """Of an operand the shape alone counts; what it is filled with may be a tensor."""
    value = bound.get("value")
    return _union([value], outputs[0].shape, field_of) if isinstance(value, torch.Tensor) else None


@_rule("roll", "flip")
def _moved(bound: _Bound, outputs: list[Tensor], field_of: Fields) -> Any:
    field = bound.field("self", field_of)
    assert field is not None
    dims = [dim % outputs[0].dim() for dim in bound["dims"]] or range(outputs[0].dim())
    return field.with_seen(field.axes_in(dims), Seen.UNKNOWN)
