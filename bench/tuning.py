"""The tuning and fit stages of `gpu_report.py`, by gpuconv's tuner and cost model where this version has them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpuconv.packs.origins import NOT_PACKED
from gpuconv.problem import ConvProblem, Problem

from .cases import all_cases, everything, problem_key
from .items import Context
from .store import write_atomically

__all__ = ["fit_items", "samples_of", "tuning_items"]

Item = tuple[str, Callable[[], dict[str, Any]]]

_SECONDS_PER_PROBLEM = 60.0


def _not_run(why: str) -> Item:
    return "all", partial(dict, status="not run", why=why)


class _DryTimer:
    """One interpreted launch by the host's clock: it says nothing, and takes the tuner through its steps."""

    launches = False  # results are not compared here: that takes two more launches for each config

    def __init__(self, context: Context) -> None:
        self._clock = context.clock

    def __call__(self, plan: Any, launch: Callable[[], Any]) -> float:
        return self._clock.eager([launch]).p50


@contextmanager
def _cache_folder(out: Path) -> Iterator[Path]:
    """Give the tuner a cache of its own, filled from ``tuned.json`` and kept there.

    What it finds must not change what the other stages measure, which read the cache of the environment.
    """
    before = os.environ.get("GPUCONV_CACHE_DIR")
    kept = out / "tuned.json"
    with tempfile.TemporaryDirectory(prefix="gpuconv-tuned-") as name:
        folder = Path(name)
        for path, text in json.loads(kept.read_text()).items() if kept.exists() else ():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        os.environ["GPUCONV_CACHE_DIR"] = name
        try:
            yield folder
            files = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.json"))}
            if files:
                write_atomically(kept, json.dumps(files, indent=1) + "\n")
        finally:
            del os.environ["GPUCONV_CACHE_DIR"]
            if before is not None:
                os.environ["GPUCONV_CACHE_DIR"] = before


def _tune(problem: Problem, context: Context) -> dict[str, Any]:
    from gpuconv.tuning.search import tune

    budget = min(_SECONDS_PER_PROBLEM, max(1.0, context.seconds_left()))
    dry = {"timer": _DryTimer(context), "most": 1} if context.dry else {}
    with _cache_folder(context.out):
        (record,) = tune([problem], budget_s=budget, **dry)
    best = record.best
    usual = [timing.microseconds for timing in record.timings if timing.default and timing.microseconds is not None]
    found: dict[str, Any] = {"problem": problem_key(problem), "tuning": record.to_json()}
    lacking = [timing.reason for timing in record.timings if NOT_PACKED in (timing.reason or "")]
    if lacking:
        found["not_packed"] = len(lacking)
    if best is None:
        return found | {"status": "not run", "why": lacking[0] if lacking else "no config could be timed"}
    gain = min(usual) / best.microseconds if usual else None
    return found | {"status": "ok", "best_us": best.microseconds, "default_us": min(usual, default=None), "gain": gain}


def tuning_items(context: Context) -> Iterator[Item]:
    """Yield the convolutions of the workloads, the most valuable first, one by one."""
    if find_spec("gpuconv.tuning.search") is None:
        yield _not_run("gpuconv.tuning.search is not in this version")
        return
    problems: list[Problem] = [case.problem for case in context.cases() if isinstance(case.problem, ConvProblem)]
    for problem in problems[:2] if context.dry else problems:
        yield problem_key(problem), partial(_tune, problem, context)


def samples_of(
    records: Sequence[Mapping[str, Any]], problems: Mapping[str, Problem]
) -> list[tuple[Problem, str, Mapping[str, Any], float]]:
    """Return (problem, solver, config, microseconds) of every time of a Triton convolution in `records`.

    These are our times of the benchmark and those of the sweeps; tuning keeps its own samples.
    """
    found = []
    for record in records:
        ours = record["stage"] == "micro" or record.get("contender") == "gpuconv"
        problem = problems.get(record.get("problem", ""))
        if ours and "kernel" in record and isinstance(problem, ConvProblem) and record["solver"].startswith("triton."):
            found.append((problem, record["solver"], record["config"], record["kernel"]["p50"]))
    return found


def _fit(samples: list[Any], dry: bool) -> dict[str, Any]:
    from gpuconv.tuning.fitting import fit

    constants = fit(samples)
    if dry:
        return {"status": "not run", "why": "times of the interpreter say nothing about a GPU", "samples": len(samples)}
    return {"status": "ok", "samples": len(samples), "constants": constants.to_json()}


def fit_items(context: Context) -> Iterator[Item]:
    """Yield the fit of the cost model's constants to every kernel time of this run."""
    if find_spec("gpuconv.costs.model") is None or find_spec("gpuconv.tuning.search") is None:
        yield _not_run("gpuconv.tuning has no cost model in this version")
        return
    from gpuconv.tuning.fitting import Sample
    from gpuconv.tuning.search import samples_from_json

    if context.dry:
        from .dry import tiny_cases

        cases = tiny_cases()
    else:
        cases = all_cases(everything(), ("float16", "bfloat16", "tf32", "float32"))
    records = context.store.current()
    samples = [Sample(*sample) for sample in samples_of(records, {case.key: case.problem for case in cases})]
    samples += samples_from_json([record["tuning"] for record in records if "tuning" in record])
    if not samples:
        yield _not_run("no kernel times of convolutions in this run")
        return
    # A resumed run that has more of them fits again.
    yield f"constants from {len(samples)} samples", partial(_fit, samples, context.dry)
