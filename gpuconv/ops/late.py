"""The module of torch operators, once it is imported, without an import statement in the path of every call."""

from __future__ import annotations

from typing import Any

__all__ = ["operators"]

operators: Any = None
""":mod:`gpuconv.ops.conv`; it puts itself here when it is complete."""
