"""Convolution of 8-bit operands with scales on the Triton backend: what it takes, tiles, arguments and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...arrays import CHANNELS_LAST, channels_last_strides
from ...config import workspace_limit
from ...costs import Work, conv_gemm, conv_work
from ...packs import KernelReference, TypeName
from ...problem import Call, ConvProblem, Problem, ScaledProblem
from ...shapes import ceil_div
from ..base import Estimate, Plan, Solver
from .common import Strides, as_tensor, conv_arguments, index64, power_of_two, recorded_at_first, stream_of
from .conv_fprop import fprop_pack_arguments
from .launch import capability_of, launch_kernel
from .tuned import Tunable

__all__ = ["SOLVERS", "ScaledImplicitGemm", "scaled_arguments"]

_WIDE, _NARROW = (128, 128, 128), (64, 64, 32)
"""Rows, columns and depth of a tile whose operands are read 16 bytes at a time, and of another: twice as many channels
of one byte as the tiles of 16-bit operands have of two."""

_LEAST = (16, 16, 32)
"""The smallest tile: ``tl.dot`` needs 32 products of 8-bit numbers."""

_RUN = 16
"""Numbers in a load of 16 bytes: channels come in multiples of it, which the compiler knows of, or one by one."""

_SMALL_PASS = {"num_warps": 4, "num_stages": 3}

_CAPABILITIES = {"int8": (8, 0), "float8_e4m3fn": (8, 9)}
"""The oldest GPUs whose tensor cores multiply a type."""

_SCALES = ("input_scale", "weight_scale", "output_scale")


def _in_rows(conv: ConvProblem) -> bool:
    """Tell whether the channels of a weight lie side by side."""
    return conv.w_format == CHANNELS_LAST or prod(conv.kernel) == 1


def _packs(conv: ConvProblem) -> bool:
    """Tell whether weights are packed: those that would be read byte by byte, and packed, 16 at a time."""
    whole = conv.c > 0 and conv.c // conv.groups % _RUN == 0
    return whole and not _in_rows(conv) and prod(conv.w_shape) <= workspace_limit()


def _tile(conv: ConvProblem, packed: bool) -> dict[str, int]:
    """Return the tile of a problem, as large as its sizes and registers allow."""
    c, k = conv.c // conv.groups, conv.k // conv.groups
    innermost = conv.x_format == CHANNELS_LAST and (packed or _in_rows(conv))
    wide = innermost and c % _RUN == 0 and not conv.index64
    sizes = zip(_WIDE if wide else _NARROW, (conv.n * prod(conv.output_size), k, c), _LEAST, strict=True)
    m, n, depth = (min(most, max(least, power_of_two(size))) for most, size, least in sizes)
    warps = 8 if m * n >= 64 * 64 else 4
    tile = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": depth, "GROUP_M": 8, "num_warps": warps, "num_stages": 3}
    # Without a bound ptxas spills a few registers of small tiles, to fit one more block; see `common.bound_registers`.
    return tile if wide else tile | {"maxnreg": 255}


def scaled_arguments(problem: ScaledProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the kernel but its pointers and scales that are numbers, by name.

    Parameters
    ----------
    problem
        The problem; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, of ``bias`` unless it is contiguous, and as ``scale`` that of an
        array of weight scales, 0 where it has one element. Packed weights have their own.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    """
    conv, strides = problem.conv, dict(strides)
    if config.get("packed"):
        strides["w"] = channels_last_strides(conv.w_shape)
    rows = conv.n * prod(conv.output_size)
    found = conv_arguments(conv, strides)
    found["weight_scale_stride"] = found["scale_stride"]
    unused = ("PRECISION", "scale_stride", "shift_stride")
    found = {name: value for name, value in found.items() if name not in unused and not name.startswith("residual")}
    int8 = problem.dtype == "int8"
    return found | {
        "tiles_m": ceil_div(rows, config["BLOCK_M"]),
        "tiles_n": ceil_div(conv.k // conv.groups, config["BLOCK_N"]),
        "ACC_DTYPE": TypeName("int32" if int8 else "float32"),
        "IMPRECISE": None if int8 else config["BLOCK_K"],
        "INDEX64": bool(config.get("INDEX64")) or index64(conv, strides, rows + config["BLOCK_M"]),
        "TAP_BITS": prod(conv.kernel) <= 32,
        **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")},
    }


class ScaledImplicitGemm(Tunable):
    """General forward convolution of 8-bit operands: pointer loads, any strides; weights may be packed before it."""

    id = "triton.conv.scaled.implicit_gemm"

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, ScaledProblem)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, ScaledProblem):
            return "computes convolutions of 8-bit numbers with scales, which is another operation"
        capability = capability_of(problem.device) if problem.device.startswith("cuda") else None
        needed = _CAPABILITIES[problem.dtype]
        if capability is not None and capability < needed:
            least, found = ("sm_" + "".join(map(str, each)) for each in (needed, capability))
            return f"multiplies {problem.dtype} on {least} and newer, not on {found}"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ScaledProblem)
        packed = _packs(problem.conv)
        yield _tile(problem.conv, packed) | {"packed": packed}

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ScaledProblem)
        gemm = replace(conv_gemm(problem.conv), dram_bytes=problem.min_bytes)
        return conv_work(problem.conv, configs, gemm)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ScaledProblem)
        return Plan(self, problem, prod(problem.conv.w_shape) if config.get("packed") else 0, dict(config))

    # There is one tile to choose from: nothing is tuned.
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
        assert isinstance(problem, ScaledProblem)
        result = call.kind.empty(problem.result_shape, problem.out_dtype, problem.device, problem.result_format)
        if 0 in problem.result_shape:
            return result
        tensors = {name: as_tensor(torch, array) for name, array in call.arrays.items()}
        tensors["y"] = as_tensor(torch, result)
        if plan.workspace:
            tensors["packed"] = torch.empty(plan.workspace, dtype=tensors["w"].dtype, device=tensors["y"].device)
        self.launch(problem, tensors, plan.config, call.extra)
        return result

    def launch(
        self,
        problem: ScaledProblem,
        tensors: Mapping[str, Any],
        config: Mapping[str, Any],
        numbers: Mapping[str, float],
    ) -> None:
        """Launch on torch tensors by name: ``x w y``, bias and scales (or None), ``packed`` if planned; and numbers."""
        strides = {name: tensors[name].stride() for name in ("x", "w", "y", "bias") if tensors[name] is not None}
        if problem.weight_scale != "number":
            strides["scale"] = tensors["weight_scale"].stride() if problem.weight_scale == "channels" else (0,)
        pointers = {name: tensors[name] for name in ("x", "w", "y", "bias", *_SCALES)}
        if config.get("packed"):
            self._pack(problem.conv, tensors, strides, config)
            pointers["w"] = tensors["packed"]
        arguments = scaled_arguments(problem, strides, config)
        arguments |= {name: float(numbers.get(name, 1.0)) for name in _SCALES}
        grid = (arguments["groups"] * arguments["tiles_m"] * arguments["tiles_n"],)
        kernel = KernelReference("conv.scaled", "_conv_scaled_kernel")
        launch_kernel(problem, kernel, grid, pointers, arguments, config)

    @staticmethod
    def _pack(conv: ConvProblem, tensors: Mapping[str, Any], strides: Strides, config: Mapping[str, Any]) -> None:
        kernel = KernelReference("conv.fprop", "_conv_fprop_pack_kernel")
        of_weights = {name: strides[name] for name in ("x", "w", "y")}
        arguments = fprop_pack_arguments(conv, of_weights, config)
        parts = (prod(conv.kernel), arguments["BLOCK_T"]), (conv.c // conv.groups, arguments["BLOCK_C"])
        grid = (conv.k * prod(ceil_div(*part) for part in parts),)
        launch_kernel(conv, kernel, grid, {name: tensors[name] for name in ("w", "packed")}, arguments, _SMALL_PASS)


SOLVERS: tuple[Solver, ...] = (ScaledImplicitGemm(),)
