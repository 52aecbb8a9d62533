"""Which axes of an operator's tensors may be sharded over processes, and together with which others.

Axes have letters: N is the batch, C and K are the channels on the two sides of a weight, G the groups that both are
made of. To shard an operator by a letter is to shard every tensor that has an axis of this letter along it. Where the
result has none, each process has a term of the sum that is the result:

================ ========================= ====== ======================================================
operator         operands                  result sum over
================ ========================= ====== ======================================================
``fprop``        x NC, w KC                NK     C
``dgrad``        dy NK, w KC               NC     K
``wgrad``        x NC, dy NK               KC     N
``deform_fprop`` x NC, offset N, mask N,   NK     C
                 w KC
``deform_dgrad`` dy NK, x NC, offset N,    NC, N  K; the gradients of offset and mask, N, over C as well
                 mask N, w KC
``deform_wgrad`` x NC, offset N, mask N,   KC     N
                 dy NK
a pool           NC, each of them          NC     none, but a linear one of a sum is the sum of the pools
================ ========================= ====== ======================================================

With groups, channels are sharded by G alone, and so at the boundaries of groups. With several groups of offsets, which
are of channels of the input, neither C nor G is sharded. Axes without a letter are spatial, or
those of a filter: they are not sharded. Nothing here knows ``torch.distributed``; :mod:`.dtensor` does what is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

__all__ = ["ONCE", "SUM", "WHOLE", "Axes", "Sharding", "axes_of", "cut", "shardings"]

Place = int
"""An axis of a tensor along which it is sharded, `WHOLE` or `SUM`."""

WHOLE = -1
"""Every process has all of the tensor."""

SUM = -2
"""Every process has a term of the tensor."""

ONCE = ("bias", "shift", "residual")
"""What is added to a result: to one of the terms of a sum."""

_CONVOLUTIONS = {
    "fprop": ({"x": "NC", "w": "KC", "bias": "K", "scale": "K", "shift": "K", "residual": "NK"}, "NK"),
    "dgrad": ({"dy": "NK", "w": "KC", "bias": "C", "scale": "C", "shift": "C", "residual": "NC"}, "NC"),
    "wgrad": ({"x": "NC", "dy": "NK"}, "KC"),
    "scaled_fprop": (
        {"x": "NC", "w": "KC", "bias": "K", "input_scale": "", "weight_scale": "K", "output_scale": ""},
        "NK",
    ),
}
"""Axes of the operands of a convolution, and of its result."""

_DEFORMABLE = {
    "deform_fprop": ({"x": "NC", "offset": "N-", "mask": "N-", "w": "KC", "bias": "K"}, ("NK",)),
    "deform_dgrad": ({"dy": "NK", "x": "NC", "offset": "N-", "mask": "N-", "w": "KC"}, ()),
    "deform_wgrad": ({"dy": "NK", "x": "NC", "offset": "N-", "mask": "N-"}, ("KC",)),
}
"""Axes of the operands of a deformable convolution, and of its results; ``deform_dgrad`` has gradients of operands."""

_LINEAR = {
    "avg_pool",
    "avg_pool_backward",
    "max_pool_backward",
    "max_pool_gather",
    "max_unpool",
    "max_unpool_backward",
    "unfold",
    "fold",
}
"""Pools that are linear in their first operand."""


class Axes(NamedTuple):
    """The axes of the tensors of a call that may be sharded, by letters."""

    operands: Mapping[str, str]
    results: Sequence[str]
    units: Mapping[str, int]
    """How many there are of what each letter counts; an axis has a multiple of that many elements."""
    sums: bool
    """Whether the result may be left as a sum."""
    linear: bool
    """Whether a sum may be the first operand."""


class Sharding(NamedTuple):
    """How one dimension of a mesh of processes shards the tensors of a call: the place of each."""

    letter: str
    operands: Mapping[str, Place]
    results: Sequence[Place]


def cut(size: int, parts: int) -> list[int]:
    """Return the sizes of the parts of an axis, as ``torch.chunk`` and DTensor cut it; the last may be empty."""
    step = -(-size // parts)
    return [max(0, min(step, size - part * step)) for part in range(parts)]


def axes_of(name: str, arguments: Mapping[str, Any], tensors: Sequence[str], results: int) -> Axes:
    """Return the axes of a call of the operator `name`.

    Parameters
    ----------
    name
        Name of the operator, without its namespace.
    arguments
        Arguments of the call by their names in the schema; tensors are of the sizes of all processes together.
    tensors
        Names of those that are tensors and not None.
    results
        Number of results.
    """
    if name in _DEFORMABLE:
        return _deformable(name, arguments, tensors)
    if name not in _CONVOLUTIONS:
        first = arguments[tensors[0]]
        channels = arguments["x"].shape[1] if name == "unfold" else first.shape[1]
        if name == "fold":
            channels //= max(1, prod(arguments["kernel"]))
        real = first.is_floating_point() or first.is_complex()
        units = {"N": first.shape[0], "C": channels}
        return Axes(dict.fromkeys(tensors, "NC"), ("NC",) * results, units, False, name in _LINEAR and real)
    letters, result = _CONVOLUTIONS[name]
    operands = {key: letters[key] for key in tensors}
    if name == "scaled_fprop":
        scale = arguments["weight_scale"]
        if scale is not None and (scale.dim() != 1 or scale.shape[0] != arguments["w"].shape[0]):
            operands["weight_scale"] = ""
    units = {letter: arguments[key].shape[axis] for key, word in operands.items() for axis, letter in enumerate(word)}
    groups = arguments["groups"]
    if groups > 1:
        operands, result = {key: _grouped(word) for key, word in operands.items()}, _grouped(result)
        units = {"N": units["N"], "G": groups}
    return Axes(operands, (result,), units, _adds_up(name, arguments), False)


def _deformable(name: str, arguments: Mapping[str, Any], tensors: Sequence[str]) -> Axes:
    letters, results = _DEFORMABLE[name]
    if name == "deform_dgrad":
        results = tuple(letters[key] for key in arguments["grads"])
    words = {key: letters[key] for key in tensors}
    units = {
        letter: arguments[key].shape[axis]
        for key, word in words.items()
        for axis, letter in enumerate(word)
        if letter != "-"
    }
    groups, whole = arguments["groups"], ""
    if groups > 1:
        words, results = {key: _grouped(word) for key, word in words.items()}, tuple(map(_grouped, results))
        units = {"N": units["N"], "G": groups}
    if arguments["offset_groups"] > 1:
        whole = "CG"
    units = {letter: count for letter, count in units.items() if letter not in whole}
    for letter in whole:
        words = {key: word.replace(letter, "-") for key, word in words.items()}
        results = tuple(word.replace(letter, "-") for word in results)
    return Axes(words, results, units, True, False)


def _grouped(word: str) -> str:
    """Return the letters of a tensor of a convolution with groups. The second axis of a weight is within a group."""
    return "G-" if word == "KC" else word.replace("C", "G").replace("K", "G")


def _adds_up(name: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether the results of a convolution of parts of what is summed over add up to the result of all."""
    if name == "scaled_fprop" and not arguments["out_dtype"].startswith(("float32", "float16", "bfloat16")):
        return False  # rounded to 8 bits, by another scale
    return arguments.get("activation") is None


def shardings(axes: Axes) -> list[Sharding]:
    """Return the ways to shard a call over one dimension of a mesh; the last has everything whole."""
    found = []
    for letter, units in axes.units.items():
        results = [word.find(letter) if letter in word else SUM for word in axes.results]
        if SUM in results and not (axes.sums and units > 0):
            continue
        operands = {key: word.find(letter) if letter in word else WHOLE for key, word in axes.operands.items()}
        found.append(Sharding(letter, operands, results))
    whole = dict.fromkeys(axes.operands, WHOLE)
    if axes.linear:
        first = next(iter(axes.operands))
        found.append(Sharding("", whole | {first: SUM}, [SUM] * len(axes.results)))
    return [*found, Sharding("", whole, [WHOLE] * len(axes.results))]
