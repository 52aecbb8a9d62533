"""Gradients of max pools from positions: those of maxima, and those that no max pool chose, with a referee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import gpuconv

LAST = torch.channels_last
WIDE = ((6, 7), (2, 1), (2, 3), (1, 2))
"""Kernel, stride, padding and dilation."""


@dataclass
class Given:
    """A gradient of y, x, the window, and positions of windows."""

    grad: torch.Tensor
    x: torch.Tensor
    window: tuple[Any, ...]
    indices: torch.Tensor

    def gradient(self, solver: str) -> torch.Tensor:
        """Return the gradient of x by a solver."""
        function = getattr(gpuconv, f"max_pool{self.x.ndim - 2}d_with_indices_backward")
        return function(self.grad, self.x, *self.window, False, self.indices, backend=f"triton.pool.max.bwd.{solver}")


def given(size: tuple[int, ...] = (2, 3, 17, 14), window: tuple[Any, ...] = WIDE, layout: Any = None) -> Given:
    """Return a max pool of random numbers, with many ties, and a gradient whose sums are rounded."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(size, generator=generator).mul(2).round()
    _, indices = getattr(gpuconv, f"max_pool{len(size) - 2}d")(x, *window, return_indices=True, backend="numpy")
    grad = torch.randn(indices.shape, generator=generator)
    tensors = [tensor.to(memory_format=layout) if layout else tensor for tensor in (grad, x, indices)]
    return Given(tensors[0], tensors[1], window, tensors[2])


def crossing(one: Given) -> Given:
    """Return `one` with positions drawn from the window of each output, so that windows of a line disagree."""
    generator = torch.Generator().manual_seed(7)
    kernel, stride, padding, dilation = one.window
    position = torch.zeros((), dtype=torch.int64)
    for axis, size in enumerate(one.x.shape[2:]):
        shape = [1] * one.x.ndim
        shape[2 + axis] = -1
        start = torch.arange(one.grad.shape[2 + axis]).view(shape) * stride[axis] - padding[axis]
        tap = torch.randint(0, kernel[axis], one.grad.shape, generator=generator)
        place = (start + tap * dilation[axis]).clamp(0, size - 1)
        position = position * size + place
    return Given(one.grad, one.x, one.window, position)


def outside(one: Given) -> Given:
    """Return `one` with some positions that their window, or no plane, has."""
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randint(0, 6, one.indices.shape, generator=generator)
    kept, plane = torch.rand(drawn.shape, generator=generator) < 0.5, one.x[0, 0].numel()
    strange = torch.tensor([0, plane, -1, plane - 1, 2**32 + 5, -(2**40)])[drawn]
    return Given(one.grad, one.x, one.window, torch.where(kept, one.indices, strange))


CASES: dict[str, Callable[[], Given]] = {
    "2-D": given,
    "2-D channels last": lambda: given(layout=LAST),
    "2-D dilated by stride": lambda: given((1, 2, 23, 20), ((5, 6), (3, 2), (2, 3), (3, 2))),
    "3-D": lambda: given((1, 2, 7, 9, 8), ((4, 3, 5), (1, 2, 1), (2, 1, 2), (1, 1, 1))),
    "3-D along two axes": lambda: given((2, 2, 9, 3, 8), ((6, 1, 5), (2, 1, 2), (1, 0, 2), (1, 1, 1))),
}


def located(one: Given) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tap of each window that reads its position, and which windows have one."""
    rest, taps, scale = one.indices, torch.zeros_like(one.indices), 1
    reads = (rest >= 0) & (rest < one.x[0, 0].numel())
    for axis in reversed(range(one.x.ndim - 2)):
        kernel, stride, padding, dilation = (sides[axis] for sides in one.window)
        size, shape = one.x.shape[2 + axis], [1] * one.x.ndim
        shape[2 + axis] = -1
        distance = rest % size - (torch.arange(one.grad.shape[2 + axis]) * stride - padding).view(shape)
        reads = reads & (distance >= 0) & (distance % dilation == 0) & (distance // dilation < kernel)
        taps = taps + distance // dilation * scale
        rest, scale = rest // size, scale * kernel
    return taps, reads


def referee(one: Given) -> torch.Tensor:
    """Return the gradient in float64: each window's goes to its position, where one of its taps reads that."""
    reads = located(one)[1]
    dx = torch.zeros(one.x.shape, dtype=torch.float64).flatten(2)
    grad = torch.where(reads, one.grad, 0.0).double()
    return dx.scatter_add(2, torch.where(reads, one.indices, 0).flatten(2), grad.flatten(2)).view(one.x.shape)
