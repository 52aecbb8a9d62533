"""The Triton solvers of fractional max pools with given random samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...packs import KernelReference
from ...problem import PoolProblem, Problem
from ...shapes import ceil_div
from ..axes import three
from ..base import Solver
from .common import Strides
from .pool_adaptive import described, grid_of, products_fit, tile_elements
from .pool_common import TritonPool, compute_type, launch_kernel, row_tile, strides_of_pool, triton_type, wide_index

__all__ = ["SOLVERS", "FractionalGather", "FractionalWindow", "fractional_arguments"]

_SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}


def _rounds(problem: PoolProblem) -> bool:
    """Tell whether starts of windows round to 16 bits in every operation: as torch, on the CPU but not on CUDA."""
    return problem.dtype in ("float16", "bfloat16") and not problem.device.startswith("cuda")


def _candidates(problem: PoolProblem) -> list[tuple[int, int]]:
    """Return, per axis, how many windows may contain one position, and the slack of their starts.

    Window j starts less than one position from ``j last / (out - 1)``, with ``last = size - window``, and less than two
    in front of it where the sample is negative, which torch takes too: it cuts off towards zero. To that come
    roundings: about ten of relative size ``2**-bits`` on numbers up to the size, which move no start past an integer
    bound as long as together they stay below ``1 / (out - 1)``.
    """
    bits = _SIGNIFICAND_BITS[problem.dtype if _rounds(problem) else compute_type(problem.dtype)]
    found = []
    for size, out, window in zip(problem.input_size, problem.output_size, problem.kernel, strict=True):
        exact = 12 * size * max(out - 1, 1) < 2**bits
        slack = 1 + (0 if exact else ceil_div(12 * size, 2**bits))
        last = max(size - window, 1)
        found.append((min(out, (window + 1 + 2 * slack) * (out - 1) // last + 1), slack))
    return found


def fractional_arguments(
    problem: PoolProblem, strides: Strides, samples: tuple[int, ...], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every argument of the kernel of the pass of `problem` but pointers and ACC_DTYPE.

    Parameters
    ----------
    problem
        The problem; 2-D gets a leading axis of size 1.
    strides
        Strides in elements of ``x`` or ``dx``, ``y`` and ``indices``.
    samples
        Strides in elements of the samples, N, C and axis.
    config
        The tile, see :meth:`FractionalWindow.plan`; ``INDEX64`` in it forces the 64-bit variant.
    """
    forward = problem.kind == "fprop"
    lanes = problem.c if config["CHANNELS_INNERMOST"] else (problem.output_size if forward else problem.input_size)[-1]
    # torch's 2-D kernel takes its samples as (W, H), its 3-D kernel as (D, H, W); an axis of size 1 needs none.
    order = (0, 1, 0) if problem.ndim == 2 else (0, 1, 2)
    arguments = described(problem, strides) | {
        "tiles_l": ceil_div(lanes, config["BLOCK_L"]),
        "samples_stride_n": samples[0],
        "samples_stride_c": samples[1],
        "OFFSETS": problem.offsets,
        "ROUND": _rounds(problem),
        "INDEX64": bool(config.get("INDEX64")) or not products_fit(problem) or wide_index(problem, strides),
    }
    arguments |= zip(("sample_d", "sample_h", "sample_w"), (axis * samples[2] for axis in order), strict=True)
    arguments |= zip("TRS", three(problem.kernel, 1), strict=True)
    if not forward:
        found = _candidates(problem)
        arguments |= zip(("most_o", "most_p", "most_q"), three([most for most, _ in found], 1), strict=True)
        arguments |= zip(("slack_d", "slack_h", "slack_w"), three([slack for _, slack in found], 0), strict=True)
    return arguments | {name: config[name] for name in ("CHANNELS_INNERMOST", "BLOCK_M", "BLOCK_L")}


class _Fractional(TritonPool):
    pools = ("fractional_max",)

    def launch(self, problem: PoolProblem, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        samples = tensors.get("samples")
        steps = (0, 0, 0) if samples is None else samples.stride()
        arguments = fractional_arguments(problem, strides_of_pool(tensors), steps, config)
        grid = grid_of(problem, arguments)
        arguments["ACC_DTYPE"] = triton_type(compute_type(problem.dtype))
        forward = problem.kind == "fprop"
        kernel = KernelReference("pool.fractional", "_pool_fractional_fprop_window_kernel")
        if not forward:
            kernel = KernelReference("pool.fractional", "_pool_fractional_bwd_gather_kernel")
        names = ("x", "samples", "y", "indices") if forward else ("y", "indices", "samples", "dx")
        pointers = {name: tensors.get(name) for name in names}
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


class FractionalWindow(_Fractional):
    """Fractional max pools, each output of which walks through its window."""

    id = "triton.pool.fractional_max.fprop.window"
    kind = "fprop"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return row_tile(problem, problem.output_size, problem.y_format, tile_elements(problem.dtype))


class FractionalGather(_Fractional):
    """Gradients of fractional max pools: every input position gathers from the windows that may contain it.

    Indices that are taps of a window need the samples of the forward call, in ``call.arrays["samples"]``.
    """

    id = "triton.pool.fractional_max.bwd.gather"
    kind = "bwd"

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, PoolProblem)
        return row_tile(problem, problem.input_size, problem.x_format, tile_elements(problem.dtype))


SOLVERS: tuple[Solver, ...] = (FractionalWindow(), FractionalGather())
