"""Gradients of convolutions of torch tensors: against torch's own on OpInfo's samples, and by finite differences."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conv_samples import NAMES, op_info, transposed_samples
from torch.autograd import gradcheck, gradgradcheck

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

Case = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]


def leaves(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.detach().clone().requires_grad_() if is_float(t) else t for t in tensors)


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def grad_samples(name: str, dtype: torch.dtype) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for sample in op_info(name).sample_inputs("cpu", dtype, requires_grad=True):
        yield (sample.input, *sample.args), sample.kwargs
    if "transpose" in name:
        yield from transposed_samples(int(name[-2]), dtype)


def gradients(
    fn: Callable[..., torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, ...]:
    """Return the result, its gradients, and the gradients of those (by the operands and by the output gradient)."""
    args = leaves(*args)
    inputs = [a for a in args if isinstance(a, torch.Tensor)]
    y = fn(*args, **kwargs)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype).requires_grad_()
    first = torch.autograd.grad(y, inputs, seed, create_graph=True)
    total = sum((g * g.detach().cos()).sum() for g in first)
    if total.is_complex():
        total = total.real + total.imag
    second = torch.autograd.grad(total, [*inputs, seed], allow_unused=True, materialize_grads=True)
    return y, *first, *second


@pytest.mark.parametrize("forbidden", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_opinfo_gradients(name: str, dtype: torch.dtype, forbidden: bool) -> None:
    """To second order. Under the mode that forbids aten convolutions, calls go through torch.library operators."""
    torch.manual_seed(0)
    seen = 0
    for args, kwargs in grad_samples(name, dtype):
        if forbidden:
            with forbid_aten():
                ours = gradients(getattr(gpuconv, name), args, kwargs)
        else:
            with record_plans() as plans:
                ours = gradients(getattr(gpuconv, name), args, kwargs)
            kinds = {plan.problem.kind for plan in plans}
            assert kinds >= ({"transposed"} if "transpose" in name else {"dgrad"}) | {"fprop", "wgrad"}
        theirs = gradients(getattr(torch.nn.functional, name), args, kwargs)
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            torch.testing.assert_close(ours_, theirs_)
        seen += 1
    assert seen >= 8


def real(rng: torch.Generator, *shape: int, last: bool = False) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=rng)
    if last:
        values = values.moveaxis(1, -1).contiguous().moveaxis(-1, 1)
    return values.requires_grad_()


def conv_case(rng: torch.Generator, ndim: int, groups: int = 1, last: bool = False, **kwargs: Any) -> Case:
    x, w = real(rng, 2, 2, *(4, 5, 3)[:ndim], last=last), real(rng, 4, 2 // groups, *(3, 2, 2)[:ndim])
    fn = getattr(gpuconv, f"conv{ndim}d")
    return lambda x, w, b: fn(x, w, b, groups=groups, **kwargs), (x, w, real(rng, 4))


def transposed_case(rng: torch.Generator, ndim: int, groups: int = 1, last: bool = False, **kwargs: Any) -> Case:
    y, w = real(rng, 2, 4, *(3, 2, 2)[:ndim], last=last), real(rng, 4, 2 // groups, *(3, 2, 2)[:ndim])
    fn = getattr(gpuconv, f"conv_transpose{ndim}d")
    return lambda y, w, b: fn(y, w, b, groups=groups, **kwargs), (y, w, real(rng, 2))


def input_grad_case(rng: torch.Generator, ndim: int, **kwargs: Any) -> Case:
    w, dy = real(rng, 4, 2, *(3, 2, 2)[:ndim]), real(rng, 2, 4, *(2, 4, 2)[:ndim])
    fn = getattr(gpuconv, f"conv{ndim}d_input_grad")
    return lambda w, dy: fn((2, 2, *(4, 5, 3)[:ndim]), w, dy, **kwargs), (w, dy)


def weight_grad_case(rng: torch.Generator, ndim: int, **kwargs: Any) -> Case:
    x, dy = real(rng, 2, 2, *(4, 5, 3)[:ndim]), real(rng, 2, 4, *(2, 4, 2)[:ndim])
    fn = getattr(gpuconv, f"conv{ndim}d_weight_grad")
    return lambda x, dy: fn(x, (4, 2, *(3, 2, 2)[:ndim]), dy, **kwargs), (x, dy)


GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped, strided": {"groups": 2, "stride": 2, "padding": 1},
    "dilated, channels-last": {"dilation": 2, "padding": 1, "last": True},
}
CASES: dict[str, Callable[[torch.Generator], Case]] = {}
for _ndim in (1, 2, 3):
    for _name, _kwargs in GEOMETRIES.items():
        CASES[f"conv{_ndim}d {_name}"] = lambda g, n=_ndim, k=_kwargs: conv_case(g, n, **k)
        CASES[f"conv_transpose{_ndim}d {_name}"] = lambda g, n=_ndim, k=_kwargs: transposed_case(g, n, **k)
    CASES[f"conv{_ndim}d_input_grad"] = lambda g, n=_ndim: input_grad_case(g, n)
    CASES[f"conv{_ndim}d_weight_grad"] = lambda g, n=_ndim: weight_grad_case(g, n)
for _mode in ("reflect", "replicate", "circular"):
    _kwargs = {"padding_mode": _mode, "padding": ((1, 2), (2, 0)), "stride": (1, 2)}
    CASES[f"conv2d {_mode}"] = lambda g, k=_kwargs: conv_case(g, 2, **k)
CASES["conv_transpose2d output_size"] = lambda g: transposed_case(g, 2, stride=2, output_size=(8, 5))
CASES["conv2d asymmetric"] = lambda g: conv_case(g, 2, padding="same_upper", stride=(3, 2))
CASES["conv1d stride beyond the kernel"] = lambda g: conv_case(g, 1, stride=4, padding=3)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case: str, torch_rng: torch.Generator) -> None:
    """First and second order, backward and forward mode, one by one and batched."""
    fn, inputs = CASES[case](torch_rng)
    assert gradcheck(fn, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(fn, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_gradcheck_in_full(torch_rng: torch.Generator) -> None:
    """Every entry of the Jacobians, and every way to batch them."""
    for build in (conv_case, transposed_case):
        fn, inputs = build(torch_rng, 2, groups=2, stride=2, padding=1)
        options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
        assert gradcheck(fn, inputs, check_undefined_grad=True, **options)
        assert gradgradcheck(fn, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_third_order(torch_rng: torch.Generator) -> None:
    x, w = real(torch_rng, 1, 1, 5), real(torch_rng, 1, 1, 3)

    def third(conv: Callable[..., torch.Tensor]) -> torch.Tensor:
        value = (conv(x, w, padding=1) ** 3).sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value.sum(), w, create_graph=True)
        return value

    torch.testing.assert_close(third(gpuconv.conv1d), third(torch.nn.functional.conv1d))


ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_epilogue_gradients(name: str, activation: str, torch_rng: torch.Generator) -> None:
    """By every tensor of the epilogue, in the second and the third tier, to second order."""
    fn = getattr(gpuconv, name)
    x, w, b = real(torch_rng, 1, 2, 3, 3), real(torch_rng, 2, 2, 2, 2), real(torch_rng, 2)
    scale, shift = real(torch_rng, 2), real(torch_rng, 2)
    with torch.no_grad():
        residual = torch.randn_like(fn(x, w)).requires_grad_()

    def run(x: Any, w: Any, b: Any, scale: Any, shift: Any, residual: Any) -> torch.Tensor:
        return fn(x, w, b, scale=scale, shift=shift, residual=residual, activation=activation)

    inputs = (x, w, b, scale, shift, residual)
    assert gradcheck(run, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)
    ours, plain = run(*inputs), run(*(t.detach() for t in inputs))
    torch.testing.assert_close(ours, plain)
    with forbid_aten():
        through_operator = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    for one, other in zip(through_operator, torch.autograd.grad(ours.square().sum(), inputs)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("operator", [False, True], ids=["function", "operator"])
def test_only_what_is_needed(operator: bool, torch_rng: torch.Generator) -> None:
    x, w, b = (t.detach() for t in (real(torch_rng, 1, 2, 5, 5), real(torch_rng, 3, 2, 3, 3), real(torch_rng, 3)))
    for wanted, kinds in ((x, ["fprop", "dgrad"]), (w, ["fprop", "wgrad"]), (b, ["fprop"])):
        wanted.requires_grad_()
        with record_plans() as plans:
            if operator:
                with forbid_aten():
                    gpuconv.conv2d(x, w, b).sum().backward()
            else:
                gpuconv.conv2d(x, w, b).sum().backward()
        assert [plan.problem.kind for plan in plans] == kinds
        wanted.requires_grad_(False)


def test_only_what_is_needed_is_saved(torch_rng: torch.Generator) -> None:
    x, w = real(torch_rng, 1, 2, 5, 5), real(torch_rng, 3, 2, 3, 3)
    for frozen, kept in ((x, x), (w, w)):
        frozen.requires_grad_(False)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda _: x):
            gpuconv.conv2d(x, w)
        assert [t.data_ptr() for t in saved] == [kept.data_ptr()]
        frozen.requires_grad_(True)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_formats_of_gradients(name: str, last: bool, torch_rng: torch.Generator) -> None:
    """Gradients have the memory format of torch's: that of the operands."""
    x, w = (
        torch.randn(shape, generator=torch_rng)
        .to(memory_format=torch.channels_last if last else torch.contiguous_format)
        .requires_grad_()
        for shape in ((2, 4, 5, 6), (4, 4, 3, 3))
    )
    strides = []
    for module in (gpuconv, torch.nn.functional):
        y = getattr(module, name)(x, w)
        grads = torch.autograd.grad(y, (x, w), torch.ones_like(y))
        strides.append([t.stride() for t in (y, *grads)])
    assert strides[0] == strides[1]


