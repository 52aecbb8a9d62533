"""``gpuconv demo``: a photograph through convolutions and poolings, each checked by a referee that is not this library.

The referee is PyTorch on the CPU in float64. Without torch it is the definition itself, evaluated on a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from ..backends.numpy import teaching
from ..config import VERSION
from ..dispatch import record_plans
from ..errors import NoSolverError
from .demo_parts import Array, public_function, timed
from .demo_resnet import run_resnet

__all__ = ["AGREE", "Outcome", "run_demo"]

AGREE = 1e-4
"""Largest error, relative to the referee's largest value, at which the demonstration counts as right."""

_CROP = 48


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of the demonstration; `view` turns its result [C, H, W] into a picture."""

    title: str
    op: str
    options: dict[str, Any]
    weight: Array | None = None
    view: Callable[[Array], Array] = field(default=lambda y: y.clip(0, 1))
    source: str = "photograph"
    residual: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did. `error` is None where nothing was compared."""

    step: Step
    result: Array | None
    solver: str
    milliseconds: float
    error: float | None
    referee: str


def photograph(quick: bool) -> Array:
    """Return matplotlib's sample photograph (a U.S. Navy portrait of Grace Hopper) as [1, 3, H, W] in 0..1."""
    cbook, image = import_module("matplotlib.cbook"), import_module("PIL.Image")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = np.asarray(image.open(file).convert("RGB"), np.float32) / 255
    pixels = pixels[:592, :512]
    if quick:
        pixels = pixels[::4, ::4]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _gaussian(size: int, sigma: float) -> Array:
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / sigma) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def _per_channel(kernel: Array) -> Array:
    """Return the depthwise weight [3, 1, R, S] of one kernel for each colour."""
    return np.repeat(kernel[None, None], 3, 0).astype(np.float32)


def _sobel() -> Array:
    """Return the weight [2, 3, 3, 3] of Sobel's two derivatives of the luminance."""
    across = np.outer([1, 2, 1], [-1, 0, 1])
    luminance = np.array([0.299, 0.587, 0.114])
    return (np.stack([across, across.T])[:, None] * luminance[None, :, None, None]).astype(np.float32)


