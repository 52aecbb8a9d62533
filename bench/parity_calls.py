"""The rest of the parity stage: functions that no layer of a network is made of, as calls.

Power pools, fractional pools, unpooling, unfold and fold, forward and backward, and the gradient of max pools by what
autograd saves: every solver of every backend that takes the call, against torch in float64 on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

import gpuconv
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS, TORCH
from gpuconv.dispatch import backends
from gpuconv.dispatch.separable import separable_problem
from gpuconv.normalize.conv import Extras
from gpuconv.ops.pool_fake import AS_INPUT, Form
from gpuconv.ops.pool_library import launch
from gpuconv.problem import DeformProblem, Problem, ScaledProblem, placed

from . import deform, scaled
from .calls import in_format
from .contenders import settings
from .parity import thrice
from .referee import tolerance

__all__ = [
    "FAMILIES",
    "FUSED",
    "PlainCall",
    "call_problems",
    "calls",
    "drawer",
    "judge_call",
    "parity_calls",
    "separable",
    "solvers",
]

Tensors = Mapping[str, torch.Tensor]

Draw = Callable[..., torch.Tensor]
"""Draws an image of a spatial size."""


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


Build = Callable[[Draw], PlainCall]
"""Makes a call of what a :data:`Draw` draws: nothing is computed before it is needed."""


def _gradient(function: Callable[..., torch.Tensor], tensors: Tensors, *arguments: Any) -> torch.Tensor:
    """Return torch's gradient of `function` by ``x``, at ``dy``."""
    with torch.enable_grad():
        x = tensors["x"].detach().requires_grad_()
        (dx,) = torch.autograd.grad(function(x, *arguments), x, tensors["dy"])
    return dx


def _lp() -> Iterator[tuple[str, Build]]:
    for norm, window, stride in ((2.0, 2, 2), (2.0, 3, 2), (2.0, 7, 2), (3.0, 3, 1), (1.5, 2, 2), (float("inf"), 3, 2)):
        arguments = (norm, window, stride)
        key = f"lp_pool2d {norm:g} k{window} s{stride}"
        yield key, partial(_lp_forward, key, arguments)
        if norm != float("inf"):
            yield f"{key} backward", partial(_lp_backward, f"{key} backward", arguments)


def _lp_input(draw: Draw, norm: float) -> torch.Tensor:
    x = draw(29, 30)
    return x if norm in (2, float("inf")) else x.abs() + 0.125  # negative sums have no such root


def _lp_of_torch(x: torch.Tensor, arguments: tuple[Any, ...]) -> torch.Tensor:
    norm, window, stride = arguments
    if norm == float("inf"):  # torch before 2.13 computes a mean to the power of 0: 1 everywhere
        return F.max_pool2d(x.abs(), window, stride)
    return F.lp_pool2d(x, *arguments)


def _lp_forward(key: str, arguments: tuple[Any, ...], draw: Draw) -> PlainCall:
    norm, window, _ = arguments
    ours = partial(_with_x, gpuconv.lp_pool2d, arguments)
    theirs = partial(_of_x, partial(_lp_of_torch, arguments=arguments))
    return PlainCall("lp_pool2d", key, {"x": _lp_input(draw, norm)}, ours, theirs, norm == float("inf"), window**2)


def _lp_backward(key: str, arguments: tuple[Any, ...], draw: Draw) -> PlainCall:
    x = _lp_input(draw, arguments[0])
    function = partial(_lp_of_torch, arguments=arguments)
    dy = torch.randn_like(function(x.double())).to(x.dtype)

    def ours(tensors: Tensors, backend: str) -> Any:
        return gpuconv.lp_pool2d_backward(tensors["dy"], tensors["x"], *arguments, backend=backend)

    sums = 4 * arguments[1] ** 2
    return PlainCall("lp_pool2d_backward", key, {"x": x, "dy": dy}, ours, partial(_gradient, function), False, sums)


def _with_x(function: Callable[..., Any], arguments: tuple[Any, ...], tensors: Tensors, backend: str) -> Any:
    return function(tensors["x"], *arguments, backend=backend)


