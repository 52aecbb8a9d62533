"""What the Hopper kernels do, for the cost model: bytes asked of L2, instructions of the loops that were compiled.

Bytes are those of boxes, as the executor counts them (tests/executor/test_bytes.py), but for channels that a tensor
does not have; pixels outside of it are counted though they are not read, and what a cluster shares is counted once for
both of its CTAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ...costs import PATHS, Work, constants_of, estimate, overheads, pipe_of, terms
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from ..base import Plan
from .hopper_forms import (
    FORMS,
    Form,
    epilogue_of,
    laid,
    launched,
    programs_of,
    stages_of,
    step_bytes,
    strips_of,
    tiles_of,
    units_of,
)
from .hopper_view import Dense, together
from .hopper_wgrad_forms import GRADIENT_FORMS, gradient_steps, gradient_tiles
from .march_costs import ROUNDED_STEP
from .tuned import Tunable

__all__ = ["dense_work", "gradient_work", "other_forms", "per_result", "there"]

_FEED = {32: 0.6, 64: 0.92, 128: 1.0, 256: 1.0}
"""Fraction of the tensor cores' rate by the channels of one product: of 64 shared memory is read at its own rate.

m64n64k16 reads 4 KiB in 32 clocks, which are 128 bytes a clock, and m64n32k16 reads 3 KiB in 16."""

_PRODUCER = 16.0
"""Instructions of the producer for each slot that it fills, and for each box in it. Assumed: read off no loop."""

_STRIP_TAPS, _FURTHER_TAP = 3, 1.25
"""Taps above each other of the loops of strips that were read, and what more of them take beside their share: loops of
5 to 11 taps were read too, and have 0.55 to 1.24 times the instructions that those of 3 have for as many taps."""

_PER_VECTOR = 2.5
_PER_RESIDUAL = 4.0
_PER_ACTIVATION = {None: 0.0, "relu": 1.0, "relu6": 2.0, "gelu": 32.0, "gelu_tanh": 26.0}
_PER_OTHER_ACTIVATION = 15.0
"""Instructions for each element that a thread of the epilogue has: read off compiled forms, of activations that are not
named here off that of silu."""

_EPILOGUE_TRIPS = 2.0
"""Round trips to memory of a tile that nothing hides behind: the last slot, and what was stored before."""


def _path(form: Form, dense: Dense) -> str:
    if form.kernel == "tiles":
        return "gemm" if dense.flat else "tma"
    return "halo" if form.kernel == "strips" else "im2col"


def per_result(problem: ConvProblem) -> float:
    """Return the instructions of the epilogue for each element of a thread, beside storing it."""
    vectors = sum((problem.bias, problem.scale, problem.shift))
    found = _PER_ACTIVATION.get(problem.activation, _PER_OTHER_ACTIVATION)
    if problem.rounding == "torch":
        found += ROUNDED_STEP * (1 + vectors + problem.residual)
    return found + _PER_VECTOR * vectors + _PER_RESIDUAL * problem.residual


def there(channels: int, block: int) -> float:
    """Return the part of blocks of channels that there are."""
    return channels / (block * ceil_div(channels, block))


def _of_tile(
    form: Form, dense: Dense, block_c: int, per_element: float, plain: bool
) -> tuple[float, float, float, float]:
    """Return products, bytes through L2, instructions and round trips of a CTA for one tile."""
    x, w, _ = step_bytes(form, dense.taps[1], block_c, dense.item)
    stages = stages_of(form, dense.taps[1], block_c, dense.item)[1]
    steps = dense.steps(block_c)
    sets = units_of(form, dense, block_c)  # slots of x
    pixels = form.consumers * form.pixels * form.lines
    reduced, channels = there(dense.reduced, block_c), there(dense.channels, form.channels)
    bytes_x = x * sets * reduced * (0.5 if form.shared == "pixels" else 1.0)
    bytes_w = w * steps * reduced * channels * (0.5 if form.shared == "weights" else 1.0)
    stored = pixels * form.channels_of_cta * channels * dense.item
    boxes = steps + sets * (strips_of(form, dense.taps[1]) if form.kernel == "strips" else form.consumers)
    loop = float(form.loop + (0 if plain else form.moves))
    if form.kernel == "strips":  # its taps are unrolled
        loop *= dense.taps[1] / _STRIP_TAPS * (1.0 if dense.taps[1] <= _STRIP_TAPS else _FURTHER_TAP)
    issued = form.consumers * form.warps * (loop * sets + form.epilogue) + _PRODUCER * boxes
    issued += per_element * pixels * form.channels_of_cta / 32
    products = pixels * form.channels_of_cta * steps * block_c
    return products, bytes_x + bytes_w + stored, issued, steps / max(stages - 1, 1) + _EPILOGUE_TRIPS


_HANDED_OVER = 4.0
"""Instructions of a warp for 32 numbers that are handed over, on either side: an access, two for its address, a sum.
Read off a compiled form."""


def _share_of(form: Form, tile: Any, tiles: int, programs: int) -> tuple[Any, int]:
    """Return what a program with an equal share of all tiles does, and how many there are.

    The busiest one hands over a tile's sums, and adds those of all programs that have parts of another tile.
    """
    share = tiles / programs
    passed = 1.0 + np.ceil(1 / share)
    numbers = form.consumers * form.pixels * form.lines * form.channels_of_cta
    exchanged = (0.0, 4.0 * numbers * passed, _HANDED_OVER * numbers / 32 * passed, _EPILOGUE_TRIPS * passed)
    return tile * share + np.array(exchanged), programs


def dense_work(
    problem: ConvProblem, phases: Sequence[Dense], configs: Sequence[Mapping[str, Any]],
    extra: Sequence[tuple[float, int]],
) -> Work:  # fmt: skip
    """Describe the launches of each of `configs`; `extra` are bytes and launches of passes before and after.

    Those passes are taken to run at the bandwidth of memory, which nobody has measured. Of several phases in launches
    of their own, each is described as having the tiles of the first, the largest, and its own steps. Those of one
    launch have the tiles of all, and a tile does what the busiest program does on average: of each round of tiles, the
    one of most steps, which is its first.
    """
    pipe, factor = pipe_of(problem)
    forms = [FORMS[config["form"]] for config in configs]
    behind = (per_result(problem), epilogue_of(problem) == "none")
    multiprocessors = int(constants_of(problem.device).values["sms"])
    rows = []
    for form, config in zip(forms, configs, strict=True):
        views, block_c = laid(phases, config), config["BLOCK_C"]
        launches = launched(form, views, block_c)
        tiles = tiles_of(form, together(launches[0]), config)
        of_phase = [_of_tile(form, phase, block_c, *behind) for launch in launches for phase in launch]
        tile = np.sum(of_phase, axis=0)
        if len(launches) == 1:
            starts = range(0, tiles * len(views), max(multiprocessors // form.ctas, 1))
            tile = np.mean([of_phase[start // tiles] for start in starts], axis=0)
            tiles *= len(views)
        if config.get("stream"):
            tile, tiles = _share_of(form, tile, tiles, programs_of(form, views, config, multiprocessors))
        rows.append((tiles * form.ctas, len(launches), *tile))
    counted, count, products, l2_bytes, issued, chain = np.array(rows, float).reshape(-1, 6).T
    residual = prod(problem.result_shape) * itemsize(problem.dtype) if problem.residual else 0
    return Work(
        programs=counted,
        resident=np.array([form.resident for form in forms], float),
        pipe=np.full(len(configs), pipe),
        path=np.array([PATHS.index(_path(form, phases[0])) for form in forms]),
        flops=2 * products * factor,
        feed=np.array([_FEED[form.instruction or form.channels_of_cta] for form in forms]),
        l2_bytes=l2_bytes + residual / counted,
        dram_bytes=float(problem.min_bytes),
        instructions=issued,
        chain=chain,
        extra_bytes=np.array([moved for moved, _ in extra], float),
        launches=count + np.array([launches for _, launches in extra], float),
    )


_SHOWN = 4
"""Forms that are named beside the one that runs: the best of each."""


def other_forms(solver: Tunable, plan: Plan) -> str | None:
    """Return the best other forms of a plan's problem, with their modelled times and what takes longest in each."""
    problem, constants = plan.problem, constants_of(plan.problem.device)
    configs = [config for config in solver.variants(problem) if config["form"] != plan.config["form"]]
    if not configs:
        return None
    work = solver.work(problem, configs)
    times = estimate(work, constants)
    parts = {**terms(work, constants), **overheads(work, constants)}
    longest = {name: np.broadcast_to(values, len(configs)) for name, values in parts.items()}
    named: dict[str, str] = {}
    for place in np.argsort(times, kind="stable"):
        term = max(longest, key=lambda name: float(longest[name][place]))
        named.setdefault(configs[place]["form"], f"{configs[place]['form']} {times[place]:.1f} us ({term})")
    return ", ".join(list(named.values())[:_SHOWN])


