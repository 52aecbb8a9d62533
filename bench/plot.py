"""Plots of a run: bars per layer against torch, and every layer on the roofline. Without matplotlib, none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpuconv.problem import ConvProblem

from .measure import number_format
from .rows import Row

__all__ = ["write_plots"]

_MOST_BARS = 40
_FASTER, _SLOWER = "#2b7a4b", "#b03a2e"


def _bars(axes: Any, network: str, rows: Sequence[Row]) -> None:
    """Draw the layers of one network whose calls take longest, the longest at the top."""
    shown = sorted(rows, key=lambda row: row.us or 0.0)[-_MOST_BARS:]
    speedups = [row.speedup or 0.0 for row in shown]
    axes.barh(range(len(shown)), speedups, color=[_FASTER if s >= 1 else _SLOWER for s in speedups])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row.case.key for row in shown], fontsize=5)
    axes.set_title(f"{network}: torch's time over ours (right of 1: faster)", fontsize=8)


def _layers(plt: Any, path: Path, rows: Sequence[Row], gpu: str) -> None:
    by_network: dict[str, list[Row]] = {}
    for row in rows:
        for network in {use.network for use in row.case.uses}:
            by_network.setdefault(network, []).append(row)
    heights = [0.6 + 0.12 * min(len(of), _MOST_BARS) for of in by_network.values()]
    figure, grid = plt.subplots(
        len(by_network), 1, figsize=(9, sum(heights) + 0.5), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axes, (network, of) in zip(grid[:, 0], sorted(by_network.items())):
        _bars(axes, network, of)
    figure.suptitle(gpu, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _roofline(plt: Any, path: Path, rows: Sequence[Row], limits: Mapping[str, float], gpu: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    convolutions = [row for row in rows if isinstance(row.case.problem, ConvProblem)]
    for number in sorted({number_format(row.case.problem) for row in convolutions}):
        of = [row for row in convolutions if number_format(row.case.problem) == number]
        intensity = [row.case.problem.flops / row.case.problem.min_bytes for row in of]
        points = axes.scatter(intensity, [row.figures["tflops"] for row in of], s=8, alpha=0.6, label=number)
        if number in limits and "copy" in limits:
            span = [min(intensity) / 2, max(intensity) * 2]
            ridge = limits[number] / limits["copy"]
            xs = sorted([*span, min(max(ridge, span[0]), span[1])])
            ceiling = [min(x * limits["copy"], limits[number]) / 1e6 for x in xs]
            axes.plot(xs, ceiling, color=points.get_facecolor()[0], linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="TFLOP/s")
    axes.set_title(f"{gpu}: convolutions under the ceilings measured in the same run", fontsize=9)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_plots(folder: Path, rows: Sequence[Row], limits: Mapping[str, float], gpu: str) -> list[Path]:
    """Write ``layers.png`` and ``roofline.png``; return their paths, none without matplotlib or comparisons."""
    compared = [row for row in rows if row.speedup is not None]
    if find_spec("matplotlib") is None:
        print("plots: not written, matplotlib is not installed")
        return []
    if not compared:
        print("plots: not written, nothing to compare yet")
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    _layers(plt, folder / "layers.png", compared, gpu)
    written = [folder / "layers.png"]
    if any(isinstance(row.case.problem, ConvProblem) for row in compared):
        _roofline(plt, folder / "roofline.png", compared, limits, gpu)
        written.append(folder / "roofline.png")
    return written
