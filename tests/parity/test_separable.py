"""Separable convolutions against their two steps, by our own calls bit for bit and by torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operand_layouts import STRIDES, place
from referee import check_against
from torch.autograd import gradcheck, gradgradcheck

import gpuconv
from gpuconv.testing import forbid_aten

Tensor = torch.Tensor

ACTIVATED: dict[str | None, Callable[..., Tensor]] = {
    None: lambda x: x,
    **{name: getattr(F, name) for name in ("relu", "relu6", "hardswish", "silu", "gelu")},
    **{name: getattr(torch, name) for name in ("sigmoid", "tanh")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 1},
    "strided": {"stride": (2, 1), "padding": (1, 2)},
    "dilated": {"dilation": (1, 2), "padding": ((2, 0), (1, 3))},
    "same": {"padding": "same"},
    "same_upper": {"padding": "same_upper", "stride": 2},
    "same_lower": {"padding": "same_lower", "stride": (3, 2)},
    "causal": {"padding": "causal", "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": ((1, 0), (0, 2)), "padding_mode": "circular", "stride": 2},
}


def split(axis: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of conv2d for the step along one axis."""
    found = {"padding_mode": options.get("padding_mode", "zeros")}
    for name, neutral in (("stride", 1), ("dilation", 1)):
        value = options.get(name, 1)
        value = value if isinstance(value, tuple) else (value, value)
        found[name] = tuple(value[axis] if each == axis else neutral for each in (0, 1))
    padding = options.get("padding", 0)
    if isinstance(padding, str):
        return found | {"padding": padding}
    padding = padding if isinstance(padding, tuple) else (padding, padding)
    pairs = [pad if isinstance(pad, tuple) else (pad, pad) for pad in padding]
    return found | {"padding": tuple(pairs[axis] if each == axis else (0, 0) for each in (0, 1))}


