"""The kernel of depthwise and pointwise convolutions against the two steps, in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fprop_cases import DTYPES, LAYOUTS
from mutants import mutant_module
from separable_cases import BRANCHES, SOLVER, Case, Inputs, all_cases, check_case, config_of, launch

import gpuconv
from gpuconv.kernels.tl.conv import separable as kernels

CASES = all_cases()
KERNELS = Path(kernels.__file__).parent
STEPS = "triton.conv.separable.steps"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_matches_the_two_steps(case):
    check_case(case)


def test_cases_are_distinct_and_cover_everything():
    assert len(set(CASES)) == len(CASES) >= 40
    for field, values in (("layout", LAYOUTS), ("branch", BRANCHES)):
        assert {getattr(case, field) for case in CASES} == set(values)
    assert {case.dtype for case in CASES} == set(DTYPES) - {"float64"}
    configs = [config_of(case) for case in CASES]
    assert {config["COLS"] for config in configs} == {1, 2, 4}
    assert len({config["TILE_Q"] for config in configs}) == 3 and len({config["BLOCK_M"] for config in configs}) == 2


@pytest.mark.parametrize("branch", ("plain", "stride", "dilation", "multiplier", "wide"))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "strided"))
def test_small_integers_are_exact(layout, branch):
    """In 16 bits as well: what is between the steps has few enough bits there."""
    inputs = Inputs(Case(layout, "float16", branch), integers=True)
    expected = inputs.call("numpy", torch.Tensor.double)
    assert torch.equal(launch(inputs, inputs.problem(), "forward").double(), expected.half().double())


@pytest.mark.parametrize("branch", ("plain", "stride", "dilation", "multiplier", "even", "epilogue"))
@pytest.mark.parametrize("where", ("input", "depthwise_weight", "pointwise_weight"))
def test_what_is_not_finite_is_as_in_the_two_steps(branch, where):
    """Where padding meets an infinite weight as well: its zeros are multiplied, as the steps do."""
    inputs = Inputs(Case("channels_last", "float32", branch))
    problem, given = inputs.problem(), inputs.tensors[where]
    for number, place in enumerate(torch.linspace(0, given.numel() - 1, 4).long().tolist()):
        changed = given.clone()
        changed[torch.unravel_index(torch.tensor(place), given.shape)] = (float("inf"), float("-inf"), float("nan"))[
            number % 3
        ]
        inputs.tensors[where] = changed
        expected, result = inputs.unfused(), launch(inputs, problem, "forward")
        assert torch.equal(result.isnan(), expected.isnan()), place
        assert torch.equal(result.isinf(), expected.isinf()), place


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("unbatched", (False, True))
def test_a_default_plan_equals_torch(dtype, unbatched):
    """The public function, with the tile that the library plans, against torch's two convolutions."""
    x, w, v = torch.randn(1, 24, 9, 10), torch.randn(24, 1, 3, 3), torch.randn(17, 24, 1, 1)
    x, w, v = x.to(dtype), w.to(dtype), v.to(dtype)
    given = x[0] if unbatched else x
    with gpuconv.dispatch.record_plans() as plans:
        y = gpuconv.depthwise_separable_conv2d(given, w, v, padding=1, between="relu", backend=SOLVER.id)
    assert [plan.solver.id for plan in plans] == [SOLVER.id]
    between = torch.nn.functional.conv2d(x.double(), w.double(), padding=1, groups=24).relu().to(dtype)
    expected = torch.nn.functional.conv2d(between.double(), v.double())
    expected = expected[0] if unbatched else expected
    assert y.shape == expected.shape and y.dtype == dtype
    assert (y.double() - expected).abs().max() <= torch.finfo(dtype).eps * 8 * expected.abs().max()


X, W, V = torch.randn(2, 16, 8, 9), torch.randn(16, 1, 3, 3), torch.randn(8, 16, 1, 1)


def test_both_ways_are_explained_with_their_estimates():
    found = gpuconv.explain(gpuconv.depthwise_separable_conv2d, X, W, V, backend="triton")
    able = {each.solver.id: each for each in found.candidates if each.reason is None}
    assert able.keys() == {SOLVER.id, STEPS} and all(each.estimate > 0 for each in able.values())
    assert found.solver == min(able, key=lambda id: able[id].estimate)
    text = str(found)
    assert SOLVER.id in text and STEPS in text and "pointwise w" in text
    assert found.to_json()["problem"]["type"] == "separable"


