"""Deformable convolution on the NumPy backend: the referee of ``deform_cases``, torchvision, gradients of gradients."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from deform_cases import CASES, Arrays, Case, draw, laid_out, length, plain_case, referee

import gpuconv
import gpuconv.nn
from gpuconv import numerics
from gpuconv.dispatch import record_plans

torch = pytest.importorskip("torch")

NAMES = {"x": "input", "offset": "offset", "mask": "mask", "w": "weight", "bias": "bias"}


def function(case: Case) -> Any:
    return getattr(gpuconv, f"deform_conv{case.ndim}d")


def as_torch(case: Case, arrays: Arrays, grad: bool = True) -> Arrays:
    """Return the arrays as tensors of the case's type and layout; requiring gradients, dy excepted."""
    found: Arrays = {}
    for name, array in arrays.items():
        if array is None:
            found[name] = None
            continue
        tensor = torch.from_numpy(array).to(getattr(torch, case.dtype)).contiguous()
        if case.layout == "expanded" and name in ("x", "offset", "mask"):
            tensor = tensor[:1].expand(tensor.shape)
        elif case.layout in ("channels_last", "strided"):
            held = tensor.view(torch.uint16) if case.dtype == "bfloat16" else tensor
            tensor = torch.from_numpy(laid_out(case, name, held.numpy())).view(tensor.dtype)
        found[name] = tensor.requires_grad_(grad and name != "dy")
    return found


def called(case: Case, arrays: Arrays, **options: Any) -> Any:
    given = {NAMES[name]: arrays[name] for name in NAMES}
    return function(case)(**given, **case.options, **options)


def compare(case: Case, arrays: Arrays, found: Arrays) -> None:
    expected, magnitude = referee(case, arrays), None if case.exact else referee(case, arrays, absolute=True)
    for name, tensor in found.items():
        actual = tensor.detach().to(torch.float32 if case.dtype == "bfloat16" else tensor.dtype).numpy()
        if magnitude is None:
            wanted = torch.from_numpy(expected[name]).to(getattr(torch, case.dtype))
            assert torch.equal(tensor.detach(), wanted), name
        else:
            numerics.assert_close(actual, expected[name], magnitude[name], case.dtype, length(case, name))


@pytest.mark.parametrize("name", CASES)
def test_equals_the_referee(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    arrays = draw(case, rng)
    tensors = as_torch(case, arrays)
    with record_plans() as plans:
        y = called(case, tensors)
        y.backward(tensors["dy"])
    assert {plan.solver.id for plan in plans} == {"numpy.conv.deform.im2col"}
    found = {name: tensors[name].grad for name in NAMES if tensors[name] is not None} | {"y": y}
    compare(case, arrays, found)


def test_there_are_many_cases() -> None:
    distinct = set(CASES.values())
    assert len(distinct) == len(CASES) >= 80
    assert {case.ndim for case in distinct} == {1, 2, 3}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype != "bfloat16"])
