"""The window pooling solvers of the Triton backend: max, average and power pools, forward and backward.

Of each there is a general solver, which takes everything, and a separable one for large windows, which pools one axis
after another so that its cost grows with the sides of a window and not with its area.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf, prod
from typing import Any

import numpy as np

from ...costs import Work, direct_work
from ...problem import PoolProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .pool_common import FLOATS, INTEGERS, TritonPool, Workspace, compute_type, row_tile
from .pool_windows import backward_passes, forward_passes, max_backward, max_forward, sum_backward, sum_forward

__all__ = ["SOLVERS", "WindowPool"]

_SMALL_WINDOW = 25
"""Elements of a window up to which one launch reads it at least as fast as one launch per axis."""

_PER_TAP = 32
"""Instructions of a thread per element of a window: its coordinates and bounds are computed for each."""


_PER_POSITION = 80
"""Instructions of a thread per position that becomes a tap, read off compiled kernels: it is divided by two sides."""


class WindowPool(TritonPool):
    """One pass of one family of window pools; `separable` pools one axis after another.

    The separable gradient of a max pool takes positions too: as taps, and with a second answer for those that no max
    pool chose; see :func:`.pool_windows.max_backward`.
    """

    def __init__(self, pool: str, kind: str, separable: bool) -> None:
        self.pools, self.kind, self.separable = (pool,), kind, separable
        self.id = f"triton.pool.{pool}.{kind}.{'separable' if separable else 'general'}"
        if kind == "fprop" and pool == "max":
            self.dtypes = (*FLOATS, *INTEGERS)
        elif kind == "fprop" and pool == "avg":
            self.dtypes = (*FLOATS, "int64")

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason or not self.separable:
            return reason
        assert isinstance(problem, PoolProblem)
        if sum(kernel > 1 for kernel in problem.kernel) < 2:
            return f"windows of {_by(problem.kernel)} have one axis"
        if prod(problem.kernel) <= _SMALL_WINDOW:
            return f"windows of {_by(problem.kernel)} are small: one launch reads all {prod(problem.kernel)} elements"
        return None

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        """Describe a launch for each pass, all with programs of tiles of their results."""
        assert isinstance(problem, PoolProblem)
        passes = (forward_passes if self.kind == "fprop" else backward_passes)(problem, self.separable)
        planes = problem.n * problem.c
        results = [planes * prod(step.sizes) for step in passes]
        taps = [_taps(problem, step.axis, self.kind) for step in passes]
        read = sum(count * each for count, each in zip(results, taps, strict=True))
        between = sum(results[:-1]) * 2 * itemsize(compute_type(problem.dtype))
        sizes = np.array([config["BLOCK_M"] * config["BLOCK_L"] for config in configs], float)
        warps = np.array([config["num_warps"] for config in configs], float)
        programs = np.ceil(max(results) / sizes)
        instructions, launches = _PER_TAP * read, len(passes)
        if self.separable and problem.pool == "max" and problem.kind == "bwd" and not problem.offsets:
            # Of positions that a max pool chose: the launch behind the passes does nothing.
            windows, launches = planes * prod(problem.output_size), launches + 2
            instructions += _PER_POSITION * windows
            between += 2 * itemsize(problem.offset_dtype) * windows
        return direct_work(problem, instructions, programs, sum(taps), warps, launches, between)

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        sizes = problem.output_size if self.kind == "fprop" else problem.input_size
        return row_tile(problem, sizes, problem.result_format)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, PoolProblem)
        workspace = Workspace()
        self._launch(problem, {}, config, workspace)
        return Plan(self, problem, workspace.used, {**config, "separable": self.separable})

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        # Without a planned workspace nothing is taken from the buffer; any tensor then says that this is no counting.
        buffer = tensors.get("workspace")
        self._launch(problem, tensors, config, Workspace(tensors["y"] if buffer is None else buffer))

    def _launch(
        self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any], workspace: Workspace
    ) -> None:
        """Launch everything, or where `workspace` has no buffer count what that takes of it."""
        extreme = problem.pool == "lp" and isinf(problem.norm_type)
        common = (config, workspace, self.separable)
        if problem.kind == "fprop":
            if problem.pool == "max" or extreme:
                max_forward(problem, tensors, *common, positions=not problem.offsets)
            else:
                sum_forward(problem, tensors, *common)
        elif problem.pool == "max":
            max_backward(problem, tensors, *common, positions=not problem.offsets)
        elif problem.pool == "avg":
            sum_backward(problem, tensors, *common)
        elif extreme:
            taps = workspace.take(problem.y_shape, problem.offset_dtype, problem.y_format)
            max_forward(problem, {"x": tensors.get("x"), "indices": taps}, *common, positions=False)
            max_backward(problem, {**tensors, "indices": taps}, *common, positions=False)
        else:
            slopes = workspace.take(problem.y_shape, compute_type(problem.dtype), problem.y_format)
            sum_forward(problem, {"x": tensors.get("x"), "grad": tensors.get("y"), "y": slopes}, *common)
            sum_backward(problem, {**tensors, "y": slopes}, *common)


def _taps(problem: PoolProblem, axis: int, kind: str) -> float:
    """Return how many elements a launch reads for each of its results: of a window, or of the windows that read one."""
    kernels = (1,) * (3 - problem.ndim) + problem.kernel
    strides = (1,) * (3 - problem.ndim) + problem.stride
    reads = [kernel if kind == "fprop" else ceil_div(kernel, stride) for kernel, stride in zip(kernels, strides)]
    return reads[axis] if axis < 3 else prod(reads)


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


SOLVERS: tuple[Solver, ...] = tuple(
    WindowPool(pool, kind, separable)
    for pool in ("max", "avg", "lp")
    for kind in ("fprop", "bwd")
    for separable in (False, True)
)
