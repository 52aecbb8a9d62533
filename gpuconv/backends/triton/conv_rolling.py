"""Dense convolution of stride 1 on the rolling kernel: which problems it takes, its arguments, and its launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...costs import Work, gpu_of
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..axes import reach
from ..base import Plan, Solver
from .common import (
    VECTORS,
    Memo,
    Strides,
    TritonConv,
    accumulator_type,
    conv_arguments,
    index64,
    remembered,
    strides_of,
)
from .launch import capability_of, launch_kernel
from .rolling_costs import MOST_TAPS, Rolled, RollingCosts, rolled, rolling_tiles
from .runs_axes import forward_of, forward_strides

__all__ = ["SOLVERS", "ForwardRolling", "GradientRolling", "rolling_arguments"]

_HOPPER = (9, 0)

_TRIPLES = ("dhw", "opq", "TRS", *(tuple(f"{name}_{axis}" for axis in "DHW") for name in ("STRIDE", "DILATION")))
_TRIPLES += (tuple(f"pad_{axis}" for axis in "dhw"),)
_TRIPLES += tuple(
    tuple(f"{tensor}_stride_{axis}" for axis in axes)
    for tensor, axes in (("x", "dhw"), ("w", "trs"), ("y", "opq"), ("residual", "opq"))
)
"""Arguments that there are three of, one for each axis."""

_FIXED = {"STRIDE_H", "groups", "c_per_group", "k_per_group"}
"""What :func:`.common.conv_arguments` has and the kernel does not take: one group, which goes on row by row."""


def rolling_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel but its pointers, and its programs, by name.

    Parameters
    ----------
    problem
        A problem of any of the three passes; 1-D and 2-D get axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    """
    forward = forward_of(problem)
    turned, first = forward_strides(problem, strides)
    found: Rolled = rolled(problem)
    arguments = conv_arguments(forward, turned)
    order = found.order
    for names in _TRIPLES:
        arguments |= dict(zip(names, [arguments[names[place]] for place in order], strict=True))
    lines = found.lines(config["steps"])
    rows = found.others * lines + config["BLOCK_M"]
    padded = [size + max(pad, 0) for size, pad in zip(forward.input_size, forward.pad_lo, strict=True)]
    from_padding = reach((forward.n, forward.c, *padded), turned["x"])  # where a line begins, its offset counts from x
    return {name: value for name, value in arguments.items() if name not in _FIXED} | {
        "k": forward.k,
        "w_offset": first,
        "lines": lines,
        "steps": config["steps"],
        "tiles_n": ceil_div(forward.k, config["BLOCK_N"]),
        "programs": ceil_div(found.others * lines, config["BLOCK_M"]) * ceil_div(forward.k, config["BLOCK_N"]),
        "INDEX64": bool(config.get("INDEX64")) or index64(forward, turned, max(rows, first, from_padding)),
        "BLOCKS": forward.c // config["BLOCK_K"],
        **{name: config[name] for name in ("ROWS", "MORE", "BLOCK_M", "BLOCK_N", "BLOCK_K")},
    }


class ForwardRolling(TritonConv):
    """Forward convolution that loads an input row once for all rows of the filter, with weights in shared memory.

    A plan is one launch. It is for few channels, whose weights a multiprocessor holds, on Hopper, which multiplies from
    shared memory.
    """

    id = "triton.conv.fprop.rolling"
    kinds: tuple[str, ...] = ("fprop",)

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = _refusal(problem)
        if reason is not None:
            return reason
        if not self.default(problem):
            forward = forward_of(problem)
            weights = f"weights of {forward.c} channels and {forward.kernel} taps in shared memory"
            return f"has no tile that keeps {weights} and {rolled(problem).rows} open rows in registers"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from rolling_tiles(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return RollingCosts(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        return Plan(self, problem, 0, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        arguments = dict(remembered(memo, "rolling", rolling_arguments, problem, strides_of(tensors), config))
        grid = (arguments.pop("programs"),)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("x", "y") if problem.kind == "fprop" else ("y", "x")
        pointers = {"x": tensors[source], "w": tensors["w"], "y": tensors[result]}
        pointers |= {name: tensors.get(name) for name in (*VECTORS, "residual")}
        kernel = KernelReference("conv.rolling", "_conv_rolling_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)


def _refusal(problem: ConvProblem) -> str | None:
    """Return why no tile is asked for, with the numbers that say so; None if one may be there."""
    gpu = gpu_of(problem.device)
    capability = None if gpu is None else gpu.capability
    if gpu is None and problem.device.startswith("cuda"):  # torch may not be initialised yet, of which CuPy has no need
        capability = capability_of(problem.device)
    if capability not in (None, _HOPPER):
        return "is written for GPUs that multiply from shared memory into registers, as sm_90 does"
    if itemsize(problem.dtype) != 2:
        return f"multiplies 16-bit numbers, not {problem.dtype}"
    if problem.groups != 1:
        return f"takes one group, not {problem.groups}"
    if problem.padding_mode != "zeros":
        return f"pads with zeros alone, not {problem.padding_mode}"
    if problem.kind != "fprop" and max(problem.stride) > 1:
        return f"computes data gradients of stride 1, not {problem.stride}"
    if problem.x_format != CHANNELS_LAST or problem.y_format != CHANNELS_LAST:
        return f"takes channels-last tensors, not {problem.x_format} and {problem.y_format} ones"
    forward = forward_of(problem)
    if forward.c % 16 or not forward.c:
        return f"multiplies 16 channels at a time, which {forward.c} are no multiple of"
    if 0 in (forward.k, forward.n, *forward.output_size):
        return "has nothing to compute without images, channels or positions"
    found = rolled(problem)
    if not found.rows:
        return f"goes down an axis of stride 1 with 2 to 16 taps, which {problem.kernel} by {problem.stride} has not"
    taps = prod(forward.kernel) // found.rows
    return f"loads {MOST_TAPS} taps of an input row at most, not {taps}" if taps > MOST_TAPS else None


class GradientRolling(ForwardRolling):
    """Data gradient, or transposed convolution, of stride 1: the forward pass of y, with the window turned round."""

    id = "triton.conv.dgrad.rolling"
    kinds = ("dgrad", "transposed")


SOLVERS: tuple[Solver, ...] = (ForwardRolling(), GradientRolling())
