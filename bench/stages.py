"""The stages of `gpu_report.py`: what each measures, item by item, the most valuable first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .calls import make_tensors
from .cases import Case, all_cases
from .contenders import CONTENDERS
from .measure import PRIMARY, measure, record_key
from .micro import ceiling_items, host_items, micro_items
from .parity import parity_items
from .parity_calls import parity_calls
from .store import Store
from .timing import Clock

__all__ = ["STAGES", "Context", "Item", "Stage", "benchmark_items"]

SECONDARY = (("inductor",), ("flag_gems", "tileops"))

_SANITIZED = 12
"""Problems that compute-sanitizer watches: it slows kernels down by a factor of ten and more."""


@dataclass(frozen=True, slots=True)
class Item:
    """Work that yields one record, or several, in the order of `keys`. Records that exist are not made again."""

    keys: tuple[str, ...]
    run: Callable[[Sequence[str]], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Context:
    """What stages may need: the clock, earlier results, where outputs go, and how long there is."""

    clock: Clock
    store: Store
    out: Path
    seconds_left: Callable[[], float]

    @property
    def dry(self) -> bool:
        return self.clock.device == "cpu"


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the report. `share` is the part of the time that remains, among the stages that remain.

    Several processes work on a `parallel` stage, which times nothing. A `silent` one leaves no records but of crashes.
    """

    name: str
    share: float
    items: Callable[[Context], Iterator[Item]]
    parallel: bool = False
    silent: bool = False


def _single(key: str, run: Callable[[], Mapping[str, Any]]) -> Item:
    def record(missing: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        yield run()  # when asked for it, so that the worker has said what it is about to do

    return Item((key,), record)


def _ceilings(context: Context) -> Iterator[Item]:
    yield from (_single(*item) for item in ceiling_items(context.clock))


def _parity(context: Context) -> Iterator[Item]:
    problems = None
    if context.dry:
        from .dry import tiny_problems

        problems = tiny_problems()
    device = context.clock.device
    yield from (_single(*item) for item in parity_items(device, problems))
    yield from (_single(*item) for item in parity_calls(device, few=context.dry))


def _compile(context: Context) -> Iterator[Item]:
    """Run every case of the benchmark once, so that its kernels are in Triton's cache on disk when they are timed.

    Compilation is most of what a problem takes, and needs processors alone: several of these stages run side by side.
    """
    if context.dry:
        return
    from .contenders import settings

    def run(case: Case) -> dict[str, Any]:
        problem = replace(case.problem, device="cuda:0")
        with settings(problem, search=False):
            CONTENDERS["gpuconv"].call(problem, make_tensors(problem, context.clock.device))()
        return {"status": "ok"}

    for case in all_cases():
        yield _single(case.key, partial(run, case))


def benchmark_items(cases: Sequence[Case], clock: Clock, contenders: Sequence[str] | None = None) -> Iterator[Item]:
    """Yield the measurements of `cases`: ours and torch's of all of them first, then those of slower contenders.

    Inductor compiles for tens of seconds per problem: under a time budget it gets what is left.
    """
    wanted = tuple(CONTENDERS) if contenders is None else tuple(contenders)
    for group in (PRIMARY, *SECONDARY):
        names = tuple(name for name in group if name in wanted)
        if not names:
            continue
        for case in cases:
            keys = {record_key(name, case.key): name for name in names}

            def run(missing: Sequence[str], case: Case = case, keys: dict[str, str] = keys) -> Iterator[dict[str, Any]]:
                problem = replace(case.problem, device="cpu" if clock.device == "cpu" else "cuda:0")
                chosen = [keys[key] for key in missing]
                for record in measure(problem, chosen, clock):
                    yield {"problem": case.key, **record}

            yield Item(tuple(keys), run)


def _benchmark(context: Context) -> Iterator[Item]:
    if context.dry:
        from .dry import tiny_cases

        yield from benchmark_items(tiny_cases(), context.clock)
    else:
        yield from benchmark_items(all_cases(), context.clock)


def _micro(context: Context) -> Iterator[Item]:
    items = micro_items(context.clock, 1 if context.dry else 6)
    yield from (_single(*item) for item in items)


def _host(context: Context) -> Iterator[Item]:
    yield from (_single(*item) for item in host_items(context.clock))


def _sanitize(tool: str, path: str, context: Context) -> dict[str, Any]:
    """Run a few problems of the parity stage in a process of their own, under one tool of compute-sanitizer."""
    script = Path(__file__).with_name("gpu_report.py")
    command = [path, "--tool", tool, "--error-exitcode", "9", sys.executable, str(script), "--watched", str(_SANITIZED)]
    limit = max(30.0, min(120.0, context.seconds_left()))
    # Without the cache of torch's allocator every tensor is an allocation of its own, whose ends the tool watches.
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env, check=False)
    except subprocess.TimeoutExpired:
        return {"status": "not run", "why": f"not finished after {limit:.0f} s"}
    tail = (done.stdout + done.stderr)[-1500:]
    return {"status": "ok" if done.returncode == 0 else "wrong", "returncode": done.returncode, "output": tail}


def _sanitizer(context: Context) -> Iterator[Item]:
    path = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    for tool in ("memcheck", "racecheck"):
        if context.dry or path is None:
            why = "a dry run has no GPU" if context.dry else "compute-sanitizer is not installed"
            yield _single(tool, partial(dict, status="not run", why=why))
        else:
            yield _single(tool, partial(_sanitize, tool, path, context))


def _tune(context: Context) -> Iterator[Item]:
    from .tuning import tuning_items

    yield from (_single(*item) for item in tuning_items(context))


def _fit(context: Context) -> Iterator[Item]:
    from .tuning import fit_items

    yield from (_single(*item) for item in fit_items(context))


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ceilings", 0.02, _ceilings),
        Stage("parity", 0.16, _parity, parallel=True),
        Stage("compile", 0.08, _compile, parallel=True, silent=True),
        Stage("benchmark", 0.36, _benchmark),
        Stage("micro", 0.18, _micro),
        Stage("host", 0.02, _host),
        Stage("tune", 0.12, _tune),
        Stage("sanitizer", 0.06, _sanitizer),
        Stage("fit", 0.02, _fit),
    )
}
"""In the order in which they run."""
