"""What torch's ``FlopCounterMode`` counts for the operators of convolutions: what it counts for torch's own.

The counts are torch's to the letter, those that it gives a grouped weight gradient included, so that a model counts the
same whoever computes its convolutions. Pools count nothing, as torch's, nor does the interpolation of a deformable
convolution: each of its passes counts the one product that it has.

The formulas are registered when ``torch.utils.flop_counter`` is imported, not before: it imports Triton, which a
process that launches compiled kernels never needs, and which reads ``TRITON_INTERPRET`` at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .imported import when_imported

__all__ = ["watch"]

Shape = Sequence[int]


def watch() -> None:
    """Register the formulas, now if the counter's module is there, else when it is imported."""
    when_imported("torch.utils.flop_counter", _register)


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

    def deform_fprop(x: Shape, offset: Shape, mask: Any, w: Shape, *_: Any, out_shape: Shape, **__: Any) -> Any:
        return counter.conv_flop_count(x, w, out_shape, transposed=False)

    def deform_dgrad(dy: Shape, x: Shape, offset: Shape, mask: Any, w: Shape, *_: Any, **__: Any) -> Any:
        return counter.conv_flop_count(x, w, dy, transposed=False)

    def deform_wgrad(dy: Shape, x: Shape, *_: Any, out_shape: Shape, **__: Any) -> Any:
        return counter.conv_flop_count(x, out_shape, dy, transposed=False)

    formulas: dict[Any, Any] = {ours.fprop: fprop, ours.dgrad: dgrad, ours.wgrad: wgrad, ours.scaled_fprop: fprop}
    formulas |= {ours.deform_fprop: deform_fprop, ours.deform_dgrad: deform_dgrad, ours.deform_wgrad: deform_wgrad}
    for operator, formula in formulas.items():
        if operator not in counter.flop_registry:  # else it is someone's own
            counter.register_flop_formula(operator)(formula)
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, counter._FlopCounterMode):
            for operator in formulas:
                mode.counter.flop_registry.setdefault(operator, counter.flop_registry[operator])
