"""``gpuconv tune``: time configs of the problems in a file, keep the fastest, and fit the cost model to the timings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from ..config import logger
from ..costs import Constants, Gpu, constants_of_gpu, gpu_of, user_constants_path
from ..costs import measured as cache
from ..dispatch import from_json
from ..problem import Problem
from .explain import new_console

__all__ = ["tune_command"]

RECORDS_SCHEMA = 1


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _records(paths: list[Path]) -> list[Any]:
    found = []
    for path in paths:
        data = _load(path)
        if not isinstance(data, dict) or data.get("schema") != RECORDS_SCHEMA:
            raise ValueError(f"{path}: must be what --output wrote, with schema {RECORDS_SCHEMA}")
        found += data.get("records", [])
    return found


def _tune(problems: list[Problem], budget: float | None, most: int) -> list[Any]:
    """Tune with a progress bar, and print what was found."""
    from ..tuning import Record, tune

    console = new_console()
    table = Table("problem", "default", "fastest", "solver", title="Tuned", title_justify="left")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("tuning", total=len(problems))

        def progress(done: int, total: int, record: Record) -> None:
            bar.update(task, completed=done, total=total)
            best = record.best
            if best is None:
                table.add_row(record.problem.op, "-", "-", record.timings[0].reason if record.timings else "no solver")
                return
            default = [each for each in record.timings if each.default and each.solver == best.solver]
            took = default[0].microseconds if default else None
            x = "x".join(map(str, record.problem.x_shape))
            table.add_row(
                f"{record.problem.op} {record.problem.kind} {x}", "-" if took is None else f"{took:,.1f} us",
                f"{best.microseconds:,.1f} us", best.solver,
            )  # fmt: skip

        records = tune(problems, budget_s=budget, progress=progress, most=most)
    console.print(table)
    kept = sum(record.saved for record in records)
    console.print(f"{len(records)} of {len(problems)} problems timed, {kept} kept for processes that start later.")
    for name in sorted({record.gpu for record in records if record.saved}):
        console.print(str(cache.cache_path(name)), soft_wrap=True)
    return records


def _show_fit(before: Constants, after: Constants) -> None:
    table = Table("constant", "before", "source", "fitted", title="Cost model", title_justify="left")
    for name, source in after.sources.items():
        if source == "fitted":
            table.add_row(name, f"{before.values[name]:.4g}", before.sources[name], f"{after.values[name]:.4g}")
    console = new_console()
    console.print(table)
    console.print(str(user_constants_path(after.gpu)), soft_wrap=True)


def _fit(records: list[Any]) -> None:
    """Fit to the timings of records as plain data, which are of one GPU; it need not be here."""
    from ..tuning import fit_to_user, samples_from_json

    samples = samples_from_json(records)
    if not samples:
        raise ValueError("--fit needs timings: of problems that were tuned, or in --samples files")
    names = sorted({str(record.get("gpu")) for record in records})
    if len(names) > 1:
        raise ValueError(f"--fit needs timings of one GPU, and these are of {', '.join(names)}")
    here = gpu_of(samples[0].problem.device)
    gpu = here if here is not None and here.name == names[0] else Gpu(names[0], (9, 0))
    _show_fit(constants_of_gpu(gpu), fit_to_user(samples, gpu))


def tune_command(
    problems: Annotated[
        Path | None, typer.Argument(help="JSON list of problems (gpuconv.tuning.to_json).", exists=True)
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Begin no problem after this many seconds.")] = None,
    most: Annotated[int, typer.Option(help="Configs to time per problem, beside each solver's default.", min=1)] = 8,
    output: Annotated[Path | None, typer.Option(help="Write every timing to this JSON file.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the cost model to the timings, for this user.")] = False,
    samples: Annotated[
        list[Path] | None, typer.Option(help="Fit to the timings that --output wrote here, too.", exists=True)
    ] = None,
) -> None:
    """Time configs of recorded problems on this GPU; later processes use the fastest.

    Record the problems of a model with ``gpuconv.record_problems()``, and write them with
    ``gpuconv.tuning.to_json``.
    """
    if problems is None and not samples:
        raise typer.BadParameter("give a file of problems, or --samples with --fit")
    try:
        records: list[Any] = []
        if problems is not None:
            if _torch() is None:
                raise ValueError("tuning needs torch, which is not installed")
            found = _tune(from_json(_load(problems), str(problems)), budget, most)
            records = [record.to_json() for record in found]
        if output is not None:
            data = {"schema": RECORDS_SCHEMA, "records": records}
            output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        if fit:
            _fit(records + _records(samples or []))
    except (RuntimeError, ValueError, OSError) as error:
        logger.debug("tune failed", exc_info=True)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _torch() -> Any:
    """Import torch, by which GPUs are known, and initialise its CUDA where there is one; None without torch."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return None
    import torch

    if torch.cuda.is_available():
        torch.cuda.init()
    return torch
