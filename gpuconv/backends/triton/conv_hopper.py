"""Dense convolution on Hopper's tensor cores out of shared memory, which TMA fills: forward and data gradients.

What does not lie with channels innermost is turned in front of the launch, and the result behind it, in as many images
at a time as the limit on workspaces has room for. Weights that lie otherwise than the kernel reads them are packed.
Operands that a tensor map cannot describe (unaligned, expanded, channels apart) are copied first, beside the workspace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...config import workspace_limit
from ...costs import Work
from ...packs import KernelReference
from ...problem import ConvProblem, Problem
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import VECTORS, Memo
from .gluon import installed_triton
from .hopper_costs import dense_work
from .hopper_forms import (
    FORMS,
    MOST_TOGETHER,
    Form,
    configs_of,
    constants_of_form,
    laid,
    launched,
    programs_of,
    shared_elements,
    shares,
    strips_of,
)
from .hopper_maps import maps_of
from .hopper_passes import (
    aligned,
    channels_last,
    repeat,
    turned_elements,
    weights_pass,
    with_columns_as_channels,
)
from .hopper_solver import HopperSolver
from .hopper_view import Dense, columns_as_channels, dense_of, phases_of, together
from .launch import launch_kernel, multiprocessors_of
from .turns import in_order, in_runs, turn, turn_back

__all__ = ["SOLVERS", "HopperConv"]

_MOST_PHASES = 16
"""Phases that a data gradient has at most."""

_OF_NEWER_TRITON = "2 x pixels 256x128"
"""The form of which Triton 3.8 writes the operands in the wrong order: im2col with multicast."""


_KERNELS = {
    "tiles": KernelReference("hopper.tiles", "_conv_tiles_kernel"),
    "strips": KernelReference("hopper.strips", "_conv_strips_kernel"),
    "pixels": KernelReference("hopper.pixels", "_conv_pixels_kernel"),
    "phases": KernelReference("hopper.phases", "_conv_phases_kernel"),
}


def _room(problem: ConvProblem, phases: Sequence[Dense]) -> tuple[int, int]:
    """Return how many images, and how many rows of one image, are turned at a time: all that there is room for, or 0.

    That is the limit on workspaces less packed weights and repeated vectors. Rows are those of the result along its
    outermost axis; less than all of them are turned of one image alone, of a convolution in one phase whose source
    is turned and whose rows lie in one run.
    """
    dense = phases[0]
    axis = dense.outermost
    rows = dense.output[axis]
    room = workspace_limit() - _kept_bytes(problem, dense)
    each = _turned_bytes(problem, replace(dense, n=1))
    if room < 0:
        return 0, rows
    if room >= each:
        return min(dense.n, room // each) if each else dense.n, rows
    if len(phases) > 1 or in_order(problem, dense.source) or prod(dense.size[:axis]) > 1 or rows == 1:
        return 0, rows
    while rows > 1:
        rows = ceil_div(rows, 2)
        if _turned_bytes(problem, replace(allocated(dense, rows), n=1)) <= room:
            return 1, rows
    return 0, rows


def parts_of(dense: Dense, rows: int) -> list[Dense]:
    """Return the parts of so many rows of one image, that which reads most of the source first."""
    height = dense.output[dense.outermost]
    found = [dense.rows(begin, min(begin + rows, height), True) for begin in range(0, height, rows)]
    return sorted(found, key=lambda part: (-prod(part.size), -prod(part.output)))


def allocated(dense: Dense, rows: int) -> Dense:
    """Return what there is memory for: the source of the part that reads most, and a result of so many rows."""
    return replace(dense.rows(0, rows, True), size=parts_of(dense, rows)[0].size)


def _repeated(problem: ConvProblem) -> list[str]:
    """Return the vectors of the epilogue that are written several times, where columns are channels."""
    merges = columns_as_channels(problem) > 1
    return [name for name in VECTORS if merges and getattr(problem, name)]


def _kept_bytes(problem: ConvProblem, dense: Dense) -> int:
    """Return the bytes of what every part reads: packed weights, and vectors that are written several times."""
    return dense.item * (weights_pass(problem, dense).elements + dense.channels * len(_repeated(problem)))


def _turned_bytes(problem: ConvProblem, part: Dense) -> int:
    """Return the bytes of everything that is turned of a part."""
    return part.item * sum(turned_elements(problem, part).values())


class HopperConv(HopperSolver):
    """Dense convolution by TMA and wgmma: tiles, strips of rows or runs of pixels, alone or in clusters of two."""

    kinds: tuple[str, ...]

    def __init__(self, name: str, kinds: tuple[str, ...]) -> None:
        self.id = f"triton.conv.{name}.hopper"
        self.kinds = kinds

    def hindrance(self, problem: ConvProblem) -> str | None:
        count = 1 if problem.kind == "fprop" else prod(problem.stride) // columns_as_channels(problem)
        if count > _MOST_PHASES:
            return f"has at most {_MOST_PHASES} phases, not {count}"
        phases = phases_of(problem)
        dense = phases[0]
        if next(configs_of(problem, phases), None) is None:
            return f"has no form for stride {max(problem.stride)}, dilation {max(problem.dilation)} and this window"
        if _room(problem, phases)[0] < 1:
            needed = _turned_bytes(problem, replace(dense, n=1)) + _kept_bytes(problem, dense)
            return f"turns and packs {needed:,} bytes for an image, and the limit is {workspace_limit():,}"
        return None

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        phases = phases_of(problem)
        images, rows = _room(problem, phases)
        parts = [replace(phase, n=images) for phase in phases]
        if rows < phases[0].output[phases[0].outermost]:
            parts = parts_of(parts[0], rows)
        for config in configs_of(problem, parts):
            if installed_triton() != (3, 8) or config["form"] != _OF_NEWER_TRITON:
                config |= {"images": images, "rows": rows}
                yield config
                views, room = laid(parts, config), multiprocessors_of(problem.device)
                if images == phases[0].n and shares(FORMS[config["form"]], problem, views, config, room):
                    config = config | {"stream": True}
                    if self.bind(problem, config).workspace <= workspace_limit():
                        yield config

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        phases = phases_of(problem)
        dense = phases[0]
        packed = weights_pass(problem, dense).elements
        turned = len(turned_elements(problem, dense))
        moved = 2.0 * (packed * dense.item + _turned_bytes(problem, dense))
        extra = []
        for config in configs:
            passes = ceil_div(dense.n, config["images"]) * ceil_div(dense.output[dense.outermost], config["rows"])
            launches = len(launched(FORMS[config["form"]], phases, config["BLOCK_C"]))
            passes = passes * (launches + turned) + len(_repeated(problem))
            extra.append((moved, passes - launches + (packed > 0)))
        return dense_work(problem, phases, configs, extra)

    def others(self, plan: Plan) -> str | None:
        assert isinstance(plan.problem, ConvProblem)
        found, phases = super().others(plan), phases_of(plan.problem)
        if len(phases) == 1:
            return found
        form = FORMS[plan.config["form"]]
        how = f"{len(phases)} phases in one launch"
        if len(launched(form, phases, plan.config["BLOCK_C"])) > 1:
            why = f"one of this form has at most {form.phases}" if form.kernel == "tiles" else "strips have one height"
            how = f"{len(phases)} phases in launches of their own, as {why}"
        return f"{how}; {found}" if found else how

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        problem = plan.problem
        assert isinstance(problem, ConvProblem)
        dense = dense_of(problem)
        part = replace(dense, n=plan.config["images"])
        if plan.config["rows"] < dense.output[dense.outermost]:
            part = allocated(part, plan.config["rows"])
        sizes = {"packed": weights_pass(problem, dense).elements, **turned_elements(problem, part)}
        sizes |= {f"{name}_repeated": dense.channels for name in _repeated(problem)}
        found = {name: (problem.dtype, elements) for name, elements in sizes.items() if elements}
        if plan.config.get("stream"):
            form, views = FORMS[plan.config["form"]], laid([part], plan.config)
            programs = programs_of(form, views, plan.config, multiprocessors_of(problem.device))
            found |= shared_elements(form, programs)
        return found

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, Any], memo: Memo = None
    ) -> None:
        phases = phases_of(problem)
        dense = phases[0]
        weights = weights_pass(problem, dense)
        w = tensors["w"]
        if weights.elements:
            weights.launch(problem, w, tensors["packed"])
            w = tensors["packed"]
        else:
            w = aligned(channels_last(w))
        operands = {
            "source": tensors[dense.source],
            "result": tensors[dense.result],
            "residual": tensors.get("residual"),
        }
        for name, letter in (("source", dense.source), ("residual", dense.result)):
            if operands[name] is not None and in_order(problem, letter):
                operands[name] = aligned(operands[name], dense_rows=name == "residual" or dense.flat)
            elif operands[name] is not None:
                operands[name] = in_runs(operands[name])
        tensors, merged = dict(tensors), columns_as_channels(problem)
        if merged > 1:
            residual = operands["residual"]
            operands["result"] = with_columns_as_channels(operands["result"], merged)
            operands["residual"] = residual if residual is None else with_columns_as_channels(residual, merged)
        for name in _repeated(problem):
            repeat(problem, tensors[name], tensors[f"{name}_repeated"], merged)
            tensors[name] = tensors[f"{name}_repeated"]
        height = dense.output[dense.outermost]
        for first in range(0, dense.n, config["images"]):
            parts = [replace(phase, n=min(config["images"], dense.n - first)) for phase in phases]
            for begin in range(0, height, config["rows"]):
                end = min(begin + config["rows"], height)
                rows = (begin, end) if end - begin < height else None
                self._part(problem, parts, first, rows, operands, w, tensors, config)

    def _part(
        self, problem: ConvProblem, phases: Sequence[Dense], first: int, rows: tuple[int, int] | None,
        operands: Mapping[str, Any], w: Any, tensors: Mapping[str, Any], config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Launch for images from `first` on, or some rows of one: turn what is to be turned, multiply, turn back."""
        whole = phases[0]
        turned = {letter: tensors.get(f"{letter}_turned") for letter in (whole.source, whole.result)}
        if rows is not None:
            phases = [whole.rows(*rows, turned[whole.result] is not None)]
        dense = phases[0]
        places = {name: (tensor, first) for name, tensor in operands.items() if tensor is not None}
        own = turned[whole.source]
        if own is not None:
            row = prod(whole.size[whole.outermost + 1 :])
            run = (0 if rows is None else whole.reads(*rows)[0] * row, prod(dense.size))
            turn(problem, operands["source"], own, first, dense.n, dense.reduced, run)
            places["source"] = (own, 0)
        own = turned[whole.result]
        if own is not None:
            row = prod(whole.whole[whole.outermost + 1 :])
            run = (0 if rows is None else rows[0] * row, prod(dense.whole))
            places["result"] = (own, 0)
            if "residual" in places:
                turn(problem, operands["residual"], tensors["residual_turned"], first, dense.n, dense.channels, run)
                places["residual"] = (tensors["residual_turned"], 0)
        for some in launched(FORMS[config["form"]], phases, config["BLOCK_C"]):
            launch_dense(problem, some, places, w, tensors, config)
        if own is not None:
            turn_back(problem, own, operands["result"], first, dense.n, dense.channels, run)


