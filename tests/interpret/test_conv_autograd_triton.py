"""Autograd over our kernels: finite differences to second order, other threads, precision and determinism.

The gate runs a fifteenth of the finite differences (see conftest.py).
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from triton.runtime.interpreter import InterpretedFunction

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

GEOMETRIES = {
    "plain": {},
    "grouped": {"groups": 2},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 1},
    "everything": {"groups": 2, "stride": 2, "padding": 1, "dilation": 2},
}
CASES = [(name, ndim, geometry) for name in ("conv", "conv_transpose") for ndim in (1, 2, 3) for geometry in GEOMETRIES]
MODES = ("reflect", "replicate", "circular")


def real(rng, *shape, last=False):
    values = torch.randn(shape, dtype=torch.float64, generator=rng)
    if last:
        values = values.movedim(1, -1).contiguous().movedim(-1, 1)
    return values.requires_grad_()


def operands(rng, name, ndim, groups=1, last=False):
    """Return tiny operands: input, weight of one channel per group, bias."""
    w = real(rng, 2, 1, *(2, 1, 2)[-ndim:])
    if "transpose" in name:
        return real(rng, 1, 2, *(2, 3, 2)[-ndim:], last=last), w, real(rng, groups)
    return real(rng, 1, groups, *(3, 2, 4)[-ndim:], last=last), w, real(rng, 2)


def check(fn, inputs):
    with record_plans() as plans:
        assert gradcheck(fn, inputs, fast_mode=True)
        assert gradgradcheck(fn, inputs, fast_mode=True)
    assert {plan.solver.id.partition(".")[0] for plan in plans} == {"triton"}


@pytest.mark.parametrize(("name", "ndim", "geometry"), CASES, ids=lambda value: str(value))
def test_gradcheck(name, ndim, geometry, torch_rng):
    """First and second order by input, weight and bias."""
    options = GEOMETRIES[geometry]
    fn = getattr(gpuconv, f"{name}{ndim}d")
    inputs = operands(torch_rng, name, ndim, options.get("groups", 1), last=geometry == "strided")
    check(lambda x, w, b: fn(x, w, b, **options, backend="triton"), inputs)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_padding_modes(mode, torch_rng):
    x, w, b = real(torch_rng, 1, 1, 3, 2), real(torch_rng, 2, 1, 2, 2), real(torch_rng, 2)
    options = {"padding": ((1, 2), (1, 0)), "stride": (1, 2), "padding_mode": mode, "backend": "triton"}
    check(lambda x, w, b: gpuconv.conv2d(x, w, b, **options), (x, w, b))


@pytest.mark.parametrize("name", ("conv1d", "conv_transpose1d"))
def test_gradcheck_in_full(name, torch_rng):
    """Every entry of the Jacobians, forward and reverse mode, of the smallest problems."""
    inputs = real(torch_rng, 1, 1, 3), real(torch_rng, 1, 1, 2), real(torch_rng, 1)

    def fn(x, w, b):
        return getattr(gpuconv, name)(x, w, b, stride=2, padding=1, backend="triton")

    assert gradcheck(fn, inputs, check_forward_ad=True)
    assert gradgradcheck(fn, inputs)


@pytest.mark.parametrize("operator", (False, True), ids=("function", "operator"))
@pytest.mark.parametrize("name", ("conv2d", "conv_transpose2d"))
def test_backward_from_another_thread(name, operator, torch_rng):
    """There no context variable says what was forced; the kernels of the forced backend run all the same."""
    x, w, b = operands(torch_rng, name, 2)
    fn = getattr(gpuconv, name)
    if operator:
        with forbid_aten():
            y = fn(x, w, b, stride=2, padding=1, backend="triton")
    else:
        with gpuconv.use_backend("triton"):
            y = fn(x, w, b, stride=2, padding=1)
    seed = torch.randn(y.shape, dtype=y.dtype, generator=torch_rng)
    ran, failures = [], []

    def work():
        try:
            with gpuconv.use_backend("numpy"), record_plans() as plans:
                y.backward(seed)
            ran.extend(plans)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
    by_input = "fprop" if "transpose" in name else "dgrad"
    assert {(plan.problem.kind, plan.solver.id.partition(".")[0]) for plan in ran} == {
        (by_input, "triton"),
        ("wgrad", "triton"),
    }
    theirs = getattr(torch.nn.functional, name)(x, w, b, stride=2, padding=1)
    expected = torch.autograd.grad(theirs, (x, w, b), seed)
    for ours, other in zip((x.grad, w.grad, b.grad), expected):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize("operator", (False, True), ids=("function", "operator"))
@pytest.mark.parametrize("precision", ("ieee", "tf32", "tf32x3"))
def test_precision_reaches_the_kernels_of_every_pass(precision, operator, monkeypatch, torch_rng):
    x, w = (torch.randn(1, 2, 4, 4, generator=torch_rng).requires_grad_() for _ in range(2))
    given = []
    start = InterpretedFunction.run

    def run(self, *args, **kwargs):
        given.append(kwargs.get("PRECISION", precision))
        return start(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", run)
    with record_plans() as plans:
        if operator:
            with forbid_aten():
                y = gpuconv.conv2d(x, w, precision=precision, backend="triton")
        else:
            y = gpuconv.conv2d(x, w, precision=precision, backend="triton")
        y.sum().backward()
    assert [(plan.problem.kind, plan.problem.precision) for plan in plans] == [
        (kind, precision) for kind in ("fprop", "dgrad", "wgrad")
    ]
    assert len(given) >= 3 and set(given) == {precision}


@pytest.mark.parametrize("name", ("conv2d", "conv_transpose2d"))
def test_deterministic_algorithms_change_nothing(name, torch_rng):
    """Not a bit, and neither does running again, with a weight gradient in several splits."""
    fn = getattr(gpuconv, name)
    x, w, b = (torch.randn(shape, generator=torch_rng) for shape in ((2, 3, 17, 17), (3, 3, 2, 2), (3,)))
    inputs = [t.requires_grad_() for t in (x, w, b)]

    def everything():
        with record_plans() as plans:
            y = fn(*inputs, padding=1, backend="triton")
            results = [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]
        assert [plan.config["splits"] > 1 for plan in plans if plan.problem.kind == "wgrad"] == [True]
        return [result.detach() for result in results]

    before = everything()
    torch.use_deterministic_algorithms(True)
    try:
        after = everything()
    finally:
        torch.use_deterministic_algorithms(False)
    for results in (after, everything()):
        for one, other in zip(before, results, strict=True):
            assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
