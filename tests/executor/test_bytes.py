"""What the Hopper kernels ask of L2, counted as they run at their real tile sizes.

A unit is a product of 128 pixels, 128 channels and a reduction of 64: tiles of 128 x 128 ask for 32,768 bytes each. A
multicast counts once.
"""

import numpy as np
import pytest
from hopper_cases import Case, Operands, execute

ONE = {"n": 1, "channels": 64, "block_c": 64, "programs": 1, "group": 8, "stages": 2}
THREE = {**ONE, "taps": (1, 3, 3), "padding": (0, 1, 1)}

BYTES = {
    "tiles 128x128": (
        Case("tiles", tile=(1, 8, 16), rows=1, block_k=128, filters=128, size=(1, 8, 16), **THREE),
        32768,
    ),
    "tiles 256x128": (Case("tiles", tile=(1, 8, 16), block_k=128, filters=128, size=(1, 16, 16), **THREE), 24576),
    "tiles 128x256": (Case("tiles", tile=(1, 4, 16), block_k=256, filters=256, size=(1, 8, 16), **THREE), 24576),
    "2 x tiles 128x256, weights shared": (
        Case("tiles", tile=(1, 8, 16), block_k=256, filters=256, size=(1, 16, 16), shared="weights", **THREE),
        16384,
    ),
    "2 x tiles 256x128, pixels shared": (
        Case("tiles", tile=(1, 8, 16), block_k=256, filters=256, size=(1, 16, 16), shared="pixels", **THREE),
        16384,
    ),
    "strips 4x64x128": (Case("strips", tile=(1, 4, 64), block_k=128, filters=128, size=(1, 4, 64), **THREE), 16384),
    "strips 6x64x128": (Case("strips", tile=(1, 6, 64), block_k=128, filters=128, size=(1, 6, 64), **THREE), 12743),
    "strips 8x64x64": (Case("strips", tile=(1, 8, 64), block_k=64, filters=64, size=(1, 8, 64), **THREE), 17749),
    "2 x strips 6x64x128": (
        Case("strips", tile=(1, 6, 128), block_k=128, filters=128, size=(1, 6, 128), shared="weights", **THREE),
        10012,
    ),
    "pixels 256x128, stride 2": (
        Case("pixels", tile=(1, 1, 128), block_k=128, filters=128, size=(1, 32, 32), stride=(1, 2, 2), rows=2, **THREE),
        24576,
    ),
    "2 x pixels 256x128, pixels shared": (
        Case("pixels", tile=(1, 1, 128), block_k=256, filters=256, size=(1, 16, 16), shared="pixels", rows=2, **THREE),
        16384,
    ),
    "weight gradient 128x256": (
        Case(
            "wgrad", n=1, channels=256, filters=128, size=(1, 8, 8), tile=(1, 8, 8), block_k=128, block_c=256, splits=1
        ),
        24576,
    ),
}
"""A case of whole tiles, and the bytes of a unit."""


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_a_unit(name):
    case, expected = BYTES[name]
    operands = Operands.zeros(case)
    machine = execute(case, 0, operands)
    units = machine.products / (128 * 128 * 64)
    assert np.prod(case.output) * case.filters * case.channels * np.prod(case.taps) * case.n == machine.products
    assert round(machine.loaded_bytes / units) == expected