class Case:
    """A function, its tensors, and the two steps that it is made of."""

    def __init__(self, name: str, rng: torch.Generator, last: bool = False, dtype: torch.dtype = torch.float64) -> None:
        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

        self.name, self.function = name, getattr(gpuconv, name)
        shapes = [(8, 1, 3, 2), (6, 8, 1, 1)] if "depthwise" in name else [(6, 2, 3, 1), (8, 3, 1, 2)]
        x = drawn(2, 4, 7, 8)
        self.x = x.to(memory_format=torch.channels_last) if last else x
        self.weights = [drawn(*shape) for shape in shapes]
        self.biases = [drawn(shape[0]) for shape in shapes]
        self.groups = (4, 1) if "depthwise" in name else (2, 2)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.biases]

    def ours(self, *tensors: Any, **options: Any) -> Any:
        return self.function(*tensors, **options, **({} if "depthwise" in self.name else {"groups": 2}))

    def steps(
        self, conv: Callable[..., Any], x: Any, w: Any, v: Any, b: Any, c: Any,
        between: str | None = None, activation: str | None = None, residual: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        first, second = (options, {}) if "depthwise" in self.name else (split(0, options), split(1, options))
        y = conv(x, w, b, **first, groups=self.groups[0], activation=between)
        return conv(y, v, c, **second, groups=self.groups[1], activation=activation, residual=residual)


def by_torch(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    padding_mode: str = "zeros", activation: str | None = None, residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve by torch, with our padding and epilogue."""
    if padding in ("same", "same_upper", "same_lower", "causal"):
        pairs = []
        for size, taps, s, d in zip(x.shape[-2:], w.shape[2:], _two(stride), _two(dilation)):
            total = d * (taps - 1)
            if padding not in ("same", "causal"):
                total = max((-(-size // s) - 1) * s + total + 1 - size, 0)
            lo = {"same_lower": total - total // 2, "causal": total}.get(padding, total // 2)
            pairs.append((lo, total - lo))
    else:
        pairs = [pad if isinstance(pad, tuple) else (pad, pad) for pad in _two(padding)]
    mode = {"zeros": "constant"}.get(padding_mode, padding_mode)
    y = F.conv2d(F.pad(x, (*pairs[1], *pairs[0]), mode=mode), w, b, stride, 0, dilation, groups)
    return ACTIVATED[activation](y if residual is None else y + residual)


def _two(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


NAMES = ("depthwise_separable_conv2d", "separable_conv2d")


def close(ours: Any, theirs: Any) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_its_steps(name: str, geometry: str, last: bool, torch_rng: torch.Generator) -> None:
    case, options = Case(name, torch_rng, last), GEOMETRIES[geometry]
    for biases in (case.biases, [None, None]):
        given = (case.x, *case.weights, *biases)
        with forbid_aten():
            y = case.ours(*given, **options)
        expected = case.steps(gpuconv.conv2d, *given, **options)
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        torch.testing.assert_close(y, case.steps(by_torch, *given, **options))
    one = case.ours(case.x[0], *given[1:], **options)
    assert torch.equal(one, case.steps(gpuconv.conv2d, case.x[0], *given[1:], **options)) and one.dim() == 3
    torch.testing.assert_close(one, expected[0])
    arrays = [None if t is None else t.numpy() for t in given]
    z = case.ours(*arrays, **options)
    assert isinstance(z, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(z), y)
    assert z.strides == tuple(8 * step for step in y.stride())


@pytest.mark.parametrize("activation", ACTIVATED)
@pytest.mark.parametrize("name", NAMES)
def test_activations_and_residual(name: str, activation: str | None, torch_rng: torch.Generator) -> None:
    case = Case(name, torch_rng)
    residual = case.steps(by_torch, *case.tensors, padding=1).cos()
    for between, last in ((activation, None), (None, activation), (activation, "relu")):
        for added in (None, residual):
            options = {"padding": 1, "between": between, "activation": last, "residual": added}
            for requires in (False, True):
                y = case.ours(*(t.requires_grad_(requires) for t in case.tensors), **options)
                torch.testing.assert_close(y, case.steps(by_torch, *case.tensors, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_types(name: str, dtype: torch.dtype, torch_rng: torch.Generator) -> None:
    """The second step of our own first one, within the rule; the first is a convolution, which others judge."""
    case = Case(name, torch_rng, dtype=dtype)
    x, w, v, b, c = case.tensors
    y = case.ours(*case.tensors, padding=1, between="relu")
    first = {"padding": 1} if "depthwise" in name else split(0, {"padding": 1})
    second = {} if "depthwise" in name else split(1, {"padding": 1})
    inner = gpuconv.conv2d(x, w, b, groups=case.groups[0], activation="relu", **first)

    def last(inner: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return by_torch(inner, v, c, groups=case.groups[1], **second)

    check_against(last, y, (inner, v, c), {}, v[0].numel())


def test_an_outer_product_of_filters(torch_rng: torch.Generator) -> None:
    x, w, v = (torch.randn(s, generator=torch_rng).double() for s in ((2, 4, 9, 9), (4, 1, 5, 1), (4, 1, 1, 3)))
    options: dict[str, Any] = {"stride": (1, 2), "padding": (2, 1), "groups": 4}
    torch.testing.assert_close(gpuconv.separable_conv2d(x, w, v, **options), F.conv2d(x, w * v, None, **options))


@pytest.mark.parametrize("layout", STRIDES)
@pytest.mark.parametrize("operand", range(5), ids=["input", "first", "second", "bias", "other bias"])
@pytest.mark.parametrize("name", NAMES)
def test_every_layout(name: str, operand: int, layout: str, torch_rng: torch.Generator) -> None:
    case = Case(name, torch_rng)
    given = [(t * 2).round().float().numpy() for t in case.tensors]
    placed = place(given[operand], layout)
    given[operand] = np.ascontiguousarray(placed.view())
    expected = case.ours(*given, padding=1)
    found = case.ours(*given[:operand], placed.view(), *given[operand + 1 :], padding=1)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name: str, batch: int, torch_rng: torch.Generator) -> None:
    case = Case(name, torch_rng)
    leaves = [t.requires_grad_() for t in (case.x[:batch].detach(), *case.tensors[1:])]
    y = case.ours(*leaves, padding=1, between="silu")
    expected = case.steps(by_torch, *leaves, padding=1, between="silu")
    assert y.shape == expected.shape
    close(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves))


@pytest.mark.parametrize("geometry", ["strided", "dilated", "same_upper", "reflect"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, geometry: str, torch_rng: torch.Generator) -> None:
    case = Case(name, torch_rng)
    leaves = [t.requires_grad_() for t in case.tensors]
    options = GEOMETRIES[geometry] | {"between": "silu", "activation": "tanh"}
    with forbid_aten():
        y = case.ours(*leaves, **options)
        ours = torch.autograd.grad(y.square().sum(), leaves)
    expected = case.steps(by_torch, *leaves, **options)
    close(ours, torch.autograd.grad(expected.square().sum(), leaves))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str, torch_rng: torch.Generator) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch_rng, dtype=torch.float64).requires_grad_()

    shapes = [(2, 1, 2, 2), (2, 2, 1, 1)] if "depthwise" in name else [(2, 2, 2, 1), (2, 2, 1, 2)]
    leaves = [leaf(1, 2, 3, 3), *(leaf(*shape) for shape in shapes), leaf(2), leaf(2), leaf(1, 2, 2, 2)]

    def call(x: Any, w: Any, v: Any, b: Any, c: Any, residual: Any) -> Any:
        options = {"between": "silu", "activation": "sigmoid", "residual": residual}
        return getattr(gpuconv, name)(x, w, v, b, c, **options)

    assert gradcheck(call, leaves, check_forward_ad=True)
    assert gradgradcheck(call, leaves, fast_mode=True)