def gradient_work(
    problem: ConvProblem, configs: Sequence[Mapping[str, Any]], extra: Sequence[tuple[float, int]]
) -> Work:
    """Describe weight gradients of each of `configs`, partial sums and the pass that adds them included."""
    pipe, factor = pipe_of(problem)
    rows = []
    for config in configs:
        form = GRADIENT_FORMS[config["form"]]
        programs = gradient_tiles(problem, form) * config["splits"]
        steps = ceil_div(gradient_steps(problem, config), config["splits"])
        products = form.channels_k * form.channels_c * form.taps * form.pixels * steps
        of_k = form.channels_k * there(problem.k, form.channels_k)
        of_c = form.channels_c * there(problem.c, form.channels_c)
        taken = (of_k + form.taps * of_c) * form.pixels * itemsize(problem.dtype) * steps
        stored = form.channels_k * form.channels_c * form.taps * 4
        issued = form.warps * (form.loop * steps + form.epilogue) + (2 + form.taps) * _PRODUCER * steps
        rows.append((programs, products, taken + stored, issued, steps / (form.stages - 1) + _EPILOGUE_TRIPS))
    columns = np.array(rows, float).reshape(-1, 5).T
    splits = np.array([config["splits"] for config in configs], float)
    partial = splits * 4 * (prod(problem.w_shape) + (problem.k if problem.bias else 0))
    read_again = prod(problem.y_shape) * itemsize(problem.dtype) if problem.bias else 0
    return Work(
        programs=columns[0],
        resident=1.0,
        pipe=np.full(len(configs), pipe),
        path=np.array([PATHS.index("im2col" if config["AXES"] else "gemm") for config in configs]),
        flops=2 * columns[1] * factor,
        feed=np.array([_FEED[GRADIENT_FORMS[config["form"]].channels_c] for config in configs]),
        l2_bytes=columns[2],
        dram_bytes=float(problem.min_bytes),
        instructions=columns[3],
        chain=columns[4],
        extra_bytes=2 * partial + read_again + np.array([moved for moved, _ in extra], float),
        launches=np.array([2 + bool(problem.bias) + launches for _, launches in extra], float),
    )
