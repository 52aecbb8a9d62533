"""What the kernels of convolutions over runs compute of a problem, and every argument of theirs but the pointers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd, prod
from typing import Any

from ...arrays import CHANNELS_LAST
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from ..axes import reach, three
from .common import Strides, conv_arguments, index64, power_of_two

__all__ = [
    "Phases",
    "Runs",
    "forward_of",
    "forward_strides",
    "most_columns",
    "most_slices",
    "phases_of",
    "runs_arguments",
    "runs_of",
    "spread_arguments",
    "spread_elements",
    "weight_bytes",
]

_LEAST_DEPTH = 16
"""Elements of a reduction that ``tl.dot`` takes at least."""

_SPREAD_ELEMENTS = 4096
"""Elements of one program of the pass that spreads weights."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a problem in the memory formats that it states, each of `columns` columns of the result.

    The rows of their windows are `used` neighbouring elements of each of `planes` planes (1 where channels are
    innermost), read `vec` elements at a time from `lead` before them, `run` elements in all. `open` rows of the result
    meet an input row.
    """

    over_planes: bool
    columns: int
    used: int
    vec: int
    lead: int
    run: int
    planes: int
    open: int
    taps: tuple[int, int, int]
    stride: tuple[int, int, int]
    output: tuple[int, int, int]

    def depth(self, slices: int) -> int:
        """Return the elements of the reduction of one input row, `slices` slices of depth at a time."""
        return slices * self.planes * self.run

    def blocks(self, slices: int) -> int:
        """Return in how many blocks of `slices` slices the filter's are."""
        return ceil_div(self.taps[0], slices)


