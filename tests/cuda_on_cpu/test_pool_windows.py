"""The pools in CUDA C++ against the NumPy backend: every solver forced, guards, blocks and threads in any order."""

from __future__ import annotations

import harness
import pytest
from pool_cases import BRANCHES, DTYPES, FAMILIES, LAYOUTS, Inputs, all_cases, announce_pools, check, some_orders

from gpuconv.backends.cupy import pool as cupy_pool
from gpuconv.backends.cupy.pool_common import PARAMS

KINDS = ("fprop", "bwd")
CASES = {(family, kind): all_cases(family, kind) for family in FAMILIES for kind in KINDS}


@pytest.fixture(autouse=True)
def _together():
    announce_pools()


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.id)
def test_matches_reference(case):
    ran = check(Inputs(case), some_orders(case.id))
    known = {kernel for _, kernel in harness.instantiations_of(cupy_pool.SOLVERS)}
    assert ran.kernels <= known


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_cases_are_distinct_and_cover_everything(family, kind):
    cases, distinct = CASES[family, kind], harness.Distinct()
    for case in cases:
        distinct.add(case.id, case.ndim, case.layout, case.dtype, case.branch)
    assert len(distinct) >= 60
    assert {(case.ndim, case.layout, case.dtype) for case in cases} == {
        (ndim, layout, dtype) for ndim in (1, 2, 3) for layout in LAYOUTS for dtype in DTYPES
    }
    for ndim in (1, 2, 3):
        assert {case.branch for case in cases if case.ndim == ndim} == set(BRANCHES[family, kind])


@pytest.mark.parametrize("source", ("pool_max", "pool_sum", "pool_block", "pool_fractional", "pool_unpool"))
def test_struct_is_its_mirror(source):
    harness.struct_layout(source, "PoolParams", PARAMS)
