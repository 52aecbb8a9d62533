"""Dilated max pools some of whose windows lie in the padding alone, and what torch makes of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["Hollow", "hollow_cases"]


class Hollow(NamedTuple):
    """A plane, the arguments of the pool, and what torch returns; `reads` is false for windows of padding alone."""

    x: torch.Tensor
    args: tuple[Any, ...]
    y: torch.Tensor
    indices: torch.Tensor
    reads: torch.Tensor

    @property
    def name(self) -> str:
        """Name of the pool."""
        return f"max_pool{self.x.dim() - 2}d"

    @property
    def rows(self) -> int:
        """Number of planes."""
        return self.x.shape[0] * self.x.shape[1]

    def gradient(self, dy: torch.Tensor) -> torch.Tensor:
        """Return the gradient of x, to which windows of padding add nothing."""
        at, values = (torch.where(self.reads, t, 0).reshape(self.rows, -1) for t in (self.indices, dy))
        flat = torch.zeros(self.rows, self.x[0, 0].numel(), dtype=dy.dtype)
        return flat.scatter_add_(1, at, values).reshape(self.x.shape)

    def gathered(self, tangent: torch.Tensor) -> torch.Tensor:
        """Return the tangent of y."""
        at = torch.where(self.reads, self.indices, 0).reshape(self.rows, -1)
        return torch.where(self.reads, tangent.reshape(self.rows, -1).gather(1, at).reshape(self.y.shape), 0)


def hollow_cases(ndim: int, count: int, seed: int = 0) -> Iterator[Hollow]:
    """Yield `count` pools of `ndim` axes that have a window of padding alone."""
    rng = np.random.default_rng(seed)
    found = 0
    while found < count:
        size, stride, dilation = (rng.integers(low, 5, ndim) for low in (1, 1, 2))
        kernel = rng.integers(2, 4, ndim)
        padding = np.minimum(rng.integers(0, 2, ndim), kernel // 2)
        lists = [tuple(int(n) for n in values) for values in (kernel, stride, padding, dilation)]
        args = (*lists, bool(rng.integers(2)))
        x = torch.from_numpy(rng.standard_normal((2, 3, *size)))
        try:
            y, indices = getattr(F, f"max_pool{ndim}d")(x, *args, return_indices=True)
        except RuntimeError:  # no window fits
            continue
        if torch.isinf(y).any():
            found += 1
            yield Hollow(x, args, y, indices, ~torch.isinf(y))
