"""Runs the Hopper kernels over a machine as a plan would on a card: maps, tiles and constants for a problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from gluon_model import Edit, rebuild
from machine import Executor, Machine
from prover import Recorder
from tensors import Layout, Map, MapIm2col, Pointer

from gpuconv.kernels.tl.hopper import common, consume, phases, pixels, streams, strips, tiles, wgrad

__all__ = ["Case", "Operands", "execute", "record"]

MODULES = (common, streams, consume, tiles, phases, strips, pixels, wgrad)
VECTORS = ("bias", "scale", "shift")
WHOLE = Layout()


@dataclass(frozen=True)
class Case:
    """A dense problem, channels last, and how a kernel cuts it; sizes of tiles are those of a cluster.

    ``kernel`` is "tiles", "strips", "pixels" or "wgrad". With ``transposed`` it is the data gradient of a problem of
    stride 1: ``size`` is that of the gradient of y, ``channels`` its filters, ``filters`` the channels of x.
    ``tile`` is (TILE_N, TILE_P, TILE_Q), for "pixels" (1, 1, BLOCK_M). ``shared`` names what the two CTAs of a cluster
    share, "weights" or "pixels".
    """

    kernel: str
    n: int = 2
    channels: int = 24
    filters: int = 40
    size: tuple[int, int, int] = (1, 9, 11)
    taps: tuple[int, int, int] = (1, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 1, 1)
    dilation: tuple[int, int, int] = (1, 1, 1)
    transposed: bool = False
    tile: tuple[int, int, int] = (1, 2, 8)
    rows: int = 2
    columns: int = 1
    block_k: int = 16
    block_c: int = 16
    sets: int = 2
    stages: int = 3
    chunks: int = 1
    group: int = 2
    programs: int = 3
    splits: int = 2
    taps_at_once: int = 1
    runs: bool = False
    axes: int = 2
    shared: str = ""
    activation: str | None = None
    round_each: bool = False
    vectors: tuple[str, ...] = ()
    residual: bool = False
    dtype: str = "bfloat16"
    edits: tuple[Edit, ...] = field(default=(), repr=False)

    def planting(self, *edits: Edit) -> Case:
        return replace(self, edits=edits)

    @property
    def ctas(self) -> int:
        return 2 if self.shared else 1

    @property
    def consumers(self) -> int:
        return self.rows * self.columns

    @property
    def output(self) -> tuple[int, int, int]:
        """Return the sizes of the result."""
        axes = list(zip(self.size, self.taps, self.padding, self.dilation, self.stride, strict=True))
        if self.transposed:
            return tuple(size - 2 * pad + step * (tap - 1) for size, tap, pad, step, _ in axes)
        return tuple((size + 2 * pad - step * (tap - 1) - 1) // by + 1 for size, tap, pad, step, by in axes)


@dataclass
class Operands:
    """Arrays of a case in float32: x [N, D, H, W, C], w [taps, K, C] (transposed: [taps, C, K]), y, and what is added.

    For "wgrad", y is its gradient, and the result is dw [splits, K, taps, C].
    """

    x: np.ndarray
    w: np.ndarray
    y: np.ndarray
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    residual: np.ndarray | None = None

    @classmethod
    def zeros(cls, case: Case) -> Operands:
        weights = (case.channels, case.filters) if case.transposed else (case.filters, case.channels)
        y = np.zeros((case.n, *case.output, case.filters), np.float32)
        return cls(
            np.zeros((case.n, *case.size, case.channels), np.float32),
            np.zeros((math.prod(case.taps), *weights), np.float32),
            y,
            {name: np.zeros(case.filters, np.float32) for name in case.vectors},
            np.zeros_like(y) if case.residual else None,
        )


def _named(names: str, values) -> dict:
    return dict(zip(names.split(), values, strict=True))


def _dense(case: Case, operands: Operands, layouts, box_x, box_y) -> dict:
    """Return the arguments that the three dense kernels share."""
    layout_x, layout_w, layout_y = layouts
    known = {"dtype": case.dtype, "itemsize": 4 if case.dtype == "float32" else 2}
    box_w = (1, case.block_c, case.block_k) if case.transposed else (1, case.block_k, case.block_c)
    halves = 2 if case.shared == "pixels" else 1
    return {
        "x_map": Map(operands.x, box_x, layout=layout_x, **known) if box_x else None,
        "w_map": Map(operands.w, box_w, layout=layout_w, **known),
        "y_map": Map(operands.y, box_y, layout=layout_y, **known),
        "residual_map": None if operands.residual is None else Map(operands.residual, box_y, layout=layout_y, **known),
        **{f"{name}_ptr": Pointer(operands.vectors[name]) if name in operands.vectors else None for name in VECTORS},
        **_named("n o p q k", (case.n, *case.output, case.filters)),
        "c": case.channels,
        "programs": case.programs,
        "BLOCK_K": case.block_k,
        "BLOCK_C": case.block_c,
        "GROUP": case.group,
        "STAGES": case.stages,
        "CHUNKS": case.chunks,
        "TRANSPOSED": case.transposed,
        "ACTIVATION": case.activation,
        "ROUND_EACH": case.round_each,
        "INSTRUCTION_N": case.block_k // halves,
        "INSTRUCTION_K": 8 if case.dtype == "float32" else 16,
        "CONSUMER_REGISTERS": 240,
        "PRODUCER_REGISTERS": 24,
        "SHARED": case.shared,
    }


def _directions(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where in x the first tap of the first pixel lies, and the step from tap to tap."""
    if case.transposed:
        return case.padding, tuple(-step for step in case.dilation)
    return tuple(-pad for pad in case.padding), case.dilation


