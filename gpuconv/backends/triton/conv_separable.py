"""Depthwise and pointwise convolution on the kernel that computes both: problems, tiles, arguments and the launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...costs import Work
from ...packs import KernelReference
from ...problem import Call, Problem, SeparableProblem
from ...shapes import ceil_div, effective_kernel
from ..axes import reach
from ..base import Estimate, Plan, Solver
from .common import as_tensor, recorded_at_first, stream_of
from .launch import launch_kernel
from .separable_costs import SeparableCosts, separable_tiles
from .tuned import Tunable
from .units import divide_by_eight

__all__ = ["SOLVERS", "FusedSeparable", "separable_arguments"]

_MOST_TAPS = 7
"""Of a row of a window, which are held in registers."""

_MOST_COLUMNS = 64
"""Input columns of the windows of neighbouring results: the kernel has each of them in its code."""

_DTYPES = ("float16", "bfloat16", "float32")

Strides = Mapping[str, Sequence[int]]


def _strides(arguments: dict[str, Any], tensor: str, axes: str, steps: Sequence[int]) -> None:
    arguments.update({f"{tensor}_stride_{axis}": step for axis, step in zip(axes, steps, strict=True)})


def separable_arguments(problem: SeparableProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel but its pointers, by name.

    Parameters
    ----------
    problem
        The problem.
    strides
        Strides in elements of ``x``, ``w``, ``pointwise``, ``y`` and, where the problem has one, of ``residual``,
        ``bias`` and ``pointwise_bias``.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    """
    first, second = problem.depthwise, problem.pointwise
    p, q = first.output_size
    box = config["BLOCK_M"] // config["TILE_Q"]
    columns, lines = ceil_div(q, config["TILE_Q"]), first.n * p
    tiles_n = ceil_div(second.k, config["BLOCK_N"])
    found: dict[str, Any] = {
        "channels": first.k, "k": second.k, "h": first.input_size[0], "w": first.input_size[1], "p": p, "q": q,
        "lines": lines, "columns": columns, "tiles_n": tiles_n,
    }  # fmt: skip
    _strides(found, "x", "nchw", strides["x"])
    _strides(found, "w", "krs", (strides["w"][0], *strides["w"][2:]))
    _strides(found, "pointwise", "kc", strides["pointwise"][:2])
    _strides(found, "y", "nkpq", strides["y"])
    _strides(found, "residual", "nkpq", strides.get("residual", (0,) * 4))
    for name, size in (("bias", first.k), ("pointwise_bias", second.k)):
        found[f"{name}_stride"] = strides[name][0] if name in strides and size > 1 else 1
    found |= zip(("pad_h", "pad_w"), first.pad_lo, strict=True)
    found |= zip(("stride_h", "STRIDE_W"), first.stride, strict=True)
    found |= zip(("dilation_h", "DILATION_W"), first.dilation, strict=True)
    found |= {name: config[name] for name in ("TILE_Q", "COLS", "BLOCK_M", "BLOCK_N", "BLOCK_C")}
    found |= {
        "R": first.kernel[0], "S": first.kernel[1], "MULTIPLIER": first.k // first.c,
        "EVEN_C": first.k % config["BLOCK_C"] == 0, "BETWEEN": first.activation, "ACTIVATION": second.activation,
        "PRECISION": second.precision, "INDEX64": bool(config.get("INDEX64")) or _wide(problem, strides, box),
    }  # fmt: skip
    return _in_units(found) | {"programs": ceil_div(lines, box) * columns * tiles_n}


