"""``gpuconv bench``: layers timed here, ours beside torch's; the measuring is in the folder `bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from .demo_parts import aligned, processor
from .explain import parse_shape, parse_value

__all__ = ["bench_command"]

_DTYPES = ("float32", "float16", "bfloat16")


def _measuring() -> Any:
    """Return ``gpuconv.bench.layers``; in a checkout that is not installed the folder lies beside the package."""
    package = __name__.partition(".cli")[0]
    if find_spec(f"{package}.bench") is None:
        root = sys.modules[package]
        root.__path__.append(str(Path(__file__).resolve().parents[2]))
    return import_module(f"{package}.bench.layers")


def _refuse(text: str) -> typer.Exit:
    typer.echo(f"error: {text}", err=True)
    return typer.Exit(2)


def _problem(bench: Any, text: str) -> Any:
    """Read ``conv2d input=1,64,56,56 weight=64,64,3,3 padding=1``."""
    op, *settings = text.split()
    wrong = [setting for setting in settings if "=" not in setting]
    if wrong:
        raise ValueError(f"--problem: {wrong[0]!r} is no NAME=VALUE")
    pairs = dict(setting.split("=", 1) for setting in settings)
    if "input" not in pairs:
        raise ValueError(f"--problem: {text!r} says no input=N,C,...")
    known = import_module("..functional", __package__).__all__
    ours = any(word in op for word in ("scaled", "causal", "deform", "separable"))
    if op not in known or op.endswith(("_backward", "_grad")) or ours:
        raise ValueError(f"--problem: {op!r} is no convolution or pooling of gpuconv that torch has")
    shapes = {name: parse_shape(name, pairs.pop(name)) for name in ("input", "weight") if name in pairs}
    options = {name.replace("-", "_"): parse_value(value) for name, value in pairs.items()}
    return bench.Layer(op, shapes["input"], shapes.get("weight"), options)


def _device(device: str) -> str:
    """Return what the device is called; raise ValueError where it is not here."""
    if device == "cpu":
        return processor()
    if not device.startswith("cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:N, but got {device!r}")
    if find_spec("torch") is None:
        raise ValueError(f"--device {device}: needs torch, which is not installed: pip install torch")
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch sees no CUDA device")
    name: str = torch.cuda.get_device_name(device)
    return name


def _table(rows: Sequence[Any], title: str) -> str:
    """Return rows as a table, with the total of a pass where every layer has both times."""
    columns = ["layer", ">calls", "solver that ran", ">ms", ">torch ms", ">torch/here", ">error"]

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = [
        [row.layer.text, str(row.layer.count), row.solver, number(row.ours, ".3f"), number(row.theirs, ".3f"),
         number(row.ratio, ".2f"), number(row.error, ".1e")]
        for row in rows
    ]  # fmt: skip
    if len(rows) > 1 and all(row.ratio for row in rows):
        ours, theirs = (sum(getattr(row, side) * row.layer.count for row in rows) for side in ("ours", "theirs"))
        calls = str(sum(row.layer.count for row in rows))
        cells.append(["all calls", calls, "", f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f}", ""])
    return aligned(title, columns, cells)


def bench_command(
    network: Annotated[
        str, typer.Option(help="Whose layers: resnet50, unet2d, ...; a wrong name lists them.")
    ] = "resnet50",
    problem: Annotated[
        list[str] | None,
        typer.Option(help="A call instead, such as 'conv2d input=1,64,56,56 weight=64,64,3,3 padding=1'; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(_DTYPES)}.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Images per call, of a network.")] = 1,
    most: Annotated[int | None, typer.Option(min=1, help="Layers at most, in the order of the network.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each side, in turns; the median counts.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder for the plot; needs matplotlib.")] = Path("gpuconv-bench"),
) -> None:
    """Time layers on this machine, ours beside torch's, with a table and a plot of the ratios.

    Both results are compared first; a layer whose results differ is not timed, and the exit status is 1. Times are of
    calls from Python, and compare within one run alone. Without torch, NumPy arrays are timed, and nothing beside them.
    On a GPU, bench/run.py of the repository measures kernels alone, against several libraries.

    Examples: gpuconv bench --most 5;  gpuconv bench --network unet2d --device cuda --dtype bfloat16 --batch 32;
    gpuconv bench --problem 'max_pool2d input=8,64,112,112 kernel_size=3 stride=2 padding=1'
    """
    try:
        bench = _measuring()
        if dtype not in _DTYPES:
            raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, but got {dtype!r}")
        if find_spec("torch") is None and dtype == "bfloat16":
            raise ValueError("--dtype bfloat16: NumPy has none, and torch is not installed")
        if not problem and network not in bench.networks():
            raise ValueError(f"--network must be one of {', '.join(bench.networks())}, but got {network!r}")
        layers = [_problem(bench, text) for text in problem] if problem else bench.network_layers(network, batch)
        name = _device(device)
    except ValueError as error:
        raise _refuse(str(error)) from None
    rows = []
    try:
        for row in bench.measure(layers[:most], device, dtype, rounds):
            rows.append(row)
    except (TypeError, RuntimeError, IndexError, NotImplementedError) as error:  # what functions say of arguments
        raise _refuse(str(error)) from None
    beside = "" if find_spec("torch") is None else f", beside torch {import_module('torch').__version__}"
    title = f"{'Problems' if problem else network}, {dtype}, on {name}{beside}"
    typer.echo(_table(rows, title))
    for row in rows:
        if row.note:
            typer.echo(f"{row.layer.text}: {row.note}")
    if find_spec("matplotlib") is None:
        typer.echo("Plot: not drawn, matplotlib is not installed")
    else:
        output.mkdir(parents=True, exist_ok=True)
        if bench.draw(output / "layers.png", rows, title):
            typer.echo(f"Plot: {output / 'layers.png'}")
    if any(row.note == "the results differ" for row in rows):
        raise typer.Exit(1)
