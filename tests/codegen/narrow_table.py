"""The codegen table of the narrow kernels, depthwise ones and stems: plans by default of layers of networks.

``python tests/codegen/narrow_table.py`` recompiles with the installed Triton every launch whose kernel or plan changed
(``--all``: every launch) and rewrites its part of ``narrow_table.json`` and the page ``NARROW_TABLE.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from conv_launches import launches_of
from loops import PRODUCTS, TENSOR_CORE, counts, hot_loop, stepping_loop
from pool_launches import POINTERS, Launch
from pool_rows import ROOM_PER_BYTE, PoolTable
from problems import conv_problem

from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.base import Plan
from gpuconv.backends.triton import (
    conv_collect,
    conv_march,
    conv_rows,
    conv_rows_wgrad,
    conv_runs,
    conv_runs_wgrad,
    conv_separable,
    turns,
)
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.launch import for_triton
from gpuconv.backends.triton.march_costs import LaneCosts
from gpuconv.backends.triton.runs_axes import forward_of, phases_of
from gpuconv.backends.triton.runs_costs import RunCosts
from gpuconv.backends.triton.separable_costs import SeparableCosts
from gpuconv.kernels.tl import common
from gpuconv.kernels.tl.conv import (
    collect,
    collect_lanes,
    lanes,
    march,
    march_lanes,
    rows,
    rows_exact,
    rows_wgrad,
    runs,
    runs_spread,
    runs_wgrad,
    separable,
    splits,
)
from gpuconv.problem import ConvProblem, SeparableProblem, itemsize

WORDS = """
A result of the forward pass and of the data gradient is one element, of the weight gradient one element of y, which all
taps take part in. `per result` is the hot loop over the results of one thread in it; `room` is how many instructions of
a thread can be executed while 4.3 TB/s (a measured copy on an H200) read and write what one result needs,
`132 * 4 * 32 * 1.98e9 / 4.3e12 = 7.78` per byte on 132 multiprocessors at 1.98 GHz, each issuing one instruction of 32
threads to each of 4 schedulers per clock. Windows of 5 x 5 and more are over it: the plain cores bound them.
"""

LAST, ROWS = CHANNELS_LAST, CONTIGUOUS

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3 56": ((32, 144, 56, 56), (144, 1, 3, 3), {"padding": 1}),
    "3x3/2 112": ((32, 96, 112, 112), (96, 1, 3, 3), {"padding": 1, "stride": 2}),
    "5x5 28": ((32, 240, 28, 28), (240, 1, 5, 5), {"padding": 2}),
    "7x7 56": ((32, 96, 56, 56), (96, 1, 7, 7), {"padding": 3}),
    "causal 4": ((8, 1536, 2048), (1536, 1, 4), {"padding": 3}),
    "3x3x3 16": ((8, 64, 16, 28, 28), (64, 1, 3, 3, 3), {"padding": 1}),
}

AWKWARD: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "7x7 7": ((32, 768, 7, 7), (768, 1, 7, 7), {"padding": 3}),
    "5x5/2 56": ((32, 144, 56, 56), (144, 1, 5, 5), {"padding": 2, "stride": 2}),
    "3x3 14": ((32, 384, 14, 14), (384, 1, 3, 3), {"padding": 1}),
    "1-D 31": ((8, 512, 4096), (512, 1, 31), {"padding": 15}),
    "3x3 dilated": ((16, 256, 33, 33), (256, 1, 3, 3), {"padding": 2, "dilation": 2}),
    "3x3 57, 40 channels": ((16, 40, 57, 57), (40, 1, 3, 3), {"padding": 1}),
    "multiplier 2": ((16, 64, 56, 56), (128, 1, 3, 3), {"padding": 1}),
}


def problems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the name and problem of each entry."""
    for layers, formats, kinds in (
        (LAYERS, (LAST, ROWS), ("fprop", "dgrad", "wgrad")),
        (AWKWARD, (LAST, ROWS), ("fprop", "dgrad", "wgrad")),
    ):
        for number, (name, (x, w, options)) in enumerate(layers.items()):
            for place, layout in enumerate(formats):
                some = ("fprop", kinds[1 + (number + place) % 2])
                for kind in some if layers is LAYERS else (kinds[(number + place) % 3],):
                    problem = conv_problem(x, w, dtype="bfloat16", formats=layout, groups=x[1], **options)
                    if name.startswith("causal"):  # as many results as positions
                        problem = replace(problem, pad_hi=(0,), output_size=problem.input_size)
                    yield f"{name} {kind} {layout}", replace(problem, kind=kind)
    x, w, options = LAYERS["3x3 56"]
    for dtype, kinds in (("float16", "wgrad"), ("float32", "dgrad"), ("float64", "wgrad")):
        for kind, layout in (("fprop", LAST), (kinds, ROWS)):
            problem = conv_problem(x, w, dtype=dtype, formats=layout, groups=x[1], **options)
            yield f"3x3 56 {dtype} {kind} {layout}", replace(problem, kind=kind)
    for layout in (LAST, ROWS):
        problem = conv_problem(x, w, dtype="bfloat16", formats=layout, groups=x[1], **options)
        epilogue = {"bias": True, "residual": True, "activation": "silu"}
        yield f"3x3 56 epilogue fprop {layout}", replace(problem, **epilogue)
        yield f"3x3 56 bias wgrad {layout}", replace(problem, kind="wgrad", bias=True)
        large = conv_problem(
            (2, 16, 30000, 40000), (16, 1, 3, 3), dtype="bfloat16", formats=layout, groups=16, padding=1
        )
        yield f"3x3 64-bit fprop {layout}", large


STEMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "stem 7x7/2": ((32, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}),
    "stem 3x3/2": ((32, 3, 224, 224), (32, 3, 3, 3), {"padding": 1, "stride": 2}),
    "patches of 4": ((32, 3, 224, 224), (96, 3, 4, 4), {"stride": 4}),
    "volume 1 to 16": ((8, 1, 48, 48, 48), (16, 1, 3, 3, 3), {"padding": 1}),
}
"""Layers of few input channels, over whose runs of elements a kernel of its own goes."""

VOLUMES = {
    "volume 2 to 2": ((32, 2, 96, 96, 96), (2, 2, 3, 3, 3)),
    "volume 16": ((32, 16, 48, 48, 48), (16, 16, 3, 3, 3)),
}
"""Such layers in which neighbouring columns share a run, channels-last."""

PHASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "volume 16 /2 gradient": ((32, 16, 48, 48, 48), (32, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
    "volume 2 /2 gradient": ((32, 2, 96, 96, 96), (32, 2, 3, 3, 3), {"padding": 1, "stride": 2}),
    "volume 16 from 64 /2 gradient": ((32, 16, 48, 48, 48), (64, 16, 3, 3, 3), {"padding": 1, "stride": 2}),
    "volume 3 4x4/2 gradient": ((32, 3, 64, 64), (64, 3, 4, 4), {"padding": 1, "stride": 2}),
}
"""Data gradients that compute the phases of their stride side by side, channels-last."""

SEPARABLE: dict[str, tuple[tuple[int, ...], int, dict[str, Any], str, str]] = {
    "separable 128 to 128": ((32, 128, 56, 56), 128, {}, "bfloat16", LAST),
    "separable 96 to 24": ((32, 96, 112, 112), 24, {}, "bfloat16", LAST),
    "separable 64 to 128 /2": ((32, 64, 112, 112), 128, {"stride": 2}, "float16", LAST),
    "separable 32 to 64 rows": ((32, 32, 112, 112), 64, {}, "bfloat16", ROWS),
    "separable 32 to 64 float32": ((32, 32, 112, 112), 64, {}, "float32", LAST),
}
"""Depthwise windows of 3 x 3 and pointwise convolutions in one kernel, with biases and relu6 between and after them."""


WEIGHTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = {
    "stem 7x7/2 weights": ((32, 3, 224, 224), (64, 3, 7, 7), {"padding": 3, "stride": 2}, LAST),
    "stem 3x3/2 weights": ((32, 3, 224, 224), (32, 3, 3, 3), {"padding": 1, "stride": 2}, ROWS),
    "volume 16 to 16 weights": ((32, 16, 48, 48, 48), (16, 16, 3, 3, 3), {"padding": 1}, LAST),
    "volume 2 to 2 weights": ((32, 2, 96, 96, 96), (2, 2, 3, 3, 3), {"padding": 1}, LAST),
    "volume 32 to 64 /2 weights": ((32, 32, 24, 24, 24), (64, 32, 3, 3, 3), {"padding": 1, "stride": 2}, LAST),
    "3 filters weights": ((8, 128, 256, 256), (3, 128, 3, 3), {"padding": 1}, LAST),
}
"""Weight gradients of layers of few channels on one side, of which runs are read."""


GROUPED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = {
    "groups of 4": ((32, 128, 56, 56), (128, 4, 3, 3), {"padding": 1, "groups": 32}, "fprop"),
    "groups of 8": ((32, 256, 28, 28), (256, 8, 3, 3), {"padding": 1, "groups": 32}, "dgrad"),
    "groups of 16 /2": ((32, 512, 28, 28), (512, 16, 3, 3), {"padding": 1, "groups": 32, "stride": 2}, "fprop"),
    "groups of 16": ((32, 512, 14, 14), (512, 16, 3, 3), {"padding": 1, "groups": 32}, "fprop"),
    "groups of 32": ((32, 1024, 14, 14), (1024, 32, 3, 3), {"padding": 1, "groups": 32}, "fprop"),
    "groups of 4 weights": ((32, 128, 56, 56), (128, 4, 3, 3), {"padding": 1, "groups": 32}, "wgrad"),
    "groups of 8 /2 gradient": ((32, 256, 56, 56), (256, 8, 3, 3), {"padding": 1, "groups": 32, "stride": 2}, "dgrad"),
    "groups of 16 /2 gradient": (
        (32, 512, 28, 28),
        (512, 16, 3, 3),
        {"padding": 1, "groups": 32, "stride": 2},
        "dgrad",
    ),
    "groups of 6 /3 gradient": ((16, 96, 57, 57), (96, 6, 5, 5), {"padding": 2, "groups": 16, "stride": 3}, "dgrad"),
    "groups of 16 weights": ((32, 512, 14, 14), (512, 16, 3, 3), {"padding": 1, "groups": 32}, "wgrad"),
    "groups of 8 weights": ((32, 256, 28, 28), (256, 8, 3, 3), {"padding": 1, "groups": 32, "bias": True}, "wgrad"),
    "groups of 8 /2 weights": ((32, 256, 56, 56), (256, 8, 3, 3), {"padding": 1, "groups": 32, "stride": 2}, "wgrad"),
    "3 filters": ((8, 128, 256, 256), (3, 128, 3, 3), {"padding": 1}, "fprop"),
    "volume, groups of 8": ((8, 128, 16, 28, 28), (128, 8, 3, 3, 3), {"padding": 1, "groups": 16}, "fprop"),
    "volume, groups of 16": ((8, 128, 8, 28, 28), (128, 16, 3, 3, 3), {"padding": 1, "groups": 8}, "dgrad"),
    "volume, groups of 4 /2 gradient": (
        (8, 128, 16, 28, 28),
        (128, 4, 3, 3, 3),
        {"padding": 1, "groups": 32, "stride": 2},
        "dgrad",
    ),
    "volume, groups of 8 weights": ((8, 128, 16, 28, 28), (128, 8, 3, 3, 3), {"padding": 1, "groups": 16}, "wgrad"),
}
"""Layers of few channels per group or few filters, channels-last."""

CONTIGUOUS_RESULTS = ("groups of 4", "groups of 8", "groups of 8 /2 gradient")
"""Of those, what is compiled for contiguous results as well: the kernel reads copies with channels innermost."""


def grouped() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the name and problem of each entry of few channels per group, and of few filters."""
    for name, (x, w, options, kind) in GROUPED.items():
        for layout in (LAST, ROWS) if name in CONTIGUOUS_RESULTS else (LAST,):
            problem = replace(conv_problem(x, w, dtype="bfloat16", formats=layout, **options), kind=kind)
            yield f"{name} {layout}" if layout == ROWS else name, problem


def separables() -> Iterator[tuple[str, SeparableProblem]]:
    """Yield the name and problem of each entry of two convolutions in one kernel."""
    for name, (x, k, options, dtype, layout) in SEPARABLE.items():
        common: dict[str, Any] = {"dtype": dtype, "formats": layout, "bias": True}
        first = conv_problem(x, (x[1], 1, 3, 3), groups=x[1], padding=1, **common, **options)
        second = conv_problem((*x[:2], *first.output_size), (k, x[1], 1, 1), **common)
        steps = (replace(step, activation="relu6", precision="tf32") for step in (first, second))
        yield name, SeparableProblem("depthwise_separable_conv2d", *steps)


def separable_launch(problem: SeparableProblem, number: int = 0) -> Launch:
    """Return the one launch of the fused kernel's plan."""
    solver = conv_separable.SOLVERS[0]
    plan = solver.plan(problem)
    (told,) = launches_of_plan(plan)
    kernel = separable._conv_separable_kernel
    absent = {name: None for name in kernel.arg_names if name.endswith("_ptr")}
    there = {f"{name}_ptr" for name in ("x", "w", "pointwise", "y", "bias", "pointwise_bias")}
    pointers = absent | dict.fromkeys(there, POINTERS[getattr(torch, problem.dtype)])
    given = {name: {**for_triton(told.arguments), **pointers}[name] for name in kernel.arg_names}
    return Launch(problem, solver.id, number, kernel, (), given, dict(plan.config))


def stems() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the name and problem of each entry of few input channels."""
    for name, (x, w, options) in STEMS.items():
        for layout in (LAST, ROWS):
            yield f"{name} {layout}", conv_problem(x, w, dtype="bfloat16", formats=layout, bias=True, **options)
            if name.startswith("patches") or (name, layout) == ("volume 1 to 16", ROWS):
                yield f"{name} without bias {layout}", conv_problem(x, w, dtype="bfloat16", formats=layout, **options)
    for name, (x, w) in VOLUMES.items():
        problem = conv_problem(x, w, dtype="bfloat16", formats=LAST, padding=1)
        yield f"{name} fprop", replace(problem, bias=True)
        yield f"{name} dgrad", replace(problem, kind="dgrad")
    for name, (x, w, options) in PHASES.items():
        yield name, replace(conv_problem(x, w, dtype="bfloat16", formats=LAST, **options), kind="dgrad")


def weights() -> Iterator[tuple[str, ConvProblem]]:
    """Yield the name and problem of each weight gradient of few channels on one side."""
    for name, (x, w, options, layout) in WEIGHTS.items():
        yield name, replace(conv_problem(x, w, dtype="bfloat16", formats=layout, **options), kind="wgrad")


def solver_of(problem: ConvProblem) -> Any:
    """Return the solver of the narrow kernels for a problem."""
    if problem.groups == 1 and problem.kind == "wgrad":
        return conv_runs_wgrad.SOLVERS[0]
    if problem.c != problem.groups and problem.c > 16:
        return (conv_rows_wgrad if problem.kind == "wgrad" else conv_rows).SOLVERS[0]
    if problem.groups == 1:
        return conv_runs.SOLVERS[problem.kind != "fprop"]
    return conv_collect.SOLVERS[0] if problem.kind == "wgrad" else conv_march.SOLVERS[0]


def launches(plan: Plan) -> list[Launch]:
    """Return the launches of a plan, in order, on tensors without memory; but for copies of contiguous tensors."""
    modules = (conv_march, conv_collect, conv_runs, conv_runs_wgrad, conv_rows, conv_rows_wgrad, turns)
    return [one for one in launches_of(plan, modules) if one.kernel.__name__ != "_conv_turn_kernel"]


def entries() -> dict[str, Launch]:
    """Return the launches of the plan for every problem, by name; of the sums of splits the first alone."""
    found: dict[str, Launch] = {}
    for name, problem in (*problems(), *stems(), *weights(), *grouped()):
        solver = solver_of(problem)
        assert solver.why_not(problem) is None, (name, solver.why_not(problem))
        first, *others = launches(solver.plan(problem))
        spread = first.number == 0 and others and first.kernel.__name__.endswith(("_spread_kernel", "_pack_kernel"))
        found[name] = others.pop(0) if spread else first
        if spread or problem.c != problem.groups:
            found |= {f"{name}, {one.kernel.__name__}": one for one in ([first] if spread else others)}
        if others and name.startswith("3x3 56 wgrad"):
            (found[f"{name} sum"],) = others
    return found | {name: separable_launch(problem) for name, problem in separables()}


def multiplying_loop(sass: str) -> tuple[int, int]:
    """Return the instructions of the loop that multiplies most, not that of the exact path, and those of a step."""
    if "_conv_separable_kernel" in sass:  # all of a chunk of channels, and in it that of a row of the window
        return hot_loop(sass, products=TENSOR_CORE), hot_loop(sass, products=("FFMA", "FFMA2"))
    tensor = any(name in counts(sass) for name in TENSOR_CORE)
    step = stepping_loop(sass, stores="_wgrad_kernel" not in sass)
    return hot_loop(sass, products=TENSOR_CORE if tensor else (*PRODUCTS, "FFMA2")), step  # two products of sm_100


def room(launch: Launch, row: Mapping[str, Any], loop: tuple[int, int]) -> dict[str, float]:
    """Return what a result costs in the hot loop, and what there is room for: its write, and its share of the read."""
    problem: Any = launch.problem
    if launch.kernel is separable._conv_separable_kernel:
        modelled = float(SeparableCosts(problem, [launch.config]).instructions()[0])
        rows_of_window = problem.depthwise.kernel[0]
        return {"chunk": loop[0] + (rows_of_window - 1) * loop[1], "modelled_chunk": round(modelled)}
    if launch.kernel in (rows._conv_rows_kernel, rows_wgrad._conv_rows_wgrad_kernel):
        return {"step": loop[1]}
    if launch.kernel is runs._conv_runs_kernel:
        phases = phases_of(problem).count
        costs: Any = RunCosts(forward_of(problem), [launch.config], exact=problem.kind != "fprop", phases=phases)
    elif launch.number or problem.c != problem.groups or problem.groups == 1:
        return {}
    else:
        costs = LaneCosts(problem, [launch.config])
    results = float(costs.outputs[0]) * launch.config.get("UNROLL", 1)
    elements = problem.result_shape if problem.kind != "wgrad" else problem.y_shape
    count = 1
    for size in elements:
        count *= size
    moved = problem.min_bytes / count
    if problem.kind != "wgrad" and launch.arguments.get("result_h") == 1:
        return {}  # one row: no loop over rows
    modelled = float(costs.instructions()[0]) / float(costs.outputs[0])
    assert moved >= itemsize(problem.dtype)
    return {
        "per_result": round((loop[0] or row["instructions"]) / results, 2),
        "room": round(ROOM_PER_BYTE * moved, 1),
        "modelled": round(modelled, 2),
        "modelled_registers": round(float(costs.registers()[0])),
    }


TABLE = PoolTable(
    "narrow_table", "Codegen table of the narrow kernels", WORDS, "result", entries(),
    (common, lanes, march_lanes, march, collect_lanes, collect, splits, runs, runs_spread, runs_wgrad, rows,
     rows_exact, rows_wgrad, separable),
    room,
    multiplying_loop,
)  # fmt: skip


if __name__ == "__main__":
    TABLE.main()
