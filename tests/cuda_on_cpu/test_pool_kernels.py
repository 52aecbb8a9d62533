"""What single cases show of the pools in CUDA C++: torch's rules, integers, exact sums, alignment, empty results."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

import fake_cupy
import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pool_cases import DTYPES, Inputs, PoolCase, announce_pools, dispatched, wide_indices

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.cupy import pool as cupy_pool
from gpuconv.backends.cupy import pool_common
from gpuconv.dispatch import select
from gpuconv.normalize.pool_forward import max_call

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _together():
    announce_pools()


@pytest.mark.parametrize("solver", ("window", "block"))
def test_torch_agrees_on_nan_ties_and_minus_infinity(solver):
    """The last NaN of a window, the first of equal maxima, and of nothing but -inf the first inside."""
    kernel = 6 if solver == "block" else 3
    x = torch.full((1, 4, 7, 8), -INF)
    x[0, 1] = torch.arange(56).view(7, 8) % 3
    x[0, 2] = x[0, 1]
    x[0, 2, ::2, ::3] = NAN
    x[0, 3, 3, 3] = INF
    arguments = {"stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True}
    held = harness.on_device(x.double().numpy(), "float32")
    ran = harness.run(gpuconv.max_pool2d, held, kernel, solver=f"cupy.pool.max.fprop.{solver}", **arguments)
    expected = F.max_pool2d(x, kernel, **arguments)
    np.testing.assert_array_equal(ran.results[0], expected[0].numpy())
    np.testing.assert_array_equal(ran.results[1], expected[1].numpy())


@pytest.mark.parametrize("solver", ("window", "block"))
@pytest.mark.parametrize("bad", (NAN, INF))
def test_a_bad_element_reaches_only_its_windows(solver, bad):
    """A sum that moves along by subtraction would turn one infinity into NaN for all later windows."""
    kernel = 6 if solver == "block" else 3
    x = np.ones((1, 1, 12, 13))
    x[0, 0, 4, 5] = bad
    held = harness.on_device(x, "float32")
    ran = harness.run(gpuconv.avg_pool2d, held, kernel, 1, 1, solver=f"cupy.pool.avg.fprop.{solver}")
    theirs = F.avg_pool2d(torch.from_numpy(x).float(), kernel, 1, 1).numpy()
    np.testing.assert_array_equal(np.isnan(ran.result), np.isnan(theirs))
    np.testing.assert_array_equal(np.isinf(ran.result), np.isinf(theirs))


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("family", ("max", "avg", "lp", "adaptive_avg", "adaptive_max"))
def test_gradients_are_torchs(family, ndim):
    """Live torch, in float64, as the second opinion."""
    random = np.random.default_rng(ndim)
    x = np.abs(random.standard_normal((2, 3, *(7, 6, 8)[:ndim]))) + 0.1
    given = torch.from_numpy(x).requires_grad_()
    adaptive, name = family.startswith("adaptive"), f"{family}_pool{ndim}d"
    options = {"return_indices": True} if family.endswith("max") else {}
    arguments = (3,) if adaptive else (2.0, 3, 2) if family == "lp" else (3, 2, 1)
    found = getattr(F, name)(given, *arguments, **options)
    y = found[0] if isinstance(found, tuple) else found
    grad = random.standard_normal(y.shape)
    y.backward(torch.from_numpy(grad))
    on_device, extra = partial(harness.on_device, dtype="float64"), ()
    if adaptive and family.endswith("max"):
        extra = (harness.on_device(found[1].numpy(), "int64"),)
    elif family == "max":
        extra = (*arguments, 1, False, harness.on_device(found[1].numpy(), "int64"))
    elif not adaptive:
        extra = arguments
    suffix = "_with_indices_backward" if family == "max" else "_backward"
    ran = harness.run(getattr(gpuconv, name + suffix), on_device(grad), on_device(x), *extra)
    assert ran.plan.solver.id == f"cupy.pool.{family}.bwd.gather"
    magnitude = np.abs(given.grad.numpy()) + np.abs(grad).max()
    harness.close(ran.result, given.grad.numpy(), magnitude, ran.plan)


@pytest.mark.parametrize("dtype", ("uint8", "int8", "int16", "int32", "int64"))
@pytest.mark.parametrize(("ndim", "branch"), ((1, "window 3 stride 2"), (2, "block 7 by 9"), (3, "window dilated")))
def test_max_of_integers(ndim, branch, dtype):
    """Exact in every integer type, with ties and its smallest number, and with the largest next to 2**53."""
    inputs = Inputs(PoolCase("max", "fprop", ndim, "contiguous", "float64", branch), integers=True)
    limits = np.iinfo(dtype)
    values = np.where(inputs.x < 0, limits.min, np.where(inputs.x > 2, limits.max, inputs.x.astype(np.int64)))
    values = values.astype(dtype)
    ceil = inputs.case.option("ceil", False)
    arguments = (f"max_pool{ndim}d", ndim, inputs.kernel, inputs.stride, inputs.pads, inputs.dilation, ceil, True)

    def pool(x, backend=None):
        return dispatched(max_call, *arguments[:2], x, *arguments[2:], backend=backend)

    expected = pool(values, backend="numpy")
    ran = harness.run(pool, harness.on_device(values, dtype), solver=inputs.case.solver)
    for found, wanted in zip(ran.results, expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


def test_averages_of_int64_are_cut_off_towards_zero():
    x = np.random.default_rng(0).integers(-9, 9, (2, 3, 9, 8))
    for include in (True, False):
        options = {"padding": 1, "ceil_mode": True, "count_include_pad": include}
        ran = harness.run(gpuconv.avg_pool2d, harness.on_device(x, "int64"), 3, 2, **options)
        theirs = F.avg_pool2d(torch.from_numpy(x), 3, 2, **options).numpy()
        assert ran.result.dtype == np.int64 and ran.plan.solver.id.startswith("cupy.")
        np.testing.assert_array_equal(ran.result, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branch", ("window 2 stride 2", "window 3 stride 1", "block global"))
def test_averages_of_small_integers_are_exact(branch, dtype):
    """The sum is exact and the division rounds once, as the exact average rounds to the type."""
    inputs = Inputs(PoolCase("avg", "fprop", 2, "channels_last", dtype, branch), integers=True)
    if dtype in ("float16", "bfloat16"):  # float32 rounds first: only quotients that it holds are sure to round once
        inputs.x = inputs.x * prod(inputs.kernel)
    exact = inputs.forward(inputs.x, backend="numpy")
    ran = inputs.on_device(orders=harness.ORDERS[:2])
    np.testing.assert_array_equal(ran.result.astype(float), harness.as_held(exact, dtype))


def _lanes(ran: harness.Ran) -> set[str]:
    return {kernel.split(", ")[-2] for kernel in ran.kernels}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bytes_at_a_time_where_they_lie_so(dtype):
    """Channels-last with C a multiple of what 16 bytes hold; every other C, layout or stride takes single lanes."""
    lanes = {"float16": 8, "bfloat16": 8, "float32": 4, "float64": 2}[dtype]
    x = np.random.default_rng(1).standard_normal((2, 3 * lanes, 7, 6))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for values, expected in ((last, lanes), (x, 1), (last[:, :-1], 1), (last[:, :lanes], lanes), (last[:, ::2], 1)):
        held = harness.as_held(values, dtype)
        given = harness.on_device(values, dtype)
        ran = harness.run(gpuconv.avg_pool2d, given, 3, 2, 1, orders=harness.ORDERS[:2])
        exact, size = (gpuconv.avg_pool2d(v, 3, 2, 1, backend="numpy") for v in (held, np.abs(held)))
        harness.close(ran.result, exact, size, ran.plan)
        assert _lanes(ran) == {str(expected)}


def test_an_array_that_begins_between_16_bytes():
    """The strides allow wide loads, the address does not: the kernel sees that and reads single elements."""
    x = np.random.default_rng(2).standard_normal((2, 24, 5, 6))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    whole = harness.on_device(last, "float16")
    part = fake_cupy.ndarray(whole.host[:, 3:19], whole.dtype, whole.memory)
    assert part.data.ptr % 16 != 0
    held = harness.as_held(last, "float16")[:, 3:19]
    ran = harness.run(gpuconv.max_pool2d, part, 2, 2)
    assert _lanes(ran) == {"8"}
    np.testing.assert_array_equal(ran.result.astype(float), gpuconv.max_pool2d(held, 2, 2, backend="numpy"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    (("max_pool2d", (3, 2, 1)), ("avg_pool2d", (3, 2)), ("lp_pool2d", (2.0, 3)), ("adaptive_avg_pool2d", (2,)),
     ("adaptive_max_pool2d", (0,)), ("adaptive_avg_pool2d", ((0, 3),))),
)  # fmt: skip
def test_empty_batches_and_results(name, arguments):
    """Nothing is launched for a result without elements; its shape, type and format are those of the NumPy backend."""
    shape = (2, 3, 7, 6) if arguments in ((0,), ((0, 3),)) else (0, 3, 7, 6)
    ran = harness.run(getattr(gpuconv, name), harness.on_device(np.zeros(shape), "float32"), *arguments)
    theirs = getattr(gpuconv, name)(np.zeros(shape, np.float32), *arguments, backend="numpy")
    assert ran.results[0].shape == theirs.shape and ran.results[0].dtype == theirs.dtype and not ran.launches


def test_gradient_of_an_empty_result_is_refused():
    """As torch refuses it; that of an empty batch is an empty batch."""
    x, grad = np.ones((2, 3, 5, 4)), np.ones((2, 3, 0, 2))
    with pytest.raises(RuntimeError, match="non-empty"):
        harness.run(gpuconv.adaptive_avg_pool2d_backward, *(harness.on_device(a, "float32") for a in (grad, x)))
    arrays = (harness.on_device(a, "float32") for a in (np.ones((0, 3, 2, 2)), x[:0]))
    assert harness.run(gpuconv.adaptive_avg_pool2d_backward, *arrays).result.shape == (0, 3, 5, 4)


@pytest.mark.parametrize("layout", (CONTIGUOUS, CHANNELS_LAST))
@pytest.mark.parametrize("kind", ("contiguous", "transposed"))
def test_a_global_pool_is_one_line_where_it_lies_so(layout, kind):
    """A plane that is evenly spaced is pooled as a line; rows that lie apart are found by division."""
    x = np.random.default_rng(3).standard_normal((2, 5, 9, 11))
    values = x.swapaxes(2, 3) if kind == "transposed" else x
    if layout == CHANNELS_LAST:
        values = np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)
    held = harness.as_held(values, "float32")
    for family in ("avg", "max"):
        ran = harness.run(
            getattr(gpuconv, f"adaptive_{family}_pool2d"), harness.on_device(values, "float32"), 1,
            solver=f"cupy.pool.adaptive_{family}.fprop.block",
        )  # fmt: skip
        exact = getattr(gpuconv, f"adaptive_{family}_pool2d")(held, 1, backend="numpy")
        size = np.abs(held).mean((2, 3), keepdims=True) if family == "avg" else np.abs(exact)
        harness.close(ran.result, exact, size, ran.plan)
    solver = next(s for s in cupy_pool.SOLVERS if s.id == "cupy.pool.adaptive_avg.fprop.block")
    strides = tuple(step // 8 for step in values.strides)
    (launch,) = solver.launches(ran.plan.problem, {"x": strides}, {"strips": 8})
    even = kind == "contiguous" or layout == CHANNELS_LAST
    assert (int(launch.params["w"]) == 99) == even and (int(launch.params["h"]) == 1) == even


def _problem(function, shape, *arguments, **options):
    return gpuconv.explain(function, fake_cupy.empty(shape, np.float32), *arguments, **options).problem


def test_which_solver_runs():
    for expected, call in (
        ("max.fprop.window", (gpuconv.max_pool2d, (8, 64, 28, 28), 3, 2)),
        ("avg.fprop.block", (gpuconv.avg_pool2d, (1, 8, 64, 64), 64)),
        ("adaptive_avg.fprop.block", (gpuconv.adaptive_avg_pool2d, (1, 16, 56, 56), 1)),
        ("adaptive_max.fprop.window", (gpuconv.adaptive_max_pool2d, (2, 16, 14, 14), 7)),
        ("lp.fprop.window", (gpuconv.lp_pool2d, (2, 16, 14, 14), 2.0, 2)),
    ):
        function, shape, *arguments = call
        found = gpuconv.explain(function, fake_cupy.empty(shape, np.float32), *arguments)
        assert found.solver == f"cupy.pool.{expected}"
    refused = gpuconv.explain(gpuconv.max_pool2d, fake_cupy.empty((2, 3, 8, 8), np.float32), 3).candidates
    reasons = {candidate.solver.id: candidate.reason for candidate in refused}
    assert "9 elements" in reasons["cupy.pool.max.fprop.block"]
    assert "solves avg (fprop)" in reasons["cupy.pool.avg.fprop.window"]
    far = replace(_problem(gpuconv.max_pool1d, (1, 1, 8), 2), stride=(2**31,))
    assert all(str(2**31) in str(s.why_not(far)) for s in cupy_pool.SOLVERS if s.id.startswith("cupy.pool.max.fprop.w"))


def test_64_bit_indices_where_32_may_not_do():
    """Offsets, planes, products of adaptive windows, and windows that reach far into the padding."""
    small = _problem(gpuconv.max_pool2d, (2, 3, 8, 8), 2)
    dense = {"x": (192, 64, 8, 1)}
    assert not pool_common.wide_index(small, dense)
    assert pool_common.wide_index(small, {"x": (192, 64, 2**30, 1)})
    assert pool_common.wide_index(small, {"x": (192, 64, -(2**30), 1)})
    assert pool_common.wide_index(replace(small, n=2**24), dense)
    assert pool_common.wide_index(replace(small, dilation=(2**31, 1)), dense)
    adaptive = _problem(gpuconv.adaptive_avg_pool1d, (1, 1, 50000), 40000)
    assert not pool_common.wide_index(adaptive, {"x": (1, 1, 1)})
    assert pool_common.wide_index(replace(adaptive, output_size=(45000,)), {"x": (1, 1, 1)})
    (launch,) = select(small).solver.launches(small, {"x": (192, 64, 2**30, 1)}, {})
    assert launch.kernel == "pool_max_fprop<float, Strided, 1, true>" and launch.params["x_stride_h"] == 2**30


def test_offsets_beyond_32_bits():
    """Two elements more than 2**31 apart, in memory of which only their pages are ever touched."""
    step = 2**31 + 8
    host = np.zeros(step + 1, np.int8)
    host[0], host[step] = 3, 5
    view = np.lib.stride_tricks.as_strided(host, (1, 1, 2), (step, step, step))
    x = fake_cupy.ndarray(view, np.dtype(np.int8), fake_cupy.Memory(host[:1], host[:1], host[:1] != 0, False))
    ran = harness.run_once(gpuconv.max_pool1d, x, 2, return_indices=True, solver="cupy.pool.max.fprop.window")
    assert ran.kernels == {"pool_max_fprop<signed char, Strided, 1, true>"}
    assert ran.results[0].ravel() == [5] and ran.results[1].ravel() == [1]


def test_every_launch_is_announced():
    """A kernel that no solver lists would never be compiled ahead of time."""
    pairs = harness.instantiations_of(cupy_pool.SOLVERS)
    assert len(pairs) <= 260 and all(source.startswith("pool_") for source, _ in pairs)
    assert {kernel.endswith("true>") for _, kernel in pairs} == {True, False}
    with wide_indices():
        inputs = Inputs(PoolCase("lp", "bwd", 2, "contiguous", "float32", "gather 64-bit"))
        assert {("pool_sum", kernel) for kernel in inputs.on_device(harness.ORDERS[:1]).kernels} <= pairs
