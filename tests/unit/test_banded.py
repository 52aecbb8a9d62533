"""What the host computes for the banded kernels."""

from __future__ import annotations

from random import Random

import pytest
from tuning_cases import conv

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton.banded_blocks import band_of, banded_of, packed_elements, reciprocal
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
