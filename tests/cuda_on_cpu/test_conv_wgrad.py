"""The weight gradient in CUDA C++: splits of the reduction, their sum in order, and the bias gradient beside it."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from conv_branches import BRANCHES
from conv_cases import CORES, LAYOUTS, Case, announce_cases, cases_of, check_case, check_exact, tiles_and_steps
from harness import Distinct, on_device, run_once

import gpuconv

CASES = cases_of("wgrad", 72)

EXACT = [Case("wgrad", 1 + number % 3, "mixed", dtype, core, "bias") for number, (dtype, core) in enumerate(CORES)]


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
    assert {case.branch for case in CASES} == set(BRANCHES["wgrad"])
    assert {case.ndim for case in CASES} == {1, 2, 3}
    assert sum(case.core == "tensor" for case in CASES) >= 20


def test_cases_have_several_tiles_and_steps():
    assert not [case.id for case in CASES if prod(tiles_and_steps(case)) < 6]
    assert sum(min(tiles_and_steps(case)) >= 3 for case in CASES) >= len(CASES) // 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_wgrad(case):
    ran = check_case(case)
    splits = case.option("splits", 3)
    assert [kernel.startswith("conv_wgrad_sum") for kernel, _, _ in ran.launches] == [False, *([True] * (splits > 1))]


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.id)
def test_small_integers_are_exact(case):
    check_exact(case)


@pytest.mark.parametrize(("dtype", "size"), (("float16", 4), ("float32", 4), ("float64", 8)))
def test_workspace_is_stated_and_bounded(monkeypatch, dtype, size):
    """Partial sums are allocated as the plan says, no larger than the limit; without room there is one split."""
    x, grad = (on_device(np.ones(shape), dtype) for shape in ((4, 3, 34, 34), (4, 5, 32, 32)))
    of_one = 5 * 3 * 9 * size
    scratch = []
    original = type(gpuconv.arrays.kind_of(x)).empty

    def empty(self, shape, *rest):
        scratch.append(shape)
        return original(self, shape, *rest)

    monkeypatch.setattr(type(gpuconv.arrays.kind_of(x)), "empty", empty)
    monkeypatch.setattr("gpuconv.backends.cupy.common.KERNELS.find", lambda source, kernel: lambda *arguments: None)
    for limit in (1 << 28, 4 * of_one, 3 * of_one - 1, of_one, 0):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        scratch.clear()
        plan = run_once(gpuconv.conv2d_weight_grad, x, (5, 3, 3, 3), grad).plan
        splits = plan.config["splits"]
        assert plan.workspace == (splits * of_one if splits > 1 else 0) <= limit
        assert scratch[1:] == ([(plan.workspace // size,)] if splits > 1 else [])
        assert splits > 1 or limit < 2 * of_one
