"""Tiny problems, so that a dry run on the CPU walks every stage through Triton's interpreter in seconds."""

from __future__ import annotations

from collections.abc import Iterator

from gpuconv.arrays import CHANNELS_LAST
from gpuconv.problem import ConvProblem, Problem

from .cases import Case, Use
from .parity import conv_problem, pool_problem

__all__ = ["tiny_cases", "tiny_convolutions", "tiny_problems"]

NETWORK = "dry run"


def tiny_convolutions() -> Iterator[ConvProblem]:
    """Yield a problem of each pass, one of which splits its reduction and one of which has a bound on registers."""
    for kind in ("fprop", "dgrad", "wgrad"):
        yield conv_problem((1, 16, 2, 3), (16, 16, 1, 2), kind, device="cpu")
    yield conv_problem((1, 1024, 1, 2), (16, 1024, 1, 1), device="cpu")


def tiny_problems() -> Iterator[Problem]:
    """Yield problems for the parity stage."""
    yield from tiny_convolutions()
    yield conv_problem((1, 16, 2, 2), (16, 16, 1, 2), "transposed", "tf32", stride=(1, 2), device="cpu", bias=True)
    for kind in ("fprop", "bwd"):
        yield pool_problem("max", (1, 16, 4, 4), 2, kind, stride=2, device="cpu")
    yield pool_problem("adaptive_avg", (1, 16, 3, 3), 1, layout=CHANNELS_LAST, device="cpu")


def tiny_cases() -> list[Case]:
    """Return cases of a network that does not exist."""
    return [
        Case(problem, (Use(NETWORK, "training", problem.n, count),), (0, count))
        for count, problem in enumerate(tiny_problems(), 1)
    ]
