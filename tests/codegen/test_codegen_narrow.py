"""What the compiler makes of the depthwise kernels and of stems, on a machine without a GPU."""

from __future__ import annotations

from unittest import mock

import pytest
from aot import compile_source, report, specialise
from budgets import Budget, broken, stated, unnoticed
from disassembly import sass_of
from narrow_table import TABLE, grouped, launches, problems, solver_of, stems
from pool_rows import ARCHITECTURES, VERSION
from sample import chosen

from gpuconv.backends.triton import rows_costs, runs_costs
from gpuconv.costs import constants as constants_module
from gpuconv.costs.constants import Gpu, shipped

pytestmark = pytest.mark.codegen

COMMITTED = TABLE.load()
PART = COMMITTED.get(VERSION)
JOBS = [(name, arch) for name in TABLE.launches for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 3)

TABLE_OF_FORMS = {
    "3x3 56 fprop channels_last": 17.0,
    "3x3 56 fprop contiguous": 17.5,
    "3x3/2 112 fprop channels_last": 25.6,
    "3x3/2 112 fprop contiguous": 24.6,
    "5x5 28 fprop channels_last": 35.3,
    "7x7 56 fprop channels_last": 64.1,
    "7x7 56 fprop contiguous": 57.9,
    "causal 4 fprop channels_last": 11.9,
}
"""Instructions of the hot loop per result that a search over tiles found for these windows, on sm_90."""

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def test_every_problem_is_launched():
    assert set(TABLE.launches) >= {name for name, _ in problems()}


@needs_table
def test_table_is_of_these_sources_and_problems():
    assert PART["rows"].keys() == {str(arch) for arch in ARCHITECTURES}, TABLE.remedy
    assert TABLE.stale(COMMITTED) == [], TABLE.remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=str)
def test_row_is_what_the_compiler_does_today(name, arch):
    assert TABLE.measure(name, arch) == PART["rows"][str(arch)][name]


PLANNED_OTHERWISE = {(80, "stem 7x7/2 channels_last"), (80, "stem 7x7/2 contiguous"), (100, "3 filters")}
"""Plans of the table are those of sm_90. On sm_80 the library plans fewer filters for these stems, whose 64 spill, and
on sm_100 it bounds the registers of the other, of which ptxas of Triton 3.9 spills two."""


@needs_table
def test_no_kernel_spills():
    """No kernel reads or writes local memory."""
    spilled = {(arch, name) for arch, name, row in _rows() if row["stack"] > 0 or row["counts"].keys() & {"LDL", "STL"}}
    assert spilled <= PLANNED_OTHERWISE


@pytest.mark.parametrize(("arch", "name"), sorted(PLANNED_OTHERWISE))
def test_what_is_planned_otherwise_there_does_not_spill(arch, name):
    """With the constants and the name of a GPU of that architecture."""
    (problem,) = (problem for other, problem in (*stems(), *grouped()) if other == name)
    constants, gpu = shipped()[f"default_{arch}"][1], Gpu("another GPU", divmod(arch, 10))
    solver = solver_of(problem)
    with (
        mock.patch.object(constants_module, "constants_of", lambda device: constants),
        mock.patch.object(runs_costs, "gpu_of", lambda device: gpu),
        mock.patch.object(rows_costs, "gpu_of", lambda device: gpu),
    ):
        plan = solver.plan(problem)
    launch = launches(plan)[-1]
    compiled = compile_source(specialise(launch.kernel, launch.arguments), arch, launch.config)
    found = report(compiled, sass_of(compiled.asm["cubin"]))
    assert found.stack == 0 and not found.counts.keys() & {"LDL", "STL"}, launch.config


@needs_table
def test_the_cost_model_has_the_instructions_of_the_hot_loop():
    """Within 20 %, on the architecture whose constants are shipped first."""
    compared = 0
    for arch, name, row in _rows():
        gathered = VERSION.startswith("3.6.") and name.startswith("multiplier")  # loads element by element there
        if arch == 90 and "modelled" in row and not gathered:
            assert 0.8 <= row["modelled"] / row["per_result"] <= 1.25, (name, row["per_result"], row["modelled"])
            compared += 1
    assert compared >= 30


@needs_table
def test_instructions_per_result_are_those_of_the_best_known_tiles():
    """Within 25 %: for the sake of its height or its halo the cost model may choose a tile that is not the shortest."""
    for name, known in TABLE_OF_FORMS.items():
        found = PART["rows"]["90"][name]["per_result"]
        assert found <= 1.25 * known, (name, found, known)


@needs_table
def test_three_by_three_leaves_room_for_the_memory():
    """Windows of 9 taps cost less than the room that memory leaves, forward and backward, in both formats."""
    found = 0
    for arch, name, row in _rows():
        if arch == 90 and "room" in row and name.startswith(("3x3 56 fprop", "3x3 56 dgrad", "3x3 56 wgrad")):
            assert row["per_result"] < row["room"], (name, row["per_result"], row["room"])
            found += 1
    assert found >= 4


BUDGETS: dict[str, Budget] = {}


def _family(name):
    window = name.split()[0]
    if name.startswith(("groups", "3 filters", "stem", "patches", "volume")):
        return name
    kind = next(kind for kind in ("fprop", "dgrad", "wgrad") if kind in name)
    return f"{window} {kind}" + (" sum" if name.endswith("sum") else "")


@needs_table
def test_kernels_keep_within_their_budgets():
    """Budgets are those of the committed rows of every Triton: a row that is recompiled may not cost more."""
    rows = [(int(arch), name, row) for part in COMMITTED.values() for arch, found in part["rows"].items()
            for name, row in found.items()]  # fmt: skip
    budgets = stated(rows, _family)
    assert list(broken(rows, budgets, _family)) == []
    assert isinstance(unnoticed(rows, budgets, _family), list)
