"""The tuning and fit stages of `gpu_report.py`, by gpuconv's tuner and cost model where this version has them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuconv.problem import ConvProblem, Problem

from .cases import all_cases, problem_key
from .store import write_atomically

if TYPE_CHECKING:
    from .stages import Context

__all__ = ["fit_items", "samples_of", "tuning_items"]

Item = tuple[str, Callable[[], dict[str, Any]]]

_PROBLEMS_PER_ITEM = 8
_SECONDS_PER_ITEM = 100.0


def _missing(module: str) -> bool:
    return find_spec(module) is None


def _not_run(why: str) -> Item:
    return "all", partial(dict, status="not run", why=why)


def _tune(problems: list[Problem], context: Context) -> dict[str, Any]:
    """Tune some problems into a cache folder of their own, and keep its files in ``tuned.json``."""
    from gpuconv.tuning.tune import tune

    folder = Path(os.environ.setdefault("GPUCONV_CACHE_DIR", tempfile.mkdtemp(prefix="gpuconv-tuned-")))
    result = tune(problems, budget_s=min(_SECONDS_PER_ITEM, context.seconds_left()))
    files = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.json"))}
    write_atomically(context.out / "tuned.json", json.dumps(files, indent=1) + "\n")
    return {"status": "ok", "problems": [problem_key(problem) for problem in problems], "result": str(result)[:1000]}


def tuning_items(context: Context) -> Iterator[Item]:
    """Yield batches of the convolutions of the workloads, the most valuable first."""
    if _missing("gpuconv.tuning.tune"):
        yield _not_run("gpuconv.tuning.tune is not in this version")
        return
    if context.dry:
        yield _not_run("a dry run has no GPU to tune for")
        return
    problems = [case.problem for case in all_cases() if isinstance(case.problem, ConvProblem)]
    for start in range(0, len(problems), _PROBLEMS_PER_ITEM):
        batch = problems[start : start + _PROBLEMS_PER_ITEM]
        yield f"problems {start} to {start + len(batch) - 1}", partial(_tune, batch, context)


def samples_of(records: list[dict[str, Any]], problems: dict[str, Problem]) -> list[tuple[Problem, str, Any, float]]:
    """Return (problem, solver, config, microseconds) of every kernel time of ours in `records`."""
    found = []
    for record in records:
        ours = record["stage"] == "micro" or record.get("contender") == "gpuconv"
        problem = problems.get(record.get("problem", ""))
        if ours and record.get("status") == "ok" and "kernel" in record and isinstance(problem, ConvProblem):
            found.append((problem, record["solver"], record["config"], record["kernel"]["p50"]))
    return found


def _fit(samples: list[tuple[Problem, str, Any, float]]) -> dict[str, Any]:
    from gpuconv.tuning import cost_model

    constants = cost_model.fit(cost_model.Sample(*sample) for sample in samples)
    return {"status": "ok", "samples": len(samples), "constants": {k: float(v) for k, v in constants.values.items()}}


def fit_items(context: Context) -> Iterator[Item]:
    """Yield the fit of the cost model's constants to the kernel times of this run."""
    if _missing("gpuconv.tuning.cost_model"):
        yield _not_run("gpuconv.tuning.cost_model is not in this version")
        return
    if context.dry:
        yield _not_run("times of the interpreter say nothing")
        return
    cases = all_cases(numbers=("float16", "bfloat16", "tf32", "float32"))
    samples = samples_of(context.store.current(), {case.key: case.problem for case in cases})
    if not samples:
        yield _not_run("no kernel times of convolutions in this run")
        return
    # A resumed run that has more of them fits again.
    yield f"constants from {len(samples)} samples", partial(_fit, samples)
