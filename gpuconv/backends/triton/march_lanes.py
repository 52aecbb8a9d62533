"""Depthwise problems as the marching kernels take them: axes, lanes, strides in units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem
from ...shapes import ceil_div, phase_taps, tap_step
from ..axes import reach
from .common import VECTORS, Strides
from .march_axes import MarchAxis, forward_axis, gradient_axis

__all__ = ["March", "march_arguments", "march_of"]


@dataclass(frozen=True, slots=True)
class March:
    """A depthwise pass as the kernels see it: a source is read, a result is written (of wgrad, x and y, both read).

    `axes` are the places, among the spatial axes of the problem, of depth, rows and columns, or None where it has none.
    """

    grad: bool
    over_channels: bool
    axes: tuple[int | None, int | None, int | None]
    channels: int
    multiples: int
    slices: int
    rows: MarchAxis
    columns: MarchAxis
    source_size: tuple[int, int, int]
    result_size: tuple[int, int, int]
    kernel: tuple[int, int, int]

    @property
    def taps(self) -> int:
        """Weights of a lane."""
        return self.slices * self.kernel[1] * self.kernel[2]

    @property
    def longest_step(self) -> int:
        """Rows or columns, of the source or of the result, that a step or a lane moves on by at most."""
        return max(size for axis in (self.rows, self.columns) for size in (axis.reads, axis.writes))

    def window(self, columns: int) -> tuple[int, int]:
        """Return the first source column that `columns` columns of the result read, and the one behind the last."""
        axis = self.columns
        if axis.writes > 1:
            return -((axis.taps - 1 - axis.lead) // axis.writes), (columns - 1 + axis.lead) // axis.writes + 1
        return 0, axis.reads * (columns - 1) + axis.taps


def _three(values: Sequence[int], axes: Sequence[int | None]) -> tuple[int, int, int]:
    depth, rows, columns = (_of_axis(values, axis, 1) for axis in axes)
    return depth, rows, columns


def _of_axis(values: Sequence[int], axis: int | None, otherwise: int) -> int:
    return otherwise if axis is None else values[axis]


@lru_cache(maxsize=1024)
def march_of(problem: ConvProblem) -> March:
    """Return what a depthwise problem is to the marching kernels.

    Channels-last tensors have lanes over channels and march along the only axis of 1-D problems; others have lanes over
    positions and a single row there.
    """
    grad = problem.kind in ("dgrad", "transposed")
    last = problem.x_format == problem.y_format == CHANNELS_LAST and problem.c * problem.k > 1
    axes = {1: (None, 0, None) if last else (None, None, 0), 2: (None, 0, 1), 3: (0, 1, 2)}[problem.ndim]
    sizes = (problem.output_size, problem.input_size) if grad else (problem.input_size, problem.output_size)
    source, result, kernel = (_three(values, axes) for values in (*sizes, problem.kernel))
    found = []
    for axis, taps, size, is_column in zip(axes[1:], kernel[1:], result[1:], (False, True), strict=True):
        stride, dilation = _of_axis(problem.stride, axis, 1), _of_axis(problem.dilation, axis, 1)
        pad = _of_axis(problem.pad_lo, axis, 0)
        dilation = 1 if taps == 1 else dilation
        if grad and not (is_column and stride == 1):
            found.append(gradient_axis(taps, stride, dilation, pad, size, columns=is_column))
        elif grad:  # columns of a window that is turned round
            found.append(forward_axis(taps, 1, dilation, dilation * (taps - 1) - pad, size))
        else:
            found.append(forward_axis(taps, stride, dilation, pad, size))
    multiples = problem.k // max(problem.c, 1)
    slices = kernel[0]
    if grad and axes[0] is not None:
        slices = phase_taps(kernel[0], problem.stride[0], problem.dilation[0])
    return March(
        grad, last, axes, problem.c if grad else problem.k, multiples, slices * (multiples if grad else 1),
        found[0], found[1], source, result, kernel,
    )  # fmt: skip


def _vector_of(march: March, strides: Sequence[int], size: Sequence[int], n: int, channels: int, most: int) -> int:
    """Return the widest vector of columns, up to `most`, that begins at multiples of itself in every row."""
    if strides[4] != 1:
        return 1
    sizes = (n, channels, size[0], size[1])
    numbers = [size[2], *(step for step, count in zip(strides[:4], sizes, strict=True) if count > 1)]
    # Kernels multiply what is divided by the vector again, in 32 bits; but for images, whose offsets have 64.
    if max(size[2], *(step for step, count in zip(strides[1:4], sizes[1:], strict=True) if count > 1), 0) >= 2**31:
        return 1
    return gcd(most, *numbers)


def _unit(numbers: Sequence[int]) -> int:
    """Return what to divide sizes and strides by so that the compiler knows of it: 16 it finds by itself."""
    common = gcd(*numbers)
    return 1 if common % 16 == 0 else gcd(common, 8)


def _strides(march: March, of: Sequence[int]) -> tuple[int, ...]:
    """Return strides of batch, channel, depth, rows and columns; 0 for what is not there."""
    spatial = of[2:]
    return (of[0], of[1], *(_of_axis(spatial, axis, 0) for axis in march.axes))


def _wide(problem: ConvProblem, strides: Strides) -> bool:
    """Tell whether an offset within an image, a lane or a program may not fit in 32 bits."""
    result = problem.y_shape if problem.kind == "wgrad" else problem.result_shape
    shapes = {"x": problem.x_shape, "y": problem.y_shape, "residual": result}
    offsets = [reach(shapes[name][1:], steps[1:]) for name, steps in strides.items() if name in shapes]
    offsets.append(reach(problem.w_shape, strides["w"]))
    channels = problem.k if problem.kind in ("fprop", "wgrad") else problem.c
    offsets += [reach((channels,), strides[name]) for name in VECTORS if name in strides]
    lanes = problem.n * max(problem.c, problem.k) * (result[-1] if len(result) > 2 else 1)
    return max(*offsets, lanes) >= 2**31


def march_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of a marching kernel but its pointers, by name; the kernels of wgrad take most of them.

    Parameters
    ----------
    problem
        A depthwise problem.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile, see :meth:`.conv_march.MarchDepthwise.default`; ``INDEX64`` in it forces the 64-bit variant.
    """
    march = march_of(problem)
    rows, columns, grad = march.rows, march.columns, march.grad
    names = ("y", "x") if grad else ("x", "y")
    source, result = (_strides(march, strides[name]) for name in names)
    residual = _strides(march, strides["residual"]) if problem.residual else (0,) * 5
    w = strides["w"]
    depth = march.axes[0]
    stride_d, dilation_d = (_of_axis(values, depth, 1) for values in (problem.stride, problem.dilation))
    step_d = tap_step(stride_d, dilation_d)
    steps = config["steps"]
    of_steps = rows.steps if problem.kind != "wgrad" else rows.steps + rows.warm
    ahead = 0 if problem.kind != "fprop" else rows.source_pitch * rows.reads * (ceil_div(rows.taps, rows.reads) - 1)
    arguments: dict[str, Any] = {
        "channels": march.channels,
        "steps": steps,
        "chunks": ceil_div(of_steps, steps),
        "phases_h": rows.phases,
        "phases_w": columns.phases,
        "source_row": rows.source + ahead,
        "source_row_phase": rows.source_phase,
        "source_row_pitch": rows.source_pitch,
        "source_column": columns.source,
        "source_column_phase": columns.source_phase,
        "source_column_pitch": columns.source_pitch,
        "STEP_D": step_d,
        "INVERSE_D": pow(dilation_d * step_d // stride_d, -1, step_d),
        "MULTIPLES": march.multiples,
        "SLICES": march.slices,
        "A": rows.reads,
        "U": rows.writes,
        "AW": columns.reads,
        "UW": columns.writes,
        "LEAD": columns.lead,
        "GRAD": grad,
        "DEPTH": depth is not None,
        "ACTIVATION": problem.finish,
        "INDEX64": bool(config.get("INDEX64")) or _wide(problem, strides),
        "AHEAD": config.get("AHEAD", 0),
        "TQ": config["TQ"],
    }
    arguments |= {f"source_{axis}": size for axis, size in zip("dhw", march.source_size, strict=True)}
    arguments |= {f"result_{axis}": size for axis, size in zip("dhw", march.result_size, strict=True)}
    for letter, place in zip("dhw", march.axes, strict=True):
        arguments |= {
            f"pad_{letter}": _of_axis(problem.pad_lo, place, 0),
            f"STRIDE_{letter.upper()}": _of_axis(problem.stride, place, 1),
            f"DILATION_{letter.upper()}": _of_axis(problem.dilation, place, 1),
        }
    for name, axis in (("row", rows), ("column", columns)):
        arguments |= {f"result_{name}": axis.result, f"result_{name}_phase": axis.result_phase}
        arguments |= {f"result_{name}_pitch": axis.result_pitch}
    arguments |= zip("TRS", march.kernel, strict=True)
    for name, found in (("source", source), ("result", result), ("residual", residual)):
        arguments |= zip((f"{name}_stride_{axis}" for axis in "ncdhw"), found, strict=True)
    arguments |= zip((f"w_stride_{axis}" for axis in "ktrs"), (w[0], *_strides(march, w)[2:]), strict=True)
    of_vector = {name: strides[name][0] if name in strides and march.channels > 1 else 1 for name in VECTORS}
    arguments |= {f"{name}_stride": step for name, step in of_vector.items()}
    if march.over_channels:
        return arguments | _channel_lanes(march, arguments, problem, config)
    return arguments | _position_lanes(march, arguments, problem, config)


def _channel_lanes(
    march: March, arguments: Mapping[str, Any], problem: ConvProblem, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what of the arguments lanes over channels alone have, and what they have in units."""
    first, last = march.window(config["TQ"])
    groups = march.columns.phases * ceil_div(march.columns.count, config["TQ"])
    found: dict[str, Any] = {"tiles_w": ceil_div(groups, config["TT"]), "TT": config["TT"], "BC": config["BC"]}
    found |= {"FIRST": first, "LAST": last, "SHIFT": first, "UNIT": 1, "RESULT_UNIT": 1}
    if arguments["INDEX64"]:
        return found
    sides = {"UNIT": ("source",), "RESULT_UNIT": ("result", *(("residual",) if problem.residual else ()))}
    for unit, names in sides.items():
        used = [f"{name}_stride_{axis}" for name in names for axis in "ndhw"]
        used += ["channels"] if unit == "RESULT_UNIT" else []
        factor = _unit([arguments[name] for name in used])
        found |= {unit: factor} | {name: arguments[name] // factor for name in used}
    return found


def _position_lanes(
    march: March, arguments: Mapping[str, Any], problem: ConvProblem, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what of the arguments lanes over positions alone have, and what they have in vectors."""
    columns, tq = march.columns, config["TQ"]
    first, last = march.window(tq)
    groups = columns.phases * ceil_div(columns.count, tq)
    planes = problem.n * march.channels
    found: dict[str, Any] = {"groups": groups, "planes": planes, "LANES": config["LANES"]}
    found["tiles"] = ceil_div(planes * groups, config["LANES"])
    vectors = {}
    for name, of in (("VEC", "source"), ("VO", "result")):
        sizes, channels = (march.source_size, 1) if of == "source" else (march.result_size, march.channels)
        if of == "source":
            channels = march.channels * march.multiples if march.grad else ceil_div(march.channels, march.multiples)
        steps = [arguments[f"{of}_stride_{axis}"] for axis in "ncdhw"]
        side_by_side = columns.in_vectors if of == "source" else columns.results_in_vectors
        most = config[name] if side_by_side else 1
        vectors[name] = _vector_of(march, steps, sizes, problem.n, channels, most)
        used = [f"{of}_w", *(f"{of}_stride_{axis}" for axis in "ncdh")]
        found |= {name: vectors[name]} | {each: arguments[each] // vectors[name] for each in used}
    vec = vectors["VEC"]
    if vec > 1:  # lanes begin at multiples of the vector, and the padding is a constant
        found["source_column"] = 0
        pad = -columns.source
        first, last = (first - pad) // vec, ceil_div(last - pad, vec)
        return found | {"FIRST": first, "LAST": last, "SHIFT": first * vec + pad}
    return found | {"FIRST": first, "LAST": last, "SHIFT": first}
