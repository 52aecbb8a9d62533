"""The module of torch operators, once it is imported, without an import statement in the path of every call."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["operators"]

ops: Any = None
"""``gpuconv.ops``; it puts itself here when it is complete."""


def operators(array: Any) -> Any:
    """Return ``gpuconv.ops``, which imports torch, if `array` is a ``torch.Tensor``, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return None
    # While torch.compile traces, `ops` must not be read: importing would change what its guards compare.
    if torch.compiler.is_compiling() or ops is None:
        from . import conv as imported

        return imported
    return ops
