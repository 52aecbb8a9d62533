"""Which rows of a codegen table a run recompiles: a few in the gate, in full one architecture of every launch."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import triton

__all__ = ["FULL", "chosen"]

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
OLDEST = triton.__version__.startswith("3.6.")


def chosen(jobs: Sequence[tuple[str, int]], few: int) -> list[tuple[str, int]]:
    """Return the (launch, architecture) pairs to recompile and compare; `few` of them in the gate.

    The full run takes one architecture in turn of half of the launches, and of the others on the oldest Triton:
    ``make codegen ALL=--all`` compiles everything, which takes hours.
    """
    if not FULL:
        return random.Random(f"2026, {triton.__version__}").sample(list(jobs), few)
    names = list(dict.fromkeys(name for name, _ in jobs))
    found = []
    for place, name in enumerate(names):
        archs = [arch for other, arch in jobs if other == name]
        if place % 2 == OLDEST:
            found.append((name, archs[place // 2 % len(archs)]))
    return found