def test_numpy_arrays_give_the_same(name: str, rng: np.random.Generator) -> None:
    case = CASES[name]
    arrays = {key: None if a is None else a.astype(case.dtype) for key, a in draw(case, rng).items()}
    given = {key: None if a is None else laid_out(case, key, a) for key, a in arrays.items()}
    y = called(case, given)
    assert isinstance(y, np.ndarray) and y.dtype.name == case.dtype
    tensors = {key: None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for key, a in arrays.items()}
    np.testing.assert_array_equal(y, called(case, tensors).numpy())


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_without_offsets_it_is_a_convolution(ndim: int, rng: np.random.Generator) -> None:
    case = replace(plain_case(ndim), offsets="zero", mask=False, groups=2, offset_groups=2)
    arrays = draw(case, rng)
    y = getattr(gpuconv, f"conv{ndim}d")(arrays["x"], arrays["w"], arrays["bias"], **case.options, groups=2)
    np.testing.assert_allclose(called(case, arrays), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same", 2])
def test_named_padding_and_no_batch(ndim: int, padding: Any, rng: np.random.Generator) -> None:
    case = plain_case(ndim)
    x, w = rng.standard_normal((1, 4, *case.size)), rng.standard_normal((4, 4, *case.kernel))
    output = getattr(gpuconv, f"conv{ndim}d")(x, w, padding=padding).shape[2:]
    offset, mask = rng.standard_normal((1, 2 * ndim * case.taps, *output)), rng.random((1, 2 * case.taps, *output))
    y = function(case)(x, offset, w, padding=padding, mask=mask)
    one = function(case)(x[0], offset[0], w, padding=padding, mask=mask[0])
    np.testing.assert_array_equal(one, y[0])
    tensors = [torch.from_numpy(a) for a in (x[0], offset[0], w)]
    mask_of = torch.from_numpy(mask[0])
    for _ in range(2):
        np.testing.assert_array_equal(function(case)(*tensors, padding=padding, mask=mask_of).numpy(), y[0])
    tensors[0].requires_grad_()
    function(case)(*tensors, padding=padding, mask=mask_of).sum().backward()
    assert tensors[0].grad.shape == x.shape[1:]


CHECKED = {
    "plain": {"mask": False, "bias": False},
    "groups": {"groups": 2, "offset_groups": 2},
    "segments": {"groups": 2, "offset_groups": 4, "mask": False},
    "stride": {"groups": 4, "bias": False},
}


def between(case: Case, rng: np.random.Generator) -> Arrays:
    """Return arrays with positions between elements, where everything has derivatives."""
    arrays = draw(replace(case, offsets="zero", n=1), rng)
    steps = rng.integers(-2, 2, arrays["offset"].shape)
    arrays["offset"] = steps + rng.uniform(0.1, 0.9, steps.shape)
    return arrays


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(ndim: int, name: str, rng: np.random.Generator) -> None:
    case = replace(plain_case(ndim), n=1, **CHECKED[name])
    if name == "stride":
        case = replace(case, stride=(2,) * ndim, padding=((2, 1),) * ndim)
    tensors = as_torch(case, between(case, rng))
    given = [key for key in NAMES if tensors[key] is not None]

    def run(*values: Any) -> Any:
        return called(case, dict.fromkeys(NAMES) | dict(zip(given, values)))

    values = [tensors[key] for key in given]
    assert torch.autograd.gradcheck(run, values, fast_mode=True, check_forward_ad=True, check_batched_grad=ndim == 1)
    assert torch.autograd.gradgradcheck(run, values, fast_mode=True, check_fwd_over_rev=ndim < 3)


def test_only_what_is_wanted_is_computed(rng: np.random.Generator) -> None:
    case = plain_case(2)
    for wanted, kinds in (
        (["x"], {"dgrad": ("x",)}),
        (["offset", "mask"], {"dgrad": ("offset", "mask")}),
        (["w"], {"wgrad": ()}),
        (["w", "bias"], {"wgrad": ()}),
        (["bias"], {}),
        (["x", "offset", "mask", "w"], {"dgrad": ("x", "offset", "mask"), "wgrad": ()}),
    ):
        tensors = as_torch(case, draw(case, rng), grad=False)
        for name in wanted:
            tensors[name].requires_grad_()
        y = called(case, tensors)
        with record_plans() as plans:
            y.backward(tensors["dy"])
        assert {plan.problem.kind: plan.problem.grads for plan in plans} == kinds
        assert all((tensors[name].grad is not None) == (name in wanted) for name in NAMES)
        assert len(plans) == len(kinds)


@pytest.mark.filterwarnings("ignore::gpuconv.WorkspaceWarning")
def test_pieces_do_not_change_the_result(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(size=(17, 13), c=8, groups=2, offset_groups=2, n=2)
    tensors = as_torch(case, draw(case, rng))
    results = []
    for limit in (256 << 20, 300 << 10):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        with record_plans() as plans:
            y = called(case, tensors)
            grads = torch.autograd.grad(y, [tensors[name] for name in NAMES], tensors["dy"])
        results.append((y, *grads))
    assert all(plan.config["positions per chunk"] < 17 * 13 for plan in plans)
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::gpuconv.WorkspaceWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("channels", [4, 24])
def test_workspace_is_what_the_plan_states(
    dtype: str, channels: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(size=(24, 20), c=channels, k=8, n=1, groups=2, offset_groups=2, dtype=dtype)
    tensors = as_torch(case, draw(case, rng))
    called(case, tensors).backward(tensors["dy"])  # what is made once
    for limit in (700 << 10, 64 << 20):
        monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
        with record_plans() as plans:
            y = measured(lambda: called(case, tensors), plans)
            measured(lambda y=y: y.backward(tensors["dy"]), plans)


def measured(run: Any, plans: list[Any]) -> Any:
    before = len(plans)
    tracemalloc.start()
    try:
        result = run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= max(plan.workspace for plan in plans[before:]) + (64 << 10)
    return result


def test_nothing_depends_on_the_run(rng: np.random.Generator) -> None:
    case = replace(plain_case(2), dtype="float32")
    tensors = as_torch(case, draw(case, rng))
    inputs = [tensors[name] for name in NAMES]
    first, *others = [torch.autograd.grad(called(case, tensors), inputs, tensors["dy"]) for _ in range(3)]
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other))


def test_modules() -> None:
    layer = gpuconv.nn.DeformConv3d(2, 4, 2, padding=((0, 1), (1, 0), (0, 0)), groups=2, bias=False, backend="numpy")
    assert repr(layer) == (
        "DeformConv3d(2, 4, kernel_size=(2, 2, 2), stride=(1, 1, 1), padding=((0, 1), (1, 0), (0, 0)), groups=2, "
        "bias=False, backend='numpy')"
    )
    x, offset = torch.randn(1, 2, 3, 3, 3), torch.randn(1, 24, 3, 3, 2)
    expected = gpuconv.deform_conv3d(x, offset, layer.weight, padding=layer.padding)
    assert torch.equal(layer(x, offset), expected)
    assert list(layer.state_dict()) == ["weight"]
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(traced(x, offset), expected)
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x, offset), expected)
    assert gpuconv.nn.DeformConv2d(0, 4, 3).weight.shape == (4, 0, 3, 3)
    for groups in (0, -1):
        with pytest.raises(ValueError, match=f"DeformConv2d: groups must be a positive integer, but got {groups}"):
            gpuconv.nn.DeformConv2d(4, 4, 3, groups=groups)
    with pytest.raises(ValueError, match="DeformConv1d: out_channels must be an integer of at least 0, but got -2"):
        gpuconv.nn.DeformConv1d(4, -2, 3)
    with pytest.raises(ValueError, match="DeformConv1d: in_channels must be a multiple of groups=2, but got 3"):
        gpuconv.nn.DeformConv1d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="DeformConv2d: padding must be a size or one of"):
        gpuconv.nn.DeformConv2d(3, 4, 3, padding="sam")


