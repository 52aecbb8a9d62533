"""Grouped problems, and such of few filters, as the row kernels take them: sides, blocks of channels, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem
from ...shapes import ceil_div
from ..axes import reach, two
from .common import VECTORS, Strides, power_of_two
from .march_axes import MarchAxis, forward_axis, gradient_axis
from .units import in_units

__all__ = ["FEW_FILTERS", "MOST_IN_GROUP", "Rows", "pack_arguments", "refusal", "rows_arguments", "rows_of"]

MOST_IN_GROUP = 32
"""Channels of a group, on either side, up to which a block of whole groups feeds tensor cores well."""

FEW_FILTERS = 8
"""Channels of the result of an ungrouped problem up to which rows of products read less than tiles of a GEMM."""

_MOST_CHANNELS = 512
"""Channels of the source of an ungrouped problem at most: all their weights stay in shared memory."""

_MOST_TAPS = 8
"""Taps along either axis at most, and rows or columns that a data gradient moves on by."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A pass as a convolution of a source to a result (of wgrad, x and y): 2-D, 1-D with a first axis of one row.

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
    """Return what a 1-D or 2-D problem is to the row kernels."""
    grad = problem.kind in ("dgrad", "transposed")
    kernel, stride, dilation = two(problem.kernel, 1), two(problem.stride, 1), two(problem.dilation, 1)
    pad = two(problem.pad_lo, 0)
    source, result = two(problem.input_size, 1), two(problem.output_size, 1)
    inside, outside = problem.c // max(problem.groups, 1), problem.k // max(problem.groups, 1)
    spreads = grad and stride != (1, 1)
    if grad:
        source, result, inside, outside = result, source, outside, inside
    along_h = dilation[0] if kernel[0] > 1 else 1
    if spreads:
        axis = gradient_axis(kernel[0], stride[0], along_h, pad[0], result[0])
    else:
        if grad:  # the convolution of y with a window that is turned round
            pad = (dilation[0] * (kernel[0] - 1) - pad[0], dilation[1] * (kernel[1] - 1) - pad[1])
        axis = forward_axis(kernel[0], stride[0], along_h, pad[0], result[0])
    return Rows(
        grad, spreads, problem.groups, inside, outside, source, result, kernel, stride, pad, dilation, axis
    )  # fmt: skip


def _refusal_of_strides(problem: ConvProblem) -> str | None:
    """Return why the row kernels do not take the strides of a data gradient; None if they do."""
    if problem.kind not in ("dgrad", "transposed"):
        return None
    if max(problem.stride) > _MOST_TAPS:
        return f"moves on by at most {_MOST_TAPS} in a data gradient, not {max(problem.stride)}"
    taps, stride, dilation = problem.kernel[-1], problem.stride[-1], problem.dilation[-1]
    if min(taps, stride, dilation) > 1:
        return f"takes no dilation along W with the stride of a data gradient, but {dilation} with {stride}"
    for taps, stride, dilation in zip(problem.kernel[:-1], problem.stride[:-1], problem.dilation[:-1], strict=True):
        if taps > 1 and gcd(stride, dilation) > 1:
            return f"takes no common divisor of stride and dilation in a data gradient, but {stride} and {dilation}"
    return None


def refusal(problem: ConvProblem) -> str | None:
    """Return why the row kernels do not take a problem, with the numbers that say so; None if they do."""
    if problem.ndim > 2:
        return f"has kernels for 1-D and 2-D, not {problem.ndim}-D"
    if problem.padding_mode != "zeros":
        return f"pads with zeros alone, not {problem.padding_mode}"
    if problem.kind == "wgrad" or problem.groups > 1:
        read: tuple[str, ...] = ("x", "y")
    else:  # few channels are written well in either format
        read = ("y",) if problem.kind in ("dgrad", "transposed") else ("x",)
    for name in read:
        given = problem.x_format if name == "x" else problem.y_format
        if given != CHANNELS_LAST:
            return f"reads channels side by side: {name} must be {CHANNELS_LAST}, not {given}"
    reason = _refusal_of_strides(problem)
    if reason is not None:
        return reason
    if 0 in (problem.groups, problem.c, problem.k, problem.n, *problem.input_size, *problem.output_size):
        return "has nothing to compute without images, channels or positions"
    rows = rows_of(problem)
    if max(rows.kernel) > _MOST_TAPS:
        return f"keeps at most {_MOST_TAPS} taps of an axis open, not {max(rows.kernel)}"
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
    lanes = problem.n * (max(problem.input_size[-1], problem.output_size[-1]) + 1)
    return max(*offsets, lanes) >= 2**31 - 2**16