def launch_dense(
    problem: ConvProblem, phases: Sequence[Dense], places: Mapping[str, tuple[Any, int]], w: Any,
    tensors: Mapping[str, Any], config: Mapping[str, Any],
) -> None:  # fmt: skip
    """Launch the kernel of a config.

    Parameters
    ----------
    problem
        The problem, for its epilogue and device.
    phases
        What is computed: one convolution, or phases of a gradient that run in one launch.
    places
        For ``source``, ``result`` and ``residual``: a tensor, and its first image.
    w
        Weights, [channels, taps, reduced] or, where they are read turned, [reduced, taps, channels].
    tensors
        The vectors of the epilogue.
    config
        One of :func:`.configs_of`.
    """
    form = FORMS[config["form"]]
    # Strips walk rows upwards, and runs of pixels every axis.
    upwards = {"tiles": (), "strips": (1,), "pixels": (0, 1, 2)}[form.kernel]
    phases = [phase.upwards(upwards) for phase in laid(phases, config)]
    constants = constants_of_form(form, problem, phases, config)
    maps = maps_of(form, problem, phases, places, w, constants)
    vectors = {name: None if tensors.get(name) is None else tensors[name].contiguous() for name in VECTORS}
    programs = programs_of(form, phases, config, multiprocessors_of(problem.device))
    if "STREAM" in constants:
        vectors |= {name: tensors.get(name) if constants["STREAM"] else None for name in ("parts", "flags")}
    kernel = _KERNELS[form.kernel if len(phases) == 1 else "phases"]
    numbers = _numbers(form, phases)
    arguments = {**maps, **numbers, "programs": programs, **constants}
    launch_kernel(problem, kernel, (programs,), vectors, arguments, _options(form))


