"""Entry of the ``gpuconv`` command and of ``python -m gpuconv``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_NEEDS = ("typer", "rich", "click")
_COMMANDS = {
    "shape": "answer a question about sizes, with the formula",
    "explain": "say which solver a call would run and why",
    "summarize": "describe a model layer by layer",
    "tune": "time configs of recorded problems on this GPU",
    "pack": "compile the kernels of problems ahead of time",
    "bench": "time layers on this machine, ours beside torch's",
}


def main() -> None:
    """Run the command line. Without typer and rich there are `info` and `demo`; the rest says what to install."""
    try:
        from .cli.main import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _NEEDS:
            raise
        sys.exit(_plain(sys.argv[1:]))
    app(prog_name="gpuconv")


def _plain(arguments: Sequence[str]) -> int:
    from .cli.info import info_json, info_text
    from .config import VERSION

    install = "pip install typer rich"
    parser = argparse.ArgumentParser(
        prog="gpuconv",
        description="Convolution and pooling for PyTorch, CuPy and NumPy arrays.",
        epilog=f"Only info and demo run here; the other commands need two packages: {install}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # or the command to type would be wrapped
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpuconv {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    about = "say what is installed, which GPUs there are, and which backends can run"
    info = commands.add_parser("info", help=about, description=about)
    info.add_argument("--json", action="store_true", help="print JSON and nothing else")
    about = "run a photograph through convolutions and poolings; NumPy and matplotlib are enough"
    shown = commands.add_parser("demo", help=about, description=about)
    shown.add_argument("--output", type=Path, default=Path("gpuconv-demo"), help="folder for the picture")
    shown.add_argument("--quick", action="store_true", help="a small picture, and no network: seconds")
    for name, help in _COMMANDS.items():
        commands.add_parser(name, help=f"{help} (needs typer and rich)", add_help=False)
    given, rest = parser.parse_known_args(arguments)
    if given.command in _COMMANDS:
        print(f"gpuconv: {given.command} needs typer and rich, which are not installed: {install}", file=sys.stderr)
        return 2
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if given.command is None:
        parser.print_help()
        return 2
    if given.command == "demo":
        return _demo(given.output, given.quick)
    print(info_json() if given.json else info_text())
    return 0


def _demo(output: Path, quick: bool) -> int:
    from .cli.demo import missing_packages, run_demo

    if missing := missing_packages():
        print(f"error: {missing}", file=sys.stderr)
        return 2
    try:
        return 0 if run_demo(output, quick, print) else 1
    except OSError as error:
        print(f"error: --output: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    main()
