"""``gpuconv summarize``: a model that a function returns, layer by layer; :func:`gpuconv.summarize` does the work."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import logger
from ..costs import gpu_names
from ..summary import Summary, summarize
from .explain import new_console, parse_shape

__all__ = ["summarize_command"]


def _model(target: str, meta: bool) -> Any:
    """Return what ``package.module:name`` names: a module, or what a function or class without arguments returns."""
    place, colon, name = target.partition(":")
    if not colon or not place or not name:
        raise ValueError(f"MODEL must be package.module:function, but got {target!r}")
    if os.getcwd() not in sys.path:  # a console script does not look where it is called
        sys.path.append(os.getcwd())
    try:
        found: Any = import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(f"MODEL {target!r}: {error}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"MODEL {target!r}: {place} has no {name}")
        found = getattr(found, part)
    torch = import_module("torch")
    if isinstance(found, torch.nn.Module):
        return found
    with torch.device("meta") if meta else nullcontext():
        return found()


def _tensor(text: str, dtype: str | None, channels_last: bool) -> Any:
    """Read ``1,3,224,224`` or ``1,128:int64`` as a meta tensor, or as a size where only that is said."""
    shape, _, kind = text.partition(":")
    sizes = parse_shape("input", shape)
    if not kind and not channels_last:
        return sizes
    torch = import_module("torch")
    number = getattr(torch, kind or dtype or "float32", None)
    if not isinstance(number, torch.dtype):
        raise ValueError(f"--input {text}: behind the colon must be a type such as int64, but got {kind!r}")
    found = torch.empty(sizes, dtype=number, device="meta")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return found.to(memory_format=formats[len(sizes)]) if channels_last and len(sizes) in formats else found


_FAILURES = (
    AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError
)  # fmt: skip
"""What a model, or the arguments, may raise: one line on the standard error; the log has the rest."""


def _show(summary: Summary) -> None:
    console = new_console()
    if console.is_terminal:
        console.print(summary)
    else:
        typer.echo(str(summary))


def summarize_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="package.module:function, which returns the model.")],
    input: Annotated[
        list[str], typer.Option(help="Size of the input, 1,3,224,224; with a type 1,128:int64; once for each input.")
    ],
    gpu: Annotated[
        str | None, typer.Option(help=f"A GPU by name, which need not be here: {', '.join(gpu_names())}.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Floating type; default: that of the parameters.")] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Inputs with channels innermost.")] = False,
    meta: Annotated[bool, typer.Option("--meta", help="Build the model on meta tensors, without memory.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Plot receptive fields to this file (needs matplotlib).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Describe a torch model layer by layer: sizes, parameters, FLOPs, receptive fields, solvers and modelled times.

    gpuconv summarize package.module:function --input 1,3,224,224 --gpu h200

    It runs once on meta tensors: without memory for results, and without a GPU.
    """
    try:
        if find_spec("torch") is None:
            raise ValueError("summarize needs torch: pip install torch")
        inputs = [_tensor(text, dtype, channels_last) for text in input]
        with redirect_stdout(sys.stderr):  # what the model prints is no part of the answer
            found = summarize(_model(model, meta), inputs, gpu, dtype=dtype)
        if plot is not None:
            found.plot_receptive_field().savefig(plot)
    except _FAILURES as error:
        logger.debug("summarize failed", exc_info=True)
        typer.echo("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)
