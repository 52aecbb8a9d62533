"""Tuning: time the configs that the cost model likes best, and write the fastest to the user's cache.

What is written is read by processes that start later; results of this one stay what they are (see :mod:`.cache`).
Nothing is timed while a CUDA graph is captured or a model is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ..backends import Plan, Solver
from ..backends.triton.tuned import Tunable
from ..config import logger, workspace_limit
from ..costs import Constants, Gpu, constants_of_gpu, gpu_of, locked, user_constants_path, warn_once, write_json
from ..costs import measured as cache
from ..dispatch import candidates, problem_from_json, problem_to_json
from ..problem import ConvProblem, PoolProblem, Problem
from .fitting import Sample, fit
from .trial import CudaTimer, Timer, Trial, capturing_or_compiling, context_lost, reason_of

__all__ = ["Record", "Timing", "consider", "fit_to_user", "samples_from_json", "tune"]

MOST = 8
"""Configs of a problem that are timed, beside each solver's default: the best by the cost model."""

_HOPELESS = 4.0
"""How many times the best estimate a default may take to be timed all the same."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One config on trial: its estimate and its time in microseconds, or the reason why it has none.

    Examples
    --------
    >>> Timing("triton.conv.fprop.implicit_gemm", {"BLOCK_M": 64}, True, 12.5, None, "out of shared memory").reason
    'out of shared memory'
    """

    solver: str
    config: Mapping[str, Any]
    default: bool
    estimate: float
    microseconds: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What tuning found for one problem on one GPU. `saved` says whether the user's cache has it.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     _ = gpuconv.conv1d(np.ones((1, 2, 4)), np.ones((3, 2, 3)))
    >>> slow = Timing("triton.conv.fprop.implicit_gemm", {"BLOCK_M": 64}, True, 12.5, 14.0)
    >>> fast = Timing("triton.conv.fprop.implicit_gemm", {"BLOCK_M": 128}, False, 12.9, 11.0)
    >>> Record(problems[0], "a GPU", (slow, fast), False, 0.5).best.config
    {'BLOCK_M': 128}
    """

    problem: ConvProblem | PoolProblem
    gpu: str
    timings: tuple[Timing, ...]
    saved: bool
    seconds: float

    @property
    def best(self) -> Timing | None:
        """The fastest, or None when nothing was timed."""
        timed = [timing for timing in self.timings if timing.microseconds is not None]
        return min(timed, key=lambda timing: timing.microseconds or 0.0, default=None)

    @property
    def samples(self) -> list[Sample]:
        """The timings as :func:`fit` takes them."""
        return [
            Sample(self.problem, timing.solver, timing.config, timing.microseconds)
            for timing in self.timings
            if timing.microseconds is not None
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain data, which :func:`samples_from_json` reads."""
        timings = [
            {
                "solver": timing.solver, "config": dict(timing.config), "default": timing.default,
                "estimate": timing.estimate, "microseconds": timing.microseconds, "reason": timing.reason,
            }
            for timing in self.timings
        ]  # fmt: skip
        problem = problem_to_json(self.problem)
        return {
            "problem": problem, "gpu": self.gpu, "timings": timings, "saved": self.saved, "seconds": self.seconds,
        }  # fmt: skip


