"""Takes time out of Triton's interpreter that programs do not need. What they compute stays the same.

Each launch, and each call of a device function inside of one, looks through all of ``triton.language`` for what must be
replaced; and each array's type is looked up in a dictionary that is made anew. Both take a third of a small launch.
"""

from __future__ import annotations

import inspect
from functools import cache, lru_cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

__all__ = ["quicken"]


@cache
def _builtins(package: Any) -> tuple[str, ...]:
    """Return the names that a launch replaces. The first launch asks first, when nothing is replaced."""
    return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # not inside of a launch, where all are replaced
            interpreter._patch_attr(package, name, member, builder, scope)


@lru_cache(maxsize=1)
def quicken() -> None:
    """Make the interpreter of this process quicker; later calls do nothing."""
    look_up, known = interpreter._get_np_dtype, {}

    def np_dtype(of: Any) -> Any:
        scalar = of.element_ty if type(of) is tl.block_type else of
        if type(scalar) is not tl.dtype:
            return look_up(of)
        if scalar.name not in known:
            known[scalar.name] = look_up(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = np_dtype
    interpreter._patch_builtin = _patch_builtin
