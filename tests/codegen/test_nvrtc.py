"""Every CUDA source compiled by NVRTC for five architectures, on a machine without a GPU."""

from __future__ import annotations

import os
import random
import re

import pytest
from budgets import Budget, broken, unnoticed
from cu_table import PAGE, jobs, kernels, key, load, measure, page, source_hashes, versions
from disassembly import DISASSEMBLED
from loops import occupancy
from nvrtc import ARCHITECTURES, compile_source, reports_of, version

from gpuconv.kernels import cu
from gpuconv.packing.nvrtc import CompileError

pytestmark = pytest.mark.codegen

TABLE = load()
FOUND = kernels()
FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
MISSING = sorted({release for release in ARCHITECTURES.values() if version(release) is None})

needs_nvrtc = pytest.mark.skipif(bool(MISSING), reason=f"not run: NVRTC of CUDA {MISSING} is not installed")
needs_versions = pytest.mark.skipif(
    TABLE["versions"] != versions(), reason=f"not run: the table is of NVRTC {TABLE['versions']}, not {versions()}"
)

BUDGETS = {
    "conv_deform_cells": Budget(loop=0, warps=48),
    "conv_deform_columns Plain<32, 32, 4, 4>": Budget(loop=789, warps=12),
    "conv_deform_columns Plain<64, 64, 4, 4>": Budget(loop=583, warps=16),
    "conv_deform_columns Plain<64, 64, 4, 4> 64-bit": Budget(loop=578, warps=8),
    "conv_deform_fprop Plain<32, 32, 4, 4>": Budget(loop=1355, warps=12),
    "conv_deform_fprop Plain<64, 64, 4, 4>": Budget(loop=828, warps=8),
    "conv_deform_fprop Plain<64, 64, 4, 4> 64-bit": Budget(loop=945, warps=8),
    "conv_deform_gather": Budget(loop=350, warps=28),
    "conv_deform_gather 64-bit": Budget(loop=566, warps=20),
    "conv_deform_offsets Plain<32, 32, 4, 4>": Budget(loop=1277, warps=8),
    "conv_deform_offsets Plain<64, 64, 4, 4>": Budget(loop=887, warps=8),
    "conv_deform_offsets Plain<64, 64, 4, 4> 64-bit": Budget(loop=1033, warps=8),
    "conv_deform_starts": Budget(loop=23, warps=64),
    "conv_deform_wgrad Plain<32, 32, 4, 4>": Budget(loop=1428, warps=12),
    "conv_deform_wgrad Plain<64, 64, 4, 4>": Budget(loop=887, warps=8),
    "conv_deform_wgrad Plain<64, 64, 4, 4> 64-bit": Budget(loop=985, warps=8),
    "conv_depthwise": Budget(loop=241, warps=16),
    "conv_depthwise 64-bit": Budget(loop=385, warps=16),
    "conv_dgrad Plain<128, 128, 8, 8>": Budget(loop=2190, warps=8),
    "conv_dgrad Plain<32, 32, 4, 4>": Budget(loop=1376, warps=12),
    "conv_dgrad Plain<64, 64, 4, 4>": Budget(loop=1224, warps=16),
    "conv_dgrad Plain<64, 64, 4, 4> 64-bit": Budget(loop=1637, warps=8),
    "conv_dgrad Tensor<128, 128, 64, 32>": Budget(loop=1001, warps=8),
    "conv_dgrad Tensor<32, 32, 16, 32>": Budget(loop=1455, warps=12),
    "conv_dgrad Tensor<64, 64, 32, 32>": Budget(loop=1522, warps=8),
    "conv_dgrad Tensor<64, 64, 32, 32> 64-bit": Budget(loop=2652, warps=8),
    "conv_fprop Plain<128, 128, 8, 8>": Budget(loop=1940, warps=8),
    "conv_fprop Plain<32, 32, 4, 4>": Budget(loop=1132, warps=12),
    "conv_fprop Plain<64, 64, 4, 4>": Budget(loop=962, warps=16),
    "conv_fprop Plain<64, 64, 4, 4> 64-bit": Budget(loop=2382, warps=8),
    "conv_fprop Tensor<128, 128, 64, 32>": Budget(loop=740, warps=8),
    "conv_fprop Tensor<32, 32, 16, 32>": Budget(loop=1220, warps=12),
    "conv_fprop Tensor<64, 64, 32, 32>": Budget(loop=1275, warps=8),
    "conv_fprop Tensor<64, 64, 32, 32> 64-bit": Budget(loop=5732, warps=8),
    "conv_wgrad Plain<128, 128, 8, 8>": Budget(loop=1872, warps=8),
    "conv_wgrad Plain<32, 32, 4, 4>": Budget(loop=1097, warps=12),
    "conv_wgrad Plain<64, 64, 4, 4>": Budget(loop=922, warps=16),
    "conv_wgrad Plain<64, 64, 4, 4> 64-bit": Budget(loop=2381, warps=8),
    "conv_wgrad Tensor<128, 128, 64, 32>": Budget(loop=787, warps=8),
    "conv_wgrad Tensor<32, 32, 16, 32>": Budget(loop=1253, warps=12),
    "conv_wgrad Tensor<64, 64, 32, 32>": Budget(loop=1256, warps=12),
    "conv_wgrad Tensor<64, 64, 32, 32> 64-bit": Budget(loop=6005, warps=8),
    "conv_wgrad_sum": Budget(loop=54, warps=64),
    "conv_wgrad_sum 64-bit": Budget(loop=81, warps=64),
    "pool_fold_fprop": Budget(loop=134, warps=24),
    "pool_fold_fprop 64-bit": Budget(loop=141, warps=16),
    "pool_fractional_bwd": Budget(loop=43, warps=32),
    "pool_fractional_bwd 64-bit": Budget(loop=54, warps=16),
    "pool_fractional_fprop": Budget(loop=159, warps=24),
    "pool_fractional_fprop 64-bit": Budget(loop=207, warps=24),
    "pool_max_block": Budget(loop=187, warps=40),
    "pool_max_block 64-bit": Budget(loop=337, warps=24),
    "pool_max_bwd": Budget(loop=60, warps=32),
    "pool_max_bwd 64-bit": Budget(loop=72, warps=16),
    "pool_max_bwd runs": Budget(loop=272, warps=24),
    "pool_max_fprop": Budget(loop=175, warps=16),
    "pool_max_fprop 64-bit": Budget(loop=191, warps=16),
    "pool_max_fprop runs": Budget(loop=137, warps=24),
    "pool_sum_block": Budget(loop=328, warps=32),
    "pool_sum_block 64-bit": Budget(loop=563, warps=16),
    "pool_sum_bwd": Budget(loop=352, warps=24),
    "pool_sum_bwd 64-bit": Budget(loop=566, warps=16),
    "pool_sum_bwd runs": Budget(loop=523, warps=16),
    "pool_sum_fprop": Budget(loop=195, warps=16),
    "pool_sum_fprop 64-bit": Budget(loop=191, warps=16),
    "pool_sum_fprop runs": Budget(loop=168, warps=16),
    "pool_unfold_fprop": Budget(loop=0, warps=64),
    "pool_unfold_fprop 64-bit": Budget(loop=0, warps=64),
    "pool_unpool_bwd": Budget(loop=0, warps=64),
    "pool_unpool_bwd 64-bit": Budget(loop=0, warps=64),
    "pool_unpool_clear": Budget(loop=0, warps=64),
    "pool_unpool_fprop": Budget(loop=228, warps=48),
    "pool_unpool_fprop 64-bit": Budget(loop=319, warps=32),
}
"""By kernel, tile of a convolution or whether a thread of a pool moves runs of channels, and size of the index; of the
architectures whose machine code is read."""

