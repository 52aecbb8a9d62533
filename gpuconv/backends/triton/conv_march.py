"""Depthwise convolution and its data gradient on the marching kernels: problems, tiles, arguments and launches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs import constants
from ...costs import model as cost_model
from ...costs.constants import PATHS, PIPES
from ...costs.model import Work
from ...problem import ConvProblem, Problem, itemsize
from ...shapes import ceil_div, phase_taps, tap_step
from ..axes import reach
from ..base import Plan, Solver
from .common import (
    VECTORS,
    Memo,
    Strides,
    TritonConv,
    accumulator_type,
    format_strides,
    launch_kernel,
    power_of_two,
    remembered,
    strides_of,
)
from .march_axes import MarchAxis, forward_axis, gradient_axis, refused_axis

__all__ = ["SOLVERS", "March", "MarchDepthwise", "march_arguments", "march_of"]

_MOST_TAPS = 128
"""Weights that a lane keeps in registers at most."""

_MOST_REGISTERS = 200
"""Registers of a thread, by :func:`_registers`, above which no tile is proposed: compiled ones come out higher."""

_MOST_COLUMNS = 32
"""Columns of a lane at most."""


@dataclass(frozen=True, slots=True)
class March:
    """A depthwise pass as the kernels see it.

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

    def window(self, columns: int) -> tuple[int, int]:
        """Return the first source column that `columns` columns of the result read, and the one behind the last."""
        axis = self.columns
        if axis.writes > 1:
            return -((axis.taps - 1) // axis.writes), (columns - 1) // axis.writes + 1
        return 0, axis.reads * (columns - 1) + axis.taps


def _of_axis(values: Sequence[int], axis: int | None, otherwise: int) -> int:
    return otherwise if axis is None else values[axis]


@lru_cache(maxsize=1024)
def march_of(problem: ConvProblem) -> March:
    """Return what a depthwise problem is to the marching kernels.

    Channels-last tensors have lanes over channels and march along the only axis of 1-D problems; others have lanes over
    positions and a single row there.
    """
    grad = problem.kind != "fprop"
    last = problem.x_format == problem.y_format == CHANNELS_LAST and problem.c * problem.k > 1
    axes = {1: (None, 0, None) if last else (None, None, 0), 2: (None, 0, 1), 3: (0, 1, 2)}[problem.ndim]
    sizes = (problem.output_size, problem.input_size) if grad else (problem.input_size, problem.output_size)
    source, result = (tuple(_of_axis(size, axis, 1) for axis in axes) for size in sizes)
    kernel = tuple(_of_axis(problem.kernel, axis, 1) for axis in axes)
    found = []
    for axis, taps, size, is_column in zip(axes[1:], kernel[1:], result[1:], (False, True), strict=True):
        stride, dilation = _of_axis(problem.stride, axis, 1), _of_axis(problem.dilation, axis, 1)
        pad = _of_axis(problem.pad_lo, axis, 0)
        dilation = 1 if taps == 1 else dilation
        if grad and not (is_column and stride == 1):
            found.append(gradient_axis(taps, stride, dilation, pad, size))
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
    result = problem.result_shape
    shapes = {"x": problem.x_shape, "w": problem.w_shape, "y": problem.y_shape, "residual": result}
    offsets = [reach(shapes[name][1:], steps[1:]) for name, steps in strides.items() if name in shapes]
    return max(offsets, default=0) >= 2**31


def march_arguments(problem: ConvProblem, strides: Strides, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument of the marching kernel but its pointers, by name.

    Parameters
    ----------
    problem
        A depthwise problem.
    strides
        Strides in elements of ``x``, ``w``, ``y``, where the problem has one of ``residual``, and of the vectors of the
        epilogue that are not contiguous.
    config
        The tile, see :meth:`MarchDepthwise.default`; ``INDEX64`` in it forces the 64-bit variant.
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
    first, last = march.window(config["TQ"])
    steps = config["steps"]
    ahead = 0 if grad else rows.source_pitch * rows.reads * (ceil_div(rows.taps, rows.reads) - 1)
    arguments: dict[str, Any] = {
        "channels": march.channels,
        "steps": steps,
        "chunks": ceil_div(rows.steps, steps),
        "phases_h": rows.phases,
        "phases_w": columns.phases,
        "source_row": rows.source + ahead,
        "source_row_phase": rows.source_phase,
        "source_row_pitch": rows.source_pitch,
        "source_column": columns.source,
        "source_column_phase": columns.source_phase,
        "source_column_pitch": columns.source_pitch,
        "pad_d": _of_axis(problem.pad_lo, depth, 0),
        "STRIDE_D": stride_d,
        "DILATION_D": dilation_d,
        "STEP_D": step_d,
        "INVERSE_D": pow(dilation_d * step_d // stride_d, -1, step_d),
        "MULTIPLES": march.multiples,
        "SLICES": march.slices,
        "A": rows.reads,
        "U": rows.writes,
        "AW": columns.reads,
        "UW": columns.writes,
        "GRAD": grad,
        "DEPTH": depth is not None,
        "ACTIVATION": problem.activation,
        "INDEX64": bool(config.get("INDEX64")) or _wide(problem, strides),
        "AHEAD": config["AHEAD"],
        "TQ": config["TQ"],
    }
    arguments |= {f"source_{axis}": size for axis, size in zip("dhw", march.source_size, strict=True)}
    arguments |= {f"result_{axis}": size for axis, size in zip("dhw", march.result_size, strict=True)}
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
    found: dict[str, Any] = {
        "groups": groups, "planes": planes, "tiles": ceil_div(planes * groups, config["LANES"]), "LANES": config["LANES"]
    }  # fmt: skip
    vectors = {}
    for name, of in (("VEC", "source"), ("VO", "result")):
        sizes, channels = (march.source_size, 1) if of == "source" else (march.result_size, march.channels)
        if of == "source":
            channels = march.channels * march.multiples if march.grad else ceil_div(march.channels, march.multiples)
        steps = [arguments[f"{of}_stride_{axis}"] for axis in "ncdhw"]
        vectors[name] = _vector_of(march, steps, sizes, problem.n, channels, config[name])
        used = [f"{of}_w", *(f"{of}_stride_{axis}" for axis in "ncdh")]
        found |= {name: vectors[name]} | {each: arguments[each] // vectors[name] for each in used}
    vec = vectors["VEC"]
    if vec > 1:  # lanes begin at multiples of the vector, and the padding is a constant
        found["source_column"] = 0
        pad = -columns.source
        first, last = (first - pad) // vec, ceil_div(last - pad, vec)
        return found | {"FIRST": first, "LAST": last, "SHIFT": first * vec + pad}
    return found | {"FIRST": first, "LAST": last, "SHIFT": first}


def _epilogue_instructions(problem: ConvProblem) -> float:
    """Return the instructions of the epilogue per element of the result."""
    heavy = {None: 0, "relu": 2, "relu6": 4, "hardswish": 8, "sigmoid": 12, "silu": 13, "tanh": 14, "gelu": 30}
    return problem.bias + problem.scale + problem.shift + 3 * problem.residual + heavy.get(problem.activation, 20)


_PER_ACCESS = 3.2
"""Instructions of a load or store: itself, its address and its bounds. Read off compiled loops, as what follows."""

_PER_STEP = {True: (33, 30), False: (0, 30)}
"""Instructions of a thread per step, and per source row of it, beside all others; for lanes over channels or not."""


class _Costs:
    """What threads of configs of one problem do per step, as arrays over the configs."""

    def __init__(self, problem: ConvProblem, configs: Sequence[Mapping[str, Any]]) -> None:
        self.problem, self.march = problem, march_of(problem)
        march, item = self.march, itemsize(problem.dtype)
        self.item = item
        rows, columns = march.rows, march.columns

        def column(name: str, default: int = 1) -> np.ndarray:
            return np.array([config.get(name, default) for config in configs], float)

        self.tq, self.warps, self.steps, self.ahead = (column(n) for n in ("TQ", "num_warps", "steps", "AHEAD"))
        self.vec, self.vo = column("VEC"), column("VO")
        self.groups, self.channels = column("TT"), column("BC")
        self.lanes = self.groups * self.channels if march.over_channels else column("LANES")
        self.each = self.lanes / (32 * self.warps)
        windows = [march.window(config["TQ"]) for config in configs]
        self.columns = np.array([last - first for first, last in windows], float)
        row_loads = np.ceil(self.columns / self.vec) + (self.vec > 1)
        width = 16 / item
        per_load = np.ceil(self.each / width) if march.over_channels else self.each * np.ceil(self.vec / width)
        per_store = np.ceil(self.each / width) if march.over_channels else self.each * np.ceil(self.vo / width)
        self.loads = rows.reads * march.slices * row_loads * per_load
        self.outputs = self.each * self.tq * rows.writes
        self.stores = rows.writes * self.tq / self.vo * per_store
        self.fmas = self.each * self.tq * march.taps / columns.writes
        half = item == 2
        self.conversions = half * self.each * rows.reads * march.slices * self.columns
        packs = np.where((self.each > 1) if march.over_channels else (self.vo > 1), 0.5, 1.0)
        self.conversions = self.conversions + half * packs * self.outputs
        groups = columns.phases * np.ceil(columns.count / self.tq)
        planes: Any = problem.n * march.channels
        if march.over_channels:
            tiles = np.ceil(march.channels / column("BC")) * np.ceil(groups / column("TT")) * problem.n
        else:
            tiles = np.ceil(planes * groups / self.lanes)
        self.programs = tiles * np.ceil(rows.steps / self.steps) * rows.phases * march.result_size[0]

    def instructions(self) -> np.ndarray:
        """Return the instructions of a thread per step."""
        fixed, per_row = _PER_STEP[self.march.over_channels]
        found = self.fmas + self.conversions + _PER_ACCESS * (self.loads + self.stores)
        found = found + fixed + per_row * self.march.rows.reads
        return np.asarray(found + _epilogue_instructions(self.problem) * self.outputs)

    def registers(self) -> np.ndarray:
        """Return the registers of a thread: weights, open sums, a row of columns, and what is loaded ahead."""
        words = max(self.item // 4, 1)
        kept = self.march.taps + self.march.rows.open * self.tq + self.columns
        ahead = self.ahead * self.march.rows.reads * self.march.slices * self.columns * self.item / 4
        return np.asarray(24 + self.each * (kept * words + ahead))

    def work(self) -> Work:
        """Describe the launches for the cost model."""
        problem, march, item = self.problem, self.march, self.item
        threads = 32 * self.warps
        used = self.registers()
        used = np.minimum(np.where(used > 150, 1.25 * used, used), 255)
        resident = np.clip(np.floor(np.minimum(65536 / (used * threads), 2048 / threads)), 1, 32)
        walked = self.steps + march.rows.warm
        axis = march.columns
        apart = self.tq * axis.reads / axis.writes  # source columns between neighbouring lanes
        halo = self.columns - apart  # what two neighbours read; L1 has it
        read = self.channels * (self.groups * apart + halo) if march.over_channels else self.lanes * apart
        read = read * march.rows.reads * march.slices * walked * item
        written = self.outputs / self.each * self.lanes * self.steps * item
        return Work(
            programs=self.programs,
            resident=resident,
            pipe=np.full(len(self.tq), PIPES.index("fma64" if problem.dtype == "float64" else "fma32")),
            path=np.full(len(self.tq), PATHS.index("direct")),
            flops=2 * self.fmas * threads * walked,
            feed=1.0,
            l2_bytes=read + written,
            dram_bytes=float(problem.min_bytes),
            instructions=self.warps * (self.instructions() * walked + 60 + 4 * march.taps * self.each),
            chain=walked + 2,
        )


class MarchDepthwise(TritonConv):
    """Depthwise convolution on the plain cores: every row of the source is loaded once, sums stay in registers."""

    id = "triton.conv.depthwise.march"
    kinds = ("fprop", "dgrad", "transposed")

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.c != problem.groups or problem.c == 0:
            per_group = problem.c // max(problem.groups, 1)
            return f"takes one input channel per group, not {per_group}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros alone, not {problem.padding_mode}"
        if problem.kind != "fprop":
            spatial = zip(problem.stride, problem.dilation, problem.kernel, strict=True)
            if any(refused_axis(stride, dilation) for stride, dilation, taps in spatial if taps > 1):
                return f"takes gradients whose stride and dilation share no divisor, not {problem.stride} and {problem.dilation}"
        march = march_of(problem)
        most = _MOST_TAPS // max(itemsize(problem.dtype) // 4, 1)
        if march.taps > most:
            return f"keeps at most {most} weights of a channel in registers, not {march.taps}"
        if not self.default(problem):
            return f"has no tile that keeps {march.taps} weights and {march.rows.open} open rows in registers"
        return None

    def default(self, problem: Problem) -> dict[str, Any]:
        assert isinstance(problem, ConvProblem)
        return dict(_default(problem, constants.constants_of(problem.device)))

    def variants(self, problem: Problem) -> Iterator[dict[str, Any]]:
        assert isinstance(problem, ConvProblem)
        yield from _fitting(problem)

    def work(self, problem: Problem, configs: Sequence[Mapping[str, Any]]) -> Work:
        assert isinstance(problem, ConvProblem)
        return _Costs(problem, configs).work()

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        return Plan(self, problem, 0, dict(config))

    def launch(
        self, problem: ConvProblem, tensors: Mapping[str, Any], config: Mapping[str, int], memo: Memo = None
    ) -> None:
        from ...kernels.tl.conv import march as kernels

        march = march_of(problem)
        arguments = remembered(memo, "march", march_arguments, problem, strides_of(tensors), config)
        arguments["ACC_DTYPE"] = accumulator_type(problem)
        source, result = ("y", "x") if march.grad else ("x", "y")
        pointers = {"source": tensors[source], "w": tensors["w"], "result": tensors[result]}
        pointers |= {name: tensors.get(name) for name in (*VECTORS, "residual")}
        vertical = arguments["chunks"] * arguments["phases_h"] * arguments["result_d"]
        if march.over_channels:
            tiles = ceil_div(march.channels, arguments["BC"]) * arguments["tiles_w"] * problem.n
            launch_kernel(problem, kernels._conv_march_last_kernel, (tiles * vertical,), pointers, arguments, config)
        else:
            grid = (arguments["tiles"] * vertical,)
            launch_kernel(problem, kernels._conv_march_rows_kernel, grid, pointers, arguments, config)


def _tiles(problem: ConvProblem) -> Iterator[dict[str, int]]:
    """Yield tiles of the lanes of a problem, whatever registers they take."""
    march = march_of(problem)
    columns = march.columns
    common = {"AHEAD": int(march.slices * march.rows.reads == 1), "num_stages": 1}
    if march.over_channels:
        for tq in (1, 2, 4, 8):
            if tq % columns.writes or (tq > 1 and tq >= 2 * columns.count):
                continue
            groups = columns.phases * ceil_div(columns.count, tq)
            for tt, bc, each in product((1, 2, 4, 8, 16), (16, 32, 64, 128, 256, 512), (1, 2, 4, 8)):
                warps = tt * bc // (32 * each)
                if warps in (1, 2, 4) and tt <= power_of_two(groups) and bc <= max(power_of_two(march.channels), 16):
                    yield {**common, "TQ": tq, "TT": tt, "BC": bc, "num_warps": warps}
        return
    plain = columns.phases == 1 and columns.writes == 1
    most = 16 // itemsize(problem.dtype)
    vec = gcd(most, march.source_size[2]) if plain else 1
    vo = gcd(most, march.result_size[2]) if plain else 1
    wanted = {columns.writes * side for side in (1, 2, 4, 8, 16, 32)} | {columns.count}
    for tq in sorted(side for side in wanted if side % columns.writes == 0 and side <= _MOST_COLUMNS):
        wide, wide_out = gcd(vec, tq * columns.reads), gcd(vo, tq)
        if tq >= 2 * max(columns.count, columns.writes) or (tq < 4 < columns.count):
            continue
        for lanes in (32, 64, 128):
            yield {**common, "TQ": tq, "LANES": lanes, "VEC": wide, "VO": wide_out, "num_warps": lanes // 32}


def _fitting(problem: ConvProblem) -> list[dict[str, Any]]:
    """Return the configs of a problem whose registers suffice, each with several heights."""
    tiles = list(_tiles(problem))
    steps = march_of(problem).rows.steps
    if not tiles:
        return []
    found = _Costs(problem, [{**tile, "steps": steps} for tile in tiles]).registers() <= _MOST_REGISTERS
    heights = {max(ceil_div(steps, parts), 1) for parts in (1, 2, 3, 4, 6, 8, 12, 16, 32)}
    heights = {steps, *(height for height in heights if height >= min(steps, 4))}
    return [
        {**tile, "steps": height} for tile, fits in zip(tiles, found, strict=True) if fits for height in sorted(heights)
    ]


def _default(problem: ConvProblem, known: constants.Constants) -> dict[str, Any]:
    """Return the config that the cost model likes best; nothing where none fits."""
    configs = _fitting(problem)
    if not configs:
        return {}
    times = cost_model.estimate(_Costs(problem, configs).work(), known)
    return configs[int(np.argmin(times))]


SOLVERS: tuple[Solver, ...] = (MarchDepthwise(),)
