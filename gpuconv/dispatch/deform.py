"""Deformable convolutions, remembered: the same call again does no analysis of its arguments."""

from __future__ import annotations

from typing import Any

from ..config import forced_backend
from ..normalize import Extras
from ..normalize import deform as normalize_deform
from ..problem import Call, Prepared
from .execution import explaining
from .plan_cache import CACHE, UnkeyedError, conv_key, signatures

__all__ = ["deform_call"]


def deform_call(
    op: str, ndim: int, input: Any, offset: Any, weight: Any, bias: Any,
    stride: Any, padding: Any, dilation: Any, mask: Any, backend: str | None, key: Any = None,
) -> Call:  # fmt: skip
    """Describe a deformable convolution: :func:`gpuconv.normalize.deform.deform_call`, remembered.

    `key` is what :func:`.plan_cache.conv_key` says of the call, or None.
    """
    arrays = {"x": input, "offset": offset, "mask": mask, "w": weight, "bias": bias}
    geometry = (stride, padding, dilation)
    try:
        given = tuple(arrays.values())
        key = key or conv_key(op, given, signatures(given)[0], geometry, Extras(backend=backend))
        entry = CACHE.find(key)
    except (UnkeyedError, RuntimeError, TypeError):  # also what has no hash: an error, which the analysis reports
        key = entry = None
    if entry is None:
        forced = forced_backend(backend)
        call = normalize_deform.deform_call(op, ndim, input, offset, weight, bias, *geometry, mask, backend)
        whole = call.arrays["w"] is weight and call.arrays["bias"] is bias  # else it has no channels
        if key is not None and whole and not explaining():
            call.prepared = CACHE.keep(key, Prepared(call.problem, call.kind, call.unbatched, forced or "auto"))
        return call
    if entry.unbatched:
        for name in ("x", "offset", "mask"):
            if arrays[name] is not None:
                arrays[name] = entry.kind.add_batch(arrays[name])
    return Call(entry.problem, arrays, entry.kind, entry.unbatched, entry.backend, prepared=entry)
