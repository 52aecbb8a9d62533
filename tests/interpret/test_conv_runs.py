"""The kernel over runs against the reference, in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fprop_cases import DTYPES, LAYOUTS
from mutants import mutant_module
from runs_cases import BRANCHES, PHASES, SOLVERS, Case, Inputs, all_cases, check_case, config_of, launch

import gpuconv
from gpuconv.backends.triton.runs_axes import forward_of, runs_of
from gpuconv.kernels.tl.conv import runs as kernels
from gpuconv.kernels.tl.conv import runs_spread

CASES = all_cases()
KERNELS = Path(kernels.__file__).parent
SOLVER = SOLVERS["fprop"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_reference(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES)
    assert sum(case.kind == "fprop" for case in CASES) >= 120
    assert sum(case.kind != "fprop" for case in CASES) >= 80
    for field, values in (("ndim", (1, 2, 3)), ("layout", LAYOUTS), ("dtype", DTYPES), ("branch", BRANCHES | PHASES)):
        assert {getattr(case, field) for case in CASES} == set(values)
    options = [config_of(case, Inputs(case).problem()) for case in CASES if case.kind == "fprop"]
    for name in ("MERGED", "AHEAD", "BLOCK_M", "BLOCK_N", "INDEX64"):
        assert len({config[name] for config in options}) == 2, name
    assert len({config["SLICES"] for config in options}) >= 3
    assert {config["UNROLL"] for config in options} >= {1, 2, 3}
    assert {config["COLS"] for config in options} == {1, 2, 4, 8}


@pytest.mark.parametrize("branch", ("plain", "stem", "patches", "two to two"))
@pytest.mark.parametrize(
    ("ndim", "layout"), ((1, "contiguous"), (2, "channels_last"), (2, "contiguous"), (3, "strided"))
)
def test_small_integers_are_exact(ndim, layout, branch):
    inputs = Inputs(Case(ndim, layout, "float16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    result = launch(inputs, inputs.problem(), "forward")
    assert torch.equal(result.double(), expected.to(result.dtype).double())


NOT_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("merged", (False, True))
@pytest.mark.parametrize("where", ("x", "w"))
@pytest.mark.parametrize("branch", ("plain", "stem", "patches", "stride over kernel", "depth", "four channels"))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "strided"))
def test_what_is_not_finite_stays_where_it_is(layout, branch, where, merged):
    """Elements in turn, the first, the last and some between: NaN and infinities where the definition has them.

    Padding counts as zeros, whose product with an infinity is NaN; what lies beside a window counts nothing.
    """
    inputs = Inputs(Case(3 if branch == "depth" else 2, layout, "float32", branch))
    problem, given = inputs.problem(), getattr(inputs, where)
    config = config_of(inputs.case, problem) | {"MERGED": merged, "steps": 3}
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 5).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = NOT_FINITE[(number + merged) % 3]
        setattr(inputs, where, changed)
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward", config)
        assert torch.equal(result.isnan(), expected.isnan()), (branch, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (branch, where, place)


SHARED = ("side by side", "side by side, odd", "one filter", "far filters", "shared stem")
GRADIENTS = ("plain", "four channels", "asymmetric", "side by side", "one filter")
OF_PHASES = ("phases", "phases, four taps", "phases, apart", "phases over kernel", "phases, shared")


COLUMNS_AND_GRADIENTS = [
    (kind, name, layout)
    for kind, names, layouts in (
        ("fprop", SHARED, ("contiguous", "channels_last", "strided")),
        ("dgrad", GRADIENTS, ("contiguous", "channels_last", "strided")),
        ("dgrad", OF_PHASES, ("channels_last",)),
    )
    for name in names
    for layout in layouts
]


@pytest.mark.parametrize("where", ("given", "w"))
@pytest.mark.parametrize(("kind", "branch", "layout"), COLUMNS_AND_GRADIENTS)
def test_what_is_not_finite_stays_in_columns_and_gradients(kind, branch, where, layout):
    """Columns of one run do not see each other's windows, and a gradient has nothing outside of y or of its phase."""
    ndim = 3 if branch in ("asymmetric", "far filters", "phases, apart") else 2
    inputs = Inputs(Case(ndim, layout, "float32", branch, kind))
    problem, name = inputs.problem(), where if where == "w" else "x" if kind == "fprop" else "y"
    given = getattr(inputs, name)
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 4).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = NOT_FINITE[number % 3]
        setattr(inputs, name, changed)
        if inputs.epilogue.get("residual") is not None:
            inputs.epilogue["residual"].zero_()
        if inputs.epilogue.get("bias") is not None:
            inputs.epilogue["bias"].zero_()
        expected = by_definition(inputs)
        result = launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), (branch, where, place)
        assert torch.equal(result.isinf(), expected.isinf()), (branch, where, place)
        finite = expected.isfinite()
        assert torch.allclose(result[finite].double(), expected[finite], rtol=1e-4, atol=1e-4)


