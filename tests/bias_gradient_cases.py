"""Checks of the bias gradient that rides along with the weight gradient, on any backend."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

import gpuconv
from gpuconv import numerics
from gpuconv.dispatch import record_plans

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def cases() -> Iterator[tuple[int, torch.dtype, int, bool]]:
    """Yield (dims, dtype, groups, channels-last), every pair of values at least once."""
    for number, (ndim, dtype) in enumerate(product((1, 2, 3), DTYPES)):
        groups, last = ((1, False), (2, True), (4, False), (1, True))[number % 4]
        yield ndim, dtype, groups, last


def inputs(
    rng: torch.Generator, ndim: int, dtype: torch.dtype, groups: int, last: bool
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return x, w and bias, which require gradients, and the gradient of y of a convolution with padding 1."""

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, dtype=torch.float64, generator=rng).to(dtype)
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if last and len(shape) > 1 else values

    size = {1: (23,), 2: (6, 7), 3: (3, 5, 2)}[ndim]
    leaves = [draw(2, 4, *size), draw(8, 4 // groups, *(3,) * ndim), draw(8)]
    return [leaf.requires_grad_() for leaf in leaves], draw(2, 8, *size)


def check_values(case: tuple[int, torch.dtype, int, bool], rng: torch.Generator, backend: str) -> None:
    """Backward runs one problem for both gradients and both are right."""
    ndim, dtype, groups, _ = case
    (x, w, bias), dy = inputs(rng, *case)
    x = x.detach()
    y = getattr(gpuconv, f"conv{ndim}d")(x, w, bias, padding=1, groups=groups, backend=backend)
    with record_plans() as plans:
        of_w, of_bias = torch.autograd.grad(y, (w, bias), dy)
    assert [(plan.problem.kind, plan.problem.bias) for plan in plans] == [("wgrad", True)]
    assert plans[0].solver.id.startswith(backend)

    def reference(x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exact = w.detach().double().requires_grad_()
        result = getattr(torch.nn.functional, f"conv{ndim}d")(x.detach().double(), exact, padding=1, groups=groups)
        return torch.autograd.grad(result, exact, dy.double())[0], dy.double().transpose(0, 1).flatten(1).sum(1)

    expected, magnitudes = reference(x, dy), reference(x.abs(), dy.abs())
    name, length = str(dtype).removeprefix("torch."), dy.numel() // dy.shape[1]
    for value, exact, magnitude in zip((of_w, of_bias), expected, magnitudes, strict=True):
        held = value.float() if dtype is torch.bfloat16 else value
        numerics.assert_close(held.numpy(), exact.numpy(), magnitude.numpy(), name, length)
    assert of_w.stride() == w.stride() and of_bias.dtype is dtype


def check_only_what_is_needed(rng: torch.Generator, backend: str) -> None:
    """One gradient alone, and gradients that are differentiated again, take the ways that they had."""

    def kinds(wanted: str, **options: Any) -> list[tuple[str, bool]]:
        (x, w, bias), dy = inputs(rng, 2, torch.float64, 1, False)
        named = {"x": x, "w": w, "b": bias}
        for letter, tensor in named.items():
            tensor.requires_grad_(letter in wanted)
        y = gpuconv.conv2d(x, w, bias, padding=1, backend=backend)
        with record_plans() as plans:
            torch.autograd.grad(y, [named[letter] for letter in wanted], dy, **options)
        return [(plan.problem.kind, plan.problem.bias) for plan in plans]

    assert kinds("xwb") == [("dgrad", False), ("wgrad", True)]
    assert kinds("wb") == [("wgrad", True)]
    assert kinds("w") == [("wgrad", False)]
    assert kinds("b") == []
    assert kinds("wb", create_graph=True) == [("wgrad", False)]


def check_second_order(rng: torch.Generator, backend: str) -> None:
    """First and second derivatives by finite differences, bias included; and a backward through a recorded backward."""
    (x, w, bias), dy = inputs(rng, 1, torch.float64, 2, False)
    x, w, dy = (t.detach()[:, :, :5].requires_grad_() for t in (x, w, dy))

    def convolve(*operands: torch.Tensor) -> torch.Tensor:
        return gpuconv.conv1d(*operands, padding=1, groups=2, backend=backend)

    assert torch.autograd.gradcheck(convolve, (x, w, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, (x, w, bias), fast_mode=True)
    both = torch.autograd.grad(convolve(x, w, bias), (w, bias), dy, create_graph=True)
    once = torch.autograd.grad(convolve(x, w, bias), (w, bias), dy)
    for recorded, plain in zip(both, once, strict=True):
        torch.testing.assert_close(recorded.detach(), plain)
    by_dy, by_x = torch.autograd.grad(both[0].sum() + both[1].square().sum(), (dy, x))
    assert by_dy.shape == dy.shape and by_x.shape == x.shape


def check_same_on_repetition(rng: torch.Generator, backend: str) -> None:
    """Both gradients have the same bits every time, with torch's switch for determinism on as well."""
    (x, w, bias), dy = inputs(rng, 2, torch.float32, 1, True)
    y = gpuconv.conv2d(x, w, bias, padding=1, backend=backend)
    first = torch.autograd.grad(y, (w, bias), dy, retain_graph=True)
    torch.use_deterministic_algorithms(True)
    try:
        second = torch.autograd.grad(y, (w, bias), dy)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
