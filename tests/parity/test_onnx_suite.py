"""The node tests that the package onnx ships, which nobody here wrote, expressed in public calls on NumPy arrays.

Of what ONNX has and a call here has not, the array is padded by hand (pads of more than half a window), and powers are
averaged (dilated power pools).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="not run: onnx is not installed")

import gpuconv  # noqa: E402

FAMILIES = {
    "averagepool": 20, "causal_conv_with_state": 13, "col2im": 5, "conv": 6, "convinteger": 2, "convtranspose": 11,
    "deformconv": 4, "globalaveragepool": 2, "globalmaxpool": 2, "lppool": 8, "maxpool": 19, "maxunpool": 2,
    "qlinearconv": 1,
}  # fmt: skip
"""The modules of onnx.backend.test.case.node, and how many cases each has at least."""

Attributes = dict[str, Any]
Pairs = str | tuple[tuple[int, int], ...]


def function(name: str, ndim: int) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(gpuconv, f"{name}{ndim}d")
    return found


def padding_of(a: Attributes, ndim: int) -> Pairs:
    word = a.get("auto_pad", b"NOTSET").decode().lower()
    pads = a.get("pads", [0] * 2 * ndim)
    return tuple(zip(pads[:ndim], pads[ndim:], strict=True)) if word == "notset" else word


def geometry(a: Attributes, ndim: int) -> dict[str, Any]:
    ones = (1,) * ndim
    return {
        "stride": tuple(a.get("strides", ones)),
        "padding": padding_of(a, ndim),
        "dilation": tuple(a.get("dilations", ones)),
    }


def conv(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    ndim = x.ndim - 2
    return function("conv", ndim)(x, w, b, groups=a.get("group", 1), **geometry(a, ndim))


def conv_transpose(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    ndim, word = x.ndim - 2, a.get("auto_pad", b"NOTSET")
    found = geometry({**a, "auto_pad": b"NOTSET"}, ndim)
    extra, size = list(a.get("output_padding", [0] * ndim)), a.get("output_shape")
    if size is None and word.startswith(b"SAME"):
        size = [n * s for n, s in zip(x.shape[2:], found["stride"], strict=True)]
    if size is not None:
        pairs = []
        for i, (n, k, s, d, o) in enumerate(
            zip(x.shape[2:], w.shape[2:], found["stride"], found["dilation"], size, strict=True)
        ):
            total = s * (n - 1) + extra[i] + (k - 1) * d + 1 - o
            extra[i] -= min(total, 0)
            less, more = max(total, 0) // 2, -(-max(total, 0) // 2)
            pairs.append((less, more) if word == b"SAME_UPPER" else (more, less))
        found["padding"] = tuple(pairs)
    return function("conv_transpose", ndim)(x, w, b, output_padding=tuple(extra), groups=a.get("group", 1), **found)


def wide(found: dict[str, Any], kernel: Sequence[int]) -> bool:
    """Tell whether pads are of more than half a window."""
    sizes = ((k - 1) * d + 1 for k, d in zip(kernel, found["dilation"], strict=True))
    pairs = found["padding"]
    return not isinstance(pairs, str) and any(max(pair) > size // 2 for pair, size in zip(pairs, sizes, strict=True))


def by_hand(x: Any, found: dict[str, Any], value: float) -> Any:
    """Return a padded array; `found` is left without padding."""
    pairs, found["padding"] = found["padding"], 0
    return np.pad(x, ((0, 0), (0, 0), *pairs), constant_values=value)


def planes(x: Any, size: int) -> Any:
    """Return where the planes of an array begin in what ONNX's positions count: batch, channels and `size` elements."""
    return np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)) * size


def max_pool(a: Attributes, x: Any, *, results: int = 1) -> Any:
    ndim, kernel = x.ndim - 2, tuple(a["kernel_shape"])
    found, ceil = geometry(a, ndim), bool(a.get("ceil_mode", 0))
    if wide(found, kernel):
        assert results == 1
        x = by_hand(x, found, -np.inf)
    y, positions = function("max_pool", ndim)(x, kernel, ceil_mode=ceil, return_indices=True, **found)
    if results == 1:
        return y
    if a.get("storage_order", 0):
        positions = np.ravel_multi_index(np.unravel_index(positions, x.shape[2:]), x.shape[2:], order="F")
    return y, positions + planes(x, prod(x.shape[2:]))


def average_pool(a: Attributes, x: Any) -> Any:
    ndim, kernel = x.ndim - 2, tuple(a["kernel_shape"])
    found, include = geometry(a, ndim), bool(a.get("count_include_pad", 0))
    options = {"ceil_mode": bool(a.get("ceil_mode", 0)), "count_include_pad": include}
    pool = function("avg_pool", ndim)
    if wide(found, kernel):
        counted = pool(by_hand(np.ones_like(x), dict(found), include), kernel, **options, **{**found, "padding": 0})
        return pool(by_hand(x, found, 0), kernel, **options, **found) / counted
    return pool(x, kernel, **options, **found)


def power_pool(a: Attributes, x: Any) -> Any:
    ndim, kernel, p = x.ndim - 2, tuple(a["kernel_shape"]), a.get("p", 2)
    found = geometry(a, ndim)
    assert not a.get("ceil_mode", 0)
    x = np.abs(by_hand(x, found, 0) if wide(found, kernel) else x)
    if max(found["dilation"]) > 1:
        return (function("avg_pool", ndim)(x**p, kernel, **found) * x.dtype.type(prod(kernel))) ** (1 / p)
    del found["dilation"]
    return function("lp_pool", ndim)(x, p, kernel if ndim > 1 else kernel[0], **found)


