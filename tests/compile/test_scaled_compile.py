"""Convolutions of 8-bit tensors with scales as an operator: its rules, ``torch.compile``, ``torch.export``, fakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import gpuconv

Tensor = torch.Tensor

LAYOUTS = ("contiguous", "channels_last")


def operands(dtype: str, layout: str, n: int = 2, size: int = 7) -> tuple[Tensor, Tensor]:
    x, w = torch.randn(n, 6, size, 8).mul(9), torch.randn(4, 3, 3, 2).mul(9)
    x, w = (t.to(getattr(torch, dtype)) for t in (x, w))
    return tuple(t.to(memory_format=torch.channels_last) if layout == "channels_last" else t for t in (x, w))


def arrays(dtype: str) -> dict[str, Any]:
    return {"bias": torch.randn(4), "input_scale": torch.rand(1), "weight_scale": torch.rand(4)} | {
        "output_scale": torch.rand(()) + 0.5, "out_dtype": dtype, "groups": 2, "padding": ((1, 0), (2, 1)),
    }  # fmt: skip


NUMBERS = {"input_scale": 0.25, "weight_scale": 0.5, "groups": 2, "stride": 2, "activation": "relu"}


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["arrays", "numbers"])
def test_opcheck(dtype: str, layout: str, form: str) -> None:
    x, w = operands(dtype, layout)
    gpuconv.scaled_conv2d(x, w, groups=2, input_scale=1.0, weight_scale=1.0)  # registers the operators
    geometry = ([2, 1], [1, 0], [0, 2], [1, 2], 2)
    if form == "arrays":
        tensors = (torch.randn(4), torch.rand(1), torch.rand(4), torch.rand(1), 1.0, 1.0, 1.0)
        options = (dtype, None, None)
    else:
        tensors = (None, None, None, None, 0.5, 0.25, 1.0)
        options = ("float32", "gelu", "numpy")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    tests = tests[dtype != "int8" :]  # the first multiplies operands, which torch does not do in float8
    arguments = (x, w, *tensors, *geometry, *options)
    torch.library.opcheck(torch.ops.gpuconv.scaled_fprop.default, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_in_one_graph(dtype: str, layout: str, backend: str) -> None:
    torch._dynamo.reset()
    given = arrays(dtype)
    bias, scales = given.pop("bias"), [given.pop(name) for name in ("input_scale", "weight_scale", "output_scale")]

    def model(x: Tensor, w: Tensor, bias: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        y = gpuconv.scaled_conv2d(x, w, bias, **given, input_scale=a, weight_scale=b, output_scale=c)
        z = gpuconv.scaled_conv2d(y, w[:, :2], **NUMBERS, out_dtype=torch.float16)
        return y, z + 1

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for n, size in ((2, 7), (3, 9)):
        tensors = (*operands(dtype, layout, n, size), bias, *scales)
        for ours, theirs in zip(compiled(*tensors), model(*tensors), strict=True):
            assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0)
    one = tuple(t[0] if place == 0 else t for place, t in enumerate(tensors))
    for ours, theirs in zip(compiled(*one), model(*one), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0)


def test_numbers_may_change_in_a_compiled_call() -> None:
    torch._dynamo.reset()
    x, w = operands("int8", "contiguous")

    def model(x: Tensor, scale: float) -> Tensor:
        return gpuconv.scaled_conv2d(x, w, groups=2, input_scale=scale, weight_scale=1.0, out_dtype="float32")

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for scale in (0.5, 0.25, 3.0):
        assert torch.equal(compiled(x, scale), model(x, scale))


def test_export() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", operands("int8", "contiguous")[1])
            self.register_buffer("scale", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return gpuconv.scaled_conv2d(x, self.weight, groups=2, input_scale=0.5, weight_scale=self.scale, padding=1)

    model, x = Model(), operands("int8", "contiguous")[0]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    assert "gpuconv.scaled_fprop" in str(program.graph)
    for n in (2, 5):
        x = operands("int8", "contiguous", n)[0]
        assert torch.equal(program.module()(x), model(x))


def test_fakes_and_modes_see_an_operator() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, w = operands("float8_e4m3fn", "channels_last")
    expected = gpuconv.scaled_conv2d(x, w, **NUMBERS)
    with Watch():
        y = gpuconv.scaled_conv2d(x, w, **NUMBERS)
    assert torch.equal(y, expected) and "gpuconv.scaled_fprop.default" in seen
    for found in (gpuconv.scaled_conv2d(x.to("meta"), w.to("meta"), **NUMBERS), _faked(x, w)):
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


def _faked(x: Tensor, w: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return gpuconv.scaled_conv2d(mode.from_tensor(x), mode.from_tensor(w), **NUMBERS)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"bias": torch.ones(3)}, RuntimeError, "bias must be 1-D with 4"),
        ({"weight_scale": torch.ones(3)}, RuntimeError, "weight_scale must be"),
        ({"input_scale": torch.ones(1).double()}, RuntimeError, "dtype of input_scale must be float32"),
        ({"out_dtype": "float64"}, ValueError, "out_dtype must be one of"),
        ({"output_scale": 1.0}, ValueError, "output_scale must be None"),
        ({"input_scale": None}, TypeError, "input_scale must be a"),
        ({"groups": 3}, RuntimeError, "channels|groups"),
        ({"activation": "rulu"}, ValueError, "activation must be one of"),
    ],
)
def test_fakes_refuse_what_calls_refuse(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    x, w = operands("int8", "contiguous")
    with pytest.raises(error, match=text):
        gpuconv.scaled_conv2d(x, w, **NUMBERS | changes)
    on_meta = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in changes.items()}
    with pytest.raises(error, match=text):
        gpuconv.scaled_conv2d(x.to("meta"), w.to("meta"), **NUMBERS | on_meta)


def test_gradients_are_refused_by_the_operator_too() -> None:
    x, w = operands("int8", "contiguous")
    scale = torch.ones(4, requires_grad=True)
    gpuconv.scaled_conv2d(x, w, **NUMBERS)
    arguments = ([1, 1], [0, 0], [0, 0], [1, 1], 2, "float32", None, None)
    with pytest.raises(RuntimeError, match="weight_scale must be without requires_grad"):
        torch.ops.gpuconv.scaled_fprop(x, w, None, None, scale, None, 1.0, 1.0, 1.0, *arguments)
    with torch.no_grad():
        y = torch.ops.gpuconv.scaled_fprop(x, w, None, None, scale, None, 1.0, 1.0, 1.0, *arguments)
    assert not y.requires_grad


def test_transforms() -> None:
    """Derivatives are refused, none is lost without a word; a batch is taken apart by torch, example by example."""
    x, w = operands("int8", "contiguous")
    scale = torch.ones(4)

    def function(scale: Tensor, x: Tensor = x) -> Tensor:
        return gpuconv.scaled_conv2d(x, w, groups=2, input_scale=1.0, weight_scale=scale, out_dtype="float32")

    expected = function(scale)
    with pytest.raises(RuntimeError, match="weight_scale must be without requires_grad"):
        torch.func.grad(lambda s: function(s).sum())(scale)
    with pytest.raises(RuntimeError, match="weight_scale must be without a tangent"):
        torch.func.jvp(function, (scale,), (scale,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(scale, scale)
        with pytest.raises(RuntimeError, match="weight_scale must be without a tangent"):
            function(dual)
        assert torch.equal(function(scale), expected)
    assert torch.equal(torch.vmap(lambda x: function(scale, x))(x[None])[0], expected)
