"""Launches of the window pools: of the general kernels, over all axes at once or one axis after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST, CONTIGUOUS, channels_last_strides, contiguous_strides
from ...packs import KernelReference
from ...problem import PoolProblem
from ...shapes import ceil_div, effective_kernel
from ..axes import three
from .common import Strides
from .pool_common import Workspace, compute_type, launch_kernel, pool_arguments, triton_type, wide_index

__all__ = [
    "ALL_AXES",
    "Pass",
    "backward_passes",
    "constant_divisor",
    "divisor_arguments",
    "forward_passes",
    "grid_of",
    "lowest",
    "max_backward",
    "max_backward_arguments",
    "max_forward",
    "max_forward_arguments",
    "strides_in",
    "sum_backward",
    "sum_backward_arguments",
    "sum_forward",
    "sum_forward_arguments",
    "taps_arguments",
]

ALL_AXES = 3
"""What the kernels' AXIS is where they pool every axis at once; 0 to 2 are D, H and W."""

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch: the axis that it pools, the spatial sizes of its result, and whether it is the first or last."""

    axis: int
    sizes: tuple[int, ...]
    first: bool
    last: bool


def strides_in(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the strides of a dense tensor in a memory format."""
    return channels_last_strides(shape) if layout == CHANNELS_LAST else contiguous_strides(shape)


def _pooled_axes(problem: PoolProblem) -> list[int]:
    """Return the axes, W first, whose windows are not single elements at their own place."""
    sides = zip(
        three(problem.kernel, 1), three(problem.input_size, 1), three(problem.output_size, 1),
        three(problem.pad_lo, 0), strict=True,
    )  # fmt: skip
    pooled = [kernel > 1 or size != out or lo > 0 for kernel, size, out, lo in sides]
    return [axis for axis in (2, 1, 0) if pooled[axis]]


def forward_passes(problem: PoolProblem, separable: bool) -> list[Pass]:
    """Return the launches of a forward pass, in order."""
    axes = _pooled_axes(problem) if separable else []
    if not axes:
        return [Pass(ALL_AXES, problem.output_size, True, True)]
    sizes, passes = list(three(problem.input_size, 1)), []
    for axis in axes:
        sizes[axis] = three(problem.output_size, 1)[axis]
        passes.append(Pass(axis, tuple(sizes[3 - problem.ndim :]), axis == axes[0], axis == axes[-1]))
    return passes


def backward_passes(problem: PoolProblem, separable: bool) -> list[Pass]:
    """Return the launches of a backward pass, in order: D first, the other way round than forward."""
    axes = _pooled_axes(problem)[::-1] if separable else []
    if not axes:
        return [Pass(ALL_AXES, problem.input_size, True, True)]
    sizes, passes = list(three(problem.output_size, 1)), []
    for axis in axes:
        sizes[axis] = three(problem.input_size, 1)[axis]
        passes.append(Pass(axis, tuple(sizes[3 - problem.ndim :]), axis == axes[0], axis == axes[-1]))
    return passes


def lowest(dtype: str) -> float | int:
    """Return the smallest number of a type."""
    return -float("inf") if "float" in dtype else int(np.iinfo(dtype).min)


def _spatial_end(problem: PoolProblem) -> Iterator[tuple[int, int, int, int]]:
    """Yield, per axis, where the last window ends, the size, and the low and high pads."""
    sides = zip(
        problem.output_size, problem.stride, problem.kernel, problem.dilation, problem.input_size, problem.pad_lo,
        problem.pad_hi, strict=True,
    )  # fmt: skip
    for out, stride, kernel, dilation, size, lo, hi in sides:
        yield (out - 1) * stride - lo + effective_kernel(kernel, dilation), size, lo, hi


def constant_divisor(problem: PoolProblem) -> int:
    """Return what every window is divided by, or 0 where windows differ."""
    if problem.divisor_override is not None:
        return problem.divisor_override
    if problem.count_include_pad:
        same = all(end <= size + hi for end, size, _, hi in _spatial_end(problem))
    else:
        same = all(lo == 0 and end <= size for end, size, lo, _ in _spatial_end(problem))
    return prod(problem.kernel) if same else 0


