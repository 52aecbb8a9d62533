"""Dense convolution out of boxes that TMA copies, in plain Triton: forward passes and data gradients.

It needs neither Gluon nor Hopper: any release of Triton compiles it for every GPU with TMA. Weights are read as they
lie where channels are innermost; else they are packed in front. Operands that a tensor map cannot describe (unaligned,
expanded, channels apart) are copied first, beside the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...config import workspace_limit
from ...costs import Work, gpu_of
from ...launcher import MapType, TensorMap
from ...packs import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import VECTORS, Memo, TritonConv
from .hopper_costs import other_forms
from .hopper_maps import image_map, map_type, phase_map
from .hopper_passes import WeightsPass, aligned, channels_last, weights_pass
from .hopper_view import Dense, number_of, phases_of, refusal
from .launch import capability_of, launch_kernel
from .tma_costs import tiles_of, tma_configs, tma_work
from .turns import in_order

__all__ = ["SOLVERS", "TmaConv", "tma_arguments"]

_KERNEL = KernelReference("conv.tma", "_conv_tma_kernel")

_OLDEST = (9, 0)

_GROUP = 8
"""Tiles of positions that are walked for each tile of filters before the next ones."""


def _capability(problem: ConvProblem) -> tuple[int, int]:
    """Return the compute capability that a problem is planned for: that of its device, or 9.0 where nobody knows it."""
    gpu = gpu_of(problem.device)
    if gpu is not None:
        return gpu.capability
    return (capability_of(problem.device) if problem.device.startswith("cuda") else None) or _OLDEST


_MOST_PHASES = 16
"""Launches that a data gradient is at most, one after the other."""


def _of_group(problem: ConvProblem) -> list[Dense]:
    """Return the phases that a problem is, with the channels of one of its groups."""
    groups = problem.groups
    return [
        replace(phase, reduced=phase.reduced // groups, channels=phase.channels // groups)
        for phase in phases_of(problem)
    ]


def _packs(problem: ConvProblem, dense: Dense) -> WeightsPass:
    """Return how weights are packed; those of several groups are [K, C/G, taps] as well."""
    return weights_pass(replace(problem, c=problem.c // problem.groups, groups=1), dense)


Axes = tuple[int, ...]


def _seen(dense: Dense) -> tuple[Axes, Axes, Axes, Axes]:
    """Return the source as every stride-th position shows it: where those begin, how many, and first and step in them.

    All taps of an axis must meet them: there is one, or their steps are multiples of the stride.
    """
    begin = tuple(at % by for at, by in zip(dense.first, dense.stride, strict=True))
    size = tuple(ceil_div(max(of - at, 0), by) for of, at, by in zip(dense.size, begin, dense.stride, strict=True))
    first = tuple((to - at) // by for to, at, by in zip(dense.first, begin, dense.stride, strict=True))
    step = tuple(of // by for of, by in zip(dense.step, dense.stride, strict=True))
    return begin, size, first, step


def _refusal(problem: ConvProblem) -> str | None:
    """Return why no form is asked for, with the numbers that say so; None if one may be there."""
    capability = _capability(problem)
    if capability < _OLDEST:
        return f"copies by TMA, which sm_90 and newer GPUs have, not sm_{capability[0]}{capability[1]}"
    reason = refusal(replace(problem, groups=1))
    if reason is not None:
        return reason
    if problem.kind != "fprop" and prod(problem.stride) > _MOST_PHASES:
        return f"runs at most {_MOST_PHASES} phases one after the other, not {prod(problem.stride)}"
    dense = _of_group(problem)[0]
    layouts = {"x": problem.x_format, "y": problem.y_format}
    for letter in (dense.source, dense.result):
        if not in_order(problem, letter):
            return f"takes channels-last tensors, not {letter} that is {layouts[letter]}"
    apart = zip(dense.taps, dense.step, dense.stride, strict=True)
    if any(taps > 1 and step % stride for taps, step, stride in apart):
        return f"shifts one box by every tap, whose steps {problem.dilation} the stride {problem.stride} must divide"
    if 0 in _seen(dense)[1]:
        return f"has no tap that meets a position of {problem.input_size}"
    if problem.groups > 1 and problem.kind != "fprop" and itemsize(problem.dtype) == 4:
        return f"takes one group of float32 gradients, not {problem.groups}"
    packed = _packs(problem, dense).elements * itemsize(problem.dtype)
    if packed > workspace_limit():
        return f"packs {packed:,} bytes of weights, and the limit is {workspace_limit():,}"
    return None


def _map(problem: ConvProblem, box: tuple[int, ...]) -> MapType:
    """Return the type of a map; of float32 the tensor cores drop what tf32 has not, as of all that is not rounded."""
    return map_type({"tf32": "fp32"}.get(number_of(problem), number_of(problem)), box, None)


def _maps(
    problem: ConvProblem, dense: Dense, operands: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, TensorMap | None]:
    """Return the maps of a launch by name, of tensors that maps can describe."""
    groups, block_k, block_c = problem.groups, config["BLOCK_K"], config["BLOCK_C"]
    box = (config["TILE_N"], config["TILE_O"], config["TILE_P"], config["TILE_Q"])
    x_map = image_map(dense, _map(problem, (*box, block_c)), operands["source"], 0, dense.size, groups * dense.reduced)
    begin, size, _, _ = _seen(dense)
    if not dense.flat and max(dense.stride) > 1:
        n, *spatial, c = x_map.strides
        x_map = replace(
            x_map, shape=(dense.n, *size, x_map.shape[4]),
            strides=(n, *(of * by for of, by in zip(spatial, dense.stride, strict=True)), c),
            offset=x_map.offset + sum(at * of for at, of in zip(begin, spatial, strict=True)),
        )  # fmt: skip
    found: dict[str, TensorMap | None] = {"x_map": x_map}
    rows, columns = (dense.reduced, dense.channels) if dense.turned else (dense.channels, dense.reduced)
    w_box, taps = (1, block_c, block_k) if dense.turned else (1, block_k, block_c), prod(problem.kernel)
    shape, strides = (taps, groups * rows, columns), (columns, taps * columns, 1)
    found["w_map"] = TensorMap(operands["w"], _map(problem, w_box), shape, strides)
    type = _map(problem, (*box, block_k))
    for name, tensor in (("y_map", operands["result"]), ("residual_map", operands["residual"])):
        found[name] = None
        if tensor is not None:
            whole = image_map(dense, type, tensor, 0, dense.whole, groups * dense.channels)
            found[name] = whole if dense.flat else phase_map(dense, whole)
    return found


def tma_arguments(
    problem: ConvProblem,
    dense: Dense,
    operands: Mapping[str, Any],
    vectors: Mapping[str, Any],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Return every argument of the kernel but its pointers, by name.

    Parameters
    ----------
    problem
        A forward pass or a data gradient; 1-D and 2-D get axes of size 1.
    dense
        It, or one phase of it, with the channels of one group.
    operands
        ``source``, ``result`` and ``residual`` (or None), which maps can describe, and ``w``, dense: [channels, taps,
        reduced] or, where it is read turned, [reduced, taps, channels].
    vectors
        The vectors of the epilogue by name, or None.
    config
        One of :func:`.tma_configs`.
    """
    _, _, first, step = _seen(dense)
    n, o, p, q = dense.walked
    t, r, s = dense.taps
    numbers: dict[str, int] = {"n": n, "c": dense.reduced, "k": dense.channels, "groups": problem.groups}
    numbers |= {"o": o, "p": p, "q": q, "t": t, "r": r, "s": s}
    numbers |= zip(("first_d", "first_h", "first_w"), first, strict=True)
    numbers |= zip(("step_d", "step_h", "step_w"), step, strict=True)
    numbers |= zip(("tap_first", "tap_step_d", "tap_step_h", "tap_step_w"), dense.order, strict=True)
    numbers |= {f"{name}_stride": 0 if vectors.get(name) is None else vectors[name].stride(0) for name in VECTORS}
    blocks = {name: config[name] for name in ("TILE_N", "TILE_O", "TILE_P", "TILE_Q", "BLOCK_K", "BLOCK_C")}
    constants = {"TRANSPOSED": dense.turned, "ACTIVATION": problem.finish, "PRECISION": problem.precision}
    return {**_maps(problem, dense, operands, config), **numbers, **constants, **blocks, "GROUP": _GROUP}


