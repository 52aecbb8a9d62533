"""Every operand of every function in every layout, on the NumPy backend: arrays of NumPy, and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from operand_calls import as_dtype, calls, cases, check
from operand_layouts import ODD, SIGNED, Placed, drawn, odd

import gpuconv

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


def as_torch_bfloat16(values: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(values.view(np.uint16) if values.dtype.name == "bfloat16" else values)
    return tensor.view(torch.bfloat16) if values.dtype.name == "bfloat16" else tensor


@pytest.mark.parametrize("name", [*CALLS, "causal_conv1d", "deform_conv2d", "unfold", "fold"])
def test_bfloat16_of_ml_dtypes(name, rng):
    """NumPy has the type from ml_dtypes, as what JAX computes in it comes out: the bits are those of torch tensors."""
    bfloat16 = pytest.importorskip("ml_dtypes", reason="not run: ml_dtypes is not installed").bfloat16

    def drawn_of(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(bfloat16)

    if name in CALLS:
        run = CALLS[name].run
        values = {
            operand: drawn_of(*array.shape) if array.dtype.kind == "f" else array
            for operand, array in CALLS[name].operands.items()
        }
    else:
        shapes: dict[str, list[tuple[int, ...]]] = {
            "causal_conv1d": [(2, 4, 9), (4, 3)],
            "deform_conv2d": [(2, 4, 7, 6), (2, 18, 5, 4), (6, 4, 3, 3)],
            "unfold": [(2, 4, 7, 6)],
            "fold": [(2, 36, 20)],
        }
        rest: list[Any] = {"unfold": [3], "fold": [(7, 6), 3]}.get(name, [])
        values = {str(i): drawn_of(*shape) for i, shape in enumerate(shapes[name])}

        def run(arrays, backend):
            return getattr(gpuconv, name)(*arrays.values(), *rest, backend=backend)

    found = run(values, "numpy")
    expected = run({operand: as_torch_bfloat16(array) for operand, array in values.items()}, "numpy")
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
        assert one.dtype.name == str(other.dtype).removeprefix("torch.")
        bits = one.view(np.uint16) if one.dtype.name == "bfloat16" else one
        same = other.view(torch.uint16) if other.dtype is torch.bfloat16 else other
        np.testing.assert_array_equal(bits, same.numpy(), name)