def _numbers(form: Form, phases: Sequence[Dense]) -> dict[str, int]:
    """Return the sizes, taps and steps that a kernel is launched with, by name."""
    dense = together(phases)
    n, o, p, q = dense.walked
    several = len(phases) > 1
    # One step, of zeros, where no tap meets a position; of several phases the kernel sees that by itself.
    found = {"n": n, "c": 1 if dense.empty else dense.reduced, "k": dense.channels, "o": o, "p": p, "q": q}
    found |= zip(("tap_step_d", "tap_step_h", "tap_step_w"), dense.order[1:], strict=True)
    found |= zip(("step_d", "step_h", "step_w"), dense.step, strict=True)
    for place in range(MOST_TOGETHER if several else 1):
        phase = phases[place] if place < len(phases) else None
        names = ("t", "r", "s", "first_d", "first_h", "first_w", "tap_first")
        values = (0,) * len(names) if phase is None else (*phase.taps, *phase.first, phase.order[0])
        found |= zip((f"{name}{place}" if several else name for name in names), values, strict=True)
    if form.kernel == "strips":
        del found["step_h"], found["r"]
        found["loads"] = strips_of(form, dense.taps[1])
    if form.kernel == "pixels":
        found |= zip("nopq", (dense.n, *dense.output), strict=True)
        found |= zip(("stride_d", "stride_h", "stride_w"), dense.stride, strict=True)
    return found


def _options(form: Form) -> dict[str, int]:
    options = {"num_warps": form.warps, "num_ctas": form.ctas}
    return options if form.limit is None else options | {"maxnreg": form.limit}


SOLVERS: tuple[Solver, ...] = (
    HopperConv("fprop", ("fprop",)),
    HopperConv("dgrad", ("dgrad", "transposed")),
)