def by_definition(inputs: Inputs) -> torch.Tensor:
    """Return the pass in float64 by sums over taps, with x padded by zeros."""
    x, w, geometry = inputs.x.double(), inputs.w.double(), inputs.geometry
    grad = inputs.case.kind != "fprop"
    padded = torch.nn.functional.pad(x, [value for pair in reversed(geometry["padding"]) for value in pair])
    gradient = torch.zeros_like(padded)
    found = torch.zeros(inputs.y.shape, dtype=torch.float64)
    for tap in torch.cartesian_prod(*(torch.arange(size) for size in w.shape[2:])).tolist():
        window = tuple(
            slice(t * d, t * d + s * (size - 1) + 1, s)
            for t, d, s, size in zip(tap, geometry["dilation"], geometry["stride"], found.shape[2:], strict=True)
        )
        shown = padded[(..., *window)]
        weight = w[(..., *tap)].reshape(*w.shape[:2], *(1,) * len(tap))
        if grad:
            for k in range(w.shape[0]):
                gradient[(..., *window)] += inputs.y.double()[:, k : k + 1] * weight[k][None]
        else:
            for c in range(x.shape[1]):  # one product at a time: einsum may skip none
                found += shown[:, c : c + 1] * weight[:, c][None]
    inner = tuple(slice(lo, lo + size) for (lo, _), size in zip(geometry["padding"], x.shape[2:], strict=True))
    return gradient[(..., *inner)] if grad else found


LARGE = (
    ((32, 3, 224, 224), (64, 3, 7, 7), 2, "channels_last"),
    ((32, 3, 224, 224), (64, 3, 7, 7), 2, "contiguous"),
    ((32, 3, 224, 224), (96, 3, 4, 4), 4, "channels_last"),
    ((4, 1, 96, 96, 96), (16, 1, 3, 3, 3), 2, "contiguous"),
)


@pytest.mark.parametrize(("x_shape", "w_shape", "stride", "layout"), LARGE)
def test_dispatcher_takes_it_by_itself(x_shape, w_shape, stride, layout):
    """Of its own accord for few channels, by its estimate; the general solver where it refuses."""
    x, w = (torch.empty(shape, dtype=torch.bfloat16) for shape in (x_shape, w_shape))
    if layout == "channels_last":
        x, w = (tensor.movedim(1, -1).contiguous().movedim(-1, 1) for tensor in (x, w))
    conv = getattr(gpuconv, f"conv{x.ndim - 2}d")
    assert gpuconv.explain(conv, x, w, stride=stride, backend="triton").solver == SOLVER.id
    refused = gpuconv.explain(conv, x, w, stride=stride, padding=1, padding_mode="circular", backend="triton")
    assert refused.solver == "triton.conv.fprop.implicit_gemm"


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_a_default_plan_equals_torch(dtype):
    """The public function, with the tile that an untuned plan has."""
    x, w = torch.randn(1, 3, 30, 31).to(dtype), torch.randn(20, 3, 7, 7).to(dtype)
    with gpuconv.dispatch.record_plans() as plans:
        y = gpuconv.conv2d(x, w, stride=2, padding=3, backend=SOLVER.id)
    assert [plan.solver.id for plan in plans] == [SOLVER.id]
    expected = torch.nn.functional.conv2d(x.double(), w.double(), stride=2, padding=3)
    assert y.shape == expected.shape and y.dtype == dtype
    assert (y.double() - expected).abs().max() <= torch.finfo(dtype).eps * 8 * expected.abs().max()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_autograd_takes_the_gradient_by_itself(dtype):
    """Two channels of a volume, as the public function differentiates them."""
    x = torch.randn(1, 2, 6, 7, 16).to(dtype).to(memory_format=torch.channels_last_3d).requires_grad_()
    w = torch.randn(2, 2, 3, 3, 3).to(dtype).requires_grad_()
    with gpuconv.dispatch.record_plans() as plans:
        gpuconv.conv3d(x, w, padding=1, backend="triton").sum().backward()
    assert "triton.conv.dgrad.runs" in {plan.solver.id for plan in plans}
    given, expected = x.grad, [t.detach().double().requires_grad_() for t in (x, w)]
    torch.nn.functional.conv3d(*expected, padding=1).sum().backward()
    assert given.dtype == dtype
    assert (given.double() - expected[0].grad).abs().max() <= torch.finfo(dtype).eps * 8 * expected[0].grad.abs().max()


