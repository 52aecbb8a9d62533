"""What launches do, for the cost model: convolutions as GEMMs with many configs at once, and kernels bound by memory.

A config is a dictionary with ``BLOCK_M``, ``BLOCK_N``, ``BLOCK_K``, ``num_warps``, ``num_stages`` and, where they
differ from the defaults here, ``splits`` and ``packed``. Kernels that are not written yet are described by the same
functions: ``path`` is one of :data:`.constants.PATHS`, and ``TILE_N``, ``TILE_P``, ``TILE_Q`` are the images, rows and
columns of a tile that is a box of positions (``TILE_P`` 0: positions in a row).

Registers and shared memory are estimates, made to agree with what the codegen tables of this repository show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np

from ..arrays import CHANNELS_LAST
from ..problem import ConvProblem, DeformProblem, Problem, ScaledProblem, SeparableProblem, itemsize
from ..shapes import ceil_div
from .constants import PATHS, PIPES, Constants
from .model import Work

__all__ = ["Gemm", "conv_gemm", "conv_work", "direct_work", "fits", "pipe_of", "registers", "roofline", "shared_bytes"]

Configs = Sequence[Mapping[str, Any]]

_SHARED_PER_BLOCK = 227 << 10
_MOST_REGISTERS = 232
"""Registers of a thread above which a kernel is not proposed: there are 255, and this is an estimate."""

_SIDES = (16, 32, 64, 128)
_FEED_N = (0.35, 0.6, 0.92, 1.0)
_FEED_M = (0.3, 0.5, 0.85, 1.0)
"""Fraction of the tensor cores' rate that tiles of :data:`_SIDES` columns, or rows, can be fed. Assumed."""

_LOOP = {"pointer": 55.0, "tma": 110.0, "register": 130.0}
_PER_LOAD = {"pointer": 6.0}
"""Instructions of a warp per reduction step, and per asynchronous 16-byte copy of a thread: read off compiled loops."""

_PER_NARROW_LOAD = 9.0
"""Instructions of a load of fewer than 16 bytes: an address and a mask of its own, and what brings 2 bytes to shared
memory. Compiled loops of 128 x 64 x 32 in tf32, contiguous, have 274 to 283 for 24 such loads."""

_PROLOGUE = 20
"""Instructions of a warp before and after the work of a program of :func:`direct_work`. Assumed."""

_BASE_REGISTERS = {"fprop": 30, "dgrad": 45, "transposed": 45, "wgrad": 95}


@dataclass(frozen=True, slots=True)
class Gemm:
    """The GEMM that a pass of a convolution is, per group and stride phase.

    `rows` x `columns` results with a reduction of `taps` x `depth` products; operand A has the rows. `widths` are the
    bytes of one load of A and of B, `window` taps along the last two axes, `positions` the images, rows and columns
    that the rows are. `per_load` are instructions of a load of A and of B, where those of the pointer kernels do not
    hold.
    """

    kind: str
    rows: int
    columns: int
    taps: float
    depth: int
    batches: int
    item: int
    pipe: int
    flop_factor: int
    widths: tuple[int, int]
    window: tuple[int, int]
    positions: tuple[int, int, int]
    result_elements: int
    dram_bytes: int
    weight_bytes: int
    per_load: tuple[float, float] | None = None


def pipe_of(problem: ConvProblem) -> tuple[int, int]:
    """Return what multiplies, as a place in PIPES, and how many products it forms for one."""
    if problem.dtype == "float64":
        return PIPES.index("fma64"), 1
    if problem.dtype == "float32":
        if problem.precision == "ieee":
            return PIPES.index("fma32"), 1
        return PIPES.index("tf32"), 3 if problem.precision == "tf32x3" else 1
    return PIPES.index("tensor8" if itemsize(problem.dtype) == 1 else "tensor16"), 1


def _run(channels: int, item: int, innermost: bool) -> int:
    """Return the bytes of one load along `channels`: up to 16 where they lie side by side."""
    if not innermost:
        return item
    width = 16 // item
    # The compiler knows of multiples of 8 and 16 alone.
    return item * gcd(channels, width) if channels % width == 0 else item


