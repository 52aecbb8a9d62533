"""What the compiler makes of the rolling kernel on Hopper, the GPU that it is planned for; there is no table of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from aot import compile_source, report, specialise
from conv_launches import launches_of
from disassembly import sass_of
from loops import hot_loop
from problems import conv_problem
from sample import FULL

from gpuconv.arrays import CHANNELS_LAST
from gpuconv.backends.triton import conv_rolling
from gpuconv.backends.triton.rolling_costs import RollingCosts
from gpuconv.problem import ConvProblem

pytestmark = pytest.mark.codegen

WHOLE = {"bias": True, "scale": True, "shift": True, "residual": True, "activation": "silu"}

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "3x3 64": ((32, 64, 128, 128), (64, 64, 3, 3), {"padding": 1}, {}),
    "3x3 64 56": ((32, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, {"bias": True, "activation": "relu"}),
    "3x3 64 gradient": ((32, 64, 224, 224), (64, 64, 3, 3), {"padding": 1}, {"kind": "dgrad"}),
    "3x3 32 epilogue": ((32, 32, 112, 112), (32, 32, 3, 3), {"padding": 1}, WHOLE),
    "3x3 64 epilogue": ((32, 64, 128, 128), (64, 64, 3, 3), {"padding": 1}, WHOLE),
    "3x3x3 32": ((32, 32, 24, 24, 24), (32, 32, 3, 3, 3), {"padding": 1}, {"bias": True}),
    "3x3x3 32 gradient": ((32, 32, 24, 24, 24), (32, 32, 3, 3, 3), {"padding": 1}, {"kind": "dgrad"}),
    "7 of 32": ((32, 32, 51200), (32, 32, 7), {"padding": 3}, {"bias": True}),
    "7 of 64 dilated": ((32, 64, 12800), (64, 64, 7), {"padding": 15, "dilation": 5}, {}),
    "9 of 64": ((32, 64, 12800), (64, 64, 9), {"padding": 4}, {"bias": True, "activation": "relu"}),
    "11 of 32": ((32, 32, 51200), (32, 32, 11), {"padding": 5}, {"bias": True}),
    "11 of 32 dilated gradient": ((32, 32, 51200), (32, 32, 11), {"padding": 25, "dilation": 5}, {"kind": "dgrad"}),
    "11 of 64 dilated": ((32, 64, 12800), (64, 64, 11), {"padding": 15, "dilation": 3}, {"bias": True}),
    "12 of 32 epilogue": ((32, 32, 51200), (32, 32, 12), {"padding": 6}, WHOLE),
    "14 of 32": ((32, 32, 51200), (32, 32, 14), {"padding": 7}, {}),
    "3 of 64": ((32, 64, 12800), (64, 64, 3), {"padding": 1}, {"bias": True}),
    "7 of 32 to 1": ((32, 32, 51200), (1, 32, 7), {"padding": 3}, {"bias": True}),
    "3x3 192 to 64 gradient": ((32, 192, 512, 512), (64, 192, 3, 3), {"padding": 1}, {"kind": "dgrad"}),
    "3x3 64, 64-bit": ((32, 64, 1024, 2048), (64, 64, 3, 3), {"padding": 1}, {"bias": True}),
}
"""Layers of the workloads, channels-last, and what is changed of their forward problems."""

TAKEN = tuple(LAYERS) if FULL else ("3x3 64 gradient", "3x3x3 32", "7 of 64 dilated", "14 of 32")


def problem_of(name: str) -> ConvProblem:
    """Return the problem of a layer, in bfloat16."""
    x, w, options, changes = LAYERS[name]
    return replace(conv_problem(x, w, dtype="bfloat16", formats=CHANNELS_LAST, **options), **changes)


@pytest.mark.parametrize("name", TAKEN)
def test_plans_by_default_compile_to_what_the_cost_model_describes(name: str) -> None:
    """No spills, copies of 16 bytes, and products that are not waited for one by one."""
    problem = problem_of(name)
    solver = conv_rolling.SOLVERS[problem.kind != "fprop"]
    assert solver.why_not(problem) is None
    plan = solver.plan(problem)
    (launch,) = launches_of(plan, (conv_rolling,))
    compiled = compile_source(specialise(launch.kernel, launch.arguments), 90, launch.config)
    sass = sass_of(compiled.asm["cubin"])
    found, costs = report(compiled, sass), RollingCosts(problem, [launch.config])
    assert found.stack == 0 and not found.counts.keys() & {"LDL", "STL"}, (launch.config, found.counts)
    assert found.shared == costs.shared()[0], launch.config
    assert 0.8 <= costs.registers()[0] / found.registers <= 1.25, (launch.config, found.registers, costs.registers())
    loop = hot_loop(sass, products=("HGMMA",))
    assert 0.75 <= costs.instructions()[0] / loop <= 1.25, (launch.config, loop, costs.instructions())
    begun = len(re.findall(r"WARPGROUP\.ARRIVE", sass))
    assert begun == costs.dots[0] and found.counts["HGMMA"] >= begun, (launch.config, begun, costs.dots)
    loads = costs.loads[0] * launch.config["num_stages"]  # of the stages before the loop, and of one step
    assert found.wide_async == loads and found.counts["LDGSTS"] == loads, (launch.config, found.counts, loads)
