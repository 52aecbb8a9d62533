"""``gpuconv demo``: a photograph through convolutions and poolings, each checked by a referee that is not this library.

The referee is PyTorch on the CPU in float64, and its times in float32 stand beside ours. Without torch the referee is
the definition itself, evaluated on a crop. NumPy and matplotlib are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..dispatch import record_plans
from ..errors import NoSolverError
from .demo_parts import Array, aligned, processor, timed
from .demo_picture import Bar, Tile, draw
from .demo_referee import by_definition, in_torch
from .demo_steps import Step, ours, photograph, steps

__all__ = ["AGREE", "Outcome", "missing_packages", "run_demo"]

AGREE = 1e-4
"""Largest error, relative to the referee's largest value, at which the demonstration counts as right."""

_CROP = 48
_PACKAGES = {"matplotlib": "matplotlib", "PIL": "pillow"}
"""What the demonstration imports, and what installs it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did. `error` is None where nothing was compared, and `theirs` where torch is not installed."""

    step: Step
    result: Array | None
    solver: str
    milliseconds: float
    error: float | None
    referee: str
    theirs: float | None = None
    calls: tuple[str, ...] = ()
    copied: int = 0


def missing_packages() -> str | None:
    """Return what to install before the demonstration can run, or None."""
    missing = [package for name, package in _PACKAGES.items() if find_spec(name) is None]
    return f"demo needs {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else None


def _sentence(refusal: NoSolverError) -> str:
    """Return the first line, which says why and what would help."""
    return str(refusal).partition("\n")[0]


def _error(result: Array, expected: Array) -> float:
    if result.shape != expected.shape:
        return float("inf")
    return float(np.abs(result - expected).max() / np.abs(expected).max())


def _run(step: Step, x: Array) -> Outcome:
    try:
        with record_plans() as plans:
            result, milliseconds = timed(lambda: ours(step, x))
    except NoSolverError as refusal:
        return Outcome(step, None, _sentence(refusal), 0.0, None, "not compared")
    done = (step, result, plans[-1].solver.id, milliseconds)
    if find_spec("torch") is not None:
        with import_module("torch").inference_mode():
            theirs = in_torch(step, x)
            _, torch_milliseconds = timed(theirs.run)
            error = _error(result, in_torch(step, x, wide=True).run().numpy())
        return Outcome(*done, error, "torch float64", torch_milliseconds, theirs.calls, theirs.copied)
    side = _CROP // 4 if step.op == "conv_transpose2d" else _CROP
    x = np.ascontiguousarray(x[..., :side] if step.op == "conv1d" else x[:, :, :side, :side])
    return Outcome(*done, _error(ours(step, x), by_definition(step, x)), f"definition, {side}x{side}")


def _table(photo: Array, outcomes: Sequence[Outcome]) -> str:
    torch = any(o.theirs is not None for o in outcomes)
    columns = ["operation", "solver that ran", ">ms", *([">torch ms", ">here/torch"] if torch else []), ">error"]
    rows = []
    for o in outcomes:
        error = "not measured" if o.error is None else f"{o.error:.1e}"
        solver = o.solver if o.result is not None else "none, see below"
        theirs = [] if not torch else ["", ""] if o.theirs is None else [f"{o.theirs:.2f}", _ratio(o)]
        rows.append([o.step.title, solver, f"{o.milliseconds:.2f}", *theirs, error])
    size = "x".join(map(str, photo.shape[2:]))
    referees = dict.fromkeys(o.referee for o in outcomes)
    title = f"Photograph, {size}, float32, on {processor()}; errors against {', '.join(referees)}"
    return aligned(title, columns, rows)


def _ratio(outcome: Outcome) -> str:
    return f"{outcome.milliseconds / outcome.theirs:.3g}" if outcome.theirs else ""


def _several(outcomes: Sequence[Outcome]) -> str:
    """Return what torch needs for what is one call here."""
    rows = [
        [o.step.title, " ".join(o.calls), f"{o.copied:,} bytes" if o.copied else "none"]
        for o in outcomes
        if o.step.alone and o.calls
    ]
    title = "One call here, and what torch.nn.functional needs"
    return aligned(title, ["operation", "calls of torch", ">padded copy of the input"], rows) if rows else ""


def _picture(path: Path, photo: Array, outcomes: Sequence[Outcome]) -> None:
    size = "x".join(map(str, photo.shape[2:]))
    tiles = [Tile("Photograph", f"{size}, float32", "", photo[0])]
    bars = []
    for o in outcomes:
        if o.result is not None:
            picture = o.step.view(o.result)
            detail = f"{o.step.note}; {'x'.join(map(str, picture.shape[1:]))}"
            several = f"torch: {' '.join(o.calls)}" if o.step.alone and o.calls else ""
            tiles.append(Tile(o.step.title, detail, several or o.solver, picture, o.step.alone))
            bars.append(Bar(o.step.title, o.milliseconds, o.theirs))
    draw(path, tiles, bars, processor())


def run_demo(output: Path, quick: bool, say: Callable[[str], None]) -> bool:
    """Run everything, `say` the tables, write ``demo.png`` to `output`; return whether all results agree."""
    output.mkdir(parents=True, exist_ok=True)
    photo = photograph(quick)
    outcomes: list[Outcome] = []
    for step in steps(*photo.shape[2:]):
        earlier = {o.step.title: o.result for o in outcomes}
        x = photo if step.source == "photograph" else earlier[step.source]
        if x is not None:
            outcomes.append(_run(step, step.take(x)))
    say(_table(photo, outcomes))
    for refused in (o.solver for o in outcomes if o.result is None):
        say(refused)
    if several := _several(outcomes):
        say(several)
    picture = output / "demo.png"
    _picture(picture, photo, outcomes)
    say(f"Picture: {picture}")
    errors = [o.error for o in outcomes if o.error is not None]
    if not quick:
        errors += _network(photo, say)
    if not errors:
        say("Nothing ran, so nothing was compared.")
        return False
    agree = max(errors) <= AGREE
    verdict = "All results agree with the referee" if agree else "RESULTS DIFFER from the referee"
    say(f"{verdict}: largest error {max(errors):.1e} of the largest value (at most {AGREE:g}).")
    return agree


def _network(photo: Array, say: Callable[[str], None]) -> list[float]:
    """Run ResNet-50 and return its largest error, or say why not."""
    if find_spec("torch") is None:
        say("ResNet-50: not run, because it is compared with torch, which is not installed")
        return []
    from .demo_resnet import run_resnet

    try:
        return [run_resnet(photo, say)]
    except NoSolverError as refusal:
        say(f"ResNet-50: not run: {_sentence(refusal)}")
        return []