def unpool(a: Attributes, x: Any, positions: Any, shape: Any = None) -> Any:
    ndim, kernel, stride = x.ndim - 2, tuple(a["kernel_shape"]), tuple(a["strides"])
    size = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, kernel, strict=True)]
    y = function("max_unpool", ndim)(x, positions - planes(x, prod(size)), kernel, stride)
    if shape is None:
        return y
    # ONNX's positions are those of the smallest result, which lies in the corner of the wanted one.
    return np.pad(y, [(0, n - m) for m, n in zip(y.shape, shape, strict=True)])


def col2im(a: Attributes, x: Any, size: Any, kernel: Any) -> Any:
    size, kernel = tuple(size.tolist()), tuple(kernel.tolist())
    found, taps = geometry(a, len(size)), prod(kernel)
    if len(size) == 2 and all(lo == hi for lo, hi in found["padding"]):
        return gpuconv.fold(
            x, size, kernel, found["dilation"], tuple(lo for lo, _ in found["padding"]), found["stride"]
        )
    # Columns are what a convolution with one filter for each tap of each channel gives: this is its input gradient.
    channels = x.shape[1] // taps
    w = np.tile(np.eye(taps, dtype=x.dtype).reshape(taps, 1, *kernel), (channels, *(1,) * (len(size) + 1)))
    out = [
        (n + lo + hi - d * (k - 1) - 1) // s + 1
        for n, k, (lo, hi), d, s in zip(size, kernel, found["padding"], found["dilation"], found["stride"], strict=True)
    ]
    gradient = function("conv", len(size)).__name__ + "_input_grad"
    shape = (len(x), channels, *size)
    return getattr(gpuconv, gradient)(shape, w, x.reshape(*x.shape[:2], *out), groups=channels, **found)


def deform_conv(a: Attributes, x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None) -> Any:
    return gpuconv.deform_conv2d(x, offset, w, b, mask=mask, **geometry(a, 2))


def conv_integer(a: Attributes, x: Any, w: Any, x_zero: Any = 0, w_zero: Any = 0) -> Any:
    """Zero points, that of the weight one number or one for each filter, are taken off in int32."""
    of_filters = np.asarray(w_zero, np.int32).reshape(-1, *(1,) * (w.ndim - 1))
    return conv(a, x.astype(np.int32) - np.asarray(x_zero, np.int32), w.astype(np.int32) - of_filters)


def quantised_conv(
    a: Attributes, x: Any, x_scale: Any, x_zero: Any, w: Any, w_scale: Any, w_zero: Any, y_scale: Any, y_zero: Any
) -> Any:
    """scaled_conv2d has no zero points: they are taken off before, and put on behind."""
    x8, w8 = (v.astype(np.int16) - np.int16(zero) for v, zero in ((x, x_zero), (w, w_zero)))
    scales = {"input_scale": float(x_scale), "weight_scale": np.float32(w_scale).reshape(-1)}
    if max(np.abs(x8).max(), np.abs(w8).max()) > 127:  # 9 bits
        y = conv(a, x8.astype(np.float64), w8.astype(np.float64)) * (scales["input_scale"] * scales["weight_scale"])
    else:
        y = gpuconv.scaled_conv2d(x8.astype(np.int8), w8.astype(np.int8), **geometry(a, 2), **scales)
    limits = np.iinfo(y_zero.dtype)
    return np.clip(np.rint(y / y_scale) + y_zero, limits.min, limits.max).astype(y_zero.dtype)


def causal_conv(a: Attributes, x: Any, w: Any, b: Any = None, past: Any = None) -> Any:
    activation = {"none": None, "silu": "silu", "swish": "silu"}[a.get("activation", b"none").decode()]
    return gpuconv.causal_conv1d(x, w[:, 0], b, activation=activation, initial_state=past, return_state=True)


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "CausalConvWithState": causal_conv,
    "Col2Im": col2im,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "GlobalAveragePool": lambda a, x: function("adaptive_avg_pool", x.ndim - 2)(x, 1),
    "GlobalMaxPool": lambda a, x: function("adaptive_max_pool", x.ndim - 2)(x, 1),
    "LpPool": power_pool,
    "MaxPool": max_pool,
    "MaxUnpool": unpool,
    "QLinearConv": quantised_conv,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes(family: str) -> None:
    package = importlib.import_module("onnx.backend.test.case.node")
    try:
        importlib.import_module(f"{package.__name__}.{family}")
    except ImportError:
        pytest.skip(f"not run: this onnx has no {family}")
    seen = 0
    for case in package._NodeTestCases:
        node = case.model.graph.node[0]
        if len(case.model.graph.node) > 1 or node.op_type.lower() != family.replace("_", ""):
            continue
        seen += 1
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        for given, expected in case.data_sets:
            rest = iter(given)
            operands = [next(rest) if name else None for name in node.input]
            more = {"results": len(expected)} if node.op_type == "MaxPool" else {}
            found = OPERATORS[node.op_type](attributes, *operands, **more)
            for ours, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
                assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), case.name
                np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.atol, err_msg=case.name)
    assert seen >= FAMILIES[family]
