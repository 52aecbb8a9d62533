"""Deformable convolutions of torch tensors, in the three tiers of :mod:`gpuconv.ops`.

1. Nothing records a gradient and no transform is active: straight to the dispatcher, or to launches made before.
2. Gradients, forward-mode tangents or ``torch.func`` transforms: ``autograd.Function`` (:mod:`.deform_autograd`).
3. Compiling, exporting, a dispatch mode, a tensor subclass or a meta tensor: ``torch.library`` operators
   (:mod:`.deform_library`).

Autocast computes them in float32, and returns the type of the input, as torchvision does.
"""

from __future__ import annotations

from typing import Any

import torch

from ..config import forced_backend
from ..dispatch import deform_call, explaining, run
from ..errors import invalid
from ..normalize import Extras, check_rank, geometry_of, groups_of, offset_groups_of, pads_of
from ..problem import Call, DeformProblem
from . import conv_traced
from .conv_library import autocast
from .deform_autograd import apply
from .deform_composed import Form
from .deform_library import operator
from .tiers import OPERATOR, RECORDED, autocasts, repeated, tier_of

__all__ = ["convolution"]

Tensor = Any


def convolution(
    op: str, ndim: int, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, mask: Tensor | None, backend: str | None,
) -> Any:  # fmt: skip
    """Run a deformable convolution on torch tensors. Arguments: see :func:`gpuconv.deform_conv2d`."""
    geometry, key = (stride, padding, dilation), None
    if not torch.compiler.is_compiling():
        given = (input, offset, mask, weight, bias)
        result, key = repeated(op, given, geometry, Extras(backend=backend))
        if result is not None:
            return result
    if autocasts(input):
        tensors = (input, offset, mask, weight, bias)
        if all(tensor is None or isinstance(tensor, torch.Tensor) for tensor in tensors):
            return _in_float32(op, ndim, tensors, geometry, backend)
    arguments = (op, ndim, input, offset, weight, bias, *geometry, mask, backend)
    if torch.compiler.is_compiling():
        return _traced(*arguments)
    tier = tier_of(input, offset, mask, weight, bias)
    if tier == OPERATOR and not explaining():
        return _traced(*arguments)
    call = deform_call(*arguments, key)
    return _recorded(call) if tier == RECORDED and not explaining() else run(call)


def _in_float32(op: str, ndim: int, tensors: tuple[Any, ...], geometry: tuple[Any, ...], backend: str | None) -> Any:
    """Run a call under autocast."""
    input, offset, mask, weight, bias = autocast(*tensors, dtype=torch.float32)
    stride, padding, dilation = geometry
    with torch.amp.autocast(tensors[0].device.type, enabled=False):
        found = convolution(op, ndim, input, offset, weight, bias, stride, padding, dilation, mask, backend)
    return found.to(tensors[0].dtype) if isinstance(found, torch.Tensor) else found


def _recorded(call: Call) -> Tensor:
    """Run a call in the second tier."""
    problem = call.problem
    assert isinstance(problem, DeformProblem)
    conv = problem.conv
    backend = forced_backend(call.backend) or "auto"
    geometry = (conv.stride, conv.pad_lo, conv.pad_hi, conv.dilation, conv.groups)
    x, offset, mask, w, bias = (call.arrays[name] for name in ("x", "offset", "mask", "w", "bias"))
    result = apply(x, offset, mask, w, bias, Form(*geometry, problem.offset_groups, conv.precision, backend))
    return call.kind.drop_batch(result) if call.unbatched else result


def _traced(
    op: str, ndim: int, input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, mask: Tensor | None, backend: str | None,
) -> Tensor:  # fmt: skip
    """Call ``gpuconv::deform_fprop``, of what torch may be tracing."""
    named = {"input": input, "offset": offset, "mask": mask, "weight": weight, "bias": bias}
    conv_traced._check_tensors(op, named, ("input", "offset", "weight"))
    unbatched = check_rank(op, "input", conv_traced._shape(input), ndim, True)
    w_shape = conv_traced._shape(weight)
    check_rank(op, "weight", w_shape, ndim, False)
    for name in ("offset", "mask"):
        array = named[name]
        if array is not None and check_rank(op, name, conv_traced._shape(array), ndim, True) != unbatched:
            required = "without a batch axis, as input is" if unbatched else "with a batch axis, as input is"
            raise invalid(op, name, conv_traced._shape(array), required)
    x, moved = input, offset
    if unbatched:
        x, moved = x.unsqueeze(0), moved.unsqueeze(0)
    factor = conv_traced._batched(mask, unbatched)
    groups = groups_of(op, x.shape[1], w_shape)
    geometry = geometry_of(op, ndim, stride, dilation, groups)
    pad_lo, pad_hi = pads_of(op, padding, conv_traced._shape(x)[2:], w_shape[2:], geometry)
    offset_groups = offset_groups_of(op, conv_traced._shape(moved), w_shape[2:])
    precision, chosen = conv_traced._options(op, input, Extras(backend=backend))
    form = Form(geometry.stride, pad_lo, pad_hi, geometry.dilation, groups, offset_groups, precision, chosen)
    y = operator("deform_fprop", x, moved, factor, weight, bias, *form)
    return y.squeeze(0) if unbatched else y
