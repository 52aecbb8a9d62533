"""The kernel over runs against the reference, in the interpreter."""

from __future__ import annotations

import pytest
from runs_cases import all_cases, check_case

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)
