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
from ...costs.model import Work
from ...launcher.maps import MapType, TensorMap
from ...packs.identity import KernelReference
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .common import VECTORS, Memo, TritonConv
from .gluon import installed_triton
from .hopper_costs import dense_work, other_forms
from .hopper_forms import (
    FORMS,
    Form,
    box_of,
    configs_of,
    constants_of_form,
    corners_of,
    programs_of,
    split_axis,
)
from .hopper_passes import aligned, channels_last, in_runs, turn, turn_back, turned_bytes, weights_pass
from .hopper_view import Dense, dense_of, elements_of, in_order, number_of, phases_of, refusal
from .launch import capability_of, launch_kernel, multiprocessors_of

__all__ = ["SOLVERS", "HopperConv", "hopper_refusal"]

_MOST_PHASES = 16

OLDEST = (3, 8)
"""The oldest Triton that compiles these kernels; packs have them for others."""

_OF_NEWER_TRITON = "2 x pixels 256x128"
"""The form of which Triton 3.8 writes the operands in the wrong order: im2col with multicast."""


_KERNELS = {
    "tiles": KernelReference("hopper.tiles", "_conv_tiles_kernel"),
    "strips": KernelReference("hopper.strips", "_conv_strips_kernel"),
    "pixels": KernelReference("hopper.pixels", "_conv_pixels_kernel"),
}


def hopper_refusal(problem: ConvProblem) -> str | None:
    """Return why no Hopper kernel runs on the device of a problem, or None."""
    if not problem.device.startswith("cuda"):
        return "Gluon kernels are not interpreted"
    capability = capability_of(problem.device)
    if capability is not None and capability != (9, 0):
        return f"is for sm_90, not sm_{capability[0]}{capability[1]}"
    return None


