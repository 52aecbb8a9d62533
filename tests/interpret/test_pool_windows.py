"""The window pools on Triton against the NumPy backend: every kernel forced, with guards and in several orders."""

from __future__ import annotations

import pytest
from pool_cases import FAMILIES, all_cases, check_case, orders_of

CASES = {family: all_cases(family) for family in FAMILIES}


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case, orders_of(case))