CHANGED = {name for name, found in source_hashes().items() if TABLE["sources"].get(name) != found}
JOBS = jobs(FOUND)
SAMPLE = random.Random(2026).sample(range(len(JOBS)), min(6, len(JOBS)))
CHOSEN = [job for place, job in enumerate(JOBS) if FULL or place in SAMPLE or job[0] in CHANGED]


def _rows():
    for arch, rows in TABLE["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def _read_rows():
    return [(arch, name, row) for arch, name, row in _rows() if arch in DISASSEMBLED]


def _family(name):
    kernel, _, arguments = name.partition(" ")[2].partition("<")
    tile = re.search(r"(?:Plain|Tensor)<[\d, ]+>", arguments)
    runs = "runs" if kernel.startswith("pool") and re.search(r" [248],", arguments) else None
    flags = re.findall("true|false", arguments)
    wide = "64-bit" if flags and flags[0 if tile else -1] == "true" else None
    return " ".join(part for part in (kernel, tile and tile[0], runs, wide) if part)


def test_solvers_name_kernels_of_every_source_and_no_other():
    assert sorted(FOUND) == cu.names()


def test_table_is_of_these_sources_and_kernels():
    remedy = "run: python tests/codegen/cu_table.py, and look at the diff"
    assert TABLE["sources"] == source_hashes(), remedy
    expected = {key(source, kernel) for source, names in FOUND.items() for kernel in names}
    for arch in ARCHITECTURES:
        assert set(TABLE["rows"][str(arch)]) == expected, remedy
    assert PAGE.read_text() == page(TABLE), remedy


@needs_nvrtc
@needs_versions
@pytest.mark.parametrize("job", CHOSEN, ids=lambda job: f"{job[0]}-sm_{job[1]}-{job[2][0]}")
def test_rows_are_what_the_compiler_does_today(job, record_property):
    _, rows, seconds = measure(job)
    record_property("seconds", round(seconds, 2))
    print(f"{job[0]} sm_{job[1]}: {len(job[2])} kernels in {seconds:.1f} s")
    assert rows == {name: TABLE["rows"][str(job[1])][name] for name in rows}


def test_no_kernel_spills():
    spilled = [f"sm_{arch} {name}: {row['spills']} bytes" for arch, name, row in _rows() if row["spills"]]
    assert not spilled, "\n".join(spilled)


def test_static_shared_memory_fits_every_gpu():
    """48 KiB is what a block may have without asking the driver for more."""
    assert all(row["shared"] <= 48 * 1024 for _, _, row in _rows())


def test_machine_code_was_read_where_it_can_be():
    for arch, name, row in _rows():
        assert ("counts" in row) is (arch in DISASSEMBLED), (arch, name)
        assert not row.get("counts", {}).keys() & {"LDL", "STL"}, (arch, name)


def test_tensor_tiles_use_the_tensor_cores_and_no_others_do():
    found = 0
    for arch, name, row in _read_rows():
        products = row["counts"].get("HMMA", 0)
        assert (products > 0) is ("Tensor<" in name), (arch, name)
        found += products > 0
    assert found >= 100


def test_aligned_operands_are_read_16_bytes_at_a_time():
    rows = [(arch, name, row) for arch, name, row in _read_rows() if "VECTOR" in name]
    assert [(arch, name) for arch, name, row in rows if not row["accesses"].get("LDG128")] == []
    assert len(rows) >= 30


def test_hot_loops_and_warps_stay_within_their_budget():
    assert [*broken(_read_rows(), BUDGETS, _family)] == []


def test_breaking_a_budget_fails():
    assert unnoticed(_read_rows(), BUDGETS, _family) == []


def test_the_largest_block_fits_every_gpu():
    assert [(arch, name) for arch, name, row in _rows() if occupancy(row, arch) < 1] == []


def test_budgets_are_of_the_families_of_the_table():
    assert BUDGETS.keys() == {_family(key(source, kernel)) for source, names in FOUND.items() for kernel in names}


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_errors_name_the_line_of_the_file(arch):
    text = cu.expand("common.cuh", {}) + '#line 7 "wrong.cu"\n__global__ void wrong(float* y) { y[0] = nothing; }\n'
    with pytest.raises(CompileError, match=r'wrong\.cu\(7\): error: identifier "nothing" is undefined'):
        compile_source("wrong", ["wrong"], arch, text)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_tensor_core_wrapper_compiles_and_traps_where_it_is_missing(arch):
    text = (
        cu.expand("common.cuh", {})
        + """
template <class T>
__global__ void multiply(const unsigned* a, const T* b, float* y) {
    __shared__ __align__(16) T tile[1024];
    tile[threadIdx.x] = b[threadIdx.x];
    __syncthreads();
    float acc[4] = {HAS_MMA<T> ? 1.0f : 0.0f, 0.0f, 0.0f, 0.0f};
    unsigned left[4] = {a[0], a[1], a[2], a[3]}, right[4], columns[2];
    load_matrices<true>(right, tile + 8 * (threadIdx.x % 32));
    load_matrices<false>(left, tile + 8 * (threadIdx.x % 32));
    columns[0] = right[0], columns[1] = right[1];
    mma_m16n8k16(acc, left, columns, T{});
    for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = acc[i];
}
"""
    )
    reports = reports_of(compile_source("wrapper", ["multiply<f16>", "multiply<bf16>"], arch, text))
    assert all(report.spills == 0 for report in reports.values())
    if arch >= 80:  # older ones only trap
        assert all(report.shared == 2048 for report in reports.values())


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_subnormal_numbers_are_not_flushed_whatever_cupy_adds(arch):
    text = "__global__ void k(float* x) { x[0] = fmaf(x[1], x[2], x[3]); x[4] = x[5] < x[6] ? x[5] : x[0] / x[6]; }"
    ptx = compile_source("subnormal", ["k"], arch, text).ptx
    assert "fma.rn.f32" in ptx and "setp" in ptx and ".ftz" not in ptx
