"""Where the kernels of launches came from: from packs alone where the user says so, and told to who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..config import packs_only

__all__ = ["NOT_PACKED", "NotPackedError", "note", "origins", "refuse_to_compile"]

NOT_PACKED = "no pack has this launch"
"""What the message of :class:`NotPackedError` says."""

_noted: ContextVar[list[bool] | None] = ContextVar("gpuconv_launch_origins", default=None)


class NotPackedError(NotImplementedError):
    """No pack has a launch, and nothing can be compiled, or may be."""


def refuse_to_compile(what: str) -> None:
    """Do nothing, or, under ``GPUCONV_PACKS_ONLY=1``, raise.

    Raises
    ------
    NotPackedError
        If nothing may be compiled; the message begins with `what`.
    """
    if packs_only():
        raise NotPackedError(f"{what}: {NOT_PACKED}, and GPUCONV_PACKS_ONLY=1 forbids to compile it")


@contextmanager
def origins() -> Iterator[list[bool]]:
    """Collect, of each launch on a GPU inside the ``with`` block, whether its kernel came from a pack.

    A replay launches what an earlier call found, and is not in the list.
    """
    found: list[bool] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note(packed: bool) -> None:
    """Say of a launch whether its kernel came from a pack."""
    noted = _noted.get()
    if noted is not None:
        noted.append(packed)
