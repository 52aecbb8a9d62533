"""The data gradient and transposed convolution in CUDA C++: a GEMM for each stride phase."""

from __future__ import annotations

from math import prod

import pytest
from conv_branches import BRANCHES
from conv_cases import CORES, LAYOUTS, Case, announce_cases, cases_of, check_case, check_exact, tiles_and_steps
from harness import Distinct

CASES = [*cases_of("dgrad", 72), *cases_of("transposed", 36)]

EXACT = [
    Case("dgrad", 1 + number % 3, "mixed", dtype, core, "stride 2 dilation 3")
    for number, (dtype, core) in enumerate(CORES)
]


@pytest.fixture(scope="module", autouse=True)
def _compile_together():
    announce_cases([*CASES, *EXACT])


def test_cases_are_distinct_and_cover_everything():
    for kind, least in (("dgrad", 60), ("transposed", 30)):
        distinct, cases = Distinct(), [case for case in CASES if case.kind == kind]
        for case in cases:
            distinct.add(case.id, case.ndim, case.layout, f"{case.dtype} {case.core}", case.branch)
        assert len(distinct) >= least
        assert {(case.dtype, case.core) for case in cases} == set(CORES)
        assert {case.layout for case in cases} == set(LAYOUTS)
        assert {case.branch for case in cases} == set(BRANCHES[kind])
        assert {case.ndim for case in cases} == {1, 2, 3}
        assert sum(case.core == "tensor" for case in cases) >= least // 3


def test_cases_have_several_tiles_and_steps():
    assert not [case.id for case in CASES if prod(tiles_and_steps(case)) < 6]
    assert sum(min(tiles_and_steps(case)) >= 3 for case in CASES) >= len(CASES) // 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.id}")
def test_dgrad(case):
    check_case(case)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.id)
def test_small_integers_are_exact(case):
    check_exact(case)
