"""What the compiler makes of the pooling kernels, for three GPU architectures, on a machine without a GPU."""

from __future__ import annotations

import pytest
from budgets import Budget, broken, unnoticed
from pool_problems import problems
from pool_rows import ARCHITECTURES, VERSION
from pool_table import TABLE
from sample import chosen

pytestmark = pytest.mark.codegen

LAUNCHES = TABLE.launches
COMMITTED = TABLE.load()
PART = COMMITTED.get(VERSION)
JOBS = [(name, arch) for name in LAUNCHES for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 6)
ALIGNED = ("2x2/s2", "3x3/s2", "3x3/s1")

BUDGETS = {
    "avg.bwd.general channels_last": Budget(loop=0, warps=64),
    "avg.bwd.general contiguous": Budget(loop=0, warps=24),
    "avg.bwd.separable channels_last": Budget(loop=149, warps=40),
    "avg.bwd.separable contiguous": Budget(loop=148, warps=48),
    "avg.bwd.tiled 2x2/s2 channels_last": Budget(loop=0, warps=64),
    "avg.bwd.tiled 2x2/s2 contiguous": Budget(loop=0, warps=64),
    "avg.bwd.tiled 3x3/s1 channels_last": Budget(loop=0, warps=16),
    "avg.bwd.tiled 3x3/s1 contiguous": Budget(loop=0, warps=36),
    "avg.bwd.tiled 3x3/s2 channels_last": Budget(loop=0, warps=40),
    "avg.bwd.tiled 3x3/s2 contiguous": Budget(loop=0, warps=48),
    "avg.fprop.separable channels_last": Budget(loop=31, warps=64),
    "avg.fprop.separable contiguous": Budget(loop=84, warps=40),
    "avg.fprop.tiled 2x2/s2 channels_last": Budget(loop=0, warps=64),
    "avg.fprop.tiled 2x2/s2 contiguous": Budget(loop=0, warps=64),
    "avg.fprop.tiled 3x3/s1 channels_last": Budget(loop=0, warps=20),
    "avg.fprop.tiled 3x3/s1 contiguous": Budget(loop=0, warps=28),
    "avg.fprop.tiled 3x3/s2 channels_last": Budget(loop=0, warps=16),
    "avg.fprop.tiled 3x3/s2 contiguous": Budget(loop=0, warps=32),
    "avg.fprop.tiled channels_last": Budget(loop=0, warps=16),
    "avg.fprop.tiled contiguous": Budget(loop=0, warps=16),
    "lp.bwd.general channels_last": Budget(loop=198, warps=32),
    "lp.bwd.general contiguous": Budget(loop=181, warps=20),
    "lp.fprop.general channels_last": Budget(loop=1153, warps=36),
    "lp.fprop.tiled 2x2/s2 channels_last": Budget(loop=0, warps=64),
    "lp.fprop.tiled 2x2/s2 contiguous": Budget(loop=0, warps=48),
    "max.bwd.general channels_last": Budget(loop=0, warps=64),
    "max.bwd.general contiguous": Budget(loop=0, warps=24),
    "max.bwd.separable channels_last": Budget(loop=205, warps=36),
    "max.bwd.separable contiguous": Budget(loop=224, warps=32),
    "max.bwd.separable positions channels_last": Budget(loop=243, warps=32),
    "max.bwd.separable positions contiguous": Budget(loop=245, warps=32),
    "max.bwd.tiled 2x2/s2 channels_last": Budget(loop=0, warps=48),
    "max.bwd.tiled 2x2/s2 contiguous": Budget(loop=0, warps=64),
    "max.bwd.tiled 3x3/s1 channels_last": Budget(loop=0, warps=8),
    "max.bwd.tiled 3x3/s1 contiguous": Budget(loop=0, warps=20),
    "max.bwd.tiled 3x3/s2 channels_last": Budget(loop=0, warps=24),
    "max.bwd.tiled 3x3/s2 contiguous": Budget(loop=0, warps=32),
    "max.bwd.tiled channels_last": Budget(loop=0, warps=12),
    "max.fprop.general channels_last": Budget(loop=59, warps=48),
    "max.fprop.separable channels_last": Budget(loop=74, warps=40),
    "max.fprop.separable contiguous": Budget(loop=121, warps=32),
    "max.fprop.tiled 2x2/s2 channels_last": Budget(loop=0, warps=40),
    "max.fprop.tiled 2x2/s2 contiguous": Budget(loop=0, warps=48),
    "max.fprop.tiled 3x3/s1 channels_last": Budget(loop=0, warps=8),
    "max.fprop.tiled 3x3/s1 contiguous": Budget(loop=0, warps=28),
    "max.fprop.tiled 3x3/s2 channels_last": Budget(loop=0, warps=12),
    "max.fprop.tiled 3x3/s2 contiguous": Budget(loop=0, warps=16),
    "max.fprop.tiled channels_last": Budget(loop=0, warps=8),
    "max.fprop.tiled contiguous": Budget(loop=0, warps=16),
}
"""By solver, window (those that networks use most) and memory format; of today's tables of every Triton.

Passes over axes from positions look for windows that they cannot tell apart, which those from taps do not.
"""

