"""The cost model: estimated microseconds of a launch that is described, whether its kernel is written or not.

A launch is described by :class:`Work`: what one program computes, reads, issues and waits for, and how many programs
there are. With the rates of a GPU (:class:`.constants.Constants`) each of these becomes a time of the busiest
multiprocessor, which runs ``ceil(programs / multiprocessors)`` programs, ``resident`` of them at once:

======== ================================================================================================
term     microseconds
======== ================================================================================================
pipe     FLOPs, padding of tiles included, over the rate of the tensor cores or of the FMA pipe, times what
         tiles of this shape and operands on this path reach of it
l2       bytes that programs read through L2 over its bandwidth, or over what one multiprocessor takes
dram     bytes that must move at least over the bandwidth of memory
issue    instructions of warps over those that a multiprocessor issues
wait     round trips to memory that one program makes in turn, times the rounds of programs
======== ================================================================================================

The estimate is the longest term, a fraction of the others (what does not hide behind it), a fixed time, and for further
launches theirs and the time of the bytes that they move. All of it is arithmetic on arrays, with one element for each
config. :func:`fit` finds the constants under which the model agrees best with timings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import numpy as np

from ..problem import Problem
from .constants import PATHS, PIPES, Constants, constants_of

__all__ = ["Sample", "Work", "concatenate", "estimate", "fit", "fit_work", "terms"]

_BYTES_PER_CLOCK = 64
"""Bytes that one multiprocessor takes from L2 in a clock at most (A100 white paper; assumed for others)."""

_PRIOR = 0.7
"""Standard deviation that constants have before they are fitted, in logarithms: a factor of two."""

_NOISE = 0.1
"""Standard deviation of timings and of the model's form, in logarithms."""


@dataclass(frozen=True, slots=True)
class Work:
    """Launches described by what they do. Every field is an array of one element per config, or a number for all.

    `pipe` and `path` are places in :data:`.constants.PIPES` and :data:`.constants.PATHS`. `flops`, `l2_bytes`,
    `instructions` (of warps) and `chain` (round trips to memory in turn) are of one program, `dram_bytes` and
    `extra_bytes` (of passes before and after) of everything.
    """

    programs: Any
    resident: Any
    pipe: Any
    path: Any
    flops: Any
    feed: Any
    l2_bytes: Any
    dram_bytes: Any
    instructions: Any
    chain: Any
    extra_bytes: Any = 0.0
    launches: Any = 1.0


def concatenate(works: Sequence[Work]) -> Work:
    """Return the configs of several works in one, in their order."""
    columns: dict[str, Any] = {}
    sizes = [len(np.atleast_1d(np.asarray(work.programs))) for work in works]
    for field in fields(Work):
        parts = [np.broadcast_to(getattr(work, field.name), size) for work, size in zip(works, sizes, strict=True)]
        columns[field.name] = np.concatenate(parts)
    return Work(**columns)


def terms(work: Work, constants: Constants) -> dict[str, np.ndarray]:
    """Return the microseconds of each term of `work` that may hide behind another, by name; see the module."""
    value = constants.values
    sms, clock = value["sms"], value["clock_ghz"]
    programs = np.maximum(np.asarray(work.programs, float), 1)
    busy = np.ceil(programs / sms)
    rounds = np.ceil(programs / (sms * np.asarray(work.resident)))
    per_sm = np.minimum(value["l2_tb_s"] * 1e6 / np.minimum(programs, sms), _BYTES_PER_CLOCK * clock * 1e3)
    rate = constants.pipe_rates[work.pipe] * constants.efficiencies[work.path]
    return {
        "pipe": busy * work.flops * (sms / 1e6) / (rate * work.feed),
        "l2": busy * work.l2_bytes / per_sm,
        "dram": np.asarray(work.dram_bytes / (value["dram_tb_s"] * 1e6), float),
        "issue": busy * work.instructions / (value["issue_per_clock"] * clock * 1e3),
        "wait": rounds * work.chain * value["latency_us"],
    }


