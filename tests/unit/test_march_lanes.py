"""What the host computes for the depthwise kernels that march: vectors of columns, where offsets take 64 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tuning_cases import conv

from gpuconv.arrays import CONTIGUOUS
from gpuconv.backends.conv_common import format_strides
from gpuconv.backends.triton.march_lanes import march_arguments, march_of
from gpuconv.shapes import conv_output_size


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


@pytest.mark.parametrize("kind", ("dgrad", "transposed"))
@pytest.mark.parametrize(("stride", "taps"), ((2, 1), (2, 3), (2, 4), (3, 5), (4, 2)))
@pytest.mark.parametrize("pad", range(5))
def test_lanes_of_a_strided_gradient_begin_at_multiples_of_what_they_write(kind, stride, taps, pad):
    problem = conv(2, 4, (8, 24), 4, kernel=taps, groups=4, formats=CONTIGUOUS, kind=kind, stride=stride)
    sizes = tuple(conv_output_size(size, taps, stride, pad, pad, 1) for size in problem.input_size)
    problem = replace(problem, pad_lo=(pad, pad), pad_hi=(pad, pad), output_size=sizes)
    columns, written = 4 * stride, 24
    config = {"TQ": columns, "LANES": 64, "VEC": 8, "VO": 4, "steps": 4}
    found = march_arguments(problem, format_strides(problem), config)
    assert (found["VO"], found["VEC"], found["result_column"]) == (4, 1, 0)
    assert found["groups"] == -(-written // columns)  # no lane begins before the first result
    first, last = march_of(problem).window(columns)
    read = set()
    for block in range(found["groups"]):
        for c in range(columns):
            for s in range(taps):
                of_column = block * columns + c + pad - s
                if of_column % stride:  # no source column
                    assert (c + found["LEAD"] - s) % stride
                    continue
                at = (c + found["LEAD"] - s) // stride
                assert first <= at < last
                read.add(at)
                assert found["source_column"] + block * columns // stride + at == of_column // stride
    assert min(read) == first and max(read) == last - 1
