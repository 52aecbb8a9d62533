"""Options that no default of Triton decides, in what ahead-of-time compilation makes of a kernel."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import triton
from aot import compile_source, launch_arguments, specialise
from table import ENTRIES, SOLVERS, launch
from triton.backends.compiler import GPUTarget

from gpuconv.backends.triton.common import launch_options

pytestmark = pytest.mark.codegen


def fused(compiled) -> int:
    """Return how many instructions of PTX multiply and add at once."""
    return len(re.findall(r"\bfma\.rn", compiled.asm["ptx"]))


def test_products_and_sums_fuse_whatever_tritons_default_is(monkeypatch):
    """The kernel's scale and shift: one instruction each, under either default, with the same machine code."""
    problem = next(p for p in ENTRIES.values() if p.kind == "fprop" and p.scale and p.shift and p.dtype == "float16")
    problem = replace(problem, bias=False, residual=False, activation=None)
    config = SOLVERS["fprop"].plan(problem).config
    source = specialise(launch("fprop", problem)[0].fn, launch_arguments(problem, config))
    binaries = []
    for default in ("0", "1"):
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", default)
        compiled = compile_source(source, 90, config)
        assert compiled.metadata.enable_fp_fusion is True
        assert fused(compiled) > 0
        binaries.append(compiled.asm["cubin"])
    assert binaries[0] == binaries[1]
    apart = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options=launch_options(config) | {"enable_fp_fusion": False}
    )
    assert apart.metadata.enable_fp_fusion is False and fused(apart) == 0


def test_what_a_config_says_is_not_lost():
    options = launch_options({"BLOCK_M": 64, "num_warps": 8, "num_stages": 2, "maxnreg": 255, "splits": 3})
    assert options == {"num_warps": 8, "num_stages": 2, "maxnreg": 255, "enable_fp_fusion": True}
