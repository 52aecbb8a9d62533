"""What the compiler makes of the banded kernels, on a machine without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aot import compile_source, report, specialise
from banded_table import TABLE, launches, problems
from budgets import Budget, broken, unnoticed
from conv_launches import launches_of
from disassembly import sass_of
from loops import products_of, straight
from pool_rows import ARCHITECTURES, VERSION
from problems import conv_problem
from sample import chosen

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton import conv_banded
from gpuconv.backends.triton.banded_costs import BandedCosts
from gpuconv.costs.constants import Gpu, assuming

pytestmark = pytest.mark.codegen

COMMITTED = TABLE.load()
PART = COMMITTED.get(VERSION)
JOBS = [(name, arch) for name in TABLE.launches for arch in ARCHITECTURES]
SAMPLE = chosen(JOBS, 2)

BUDGETS: dict[str, Budget] = {
    "1-D 31": Budget(loop=0, warps=16),
    "1-D 31 last": Budget(loop=503, warps=8),
    "13x13 14 residual": Budget(loop=249, warps=8),
    "13x13 56": Budget(loop=224, warps=8),
    "13x13 56 last": Budget(loop=516, warps=8),
    "13x13 7": Budget(loop=243, warps=8),
    "29x29 28 dgrad": Budget(loop=222, warps=8),
    "31x31 56": Budget(loop=224, warps=8),
    "31x31 56, pack": Budget(loop=0, warps=64),
    "5x5 56 last": Budget(loop=550, warps=8),
    "7x7 14 last residual": Budget(loop=516, warps=8),
    "7x7 56": Budget(loop=223, warps=8),
    "7x7 56 last": Budget(loop=512, warps=8),
    "9x9 56": Budget(loop=224, warps=8),
    "9x9 56 last": Budget(loop=512, warps=8),
}
"""By launch; of today's tables of every Triton and architecture."""

needs_table = pytest.mark.skipif(PART is None, reason=f"not run: the table has no part for triton {VERSION}")


def _rows():
    for arch, rows in PART["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def test_every_problem_is_launched():
    assert TABLE.launches.keys() >= {name for name, _ in problems()}


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
        f"sm_{arch} {name}" for arch, name, row in _rows() if row["stack"] > 0 or row["counts"].keys() & {"LDL", "STL"}
    ]
    assert spilled == []


@pytest.mark.parametrize("arch", (80, 90))
def test_a_whole_epilogue_of_results_one_by_one_does_not_spill(arch):
    """Of planes of odd width, which take most registers; planned for a GPU of that architecture."""
    problem = conv_problem((32, 768, 7, 7), (768, 1, 7, 7), dtype="bfloat16", formats=CONTIGUOUS, groups=768, padding=3)
    every = {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "gelu"}
    with assuming(Gpu("another GPU", divmod(arch, 10))):
        _, launch = launches(replace(problem, **every))
    compiled = compile_source(specialise(launch.kernel, launch.arguments), arch, launch.config)
    found = report(compiled, sass_of(compiled.asm["cubin"]))
    assert found.stack == 0 and not found.counts.keys() & {"LDL", "STL"}, launch.config


def test_instructions_of_a_result_in_blocks_of_8_x_16():
    """The tile of fewest instructions for 7 x 7: plans have one of half the registers, where more blocks fit."""
    problem, solver = dict(problems())["7x7 56"], conv_banded.SOLVERS[0]
    config = solver.plan(problem).config | {"TP": 8, "TQ": 16, "BM": 128, "BK": 64, "num_warps": 4}
    _, launch = launches_of(solver.bind(problem, config), (conv_banded,))
    sass = sass_of(compile_source(specialise(launch.kernel, launch.arguments), 90, launch.config).asm["cubin"])
    steps = float(BandedCosts(problem, [config]).steps[0])
    assert (len(products_of(sass)[0]) * steps + straight(sass)) / (8 * 16) <= 20.6


@pytest.mark.parametrize(("size", "taps"), (((4096,), 31), ((56, 56), 13)), ids=("1-D", "2-D"))
@pytest.mark.parametrize("last", ("x", "y"))
def test_columns_with_channels_between_them_do_not_spill(last, size, taps):
    """One side channels-last: each of its elements has a pointer of its own."""
    shape, filters = (8, 768, *size), (768, 1, *(taps,) * len(size))
    problem = conv_problem(shape, filters, dtype="bfloat16", formats=CONTIGUOUS, groups=768, padding=taps // 2)
    with assuming(Gpu("another GPU", (9, 0))):
        _, launch = launches(replace(problem, **{f"{last}_format": CHANNELS_LAST}))
    compiled = compile_source(specialise(launch.kernel, launch.arguments), 90, launch.config)
    found = report(compiled, sass_of(compiled.asm["cubin"]))
    assert found.stack == 0 and not found.counts.keys() & {"LDL", "STL"}, launch.config


@needs_table
def test_the_cost_model_has_the_instructions_of_a_result():
    """Within 20 %, on the architecture whose constants are shipped first."""
    compared = 0
    for arch, name, row in _rows():
        if arch == 90 and "modelled" in row:
            assert 1 / 1.2 <= row["modelled"] / row["per_result"] <= 1.2, (name, row["per_result"], row["modelled"])
            compared += 1
    assert compared >= 14


@needs_table
def test_the_cost_model_has_the_bytes_through_l1():
    """Of a step of products, those of operands in shared memory included; within 20 % on the same architecture."""
    compared = 0
    for arch, name, row in _rows():
        if arch == 90 and "moved" in row:
            assert 1 / 1.2 <= row["modelled_moved"] / row["moved"] <= 1.2, (name, row["moved"], row["modelled_moved"])
            compared += 1
    assert compared >= 13


@needs_table
def test_registers_are_not_underestimated_where_they_bound_residency():
    """On the same architecture, by at most a quarter."""
    for arch, name, row in _rows():
        if arch == 90 and "modelled_registers" in row:
            assert row["modelled_registers"] >= 0.75 * row["registers"], (name, row["registers"])


@needs_table
def test_source_and_weights_are_read_sixteen_bytes_at_a_time():
    for arch, name, row in _rows():
        if name in ("31x31 56", "13x13 56", "7x7 56 last"):
            assert row["accesses"].get("LDG128", 0) >= 8 and row["accesses"].get("STG128", 0) >= 8, (arch, name)


@needs_table
def test_every_row_is_within_its_budget():
    assert list(broken(_rows(), BUDGETS, str)) == []


@needs_table
def test_a_longer_loop_is_noticed():
    rows = [(arch, name, row) for arch, name, row in _rows() if row["hot_loop"]]
    assert unnoticed(rows, BUDGETS, str) == []


SASS = """
        /*0010*/                   MOV R1, c[0x0][0x28] ;
        /*0020*/                   LDG.E.128 R4, [R2] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0040*/              @P0  BRA 0x20 ;
        /*0050*/                   FADD R2, R2, R3 ;
        /*0060*/              @!P0 BRA 0x50 ;
        /*0070*/                   EXIT ;
        /*0080*/                   NOP ;
"""


def test_reading_products_and_what_is_in_no_loop():
    assert [operation for operation, _ in products_of(SASS)] == ["LDG.E.128", "HGMMA.64", "BRA"]
    assert straight(SASS) == 2
