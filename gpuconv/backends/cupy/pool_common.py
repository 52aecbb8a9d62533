"""What the pooling solvers of the CuPy backend share: the struct of a problem, which kernel variant, and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf, prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST, channels_last_strides, contiguous_strides
from ...problem import PoolProblem, Problem, itemsize
from ...shapes import ceil_div, effective_kernel, pool_window
from ..axes import reach, three
from ..pool_common import FLOATS, INTEGERS, refusal
from .common import CupySolver, Launch, Results, Strides

__all__ = [
    "C_TYPES",
    "FLOATS",
    "INTEGERS",
    "PARAMS",
    "THREADS",
    "CupyPool",
    "compute_type",
    "constant_divisor",
    "dense_strides",
    "kernel_name",
    "lanes_of",
    "pool_launch",
    "pool_params",
    "wide_index",
    "window_class",
]


C_TYPES = {
    "float16": "f16", "bfloat16": "bf16", "float32": "float", "float64": "double", "uint8": "unsigned char",
    "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
}  # fmt: skip
"""The kernels' names of element types."""

THREADS = 256
"""Threads of a block of every pooling kernel but unpooling."""

_BYTES_PER_US = 1.5e6
_LAUNCH_US = 5.0

_LONGS = (
    "units", *(f"x_stride_{axis}" for axis in "ncdhw"), *(f"y_stride_{axis}" for axis in "ncopq"),
    *(f"indices_stride_{axis}" for axis in "ncopq"), "number_t", "number_r", "number_s",
    "samples_stride_n", "samples_stride_c", "sample_d", "sample_h", "sample_w", "divisor",
)  # fmt: skip
_DOUBLES = ("lowest", "norm", "alpha_d", "alpha_h", "alpha_w")
_INTS = (
    *"cdhwopqtrs", "stride_d", "stride_h", "stride_w", "dilation_d", "dilation_h", "dilation_w", "pad_d", "pad_h",
    "pad_w", "pad_high_d", "pad_high_h", "pad_high_w", "channels_innermost", "include_pad", "magnitude", "positions",
    "index_bytes", "strips", "slack",
)  # fmt: skip

PARAMS = np.dtype(
    [(name, np.int64) for name in _LONGS]
    + [(name, np.float64) for name in _DOUBLES]
    + [(name, np.int32) for name in _INTS],
    align=True,
)
"""The struct ``PoolParams`` of ``kernels/cu/pool.cuh``."""


def compute_type(dtype: str) -> str:
    """Return the type in which elements of `dtype` are summed: float32 for 16-bit floats."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def window_class(problem: PoolProblem) -> str:
    """Return the kernels' name of how windows follow each other."""
    return "Adaptive" if problem.pool.startswith("adaptive") else "Strided"


def kernel_name(kernel: str, *arguments: Any) -> str:
    """Return the C++ name of a kernel with its template arguments."""
    texts = [str(argument).lower() if isinstance(argument, bool) else str(argument) for argument in arguments]
    return f"{kernel}<{', '.join(texts)}>"