def samples_from_json(records: Iterable[Mapping[str, Any]]) -> list[Sample]:
    """Return the timings in records that :meth:`Record.to_json` made.

    Raises
    ------
    ValueError
        If a record is something else.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     _ = gpuconv.conv1d(np.ones((1, 2, 4)), np.ones((3, 2, 3)))
    >>> timing = Timing("triton.conv.fprop.implicit_gemm", {"BLOCK_M": 64}, True, 12.5, 14.0)
    >>> record = Record(problems[0], "a GPU", (timing,), True, 0.5)
    >>> [sample.microseconds for sample in samples_from_json([record.to_json()])]
    [14.0]
    """
    found = []
    for place, record in enumerate(records):
        try:
            problem = problem_from_json(record["problem"], f"record {place}")
            timings = [(each["solver"], each["config"], each["microseconds"]) for each in record["timings"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"record {place}: is not a record of tuning ({error!r})") from None
        found += [Sample(problem, solver, config, float(took)) for solver, config, took in timings if took is not None]
    return found


@dataclass(frozen=True, slots=True)
class Option:
    """A config of a solver that tuning may time: whether it is the solver's own, and microseconds by the cost model."""

    solver: Tunable
    config: Mapping[str, Any]
    default: bool
    estimate: float


def options_of(problem: Problem, solvers: Iterable[Solver], most: int = MOST) -> list[Option]:
    """Return what tuning times: the best `most` by the cost model, and defaults that are not hopeless, best first.

    Solvers that are not :class:`.tuned.Tunable` have nothing to choose from.
    """
    found: list[Option] = []
    for solver in solvers:
        if isinstance(solver, Tunable):
            configs = solver.configs(problem)
            times = solver.modelled(problem, configs).tolist()
            found += [
                Option(solver, config, place == 0, took)
                for place, (config, took) in enumerate(zip(configs, times, strict=True))
            ]
    found.sort(key=lambda option: option.estimate)
    return [
        option
        for place, option in enumerate(found)
        if place < most or (option.default and option.estimate <= _HOPELESS * found[0].estimate)
    ]


def _takers(problem: Problem) -> list[Solver]:
    return [candidate.solver for candidate in candidates(problem, "triton") if candidate.reason is None]


def _timings(problem: Problem, options: list[Option], timer: Timer, late: Callable[[], bool]) -> Iterator[Timing]:
    """Time `options`, defaults first: what others compute must be what the first one does."""
    trial: Trial | None = None
    expected: Any = None

    def launcher(plan: Plan) -> Callable[[], Any]:
        # Arrays are made when a timer asks for the first launch: one that launches nothing needs none.
        made: list[Callable[[], Any]] = []

        def launch() -> Any:
            nonlocal trial
            if not made:
                trial = trial or Trial(problem)
                made.append(trial.launcher(plan))
            return made[0]()

        return launch

    checks = getattr(timer, "launches", True)
    for option in sorted(options, key=lambda option: not option.default):
        if late() and not option.default:
            return
        took, reason = None, None
        try:
            plan = option.solver.bind(problem, option.config)
            if plan.workspace > workspace_limit():
                raise ValueError(f"needs {plan.workspace} B of workspace, the limit is {workspace_limit()} B")
            launch = launcher(plan)
            if checks:
                result = launch()
                expected = result if expected is None else expected
                if trial is None or not trial.same(expected, result):
                    raise ValueError("computes something else than the default")
            took = timer(plan, launch)
        except Exception as error:  # a compiler's, a launcher's or torch's: what fails here is not a choice
            if option.default and isinstance(error, (TypeError, KeyError, AttributeError)):
                raise
            if context_lost() is not None:  # nothing else can be timed in this process
                raise
            reason = reason_of(error)
        yield Timing(option.solver.id, option.config, option.default, option.estimate, took, reason)


def _entries(problem: Problem, timings: Iterable[Timing]) -> cache.Entries:
    """Return the fastest config of each solver."""
    best: dict[str, cache.Entry] = {}
    for timing in timings:
        took = timing.microseconds
        if took is not None and (timing.solver not in best or took < best[timing.solver].microseconds):
            best[timing.solver] = cache.Entry(timing.config, took, problem.n)
    return {cache.key_of(problem): best} if best else {}


def _gpu(problem: Problem) -> Gpu:
    if problem.device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.init()
    gpu = gpu_of(problem.device)
    if gpu is None:
        raise ValueError(f"tune: problems must be on a CUDA device that is there, but one is on {problem.device!r}")
    return gpu


def _distinct(problems: Iterable[Problem]) -> list[ConvProblem | PoolProblem]:
    """Return the first problem of each key and device, of those that have something to tune."""
    found: dict[tuple[str, str], ConvProblem | PoolProblem] = {}
    for problem in problems:
        if isinstance(problem, ConvProblem | PoolProblem):
            found.setdefault((cache.key_of(problem), problem.device), problem)
    return list(found.values())


def tune(
    problems: Iterable[Problem],
    *,
    budget_s: float | None = None,
    timer: Timer | None = None,
    progress: Callable[[int, int, Record], None] | None = None,
    most: int = MOST,
) -> list[Record]:
    """Time the best few configs of each problem and write the fastest of each solver to the user's cache.

    Parameters
    ----------
    problems
        What :func:`gpuconv.record_problems` collected, for example. Of those that share a key, the first is timed;
        those of 8-bit operands with scales, whose solver has one config, are left out.
    budget_s
        Seconds after which no further problem is begun, and the one at hand only has its defaults timed; default: none.
    timer
        Called with a plan and a function that launches it once; returns microseconds. Default: :class:`.CudaTimer`. One
        with a false attribute ``launches`` does not need results compared, and no arrays are made for it.
    progress
        Called after each problem with the number done, the number in all, and the record. What was found is in the
        cache by then: an interrupted run loses nothing but its last problem.
    most
        How many configs to time per problem, beside each solver's default.

    Returns
    -------
    list of Record
        One for each problem that was reached, in order.

    Raises
    ------
    RuntimeError
        While a CUDA graph is captured or a model is compiled.
    ValueError
        If a problem is not on a GPU that is there. (With a `timer`, under ``TRITON_INTERPRET=1``, problems on the CPU
        are tuned too.)

    Examples
    --------
    On a GPU `problems` are those that :func:`gpuconv.record_problems` collects while a model runs. Of none:

    >>> tune([], budget_s=60)
    []
    """
    if capturing_or_compiling():
        raise RuntimeError("tune: nothing can be timed while a CUDA graph is captured or a model is compiled")
    distinct = _distinct(problems)
    end = None if budget_s is None else time.monotonic() + budget_s

    def late() -> bool:
        return end is not None and time.monotonic() > end

    records: list[Record] = []
    cuda_timer = CudaTimer()
    for problem in distinct:
        if late():
            break
        gpu, begun = _gpu(problem), time.monotonic()
        if timer is None and not problem.device.startswith("cuda"):
            raise ValueError(f"tune: a timer is needed for a problem on {problem.device!r}")
        timings = tuple(_timings(problem, options_of(problem, _takers(problem), most), timer or cuda_timer, late))
        new = _entries(problem, timings)
        saved = bool(new) and cache.record(gpu, new)
        records.append(Record(problem, gpu.name, timings, saved, time.monotonic() - begun))
        if progress is not None:
            progress(len(records), len(distinct), records[-1])
    return records


def fit_to_user(samples: Iterable[Sample], gpu: Gpu) -> Constants:
    """Fit the cost model to timings on a GPU, write the constants for later processes, and return them.

    The GPU need not be in this machine.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        As of :func:`fit`.

    Examples
    --------
    >>> from gpuconv.costs.constants import Gpu
    >>> fit_to_user([], Gpu("NVIDIA H200", (9, 0)))
    Traceback (most recent call last):
    ValueError: fit: samples must not be empty
    """
    found = fit(samples, constants_of_gpu(gpu))
    named = Constants(gpu.name, found.values, found.sources, found.notes)
    path = user_constants_path(gpu.name)
    with locked(path):
        write_json(path, named.to_json())
    return named


_considered: set[str] = set()
_lock = Lock()


def consider(problem: Problem) -> None:
    """Tune a problem that a call with tuning switched on met, unless this is not the moment, or it is tuned already.

    A problem on the CPU has nothing to time, and torch's running out of memory is a warning: the call goes on.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> with gpuconv.record_problems() as problems:
    ...     _ = gpuconv.conv1d(np.ones((1, 2, 4)), np.ones((3, 2, 3)))
    >>> consider(problems[0])
    """
    gpu = gpu_of(problem.device)
    if gpu is None or not problem.device.startswith("cuda") or capturing_or_compiling():
        return
    if not _distinct([problem]):
        return
    key = cache.key_of(problem)
    with _lock:
        if key in _considered:
            return
        _considered.add(key)
    if cache.entries_in(cache.cache_path(gpu.name), gpu.name).get(key):
        return
    try:
        record = tune([problem])[0]
    except RuntimeError as error:  # torch's, out of memory above all: the call itself goes on
        warn_once(f"tune {key}", "%s was not tuned: %s", problem.op, error)
        return
    best = record.best
    if best is not None:
        logger.info("tuned %s: %s, %.1f us, for later processes", problem.op, best.solver, best.microseconds)
