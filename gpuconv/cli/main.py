"""The ``gpuconv`` command: ``info``, ``explain``, ``tune`` and ``demo``.

``explain`` has one subcommand per public function, made from its signature; see :mod:`gpuconv.cli.explain`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..config import BACKENDS, VERSION
from ..dispatch import backends
from .explain import explain_app, new_console
from .tune import tune_command

__all__ = ["app"]

_CUPY_DISTRIBUTIONS = ("cupy", "cupy-cuda12x", "cupy-cuda13x")
_NO_GPU = "none found"

app = typer.Typer(
    help="Convolution and pooling for PyTorch, CuPy and NumPy arrays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(explain_app, name="explain")
app.command("tune")(tune_command)


def _version(*distributions: str) -> str | None:
    """Return the version of the first of `distributions` that is installed. Imports nothing."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _gpus() -> list[dict[str, str]]:
    """List the GPUs by ``nvidia-smi``, which creates no CUDA context; without it, by torch."""
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    tool = shutil.which("nvidia-smi")
    if tool:
        command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
            return [dict(zip(("name", "compute capability", "memory", "driver"), row)) for row in rows]
    if find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": p.name, "compute capability": f"{p.major}.{p.minor}", "memory": f"{p.total_memory >> 20} MiB"}
        for p in found
    ]


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for, ``None`` without torch or in a build without CUDA."""
    if find_spec("torch") is None:
        return None
    import torch

    built: str | None = torch.version.cuda
    return built


def _backends() -> list[dict[str, Any]]:
    """Describe each backend: ready, missing (and why), or not part of this version."""
    present = backends()
    found: list[dict[str, Any]] = []
    for name in BACKENDS:
        if name not in present:
            found.append({"name": name, "status": "not part of this version", "reason": None, "solvers": []})
            continue
        reason = present[name].missing()
        solvers = [] if reason else [solver.id for solver in present[name].solvers()]
        status = "missing" if reason else "ready"
        found.append({"name": name, "status": status, "reason": reason, "solvers": solvers})
    return found


def _facts() -> dict[str, Any]:
    return {
        "gpuconv": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": _version("numpy"),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "cupy": _version(*_CUPY_DISTRIBUTIONS),
        "cuda of torch": _torch_cuda(),
        "gpus": _gpus(),
        "backends": _backends(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("GPUCONV_") or name in ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")
        },
    }


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False) -> None:
    """Say what is installed, which GPUs there are, and which backends can run."""
    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = new_console()
    versions = Table(show_header=False, title="Versions", title_justify="left")
    absent = {"cuda of torch": "none (a build without CUDA)" if facts["torch"] else "torch is not installed"}
    for name in ("gpuconv", "python", "platform", "numpy", "torch", "triton", "cupy", "cuda of torch"):
        versions.add_row(name, facts[name] or absent.get(name, "not installed"))
    for gpu in facts["gpus"]:
        versions.add_row("GPU", ", ".join(f"{key} {value}" if key != "name" else value for key, value in gpu.items()))
    if not facts["gpus"]:
        versions.add_row("GPU", _NO_GPU)
    for name, value in facts["environment"].items():
        versions.add_row(f"${name}", value)
    console.print(versions)
    table = Table("backend", "status", "solvers, or why it is missing", title="Backends", title_justify="left")
    for backend in facts["backends"]:
        shown = backend["reason"] or "\n".join(backend["solvers"]) or "-"
        table.add_row(backend["name"], backend["status"], Text(shown))  # as it is: brackets are extras, not markup
    console.print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture and the tables.")] = Path("gpuconv-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A small picture, and no network.")] = False,
) -> None:
    """Run a photograph through convolutions and poolings, compare each with a reference, and draw the results."""
    missing = [name for name in ("matplotlib", "PIL") if find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        typer.echo(f"error: demo needs {needed}; install it with: pip install 'gpuconv[bench]'", err=True)
        raise typer.Exit(2)
    from .demo import run_demo

    if not run_demo(output, quick, new_console()):
        raise typer.Exit(1)
