"""Deformable convolution against torchvision's own, where that can be imported; elsewhere these tests are not run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deform_cases import CASES, draw
from test_deform import NAMES, as_torch, called

import gpuconv

torch = pytest.importorskip("torch")
try:
    import torchvision
except (ImportError, RuntimeError) as missing:
    pytest.skip(f"not run: torchvision cannot be imported ({missing})", allow_module_level=True)

SYMMETRIC = [
    name
    for name, case in CASES.items()
    if case.ndim == 2 and all(lo == hi for lo, hi in case.padding) and case.offsets != "special"
    if case.dtype in ("float32", "float64") and case.n
]


def theirs(case: Any, tensors: dict[str, Any]) -> Any:
    options = {**case.options, "padding": [lo for lo, _ in case.padding]}
    return torchvision.ops.deform_conv2d(**{NAMES[name]: tensors[name] for name in NAMES}, **options)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_equals_torchvision(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    tensors = as_torch(case, draw(case, rng))
    given = [tensors[key] for key in NAMES if tensors[key] is not None]
    ours, expected = called(case, tensors), theirs(case, tensors)
    limits = {"rtol": 1e-10, "atol": 1e-10} if case.dtype == "float64" else {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(ours, expected, equal_nan=True, **limits)
    wanted = torch.autograd.grad(expected, given, tensors["dy"])
    for one, other in zip(torch.autograd.grad(ours, given, tensors["dy"]), wanted):
        torch.testing.assert_close(one, other, equal_nan=True, **limits)


def test_cases_are_many() -> None:
    assert len(SYMMETRIC) >= 20
    assert any(CASES[name].values == "special" for name in SYMMETRIC)


@pytest.mark.parametrize("options", [{}, {"groups": 2, "bias": False}, {"stride": 2, "padding": 1, "dilation": (1, 2)}])
def test_module_is_torchvisions(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    reference = torchvision.ops.DeformConv2d(4, 6, (3, 2), **options)
    torch.manual_seed(0)
    layer = gpuconv.nn.DeformConv2d(4, 6, (3, 2), **options)
    assert repr(layer) == repr(reference)
    for (name, one), (other_name, other) in zip(layer.named_parameters(), reference.named_parameters()):
        assert name == other_name and torch.equal(one, other)
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(2, 4, 9, 9)
    size = torch.nn.functional.conv2d(x, torch.ones(1, 4, 3, 2), **{k: options.get(k, d) for k, d in (
        ("stride", 1), ("padding", 0), ("dilation", 1))}).shape[2:]  # fmt: skip
    offset, mask = torch.randn(2, 12, *size), torch.rand(2, 6, *size)
    torch.testing.assert_close(layer(x, offset, mask), reference(x, offset, mask), rtol=1e-5, atol=1e-5)
