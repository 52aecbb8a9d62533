"""With NumPy and nothing else: what an installation without extras must be able to do. Imports no other library."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from itertools import product

import numpy as np

import gpuconv


def correlate(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the plain convolution of (N, C, H, W) with (K, C, R, S), by its definition."""
    r, s = w.shape[2:]
    p, q = x.shape[2] - r + 1, x.shape[3] - s + 1
    y = np.zeros((x.shape[0], w.shape[0], p, q))
    for i, j in product(range(r), range(s)):
        y += np.einsum("nchw,kc->nkhw", x[:, :, i : i + p, j : j + q], w[:, :, i, j])
    return y


def test_convolution_and_its_gradients(rng):
    x, w = rng.integers(-3, 4, (2, 3, 6, 7)).astype(float), rng.integers(-3, 4, (4, 3, 3, 2)).astype(float)
    y = gpuconv.conv2d(x, w)
    np.testing.assert_array_equal(y, correlate(x, w))
    dy = rng.integers(-3, 4, y.shape).astype(float)
    flipped = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    dx = correlate(np.pad(dy, ((0, 0), (0, 0), (2, 2), (1, 1))), flipped)
    np.testing.assert_array_equal(gpuconv.conv2d_input_grad(x.shape, w, dy), dx)
    np.testing.assert_array_equal(gpuconv.conv_transpose2d(dy, w), dx)
    dw = correlate(x.swapaxes(0, 1), dy.swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(gpuconv.conv2d_weight_grad(x, w.shape, dy), dw)


def test_pools(rng):
    x = rng.permutation(2 * 3 * 6 * 8).reshape(2, 3, 6, 8).astype(float)
    windows = x.reshape(2, 3, 3, 2, 4, 2).swapaxes(3, 4).reshape(2, 3, 3, 4, 4)
    np.testing.assert_array_equal(gpuconv.max_pool2d(x, 2), windows.max(-1))
    np.testing.assert_allclose(gpuconv.avg_pool2d(x, 2), windows.mean(-1), rtol=1e-15)
    np.testing.assert_allclose(gpuconv.adaptive_avg_pool2d(x, 1)[..., 0, 0], x.mean((2, 3)), rtol=1e-14)


def test_causal_and_separable_convolutions(rng):
    x, w = rng.integers(-3, 4, (2, 3, 9)).astype(float), rng.integers(-3, 4, (3, 4)).astype(float)
    padded = np.pad(x, ((0, 0), (0, 0), (3, 0)))
    y = sum(w[:, tap, None] * padded[..., tap : tap + 9] for tap in range(4))
    np.testing.assert_array_equal(gpuconv.causal_conv1d(x, w), y)
    ids = np.repeat([[0, 1, -1]], 3, 1)[[0, 0]]
    apart = [gpuconv.causal_conv1d(x[..., :3], w), gpuconv.causal_conv1d(x[..., 3:6], w), 0 * x[..., 6:]]
    np.testing.assert_array_equal(gpuconv.causal_conv1d(x, w, seq_idx=ids), np.concatenate(apart, -1))
    state = np.zeros((2, 3, 5))
    steps = [gpuconv.causal_conv1d_update(x[..., at], state, w, cache_seqlens=np.full(2, at)) for at in range(9)]
    np.testing.assert_array_equal(np.stack(steps, -1), y)
    image, column, row = (rng.integers(-3, 4, s).astype(float) for s in ((2, 3, 6, 7), (3, 1, 3, 1), (3, 1, 1, 2)))
    z = gpuconv.separable_conv2d(image, column, row, groups=3)
    full = np.zeros((3, 3, 3, 2))
    full[range(3), range(3)] = (column * row)[:, 0]
    np.testing.assert_array_equal(z, correlate(image, full))
    mixed = gpuconv.depthwise_separable_conv2d(image, column * row, np.ones((4, 3, 1, 1)), between="relu")
    np.testing.assert_array_equal(mixed, np.maximum(z, 0).sum(1, keepdims=True).repeat(4, 1))


def test_a_call_is_explained():
    found = gpuconv.explain(gpuconv.conv2d, np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)))
    assert found.solver.startswith("numpy.conv.fprop.") and found.solver in str(found)


def test_the_command_line_answers():
    """Where it needs more than NumPy it says what, and how to get it."""
    done = subprocess.run([sys.executable, "-m", "gpuconv", "info"], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and ("numpy" in said.lower() if done.returncode == 0 else "pip install" in said)
    assert done.returncode == 0 or find_spec("typer") is None


def test_deformable_convolutions(rng):
    x, w = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((6, 2, 3, 2))
    offset, mask = np.zeros((2, 24, 4, 6)), np.full((2, 12, 4, 6), 0.5)
    y = gpuconv.deform_conv2d(x, offset, w, mask=mask)
    np.testing.assert_allclose(y, gpuconv.conv2d(x, w, groups=2) / 2, rtol=1e-12, atol=1e-12)
    offset[:, 1::2] = 1  # one element to the right
    moved = gpuconv.deform_conv2d(x, offset, w, mask=mask)
    np.testing.assert_allclose(moved[..., :-1], y[..., 1:], rtol=1e-12, atol=1e-12)


def test_scaled_convolutions(rng):
    x, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((2, 4, 6, 7), (3, 4, 3, 2)))
    scales = {"input_scale": 0.5, "weight_scale": np.array([1, 2, 4], np.float32)}
    y = gpuconv.scaled_conv2d(x, w, **scales)
    sums = gpuconv.conv2d(x.astype(np.int64), w.astype(np.int64))
    np.testing.assert_array_equal(y, (sums * np.array([0.5, 1, 2])[:, None, None]).astype(np.float32), strict=True)
    z = gpuconv.scaled_conv2d(x, w, **scales, output_scale=512, out_dtype=np.int8)
    np.testing.assert_array_equal(z, np.clip(np.rint(y / 512), -128, 127).astype(np.int8), strict=True)
