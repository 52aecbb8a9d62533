"""Every Triton solver, forced on problems of every kind, passes the compiler's front end.

A class of launches is of one solver in one memory format, with the same flags and absent tensors. The gate builds one
launch of every second class, on one release of Triton or another, beside what the interpreter launched there;
``GPUCONV_TEST_FULL=1`` builds every launch on either.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections import defaultdict
from functools import cache

import pytest
import triton
from forced import launches, problems, solvers, takes
from specialisations import KERNELS, refusal

pytestmark = pytest.mark.codegen

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
PARTS = 16 if FULL else 1
OLDEST = triton.__version__.startswith("3.6.")


def flags(launch: str) -> tuple[str, ...]:
    """Return what of a launch decides between branches: its kernel, absent arguments, flags and words."""
    fields = json.loads(launch)
    constants = [value[0] for value in fields["arguments"].values() if isinstance(value, list)]
    return fields["kernel"], *(str(value) for value in constants if value is None or isinstance(value, bool | str))


@cache
def classes() -> dict[tuple[str, ...], list[str]]:
    """Return the distinct launches of each class; a launch of several classes is in the first."""
    found, seen = defaultdict(list), set()
    for problem in problems():
        for solver in solvers():
            if takes(solver, problem):
                for launch in launches(problem, solver):
                    if launch not in seen:
                        seen.add(launch)
                        found[solver.id, getattr(problem, "steps", (problem,))[0].x_format, *flags(launch)].append(
                            launch
                        )
    return found


def chosen() -> list[str]:
    """Return the launches to build."""
    if FULL:
        return [launch for same in classes().values() for launch in same][OLDEST::2]
    return [random.Random(2026).choice(classes()[key]) for key in sorted(classes())[2 * OLDEST :: 4]]


@pytest.mark.parametrize("part", range(PARTS))
def test_front_end_takes_every_solver(part: int) -> None:
    refused = [text for launch in chosen()[part::PARTS] if (text := refusal(launch))]
    assert not refused, f"{len(refused)} launches:\n" + "\n\n".join(refused)


def test_every_solver_is_forced_and_every_kernel_launched() -> None:
    assert {key[0] for key in classes()} == {solver.id for solver in solvers()}
    sources = [path for path in KERNELS.rglob("*.py") if path.parent.name != "hopper"]  # see test_codegen_hopper.py
    defined = {name for path in sources for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)}
    assert {key[2].rpartition(":")[2] for key in classes()} == defined