def test_steps_are_run_and_recorded_as_two_problems():
    with gpuconv.record_problems() as problems, gpuconv.dispatch.record_plans() as plans:
        y = gpuconv.depthwise_separable_conv2d(X, W, V, between="relu", backend=STEPS)
    assert [problem.op for problem in problems] == [
        "depthwise_separable_conv2d (depthwise)", "depthwise_separable_conv2d (pointwise)",
    ]  # fmt: skip
    assert plans[0].solver.id == STEPS and len(plans) == 3
    expected = gpuconv.depthwise_separable_conv2d(X, W, V, between="relu", backend="numpy")
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-4)
    with gpuconv.record_problems() as fused:
        gpuconv.depthwise_separable_conv2d(X, W, V, between="relu", backend=SOLVER.id)
    assert fused == problems


def test_gradients_transforms_and_refusals_are_of_two_calls():
    w = W.clone().requires_grad_()
    with gpuconv.dispatch.record_plans() as plans:
        gpuconv.depthwise_separable_conv2d(X, w, V, backend="triton").sum().backward()
    assert w.grad is not None and not {plan.solver.id for plan in plans} & {SOLVER.id, STEPS}
    with gpuconv.dispatch.record_plans() as plans:
        mapped = torch.vmap(lambda x: gpuconv.depthwise_separable_conv2d(x, W, V, backend="triton"))(X[None])
    assert mapped.shape == (1, 2, 8, 6, 7) and not {plan.solver.id for plan in plans} & {SOLVER.id, STEPS}
    two = gpuconv.explain(
        gpuconv.depthwise_separable_conv2d, X, W, V, padding=1, padding_mode="reflect", backend="triton"
    )
    assert len(two.steps) == 2
    with pytest.raises(gpuconv.NoSolverError, match="depthwise"):
        gpuconv.depthwise_separable_conv2d(X, W, V, padding=1, padding_mode="reflect", backend=SOLVER.id)
    with pytest.raises(RuntimeError, match="residual"):
        gpuconv.depthwise_separable_conv2d(X, W, V, residual=X, backend="triton")


def test_empty_results():
    for x in (X[:0], X[:, :, :3]):
        y = gpuconv.depthwise_separable_conv2d(x, W, V[:0] if len(x) else V, backend="triton")
        assert y.shape == (len(x), 0 if len(x) else 8, x.shape[2] - 2, 7)


@pytest.mark.parametrize("backend", (SOLVER.id, STEPS))
@pytest.mark.parametrize("unbatched", (False, True))
def test_the_format_is_that_of_two_calls(backend, unbatched):
    """Of an image without a batch axis the second convolution does not see how the first has left it."""
    given, w = X[0] if unbatched else X, W.to(memory_format=torch.channels_last)
    expected = gpuconv.depthwise_separable_conv2d(given, w, V, backend="numpy")
    y = gpuconv.depthwise_separable_conv2d(given, w, V, backend=backend)
    assert y.shape == expected.shape and y.stride() == expected.stride()


PROBES = (
    Case("channels_last", "float32", "strides apart"),
    Case("channels_last", "float32", "dilations apart"),
    Case("contiguous", "float16", "epilogue"),
    Case("channels_last", "float32", "multiplier"),
    Case("contiguous", "float32", "wide"),
    Case("strided", "float32", "64-bit"),
)

MUTANTS = {
    "rows above read": ("within(at_h, h)", "(at_h < h)"),
    "columns beside read": ("within(w0 + u, w_size)", "(w0 + u < w_size)"),
    "tap of the next column": ("taps[distance // DILATION_W]", "taps[S - 1 - distance // DILATION_W]"),
    "columns swapped": ("tl.join(parts[0], parts[2])", "tl.join(parts[0], parts[1])"),
    "bias after the activation": ("activate(total, ACTIVATION).to(DTYPE)", "activate(total + 1, ACTIVATION).to(DTYPE)"),
    "channels beyond the last": ("(reduced < channels) & (filter_ < k)", "filter_ < k"),
    "depthwise channel of another": ("channel // MULTIPLIER * x_stride_c", "channel % MULTIPLIER * x_stride_c"),
    "a chunk left out": ("for start in range(0, channels, BLOCK_C)", "for start in range(BLOCK_C, channels, BLOCK_C)"),
    "lines of other images": ("first_line % p * stride_h", "first_line * stride_h"),
    "positions beyond the row": ("rows = (line < lines) & (at_q < q)", "rows = line < lines"),
    "filters beyond the last": ("written = rows & (filter_ < k)", "written = rows & (filter_ <= k)"),
    "residual elsewhere": ("(offset + filter_ * residual_stride_k)", "(offset + filter_)"),
    "row of a dilated window": ("r * dilation_h * x_stride_h", "r * x_stride_h"),
}  # fmt: skip


def _noticed():
    for case in PROBES:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


def test_probes_pass_on_the_real_kernel():
    assert not _noticed()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    module = mutant_module(tmp_path, name, "conv.separable", "conv/separable.py", *MUTANTS[name])
    monkeypatch.setattr(kernels, "_conv_separable_kernel", module._conv_separable_kernel)
    assert _noticed(), f"no probe noticed the mutation {name!r}"