def _order(case: Case, downwards: tuple[int, ...]) -> dict:
    """Return how taps are walked: from the last one on along some axes."""
    _, r, s = case.taps
    steps = (r * s, s, 1)
    first = sum(steps[axis] * (case.taps[axis] - 1) for axis in downwards)
    turned = (-step if axis in downwards else step for axis, step in enumerate(steps))
    return {"tap_first": first, **_named("tap_step_d tap_step_h tap_step_w", turned)}


def _outermost(box: tuple[int, ...]) -> Layout:
    """Return the layout that splits a box over two CTAs so that each has consecutive pixels."""
    axis = next(at for at, size in enumerate(box) if size > 1)
    return Layout((tuple(int(at == axis) for at in range(len(box))),))


def _tiles(case: Case, operands: Operands) -> tuple[str, dict]:
    tile_n, tile_p, tile_q = case.tile
    split = _outermost((tile_n, 1, tile_p, tile_q, 1))
    layouts = {
        "": (WHOLE, WHOLE, WHOLE),
        "weights": (split, Layout(((0, 0, 0),)), split),
        "pixels": (Layout(((0, 0, 0, 0, 0),)), Layout(((0, 1, 0),)), Layout(((0, 0, 0, 0, 1),))),
    }
    if case.transposed and case.shared == "pixels":
        layouts["pixels"] = (layouts["pixels"][0], Layout(((0, 0, 1),)), *layouts["pixels"][2:])
    box = (tile_n, 1, tile_p, tile_q)
    known = _dense(case, operands, layouts[case.shared], (*box, case.block_c), (*box, case.block_k // case.chunks))
    first, step = _directions(case)
    return "_conv_tiles_kernel", known | {
        **_named("t r s", case.taps),
        **_named("first_d first_h first_w", first),
        **_named("step_d step_h step_w", step),
        **_order(case, downwards=()),
        **_named("TILE_N TILE_P TILE_Q", case.tile),
        "ROWS": case.rows,
        "COLUMNS": case.columns,
        "WARPS": 4,
    }


def _strips(case: Case, operands: Operands) -> tuple[str, dict]:
    tile_n, _, tile_q = case.tile
    split = _outermost((tile_n, 1, 1, tile_q, 1))
    layouts = {"": (WHOLE, WHOLE, WHOLE), "weights": (split, Layout(((0, 0, 0),)), split)}
    box = (tile_n, 1, 1, tile_q)
    known = _dense(case, operands, layouts[case.shared], (*box, case.block_c), (*box, case.block_k // case.chunks))
    first, step = _directions(case)
    if case.transposed:
        first = (first[0], first[1] - (case.taps[1] - 1) * case.dilation[1], first[2])
    return "_conv_strips_kernel", known | {
        "t": case.taps[0],
        "s": case.taps[2],
        **_named("first_d first_h first_w", first),
        "step_d": step[0],
        "step_w": step[2],
        **_order(case, downwards=(1,) if case.transposed else ()),
        "R": case.taps[1],
        "DILATION": case.dilation[1],
        "FOLDED": False,
        "STREAM": False,
        "parts_ptr": None,
        "flags_ptr": None,
        "loads": case.tile[1] + case.taps[1] - 1,
        **_named("TILE_N TILE_P TILE_Q", case.tile),
        "CONSUMERS": case.rows,
        "SETS": case.sets,
    }


def _pixels(case: Case, operands: Operands) -> tuple[str, dict]:
    layouts = {
        "": (WHOLE, WHOLE, WHOLE),
        "weights": (Layout(((0, 0),)), Layout(((0, 0, 0),)), Layout(((0, 0, 0, 1, 0),))),
        "pixels": (Layout(((0, 0),)), Layout(((0, 1, 0),)), Layout(((0, 0, 0, 0, 1),))),
    }
    if case.transposed and case.shared == "pixels":
        layouts["pixels"] = (layouts["pixels"][0], Layout(((0, 0, 1),)), *layouts["pixels"][2:])
    block_m = case.tile[2]
    x = operands.x if case.axes == 3 else operands.x[:, 0]
    low = tuple(-pad for pad in case.padding)
    if case.transposed:
        low = tuple(
            pad - (tap - 1) * step for pad, tap, step in zip(case.padding, case.taps, case.dilation, strict=True)
        )
    corners = zip(case.output, case.stride, case.size, low, strict=True)
    high = tuple((out - 1) * by + 1 - size + first for out, by, size, first in corners)
    flat = replace(operands, y=operands.y.reshape(1, 1, 1, -1, case.filters))
    if operands.residual is not None:
        flat.residual = operands.residual.reshape(flat.y.shape)
    known = _dense(case, flat, layouts[case.shared], None, (1, 1, 1, block_m, case.block_k // case.chunks))
    return "_conv_pixels_kernel", known | {
        "x_map": MapIm2col(
            x,
            (block_m // 2 if case.shared == "weights" else block_m, case.block_c),
            case.dtype,
            layout=layouts[case.shared][0],
            strides=case.stride[-case.axes :],
            lower=low[-case.axes :],
            upper=high[-case.axes :],
        ),
        **_named("t r s", case.taps),
        **_named("stride_d stride_h stride_w", case.stride),
        **_named("first_d first_h first_w", low),
        **_named("step_d step_h step_w", case.dilation),
        **_order(case, downwards=(0, 1, 2) if case.transposed else ()),
        "BLOCK_M": block_m,
        "STREAM": False,
        "parts_ptr": None,
        "flags_ptr": None,
        "CONSUMERS": case.consumers,
        "AXES": case.axes,
        "WARPS": 4,
    }


def _wgrad(case: Case, operands: Operands) -> tuple[str, dict]:
    tile_n, tile_p, tile_q = case.tile
    box = (tile_n, 1, tile_p, tile_q)
    first, step = _directions(case)
    maps = {"dy_map": Map(operands.y, (*box, case.block_k)), "x_map": Map(operands.x, (*box, case.block_c))}
    if case.runs:
        corners = zip(case.output, case.stride, case.size, first, strict=True)
        high = tuple((out - 1) * by + 1 - size + low for out, by, size, low in corners)
        x = operands.x if case.axes == 3 else operands.x[:, 0]
        y = operands.y.reshape(1, 1, 1, -1, case.filters)
        known = {"strides": case.stride[-case.axes :], "lower": first[-case.axes :], "upper": high[-case.axes :]}
        maps = {"dy_map": Map(y, (*box, case.block_k)), "x_map": MapIm2col(x, (tile_q, case.block_c), **known)}
    return "_conv_wgrad_tiles_kernel", {
        **maps,
        "dw_ptr": Pointer(operands.w.reshape(-1)),
        **_named("n o p q k", (case.n, *case.output, case.filters)),
        "c": case.channels,
        **_named("t r s", case.taps),
        "splits": case.splits,
        "elements": math.prod(case.taps) * case.filters * case.channels,
        **_named("stride_d stride_h stride_w", case.stride),
        **_named("first_d first_h first_w", first),
        **_named("step_d step_h step_w", step),
        **_named("TILE_N TILE_P TILE_Q", case.tile),
        "BLOCK_K": case.block_k,
        "BLOCK_C": case.block_c,
        "TAPS": case.taps_at_once,
        "STAGES": case.stages,
        "AXES": case.axes if case.runs else 0,
        "INSTRUCTION_N": case.block_c,
        "WARPS": 8,
        "PRODUCER_REGISTERS": 24,
    }


ARGUMENTS = {"tiles": _tiles, "strips": _strips, "pixels": _pixels, "wgrad": _wgrad}


def _grid(case: Case) -> tuple[int, int, int]:
    if case.kernel != "wgrad":
        return case.programs, 1, 1
    taps = -(-math.prod(case.taps) // case.taps_at_once)
    return -(-case.filters // case.block_k) * -(-case.channels // case.block_c), taps, case.splits


def _kernel(machine: Machine, case: Case, operands: Operands) -> Callable:
    name, known = ARGUMENTS[case.kernel](case, operands)
    machine.grid = _grid(case)
    function = getattr(rebuild(machine, MODULES, case.edits), name)
    return lambda: function(**known)


def execute(case: Case, seed: int, operands: Operands) -> Executor:
    """Run a case; its result is in the operands then. Returns the machine, which has counted bytes and products."""
    machine = Executor(seed, case.ctas)
    machine.run(_kernel(machine, case, operands), _grid(case))
    return machine


def record(case: Case) -> Recorder:
    """Record what the first program of a case does."""
    machine = Recorder(case.ctas)
    return machine.record(_kernel(machine, case, Operands.zeros(case)))
