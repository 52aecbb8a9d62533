"""The rest of the parity stage: functions that no layer of a network is made of, as calls.

Power pools, fractional pools, unpooling, unfold and fold, forward and backward, and the gradient of max pools by what
autograd saves: every solver of every backend that takes the call, against torch in float64 on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.dispatch import backends, record_plans
from gpuconv.ops.pool_fake import AS_INPUT, Form
from gpuconv.ops.pool_library import launch

from .calls import in_format
from .contenders import plain, settings
from .referee import poisoned, tolerance

__all__ = ["PlainCall", "calls", "judge_call", "parity_calls"]

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class PlainCall:
    """A function of gpuconv on tensors and other arguments, and what torch computes of the same tensors.

    `copies`: the result is made of elements of the tensors, and is compared exactly. `sums` is how many are added, of
    which those of the absolute values of the tensors in `linear` (by default all) are the tolerance rule's magnitude.
    """

    name: str
    key: str
    tensors: Tensors
    ours: Callable[..., Any]
    theirs: Callable[[Tensors], torch.Tensor]
    copies: bool = False
    sums: int = 1
    linear: tuple[str, ...] = ("x", "dy")


def _gradient(function: Callable[..., torch.Tensor], tensors: Tensors, *arguments: Any) -> torch.Tensor:
    """Return torch's gradient of `function` by ``x``, at ``dy``."""
    with torch.enable_grad():
        x = tensors["x"].detach().requires_grad_()
        (dx,) = torch.autograd.grad(function(x, *arguments), x, tensors["dy"])
    return dx


def _lp(draw: Callable[..., torch.Tensor]) -> Iterator[PlainCall]:
    for norm, window, stride in ((2.0, 2, 2), (2.0, 3, 2), (2.0, 7, 2), (3.0, 3, 1), (1.5, 2, 2), (float("inf"), 3, 2)):
        x = draw(29, 30)
        x = x if norm in (2, float("inf")) else x.abs() + 0.125  # negative sums have no such root
        arguments = (norm, window, stride)
        key = f"lp_pool2d {norm:g} k{window} s{stride}"
        function = partial(_lp_of_torch, arguments=arguments)
        copies = norm == float("inf")
        yield PlainCall("lp_pool2d", key, {"x": x}, partial(_with_x, gpuconv.lp_pool2d, arguments),
                        lambda t, function=function: function(t["x"]), copies, window**2)  # fmt: skip
        if not copies:
            dy = torch.randn_like(F.lp_pool2d(x.double(), *arguments)).to(x.dtype)
            yield PlainCall("lp_pool2d_backward", f"{key} backward", {"x": x, "dy": dy},
                            partial(_lp_backward, arguments),
                            partial(_gradient, function), False, 4 * window**2)  # fmt: skip


def _with_x(function: Callable[..., Any], arguments: tuple[Any, ...], tensors: Tensors, backend: str) -> Any:
    return function(tensors["x"], *arguments, backend=backend)


