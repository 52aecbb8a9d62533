"""unfold and fold of CuPy's arrays: what NumPy's have, by the CUDA kernels, and what changes of them is noticed."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import product
from unittest import mock

import fake_cupy
import harness
import numpy as np
import pytest
import torch
from pool_cases import announce_pools, some_orders

import gpuconv
from gpuconv.backends.cupy import columns
from gpuconv.numerics import assert_close

DTYPES = ("float16", "bfloat16", "float32", "float64")
SOLVERS = {"unfold": "cupy.pool.unfold.fprop.copy", "fold": "cupy.pool.fold.fprop.gather"}
CASES = [(function, number) for function in SOLVERS for number in range(64)]


@pytest.fixture(autouse=True)
def _together():
    announce_pools()


def drawn(number: int) -> tuple[np.random.Generator, tuple[int, ...], dict]:
    """Return a shape and options; some windows are larger than the image, which padding makes room for."""
    rng = np.random.default_rng(number)
    kernel, stride = (tuple(int(k) for k in rng.integers(1, 4, 2)) for _ in range(2))
    dilation = tuple(int(k) for k in rng.integers(1, 3, 2))
    padding = tuple(int(k) for k in rng.integers(0, 3, 2))
    size = [
        max(int(rng.integers(1, 9)), step * (tap - 1) + 1 - 2 * pad)
        for tap, step, pad in zip(kernel, dilation, padding, strict=True)
    ]
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 5)), *size)
    return rng, shape, {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}


def laid_out(array: np.ndarray, number: int) -> np.ndarray:
    """Return the same values in another order of memory."""
    if number % 4 == 1:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if number % 4 == 2:
        return np.ascontiguousarray(np.repeat(array, 2, -1))[..., ::2]
    return np.broadcast_to(array[:1], array.shape) if number % 4 == 3 else array


def check(function: str, number: int, dtype: str | None = None, wide: bool | None = None) -> None:
    rng, shape, options = drawn(number)
    dtype, wide = dtype or DTYPES[number % 4], number % 3 == 0 if wide is None else wide
    given = rng.standard_normal(shape)
    if function == "fold":
        options["output_size"] = shape[2:]
        known = {name: value for name, value in options.items() if name != "output_size"}
        given = rng.standard_normal(gpuconv.unfold(given, **known).shape)
    given = harness.as_held(laid_out(given, number // 4), dtype)
    run = partial(getattr(gpuconv, function), **options)
    with mock.patch.object(columns, "wide_index", lambda *_: True) if wide else nullcontext():
        ran = harness.run(
            run, harness.on_device(given, dtype), solver=SOLVERS[function], orders=some_orders(f"{function} {number}")
        )
    assert all(kernel.endswith("true>") == wide for kernel in ran.kernels), ran.kernels
    exact = getattr(torch.nn.functional, function)(torch.from_numpy(np.ascontiguousarray(given)), **options).numpy()
    if function == "unfold":
        np.testing.assert_array_equal(ran.result, exact)
        return
    magnitude = torch.nn.functional.fold(torch.from_numpy(np.abs(given)), **options).numpy()
    assert_close(ran.result, exact, magnitude, dtype, ran.plan.problem.reduction_length)


@pytest.mark.parametrize(("function", "number"), CASES)
def test_matches_torch(function, number):
    check(function, number)


def test_cases_are_distinct():
    found = {str(drawn(number)[1:]) for _, number in CASES}
    assert len(found) == 64
    dilated = [number for _, number in CASES if max(drawn(number)[2]["dilation"]) > 1]
    assert len(dilated) > 20


@pytest.mark.parametrize("function", SOLVERS)
def test_what_is_not_finite_stays_in_its_windows(function):
    options = {"kernel_size": (2, 3), "padding": 1, "dilation": (1, 2), "stride": (2, 1)}
    given = np.ones((2, 3, 5, 6))
    if function == "fold":
        given, options["output_size"] = gpuconv.unfold(given, **options), (5, 6)
    given[0, 1, 2] = np.nan
    given[1, 0, 0] = np.inf
    ran = harness.run(partial(getattr(gpuconv, function), **options), harness.on_device(given, "float32"))
    exact = getattr(torch.nn.functional, function)(torch.from_numpy(given), **options).numpy()
    np.testing.assert_array_equal(ran.result, exact)


@pytest.mark.parametrize("function", SOLVERS)
@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (2, 2, 4, 5)])
def test_no_images_and_no_batch(function, shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    options = {"kernel_size": 2}
    if function == "fold":
        x, options["output_size"] = gpuconv.unfold(x, 2), shape[2:]
    for given in (x, *([x[0]] if len(x) else [])):
        found = getattr(gpuconv, function)(harness.on_device(given, "float32"), **options)
        right = getattr(gpuconv, function)(given, **options)
        assert found.shape == right.shape
        np.testing.assert_array_equal(fake_cupy.asnumpy(found), right)


MUTANTS = {
    "the last row of windows is left out": (r"i_p < over_h\.end", "i_p + 1 < over_h.end", "fold"),
    "taps between those of a dilated window count": (r"if \(s < 0\) continue;", "", "fold"),
    "rows and columns of the window change places": (r"\(r \* p\.s \+ s\)", "(s * p.r + r)", "fold"),
    "padding reads the image": (r"i_h >= 0 && i_h < p\.h && ", "i_h < p.h && ", "unfold"),
    "dilation is forgotten": (r"s \* p\.dilation_w;", "s;", "unfold"),
    "the stride of rows is that of columns": (r"i_p \* p\.stride_h", "i_p * p.stride_w", "unfold"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    pattern, replacement, function = MUTANTS[name]
    numbers = range(2, 64, 4)  # of float32
    with harness.mutant(pattern, replacement):
        assert any(harness.is_noticed(partial(check, function, number, wide=False)) for number in numbers)


def test_every_kernel_ran_is_known():
    pairs = set().union(*(solver.instantiations() for solver in columns.SOLVERS))
    names = {f"pool_{function}_fprop" for function, _ in product(SOLVERS, DTYPES)}
    assert len(pairs) == 16 and {kernel.partition("<")[0] for _, kernel in pairs} == names
