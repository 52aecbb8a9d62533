"""Edges of the convolution kernels that no case table has: empty arrays, NaN, unaligned views, and second order."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest
from conv_cases import weight_and_bias_grad, with_layout
from fake_cupy import asnumpy, guarded
from harness import as_held, close, on_device, run, run_once

import gpuconv
from gpuconv.backends.cupy.conv import SOLVERS, FpropTiled
from gpuconv.backends.cupy.conv_common import variants
from gpuconv.errors import NoSolverError


@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_empty_batch(dtype):
    w, none = on_device(np.ones((3, 4, 3, 3)), dtype), on_device(np.ones((0, 3, 7, 7)), dtype)
    assert run_once(gpuconv.conv2d, on_device(np.ones((0, 4, 9, 9)), dtype), w).result.shape == (0, 3, 7, 7)
    assert run_once(gpuconv.conv2d_input_grad, (0, 4, 9, 9), w, none).result.shape == (0, 4, 9, 9)
    assert run_once(gpuconv.conv_transpose2d, none, w).result.shape == (0, 4, 9, 9)
    x = on_device(np.ones((0, 4, 9, 9)), dtype)
    of_weight = run_once(gpuconv.conv2d_weight_grad, x, (3, 4, 3, 3), none).result
    assert of_weight.shape == (3, 4, 3, 3) and not of_weight.any()


def test_no_channels():
    x, w = on_device(np.ones((2, 0, 5, 5)), "float32"), on_device(np.ones((3, 0, 3, 3)), "float32")
    result = run_once(gpuconv.conv2d, x, w).result
    assert result.shape == gpuconv.conv2d(np.ones((2, 0, 5, 5)), np.ones((3, 0, 3, 3))).shape and not result.any()
    y = on_device(np.ones((2, 3, 3, 3)), "float32")
    options = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    of_weight, of_bias = run_once(weight_and_bias_grad, x, (3, 0, 3, 3), y, **options).results
    assert of_weight.shape == (3, 0, 3, 3) and of_bias.tolist() == [18, 18, 18]


@pytest.mark.parametrize("unbatched", (False, True))
def test_output_padding_gets_the_bias(unbatched):
    y, w, bias = np.arange(15.0).reshape(3, 5) - 7, np.arange(12.0).reshape(3, 2, 2) - 5, np.array([0.5, -2])
    arrays = [on_device(values, "float32") for values in (y if unbatched else y[None], w, bias)]
    options = {"stride": 4, "output_padding": 3, "padding": 1}
    result = run(gpuconv.conv_transpose1d, *arrays, **options).result
    expected = gpuconv.conv_transpose1d(y, w, bias, **options, backend="numpy")
    assert np.array_equal(result, expected if unbatched else expected[None])
    assert np.array_equal(result.reshape(2, -1)[:, -2:], np.repeat(bias[:, None], 2, 1))  # no tap reaches it


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_nan_and_inf_reach_only_their_windows(bad):
    values, w = np.zeros((1, 3, 11, 11)), np.ones((2, 3, 3, 3))
    values[0, 1, 5, 5] = bad
    result = run(gpuconv.conv2d, on_device(values, "float32"), on_device(w, "float32"), padding=1).result
    assert (~np.isfinite(result)).sum() == 18 and not np.isfinite(result[0, :, 4:7, 4:7]).any()
    grad = np.zeros((1, 3, 6, 6))
    grad[0, 1, 3, 3] = bad
    arrays = on_device(np.ones((3, 2, 3, 3)), "float32"), on_device(grad, "float32")
    result = run(gpuconv.conv2d_input_grad, (1, 2, 11, 11), *arrays, stride=2, padding=1).result
    exact = gpuconv.conv2d_input_grad((1, 2, 11, 11), np.ones((3, 2, 3, 3)), grad, stride=2, padding=1)
    assert np.array_equal(np.isfinite(result), np.isfinite(exact)) and (~np.isfinite(result)).sum() == 18


@pytest.mark.parametrize("activation", ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"))
def test_activations_keep_nan_and_saturate(activation):
    values = np.array([np.nan, -np.inf, -100.0, -3.0, -0.5, 0.0, 0.5, 3.0, 100.0]).reshape(1, 1, -1)
    result = run_once(
        gpuconv.conv1d, on_device(values, "float32"), on_device(np.ones((1, 1, 1)), "float32"), activation=activation
    ).result
    expected = gpuconv.conv1d(values, np.ones((1, 1, 1)), activation=activation)
    finite = np.isfinite(values[0, 0])
    assert np.isnan(result[0, 0, 0])
    assert np.allclose(result[0, 0, finite], expected[0, 0, finite], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_vectors_that_start_anywhere(dtype):
    """Channels lie in runs of whole vectors, but the first is not at a multiple of 16 bytes: read one by one."""
    rng = np.random.default_rng(3)
    wide = with_layout(rng.standard_normal((2, 24, 6, 7)), "channels_last")
    memory = guarded(wide, dtype)
    x = fake_cupy.ndarray(memory.host[:, 3:19], memory.dtype, memory.memory)
    assert x.data.ptr % 16 and all(step % 16 == 0 for step in (x.strides[0], *x.strides[2:]))
    exact_x = as_held(wide, dtype)[:, 3:19]
    w = as_held(with_layout(rng.standard_normal((40, 16, 3, 3)), "channels_last"), dtype)
    ran = run(gpuconv.conv2d, x, on_device(w, dtype), padding=1, solver=FpropTiled.id)
    assert any("VECTOR" in kernel for kernel in ran.kernels)
    exact = gpuconv.conv2d(exact_x, w, padding=1, backend="numpy")
    close(ran.result, exact, gpuconv.conv2d(abs(exact_x), abs(w), padding=1, backend="numpy"), ran.plan)


def test_expanded_gradient():
    """The gradient of a sum is one number seen everywhere: every stride is 0."""
    x = np.random.default_rng(4).standard_normal((2, 3, 8, 9))
    grad = np.broadcast_to(np.ones((1, 1, 1, 1)), (2, 4, 6, 7))
    w = np.random.default_rng(5).standard_normal((4, 3, 3, 3))
    ran = run(gpuconv.conv2d_weight_grad, on_device(x, "float64"), w.shape, on_device(grad, "float64"))
    assert np.allclose(ran.result, gpuconv.conv2d_weight_grad(x, w.shape, np.ascontiguousarray(grad)), rtol=1e-12)
    ran = run(gpuconv.conv2d_input_grad, x.shape, on_device(w, "float64"), on_device(grad, "float64"))
    assert np.allclose(ran.result, gpuconv.conv2d_input_grad(x.shape, w, np.ascontiguousarray(grad)), rtol=1e-12)


def test_second_order_by_the_gradient_functions():
    """The derivatives of a gradient are the other passes: a penalty on the input's gradient, differentiated by hand.

    With g = dgrad(dy, w) and the penalty sum(g * v), its derivative by dy is fprop(v, w) and by w it is wgrad(v, dy).
    The penalty is linear in either, so each derivative times what it is by gives the penalty again.
    """
    rng = np.random.default_rng(6)
    x_shape, w_shape, y_shape = (2, 4, 9, 8), (6, 2, 3, 3), (2, 6, 5, 4)
    options = {"stride": 2, "padding": 1, "groups": 2}
    w, dy, v = (rng.standard_normal(shape) for shape in (w_shape, y_shape, x_shape))
    on_w, on_dy, on_v = (on_device(values, "float64") for values in (w, dy, v))
    gradient = run(gpuconv.conv2d_input_grad, x_shape, on_w, on_dy, **options).result
    by_dy = run(gpuconv.conv2d, on_v, on_w, **options).result
    by_w = run(gpuconv.conv2d_weight_grad, on_v, w_shape, on_dy, **options).result
    penalty = (gradient * v).sum()
    assert np.isclose((by_dy * dy).sum(), penalty, rtol=1e-12) and np.isclose((by_w * w).sum(), penalty, rtol=1e-12)


def test_results_feed_the_next_call():
    """What one call allocated is the next one's input, strides included."""
    rng = np.random.default_rng(7)
    x = with_layout(rng.integers(-2, 3, (1, 4, 7, 7)).astype(float), "channels_last")
    w = rng.integers(-2, 3, (5, 4, 3, 3)).astype(float)
    first = gpuconv.conv2d(on_device(x, "float32"), on_device(w, "float32"), padding=1, backend="cupy")
    second = gpuconv.conv_transpose2d(first, on_device(w, "float32"), padding=1, backend="cupy")
    expected = gpuconv.conv_transpose2d(gpuconv.conv2d(x, w, padding=1), w, padding=1)
    assert np.array_equal(asnumpy(second), expected)


def test_refusals_name_the_reason():
    x, w = on_device(np.ones((1, 1, 5)), "int64"), on_device(np.ones((1, 1, 3)), "int64")
    with pytest.raises(NoSolverError, match="computes float16, bfloat16, float32, float64, not int64"):
        gpuconv.conv1d(x, w, backend="cupy")
    floats = on_device(np.ones((1, 1, 5)), "float32"), on_device(np.ones((1, 1, 3)), "float32")
    with pytest.raises(NoSolverError, match="solves fprop, not transposed"):
        gpuconv.conv_transpose1d(*floats, backend=FpropTiled.id)


def test_instantiations_are_few_and_have_every_variant():
    for solver in SOLVERS:
        found = solver.instantiations()
        assert len(set(found)) == len(found) <= 70
    for result in "ywx":
        found = variants(result)
        assert len(found) == len(set(found))
        assert {variant.tile for variant in found if variant.wide or variant.padded} == {"medium"}
        assert any(variant.wide and variant.tensor for variant in found) == (result != "x")