def test_backward_from_another_thread(torch_rng: torch.Generator) -> None:
    """What was forced in the forward pass holds there, and the forced solver is no solver of other passes."""
    x, w = real(torch_rng, 1, 2, 5, 5), real(torch_rng, 3, 2, 3, 3)
    with gpuconv.use_backend("numpy.conv.fprop.im2col"):
        y = gpuconv.conv2d(x, w)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with gpuconv.use_backend("triton"), record_plans() as plans:  # which does not run on the CPU
                y.sum().backward()
            assert [plan.solver.id for plan in plans] == ["numpy.conv.dgrad.col2im", "numpy.conv.wgrad.im2col"]
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    for ours, theirs in zip((x.grad, w.grad), torch.autograd.grad(torch.nn.functional.conv2d(x, w).sum(), (x, w))):
        torch.testing.assert_close(ours, theirs)


def test_explain_needs_no_gradient(torch_rng: torch.Generator) -> None:
    fn, inputs = conv_case(torch_rng, 2)
    assert gpuconv.explain(gpuconv.conv2d, *inputs).solver == "numpy.conv.fprop.im2col"
    with forbid_aten():
        assert gpuconv.explain(gpuconv.conv2d, *inputs).solver == "numpy.conv.fprop.im2col"
    with record_plans() as plans:
        fn(*inputs)
    assert [plan.solver.id for plan in plans] == ["numpy.conv.fprop.im2col"]


def test_deterministic_algorithms_change_nothing(torch_rng: torch.Generator) -> None:
    fn, inputs = conv_case(torch_rng, 2, stride=2, padding=1)

    def everything() -> list[torch.Tensor]:
        y = fn(*inputs)
        return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]

    before = everything()
    torch.use_deterministic_algorithms(True)
    try:
        after = everything()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(before, after):
        assert torch.equal(one, other)


def test_a_graph_is_freed(torch_rng: torch.Generator) -> None:
    fn, inputs = conv_case(torch_rng, 2)
    y = fn(*inputs).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_zeros_without_memory() -> None:
    """Autograd stands for zeros by tensors that have no memory; they reach an operator like others."""
    x, w = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 2, 2, requires_grad=True)
    y = gpuconv.conv2d(x, w)
    for grad in torch.autograd.grad(y, (x, w), torch._efficientzerotensor(y.shape)):
        assert not grad.any()
    (grad,) = torch.autograd.grad(gpuconv.max_pool2d(x, 2), x, torch._efficientzerotensor((1, 2, 2, 2)))
    assert not grad.any()
    assert not gpuconv.conv2d(torch._efficientzerotensor(x.shape), w.detach()).any()
