"""What the compiler makes of the pooling kernels, for three GPU architectures, on a machine without a GPU."""

from __future__ import annotations

import os
import random

import pytest
from pool_problems import problems
from pool_table import ARCHITECTURES, PAGE, VERSION, entries, load, measure, over, page, source_hash

pytestmark = pytest.mark.codegen

ENTRIES = entries()
TABLE = load()
PART = TABLE.get(VERSION)
FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
JOBS = [(name, arch) for name in ENTRIES for arch in ARCHITECTURES]
SAMPLE = JOBS if FULL else random.Random(2026).sample(JOBS, 6)
ALIGNED = ("2x2/s2", "3x3/s2", "3x3/s1")

MISSING = [job for job in JOBS if PART is None or job[0] not in PART["rows"].get(str(job[1]), {})]

needs_table = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not run: the table for triton {VERSION} lacks {len(MISSING)} of {len(JOBS)} rows, pool_table.py adds them",
)


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def test_problems_cover_every_pool_and_pass():
    found = {(problem.pool, problem.kind) for _, problem in problems()}
    assert found == {(pool, kind) for pool in ("max", "avg", "lp") for kind in ("fprop", "bwd")}
    solvers = {solver.rpartition(".")[2] for _, solver, _ in ENTRIES.values()}
    assert solvers == {"tiled", "general", "separable"}
    assert any(launch.arguments["INDEX64"] for _, _, launch in ENTRIES.values())


@needs_table
def test_table_is_of_these_sources_and_problems():
    remedy = "run: python tests/codegen/pool_table.py, and look at the diff"
    assert PART["source"] == source_hash(), remedy
    for arch in ARCHITECTURES:
        assert set(PART["rows"][str(arch)]) == set(ENTRIES), remedy
    assert PAGE.read_text() == page(TABLE), remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=lambda value: str(value))
def test_row_is_what_the_compiler_does_today(name, arch):
    assert measure(ENTRIES[name], arch) == PART["rows"][str(arch)][name]


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
        if not any(window in name for window in ALIGNED) or "tiled" not in row["solver"] or name not in ENTRIES:
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
    assert not over(rows)
    assert sum("room" in row for row in rows.values()) >= 36
