"""Gradients of pools of torch tensors: against torch's own on OpInfo's samples, and by finite differences."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_pool_opinfo import FOLDS, OPS, ident, lp_samples
from torch.autograd import gradcheck, gradgradcheck

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

TIERS = pytest.mark.parametrize("operator", [False, True], ids=["function", "operator"])


def tier(operator: bool) -> Any:
    """Under the mode that forbids aten's pools, calls go through torch.library operators."""
    return forbid_aten() if operator else nullcontext()


def leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value.detach() if isinstance(value, torch.Tensor) else value
    return value.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def slopes(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], second: bool) -> list[Any]:
    """Return the result, its gradient by the first argument and, with `second`, the gradients of that."""
    torch.manual_seed(1)  # fractional pools draw samples
    x = leaf(args[0])
    result = fn(x, *(leaf(a).detach() if isinstance(a, torch.Tensor) else a for a in args[1:]), **kwargs)
    results = list(result) if isinstance(result, tuple) else [result]
    y = results[0]
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype).requires_grad_()
    (dx,) = torch.autograd.grad(y, x, seed, create_graph=second)
    results.append(dx)
    if second:
        total = (dx * dx.detach().cos()).sum()
        results += torch.autograd.grad(total, [x, seed], allow_unused=True, materialize_grads=True)
    return results


def compare(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], operator: bool, second: bool) -> None:
    theirs = slopes(getattr(F, name), args, kwargs, second)
    with tier(operator):
        ours = slopes(getattr(gpuconv, name), args, kwargs, second)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, msg=lambda text: f"{text}\n{args[1:]} {kwargs}")


