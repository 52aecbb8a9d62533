"""The plan cache: what a call was found to be, so that the same call again does no analysis of its arguments.

The functions here have the signatures of those in :mod:`gpuconv.normalize.conv` that they stand in front of. A call is
known again by everything that its problem and plan follow from: operation; shape, strides, dtype, device and 16-byte
alignment of every array (from shapes and strides follows the 64-bit variant); every option; the backend that is forced
and the workspace limit; and, where float32 on a GPU follows torch's setting, that setting.

Bounded: the call that was not seen for longest is forgotten. Thread-safe. What cannot be keyed (a size that torch
traces, an argument of an unexpected type) is analysed every time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

import numpy as np

from ..arrays import is_cupy
from ..config import forced_backend
from ..config import settings as current_settings
from ..costs import ELSEWHERE
from ..normalize import Extras
from ..normalize import conv as normalize_conv
from ..problem import Call, Prepared
from .execution import explaining
from .selection import FORGETTERS

__all__ = [
    "CACHE",
    "PLAIN",
    "PlanCache",
    "UnkeyedError",
    "conv_call",
    "conv_key",
    "conv_transpose_call",
    "input_grad_call",
    "prepared",
    "signatures",
    "weight_grad_call",
]

_WITH_BATCH = ("x", "y", "residual")


class PlanCache:
    """Prepared calls by key; the least recently used one goes when there are more than `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hits = 0
        self.misses = 0
        self._lock = Lock()
        self._entries: dict[Any, Prepared] = {}
        self.peek = self._entries.get
        """Returns what a key stands for, or ``None``: one operation without a lock, not counted before `touch`."""

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def find(self, key: Any) -> Prepared | None:
        """Return what `key` stands for and mark it as used, or ``None``; nothing while a GPU by name is explained."""
        if ELSEWHERE:
            return None
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
            else:
                self.hits += 1
                entry.used = self.hits
            return entry

    def touch(self, entry: Prepared) -> None:
        """Mark an entry as used, without the lock: where threads meet, the count and the order may miss a use."""
        self.hits = entry.used = self.hits + 1

    def keep(self, key: Any, entry: Prepared) -> Prepared:
        """Keep `entry` under `key`, unless another thread was faster; return what is kept."""
        with self._lock:
            entry = self._entries.setdefault(key, entry)
            entry.used = self.hits
            if len(self._entries) > self.size:
                self._forget(1 + self.size // 16)
            return entry

    def _forget(self, count: int) -> None:
        """Drop the entries used longest ago, several at once: looking for them takes longer than dropping them."""
        ordered = sorted(self._entries.items(), key=lambda item: item[1].used)  # stable: of equal ones the older first
        for key, _ in ordered[:count]:
            del self._entries[key]

    def entries(self) -> list[Prepared]:
        """Return what is kept, in no order that means anything."""
        with self._lock:
            return list(self._entries.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.hits = self.misses = 0


CACHE = PlanCache(4096)
"""The cache of this process."""

FORGETTERS.append(CACHE.clear)

PLAIN: set[type] = set()
"""Types of torch tensors that mean nothing beyond their values; :mod:`gpuconv.ops.tiers` fills it."""


class UnkeyedError(Exception):
    """A value that has no place in a key."""


def _frozen(value: Any) -> Any:
    """Return `value`, of numbers, strings, None and sequences of them, in a hashable form.

    Types are compared exactly: True and 1.0 equal 1, and are errors where it is none.
    """
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if kind is bool or kind is float:
        return kind, value
    if isinstance(value, tuple | list):
        return tuple([_frozen(item) for item in value])
    raise UnkeyedError


def _exactly(values: tuple[Any, ...]) -> Any:
    """Return :func:`_frozen` of `values`, fast where they are integers, tuples of them, strings and None."""
    for value in values:
        kind = type(value)
        if kind is tuple:
            for item in value:
                if type(item) is not int:
                    return _frozen(values)
        elif kind is not int and kind is not str and value is not None:
            return _frozen(values)
    return values


def signatures(arrays: Iterable[Any], grad: bool = False) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Return everything about `arrays` that a plan depends on, which their values are not, and their addresses.

    One loop without calls: this is on the path of every call, and takes most of it. None has address 0, and only
    addresses of torch tensors are looked up.

    Raises
    ------
    UnkeyedError
        For an array whose type or values mean more, and with `grad` for one that requires a gradient.
    RuntimeError
        For a tensor without strides or memory.
    """
    signed: list[Any] = []
    addresses: list[int] = []
    for array in arrays:
        if array is None:
            signed.append(None)
            addresses.append(0)
        elif type(array) in PLAIN:
            # With the negative bit set, values are the negatives of what lies in memory.
            if array.is_neg() or (grad and array.requires_grad):
                raise UnkeyedError
            address = array.data_ptr()
            if not address and array.numel():  # zeros of autograd that have no memory, or no values at all
                raise UnkeyedError
            signed.append((array.shape, array.stride(), array.dtype, array.device, address & 15 == 0))
            addresses.append(address)
        elif type(array) is np.ndarray:
            signed.append((array.shape, array.strides, array.dtype))
            addresses.append(0)
        elif is_cupy(array):
            signed.append((array.shape, array.strides, array.dtype, array.device.id, array.data.ptr & 15 == 0))
            addresses.append(0)
        else:
            raise UnkeyedError
    return tuple(signed), tuple(addresses)


def _precision(array: Any) -> str | None:
    """Return what decides about products unless the caller does: torch's setting, for float32 on a GPU."""
    if type(array) is np.ndarray or not (is_cupy(array) or array.is_cuda):
        return None
    torch = sys.modules.get("torch")
    if torch is None:  # CuPy arrays, without torch beside them
        return None
    if not is_cupy(array) and array.dtype is not torch.float32:
        return None
    # torch.backends.cudnn.conv.fp32_precision, which asks this after half a microsecond
    setting: str = torch._C._get_fp32_precision_getter("cuda", "conv")
    return setting


def conv_key(
    op: str, arrays: tuple[Any, ...], signed: tuple[Any, ...], settings: tuple[Any, ...], extras: Extras
) -> tuple[Any, ...]:
    """Return what a convolution is known again by.

    Parameters
    ----------
    op
        The operation.
    arrays, signed
        Its arrays, or None for each that is not there, and their :func:`signatures`.
    settings
        Arguments that are no arrays.
    extras
        The keyword arguments.

    Raises
    ------
    UnkeyedError
        For an argument of an unexpected type.
    """
    first = arrays[0]
    if first is None:
        raise UnkeyedError
    mode, activation, _, _, _, precision, backend, rounding = extras
    setting = _precision(first) if precision is None else None  # "none" is a setting, and an error as an argument
    return op, _exactly(settings), mode, activation, rounding, precision, setting, backend, signed, current_settings()


def _found_key(op: str, arrays: tuple[Any, ...], settings: tuple[Any, ...], extras: Extras) -> tuple[Any, ...] | None:
    try:
        return conv_key(op, arrays, signatures(arrays)[0], settings, extras)
    except (UnkeyedError, RuntimeError):
        return None


def _call(
    build: Callable[..., Call],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    extras: Extras,
    key: Any,
) -> Call:
    """Return the call that ``build(*arguments, extras)`` describes, whose arrays are `named`."""
    try:
        entry = CACHE.find(key) if key is not None else None
    except TypeError:  # something of the wrong type that has no hash: an error, which the analysis reports
        key = entry = None
    if entry is None:
        backend = forced_backend(extras.backend)
        call = build(*arguments, extras)
        if key is None or explaining():
            return call
        for name, array in named.items():
            if call.arrays[name] is not array and not (call.unbatched and name in _WITH_BATCH):
                return call  # not the array that came in: nothing that a key knows about
        call.arrays = {name: call.arrays[name] for name in named}  # in the order of the key
        call.prepared = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, backend or "auto"))
        return call
    if entry.unbatched:
        for name in _WITH_BATCH:
            if named.get(name) is not None:
                named[name] = entry.kind.add_batch(named[name])
    return Call(entry.problem, named, entry.kind, entry.unbatched, entry.backend, prepared=entry)


def prepared(call: Call) -> Call:
    """Return `call`, whose problem is known already, with what is remembered of such calls.

    The names of its arrays count: callers list them in different orders, in which a replay takes their addresses.
    """
    try:
        arrays, _ = signatures(call.arrays.values())
    except (UnkeyedError, RuntimeError):
        return call
    key = (call.problem, call.backend, tuple(call.arrays), arrays, current_settings())
    entry = CACHE.find(key)
    if entry is None:
        entry = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, call.backend or "auto"))
    call.prepared = entry
    return call


def conv_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras, key: Any = None,
) -> Call:  # fmt: skip
    """Describe a convolution: :func:`gpuconv.normalize.conv.conv_call`, remembered."""
    named = {
        "x": input, "w": weight, "bias": bias,
        "residual": extras.residual, "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    arguments = (op, ndim, input, weight, bias, stride, padding, dilation, groups)
    key = key or _found_key(op, tuple(named.values()), (stride, padding, dilation, groups), extras)
    return _call(normalize_conv.conv_call, arguments, named, extras, key)


def conv_transpose_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any, output_size: Any, extras: Extras,
    key: Any = None,
) -> Call:  # fmt: skip
    """Describe a transposed convolution: :func:`gpuconv.normalize.conv.conv_transpose_call`, remembered."""
    named = {
        "y": input, "w": weight, "bias": bias,
        "residual": extras.residual, "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    geometry = (stride, padding, output_padding, groups, dilation, output_size)
    arguments = (op, ndim, input, weight, bias, *geometry)
    key = key or _found_key(op, tuple(named.values()), geometry, extras)
    return _call(normalize_conv.conv_transpose_call, arguments, named, extras, key)


def input_grad_call(
    op: str, ndim: int, input_size: Any, weight: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras, key: Any = None,
) -> Call:  # fmt: skip
    """Describe a data gradient: :func:`gpuconv.normalize.conv.input_grad_call`, remembered."""
    geometry = (stride, padding, dilation, groups)
    arguments = (op, ndim, input_size, weight, grad_output, *geometry)
    named = {"y": grad_output, "w": weight}
    key = key or _found_key(op, tuple(named.values()), (input_size, *geometry), extras)
    return _call(normalize_conv.input_grad_call, arguments, named, extras, key)


def weight_grad_call(
    op: str, ndim: int, input: Any, weight_size: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras, key: Any = None,
) -> Call:  # fmt: skip
    """Describe a weight gradient: :func:`gpuconv.normalize.conv.weight_grad_call`, remembered."""
    geometry = (stride, padding, dilation, groups)
    arguments = (op, ndim, input, weight_size, grad_output, *geometry)
    named = {"y": grad_output, "x": input}
    key = key or _found_key(op, tuple(named.values()), (weight_size, *geometry), extras)
    return _call(normalize_conv.weight_grad_call, arguments, named, extras, key)
