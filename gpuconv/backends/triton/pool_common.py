"""What the pooling solvers of the Triton backend share: which problems, arguments by name, results, and workspaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs import Work, direct_work
from ...packs import TypeName
from ...problem import Call, PoolProblem, Problem, itemsize
from ...shapes import ceil_div
from ..axes import five, reach, three
from ..base import Plan
from ..pool_common import FLOATS, INTEGERS, refusal
from .common import Strides, as_tensor, power_of_two, recorded_at_first, stream_of
from .launch import launch_kernel
from .tuned import Tunable, block_variants

__all__ = [
    "FLOATS",
    "INTEGERS",
    "TritonPool",
    "Workspace",
    "compute_type",
    "launch_kernel",
    "pool_arguments",
    "row_tile",
    "strides_of_pool",
    "triton_type",
    "wide_index",
]

_PER_TAP = 12
"""Instructions of a thread per element of a window: address, mask, load and comparison, read off compiled kernels."""


def compute_type(dtype: str) -> str:
    """Return the type in which elements of `dtype` are compared and summed: float32 and int32 for what is narrower."""
    if dtype in ("float16", "bfloat16"):
        return "float32"
    return "int32" if dtype in ("uint8", "int8", "int16") else dtype


def triton_type(dtype: str) -> TypeName:
    """Return Triton's type of that name, by name: Triton is imported where it compiles."""
    return TypeName(dtype)


def strides_of_pool(tensors: Mapping[str, Any]) -> Strides:
    """Return the strides of the tensors of N C and spatial axes that are there, by name."""
    named = ("x", "y", "dx", "indices")
    return {name: tensors[name].stride() for name in named if tensors.get(name) is not None}


def wide_index(problem: PoolProblem, strides: Strides, extra: int = 0) -> bool:
    """Tell whether an offset in a tensor, or a number below `extra`, may not fit in a signed 32-bit integer."""
    shapes = {"x": problem.x_shape, "dx": problem.x_shape, "y": problem.y_shape, "indices": problem.y_shape}
    if problem.pool == "max_unpool":
        shapes["indices"] = problem.x_shape
    # Tiles reach over the end of a tensor, by less than 2**20 elements and rows.
    most = max(prod(problem.x_shape), prod(problem.y_shape), extra) + 2**20
    return max(most, *(reach(shapes[name], steps) for name, steps in strides.items())) >= 2**31


def pool_arguments(problem: PoolProblem, strides: Strides) -> dict[str, Any]:
    """Return the arguments that describe a pool itself, which the kernels take by these names.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of each tensor by name, as :func:`strides_of_pool` returns them: ``x`` gives
        ``x_stride_n`` to ``x_stride_w``, ``dx`` the same with its own name, ``y`` and ``indices`` ``y_stride_n`` to
        ``y_stride_q``.
    """
    arguments: dict[str, Any] = {"n": problem.n, "c": problem.c}
    arguments |= zip("dhw", three(problem.input_size, 1), strict=True)
    arguments |= zip("opq", three(problem.output_size, 1), strict=True)
    arguments |= zip("TRS", three(problem.kernel, 1), strict=True)
    arguments |= zip(("STRIDE_D", "STRIDE_H", "STRIDE_W"), three(problem.stride, 1), strict=True)
    arguments |= zip(("DILATION_D", "DILATION_H", "DILATION_W"), three(problem.dilation, 1), strict=True)
    arguments |= zip(("pad_d", "pad_h", "pad_w"), three(problem.pad_lo, 0), strict=True)
    small = problem.pool == "max_unpool"
    axes = {"x": "ncdhw", "dx": "ncdhw", "y": "ncopq", "indices": "ncdhw" if small else "ncopq"}
    for name, steps in strides.items():
        arguments |= zip((f"{name}_stride_{axis}" for axis in axes[name]), five(steps), strict=True)
    return arguments