def divisor_arguments(problem: PoolProblem) -> dict[str, Any]:
    """Return the arguments that say what sums are divided by."""
    arguments: dict[str, Any] = {"DIVISOR": constant_divisor(problem), "INCLUDE_PAD": problem.count_include_pad}
    return arguments | dict(zip(("pad_high_d", "pad_high_h", "pad_high_w"), three(problem.pad_hi, 0), strict=True))


def _tile_arguments(problem: PoolProblem, strides: Strides, config: Config, step: Pass) -> dict[str, Any]:
    wide = wide_index(problem, strides, problem.n * problem.c * prod(step.sizes))
    return {
        "AXIS": step.axis,
        "INDEX64": bool(config.get("INDEX64")) or wide,
        "CHANNELS_INNERMOST": bool(config["CHANNELS_INNERMOST"]),
        "BLOCK_M": config["BLOCK_M"],
        "BLOCK_L": config["BLOCK_L"],
    }


def grid_of(problem: PoolProblem, config: Config, step: Pass) -> tuple[int]:
    """Return the grid of a pass."""
    lanes = problem.c if config["CHANNELS_INNERMOST"] else step.sizes[-1]
    rows = problem.n * problem.c * prod(step.sizes) // max(lanes, 1)
    return (ceil_div(rows, config["BLOCK_M"]) * ceil_div(lanes, config["BLOCK_L"]),)


def _magnitude(problem: PoolProblem) -> int:
    """Return the sign of an infinite power, 0 for a max pool."""
    return 0 if problem.pool == "max" else 1 if problem.norm_type > 0 else -1


def max_forward_arguments(
    problem: PoolProblem, strides: Strides, config: Config, step: Pass, positions: bool
) -> dict[str, Any]:
    """Return every argument of the general forward max kernel but its pointers, by name.

    `strides` are those of ``x`` and ``y`` of the pass; `positions` says what the numbers of windows are.
    """
    sign = _magnitude(problem)
    return pool_arguments(problem, strides) | _tile_arguments(problem, strides, config, step) | {
        "POSITIONS": positions,
        "MAGNITUDE": sign,
        "NEGATE": sign < 0 and step.last,
        "LOWEST": lowest(problem.dtype),
        "COMPUTE": triton_type(compute_type(problem.dtype)),
    }  # fmt: skip


def max_forward(
    problem: PoolProblem, tensors: Mapping[str, Any], config: Config, workspace: Workspace, separable: bool,
    positions: bool,
) -> None:  # fmt: skip
    """Launch a max pool: ``x`` to ``y`` and ``indices``, of which one may be None. Without a buffer only count bytes.

    Parameters
    ----------
    problem
        The problem of a max pool, or of a power pool with an infinite power.
    tensors, config
        Tensors by name, and the tile.
    workspace
        Where the results of passes between the first and the last lie.
    separable
        Whether to pool one axis after another.
    positions
        Whether indices are positions in the plane, or taps.
    """
    numbers = "int64" if positions and prod(problem.input_size) >= 2**31 else "int32"
    indexed = problem.return_indices or problem.kind == "bwd"
    source, below = tensors.get("x"), None
    for step in forward_passes(problem, separable):
        result, indices = tensors.get("y"), tensors.get("indices")
        if not step.last:
            shape = (problem.n, problem.c, *step.sizes)
            result = workspace.take(shape, problem.dtype, problem.y_format)
            indices = None
            if indexed:
                indices = workspace.take(shape, numbers if positions else problem.offset_dtype, problem.y_format)
        if workspace.counting:
            continue
        kernel = KernelReference("pool.max", "_pool_max_fprop_general_kernel")
        # Numbers are stored like values; a launch for numbers alone takes the strides of those.
        written = indices if result is None else result
        assert source is not None and written is not None
        strides = {"x": source.stride(), "y": written.stride()}
        arguments = max_forward_arguments(problem, strides, config, step, positions)
        pointers = {"x": source, "below": below, "y": result, "indices": indices}
        launch_kernel(problem, kernel, grid_of(problem, config, step), pointers, arguments, config)
        source, below = result, indices