def conv_gemm(problem: ConvProblem) -> Gemm:
    """Return the GEMM of a pass: of fprop and wgrad the whole, of dgrad and transposed the largest stride phase."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    item = itemsize(problem.dtype)
    pipe, factor = pipe_of(problem)
    taps = prod(problem.kernel)
    x_run = _run(c, item, problem.x_format == CHANNELS_LAST)
    y_run = _run(k, item, problem.y_format == CHANNELS_LAST)
    w_run = _run(c, item, problem.w_format == CHANNELS_LAST or taps == 1)
    rows_p = (problem.output_size[-2] if problem.ndim > 1 else 1, problem.output_size[-1])
    outer = problem.n * prod(problem.output_size[:-2])
    batches: int = problem.groups
    shape: tuple[int, int, float, int] = (outer * prod(rows_p), k, taps, c)
    widths = (x_run, w_run)
    if problem.kind in ("dgrad", "transposed"):
        phases = prod(problem.stride)
        sides = [ceil_div(size, stride) for size, stride in zip(problem.input_size, problem.stride, strict=True)]
        rows_p, outer = (sides[-2] if problem.ndim > 1 else 1, sides[-1]), problem.n * prod(sides[:-2])
        shape = (problem.n * prod(sides), c, taps / phases, k)
        batches, widths = problem.groups * phases, (y_run, w_run)
    elif problem.kind == "wgrad":
        shape = (k, c * taps, 1, problem.n * prod(problem.output_size))
        widths = (y_run, x_run)
    window = (problem.kernel[-2] if problem.ndim > 1 else 1, problem.kernel[-1])
    return Gemm(
        problem.kind, *shape, batches, item, pipe, factor, widths, window, (outer, *rows_p),
        prod(problem.result_shape), problem.min_bytes, item * prod(problem.w_shape),
    )  # fmt: skip


def _column(configs: Configs, name: str, default: float) -> np.ndarray:
    return np.array([config.get(name, default) for config in configs], float)


def registers(kind: str, area: Any, loads: Any, threads: Any) -> Any:
    """Return the registers of a thread: accumulators of a tile of `area`, and copies of `loads` 16 bytes a step."""
    return _BASE_REGISTERS[kind] + 1.1 * area / threads + 2.0 * loads / threads


def shared_bytes(block_m: Any, block_n: Any, block_k: Any, stages: Any, item: int) -> Any:
    """Return the bytes of shared memory of a block: the operands of each stage."""
    return stages * (block_m + block_n) * block_k * item


def fits(problem: ConvProblem, config: Mapping[str, Any]) -> bool:
    """Tell whether a config of the pointer kernels should compile without spilling, and fit in shared memory."""
    m, n, k, item = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"], itemsize(problem.dtype)
    threads = 32 * config["num_warps"]
    used = registers(problem.kind, m * n * max(item // 4, 1), (m + n) * k * item / 16, threads)
    return used <= _MOST_REGISTERS and shared_bytes(m, n, k, config["num_stages"], item) <= _SHARED_PER_BLOCK


def _resident(used: Any, threads: Any, shared: Any, path_is_halo: Any) -> Any:
    """Return how many blocks a multiprocessor holds."""
    by_registers = np.floor(65536 / (np.minimum(used, 255) * threads))
    by_shared = np.floor((228 << 10) / np.maximum(shared, 1024))
    found = np.minimum(np.minimum(by_registers, by_shared), np.floor(2048 / threads))
    return np.where(path_is_halo, 1, np.clip(found, 1, 32))


def _tiles_m(gemm: Gemm, configs: Configs, block_m: np.ndarray) -> tuple[np.ndarray, Any]:
    """Return the tiles along the rows, and by how much taps share the rows that a box of positions loads."""
    if not any(config.get("TILE_P") for config in configs):
        return np.ceil(gemm.rows / block_m), 1.0
    images, height, width = (_column(configs, f"TILE_{axis}", 0) for axis in "NPQ")
    boxes = height > 0
    images, height, width = (np.where(boxes, side, 1) for side in (images, height, width))
    n, p, q = gemm.positions
    tiles = np.where(
        boxes, np.ceil(n / images) * np.ceil(p / height) * np.ceil(q / width), np.ceil(gemm.rows / block_m)
    )
    halo = np.array([config.get("path") == "halo" for config in configs])
    share = np.where(halo, (height + gemm.window[0] - 1) / (height * gemm.window[0]), 1.0)
    return tiles, share


def _places(configs: Configs, plain: bool) -> np.ndarray:
    """Return the path of each config, as a place in PATHS."""
    if plain:
        return np.full(len(configs), PATHS.index("fma"))
    return np.array([PATHS.index(config.get("path", "pointer")) for config in configs])


def _instructions(gemm: Gemm, configs: Configs, a_loads: Any, b_loads: Any) -> np.ndarray:
    """Return the instructions of a warp per reduction step, where its threads load A and B in that many loads."""
    found = np.zeros(len(configs))
    for path in {config.get("path", "pointer") for config in configs}:
        here = np.array([config.get("path", "pointer") == path for config in configs])
        usual = (_PER_LOAD.get(path, 0.0) if width == 16 else _PER_NARROW_LOAD for width in gemm.widths)
        cost = gemm.per_load or tuple(usual)
        steps = _LOOP.get(path, _LOOP["tma"])
        found = np.where(here, steps + (cost[0] * a_loads + cost[1] * b_loads) * (path == "pointer"), found)
    return found


def conv_work(problem: ConvProblem, configs: Configs, gemm: Gemm | None = None) -> Work:
    """Describe implicit-GEMM convolutions with each of `configs`; see the module.

    Parameters
    ----------
    problem
        Any pass.
    configs
        At least one config.
    gemm
        What the kernel computes where that is not :func:`conv_gemm` of the problem.
    """
    gemm = gemm or conv_gemm(problem)
    m, n, k = (_column(configs, f"BLOCK_{side}", 0) for side in "MNK")
    threads = 32 * _column(configs, "num_warps", 4)
    stages, splits = _column(configs, "num_stages", 3), _column(configs, "splits", 1)
    packed = _column(configs, "packed", 0)
    tiles_m, share = _tiles_m(gemm, configs, m)
    if gemm.kind == "wgrad" and any(config.get("ONE_TAP") for config in configs):
        taps = prod(problem.kernel)
        tiles_n = np.where(
            _column(configs, "ONE_TAP", 0) > 0, taps * np.ceil(gemm.columns / taps / n), np.ceil(gemm.columns / n)
        )
    else:
        tiles_n = np.ceil(gemm.columns / n)
    steps = np.maximum(gemm.taps * np.ceil(gemm.depth / k) / splits, 1)
    path = _places(configs, PIPES[gemm.pipe].startswith("fma"))
    halo = path == PATHS.index("halo")
    a_bytes, b_bytes = m * k * gemm.item * share, n * k * gemm.item
    b_width = np.where(packed > 0, 16, gemm.widths[1])
    loads = (m + n) * k * gemm.item / 16
    used = registers(gemm.kind, m * n * max(gemm.item // 4, 1), loads, threads)
    shared = shared_bytes(m, n, k, stages, gemm.item)
    per_step = _instructions(gemm, configs, a_bytes / gemm.widths[0] / threads, b_bytes / b_width / threads)
    feed = np.ones(len(configs))
    if not PIPES[gemm.pipe].startswith("fma"):
        feed = np.interp(n, _SIDES, _FEED_N) * np.interp(m, _SIDES, _FEED_M)
    sums = 8 if problem.dtype == "float64" else 4
    return Work(
        programs=tiles_m * tiles_n * splits * gemm.batches,
        resident=_resident(used, threads, shared, halo),
        pipe=np.full(len(configs), gemm.pipe),
        path=path,
        flops=2 * m * n * k * steps * gemm.flop_factor,
        feed=feed,
        l2_bytes=(a_bytes + b_bytes) * steps,
        dram_bytes=float(gemm.dram_bytes),
        instructions=per_step * steps * threads / 32,
        chain=steps / np.maximum(stages - 1, 1) + 2,
        extra_bytes=packed * 2 * gemm.weight_bytes + np.where(splits > 1, 2 * splits * sums * gemm.result_elements, 0),
        launches=1 + (packed > 0) + (splits > 1),
    )


def roofline(problem: Problem, constants: Constants) -> tuple[float, str, str]:
    """Return the least microseconds of a problem on a GPU, what bounds it, and the constant that this comes from.

    The least bytes over the bandwidth of memory, or the FLOPs of a convolution over the rate of what multiplies.
    """
    moved = problem.min_bytes / (constants.values["dram_tb_s"] * 1e6)
    if isinstance(problem, SeparableProblem):  # products of the depthwise part come on top, on the plain cores
        computed, _, rate = roofline(problem.pointwise, constants)
        if rate != "dram_tb_s" and computed > moved:
            return computed, "arithmetic", rate
    elif isinstance(problem, ConvProblem | ScaledProblem | DeformProblem):
        conv = problem if isinstance(problem, ConvProblem) else problem.conv  # samples come on top, on the plain cores
        pipe, factor = pipe_of(conv)
        rate = f"{PIPES[pipe]}_tflops"
        computed = conv.flops * factor / (constants.values[rate] * 1e6)
        if computed > moved:
            return computed, "arithmetic", rate
    return moved, "memory", "dram_tb_s"


def direct_work(
    problem: Problem,
    instructions: Any,
    programs: Any,
    chain: Any,
    warps: Any = 4,
    launches: Any = 1,
    extra_bytes: Any = 0,
    flops: Any = 0.0,
    *,
    l1_bytes: Any = 0.0,
    l2_bytes: Any = None,
    resident: Any = None,
    pipe: str | None = None,
    path: str = "direct",
    feed: Any = 1.0,
) -> Work:
    """Describe kernels that memory, issue, L1 or latency bounds: pools, depthwise and narrow convolutions.

    What is said in all is shared evenly by the programs. Each argument but `problem`, `pipe` and `path` may be an array
    of one element per config.

    Parameters
    ----------
    problem
        The problem, whose least bytes move.
    instructions
        Instructions of threads in all, per config; warps issue them for 32 at a time.
    programs, warps
        Programs of how many warps.
    chain
        Round trips to memory that a program makes in turn.
    launches, extra_bytes
        Launches, and bytes that move beside the least.
    flops
        In all, on `pipe`, products with zeros and padding of tiles included.
    l1_bytes
        In all, through L1 and shared memory; see :class:`.model.Work`.
    l2_bytes
        In all, through L2: for example the least bytes and rows that several programs read; default: the least bytes.
    resident
        Programs that a multiprocessor holds, as registers and shared memory allow; default: 64 warps.
    pipe
        What computes `flops`, one of :data:`.constants.PIPES`; default: the plain cores of the problem's dtype. For
        tensor cores :func:`pipe_of` has the pipe.
    path
        How operands reach `pipe`, one of :data:`.constants.PATHS`, which says what part of its rate is reached.
    feed
        Fraction of the rate of `pipe` that tiles of this shape can be fed.

    Raises
    ------
    ValueError
        If there is no such pipe or path.
    """
    for name, given, allowed in (("pipe", pipe, PIPES), ("path", path, PATHS)):
        if given is not None and given not in allowed:
            raise ValueError(f"direct_work: {name} must be one of {', '.join(allowed)}, but got {given!r}")
    programs = np.maximum(np.asarray(programs, float), 1)
    plain = "fma64" if problem.dtype == "float64" else "fma32"
    return Work(
        programs=programs,
        resident=np.clip(np.floor(64 / np.asarray(warps)) if resident is None else resident, 1, 32),
        pipe=np.full(programs.shape or 1, PIPES.index(pipe or plain)),
        path=np.full(programs.shape or 1, PATHS.index(path)),
        flops=flops / programs,
        feed=feed,
        l2_bytes=(problem.min_bytes if l2_bytes is None else l2_bytes) / programs,
        dram_bytes=float(problem.min_bytes),
        instructions=np.asarray(instructions, float) / 32 / programs + _PROLOGUE * np.asarray(warps),
        chain=chain,
        extra_bytes=extra_bytes,
        launches=launches,
        l1_bytes=l1_bytes / programs,
    )
