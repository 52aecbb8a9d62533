"""The cost model's constants, fitted to what was timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..costs import PATHS, PIPES, Constants, Work, concatenate, constants_of, estimate
from ..dispatch import solver_of
from ..problem import Problem

__all__ = ["Sample", "fit", "fit_work"]

_PRIOR = 0.7
"""Standard deviation that constants have before they are fitted, in logarithms: a factor of two."""

_NOISE = 0.1
"""Standard deviation of timings and of the model's form, in logarithms."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured time: what `solver` (its id) took for `problem` with `config`, in microseconds.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((8, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
    >>> found = gpuconv.explain(gpuconv.conv2d, x, w, padding=1, gpu="h200")
    >>> Sample(found.problem, found.solver, found.plan.config, 41.5).microseconds
    41.5
    """

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
        Timings of solvers of this version, for example ``record.samples`` of :func:`tune`.
    base
        Where to start, and what to keep; default: the constants of the GPU of the first sample's device.

    Raises
    ------
    ValueError
        If there are no samples, or a time is not positive, or a solver or its config is unknown.

    Examples
    --------
    A GPU that took twice as long as the model says (a time that nobody measured) is one of less bandwidth:

    >>> import numpy as np, gpuconv
    >>> x, w = np.ones((64, 64, 56, 56), np.float32), np.ones((64, 64, 1, 1), np.float32)
    >>> found = gpuconv.explain(gpuconv.conv2d, x, w, gpu="h200")
    >>> modelled = next(each.estimate for each in found.candidates if each.solver.id == found.solver)
    >>> fitted = fit([Sample(found.problem, found.solver, found.plan.config, 2 * modelled)])
    >>> fitted.values["dram_tb_s"] < fit([Sample(found.problem, found.solver, found.plan.config, modelled)]).values[
    ...     "dram_tb_s"
    ... ]
    True
    """
    found = list(samples)
    if not found:
        raise ValueError("fit: samples must not be empty")
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