def _lp_of_torch(x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    return F.lp_pool2d(x, *arguments)


def _lp_backward(arguments: tuple[Any, ...], tensors: Tensors, backend: str) -> Any:
    return gpuconv.lp_pool2d_backward(tensors["dy"], tensors["x"], *arguments, backend=backend)


def _max_offsets(draw: Callable[..., torch.Tensor]) -> Iterator[PlainCall]:
    for window, stride, padding in ((2, 2, 0), (3, 2, 1), (13, 1, 6)):
        x, arguments = draw(29, 30), (window, stride, padding)
        pairs = [(value, value) for value in (window, stride, padding)]
        form = Form("max", pairs[0], pairs[1], pairs[2], pairs[2], (1, 1), (), False, True, None, 0.0, False, True,
                    AS_INPUT, None)  # fmt: skip
        y, offsets = launch("max_pool_with_indices", (x, None), form)
        back = form._replace(size=(29, 30))
        yield PlainCall(
            "max_pool2d_backward", f"max_pool2d k{window} s{stride} p{padding} backward by offsets",
            {"x": x, "dy": torch.randn_like(y)},
            lambda t, backend, offsets=offsets, back=back: launch(
                "max_pool_backward", (t["dy"], offsets, None), back._replace(backend=backend)),
            partial(_gradient, partial(_max_of_torch, arguments)), False, window**2, ("dy",),
        )  # fmt: skip


def _max_of_torch(arguments: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, *arguments)


def _fractional(draw: Callable[..., torch.Tensor]) -> Iterator[PlainCall]:
    for window, size in ((2, 15), (3, 9)):
        x = draw(29, 30)
        samples = torch.rand(*x.shape[:2], 2, device=x.device).to(x.dtype)
        options = {"output_size": size, "return_indices": True, "_random_samples": samples}
        y, indices = F.fractional_max_pool2d(x, window, **options)
        key = f"fractional_max_pool2d k{window} to {size}"
        yield PlainCall(
            "fractional_max_pool2d", key, {"x": x},
            lambda t, backend, window=window, options=options: gpuconv.fractional_max_pool2d(
                t["x"], window, **options, backend=backend),
            lambda _, y=y: y.double(), True,
        )  # fmt: skip
        dy = torch.randn_like(y)
        yield PlainCall(
            "fractional_max_pool2d_backward", f"{key} backward", {"x": x, "dy": dy},
            lambda t, backend, window=window, size=size, indices=indices: gpuconv.fractional_max_pool2d_backward(
                t["dy"], t["x"], window, size, indices, backend=backend),
            lambda t, indices=indices: _scatter(t["dy"], indices, t["x"].shape), False, window**2,
        )  # fmt: skip


def _scatter(values: torch.Tensor, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Add `values` at positions of planes of zeros, in float64."""
    plane = torch.zeros(*shape[:2], prod(shape[2:]), dtype=torch.float64, device=values.device)
    return plane.scatter_add(2, indices.flatten(2), values.double().flatten(2)).reshape(shape)


def _unpool(draw: Callable[..., torch.Tensor]) -> Iterator[PlainCall]:
    for size in (28, 27):
        y, indices = F.max_pool2d(draw(size, size), 3, 2, 1, return_indices=True)
        # Equal positions have no winner in torch: unpool to windows that do not overlap.
        x, where = F.max_pool2d(draw(size, size), 2, return_indices=True)
        key = f"max_unpool2d to {size}"
        yield PlainCall("max_unpool2d", key, {"x": x},
                        lambda t, backend, where=where, size=size: gpuconv.max_unpool2d(
                            t["x"], where, 2, output_size=(size, size), backend=backend),
                        lambda t, where=where, size=size: F.max_unpool2d(t["x"], where, 2, output_size=(size, size)),
                        True)  # fmt: skip
        dy = draw(size, size)
        yield PlainCall("max_unpool2d_backward", f"{key} backward", {"x": y, "dy": dy},
                        lambda t, backend, indices=indices: gpuconv.max_unpool2d_backward(
                            t["dy"], t["x"], indices, backend=backend),
                        lambda t, indices=indices: t["dy"].flatten(2).gather(2, indices.flatten(2)).reshape_as(t["x"]),
                        True)  # fmt: skip


def _columns(draw: Callable[..., torch.Tensor]) -> Iterator[PlainCall]:
    for window, dilation, padding, stride in ((3, 1, 1, 1), ((3, 2), (1, 2), (0, 1), 2), (4, 1, 0, 4)):
        x, arguments = draw(28, 32), (window, dilation, padding, stride)
        key = f"k{window} d{dilation} p{padding} s{stride}"
        yield PlainCall("unfold", f"unfold {key}", {"x": x}, partial(_with_x, gpuconv.unfold, arguments),
                        lambda t, arguments=arguments: F.unfold(t["x"], *arguments), True)  # fmt: skip
        columns = torch.randn_like(F.unfold(x, *arguments))
        taps = columns.shape[1] // x.shape[1]
        yield PlainCall("fold", f"fold {key}", {"x": columns}, partial(_with_x, gpuconv.fold, ((28, 32), *arguments)),
                        lambda t, arguments=arguments: F.fold(t["x"], (28, 32), *arguments), False, taps)  # fmt: skip


def calls(device: str, number: str, layout: str, planes: tuple[int, int] = (4, 24)) -> Iterator[PlainCall]:
    """Yield the calls in one number format and memory format, on images of `planes` batch and channels."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        values = torch.empty((*planes, *size), dtype=getattr(torch, number), device=device)
        values.normal_(generator=generator)
        return in_format(values, layout)

    for family in (_max_offsets, _lp, _fractional, _unpool, _columns):
        yield from family(draw)


def judge_call(call: PlainCall, solver: str) -> dict[str, Any]:
    """Run one call on one solver and return the fields of a record."""
    with record_plans() as plans, poisoned():
        results = [call.ours(call.tensors, solver) for _ in range(2)]
    result, again = (found[0] if isinstance(found, tuple) else found for found in results)
    ran = [plan.solver.id for plan in plans]
    if ran != [solver] * 2:
        return {"status": "wrong", "why": f"{solver} was forced, but {ran} ran"}
    with settings(None, search=False):
        wide = {name: tensor.double() for name, tensor in call.tensors.items()}
        expected = call.theirs(wide)
        magnitude = call.theirs({name: t.abs() if name in call.linear else t for name, t in wide.items()}).abs()
    repeat = torch.equal(result, again)
    fields: dict[str, Any] = {"repeats": repeat, "config": plain(plans[0].config)}
    if result.shape != expected.shape:
        return fields | {"status": "wrong", "why": f"shape {tuple(result.shape)}, expected {tuple(expected.shape)}"}
    if call.copies:
        fields["exact"] = good = bool(torch.equal(result.double(), expected))
    else:
        dtype = str(result.dtype).removeprefix("torch.")
        ratio = (result.double() - expected).abs() / tolerance(expected, magnitude, dtype, call.sums, "ieee")
        worst = float(torch.where(torch.isfinite(ratio), ratio, torch.inf).max())
        good = worst <= 1
        fields["gate"] = {"ok": good, "worst": round(min(worst, 1e30), 4)}
    return fields | {"status": "ok" if good and repeat else "wrong"}


def _solvers(call: PlainCall) -> list[str]:
    """Return the ids of the solvers that take a call."""
    found = []
    for name, backend in backends().items():
        if backend.missing() is None:
            explanation = gpuconv.explain(call.ours, call.tensors, name)
            found += [c.solver.id for c in explanation.candidates if c.reason is None and c.backend == name]
    return found


def parity_calls(device: str, few: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield (key, run) for every solver that takes each call; with `few`, of some calls on small tensors."""
    rounds = [(number, layout) for number in ("float16", "bfloat16", "float32", "float64")
              for layout in (CHANNELS_LAST, CONTIGUOUS)]  # fmt: skip
    for number, layout in rounds[4:5] if few else rounds:
        every = calls(device, number, layout, (1, 2)) if few else calls(device, number, layout)
        for call in islice(every, 0, None, 5 if few else 1):
            for solver in _solvers(call):
                yield f"{solver} | {call.key} {number} {layout}", partial(judge_call, call, solver)
