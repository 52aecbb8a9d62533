"""The suite must notice a broken kernel: each mutant of the adaptive, fractional and unpooling kernels fails a case."""

from __future__ import annotations

import importlib

import pytest
import triton
from mutants import mutant
from pool_adaptive_cases import PoolCase, check_case
from pool_adaptive_mutants import (
    BACK,
    CLAIM,
    COMBINE,
    FETCH,
    FRACTIONAL,
    FRACTIONAL_BACK,
    LINES,
    MUTANTS,
    PARTIAL,
    WINDOW,
)

MODULE_OF = {
    WINDOW: "pool.adaptive", BACK: "pool.adaptive", LINES: "pool.adaptive_lines", PARTIAL: "pool.plane",
    COMBINE: "pool.plane", CLAIM: "pool.unpool", FETCH: "pool.unpool", FRACTIONAL: "pool.fractional",
    FRACTIONAL_BACK: "pool.fractional",
}  # fmt: skip


def _case(family, ndim, layout, branch, dtype="float32"):
    return PoolCase(family, ndim, layout, dtype, branch)


PROBES = {
    WINDOW: (
        _case("adaptive_max", 2, "sliced", "window ties"),
        _case("adaptive_max", 2, "channels_last", "window specials"),
        _case("adaptive_max", 3, "contiguous", "window offsets"),
        _case("adaptive_avg", 3, "strided", "window ragged"),
        _case("adaptive_avg", 2, "contiguous", "window larger output"),
        _case("adaptive_max", 1, "contiguous", "window no indices"),
        _case("adaptive_max", 3, "sliced", "window ties"),
    ),
    BACK: (
        _case("adaptive_avg", 2, "sliced", "gather ragged"),
        _case("adaptive_max", 2, "channels_last", "gather ties"),
        _case("adaptive_max", 3, "contiguous", "gather offsets larger output"),
        _case("adaptive_avg", 3, "strided", "gather larger output"),
    ),
    LINES: (
        _case("adaptive_max", 3, "sliced", "lines ties"),
        _case("adaptive_max", 2, "contiguous", "lines specials"),
        _case("adaptive_max", 3, "strided", "lines offsets"),
        _case("adaptive_avg", 3, "sliced", "lines ragged"),
        _case("adaptive_avg", 2, "contiguous", "lines larger output"),
        _case("adaptive_max", 1, "contiguous", "lines -inf"),
        _case("adaptive_max", 2, "contiguous", "lines no indices"),
    ),
    PARTIAL: (
        _case("adaptive_avg", 2, "sliced", "split ragged"),
        _case("adaptive_max", 2, "channels_last", "split ties"),
        _case("adaptive_max", 2, "contiguous", "split one offsets"),
        _case("adaptive_max", 2, "sliced", "split one specials"),
        _case("adaptive_avg", 2, "contiguous", "split one"),
        _case("adaptive_max", 1, "contiguous", "split -inf"),
        _case("adaptive_max", 2, "contiguous", "split no indices"),
        _case("adaptive_avg", 1, "channels_last", "split global"),
        _case("adaptive_max", 1, "contiguous", "split one -inf"),
    ),
    COMBINE: (
        _case("adaptive_avg", 2, "sliced", "split ragged"),
        _case("adaptive_max", 2, "channels_last", "split ties"),
        _case("adaptive_max", 2, "contiguous", "split offsets"),
        _case("adaptive_max", 1, "contiguous", "split no indices"),
    ),
    CLAIM: (
        _case("unpool", 2, "contiguous", "claim random"),
        _case("unpool", 2, "channels_last", "claim parts"),
        _case("unpool", 3, "sliced", "claim apart", "float16"),
        _case("unpool", 3, "strided", "claim smaller output"),
        _case("unpool", 1, "contiguous", "claim same"),
    ),
    FETCH: (
        _case("unpool", 2, "sliced", "gather random"),
        _case("unpool", 3, "channels_last", "gather random"),
        _case("unpool", 3, "contiguous", "gather 64-bit"),
    ),
    FRACTIONAL: (
        _case("fractional", 2, "sliced", "window ties"),
        _case("fractional", 3, "contiguous", "window offsets"),
        _case("fractional", 3, "sliced", "window ties"),
        _case("fractional", 2, "strided", "window one output", "bfloat16"),
        _case("fractional", 2, "contiguous", "window specials", "bfloat16"),
    ),
    FRACTIONAL_BACK: (
        _case("fractional", 2, "sliced", "gather ties"),
        _case("fractional", 3, "contiguous", "gather offsets"),
        _case("fractional", 3, "channels_last", "gather"),
        _case("fractional", 2, "contiguous", "gather one output"),
    ),
}


def _noticed(kernel: str) -> bool:
    for case in PROBES[kernel]:
        try:
            check_case(case, orders=("forward",))
        except Exception:  # any failure counts: wrong values, a broken guard band, an access outside of memory
            return True
    return False


@pytest.mark.parametrize("kernel", PROBES)
def test_probes_pass_on_the_real_kernels(kernel):
    assert not _noticed(kernel)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, monkeypatch):
    if name == "NaN forgotten without indices" and triton.__version__.startswith("3.6."):
        pytest.skip("not run: the interpreter of Triton 3.6 propagates NaN with PropagateNan.NONE as well")
    kernel, file, old, new = MUTANTS[name]
    module = MODULE_OF[kernel]
    target = importlib.import_module(f"gpuconv.kernels.tl.{module}")
    broken = mutant(tmp_path, name, module, kernel, f"{(file or module).replace('.', '/')}.py", old, new)
    monkeypatch.setattr(target, kernel, broken)
    assert _noticed(kernel), f"no probe noticed the mutation {name!r}"