def _run_of(problem: ConvProblem, vec: int, elements: int, used: int, planes: int) -> tuple[int, int]:
    """Return lead and length of a run whose loads are `vec` elements wide; `elements` of it per column of input."""
    lead = -problem.pad_lo[-1] * elements % vec
    run = max(power_of_two(lead + used), vec)
    slices = power_of_two(problem.kernel[0]) if problem.ndim == 3 else 1
    return lead, max(run, _LEAST_DEPTH // min(slices * planes, _LEAST_DEPTH))


@lru_cache(maxsize=4096)
def runs_of(problem: ConvProblem, columns: int = 1) -> Runs:
    """Return the runs of a forward problem: vectors as wide as loads of every `columns` columns may be."""
    over_planes = problem.x_format != CHANNELS_LAST and problem.c > 1
    elements = 1 if over_planes else problem.c
    planes = power_of_two(problem.c) if over_planes else 1
    most = 16 // itemsize(problem.dtype)
    vec = gcd(most, columns * problem.stride[-1] * elements, problem.input_size[-1] * elements)
    used = ((columns - 1) * problem.stride[-1] + problem.kernel[-1]) * elements
    lead, run = _run_of(problem, vec, elements, used, planes)
    taps, stride = three(problem.kernel, 1), three(problem.stride, 1)
    return Runs(
        over_planes, columns, used, vec, lead, run, planes, ceil_div(taps[1], stride[1]),
        (taps[0], taps[1], taps[2]), (stride[0], stride[1], stride[2]), _as_three(problem.output_size),
    )  # fmt: skip


def _as_three(size: Sequence[int]) -> tuple[int, int, int]:
    d, h, w = three(size, 1)
    return d, h, w


@dataclass(frozen=True, slots=True)
class Phases:
    """Along D, H, W: the results of a pass that one element of the result of :func:`forward_of` stands for.

    A data gradient of another stride than 1 has `step` of them, one of each phase: of element q of the forward result,
    ``step q + phase - offset``. `offset` of them are missing before the first, and `rest` after the last. Result
    of that phase has tap ``top - step s + phase`` of `taps` where the forward pass has tap s.
    """

    step: tuple[int, ...] = (1, 1, 1)
    offset: tuple[int, ...] = (0, 0, 0)
    rest: tuple[int, ...] = (0, 0, 0)
    top: tuple[int, ...] = (0, 0, 0)
    taps: tuple[int, ...] = (1, 1, 1)

    @property
    def count(self) -> int:
        """Phases in all."""
        return prod(self.step)


_ONE = Phases()


def _taps_of_phases(problem: ConvProblem, axis: int, offset: int) -> tuple[int, int]:
    """Return the least and the greatest u so that result ``s a + f - offset`` has ``y[a - u]``, for any phase f."""
    step, pad, taps = problem.stride[axis], problem.pad_lo[axis], problem.kernel[axis]
    return ceil_div(offset - pad - (step - 1), step), (taps - 1 - pad + offset) // step


def _offset(problem: ConvProblem, axis: int) -> int:
    """Return the results missing before the first step: none, unless all phases then have fewer taps between them."""
    other = problem.pad_lo[axis] % problem.stride[axis]
    (low, high), (least, most) = (_taps_of_phases(problem, axis, offset) for offset in (0, other))
    return other if most - least < high - low else 0


@lru_cache(maxsize=4096)
def phases_of(problem: ConvProblem) -> Phases:
    """Return the phases of a problem; of a forward pass, or of a gradient of stride 1, there is one."""
    if problem.kind == "fprop" or all(step == 1 for step in problem.stride):
        return _ONE
    offsets = [_offset(problem, axis) for axis in range(problem.ndim)]
    rests, tops = [], []
    for axis, (offset, step) in enumerate(zip(offsets, problem.stride, strict=True)):
        rests.append(-(problem.input_size[axis] + offset) % step)
        most = _taps_of_phases(problem, axis, offset)[1]
        tops.append(step * most + problem.pad_lo[axis] - offset)
    return Phases(
        three(problem.stride, 1), three(tuple(offsets), 0), three(tuple(rests), 0), three(tuple(tops), 0),
        three(problem.kernel, 1),
    )  # fmt: skip


def _forward_axis(problem: ConvProblem, axis: int) -> dict[str, int]:
    """Return what an axis of :func:`forward_of` a data gradient is."""
    size, taps, step = problem.input_size[axis], problem.kernel[axis], problem.stride[axis]
    lo, hi, dilation = problem.pad_lo[axis], problem.pad_hi[axis], problem.dilation[axis]
    if step == 1:
        reach = dilation * (taps - 1)
        return {"kernel": taps, "dilation": dilation, "output_size": size, "pad_lo": reach - lo, "pad_hi": reach - hi}
    offset = _offset(problem, axis)
    least, most = _taps_of_phases(problem, axis, offset)
    steps = ceil_div(size + offset, step)
    after = steps + most - least - problem.output_size[axis] - most
    return {"kernel": most - least + 1, "dilation": 1, "output_size": steps, "pad_lo": most, "pad_hi": after}


@lru_cache(maxsize=4096)
def forward_of(problem: ConvProblem) -> ConvProblem:
    """Return the forward problem that a data gradient is: of y, with a window that is turned round.

    With another stride than 1 it has the filters of all phases, see :class:`Phases`, and one result for each step.
    """
    if problem.kind == "fprop":
        return problem
    axes = [_forward_axis(problem, axis) for axis in range(problem.ndim)]
    names = ("kernel", "dilation", "output_size", "pad_lo", "pad_hi")
    sizes: dict[str, Any] = {name: tuple(axis[name] for axis in axes) for name in names}
    return replace(
        problem, kind="fprop", c=problem.k, k=phases_of(problem).count * problem.c, input_size=problem.output_size,
        x_format=problem.y_format, y_format=problem.x_format, stride=(1,) * problem.ndim,
        **sizes,
    )  # fmt: skip


def forward_strides(problem: ConvProblem, strides: Strides) -> tuple[Strides, int]:
    """Return the strides of :func:`forward_of` a problem, and the element of w that they begin at."""
    if problem.kind == "fprop":
        return strides, 0
    filters, channels, *taps = strides["w"]
    phases = phases_of(problem)
    top = phases.top[-problem.ndim :] if phases.count > 1 else [size - 1 for size in problem.kernel]
    first = sum(tap * step for tap, step in zip(top, taps, strict=True))
    turned = (channels, filters, *(-step for step in taps))
    return {**strides, "x": strides["y"], "y": strides["x"], "w": turned}, first


def _reached(strides: Strides, phases: Phases) -> Strides:
    """Return strides of whole steps, by which the results and taps of all phases are reached."""
    if phases.count == 1:
        return strides
    found = dict(strides)
    for name in {"w", "y", "residual"} & found.keys():
        a, b, *rest = found[name]
        found[name] = (a, b, *(step * by for step, by in zip(rest, phases.step[-len(rest) :], strict=True)))
    return found


def most_columns(problem: ConvProblem) -> int:
    """Return how many columns of the result, a power of two, a run may be of.

    Neighbouring windows must share input columns, and results of all channels lie close together: in planes, columns
    that one thread has would be far from those of the next.
    """
    together = problem.y_format == CHANNELS_LAST or problem.k == 1
    if not together or problem.kernel[-1] <= problem.stride[-1]:
        return 1
    return min(power_of_two(problem.output_size[-1]), 8)


def most_slices(problem: ConvProblem) -> int:
    """Return the slices of depth, a power of two, that hold a whole filter."""
    return power_of_two(three(problem.kernel, 1)[0])


def _rows(runs: Runs, config: Mapping[str, Any]) -> int:
    """Return the filter rows that the spread weights have room for."""
    return power_of_two(runs.taps[1]) if config["MERGED"] else runs.taps[1]


def _tiles_n(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return in how many tiles the filters are."""
    return ceil_div(problem.k, config["BLOCK_N"] // config["COLS"])


def spread_elements(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return the number of elements of the spread weights."""
    runs, slices = runs_of(problem, config["COLS"]), config["SLICES"]
    columns = _tiles_n(problem, config) * config["BLOCK_N"]
    return runs.blocks(slices) * _rows(runs, config) * runs.depth(slices) * columns


def _of_both(problem: ConvProblem, config: Mapping[str, Any], phases: Phases) -> dict[str, Any]:
    """Return the constants that both kernels have."""
    runs = runs_of(problem, config["COLS"])
    found: dict[str, Any] = {"FILTERS": problem.k // phases.count}
    found |= zip(("STEP_O", "STEP_P", "STEP_Q"), phases.step, strict=True)
    found |= zip(("TOP_D", "TOP_H", "TOP_W"), phases.top, strict=True)
    found |= zip(("TAPS_D", "TAPS_H", "TAPS_W"), phases.taps, strict=True)
    return found | {
        "C": problem.c, "T": runs.taps[0], "R": runs.taps[1], "S": runs.taps[2], "PLANES": runs.over_planes,
        "LEAD": runs.lead, "RUN": runs.run, "CHANNELS": runs.planes, "SLICES": config["SLICES"],
        "ROWS": _rows(runs, config), "BLOCK_N": config["BLOCK_N"], "COLS": config["COLS"],
        "STRIDE_W": problem.stride[-1],
    }  # fmt: skip


def _unit(numbers: Sequence[int], most: int) -> int:
    """Return the largest divisor of `most` that all of `numbers`, of which 0 is a multiple of everything, share."""
    return gcd(most, *numbers)


def _source(problem: ConvProblem, runs: Runs, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what describes x: whether runs are dense, its unit, and strides in it. Axes of size 1 have stride 0."""
    names = {"n": problem.n, "d": arguments["d"], "h": arguments["h"]} | ({"c": problem.c} if runs.over_planes else {})
    strides = {f"x_stride_{axis}": arguments[f"x_stride_{axis}"] if size > 1 else 0 for axis, size in names.items()}
    elements = 1 if runs.over_planes else problem.c
    channels = runs.over_planes or problem.c == 1 or arguments["x_stride_c"] == 1
    dense = channels and (arguments["w"] == 1 or arguments["x_stride_w"] == elements)
    row = arguments["w"] * elements
    unit = _unit([row, *strides.values()], runs.vec) if dense and not arguments["INDEX64"] else 1
    found = {name: stride // unit for name, stride in strides.items()}
    return found | {"DENSE": dense, "VEC": runs.vec, "UNIT": unit, "row_size": row // unit}


def _side(problem: ConvProblem, arguments: Mapping[str, Any], tensor: str, config: Mapping[str, Any]) -> bool:
    """Tell whether the columns of a run, with all channels, are neighbouring elements of y or residual."""
    if config["COLS"] == 1 or arguments["phases"] > 1 or config["BLOCK_N"] != config["COLS"] * problem.k:
        return False
    dense = problem.k == 1 or arguments[f"{tensor}_stride_k"] == 1
    return bool(dense and arguments[f"{tensor}_stride_q"] == problem.k)


def _result(
    problem: ConvProblem, arguments: dict[str, Any], config: Mapping[str, Any], phases: Phases
) -> dict[str, Any]:
    """Return what describes y and residual: which axis is innermost, and what is in units of theirs."""
    last = arguments["y_stride_k"] == 1 and problem.k > 1
    sizes = {"n": problem.n, "k": problem.k}
    sizes |= {axis: arguments[axis] * step for axis, step in zip("opq", phases.step, strict=True)}
    divided = "nopq" if last else "nkop"
    tensors = ("y", "residual") if problem.residual else ("y",)
    names = {f"{tensor}_stride_{axis}": sizes[axis] for tensor in tensors for axis in divided}
    numbers = {name: arguments[name] if size > 1 else 0 for name, size in names.items()}
    size = "k" if last else "q"
    numbers[size] = problem.k if last else arguments["q"]
    unit = 1 if arguments["INDEX64"] else _unit(list(numbers.values()), 8)
    found = {name: number // unit for name, number in numbers.items()} | {"LAST_OUT": last, "RESULT_UNIT": unit}
    return found | {
        "EVEN_Q": arguments["q"] % config["COLS"] == 0, "SIDE": _side(problem, arguments, "y", config),
        "RESIDUAL_SIDE": problem.residual and _side(problem, arguments, "residual", config),
    }  # fmt: skip


_TAKEN = (
    "n", "d", "h", "o", "p", "q", "x_stride_c", "x_stride_w", "bias_stride", "scale_stride", "shift_stride", "pad_d",
    "pad_h", "STRIDE_D", "STRIDE_H", "DILATION_D", "ACTIVATION", "PRECISION",
    *(f"{tensor}_stride_{axis}" for tensor in ("y", "residual") for axis in "nkopq"),
)  # fmt: skip
"""Arguments that are what :func:`.common.conv_arguments` has by these names."""


def runs_arguments(
    problem: ConvProblem,
    strides: Strides,
    config: Mapping[str, Any],
    grad: bool = False,
    phases: Phases = _ONE,
) -> dict[str, Any]:
    """Return every argument of the kernel over runs but its pointers, by name.

    Parameters
    ----------
    problem
        A forward problem, see :func:`forward_of`; 1-D and 2-D get leading axes of size 1.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile; ``INDEX64`` in it forces the 64-bit variant.
    grad
        Whether the pass is a data gradient.
    phases
        Of a data gradient, see :func:`phases_of`.
    """
    runs = runs_of(problem, config["COLS"])
    arguments = conv_arguments(problem, strides) | {"phases": phases.count}
    rows = problem.n * arguments["o"] * ceil_div(arguments["q"], config["COLS"])
    tiles_m, chunks = ceil_div(rows, config["BLOCK_M"]), ceil_div(arguments["p"], config["steps"])
    # The kernel counts slices of a window from its first, which may be as far before x as the padding is.
    slices = reach(problem.x_shape, strides["x"]) + max(arguments["pad_d"], 0) * abs(arguments["x_stride_d"])
    numbers = (rows + config["BLOCK_M"]) * config["COLS"], spread_elements(problem, config), slices
    wide = index64(problem, _reached(strides, phases), max(numbers))
    found = {name: arguments[name] for name in _TAKEN} | _of_both(problem, config, phases)
    found |= zip(("OFFSET_O", "OFFSET_P", "OFFSET_Q"), phases.offset, strict=True)
    found |= zip(("REST_O", "REST_P", "REST_Q"), phases.rest, strict=True)
    found |= {name: config[name] for name in ("steps", "MERGED", "UNROLL", "AHEAD", "BLOCK_M")}
    found |= {
        "k": problem.k, "tiles_m": tiles_m, "tiles_n": _tiles_n(problem, config), "PAD_W": problem.pad_lo[-1],
        "GRAD": grad, "INDEX64": bool(config.get("INDEX64")) or wide,
    }  # fmt: skip
    arguments["INDEX64"] = found["INDEX64"]
    found |= _source(problem, runs, arguments) | _result(problem, arguments, config, phases)
    return found | {"programs": chunks * tiles_m * found["tiles_n"]}


def spread_arguments(
    problem: ConvProblem,
    strides: Strides,
    config: Mapping[str, Any],
    offset: int = 0,
    phases: Phases = _ONE,
) -> dict[str, Any]:
    """Return every argument of the kernel that spreads weights but its pointers, as :func:`runs_arguments`.

    Strides of w count from its element `offset`.
    """
    runs = runs_of(problem, config["COLS"])
    arguments = conv_arguments(problem, strides)
    depth = runs.depth(config["SLICES"])
    block = max(min(depth, _SPREAD_ELEMENTS // config["BLOCK_N"]), 1)
    found = {f"w_stride_{axis}": arguments[f"w_stride_{axis}"] for axis in "kctrs"} | _of_both(problem, config, phases)
    wide = index64(problem, _reached(strides, phases), spread_elements(problem, config))
    found |= {"k": problem.k, "w_offset": offset, "BLOCK_E": block, "INDEX64": bool(config.get("INDEX64")) or wide}
    return found | {"programs": spread_elements(problem, config) // (block * config["BLOCK_N"])}


def weight_bytes(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return the bytes of the spread weights of one tile of filters, which a program keeps in shared memory."""
    return spread_elements(problem, config) // _tiles_n(problem, config) * itemsize(problem.dtype)
