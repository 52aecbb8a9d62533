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
    """Channels of y (rows of a product) and of x (columns), the pixels of a step, and what was compiled for them.

    `loop` and `epilogue` are instructions of the consumer for a step and besides.
    """

    channels_k: int
    channels_c: int
    stages: int
    loop: int
    epilogue: int
    pixels: int = 64
    warps: int = 8
    producer: int = 24


GRADIENT_FORMS: dict[str, GradientForm] = {
    "128x256": GradientForm(128, 256, 4, 47, 1185),
    "256x128": GradientForm(256, 128, 4, 60, 1164),
    "128x128": GradientForm(128, 128, 6, 46, 874),
    "64x64": GradientForm(64, 64, 6, 45, 683, warps=4),
    "64x128": GradientForm(64, 128, 6, 46, 858, warps=4),
    "128x64": GradientForm(128, 64, 6, 47, 697),
    "64x256": GradientForm(64, 256, 4, 46, 1170, warps=4),
    "256x64": GradientForm(256, 64, 4, 58, 838),
}
"""Forms by name: channels of y x channels of x."""

_PROGRAMS = (132, 264, 396, 528)
"""Programs that splits are chosen for: multiples of the multiprocessors of an H100 or H200."""


def gradient_tiles(problem: ConvProblem, form: GradientForm) -> int:
    """Return the programs of one split."""
    return ceil_div(problem.k, form.channels_k) * ceil_div(problem.c, form.channels_c) * prod(problem.kernel)


def gradient_steps(problem: ConvProblem, config: Mapping[str, Any]) -> int:
    """Return the steps of all splits of a tile."""
    return ceil_div(problem.n * prod(problem.output_size), GRADIENT_FORMS[config["form"]].pixels)


def gradient_configs(problem: ConvProblem, dense: Dense, most: int) -> Iterator[dict[str, Any]]:
    """Yield the configs of a problem, whose forward pass is `dense`, with at most `most` splits."""
    axes = 0 if dense.flat else axes_of(dense)
    for name, form in GRADIENT_FORMS.items():
        if form.channels_k >= 2 * max(problem.k, 64) or form.channels_c >= 2 * max(problem.c, 64):
            continue
        steps = gradient_steps(problem, {"form": name})
        tiles = gradient_tiles(problem, form)
        wanted = {min(max(programs // tiles, 1), max(steps // 4, 1), most) for programs in _PROGRAMS}
        for splits in sorted({ceil_div(steps, ceil_div(steps, splits)) for splits in wanted if splits}):
            yield {"form": name, "AXES": axes, "splits": splits}
