"""Deformable convolution as operators: their rules, ``torch.compile``, ``torch.export``, fakes, ``torch.func``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses.fake_tensor import FakeTensorMode

import gpuconv
from gpuconv.nn import DeformConv2d

Tensor = torch.Tensor

GEOMETRY = ([2, 1], [1, 0], [0, 2], [1, 2], 2, 2, None, None)
OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)}


def operands(last: bool = False, n: int = 2, dtype: Any = torch.float32) -> tuple[Tensor, ...]:
    """Return x, offset, mask, w, bias and dy."""
    torch.manual_seed(0)
    x, w, bias = torch.randn(n, 4, 7, 8, dtype=dtype), torch.randn(6, 2, 3, 2, dtype=dtype), torch.randn(6, dtype=dtype)
    if last:
        x, w = (t.to(memory_format=torch.channels_last) for t in (x, w))
    offset, mask = torch.randn(n, 24, 3, 8, dtype=dtype), torch.rand(n, 12, 3, 8, dtype=dtype)
    return x, offset, mask, w, bias, torch.randn(n, 6, 3, 8, dtype=dtype)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "mask"])
@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_opcheck(name: str, masked: bool, last: bool) -> None:
    x, offset, mask, w, bias, dy = operands(last)
    factor = mask if masked else None
    grads = ["x", "offset", "mask"][: 2 + masked]
    arguments = {
        "fprop": (x, offset, factor, w, bias),
        "dgrad": (dy, x, offset, factor, w, grads),
        "wgrad": (dy, x, offset, factor, [3, 2]),
    }[name]
    for tensor in (x, offset, factor, w, bias, dy):
        if tensor is not None:
            tensor.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.gpuconv, f"deform_{name}").default, (*arguments, *GEOMETRY))


SIZES = {1: (9,), 3: (4, 5, 3)}


def plain(ndim: int, device: str = "cpu") -> tuple[Tensor, ...]:
    """Return x, offset, mask, w and bias in 1-D or 3-D, two groups of each; the output's size is that of the input."""
    torch.manual_seed(0)
    size, taps = SIZES[ndim], 3**ndim
    x, w, bias = torch.randn(2, 4, *size), torch.randn(6, 2, *(3,) * ndim), torch.randn(6)
    offset, mask = torch.randn(2, 2 * ndim * taps, *size), torch.rand(2, 2 * taps, *size)
    return tuple(tensor.to(device) for tensor in (x, offset, mask, w, bias))


def call_of(ndim: int) -> Any:
    function = getattr(gpuconv, f"deform_conv{ndim}d")
    return lambda x, offset, mask, w, bias: function(x, offset, w, bias, padding=1, mask=mask)


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("name", ["fprop", "dgrad", "wgrad"])
def test_opcheck_in_other_dimensions(name: str, ndim: int) -> None:
    x, offset, mask, w, bias = (tensor.requires_grad_() for tensor in plain(ndim))
    dy = torch.randn(2, 6, *SIZES[ndim], requires_grad=True)
    arguments = {
        "fprop": (x, offset, mask, w, bias),
        "dgrad": (dy, x, offset, mask, w, ["x", "offset", "mask"]),
        "wgrad": (dy, x, offset, mask, [3] * ndim),
    }[name]
    geometry = ([1] * ndim, [1] * ndim, [1] * ndim, [1] * ndim, 2, 2, None, None)
    torch.library.opcheck(getattr(torch.ops.gpuconv, f"deform_{name}").default, (*arguments, *geometry))


