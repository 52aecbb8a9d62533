"""The plan cache for pools of NumPy and CuPy arrays: what a call was found to be, see :mod:`.plan_cache`.

A pool is known again by its operation; shape, strides, dtype, device and alignment of every array; every other
argument, of exactly its type; and the settings. Pools of torch tensors are remembered by :mod:`gpuconv.ops.pool`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import is_cupy
from ..config import forced_backend
from ..config import settings as current_settings
from ..problem import Call, Prepared
from .execution import OBSERVERS, explaining, run
from .plan_cache import CACHE, UnkeyedError, _frozen, signatures

__all__ = ["PreparedPool", "run_pool"]

_ARRAY = "an array"
"""Stands for an array among the other arguments of a key; what describes it comes apart from them."""

_NAMES = {"fprop": ("x", "indices"), "bwd": ("y", "x", "indices")}
"""What the arrays of a call are called, in the order of the arguments: those of a backward pass start with the gradient
of the output. Not there: samples of a fractional pool, which a call may draw."""


@dataclass(slots=True)
class PreparedPool(Prepared):
    """What is kept of a pool: `places` has the names of its arrays and their places among those of the key.

    Under ``"again"`` in `memo` the solver may put what repeats the call on the arrays of the key, in their order, up to
    the result that the user gets: it must do nothing but what follows from the key.
    """

    places: tuple[tuple[str, int], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def _key(op: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Return what a pool is known again by, and its arrays in the order of the arguments.

    One loop: this is on the path of every call.

    Raises
    ------
    UnkeyedError
        For an argument of an unexpected type.
    """
    options: list[Any] = []
    signed: list[Any] = []
    arrays: list[Any] = []
    for value in arguments:
        kind = type(value)
        if kind is np.ndarray:
            options.append(_ARRAY)
            signed.append((value.shape, value.strides, value.dtype))
            arrays.append(value)
        elif kind is int or kind is str or value is None:
            options.append(value)
        elif kind is bool or not is_cupy(value):
            options.append(_frozen(value))
        else:
            options.append(_ARRAY)
            signed += signatures((value,))[0]
            arrays.append(value)
    return (op, tuple(options), tuple(signed), current_settings()), arrays


def run_pool(describe: Callable[..., Call], op: str, ndim: int, *arguments: Any) -> Any:
    """Run the call that `describe` makes of the arguments of a pool, remembered."""
    try:
        key, arrays = _key(op, arguments)
    except UnkeyedError:
        return run(describe(op, ndim, *arguments))
    entry: Any = CACHE.find(key)
    if entry is None:
        return run(_described(describe(op, ndim, *arguments), key, arrays))
    again = entry.memo.get("again")
    if again is not None and not OBSERVERS:
        return again(*arrays)
    named = {}
    for name, place in entry.places:
        named[name] = entry.kind.add_batch(arrays[place]) if entry.unbatched else arrays[place]
    return run(Call(entry.problem, named, entry.kind, entry.unbatched, entry.backend, entry.extra, entry))


def _described(call: Call, key: Any, arrays: list[Any]) -> Call:
    """Return `call`, and keep what it is under `key` if its arrays are those of the key."""
    backend = forced_backend(call.backend)
    places = _places(call, arrays)
    if places is not None and not explaining():
        entry = PreparedPool(
            call.problem, call.kind, call.unbatched, backend or "auto", places=places, extra=call.extra
        )
        call.prepared = CACHE.keep(key, entry)
    return call


def _places(call: Call, arrays: list[Any]) -> tuple[tuple[str, int], ...] | None:
    """Return where the arrays of `call` are among `arrays`, or None if one is not there.

    An array that `call` does not have may still decide what the call is, by its shape.
    """
    order = _NAMES[call.problem.kind]
    places = []
    for name, value in call.arrays.items():
        place = order.index(name) if name in order else len(arrays)
        if place >= len(arrays):
            return None
        array = arrays[place]
        if value is not array and not (call.unbatched and value.shape[1:] == array.shape):
            return None
        places.append((name, place))
    return tuple(places)
