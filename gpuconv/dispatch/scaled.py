"""Convolutions of 8-bit operands with scales, remembered: the same call again does no analysis of its arguments."""

from __future__ import annotations

from typing import Any

from ..config import forced_backend
from ..normalize import SCALES, Extras, ScaledExtras, is_number, scale_factors
from ..normalize import scaled as normalize_scaled
from ..problem import Call, Prepared
from .execution import explaining
from .plan_cache import CACHE, UnkeyedError, conv_key, signatures

__all__ = ["keyed", "scaled_call"]

Keyed = tuple[tuple[Any, ...], tuple[Any, ...], Extras]


def keyed(input: Any, weight: Any, bias: Any, geometry: tuple[Any, ...], extras: ScaledExtras) -> Keyed:
    """Return arrays, settings and extras of a call as :func:`.plan_cache.conv_key` takes them.

    Scales that are numbers are settings, as what is launched again holds them; in hexadecimal, which tells -0 from 0.
    """
    scales = extras[:3]
    numbers = tuple([float(scale).hex() if is_number(scale) else None for scale in scales])
    arrays = (input, weight, bias, *[None if number else scale for scale, number in zip(scales, numbers)])
    of_key = Extras("zeros", extras.activation, backend=extras.backend)
    return arrays, (*geometry, extras.out_dtype, *numbers), of_key


def _found_key(op: str, *call: Any) -> tuple[Any, ...] | None:
    arrays, settings, extras = keyed(*call)
    try:
        return conv_key(op, arrays, signatures(arrays)[0], settings, extras)
    except (UnkeyedError, RuntimeError):
        return None


def scaled_call(
    op: str, ndim: int, input: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, groups: Any, extras: ScaledExtras, key: Any = None,
) -> Call:  # fmt: skip
    """Describe a convolution with scales: :func:`gpuconv.normalize.scaled.scaled_call`, remembered."""
    geometry = (stride, padding, dilation, groups)
    key = key or _found_key(op, input, weight, bias, geometry, extras)
    try:
        entry = CACHE.find(key) if key is not None else None
    except TypeError:  # something of the wrong type that has no hash: an error, which the analysis reports
        key = entry = None
    if entry is None:
        backend = forced_backend(extras.backend)
        call = normalize_scaled.scaled_call(op, ndim, input, weight, bias, *geometry, extras)
        if key is not None and not explaining():
            call.prepared = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, backend or "auto"))
        return call
    x = entry.kind.add_batch(input) if entry.unbatched else input
    scales = {name: None if is_number(scale) else scale for name, scale in zip(SCALES, extras[:3])}
    arrays = {"x": x, "w": weight, "bias": bias, **scales}
    extra = scale_factors(extras.scales)
    return Call(entry.problem, arrays, entry.kind, entry.unbatched, entry.backend, extra=extra, prepared=entry)
