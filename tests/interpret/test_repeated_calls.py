"""Repeated calls of our kernels: arguments that are remembered answer as the first did, whatever came between."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from repeated_calls import LAYOUTS, TORCH_SETTINGS, check, drawn, functions

FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@pytest.mark.parametrize("function", functions())
def test_repeated_calls_of_our_kernels(function: str) -> None:
    ran = 0
    for draw in range(2 if FULL else 1):
        rng = np.random.default_rng([draw, *map(ord, function)])
        call = drawn(rng, function).but("", backend="triton")
        answers = check(rng, call, as_tensor, LAYOUTS, 6 if FULL else 3, TORCH_SETTINGS)
        ran += answers[0][1].held is not None
    assert ran
