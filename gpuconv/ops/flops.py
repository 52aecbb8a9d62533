"""What torch's ``FlopCounterMode`` counts for the operators of convolutions: what it counts for torch's own.

The counts are torch's to the letter, those that it gives a grouped weight gradient included, so that a model counts the
same whoever computes its convolutions. Pools count nothing, as torch's.

The formulas are registered when ``torch.utils.flop_counter`` is imported, not before: it imports Triton, which a
process that launches compiled kernels never needs, and which reads ``TRITON_INTERPRET`` at that moment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["watch"]

Shape = Sequence[int]

_COUNTER = "torch.utils.flop_counter"


class _Watch(MetaPathFinder):
    """Finds the counter's module as the path finder does, and registers the formulas once it has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == _COUNTER:  # a loader may have several modules
                _register(module)

        loader.exec_module = exec_module
        return spec


def watch() -> None:
    """Register the formulas, now if the counter's module is there, else when it is imported."""
    counter = sys.modules.get(_COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _Watch())
    else:
        _register(counter)


def _register(counter: Any) -> None:
    """Register the formulas, also with the counters that are counting: each copied the table when it was made."""
    ours = torch.ops.gpuconv

    def fprop(x: Shape, w: Shape, *_: Any, out_shape: Shape, **__: Any) -> Any:
        return counter.conv_flop_count(x, w, out_shape, transposed=False)

    def dgrad(dy: Shape, w: Shape, *_: Any, out_shape: Shape, **__: Any) -> Any:
        return counter.conv_flop_count(dy, w, out_shape, transposed=True)

    def wgrad(x: Shape, dy: Shape, *_: Any, out_shape: Shape, **__: Any) -> Any:
        unread = (None,) * 4  # bias, stride, padding, dilation
        arguments = (dy, x, out_shape, *unread, False, None, None, (False, True, False))
        return counter.conv_backward_flop(*arguments, out_val=(None, out_shape, None))

    formulas: dict[Any, Any] = {ours.fprop: fprop, ours.dgrad: dgrad, ours.wgrad: wgrad, ours.scaled_fprop: fprop}
    for operator, formula in formulas.items():
        if operator not in counter.flop_registry:  # else it is someone's own
            counter.register_flop_formula(operator)(formula)
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, counter._FlopCounterMode):
            for operator in formulas:
                mode.counter.flop_registry.setdefault(operator, counter.flop_registry[operator])
