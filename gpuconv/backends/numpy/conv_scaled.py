"""Convolution of 8-bit operands with scales in NumPy: the reference, which says what every other solver computes.

Sums of products of int8 are integers. Floats hold them exactly: float32 those of up to 1024 products, which are below
2**24, float64 all others; so BLAS forms them, and what int32 does not hold wraps around as it does there. Products of
float8 have 8 bits, and are exact in float32, in which they are summed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ...arrays import bfloat16_bits
from ...config import workspace_limit
from ...numerics import e4m3_bits
from ...problem import Call, ConvProblem, Problem, ScaledProblem
from ..base import Plan, Solver
from .chunks import column_chunk
from .common import Box, widen
from .conv import as_one_image, multiply_columns, with_axis
from .costs import columns_us
from .epilogue import ACTIVATIONS
from .workspace import BOUNDS, Chunk

__all__ = ["SOLVERS"]

_EXACT_IN_FLOAT32 = 2**24 // 128**2
"""Products of int8 whose sum float32 holds, whatever they are."""

_EXACT_IN_INT32 = 2**31 // 128**2 - 1
"""Products of int8 whose sum int32 holds, whatever they are."""


@lru_cache(maxsize=1024)
def _of_floats(problem: ScaledProblem) -> ConvProblem:
    """Return the convolution as floats multiply it."""
    conv = as_one_image(problem.conv)
    if problem.dtype == "float8_e4m3fn":
        return conv
    return replace(conv, dtype="float32" if conv.reduction_length <= _EXACT_IN_FLOAT32 else "float64")


def _bounding(problem: ScaledProblem) -> ConvProblem:
    """Return a convolution that allocates at least as much: the costliest activation stands for scales and rounding."""
    conv = _of_floats(problem)
    return replace(conv, activation="gelu", dtype=conv.dtype if problem.dtype == "float8_e4m3fn" else "float64")


def _chunk(problem: ScaledProblem) -> Chunk:
    return column_chunk(_bounding(problem), workspace_limit())


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return float32 as the numbers, or the bits, that a result of `dtype` is filled with."""
    if dtype == "int8":
        values = np.clip(np.nan_to_num(values, nan=0.0, posinf=127.0, neginf=-128.0), -128, 127)
        return np.rint(values).astype(np.int8)
    if dtype == "float8_e4m3fn":
        return e4m3_bits(values)
    return bfloat16_bits(values) if dtype == "bfloat16" else values


class _Scaling:
    """What becomes of sums: ``activation(sum * (input_scale * weight_scale) + bias) / output_scale``, in float32."""

    empty = False

    def __init__(self, problem: ScaledProblem, arrays: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        def scale(name: str) -> np.ndarray:
            array = arrays[name]
            return np.asarray(numbers[name], np.float32).reshape(1) if array is None else array.reshape(-1)

        self.problem = problem
        factors = np.broadcast_to(scale("input_scale") * scale("weight_scale"), problem.conv.k)
        axes = (-1, *(1,) * _of_floats(problem).ndim)
        self.factors = factors.reshape(axes)
        bias = arrays["bias"]
        self.bias = None if bias is None else widen(bias, problem.bias_dtype or "").reshape(axes)
        self.output_scale = scale("output_scale")

    def __call__(self, values: np.ndarray, n: int, channels: slice, positions: Box) -> np.ndarray:
        """Return what the result holds, of sums of a slice of filters."""
        problem = self.problem
        if problem.dtype == "int8" and problem.reduction_length > _EXACT_IN_INT32:
            values = values.astype(np.int64).astype(np.int32)
        values = values.astype(np.float32)
        values *= self.factors[channels]
        if self.bias is not None:
            values += self.bias[channels]
        if problem.conv.activation:
            values = ACTIVATIONS[problem.conv.activation](values)
        if problem.output_scale is not None:
            values = values / self.output_scale
        return _rounded(values, problem.out_dtype)


class ScaledIm2col(Solver):
    """Columns of the input, one product with the weights, and the scales."""

    id = "numpy.conv.scaled.im2col"
    always_answers = True

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, ScaledProblem)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, ScaledProblem):
            return "solves convolutions of 8-bit numbers with scales, which is another operation"
        return None

    def rank(self, problem: Problem) -> float:
        assert isinstance(problem, ScaledProblem)
        return columns_us(_bounding(problem), workspace_limit())

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, ScaledProblem)
        chunk, bounding = _chunk(problem), _bounding(problem)
        config = {"sums in": _of_floats(problem).dtype.replace("float8_e4m3fn", "float32")}
        return Plan(self, problem, BOUNDS["fprop"](bounding, chunk), config | {"positions per chunk": chunk.positions})

    def run(self, plan: Plan, call: Call) -> Any:
        problem, kind = call.problem, call.kind
        assert isinstance(problem, ScaledProblem)
        result = kind.empty(problem.result_shape, problem.out_dtype, problem.device, problem.result_format)
        if not prod(problem.result_shape):
            return result
        arrays: dict[str, Any] = {name: None if a is None else kind.to_numpy(a) for name, a in call.arrays.items()}
        conv, out = _of_floats(problem), kind.to_numpy(result)
        with np.errstate(all="ignore"):
            scaling = _Scaling(problem, arrays, call.extra)
            if conv.ndim > problem.ndim:
                arrays |= {name: with_axis(arrays[name], name) for name in ("x", "w")}
                out = with_axis(out, "y")
            multiply_columns(conv, arrays, out, _chunk(problem), scaling)
        return result


SOLVERS: tuple[Solver, ...] = (ScaledIm2col(),)
