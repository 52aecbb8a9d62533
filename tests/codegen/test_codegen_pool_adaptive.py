"""What the compiler makes of the adaptive, global, fractional and unpooling kernels, on a machine without a GPU."""

from __future__ import annotations

import pytest
from budgets import Budget, broken, unnoticed
from pool_adaptive_problems import ENTRIES
from pool_adaptive_table import TABLE
from pool_rows import ARCHITECTURES, VERSION
from sample import chosen

from gpuconv.arrays import CHANNELS_LAST

pytestmark = pytest.mark.codegen

LAUNCHES = TABLE.launches
COMMITTED = TABLE.load()
PART = COMMITTED.get(VERSION)
JOBS = [(name, arch) for name in LAUNCHES for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 6)

NARROW_WINDOWS = ("56 to 7", "3-D", "claims apart")
"""Parts of names of entries of which lines or planes are not multiples of 16 elements."""

BUDGETS = {
    "_pool_adaptive_bwd_gather_kernel channels_last": Budget(loop=0, warps=64),
    "_pool_adaptive_bwd_gather_kernel contiguous": Budget(loop=0, warps=20),
    "_pool_adaptive_fprop_lines_kernel contiguous": Budget(loop=115, warps=8),
    "_pool_adaptive_fprop_window_kernel channels_last": Budget(loop=125, warps=32),
    "_pool_adaptive_fprop_window_kernel contiguous": Budget(loop=95, warps=16),
    "_pool_fractional_bwd_gather_kernel channels_last": Budget(loop=98, warps=32),
    "_pool_fractional_bwd_gather_kernel contiguous": Budget(loop=269, warps=24),
    "_pool_fractional_fprop_window_kernel channels_last": Budget(loop=157, warps=28),
    "_pool_fractional_fprop_window_kernel contiguous": Budget(loop=168, warps=28),
    "_pool_global_fprop_combine_kernel channels_last": Budget(loop=85, warps=64),
    "_pool_global_fprop_combine_kernel contiguous": Budget(loop=64, warps=64),
    "_pool_global_fprop_partial_kernel channels_last": Budget(loop=135, warps=36),
    "_pool_global_fprop_partial_kernel contiguous": Budget(loop=469, warps=24),
    "_pool_unpool_bwd_gather_kernel channels_last": Budget(loop=0, warps=64),
    "_pool_unpool_bwd_gather_kernel contiguous": Budget(loop=0, warps=48),
    "_pool_unpool_fprop_claim_kernel channels_last": Budget(loop=265, warps=16),
    "_pool_unpool_fprop_claim_kernel contiguous": Budget(loop=270, warps=16),
}
"""By kernel and memory format; of today's tables of every Triton."""

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def _family(name):
    launch = LAUNCHES[name]
    return f"{launch.kernel.__name__} {launch.problem.x_format}"


def test_every_problem_is_launched():
    assert {name.partition(" | ")[0] for name in LAUNCHES} == set(ENTRIES)


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
    """No kernel reads or writes local memory; ptxas of Triton 3.9 reserves 8 bytes in some that never touch them."""
    spilled = [
        f"sm_{arch} {name}: {row['stack']} bytes"
        for arch, name, row in _rows()
        if row["stack"] > 8 or row["counts"].keys() & {"LDL", "STL"}
    ]
    assert not spilled, "\n".join(spilled)


@needs_table
def test_aligned_tensors_are_read_16_bytes_at_a_time():
    """Inputs of adaptive and global pools, forward and channels-last backward, and the indices of unpooling."""
    found = 0
    for arch, name, row in _rows():
        (entry, _, kernel), problem, solver = name.partition(" | "), LAUNCHES[name].problem, LAUNCHES[name].solver
        gathers = kernel.startswith("_pool_fractional") or "combine" in kernel or entry.endswith("7x7 global")
        by_place = problem.x_format != CHANNELS_LAST and ("bwd" in kernel or solver.endswith(("split", "window")))
        if gathers or (by_place and not entry.endswith(("global", "batch 1")) and "unpool" not in kernel):
            continue
        if problem.x_format != CHANNELS_LAST and any(part in entry for part in NARROW_WINDOWS):
            continue
        assert row["accesses"].get("LDG128"), (arch, name, row["accesses"])
        found += 1
    assert found >= 100


@needs_table
def test_aligned_tensors_are_written_16_bytes_at_a_time():
    """Results but those that a reduction leaves in few threads: of global pools, and of whole lines."""
    found = 0
    for arch, name, row in _rows():
        (entry, _, kernel), problem = name.partition(" | "), LAUNCHES[name].problem
        if "global" in kernel or "lines" in kernel:
            continue
        if problem.result_format != CHANNELS_LAST and any(part in entry for part in NARROW_WINDOWS):
            continue
        assert row["accesses"].get("STG128"), (arch, name, row["accesses"])
        found += 1
    assert found >= 100


@needs_table
def test_global_pools_leave_room_for_the_memory():
    """Instructions per element of the loop that reads, beside those that fit while memory delivers it."""
    found = 0
    for arch, name, row in _rows():
        entry, _, kernel = name.partition(" | ")
        if "global" in entry and "partial" in kernel and "7x7" not in entry:
            assert row["per_element"] < row["room"], (arch, name, row)
            found += 1
    assert found >= 3 * 16


@needs_table
def test_hot_loops_and_warps_stay_within_their_budget():
    assert [*broken(_rows(), BUDGETS, _family)] == []


@needs_table
def test_breaking_a_budget_fails():
    assert unnoticed(_rows(), BUDGETS, _family) == []


def test_budgets_are_of_the_families_of_the_table():
    assert BUDGETS.keys() == {_family(name) for name in LAUNCHES}