def _of_x(function: Callable[..., torch.Tensor], tensors: Tensors) -> torch.Tensor:
    return function(tensors["x"])


def _max_offsets() -> Iterator[tuple[str, Build]]:
    for window, stride, padding in ((2, 2, 0), (3, 2, 1), (13, 1, 6)):
        key = f"max_pool2d k{window} s{stride} p{padding} backward by offsets"
        yield key, partial(_max_backward, key, (window, stride, padding))


def _max_backward(key: str, arguments: tuple[int, int, int], draw: Draw) -> PlainCall:
    window = arguments[0]
    x = draw(29, 30)
    y, indices = F.max_pool2d(x, *arguments, return_indices=True)
    offsets = _offsets(indices, 30, arguments)
    dy = torch.randn_like(y)

    def ours(tensors: Tensors, backend: str) -> Any:
        pairs = [(value, value) for value in arguments]
        form = Form("max", pairs[0], pairs[1], pairs[2], pairs[2], (1, 1), (29, 30), False, True, None, 0.0, False,
                    True, AS_INPUT, backend)  # fmt: skip
        return launch("max_pool_backward", (tensors["dy"], offsets, None), form)

    theirs = partial(_gradient, lambda x: F.max_pool2d(x, *arguments))
    return PlainCall("max_pool2d_backward", key, {"x": x, "dy": dy}, ours, theirs, False, window**2, ("dy",))


