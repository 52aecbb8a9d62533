"""What the solvers of Hopper share: where they run, what they never take, and how a plan counts its workspace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...problem import ConvProblem, Problem, itemsize
from ..base import Plan
from .common import TritonConv
from .hopper_costs import other_forms
from .hopper_view import refusal
from .launch import capability_of

__all__ = ["HopperSolver"]


def _elsewhere(problem: ConvProblem) -> str | None:
    """Return why no Hopper kernel runs on the device of a problem, or None."""
    if not problem.device.startswith("cuda"):
        return "Gluon kernels are not interpreted"
    capability = capability_of(problem.device)
    if capability is not None and capability != (9, 0):
        return f"is for sm_90, not sm_{capability[0]}{capability[1]}"
    return None


class HopperSolver(TritonConv):
    """A solver whose kernels are Gluon's, for sm_90 alone."""

    oldest_triton = (3, 8)
    """The oldest Triton that compiles these kernels; packs have them for others."""

    def why_not(self, problem: Problem) -> str | None:
        reason = super().why_not(problem)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        return refusal(problem) or _elsewhere(problem) or self.hindrance(problem)

    @abstractmethod
    def hindrance(self, problem: ConvProblem) -> str | None:
        """Return why this one cannot run a problem that solvers of Hopper take, or None."""

    def others(self, plan: Plan) -> str | None:
        return other_forms(self, plan)

    def bind(self, problem: Problem, config: Mapping[str, Any]) -> Plan:
        assert isinstance(problem, ConvProblem)
        plan = Plan(self, problem, 0, dict(config))
        used = sum(itemsize(dtype) * elements for dtype, elements in self.parts(plan).values())
        return replace(plan, workspace=used)
