"""The window pools on Triton against the NumPy backend: every kernel forced, with guards and in several orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pool_cases import (
    BRANCHES,
    DTYPES,
    FAMILIES,
    LAYOUTS,
    PoolCase,
    PoolInputs,
    all_cases,
    check,
    check_case,
    config_of,
    launch,
    orders_of,
)

import gpuconv
from gpuconv.backends.triton import (
    pool as triton_pool,
)
from gpuconv.backends.triton import (
    pool_tiled,
    pool_windows,
)
from gpuconv.dispatch import record_plans, select

CASES = {family: all_cases(family) for family in FAMILIES}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case, orders_of(case))


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_are_distinct_and_cover_everything(family):
    cases = CASES[family]
    distinct = {(case.ndim, case.layout, case.dtype, case.branch) for case in cases}
    assert len(distinct) == len(cases) >= 100
    assert {(case.ndim, case.layout, case.dtype) for case in cases} == {
        (ndim, layout, dtype) for ndim in (1, 2, 3) for layout in LAYOUTS for dtype in DTYPES
    }
    for ndim in (1, 2, 3):
        assert {case.branch for case in cases if case.ndim == ndim} == set(BRANCHES[family][ndim])
    solvers = {solver.id for solver in (*triton_pool.SOLVERS, *pool_tiled.SOLVERS)}
    assert {case.solver for case in cases} == {name for name in solvers if f".{family}." in name}
    assert {order for case in cases for order in orders_of(case)} == {"forward", "reversed", "shuffled"}
    twice = [case for case in cases if len(orders_of(case)) == 2]
    assert len(twice) >= len(cases) // 4 and {case.ndim for case in twice} == {1, 2, 3}
    assert sum(bool(case.option("special", False)) for case in cases) >= len(cases) // 3


@pytest.mark.parametrize("dtype", ("uint8", "int8", "int16", "int32", "int64"))
@pytest.mark.parametrize(
    ("ndim", "branch"),
    ((1, "tiled 3 stride 2"), (2, "general 3 stride 2"), (2, "separable 7 by 9"), (3, "tiled dilated")),
)
def test_max_of_integers(ndim, branch, dtype):
    """Exact in every integer type, with ties and its smallest number; indices are torch's."""
    of_type = getattr(torch, dtype)
    inputs = PoolInputs(PoolCase("max", ndim, "contiguous", "float64", f"fprop {branch}"), integers=True)
    lowest = torch.iinfo(of_type).min
    values = torch.where(inputs.x < 0, torch.tensor(lowest), inputs.x.long()).to(of_type)
    options = {"padding": inputs.pads, "dilation": inputs.dilation, "ceil_mode": inputs.case.option("ceil", False)}
    function = getattr(gpuconv, f"max_pool{ndim}d")
    arguments = (values, inputs.kernel, inputs.stride)
    found = function(*arguments, return_indices=True, backend=inputs.case.solver, **options)
    expected = function(*arguments, return_indices=True, backend="numpy", **options)
    assert found[0].dtype == of_type and torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branch", ("fprop tiled 2 stride 2", "fprop general 3 stride 2", "bwd tiled 2 stride 2"))
def test_averages_of_small_integers_are_exact(branch, dtype):
    """A window of 4 divides without rounding, and one of 9 rounds once: as the exact average rounds."""
    if branch == "fprop general 3 stride 2" and dtype == "bfloat16":
        pytest.skip("the interpreter cuts float32 off to bfloat16, it does not round")
    inputs = PoolInputs(PoolCase("avg", 2, "contiguous", dtype, branch), integers=True)
    x = inputs.x.double()
    expected = inputs.forward(x, "numpy") if inputs.case.kind == "fprop" else inputs.backward(x, inputs.grad.double())
    result = next(iter(launch(inputs, "forward").values()))
    assert torch.equal(result, expected.to(result.dtype))


