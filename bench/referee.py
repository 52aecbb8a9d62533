"""The parity gate: a result against PyTorch in float64 on the same device, by the tolerance rule of `numerics.py`.

The rule is applied with torch so that results of hundreds of megabytes stay on the GPU; a test compares it with
`numerics.tolerance`. cuDNN is held to the same gate as we are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._mode_utils import no_dispatch

from gpuconv import numerics
from gpuconv.problem import ConvProblem, PoolProblem, Problem

from .calls import Tensors, aten_call, output_padding

__all__ = ["Referee", "Verdict", "poisoned", "reference", "replayed", "tolerance", "verdict"]

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "hardswish": F.hardswish,
}  # fmt: skip

_STEEPEST = 1.5
"""Largest slope of an activation (hardswish): it passes errors on enlarged by as much."""

_CHUNK_BYTES = 4 << 30
"""Bytes of float64 tensors that the referee computes with at a time, some images of larger problems, and may keep."""


class Verdict(dict[str, Any]):
    """What the gate found: ``ok``, and by how much the worst element and their root mean square use the tolerance."""

    @property
    def ok(self) -> bool:
        return bool(self["ok"])


def tolerance(
    reference: torch.Tensor, magnitude: torch.Tensor, dtype: str, length: int, precision: str
) -> torch.Tensor:
    """Return the largest error of each element, by the rule of :func:`gpuconv.numerics.tolerance`."""
    acc = "float32" if dtype in ("float16", "bfloat16") else dtype
    smallest, smallest_acc = (torch.finfo(getattr(torch, name)).tiny for name in (dtype, acc))
    stored = numerics.eps(dtype) * reference.abs().clamp(min=smallest)
    summed = numerics.accumulation_eps(dtype, precision) * max(length, 1) ** 0.5 * magnitude.clamp(min=smallest_acc)
    return numerics.C * (stored + summed)


def _padded(x: torch.Tensor, problem: ConvProblem) -> torch.Tensor:
    flat = [pad for pair in reversed(list(zip(problem.pad_lo, problem.pad_hi))) for pad in pair]
    mode = "constant" if problem.padding_mode == "zeros" else problem.padding_mode
    return F.pad(x, flat, mode=mode)


def _conv(problem: ConvProblem, tensors: Tensors) -> torch.Tensor:
    """Compute one pass in the dtype of `tensors`, without its activation."""
    convolve = getattr(F, f"conv{problem.ndim}d")
    geometry = {"stride": problem.stride, "dilation": problem.dilation, "groups": problem.groups}
    result = problem.result
    if result == "y":
        y = convolve(_padded(tensors["x"], problem), tensors["w"], **geometry)
    elif problem.kind == "transposed":
        transposed = getattr(F, f"conv_transpose{problem.ndim}d")
        extra = output_padding(problem)
        y = transposed(tensors["y"], tensors["w"], padding=problem.pad_lo, output_padding=extra, **geometry)
    else:
        # Linear in what is differentiated: its values do not matter.
        shape = problem.x_shape if result == "x" else problem.w_shape
        unknown = torch.zeros(shape, dtype=tensors["y"].dtype, device=tensors["y"].device, requires_grad=True)
        operands = (unknown, tensors["w"]) if result == "x" else (tensors["x"], unknown)
        with torch.enable_grad():
            forward = convolve(_padded(operands[0], problem), operands[1], **geometry)
            (y,) = torch.autograd.grad(forward, unknown, tensors["y"])
        return y
    for name in ("bias", "scale", "shift"):
        if name in tensors:
            vector = tensors[name].reshape(-1, *(1,) * problem.ndim)
            y = y * vector if name == "scale" else y + vector
    return y + tensors["residual"] if "residual" in tensors else y


def reference(problem: Problem, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float64 result of a problem and the magnitude of the tolerance rule (the same on absolute values)."""
    wide = {name: tensor if name == "indices" else tensor.double() for name, tensor in tensors.items()}
    if isinstance(problem, PoolProblem):
        y = aten_call(replace(problem, dtype="float64"), wide)()
        y = y[0] if isinstance(y, tuple) else y
        if "max" in problem.pool and problem.kind == "fprop":
            return y, torch.zeros_like(y)  # a copy of an element: nothing is summed
        absolute = {name: tensor if name == "indices" else tensor.abs() for name, tensor in wide.items()}
        return y, aten_call(replace(problem, dtype="float64"), absolute)()
    y = _conv(problem, wide)
    magnitude = _conv(problem, {name: tensor.abs() for name, tensor in wide.items()})
    if problem.activation:
        return _ACTIVATIONS[problem.activation](y), magnitude * _STEEPEST
    return y, magnitude