def test_refusals_name_the_reason():
    def why(channels: int, kernel: int, **options: object) -> str:
        x, w = torch.randn(1, channels, 40, 40), torch.randn(4, channels // options.get("groups", 1), kernel, kernel)
        return str(gpuconv.explain(gpuconv.conv2d, x.half(), w.half(), backend="triton", **options))

    assert "takes 1 to 16 input channels, not 17" in why(17, 3)
    assert "takes one group, not 2" in why(4, 3, groups=2)
    assert "pads with zeros alone, not reflect" in why(3, 3, padding=1, padding_mode="reflect")
    assert "takes windows of neighbouring rows and columns, not dilation (2, 2)" in why(3, 3, dilation=2)
    assert "has no tile that holds 31 filter rows" in why(3, 31)

    def gradient(last: bool = True, **options: object) -> str:
        y, w = torch.randn(1, 3, 20, 20).half(), torch.randn(3, 4, 3, 3).half()
        y = y.to(memory_format=torch.channels_last) if last else y
        return str(gpuconv.explain(gpuconv.conv_transpose2d, y, w, backend="triton", **options))

    assert "writes phases side by side: x must be channels_last, not contiguous" in gradient(False, stride=(2, 1))
    assert "takes no dilation with the stride of a data gradient, but (1, 2) with (1, 3)" in gradient(
        stride=(1, 3), dilation=(1, 2)
    )
    assert "computes up to 16 phases of a data gradient, not 25" in gradient(stride=5)


@pytest.mark.parametrize("n", (0, 2))
def test_gradient_of_no_channels_is_empty(n):
    """Asked for its backend, which asks every solver; this one refuses, as it has no tile for no filters."""
    arguments = (n, 0, 5, 6), torch.randn(4, 0, 3, 3), torch.randn(n, 4, 5, 6)
    explained = str(gpuconv.explain(gpuconv.conv2d_input_grad, *arguments, padding=1, backend="triton"))
    assert "has nothing to compute without channels of the result" in explained
    assert gpuconv.conv2d_input_grad(*arguments, padding=1, backend="triton").shape == (n, 0, 5, 6)


@pytest.mark.filterwarnings("error")
def test_an_empty_batch_may_have_rows_of_no_elements():
    """As torch has it; every solver is asked what that would take."""
    y = gpuconv.conv_transpose2d(torch.empty(0, 3, 2, 2), torch.randn(3, 1, 1, 1), padding=(1, 0), backend="triton")
    assert y.shape == (0, 1, 0, 2)


PROBES = (
    Case(2, "channels_last", "float16", "stem"),
    Case(2, "contiguous", "float32", "strides apart"),
    Case(3, "contiguous", "float32", "depth"),
    Case(3, "channels_last", "float32", "depth"),
    Case(3, "channels_last", "float32", "asymmetric"),
    Case(2, "channels_last", "float16", "four channels"),
    Case(2, "strided", "float32", "epilogue"),
    Case(2, "channels_last", "float32", "64-bit, stem"),
    Case(3, "contiguous", "float16", "stem"),
    Case(3, "channels_last", "float16", "stride 2"),
    Case(2, "channels_last", "float32", "side by side"),
    Case(2, "channels_last", "float32", "side by side, odd"),
    Case(2, "channels_last", "float32", "shared stem"),
    Case(3, "channels_last", "float32", "side by side", "dgrad"),
    Case(3, "channels_last", "float32", "phases", "dgrad"),
    Case(2, "channels_last", "float32", "phases, four taps", "dgrad"),
    Case(2, "channels_last", "float32", "phases, epilogue", "transposed"),
)

MUTANTS = {
    "first row mask dropped": ("inside = reads & (row >= 0) & (row < h)", "inside = reads & (row < h)"),
    "last row read": ("& (row < h)", "& (row <= h)"),
    "slice mask dropped": ("(slice_ >= 0) & (slice_ < d)", "(slice_ < d)"),
    "depth dilation ignored": ("slice_ = z + (t + b * TIN) * DILATION_D", "slice_ = z + (t + b * TIN)"),
    "window ignored": ("return tl.where(window, tile, 0.0)", "return tile"),
    "pieces swapped": ("low, high = tl.split(halves)", "high, low = tl.split(halves)"),
    "filter row shifted": ("pieces, STRIDE_H * (OPEN - 1 - m) + j, R)", "pieces, STRIDE_H * (OPEN - 1 - m), R)"),
    "weights of the first block": ("STRIDE_H * (OPEN - 1 - m) + j, b * R, R,", "STRIDE_H * (OPEN - 1 - m) + j, 0, R,"),
    "warm-up row stored": ("keeps & (at_p >= first) &", "keeps &"),
    "rows after the chunk": ("(at_p < first + steps) & (at_p < p)", "(at_p < first + steps)"),
    "scale after shift": ("stored(total * scale, ACTIVATION)", "stored(total * scale + 1, ACTIVATION)"),
    "lead forgotten": ("(e - (PAD_W * C + LEAD))", "(e - PAD_W * C)"),
    "row end ignored": ("(at >= 0) & (at < row_size)", "(at >= 0)"),
    "image mask dropped": ("live = image < n", "live = image <= n"),
    "planes beyond the channels": ("reads = reads & (c < C)", "reads = reads & (c <= C)"),
    "depth pad ignored": ("z = o_ * STRIDE_D - pad_d", "z = o_ * STRIDE_D"),
    "windows of a run alike": ("e = e - sub * (STRIDE_W", "e = e - 0 * (STRIDE_W"),
    "columns beyond the row": ("keeps = keeps & (column < q)", "keeps = keeps & (column <= q)"),
    "result of one column": ("column = group * COLS + lane // BLOCK_K", "column = group * COLS"),
    "lanes of a group shifted": ("return group * BLOCK_N + lane", "return group * BLOCK_N + (lane ^ 1)"),
    "not finite not looked for": ("zeros += sums[0] * 0.0", "zeros += 0.0"),
    "direct rows from the first tap": ("for tap in range(none, T * R * S)", "for tap in range(none + 1, T * R * S)"),
    "direct window of the first column": ("begins = LEAD + lane // BLOCK_K *", "begins = LEAD + 0 *"),
    "gradient multiplies its padding": ("mask=reads if GRAD else written", "mask=written"),
    "spread tap swapped": ("s = e // C\n", "s = S - 1 - e // C\n"),
    "phase of the row before": ("phase_p - OFFSET_P) * (y_stride_p", "phase_p) * (y_stride_p"),
    "columns of a phase shifted": ("column * STEP_Q + phase_q - OFFSET_Q", "column * STEP_Q + phase_q"),
    "rows before the first result": ("written = written & in_result(", "written = written | in_result("),
    "bias of another channel": ("        channel = channel % FILTERS\n", ""),
    "direct taps that a phase lacks": ("has_tap(TOP_H - STEP_P * r + phase_p, TAPS_H)", "(r >= 0)"),
    "direct slices of another phase": ("TOP_D - STEP_O * t + phase_o", "TOP_D - STEP_O * t"),
    "phases of a slice alike": ("t = t * STEP_O - phase // (STEP_P * STEP_Q)", "t = t * STEP_O"),
    "spread tap that a phase lacks": ("has_tap(TOP_W - s, TAPS_W)", "(s < 100)"),
    "spread depth shifted": ("t = b * SLICES + reduced", "t = reduced"),
}  # fmt: skip


def _noticed() -> bool:
    for case in PROBES:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
        inputs = Inputs(case)
        problem = inputs.problem()
        if case.branch in (
            "stem",
            "side by side",
            "shared stem",
            "phases",
        ):  # what stands beside a window, and windows of others
            name = "x" if case.kind == "fprop" else "y" if case.branch == "phases" else "w"
            changed = getattr(inputs, name).clone()
            changed[(0, 0, ..., 4, 5) if name == "x" else (0, 0, ..., 1, 0)] = float("inf")
            setattr(inputs, name, changed)
            if (residual := inputs.epilogue.get("residual")) is not None:
                residual.zero_()
            result, expected = launch(inputs, problem, "forward").double(), by_definition(inputs)
            finite = expected.isfinite()
            if not torch.equal(result.isfinite(), finite) or not torch.allclose(
                result[finite], expected[finite], rtol=2e-2, atol=2e-2
            ):
                return True
            continue
        slices = max(16 // runs_of(forward_of(problem)).depth(1), 1)
        for options in ({"MERGED": True, "UNROLL": 1}, {"MERGED": False, "SLICES": slices}):
            config = config_of(case, problem) | {"COLS": 1} | options | {"steps": 2, "BLOCK_M": 16}
            expected = inputs.call("numpy", torch.Tensor.double)
            try:
                result = launch(inputs, problem, "forward", config).double()
                assert (result - expected).abs().max() <= 2e-2 * expected.abs().max()
            except Exception:  # as above
                return True
    return False


def test_probes_pass_on_the_real_kernel():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    spread = MUTANTS[name][0] in (KERNELS / "runs_spread.py").read_text()
    where, kernel = (runs_spread, "_conv_runs_spread_kernel") if spread else (kernels, "_conv_runs_kernel")
    file = "runs_spread" if spread else "runs"
    module = mutant_module(tmp_path, name, f"conv.{file}", f"conv/{file}.py", *MUTANTS[name])
    monkeypatch.setattr(where, kernel, getattr(module, kernel))
    assert _noticed(), f"no probe noticed the mutation {name!r}"
