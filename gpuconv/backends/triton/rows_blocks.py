"""Grouped problems, and such of few filters, as the row kernels take them: sides, blocks of channels, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, prod
from typing import Any

from ...arrays import channels_last_strides
from ...config import workspace_limit
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from ..axes import five, reach, three
from .common import VECTORS, Strides, power_of_two
from .march_axes import MarchAxis, forward_axis, gradient_axis
from .turns import in_order, in_runs, runs, turn
from .units import in_units

__all__ = [
    "FEW_FILTERS", "MOST_IN_GROUP", "Depth", "Rows", "images_at_a_time", "in_turned", "pack_arguments", "refusal",
    "rows_arguments", "rows_of", "turned_elements",
]  # fmt: skip

MOST_IN_GROUP = 32
"""Channels of a group, on either side, up to which a block of whole groups feeds tensor cores well."""

FEW_FILTERS = 8
"""Channels of the result of an ungrouped problem up to which rows of products read less than tiles of a GEMM."""

_MOST_CHANNELS = 512
"""Channels of the source of an ungrouped problem at most: all their weights stay in shared memory."""

_MOST_TAPS = 8
"""Taps along any axis at most, and planes, rows or columns that a data gradient moves on by."""


@dataclass(frozen=True, slots=True)
class Depth:
    """The first axis of a 3-D pass: planes of source and result, and the taps that lead from one to the other.

    Of 1-D and 2-D problems, which are not `there`, it has one plane and one tap.
    """

    there: bool
    source: int
    result: int
    taps: int
    stride: int
    pad: int
    dilation: int


@dataclass(frozen=True, slots=True)
class Rows:
    """A pass as a convolution of a source to a result (of wgrad, x and y): 1-D with a first axis of one row.

    `depth` is the first of three axes: planes of the result are images, each of which reads some of the source's.
    `inside` and `outside` are the channels of one group of the source and of the result. A data gradient of stride 1 is
    the convolution with a window that is turned round; one that `spreads` has another stride, and keeps the window.
    """

    grad: bool
    spreads: bool
    groups: int
    inside: int
    outside: int
    source_size: tuple[int, int]
    result_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    axis: MarchAxis
    depth: Depth

    @property
    def taps(self) -> tuple[int, int]:
        """What products have along each axis: rows of the window, filled up to a power of two, and columns read."""
        columns = self.kernel[1] if not self.spreads else ceil_div(self.kernel[1], self.stride[1])
        return power_of_two(self.kernel[0]), columns

    @property
    def columns(self) -> int:
        """Columns of the result that a lane owns, filled up to a power of two."""
        return power_of_two(self.stride[1]) if self.spreads else 1

    @property
    def lanes(self) -> int:
        """Lanes of a row of the result."""
        if not self.spreads:
            return self.result_size[1]
        pad, step = self.pad[1], self.stride[1]
        return (self.result_size[1] - 1 + pad) // step - pad // step + 1


@lru_cache(maxsize=1024)
def rows_of(problem: ConvProblem) -> Rows:
    """Return what a problem is to the row kernels."""
    grad = problem.kind in ("dgrad", "transposed")
    kernel, stride, dilation = three(problem.kernel, 1), three(problem.stride, 1), three(problem.dilation, 1)
    pad = three(problem.pad_lo, 0)
    source, result = three(problem.input_size, 1), three(problem.output_size, 1)
    inside, outside = problem.c // max(problem.groups, 1), problem.k // max(problem.groups, 1)
    spreads = grad and stride != (1, 1, 1)
    if grad:
        source, result, inside, outside = result, source, outside, inside
        if not spreads:  # the convolution of y with a window that is turned round
            pad = tuple(step * (taps - 1) - lo for step, taps, lo in zip(dilation, kernel, pad, strict=True))
    along = gradient_axis if spreads else forward_axis
    axis = along(kernel[1], stride[1], dilation[1] if kernel[1] > 1 else 1, pad[1], result[1])
    depth = Depth(problem.ndim == 3, source[0], result[0], kernel[0], stride[0], pad[0], dilation[0])

    def plane(axes: tuple[int, ...]) -> tuple[int, int]:
        return axes[1], axes[2]

    return Rows(
        grad, spreads, problem.groups, inside, outside, plane(source), plane(result), plane(kernel), plane(stride),
        plane(pad), plane(dilation), axis, depth,
    )  # fmt: skip


def turned_elements(problem: ConvProblem) -> dict[str, int]:
    """Return the elements of each tensor that is copied with its channels innermost, by its name in a workspace.

    Rows are read with channels side by side; results are written in either format.
    """
    read = ("x", "y") if problem.kind == "wgrad" else ("x",) if problem.kind == "fprop" else ("y",)
    shapes = {"x": problem.x_shape, "y": problem.y_shape}
    return {f"{letter}_turned": prod(shapes[letter]) for letter in read if not in_order(problem, letter)}


def images_at_a_time(problem: ConvProblem) -> int:
    """Return of how many images copies fit into half of what workspaces may have: all, if there are none; or 0.

    Results of the next images begin at a multiple of 16 bytes then, as those of the first do.
    """
    item = itemsize(problem.dtype)
    each = sum(turned_elements(problem).values()) // max(problem.n, 1) * item
    if not each:
        return problem.n
    images = workspace_limit() // 2 // each
    if images >= problem.n:
        return problem.n
    of_result = prod(problem.result_shape[1:]) * item
    return images - images % (16 // gcd(of_result, 16))


def in_turned(problem: ConvProblem, tensors: Mapping[str, Any], first: int, images: int) -> dict[str, Any]:
    """Return `tensors` with copies in place of those that :func:`turned_elements` names, which it launches.

    Copies are of `images` images from `first` on, and of other tensors of images views of those are returned.
    """
    found = dict(tensors)
    turned = turned_elements(problem)
    for letter in ("x", "y", "residual"):
        if (tensor := tensors.get(letter)) is None:
            continue
        if f"{letter}_turned" not in turned:
            found[letter] = tensor if images == problem.n else tensor.narrow(0, first, images)
            continue
        copy, begin = tensors[f"{letter}_turned"], first
        if not runs(tensor):  # a copy of a copy, of what is read next alone
            tensor, begin = in_runs(tensor.narrow(0, first, images)), 0
        shape = (images, *tensor.shape[1:])
        turn(problem, tensor, copy, begin, images, shape[1], (0, prod(shape[2:])))
        found[letter] = copy.as_strided(shape, channels_last_strides(shape))
    return found


def _refusal_of_strides(problem: ConvProblem) -> str | None:
    """Return why the row kernels do not take the strides of a data gradient; None if they do."""
    if problem.kind not in ("dgrad", "transposed"):
        return None
    if max(problem.stride) > _MOST_TAPS:
        return f"moves on by at most {_MOST_TAPS} in a data gradient, not {max(problem.stride)}"
    taps, stride, dilation = problem.kernel[-1], problem.stride[-1], problem.dilation[-1]
    if min(taps, stride, dilation) > 1:
        return f"takes no dilation along W with the stride of a data gradient, but {dilation} with {stride}"
    rows = slice(-2, -1)  # along depth, positions of the source are looked up
    for taps, stride, dilation in zip(problem.kernel[rows], problem.stride[rows], problem.dilation[rows], strict=True):
        if taps > 1 and gcd(stride, dilation) > 1:
            return f"takes no common divisor of stride and dilation in a data gradient, but {stride} and {dilation}"
    return None


def refusal(problem: ConvProblem) -> str | None:
    """Return why the row kernels do not take a problem, with the numbers that say so; None if they do."""
    if problem.padding_mode != "zeros":
        return f"pads with zeros alone, not {problem.padding_mode}"
    reason = _refusal_of_strides(problem)
    if reason is not None:
        return reason
    if 0 in (problem.groups, problem.c, problem.k, problem.n, *problem.input_size, *problem.output_size):
        return "has nothing to compute without images, channels or positions"
    rows = rows_of(problem)
    if max(problem.kernel) > _MOST_TAPS:
        return f"keeps at most {_MOST_TAPS} taps of an axis open, not {max(problem.kernel)}"
    if problem.groups == 1:
        if problem.kind == "wgrad" or rows.outside > FEW_FILTERS or rows.inside > _MOST_CHANNELS:
            return (
                f"takes groups, or {FEW_FILTERS} channels of the result at most from {_MOST_CHANNELS} at most, "
                f"not {rows.outside} from {rows.inside}"
            )
    elif not (2 <= rows.inside <= MOST_IN_GROUP and 2 <= rows.outside <= MOST_IN_GROUP):
        return f"takes 2 to {MOST_IN_GROUP} channels per group on each side, not {rows.inside} and {rows.outside}"
    return None


def blocks_of(rows: Rows, config: Mapping[str, Any]) -> int:
    """Return how many blocks of groups there are."""
    return ceil_div(rows.groups, config["PER"])


def wide(problem: ConvProblem, strides: Strides) -> bool:
    """Tell whether an offset within an image, or within w, may not fit in 32 bits."""
    shapes = {"x": problem.x_shape[1:], "y": problem.y_shape[1:], "residual": problem.result_shape[1:]}
    offsets = [reach(shapes[name], strides[name][1:]) for name in shapes if name in strides]
    if "w" in strides:
        offsets.append(reach(problem.w_shape, strides["w"]))
    channels = problem.k if problem.kind in ("fprop", "wgrad") else problem.c
    offsets += [reach((channels,), strides[name]) for name in VECTORS if name in strides]
    depth = rows_of(problem).depth
    lanes = problem.n * depth.result * (max(problem.input_size[-1], problem.output_size[-1]) + 1)
    batches = [abs(strides[name][0]) for name in shapes if name in strides and problem.n > 1]  # or a unit of them
    return max(*offsets, *batches, lanes) >= 2**31 - 2**16


def sides(problem: ConvProblem, strides: Strides, names: tuple[str, ...], tensors: tuple[str, ...]) -> dict[str, Any]:
    """Return strides along n, c, d, h and w of tensors (keys of `strides`) under other names; 0 for one not there."""
    found: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        of = five(strides.get(tensor, (0,) * (problem.ndim + 2)))
        found |= {f"{name}_stride_{axis}": step for axis, step in zip("ncdhw", of, strict=True)}
    return found


def _weights(problem: ConvProblem, strides: Strides) -> dict[str, int]:
    """Return the strides of w as [G, KG, CG, T, R, S] of the pass: in a gradient turned round, its sides changed."""
    rows = rows_of(problem)
    filters, channels, *taps = five(strides["w"])
    if rows.grad:
        of_out, of_in = channels, filters
    else:
        of_out, of_in = filters, channels
    last = 0
    if rows.grad and not rows.spreads:
        last = sum((size - 1) * step for size, step in zip((rows.depth.taps, *rows.kernel), taps, strict=True))
        taps = [-step for step in taps]
    found = {"w_offset": last, "w_stride_group": filters * (problem.k // problem.groups), "w_stride_out": of_out,
             "w_stride_in": of_in}  # fmt: skip
    return found | {f"w_stride_{axis}": step for axis, step in zip("trs", taps, strict=True)}


def _tile(rows: Rows, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the constants of a tile that the kernel and the pass that packs weights share."""
    return {
        "T": rows.depth.taps, "R": rows.kernel[0], "S": rows.kernel[1], "CG": rows.inside, "KG": rows.outside,
        "RP": rows.taps[0], "J": rows.taps[1], "F": rows.columns,
        **{name: config[name] for name in ("PER", "BC", "BO", "BLOCKS")},
    }  # fmt: skip


