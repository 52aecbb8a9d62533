"""One plan on trial: arrays for its problem, a launch, and the time that it takes on a GPU with a cold L2 cache."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any

from ..arrays import TORCH
from ..backends import Plan
from ..problem import Call, ConvProblem, PoolProblem, Prepared, Problem

__all__ = ["CudaTimer", "Timer", "Trial", "capturing_or_compiling", "context_lost", "reason_of"]

Timer = Callable[[Plan, Callable[[], Any]], float]
"""Takes a plan and a function that launches it once, and returns microseconds of one launch."""


def capturing_or_compiling() -> bool:
    """Tell whether this thread records a CUDA graph or traces a model: nothing may be timed then."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


_HEAD, _TAIL = 150, 350
"""Characters of an error that are kept: compilers quote the source first, and say what is wrong with it last."""


def reason_of(error: BaseException) -> str:
    """Return class and message of an error in one line; of a long message its beginning and its end."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _HEAD + _TAIL + 5 else f"{text[:_HEAD]} ... {text[-_TAIL:]}"


def context_lost() -> str | None:
    """Return what the CUDA context died of, ``None`` while it lives, or where this process has none.

    An illegal access, an assertion or a misaligned address on the device fails every later call of the context, in
    words of the library that happens to call next. A synchronise tells, whatever the words: twice, since an earlier
    call may have left an error behind that the first one clears.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    reason = None
    for _ in range(2):
        try:
            torch.cuda.synchronize()
        except Exception as error:
            reason = reason_of(error)
        else:
            return None
    return reason