def sides(problem: ConvProblem, strides: Strides, names: tuple[str, ...], tensors: tuple[str, ...]) -> dict[str, Any]:
    """Return strides along n, c, h and w of tensors (keys of `strides`) under other names; 0 for a tensor not there."""
    found: dict[str, Any] = {}
    for name, tensor in zip(names, tensors, strict=True):
        given = strides.get(tensor, (0,) * (problem.ndim + 2))
        batch, channel, *spatial = given
        of = (batch, channel, *(0,) * (2 - problem.ndim), *spatial)
        found |= {f"{name}_stride_{axis}": step for axis, step in zip("nchw", of, strict=True)}
    return found


def _weights(problem: ConvProblem, strides: Strides) -> dict[str, int]:
    """Return the strides of w as [G, KG, CG, R, S] of the pass: turned round, and its sides changed, in a gradient."""
    rows = rows_of(problem)
    filters, channels, *spatial = strides["w"]
    r, s = (*(0,) * (2 - problem.ndim), *spatial)
    of_group = filters * (problem.k // problem.groups)
    if not rows.grad:
        return {"w_offset": 0, "w_stride_group": of_group, "w_stride_out": filters, "w_stride_in": channels,
                "w_stride_r": r, "w_stride_s": s}  # fmt: skip
    if rows.spreads:
        return {"w_offset": 0, "w_stride_group": of_group, "w_stride_out": channels, "w_stride_in": filters,
                "w_stride_r": r, "w_stride_s": s}  # fmt: skip
    last = (rows.kernel[0] - 1) * r + (rows.kernel[1] - 1) * s
    return {"w_offset": last, "w_stride_group": of_group, "w_stride_out": channels, "w_stride_in": filters,
            "w_stride_r": -r, "w_stride_s": -s}  # fmt: skip


def _tile(rows: Rows, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the constants of a tile that the kernel and the pass that packs weights share."""
    return {
        "R": rows.kernel[0], "S": rows.kernel[1], "CG": rows.inside, "KG": rows.outside, "RP": rows.taps[0],
        "J": rows.taps[1], "F": rows.columns,
        **{name: config[name] for name in ("PER", "BC", "BO", "BLOCKS")},
    }  # fmt: skip


def packed_elements(rows: Rows, config: Mapping[str, Any]) -> int:
    """Return how many elements block-diagonal weights have."""
    r, columns = rows.taps
    of_block = int(config["BLOCKS"]) * columns * int(config["BC"]) * r * rows.columns * int(config["BO"])
    return blocks_of(rows, config) * of_block


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
        "tiles": ceil_div(problem.n * rows.lanes, config["BM"]),
        "blocks": blocks_of(rows, config),
        "lanes_w": rows.lanes,
        "source_row": axis.source,
        "source_row_phase": axis.source_phase,
        "source_row_pitch": axis.source_pitch,
        "result_row": axis.result,
        "result_row_phase": axis.result_phase,
        "result_row_pitch": axis.result_pitch,
        "pad_h": rows.pad[0],
        "pad_w": rows.pad[1],
        "A": axis.reads,
        "U": axis.writes,
        "STRIDE_H": rows.stride[0],
        "STRIDE_W": rows.stride[1],
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
    found |= sides(problem, strides, ("source", "result", "residual"), (*tensors, "residual"))
    channels = groups * rows.outside
    of_vector = {name: strides[name][0] if name in strides and channels > 1 else 1 for name in VECTORS}
    found |= {f"{name}_stride": step for name, step in of_vector.items()}
    written = ("result", *(("residual",) if problem.residual else ()))
    return in_units(found, {
        "UNIT": (("source_stride_c",), [f"source_stride_{axis}" for axis in "nhw"]),
        "RESULT_UNIT": (
            [f"{name}_stride_c" for name in written], [f"{name}_stride_{axis}" for name in written for axis in "nhw"],
        ),
    })  # fmt: skip
