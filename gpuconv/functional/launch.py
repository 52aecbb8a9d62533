"""How every pooling function runs: torch tensors by the operators, everything else by the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..dispatch import run_pool
from ..ops import operators
from ..problem import Call

__all__ = ["launch"]


def launch(describe: Callable[..., Call], op: str, ndim: int, array: Any, *arguments: Any) -> Any:
    """Run the call that `describe` makes of the arguments."""
    ops = operators(array)
    if ops is not None:
        return ops.ops_pool.pooling(describe, op, ndim, array, *arguments)
    return run_pool(describe, op, ndim, array, *arguments)