def max_backward_arguments(
    problem: PoolProblem, strides: Strides, config: Config, step: Pass, positions: bool
) -> dict[str, Any]:
    """Return every argument of the general backward max kernel but its pointers, by name.

    `strides` are those of ``y``, ``indices`` and ``dx`` of the pass, and of ``x`` where the sign of x is read.
    """
    strides = {"x": (0,) * (2 + problem.ndim), **strides}
    return pool_arguments(problem, strides) | _tile_arguments(problem, strides, config, step) | {
        "POSITIONS": positions,
        "COMPUTE": triton_type(compute_type(problem.dtype)),
    }  # fmt: skip


def max_backward(
    problem: PoolProblem, tensors: Mapping[str, Any], config: Config, workspace: Workspace, separable: bool,
    positions: bool,
) -> None:  # fmt: skip
    """Launch the backward pass of a max pool: ``y`` and ``indices`` to ``dx``, with the sign of ``x`` if that is given.

    The arguments are those of :func:`max_forward`. Passes over axes need taps that a max pool chose. Positions may come
    from anywhere: they become taps first, and where passes then find that no max pool chose them, a launch over all
    axes behind them computes the result again, which otherwise does nothing.
    """
    grad, indices, conflict = tensors.get("y"), tensors.get("indices"), None
    checked = separable and positions
    if checked:
        indices, conflict = _taps(problem, indices, config, workspace)
    for step in backward_passes(problem, separable):
        result, below = tensors.get("dx"), None
        if not step.last:
            shape = (problem.n, problem.c, *step.sizes)
            result = workspace.take(shape, compute_type(problem.dtype), problem.x_format)
            below = workspace.take(shape, problem.offset_dtype, problem.x_format)
        if workspace.counting:
            continue
        pointers = {"y": grad, "indices": indices, "dx": result, "below": below}
        pointers["x"] = tensors["x"] if step.last and problem.pool == "lp" else None
        pointers["conflict"] = None if step.last else conflict
        _max_backward_pass(problem, pointers, config, step, positions and not checked)
        grad, indices = result, below
    if checked and not workspace.counting:
        pointers = {name: tensors[name] for name in ("y", "indices", "dx")}
        everything = Pass(ALL_AXES, problem.input_size, True, True)
        pointers |= {"x": None, "below": None, "conflict": conflict}
        _max_backward_pass(problem, pointers, config, everything, True)


def _max_backward_pass(
    problem: PoolProblem, pointers: Mapping[str, Any], config: Config, step: Pass, positions: bool
) -> None:
    """Launch a pass; `pointers` has every tensor of the kernel by name, or None."""
    kernel = KernelReference("pool.max", "_pool_max_bwd_general_kernel")
    named = ("y", "indices", "dx", "x")
    strides = {name: pointers[name].stride() for name in named if pointers[name] is not None}
    arguments = max_backward_arguments(problem, strides, config, step, positions)
    launch_kernel(problem, kernel, grid_of(problem, config, step), pointers, arguments, config)


def taps_arguments(problem: PoolProblem, strides: Strides, config: Config) -> dict[str, Any]:
    """Return every argument of the kernel of taps but its pointers, by name.

    `strides` are those of ``indices`` and, as ``y``, of the taps.
    """
    step = Pass(ALL_AXES, problem.output_size, True, True)
    arguments = pool_arguments(problem, strides) | _tile_arguments(problem, strides, config, step)
    del arguments["AXIS"]
    return arguments


def _taps(problem: PoolProblem, indices: Any, config: Config, workspace: Workspace) -> tuple[Any, Any]:
    """Launch what makes taps of positions; return them and the flag for windows that passes cannot tell apart."""
    taps = workspace.take(problem.y_shape, problem.offset_dtype, problem.y_format)
    conflict = workspace.take((1,), "int32", CONTIGUOUS)
    if not workspace.counting:
        kernel = KernelReference("pool.taps", "_pool_max_taps_kernel")
        strides = {"indices": indices.stride(), "y": taps.stride()}
        arguments = taps_arguments(problem, strides, config)
        grid = grid_of(problem, config, Pass(ALL_AXES, problem.output_size, True, True))
        pointers = {"indices": indices, "taps": taps, "conflict": conflict}
        launch_kernel(problem, kernel, grid, pointers, arguments, config)
    return taps, conflict


def _finish(problem: PoolProblem, step: Pass) -> str:
    """Return what the forward kernel makes of the sums of a pass."""
    if not step.last:
        return "sum"
    if problem.pool == "avg":
        return "avg"
    return "lp" if problem.kind == "fprop" else "slope"