def _oriented(size: int, directions: int) -> Array:
    """Return the weight [3 * directions, 1, R, S] of waves under a Gaussian (Gabor filters), for each colour."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    waves = []
    for angle in np.arange(directions) * np.pi / directions:
        wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 5) * _gaussian(size, size / 5)
        waves.append(wave - wave.mean())
    return np.tile(np.stack(waves)[:, None], (3, 1, 1, 1)).astype(np.float32)


def _bilinear(factor: int) -> Array:
    """Return the kernel that makes a transposed convolution of stride `factor` a bilinear interpolation."""
    line = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    return np.outer(line, line)


def _stretched(y: Array) -> Array:
    """Stretch to 0..1 between the first and the last percentile."""
    low, high = np.percentile(y, (1, 99))
    return ((y - low) / max(high - low, 1e-12)).clip(0, 1)


def _magnitude(y: Array) -> Array:
    return 1 - _stretched(np.hypot(y[0], y[1]))[None]


def _energy(y: Array) -> Array:
    """Show the strongest of the oriented responses of each colour."""
    return _stretched(np.abs(y.reshape(3, -1, *y.shape[1:])).max(1))


def steps() -> list[Step]:
    """Return what the demonstration shows."""
    ring = np.full((3, 3), -1 / 8)
    ring[1, 1] = 1
    sharpen = _gaussian(5, 1.0) * -1.5
    sharpen[2, 2] += 1.5
    depthwise = {"groups": 3, "padding_mode": "reflect"}
    blur = {**depthwise, "padding": 7}
    return [
        Step("Gaussian blur", "conv2d", blur, _per_channel(_gaussian(15, 3.0)), note="15x15 depthwise, reflect"),
        Step("Sharpen", "conv2d", {**depthwise, "padding": 2, "activation": "relu"}, _per_channel(sharpen),
             residual=True, note="5x5 depthwise, fused residual, relu"),
        Step("Edges (Sobel)", "conv2d", {"padding": 1, "padding_mode": "replicate"}, _sobel(), _magnitude,
             note="3x3 dense, replicate"),
        Step("Dilated", "conv2d", {**depthwise, "padding": 6, "dilation": 6}, _per_channel(ring), _stretched,
             note="3x3, dilation 6"),
        Step("Grouped", "conv2d", {"groups": 3, "padding": 5}, _oriented(11, 4), _energy,
             note="11x11, 3 groups of 4 filters"),
        Step("Strided", "conv2d", {**depthwise, "padding": 4, "stride": 4}, _per_channel(_gaussian(9, 2.0)),
             note="9x9, stride 4"),
        Step("Transposed", "conv_transpose2d", {"groups": 3, "padding": 2, "stride": 4}, _per_channel(_bilinear(4)),
             source="Strided", note="bilinear 8x8, stride 4, of Strided"),
        Step("Max pool", "max_pool2d", {"kernel_size": 8, "stride": 8}, note="8x8, stride 8"),
        Step("Average pool", "avg_pool2d", {"kernel_size": 8, "stride": 8}, note="8x8, stride 8"),
        Step("Adaptive average", "adaptive_avg_pool2d", {"output_size": (37, 32)}, note="to a given size"),
        Step("Lp pool", "lp_pool2d", {"norm_type": 4.0, "kernel_size": 4}, view=_stretched, note="4x4, p = 4"),
    ]  # fmt: skip


def _arguments(step: Step, x: Array) -> tuple[list[Any], dict[str, Any]]:
    positional = [x] if step.weight is None else [x, step.weight]
    return positional, {**step.options, **({"residual": x} if step.residual else {})}


def _ours(step: Step, x: Array) -> Array:
    positional, options = _arguments(step, x)
    result: Array = public_function(step.op)(*positional, **options)
    return result


def _by_torch(step: Step, x: Array) -> Array:
    """Compute a step with torch on the CPU in float64."""
    torch = import_module("torch")
    functional = torch.nn.functional
    options, wide = dict(step.options), torch.from_numpy(x).double()
    arrays = [wide]
    if step.weight is not None:
        arrays.append(torch.from_numpy(step.weight).double())
    mode, activation = options.pop("padding_mode", "zeros"), options.pop("activation", None)
    if mode != "zeros":
        arrays[0] = functional.pad(wide, (options.pop("padding"),) * 4, mode=mode)
    y = getattr(functional, step.op)(*arrays, **options)
    if step.residual:
        y = y + wide
    result: Array = (functional.relu(y) if activation else y).numpy()
    return result


def _windows(x: Array, size: int, stride: int, padding: int, fill: float) -> Array:
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]


def _by_definition(step: Step, x: Array) -> Array:
    """Compute a step from its definition in float64, slowly."""
    wide, options = x.astype(np.float64), step.options
    if step.op == "conv2d" or step.op == "conv_transpose2d":
        assert step.weight is not None
        w = step.weight.astype(np.float64)
        stride, dilation, pad = options.get("stride", 1), options.get("dilation", 1), options["padding"]
        grid = ((stride, stride), [(0, 0), (0, 0)], (dilation, dilation), options.get("groups", 1))
        if step.op == "conv_transpose2d":
            whole = teaching.toeplitz_conv_transpose(wide, w, *grid, (0, 0))
            return whole[:, :, pad:-pad, pad:-pad]
        mode = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}[options.get("padding_mode", "zeros")]
        padded = np.pad(wide, [(0, 0), (0, 0), (pad, pad), (pad, pad)], mode=mode)  # type: ignore[call-overload]
        y: Array = teaching.direct(padded, w, *grid) + (wide if step.residual else 0)
        return np.maximum(y, 0) if "activation" in options else y
    if step.op == "adaptive_avg_pool2d":
        sizes = zip(x.shape[2:], options["output_size"], strict=True)
        cuts = [[(o * size // n, -(-(o + 1) * size // n)) for o in range(n)] for size, n in sizes]
        return np.stack([np.stack([wide[..., a:b, c:d].mean((2, 3)) for c, d in cuts[1]], -1) for a, b in cuts[0]], -2)
    size = options["kernel_size"]
    fill = -np.inf if step.op == "max_pool2d" else 0.0
    windows = _windows(wide, size, options.get("stride", size), options.get("padding", 0), fill)
    if step.op == "max_pool2d":
        return windows.max((-2, -1))
    if step.op == "avg_pool2d":
        return windows.mean((-2, -1))
    p = options["norm_type"]
    norms: Array = (windows**p).sum((-2, -1)) ** (1 / p)
    return norms


def _compare(step: Step, x: Array, result: Array) -> tuple[float, str]:
    """Return the largest error relative to the referee's largest value, and who the referee was."""
    if find_spec("torch") is not None:
        expected, referee = _by_torch(step, x), "torch float64"
    else:
        side = _CROP // 4 if step.op == "conv_transpose2d" else _CROP
        x = np.ascontiguousarray(x[:, :, :side, :side])
        result, expected, referee = _ours(step, x), _by_definition(step, x), f"definition, {side}x{side}"
    if result.shape != expected.shape:
        return float("inf"), referee
    return float(np.abs(result - expected).max() / np.abs(expected).max()), referee


