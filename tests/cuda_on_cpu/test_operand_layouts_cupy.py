"""Every operand of every function in every layout, by each CuPy solver that takes the call."""

from __future__ import annotations

import os

import fake_cupy
import pytest
from fake_cupy import asnumpy
from operand_calls import calls, cases, check
from operand_layouts import Placed, drawn

CALLS = {name: call for name, call in calls().items() if name not in ("unfold", "fold")}
FEW = 8
"""Cases in the gate: each may need a kernel that no other test of the lane has compiled."""

VECTORS = ("bias", "scale", "shift")


def as_cupy(placed: Placed) -> fake_cupy.ndarray:
    """Return an array of the host's CuPy whose whole buffer no kernel may change."""
    flat = fake_cupy.guarded(placed.buffer, placed.buffer.dtype.name)
    view = Placed(flat.host, placed.shape, placed.strides, placed.offset).view()
    return fake_cupy.ndarray(view, flat.dtype, flat.memory)


def check_memory(name: str, operand: str, layout: str, dtype: str) -> None:
    fake_cupy.ALLOCATED.clear()
    assert check(CALLS[name], operand, layout, dtype, "cupy", as_cupy, asnumpy)
    for number, memory in enumerate(fake_cupy.ALLOCATED):
        memory.check(f"array {number}")


def chosen() -> list[tuple[str, str, str, str]]:
    every = [(*case, ("float32", "float16")[number % 2]) for number, case in enumerate(cases(CALLS))]
    return every if os.environ.get("GPUCONV_TEST_FULL") == "1" else drawn(every, FEW, "cupy")


@pytest.mark.parametrize(("name", "operand", "layout", "dtype"), chosen())
def test_layout(name, operand, layout, dtype):
    check_memory(name, operand, layout, dtype)


@pytest.mark.parametrize("layout", ("offset", "gaps", "expanded", "reversed"))
@pytest.mark.parametrize("operand", VECTORS)
@pytest.mark.parametrize("name", ("conv1d", "conv_transpose1d", "conv1d depthwise", "conv_transpose1d depthwise"))
def test_vectors_of_the_epilogue(name, operand, layout):
    check_memory(name, operand, layout, "float32")