@pytest.mark.parametrize("solver", ("tiled", "general", "separable"))
def test_torch_agrees_on_nan_ties_and_minus_infinity(solver):
    """The last NaN of a window, the first of equal maxima, and of nothing but -inf the first inside."""
    kernel = 6 if solver == "separable" else 3
    x = torch.full((1, 4, 7, 8), -INF)
    x[0, 1] = torch.arange(56).view(7, 8) % 3
    x[0, 2] = x[0, 1]
    x[0, 2, ::2, ::3] = NAN
    x[0, 3, 3, 3] = INF
    arguments = {"stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True}
    found = gpuconv.max_pool2d(x, kernel, **arguments, backend=f"triton.pool.max.fprop.{solver}")
    expected = F.max_pool2d(x, kernel, **arguments)
    assert torch.equal(found[0].nan_to_num(99.0), expected[0].nan_to_num(99.0)) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("solver", ("tiled", "general", "separable"))
@pytest.mark.parametrize("bad", (NAN, INF))
def test_a_bad_element_reaches_only_its_windows(solver, bad):
    """A sum that moves along by subtraction would turn one infinity into NaN for all later windows."""
    kernel = 6 if solver == "separable" else 3
    x = torch.ones(1, 1, 12, 13)
    x[0, 0, 4, 5] = bad
    ours = gpuconv.avg_pool2d(x, kernel, 1, 1, backend=f"triton.pool.avg.fprop.{solver}")
    theirs = F.avg_pool2d(x, kernel, 1, 1)
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.isinf(), theirs.isinf())
    dx = gpuconv.avg_pool2d_backward(
        x[:, :, :6, :6], torch.ones(1, 1, kernel + 3, kernel + 3), kernel, 1, 1, backend=f"triton.pool.avg.bwd.{solver}"
    )
    assert int((~dx.isfinite()).sum()) == kernel * (kernel - 1)  # one column of the window is in the padding


def test_dispatch_picks_tiles_for_small_windows_and_passes_for_large_ones():
    x, y = torch.empty(32, 64, 99, 99), torch.empty(32, 64, 49, 49)
    back = (gpuconv.max_pool2d_with_indices_backward, y, x, 3, 2, 0, 1, False, y.long())
    large = (gpuconv.max_pool2d_with_indices_backward, x, x, 13, 1, 6, 1, False, x.long())
    for expected, call in (
        ("max.fprop.tiled", (gpuconv.max_pool2d, x, 3, 2)),
        ("max.bwd.tiled", back),
        ("max.bwd.separable", large),
        ("avg.fprop.separable", (gpuconv.avg_pool2d, x, 13, 1)),
        ("lp.fprop.tiled", (gpuconv.lp_pool2d, x, 2, 2)),
        ("lp.fprop.general", (gpuconv.lp_pool2d, x, 3, 2)),
        ("max.fprop.separable", (gpuconv.max_pool2d, x, 7, 2)),
        ("max.fprop.general", (gpuconv.max_pool2d, x, 2, 20)),
    ):
        assert gpuconv.explain(*call, backend="triton").solver == f"triton.pool.{expected}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ndim", (1, 2, 3))
def test_public_function_keeps_format_and_dtype(ndim, family):
    x = torch.randn(2, 3, *(5,) * ndim, dtype=torch.float16).movedim(1, -1).contiguous().movedim(-1, 1)
    arguments = (2, 2) if family == "lp" else (2,)
    for array in (x, x[0], x[:0]):
        ours, theirs = (
            getattr(gpuconv, f"{family}_pool{ndim}d")(array, *arguments, backend=name) for name in ("triton", "numpy")
        )
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_separable_pools_state_their_workspace(monkeypatch):
    """Passes between the first and the last lie where the plan says; without room one launch does it all."""
    x = torch.randn(1, 2, 30, 30)
    with record_plans() as plans:
        found = gpuconv.max_pool2d(x, 9, 5, return_indices=True, backend="triton.pool.max.fprop.separable")
    expected = gpuconv.max_pool2d(x, 9, 5, return_indices=True, backend="triton.pool.max.fprop.general")
    assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1])
    assert plans[0].workspace == 2 * 1280  # 2 x 30 x 5 values and positions of 4 bytes, to the next 256
    large = (gpuconv.max_pool2d, torch.empty(8, 64, 300, 300), 9, 1)
    plan = gpuconv.explain(*large, backend="triton").plan
    assert plan.solver.id == "triton.pool.max.fprop.separable" and plan.workspace == 8 * 64 * 300 * 292 * 4
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(plan.workspace - 1))
    assert gpuconv.explain(*large, backend="triton").plan.solver.id == "triton.pool.max.fprop.general"