def row_tile(problem: PoolProblem, sizes: Sequence[int], layout: str, elements: int = 1024) -> dict[str, Any]:
    """Return a tile of BLOCK_M rows by BLOCK_L lanes over a tensor of N C and spatial `sizes`.

    Lanes are channels where those lie innermost, else the last spatial axis; rows are everything else.
    """
    innermost = layout == CHANNELS_LAST
    lanes = problem.c if innermost else sizes[-1]
    rows = problem.n * prod(sizes) * problem.c // max(lanes, 1)
    block_l = min(power_of_two(lanes), 64 if innermost else 128)
    block_m = min(power_of_two(rows), max(elements // block_l, 1))
    return {"BLOCK_M": block_m, "BLOCK_L": block_l, "CHANNELS_INNERMOST": innermost, "num_warps": 4, "num_stages": 3}


class Workspace:
    """Hands out consecutive tensors of a buffer of bytes, each aligned to 256 bytes, or counts what they take."""

    def __init__(self, buffer: Any = None) -> None:
        self.buffer = buffer
        self.used = 0

    @property
    def counting(self) -> bool:
        """Whether there is no buffer, and tensors are only counted."""
        return self.buffer is None

    def take(self, shape: Sequence[int], dtype: str, layout: str) -> Any:
        """Return the next tensor, of N C and spatial axes in a memory format (None while counting)."""
        begin, size = self.used, prod(shape) * itemsize(dtype)
        self.used += ceil_div(size, 256) * 256
        if self.buffer is None:
            return None
        import torch

        flat = self.buffer[begin : begin + size].view(getattr(torch, dtype))
        if layout == CHANNELS_LAST:
            return flat.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return flat.view(tuple(shape))


class TritonPool(Tunable):
    """A pooling solver that launches Triton kernels on torch tensors."""

    pools: tuple[str, ...]
    kind: str
    dtypes: tuple[str, ...] = FLOATS

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, PoolProblem) and problem.pool in self.pools and problem.kind == self.kind

    def why_not(self, problem: Problem) -> str | None:
        return refusal(problem, self.pools, self.kind, self.dtypes)

    def variants(self, problem: Problem) -> Iterable[dict[str, Any]]:
        return block_variants(self.default(problem))

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        return Plan(self, problem, 0, dict(config))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        """Describe a kernel whose programs each have a tile of results, and read every element of their windows."""
        assert isinstance(problem, PoolProblem)
        results = prod(problem.result_shape)
        taps = prod(problem.kernel)
        if problem.kind == "bwd":
            taps = prod(ceil_div(size, step) for size, step in zip(problem.kernel, problem.stride, strict=True))
        sides = ("BLOCK_M", "BLOCK_L", "TILE_P", "TILE_Q")
        sizes = np.array([prod(config.get(side, 1) for side in sides) for config in configs], float)
        if problem.kind == "bwd" and "TILE_P" in configs[0]:
            sizes *= prod(three(problem.stride, 1)[1:])  # tiles are of windows, each of which begins at a stride
        warps = np.array([config["num_warps"] for config in configs], float)
        return direct_work(problem, results * _PER_TAP * taps, np.ceil(results / sizes), 2, warps)

    @recorded_at_first
    def run(self, plan: Plan, call: Call) -> Any:
        with stream_of(call.kind, plan.problem):
            return self._run(plan, call)

    def _run(self, plan: Plan, call: Call) -> Any:
        import torch

        problem = plan.problem
        assert isinstance(problem, PoolProblem)
        result = call.kind.empty(problem.result_shape, problem.dtype, problem.device, problem.result_format)
        tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
        written = tensors["y" if problem.kind == "fprop" else "dx"] = as_tensor(torch, result)
        indices = None
        if problem.return_indices and problem.kind == "fprop":
            indices = call.kind.empty(problem.y_shape, problem.index_dtype, problem.device, problem.y_format)
            tensors["indices"] = as_tensor(torch, indices)
        if 0 not in problem.result_shape:
            if plan.workspace:
                tensors["workspace"] = torch.empty(plan.workspace, dtype=torch.uint8, device=written.device)
            self.launch(problem, tensors, plan.config)
        return result if indices is None else (result, indices)

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Launch on torch tensors by name, all with a batch axis.

        Forward: ``x``, the result ``y`` and, with `return_indices`, ``indices``. Backward: ``y`` (the gradient of y),
        ``indices`` or ``x`` where the pool needs them, and the result ``dx``. ``workspace`` if planned: bytes.
        """
        raise NotImplementedError
