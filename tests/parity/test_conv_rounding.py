"""``rounding="torch"``: a fused epilogue that rounds where torch's operators do, bit for bit where sums are exact."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from referee import solvers

import gpuconv
from gpuconv import nn as ours

HALVES = [torch.float16, torch.bfloat16]
NAMES = [f"{family}{ndim}d" for family in ("conv", "conv_transpose") for ndim in (1, 2, 3)]
ACTIVATIONS = {
    None: lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
}


def integers(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, most: int) -> torch.Tensor:
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


def operands(name: str, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """Draw operands whose sums are exact in float32 and far too long for 16 bits."""
    ndim = int(name[-2])
    x = integers(generator, (2, 4, *(7, 6, 5)[:ndim]), dtype, 31)
    w = integers(generator, (6, 4, *(3, 2, 3)[:ndim]) if "transpose" not in name else (4, 6, 3, 2, 3)[: ndim + 2],
                 dtype, 31)  # fmt: skip
    y = getattr(F, name)(x.float(), w.float(), padding=1)
    bias, scale, shift = (torch.randn(6, generator=generator).to(dtype) * 37 for _ in range(3))
    residual = (torch.randn(y.shape, generator=generator) * 300).to(dtype)
    return {"x": x, "w": w, "bias": bias, "scale": scale / 64, "shift": shift, "residual": residual}


def step_by_step(name: str, given: dict[str, Any], used: tuple[bool, ...], activation: str | None) -> torch.Tensor:
    """Apply torch's operators one after another; the convolution in float32, where these sums are exact."""
    x, channels = given["x"], (-1, *(1,) * (given["x"].dim() - 2))
    y = getattr(F, name)(x.float(), given["w"].float(), padding=1).to(x.dtype)
    if used[0]:
        y = y + given["bias"].reshape(channels)
    if used[1]:
        y = y * given["scale"].reshape(channels)
    if used[2]:
        y = y + given["shift"].reshape(channels)
    if used[3]:
        y = y + given["residual"]
    return ACTIVATIONS[activation](y)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_steps_round_as_torchs(
    name: str, dtype: torch.dtype, activation: str | None, torch_rng: torch.Generator
) -> None:
    """Every subset of the operands, every solver: equal, but for the last bit of an activation that is a formula."""
    given, fn = operands(name, dtype, torch_rng), getattr(gpuconv, name)
    apart = 0
    for used in itertools.product((False, True), repeat=4):
        bias = given["bias"] if used[0] else None
        names = [key for key, wanted in zip(("scale", "shift", "residual"), used[1:], strict=True) if wanted]
        extras = {key: given[key] for key in names} | {"activation": activation}
        expected = step_by_step(name, given, used, activation)
        for solver in solvers(fn, given["x"], given["w"], bias, padding=1, **extras, rounding="torch"):
            y = fn(given["x"], given["w"], bias, padding=1, **extras, rounding="torch", backend=solver)
            if activation in (None, "relu"):
                assert torch.equal(y, expected)
            else:
                torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
        fused = fn(given["x"], given["w"], bias, padding=1, **extras)
        apart += not torch.equal(fused, expected)
    if activation in (None, "relu"):
        assert apart >= 8  # the operands are such that rounding once is something else


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_recorded_traced_and_transformed(name: str, dtype: torch.dtype, torch_rng: torch.Generator) -> None:
    """A call rounds alike in every tier, and gradients do not change."""
    given, fn, everything = operands(name, dtype, torch_rng), getattr(gpuconv, name), (True,) * 4
    extras = {key: given[key] for key in ("scale", "shift", "residual")} | {"padding": 1, "activation": "relu"}
    expected = step_by_step(name, given, everything, "relu")
    recorded = [given[key].clone().requires_grad_() for key in ("x", "w", "bias")]
    y = fn(*recorded, **extras, rounding="torch")
    assert torch.equal(y.detach(), expected)
    gradients = torch.autograd.grad(y.sum(), recorded)
    same = torch.autograd.grad(fn(*recorded, **extras).sum(), recorded)
    mask = (expected > 0) == (fn(given["x"], given["w"], given["bias"], **extras) > 0)
    if mask.all():
        assert all(torch.equal(one, other) for one, other in zip(gradients, same, strict=True))
    only = fn(*recorded, padding=1, rounding="torch")
    assert torch.equal(only.detach(), step_by_step(name, given, (True, False, False, False), None))

    torch.compiler.reset()
    compiled = torch.compile(lambda x, w, b: fn(x, w, b, **extras, rounding="torch"), backend="eager", fullgraph=True)
    assert torch.equal(compiled(given["x"], given["w"], given["bias"]), expected)
    vmapped = torch.func.vmap(lambda x: fn(x, given["w"], given["bias"], padding=1, rounding="torch"))
    assert torch.equal(vmapped(given["x"][None])[0], only.detach())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_repeated_and_interleaved(dtype: torch.dtype, torch_rng: torch.Generator) -> None:
    """A plan that rounds once does not answer for one that rounds at each step."""
    given = operands("conv2d", dtype, torch_rng)
    arguments = given["x"], given["w"], given["bias"]
    once = gpuconv.conv2d(*arguments, padding=1)
    stepwise = step_by_step("conv2d", given, (True, False, False, False), None)
    assert not torch.equal(once, stepwise)
    for _ in range(3):
        assert torch.equal(gpuconv.conv2d(*arguments, padding=1, rounding="torch"), stepwise)
        assert torch.equal(gpuconv.conv2d(*arguments, padding=1, rounding="fused"), once)