def _offsets(indices: torch.Tensor, width: int, arguments: tuple[int, int, int]) -> torch.Tensor:
    """Return positions in planes as autograd keeps them: the number of the tap within its window."""
    window, stride, padding = arguments
    rows, columns = (torch.arange(size, device=indices.device) * stride - padding for size in indices.shape[2:])
    tap = (indices // width - rows[:, None]) * window + indices % width - columns
    return tap.to(torch.int8 if window**2 <= 128 else torch.int16)


def _fractional() -> Iterator[tuple[str, Build]]:
    for window, size in ((2, 15), (3, 9)):
        key = f"fractional_max_pool2d k{window} to {size}"
        yield key, partial(_fractional_forward, key, window, size)
        yield f"{key} backward", partial(_fractional_backward, f"{key} backward", window, size)


def _fractions(draw: Draw, size: int) -> tuple[torch.Tensor, dict[str, Any]]:
    x = draw(29, 30)
    samples = torch.rand(*x.shape[:2], 2, device=x.device).to(x.dtype)
    return x, {"output_size": size, "return_indices": True, "_random_samples": samples}


def _fractional_forward(key: str, window: int, size: int, draw: Draw) -> PlainCall:
    x, options = _fractions(draw, size)

    def ours(tensors: Tensors, backend: str) -> Any:
        return gpuconv.fractional_max_pool2d(tensors["x"], window, **options, backend=backend)

    # Samples in the dtype of x choose other windows than samples in float64.
    y, _ = F.fractional_max_pool2d(x, window, **options)
    return PlainCall("fractional_max_pool2d", key, {"x": x}, ours, lambda _: y.double(), True)


def _fractional_backward(key: str, window: int, size: int, draw: Draw) -> PlainCall:
    x, options = _fractions(draw, size)
    _, indices = F.fractional_max_pool2d(x, window, **options)
    indices = _as_made_of(x, indices)
    dy = torch.randn_like(indices, dtype=x.dtype)

    def ours(tensors: Tensors, backend: str) -> Any:
        return gpuconv.fractional_max_pool2d_backward(tensors["dy"], tensors["x"], window, size, indices,
                                                      backend=backend)  # fmt: skip

    def theirs(tensors: Tensors) -> torch.Tensor:
        return _scatter(tensors["dy"], indices, tensors["x"].shape)

    return PlainCall("fractional_max_pool2d_backward", key, {"x": x, "dy": dy}, ours, theirs, False, window**2)


def _as_made_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return `y` in the memory format of `x`, as our pools give it; torch's fractional ones are contiguous."""
    return in_format(y, CONTIGUOUS if x.is_contiguous() else CHANNELS_LAST)


def _scatter(values: torch.Tensor, indices: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Add `values` at positions of planes of zeros, in float64."""
    plane = torch.zeros(*shape[:2], prod(shape[2:]), dtype=torch.float64, device=values.device)
    return plane.scatter_add(2, indices.flatten(2), values.double().flatten(2)).reshape(shape)


def _unpool() -> Iterator[tuple[str, Build]]:
    for size in (28, 27):
        key = f"max_unpool2d to {size}"
        yield key, partial(_unpool_forward, key, size)
        yield f"{key} backward", partial(_unpool_backward, f"{key} backward", size)


def _unpool_forward(key: str, size: int, draw: Draw) -> PlainCall:
    # Equal positions have no winner in torch: unpool to windows that do not overlap.
    x, where = F.max_pool2d(draw(size, size), 2, return_indices=True)

    def ours(tensors: Tensors, backend: str) -> Any:
        return gpuconv.max_unpool2d(tensors["x"], where, 2, output_size=(size, size), backend=backend)

    def theirs(tensors: Tensors) -> torch.Tensor:
        return F.max_unpool2d(tensors["x"], where, 2, output_size=(size, size))

    return PlainCall("max_unpool2d", key, {"x": x}, ours, theirs, True)


def _unpool_backward(key: str, size: int, draw: Draw) -> PlainCall:
    y, indices = F.max_pool2d(draw(size, size), 3, 2, 1, return_indices=True)
    dy = draw(size, size)

    def ours(tensors: Tensors, backend: str) -> Any:
        return gpuconv.max_unpool2d_backward(tensors["dy"], tensors["x"], indices, backend=backend)

    def theirs(tensors: Tensors) -> torch.Tensor:
        return tensors["dy"].flatten(2).gather(2, indices.flatten(2)).reshape_as(tensors["x"])

    return PlainCall("max_unpool2d_backward", key, {"x": y, "dy": dy}, ours, theirs, True)


def _columns() -> Iterator[tuple[str, Build]]:
    for window, dilation, padding, stride in ((3, 1, 1, 1), ((3, 2), (1, 2), (0, 1), 2), (4, 1, 0, 4)):
        arguments = (window, dilation, padding, stride)
        key = f"k{window} d{dilation} p{padding} s{stride}"
        yield f"unfold {key}", partial(_unfold, f"unfold {key}", arguments)
        yield f"fold {key}", partial(_fold, f"fold {key}", arguments)


def _unfold(key: str, arguments: tuple[Any, ...], draw: Draw) -> PlainCall:
    theirs = partial(_of_x, lambda x: F.unfold(x, *arguments))
    return PlainCall("unfold", key, {"x": draw(28, 32)}, partial(_with_x, gpuconv.unfold, arguments), theirs, True)


def _fold(key: str, arguments: tuple[Any, ...], draw: Draw) -> PlainCall:
    x = draw(28, 32)
    columns = torch.randn_like(F.unfold(x, *arguments))
    ours = partial(_with_x, gpuconv.fold, ((28, 32), *arguments))
    theirs = partial(_of_x, lambda x: F.fold(x, (28, 32), *arguments))
    return PlainCall("fold", key, {"x": columns}, ours, theirs, False, columns.shape[1] // x.shape[1])


FUSED = "triton.conv.separable.fused"
"""Solver of a call that everywhere else is two: it stands beside the families, whose solvers are found by a problem."""


def separable() -> Iterator[tuple[str, Build]]:
    """Yield calls of :data:`FUSED` by their key."""
    for (stride, padding, dilation), filters in _SEPARABLE:
        key = f"depthwise_separable_conv2d s{stride} p{padding} d{dilation} k{filters}"
        yield key, partial(_separable, key, (stride, padding, dilation), filters)


_SEPARABLE = (((1, 1, 1), 40), ((2, 1, 1), 24), ((1, 2, 2), 7))
"""Stride, padding and dilation, and filters."""


def separable_problems(planes: tuple[int, int], rounds: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """Yield the problems of the calls of :data:`FUSED` on a GPU."""
    for number, layout in rounds:
        for (geometry, _), (_, build) in zip(_SEPARABLE, separable(), strict=True):
            tensors = build(drawer("cpu", number, layout, planes)).tensors
            arrays = {"x": tensors["x"], "w": tensors["w"], "pointwise": tensors["v"]}
            arrays |= dict.fromkeys(("bias", "pointwise_bias", "residual"))
            problem, _ = separable_problem("depthwise_separable_conv2d", TORCH, arrays, geometry, "relu", Extras())
            if problem is not None:
                yield placed(problem, device="cuda:0")


def _separable(key: str, geometry: tuple[int, int, int], filters: int, draw: Draw) -> PlainCall:
    """Make a call of small integers, which nothing rounds between the steps."""
    stride, padding, dilation = geometry
    x = draw(28, 33).round().clamp(-3, 3)
    of_channels = torch.randint(-2, 3, (x.shape[1], 9 + filters), dtype=x.dtype).to(x.device)
    w, v = of_channels[:, :9].contiguous().reshape(-1, 1, 3, 3), of_channels[:, 9:].t()[:, :, None, None].contiguous()

    def ours(tensors: Tensors, backend: str) -> Any:
        weights, options = (tensors["w"], tensors["v"]), {"padding": padding, "dilation": dilation, "backend": backend}
        return gpuconv.depthwise_separable_conv2d(tensors["x"], *weights, stride=stride, between="relu", **options)

    def theirs(tensors: Tensors) -> torch.Tensor:
        x, w = tensors["x"], tensors["w"]
        return F.conv2d(F.conv2d(x, w, None, stride, padding, dilation, x.shape[1]).relu(), tensors["v"])

    return PlainCall("depthwise_separable", key, {"x": x, "w": w, "v": v}, ours, theirs, False, v.shape[1], ("v",))


def _scaled() -> Iterator[tuple[str, Build]]:
    for geometry, filters, groups in scaled.GEOMETRIES:
        stride, padding, dilation = geometry
        key = f"scaled_conv2d s{stride} p{padding} d{dilation} k{filters} g{groups}"
        yield key, partial(_scaled_call, key, geometry, filters, groups)


def _scaled_call(key: str, geometry: tuple[int, int, int], filters: int, groups: int, draw: Draw) -> PlainCall:
    x = draw(28, 33)
    number, groups = str(x.dtype).removeprefix("torch."), groups if x.shape[1] % groups == 0 else 1
    tensors = scaled.tensors_of(x, number, filters, groups)
    given = {"number": number, "geometry": geometry, "groups": groups}
    return PlainCall(
        "scaled_conv2d", key, tensors, partial(scaled.ours, **given), partial(scaled.theirs, **given), True
    )


def _deform() -> Iterator[tuple[str, Build]]:
    for case in deform.CASES:
        (stride, padding, dilation), filters, groups, offset_groups = case
        key = (
            f"deform_conv2d s{stride} p{padding} d{dilation} k{filters} g{groups} of {offset_groups} groups of offsets"
        )
        for which in deform.PASSES:
            name = key if which == "y" else f"{key}, gradient of {which}"
            yield name, partial(_deform_call, name, case, which)


def _deform_call(key: str, case: tuple[Any, ...], which: str, draw: Draw) -> PlainCall:
    geometry, filters, *parts = case
    x = draw(12, 13)
    groups, offset_groups = (part if x.shape[1] % part == 0 else 1 for part in parts)
    tensors = deform.tensors_of(x, filters, groups, offset_groups, geometry)
    given: dict[str, Any] = {"which": which, "form": (geometry, groups, offset_groups)}
    linear = () if which == "offset" else ("x", "dy", "w")
    return PlainCall(
        "deform_conv2d", key, tensors, partial(deform.ours, **given), partial(deform.theirs, **given), False,
        deform.sums_of(tensors, which), linear,
    )  # fmt: skip


FAMILIES = (_max_offsets, _lp, _fractional, _unpool, _columns, _scaled, _deform)

_ROUNDS = [
    (number, layout)
    for number in ("float16", "bfloat16", "float32", "float64")
    for layout in (CHANNELS_LAST, CONTIGUOUS)
]

_PLANES = (4, 24)
"""Batch and channels."""


def drawer(device: str, number: str, layout: str, planes: tuple[int, int] = _PLANES) -> Draw:
    """Return what draws images of a size, in one number format and memory format: `planes` are batch and channels."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        values = torch.empty((*planes, *size), dtype=getattr(torch, number), device=device)
        return in_format(values.normal_(generator=generator), layout)

    return draw


def calls(device: str, number: str, layout: str, planes: tuple[int, int] = _PLANES) -> Iterator[PlainCall]:
    """Yield the calls in one number format and memory format, each made on numbers of its own."""
    for family in FAMILIES:
        for _, build in family():
            yield build(drawer(device, number, layout, planes))


def judge_call(call: PlainCall, solver: str) -> dict[str, Any]:
    """Run one call on one solver and return the fields of a record."""
    results, fields, ran = thrice(lambda: call.ours(call.tensors, solver))
    if set(ran) != {solver}:
        return {"status": "wrong", "why": f"{solver} was forced, but {ran} ran"}
    result = results[-1][0] if isinstance(results[-1], tuple) else results[-1]
    with settings(None, search=False):
        wide = {name: tensor.double() for name, tensor in call.tensors.items()}
        expected = call.theirs(wide)
        magnitude = call.theirs({name: t.abs() if name in call.linear else t for name, t in wide.items()}).abs()
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
    return fields | {"status": "ok" if good and fields["repeats"] else "wrong"}


def problem_of(call: PlainCall, device: str, batch: int) -> Problem:
    """Return the problem that a call on tensors of the CPU would be on `device` and with `batch` images."""
    problem = placed(gpuconv.explain(call.ours, call.tensors, None).problem, device=device)
    if isinstance(problem, ScaledProblem | DeformProblem):
        return replace(problem, conv=replace(problem.conv, n=batch))
    return replace(problem, n=batch)


def call_problems(planes: tuple[int, int] = _PLANES, rounds: Sequence[tuple[str, str]] | None = None) -> list[Problem]:
    """Return the problems of the calls on a GPU, in every round of number format and memory format or in `rounds`."""
    rounds = _ROUNDS if rounds is None else rounds
    found = [
        problem_of(call, "cuda:0", planes[0])
        for number, layout in rounds
        for call in calls("cpu", number, layout, (1, planes[1]))
    ]
    return [*found, *separable_problems(planes, rounds)]


def solvers(call: PlainCall, device: str, batch: int) -> list[str]:
    """Return the ids of the solvers that take, on `device` and with `batch` images, a call on tensors of the CPU."""
    problem = problem_of(call, device, batch)
    usable = [backend for backend in backends().values() if backend.missing() is None]
    return [
        solver.id
        for backend in usable
        if backend.why_not(problem, True) is None
        for solver in backend.solvers()
        if solver.why_not(problem) is None and backend.lacks(solver, problem) is None
    ]


def parity_calls(device: str, few: bool = False) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield (key, run) for every solver that takes each call; with `few`, of some calls on small tensors.

    Nothing is launched before an item runs: the listing draws one image of each call on the CPU.
    """
    planes = (1, 2) if few else _PLANES
    target = device if device == "cpu" else "cuda:0"
    for number, layout in _ROUNDS[4:5] if few else _ROUNDS:
        every = (entry for family in FAMILIES for entry in family())
        for key, build in islice(every, 0, None, 5 if few else 1):
            for solver in solvers(build(drawer("cpu", number, layout, (1, planes[1]))), target, planes[0]):
                yield (
                    f"{solver} | {key} {number} {layout}",
                    partial(_judge, build, device, number, layout, planes, solver),
                )
        if not few and number != "float64" and backends()["triton"].missing() is None:
            for key, build in separable():
                yield (
                    f"{FUSED} | {key} {number} {layout}",
                    partial(_judge, build, device, number, layout, planes, FUSED),
                )


def _judge(build: Build, device: str, number: str, layout: str, planes: tuple[int, int], solver: str) -> dict[str, Any]:
    return judge_call(build(drawer(device, number, layout, planes)), solver)
