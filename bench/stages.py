"""The stages of `gpu_report.py`: what each measures, item by item, the most valuable first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any

from gpuconv.problem import Problem

from .calls import make_tensors
from .cases import Case
from .contenders import CONTENDERS, Gpuconv
from .items import Context, Item
from .measure import PRIMARY, measure, record_key
from .micro import ceiling_items, host_items, micro_items
from .parity import parity_items
from .parity_calls import parity_calls
from .timing import Clock

__all__ = ["STAGES", "Stage", "allotted", "benchmark_items", "listed", "solvers_in_front"]

SECONDARY = (("inductor",), ("flag_gems", "tileops"))

_COMPILED = 300
"""Cases whose kernels are compiled ahead: more than a run of ten minutes times."""

_INDUCTOR_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the report. `share` is the part of the time that remains, among the stages that remain.

    Several processes work on a `parallel` stage, which times nothing. A `silent` one leaves no records but of failures.
    `least` is how many seconds it gets at least, and `item_limit` after how many an item counts as hung.
    """

    name: str
    share: float
    items: Callable[[Context], Iterator[Item]]
    parallel: bool = False
    silent: bool = False
    least: float = 0.0
    item_limit: float = 60.0


def allotted(stages: Sequence[Stage], asked: Mapping[str, float | None], left: float) -> float:
    """Return the seconds of the first of the stages that remain, of the `left` ones: those asked for, or its share."""
    first, left = stages[0], max(left, 0.0)
    given = asked.get(first.name)
    if given is not None:
        return min(given, left)
    free = [stage for stage in stages if asked.get(stage.name) is None]
    shared = left - sum(asked.get(stage.name) or 0.0 for stage in stages)
    return min(left, max(first.least, shared * first.share / sum(stage.share for stage in free)))


def _single(key: str, run: Callable[[], Mapping[str, Any]]) -> Item:
    def record(missing: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        yield run()  # when asked for it, so that the worker has said what it is about to do

    return Item((key,), record)


def listed(what: str, items: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """Yield `items`; what listing them raises is raised by an item that stands for the rest, and so is recorded."""
    try:
        yield from items()
    except Exception as error:
        yield _single(f"gpuconv: the list of {what} ends here", partial(_raise, error))


def _raise(error: Exception) -> Mapping[str, Any]:
    raise error


def _singles(found: Iterable[tuple[str, Callable[[], Mapping[str, Any]]]]) -> Iterator[Item]:
    return (_single(*item) for item in found)


def _ceilings(context: Context) -> Iterator[Item]:
    yield from _singles(ceiling_items(context.clock))


def _parity(context: Context) -> Iterator[Item]:
    device = context.clock.device

    def problems() -> Iterator[Item]:
        tiny = None
        if context.dry:
            from .dry import tiny_problems

            tiny = tiny_problems()
        return _singles(parity_items(device, tiny))

    def calls() -> Iterator[Item]:
        return _singles(parity_calls(device, few=context.dry))

    yield from solvers_in_front(chain(listed("problems", problems), listed("calls", calls)))


def solvers_in_front(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the first item of each solver, which its key begins with, then the others: a short run has seen all."""
    seen: set[str] = set()
    others = []
    for item in items:
        solver = item.keys[0].partition(" | ")[0]
        if solver in seen:
            others.append(item)
        else:
            seen.add(solver)
            yield item
    yield from others


def _compile(context: Context) -> Iterator[Item]:
    """Run the cases that are measured next once, so that their kernels are in Triton's cache when they are timed.

    Compilation is most of what a problem takes, and needs processors alone: several of these stages run side by side.
    """
    if context.dry or context.packed:
        return
    from .contenders import settings

    def run(case: Case) -> dict[str, Any]:
        problem = replace(case.problem, device="cuda:0")
        with settings(problem, search=False):
            CONTENDERS["gpuconv"].call(problem, make_tensors(problem, context.clock.device))()
        return {"status": "ok"}

    def items() -> Iterator[Item]:
        keys = ((case, record_key("gpuconv", case.key)) for case in context.cases())
        for case, key in islice((pair for pair in keys if not context.store.done("benchmark", pair[1])), _COMPILED):
            yield replace(_single(case.key, partial(run, case)), serves=("benchmark", key))

    yield from listed("cases to compile", items)


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
            problem = replace(case.problem, device="cpu" if clock.device == "cpu" else "cuda:0")

            def run(
                missing: Sequence[str], case: Case = case, keys: dict[str, str] = keys, problem: Problem = problem
            ) -> Iterator[dict[str, Any]]:
                for record in measure(problem, [keys[key] for key in missing], clock):
                    yield {"problem": case.key, **record}

            limit = _INDUCTOR_SECONDS if "inductor" in names else None
            yield Item(tuple(keys), run, partial(_stands, problem), limit=limit)


def _stands(problem: Problem, record: Mapping[str, Any]) -> bool:
    """Tell whether a record of the benchmark is still of what a call runs."""
    contender = CONTENDERS[record["contender"]] if "contender" in record else None
    if not isinstance(contender, Gpuconv) or "solver" not in record:
        return True
    return contender.stands(problem, record)


def _benchmark(context: Context) -> Iterator[Item]:
    contenders = PRIMARY if context.packed else None  # the others compile
    yield from listed("cases", lambda: benchmark_items(context.cases(), context.clock, contenders))


def _micro(context: Context) -> Iterator[Item]:
    if context.packed:
        why = "kernels and configs of its own, which no pack has"
        yield _single("all", partial(dict, status="not run", why=why))
        return
    yield from listed("sweeps", lambda: _singles(micro_items(context.clock, 1 if context.dry else 6)))


def _host(context: Context) -> Iterator[Item]:
    yield from _singles(host_items(context.clock))


def _sanitizer(context: Context) -> Iterator[Item]:
    from .sanitizer import sanitizer_items

    yield from _singles(sanitizer_items(context.dry, context.seconds_left))


def _tune(context: Context) -> Iterator[Item]:
    from .tuning import tuning_items

    yield from listed("problems", lambda: _singles(tuning_items(context)))


def _fit(context: Context) -> Iterator[Item]:
    from .tuning import fit_items

    yield from listed("samples", lambda: _singles(fit_items(context)))


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ceilings", 0.02, _ceilings, least=30.0),
        Stage("parity", 0.16, _parity, parallel=True, item_limit=45.0),
        Stage("compile", 0.08, _compile, parallel=True, silent=True, item_limit=45.0),
        Stage("benchmark", 0.36, _benchmark, item_limit=45.0),
        Stage("micro", 0.18, _micro, item_limit=45.0),
        Stage("host", 0.02, _host),
        Stage("sanitizer", 0.06, _sanitizer, item_limit=150.0),
        Stage("tune", 0.12, _tune, item_limit=100.0),
        Stage("fit", 0.02, _fit),
    )
}
"""In the order in which they run."""
