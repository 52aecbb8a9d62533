"""The ``gpuconv`` command: ``info``, ``shape``, ``explain``, ``summarize``, ``tune``, ``pack``, ``bench`` and ``demo``.

``explain`` has one subcommand per public function, made from its signature; see :mod:`gpuconv.cli.explain`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import VERSION
from .bench import bench_command
from .demo import missing_packages, run_demo
from .explain import explain_app
from .info import info_json, info_text
from .pack import pack_command
from .shape import shape_command
from .summarize import summarize_command
from .tune import tune_command

__all__ = ["app"]

app = typer.Typer(
    help="Convolution and pooling for PyTorch, CuPy and NumPy arrays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(explain_app, name="explain")
app.command("shape")(shape_command)
app.command("summarize")(summarize_command)
app.command("tune")(tune_command)
app.command("pack")(pack_command)
app.command("bench")(bench_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuconv {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Convolution and pooling for PyTorch, CuPy and NumPy arrays."""


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False) -> None:
    """Say what is installed, which GPUs there are, and which backends can run."""
    typer.echo(info_json() if as_json else info_text())


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("gpuconv-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A small picture, and no network: seconds.")] = False,
) -> None:
    """Run a photograph through convolutions and poolings, compare each with a referee, and draw the results.

    NumPy and matplotlib are enough. Where torch is installed it is the referee, and its times stand beside ours.
    """
    if missing := missing_packages():
        typer.echo(f"error: {missing}", err=True)
        raise typer.Exit(2)
    try:
        agrees = run_demo(output, quick, typer.echo)
    except OSError as error:
        typer.echo(f"error: --output: {error}", err=True)
        raise typer.Exit(2) from None
    if not agrees:
        raise typer.Exit(1)
