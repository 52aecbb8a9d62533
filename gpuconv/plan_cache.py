"""The plan cache: what a call was found to be, so that the same call again does no analysis of its arguments.

The functions here have the signatures of those in :mod:`gpuconv.normalize_conv` that they stand in front of. A call is
known again by everything that its problem and plan follow from: operation; shape, strides, dtype, device and 16-byte
alignment of every array (from shapes and strides follows the 64-bit variant); every option; the backend that is forced
and the workspace limit; and, where float32 on a GPU follows torch's setting, that setting.

Bounded: the call that was not seen for longest is forgotten. Thread-safe. What cannot be keyed (a size that torch
traces, an argument of an unexpected type) is analysed every time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np

from . import normalize_conv
from .arrays import is_cupy
from .config import forced_backend, workspace_limit
from .dispatch import explaining
from .normalize_conv import Extras
from .problem import Call, Prepared

__all__ = ["CACHE", "PlanCache", "conv_call", "conv_transpose_call", "input_grad_call", "prepared", "weight_grad_call"]

_WITH_BATCH = ("x", "y", "residual")


class PlanCache:
    """Prepared calls by key; the least recently used one goes when there are more than `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hits = 0
        self.misses = 0
        self._lock = Lock()
        self._entries: dict[Any, Prepared] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def find(self, key: Any) -> Prepared | None:
        """Return what `key` stands for and mark it as used, or ``None``."""
        with self._lock:
            entry = self._entries.pop(key, None)
            if entry is None:
                self.misses += 1
            else:
                self._entries[key] = entry  # dictionaries keep the order of insertion: last used is last
                self.hits += 1
            return entry

    def keep(self, key: Any, entry: Prepared) -> Prepared:
        """Keep `entry` under `key`, unless another thread was faster; return what is kept."""
        with self._lock:
            entry = self._entries.setdefault(key, entry)
            if len(self._entries) > self.size:
                del self._entries[next(iter(self._entries))]
            return entry

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.hits = self.misses = 0


CACHE = PlanCache(4096)
"""The cache of this process."""


class _UnkeyedError(Exception):
    """A value that has no place in a key."""


def _frozen(value: Any) -> Any:
    """Return `value`, of integers, strings, None and sequences of them, in a hashable form.

    Types are compared exactly: True and 1.0 equal 1, and are errors where it is none.
    """
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if isinstance(value, tuple | list):
        return tuple([_frozen(item) for item in value])
    raise _UnkeyedError


def _signature(array: Any) -> tuple[Any, ...] | None:
    """Return everything about `array` that a plan depends on; its values are not among that."""
    if array is None:
        return None
    kind = type(array)
    if kind is np.ndarray:
        return array.shape, array.strides, array.dtype
    if is_cupy(array):
        return array.shape, array.strides, array.dtype, array.device.id, array.data.ptr % 16 == 0
    torch = sys.modules.get("torch")
    if torch is None or (kind is not torch.Tensor and kind is not torch.nn.Parameter):
        raise _UnkeyedError
    return array.shape, array.stride(), array.dtype, array.device, array.data_ptr() % 16 == 0


def _precision(requested: str | None, array: Any) -> str | None:
    """Return what decides about products: the argument, or torch's setting where float32 on a GPU follows it."""
    if array is None:  # an error, which the analysis reports
        raise _UnkeyedError
    if requested is not None or type(array) is np.ndarray:
        return _frozen(requested)
    torch = sys.modules.get("torch")
    if torch is None:  # CuPy arrays, without torch beside them
        return None
    if not is_cupy(array) and (array.dtype is not torch.float32 or not array.is_cuda):
        return None
    setting: str = torch.backends.cudnn.conv.fp32_precision
    return setting


def _key(named: Mapping[str, Any], settings: tuple[Any, ...], extras: Extras, backend: str | None) -> Any:
    try:
        arrays = tuple([_signature(array) for array in named.values()])
        options = (extras.padding_mode, extras.activation, backend)
        precision = _precision(extras.precision, next(iter(named.values())))
        return arrays, _frozen(settings), _frozen(options), precision, workspace_limit()
    except (_UnkeyedError, RuntimeError):  # torch raises RuntimeError where a tensor has no strides or no memory
        return None


def _call(
    build: Callable[..., Call],
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    settings: tuple[Any, ...],
    extras: Extras,
) -> Call:
    """Return the call that ``build(*arguments, extras)`` describes, whose arrays are `named`."""
    backend = forced_backend(extras.backend)
    key = _key(named, settings, extras, backend)
    if key is None:
        return build(*arguments, extras)
    entry = CACHE.find(key)
    if entry is None:
        call = build(*arguments, extras)
        for name, array in named.items():
            if call.arrays[name] is not array and not (call.unbatched and name in _WITH_BATCH):
                return call  # not the array that came in: nothing that a key knows about
        if explaining():
            return call
        call.prepared = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, backend or "auto"))
        return call
    if entry.unbatched:
        for name in _WITH_BATCH:
            if named.get(name) is not None:
                named[name] = entry.kind.add_batch(named[name])
    return Call(entry.problem, named, entry.kind, entry.unbatched, entry.backend, prepared=entry)


def prepared(call: Call) -> Call:
    """Return `call`, whose problem is known already, with what is remembered of such calls."""
    try:
        arrays = tuple([_signature(array) for array in call.arrays.values()])
    except (_UnkeyedError, RuntimeError):
        return call
    key = (call.problem, call.backend, arrays, workspace_limit())
    entry = CACHE.find(key)
    if entry is None:
        entry = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, call.backend or "auto"))
    call.prepared = entry
    return call


def conv_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Describe a convolution: :func:`gpuconv.normalize_conv.conv_call`, remembered."""
    named = {
        "x": input, "w": weight, "bias": bias,
        "residual": extras.residual, "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    arguments = (op, ndim, input, weight, bias, stride, padding, dilation, groups)
    return _call(normalize_conv.conv_call, arguments, named, (op, stride, padding, dilation, groups), extras)


def conv_transpose_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any, output_size: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Describe a transposed convolution: :func:`gpuconv.normalize_conv.conv_transpose_call`, remembered."""
    named = {
        "y": input, "w": weight, "bias": bias,
        "residual": extras.residual, "scale": extras.scale, "shift": extras.shift,
    }  # fmt: skip
    geometry = (stride, padding, output_padding, groups, dilation, output_size)
    arguments = (op, ndim, input, weight, bias, *geometry)
    return _call(normalize_conv.conv_transpose_call, arguments, named, (op, *geometry), extras)


def input_grad_call(
    op: str, ndim: int, input_size: Any, weight: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Describe a data gradient: :func:`gpuconv.normalize_conv.input_grad_call`, remembered."""
    geometry = (stride, padding, dilation, groups)
    arguments = (op, ndim, input_size, weight, grad_output, *geometry)
    named = {"y": grad_output, "w": weight}
    return _call(normalize_conv.input_grad_call, arguments, named, (op, input_size, *geometry), extras)


def weight_grad_call(
    op: str, ndim: int, input: Any, weight_size: Any, grad_output: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: Extras,
) -> Call:  # fmt: skip
    """Describe a weight gradient: :func:`gpuconv.normalize_conv.weight_grad_call`, remembered."""
    geometry = (stride, padding, dilation, groups)
    arguments = (op, ndim, input, weight_size, grad_output, *geometry)
    named = {"y": grad_output, "x": input}
    return _call(normalize_conv.weight_grad_call, arguments, named, (op, weight_size, *geometry), extras)
