"""Deformable convolutions, for each way to shard them: results and every gradient, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import gpuconv

__all__ = ["cases"]

Case = Callable[[Any], None]

SIDES: dict[str, dict[str, str]] = {
    "batch": {"input": "S0", "offset": "S0", "weight": "R", "bias": "R", "y": "S0", "by w": "P", "by bias": "P"},
    "output": {"input": "R", "offset": "R", "weight": "S0", "bias": "S0", "y": "S1", "by x": "P", "by offset": "P"},
    "input": {"input": "S1", "offset": "R", "weight": "S1", "bias": "R", "y": "P", "by offset": "P"},
    "groups": {"input": "S1", "offset": "R", "weight": "S0", "bias": "S0", "y": "S1", "by offset": "P"},
    "nothing": {"input": "R", "offset": "R", "weight": "R", "bias": "R", "y": "R"},
}
"""For each way where operands and result are, and where gradients are that are not with their operand."""


def sharded(world: Any, nd: int, way: str, masked: bool, hollow: bool) -> None:
    """Nothing is sent, forward or backward. `hollow` leaves some process without anything."""
    size, kernel = (5, 4, 3)[-nd:], (3, 2, 2)[-nd:]
    n, c, k, groups = 2, 3, 4, 1
    many = 1 if hollow else 5
    if way == "batch":
        n = many
    elif way == "output":
        k = many
    elif way == "input":
        c = many
    elif way == "groups":
        c, k, groups = 5, 5, 5
    output = tuple(s + 2 - (r - 1) for s, r in zip(size, kernel))
    tensors = {
        "input": world.integers((n, c, *size)),
        "offset": world.integers((n, nd * prod(kernel), *output), 1) / 2,
        "weight": world.integers((k, c // groups, *kernel), 2),
        "bias": world.integers((k,), 3),
    }
    places = SIDES[way]
    gradients = {
        "input": places.get("by x", places["input"]),
        "offset": places.get("by offset", places["offset"]),
        "weight": places.get("by w", places["weight"]),
        "bias": places.get("by bias", places["bias"]),
    }
    placed = {name: places[name] for name in tensors}
    if masked:
        tensors["mask"] = world.integers((n, prod(kernel), *output), 4)
        placed["mask"], gradients["mask"] = placed["offset"], gradients["offset"]
    function = partial(getattr(gpuconv, f"deform_conv{nd}d"), padding=1)
    world.compare(function, tensors, placed, places["y"], gradients)


def of_offset_groups(world: Any, x: str, w: str, y: str, groups: int) -> None:
    """With several groups of offsets, which are of channels of the input, the batch is sharded instead of these."""
    tensors = {
        "input": world.integers((2, 4, 5, 4)),
        "offset": world.integers((2, 36, 3, 2), 1) / 2,
        "weight": world.integers((6, 4 // groups, 3, 3), 2),
        "mask": world.integers((2, 18, 3, 2), 3),
    }
    placed = {"input": x, "offset": "R", "weight": w, "mask": "R"}
    world.compare(gpuconv.deform_conv2d, tensors, placed, y, {}, False)


def cases() -> Iterator[tuple[str, Case]]:
    """Yield names and functions of a world."""
    for nd in (1, 2, 3):
        for way in SIDES:
            for hollow in (False, True) if nd == 2 and way in ("batch", "output", "input") else (False,):
                name = f"deform{nd}d {way}{' hollow' if hollow else ''}"
                yield name, partial(sharded, nd=nd, way=way, masked=nd != 1, hollow=hollow)
    yield "deform: groups of offsets, channels", partial(of_offset_groups, x="S1", w="R", y="S0", groups=1)
    yield "deform: groups of offsets, filters", partial(of_offset_groups, x="R", w="S0", y="S1", groups=1)
    yield "deform: groups of offsets and of channels", partial(of_offset_groups, x="S1", w="S0", y="S0", groups=2)