class Trial:
    """The arrays of a problem, on its device and in its memory formats, which every plan for it runs on.

    Values are small integers, whose sums every plan computes exactly: their results can be compared bit by bit.
    """

    def __init__(self, problem: Problem) -> None:
        import torch

        self._torch = torch
        self.problem = problem
        self._random = torch.Generator(device=problem.device).manual_seed(0)
        assert isinstance(problem, ConvProblem | PoolProblem)  # others are not tuned, or their steps are
        self.arrays = self._conv() if isinstance(problem, ConvProblem) else self._pool(problem)

    def _integers(self, shape: tuple[int, ...], dtype: str, layout: str, low: int, high: int) -> Any:
        array = TORCH.empty(shape, dtype, self.problem.device, layout)
        values = self._torch.randint(low, high, shape, generator=self._random, device=self.problem.device)
        return array.copy_(values)

    def _conv(self) -> dict[str, Any]:
        problem = self.problem
        assert isinstance(problem, ConvProblem)
        tensors = {
            "x": (problem.x_shape, problem.x_format),
            "w": (problem.w_shape, problem.w_format),
            "y": (problem.y_shape, problem.y_format),
        }
        del tensors[problem.result]
        arrays = {
            name: self._integers(shape, problem.dtype, layout, -2, 3) for name, (shape, layout) in tensors.items()
        }
        if problem.kind == "wgrad":
            return arrays
        channels = problem.k if problem.kind == "fprop" else problem.c
        for name in ("bias", "scale", "shift"):
            wanted = getattr(problem, name)
            arrays[name] = self._integers((channels,), problem.dtype, "contiguous", -2, 3) if wanted else None
        arrays["residual"] = None
        if problem.residual:
            arrays["residual"] = self._integers(problem.result_shape, problem.dtype, problem.result_format, -2, 3)
        return arrays

    def _pool(self, problem: PoolProblem) -> dict[str, Any]:
        forward, pool = problem.kind == "fprop", problem.pool
        arrays: dict[str, Any] = {}
        low, high = (0, 5) if problem.dtype == "uint8" else (-2, 3)
        if forward or pool == "lp":
            arrays["x"] = self._integers(problem.x_shape, problem.dtype, problem.x_format, low, high)
        if not forward:
            arrays["y"] = self._integers(problem.y_shape, problem.dtype, problem.y_format, low, high)
        if pool == "max_unpool":
            positions = max(prod(problem.output_size), 1)
            arrays["indices"] = self._integers(problem.x_shape, "int64", problem.x_format, 0, positions)
        elif not forward and "max" in pool:
            arrays["indices"] = TORCH.empty(problem.y_shape, problem.index_dtype, problem.device, problem.y_format)
            arrays["indices"].copy_(self._chosen(problem))
        if pool == "fractional_max":
            shape = (problem.n, problem.c, problem.ndim)
            arrays["samples"] = self._torch.rand(
                shape, generator=self._random, device=problem.device, dtype=self._torch.float32
            ).to(getattr(self._torch, problem.dtype))
        return arrays

    def _chosen(self, problem: PoolProblem) -> Any:
        """Return, for every window of a plane, the tap or the position of an element that lies in it."""
        axes = zip(
            problem.input_size, problem.kernel, problem.output_size, problem.stride, problem.pad_lo, problem.dilation,
            strict=True,
        )  # fmt: skip
        chosen = self._torch.zeros((), dtype=self._torch.int64)
        for size, kernel, out, stride, pad, dilation in axes:
            outputs = self._torch.arange(out)
            if problem.pool == "max":
                start = outputs * stride - pad
                first = (-(start // dilation)).clamp(min=0)
                tap = (first + ((size - 1 - start) // dilation).clamp(max=kernel - 1)) // 2
                place = start + tap * dilation
            else:  # windows of adaptive and fractional pools begin about here
                tap, place = self._torch.zeros_like(outputs), outputs * size // max(out, 1)
            chosen = chosen[..., None] * (kernel if problem.offsets else size) + (tap if problem.offsets else place)
        return chosen.to(problem.device)

    def launcher(self, plan: Plan) -> Callable[[], Any]:
        """Return a function that launches `plan` once and returns its result."""
        prepared = Prepared(self.problem, TORCH, False, plan.solver.id, plan)
        call = Call(self.problem, self.arrays, TORCH, backend=plan.solver.id, prepared=prepared)

        def launch() -> Any:
            with self._torch.no_grad():
                return plan.run(call)

        return launch

    def same(self, one: Any, other: Any) -> bool:
        """Tell whether two results agree: bit by bit, or within a few roundings where sums are divided or mapped."""
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else ((one, other),)
        problem = self.problem
        if isinstance(problem, ConvProblem):
            rounded = problem.activation is not None
        else:
            assert isinstance(problem, PoolProblem)
            rounded = "max" not in problem.pool
        for ours, theirs in pairs:
            if rounded and ours.is_floating_point():
                close = 4 * self._torch.finfo(ours.dtype).eps
                if not self._torch.allclose(ours, theirs, rtol=close, atol=close, equal_nan=True):
                    return False
            elif not self._torch.equal(ours.nan_to_num(nan=12345.0), theirs.nan_to_num(nan=12345.0)):
                return False
        return True


class CudaTimer:
    """Times launches on the current CUDA device: replays of a CUDA graph between events, after L2 was overwritten.

    The median of 5 to 30 launches, for about `budget_ms` milliseconds.
    """

    def __init__(self, budget_ms: float = 30.0) -> None:
        self.budget_ms = budget_ms
        self._flush: Any = None

    def __call__(self, plan: Plan, launch: Callable[[], Any]) -> float:
        import torch

        with torch.cuda.device(plan.problem.device):
            if self._flush is None:
                size = 2 * torch.cuda.get_device_properties(plan.problem.device).L2_cache_size
                self._flush = torch.empty(max(size, 64 << 20), dtype=torch.uint8, device=plan.problem.device)
            for _ in range(3):  # compiles, and reaches a steady clock
                launch()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                launch()
            first = self._once(torch, graph)
            repeats = int(min(30, max(5, self.budget_ms * 1e3 / max(first, 1.0))))
            return median(self._once(torch, graph) for _ in range(repeats))

    def _once(self, torch: Any, graph: Any) -> float:
        """Return the microseconds of one replay."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3
