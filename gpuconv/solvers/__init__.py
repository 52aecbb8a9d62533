"""What a solver from outside is made of; entered by whoever writes one, see ``docs/write-a-solver.md``."""

from ..backends import Estimate, Plan, Solver
from ..dispatch import register_solver, unregister_solver

__all__ = ["Estimate", "Plan", "Solver", "register_solver", "unregister_solver"]
