"""Deformable convolutions: calls on small integers and odd eighths, whose samples are exact in every number format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch

from gpuconv.ops.deform_composed import Form
from gpuconv.ops.deform_library import launch_dgrad, launch_fprop, launch_wgrad

__all__ = ["CASES", "PASSES", "ours", "sums_of", "tensors_of", "theirs"]

Tensors = Mapping[str, torch.Tensor]

PASSES = ("y", "x", "offset", "mask", "w")
"""The forward pass, and the gradients by name."""

CASES = (((1, 1, 1), 40, 1, 1), ((2, 1, 1), 24, 2, 1), ((1, 2, 2), 7, 1, 2))
"""Stride, padding and dilation, filters, groups, and groups of offsets (where they divide the channels)."""


def _output(size: Sequence[int], geometry: tuple[int, int, int]) -> tuple[int, ...]:
    stride, padding, dilation = geometry
    return tuple((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in size)


def tensors_of(
    x: torch.Tensor, filters: int, groups: int, offset_groups: int, geometry: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Return the tensors of a 3x3 convolution of an image, of its type: some samples lie outside."""
    (n, c, *size), options = x.shape, {"dtype": x.dtype, "device": x.device}
    output = _output(size, geometry)

    def drawn(shape: tuple[int, ...], factor: int, modulus: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return torch.arange(count, device=x.device).mul(factor).remainder(modulus).reshape(shape)

    # Never on an element, where what autograd makes of `theirs` is one of two slopes.
    offset = drawn((n, 18 * offset_groups, *output), 37, 29).sub(14) / 4 + 0.125
    return {
        "x": x.round().clamp(-3, 3),
        "offset": offset.to(**options),
        "mask": (2.0 ** drawn((n, 9 * offset_groups, *output), 5, 3).sub(1)).to(**options),
        "w": drawn((filters, c // groups, 3, 3), 5, 7).sub(3).to(**options),
        "dy": drawn((n, filters, *output), 3, 5).sub(2).to(**options),
    }


def sums_of(tensors: Tensors, which: str) -> int:
    """Return how many products an element of a result sums at most."""
    n, filters, *output = tensors["dy"].shape
    channels, positions = tensors["w"].shape[1], n * output[0] * output[1]
    return {
        "y": 36 * channels, "w": 4 * positions, "x": 9 * filters * output[0] * output[1],
    }.get(which, 4 * filters * tensors["x"].shape[1])  # fmt: skip


def ours(tensors: Tensors, backend: str | None, which: str, form: tuple[Any, ...]) -> Any:
    """Run gpuconv: the forward pass or one gradient."""
    geometry, groups, offset_groups = form
    stride, padding, dilation = ([side] * 2 for side in geometry)
    rest = Form(stride, padding, padding, dilation, groups, offset_groups, "ieee", backend)
    x, offset, mask, w, dy = (tensors[name] for name in ("x", "offset", "mask", "w", "dy"))
    if which == "y":
        return launch_fprop(x, offset, mask, w, None, rest)
    if which == "w":
        return launch_wgrad(dy, x, offset, mask, [3, 3], rest)
    return launch_dgrad(dy, x, offset, mask, w, [which], rest)


def _forward(tensors: Tensors, form: tuple[Any, ...]) -> torch.Tensor:
    """Compute the forward pass by gathering corners, as torch differentiates it."""
    (stride, padding, dilation), groups, offset_groups = form
    x, w = tensors["x"], tensors["w"]
    (n, c, *size), filters, output = x.shape, w.shape[0], tensors["dy"].shape[2:]
    offset = tensors["offset"].reshape(n, offset_groups, 9, 2, *output)
    inside: Any = True
    lows, fractions = [], []
    for axis in range(2):
        steps = torch.arange(output[axis], device=x.device) * stride - padding
        taps = torch.arange(9, device=x.device) // (3, 1)[axis] % 3 * dilation
        base = taps[:, None, None] + (steps[:, None] if axis == 0 else steps)
        at = base + offset[:, :, :, axis]
        inside = inside & (at > -1) & (at < size[axis])
        lows.append(at.detach().floor())
        fractions.append(at - lows[-1])
    planes = x.reshape(n, offset_groups, -1, size[0] * size[1])
    columns: Any = 0.0
    for corner in product((0, 1), repeat=2):
        place: Any = 0
        weight, there = 1.0, inside
        for axis, high in enumerate(corner):
            at = lows[axis].long() + high
            there = there & (at >= 0) & (at < size[axis])
            place = place * size[axis] + at.clamp(0, size[axis] - 1)
            weight = weight * (fractions[axis] if high else 1 - fractions[axis])
        flat = place.reshape(n, offset_groups, 1, -1).expand(-1, -1, planes.shape[2], -1)
        found = planes.gather(3, flat).reshape(*planes.shape[:3], *place.shape[2:])
        columns = columns + torch.where(there[:, :, None], found * weight[:, :, None], 0.0)
    columns = columns * tensors["mask"].reshape(n, offset_groups, 1, 9, *output)
    columns = columns.reshape(n, groups, c // groups * 9, -1)
    return torch.matmul(w.reshape(groups, filters // groups, -1), columns).reshape(n, filters, *output)


def theirs(tensors: Tensors, which: str, form: tuple[Any, ...]) -> torch.Tensor:
    """Return what torch makes of the same tensors."""
    if which == "y":
        return _forward(tensors, form)
    with torch.enable_grad():
        leaves = dict(tensors) | {which: tensors[which].detach().requires_grad_()}
        (found,) = torch.autograd.grad(_forward(leaves, form), leaves[which], tensors["dy"])
    return found