def _room(problem: ConvProblem, phases: Sequence[Dense]) -> tuple[int, int]:
    """Return how many images, and how many rows of one image, are turned at a time: all that there is room for, or 0.

    That is the limit on workspaces less packed weights. Rows are those of the result along its outermost axis; less
    than all of them are turned of one image alone, of a convolution in one phase whose source is turned and whose rows
    lie in one run.
    """
    dense = phases[0]
    axis, item = dense.outermost, itemsize(problem.dtype)
    rows = dense.output[axis]
    room = workspace_limit() - weights_pass(problem, dense).elements * item
    each = turned_bytes(problem, dense)
    if room < 0:
        return 0, rows
    if room >= each:
        return min(dense.n, room // each) if each else dense.n, rows
    if len(phases) > 1 or in_order(problem, dense.source) or prod(dense.size[:axis]) > 1 or rows == 1:
        return 0, rows
    while rows > 1:
        rows = ceil_div(rows, 2)
        if _turned_bytes(problem, allocated(dense, rows)) <= room:
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


def _turned_bytes(problem: ConvProblem, part: Dense) -> int:
    """Return the bytes of what is turned of a part of one image: its source, and its result where that is turned."""
    found = part.reduced * prod(part.size)
    if not in_order(problem, part.result):
        found += part.channels * prod(part.output) * (2 if problem.residual else 1)
    return found * part.item


class HopperConv(TritonConv):
    """Dense convolution by TMA and wgmma: tiles, strips of rows or runs of pixels, alone or in clusters of two."""

    kinds: tuple[str, ...]
    oldest_triton = OLDEST

    def __init__(self, name: str, kinds: tuple[str, ...]) -> None:
        self.id = f"triton.conv.{name}.hopper"
        self.kinds = kinds

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        reason = refusal(problem) or hopper_refusal(problem)
        if reason is not None:
            return reason
        phases = phases_of(problem) if prod(problem.stride) <= _MOST_PHASES or problem.kind == "fprop" else []
        if not phases:
            return f"runs at most {_MOST_PHASES} phases one after the other, not {prod(problem.stride)}"
        dense = phases[0]
        if next(configs_of(problem, phases), None) is None:
            return f"has no form for stride {max(problem.stride)}, dilation {max(problem.dilation)} and this window"
        if _room(problem, phases)[0] < 1:
            needed = turned_bytes(problem, dense) + dense.item * weights_pass(problem, dense).elements
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
                yield config | {"images": images, "rows": rows}

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        phases = phases_of(problem)
        dense = phases[0]
        packed = weights_pass(problem, dense).elements
        each = turned_bytes(problem, dense)
        extra = []
        for config in configs:
            passes = ceil_div(dense.n, config["images"]) * ceil_div(dense.output[dense.outermost], config["rows"])
            turned = [letter for letter in (dense.source, dense.result) if not in_order(problem, letter)]
            turned += [dense.result] if problem.residual and dense.result in turned else []
            launches = (passes * (len(phases) + len(turned)) - len(phases)) + (packed > 0)
            moved = 2 * packed * dense.item + 2 * each * dense.n
            extra.append((float(moved), launches))
        return dense_work(problem, phases, configs, extra)

    def others(self, plan: Plan) -> str | None:
        return other_forms(self, plan)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        plan = Plan(self, problem, 0, dict(config))
        used = sum(itemsize(dtype) * elements for dtype, elements in self.parts(plan).values())
        return replace(plan, workspace=used)

    def parts(self, plan: Plan) -> dict[str, tuple[str, int]]:
        problem = plan.problem
        assert isinstance(problem, ConvProblem)
        dense = dense_of(problem)
        part = replace(dense, n=plan.config["images"])
        of_rows = plan.config["rows"] < dense.output[dense.outermost]
        if of_rows:
            part = allocated(part, plan.config["rows"])
        found: dict[str, tuple[str, int]] = {}
        packed = weights_pass(problem, dense).elements
        if packed:
            found["packed"] = (problem.dtype, packed)
        of_part = {dense.source: part.reduced * prod(part.size), dense.result: part.channels * prod(part.output)}
        for letter in (dense.source, dense.result):
            if not in_order(problem, letter):
                elements = of_part[letter] if of_rows else elements_of(problem, letter)
                found[f"{letter}_turned"] = (problem.dtype, part.n * elements)
        if problem.residual and f"{dense.result}_turned" in found:
            found["residual_turned"] = found[f"{dense.result}_turned"]
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
        for phase in phases:
            launch_dense(problem, phase, places, w, tensors, config)
        if own is not None:
            turn_back(problem, own, operands["result"], first, dense.n, dense.channels, run)


def _strides(tensor: Any, shape: tuple[int, ...], dense_memory: bool) -> tuple[int, ...]:
    """Return the strides of a tensor as [N, D, H, W, C]; one of the workspace is dense."""
    _, d, h, w, c = shape
    found = [d * h * w * c, h * w * c, w * c, c, 1]
    if not dense_memory:
        own = tensor.stride()
        spatial = [0] * (5 - len(own)) + list(own[2:])
        given = [own[0], *spatial]
        # The stride of an axis of size 1 is never used; TMA wants a multiple of 16 bytes all the same.
        found = [step if size > 1 else dense for step, size, dense in zip(given, shape, found)] + [1]
    return tuple(found)


def _row_map(tensor: Any, type: MapType, pixels: int, channels: int, offset: int) -> TensorMap:
    """Return a map over pixels in one row, [1, 1, 1, pixels, channels]."""
    whole = pixels * channels
    return TensorMap(tensor, type, (1, 1, 1, pixels, channels), (whole, whole, whole, channels, 1), offset)


def launch_dense(
    problem: ConvProblem, dense: Dense, places: Mapping[str, tuple[Any, int]], w: Any, tensors: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:  # fmt: skip
    """Launch the kernel of a config.

    Parameters
    ----------
    problem
        The problem, for its epilogue and device.
    dense
        What is computed.
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
    dense = dense.upwards({"tiles": (), "strips": (1,), "pixels": (0, 1, 2)}[form.kernel])
    constants = constants_of_form(form, problem, dense, config)
    maps = _maps(form, problem, dense, places, w, constants)
    n, o, p, q = dense.walked
    reduced = 1 if dense.empty else dense.reduced  # one step, of zeros
    numbers: dict[str, int] = {"n": n, "c": reduced, "k": dense.channels, "o": o, "p": p, "q": q}
    first, step = dense.first, dense.step
    t, r, s = dense.taps
    numbers |= zip(("tap_first", "tap_step_d", "tap_step_h", "tap_step_w"), dense.order, strict=True)
    numbers |= {"t": t, "s": s} if form.kernel == "strips" else {"t": t, "r": r, "s": s}
    numbers |= zip(("first_d", "first_h", "first_w"), first, strict=True)
    numbers |= zip(("step_d", "step_h", "step_w"), step, strict=True)
    if form.kernel == "strips":
        del numbers["step_h"]
    if form.kernel == "pixels":
        numbers |= zip("nopq", (dense.n, *dense.output), strict=True)
        numbers |= zip(("stride_d", "stride_h", "stride_w"), dense.stride, strict=True)
    vectors = {name: None if tensors.get(name) is None else tensors[name].contiguous() for name in VECTORS}
    programs = programs_of(form, dense, config, multiprocessors_of(problem.device))
    kernel = _KERNELS[form.kernel]
    arguments = {**maps, **numbers, "programs": programs, **constants}
    launch_kernel(problem, kernel, (programs,), vectors, arguments, _options(form))


def _options(form: Form) -> dict[str, int]:
    options = {"num_warps": form.warps, "num_ctas": form.ctas}
    return options if form.limit is None else options | {"maxnreg": form.limit}


def _maps(
    form: Form, problem: ConvProblem, dense: Dense, places: Mapping[str, tuple[Any, int]], w: Any,
    constants: Mapping[str, Any],
) -> dict[str, TensorMap | None]:  # fmt: skip
    number, box = number_of(problem), box_of(form, constants)
    stored = "fp32" if number == "tf32" else number
    block_c, chunk = constants["BLOCK_C"], constants["BLOCK_K"] // constants["CHUNKS"]
    split: int | str | None = None
    if form.shared:
        split = "all" if form.shared == "pixels" else split_axis(box)
    # Runs of pixels that a cluster splits are copied by each CTA for itself: boxes of one.
    own_runs = form.kernel == "pixels" and form.shared == "weights"
    x_box = (box[0] // 2 if own_runs else box[0], *box[1:], block_c)
    x_type = _map_type(number, x_box, "all" if own_runs else split)
    y_box = (1, 1, 1, *box, chunk) if form.kernel == "pixels" else (*box, chunk)
    y_split: int | str | None = split
    if form.shared == "pixels":
        y_split = len(y_box) - 1
    elif form.shared == "weights" and form.kernel == "pixels":
        y_split = 3
    y_type = _map_type(stored, y_box, y_split)
    found: dict[str, TensorMap | None] = {"w_map": _weights_map(form, problem, dense, w, constants)}
    source, first = places["source"]
    if form.kernel == "pixels":
        found["x_map"] = im2col_map(dense, replace(x_type, axes=len(corners_of(dense)[0]) + 2), source, first)
    else:
        found["x_map"] = _tensor_map(dense, x_type, source, first, dense.size, dense.reduced)
    for name, of in (("y_map", "result"), ("residual_map", "residual")):
        tensor, first = places.get(of, (None, 0))
        if tensor is None:
            found[name] = None
        elif form.kernel == "pixels" or dense.flat:
            row = prod(dense.whole[dense.outermost + 1 :])
            start = (first * prod(dense.whole) + dense.at[dense.outermost] * row) * dense.channels
            found[name] = _row_map(tensor, y_type, dense.pixels, dense.channels, start)
        else:
            found[name] = _of_phase(dense, _tensor_map(dense, y_type, tensor, first, dense.whole, dense.channels))
    return found


def _map_type(number: str, box: tuple[int, ...], split: int | str | None) -> MapType:
    item = 4 if number in ("tf32", "fp32") else 2
    own = box[-1] // 2 if split == len(box) - 1 else box[-1]
    return MapType(number, box, min(128, own * item), split)


def _tensor_map(
    dense: Dense, type: MapType, tensor: Any, first: int, size: tuple[int, ...], channels: int
) -> TensorMap:
    """Return a map over images of a tensor, [N, D, H, W, C], from image `first` on."""
    if dense.flat:
        return _row_map(tensor, type, dense.n * prod(size), channels, first * prod(size) * channels)
    shape = (dense.n, *size, channels)
    strides = _strides(tensor, shape, tensor.dim() == 1)
    return TensorMap(tensor, type, shape, strides, first * strides[0])


def _of_phase(dense: Dense, map: TensorMap) -> TensorMap:
    """Return the part of a map of the whole result that is of a phase, or of some rows."""
    n, d, h, w, c = map.strides
    strides = tuple(by * step for by, step in zip(dense.spread, (d, h, w), strict=True))
    offset = sum(at * step for at, step in zip(dense.at, (d, h, w), strict=True))
    shape = (map.shape[0], *dense.output, map.shape[4])
    return replace(map, shape=shape, strides=(n, *strides, c), offset=map.offset + offset)


def im2col_map(dense: Dense, type: MapType, tensor: Any, first: int) -> TensorMap:
    """Return a map of the im2col mode over images of the source from image `first` on."""
    axes = type.axes - 2
    lower, upper = corners_of(dense)
    shape = (dense.n, *dense.size, dense.reduced)
    strides = _strides(tensor, shape, tensor.dim() == 1)
    kept = (0, *range(4 - axes, 5))
    sizes = tuple(shape[axis] for axis in kept), tuple(strides[axis] for axis in kept)
    return TensorMap(tensor, type, *sizes, first * strides[0], lower, upper, dense.stride[-axes:])


def _weights_map(form: Form, problem: ConvProblem, dense: Dense, w: Any, constants: Mapping[str, Any]) -> TensorMap:
    number, taps = number_of(problem), prod(problem.kernel)
    block_c, block_k = constants["BLOCK_C"], constants["BLOCK_K"]
    rows, columns = (dense.reduced, dense.channels) if dense.turned else (dense.channels, dense.reduced)
    box = (1, block_c, block_k) if dense.turned else (1, block_k, block_c)
    split: int | str | None = None
    if form.shared == "weights":
        split = "all"
    elif form.shared == "pixels":
        split = 2 if dense.turned else 1
    return TensorMap(w, _map_type(number, box, split), (taps, rows, columns), (columns, taps * columns, 1))


SOLVERS: tuple[Solver, ...] = (
    HopperConv("fprop", ("fprop",)),
    HopperConv("dgrad", ("dgrad", "transposed")),
)
