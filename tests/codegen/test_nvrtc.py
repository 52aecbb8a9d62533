"""Every CUDA source compiled by NVRTC for five architectures, on a machine without a GPU."""

from __future__ import annotations

import os
import random

import pytest
from cu_table import jobs, kernels, key, load, measure, source_hashes, versions
from nvrtc import ARCHITECTURES, CompileError, compile_kernels, version

from gpuconv.kernels import cu

pytestmark = pytest.mark.codegen

TABLE = load()
FOUND = kernels()
FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
MISSING = sorted({release for release in ARCHITECTURES.values() if version(release) is None})

needs_nvrtc = pytest.mark.skipif(bool(MISSING), reason=f"not run: NVRTC of CUDA {MISSING} is not installed")
needs_versions = pytest.mark.skipif(
    TABLE["versions"] != versions(), reason=f"not run: the table is of NVRTC {TABLE['versions']}, not {versions()}"
)

CHANGED = {name for name, found in source_hashes().items() if TABLE["sources"].get(name) != found}
JOBS = jobs(FOUND)
SAMPLE = random.Random(2026).sample(range(len(JOBS)), min(8, len(JOBS)))
CHOSEN = [job for place, job in enumerate(JOBS) if FULL or place in SAMPLE or job[0] in CHANGED]


def _rows():
    for arch, rows in TABLE["rows"].items():
        for name, row in rows.items():
            yield int(arch), name, row


def test_solvers_name_kernels_of_every_source_and_no_other():
    assert sorted(FOUND) == cu.names()


def test_table_is_of_these_sources_and_kernels():
    remedy = "run: python tests/codegen/cu_table.py, and look at the diff"
    assert TABLE["sources"] == source_hashes(), remedy
    expected = {key(source, kernel) for source, names in FOUND.items() for kernel in names}
    for arch in ARCHITECTURES:
        assert set(TABLE["rows"][str(arch)]) == expected, remedy


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


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_errors_name_the_line_of_the_file(arch):
    text = cu.expand("common.cuh", {}) + '#line 7 "wrong.cu"\n__global__ void wrong(float* y) { y[0] = nothing; }\n'
    with pytest.raises(CompileError, match=r'wrong\.cu\(7\): error: identifier "nothing" is undefined'):
        compile_kernels("wrong", ["wrong"], arch, text)


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
    reports = compile_kernels("wrapper", ["multiply<f16>", "multiply<bf16>"], arch, text)
    assert all(report.spills == 0 for report in reports.values())
    if arch >= 80:  # older ones only trap
        assert all(report.shared == 2048 for report in reports.values())


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_subnormal_numbers_are_not_flushed_whatever_cupy_adds(arch):
    text = "__global__ void k(float* x) { x[0] = fmaf(x[1], x[2], x[3]); x[4] = x[5] < x[6] ? x[5] : x[0] / x[6]; }"
    code = []
    compile_kernels("subnormal", ["k"], arch, text, code)
    assert "fma.rn.f32" in code[0] and "setp" in code[0] and ".ftz" not in code[0]
