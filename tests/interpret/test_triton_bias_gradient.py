"""The bias gradient that rides along with the weight gradient, on the triton backend."""

from __future__ import annotations

import bias_gradient_cases
import pytest

BACKEND = "triton"


@pytest.mark.parametrize("case", list(bias_gradient_cases.cases()), ids=str)
def test_values_and_one_plan(case, torch_rng):
    bias_gradient_cases.check_values(case, torch_rng, BACKEND)


def test_only_what_is_needed(torch_rng):
    bias_gradient_cases.check_only_what_is_needed(torch_rng, BACKEND)


def test_second_order(torch_rng):
    bias_gradient_cases.check_second_order(torch_rng, BACKEND)


def test_same_on_repetition(torch_rng):
    bias_gradient_cases.check_same_on_repetition(torch_rng, BACKEND)
