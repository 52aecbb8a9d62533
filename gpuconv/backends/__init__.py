"""Where problems are solved: a room for each backend, and what a solver is; entered by dispatch, and by tuning."""

from .base import Backend, Estimate, Plan, Solver

__all__ = ["Backend", "Estimate", "Plan", "Solver"]
