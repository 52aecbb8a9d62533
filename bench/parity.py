"""The parity stage of `gpu_report.py`: every solver on problems that differ in what kernels branch on.

Outputs and workspaces are poisoned with NaN, float64 is the referee, two runs must be bit-equal, and small integers
must come out exact. It needs no pytest, so that it runs where nothing but torch, triton, numpy and cupy is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.dispatch import backends, record_plans
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.problem import ConvProblem, PoolProblem, Problem

from .calls import as_called, in_format, make_tensors, our_call
from .cases import DTYPES, problem_key
from .contenders import plain, settings
from .referee import poisoned, reference, replayed, verdict

__all__ = ["conv_problem", "judge", "parity_items", "parity_problems", "pool_problem", "thrice"]

Axes = int | tuple[int, ...]

KINDS = ("fprop", "dgrad", "wgrad", "transposed")


def _axes(value: Axes, ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else value


def conv_problem(
    x: Sequence[int], w: Sequence[int], kind: str = "fprop", number: str = "float16", layout: str = CHANNELS_LAST,
    stride: Axes = 1, padding: Axes = 0, padding_high: Axes | None = None, dilation: Axes = 1, groups: int = 1,
    device: str = "cuda:0", **options: Any,
) -> ConvProblem:  # fmt: skip
    """Describe one pass of the convolution of shapes `x` and `w`, every tensor in memory format `layout`."""
    ndim, (dtype, precision) = len(w) - 2, DTYPES.get(number, (number, "ieee"))
    steps, low, rate = _axes(stride, ndim), _axes(padding, ndim), _axes(dilation, ndim)
    high = low if padding_high is None else _axes(padding_high, ndim)
    output = shapes.map_axes(shapes.conv_output_size, tuple(x[2:]), tuple(w[2:]), steps, low, high, rate)
    nominal = ConvProblem(
        op="", kind=kind, n=x[0], c=x[1], k=w[0], groups=groups, input_size=tuple(x[2:]), kernel=tuple(w[2:]),
        output_size=output, stride=steps, pad_lo=low, pad_hi=high, dilation=rate,
        padding_mode=options.pop("padding_mode", "zeros"), dtype=dtype, device="meta", array="torch",
        x_format=layout, w_format=layout, y_format=layout, precision=precision, **options,
    )  # fmt: skip
    problem = as_called(nominal, device)
    assert isinstance(problem, ConvProblem)
    return problem


def pool_problem(
    pool: str, x: Sequence[int], window: Axes, kind: str = "fprop", number: str = "float16",
    layout: str = CHANNELS_LAST, stride: Axes = 1, padding: Axes = 0, device: str = "cuda:0", **options: Any,
) -> PoolProblem:  # fmt: skip
    """Describe a pool of an input of shape `x`; for an adaptive one `window` is the output size."""
    ndim, adaptive = len(x) - 2, pool.startswith("adaptive")
    kernel, steps, pads, one = _axes(window, ndim), _axes(stride, ndim), _axes(padding, ndim), (1,) * ndim
    ceil = (options.get("ceil_mode", False),) * ndim
    output = kernel
    if adaptive:
        kernel, steps, pads = one, one, (0,) * ndim
    else:
        output = shapes.map_axes(shapes.pool_output_size, tuple(x[2:]), kernel, steps, pads, pads, one, ceil)
    nominal = PoolProblem(
        op="", pool=pool, kind=kind, n=x[0], c=x[1], input_size=tuple(x[2:]), kernel=kernel, output_size=output,
        stride=steps, pad_lo=pads, pad_hi=pads, dilation=one, dtype=number, device="meta", array="torch",
        x_format=layout, y_format=layout, **options,
    )  # fmt: skip
    problem = as_called(nominal, device)
    assert isinstance(problem, PoolProblem)
    return problem


_EVERY = {"bias": True, "scale": True, "shift": True, "residual": True}

_GEOMETRIES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((8, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
    ((8, 256, 14, 14), (64, 256, 1, 1), {}),
    ((8, 64, 56, 56), (128, 64, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1}),
    ((8, 96, 28, 28), (96, 1, 3, 3), {"padding": 1, "groups": 96}),
    ((4, 3, 112, 112), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    ((8, 128, 28, 28), (128, 4, 3, 3), {"padding": 1, "groups": 32}),
    ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 4, "dilation": 4}),
    ((8, 24, 28, 28), (40, 24, 3, 3), {"padding": 1}),
    ((3, 65, 17, 19), (10, 65, 3, 2), {"padding": (0, 1), "padding_high": (2, 0)}),
    ((8, 64, 28, 28), (96, 64, 2, 2), {"stride": 2}),
    ((8, 64, 28, 28), (96, 64, 2, 2), {"stride": 5}),
    ((8, 96, 28, 28), (96, 1, 7, 7), {"padding": 3, "groups": 96}),
    ((4, 64, 800), (128, 64, 7), {"padding": 3}),
    ((4, 64, 801), (32, 64, 8), {"padding": 2, "stride": 4}),
    ((2, 32, 12, 14, 14), (64, 32, 3, 3, 3), {"padding": 1}),
    ((2, 16, 13, 14, 14), (32, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
    ((8, 64, 28, 28), (96, 64, 3, 3), {"padding": 1, "bias": True, "activation": "relu"}),
    ((1, 512, 7, 7), (512, 512, 3, 3), {"padding": 1, "activation": "gelu", **_EVERY}),
    ((8, 64, 28, 28), (96, 64, 3, 3), {"padding": (2, 1), "padding_mode": "reflect"}),
    ((8, 64, 28, 28), (96, 64, 3, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
    ((8, 64, 28, 28), (96, 64, 3, 3), {"padding": (2, 1), "padding_mode": "circular"}),
    ((0, 64, 28, 28), (96, 64, 3, 3), {"padding": 1}),
)

_POOLS: tuple[tuple[str, tuple[int, ...], Axes, dict[str, Any]], ...] = (
    ("max", (8, 64, 56, 56), 3, {"stride": 2, "padding": 1}),
    ("max", (4, 24, 29, 31), 2, {"stride": 2, "ceil_mode": True}),
    ("max", (8, 64, 56, 56), 3, {"stride": 2, "padding": 1, "return_indices": True}),
    ("max", (2, 64, 40, 40), 13, {"stride": 1, "padding": 6}),
    ("max", (2, 16, 16, 16, 16), 2, {"stride": 2}),
    ("avg", (8, 64, 35, 35), 3, {"stride": 1, "padding": 1}),
    ("avg", (2, 32, 64, 64), 31, {"stride": 1, "padding": 15}),
    ("avg", (2, 16, 12, 14, 14), 2, {"stride": 2}),
    ("adaptive_avg", (32, 256, 7, 7), 1, {}),
    ("adaptive_avg", (1, 16, 200, 200), 1, {}),
    ("adaptive_avg", (4, 48, 30, 31), 7, {}),
    ("adaptive_max", (4, 48, 30, 31), 7, {}),
    ("adaptive_max", (1, 16, 200, 200), 1, {}),
)

_ROUNDS = (
    ("float16", CHANNELS_LAST), ("bfloat16", CHANNELS_LAST), ("tf32", CHANNELS_LAST), ("float16", CONTIGUOUS),
    ("float32", CHANNELS_LAST), ("float32", CONTIGUOUS), ("float64", CHANNELS_LAST), ("bfloat16", CONTIGUOUS),
    ("float64", CONTIGUOUS),
)  # fmt: skip


def _conv_kinds(options: dict[str, Any]) -> tuple[str, ...]:
    """Return the passes for a geometry: an epilogue has no gradient, a transposed convolution no padding mode."""
    if "bias" in options:
        return ("fprop", "transposed")
    symmetric = "padding_mode" not in options and "padding_high" not in options
    return KINDS if symmetric else KINDS[:3]


def _transposable(x: Sequence[int], w: Sequence[int], options: dict[str, Any]) -> bool:
    """Tell whether the size of x can be asked for: what is added at its end must be below the stride or dilation."""
    stride, padding, dilation = (options.get(name, default) for name, default in _DEFAULTS)
    if not (isinstance(stride, int) and isinstance(padding, int) and isinstance(dilation, int)):
        return False
    rests = [(size + 2 * padding - dilation * (taps - 1) - 1) % stride for size, taps in zip(x[2:], w[2:])]
    return all(rest < max(stride, dilation) for rest in rests)


_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))


def parity_problems(device: str) -> Iterator[Problem]:
    """Yield the distinct problems, the most used number formats first."""
    seen = set()
    for problem in _problems(device):
        if problem not in seen:  # where every axis but the channels has size 1, both layouts are the same
            seen.add(problem)
            yield problem


def _problems(device: str) -> Iterator[Problem]:
    for number, layout in _ROUNDS:
        for x, w, options in _GEOMETRIES:
            for kind in _conv_kinds(options):
                if kind != "transposed" or _transposable(x, w, options):
                    yield conv_problem(x, w, kind, number, layout, device=device, **options)
        if number == "tf32":
            continue
        for pool, shape, window, given in _POOLS:
            yield pool_problem(pool, shape, window, "fprop", number, layout, device=device, **given)
            if not given.get("return_indices"):
                yield pool_problem(pool, shape, window, "bwd", number, layout, device=device, **given)


def _first(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def _exact(problem: Problem, solver: str, device: str) -> bool | None:
    """Tell whether small integers come out exact, ``None`` where a division or an activation rounds."""
    if isinstance(problem, PoolProblem):
        if "avg" in problem.pool:
            return None
    elif problem.activation not in (None, "relu"):
        return None
    tensors = make_tensors(problem, device, seed=1, integers=True)
    with poisoned():
        result = _first(our_call(problem, tensors, solver)())
    with settings(None, search=False):
        expected, _ = reference(problem, tensors)
    # Integers, but where the referee's library sums in the frequency domain.
    return bool(torch.equal(result, expected.round().to(result.dtype)))


def thrice(call: Callable[[], Any]) -> tuple[list[Any], dict[str, Any], list[str]]:
    """Make a call of ours three times on poisoned memory; return its results, fields of a record, and what ran.

    The first is observed, for its plan; the second is unobserved and recorded, the third, as all later ones of a user,
    is a replay where the solver can be replayed.
    """
    with poisoned():
        with record_plans() as plans:
            results = [call()]
        results += [call() for _ in range(2)]
        ran = [plan.solver.id for plan in plans]
        ran += [entry.plan.solver.id for entry in CACHE.entries() if entry.plan is not None]
        again = replayed()
    firsts = [_first(result) for result in results]
    repeat = all(torch.equal(firsts[0], other) for other in firsts[1:])
    return results, {"repeats": repeat, "replayed": again, "config": plain(plans[0].config)}, ran


def judge(problem: Problem, solver: str, device: str) -> dict[str, Any]:
    """Run one problem on one solver and return the fields of a record."""
    tensors = make_tensors(problem, device)
    results, fields, ran = thrice(our_call(problem, tensors, solver))
    if set(ran) != {solver}:
        return {"status": "wrong", "why": f"{solver} was forced, but {ran} ran"}
    result = results[-1]
    with settings(None, search=False):
        found = verdict(problem, tensors, result)
    fields |= {"gate": dict(found), "exact": _exact(problem, solver, device)}
    if isinstance(problem, PoolProblem) and problem.return_indices and problem.pool == "max":
        window = (problem.kernel, problem.stride, problem.pad_lo, problem.dilation, problem.ceil_mode)
        function = getattr(torch.nn.functional, f"max_pool{problem.ndim}d")
        _, indices = function(tensors["x"], *window, return_indices=True)
        fields["indices"] = torch.equal(result[1], in_format(indices, problem.y_format))
    good = found.ok and fields["repeats"] and fields["exact"] is not False and fields.get("indices") is not False
    return fields | {"status": "ok" if good else "wrong"}


def parity_items(
    device: str, problems: Iterator[Problem] | None = None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield (key, run) for every solver that takes each problem, and one refusal for each backend that cannot run."""
    usable = {}
    for name, backend in backends().items():
        missing = backend.missing()
        if missing:
            yield f"backend {name}", partial(dict, status="not run", why=missing)
        else:
            usable[name] = backend
    for problem in parity_problems(device) if problems is None else problems:
        problem = replace(problem, device=device if device == "cpu" else "cuda:0")
        for backend in usable.values():
            if backend.why_not(problem, True):
                continue
            for solver in backend.solvers():
                if solver.why_not(problem) is None and backend.lacks(solver, problem) is None:
                    yield f"{solver.id} | {problem_key(problem)}", partial(judge, problem, solver.id, device)
