"""The passes around the Hopper kernels: tensors turned in runs of 16 bytes on either side, and nothing spilled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from disassembly import sass_of
from loops import accesses

from bench.parity import conv_problem
from gpuconv.arrays import CONTIGUOUS
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.dispatch import solver_of
from gpuconv.packing.compile import compile_entries
from gpuconv.packing.plans import Launch
from gpuconv.packs.identity import key_of
from gpuconv.problem import ConvProblem

pytestmark = pytest.mark.codegen


def _launches(problem: ConvProblem) -> list[Launch]:
    """Return the plain launches of a plan on Hopper."""
    solver = solver_of(f"triton.conv.{problem.kind}.hopper")
    found = []
    with assuming(Gpu("NVIDIA H200", (9, 0))):
        for told in launches_of_plan(solver.plan(problem)):
            if not told.kernel.one_binary:
                key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
                found.append(Launch(key, told.kernel, solver.id, arguments, dict(told.options)))
    return found


@pytest.mark.parametrize("number", ["float16", "tf32"])
def test_turns_read_and_write_16_bytes(number: str) -> None:
    problem = conv_problem((32, 64, 56, 56), (128, 64, 3, 3), "fprop", number, CONTIGUOUS, padding=1)
    packed, turned, back = _launches(problem)
    for launch, widest in ((turned, (128, 128)), (back, (128, 128)), (packed, (0, 128))):
        (entry,), cubin = compile_entries(launch, "sm_90")
        found = accesses(sass_of(cubin))
        assert entry.stack == 0 and entry.registers <= 128
        read, written = (max(int(name[3:]) for name in found if name.startswith(kind)) for kind in ("LDG", "STG"))
        assert read >= widest[0] and written >= widest[1], (launch.kernel.id, found)


def test_column_sums_read_16_bytes() -> None:
    problem = replace(conv_problem((32, 64, 56, 56), (128, 64, 3, 3), "wgrad", padding=1), bias=True)
    launch = next(launch for launch in _launches(problem) if "column" in launch.kernel.id)
    (entry,), cubin = compile_entries(launch, "sm_90")
    assert entry.stack == 0 and accesses(sass_of(cubin))["LDG128"] > 0
