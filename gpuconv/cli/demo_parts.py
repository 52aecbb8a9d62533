"""What the parts of the demonstration share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional

__all__ = ["Array", "public_function", "timed"]

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
