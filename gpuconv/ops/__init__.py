"""PyTorch on top of dispatch: autograd, ``torch.library``, fakes, vmap; entered by functional, for torch's tensors.

Importing this package imports no framework. :mod:`gpuconv.ops.conv` imports torch and registers the operators; the
first tensor that a public function sees does that, and so does ``import gpuconv.nn``.
"""

from __future__ import annotations

import sys
from typing import Any

from . import late

__all__ = ["operators"]


def operators(array: Any) -> Any:
    """Return :mod:`gpuconv.ops.conv`, which imports torch, if `array` is a ``torch.Tensor``, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(array, torch.Tensor):
        return None
    # While torch.compile traces, `late` must not be read: importing would change what its guards compare.
    if torch.compiler.is_compiling() or late.operators is None:
        from . import conv

        return conv
    return late.operators