def test_refusals_name_the_reason():
    x = torch.randn(1, 2, 9, 9)
    for call, reason in (
        (lambda: gpuconv.max_pool2d(x, 3, backend="triton.pool.max.fprop.separable"), "are small"),
        (lambda: gpuconv.max_pool2d(x, 6, backend="triton.pool.max.fprop.tiled"), "over 5 a side"),
        (lambda: gpuconv.max_pool2d(x, 3, 6, backend="triton.pool.max.fprop.tiled"), "are over 4"),
        (lambda: gpuconv.lp_pool2d(x, 3, 2, backend="triton.pool.lp.fprop.tiled"), "takes powers of 1 and 2, not 3"),
        (
            lambda: gpuconv.max_pool2d_with_indices_backward(
                x[:, :, :1], x, (9, 1), (9, 1), 0, 1, False, x[:, :, :1].long(), backend="triton.pool.max.bwd.separable"
            ),
            "have one axis",
        ),
        (lambda: gpuconv.avg_pool2d(x.long(), 2, backend="triton.pool.avg.fprop.tiled"), "computes float16"),
    ):
        with pytest.raises(gpuconv.NoSolverError, match=reason):
            call()


def test_average_of_int64_is_cut_off_towards_zero():
    x = torch.arange(-24, 25).view(1, 1, 7, 7)
    for options in ({}, {"divisor_override": -3}, {"ceil_mode": True, "padding": 1, "count_include_pad": False}):
        ours = gpuconv.avg_pool2d(x, 3, 2, **options, backend="triton")
        assert torch.equal(ours, gpuconv.avg_pool2d(x, 3, 2, **options, backend="numpy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_have_several_tiles(family):
    """Every case has at least three programs, and half of the cases three tiles along each of two axes."""
    counts = []
    for case in CASES[family]:
        inputs = PoolInputs(case)
        config, problem = config_of(inputs), inputs.problem
        if "TILE_P" in config:
            counts.append(pool_tiled.tiled_grid(problem, config)[0])
        else:
            passes = pool_windows.forward_passes if case.kind == "fprop" else pool_windows.backward_passes
            steps = passes(problem, bool(config["separable"]))
            counts.append(pool_windows.grid_of(problem, config, steps[-1])[0])
    assert min(counts) >= 3 and sorted(counts)[len(counts) // 2] >= 9


@pytest.mark.parametrize("kind", ("fprop", "bwd"))
def test_every_solver_takes_what_the_general_one_takes_or_says_why(kind):
    for family in FAMILIES:
        for ndim in (1, 2, 3):
            for branch in BRANCHES[family][ndim]:
                if branch.startswith(f"{kind} general"):
                    inputs = PoolInputs(PoolCase(family, ndim, "contiguous", "float32", branch))
                    assert select(inputs.problem, "triton").solver.id.startswith(f"triton.pool.{family}.{kind}.")


def test_first_chosen_position_matters():
    """Both kinds of numbers give the same gradient, also where windows overlap in ties."""
    for branch in ("bwd tiled 3 stride 1", "bwd general 3 stride 2"):
        inputs = PoolInputs(PoolCase("max", 2, "contiguous", "float32", branch), integers=True)
        check(inputs, ("forward",))
