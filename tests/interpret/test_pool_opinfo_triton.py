"""PyTorch's own samples (OpInfo) of pools and their gradients on the Triton kernels, under the interpreter.

The gate runs a few samples per pool, evenly chosen, and ``GPUCONV_TEST_FULL=1`` all of them, of every variant of the
operator. Every plan of the call and of its gradient must be one of Triton's, and kernels must have run. Samples come
once more with every tensor, and the gradient of the result, apart in memory. OpInfo's inputs for references are its
samples, with these operators.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
from opinfo import noncontiguous_like, op_db
from triton.runtime import interpreter

import gpuconv
from gpuconv.backends.triton.interpreter import repair_interpreter
from gpuconv.dispatch import record_plans

FAMILIES = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool",
            "max_unpool")  # fmt: skip
NAMES = [f"{family}{n}d" for family in FAMILIES for n in (1, 2, 3) if (family, n) != ("fractional_max_pool", 1)]
FEW = 3
LARGEST = 4096
"""Elements of an input in the gate: programs cost milliseconds each."""

Sample = tuple[tuple[Any, ...], dict[str, Any]]


def lp_samples(ndim: int, dtype: torch.dtype) -> Iterator[Sample]:
    """Yield power pools, of which OpInfo has none."""
    for p, kernel, stride, ceil in ((2, 2, None, False), (1, 3, 2, True), (3, 3, 1, False), (2.5, 2, 2, True)):
        x = torch.rand(1, 2, *(7, 5, 4)[:ndim], dtype=dtype) + 0.1
        yield (x, p, kernel, stride, ceil), {}


def samples(name: str, dtype: torch.dtype, full: bool) -> list[Sample]:
    torch.manual_seed(0)
    if name.startswith("lp_pool"):
        return list(lp_samples(int(name[-2]), dtype))
    found: list[Sample] = []
    for op in op_db:
        if op.name == f"nn.functional.{name}":
            assert op.reference_inputs_func is None
            found += [((s.input, *s.args), s.kwargs) for s in op.sample_inputs("cpu", dtype, requires_grad=True)]
    assert len(found) >= 5
    if full:  # of long lists one half on either Triton
        both = len(found) <= 400 or os.environ.get("GPUCONV_TEST_BOTH") == "1"
        return found if both else found[triton.__version__.startswith("3.6.") :: 2]
    small = [sample for sample in found if 0 < sample[0][0].numel() <= LARGEST]
    return small[:: max(len(small) // FEW, 1)][:FEW]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that ran, in order."""
    names: list[str] = []
    run = interpreter.GridExecutor.__call__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
    repair_interpreter()
    return names


def slope(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], apart: bool = False) -> list[torch.Tensor]:
    """Return the results, and the gradient by the first argument; with `apart` of tensors that are not contiguous."""
    torch.manual_seed(1)  # fractional pools draw samples
    x = args[0].detach().clone(memory_format=torch.preserve_format)
    lay = noncontiguous_like if apart else torch.clone
    x = (lay(x) if apart else x).detach().requires_grad_()
    others = [lay(value.detach()) if isinstance(value, torch.Tensor) else value for value in args[1:]]
    result = fn(x, *others, **{k: lay(v.detach()) if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
    results = list(result) if isinstance(result, tuple) else [result]
    seed = torch.linspace(-1, 1, results[0].numel(), dtype=x.dtype).reshape(results[0].shape)
    return [*results, *torch.autograd.grad(results[0], x, lay(seed))]


@pytest.mark.parametrize("apart", [False, True], ids=["dense", "apart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_opinfo(name: str, dtype: torch.dtype, apart: bool, launched: list[str], full: bool) -> None:
    kernels: set[str] = set()
    for args, kwargs in samples(name, dtype, full):
        launched.clear()
        with record_plans() as plans:
            ours = slope(getattr(gpuconv, name), args, {**kwargs, "backend": "triton"}, apart)
        for one, other in zip(ours, slope(getattr(F, name), args, kwargs), strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, a=args, k=kwargs: f"{text}\n{a[1:]} {k}")
        assert {plan.problem.kind for plan in plans} == {"fprop", "bwd"}
        assert all(plan.solver.id.startswith("triton.pool.") for plan in plans), [plan.solver.id for plan in plans]
        assert ours[0].numel() == 0 or len(launched) >= 2, launched
        kernels |= set(launched)
    assert all(kernel.startswith("_pool_") for kernel in kernels), kernels
    assert any("bwd" in kernel for kernel in kernels) and any("fprop" in kernel for kernel in kernels), kernels


@pytest.mark.parametrize("apart", [False, True], ids=["dense", "apart"])
def test_unfold(apart: bool, launched: list[str], full: bool) -> None:
    """Its gradient is fold."""
    found = samples("unfold", torch.float32, full)
    for args, kwargs in found:
        launched.clear()
        with record_plans() as plans:
            ours = slope(gpuconv.unfold, args, {**kwargs, "backend": "triton"}, apart)
        for one, other in zip(ours, slope(F.unfold, args, kwargs), strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, a=args, k=kwargs: f"{text}\n{a[1:]} {k}")
        ids = ["triton.pool.unfold.fprop.copy", "triton.pool.fold.fprop.gather"]
        assert [plan.solver.id for plan in plans] == ids
        assert ours[0].numel() == 0 or launched == ["_unfold_kernel", "_fold_kernel"]


SECOND: dict[str, tuple[Any, ...]] = {
    "max_pool2d": (2, 2, 1),
    "avg_pool2d": (3, 2, 1),
    "lp_pool2d": (2, 2),
    "adaptive_avg_pool2d": (2,),
    "adaptive_max_pool2d": (2,),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_order(name: str, launched: list[str]) -> None:
    """Gradients of gradients run on the kernels too: maxima are read at their indices by that of unpooling."""
    torch.manual_seed(0)
    x = (torch.rand(1, 2, 5, 4, dtype=torch.float64) + 0.1).requires_grad_()
    found = []
    for module, options in ((gpuconv, {"backend": "triton"}), (F, {})):
        with record_plans() as plans:
            y = getattr(module, name)(x, *SECOND[name], **options)
            seed = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape).requires_grad_()
            (dx,) = torch.autograd.grad(y, x, seed, create_graph=True)
            found.append([dx, *torch.autograd.grad(dx.pow(3).sum(), (x, seed), materialize_grads=True)])
        assert all(plan.solver.id.startswith("triton.pool.") for plan in plans), [plan.solver.id for plan in plans]
        assert len(plans) >= 3 or module is F
    torch.testing.assert_close(*found)
