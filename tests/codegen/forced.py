"""Launches of every Triton solver, forced on problems of every kind, without memory and without running them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from specialisations import recorded
from triton.runtime.jit import JITFunction

from bench.parity import conv_problem
from bench.scaled import scaled_problem
from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS, TORCH
from gpuconv.backends.triton import backend as triton_backend
from gpuconv.backends.triton.columns import columns_shape
from gpuconv.backends.triton.dry import _deform_arrays, _scaled_arrays, launches_of_plan
from gpuconv.backends.triton.launch import for_triton
from gpuconv.problem import Call, ConvProblem, DeformProblem, PoolProblem, Problem, ScaledProblem, SeparableProblem

__all__ = ["launches", "problems", "solvers", "takes"]

KINDS = ("fprop", "dgrad", "wgrad", "transposed")
LAYOUTS = (CONTIGUOUS, CHANNELS_LAST)
SIZES = {1: (29,), 2: (12, 15), 3: (6, 9, 11)}
WIDE = 2**25
"""So many images that offsets take 64 bits."""
LARGE = {1: (90,), 2: (40, 45), 3: (20, 22, 24)}

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "one tap": {"kernel": 1},
    "grouped": {"groups": 4, "padding": 1},
    "depthwise": {"groups": 16, "padding": 1},
    "depthwise, large window": {"groups": 16, "kernel": 7, "padding": 3},
    "depthwise, large window, epilogue": {
        "groups": 16,
        "kernel": 7,
        "padding": 3,
        "activation": "gelu",
        "bias": True,
        "scale": True,
        "shift": True,
        "residual": True,
    },
    "long": {"c": 1024, "k": 1024, "padding": 1, "n": 1},
    "odd": {"c": 13, "k": 7, "n": 1},
    "epilogue": {"activation": "gelu", "bias": True, "scale": True, "shift": True, "residual": True},
    "bias": {"bias": True, "padding": 1},
    "rounded as torch": {"activation": "gelu", "bias": True, "scale": True, "residual": True, "rounding": "torch"},
    "grouped, many channels": {"c": 256, "k": 256, "groups": 32, "padding": 1},
    "few filters": {"c": 64, "k": 3, "padding": 1, "n": 2**14},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "64-bit": {"n": WIDE, "padding": 1},
    "64-bit, strided": {"n": WIDE, "stride": 2, "padding": 1},
}
WINDOWS: dict[str, dict[str, Any]] = {
    "2": {"kernel": 2, "stride": 2},
    "3": {"kernel": 3, "stride": 2, "pad": 1},
    "3 at every place": {"kernel": 3, "stride": 1, "pad": 1},
    "dilated": {"kernel": 3, "stride": 1, "dilation": 2, "pad": 1},
    "ceil": {"kernel": 3, "stride": 2, "ceil_mode": True},
    "large": {"kernel": 7, "stride": 3, "pad": 3, "large": True},
    "of one image and channel": {"kernel": 2, "stride": 1, "n": 1, "c": 1},
    "64-bit": {"kernel": 3, "stride": 2, "pad": 1, "n": WIDE},
    "64-bit, large": {"kernel": 7, "stride": 3, "pad": 3, "large": True, "n": WIDE},
}
NORMS = (2.0, 1.0, 3.0, float("inf"), 1.5, -1.0)


def solvers() -> list[Any]:
    """Return the Triton solvers."""
    return list(triton_backend.BACKEND.solvers())


def convolutions(ndim: int, dtype: str, layout: str) -> Iterator[Problem]:
    """Yield convolutions, every pass that each geometry has."""
    for geometry in CONVOLUTIONS.values():
        given = {"n": 2, "c": 16, "k": 16, "groups": 1, "kernel": 3} | geometry
        n, c, k, window = (given.pop(name) for name in ("n", "c", "k", "kernel"))
        if "bias" in given:
            kinds = ("fprop", "transposed", *(() if "scale" in given else ("wgrad",)))
        else:
            kinds = KINDS[:3] if {"padding_mode", "stride"} & given.keys() else KINDS
        shape = (k, c // given["groups"], *(window,) * ndim)
        for kind in kinds:
            problem = conv_problem((n, c, *SIZES[ndim]), shape, kind, dtype, layout, device="meta", **given)
            yield replace(problem, bias=True) if kind == "wgrad" and "bias" in given else problem  # of autograd alone


def pool(name: str, kind: str, ndim: int, dtype: str, layout: str, kernel: int = 1, stride: int = 1, pad: int = 0,
         dilation: int = 1, n: int = 2, c: int = 3, large: bool = False, output: tuple[int, ...] | None = None,
         **options: Any) -> PoolProblem:  # fmt: skip
    """Describe a pool, with the same numbers along each axis."""
    size = (LARGE if large else SIZES)[ndim]
    window, steps, pads, rate = ((value,) * ndim for value in (kernel, stride, pad, dilation))
    ceil = (options.get("ceil_mode", False),) * ndim
    computed = shapes.map_axes(shapes.pool_output_size, size, window, steps, pads, pads, rate, ceil)
    return PoolProblem(
        op=f"{name}{ndim}d", pool=name, kind=kind, n=n, c=c, input_size=size, kernel=window,
        output_size=output or computed, stride=steps, pad_lo=pads, pad_hi=pads, dilation=rate, dtype=dtype,
        device="meta", array="torch", x_format=layout, y_format=layout, **options,
    )  # fmt: skip


def pools(ndim: int, dtype: str, layout: str) -> Iterator[Problem]:
    """Yield pools of every kind, forward and backward."""
    common = (ndim, dtype, layout)
    for place, window in enumerate(WINDOWS.values()):
        for offsets, indices in ((False, False), (False, True), (True, True)):
            yield pool("max", "fprop", *common, **window, return_indices=indices, offsets=offsets)
        yield from (pool("max", "bwd", *common, **window, offsets=offsets) for offsets in (False, True))
        for kind, include in product(("fprop", "bwd"), (True, False)):
            plain = {name: value for name, value in window.items() if name != "dilation"}
            divisor = 7 if place == 0 else None
            yield pool("avg", kind, *common, **plain, count_include_pad=include, divisor_override=divisor)
            norm = NORMS[(2 * place + include) % len(NORMS)]
            yield pool("lp", kind, *common, **{k: v for k, v in plain.items() if k != "pad"}, norm_type=norm)
        if ndim == 2 and "ceil_mode" not in window:
            yield from (pool(name, "fprop", *common, **window) for name in ("unfold", "fold"))
    for target, kind, n in product(((1,) * ndim, (5,) * ndim), ("fprop", "bwd"), (2, WIDE)):
        yield pool("adaptive_avg", kind, *common, kernel=8, output=target, n=n)
        yield pool("adaptive_max", kind, *common, kernel=8, output=target, return_indices=kind == "fprop", n=n)
        yield pool("fractional_max", kind, *common, kernel=2, output=target, return_indices=True, n=n)
        yield pool("max_unpool", kind, *common, output=LARGE[ndim], n=n)


def problems() -> Iterator[Problem]:
    """Yield every problem."""
    for ndim, layout, dtype in product((1, 2, 3), LAYOUTS, ("float16", "bfloat16", "float32", "float64")):
        yield from convolutions(ndim, dtype, layout)
        yield from pools(ndim, dtype, layout)
        yield from deformed(ndim, dtype, layout)
        if ndim == 2:
            yield from separables(dtype, layout)
    for ndim, layout, dtype in product((1, 2, 3), LAYOUTS, ("int8", "float8_e4m3fn")):
        yield from scaled(ndim, dtype, layout)
    for ndim, layout, dtype in product((1, 2, 3), LAYOUTS, ("uint8", "int64")):
        yield from pools(ndim, dtype, layout)


def deformed(ndim: int, dtype: str, layout: str) -> Iterator[Problem]:
    """Yield deformable convolutions; of so many images that they go in pieces, not the gradient of the input."""
    for n, c, k, groups, offset_groups, mask in (
        (2, 16, 24, 1, 1, True), (2, 12, 8, 2, 3, False), (2, 64, 64, 1, 1, True), (WIDE, 16, 16, 1, 1, True),
    ):  # fmt: skip
        shape = (k, c // groups, *(3,) * ndim)
        for kind in ("fprop", "dgrad", "wgrad"):
            conv = conv_problem(
                (n, c, *SIZES[ndim]), shape, kind, dtype, layout, device="meta", padding=1, groups=groups
            )
            conv = replace(conv, bias=mask and kind != "dgrad")
            grads = (*(("x",) if n < WIDE else ()), "offset", *(("mask",) if mask else ()))
            yield DeformProblem(f"deform_conv{ndim}d", conv, offset_groups, mask, grads if kind == "dgrad" else ())


def scaled(ndim: int, dtype: str, layout: str) -> Iterator[Problem]:
    """Yield convolutions of 8-bit operands with scales."""
    for n, c, k, kernel, options in (
        (2, 32, 48, 3, {"padding": 1, "out_dtype": dtype, "bias": "float32", "activation": "gelu"}),
        (2, 13, 7, 2, {"stride": 2, "out_dtype": "float16", "bias": "float16", "weight_scale": "array"}),
        (1, 64, 32, 1, {"out_dtype": "float32", "activation": "relu", "weight_scale": "number"}),
        (1, 12, 24, 3 if ndim < 3 else 4, {"groups": 3, "padding": 1, "out_dtype": dtype}),
        (2, 16, 16, {1: 33, 2: 6, 3: 4}[ndim], {"padding": 2 if ndim > 1 else 8, "bias": "bfloat16"}),
        (WIDE, 16, 16, 3, {"padding": 1, "out_dtype": dtype}),
    ):
        groups = options.get("groups", 1)
        shapes_of = (n, c, *SIZES[ndim]), (k, c // groups, *(kernel,) * ndim)
        yield scaled_problem(*shapes_of, dtype, layout, device="meta", **options)


def separables(dtype: str, layout: str) -> Iterator[Problem]:
    """Yield depthwise and pointwise convolutions in one."""
    for n, c, k, between, options in (
        (2, 16, 24, "relu6", {"bias": True}),
        (2, 13, 7, None, {"stride": 2, "padding": 1}),
        (1, 64, 128, "silu", {"dilation": 2, "padding": 2}),
        (WIDE, 16, 16, None, {"padding": 1}),
    ):
        bias = options.pop("bias", False)
        first = conv_problem(
            (n, c, *SIZES[2]), (c, 1, 3, 3), "fprop", dtype, layout, device="meta", groups=c, **options
        )
        first = replace(first, bias=bias, activation=between)
        shape = (n, c, *first.output_size)
        second = conv_problem(shape, (k, c, 1, 1), "fprop", dtype, layout, device="meta", bias=bias)
        yield SeparableProblem("depthwise_separable_conv2d", first, replace(second, residual=bias))


def arrays(problem: Problem) -> dict[str, Any]:
    """Return what a call of the problem reads, without memory."""
    if isinstance(problem, SeparableProblem):
        first, second = map(arrays, problem.steps)
        named = {"pointwise": second["w"], "pointwise_bias": second["bias"], "residual": second["residual"]}
        return {name: first[name] for name in ("x", "w", "bias")} | named
    if isinstance(problem, ScaledProblem):
        return _scaled_arrays(problem)
    if isinstance(problem, DeformProblem):
        return _deform_arrays(problem)
    if isinstance(problem, ConvProblem):
        channels = (problem.k if problem.kind == "fprop" else problem.c,)
        known = {name: (getattr(problem, f"{name}_shape"), getattr(problem, f"{name}_format")) for name in "xwy"}
        known |= {name: (channels, CONTIGUOUS) for name in ("bias", "scale", "shift")}
        known["residual"] = (problem.result_shape, problem.result_format)
        read = {name for name in "xwy" if name != problem.result}
        read |= {name for name in ("bias", "scale", "shift", "residual") if getattr(problem, name)}
        return {name: _empty(*where, problem.dtype) if name in read else None for name, where in known.items()}
    if problem.pool == "fold":
        return {"y": _empty(columns_shape(problem), CONTIGUOUS, problem.dtype)}
    forward, found = problem.kind == "fprop", {}
    if forward or problem.pool in ("lp", "max_unpool"):
        found["x"] = _empty(problem.x_shape, problem.x_format, problem.dtype)
    if not forward:
        found["y"] = _empty(problem.y_shape, problem.y_format, problem.dtype)
    if problem.pool == "max_unpool":
        found["indices"] = _empty(problem.x_shape, problem.x_format, "int64")
    elif not forward and "max" in problem.pool:
        found["indices"] = _empty(problem.y_shape, problem.y_format, problem.index_dtype)
    if problem.pool == "fractional_max":
        found["samples"] = _empty((problem.n, problem.c, problem.ndim), CONTIGUOUS, problem.dtype)
    return found


def _empty(shape: tuple[int, ...], layout: str, dtype: str) -> torch.Tensor:
    return TORCH.empty(shape, dtype, "meta", layout)


def _on_hopper(problem: Problem) -> Problem:
    """Return a problem as the solvers of Hopper take it: of a GPU, float32 in tf32."""
    if not isinstance(problem, ConvProblem):
        return problem
    return replace(problem, device="cuda:0", precision="tf32" if problem.dtype == "float32" else problem.precision)


def takes(solver: Any, problem: Problem) -> bool:
    """Tell whether a solver takes a problem, where it runs."""
    return solver.why_not(_on_hopper(problem) if solver.id.endswith(".hopper") else problem) is None


def launches(problem: Problem, solver: Any) -> list[str]:
    """Return what a solver launches for a problem, in order; of those of Hopper the kernels that are not Gluon's."""
    if solver.id.endswith(".hopper"):
        told = launches_of_plan(solver.plan(_on_hopper(problem)))
        with recorded(JITFunction) as found:
            for launch in told:
                if not launch.kernel.module.startswith("hopper."):
                    launch.kernel.load()[(1,)](**for_triton(launch.arguments), **launch.options)
        return found
    with recorded(JITFunction) as found:
        solver.plan(problem).run(Call(problem, arrays(problem), TORCH))
    return found
