"""Depthwise convolution in CUDA C++, forward and its data gradient at stride 1."""

from __future__ import annotations

import numpy as np
import pytest
from conv_branches import BRANCHES
from conv_cases import LAYOUTS, Case, announce_cases, cases_of, check_case, check_exact
from harness import Distinct, on_device, run_once, struct_layout

import gpuconv
from gpuconv.backends.cupy.conv import DEPTHWISE_PARAMS
from gpuconv.errors import NoSolverError

CASES = [*cases_of("fprop depthwise", 60), *cases_of("dgrad depthwise", 27), *cases_of("transposed depthwise", 12)]

DTYPES = ("float64", "float32", "float16", "bfloat16")

EXACT = [
    Case(kind, 2, "mixed", dtype, "plain", "row of 3 stride 1")
    for kind in ("fprop depthwise", "dgrad depthwise") for dtype in DTYPES
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compile_together():
    announce_cases([*CASES, *EXACT])


def test_cases_are_distinct_and_cover_everything():
    for kind, least in (("fprop depthwise", 60), ("dgrad depthwise", 24), ("transposed depthwise", 10)):
        distinct, cases = Distinct(), [case for case in CASES if case.kind == kind]
        for case in cases:
            distinct.add(case.id, case.ndim, case.layout, case.dtype, case.branch)
        assert len(distinct) >= least
        assert {case.branch for case in cases} == set(BRANCHES[kind])
        assert {case.dtype for case in cases} == set(DTYPES) and {case.ndim for case in cases} == {1, 2, 3}
        assert len({case.layout for case in cases}) >= 4
    assert {case.layout for case in CASES} == set(LAYOUTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.id}")
def test_depthwise(case):
    check_case(case)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: f"{case.kind}-{case.id}")
def test_small_integers_are_exact(case):
    check_exact(case)


def test_struct_lies_as_its_mirror():
    struct_layout("conv_depthwise", "DepthwiseParams", DEPTHWISE_PARAMS)


def test_dispatcher_prefers_it_and_refusals_name_the_reason():
    x, w = on_device(np.ones((1, 8, 9, 9)), "float32"), on_device(np.ones((8, 1, 3, 3)), "float32")
    assert gpuconv.explain(gpuconv.conv2d, x, w, groups=8).solver == "cupy.conv.fprop.depthwise"
    assert gpuconv.explain(gpuconv.conv_transpose2d, x, w, groups=8).solver == "cupy.conv.transposed.depthwise"
    assert gpuconv.explain(gpuconv.conv_transpose2d, x, w, groups=8, stride=2).solver == "cupy.conv.transposed.tiled"
    with pytest.raises(NoSolverError, match="needs stride 1, the problem has 2x2"):
        gpuconv.conv_transpose2d(x, w, groups=8, stride=2, backend="cupy.conv.transposed.depthwise")
    dense = on_device(np.ones((8, 8, 3, 3)), "float32")
    with pytest.raises(NoSolverError, match="needs 1 input channel per group, the problem has 8"):
        run_once(gpuconv.conv2d, x, dense, solver="cupy.conv.fprop.depthwise")
