"""Repeated calls on CuPy's arrays: launches that are remembered answer as the first did, whatever came between.

The gate draws one call of a function of each solver's family, ``GPUCONV_TEST_FULL=1`` three of every function.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from fake_cupy import guarded
from repeated_calls import LAYOUTS, SETTINGS, check, drawn, functions

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
SAMPLE = ["adaptive_max_pool2d", "conv2d", "lp_pool2d_backward"]


def on_device(array: np.ndarray) -> Any:
    return guarded(array, array.dtype.name)


RUN = [function for function in functions() if "scaled" not in function]
"""Functions that CuPy's kernels compute."""


@pytest.mark.parametrize("function", RUN if FULL else SAMPLE)
def test_every_call_answers_as_the_first_did(function: str) -> None:
    ran = 0
    for draw in range(3 if FULL else 1):
        rng = np.random.default_rng([draw, *map(ord, function)])
        answers = check(rng, drawn(rng, function), on_device, LAYOUTS, 6 if FULL else 3, SETTINGS)
        ran += answers[0][1].held is not None
    assert ran