@pytest.mark.parametrize("ndim", [1, 3])
def test_compile_in_one_graph_in_other_dimensions(ndim: int) -> None:
    torch._dynamo.reset()
    leaves = [tensor.requires_grad_() for tensor in plain(ndim)]
    call = call_of(ndim)
    found, expected = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves)
    torch.testing.assert_close(found, expected)
    dy = torch.randn_like(expected)
    for one, other in zip(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("ndim", [1, 3])
def test_backward_without_values(ndim: int) -> None:
    leaves = [tensor.requires_grad_() for tensor in plain(ndim, "meta")]
    y = call_of(ndim)(*leaves)
    assert y.shape == (2, 6, *SIZES[ndim]) and y.is_meta
    for leaf, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        assert gradient.is_meta and gradient.shape == leaf.shape


@pytest.mark.parametrize("ndim", [1, 3])
def test_functionalized_and_batched(ndim: int) -> None:
    """By torch.func.functionalize, and gradients of several seeds in one call; torch.jit.trace is refused by name."""
    call, given = call_of(ndim), plain(ndim)
    expected = call(*given)
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace cannot record gpuconv"):
        torch.jit.trace(call, given, check_trace=False)
    torch.testing.assert_close(torch.func.functionalize(call)(*given), expected)
    leaves = [tensor.requires_grad_() for tensor in given]
    y, seeds = call(*leaves), torch.randn(3, *expected.shape)
    batched = torch.autograd.grad(y, leaves, seeds, is_grads_batched=True, retain_graph=True)
    for place, seed in enumerate(seeds):
        for one, other in zip(batched, torch.autograd.grad(y, leaves, seed, retain_graph=True), strict=True):
            torch.testing.assert_close(one[place], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_compile_in_one_graph(backend: str, last: bool) -> None:
    torch._dynamo.reset()
    x, offset, mask, w, bias, dy = operands(last)
    leaves = [tensor.requires_grad_() for tensor in (x, offset, mask, w, bias)]

    def model(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return gpuconv.deform_conv2d(x * 2, offset, w, bias, mask=mask.sigmoid(), **OPTIONS).relu()

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected = model(*leaves)
    found = compiled(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_new_sizes_compile_nothing_new() -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = DeformConv2d(4, 6, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, backend=counted, dynamic=True)
    for n, height, width in ((2, 5, 6), (3, 7, 9), (4, 8, 5)):
        x, offset = torch.randn(n, 4, height, width), torch.randn(n, 18, height, width)
        torch.testing.assert_close(compiled(x, offset), layer(x, offset), rtol=1e-5, atol=1e-5)
    assert counted.frame_count == 1


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    layer = DeformConv2d(4, 6, (3, 2), stride=(2, 1), padding="same_upper", groups=2)
    x = torch.randn(2, 4, 8, 7)
    offset, mask = torch.randn(2, 24, 4, 7), torch.rand(2, 12, 4, 7)
    batch = torch.export.Dim("batch", min=2)
    dynamic = {"input": {0: batch}, "offset": {0: batch}, "mask": {0: batch}}
    program = torch.export.export(layer, (x, offset, mask), dynamic_shapes=dynamic, strict=strict)
    assert "gpuconv.deform_fprop" in str(program.graph)
    torch.testing.assert_close(program.module()(x, offset, mask), layer(x, offset, mask))
    more = [torch.cat((t, t)) for t in (x, offset, mask)]
    torch.testing.assert_close(program.module()(*more), layer(*more))


def test_without_values() -> None:
    x, offset, mask, w, bias, _ = operands(True)
    expected = gpuconv.deform_conv2d(x, offset, w, bias, mask=mask, **OPTIONS)
    given = [tensor.to("meta") for tensor in (x, offset, w, bias, mask)]
    found = gpuconv.deform_conv2d(*given[:4], mask=given[4], **OPTIONS)
    assert (found.shape, found.stride(), found.device.type) == (expected.shape, expected.stride(), "meta")
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (x, offset, w, bias, mask)]
        found = gpuconv.deform_conv2d(*fakes[:4], mask=fakes[4], **OPTIONS)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())
    with pytest.raises(RuntimeError, match="offset must be of the output's size"):
        gpuconv.deform_conv2d(given[0], given[1][..., 1:], given[2], **OPTIONS)
    with pytest.raises(RuntimeError, match="weight must be of a kernel size of at least 1 along every axis"):
        gpuconv.deform_conv2d(given[0], given[1], given[2][..., :0], **OPTIONS)


@pytest.mark.parametrize("device_type", ["bfloat16", "float32"])
def test_autocast_computes_in_float32(device_type: str) -> None:
    x, offset, mask, w, bias, _ = operands()
    half = x.to(getattr(torch, device_type))
    expected = gpuconv.deform_conv2d(half.float(), offset, w, bias, mask=mask, **OPTIONS).to(half.dtype)

    def call() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gpuconv.deform_conv2d(half, offset, w, bias, mask=mask, **OPTIONS)

    found = call()
    assert found.dtype == half.dtype and torch.equal(found, expected)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")()
    assert compiled.dtype == half.dtype and torch.equal(compiled, expected)


@pytest.mark.parametrize("chosen", [(1,), (0, 1), (1, 2), (1, 3), (0, 1, 2, 3, 4)])
def test_tangents_have_tangents(chosen: tuple[int, ...]) -> None:
    """The second derivative along offsets and what they meet: nested forward mode against two gradients."""
    given = list(operands(dtype=torch.float64)[:5])
    given[1] = given[1].round() + 0.3
    args = tuple(given[place] for place in chosen)
    first, then = (tuple(torch.randn_like(tensor) for tensor in args) for _ in range(2))

    def function(*some: Tensor) -> Tensor:
        x, offset, mask, w, bias = [dict(zip(chosen, some)).get(place, tensor) for place, tensor in enumerate(given)]
        return gpuconv.deform_conv2d(x, offset, w, bias, mask=mask, **OPTIONS)

    _, found = torch.func.jvp(lambda *a: torch.func.jvp(function, a, first)[1], args, then)
    seed = torch.randn_like(found)

    def slope(*some: Tensor) -> Tensor:
        grads = torch.func.grad(lambda *a: (function(*a) * seed).sum(), tuple(range(len(some))))(*some)
        return sum((one * other).sum() for one, other in zip(grads, first))

    curved = torch.func.grad(slope, tuple(range(len(args))))(*args)
    expected = sum((one * other).sum() for one, other in zip(curved, then))
    torch.testing.assert_close((found * seed).sum(), expected)


def test_transforms() -> None:
    x, offset, mask, w, bias, _ = operands(dtype=torch.float64)
    offset = offset.round() + 0.3

    def loss(x: Tensor, offset: Tensor, mask: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return gpuconv.deform_conv2d(x, offset, w, bias, mask=mask, **OPTIONS).square().sum()

    given = (x, offset, mask, w, bias)
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for one, other in zip(torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*given), expected):
        torch.testing.assert_close(one, other)
    tangents = tuple(torch.randn_like(tensor) for tensor in given)
    _, slope = torch.func.jvp(loss, given, tangents)
    torch.testing.assert_close(slope, sum((a * b).sum() for a, b in zip(expected, tangents)))

    def one(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return gpuconv.deform_conv2d(x[None], offset[None], w, bias, mask=mask[None], **OPTIONS)[0]

    torch.testing.assert_close(
        torch.vmap(one)(x, offset, mask), gpuconv.deform_conv2d(*given[:2], w, bias, mask=mask, **OPTIONS)
    )
    many = torch.stack((w, 2 * w))
    y = torch.vmap(lambda w: gpuconv.deform_conv2d(x, offset, w, mask=mask, **OPTIONS))(many)
    torch.testing.assert_close(y[1], 2 * y[0])
    per_image = torch.vmap(
        torch.func.grad(
            lambda w, *t: gpuconv.deform_conv2d(t[0][None], t[1][None], w, mask=t[2][None], **OPTIONS).sum()
        ),
        (None, 0, 0, 0),
    )(w, x, offset, mask)
    leaf = w.clone().requires_grad_()
    (total,) = torch.autograd.grad(gpuconv.deform_conv2d(x, offset, leaf, mask=mask, **OPTIONS).sum(), leaf)
    torch.testing.assert_close(per_image.sum(0), total)
