"""One more batch axis for a pooling operator: folded into N, as every plane is pooled by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["folded"]

Tensor = Any


def _fold(tensor: Tensor | None, dim: int | None, batch: int) -> Tensor | None:
    """Move the batch axis to the front (or repeat what has none), and make it one axis with N."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(0).expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def folded(
    operator: Callable[..., Any], batch: int, dims: Sequence[Any], name: str, tensors: Sequence[Any], form: Any
) -> tuple[Any, Any]:
    """Run an operator over a batch axis of its tensors; results have it in front."""
    results = operator(name, [_fold(tensor, dim, batch) for tensor, dim in zip(tensors, dims)], form)

    def unfold(result: Tensor) -> Tensor:
        return result.unflatten(0, (batch, result.shape[0] // batch))

    if isinstance(results, tuple):
        return tuple(unfold(result) for result in results), (0,) * len(results)
    return unfold(results), 0
