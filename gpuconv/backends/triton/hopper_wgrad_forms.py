"""The forms of the Hopper weight gradient, and how a problem is cut for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ...problem import ConvProblem
from ...shapes import ceil_div
from .hopper_forms import axes_of
from .hopper_view import Dense

__all__ = ["GRADIENT_FORMS", "GradientForm", "gradient_configs", "gradient_steps", "gradient_tiles"]


@dataclass(frozen=True, slots=True)
class GradientForm:
    """Channels of y (rows of a product) and of x (columns), taps that share a y, pixels of a step; what was compiled.

    `loop` and `epilogue` are instructions of the consumer for a step and besides.
    """

    channels_k: int
    channels_c: int
    stages: int
    loop: int
    epilogue: int
    taps: int = 1
    pixels: int = 64
    warps: int = 8
    producer: int = 24


GRADIENT_FORMS: dict[str, GradientForm] = {
    "128x256": GradientForm(128, 256, 4, 47, 1345),
    "256x128": GradientForm(256, 128, 4, 60, 1324),
    "128x128": GradientForm(128, 128, 6, 46, 970),
    "64x64": GradientForm(64, 64, 6, 45, 731, warps=4),
    "64x64x3": GradientForm(64, 64, 6, 74, 1230, 3, warps=4, producer=40),
    "64x64x4": GradientForm(64, 64, 5, 89, 1447, 4, warps=4, producer=40),
    "128x64x3": GradientForm(128, 64, 5, 75, 1229, 3, producer=40),
    "128x64x4": GradientForm(128, 64, 4, 90, 1438, 4, producer=40),
    "64x128": GradientForm(64, 128, 6, 46, 954, warps=4),
    "128x64": GradientForm(128, 64, 6, 47, 753),
    "64x256": GradientForm(64, 256, 4, 46, 1330, warps=4),
    "256x64": GradientForm(256, 64, 4, 58, 926),
}
"""Forms by name: channels of y x channels of x."""

_PROGRAMS = (132, 264, 396, 528)
"""Programs that splits are chosen for: multiples of the multiprocessors of an H100 or H200."""


_MOST_BLOCKS = 65_535
"""Blocks along the second and the third axis of a grid."""


def gradient_tiles(problem: ConvProblem, form: GradientForm) -> int:
    """Return the programs of one split."""
    taps = ceil_div(prod(problem.kernel), form.taps)
    return ceil_div(problem.k, form.channels_k) * ceil_div(problem.c, form.channels_c) * taps


def gradient_steps(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return the steps of all splits of a tile."""
    return ceil_div(problem.n * prod(problem.output_size), GRADIENT_FORMS[config["form"]].pixels)


def gradient_configs(problem: ConvProblem, dense: Dense, most: int) -> Iterator[dict[str, Any]]:
    """Yield the configs of a problem, whose forward pass is `dense`, with at most `most` splits."""
    axes = 0 if dense.flat else axes_of(dense)
    for name, form in GRADIENT_FORMS.items():
        too_wide = form.channels_k >= 2 * max(problem.k, 64) or form.channels_c >= 2 * max(problem.c, 64)
        if too_wide or form.taps > prod(problem.kernel) or ceil_div(prod(problem.kernel), form.taps) > _MOST_BLOCKS:
            continue
        steps = gradient_steps(problem, {"form": name})
        tiles = gradient_tiles(problem, form)
        wanted = {min(max(programs // tiles, 1), max(steps // 4, 1), most, _MOST_BLOCKS) for programs in _PROGRAMS}
        for splits in sorted({ceil_div(steps, ceil_div(steps, splits)) for splits in wanted if splits}):
            yield {"form": name, "AXES": axes, "splits": splits}
