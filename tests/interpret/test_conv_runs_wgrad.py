"""The weight gradient over runs against the reference, in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fprop_cases import DTYPES, LAYOUTS
from mutants import mutant_module
from runs_wgrad_cases import BRANCHES, SOLVER, Case, Inputs, all_cases, check_case, config_of, launch

import gpuconv
from gpuconv.kernels.tl.conv import runs_wgrad as kernels

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES) >= 120
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)
    options = [config_of(case, Inputs(case).problem()) for case in CASES[::4]]
    for name in ("SWAPPED", "FIXED_RUNS", "INDEX64", "num_stages"):
        assert len({config[name] for config in options}) == 2, name
    for name in ("COLS", "LINES", "PER"):
        assert len({config[name] for config in options}) == 3, name
    assert len({config["splits"] for config in options}) >= 4


@pytest.mark.parametrize("branch", ("plain", "stem", "patches", "two to two", "few filters, far"))
@pytest.mark.parametrize(("ndim", "layout"), ((1, "contiguous"), (2, "channels_last"), (3, "strided")))
def test_small_integers_are_exact(ndim, layout, branch):
    inputs = Inputs(Case(ndim, layout, "float16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


NOT_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("where", ("x", "y"))
@pytest.mark.parametrize(
    "branch", ("plain", "stem", "stride over kernel", "depth", "depth of x", "few filters, far", "few filters, deep")
)
@pytest.mark.parametrize("layout", ("channels_last", "strided"))
def test_what_is_not_finite_stays_where_it_is(layout, branch, where):
    """Elements in turn, the first, the last and some between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what lies beside a window counts nothing, nor does
    an element of x that has no element of y.
    """
    inputs = Inputs(Case(3 if branch.startswith("depth") else 2, layout, "float32", branch), small=True)
    problem, given = inputs.problem(), getattr(inputs, where)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 3).long()):
        changed = given.clone()
        changed[torch.unravel_index(place, given.shape)] = NOT_FINITE[number]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        config = config_of(inputs.case, problem) | {"COLS": 1 + number % 2, "splits": 2}
        result = launch(inputs, problem, "forward", config)
        assert torch.equal(result.isnan(), expected.isnan()), place
        assert torch.equal(result.isinf(), expected.isinf()), place
        finite = expected.isfinite()
        assert torch.allclose(result[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)


def by_definition(inputs: Inputs) -> torch.Tensor:
    """Return the weight gradient in float64 by sums over positions of y, with x padded by zeros."""
    x, y, geometry = inputs.x.double(), inputs.y.double(), inputs.geometry
    padded = torch.nn.functional.pad(x, [value for pair in reversed(geometry["padding"]) for value in pair])
    found = torch.zeros(inputs.w.shape, dtype=torch.float64)
    for tap in torch.cartesian_prod(*(torch.arange(size) for size in found.shape[2:])).tolist():
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, geometry["dilation"], geometry["stride"], y.shape[2:], strict=True)
        )
        shown = padded[(..., *window)]
        for c in range(x.shape[1]):
            products = shown[:, c : c + 1] * y
            found[(slice(None), c, *tap)] = products.sum((0, *range(2, y.ndim)))
    return found


LARGE = (
    ((32, 3, 224, 224), (32, 3, 3, 3), 2, 1),
    ((32, 32, 51200), (1, 32, 7), 1, 3),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "padding"), LARGE, ids=str)
def test_dispatcher_takes_it_by_itself(x_shape, w_shape, stride, padding):
    """Of its own accord for layers of networks; the general solver where it refuses."""
    out = (x_shape[0], w_shape[0], *((size + 2 * padding - w_shape[2]) // stride + 1 for size in x_shape[2:]))
    x, y = (
        torch.empty(shape[0], *shape[2:], shape[1], dtype=torch.bfloat16).movedim(-1, 1) for shape in (x_shape, out)
    )
    function = getattr(gpuconv, f"conv{len(w_shape) - 2}d_weight_grad")
    options: dict[str, Any] = {"stride": stride, "padding": padding, "backend": "triton"}
    assert gpuconv.explain(function, x, w_shape, y, **options).solver == SOLVER.id
    refused = gpuconv.explain(function, x, w_shape, y, **options, padding_mode="circular")
    assert refused.solver == "triton.conv.wgrad.split_k"


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize(("c", "k", "stride"), ((3, 20, 2), (20, 2, 1)))
def test_a_default_plan_equals_torch(dtype, c, k, stride):
    """The public function, with the tile that an untuned plan has."""
    x, shape = torch.randn(2, c, 15, 16).to(dtype), (k, c, 5, 5)
    y = torch.randn(2, k, (15 - 1) // stride + 1, (16 - 1) // stride + 1).to(dtype)
    with gpuconv.dispatch.record_plans() as plans:
        found = gpuconv.conv2d_weight_grad(x, shape, y, stride=stride, padding=2, backend=SOLVER.id)
    assert [plan.solver.id for plan in plans] == [SOLVER.id]
    expected = torch.nn.grad.conv2d_weight(x.double(), shape, y.double(), stride=stride, padding=2)
    assert found.shape == expected.shape and found.dtype == dtype
    assert (found.double() - expected).abs().max() <= torch.finfo(dtype).eps * 8 * expected.abs().max()


def test_refusals_name_the_reason():
    def why(c: int, k: int, kernel: int, **options: Any) -> str:
        groups, stride = options.get("groups", 1), options.get("stride", 1)
        dilation = options.get("dilation", 1)
        side = (40 - dilation * (kernel - 1) - 1 + 2 * options.get("padding", 0)) // stride + 1
        x, y = torch.randn(1, c, 40, 40).half(), torch.randn(1, k, side, side).half()
        shape = (k, c // groups, kernel, kernel)
        return str(gpuconv.explain(gpuconv.conv2d_weight_grad, x, shape, y, backend="triton", **options))

    assert "takes few channels on one side, for x at any stride, not 33 and 9" in why(33, 9, 3)
    assert "takes few channels on one side, for x at any stride, not 33 and 2" in why(33, 2, 3, stride=2)
    assert "takes one group, not 2" in why(4, 4, 3, groups=2)
    assert "pads with zeros alone, not reflect" in why(3, 4, 3, padding=1, padding_mode="reflect")
    assert "takes windows of neighbouring rows and columns, not dilation (2, 2)" in why(3, 4, 3, dilation=2)
    assert "has no tile for a window of (9, 9) and 32 to 64 channels" in why(32, 64, 9)
    problem = Inputs(Case(2, "channels_last", "float32", "plain")).problem()
    assert SOLVER.why_not(replace(problem, bias=True)) == (
        "computes the gradient of the weight alone, not of a bias beside it"
    )
    assert "the three of tf32x3" in str(SOLVER.why_not(replace(problem, precision="tf32x3")))
    assert "has nothing to compute" in str(SOLVER.why_not(replace(problem, n=0)))


PROBES = (
    Case(2, "channels_last", "float32", "stem"),
    Case(2, "contiguous", "float32", "asymmetric"),
    Case(3, "channels_last", "float32", "depth"),
    Case(3, "contiguous", "float32", "depth of x"),
    Case(3, "channels_last", "float32", "few filters, deep"),
    Case(2, "contiguous", "float32", "few filters, far"),
    Case(2, "strided", "float32", "seven"),
    Case(2, "channels_last", "float16", "patches"),
    Case(3, "channels_last", "float32", "stride over kernel"),
)

MUTANTS = {
    "first row mask dropped": ("inside = reads & (row >= 0) & (row < h)", "inside = reads & (row < h)"),
    "last row read": ("inside = reads & (row >= 0) & (row < h)", "inside = reads & (row >= 0) & (row <= h)"),
    "first row of the result unmasked": ("keeps & (row >= 0) & (row < p)", "keeps & (row < p)"),
    "last row of the result unmasked": ("keeps & (row >= 0) & (row < p)", "keeps & (row >= 0) & (row <= p)"),
    "slice mask dropped": ("inside & (slice_ >= 0) & (slice_ < d)", "inside & (slice_ < d)"),
    "slices of the result unmasked": ("inside & (slice_ >= 0) & (slice_ < o)", "inside & (slice_ < o)"),
    "depth dilation ignored": ("slice_ = z + t * DILATION_D", "slice_ = z + t"),
    "filter row of the result turned": ("row = i - off_h - r\n", "row = i - off_h + r\n"),
    "lead forgotten": ("(e - (PAD_W * ELEMENTS + LEAD))", "(e - PAD_W * ELEMENTS)"),
    "left end of a row ignored": ("reads = live & (at >= 0) &", "reads = live &"),
    "image mask dropped": ("live = image < n", "live = image <= n"),
    "columns beyond the result": ("keeps = live & (at < q * RESULT_UNIT)", "keeps = live"),
    "ragged split cut off": ("begin + items_per_split, items)", "begin + items_per_split - 1, items)"),
    "splits overwrite each other": ("tl.program_id(0).to(tl.int64) *", "(block + tile_k).to(tl.int64) *"),
    "lines of the first tile": ("line = (block * PER + FIRST + j) * LINES + later", "line = j * LINES + later"),
    "splits dropped": ("(number < splits * COLS)", "(number < splits * COLS - 1)"),
    "one column for all": ("number % COLS * NEXT", "0"),
    "taps not turned": ("s = S - 1 - s", "s = s"),
    "depth not turned": ("t = T - 1 - t", "t = t"),
}


def _noticed() -> bool:
    for number, case in enumerate(PROBES):
        inputs = Inputs(case)
        problem = inputs.problem()
        expected = inputs.call("numpy", torch.Tensor.double)
        config = config_of(case, problem)
        options = {"COLS": 2, "LINES": 2, "PER": 1, "splits": 1} if number % 2 else {"COLS": 1, "splits": 3}
        try:
            result = launch(inputs, problem, "forward", config | options).double()
            assert (result - expected).abs().max() <= 2e-3 * expected.abs().max()
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernels():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    _break(tmp_path, monkeypatch, name, *MUTANTS[name])
    assert _noticed(), f"no probe noticed the mutation {name!r}"


def _break(tmp_path: Any, monkeypatch: Any, name: str, old: str, new: str) -> None:
    module = mutant_module(tmp_path, name, "conv.runs_wgrad", "conv/runs_wgrad.py", old, new)
    for kernel in ("_conv_runs_wgrad_kernel", "_conv_runs_fold_kernel"):
        monkeypatch.setattr(kernels, kernel, getattr(module, kernel))


EXACT = {
    "exact path left out": ("infinite = any_not_finite(sums[j] * 0.0)", "infinite = items < 0"),
    "exact products with what is not there": ("tl.where(pairs, products, 0.0)", "products"),
    "pairs of the wrong side": ("if FIXED_RUNS != SWAPPED else of_kept", "if FIXED_RUNS == SWAPPED else of_kept"),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_infinity_spreads_without_the_exact_path(name, tmp_path, monkeypatch):
    inputs = Inputs(Case(2, "channels_last", "float32", "plain"), small=True)
    inputs.x[0, 0, 0, -1] = float("inf")  # which a column of lanes behind the last of y meets
    expected, config = by_definition(inputs), config_of(inputs.case, inputs.problem()) | {"COLS": 2}
    assert torch.equal(launch(inputs, inputs.problem(), "forward", config).isnan(), expected.isnan())
    _break(tmp_path, monkeypatch, name, *EXACT[name])
    assert not torch.equal(launch(inputs, inputs.problem(), "forward", config).isnan(), expected.isnan())
