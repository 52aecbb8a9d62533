"""``rounding="torch"`` of CuPy's arrays by the CUDA kernels: what the NumPy backend has, bit for bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fake_cupy import ALLOCATED, asnumpy, guarded

import gpuconv
from gpuconv.dispatch import record_plans

LAYERS = {
    "forward": ("conv2d", (2, 4, 6, 5), (6, 4, 3, 2), {"padding": 1}),
    "depthwise": ("conv2d", (2, 6, 6, 5), (6, 1, 3, 3), {"padding": 1, "groups": 6}),
    "transposed": ("conv_transpose2d", (2, 4, 4, 3), (4, 6, 3, 3), {"stride": 2}),
    "depthwise, transposed": ("conv_transpose1d", (2, 6, 9), (6, 1, 3), {"groups": 6}),
}


def drawn(rng, shape, most):
    return rng.integers(-most, most + 1, shape).astype(np.float16)


@pytest.mark.parametrize("layer", LAYERS)
def test_steps_round_as_numpys(layer, rng):
    """Sums of these are exact in float32, and every step after them rounds."""
    name, x_shape, w_shape, geometry = LAYERS[layer]
    fn = getattr(gpuconv, name)
    x, w = drawn(rng, x_shape, 31), drawn(rng, w_shape, 31)
    shape = fn(x, w, **geometry).shape
    operands = {name: rng.normal(0, 37, 6).astype(np.float16) for name in ("bias", "scale", "shift")}
    operands["scale"] /= 64
    operands["residual"] = rng.normal(0, 300, shape).astype(np.float16)
    apart = 0
    for used in product((False, True), repeat=4):
        given = {key: operands[key] for key, wanted in zip(operands, used, strict=True) if wanted}
        options = {**geometry, "activation": "relu"}
        expected = fn(x, w, **given, **options, rounding="torch")
        on_device = {key: guarded(value, "float16") for key, value in given.items()}
        with record_plans() as plans:
            found = fn(guarded(x, "float16"), guarded(w, "float16"), **on_device, **options, rounding="torch")
        assert {plan.solver.id.partition(".")[0] for plan in plans} == {"cupy"}
        np.testing.assert_array_equal(asnumpy(found), expected, strict=True)
        apart += not np.array_equal(fn(x, w, **given, **options), expected)
    assert apart >= 8
    for memory in ALLOCATED:
        memory.check(layer)
