"""What the compiler makes of the adaptive, global, fractional and unpooling kernels, on a machine without a GPU."""

from __future__ import annotations

import os
import random

import pytest
from pool_adaptive_problems import ENTRIES
from pool_adaptive_table import ARCHITECTURES, VERSION, load, rows_of, source_hash

from gpuconv.arrays import CHANNELS_LAST

pytestmark = pytest.mark.codegen

PART = load().get(VERSION)
FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
JOBS = [(name, arch) for name in ENTRIES for arch in ARCHITECTURES]
SAMPLE = JOBS if FULL else random.Random(2026).sample(JOBS, 6)

NARROW_WINDOWS = ("56 to 7", "3-D", "claims apart")
"""Parts of names of entries of which lines or planes are not multiples of 16 elements."""

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for key, row in rows.items():
            name, _, kernel = key.partition(" | ")
            yield int(arch), name, kernel, row


@needs_table
def test_table_is_of_these_sources_and_problems():
    remedy = "run: python tests/codegen/pool_adaptive_table.py, and look at the diff"
    assert PART["source"] == source_hash(), remedy
    for arch in ARCHITECTURES:
        assert {key.partition(" | ")[0] for key in PART["rows"][str(arch)]} == set(ENTRIES), remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=str)
def test_row_is_what_the_compiler_does_today(name, arch):
    for key, row in rows_of(name, arch).items():
        assert row == PART["rows"][str(arch)][key]


@needs_table
def test_no_kernel_spills():
    """No kernel reads or writes local memory; ptxas of Triton 3.9 reserves 8 bytes in some that never touch them."""
    spilled = [
        f"sm_{arch} {name} {kernel}: {row['stack']} bytes"
        for arch, name, kernel, row in _rows()
        if row["stack"] > 8 or row["counts"].keys() & {"LDL", "STL"}
    ]
    assert not spilled, "\n".join(spilled)


@needs_table
def test_aligned_tensors_are_read_16_bytes_at_a_time():
    """Inputs of adaptive and global pools, forward and channels-last backward, and the indices of unpooling."""
    found = 0
    for arch, name, kernel, row in _rows():
        solver, problem = ENTRIES[name]
        gathers = kernel.startswith("_pool_fractional") or "combine" in kernel or name.endswith("7x7 global")
        by_place = problem.x_format != CHANNELS_LAST and ("bwd" in kernel or solver.endswith(("split", "window")))
        if gathers or (by_place and not name.endswith(("global", "batch 1")) and "unpool" not in kernel):
            continue
        if problem.x_format != CHANNELS_LAST and any(part in name for part in NARROW_WINDOWS):
            continue
        assert row["loads"].get("128"), (arch, name, kernel, row["loads"])
        found += 1
    assert found >= 100


@needs_table
def test_aligned_tensors_are_written_16_bytes_at_a_time():
    """Results but those that a reduction leaves in few threads: of global pools, and of whole lines."""
    found = 0
    for arch, name, kernel, row in _rows():
        problem = ENTRIES[name][1]
        if "global" in kernel or "lines" in kernel:
            continue
        if problem.result_format != CHANNELS_LAST and any(part in name for part in NARROW_WINDOWS):
            continue
        assert row["stores"].get("128"), (arch, name, kernel, row["stores"])
        found += 1
    assert found >= 100


@needs_table
def test_global_pools_leave_room_for_the_memory():
    """Instructions per element of the loop that reads, beside those that fit while memory delivers it."""
    found = 0
    for arch, name, kernel, row in _rows():
        if "global" in name and "partial" in kernel and "7x7" not in name:
            assert row["per_element"] < row["room"], (arch, name, row)
            found += 1
    assert found >= 3 * 16