def test_other_types_know_no_difference(torch_rng: torch.Generator) -> None:
    for dtype in (torch.float32, torch.float64):
        x, w, bias = (torch.randn(shape, generator=torch_rng).to(dtype) for shape in ((2, 3, 9), (4, 3, 3), (4,)))
        assert torch.equal(
            gpuconv.conv1d(x, w, bias, activation="gelu", rounding="torch"),
            gpuconv.conv1d(x, w, bias, activation="gelu"),
        )


def test_numpy_arrays() -> None:
    x = np.full((1, 1, 3), 1000, np.float16)
    w, bias = np.full((1, 1, 3), 0.68, np.float16), np.full(1, 0.9, np.float16)
    sums = np.float16(np.float32(w[0, 0, 0]) * 3000)
    assert gpuconv.conv1d(x, w, bias, rounding="torch").item() == np.float16(sums + bias[0])
    assert gpuconv.conv1d(x, w, bias).item() == np.float16(np.float32(w[0, 0, 0]) * 3000 + np.float32(bias[0]))


def test_overflow_between_two_steps() -> None:
    """A convolution beyond the largest float16 is infinite before the bias could bring it back, as in torch."""
    x, w = torch.full((1, 1, 1), 300.0).half(), torch.full((1, 1, 1), 300.0).half()
    bias = torch.full((1,), -60000.0).half()
    assert gpuconv.conv1d(x, w, bias, rounding="torch").item() == float("inf")
    assert gpuconv.conv1d(x, w, bias).item() == 30000.0


def test_modules(torch_rng: torch.Generator) -> None:
    layer = ours.Conv2d(4, 6, 3, padding=1, rounding="torch", dtype=torch.bfloat16)
    assert repr(layer).endswith("rounding='torch')")
    x = torch.randn(1, 4, 5, 5, generator=torch_rng).bfloat16()
    assert torch.equal(layer(x), gpuconv.conv2d(x, layer.weight, layer.bias, padding=1, rounding="torch"))
    transposed = ours.ConvTranspose1d(4, 6, 3, rounding="torch", dtype=torch.float16)
    sequence = x[0, :, 0].half()
    y = transposed(sequence)
    assert torch.equal(y, gpuconv.conv_transpose1d(sequence, transposed.weight, transposed.bias, rounding="torch"))
    with pytest.raises(ValueError, match="rounding must be one of 'fused', 'torch'"):
        ours.Conv2d(4, 6, 3, rounding="none")
    with pytest.raises(ValueError, match="rounding must be one of 'fused', 'torch'"):
        ours.Conv2d(4, 6, 3, rounding=None)


def test_explained_and_refused() -> None:
    x, w = torch.zeros(1, 2, 4, 4).bfloat16(), torch.zeros(3, 2, 3, 3).bfloat16()
    bias = torch.zeros(3).bfloat16()
    assert "rounded after each step" in str(gpuconv.explain(gpuconv.conv2d, x, w, bias, rounding="torch"))
    assert "rounded" not in str(gpuconv.explain(gpuconv.conv2d, x, w, rounding="torch"))
    for fn in (gpuconv.conv2d, gpuconv.conv_transpose2d):
        with pytest.raises(ValueError, match=r"rounding must be one of 'fused', 'torch', but got 'once'"):
            fn(x, w if fn is gpuconv.conv2d else w.transpose(0, 1), rounding="once")