def test_an_infinite_gradient_stays_with_the_corners_that_have_weight() -> None:
    """On an element the others have none: they get 0, as in torchvision, not the NaN of 0 times infinity."""
    x, w = torch.zeros(1, 1, 3, 3, requires_grad=True), torch.ones(1, 1, 1, 1)
    y = gpuconv.deform_conv2d(x, torch.zeros(1, 2, 3, 3), w)
    dy = torch.zeros(1, 1, 3, 3)
    dy[0, 0, 1, 1] = float("inf")
    y.backward(dy)
    assert torch.equal(x.grad, dy)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("special", ["dy", "mask", "w"])
def test_gradients_that_are_recorded_are_those_that_are_not(special: str, ndim: int, rng: np.random.Generator) -> None:
    """On elements and between them: what has no weight or is outside adds nothing, however the gradient is computed."""
    for offsets in ("whole", "edges", "near"):
        case = replace(plain_case(ndim), offsets=offsets, offset_groups=2)
        arrays = draw(case, rng)
        # Of an infinite mask it is NaN or infinity by what is summed first.
        for value in (np.nan,) if special == "mask" else (np.inf, np.nan, -np.inf):
            arrays[special].flat[rng.integers(arrays[special].size)] = value
            tensors = as_torch(case, arrays)
            inputs = [tensors[name] for name in NAMES]
            plain = torch.autograd.grad(called(case, tensors), inputs, tensors["dy"])
            recorded = torch.autograd.grad(called(case, tensors), inputs, tensors["dy"], create_graph=True)
            for one, other in zip(plain, recorded):
                torch.testing.assert_close(one, other, equal_nan=True)
