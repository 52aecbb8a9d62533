"""Convolutions of arrays without elements, by every solver that takes them: an axis, a batch or a result of size 0."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import gpuconv
from gpuconv.dispatch import backends

SOLVERS = [
    solver.id
    for solver in backends()["triton"].solvers()
    if solver.id.startswith("triton.conv.") and not {"deform", "scaled", "separable"} & set(solver.id.split("."))
]
CHANNELS = {"dense": (1, 4, 8), "depthwise": (4, 4, 4), "grouped": (2, 8, 8)}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ("fprop", "dgrad", "wgrad"))
def test_arrays_without_elements(kind: str, channels: str, ndim: int) -> None:
    groups, c, k = CHANNELS[channels]
    ran = set()
    windows = ((2, 3),) if kind == "wgrad" else ((1, 2), (2, 2), (2, 3), (3, 2))
    for (stride, pad), zero, last in product(windows, ("n", "h", "w"), (False, True)):
        sizes = {"n": 2, "d": 5, "h": 6, "w": 7} | {zero: 0}
        size = [sizes[axis] for axis in "dhw"[3 - ndim :]]
        if (ndim == 1 and (last or zero == "h")) or (kind == "fprop" and zero != "n"):  # which torch refuses
            continue
        x = torch.zeros(sizes["n"], c, *size, dtype=torch.float16)
        w = torch.ones(k, c // groups, *(3,) * ndim, dtype=torch.float16)
        options = {"stride": stride, "padding": pad, "groups": groups}
        padded = torch.nn.functional.pad(x, (pad, pad) * ndim)  # torch convolves no empty axis that padding fills
        y = getattr(torch.nn.functional, f"conv{ndim}d")(padded, w, stride=stride, groups=groups)
        dy = torch.ones_like(y)
        if last:
            x, dy = (tensor.to(memory_format=LAYOUTS[ndim]) for tensor in (x, dy))
        name, arguments, expected = {
            "fprop": (f"conv{ndim}d", (x, w), y),
            "dgrad": (f"conv{ndim}d_input_grad", (tuple(x.shape), w, dy), torch.zeros_like(x)),
            "wgrad": (f"conv{ndim}d_weight_grad", (x, tuple(w.shape), dy), torch.zeros_like(w)),
        }[kind]
        for backend in (*SOLVERS, "triton"):
            try:
                result = getattr(gpuconv, name)(*arguments, **options, backend=backend)
            except gpuconv.NoSolverError:
                continue
            ran.add(backend)
            assert torch.equal(result, expected), (backend, stride, pad, zero, last)
    assert "triton" in ran and len(ran) >= 2