MISSING = [job for job in JOBS if PART is None or job[0] not in PART["rows"].get(str(job[1]), {})]

needs_table = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not run: the table for triton {VERSION} lacks {len(MISSING)} of {len(JOBS)} rows, pool_table.py adds them",
)


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def _family(name):
    launch = LAUNCHES[name]
    solver, layout = launch.solver.removeprefix("triton.pool."), launch.problem.x_format
    window = next((f"{window} " for window in ALIGNED if window in name and name.endswith(layout)), "")
    positions = "positions " if "of positions" in name and solver.endswith("separable") else ""
    return f"{solver} {positions}{window}{layout}"


def test_problems_cover_every_pool_and_pass():
    found = {(problem.pool, problem.kind) for _, problem in problems()}
    assert found == {(pool, kind) for pool in ("max", "avg", "lp") for kind in ("fprop", "bwd")}
    solvers = {launch.solver.rpartition(".")[2] for launch in LAUNCHES.values()}
    assert solvers == {"tiled", "general", "separable"}
    assert any(launch.arguments["INDEX64"] for launch in LAUNCHES.values())


@needs_table
def test_table_is_of_these_sources_and_problems():
    assert PART["rows"].keys() == {str(arch) for arch in ARCHITECTURES}, TABLE.remedy
    assert TABLE.stale(COMMITTED) == [], TABLE.remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=lambda value: str(value))
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
def test_aligned_kernels_load_and_store_16_bytes():
    """Every value of an aligned problem moves in 16 bytes, but for what windows read beyond a run of columns."""
    found = 0
    for arch, name, row in _rows():
        if not any(window in name for window in ALIGNED) or "tiled" not in row["solver"]:
            continue
        if not name.endswith(("channels_last", "contiguous")):
            continue
        accesses = row["accesses"]
        assert accesses.get("LDG128", 0) > 0 and accesses.get("STG128", 0) > 0, (arch, name)
        values = {"STG16", "STG32"} & accesses.keys()
        assert not values, (arch, name)
        if name.endswith("channels_last"):
            assert not {"LDG16", "LDG32"} & accesses.keys(), (arch, name)
        found += 1
    assert found >= 3 * 36


@needs_table
def test_small_windows_leave_room_for_the_memory():
    """Forward pools and gradients execute fewer instructions than a copy's speed leaves room for."""
    rows = {name: row for name, row in PART["rows"]["90"].items() if any(window in name for window in ALIGNED)}
    assert not TABLE.over(rows)
    assert sum("room" in row for row in rows.values()) >= 36


@needs_table
def test_hot_loops_and_warps_stay_within_their_budget():
    assert [*broken(_rows(), BUDGETS, _family)] == []


@needs_table
def test_breaking_a_budget_fails():
    assert unnoticed(_rows(), BUDGETS, _family) == []


def test_budgets_are_of_the_families_of_the_table():
    assert BUDGETS.keys() == {_family(name) for name in LAUNCHES}