class TmaConv(TritonConv):
    """Convolution by tensor maps and products out of shared memory, in plain Triton.

    A plan is one launch, or one for each phase of a data gradient, before which weights are packed where their channels
    are not innermost.
    """

    kinds: tuple[str, ...]

    def __init__(self, name: str, kinds: tuple[str, ...]) -> None:
        self.id = f"triton.conv.{name}.tma"
        self.kinds = kinds

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = _refusal(problem)
        if reason is None and next(self.variants(problem), None) is None:
            dense = _of_group(problem)[0]
            reason = f"takes groups of whole blocks of 32 and 64 channels, not {dense.reduced} and {dense.channels}"
        return reason

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from tma_configs(problem, _of_group(problem)[0], _capability(problem))

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        phases = _of_group(problem)
        return tma_work(problem, phases, configs, _capability(problem), _packs(problem, phases[0]).elements)

    def others(self, plan: Plan) -> str | None:
        return other_forms(self, plan)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        used = sum(itemsize(dtype) * elements for dtype, elements in self._parts(problem).values())
        return Plan(self, problem, used, dict(config))

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        assert isinstance(plan.problem, ConvProblem)
        return self._parts(plan.problem)

    @staticmethod
    def _parts(problem: ConvProblem) -> dict[str, tuple[str, int]]:
        elements = _packs(problem, _of_group(problem)[0]).elements
        return {"packed": (problem.dtype, elements)} if elements else {}

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, Any], memo: Memo = None
    ) -> None:
        phases = _of_group(problem)
        dense = phases[0]
        weights, w = _packs(problem, dense), tensors["w"]
        if weights.elements:
            weights.launch(replace(problem, c=problem.c // problem.groups, groups=1), w, tensors["packed"])
            w = tensors["packed"]
        else:
            w = aligned(channels_last(w))
        residual = tensors.get("residual")
        operands = {
            "source": aligned(tensors[dense.source], dense_rows=dense.flat),
            "result": tensors[dense.result],
            "residual": None if residual is None else aligned(residual, dense_rows=dense.flat),
            "w": w,
        }
        vectors = {name: tensors.get(name) for name in VECTORS}
        for phase in phases:
            arguments = tma_arguments(problem, phase, operands, vectors, config)
            grid = (tiles_of(phase, problem.groups, config),)
            launch_kernel(problem, _KERNEL, grid, vectors, arguments, config)


SOLVERS: tuple[Solver, ...] = (TmaConv("fprop", ("fprop",)), TmaConv("dgrad", ("dgrad", "transposed")))
