"""What the compiler makes of unfold and fold, on a machine without a GPU."""

from __future__ import annotations

import pytest
from budgets import Budget, broken, unnoticed
from columns_table import TABLE, problems
from pool_rows import ARCHITECTURES, VERSION
from sample import chosen

pytestmark = pytest.mark.codegen

COMMITTED = TABLE.load()
PART = COMMITTED.get(VERSION)
JOBS = [(name, arch) for name in TABLE.launches for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 2)

BUDGETS = {
    "fold contiguous": Budget(loop=333, warps=8),
    "fold contiguous 64-bit": Budget(loop=181, warps=16),
    "unfold channels_last": Budget(loop=0, warps=48),
    "unfold contiguous": Budget(loop=0, warps=8),
    "unfold contiguous 64-bit": Budget(loop=0, warps=20),
}
"""By function and memory format; of today's tables of every Triton."""

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def _family(name):
    problem = TABLE.launches[name].problem
    return f"{problem.pool} {problem.x_format}" + (" 64-bit" if problem.index64 else "")


def test_every_problem_is_launched():
    assert list(TABLE.launches) == [name for name, _ in problems()]


@needs_table
def test_table_is_of_these_sources_and_problems():
    assert PART["rows"].keys() == {str(arch) for arch in ARCHITECTURES}, TABLE.remedy
    assert TABLE.stale(COMMITTED) == [], TABLE.remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=str)
def test_row_is_what_the_compiler_does_today(name, arch):
    assert TABLE.measure(name, arch) == PART["rows"][str(arch)][name]


@needs_table
def test_no_kernel_spills():
    spilled = [
        f"sm_{arch} {name}" for arch, name, row in _rows() if row["stack"] > 8 or row["counts"].keys() & {"LDL", "STL"}
    ]
    assert spilled == []


@needs_table
def test_aligned_results_are_written_16_bytes_at_a_time():
    """And channels-last images are read so."""
    found = 0
    for arch, name, row in _rows():
        if "odd width" not in name and "/s2" not in name and "64-bit" not in name:
            assert row["accesses"].get("STG128"), (arch, name, row["accesses"])
            assert "channels_last" not in name or row["accesses"].get("LDG128"), (arch, name, row["accesses"])
            found += 1
    assert found >= 3 * 14


@needs_table
def test_channels_last_unfold_leaves_room_for_the_memory():
    within = {name for arch, name, row in _rows() if arch == 90 and row.get("per_result", 99) <= row.get("room", 0)}
    assert {f"unfold {window} float16 channels_last" for window in ("3x3", "3x3/s2", "dilated 3x3")} <= within


@needs_table
def test_hot_loops_and_warps_stay_within_their_budget():
    assert [*broken(_rows(), BUDGETS, _family)] == []


@needs_table
def test_breaking_a_budget_fails():
    assert unnoticed(_rows(), BUDGETS, _family) == []


def test_budgets_are_of_the_families_of_the_table():
    assert BUDGETS.keys() == {_family(name) for name in TABLE.launches}
