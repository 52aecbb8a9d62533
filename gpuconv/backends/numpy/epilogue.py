"""The epilogue of a convolution in NumPy: ``activation((conv + bias) * scale + shift + residual)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ...problem import ConvProblem
from .common import Box, rounded, widen

__all__ = ["ACTIVATIONS", "Epilogue", "Finish"]

_erf = np.frompyfunc(math.erf, 1, 1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (np.tanh(0.5 * x) + 1)  # tanh saturates where exp would overflow


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.asarray(_erf(x * math.sqrt(0.5)), x.dtype))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "hardswish": lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}


class Finish(Protocol):
    """Makes of sums what the result holds."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""

    def __call__(self, values: np.ndarray, n: int, channels: slice, positions: Box) -> np.ndarray:
        """Apply to `values` (channels, then a box of positions) of image `n`, in place where that is possible."""


class Epilogue:
    """The epilogue of one call; formulas of the activations are those of ``torch.nn.functional``."""

    def __init__(self, problem: ConvProblem, arrays: dict[str, Any]) -> None:
        self.dtype = problem.dtype
        self.activation = ACTIVATIONS[problem.activation] if problem.activation else None
        self.vectors = {
            name: widen(arrays[name], problem.dtype).reshape(-1, *(1,) * problem.ndim)
            for name in ("bias", "scale", "shift")
            if arrays.get(name) is not None
        }
        self.residual = arrays.get("residual")
        self.stepwise = problem.rounding == "torch"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.vectors and self.residual is None and self.activation is None

    def __call__(self, values: np.ndarray, n: int, channels: slice, positions: Box) -> np.ndarray:
        """Apply to `values` (channels, then a box of positions) of image `n`, in place where that is possible."""
        values = self._stored(values)
        if "bias" in self.vectors:
            values += self.vectors["bias"][channels]
            values = self._stored(values)
        if "scale" in self.vectors:
            values *= self.vectors["scale"][channels]
            values = self._stored(values)
        if "shift" in self.vectors:
            values += self.vectors["shift"][channels]
            values = self._stored(values)
        if self.residual is not None:
            box = tuple(slice(start, stop) for start, stop in positions)
            values += widen(self.residual[(n, channels, *box)], self.dtype)
            values = self._stored(values)
        return self.activation(values) if self.activation else values

    def _stored(self, values: np.ndarray) -> np.ndarray:
        """Round as a store between two operators of torch would, where the problem asks for that."""
        return rounded(values, self.dtype) if self.stepwise else values