def sum_forward_arguments(problem: PoolProblem, strides: Strides, config: Config, step: Pass) -> dict[str, Any]:
    """Return every argument of the general kernel of window sums but its pointers, by name.

    `strides` are those of ``x`` and ``y`` of the pass, and of ``grad`` where the pass makes slopes.
    """
    arguments = pool_arguments(problem, {name: strides[name] for name in ("x", "y")})
    of_grad = pool_arguments(problem, {"y": strides.get("grad", (0,) * (2 + problem.ndim))})
    arguments |= {f"grad_stride_{axis}": of_grad[f"y_stride_{axis}"] for axis in "ncopq"}
    arguments |= divisor_arguments(problem) | _tile_arguments(problem, {"x": strides["x"]}, config, step)
    return arguments | {
        "POWER": problem.norm_type if problem.pool == "lp" and step.first else 1.0,
        "FINISH": _finish(problem, step),
        "NORM": problem.norm_type,
        "COMPUTE": triton_type(compute_type(problem.dtype)),
    }


def sum_forward(
    problem: PoolProblem, tensors: Mapping[str, Any], config: Config, workspace: Workspace, separable: bool
) -> None:
    """Launch window sums: ``x`` to ``y``; of a backward power pool, with the gradient ``grad`` of y, to slopes ``y``.

    The arguments are those of :func:`max_forward`.
    """
    source = tensors.get("x")
    for step in forward_passes(problem, separable):
        result = tensors.get("y")
        if not step.last:
            shape = (problem.n, problem.c, *step.sizes)
            result = workspace.take(shape, compute_type(problem.dtype), problem.y_format)
        if workspace.counting:
            continue
        kernel = KernelReference("pool.sum", "_pool_sum_fprop_general_kernel")
        assert source is not None and result is not None
        strides = {"x": source.stride(), "y": result.stride()}
        grad = tensors.get("grad") if step.last else None
        if grad is not None:
            strides["grad"] = grad.stride()
        arguments = sum_forward_arguments(problem, strides, config, step)
        pointers = {"x": source, "grad": grad, "y": result}
        launch_kernel(problem, kernel, grid_of(problem, config, step), pointers, arguments, config)
        source = result


def sum_backward_arguments(problem: PoolProblem, strides: Strides, config: Config, step: Pass) -> dict[str, Any]:
    """Return every argument of the general kernel that spreads window sums but its pointers, by name.

    `strides` are those of ``y`` and ``dx`` of the pass, and of ``x`` where the power of x is read.
    """
    strides = {"x": (0,) * (2 + problem.ndim), **strides}
    arguments = pool_arguments(problem, strides) | divisor_arguments(problem)
    return arguments | _tile_arguments(problem, strides, config, step) | {
        "FINISH": "lp" if problem.pool == "lp" and step.last else "sum",
        "NORM": problem.norm_type,
        "DIVIDE": problem.pool == "avg" and step.first,
        "COMPUTE": triton_type(compute_type(problem.dtype)),
    }  # fmt: skip


def sum_backward(
    problem: PoolProblem, tensors: Mapping[str, Any], config: Config, workspace: Workspace, separable: bool
) -> None:
    """Launch the adjoint of window sums: ``y`` to ``dx``, times the derivative of a power of ``x`` for a power pool.

    The arguments are those of :func:`max_forward`.
    """
    grad = tensors.get("y")
    for step in backward_passes(problem, separable):
        result = tensors.get("dx")
        if not step.last:
            shape = (problem.n, problem.c, *step.sizes)
            result = workspace.take(shape, compute_type(problem.dtype), problem.x_format)
        if workspace.counting:
            continue
        kernel = KernelReference("pool.sum", "_pool_sum_bwd_general_kernel")
        assert grad is not None and result is not None
        x = tensors.get("x") if step.last and problem.pool == "lp" else None
        strides = {"y": grad.stride(), "dx": result.stride()}
        if x is not None:
            strides["x"] = x.stride()
        arguments = sum_backward_arguments(problem, strides, config, step)
        pointers = {"y": grad, "x": x, "dx": result}
        launch_kernel(problem, kernel, grid_of(problem, config, step), pointers, arguments, config)
        grad = result
