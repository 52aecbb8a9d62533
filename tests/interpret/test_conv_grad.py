"""The gradient kernels and transposed convolution beside their cases: coverage, exactness, workspace, refusals."""

from __future__ import annotations

from math import prod

import pytest
import torch
from grad_cases import (
    BRANCHES,
    DTYPES,
    LAYOUTS,
    TILE,
    GradCase,
    GradInputs,
    all_cases,
    as_numpy,
    check_case,
    config_of,
    counted_products,
    launch,
    orders_of,
    taps_of_phases,
    tiles,
)

import gpuconv
from gpuconv.backends.triton import conv_grad
from gpuconv.backends.triton.conv_grad import DgradImplicitGemm, WgradSplitK
from gpuconv.backends.triton.interpreter import repair_interpreter
from gpuconv.dispatch import record_plans

CASES = {kind: all_cases(kind) for kind in BRANCHES}


@pytest.mark.parametrize("kind", CASES)
def test_cases_are_distinct_and_cover_everything(kind):
    cases = CASES[kind]
    distinct = {(case.ndim, case.layout, case.dtype, case.branch) for case in cases}
    assert len(distinct) == len(cases) >= 100
    for field, values in (("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES[kind])):
        assert {(getattr(case, field), case.ndim) for case in cases} == {
            (v, ndim) for v in values for ndim in (1, 2, 3)
        }
    assert {order for case in cases for order in orders_of(case)} == {"forward", "reversed", "shuffled"}
    twice = [case for case in cases if len(orders_of(case)) == 2]
    assert len(twice) >= len(cases) // 4 and {case.ndim for case in twice} == {1, 2, 3}


@pytest.mark.parametrize("kind", CASES)
def test_cases_have_several_ragged_tiles(kind):
    """At least three tiles of rows, three of columns (or groups) and three reduction steps."""
    ragged = 0
    for case in CASES[kind]:
        problem = GradInputs(case).problem()
        counts = tiles(problem, config_of(case))
        assert min(counts) >= 3, (case.id, counts)
        ragged += (problem.k if kind == "wgrad" else problem.c) // problem.groups % TILE["BLOCK_N"] != 0
    assert ragged >= len(CASES[kind]) // 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("ndim", (1, 2))
def test_small_integers_are_exact(ndim, kind, dtype):
    branch = "strided" if kind == "wgrad" else "stride 2 dilation 3"
    inputs = GradInputs(GradCase(kind, ndim, "mixed", dtype, branch), integers=True)
    expected = inputs.call("numpy", torch.float64)
    result, *of_bias = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())
    assert len(of_bias) == (kind == "wgrad")
    for exact in of_bias:
        assert exact.double().tolist() == inputs.bias_reference()[0].tolist()


@pytest.mark.parametrize("kind", CASES)
def test_channels_in_runs_of_8(monkeypatch, kind):
    """Sizes and strides that 8 divides and 16 does not come in units of 8."""
    launches = []
    original = conv_grad.launch_kernel

    def recording(*args):
        launches.append(args[4])
        original(*args)

    monkeypatch.setattr(conv_grad, "launch_kernel", recording)
    grouped = "units of 8, one tap" if kind == "wgrad" else "units of 8, grouped, stride 2"
    for ndim, dtype, branch in ((1, "bfloat16", grouped), (2, "float16", "units of 8"), (3, "float32", grouped)):
        launches.clear()
        case = GradCase(kind, ndim, "channels_last", dtype, branch)
        check_case(case, orders=("forward",))
        assert launches[0]["UNIT_C"] == launches[0]["UNIT_K"] == 8, case.id


@pytest.mark.parametrize("branch", ("stride 2", "stride 4 dilation 6", "stride 3 dilation 2", "stride over kernel"))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_dgrad_multiplies_only_the_taps_of_each_phase(ndim, branch):
    """The products formed are those of the dense convolution of each phase; phases with most of them come first."""
    inputs = GradInputs(GradCase("dgrad", ndim, "contiguous", "float32", branch))
    problem = inputs.problem()
    repair_interpreter()
    with counted_products() as products:
        launch(inputs, problem, "forward")
    chunks = -(-(problem.k // problem.groups) // TILE["BLOCK_K"])
    columns = -(-(problem.c // problem.groups) // TILE["BLOCK_N"]) * problem.groups
    taps, expected = [], 0
    for start, phase in taps_of_phases(problem):
        axes = zip(problem.input_size, start, problem.stride, strict=True)
        rows = problem.n * prod(len(range(first, size, stride)) for size, first, stride in axes)
        expected += -(-rows // TILE["BLOCK_M"]) * columns * len(phase) * chunks
        taps.append(len(phase))
    assert sum(products) == expected
    assert products[0] == max(products) == max(taps) * chunks and products[-1] in (0, min(taps) * chunks)


@pytest.mark.parametrize("ndim", (1, 2, 3))
@pytest.mark.parametrize("kind", CASES)
def test_public_function_runs_the_kernel(monkeypatch, kind, ndim):
    """Through the dispatcher with default tiles, results poisoned by the allocator, formats as the reference's."""
    array_kind = type(gpuconv.arrays.kind_of(torch.empty(0)))
    allocate = array_kind.empty
    monkeypatch.setattr(array_kind, "empty", lambda *args: allocate(*args).fill_(float("nan")))
    inputs = GradInputs(GradCase(kind, ndim, "channels_last", "float32", "grouped"))
    with record_plans() as plans:
        result = inputs.call("triton")
    assert [plan.solver.id for plan in plans] == [(WgradSplitK if kind == "wgrad" else DgradImplicitGemm).id]
    expected = inputs.call("numpy")
    assert result.dtype == expected.dtype and result.stride() == expected.stride()
    gpuconv.numerics.assert_close(as_numpy(result), *inputs.reference(), "float32", inputs.problem().reduction_length)


def _wgrad_plan(x, w_shape, grad_output):
    with record_plans() as plans:
        gpuconv.conv2d_weight_grad(x, w_shape, grad_output, backend="triton")
    return plans[0]


@pytest.mark.parametrize(("dtype", "size"), ((torch.float16, 4), (torch.float32, 4), (torch.float64, 8)))
def test_wgrad_states_and_bounds_its_workspace(monkeypatch, dtype, size):
    """Partial sums are allocated as the plan says, no larger than the limit; without room there is one split."""
    x, grad_output = torch.ones(4, 3, 34, 34, dtype=dtype), torch.ones(4, 5, 32, 32, dtype=dtype)
    one_split = 5 * 3 * 9 * size
    allocated = []
    empty = torch.empty

    def recording(*args, **options):
        result = empty(*args, **options)
        allocated.append(result.nbytes)
        return result

    monkeypatch.setattr(torch, "empty", recording)
    for limit in (1 << 28, 4 * one_split, 3 * one_split - 1, one_split, 0):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        allocated.clear()
        plan = _wgrad_plan(x, (5, 3, 3, 3), grad_output)
        splits = plan.config["splits"]
        assert plan.workspace == (splits * one_split if splits > 1 else 0) <= limit
        assert allocated.count(plan.workspace) == (splits > 1), allocated
        assert splits > 1 or limit < 2 * one_split


def test_splits_are_never_empty():
    for batch in range(1, 40, 3):
        x, grad_output = torch.ones(batch, 2, 9, 9), torch.ones(batch, 3, 9, 9)
        plan = _wgrad_plan(x, (3, 2, 1, 1), grad_output)
        steps = -(-batch * 81 // plan.config["BLOCK_K"])
        per_split = -(-steps // plan.config["splits"])
        assert (plan.config["splits"] - 1) * per_split < steps


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_empty_batch(dtype):
    w, none = torch.ones(3, 4, 3, 3, dtype=dtype), torch.ones(0, 3, 7, 7, dtype=dtype)
    assert gpuconv.conv2d_input_grad((0, 4, 9, 9), w, none, backend="triton").shape == (0, 4, 9, 9)
    of_weight = gpuconv.conv2d_weight_grad(torch.ones(0, 4, 9, 9, dtype=dtype), w.shape, none, backend="triton")
    assert of_weight.shape == w.shape and not of_weight.any()
    assert gpuconv.conv_transpose2d(none, w, backend="triton").shape == (0, 4, 9, 9)


def test_unbatched_transposed_with_output_padding():
    y, w, bias = torch.randn(3, 5), torch.randn(3, 2, 2), torch.randn(2)
    options = {"stride": 4, "output_padding": 3, "padding": 1}
    ours = gpuconv.conv_transpose1d(y, w, bias, **options, backend="triton")
    assert torch.allclose(ours, torch.conv_transpose1d(y, w, bias, **options), atol=1e-5)
    assert torch.equal(ours[:, -2:], bias[:, None].expand(2, 2))  # no tap reaches the output padding


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_nan_and_inf_reach_only_their_windows(bad):
    grad_output = torch.zeros(1, 3, 6, 6)
    grad_output[0, 1, 3, 3] = bad
    w, x = torch.ones(3, 2, 3, 3), torch.ones(1, 2, 11, 11)
    arguments = {"stride": 2, "padding": 1}
    ours = gpuconv.conv2d_input_grad(x.shape, w, grad_output, **arguments, backend="triton")
    reference = gpuconv.conv2d_input_grad(x.shape, w, grad_output, **arguments, backend="numpy")
    assert torch.equal(ours.isfinite(), reference.isfinite()) and int((~ours.isfinite()).sum()) == 18
    ours = gpuconv.conv2d_weight_grad(x, w.shape, grad_output, **arguments, backend="triton")
    reference = gpuconv.conv2d_weight_grad(x, w.shape, grad_output, **arguments, backend="numpy")
    assert torch.equal(ours.isfinite(), reference.isfinite())


def test_refusals_name_the_reason():
    y, w = torch.ones(1, 1, 5, dtype=torch.complex64), torch.ones(1, 1, 3, dtype=torch.complex64)
    for call in (
        lambda: gpuconv.conv1d_input_grad((1, 1, 7), w, y, backend="triton"),
        lambda: gpuconv.conv1d_weight_grad(torch.ones(1, 1, 7, dtype=torch.complex64), w.shape, y, backend="triton"),
        lambda: gpuconv.conv_transpose1d(y, w, backend="triton"),
    ):
        with pytest.raises(gpuconv.NoSolverError, match="computes float16, bfloat16, float32, float64, not complex64"):
            call()
