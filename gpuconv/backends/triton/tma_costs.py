"""What the plain TMA kernel comes in and costs: forms that were compiled, boxes of positions, and the work of a launch.

A form is the positions and filters of a tile and the warps that multiply it; tests/codegen/test_codegen_tma.py compiles
each of them for every architecture that takes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np

from ...costs import PATHS, Work, pipe_of
from ...problem import ConvProblem, itemsize
from ...shapes import ceil_div
from .hopper_costs import per_result, there
from .hopper_forms import block_channels, epilogue_of
from .hopper_view import Dense

__all__ = ["FORMS", "Form", "box_of", "loop_of", "shared_of", "tiles_of", "tma_configs", "tma_work"]

Capability = tuple[int, int]

_SHARED = {12: 99 << 10}
_SHARED_OF_OTHERS = 227 << 10
"""Bytes of shared memory that a block may have, by major compute capability; a multiprocessor has 1 KiB more."""

_BARRIERS = 128
"""Bytes of shared memory beside operands, at most."""

_FEED = {64: 0.92, 128: 1.0, 256: 1.0}
"""Fraction of the tensor cores' rate by the positions of one product: of 64 shared memory is read at its own rate."""

_WAITS = 0.95
"""Fraction of that rate which is left where the warps that multiply also start copies and wait for them. Assumed."""

_FLAT_TRIPS = 3.0
"""Round trips to memory of a tile that nothing hides behind: the first slot, vectors or residual, and the store."""


@dataclass(frozen=True, slots=True)
class Form:
    """A tile, and what was read off its machine code for sm_90 (the longer one of Triton 3.6 and 3.9).

    Attributes
    ----------
    positions, filters
        Of a tile.
    warps, stages
        Warps of a block, and slots of shared memory at most.
    resident
        Blocks of a multiprocessor for which there are registers, as far as there is shared memory.
    loop, beside
        Instructions of a warp for one step, and for a tile beside its steps.
    epilogues
        What stands behind the sums without spilling: ``all``, ``relu`` (anything but other activations) or ``none``.
    blackwell
        Whether it needs the accumulators of sm_100, which lie in a memory of their own: registers do not hold them.
    """

    positions: int
    filters: int
    warps: int
    stages: int
    resident: int
    loop: int
    beside: int
    epilogues: str = "all"
    blackwell: bool = False


FORMS: dict[str, Form] = {
    "128x256": Form(128, 256, 8, 4, 1, 132, 700, "relu"),
    "256x128": Form(256, 128, 8, 4, 1, 117, 700, "relu"),
    "256x256": Form(256, 256, 8, 3, 1, 142, 1140, "none", blackwell=True),
    "128x128, 8 warps": Form(128, 128, 8, 4, 1, 115, 610),
    "128x128": Form(128, 128, 4, 3, 2, 115, 640, "relu"),
    "64x256": Form(64, 256, 8, 4, 1, 132, 600),
    "256x64": Form(256, 64, 4, 4, 1, 108, 690, "relu"),
    "128x64": Form(128, 64, 4, 4, 2, 108, 600),
    "64x128": Form(64, 128, 4, 4, 2, 117, 600),
    "64x64": Form(64, 64, 4, 4, 3, 108, 550),
}
"""Forms by name: positions x filters."""


def loop_of(form: Form, block_c: int, item: int, capability: Capability) -> float:
    """Return the instructions of a warp for one step: on sm_120 each warp reads its own operands, 16x8x16 at once."""
    if capability[0] != 12:
        return form.loop
    products = form.positions * form.filters * block_c * item / 32 / 128 / form.warps
    return 65 + 1.35 * products


def _room(capability: Capability) -> int:
    return _SHARED.get(capability[0], _SHARED_OF_OTHERS)


def _slots(stages: int, capability: Capability) -> int:
    """Return the slots of shared memory of so many stages: on sm_120 operands are in registers one stage earlier."""
    return stages - (capability[0] == 12)


def shared_of(form: Form, stages: int, block_c: int, item: int, capability: Capability) -> int:
    """Return the bytes of shared memory of a block at most: operands of every slot, or the result on its way out."""
    operands = _slots(stages, capability) * (form.positions + form.filters) * block_c * item
    return max(operands, form.positions * form.filters * item) + _BARRIERS


def _stages(form: Form, block_c: int, item: int, capability: Capability) -> int:
    """Return the stages that fit, at most those of the form; 0 where a tile does not."""
    for stages in range(form.stages, 1, -1):
        fits = shared_of(form, stages, block_c, item, capability) <= _room(capability)
        if fits and _slots(stages, capability) >= 2:
            return stages
    return 0


