"""Which rows of a codegen table a run recompiles: a few in the gate, in full one architecture of each launch."""

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

    The full run takes one architecture of each launch in turn, and on the oldest Triton another one of every second:
    ``make codegen ALL=--all`` compiles everything, which takes hours.
    """
    if not FULL:
        return random.Random(f"2026, {triton.__version__}").sample(list(jobs), few)
    names = list(dict.fromkeys(name for name, _ in jobs))
    found = []
    for place, name in enumerate(names):
        archs = [arch for other, arch in jobs if other == name]
        if not OLDEST or place % 2 == 0:
            found.append((name, archs[(place + OLDEST) % len(archs)]))
    return found
