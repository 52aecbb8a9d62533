"""The general forward kernel against the reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from fprop_cases import (
    BRANCHES,
    DTYPES,
    LAYOUTS,
    SIXTEEN_BIT,
    Case,
    Inputs,
    all_cases,
    as_numpy,
    check_case,
    config_of,
    launch,
    orders_of,
    tiles,
)

import gpuconv
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm, is_flat
from gpuconv.dispatch import record_plans

CASES = all_cases()
FLAT = [replace(case, flat=True) for case in CASES if is_flat(Inputs(case).problem())]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case, orders_of(case))


@pytest.mark.parametrize("case", FLAT, ids=lambda case: case.id)
def test_flat_steps_match_the_reference(case):
    check_case(case, orders_of(case))


def test_flat_cases_cover_what_a_step_does():
    """More than one step, both kinds of bounds, every mode of padding, groups, splits, wide offsets; as planned."""
    assert len(FLAT) >= 30 and {case.ndim for case in FLAT} == {1, 2, 3} and {case.dtype for case in FLAT} == {*DTYPES}
    problems = [Inputs(case).problem() for case in FLAT]
    assert all(FpropImplicitGemm().plan(problem).config["flat"] for problem in problems)
    lengths = [problem.c // problem.groups * prod(problem.kernel) for problem in problems]
    assert sum(length > config_of(FLAT[0])["BLOCK_K"] for length in lengths) >= 10
    assert any(prod(problem.kernel) > 32 for problem in problems) and any(problem.groups > 1 for problem in problems)
    assert any(case.option("index64", False) for case in FLAT)


def test_cases_are_distinct_and_cover_everything():
    distinct = {(case.ndim, case.layout, case.dtype, case.branch) for case in CASES}
    assert len(distinct) == len(CASES) >= 60
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)


def test_cases_have_several_ragged_tiles():
    """At least three tiles of rows, three of columns (or groups) and three reduction steps; 1x1 has its steps in C."""
    for case in CASES:
        problem = Inputs(case).problem()
        rows, columns, steps = tiles(problem, config_of(case))
        assert rows >= 3 and columns >= 3 and steps >= 3, (case.id, rows, columns, steps)
    assert {order for case in CASES for order in orders_of(case)} == {"forward", "reversed", "shuffled"}
    ragged = sum(Inputs(case).problem().k % 16 != 0 for case in CASES)
    assert ragged >= len(CASES) // 2


def test_sixteen_bit_cases_are_planned_as_they_run():
    """Channels that are multiples of 8 come in units of 8, and weights are packed where the case packs them."""
    for layout, branches in SIXTEEN_BIT.items():
        chosen = [case for case in CASES if case.layout == layout and case.branch in branches]
        chosen = [case for case in chosen if case.dtype in ("float16", "bfloat16")]
        assert {(case.ndim, case.branch) for case in chosen} == {(n, branch) for n in (1, 2, 3) for branch in branches}
        for case in chosen:
            config = FpropImplicitGemm().plan(Inputs(case).problem()).config
            assert config["packed"] == case.option("packed", False), case.id
            assert (config["unit_c"] == 8) == (layout != "contiguous"), case.id


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ndim", "branch"), ((1, "grouped"), (2, "grouped"), (3, "grouped"), (1, "packed, three splits"))
)
def test_small_integers_are_exact(ndim, branch, dtype):
    inputs = Inputs(Case(ndim, "mixed", dtype, branch), integers=True)
    inputs.activation = inputs.activation and "relu"
    expected = inputs.call("numpy", torch.float64)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


@pytest.mark.parametrize("activation", ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"))
def test_activations(activation):
    x = torch.linspace(-9, 9, 61, dtype=torch.float64).reshape(1, 1, -1)
    x[..., 3], x[..., 5], x[..., 7] = float("nan"), float("inf"), float("-inf")
    w = torch.ones(1, 1, 1, dtype=torch.float64)
    ours = gpuconv.conv1d(x, w, activation=activation, backend="triton")
    reference = gpuconv.conv1d(x, w, activation=activation, backend="numpy")
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("dtype", DTYPES)
def test_public_function_runs_the_kernel(monkeypatch, ndim, dtype):
    """Through the dispatcher with default tiles, outputs poisoned by the allocator, formats as the reference's."""
    kind = type(gpuconv.arrays.kind_of(torch.empty(0)))
    allocate = kind.empty
    monkeypatch.setattr(kind, "empty", lambda *args: allocate(*args).fill_(float("nan")))
    inputs = Inputs(Case(ndim, "channels_last", dtype, "epilogue"))
    with record_plans() as plans:
        result = inputs.call("triton")
    assert [plan.solver.id for plan in plans] == [FpropImplicitGemm.id]
    expected = inputs.call("numpy")
    assert result.dtype == expected.dtype and result.stride() == expected.stride()
    reference, magnitude = inputs.reference()
    gpuconv.numerics.assert_close(as_numpy(result), reference, magnitude, dtype, inputs.problem().reduction_length)