def estimate(work: Work, constants: Constants) -> np.ndarray:
    """Return the estimated microseconds of each config of `work` on a GPU."""
    value = constants.values
    found = list(terms(work, constants).values())
    longest, total = found[0], found[0]
    for term in found[1:]:
        longest, total = np.maximum(longest, term), total + term
    extra = np.asarray(work.extra_bytes, float)
    in_l2 = extra < value["l2_mib"] * 2**20
    passes = extra / np.where(in_l2, value["l2_tb_s"] * 1e6, value["dram_tb_s"] * 1e6)
    launches = value["fixed_us"] + (np.asarray(work.launches) - 1) * value["launch_us"]
    return np.atleast_1d(launches + longest + value["loss"] * (total - longest) + passes)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured time: what `solver` (its id) took for `problem` with `config`, in microseconds."""

    problem: Problem
    solver: str
    config: Mapping[str, Any]
    microseconds: float


_FITTED = ("fixed_us", "launch_us", "l2_tb_s", "dram_tb_s", "issue_per_clock", "latency_us")


def fit(samples: Iterable[Sample], base: Constants | None = None) -> Constants:
    """Return the constants under which estimates agree best with `samples`, by least squares of logarithms.

    Constants that no sample depends on keep their value: each is drawn towards it with a standard deviation of a factor
    of two, which timings of a deviation of 10 % overrule.

    Parameters
    ----------
    samples
        Timings of solvers of this version, for example ``record.samples`` of :func:`gpuconv.tuning.tune.tune`.
    base
        Where to start, and what to keep; default: the constants of the GPU of the first sample's device.

    Raises
    ------
    ValueError
        If there are no samples, or a time is not positive, or a solver or its config is unknown.
    """
    found = list(samples)
    if not found:
        raise ValueError("fit: samples must not be empty")
    solver_of = import_module("..dispatch", __package__).solver_of
    works = []
    for sample in found:
        solver = solver_of(sample.solver)
        describe = getattr(solver, "work", None)
        if describe is None:
            raise ValueError(f"fit: solver {sample.solver!r} is not one that describes its work")
        try:
            works.append(describe(sample.problem, [sample.config]))
        except KeyError as missing:
            raise ValueError(f"fit: config {dict(sample.config)} of {sample.solver} has no {missing}") from None
    times = np.array([sample.microseconds for sample in found], float)
    return fit_work(concatenate(works), times, base or constants_of(found[0].problem.device))


def fit_work(work: Work, microseconds: np.ndarray, base: Constants) -> Constants:
    """Return `base` with the constants that make estimates of `work` agree best with `microseconds`; see :func:`fit`.

    Levenberg-Marquardt on the logarithms of the constants, with differences for derivatives.
    """
    if not np.all(np.isfinite(microseconds)) or np.any(microseconds <= 0):
        raise ValueError("fit: times must be positive numbers of microseconds")
    names = [*_FITTED, *(f"efficiency_{PATHS[place]}" for place in np.unique(work.path))]
    names += [f"{PIPES[place]}_tflops" for place in np.unique(work.pipe) if _plain(PIPES[int(place)])]
    start = np.log([base.values[name] for name in names])
    target = np.log(microseconds)

    def with_values(point: np.ndarray) -> Constants:
        return base.replaced(dict(zip(names, np.exp(point).tolist(), strict=True)), "fitted")

    def residuals(point: np.ndarray) -> np.ndarray:
        fitting = (np.log(estimate(work, with_values(point))) - target) / _NOISE
        return np.concatenate([fitting, (point - start) / _PRIOR])

    point, damping = start, 1e-2
    error = residuals(point)
    for _ in range(60):
        steps = np.eye(len(names)) * 1e-4
        slopes = np.stack([(residuals(point + step) - residuals(point - step)) / 2e-4 for step in steps], axis=1)
        normal, gradient = slopes.T @ slopes, slopes.T @ error
        improved = False
        while damping < 1e8:
            trial = point - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
            trial_error = residuals(trial)
            if trial_error @ trial_error < error @ error:
                improved = True
                break
            damping *= 4
        if not improved:
            break
        gain = 1 - (trial_error @ trial_error) / (error @ error)
        point, error, damping = trial, trial_error, damping / 4
        if gain < 1e-6:
            break
    return with_values(point)


def _plain(pipe: str) -> bool:
    """Tell whether a pipe's rate is fitted itself: that of tensor cores is not, the efficiencies of paths are."""
    return pipe.startswith("fma")