def _sentence(refusal: NoSolverError) -> str:
    """Return the first line, which says why and what would help."""
    return str(refusal).partition("\n")[0]


def _run(step: Step, x: Array) -> Outcome:
    try:
        with record_plans() as plans:
            result, milliseconds = timed(lambda: _ours(step, x))
    except NoSolverError as refusal:
        return Outcome(step, None, _sentence(refusal), 0.0, None, "not compared")
    error, referee = _compare(step, x, result)
    return Outcome(step, result, plans[-1].solver.id, milliseconds, error, referee)


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="Photograph", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("operation", "left"), ("solver that ran", "left"), ("ms", "right"), ("error", "right")):
        table.add_column(name, justify=justify, no_wrap=name != "operation")  # type: ignore[arg-type]
    table.add_column("against")
    for outcome in outcomes:
        error = "not measured" if outcome.error is None else f"{outcome.error:.1e}"
        operation = f"{outcome.step.title}\n[dim]{outcome.step.note}[/dim]"
        table.add_row(
            operation,
            outcome.solver if outcome.result is not None else "none, see below",
            f"{outcome.milliseconds:.2f}",
            error,
            outcome.referee,
        )
    return table


def _draw(path: Path, photo: Array, outcomes: Sequence[Outcome]) -> None:
    """Draw the photograph and what became of it: tiles of one size, each under its operation, solver and time."""
    figure_module = import_module("matplotlib.figure")
    tiles = [("Photograph", "x".join(map(str, photo.shape[2:])), "", photo[0])]
    for o in outcomes:
        if o.result is not None:
            detail = f"{o.step.note}: {'x'.join(map(str, o.result.shape[2:]))}"
            tiles.append((o.step.title, detail, f"{o.solver}, {o.milliseconds:.1f} ms", o.step.view(o.result[0])))
    columns, tile, gap, head, top = 6, 2.75, 0.22, 0.72, 0.75  # inches
    rows = -(-len(tiles) // columns)
    height = tile * photo.shape[2] / photo.shape[3]
    width_all, height_all = columns * (tile + gap) + gap, rows * (height + head) + top + gap
    figure = figure_module.Figure(figsize=(width_all, height_all), facecolor="white")
    title = f"gpuconv {VERSION}: one photograph, {len(tiles) - 1} operations"
    figure.text(gap / width_all, 1 - 0.28 / height_all, title, fontsize=19, va="top")
    for index, (name, detail, run, picture) in enumerate(tiles):
        row, column = divmod(index, columns)
        left, bottom = gap + column * (tile + gap), height_all - top - (row + 1) * (height + head)
        axes = figure.add_axes((left / width_all, bottom / height_all, tile / width_all, height / height_all))
        pixels = picture.transpose(1, 2, 0) if len(picture) == 3 else picture[0]
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        above = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        axes.annotate(name, (0, 1), (0, 28), fontsize=12.5, fontweight="bold", **above)
        axes.annotate(f"{detail}\n{run}", (0, 1), (0, 4), fontsize=8, color="0.3", **above)
    figure.savefig(path, dpi=100)


def run_demo(output: Path, quick: bool, console: Console) -> bool:
    """Run everything, print the tables, write ``demo.png`` to `output`; return whether all results agree."""
    output.mkdir(parents=True, exist_ok=True)
    photo = photograph(quick)
    outcomes: list[Outcome] = []
    for step in steps():
        earlier = {o.step.title: o.result for o in outcomes}
        x = photo if step.source == "photograph" else earlier[step.source]
        if x is not None:
            outcomes.append(_run(step, x))
    console.print(_table(outcomes))
    for refused in (o.solver for o in outcomes if o.result is None):
        console.print(refused, markup=False, highlight=False)
    picture = output / "demo.png"
    _draw(picture, photo, outcomes)
    console.print(f"Picture: {picture}")
    errors = [o.error for o in outcomes if o.error is not None]
    if not quick:
        if find_spec("torch") is None:
            console.print("ResNet-50: not run, because it is compared with torch, which is not installed")
        else:
            try:
                errors.append(run_resnet(photo, console))
            except NoSolverError as refusal:
                console.print(f"ResNet-50: not run: {_sentence(refusal)}", markup=False, highlight=False)
    if not errors:
        console.print("Nothing ran, so nothing was compared.")
        return False
    agree = max(errors) <= AGREE
    verdict = "All results agree with the referee" if agree else "RESULTS DIFFER from the referee"
    console.print(f"{verdict}: largest error {max(errors):.1e} of the largest value (at most {AGREE:g}).")
    return agree
