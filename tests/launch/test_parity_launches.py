"""The launches of the report's parity stage, compiled for sm_90 by the JIT itself: what no card has to find out.

The gate takes a sample, another one for each release of Triton; ``GPUCONV_TEST_FULL=1`` takes all of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import triton
from stub_gpu import StubGpu

from bench import parity, parity_calls
from bench.calls import make_tensors, our_call
from bench.dry import tiny_problems
from gpuconv.backends.triton import backend as triton_backend
from gpuconv.dispatch import record_plans
from gpuconv.problem import Problem

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
PARTS = 24 if FULL else 1
SAMPLE = 6

Item = tuple[str, Callable[[], tuple[str, Callable[[], Any]]]]
"""The key of an item and, as a function, the solver that it forces and the call that launches."""


def _problem(problem: Problem, solver: str, *_: Any) -> tuple[str, Callable[[], Any]]:
    """Stand in for `parity.judge`."""
    return solver, our_call(problem, make_tensors(problem, "cpu"), solver)


def _call(call: parity_calls.PlainCall, solver: str, *_: Any) -> tuple[str, Callable[[], Any]]:
    """Stand in for `parity_calls.judge_call`."""
    return solver, lambda: call.ours(call.tensors, solver)


@pytest.fixture
def items(monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    """Return what the parity stage and its dry run launch; in the gate a few problems, and calls on small tensors.

    Tensors of the calls are on the CPU, where the stub takes them for a GPU's; their solvers are those of a GPU.
    """
    listed = parity_calls.solvers
    monkeypatch.setattr(type(triton_backend.BACKEND), "missing", lambda self: None)
    monkeypatch.setattr(parity, "judge", _problem)
    monkeypatch.setattr(parity_calls, "judge_call", _call)
    monkeypatch.setattr(parity_calls, "solvers", lambda call, _, batch: listed(call, "cuda:0", batch))
    found = [*parity.parity_items("cuda:0"), *parity.parity_items("cuda:0", tiny_problems())]
    found = [item for item in found if item[0].startswith("triton.")]
    calls = [item for item in parity_calls.parity_calls("cpu", few=not FULL) if item[0].startswith("triton.")]
    return [*(found if FULL else random.Random(triton.__version__).sample(found, SAMPLE)), *calls]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_launch_of_the_parity_stage_compiles(gpu: StubGpu, items: list[Item], part: int) -> None:
    wrong, launched = [], 0
    for key, run in items[part::PARTS]:
        gpu.reset()
        solver, call = run()
        try:
            with record_plans() as plans:
                result = call()
        except Exception as error:  # the compiler's, MLIR's or the assembler's
            wrong.append(f"{key}\n{error}")
            continue
        forced = [plan.solver.id for plan in plans]
        first = result[0] if isinstance(result, tuple) else result
        if forced != [solver] or not (gpu.launches() or not first.numel()):
            wrong.append(f"{key}\n{forced} ran and launched {len(gpu.launches())} kernels")
        launched += len(gpu.launches())
    assert not wrong, f"{len(wrong)} items:\n" + "\n\n".join(wrong)
    assert launched or FULL
