"""Every operand of every function in every layout, on the NumPy backend: arrays of NumPy, and torch tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from operand_calls import as_dtype, calls, cases, check
from operand_layouts import ODD, SIGNED, Placed, drawn, odd

CALLS = calls()


def as_torch(placed: Placed) -> torch.Tensor:
    return torch.from_numpy(placed.buffer).as_strided(placed.shape, placed.strides, placed.offset)


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_numpy(name, full):
    chosen = cases({name: CALLS[name]})
    for _, operand, layout in chosen if full else drawn(chosen, 5, name):
        assert check(CALLS[name], operand, layout, "float32", "numpy", Placed.view, np.asarray)


@pytest.mark.parametrize("name", CALLS)
def test_torch_tensors(name, full):
    chosen = [case for case in cases({name: CALLS[name]}) if case[2] not in SIGNED]
    for _, operand, layout in chosen if full else drawn(chosen, 3, name):
        assert check(CALLS[name], operand, layout, "float16", "numpy", as_torch, torch.Tensor.numpy)


@pytest.mark.parametrize("name", CALLS)
def test_what_numpy_alone_has(name):
    call = CALLS[name]
    values = {operand: as_dtype(array, "float32") for operand, array in call.operands.items()}
    expected = call.run(values, "numpy")
    for layout in ODD:
        found = call.run({operand: odd(array, layout) for operand, array in values.items()}, "numpy")
        for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
            np.testing.assert_array_equal(one, other, f"{name}, {layout}")
            assert one.dtype.isnative
