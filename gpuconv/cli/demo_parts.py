"""What the parts of the demonstration share."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import functional

__all__ = ["Array", "aligned", "processor", "public_function", "timed"]

_REPEATS = 3

Array = np.ndarray[Any, Any]


def public_function(name: str) -> Callable[..., Any]:
    """Return the convolution or pooling function of that name."""
    found: Callable[..., Any] = getattr(functional, name)
    return found


def timed(call: Callable[[], Any], repeats: int = _REPEATS) -> tuple[Any, float]:
    """Return the result of `call` and the median of its times in milliseconds, after one untimed call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append((time.perf_counter() - start) * 1e3)
    return result, sorted(times)[repeats // 2]


def processor() -> str:
    """Return the name of this machine's processor, and how many of its threads there are."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} threads"


def aligned(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in plain text; columns whose names start with ``>`` are aligned at the right."""
    names = [name.removeprefix(">") for name in columns]
    widths = [max(len(row[i]) for row in (names, *rows)) for i in range(len(names))]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    return "\n".join((title, "", line(names), rule, *map(line, rows), ""))
