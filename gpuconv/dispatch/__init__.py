"""From a call to a plan that runs: solvers ranked, plans kept, explained; entered by functional, ops and tuning."""

from . import scaled, separable
from .execution import record_plans, record_problems, run
from .explainer import explain
from .explanation import Candidate, Explanation
from .selection import backends, candidates, register_solver, select, solver_of, unregister_solver

__all__ = [
    "Candidate",
    "Explanation",
    "backends",
    "candidates",
    "explain",
    "record_plans",
    "record_problems",
    "register_solver",
    "run",
    "scaled",
    "select",
    "separable",
    "solver_of",
    "unregister_solver",
]
