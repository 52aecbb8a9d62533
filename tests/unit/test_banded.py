"""What the host computes for the banded kernels."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from tuning_cases import conv

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.conv_common import format_strides
from gpuconv.backends.triton.banded_blocks import (
    band_of,
    banded_arguments,
    banded_of,
    packed_elements,
    reciprocal,
)
from gpuconv.backends.triton.conv_banded import SOLVERS


@pytest.mark.parametrize("divisor", [*range(1, 70), 2**16 - 1, 2**16, 2**16 + 1, 2**30 + 1, 2**31 - 1])
def test_divisions_by_reciprocals_are_exact(divisor: int) -> None:
    """Of every numerator below 2**31: the largest, those beside multiples, and some."""
    magic, log = reciprocal(divisor)
    assert -(2**31) <= magic < 2**31 and 0 <= log < 32
    draw = Random(divisor)
    numerators = {0, 2**31 - 1, *(draw.randrange(2**31) for _ in range(50))}
    numerators |= {abs(draw.randrange(2**31) // divisor * divisor - beside) for beside in (0, 1) for _ in range(50)}
    for numerator in numerators:
        assert (2 * numerator * (magic % 2**32)) >> (32 + log) == numerator // divisor, numerator


@pytest.mark.parametrize("layout", (CONTIGUOUS, CHANNELS_LAST))
@pytest.mark.parametrize("pad", (-3, 0, 1, 5, 12, 20))
@pytest.mark.parametrize("taps", (5, 12, 31))
def test_bands_hold_every_window(taps: int, pad: int, layout: str) -> None:
    """Every result of a block finds its window inside of what the block reads, and inside of the copies."""
    (solver,) = SOLVERS
    problem = conv(2, 16, 40, 16, kernel=taps, groups=16, formats=layout)
    for config in solver.variants(problem):
        banded = banded_of(problem)
        banded = type(banded)(*[
            (pad, pad) if name == "pad" else getattr(banded, name) for name in banded.__dataclass_fields__
        ])  # fmt: skip
        band, vec = band_of(banded, config), config.get("VEC", 1)
        assert band.start % vec == 0 and band.width % 8 == 0 and band.pitch % 8 == 0
        for q in range(config["TQ"]):
            first = q + band.off  # the column of the patch that the first tap of result q meets
            assert band.start + first == q - pad and first >= 0 and first + taps <= band.width
            begins = band.lead - first // 8 * 8  # in copy first % 8, whose window is from lead + first % 8 on
            assert begins >= 0 and begins + band.width <= band.pitch and begins + first == band.lead + first % 8
        assert packed_elements(banded, config) == 16 * 8 * (taps + 2 * (config["TP"] - 1)) * band.pitch


@pytest.mark.parametrize("kind", ("fprop", "dgrad"))
@pytest.mark.parametrize(
    "formats", ((CONTIGUOUS, CONTIGUOUS), (CHANNELS_LAST, CONTIGUOUS), (CONTIGUOUS, CHANNELS_LAST))
)
@pytest.mark.parametrize("size", ((4096,), (56, 56)))
def test_tiles_have_the_vectors_of_operands_in_the_formats_of_the_problem(size, formats, kind) -> None:
    """Else a tile is priced as one that reads vectors, and one whose pointers fit in no registers is chosen."""
    (solver,) = SOLVERS
    x_format, y_format = formats
    problem = conv(8, 64, size, 64, kernel=31, groups=64, formats=CONTIGUOUS, kind=kind)
    problem = replace(problem, x_format=x_format, y_format=y_format)
    assert solver.why_not(problem) is None
    for config in solver.variants(problem):
        found = banded_arguments(problem, format_strides(problem), config)
        assert (found["VEC"], found["VO"]) == (config["VEC"], config["VO"])


@pytest.mark.parametrize(
    ("size", "far"), (((2**31,), ()), ((8, 16), ("x",)), ((8, 16), ("y",)), ((8, 16), ("residual",)))
)
def test_what_kernels_multiply_by_vectors_fits_where_it_was_divided(size, far) -> None:
    """Sizes of rows and steps between them of 32 bits are multiplied in 32 bits, whatever offsets take."""
    problem = conv(1, 1, size, 1, kernel=5, formats=CONTIGUOUS, residual=True)
    config = {"TP": 1, "TQ": 32, "BM": 64, "BK": 64, "VEC": 8, "VO": 8}
    strides = format_strides(problem)
    strides |= {name: (*strides[name][:2], 2**31, 1) for name in far}
    found = banded_arguments(problem, strides, config)
    assert found["INDEX64"]
    for vector, names in (("VEC", ("source",)), ("VO", ("result", "residual"))):
        for number in (found[f"{names[0]}_w"], *(found[f"{name}_stride_h"] for name in names)):
            assert number >= 2**31 or number * found[vector] < 2**31, (vector, number)


def test_a_step_that_nobody_takes_needs_no_64_bits() -> None:
    """Of an axis of one element, whose stride may be anything."""
    problem = conv(8, 16, (1, 64), 16, kernel=5, groups=16, formats=CONTIGUOUS)
    config = {"TP": 1, "TQ": 32, "BM": 64, "BK": 64, "VEC": 8, "VO": 8}
    strides = format_strides(problem)
    n, c, _, w = strides["x"]
    assert not banded_arguments(problem, {**strides, "x": (n, c, 2**30, w)}, config)["INDEX64"]