def _wide(problem: SeparableProblem, strides: Strides, box: int) -> bool:
    """Tell whether an offset, with what lies beside the edges, may not fit in 32 bits."""
    first, second = problem.depthwise, problem.pointwise
    shapes = {"x": first.x_shape, "w": first.w_shape, "pointwise": second.w_shape}
    shapes |= dict.fromkeys(("y", "residual"), second.y_shape) | {"bias": (first.k,), "pointwise_bias": (second.k,)}
    n, c, h, w = first.x_shape
    beside = [pad + step * (box + 256) for pad, step in zip(first.pad_lo, first.stride, strict=True)]
    shapes["x"] = (n + 1, c, h + max(beside[0], first.pad_hi[0]), w + max(beside[1], first.pad_hi[1]))
    lines = n * first.output_size[0] + box
    return max(lines, *(reach(shapes[name], steps) for name, steps in strides.items())) >= 2**31


_UNITS = {
    "UNIT_X": ("x_stride_c", ("x_stride_n", "x_stride_h", "x_stride_w")),
    "UNIT_P": ("pointwise_stride_c", ("pointwise_stride_k",)),
    "UNIT_Y": ("y_stride_k", tuple(f"{t}_stride_{axis}" for t in ("y", "residual") for axis in "npq")),
}
"""For each unit the stride that must be 1, and those that are divided by it."""


def _in_units(arguments: dict[str, Any]) -> dict[str, Any]:
    """Divide strides by 8 where that tells the compiler that they are multiples of it."""
    for unit, (innermost, names) in _UNITS.items():
        useful = arguments[innermost] == 1 and not arguments["INDEX64"]
        arguments[unit] = divide_by_eight(arguments, names) if useful else 1
    return arguments


class FusedSeparable(Tunable):
    """Both convolutions in one launch; the image between them is never in memory."""

    id = "triton.conv.separable.fused"

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, SeparableProblem)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, SeparableProblem):
            return "computes a depthwise and a pointwise convolution, which is another operation"
        first = problem.depthwise
        if problem.dtype not in _DTYPES:
            return f"computes {', '.join(_DTYPES)}, not {problem.dtype}"
        if first.padding_mode != "zeros":
            return f"pads with zeros alone, not {first.padding_mode}"
        if first.kernel[1] > _MOST_TAPS:
            return f"takes windows of {_MOST_TAPS} columns at most, not {first.kernel[1]}"
        columns = 3 * first.stride[1] + effective_kernel(first.kernel[1], first.dilation[1])
        if columns > _MOST_COLUMNS:
            return f"has {_MOST_COLUMNS} input columns at most in its code, not {columns}"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, SeparableProblem)
        yield from separable_tiles(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, SeparableProblem)
        return SeparableCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        return Plan(self, problem, 0, dict(config))

    # Nothing is tuned: the two steps of the problem are.
    def plan(self, problem: Problem) -> Plan:
        return self.bind(problem, self.default(problem))

    def estimated(self, problem: Problem) -> Estimate:
        return Estimate(float(self.modelled(problem, [self.default(problem)])[0]), "model")

    @recorded_at_first
    def run(self, plan: Plan, call: Call) -> Any:
        with stream_of(call.kind, plan.problem):
            return self._run(plan, call)

    def _run(self, plan: Plan, call: Call) -> Any:
        import torch

        problem = plan.problem
        assert isinstance(problem, SeparableProblem)
        result = call.kind.empty(problem.result_shape, problem.dtype, problem.device, problem.result_format)
        if 0 in problem.result_shape:
            return result
        tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
        self.launch(problem, tensors | {"y": as_tensor(torch, result)}, plan.config)
        return result

    def launch(self, problem: SeparableProblem, tensors: Mapping[str, Any], config: Mapping[str, int]) -> None:
        """Launch on torch tensors by name: ``x w pointwise y``, and what there is of the others (or None)."""
        kernel = KernelReference("conv.separable", "_conv_separable_kernel")
        strides = {name: tensor.stride() for name, tensor in tensors.items() if tensor is not None}
        arguments = separable_arguments(problem, strides, config)
        grid = (arguments.pop("programs"),)
        names = ("x", "w", "pointwise", "y", "bias", "pointwise_bias", "residual")
        launch_kernel(problem, kernel, grid, {name: tensors.get(name) for name in names}, arguments, config)


SOLVERS: tuple[Solver, ...] = (FusedSeparable(),)
