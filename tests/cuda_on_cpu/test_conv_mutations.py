"""Deliberate mistakes in the convolution kernels, each of which a case must notice, and the sanitizers."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext

import pytest
from conv_cases import Case, check_case
from harness import ORDERS, is_noticed, mutant, sanitizer

from gpuconv.kernels import cu

_F = ("float32", "plain")
_H = ("float16", "tensor")

FPROP = Case("fprop", 2, "contiguous", *_F, "strided")
FPROP_LAST = Case("fprop", 2, "channels_last", *_F, "grouped")
FPROP_TENSOR = Case("fprop", 2, "channels_last", *_H, "vectors")
CIRCULAR = Case("fprop", 2, "contiguous", *_F, "circular twice")
EPILOGUE = Case("fprop", 1, "contiguous", *_F, "epilogue")
DGRAD = Case("dgrad", 2, "contiguous", *_F, "stride 2 dilation 3")
SOLVED = Case("dgrad", 2, "contiguous", *_F, "stride 3 dilation 2")
FEW_TAPS = Case("dgrad", 2, "contiguous", *_F, "stride 4 dilation 6")
IMAGES = Case("dgrad", 1, "contiguous", *_F, "reflect")
WRAPS = Case("dgrad", 1, "contiguous", *_F, "circular twice")
WGRAD = Case("wgrad", 2, "contiguous", *_F, "bias")
WGRAD_TENSOR = Case("wgrad", 2, "channels_last", *_H, "vectors")
LARGE = Case("fprop", 1, "contiguous", *_F, "large tile")
ROWS = Case("fprop depthwise", 2, "contiguous", "float32", "plain", "row of 5 stride 2")
REVERSED = Case("dgrad depthwise", 2, "contiguous", "float32", "plain", "row of 3 stride 1")

MUTANTS = {
    # the tile
    "no barrier after the table": (FPROP, r"(shared\.plain\[i\]\);\s*\}\s*)__syncthreads\(\);", r"\1"),
    "no barrier after a step": (FPROP, r"__syncthreads\(\);(\s*number \^= 1;)", r"\1"),
    "no barrier before sums are staged": (EPILOGUE, r"(for_each_sum\([^{]*\{\s*)__syncthreads\(\);", r"\1"),
    "the last step is left out": (FPROP, r"if \(first < last\) multiply\(number \^ 1\);", ""),
    "columns unmasked at the store": (FPROP, r"< rows && column < columns\)", "< rows)"),
    "rows unmasked at the store": (FPROP, r"\+ row < rows && column < columns\)", "+ row < C::M && column < columns)"),
    "the reduction unmasked": (FPROP, r"if \(step \+ i < last\) fill", "fill"),
    "no padding on the left": (FPROP, r"static_cast<unsigned>\(i\) < static_cast<unsigned>\(size\)", "i < size"),
    "an axis less checked": (FPROP, r"within\(row\.h \+ reduction\.h, h\) && ", ""),
    "half of the second slab": (LARGE, r"SLAB_NUMBER \* 4 \+ i\]", "i]"),
    "fragments of the plain operand exchanged": (FPROP_TENSOR, r"b\[j / 2\]\[j % 2 \* 2\], b", "b[j / 2][0], b"),
    "half of a step's depth": (FPROP_TENSOR, r"k < K; k \+= 16\)", "k < K; k += 32)"),
    # forward
    "tap shifted": (FPROP, r"at\.s \* static_cast<I>\(p\.dilation\[2\]\);\n", "at.s;\n"),
    "one wrap": (CIRCULAR, r"return floor_mod\(i, size\);", "return i < 0 ? i + size : i >= size ? i - size : i;"),
    "shift before scale": (EPILOGUE, r"(if \(scale\) sum \*= .*;\n)(.*\n)", r"\2\1"),
    # data gradient
    "phases by residue": (FEW_TAPS, r"I residue = number \* \(dilation % stride\) % stride;", "I residue = number;"),
    "the first tap unsolved": (SOLVED, r"residue / gcd \* static_cast<I>\(p\.inverse\[axis\]\)", "residue / gcd"),
    "every residue has taps": (FEW_TAPS, r"taps = residue % gcd == 0 \? (.*) : 0;", r"taps = \1;"),
    "images counted twice": (IMAGES, r" && \(image == 0 \|\| coordinate != i\)", ""),
    "no second wrap": (WRAPS, r"\(image <= wraps \? image : wraps - image\)", "(image <= wraps ? 1 : -1)"),
    "taps the other way round": (DGRAD, r"rows_p = -at\.r", "rows_p = at.r"),
    # weight gradient
    "a split skipped": (WGRAD, r"int split = 0; split < p\.splits", "int split = 1; split < p.splits"),
    "splits overlap": (WGRAD, r"last = smaller<I>\(first \+ static_cast<I>\(p\.per_split\), pixels\)", "last = pixels"),
    "the bias from half of the pixels": (WGRAD, r"k < C::K; k\+\+\) column_sum", "k < C::K; k += 2) column_sum"),
    "partial sums in the other order": (WGRAD_TENSOR, r"p\.taps_inside\);", "!p.taps_inside);"),
    # depthwise
    "an input of the run": (ROWS, r"value\[i \* STRIDE \+ s\]", "value[i + s]"),
    "a run over the end": (ROWS, r"if \(first_q \+ i >= q\) continue;", ""),
    "taps not in reverse": (REVERSED, r"params\.first_tap \+ ", ""),
}  # fmt: skip


_SOURCES = {"transposed": "conv_dgrad", **{name: f"conv_{name}" for name in ("fprop", "dgrad", "wgrad")}}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name):
    case, pattern, replacement = MUTANTS[name]
    source = "conv_depthwise" if case.kind.endswith("depthwise") else _SOURCES[case.kind]
    assert len(re.findall(pattern, cu.source(source), re.MULTILINE)) == 1, "a mutation changes one place"
    # What is written far outside must not be this process's memory.
    far = sanitizer("address") if "unmasked at the store" in name else nullcontext()
    with mutant(pattern, replacement), far:
        try:
            check_case(case, ORDERS)
        except AssertionError:
            return
        except RuntimeError as error:
            assert "g++ failed" not in str(error), "a mutant must compile"
            return
    pytest.fail(f"{name}: {case.id} noticed nothing")


ADDRESS = [
    FPROP, FPROP_TENSOR, CIRCULAR, FEW_TAPS, IMAGES, WGRAD, WGRAD_TENSOR, ROWS, REVERSED,
    Case("transposed", 2, "channels_last", "bfloat16", "tensor", "epilogue"),
    Case("fprop", 3, "mixed", "float64", "plain", "stride over kernel"),
]  # fmt: skip


@pytest.mark.parametrize("case", ADDRESS, ids=lambda case: f"{case.kind}-{case.id}")
def test_address_sanitizer(case):
    with sanitizer("address"):
        check_case(case, ORDERS[2:3])


THREADS = [
    Case("fprop", 1, "contiguous", *_F, "epilogue"), Case("fprop", 1, "channels_last", *_H, "vectors"),
    Case("dgrad", 1, "contiguous", *_F, "stride 1"), Case("dgrad", 1, "channels_last", *_H, "one by one"),
    Case("wgrad", 1, "contiguous", *_F, "bias"), Case("wgrad", 1, "channels_last", *_H, "one split"),
]  # fmt: skip
"""Of 64 threads a block, with barriers and both buffers in use; depthwise kernels share no memory."""


FEW_THREADS = THREADS if os.environ.get("GPUCONV_TEST_FULL") == "1" else THREADS[:1] + THREADS[3::2]


@pytest.mark.parametrize("case", FEW_THREADS, ids=lambda case: f"{case.kind}-{case.id}")
def test_thread_sanitizer(case):
    with sanitizer("thread"):
        check_case(case, ORDERS[:1])


def test_thread_sanitizer_notices_a_missing_barrier():
    with mutant(r"__syncthreads\(\);(\s*number \^= 1;)", r"\1"), sanitizer("thread"):
        assert is_noticed(lambda: check_case(THREADS[0], ORDERS[:1]))
