"""What the compiler makes of the kernel of 8-bit operands with scales, by architecture; there is no table of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from aot import compile_source, report, specialise
from disassembly import sass_of
from loops import accesses, hot_loop, operations
from sample import FULL, OLDEST

from bench.scaled import scaled_problem
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.triton.conv_scaled import SOLVERS
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.backends.triton.launch import for_triton
from gpuconv.costs.constants import Gpu, assuming
from gpuconv.packs.identity import described

pytestmark = pytest.mark.codegen

SOLVER = SOLVERS[0]

PRODUCTS = {
    ("int8", 80): "IMMA",
    ("int8", 90): "IGMMA",
    ("int8", 100): "IMMA" if OLDEST else "UTCIMMA",
    ("float8_e4m3fn", 90): "QGMMA",
    ("float8_e4m3fn", 100): "UTCQMMA",
}
"""The tensor cores' instruction for each type on each architecture; Triton 3.6 has none of Blackwell's for int8."""

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, dict[str, Any]]] = {
    "3x3": ((32, 128, 28, 28), (256, 128, 3, 3), CHANNELS_LAST, {"padding": 1, "bias": "float32"}),
    "3x3 8-bit": ((32, 128, 28, 28), (256, 128, 3, 3), CHANNELS_LAST, {"padding": 1, "out_dtype": "8-bit"}),
    "3x3 silu": (
        (32, 128, 28, 28), (256, 128, 3, 3), CHANNELS_LAST,
        {"padding": 1, "bias": "bfloat16", "activation": "silu", "out_dtype": "float32"},
    ),
    "3x3 gelu 8-bit": (
        (32, 128, 28, 28), (256, 128, 3, 3), CHANNELS_LAST,
        {"padding": 1, "bias": "float32", "activation": "gelu", "out_dtype": "8-bit"},
    ),
    "1x1": ((32, 256, 14, 14), (1024, 256, 1, 1), CHANNELS_LAST, {"weight_scale": "number"}),
    "1x1 to 64": ((32, 256, 56, 56), (64, 256, 1, 1), CHANNELS_LAST, {"activation": "relu", "out_dtype": "8-bit"}),
    "7x7": ((32, 64, 28, 28), (128, 64, 7, 7), CHANNELS_LAST, {"padding": 3, "weight_scale": "array"}),
    "groups": ((32, 128, 28, 28), (128, 16, 3, 3), CHANNELS_LAST, {"padding": 1, "groups": 8, "out_dtype": "float16"}),
    "3x3x3": ((4, 64, 14, 14, 14), (128, 64, 3, 3, 3), CHANNELS_LAST, {"padding": 1, "out_dtype": "8-bit"}),
    "7 of a sequence": ((8, 64, 4000), (128, 64, 7), CHANNELS_LAST, {"padding": 3, "stride": 2}),
    "odd": ((32, 37, 28, 28), (41, 37, 3, 3), CHANNELS_LAST, {"padding": 1, "activation": "silu"}),
    "contiguous": ((32, 128, 28, 28), (256, 128, 3, 3), CONTIGUOUS, {"padding": 1, "out_dtype": "8-bit"}),
    "contiguous 7x7": (
        (32, 64, 28, 28), (128, 64, 7, 7), CONTIGUOUS,
        {"padding": 3, "bias": "float32", "activation": "gelu", "out_dtype": "8-bit"},
    ),
    "contiguous odd": ((32, 37, 28, 28), (41, 37, 7, 7), CONTIGUOUS, {"activation": "silu", "out_dtype": "float32"}),
    "stem": ((32, 3, 224, 224), (64, 3, 7, 7), CONTIGUOUS, {"padding": 3, "stride": 2}),
    "64-bit": ((2**15, 64, 56, 56), (64, 64, 3, 3), CHANNELS_LAST, {"padding": 1, "out_dtype": "8-bit"}),
    "64-bit contiguous 7x7": ((2**15, 64, 56, 56), (64, 64, 7, 7), CONTIGUOUS, {"padding": 3, "activation": "gelu"}),
}  # fmt: skip

JOBS = [(name, dtype, arch) for name in LAYERS for dtype, arch in PRODUCTS]
TAKEN = JOBS if FULL else JOBS[:: 3 * len(PRODUCTS)] + JOBS[7 :: 2 * len(PRODUCTS) + 1]


def compiled_plan(name: str, dtype: str, arch: int) -> tuple[Any, Any, str]:
    """Compile the kernel as the default plan of a layer launches it; return plan, binary and machine code."""
    x, w, layout, options = LAYERS[name]
    options = {key: dtype if value == "8-bit" else value for key, value in options.items()}
    problem = scaled_problem(x, w, dtype, layout, **options)
    with assuming(Gpu(f"sm_{arch}", divmod(arch, 10))):
        assert SOLVER.why_not(problem) is None
        plan = SOLVER.plan(problem)
        *_, told = launches_of_plan(plan)
    arguments = {
        name: described(name, value, True)[0] if isinstance(value, torch.Tensor) else value
        for name, value in for_triton(told.arguments).items()
    }
    compiled = compile_source(specialise(told.kernel.load(), arguments), arch, told.options)
    return plan, compiled, sass_of(compiled.asm["cubin"])


@pytest.mark.parametrize(("name", "dtype", "arch"), TAKEN)
def test_plans_by_default_compile_without_spills_to_tensor_cores(name: str, dtype: str, arch: int) -> None:
    plan, compiled, sass = compiled_plan(name, dtype, arch)
    found, product = report(compiled, sass), PRODUCTS[dtype, arch]
    assert found.stack == 0 and not found.counts.keys() & {"LDL", "STL"}, (plan.config, found)
    multiply = Counter(op.partition(".")[0] for op in operations(sass) if "MMA" in op.partition(".")[0])
    assert multiply.keys() - {"UTCATOMSWS"} == {product}, multiply
    assert hot_loop(sass, products=(product,)) > 0
    conv, config = plan.problem.conv, plan.config
    wide = name.startswith(("3x3", "1x1", "7x7", "groups", "7 of"))
    assert (found.wide_async > 0) == (wide and conv.x_format == CHANNELS_LAST), found
    if wide and config["BLOCK_N"] >= 64 and arch == 90:  # a thread of Hopper stores runs of filters
        stores = {size for size in accesses(sass) if size.startswith("STG")}
        assert stores == {"STG128"}, stores


def test_every_architecture_and_layer_is_taken() -> None:
    assert {(dtype, arch) for _, dtype, arch in TAKEN} == set(PRODUCTS)
    assert len(TAKEN) >= 12


def test_partial_sums_of_float8_are_added_in_float32_on_hopper() -> None:
    """Tensor cores add BLOCK_K products at most; the sum of these is a sum of float32 on the plain cores."""
    _, _, sass = compiled_plan("3x3 8-bit", "float8_e4m3fn", 90)
    assert Counter(op.partition(".")[0] for op in operations(sass))["FADD"] >= 64


@pytest.mark.parametrize("dtype", ("int8", "float8_e4m3fn"))
def test_8_bit_results_are_divided_and_rounded_as_ieee_does(dtype: str) -> None:
    """No approximate division; the sum and difference that round to int8 are not folded; one conversion to float8."""
    _, compiled, _ = compiled_plan("1x1 to 64", dtype, 90)
    ptx = compiled.asm["ptx"]
    assert len(re.findall(r"\bdiv\.rn\.f32", ptx)) == 32 and not re.search(r"\bdiv\.(full|approx)", ptx)
    rounding = re.findall(r"add(?:\.rn)?\.f32\s[^;]*0f[4C]B400000", ptx, re.IGNORECASE)
    assert len(rounding) == (64 if dtype == "int8" else 0)
    assert ("cvt.rn.satfinite.e4m3x2.f32" in ptx) == (dtype != "int8")


def test_what_a_gpu_does_not_multiply_is_refused() -> None:
    problem = scaled_problem((2, 16, 8, 8), (16, 16, 3, 3), "float8_e4m3fn")
    for capability, reason in (
        ((8, 0), "multiplies float8_e4m3fn on sm_89 and newer, not on sm_80"),
        ((8, 9), None),
        ((9, 0), None),
        ((10, 0), None),
    ):
        with assuming(Gpu("A GPU", capability)):
            assert SOLVER.why_not(problem) == reason
    of_int8 = replace(problem, conv=replace(problem.conv, dtype="int8"))
    for capability, reason in (((7, 5), "multiplies int8 on sm_80 and newer, not on sm_75"), ((8, 0), None)):
        with assuming(Gpu("A GPU", capability)):
            assert SOLVER.why_not(of_int8) == reason