def _chunks(problem: Problem, tensors: Tensors) -> list[slice]:
    """Return slices of the batch that fit; a weight gradient sums over the batch and stays whole."""
    bytes_needed = 8 * 4 * max(tensor.numel() for tensor in tensors.values())
    if problem.kind == "wgrad":
        return [slice(0, problem.n)]
    size = max(1, problem.n // max(1, ceil(bytes_needed / _CHUNK_BYTES)))
    return [slice(start, min(start + size, problem.n)) for start in range(0, problem.n, size)]


class Referee:
    """Judges results of calls on the same tensors: what PyTorch computes in float64 is computed once, if it fits."""

    def __init__(self, problem: Problem, tensors: Tensors) -> None:
        self.problem, self.tensors = problem, tensors
        self.whole = problem.kind == "wgrad"
        self.parts = _chunks(problem, tensors)
        self.keeps = 2 * 8 * prod(problem.result_shape) <= _CHUNK_BYTES
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _expected(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the expected values of a part of the batch, and the tolerance."""
        if place in self._kept:
            return self._kept[place]
        problem, part = self.problem, self.parts[place]
        batched = {
            name: tensor if self.whole or name in ("w", "bias", "scale", "shift") else tensor[part]
            for name, tensor in self.tensors.items()
        }
        of_part = problem if self.whole else replace(problem, n=part.stop - part.start)
        expected, magnitude = reference(of_part, batched)
        precision = getattr(problem, "precision", "ieee")
        found = expected, tolerance(expected, magnitude, problem.dtype, problem.reduction_length, precision)
        if self.keeps:
            self._kept[place] = found
        return found

    def verdict(self, result: Any) -> Verdict:
        """Judge `result`, the output (or its first, the values before indices) of a call on the tensors."""
        problem = self.problem
        values = result[0] if isinstance(result, tuple) else result
        if tuple(values.shape) != tuple(problem.result_shape):
            return Verdict(ok=False, why=f"shape {tuple(values.shape)}, expected {tuple(problem.result_shape)}")
        worst, squares, wrong = 0.0, 0.0, 0
        for place, part in enumerate(self.parts):
            expected, allowed = self._expected(place)
            got = (values if self.whole else values[part]).double()
            ratio = (got - expected).abs() / allowed
            # What is no number stays out of reach of every comparison.
            ratio = torch.where(torch.isfinite(got), ratio, torch.inf)
            worst = max(worst, float(ratio.max()) if ratio.numel() else 0.0)
            squares += float(ratio.square().sum())
            wrong += int((ratio > 1).sum())
        rms = (squares / max(values.numel(), 1)) ** 0.5
        ok = wrong == 0 and rms <= numerics.RMS_LIMIT
        found: dict[str, Any] = {"ok": ok, "worst": round(min(worst, 1e30), 4), "rms": round(min(rms, 1e30), 4)}
        if not ok:
            found["why"] = f"{wrong} of {values.numel()} elements out of tolerance, error/tolerance {worst:.4g}"
        return Verdict(found)


def verdict(problem: Problem, tensors: Tensors, result: Any) -> Verdict:
    """Judge one result of a call on `tensors`."""
    return Referee(problem, tensors).verdict(result)


@contextmanager
def poisoned() -> Any:
    """Fill every result and workspace that the library allocates for torch with NaN, or the largest integer.

    Repeated calls allocate here, too: a first call is recorded without what fills, and its replay goes on filling. So
    the plan cache is empty at the start, where older replays would not fill, and at the end, where clocks begin.
    """
    from gpuconv.dispatch.plan_cache import CACHE

    whole, strided = torch.empty, torch.empty_strided

    def filling(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def filled(*arguments: Any, **options: Any) -> torch.Tensor:
            array = allocate(*arguments, **options)
            if array.dtype is torch.bool or array.is_meta:
                return array
            with no_dispatch():  # a recording would take it for a part of the call, and refuse
                array.fill_(float("nan") if array.is_floating_point() else torch.iinfo(array.dtype).max)
            return array

        return filled

    CACHE.clear()
    torch.empty, torch.empty_strided = filling(whole), filling(strided)
    try:
        yield
    finally:
        torch.empty, torch.empty_strided = whole, strided
        CACHE.clear()


def replayed() -> bool | None:
    """Tell whether the last call went, or would go on, by a replay; ``None`` where nobody asked for one.

    Solvers of CuPy and NumPy have none, and nor has what runs on the CPU.
    """
    from gpuconv.dispatch.plan_cache import CACHE

    last = max(CACHE.entries(), key=lambda entry: entry.used, default=None)
    return None if last is None or last.replay is None else bool(last.replay)
