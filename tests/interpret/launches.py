"""Which kernels exist for convolutions, and which of them a test launched in which pass."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from triton.runtime.interpreter import InterpretedFunction

from gpuconv.backends.base import Plan
from gpuconv.kernels.tl import conv
from gpuconv.problem import Call

Launches = Counter[tuple[str, str]]
"""Number of launches by (pass, kernel)."""


def convolution_kernels() -> set[str]:
    """Return the names of all kernels in ``kernels/tl/conv``, as the modules themselves define them."""
    found = set()
    for module in pkgutil.iter_modules(conv.__path__):
        members = vars(importlib.import_module(f"{conv.__name__}.{module.name}"))
        jitted = {name for name, value in members.items() if isinstance(value, InterpretedFunction)}
        found |= {name for name in jitted if name.startswith("_") and name.endswith("_kernel")}
    return found


@contextmanager
def recorded_launches() -> Iterator[Launches]:
    """Count the kernels that the interpreter itself starts inside the ``with`` block, by the pass of their plan."""
    launches: Launches = Counter()
    running: list[str] = []
    start, follow = InterpretedFunction.run, Plan.run

    def start_and_count(self: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
        launches[running[-1], self.__name__] += 1
        return start(self, *args, **kwargs)

    def follow_plan(self: Plan, call: Call) -> Any:
        running.append(self.problem.kind)
        try:
            return follow(self, call)
        finally:
            running.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", start_and_count)
        patch.setattr(Plan, "run", follow_plan)
        yield launches


BEYOND_TORCH = {
    "_conv_separable_kernel", "_conv_scaled_kernel", "_conv_turn_kernel", "_conv_column_sums_kernel",
    "_conv_deform_fprop_kernel", "_conv_deform_offset_kernel", "_conv_deform_columns_kernel",
    "_conv_deform_cells_kernel", "_conv_deform_gather_kernel", "_conv_deform_wgrad_kernel",
}  # fmt: skip
"""Kernels of functions that torch does not have, and OpInfo no samples of; ``test_conv_separable.py``,
``test_conv_scaled.py`` and ``test_conv_deform.py`` launch them. And those that stand around the Hopper kernels, which
``tests/executor`` interprets."""


def unlaunched(launches: Iterable[tuple[str, str]]) -> set[str]:
    """Return the kernels of torch's functions that no launch names."""
    return convolution_kernels() - BEYOND_TORCH - {kernel for _, kernel in launches}


def table(launches: Launches) -> list[str]:
    """Return lines that list every kernel launched in each pass, and those that were not."""
    lines = [f"{kind:<12}{kernel:<48}{count:>7} launches" for (kind, kernel), count in sorted(launches.items())]
    return [*lines, f"unlaunched: {', '.join(sorted(unlaunched(launches))) or 'none'}"]
