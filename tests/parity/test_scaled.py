"""Convolutions of 8-bit operands with scales by the reference, against torch in float64: arrays of NumPy and torch."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from operand_layouts import STRIDES, place
from scaled_referee import ACTIVATED, DTYPES, check, emulated, exact

import gpuconv
from gpuconv.testing import forbid_aten

Tensor = torch.Tensor
Random = np.random.Generator

SOLVER = "numpy.conv.scaled.im2col"


def drawn(rng: Random, dtype: str, *shape: int, most: int = 128) -> Tensor:
    """Draw numbers of an 8-bit type: all of int8, or of float8 those around 1 and a few beyond."""
    if dtype == "int8":
        return torch.from_numpy(rng.integers(-most, most, shape).astype(np.int8))
    return torch.from_numpy(rng.standard_normal(shape) * 2.0 ** rng.integers(-2, 3, shape)).to(torch.float8_e4m3fn)


def factor(rng: Random, how: str, k: int) -> Any:
    """Draw a scale: a number, an array of one element in one of its forms, or one for each filter."""
    values = torch.from_numpy(rng.random(2 * k).astype(np.float32) / 4 + 2.0**-6)
    forms = {"number": float(values[0]), "scalar": values[0], "one": values[:1], "channels": values[:k]}
    return forms.get(how, values[::2])


def case(rng: Random, dtype: str) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    """Draw a function, its operands and its options."""
    ndim, groups = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    c, k, n = groups * int(rng.integers(1, 9)), groups * int(rng.integers(1, 7)), int(rng.integers(1, 4))
    size, kernel = (tuple(int(v) for v in rng.integers(*bounds, ndim)) for bounds in ((4, 9), (1, 4)))
    x, w = drawn(rng, dtype, n, c, *size), drawn(rng, dtype, k, c // groups, *kernel)
    if rng.random() < 0.5 and ndim > 1:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if rng.random() < 0.3:
        x = x[:1].expand_as(x)
    if rng.random() < 0.3 and ndim > 1:
        w = w.movedim(1, -1).contiguous().movedim(-1, 1)
    words = ("valid", "same_upper", "same_lower", "causal")
    pads: tuple[Any, ...] = (0, 1, (1,) * ndim, tuple((1, 2) for _ in range(ndim)), *words)
    options: dict[str, Any] = {"groups": groups, "padding": pads[rng.integers(len(pads))]}
    options["dilation"] = tuple(int(v) for v in rng.integers(1, 3, ndim))
    options["stride"] = tuple(int(v) for v in rng.integers(1, 4, ndim))
    if options["padding"] in (0, "valid"):
        options["dilation"] = 1
    if rng.random() < 0.15:
        options |= {"padding": "same", "stride": 1}
    out_dtype = str(rng.choice(["bfloat16", "float16", "float32", dtype, dtype]))
    options |= {"out_dtype": out_dtype, "activation": rng.choice(list(ACTIVATED))} if rng.random() < 0.5 else {}
    options.setdefault("out_dtype", out_dtype)
    options["input_scale"] = factor(rng, str(rng.choice(["number", "scalar", "one"])), k)
    options["weight_scale"] = factor(rng, str(rng.choice(["number", "scalar", "one", "channels", "stepped"])), k)
    if out_dtype == dtype:
        options["output_scale"] = factor(rng, str(rng.choice(["number", "scalar", "one"])), k)
    if rng.random() < 0.6:
        bias = torch.from_numpy(rng.standard_normal(k)).to(
            getattr(torch, rng.choice(["float32", "float16", "bfloat16"]))
        )
        options["bias"] = bias
    return getattr(gpuconv, f"scaled_conv{ndim}d"), x, w, options


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_calls(dtype: str, rng: Random) -> None:
    for _ in range(150):
        function, x, w, options = case(rng, dtype)
        with forbid_aten():
            y = function(x, w, **options)
        expected = emulated(x, w, **options)
        check(y, expected, w[0].numel(), dtype)
        if dtype == "int8" and options.get("activation") in (None, "relu", "relu6"):
            exact(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_calls_have_the_format_of_conv2d(dtype: str, rng: Random) -> None:
    for _ in range(40):
        function, x, w, options = case(rng, dtype)
        plain = {name: options[name] for name in ("stride", "padding", "dilation", "groups")}
        like = getattr(gpuconv, function.__name__.removeprefix("scaled_"))
        expected = gpuconv.explain(like, *(_in_float(t) for t in (x, w)), **plain).problem
        y = function(x, w, **options)
        assert y.shape == expected.y_shape
        assert y.is_contiguous() or expected.y_format == "channels_last"
        if x.shape[0] > 1:
            one = function(x[0], w, **options)
            assert one.shape == y.shape[1:]
            torch.testing.assert_close(one.float(), y[0].float(), rtol=1e-2, atol=0.3, equal_nan=True)


def _in_float(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.float32)


def test_drawn_calls_of_numpy_equal_those_of_torch(rng: Random) -> None:
    for _ in range(80):
        function, x, w, options = case(rng, "int8")
        if "bfloat16" in (options["out_dtype"], str(options.get("bias", x).dtype).removeprefix("torch.")):
            continue
        y = function(x, w, **options)
        arrays = {name: v.numpy() if isinstance(v, torch.Tensor) else v for name, v in options.items()}
        z = function(x.numpy(), w.numpy(), **arrays)
        assert isinstance(z, np.ndarray)
        np.testing.assert_array_equal(z, y.numpy(), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", ["float32", "float16", "8-bit"])
def test_powers_of_two_are_exact(dtype: str, out: str, rng: Random) -> None:
    x, w = drawn(rng, "int8", 2, 20, 9, 8, most=4), drawn(rng, "int8", 7, 20, 3, 3, most=4)
    x, w = x.to(DTYPES[dtype]), w.to(DTYPES[dtype])
    options: dict[str, Any] = {"input_scale": 0.5, "weight_scale": torch.tensor([1.0, 0.5, 2, 4, 0.25, 1, 2])}
    options |= {"padding": 1, "out_dtype": out.replace("8-bit", dtype)}
    options |= {"output_scale": torch.tensor([8.0])} if out == "8-bit" else {}
    y = gpuconv.scaled_conv2d(x, w, **options)
    exact(y, emulated(x, w, **options))
    if out == "float32":
        plain = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
        assert torch.equal(y.double(), plain * 0.5 * options["weight_scale"].double()[:, None, None])


def test_long_sums_of_int8_are_exact_and_wrap_around(rng: Random) -> None:
    for c in (1023, 1024, 1025, 4000, 131071, 140000, 300000):
        x, w = (torch.full((1, c, 1), -128, dtype=torch.int8) for _ in range(2))
        x[0, : c // 3] = drawn(rng, "int8", c // 3, 1)
        y = gpuconv.scaled_conv1d(x, w, input_scale=1.0, weight_scale=1.0, out_dtype="float32")
        total = int((x.long() * w.long()).sum())
        wrapped = (total + 2**31) % 2**32 - 2**31
        assert y.item() == float(torch.tensor(wrapped, dtype=torch.int32).float()), c


def test_every_float8_is_read_as_torch_reads_it() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(1, 1, 256)
    one = torch.ones(1, 1, 1).to(torch.float8_e4m3fn)
    y = gpuconv.scaled_conv1d(every, one, input_scale=1.0, weight_scale=1.0, out_dtype="float32")
    torch.testing.assert_close(y, every.float(), rtol=0, atol=0, equal_nan=True)


def test_default_types() -> None:
    x, w = torch.ones(1, 2, 4, dtype=torch.int8), torch.ones(3, 2, 1, dtype=torch.int8)
    scales = {"input_scale": 1.0, "weight_scale": 1.0}
    assert gpuconv.scaled_conv1d(x, w, **scales).dtype is torch.bfloat16
    assert gpuconv.scaled_conv1d(x.numpy(), w.numpy(), **scales).dtype == np.float32
    for given in ("float16", torch.float16):
        assert gpuconv.scaled_conv1d(x, w, **scales, out_dtype=given).dtype is torch.float16
    for given in ("float16", np.float16, np.dtype("float16")):
        assert gpuconv.scaled_conv1d(x.numpy(), w.numpy(), **scales, out_dtype=given).dtype == np.float16
    y = gpuconv.scaled_conv1d(x.numpy(), w.numpy(), **scales, out_dtype=np.int8, output_scale=np.float32(2))
    assert y.dtype == np.int8 and y.tolist() == [[[1, 1, 1, 1]] * 3]


@pytest.mark.parametrize("layout", STRIDES)
@pytest.mark.parametrize("operand", ["input", "weight", "bias", "weight_scale"])
def test_every_layout(operand: str, layout: str, rng: Random) -> None:
    given: dict[str, Any] = {
        "input": drawn(rng, "int8", 2, 4, 6, 7).numpy(), "weight": drawn(rng, "int8", 5, 4, 3, 2).numpy(),
        "bias": rng.standard_normal(5).astype(np.float32), "weight_scale": rng.random(5).astype(np.float32),
    }  # fmt: skip
    placed = place(given[operand], layout)
    given[operand] = np.ascontiguousarray(placed.view())
    expected = gpuconv.scaled_conv2d(**given, input_scale=0.5, padding=1)
    found = gpuconv.scaled_conv2d(**given | {operand: placed.view()}, input_scale=0.5, padding=1)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batches_and_channels(dtype: str) -> None:
    x, w = torch.ones(2, 4, 5, 6).to(DTYPES[dtype]), torch.ones(3, 4, 3, 3).to(DTYPES[dtype])
    scales = {"input_scale": 1.0, "weight_scale": torch.ones(3)}
    assert gpuconv.scaled_conv2d(x[:0], w, **scales).shape == (0, 3, 3, 4)
    assert gpuconv.scaled_conv2d(x[:, :0], w[:, :0], **scales).shape == (2, 0, 3, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", ["bfloat16", "8-bit"])
def test_workspace_is_what_the_plan_states(dtype: str, out: str, monkeypatch: pytest.MonkeyPatch, rng: Random) -> None:
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(2 << 20))
    x, w = drawn(rng, dtype, 1, 24, 60, 70), drawn(rng, dtype, 40, 24, 3, 3)
    options = {"padding": 1, "input_scale": 0.1, "weight_scale": torch.ones(40), "activation": "gelu"}
    options |= {"out_dtype": dtype, "output_scale": 1.0} if out == "8-bit" else {}
    gpuconv.scaled_conv2d(x[:, :, :8, :8], w, **options)  # what a first call imports and keeps
    plan = gpuconv.explain(gpuconv.scaled_conv2d, x, w, **options).plan
    tracemalloc.start()
    y = gpuconv.scaled_conv2d(x, w, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.solver.id == SOLVER and peak <= plan.workspace <= 2 << 20
    monkeypatch.delenv("GPUCONV_WORKSPACE")
    whole = gpuconv.scaled_conv2d(x, w, **options)
    if dtype == "int8":
        assert torch.equal(y, whole)
    check(y, emulated(x, w, **options | {"out_dtype": str(y.dtype).removeprefix("torch.")}), w[0].numel(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_repeated_and_interleaved_calls(dtype: str, rng: Random) -> None:
    """Each call three times, by turns with others that differ in one scale: nothing of a value is remembered."""
    x, w = drawn(rng, dtype, 2, 6, 7, 7), drawn(rng, dtype, 5, 6, 3, 3)
    options = [
        {"input_scale": 0.5, "weight_scale": 1.0}, {"input_scale": 0.25, "weight_scale": 1.0},
        {"input_scale": 0.5, "weight_scale": torch.ones(5)}, {"input_scale": torch.tensor(0.75), "weight_scale": 1.0},
        {"input_scale": 0.5, "weight_scale": 1.0, "out_dtype": dtype, "output_scale": 2.0},
        {"input_scale": 0.5, "weight_scale": 1.0, "out_dtype": dtype, "output_scale": torch.tensor([4.0])},
        {"input_scale": -0.0, "weight_scale": 1.0}, {"input_scale": 0.0, "weight_scale": 1.0},
    ]  # fmt: skip
    expected = [emulated(x, w, **each) for each in options]
    for number in [*range(8), *range(8), 7, 6, 6, 5, 4, 3, 2, 1, 0, 0]:
        y = gpuconv.scaled_conv2d(x, w, **{"out_dtype": "float32"} | options[number])
        check(y, expected[number], w[0].numel(), dtype)
        signs = torch.signbit(y.float()) == torch.signbit(expected[number].exact.float())
        assert bool((signs | (y.float() != 0)).all())
    changed = torch.ones(5)
    y = gpuconv.scaled_conv2d(x, w, input_scale=1.0, weight_scale=changed, out_dtype="float32")
    z = gpuconv.scaled_conv2d(x, w, input_scale=1.0, weight_scale=changed.mul_(2), out_dtype="float32")
    torch.testing.assert_close(z, 2 * y, rtol=0, atol=0)