def test_public_function_packs_and_splits(monkeypatch):
    """Through the dispatcher, all that the library allocates poisoned: the result and the stated workspace, no more."""
    sizes = []
    empty = torch.empty

    def poisoned(*args, **options):
        tensor = empty(*args, **options).fill_(float("nan"))
        sizes.append(tensor.nbytes)
        return tensor

    x, w = torch.randn(1, 64, 5, 6).to(torch.float16), torch.randn(20, 64, 3, 3).to(torch.float16)
    residual = torch.randn(1, 20, 5, 6).to(torch.float16)
    bias = torch.randn(20).to(torch.float16)

    def call(cast, backend):
        options = {"padding": 1, "activation": "relu", "backend": backend}
        return gpuconv.conv2d(cast(x), cast(w), cast(bias), residual=cast(residual), **options)

    monkeypatch.setattr(torch, "empty", poisoned)
    with record_plans() as plans:
        result = call(lambda tensor: tensor, "triton")
    monkeypatch.undo()
    packed, partial = w.nbytes, 2 * 4 * result.numel()
    assert plans[0].config["packed"] and plans[0].config["splits"] == 2
    assert sizes == [packed, partial] and plans[0].workspace == packed + partial
    reference = call(torch.Tensor.double, "numpy").numpy()
    magnitude = gpuconv.conv2d(x.double().abs(), w.double().abs(), bias.double().abs(), padding=1, backend="numpy")
    magnitude = (magnitude + residual.double().abs()).numpy()
    gpuconv.numerics.assert_close(as_numpy(result), reference, magnitude, "float16", 64 * 9)


@pytest.mark.parametrize("shape", ((0, 4, 9, 9), (2, 4, 9, 9)))
@pytest.mark.parametrize("unbatched", (False, True))
def test_empty_batch_and_unbatched(shape, unbatched):
    x = torch.randn(shape)
    x = x[0] if unbatched and shape[0] else x
    w = torch.randn(3, 4, 3, 3)
    result = gpuconv.conv2d(x, w, backend="triton")
    expected = gpuconv.conv2d(x, w, backend="numpy")
    assert result.shape == expected.shape and torch.allclose(result, expected, atol=1e-4)


def test_no_channels():
    assert gpuconv.conv2d(torch.ones(2, 0, 5, 5), torch.ones(3, 0, 3, 3), backend="triton").shape == (2, 0, 3, 3)


def test_numpy_arrays_run_where_asked_for():
    x, w = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    with record_plans() as plans:
        result = gpuconv.conv2d(x, w, backend="triton")
        gpuconv.conv2d(x, w)
    assert isinstance(result, np.ndarray) and (result == 18).all()
    assert [plan.solver.id.split(".")[0] for plan in plans] == ["triton", "numpy"]


def test_refusals_name_the_reason():
    with pytest.raises(gpuconv.NoSolverError, match="computes float16, bfloat16, float32, float64, not int64"):
        gpuconv.conv1d(torch.ones(1, 1, 5, dtype=torch.int64), torch.ones(1, 1, 3, dtype=torch.int64), backend="triton")
    with pytest.raises(gpuconv.NoSolverError, match="solves fprop, not transposed"):
        gpuconv.conv_transpose1d(torch.ones(1, 1, 5), torch.ones(1, 1, 3), backend=FpropImplicitGemm.id)


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_nan_and_inf_reach_only_their_windows(bad):
    x = torch.zeros(1, 3, 11, 11)
    x[0, 1, 5, 5] = bad
    w = torch.ones(2, 3, 3, 3)
    result = gpuconv.conv2d(x, w, padding=1, backend="triton")
    expected = gpuconv.conv2d(x, w, padding=1, backend="numpy")
    assert torch.equal(result.isfinite(), expected.isfinite()) and int((~result.isfinite()).sum()) == 18
