"""``torch.utils.flop_counter`` counts for our convolutions what it counts for torch's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gpuconv
import gpuconv.nn

REPO = Path(__file__).resolve().parents[2]

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 1, "bias": False},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1, "bias": False},
}


def counts(fn: Callable[..., torch.Tensor], *tensors: torch.Tensor, grad: bool = True) -> tuple[int, int]:
    """Return what is counted in the forward and in the backward pass."""
    with FlopCounterMode(display=False) as forward:
        y = fn(*tensors)
    with FlopCounterMode(display=False) as backward:
        if grad:
            y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_modules(ndim: int, kind: str, geometry: str) -> None:
    options = GEOMETRIES[geometry]
    for batch in ((3,), ()):
        for wanted in ((True, True), (True, False), (False, True)):
            found = []
            for lib in (torch.nn, gpuconv.nn):
                layer = getattr(lib, f"{kind}{ndim}d")(4, 8, 3, **options)
                layer.weight.requires_grad_(wanted[0])
                x = torch.randn(*batch, 4, *(9, 8, 7)[:ndim], requires_grad=wanted[1])
                found.append(counts(layer, x))
            assert found[0] == found[1] and min(found[0]) > 0


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_modes(mode: str, padding: Any) -> None:
    """Torch counts no copy of the padded input, and we make none."""
    x = torch.randn(2, 4, 7, 6, requires_grad=True)
    found = [counts(lib.Conv2d(4, 6, 4, padding=padding, padding_mode=mode), x) for lib in (torch.nn, gpuconv.nn)]
    assert found[0] == found[1] and min(found[0]) > 0


def test_gradients_called_by_name() -> None:
    x, w = torch.randn(2, 4, 7, 6), torch.randn(6, 2, 3, 3)
    y = gpuconv.conv2d(x, w, groups=2)
    for ours, theirs, sizes in (
        (gpuconv.conv2d_input_grad, torch.nn.grad.conv2d_input, (x.shape, w, y)),
        (gpuconv.conv2d_weight_grad, torch.nn.grad.conv2d_weight, (x, w.shape, y)),
    ):
        mine = counts(partial(ours, *sizes, groups=2), grad=False)
        assert mine == counts(partial(theirs, *sizes, groups=2), grad=False) and mine[0] > 0


def test_what_is_composed_of_convolutions() -> None:
    x, columns, points = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3), torch.randn(6, 4, 1, 1)
    fused = counts(lambda: gpuconv.depthwise_separable_conv2d(x, columns, points, padding=1), grad=False)[0]
    assert fused == 2 * 64 * (4 * 9 + 4 * 6)
    line, filters = torch.randn(2, 4, 10), torch.randn(4, 3)
    assert counts(lambda: gpuconv.causal_conv1d(line, filters), grad=False)[0] == 2 * 2 * 4 * 10 * 3
    assert counts(lambda: gpuconv.max_pool2d(x, 2), grad=False)[0] == 0


def test_an_epilogue_counts_nothing() -> None:
    x, w, v = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), torch.ones(4)
    plain = counts(lambda: gpuconv.conv2d(x, w, padding=1), grad=False)
    epilogue = {"scale": v, "shift": v, "residual": x, "activation": "relu"}
    assert counts(lambda: gpuconv.conv2d(x, w, padding=1, **epilogue), grad=False) == plain


def test_second_order_and_transforms() -> None:
    found = []
    for conv in (torch.nn.functional.conv2d, gpuconv.conv2d):
        x, w = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            (dx,) = torch.autograd.grad(conv(x, w).square().sum(), x, create_graph=True)
            dx.square().sum().backward()
        found.append(counter.get_total_flops())
    assert found[1] >= found[0] > 0  # a Python function is not told that autograd.grad asks for one gradient alone
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.func.vmap(lambda one: gpuconv.conv2d(one, w))(x[:, None])
    assert counter.get_total_flops() == counts(lambda: torch.nn.functional.conv2d(x, w), grad=False)[0]


def test_the_table_names_modules_and_operators() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 3, groups=1))
    x, tables = torch.randn(1, 3, 8, 8), []
    for _ in range(2):
        with FlopCounterMode(display=False, depth=3) as counter:
            model(x).sum().backward()
        per_module = counter.get_flop_counts()
        tables.append({name: sum(operators.values()) for name, operators in per_module.items()})
        gpuconv.replace_modules(model)
    assert tables[0] == tables[1] and {"Global", "Sequential", "Sequential.0"} <= tables[0].keys()
    assert {str(operator) for operator in per_module["Global"]} == {"gpuconv.fprop", "gpuconv.dgrad", "gpuconv.wgrad"}


def python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_scaled_convolutions_count_as_others() -> None:
    """Products of 8-bit numbers are products."""
    x, w = torch.ones(2, 4, 6, 6, dtype=torch.int8), torch.ones(3, 4, 3, 3, dtype=torch.int8)
    with FlopCounterMode(display=False) as theirs:
        torch.nn.functional.conv2d(x.float(), w.float())
    with FlopCounterMode(display=False) as ours:
        gpuconv.scaled_conv2d(x, w, input_scale=1.0, weight_scale=0.5)
    assert ours.get_total_flops() == theirs.get_total_flops() > 0


def test_each_pass_of_a_deformable_convolution_counts_its_product() -> None:
    x, w = torch.ones(2, 4, 6, 6, requires_grad=True), torch.ones(6, 2, 3, 3, requires_grad=True)
    offset, mask = torch.ones(2, 36, 4, 4, requires_grad=True), torch.ones(2, 18, 4, 4)
    once = 2 * 2 * 6 * 16 * 2 * 9
    with FlopCounterMode(display=False) as counted:
        y = gpuconv.deform_conv2d(x, offset, w, mask=mask)
        assert counted.get_total_flops() == once
        y.sum().backward()
    assert counted.get_total_flops() == 3 * once


ORDERS = {
    "counter last": "import torch, gpuconv.nn\nfrom torch.utils.flop_counter import FlopCounterMode as Mode",
    "counter first": "import torch\nfrom torch.utils.flop_counter import FlopCounterMode as Mode\nimport gpuconv",
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_imports(order: str) -> None:
    """Also where our operators are registered by the first call, while a counter is counting."""
    code = """
x = torch.ones(1, 1, 5)
with Mode(display=False) as counter:
    gpuconv.conv1d(x, x[:, :, :3])
print(counter.get_total_flops())
"""
    assert python(ORDERS[order] + code) == "18"


def test_the_counter_is_not_imported_by_us() -> None:
    """It imports Triton."""
    code = "import sys, torch, gpuconv.nn; print('torch.utils.flop_counter' in sys.modules, 'triton' in sys.modules)"
    assert python(code) == "False False"
