"""The adaptive, global, fractional and unpooling kernels against the reference, in the interpreter."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pool_adaptive_cases import (
    BRANCHES,
    DTYPES,
    LAYOUTS,
    SOLVERS,
    PoolCase,
    PoolInputs,
    all_cases,
    check_case,
    check_results,
    config_of,
    launch,
    orders_of,
    workspace_bytes,
)
from triton.runtime import interpreter

import gpuconv
from gpuconv.backends.triton import (
    pool_adaptive,
    pool_fractional,
    pool_global,
    pool_unpool,
)
from gpuconv.dispatch import record_plans

CASES = {family: all_cases(family) for family in BRANCHES}
MODULES = (pool_adaptive, pool_fractional, pool_global, pool_unpool)


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case, orders_of(case))


@pytest.mark.parametrize("family", CASES)
def test_cases_are_distinct_and_cover_everything(family):
    cases = CASES[family]
    distinct = {(case.ndim, case.layout, case.dtype, case.branch) for case in cases}
    assert len(distinct) == len(cases) >= 100
    dims = {case.ndim for case in cases}
    assert dims == ({2, 3} if family == "fractional" else {1, 2, 3})
    for field, values in (("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES[family])):
        assert {(getattr(case, field), case.ndim) for case in cases} == {(v, ndim) for v in values for ndim in dims}
    assert {order for case in cases for order in orders_of(case)} == {"forward", "reversed", "shuffled"}
    assert sum(len(orders_of(case)) == 2 for case in cases) >= len(cases) // 5


@pytest.mark.parametrize("family", CASES)
def test_cases_have_several_ragged_tiles(family, monkeypatch):
    """At least three tiles along each axis of the grid, three splits where there are splits, and ragged remainders."""
    caught = []
    for module in MODULES:
        monkeypatch.setattr(module, "launch_kernel", lambda *given: caught.append(given))
    for case in CASES[family]:
        inputs = PoolInputs(case)
        caught.clear()
        launch(inputs, "forward")
        _, _, grid, _, arguments, config = caught[0]
        lanes = arguments.get("tiles_l", 3)
        rest = prod(grid) // (arguments.get("tiles_l", 1) * config.get("splits", 1) * config.get("parts", 1))
        solver = case.option("solver", None)
        assert lanes >= 3, case.id
        if solver in ("window", "gather", "lines"):
            assert rest >= 3, (case.id, rest)
        if solver == "split":
            steps = arguments["elements_per_split"] // arguments["BLOCK_K"]
            assert steps >= 3 and arguments["elements_per_split"] * config["splits"] != prod(inputs.problem.kernel)
        if solver == "claim":
            assert prod(inputs.problem.input_size) > 2 * arguments["BLOCK_K"]


@pytest.mark.parametrize("case", [cases[number] for cases in CASES.values() for number in (0, 31, 62, 93)], ids=str)
def test_public_function_runs_the_forced_solver(monkeypatch, case):
    """Through the dispatcher by full id with default tiles, results poisoned by the allocator, formats the same."""
    array_kind = type(gpuconv.arrays.kind_of(torch.empty(0)))
    allocate = array_kind.empty
    poisoned = lambda *args: allocate(*args).fill_(-9 if "int" in args[2] else float("nan"))  # noqa: E731
    monkeypatch.setattr(array_kind, "empty", poisoned)
    inputs = PoolInputs(case)
    if inputs.problem.offsets:
        pytest.skip("public functions return positions in planes")
    with record_plans() as plans:
        result = (inputs.forward if case.kind == "fprop" else inputs.backward)(case.solver)
    assert [plan.solver.id for plan in plans] == [case.solver]
    expected = (inputs.forward if case.kind == "fprop" else inputs.backward)("numpy")
    several = result if isinstance(result, tuple) else (result,)
    for ours, reference in zip(several, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert ours.dtype == reference.dtype and ours.stride() == reference.stride()
    check_results(inputs, dict(zip(("y" if case.kind == "fprop" else "dx", "indices"), several, strict=False)))


@pytest.mark.parametrize("solver", ("window", "split", "lines"))
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_maxima_are_those_of_torch(ndim, solver):
    """Ties, NaN and windows of -inf, values and indices as live torch has them on the CPU."""
    generator = torch.Generator().manual_seed(ndim)
    x = torch.randint(-2, 2, (2, 3, *(7, 5, 6)[:ndim]), generator=generator).float()
    chance = torch.rand(x.shape, generator=generator)
    x[chance < 0.4], x[chance > 0.9] = float("-inf"), float("nan")
    x[0, 0] = float("-inf")
    out = (3, 4, 2)[:ndim]
    ours = getattr(gpuconv, f"adaptive_max_pool{ndim}d")
    forced = f"triton.pool.adaptive.fprop.{solver}"
    values, indices = ours(x, out, return_indices=True, backend=forced)
    expected = getattr(F, f"adaptive_max_pool{ndim}d")(x, out, return_indices=True)
    torch.testing.assert_close(values, expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("solver", ("window", "split", "lines"))
def test_small_integers_are_exact(solver, dtype):
    """Windows of 4 x 8, so that every average of small integers is a number of every type."""
    x = torch.randint(-2, 3, (1, 3, 8, 24)).to(DTYPES[dtype])
    result = gpuconv.adaptive_avg_pool2d(x, (2, 3), backend=f"triton.pool.adaptive.fprop.{solver}")
    assert torch.equal(result.double(), F.adaptive_avg_pool2d(x.double(), (2, 3)))
    grad = gpuconv.adaptive_avg_pool2d_backward(result, x, backend="triton")
    assert torch.equal(grad.double(), (result.double() / 32).repeat_interleave(4, 2).repeat_interleave(8, 3))


def _plan(x, out, pool="adaptive_avg_pool2d", **options):
    with record_plans() as plans:
        getattr(gpuconv, pool)(x, out, backend="triton", **options)
    return plans[0]


def test_global_pool_fills_the_gpu_at_batch_one(monkeypatch):
    """Splits are many where outputs are few, never empty, and within the limit of workspace, which the plan states."""
    allocated, empty = [], torch.empty

    def recording(*args, **options):
        result = empty(*args, **options)
        allocated.append(result.nbytes)
        return result

    monkeypatch.setattr(torch, "empty", recording)
    monkeypatch.setattr(pool_global, "launch_kernel", lambda *given: None)
    solver = SOLVERS["triton.pool.adaptive.fprop.split"]
    for shape in ((1, 64, 112, 112), (1, 3, 512, 512), (2, 512, 7, 7), (64, 64, 28, 28)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.zeros(shape).to(memory_format=layout)
            allocated.clear()
            plan = _plan(x, 1, pool="adaptive_max_pool2d", return_indices=True)
            if plan.solver is not solver:
                continue
            config, steps = plan.config, -(-prod(shape[2:]) // plan.config["BLOCK_K"])
            per_split = -(-steps // config["splits"])
            assert (config["splits"] - 1) * per_split < steps
            programs = pool_global._programs(plan.problem, config) * config["splits"]
            assert programs >= 132 or steps // config["splits"] < 8, (shape, programs)
            assert plan.workspace == workspace_bytes(plan.problem, config)
            assert allocated.count(plan.workspace) == (plan.workspace > 0)
    x = torch.zeros(1, 3, 512, 512)
    assert _plan(x, 1).solver is solver and _plan(x, 1).config["splits"] > 8
    monkeypatch.setenv("GPUCONV_WORKSPACE", "0")
    assert _plan(x, 1).config["splits"] == 1 and _plan(x, 1).workspace == 0


def test_dispatcher_prefers_wide_reads(monkeypatch):
    for module in MODULES:
        monkeypatch.setattr(module, "launch_kernel", lambda *given: None)
    x = torch.empty(32, 64, 112, 112)
    assert _plan(x, 7).solver.id == "triton.pool.adaptive.fprop.lines"
    x = torch.empty(8, 256, 56, 56).to(memory_format=torch.channels_last)
    assert _plan(x, 28).solver.id == "triton.pool.adaptive.fprop.window"
    assert _plan(x, 1).solver.id == "triton.pool.adaptive.fprop.split"


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_empty_and_unbatched(ndim):
    size, out = (5, 4, 3)[:ndim], (2, 3, 2)[:ndim]
    average, maximum = (getattr(gpuconv, f"adaptive_{name}_pool{ndim}d") for name in ("avg", "max"))
    back = getattr(gpuconv, f"adaptive_avg_pool{ndim}d_backward")
    assert average(torch.ones(0, 3, *size), out, backend="triton").shape == (0, 3, *out)
    assert back(torch.ones(0, 3, *out), torch.ones(0, 3, *size), backend="triton").shape == (0, 3, *size)
    x = torch.randn(3, *size)
    torch.testing.assert_close(average(x, out, backend="triton"), average(x, out, backend="numpy"))
    values, indices = maximum(x, out, return_indices=True, backend="triton")
    expected = maximum(x, out, return_indices=True, backend="numpy")
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])
    none = torch.ones(2, 3, *(0,) * ndim)
    if ndim > 1:
        assert average(torch.ones(2, 3, *size), (0,) * ndim, backend="triton").shape == none.shape
        with pytest.raises(RuntimeError, match="non-empty"):  # as torch
            back(none, torch.ones(2, 3, *size), backend="triton")


def test_mean_of_nothing_is_nan():
    assert gpuconv.adaptive_avg_pool2d(torch.ones(2, 3, 0, 4), 1, backend="triton").isnan().all()


def _reversed_stores(monkeypatch):
    """Let a store write its elements last to first, so that of equal places the first one stays."""
    builder = interpreter.InterpreterBuilder
    masked = builder.create_masked_store

    def turned(self, ptrs, value, mask, *rest):
        def flip(handle):
            data = np.ascontiguousarray(np.broadcast_to(handle.data, ptrs.data.shape).ravel()[::-1])
            return interpreter.TensorHandle(data, handle.dtype)

        return masked(self, flip(ptrs), flip(value), flip(mask), *rest)

    monkeypatch.setattr(builder, "create_masked_store", turned)


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("branch", ("claim random", "claim same", "claim parts", "claim apart"))
def test_unpooling_settles_races(branch, dtype, monkeypatch):
    """The interpreter stores in order, a GPU does not: stores that leave the wrong winner must change nothing."""
    case = PoolCase("unpool", 2, "contiguous", dtype, branch)
    inputs = PoolInputs(case)
    _reversed_stores(monkeypatch)
    check_results(inputs, launch(inputs, "forward"))


def test_unpooling_leaves_out_indices_outside_of_the_plane():
    case = PoolCase("unpool", 2, "contiguous", "float32", "claim random")
    inputs = PoolInputs(case)
    outside = torch.tensor([-1, 8 * 13, 10**12, -(2**62), 1 << 40, -7]).repeat(9)
    expected = launch(inputs, "forward")["y"].flatten(2)
    inputs.indices.view(-1)[::5] = outside
    result = launch(inputs, "forward")["y"].flatten(2)
    assert result.isfinite().all() and int((result != expected).sum()) > 0
    gather = PoolInputs(PoolCase("unpool", 2, "contiguous", "float32", "gather random"))
    gather.indices.view(-1)[::5] = outside
    assert not launch(gather, "forward")["dx"].view(-1)[::5].any()


@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_positions_outside_of_the_result_raise_on_the_cpu_and_are_left_out_on_a_gpu(ndim):
    unpool, backward = (getattr(gpuconv, f"max_unpool{ndim}d{suffix}") for suffix in ("", "_backward"))
    x = torch.arange(1.0, 2**ndim + 1).view(1, 1, *(2,) * ndim)
    plane = 4**ndim
    indices = torch.arange(2**ndim).view(x.shape).clone()
    indices.view(-1)[1], indices.view(-1)[0] = plane, -1
    dy = torch.arange(1.0, plane + 1).view(1, 1, *(4,) * ndim)
    for call in (lambda: unpool(x, indices, 2, backend="numpy"), lambda: backward(dy, x, indices, backend="numpy")):
        with pytest.raises(RuntimeError, match="indices must be positions in a plane"):
            call()
    expected = torch.zeros(plane)
    expected[2 : 2**ndim] = x.view(-1)[2:]
    assert torch.equal(unpool(x, indices, 2, backend="triton").view(-1), expected)
    dx = torch.where(torch.arange(2**ndim) < 2, 0.0, dy.view(-1)[: 2**ndim])
    assert torch.equal(backward(dy, x, indices, backend="triton").view(-1), dx)


def test_claims_are_as_wide_as_planes_need():
    for dtype, size, claim in (("float16", 255, "int16"), ("float16", 256, "int32"), ("float64", 256, "int64")):
        x = torch.zeros(1, 1, size, size, dtype=DTYPES[dtype])
        indices = torch.zeros(1, 1, size, size, dtype=torch.int64)
        problem = gpuconv.explain(gpuconv.max_unpool2d, x, indices, 2, backend="triton").problem
        plan = SOLVERS["triton.pool.max_unpool.fprop.claim"].plan(problem)
        apart = claim == "int32"
        assert plan.config["claim"] == claim and plan.workspace == (4 * (2 * size) ** 2 if apart else 0)


@pytest.mark.parametrize("ndim", (2, 3))
def test_fractional_samples_of_one_stay_inside(ndim):
    """torch asks for samples below 1; rounding may give 1, and windows then end with the axis."""
    x = torch.randn(1, 2, *(9, 8, 7)[:ndim])
    pool = getattr(gpuconv, f"fractional_max_pool{ndim}d")
    samples = torch.full((1, 2, ndim), 1.0)
    values, indices = pool(x, 2, 4, return_indices=True, _random_samples=samples, backend="triton")
    assert torch.equal(values.flatten(2), x.flatten(2).gather(2, indices.flatten(2)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_fractional_windows_are_those_of_torch(dtype):
    x, samples = torch.randn(1, 3, 31, 40, dtype=dtype), torch.rand(1, 3, 2, dtype=dtype)
    ours = gpuconv.fractional_max_pool2d(
        x, (3, 2), (20, 23), return_indices=True, _random_samples=samples, backend="triton"
    )
    expected = F.fractional_max_pool2d(x, (3, 2), (20, 23), return_indices=True, _random_samples=samples)
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
    assert config_of(PoolInputs(CASES["fractional"][0]))


def test_refusals_name_the_reason():
    x = torch.ones(1, 2, 4, 2000)
    lines = "triton.pool.adaptive.fprop.lines"
    with pytest.raises(gpuconv.NoSolverError, match="lines of up to 1024 elements, not 2000"):
        gpuconv.adaptive_avg_pool2d(x, 2, backend=lines)
    with pytest.raises(gpuconv.NoSolverError, match="reads contiguous tensors, not channels-last ones"):
        gpuconv.adaptive_avg_pool2d(torch.ones(1, 2, 4, 4).to(memory_format=torch.channels_last), 2, backend=lines)
    with pytest.raises(gpuconv.NoSolverError, match="computes float16, bfloat16, float32, float64, not complex64"):
        gpuconv.adaptive_avg_pool2d(torch.ones(1, 2, 4, 4, dtype=torch.complex64), 1, backend="triton")
