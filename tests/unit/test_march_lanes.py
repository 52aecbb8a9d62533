"""What the host computes for the depthwise kernels that march: vectors of columns, where offsets take 64 bits."""

from __future__ import annotations

import pytest
from tuning_cases import conv

from gpuconv.arrays import CONTIGUOUS
from gpuconv.backends.conv_common import format_strides
from gpuconv.backends.triton.march_lanes import march_arguments


@pytest.mark.parametrize("kind", ("fprop", "dgrad", "wgrad"))
@pytest.mark.parametrize("axis", (1, 2), ids=("channels", "rows"))
@pytest.mark.parametrize("name", ("x", "y"))
def test_what_kernels_multiply_by_vectors_fits_where_it_was_divided(name: str, axis: int, kind: str) -> None:
    """A step of 2^31 divided by a vector of 8 is passed in 32 bits, and multiplied in them."""
    problem = conv(2, 4, (8, 16), 4, kernel=3, groups=4, formats=CONTIGUOUS, kind=kind)
    config = {"TQ": 8, "LANES": 64, "VEC": 8, "VO": 2, "steps": 4}
    strides = format_strides(problem)
    near = march_arguments(problem, strides, config)
    assert max(near["VEC"], near["VO"]) > 1
    far = tuple(2**31 if place == axis else step for place, step in enumerate(strides[name]))
    found = march_arguments(problem, {**strides, name: far}, config)
    assert found["INDEX64"]
    for vector, of in (("VEC", "source"), ("VO", "result")):
        for letter in "cdh":
            number = found[f"{of}_stride_{letter}"]
            assert number >= 2**31 or number * found[vector] < 2**31, (vector, letter, number)