@lru_cache(maxsize=4096)
def box_of(positions: int, walked: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the box of images, planes, rows and columns of which there are the fewest; the widest of those."""
    sides = [1 << bit for bit in range(positions.bit_length())]
    found = []
    for width, height, depth in product(sides, repeat=3):
        images, rest = divmod(positions, width * height * depth)
        box = (images, depth, height, width)
        # An axis of one position has a box of one: only the last may be wider than there is.
        if not rest and images and all(side == 1 or size > 1 for side, size in zip(box[:3], walked[:3], strict=True)):
            boxes = prod(ceil_div(size, side) for size, side in zip(walked, box, strict=True))
            found.append((boxes, -width, -height, -depth, box))
    return min(found)[4]


def tiles_of(dense: Dense, groups: int, config: Mapping[str, Any]) -> int:
    """Return how many tiles there are, of `groups` with the channels of `dense` each."""
    box = (config["TILE_N"], config["TILE_O"], config["TILE_P"], config["TILE_Q"])
    boxes = prod(ceil_div(size, side) for size, side in zip(dense.walked, box, strict=True))
    return boxes * groups * ceil_div(dense.channels, config["BLOCK_K"])


def _stands(form: Form, problem: ConvProblem, dense: Dense, capability: Capability) -> bool:
    """Tell whether nothing spills: on sm_120 weights that are read turned take registers of their own."""
    if form.epilogues == "all":
        return True
    allowed = ("none",) if form.epilogues == "none" else ("none", "relu")
    return epilogue_of(problem) in allowed and not (capability[0] == 12 and dense.turned)


def tma_configs(problem: ConvProblem, dense: Dense, capability: Capability) -> Iterator[dict[str, Any]]:
    """Yield the configs of a convolution, of which `dense` has the channels of one group."""
    groups = problem.groups
    for name, form in FORMS.items():
        if form.blackwell > (capability[0] == 10) or form.filters >= 2 * max(dense.channels, 64):
            continue
        if not _stands(form, problem, dense, capability):
            continue
        if groups > 1 and dense.channels % form.filters:
            continue
        for block_c in block_channels(dense):
            stages = _stages(form, block_c, dense.item, capability)
            if stages and (groups == 1 or dense.reduced % block_c == 0):
                box = zip(("TILE_N", "TILE_O", "TILE_P", "TILE_Q"), box_of(form.positions, dense.walked), strict=True)
                blocks = {"BLOCK_K": form.filters, "BLOCK_C": block_c, **dict(box)}
                yield {"form": name, **blocks, "num_warps": form.warps, "num_stages": stages}


def tma_work(
    problem: ConvProblem,
    phases: Sequence[Dense],
    configs: Sequence[Mapping[str, Any]],
    capability: Capability,
    packed: int,
) -> Work:
    """Describe the launches of each of `configs`, and of the pass that packs so many elements of weights before them.

    Bytes are those of boxes but for channels that a tensor does not have; positions beside it are counted though they
    are not read. Of several phases, which run one after the other, each is described as having the tiles of the first,
    the largest, and its own steps.
    """
    dense = phases[0]
    pipe, factor = pipe_of(problem)
    extras, item = per_result(problem), dense.item
    rows = []
    for config in configs:
        form, block_c = FORMS[config["form"]], config["BLOCK_C"]
        steps = sum(phase.steps(block_c) for phase in phases)
        filters = form.filters * there(dense.channels, form.filters)
        loaded = (form.positions + filters) * block_c * there(dense.reduced, block_c) * steps
        moved = (loaded + len(phases) * form.positions * filters * (1 + problem.residual)) * item
        issued = form.warps * (loop_of(form, block_c, item, capability) * steps + len(phases) * form.beside)
        issued += len(phases) * extras * form.positions * form.filters / 32
        stages = config["num_stages"]
        shared = shared_of(form, stages, block_c, item, capability)
        resident = min(form.resident, (_room(capability) + 1024) // (shared + 1024))
        products = form.positions * form.filters * steps * block_c
        chain = steps / max(stages - 1, 1) + len(phases) * _FLAT_TRIPS
        tiles = tiles_of(dense, problem.groups, config)
        rows.append((tiles, max(resident, 1), products, _FEED[form.positions], moved, issued, chain))
    columns = np.array(rows, float).reshape(-1, 7).T
    return Work(
        programs=columns[0],
        resident=columns[1],
        pipe=np.full(len(configs), pipe),
        path=np.full(len(configs), PATHS.index("gemm" if dense.flat else "tma")),
        flops=2 * columns[2] * factor,
        feed=columns[3] * _WAITS,
        l2_bytes=columns[4],
        dram_bytes=float(problem.min_bytes),
        instructions=columns[5],
        chain=columns[6],
        extra_bytes=2.0 * packed * itemsize(problem.dtype),
        launches=float(len(phases) + (packed > 0)),
    )
