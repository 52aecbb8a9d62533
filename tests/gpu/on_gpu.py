"""What the GPU tests share: tensors on the card with the strides of their host tensors, poison, and the two referees.

The referees are float64 (on the host) and cuDNN through torch, on the same values in the same precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fprop_cases import as_numpy

import gpuconv
from gpuconv import numerics
from gpuconv.problem import ConvProblem


def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the card, strides included (``.cuda()`` keeps those of dense tensors alone)."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda").copy_(tensor)


def poison(monkeypatch: Any) -> None:
    """Fill every result that the library allocates with NaN."""
    kind = type(gpuconv.arrays.kind_of(torch.empty(0)))
    allocate = kind.empty
    monkeypatch.setattr(kind, "empty", lambda *args: allocate(*args).fill_(float("nan")))


def padded(x: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor | None:
    """Return a padded copy of x for torch, or None where torch has no such padding (several times around)."""
    flat = [pad for pair in reversed(options["padding"]) for pad in pair]
    mode = options.get("padding_mode", "zeros")
    if mode == "circular" and any(max(pair) > size for pair, size in zip(options["padding"], x.shape[2:])):
        return None
    return torch.nn.functional.pad(x, flat, mode="constant" if mode == "zeros" else mode)


def cudnn_conv(x: torch.Tensor, w: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor | None:
    """Return torch's convolution of a padded copy, differentiable, or None where torch cannot pad."""
    copy = padded(x, options)
    if copy is None:
        return None
    geometry = {name: options[name] for name in ("stride", "dilation", "groups")}
    return getattr(torch.nn.functional, f"conv{w.dim() - 2}d")(copy, w, **geometry)


def assert_agrees(
    result: torch.Tensor,
    reference: np.ndarray,
    magnitude: np.ndarray,
    problem: ConvProblem,
    cudnn: torch.Tensor | None,
) -> None:
    """Assert the tolerance rule against float64, and twice of it against cuDNN, which has errors of its own."""
    rule = (problem.dtype, problem.reduction_length, problem.precision)
    numerics.assert_close(as_numpy(result.cpu()), reference, magnitude, *rule)
    if cudnn is not None:
        ours, theirs = (as_numpy(tensor.detach().cpu()).astype(np.float64) for tensor in (result, cudnn))
        assert (np.abs(ours - theirs) <= 2 * numerics.tolerance(reference, magnitude, *rule)).all()
