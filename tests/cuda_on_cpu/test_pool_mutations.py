"""Mistakes put into the pools' CUDA sources, each of which a check must notice; and the sanitizers on what has none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import harness
import pool_plane_cases
import pytest
from pool_cases import Inputs, PoolCase, announce_pools, check
from pool_plane_cases import Case

MAX, AVG, LP = "max", "avg", "lp"
ADAPTIVE_AVG, ADAPTIVE_MAX = "adaptive_avg", "adaptive_max"


@dataclass(frozen=True)
class Mutant:
    """A mistake, and the case (family, pass, dims, layout, branch) that must show it."""

    name: str
    pattern: str
    replacement: str
    case: tuple[str, str, int, str, str]
    count: int = 1
    dtype: str = "float32"


WINDOW, LAST = "contiguous", "channels_last"

MUTANTS = (
    Mutant("NaN is a number", r" \|\| value != value;", ";", (MAX, "fprop", 2, WINDOW, "window 3 stride 2")),
    Mutant("the last maximum wins", r"value > best\[i\]", "value >= best[i]",
           (MAX, "fprop", 2, WINDOW, "window 3 stride 2")),
    Mutant("taps before the input", r"steps_over<I>\(-start, axis\.dilation\)", "I(0)",
           (MAX, "fprop", 1, WINDOW, "window over input")),
    Mutant("taps behind the input", r"smaller<I>\(end, axis\.taps\)", "I(axis.taps)",
           (MAX, "fprop", 1, WINDOW, "window over input")),
    Mutant("a tap shifted", r"^( +)offset \+= step;", r"\1offset += step + (s == 1);",
           (MAX, "fprop", 2, WINDOW, "window 3 stride 2")),
    Mutant("taps counted without the rows above", r"I tap = number_of<I>\(p, t, r, box\.w\.begin\);",
           "I tap = number_of<I>(p, t, I(0), box.w.begin);", (MAX, "fprop", 2, WINDOW, "window asymmetric")),
    Mutant("every window has chosen", r"number\[i\] == wanted", "number[i] >= wanted",
           (MAX, "bwd", 2, WINDOW, "gather 3 stride 2")),
    Mutant("between the taps of a dilated window", r"tap \* axis\.dilation == distance \? tap : I\(-1\)", "tap",
           (AVG, "bwd", 1, WINDOW, "gather dilated")),
    Mutant("windows behind the last one", r"smaller<I>\(last / axis\.stride \+ 1, axis\.windows\)",
           "last / axis.stride + 1", (AVG, "bwd", 2, WINDOW, "gather 2 stride 2")),
    Mutant("what ceil mode adds counts", r"axis\.size \+ axis\.pad_high\);",
           "axis.size + axis.pad_high + axis.stride);", (LP, "fprop", 1, WINDOW, "window 64-bit")),
    Mutant("results behind the last one", r"^ +if \(unit >= I\(p\.units\)\) return;$", "",
           (AVG, "fprop", 1, WINDOW, "window 3 stride 2"), 2),
    Mutant("channels of another group", r"take_axis\(unit, channels / LANES\) \* LANES",
           "take_axis(unit, channels / LANES)", (AVG, "fprop", 2, LAST, "window 2 stride 2")),
    Mutant("channels in one order only", r"if \(channels_innermost\) at\.c = .*$", "at.c = 0;",
           (MAX, "fprop", 2, LAST, "window 3 stride 2")),
    Mutant("the derivative of another power", r"power\(seen\[i\], p\.norm - 1\.0\)", "power(seen[i], p.norm)",
           (LP, "bwd", 2, WINDOW, "gather 2 stride 2")),
    Mutant("a cut window counts for less", r"total / V\(divisor\) \* V\(taps\)", "total",
           (LP, "fprop", 1, WINDOW, "window 64-bit")),
    Mutant("the end of a ragged window", r"\(i \+ 1\) \* size \+ windows - 1", "(i + 1) * size",
           (ADAPTIVE_AVG, "fprop", 2, WINDOW, "window ragged")),
    Mutant("the start of a ragged window", r"return i \* size / windows;", "return i * (size / windows);",
           (ADAPTIVE_MAX, "fprop", 1, WINDOW, "window ragged")),
    Mutant("half of the strips", r"int half = p\.strips / 2;", "int half = p.strips / 4;",
           (AVG, "fprop", 2, WINDOW, "block 7 by 9"), 2),
    Mutant("a strip too short", r"element \+= p\.strips\)", "element += p.strips + 1)",
           (AVG, "fprop", 2, WINDOW, "block 7 by 9"), 2),
    Mutant("no barrier before a sum", r"__syncthreads\(\);(\s+if \(me\.strip < half\) sum)", r"\1",
           (AVG, "fprop", 2, WINDOW, "block global")),
    Mutant("no barrier before a maximum", r"__syncthreads\(\);(\s+const int partner)", r"\1",
           (MAX, "fprop", 2, WINDOW, "block global")),
    Mutant("the last of equal strips", r"number_b < number_a\);", "number_b > number_a);",
           (ADAPTIVE_MAX, "fprop", 2, WINDOW, "block ties")),
    Mutant("the first NaN of two strips", r"number_b > number_a;", "number_b < number_a;",
           (ADAPTIVE_MAX, "fprop", 2, WINDOW, "block global")),
)  # fmt: skip

PLANES = (
    Mutant("a neighbour with the same index", r"other = strip \+ 1;", "other = strip + 2;",
           ("unpool", "fprop", 2, WINDOW, "same")),
    Mutant("no barrier before indices are read", r"(tile\[thread\] = target;\s+)__syncthreads\(\);", r"\1",
           ("unpool", "fprop", 1, WINDOW, "same")),
    Mutant("no barrier before the next tile", r"__syncthreads\(\);(\s+tile\[thread\] = target;)", r"\1",
           ("unpool", "fprop", 1, WINDOW, "random")),
    Mutant("zeros up to the last one", r"i < p\.units; \+\+i", "i + 1 < p.units; ++i",
           ("unpool", "fprop", 2, WINDOW, "random"), dtype="float16"),
    Mutant("the last window is like others", r"if \(i == windows - 1\) return last;", "",
           ("fractional", "fprop", 2, WINDOW, "one output")),
    Mutant("no window starts late", r"\(i \+ slack\) \* intervals", "(i - 1) * intervals",
           ("fractional", "bwd", 2, WINDOW, "plain")),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _together():
    announce_pools()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_of_windows_are_noticed(mutant):
    family, kind, ndim, layout, branch = mutant.case
    inputs = Inputs(PoolCase(family, kind, ndim, layout, mutant.dtype, branch))
    _notice(mutant, partial(check, inputs))


@pytest.mark.parametrize("mutant", PLANES, ids=lambda mutant: mutant.name)
def test_mutants_of_planes_are_noticed(mutant):
    family, kind, ndim, layout, branch = mutant.case
    _notice(mutant, partial(pool_plane_cases.check, Case(family, kind, ndim, layout, mutant.dtype, branch)))


def _notice(mutant, of_case):
    of_case()
    with harness.mutant(mutant.pattern, mutant.replacement, mutant.count):
        assert harness.is_noticed(of_case), f"nobody noticed: {mutant.name}"


ADDRESS = (
    PoolCase(MAX, "fprop", 2, "contiguous", "float16", "window 3 stride 2"),
    PoolCase(MAX, "bwd", 2, "strided", "float32", "gather asymmetric"),
    PoolCase(AVG, "fprop", 3, "channels_last", "bfloat16", "window 2 stride 2"),
    PoolCase(AVG, "bwd", 1, "permuted", "float64", "gather over input"),
    PoolCase(LP, "bwd", 2, "channels_last", "float16", "gather 2 stride 2"),
    PoolCase(ADAPTIVE_MAX, "fprop", 2, "strided", "float32", "block ragged"),
    PoolCase(ADAPTIVE_AVG, "bwd", 2, "contiguous", "float32", "gather larger output"),
)
"""Odd sizes, padding, wide loads, and every kernel of windows once."""


@pytest.mark.parametrize("case", ADDRESS, ids=lambda case: case.id)
def test_address_sanitizer(case):
    with harness.sanitizer("address"):
        check(Inputs(case), orders=harness.ORDERS[:1])


PLANE_CASES = (
    Case("unpool", "fprop", 2, "contiguous", "float16", "random"),
    Case("unpool", "bwd", 2, "strided", "float16", "random"),
    Case("fractional", "fprop", 2, "contiguous", "float16", "plain"),
    Case("fractional", "bwd", 2, "channels_last", "float32", "taps"),
)


@pytest.mark.parametrize("case", PLANE_CASES, ids=lambda case: case.id)
def test_address_sanitizer_on_planes(case):
    with harness.sanitizer("address"):
        pool_plane_cases.check(case, orders=harness.ORDERS[:1])


THREAD = (
    PoolCase(MAX, "fprop", 2, "contiguous", "float32", "block global"),
    PoolCase(AVG, "fprop", 1, "contiguous", "float32", "block 7 by 9"),
    PoolCase(ADAPTIVE_AVG, "fprop", 1, "channels_last", "float32", "block ragged"),
    PoolCase(MAX, "bwd", 1, "contiguous", "float32", "gather 3 stride 2"),
    PoolCase(LP, "bwd", 1, "contiguous", "float32", "gather 2 stride 2"),
)
"""Threads that share windows, and results of which every element has one thread."""


@pytest.mark.parametrize("case", THREAD, ids=lambda case: case.id)
def test_thread_sanitizer(case):
    with harness.sanitizer("thread"):
        check(Inputs(case), orders=harness.ORDERS[:1])


def test_thread_sanitizer_on_unpooling():
    with harness.sanitizer("thread"):
        pool_plane_cases.check(Case("unpool", "fprop", 1, "contiguous", "float32", "same"), orders=harness.ORDERS[:1])


def test_thread_sanitizer_finds_a_race():
    """Without the barrier between two halves of the strips."""
    inputs = Inputs(THREAD[1])
    missing = harness.mutant(r"__syncthreads\(\);(\s+if \(me\.strip < half\) sum)", r"\1")
    with harness.sanitizer("thread"), missing:
        assert harness.is_noticed(partial(check, inputs, orders=harness.ORDERS[:1]))
