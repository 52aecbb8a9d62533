"""What torch makes of a convolution of 8-bit numbers with scales, of the numbers in float64; and how near is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpuconv import numerics

DTYPES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn}

ACTIVATED: dict[str | None, Any] = {
    None: lambda x: x,
    **{name: getattr(F, name) for name in ("relu", "relu6", "hardswish", "silu", "gelu")},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Emulated:
    """A result in float64, before it is rounded to `dtype`, and the sum of absolute products that go into it.

    Both are in units of the result: divided by `output_scale`, where there is one. `exact` is what float32 arithmetic
    makes of sums that are exact, step by step, rounded to `dtype`.
    """

    values: torch.Tensor
    magnitude: torch.Tensor
    exact: torch.Tensor
    dtype: str


def pairs_of(padding: Any, x: torch.Tensor, w: torch.Tensor, stride: Any, dilation: Any) -> list[tuple[int, int]]:
    """Return padding in every form as pairs, by formulas of their own."""
    ndim = w.dim() - 2
    strides, dilations = ([v] * ndim if isinstance(v, int) else list(v) for v in (stride, dilation))
    if padding == "valid":
        padding = 0
    if not isinstance(padding, str):
        pads = [padding] * ndim if isinstance(padding, int) else list(padding)
        return [(pad, pad) if isinstance(pad, int) else tuple(pad) for pad in pads]
    found = []
    for size, taps, s, d in zip(x.shape[-ndim:], w.shape[2:], strides, dilations):
        total = d * (taps - 1)
        if padding in ("same_upper", "same_lower"):
            total = max((-(-size // s) - 1) * s + total + 1 - size, 0)
        lo = {"same_lower": total - total // 2, "causal": total}.get(padding, total // 2)
        found.append((lo, total - lo))
    return found


def emulated(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, input_scale: Any, weight_scale: Any, output_scale: Any = None,
    out_dtype: str = "float32", activation: str | None = None,
) -> Emulated:  # fmt: skip
    """Return what a call should have for its result. Arguments are those of :func:`gpuconv.scaled_conv2d`."""
    ndim = w.dim() - 2
    conv = getattr(F, f"conv{ndim}d")
    pads = [side for pair in reversed(pairs_of(padding, x, w, stride, dilation)) for side in pair]

    def of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return conv(F.pad(a, pads), b, None, stride, 0, dilation, groups)

    def scale(value: Any) -> torch.Tensor:
        return torch.as_tensor(1.0 if value is None else value, dtype=torch.float32).reshape(-1)

    def of_filters(vector: torch.Tensor) -> torch.Tensor:
        return vector.reshape(-1, *(1,) * ndim)

    sums = of(x.double(), w.double())
    magnitude = of(x.double().abs(), w.double().abs())
    factor = of_filters(scale(input_scale) * scale(weight_scale))
    added = -torch.zeros(1) if bias is None else of_filters(bias.float())  # the zero that changes nothing
    single = ACTIVATED[activation](sums.float() * factor + added) / scale(output_scale)
    double = ACTIVATED[activation](sums * factor.double() + added) / scale(output_scale).double()
    # An activation has a slope of at most 1.5.
    most = (magnitude * factor.double().abs() + added.double().abs()) * 1.5
    return Emulated(double, most / scale(output_scale).double().abs(), rounded(single, out_dtype), out_dtype)


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round float32 to a type: to the nearest, ties to even, saturating where it has 8 bits; NaN as int8 is 0."""
    if dtype == "int8":
        return values.nan_to_num(0, 127, -128).round().clamp(-128, 127).to(torch.int8)
    if dtype == "float8_e4m3fn":
        return values.clamp(-448, 448).to(torch.float8_e4m3fn)
    return values.to(getattr(torch, dtype))


def check(result: torch.Tensor, expected: Emulated, length: int, operands: str) -> None:
    """Assert that a result is right.

    Sums of int8 are exact, so without an activation everything but bfloat16 (which the interpreter does not round to
    the nearest) has the very bits of float32 arithmetic. Anything else is within the tolerance of `length` products in
    float32, and half a step of an 8-bit type around that.
    """
    assert result.shape == expected.values.shape and str(result.dtype) == f"torch.{expected.dtype}"
    if operands == "int8" and expected.dtype in ("int8", "float16", "float32"):
        same = result == expected.exact
        if bool(same.all()):
            return
    values, magnitude = expected.values.numpy(), expected.magnitude.numpy()
    if expected.dtype not in DTYPES:
        actual = (result.float() if result.dtype is torch.bfloat16 else result).numpy()
        numerics.assert_close(actual, values, magnitude, expected.dtype, length)
        return
    most = 448.0 if expected.dtype == "float8_e4m3fn" else 127.0
    wanted = np.clip(values, -most - (expected.dtype == "int8"), most)
    step = np.ones_like(wanted)
    if expected.dtype == "float8_e4m3fn":
        step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-6))) - 3)
    actual = result.double().numpy()
    if expected.dtype == "int8":
        wanted = np.nan_to_num(wanted)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(wanted))
    near = numerics.tolerance(np.nan_to_num(values), np.nan_to_num(magnitude), "float32", length)
    wrong = np.abs(actual - wanted) > step / 2 + near
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} elements are more than half a step away"


def exact(result: torch.Tensor, expected: Emulated) -> None:
    """Assert that a result has the bits of float32 arithmetic on exact sums; NaN is NaN whatever its bits."""
    assert result.dtype == expected.exact.dtype and result.shape == expected.exact.shape
    ours, theirs = result.float(), expected.exact.float()
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.nan_to_num(), theirs.nan_to_num())
