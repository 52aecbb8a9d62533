"""What a backend and a solver are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..problem import Call, Problem

__all__ = ["Backend", "Estimate", "Plan", "Solver"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A solver bound to one problem. `config` says what it will launch, in words, for ``explain``.

    Examples
    --------
    >>> import numpy as np, gpuconv
    >>> plan = gpuconv.explain(gpuconv.conv1d, np.ones((1, 1, 4)), np.ones((1, 1, 3))).plan
    >>> isinstance(plan.solver, Solver), plan.workspace >= 0
    (True, True)
    """

    solver: Solver
    problem: Problem
    workspace: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def run(self, call: Call) -> Any:
        """Allocate the result of `call`, launch, and return the result."""
        return self.solver.run(self, call)


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a solver should take in microseconds, and where that comes from.

    `source` is ``"tuned"`` (timed on this machine), ``"table"`` (timed for the library's table), ``"model"`` (computed
    by the cost model) or ``"guess"`` (a rule of thumb).

    Examples
    --------
    >>> Estimate(12.5, "model").microseconds
    12.5
    """

    microseconds: float
    source: str


class Solver(ABC):
    """One way to solve a family of problems on one backend. Stateless; `id` never changes its meaning.

    Examples
    --------
    >>> class Never(Solver):
    ...     id = "numpy.conv.fprop.never"
    ...     def why_not(self, problem):
    ...         return "takes no problem at all"
    ...     def rank(self, problem):
    ...         return 1.0
    ...     def plan(self, problem):
    ...         return Plan(self, problem)
    ...     def run(self, plan, call):
    ...         raise NotImplementedError
    >>> Never().why_not(None)
    'takes no problem at all'
    """

    id: str
    always_answers: bool = False
    """Whether this solver runs, with a warning, where every one needs more workspace than the limit: a reference."""

    def serves(self, problem: Problem) -> bool:
        """Tell whether this solver is for the operation and the pass of `problem`, whatever else speaks against it."""
        return True

    @abstractmethod
    def why_not(self, problem: Problem) -> str | None:
        """Return a short reason with numbers why this solver cannot run `problem`, or ``None`` when it can."""

    @abstractmethod
    def rank(self, problem: Problem) -> float:
        """Return the estimated time in microseconds; the lowest estimate wins within a backend."""

    def estimated(self, problem: Problem) -> Estimate:
        """Return the estimated time with its source; its time is that of :meth:`rank`."""
        return Estimate(self.rank(problem), "guess")

    def configs(self, problem: Problem) -> list[dict[str, Any]]:
        """Return the configs that tuning may choose from, that of an untuned plan first; none: nothing to choose."""
        return []

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        """Return the plan of a problem with one of :meth:`configs`."""
        raise NotImplementedError(f"{self.id} has no configs to choose from")

    def others(self, plan: Plan) -> str | None:
        """Return in words what else the solver could launch for the problem of a plan, and why it does not."""
        return None

    @abstractmethod
    def plan(self, problem: Problem) -> Plan:
        """Bind to a problem that :meth:`why_not` accepts."""

    @abstractmethod
    def run(self, plan: Plan, call: Call) -> Any:
        """Launch a plan of this solver on the arrays of `call` and return the result."""


class Backend(ABC):
    """A family of solvers that share a runtime."""

    name: str

    @abstractmethod
    def missing(self) -> str | None:
        """Return why this backend cannot run anything on this host, or ``None``."""

    @abstractmethod
    def why_not(self, problem: Problem, forced: bool) -> str | None:
        """Return why this backend does not take `problem` (device, kind of array); forced: asked by name."""

    def origin(self, plan: Plan) -> str | None:
        """Return where the compiled kernels of a plan come from, in words; ``None`` where there is nothing to say."""
        return None

    def lacks(self, solver: Solver, problem: Problem) -> str | None:
        """Return what this host lacks to run a problem that `solver` accepts, or ``None``."""
        return None

    @abstractmethod
    def solvers(self) -> Sequence[Solver]:
        """Return the solvers, in any order."""
