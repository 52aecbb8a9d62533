"""Samples of the six convolutions (OpInfo's and ours), and the check of their results and gradients on a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from opinfo import op_db

import gpuconv
from gpuconv import numerics
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

NAMES = [f"{family}{ndim}d" for family in ("conv", "conv_transpose") for ndim in (1, 2, 3)]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def op_info(name: str) -> Any:
    (found,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    return found


def samples(name: str, dtype: torch.dtype) -> Iterator[Arguments]:
    """Yield OpInfo's samples, then ours."""
    for sample in op_info(name).sample_inputs("cpu", dtype):
        yield (sample.input, *sample.args), sample.kwargs
    if "transpose" in name:
        yield from transposed_samples(int(name[-2]), dtype)


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.testing.make_tensor(shape, dtype=dtype, device="cpu", low=-5, high=5)


def transposed_samples(ndim: int, dtype: torch.dtype) -> Iterator[Arguments]:
    """What OpInfo leaves out: every option at once, unbatched, empty batch, dilation beyond stride, output padding."""
    size = (4, 3, 5)[:ndim]
    for groups, kwargs in [
        (1, {}),
        (1, {"stride": 2, "output_padding": 1}),
        (
            2,
            {
                "stride": (3, 1, 2)[:ndim],
                "padding": (1, 2, 0)[:ndim],
                "output_padding": (2, 0, 1)[:ndim],
                "dilation": 2,
            },
        ),
        (1, {"dilation": 3, "output_padding": 2}),
        (4, {"stride": (2,), "padding": (1,), "dilation": (2,), "output_padding": (1,)}),
    ]:
        for batch in ((2,), (), (0,)):
            x = tensor(dtype, *batch, 4, *size)
            w = tensor(dtype, 4, 3, *(3, 2, 3)[:ndim])
            yield (x, w, tensor(dtype, 3 * groups)), {**kwargs, "groups": groups}
            yield (x, w), {**kwargs, "groups": groups}


def interpreted_steps(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return about how many reduction steps the interpreter would take, from the larger side of the convolution."""
    weight, ndim = args[1], int(name[-2])
    with torch.no_grad():
        result = getattr(torch.nn.functional, name)(*(t.detach() if t is not None else t for t in args), **kwargs)

    def positions(t: torch.Tensor) -> int:
        return (len(t) if t.dim() == ndim + 2 else 1) * prod(t.shape[-ndim:])

    most = max(positions(args[0]), positions(result))
    return kwargs.get("groups", 1) * prod(weight.shape[2:]) * -(-most // 64)


def _with_gradients(
    fn: Callable[..., torch.Tensor], args: Sequence[Any], kwargs: dict[str, Any], change: Callable[..., torch.Tensor]
) -> list[torch.Tensor]:
    """Return the result and its gradient by each tensor, of operands and of a result gradient that `change` maps."""
    leaves = [change(a).detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    y = fn(*leaves, **kwargs)
    seed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(args[0].dtype).to(y.device).reshape(y.shape)
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [y.detach(), *torch.autograd.grad(y, inputs, change(seed))]


def check_with_gradients(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    backend: str,
    lay: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    **extra: Any,
) -> None:
    """Check the result and its gradients by every tensor against torch's own in float64, by the tolerance rule.

    Ours run on `backend` and nothing else, with every aten convolution forbidden, on operands and a gradient of the
    result as `lay` lays them in memory.
    """
    ours = getattr(gpuconv, name)
    with forbid_aten(), record_plans() as plans:
        found = _with_gradients(ours, args, {**kwargs, **extra, "backend": backend}, lay)
    lengths = {plan.problem.kind: plan.problem.reduction_length for plan in plans}
    forward, by_input = ("transposed", "fprop") if "transpose" in name else ("fprop", "dgrad")
    assert set(lengths) == {forward, by_input, "wgrad"}
    assert {plan.solver.id.partition(".")[0] for plan in plans} == {backend}
    y = found[0]
    products = [lengths[forward] + 1, lengths[by_input], lengths["wgrad"], y.numel()]
    theirs = getattr(torch.nn.functional, name)
    args = [arg.cpu() if isinstance(arg, torch.Tensor) else arg for arg in args]
    reference = _with_gradients(theirs, args, kwargs, torch.Tensor.double)
    magnitude = _with_gradients(theirs, args, kwargs, lambda t: t.double().abs())
    dtype = str(args[0].dtype).removeprefix("torch.")
    for actual, expected, size, length in zip(found, reference, magnitude, products):
        numerics.assert_close(*(t.cpu().numpy() for t in (actual, expected, size)), dtype, length)
