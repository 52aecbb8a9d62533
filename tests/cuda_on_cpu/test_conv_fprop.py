"""The forward convolution in CUDA C++: dense as an implicit GEMM, on plain and on tensor cores."""

from __future__ import annotations

from math import prod

import pytest
from conv_branches import BRANCHES
from conv_cases import CORES, LAYOUTS, Case, announce_cases, cases_of, check_case, check_exact, tiles_and_steps
from harness import Distinct, struct_layout

from gpuconv.backends.cupy.conv_common import PARAMS

CASES = cases_of("fprop", 90)

EXACT = [
    Case("fprop", 1 + number % 3, layout, dtype, core, "strided")
    for number, (dtype, core) in enumerate(CORES)
    for layout in ("contiguous", "channels_last")
]


@pytest.fixture(scope="module", autouse=True)
def _compile_together():
    announce_cases([*CASES, *EXACT])


def test_cases_are_distinct_and_cover_everything():
    distinct = Distinct()
    for case in CASES:
        distinct.add(case.id, case.ndim, case.layout, f"{case.dtype} {case.core}", case.branch)
    assert len(distinct) >= 60
    assert {(case.dtype, case.core) for case in CASES} == set(CORES)
    assert {case.layout for case in CASES} == set(LAYOUTS)
    assert {case.branch for case in CASES} == set(BRANCHES["fprop"])
    assert sum(case.core == "tensor" for case in CASES) >= 25


def test_cases_have_several_tiles_and_steps():
    assert not [case.id for case in CASES if prod(tiles_and_steps(case)) < 6]
    assert sum(min(tiles_and_steps(case)) >= 3 for case in CASES) >= len(CASES) // 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_fprop(case):
    check_case(case)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.id)
def test_small_integers_are_exact(case):
    check_exact(case)


def test_struct_lies_as_its_mirror():
    struct_layout("conv_fprop", "ConvParams", PARAMS)
