"""What the compiler makes of every kernel, for three GPU architectures, on a machine without a GPU."""

from __future__ import annotations

from collections import Counter

import pytest
from aot import compile_for, launch_arguments, specialise
from sample import chosen
from table import (
    ARCHITECTURES,
    ENTRIES,
    PAGE,
    SOLVERS,
    VERSION,
    launch,
    load,
    measure,
    page,
    planned,
    small_pass,
    source_hashes,
)

from gpuconv.problem import itemsize

pytestmark = pytest.mark.codegen

TABLE = load()
PART = TABLE.get(VERSION)
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
"""Instructions of the tensor cores; those of sm_90 and sm_100 need tiles of 64 rows, smaller ones use HMMA there."""

LOOP_BUDGET = {"fprop": 150, "dgrad": 260, "transposed": 210, "wgrad": 410}
"""Instructions of the hot loop of 128 x 128 x 64 tiles on Hopper by pass, zero padding: a few above today's most."""

JOBS = [(name, arch) for name in ENTRIES for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 10)

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


@needs_table
def test_table_is_of_these_sources_and_problems():
    remedy = "run: python tests/codegen/table.py, and look at the diff"
    assert PART["sources"] == source_hashes(), remedy
    for arch in ARCHITECTURES:
        rows = PART["rows"][str(arch)]
        assert set(rows) == set(ENTRIES), remedy
        assert [name for name in ENTRIES if not planned(name).items() <= rows[name].items()] == [], remedy
    assert PAGE.read_text() == page(TABLE), remedy


@needs_table
@pytest.mark.parametrize(("name", "arch"), SAMPLE, ids=lambda value: str(value))
def test_row_is_what_the_compiler_does_today(name, arch):
    assert measure((name, arch))[2] == PART["rows"][str(arch)][name]


@needs_table
def test_no_kernel_spills():
    """No kernel reads or writes local memory; ptxas of Triton 3.9 reserves 8 to 24 bytes in some that never do."""
    spilled = [
        f"sm_{arch} {name}: {row['stack']} bytes"
        for arch, name, row in _rows()
        if row["stack"] > 24 or row["counts"].keys() & {"LDL", "STL"}
    ]
    assert not spilled, "\n".join(spilled)


@pytest.mark.parametrize("kind", ("fprop", "transposed"))
def test_vectors_with_strides_do_not_spill(kind):
    """The table has contiguous vectors, whose strides of 1 are constants of the compiler."""
    problem = next(p for p in ENTRIES.values() if p.kind == kind and p.bias and p.scale and p.shift)
    config = SOLVERS[kind].plan(problem).config
    strides = dict.fromkeys(("bias_stride", "scale_stride", "shift_stride"), 3)
    kernel, arguments = launch(kind, problem)[0].fn, launch_arguments(problem, config)
    row = compile_for(specialise(kernel, arguments | strides), 90, config)
    assert row["stack"] <= 24 and not row["counts"].keys() & {"LDL", "STL"}, row


@needs_table
def test_sixteen_bit_kernels_use_the_tensor_cores():
    found = Counter()
    for arch, name, row in _rows():
        if ENTRIES[name].dtype in ("float16", "bfloat16") and not small_pass(name):
            instruction = TENSOR_CORE[arch] if int(row["tile"].split("x")[0]) >= 64 else "HMMA"
            assert row["counts"].get(instruction, 0) > 0, (arch, name)
            found[ENTRIES[name].kind] += instruction != "HMMA"
    assert min(found[kind] for kind in ("fprop", "dgrad", "wgrad")) >= 2 * 30 and found["transposed"] >= 2 * 5


@needs_table
def test_aligned_channels_last_kernels_copy_16_bytes_asynchronously():
    found = Counter()
    for arch, name, row in _rows():
        problem = ENTRIES[name]
        packed = SOLVERS[problem.kind].plan(problem).config.get("packed")
        innermost = problem.x_format == "channels_last" and (problem.w_format == "channels_last" or packed)
        # 16-bit kernels are told of multiples of 8, all others of those that the JIT finds.
        told = problem.kind == "fprop" or not problem.index64
        run = 8 if itemsize(problem.dtype) == 2 and told else 16
        if small_pass(name) or (problem.kind == "wgrad" and problem.precision == "tf32"):
            continue  # no products; 32-bit operands of the tensor cores are transposed on their way, 4 bytes at a time
        m, n, k = (int(side) for side in row["tile"].split("x"))
        if max(m, n) * k * itemsize(problem.dtype) < 16 * 32 * row["warps"]:
            continue  # a thread has less than 16 bytes to copy
        if innermost and problem.c // problem.groups % run == 0 and problem.k // problem.groups % run == 0:
            assert row["wide_async"] > 0, (arch, name)
            found[problem.kind] += 1
    assert min(found[kind] for kind in ("fprop", "dgrad", "wgrad")) >= 3 * 15 and found["transposed"] >= 3


@needs_table
def test_packed_weights_are_copied_16_bytes_at_a_time():
    found = set()
    for arch, name, row in _rows():
        problem = ENTRIES[name]
        if problem.kind == "fprop" and not small_pass(name) and SOLVERS["fprop"].plan(problem).config["packed"]:
            assert row["wide_async"] > 0, (arch, name)
            found.add((arch, problem.x_format, problem.ndim))
    assert found >= {(arch, layout, 2) for arch in ARCHITECTURES for layout in ("channels_last", "contiguous")}


def test_forward_splits_packs_and_units_have_entries():
    """Problems with few tiles are in the table split, with and without packing, and channels in units of 8."""
    plans = [SOLVERS["fprop"].plan(problem) for problem in ENTRIES.values() if problem.kind == "fprop"]
    seen = {
        (plan.problem.dtype, plan.config["splits"] > 1, plan.config["packed"], plan.config["unit_c"]) for plan in plans
    }
    assert seen >= {("float16", True, False, 1), ("float16", True, True, 1), ("float64", True, False, 1)}
    assert seen >= {("float16", False, True, 1), ("float16", False, True, 8), ("bfloat16", False, False, 8)}


@needs_table
def test_two_blocks_fit_on_a_multiprocessor():
    """Shared memory of one block stays within half of a Hopper multiprocessor's 227 KiB, on each one's own smaller."""
    assert all(row["shared"] <= 227 * 1024 // 2 for arch, _, row in _rows() if arch == 90)


def _dense_loops():
    """Yield the rows of Hopper's largest 16-bit tile that copies 16 bytes at a time, with zero padding."""
    for arch, name, row in _rows():
        dense = row["tile"] == "128x128x64" and row["wide_async"] > 0 and not small_pass(name)
        if arch == 90 and dense and ENTRIES[name].padding_mode == "zeros":
            yield name, row


@needs_table
def test_hot_loops_stay_within_their_budget():
    seen = Counter()
    for name, row in _dense_loops():
        seen[ENTRIES[name].kind] += 1
        assert row["hot_loop"] <= LOOP_BUDGET[ENTRIES[name].kind], (name, row["hot_loop"])
    assert min(seen[kind] for kind in LOOP_BUDGET) >= 3, seen


@needs_table
def test_no_value_changes_its_layout_in_dense_loops():
    assert [name for name, row in _dense_loops() if row["round_trips"]] == []
