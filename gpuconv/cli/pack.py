"""``gpuconv pack``: compile the kernels of problems ahead of time, list a pack, and check one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from ..config import logger
from ..packs import CudaEntry, Entry, PackError, read_cubin, read_index
from ..problem import Problem
from .explain import new_console

__all__ = ["pack_command"]


def _workloads(names: list[str], everything: bool) -> list[Problem]:
    """Return the problems of networks that the repository lists; an installed library has none."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:  # a console script does not begin in the repository
        sys.path.append(root)
    try:
        cases = import_module("bench.cases")
        found = cases.all_cases(cases.everything() if everything else names)
    except ImportError:
        raise ValueError("--workload needs gpuconv's repository: an installed library has no workloads") from None
    return [case.problem for case in found]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--problems {path}: must be JSON of gpuconv.tuning.to_json, but is not: {error}") from None


def _list(folder: Path) -> None:
    index = read_index(folder)
    table = Table(
        "architecture", "solver", "launches", "cubins", "registers", title=escape(str(folder)), title_justify="left"
    )
    listed: list[tuple[str, str, Entry | CudaEntry]] = [(each.arch, each.solver, each) for each in index.entries]
    listed += [(kernel.arch, f"cupy, {kernel.source}.cu", kernel) for kernel in index.cuda]
    groups = Counter((arch, solver) for arch, solver, _ in listed)
    for (arch, solver), count in sorted(groups.items()):
        some = [entry for *group, entry in listed if group == [arch, solver]]
        most = max(entry.registers for entry in some)
        table.add_row(arch, solver, str(count), str(len({entry.cubin for entry in some})), f"up to {most}")
    console = new_console()
    console.print(table)
    console.print(f"{len(listed)} launches, {len(index.cubins)} cubins, kernels {index.sources[:12]}")
    console.print(", ".join(f"{name} {version}" for name, version in sorted(index.versions.items())), markup=False)
    spilling = [entry for *_, entry in listed if entry.stack]
    console.print(f"{len(spilling)} use local memory" if spilling else "none uses local memory")


def _verify(folder: Path) -> None:
    from ..packs import check_parameters, sources_hash

    index = read_index(folder)
    for hash in index.cubins:
        read_cubin(folder, index, hash)
    for entry in index.entries:
        check_parameters(entry, read_cubin(folder, index, entry.cubin))
    same = index.sources == sources_hash()
    console = new_console()
    launches = len(index.entries) + len(index.cuda)
    console.print(f"{len(index.cubins)} cubins are what the index says, {launches} launches")
    console.print("made of the kernels of this library" if same else "made of OTHER kernels than this library's")
    if not same:
        raise typer.Exit(1)


def _build(problems: list[Problem], archs: list[str], out: Path, jobs: int, every_solver: bool, cupy: bool) -> None:
    from ..packing import build_pack

    console = new_console()
    with Progress(console=console, transient=True) as bar:
        task: Any = bar.add_task("compiling", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        try:
            built = build_pack({"solvers" if every_solver else "first": problems}, archs, out, jobs, progress, cupy)
        except OSError as error:
            raise OSError(f"--out {out} cannot be written: {error.strerror or error}") from None
    for failure in built.failures:
        typer.echo(f"error: {failure}", err=True)
    console.print(
        f"{out}: {built.entries} launches ({built.compiled} compiled now), {built.cubins} cubins, {built.bytes:,} bytes"
    )
    if built.failures:
        raise typer.Exit(1)


def pack_command(
    arch: Annotated[list[str] | None, typer.Option(help="Architecture, such as sm_90; may be repeated.")] = None,
    problems: Annotated[
        Path | None, typer.Option(help="JSON list of problems (gpuconv.tuning.to_json).", exists=True)
    ] = None,
    workload: Annotated[list[str] | None, typer.Option(help="A network of bench/workloads; may be repeated.")] = None,
    all_workloads: Annotated[
        bool, typer.Option("--all-workloads", help="Every network of bench/workloads, and KernelBench.")
    ] = False,
    every_solver: Annotated[
        bool,
        typer.Option("--every-solver", help="Plan every solver that takes a problem."),
    ] = False,
    cupy: Annotated[
        bool, typer.Option("--cupy", help="Also every kernel of the CuPy backend, compiled by NVRTC.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the pack; compiled is what it lacks, and what is not asked for is taken away."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes that compile at the same time.", min=1)] = 1,
    list_: Annotated[Path | None, typer.Option("--list", help="Say what a pack has.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Check the index, every cubin by its hash, and what kernels take.")
    ] = None,
) -> None:
    """Compile the kernels of problems ahead of time, for GPUs that need not be here.

    What a pack has is launched without Triton and without a compiler: put its folder into GPUCONV_PACKS.
    """
    try:
        if list_ is not None:
            _list(list_)
        if verify is not None:
            _verify(verify)
        if list_ is not None or verify is not None:
            return
        if not arch or out is None or not (problems or workload or all_workloads or cupy):
            raise typer.BadParameter("give --arch, --out, and --problems, --workload, --all-workloads or --cupy")
        from ..dispatch import from_json

        found = from_json(_json(problems), str(problems)) if problems else []
        if workload or all_workloads:
            found += _workloads(list(workload or []), all_workloads)
        _build(found, arch, out, jobs, every_solver, cupy)
    except (PackError, ValueError, OSError, RuntimeError) as error:
        logger.debug("pack failed", exc_info=True)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