def packed_elements(rows: Rows, config: Mapping[str, Any]) -> int:
    """Return how many elements block-diagonal weights have."""
    r, columns = rows.taps
    of_block = int(config["BLOCKS"]) * columns * int(config["BC"]) * r * rows.columns * int(config["BO"])
    return blocks_of(rows, config) * rows.depth.taps * of_block


def pack_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the pass that packs weights but its pointers, by name."""
    rows = rows_of(problem)
    elements = packed_elements(rows, config)
    long = bool(config.get("INDEX64")) or reach(problem.w_shape, strides["w"]) >= 2**31 or elements >= 2**31 - 2**16
    found = _tile(rows, config) | _weights(problem, strides)
    step = rows.stride[1] if rows.spreads else 1
    return found | {"groups": rows.groups, "elements": elements, "STEP": step, "INDEX64": long, "BLOCK": 512}


def rows_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the row kernel but its pointers, by name.

    Parameters
    ----------
    problem
        A problem that :func:`refusal` has nothing against.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile, see :meth:`.conv_rows.RowProducts.default`; ``INDEX64`` in it forces the 64-bit variant.
    """
    rows = rows_of(problem)
    axis, groups, per, bc = rows.axis, rows.groups, config["PER"], config["BC"]
    tensors = ("y", "x") if rows.grad else ("x", "y")
    found: dict[str, Any] = {
        "images": problem.n,
        "groups": groups,
        "steps": config["steps"],
        "chunks": ceil_div(axis.steps, config["steps"]),
        "tiles": ceil_div(problem.n * rows.depth.result * rows.lanes, config["BM"]),
        "blocks": blocks_of(rows, config),
        "lanes_w": rows.lanes,
        "source_row": axis.source,
        "source_row_phase": axis.source_phase,
        "source_row_pitch": axis.source_pitch,
        "result_row": axis.result,
        "result_row_phase": axis.result_phase,
        "result_row_pitch": axis.result_pitch,
        "pad_d": rows.depth.pad,
        "pad_h": rows.pad[0],
        "pad_w": rows.pad[1],
        "A": axis.reads,
        "U": axis.writes,
        "DEEP": rows.depth.there,
        "STRIDE_D": rows.depth.stride,
        "STRIDE_H": rows.stride[0],
        "STRIDE_W": rows.stride[1],
        "DILATION_D": rows.depth.dilation,
        "DILATION_H": rows.dilation[0],
        "DILATION_W": rows.dilation[1],
        "EVEN": groups % per == 0 and (config["BLOCKS"] == 1 or rows.inside % bc == 0),
        "EVEN_OUT": groups % per == 0,
        "GRAD": rows.grad,
        "SPREAD": rows.spreads,
        "ACTIVATION": problem.finish,
        "PRECISION": problem.precision,
        "INDEX64": bool(config.get("INDEX64")) or wide(problem, strides),
        "AHEAD": config.get("AHEAD", 0),
        "BM": config["BM"],
    }
    found |= _tile(rows, config) | _weights(problem, strides)
    for name, size in (("source", rows.source_size), ("result", rows.result_size)):
        found |= {f"{name}_h": size[0], f"{name}_w": size[1]}
    found |= {"source_d": rows.depth.source, "result_d": rows.depth.result}
    found |= sides(problem, strides, ("source", "result", "residual"), (*tensors, "residual"))
    channels = groups * rows.outside
    of_vector = {name: strides[name][0] if name in strides and channels > 1 else 1 for name in VECTORS}
    found |= {f"{name}_stride": step for name, step in of_vector.items()}
    written = ("result", *(("residual",) if problem.residual else ()))
    return in_units(found, {
        "UNIT": (("source_stride_c",), [f"source_stride_{axis}" for axis in "ndhw"]),
        "RESULT_UNIT": (
            [f"{name}_stride_c" for name in written], [f"{name}_stride_{axis}" for name in written for axis in "ndhw"],
        ),
    })  # fmt: skip