@TIERS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("op", OPS, ids=ident)
def test_opinfo_gradients(op: Any, dtype: torch.dtype, operator: bool, full: bool) -> None:
    """In float64 to second order. Lists of max pools are long: either tier runs a half. The gate runs a few of each."""
    torch.manual_seed(0)
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) >= 6
    if not full:
        step = max(len(samples) // 15, 1)
        samples = samples[(2 * operator + (dtype is torch.float64)) % step :: step]
    elif len(samples) > 400:
        samples = samples[operator::2]
    for sample in samples:
        name = op.name.removeprefix("nn.functional.")
        compare(name, (sample.input, *sample.args), sample.kwargs, operator, dtype is torch.float64)


@TIERS
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_gradients(ndim: int, operator: bool, torch_rng: torch.Generator) -> None:
    """OpInfo has no power pools. Bases are positive where powers are not whole."""
    seen = 0
    for shape, p, kernel, stride, ceil in itertools.islice(lp_samples(ndim), 0, None, 1 if ndim < 3 else 2):
        x = torch.randn(shape, generator=torch_rng, dtype=torch.float64)
        x = x if p in (1, 2, 2.0, 4) or abs(p) == float("inf") else x.abs() + 0.1
        compare(f"lp_pool{ndim}d", (x, p, kernel, stride, ceil), {}, operator, True)
        seen += 1
    assert seen >= 50


@TIERS
def test_lp_gradient_of_zeros(operator: bool) -> None:
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    x[:, 1] = torch.arange(16.0).reshape(4, 4)
    compare("lp_pool2d", (x, 2, 2), {}, operator, False)


def unpool_samples(ndim: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What OpInfo leaves out: output sizes, equal positions, unbatched, channels-last."""
    size = (6, 5, 4)[:ndim]
    for shape in ((2, 3, *size), (3, *size)):
        x = torch.randn(shape, dtype=torch.float64)
        for kernel, stride, padding in ((2, None, 0), (3, 2, 1), (2, 1, 0)):
            pooled, where = getattr(F, f"max_pool{ndim}d")(x, kernel, stride, padding, return_indices=True)
            yield (pooled, where, kernel, stride, padding), {"output_size": list(size)}
        yield (x, torch.zeros(shape, dtype=torch.int64), 2), {}
    if ndim == 2:
        last = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
        pooled, where = F.max_pool2d(last, 2, return_indices=True)
        yield (pooled, where, 2), {"output_size": [4, 5]}


@TIERS
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool_gradients(ndim: int, operator: bool) -> None:
    torch.manual_seed(0)
    for args, kwargs in unpool_samples(ndim):
        equal = args[1].unique().numel() == 1  # whose winner torch leaves to chance
        theirs = slopes(getattr(F, f"max_unpool{ndim}d"), args, kwargs, True)[equal:]
        with tier(operator):
            ours = slopes(getattr(gpuconv, f"max_unpool{ndim}d"), args, kwargs, True)[equal:]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@TIERS
@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional_gradients(ndim: int, operator: bool) -> None:
    """With given samples, which OpInfo leaves out: with and without indices, batched and not."""
    torch.manual_seed(0)
    for batch, indices, kernel in itertools.product((2, None), (False, True), (1, 2, 3)):
        x = torch.randn(*(() if batch is None else (batch,)), 3, *(9, 8, 10)[:ndim], dtype=torch.float64)
        samples = torch.rand(batch or 1, 3, ndim, dtype=torch.float64)
        options = {"output_size": 4, "return_indices": indices, "_random_samples": samples}
        compare(f"fractional_max_pool{ndim}d", (x, kernel), options, operator, True)


@TIERS
def test_fold_gradients(operator: bool, torch_rng: torch.Generator) -> None:
    """OpInfo has no fold."""
    folds = [fold for fold in FOLDS if isinstance(fold[1], tuple)]
    assert len(folds) >= 6
    for shape, size, kernel, options in folds:
        x = torch.randn(shape, generator=torch_rng, dtype=torch.float64)
        try:
            F.fold(x, size, kernel, **options)
        except RuntimeError:  # test_fold_samples compares errors
            continue
        compare("fold", (x, size, kernel), options, operator, True)


@TIERS
def test_complex_columns(operator: bool, torch_rng: torch.Generator) -> None:
    """Gradients by complex images and columns, which torch has."""
    image = torch.randn(2, 3, 6, 5, generator=torch_rng, dtype=torch.complex128, requires_grad=True)
    columns = torch.randn(2, 12, 12, generator=torch_rng, dtype=torch.complex128, requires_grad=True)
    for name, x, args in (("unfold", image, (2, 2, 1)), ("fold", columns, ((5, 4), 2))):
        found = []
        for module in (gpuconv, F):
            with tier(operator and module is gpuconv):
                y = getattr(module, name)(x, *args)
                found.append((y, *torch.autograd.grad(y.abs().square().sum(), x)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert gradcheck(lambda x: gpuconv.unfold(x, 2, 2, 1), image, fast_mode=True, check_forward_ad=True)


def distinct(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Values that differ by more than a finite difference moves them."""
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=rng).double()
    return ((order - count / 2) / 8 + 0.01).reshape(shape)


CASES: dict[str, tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "max1": ("max_pool1d", (2, 2, 9), (3, 2, 1), {}),
    "max2 dilated ceil": ("max_pool2d", (2, 2, 7, 6), (3, 2, 1, (1, 2), True), {}),
    "max2 pairs": ("max_pool2d", (1, 2, 7, 6), (3, 2, ((0, 1), (1, 0))), {}),
    "max2 same": ("max_pool2d", (1, 2, 7, 6), (3, 1, "same"), {}),
    "max2 unbatched": ("max_pool2d", (2, 7, 6), (2,), {}),
    "max3": ("max_pool3d", (1, 2, 4, 5, 4), (2, 2, 1), {}),
    "avg1": ("avg_pool1d", (2, 2, 9), (3, 2, 1), {}),
    "avg2 ceil": ("avg_pool2d", (2, 2, 7, 6), (3, 2, 1, True, False), {}),
    "avg2 divisor": ("avg_pool2d", (1, 2, 7, 6), (2,), {"divisor_override": 3}),
    "avg2 pairs, dilated": ("avg_pool2d", (1, 2, 7, 6), (3, 2, ((1, 0), (1, 2))), {"dilation": 2}),
    "avg2 same_upper": ("avg_pool2d", (1, 2, 7, 6), (3, 2, "same_upper"), {}),
    "avg3": ("avg_pool3d", (1, 2, 4, 5, 4), (2, 2, 1), {}),
    "lp1": ("lp_pool1d", (2, 2, 9), (2, 3, 2), {}),
    "lp2": ("lp_pool2d", (1, 2, 7, 6), (3, 2), {}),
    "lp2 padded": ("lp_pool2d", (1, 2, 7, 6), (2.5, 3, 2, True), {"padding": 1}),
    "lp2 one": ("lp_pool2d", (1, 2, 7, 6), (1, 2), {}),
    "lp3 extreme": ("lp_pool3d", (1, 2, 4, 5, 4), (float("inf"), 2), {}),
    "adaptive avg1": ("adaptive_avg_pool1d", (2, 2, 9), (4,), {}),
    "adaptive avg2": ("adaptive_avg_pool2d", (2, 2, 7, 6), ((3, 4),), {}),
    "adaptive avg2 global": ("adaptive_avg_pool2d", (2, 2, 7, 6), (1,), {}),
    "adaptive avg3": ("adaptive_avg_pool3d", (1, 2, 4, 5, 4), ((3, None, 2),), {}),
    "adaptive max1": ("adaptive_max_pool1d", (2, 2, 9), (4,), {}),
    "adaptive max2": ("adaptive_max_pool2d", (2, 2, 7, 6), ((3, 4),), {}),
    "adaptive max3": ("adaptive_max_pool3d", (1, 2, 4, 5, 4), ((3, None, 2),), {}),
    "unfold": ("unfold", (2, 2, 5, 6), ((2, 3), (2, 1), (1, 2), (1, 2)), {}),
    "unfold unbatched": ("unfold", (2, 5, 6), (2,), {}),
    "fold": ("fold", (2, 12, 20), ((5, 6), 2), {}),
    "fold strided": ("fold", (1, 18, 9), ((5, 6), 3), {"padding": 1, "stride": 2}),
    "unpool2": ("max_unpool2d", (1, 2, 2, 3), (torch.arange(12).reshape(1, 2, 2, 3), 2), {}),
    "unpool3": ("max_unpool3d", (1, 2, 2, 2, 1), (4 * torch.arange(8).reshape(1, 2, 2, 2, 1), 2), {}),
    "fractional2": (
        "fractional_max_pool2d", (1, 2, 7, 6), (2, 3),
        {"_random_samples": torch.tensor([[[0.1, 0.7], [0.4, 0.2]]], dtype=torch.float64)},
    ),
    "fractional3": (
        "fractional_max_pool3d", (1, 2, 6, 5, 7), (2, 3),
        {"_random_samples": torch.tensor([[[0.1, 0.7, 0.4], [0.4, 0.2, 0.9]]], dtype=torch.float64)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str, torch_rng: torch.Generator) -> None:
    """First and second order, backward and forward mode, one by one and batched."""
    name, shape, args, kwargs = CASES[case]
    x = distinct(torch_rng, *shape)
    if case in ("lp2", "lp2 padded"):  # powers of negative numbers have no root
        x = x.abs() + 0.1
    x.requires_grad_()

    def fn(x: torch.Tensor) -> torch.Tensor:
        return getattr(gpuconv, name)(x, *args, **kwargs)

    assert gradcheck(fn, x, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(fn, x, check_fwd_over_rev=True, fast_mode=True)


def test_gradcheck_in_full(torch_rng: torch.Generator) -> None:
    """Every entry of the Jacobians, and every way to batch them."""
    x = distinct(torch_rng, 1, 2, 4, 4).requires_grad_()
    calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: gpuconv.max_pool2d(x, 3, 2, 1),
        lambda x: gpuconv.avg_pool2d(x, 3, 2, 1),
        lambda x: gpuconv.lp_pool2d(x, 2, 2),
        lambda x: gpuconv.adaptive_max_pool2d(x, 3),
        lambda x: gpuconv.max_unpool2d(x, torch.arange(32).reshape(1, 2, 4, 4), 2),
    ]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    for fn in calls:
        assert gradcheck(fn, x, check_undefined_grad=True, **options)
        assert gradgradcheck(fn, x, check_fwd_over_rev=True, check_rev_over_rev=True)


EXPLICIT: dict[str, tuple[str, Callable[[torch.Tensor], tuple[Any, ...]]]] = {
    "avg": ("avg_pool2d_backward", lambda x: (x, 3, 2, 1)),
    "adaptive avg": ("adaptive_avg_pool2d_backward", lambda x: (x,)),
    "lp": ("lp_pool2d_backward", lambda x: (x, 2, 3, 2)),
    "extreme": ("lp_pool2d_backward", lambda x: (x, float("inf"), 3, 2)),
    "max": (
        "max_pool2d_with_indices_backward",
        lambda x: (x, 3, 2, 1, 1, False, F.max_pool2d(x, 3, 2, 1, return_indices=True)[1]),
    ),
    "adaptive max": (
        "adaptive_max_pool2d_backward", lambda x: (x, F.adaptive_max_pool2d(x, (4, 3), return_indices=True)[1])
    ),
}  # fmt: skip


@TIERS
@pytest.mark.parametrize("case", EXPLICIT)
def test_explicit_gradients_are_differentiable(case: str, operator: bool, torch_rng: torch.Generator) -> None:
    name, arguments = EXPLICIT[case]
    x = distinct(torch_rng, 1, 2, 8, 6)
    size = {"lp": (3, 2), "extreme": (3, 2), "adaptive avg": (4, 3)}.get(case, (4, 3))
    dy = distinct(torch_rng, 1, 2, *size).requires_grad_()
    args = arguments(x)
    plain = getattr(gpuconv, name)(dy.detach(), *args)
    with tier(operator):
        found = getattr(gpuconv, name)(dy, *args)
        torch.testing.assert_close(found, plain)
    assert gradcheck(lambda dy: getattr(gpuconv, name)(dy, *args), dy, fast_mode=True, check_forward_ad=True)


FORMATS = {1: None, 2: torch.channels_last, 3: torch.channels_last_3d}


@TIERS
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_formats(ndim: int, operator: bool) -> None:
    """Results and gradients have the memory format of torch's, batched and unbatched."""
    torch.manual_seed(0)
    base = torch.randn(2, 4, *(6, 5, 7)[:ndim])
    last = base.moveaxis(1, -1).contiguous().moveaxis(-1, 1)
    names: list[tuple[str, tuple[Any, ...]]] = [
        ("max_pool", (2,)), ("avg_pool", (3, 2, 1)), ("adaptive_avg_pool", (3,)), ("adaptive_max_pool", (3,))
    ]  # fmt: skip
    for x, (name, args) in itertools.product((base, last, base[0], last[0]), names):
        found = []
        for module in (gpuconv, F):
            with tier(operator and module is gpuconv):
                x = x.detach().requires_grad_()
                y = getattr(module, f"{name}{ndim}d")(x, *args)
                (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
            found.append((y, dx))
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs)
        y, dx = (t.stride() for t in found[0])
        # Elsewhere torch's own pools differ from each other: most in 3-D are contiguous always.
        if ndim == 2 or (ndim == 3 and x.dim() == 5 and name == "max_pool"):
            assert y == found[1][0].stride(), (name, x.stride())
            assert x.dim() == ndim + 1 or dx == x.stride(), (name, x.stride())


def test_what_is_saved() -> None:
    """Offsets of a byte or two; positions only where the user asked for them; nothing for an average."""

    def saved(fn: Callable[[torch.Tensor], Any], shape: tuple[int, ...]) -> list[torch.dtype]:
        kept: list[torch.dtype] = []
        x = torch.randn(shape, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
            fn(x)
        return kept

    square = (1, 2, 16, 16)
    assert saved(lambda x: gpuconv.max_pool2d(x, 3), square) == [torch.int8]
    assert saved(lambda x: gpuconv.max_pool2d(x, 12), square) == [torch.int16]
    assert saved(lambda x: gpuconv.max_pool3d(x, (33, 32, 32)), (1, 1, 33, 32, 32)) == [torch.int32]
    assert saved(lambda x: gpuconv.adaptive_max_pool2d(x, 3), square) == [torch.int8]
    assert saved(lambda x: gpuconv.adaptive_max_pool2d(x, 1), square) == [torch.int16]
    assert saved(lambda x: gpuconv.max_pool2d(x, 3, return_indices=True), square) == [torch.int64]
    assert saved(lambda x: gpuconv.fractional_max_pool2d(x, 3, 2), square) == [torch.int8, torch.float32]  # and samples
    assert saved(lambda x: gpuconv.avg_pool2d(x, 3), square) == []
    assert saved(lambda x: gpuconv.fold(gpuconv.unfold(x, 3), 16, 3), square) == []
    assert saved(lambda x: gpuconv.adaptive_avg_pool2d(x, 3), square) == []


@TIERS
def test_backward_from_another_thread(operator: bool) -> None:
    """What was forced in the forward pass holds there, and the forced solver is no solver of other passes."""
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    with gpuconv.use_backend("numpy.pool.max.fprop"), tier(operator):
        y = gpuconv.max_pool2d(x, 2)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with gpuconv.use_backend("triton"), record_plans() as plans:  # which does not run on the CPU
                y.sum().backward()
            assert [plan.solver.id for plan in plans] == ["numpy.pool.max.bwd"]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    torch.testing.assert_close(x.grad, torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0])


def test_explain_needs_no_gradient() -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    assert gpuconv.explain(gpuconv.max_pool2d, x, 2).solver == "numpy.pool.max.fprop"
    with forbid_aten():
        assert gpuconv.explain(gpuconv.avg_pool2d, x, 2).solver == "numpy.pool.avg.fprop"


def test_indices_have_no_gradient() -> None:
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    for operator in (False, True):
        with tier(operator):
            y, indices = gpuconv.max_pool2d(x, 2, return_indices=True)
            assert y.requires_grad and not indices.requires_grad and indices.dtype is torch.int64


def test_a_graph_is_freed() -> None:
    y = gpuconv.max_pool2d(torch.randn(1, 2, 6, 6, requires_grad=True), 2).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()
