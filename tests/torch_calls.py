"""A call of every function that torch has too, for tests that put all of them through the same."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch

__all__ = ["CALLS", "Function", "TorchCall", "operands"]

Function = Callable[..., torch.Tensor]


class TorchCall(NamedTuple):
    """A function of ``torch.nn.functional`` by name, the shapes of its floating tensors, and its other arguments."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return int(self.name[-2]) if self.name[-1] == "d" and self.name[-2].isdigit() else 2

    def of(self, module: ModuleType) -> Function:
        """Return the call as a function of its floating tensors; indices and samples are fixed."""
        function, kwargs = getattr(module, self.name), dict(self.kwargs)
        if "unpool" in self.name:
            return lambda x: function(x, unpool_indices(x), *self.args, **kwargs)
        if "fractional" in self.name:
            return lambda x: function(x, *self.args, **kwargs, _random_samples=samples(x, self.ndim))
        return lambda *tensors: function(*tensors, *self.args, **kwargs)

    def __str__(self) -> str:
        return "-".join(map(str, (self.name, *self.args, *self.kwargs.items())))


def unpool_indices(x: torch.Tensor) -> torch.Tensor:
    """Return where an unpooling of windows of 2 puts the elements of `x`: the first place of every window."""
    ndim = 3 if x.dim() == 5 else x.dim() - 2
    at, pitch = torch.zeros((), dtype=torch.int64, device=x.device), 1
    for axis in range(x.dim() - 1, x.dim() - 1 - ndim, -1):
        places = torch.arange(x.shape[axis], device=x.device) * 2 * pitch
        at = at + places.reshape(-1, *(1,) * (x.dim() - 1 - axis))
        pitch *= 2 * x.shape[axis]
    return at.expand(x.shape).contiguous()


def samples(x: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return the same samples of a fractional pool for every call."""
    return torch.full((*x.shape[:2], ndim), 0.3, dtype=x.dtype, device=x.device)


_SIZE = (6, 5, 7)


def _calls() -> list[TorchCall]:
    calls = []
    for ndim in (1, 2, 3):
        size, taps = _SIZE[:ndim], (3, 2, 2)[:ndim]
        x = (2, 4, *size)
        conv = (x, (6, 2, *taps), (6,))
        transposed = (x, (4, 3, *taps), (6,))
        calls += [
            TorchCall(f"conv{ndim}d", conv, (2, 1, 1, 2)),
            TorchCall(f"conv_transpose{ndim}d", transposed, (2, 1, 1, 2)),
            TorchCall(f"max_pool{ndim}d", (x,), (3, 2, 1)),
            TorchCall(f"avg_pool{ndim}d", (x,), (3, 2, 1)),
            TorchCall(f"lp_pool{ndim}d", (x,), (2, 2)),
            TorchCall(f"lp_pool{ndim}d", (x,), (float("inf"), 2)),
            TorchCall(f"adaptive_avg_pool{ndim}d", (x,), (3,)),
            TorchCall(f"adaptive_avg_pool{ndim}d", (x,), (1,)),
            TorchCall(f"adaptive_max_pool{ndim}d", (x,), (3,)),
            TorchCall(f"max_unpool{ndim}d", (x,), (2,)),
        ]
    calls += [TorchCall(f"fractional_max_pool{ndim}d", ((2, 4, *_SIZE[:ndim]),), (2, 3)) for ndim in (2, 3)]
    calls += [TorchCall("unfold", ((2, 4, 6, 5),), (2,)), TorchCall("fold", ((2, 12, 20),), ((5, 6), 2))]
    return calls


CALLS = _calls()


def operands(call: TorchCall, generator: torch.Generator, **options: Any) -> list[torch.Tensor]:
    """Return positive tensors for a call, so that every power has a derivative."""
    kind = {"dtype": torch.float64} | options
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(**kind) + 0.1 for shape in call.shapes]
