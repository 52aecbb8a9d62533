"""Layers as what they connect: channels, fields that they see, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .grids import COLOURS

__all__ = ["bars", "cone", "lines", "wiring"]


def wiring(stages: Sequence[tuple[str, np.ndarray[Any, Any]]], names: Sequence[str]) -> Figure:
    """Draw which channels each stage connects: matrices [channels after, channels before] of what is not zero."""
    most = max(max(links.shape) for _, links in stages)
    figure = Figure(figsize=(1.5 * len(stages) + 1.4, 0.33 * most + 0.55))
    axes = figure.subplots()

    def heights(count: int) -> np.ndarray[Any, Any]:
        return (np.arange(count) + 0.5) * most / count

    for place, (title, links) in enumerate(stages):
        after, before = links.shape
        for k, c in zip(*np.nonzero(links)):
            ends = heights(before)[c], heights(after)[k]
            axes.plot(
                [place, place + 1], ends, color=COLOURS[int(c) % len(COLOURS)], linewidth=1.1, alpha=0.8, zorder=0
            )
        axes.text(place + 0.5, -0.35, title, ha="center", va="bottom", fontsize=8.5)
    counts = [stages[0][1].shape[1], *(links.shape[0] for _, links in stages)]
    for place, (count, name) in enumerate(zip(counts, names)):
        axes.scatter([place] * count, heights(count), s=60, color="white", edgecolor="#444", zorder=2)
        axes.text(place, most + 0.3, name, ha="center", va="top", fontsize=8.5)
    axes.set_xlim(-0.45, len(stages) + 0.45)
    axes.set_ylim(most + 0.9, -1)
    axes.axis("off")
    figure.tight_layout(pad=0.2)
    return figure


def cone(layers: Sequence[tuple[int, int, int]], out: int = 1) -> Figure:
    """Draw what `out` neighbouring results of a stack of (kernel, stride, dilation) see, layer by layer."""
    used = [set(range(out))]
    spans = [(0, out - 1)]
    reads: list[list[tuple[int, int]]] = []
    for kernel, stride, dilation in reversed(layers):
        lo, hi = spans[-1]
        reads.append([(o, o * stride + t * dilation) for o in sorted(used[-1]) for t in range(kernel)])
        used.append({i for _, i in reads[-1]})
        spans.append((lo * stride, hi * stride + (kernel - 1) * dilation))
    width = spans[-1][1] - spans[-1][0] + 1
    figure = Figure(figsize=(min(0.3 * width + 0.9, 5.8), 0.62 * len(spans) + 0.3))
    axes = figure.subplots()
    jumps = [1]
    for _, stride, _ in layers:
        jumps.append(jumps[-1] * stride)
    centres = [0.0]
    for (kernel, _, dilation), jump in zip(layers, jumps):
        centres.append(centres[-1] + (kernel - 1) * dilation / 2 * jump)

    def where(level: int, index: int) -> float:
        return centres[level] + index * jumps[level]

    depth = len(layers)
    for step, pairs in enumerate(reads):
        level = depth - step
        for o, i in pairs:
            axes.plot(
                [where(level, o), where(level - 1, i)], [level, level - 1], color="#9aa7bd", linewidth=0.7, zorder=0
            )
    for step, (lo, hi) in enumerate(spans):
        level = depth - step
        for index in range(lo, hi + 1):
            colour = COLOURS[level % len(COLOURS)] if index in used[step] else "white"
            axes.scatter([where(level, index)], [level], s=48, color=colour, edgecolor="#555", linewidth=0.7, zorder=2)
        axes.text(-1.0, level, "input" if level == 0 else f"layer {level}", ha="right", va="center", fontsize=8)
    axes.set_xlim(-1 - 0.13 * width - 1.2, spans[-1][1] + 0.7)
    axes.set_ylim(-0.5, depth + 0.5)
    axes.axis("off")
    figure.tight_layout(pad=0.2)
    return figure


def bars(values: Mapping[str, float], unit: str, log: bool = False) -> Figure:
    """Draw numbers as bars with their values behind them."""
    figure = Figure(figsize=(5.0, 0.3 * len(values) + 0.6))
    axes = figure.subplots()
    names = [*values]
    axes.barh(names, [values[name] for name in names], color=[COLOURS[i % len(COLOURS)] for i in range(len(names))])
    for place, name in enumerate(names):
        value = values[name]
        axes.text(value, place, f" {value:,.0f}" if value >= 1000 else f" {value:.4g}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.18)
    figure.tight_layout(pad=0.3)
    return figure


def lines(x: Sequence[float], curves: Mapping[str, Sequence[float]], across: str, up: str, log: bool = False) -> Figure:
    """Draw curves over one axis."""
    figure = Figure(figsize=(5.0, 2.5))
    axes = figure.subplots()
    for place, (name, curve) in enumerate(curves.items()):
        axes.plot(x, curve, label=name, color=COLOURS[place % len(COLOURS)], linewidth=1.4)
    if log:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=all(float(value).is_integer() for value in x)))
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout(pad=0.3)
    return figure