def dense_strides(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the strides of a dense array in a memory format."""
    return channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)


def _shapes(problem: PoolProblem) -> dict[str, tuple[int, ...]]:
    small = problem.x_shape if problem.pool == "max_unpool" else problem.y_shape
    return {"x": problem.x_shape, "dx": problem.x_shape, "y": problem.y_shape, "indices": small}


def wide_index(problem: PoolProblem, strides: Strides) -> bool:
    """Tell whether an offset, a coordinate or the number of an element may not fit in a signed 32-bit integer."""
    shapes = _shapes(problem)
    # Blocks reach over the end of a result by less than 2**16 elements.
    most = [prod(problem.x_shape) + 2**16, prod(problem.y_shape) + 2**16]
    most += [reach(shapes[name], strides[name]) for name in shapes if name in strides]
    extents = [effective_kernel(k, d) for k, d in zip(problem.kernel, problem.dilation)]
    sides = zip(extents, problem.input_size, problem.output_size, problem.stride, problem.pad_lo, problem.pad_hi)
    most += [size + out * stride + extent + lo + hi for extent, size, out, stride, lo, hi in sides]
    # Positions count from the first tap of a window, which may be in the padding.
    most.append(prod(max(sides) for sides in zip(extents, problem.input_size)))
    if window_class(problem) == "Adaptive" or problem.pool == "fractional_max":
        most += [(size + 1) * (out + 1) for size, out in zip(problem.input_size, problem.output_size)]
    return max(most) >= 2**31


def lanes_of(problem: PoolProblem, read: Mapping[str, Sequence[int]], wide: bool) -> int:
    """Return how many channels a thread takes: what 16 bytes hold, where the arrays that it reads have them in a row.

    `read` holds the strides of those arrays, by name. Whether they begin at a multiple of 16 bytes the kernel sees.
    The 64-bit variants take one channel, as addresses take many registers.
    """
    lanes = 16 // itemsize(problem.dtype)
    if wide or problem.dtype not in FLOATS or problem.result_format != CHANNELS_LAST or problem.c % lanes:
        return 1
    shapes = _shapes(problem)
    for name, (outer, inner, *spatial) in read.items():
        n, _, *sizes = shapes[name]
        steps = [stride for size, stride in zip((n, *sizes), (outer, *spatial)) if size > 1]
        if inner != 1 or any(stride % lanes for stride in steps):
            return 1
    return lanes


def constant_divisor(problem: PoolProblem) -> int:
    """Return what the sum of every window is divided by, or 0 where windows differ."""
    if problem.divisor_override is not None:
        return problem.divisor_override
    if window_class(problem) == "Adaptive":
        return 0
    axes = zip(
        problem.output_size, problem.input_size, problem.kernel, problem.stride, problem.pad_lo, problem.pad_hi,
        problem.dilation, strict=True,
    )  # fmt: skip
    for out, size, kernel, stride, lo, hi, dilation in axes:
        for index in (0, out - 1):  # every window between these is whole if they are
            start, end = pool_window(index, size, kernel, stride, lo, hi, dilation)
            if not problem.count_include_pad:
                start, end = max(start, 0), min(end, size)
            if end - start < effective_kernel(kernel, dilation):
                return 0
    return prod(problem.kernel)


def _lowest(dtype: str) -> float:
    return float(np.iinfo(dtype).min) if dtype in INTEGERS else -float("inf")


def _numbers(problem: PoolProblem, positions: bool) -> tuple[int, ...]:
    """Return what one tap more along D, H and W adds to the number of an element."""
    sizes = three(problem.input_size, 1) if positions else three(problem.kernel, 1)
    steps = three(problem.dilation, 1) if positions else (1, 1, 1)
    return tuple(prod(sizes[axis + 1 :]) * steps[axis] for axis in range(3))


def pool_params(
    problem: PoolProblem, strides: Strides, units: int, *, index_dtype: str | None = None, **others: Any
) -> Any:
    """Return the struct of a launch, as a NumPy record.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of what the kernel reads by strides: ``x``, ``y`` and ``indices``, each if it does.
    units
        Units of work, see ``kernels/cu/pool.cuh``.
    index_dtype
        Type of the indices, if not the problem's; only those of int64 are positions.
    others
        Fields that differ from what follows from the problem.
    """
    params = np.zeros((), PARAMS)
    index_dtype = index_dtype or ("int64" if problem.pool == "max_unpool" else problem.index_dtype)
    extreme = problem.pool == "lp" and isinf(problem.norm_type)
    values: dict[str, Any] = {
        "units": units,
        "divisor": constant_divisor(problem),
        "lowest": _lowest(problem.dtype),
        "norm": problem.norm_type,
        "c": problem.c,
        "channels_innermost": problem.result_format == CHANNELS_LAST,
        "include_pad": problem.count_include_pad,
        "magnitude": (1 if problem.norm_type > 0 else -1) if extreme else 0,
        "positions": not problem.offsets if index_dtype == problem.index_dtype else False,
        "index_bytes": itemsize(index_dtype),
    }
    for name, steps in strides.items():
        letters = "ncdhw" if name == "x" else "ncopq"
        values |= zip((f"{name}_stride_{axis}" for axis in letters), (*steps[:2], *three(steps[2:], 0)), strict=True)
    fields = {
        "d h w": three(problem.input_size, 1), "o p q": three(problem.output_size, 1),
        "t r s": three(problem.kernel, 1), "stride_d stride_h stride_w": three(problem.stride, 1),
        "dilation_d dilation_h dilation_w": three(problem.dilation, 1), "pad_d pad_h pad_w": three(problem.pad_lo, 0),
        "pad_high_d pad_high_h pad_high_w": three(problem.pad_hi, 0),
        "number_t number_r number_s": _numbers(problem, values["positions"]),
    }  # fmt: skip
    for names, numbers in fields.items():
        values |= zip(names.split(), numbers, strict=True)
    for name, value in (values | others).items():
        params[name] = value
    record: Any = params[()]
    return record


def pool_launch(source: str, kernel: str, arrays: tuple[str | None, ...], params: Any) -> Launch:
    """Return a launch with one thread per unit of work."""
    return Launch(source, kernel, ceil_div(int(params["units"]), THREADS), THREADS, arrays, params)


class CupyPool(CupySolver):
    """A solver of one pass of some pools."""

    pools: tuple[str, ...]
    kind: str
    dtypes: tuple[str, ...] = FLOATS

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, PoolProblem) and problem.pool in self.pools and problem.kind == self.kind

    def why_not(self, problem: Problem) -> str | None:
        reason = refusal(problem, self.pools, self.kind, self.dtypes)
        if reason is not None:
            return reason
        assert isinstance(problem, PoolProblem)
        windows = (problem.kernel, problem.stride, problem.dilation, problem.pad_lo, problem.pad_hi)
        largest = max(problem.c, *map(max, (problem.input_size, problem.output_size, *windows)))
        if largest >= 2**31:
            return f"holds sizes, strides and paddings in 32 bits, which {largest} needs more than"
        return None

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate from the bytes that must move and 1.5 TB/s: a guess until a GPU run fits a model."""
        return _LAUNCH_US + problem.min_bytes / _BYTES_PER_US

    def results(self, problem: Any) -> Results:
        forward = problem.kind == "fprop"
        found = {"y" if forward else "dx": (problem.result_shape, problem.dtype, problem.result_format)}
        if forward and problem.return_indices:
            found["indices"] = (problem.y_shape, problem.index_dtype, problem.y_format)
        return found
