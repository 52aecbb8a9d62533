"""Modules that torch does not have: causal and separable convolutions."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gpuconv.nn
from gpuconv.testing import forbid_aten


def of_torch(channels: int, width: int, **options: Any) -> torch.nn.Conv1d:
    return torch.nn.Conv1d(channels, channels, width, groups=channels, padding=width - 1, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_causal_conv1d(width: int, bias: bool) -> None:
    """Parameters, and the draws that they begin with, of the module that published models have."""
    torch.manual_seed(0)
    ours = gpuconv.nn.CausalConv1d(6, width, bias, dtype=torch.float64, activation="silu")
    torch.manual_seed(0)
    theirs = of_torch(6, width, bias=bias, dtype=torch.float64)
    for (name, one), (other, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two)
    x = torch.randn(2, 6, 9, dtype=torch.float64)
    expected = F.silu(theirs(x)[..., :9])
    with forbid_aten():
        torch.testing.assert_close(ours(x), expected)
    before, state = ours(x[..., :5], return_state=True)
    after = ours(x[..., 5:], state)
    torch.testing.assert_close(torch.cat([before, after], -1), expected)
    steps = [ours.step(x[..., i], state) for i in range(5, 9)]
    torch.testing.assert_close(torch.stack(steps, -1), expected[..., 5:])
    ids = torch.tensor([[0] * 4 + [1] * 5] * 2, dtype=torch.int32)
    packed = torch.cat([ours(x[..., :4]), ours(x[..., 4:])], -1)
    torch.testing.assert_close(ours(x, seq_idx=ids), packed)
    mine = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
    torch.testing.assert_close(mine, torch.autograd.grad(expected.square().sum(), list(theirs.parameters())))
    assert ours.load_state_dict(theirs.state_dict()) == theirs.load_state_dict(ours.state_dict())


def test_new_state() -> None:
    layer = gpuconv.nn.CausalConv1d(6, 4, dtype=torch.float64)
    assert layer.new_state(3).shape == (3, 6, 3) and layer.new_state(3).dtype is torch.float64
    cache = layer.new_state(5, 8, dtype=torch.float32)
    assert cache.shape == (5, 6, 8) and cache.dtype is torch.float32 and not cache.any()
    x, cache = torch.randn(2, 6, 10, dtype=torch.float64), layer.new_state(5, 8)
    entries = torch.tensor([4, 1], dtype=torch.int32)
    found = []
    for at in range(10):
        seen = torch.full((2,), at, dtype=torch.int32)
        found.append(layer.step(x[..., at], cache, cache_seqlens=seen, conv_state_indices=entries))
    torch.testing.assert_close(torch.stack(found, -1), layer(x))


def test_repr_of_causal_conv1d() -> None:
    extras = {"activation": "swish", "precision": "tf32", "backend": "numpy"}
    assert repr(gpuconv.nn.CausalConv1d(6, 4)) == "CausalConv1d(6, kernel_size=4)"
    expected = "CausalConv1d(6, kernel_size=4, bias=False, activation='swish', precision='tf32', backend='numpy')"
    assert repr(gpuconv.nn.CausalConv1d(6, 4, False, **extras)) == expected


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        ((0, 4), {}, ValueError, "CausalConv1d: channels must be positive, but got 0"),
        ((6, 0), {}, ValueError, "CausalConv1d: kernel_size must be positive, but got 0"),
        ((6, 2.0), {}, TypeError, "CausalConv1d: kernel_size must be an integer, but got 2.0"),
        ((6, 4), {"activation": "rulu"}, ValueError, "CausalConv1d: activation must be one of .*'swish', but got"),
        ((6, 4), {"precision": "fp8"}, ValueError, "CausalConv1d: precision must be one of 'ieee'"),
        ((6, 4), {"backend": "tritn"}, ValueError, r"CausalConv1d: backend must be one of .*did you mean 'triton'\?"),
    ],
)
def test_causal_conv1d_refuses(args: Any, kwargs: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        gpuconv.nn.CausalConv1d(*args, **kwargs)


DEPTHWISE: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "dilation": (1, 2), "bias": False},
    {"kernel_size": 3, "padding": "same_upper", "stride": 2, "depth_multiplier": 3, "between": "relu6"},
    {"kernel_size": 3, "padding": ((1, 0), (0, 2)), "padding_mode": "reflect", "activation": "silu"},
    {"kernel_size": 2, "padding": "same", "backend": "numpy", "precision": "ieee", "between": "gelu"},
]


@pytest.mark.parametrize("options", DEPTHWISE, ids=str)
def test_depthwise_separable(options: dict[str, Any]) -> None:
    layer = gpuconv.nn.DepthwiseSeparableConv2d(4, 6, **options)
    check(layer, [layer.depthwise, layer.pointwise])
    assert layer.depthwise.weight.shape[:2] == (4 * options.get("depth_multiplier", 1), 1)
    assert layer.pointwise.weight.shape == (6, layer.depthwise.weight.shape[0], 1, 1)


SEPARABLE: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": (5, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "bias": False, "groups": 2},
    {"kernel_size": 3, "padding": "same_lower", "stride": 2, "mid_channels": 2, "between": "relu6"},
    {"kernel_size": 3, "padding": ((1, 0), (0, 2)), "padding_mode": "circular", "activation": "silu"},
    {"kernel_size": 2, "padding": "causal", "backend": "numpy", "precision": "ieee", "between": "gelu"},
]


@pytest.mark.parametrize("options", SEPARABLE, ids=str)
def test_separable(options: dict[str, Any]) -> None:
    layer = gpuconv.nn.SeparableConv2d(4, 6, **options)
    check(layer, [layer.columns, layer.rows])
    assert layer.columns.weight.shape[0] == options.get("mid_channels", 6)


def check(layer: Any, children: list[Any]) -> None:
    """Assert that a module is its children one behind the other, and what every module can."""
    x = torch.randn(2, 4, 9, 8)
    for given in (x, x[0], x.to(memory_format=torch.channels_last)):
        with forbid_aten():
            y = layer(given)
        expected = children[1](children[0](given))
        assert torch.equal(y, expected) and y.stride() == expected.stride()
    residual = torch.randn_like(layer(x))
    assert torch.equal(layer(x, residual=residual), children[1](children[0](x), residual=residual))
    names = [name for name, _ in layer.named_children()]
    wanted = [f"{name}.{key}" for name, child in zip(names, children) for key in child.state_dict()]
    assert list(layer.state_dict()) == wanted
    assert all(repr(child) in repr(layer).replace("\n  ", "\n") for child in children)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), layer(x)) and repr(again) == repr(layer)
    before = layer(x)
    torch.manual_seed(1)
    layer.reset_parameters()
    assert not torch.equal(layer(x), before)
    mine = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    other = torch.autograd.grad(children[1](children[0](x)).square().sum(), list(layer.parameters()))
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "text"),
    [
        ("DepthwiseSeparableConv2d", {"between": "rulu"}, ValueError, ": between must be one of 'relu', .* got 'rulu'"),
        ("SeparableConv2d", {"activation": "rulu"}, ValueError, ": activation must be one of 'relu', .* got 'rulu'"),
        ("DepthwiseSeparableConv2d", {"depth_multiplier": 0}, ValueError, ": depth_multiplier must be positive"),
        ("SeparableConv2d", {"mid_channels": 2.0}, TypeError, ": mid_channels must be an integer"),
        ("SeparableConv2d", {"padding": "same", "stride": 2}, RuntimeError, ": stride must be 1 with padding='same'"),
        ("SeparableConv2d", {"padding": ((1, 1),)}, RuntimeError, ": padding must be .* 2 pairs"),
        ("DepthwiseSeparableConv2d", {"padding": "sam"}, ValueError, "Conv2d: padding must be a size or one of"),
        ("DepthwiseSeparableConv2d", {"backend": "tritn"}, ValueError, r": backend must be .* mean 'triton'\?"),
    ],
)
def test_separable_modules_refuse(name: str, kwargs: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        getattr(gpuconv.nn, name)(4, 6, 3, **kwargs)


@pytest.mark.parametrize("name", ["DepthwiseSeparableConv2d", "SeparableConv2d"])
def test_signature_is_that_of_a_convolution(name: str) -> None:
    """Torch's arguments in torch's order, and keywords after them."""
    ours = list(inspect.signature(getattr(gpuconv.nn, name)).parameters.values())
    theirs = [p for p in inspect.signature(torch.nn.Conv2d).parameters.values()]
    theirs = [p for p in theirs if p.name != "groups" or name == "SeparableConv2d"]
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


def test_parametrizations_and_skipped_initialisation() -> None:
    layer = gpuconv.nn.CausalConv1d(4, 3)
    x, y = torch.randn(1, 4, 5), None
    y = layer(x)
    torch.nn.utils.parametrizations.weight_norm(layer)
    torch.testing.assert_close(layer(x), y)
    skipped = torch.nn.utils.skip_init(gpuconv.nn.DepthwiseSeparableConv2d, 4, 6, 3, between="relu")
    assert skipped(torch.randn(1, 4, 5, 5)).shape == (1, 6, 3, 3)
