"""Fractional pools and unpooling in CUDA C++ against the NumPy backend: every pass, layout and type, ties, specials."""

from __future__ import annotations

from itertools import product

import harness
import pytest
from pool_cases import DTYPES, LAYOUTS, announce_pools, some_orders
from pool_plane_cases import BRANCHES, all_cases, check

CASES = {(family, kind): all_cases(family, kind) for family, kind in product(BRANCHES, ("fprop", "bwd"))}


@pytest.fixture(autouse=True)
def _together():
    announce_pools()


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.id)
def test_matches_reference(case):
    check(case, some_orders(case.id))


@pytest.mark.parametrize("family", BRANCHES)
@pytest.mark.parametrize("kind", ("fprop", "bwd"))
def test_cases_are_distinct_and_cover_everything(family, kind):
    cases, distinct = CASES[family, kind], harness.Distinct()
    for case in cases:
        distinct.add(case.id, case.ndim, case.layout, case.dtype, case.branch)
    assert len(distinct) >= 60
    dims = (2, 3) if family == "fractional" else (1, 2, 3)
    assert {(case.ndim, case.layout, case.dtype) for case in cases} == set(product(dims, LAYOUTS, DTYPES))
    names = {name for name, options in BRANCHES[family].items() if kind == "fprop" or options.get("indices", True)}
    assert {case.branch for case in cases} == names
