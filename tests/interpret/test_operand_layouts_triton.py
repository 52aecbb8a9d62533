"""Every operand of every function in every layout, by each Triton solver that takes the call."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import triton
from operand_calls import as_dtype, calls_of_triton, cases, check, contiguous
from operand_layouts import ODD, SIGNED, Placed, drawn, odd, place

import gpuconv
from gpuconv.dispatch import backends

CALLS = calls_of_triton()
FEW = 20
"""Cases in the gate, other ones for each release of Triton; those of vectors and of NumPy's own come beside."""

VECTORS = ("bias", "scale", "shift")


def as_torch(placed: Placed) -> torch.Tensor:
    return torch.from_numpy(placed.buffer).as_strided(placed.shape, placed.strides, placed.offset)


def chosen() -> list[tuple[str, str, str, str]]:
    """Return the cases with a type each: all of them, or a few."""
    unsigned = [case for case in cases(CALLS) if case[2] not in SIGNED]
    every = [
        (*case, CALLS[case[0]].dtype or ("float32", "float16")[number % 2]) for number, case in enumerate(unsigned)
    ]
    return every if os.environ.get("GPUCONV_TEST_FULL") == "1" else drawn(every, FEW, triton.__version__)


@pytest.mark.parametrize(("name", "operand", "layout", "dtype"), chosen())
def test_layout(name, operand, layout, dtype):
    assert check(CALLS[name], operand, layout, dtype, "triton", as_torch, torch.Tensor.numpy)


def test_every_solver_is_asked():
    """But deformable convolution, whose cases lay out their operands themselves, and what is not interpreted."""
    asked = set()
    for call in CALLS.values():
        for dtype in (call.dtype,) if call.dtype else ("float32", "float16"):
            values = {name: as_dtype(array, dtype) for name, array in call.operands.items()}
            for last in {call.last, True}:
                asked |= {*call.solvers({n: as_torch(contiguous(v, last)) for n, v in values.items()}, "triton")}
    left = {solver.id for solver in backends()["triton"].solvers()} - asked
    assert {name for name in left if "deform" not in name and "hopper" not in name} == set()


@pytest.mark.parametrize("layout", ("offset", "gaps", "expanded"))
@pytest.mark.parametrize("operand", VECTORS)
@pytest.mark.parametrize("name", ("conv1d", "conv_transpose1d"))
def test_vectors_of_the_epilogue(name, operand, layout):
    assert check(CALLS[name], operand, layout, "float32", "triton", as_torch, torch.Tensor.numpy)


def test_vectors_of_split_sums():
    """The pass that adds the splits of a convolution reads the vectors, and not the one before it."""
    rng = np.random.default_rng(0)
    x, w = (torch.from_numpy(rng.integers(-3, 4, shape).astype("float32")) for shape in ((1, 300, 5), (4, 300, 3)))
    for layout in ("gaps", "expanded"):
        given = {name: as_torch(place(rng.integers(-3, 4, 4).astype("float32"), layout)) for name in VECTORS}
        assert gpuconv.explain(gpuconv.conv1d, x, w, **given, backend="triton").plan.config["splits"] > 1
        found = gpuconv.conv1d(x, w, **given, backend="triton")
        plain = {name: vector.contiguous() for name, vector in given.items()}
        assert torch.equal(found, gpuconv.conv1d(x, w, **plain, backend="triton"))


@pytest.mark.parametrize("layout", (*ODD, *SIGNED))
@pytest.mark.parametrize("name", ("conv1d", "max_unpool1d", "avg_pool1d gradient"))
@pytest.mark.filterwarnings("error")
def test_what_numpy_alone_has(name, layout):
    """The interpreter gets NumPy's arrays through torch, which takes none of these as they are."""
    call = CALLS[name]
    values = {operand: as_dtype(array, "float32") for operand, array in call.operands.items()}

    def made(array: np.ndarray) -> np.ndarray:
        return place(array, layout).view() if layout in SIGNED else odd(array, layout)

    found = call.run({operand: made(array) for operand, array in values.items()}, "triton")
    np.testing.assert_array_equal(found, call.run(values, "triton"))
