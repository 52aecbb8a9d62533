"""One measurement: the parity gate, then the clocks. A contender that computes something else gets no time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gpuconv.problem import ConvProblem, Problem
from gpuconv.tuning.trial import context_lost, reason_of

from .calls import make_tensors, operand_bytes
from .contenders import CONTENDERS, Contender, settings
from .referee import Referee, poisoned, replayed
from .timing import Clock

__all__ = ["PRIMARY", "ceilings", "figures", "measure", "number_format", "record_key"]

PRIMARY = ("gpuconv", "torch_channels_last", "torch_contiguous", "gpuconv_cupy")


def number_format(problem: Problem) -> str:
    """Return the name of the ceiling of a problem's arithmetic: its dtype, or tf32."""
    return "tf32" if problem.dtype == "float32" and getattr(problem, "precision", "") == "tf32" else problem.dtype


def record_key(contender: str, key: str) -> str:
    """Return the identity of a measurement in results."""
    return f"{contender} | {key}"


def _gate(contender: Contender, problem: Problem, referee: Referee) -> dict[str, Any]:
    """Judge a repeated call, ours on poisoned memory; return the record's fields, ``status`` among them."""
    with poisoned() if contender.ours else nullcontext():
        call = contender.call(problem, referee.tensors)
        found = contender.solver(problem, call)
        for _ in range(2 if contender.ours else 1):  # unobserved, the first is recorded anew, the second a replay
            result = call()
        if contender.ours:
            found["replayed"] = replayed()
    with settings(None, search=False):
        judged = referee.verdict(result)
    return {**found, "gate": dict(judged), "status": "ok" if judged.ok else "wrong"}


def measure(problem: Problem, names: Sequence[str], clock: Clock) -> Iterator[dict[str, Any]]:
    """Yield one record per contender: what ran, the gate's verdict, kernel and eager time.

    ``status`` is ``ok``, ``wrong`` (the gate refused it: no times), ``not run`` (with ``why``) or ``error``. The
    referee computes once for all of them.
    """
    size = operand_bytes(problem)
    referee: Referee | None = None
    for name in names:
        contender = CONTENDERS[name]
        record: dict[str, Any] = {"contender": name}
        reason = contender.why_not(problem)
        if reason:
            yield record | {"status": "not run", "why": reason}
            continue
        try:
            with settings(problem):
                referee = referee or Referee(problem, make_tensors(problem, clock.device))
                record |= _gate(contender, problem, referee)
                if record["status"] == "ok":
                    record |= _times(contender, problem, clock, size)
        except Exception as error:
            if context_lost() is not None:
                raise  # nothing works in this process any more
            if isinstance(error, torch.cuda.OutOfMemoryError):
                referee = None  # it holds memory
            missing = isinstance(error, torch.cuda.OutOfMemoryError | NotImplementedError)
            record |= {"status": "not run" if missing else "error", "why": reason_of(error)}
        yield record
        if clock.device == "cuda":
            torch.cuda.empty_cache()


def _times(contender: Contender, problem: Problem, clock: Clock, size: int) -> dict[str, Any]:
    """Return kernel and eager time on rotating operands, and for ours whether the calls were replays."""
    sets = [make_tensors(problem, clock.device, seed) for seed in range(clock.sets(size))]
    calls = [contender.call(problem, tensors) for tensors in sets]
    found: dict[str, Any] = {"kernel": clock.kernel(calls, size).record(), "eager": clock.eager(calls).record()}
    if contender.ours:
        found["replayed"] = replayed()
    return found | {"sets": len(sets)}


def figures(problem: Problem, microseconds: float, limits: Mapping[str, float]) -> dict[str, float | None]:
    """Return TFLOP/s, GB/s and the fraction of the roofline that the measured ceilings allow.

    `limits` holds ``copy`` in bytes per microsecond and, per number format, FLOP per microsecond of a large GEMM. The
    bytes are those that must move at least. Poolings are judged by their bytes alone.
    """
    multiplies = isinstance(problem, ConvProblem)
    floor = None
    if "copy" in limits and (not multiplies or number_format(problem) in limits):
        floor = problem.min_bytes / limits["copy"]
        if multiplies:
            floor = max(floor, problem.flops / limits[number_format(problem)])
    return {
        "tflops": problem.flops / microseconds / 1e6 if multiplies else None,
        "gbps": problem.min_bytes / microseconds / 1e3,
        "roofline": None if floor is None else floor / microseconds,
    }


def ceilings(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the limits for :func:`figures` from the records of the stage ``ceilings``."""
    return {
        record["key"].removeprefix("gemm "): record["per_us"]
        for record in records
        if record.get("stage") == "ceilings" and "per_us" in record
    }
