"""Every estimate against what bytes, FLOPs and calls say, on problems of all operations that are drawn."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from tuning_cases import pool, pretended

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.backends.base import Solver
from gpuconv.backends.triton.pool_adaptive import adaptive_arguments
from gpuconv.costs import constants
from gpuconv.costs.work import roofline
from gpuconv.dispatch import backends, candidates, solver_of
from gpuconv.problem import (
    ConvProblem,
    DeformProblem,
    PoolProblem,
    Problem,
    ScaledProblem,
    SeparableProblem,
    itemsize,
)  # fmt: skip

COUNT = 4000 if os.environ.get("GPUCONV_TEST_FULL") == "1" else 160
H200 = constants.shipped()["h200"][1]
POOLS = ("max", "avg", "lp", "adaptive_avg", "adaptive_max", "fractional_max", "max_unpool", "unfold", "fold")


def drawn_conv(rng: np.random.Generator, device: str) -> ConvProblem:
    """Draw a convolution of any pass: dense, grouped or depthwise, with any stride and dilation."""
    ndim = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 1, 4, 64, 256]))
    per_group = 1 if rng.random() < 0.4 else int(2 ** rng.integers(0, 8 if groups == 1 else 4))
    sizes = tuple(int(2 ** rng.uniform(2, {1: 14, 2: 8, 3: 5}[ndim])) for _ in range(ndim))
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, most, ndim)) for most in (6, 4, 3))
    pads = tuple(d * (k - 1) // 2 + 1 for k, d in zip(kernel, dilation))
    kind = str(rng.choice(["fprop", "dgrad", "wgrad", "transposed"]))
    layout = str(rng.choice([CONTIGUOUS, CHANNELS_LAST]))
    return ConvProblem(
        op=f"conv{ndim}d", kind=kind, n=int(2 ** rng.integers(0, 7)), c=groups * per_group,
        k=groups * int(2 ** rng.integers(0, 8 if groups == 1 else 4)), groups=groups, input_size=sizes, kernel=kernel,
        output_size=shapes.map_axes(shapes.conv_output_size, sizes, kernel, stride, pads, pads, dilation),
        stride=stride, pad_lo=pads, pad_hi=pads, dilation=dilation, padding_mode="zeros",
        dtype=str(rng.choice(["float32", "float16"])), device=device, array="torch", x_format=layout, w_format=layout,
        y_format=layout,
    )  # fmt: skip


def drawn_pool(rng: np.random.Generator, device: str) -> PoolProblem:
    """Draw a pool of any kind and pass; a third of the adaptive ones are global."""
    pool = str(rng.choice(POOLS))
    ndim = 2 if pool in ("unfold", "fold") else int(rng.integers(2 if pool == "fractional_max" else 1, 4))
    sizes = tuple(int(2 ** rng.uniform(3, {1: 14, 2: 8, 3: 5}[ndim])) for _ in range(ndim))
    kernel, stride = (tuple(int(v) for v in rng.integers(1, 4, ndim)) for _ in range(2))
    ones, zeros = (1,) * ndim, (0,) * ndim
    kind = "fprop" if pool in ("unfold", "fold") else str(rng.choice(["fprop", "bwd"]))
    if pool.startswith("adaptive"):
        whole = rng.random() < 0.3
        output = ones if whole else tuple(int(rng.integers(1, 2 * size)) for size in sizes)
        kernel, stride = tuple(shapes.adaptive_longest(n, o) for n, o in zip(sizes, output)), ones
    elif pool == "fractional_max":
        output, stride = tuple((n - k) // 2 + 1 for n, k in zip(sizes, kernel)), ones
    elif pool == "max_unpool":
        output, kernel, stride = tuple(2 * n for n in sizes), ones, ones
    else:
        output = tuple((n - k) // s + 1 for n, k, s in zip(sizes, kernel, stride))
    if pool == "fold":
        stride = ones
        output = tuple(n - k + 1 for n, k in zip(sizes, kernel))
    layouts = [CONTIGUOUS] if pool in ("unfold", "fold", "fractional_max") else [CONTIGUOUS, CHANNELS_LAST]
    layout = str(rng.choice(layouts))
    return PoolProblem(
        op=f"{pool}_pool{ndim}d", pool=pool, kind=kind, n=int(2 ** rng.integers(0, 7)), c=int(2 ** rng.integers(0, 9)),
        input_size=sizes, kernel=kernel, output_size=output, stride=stride, pad_lo=zeros, pad_hi=zeros, dilation=ones,
        dtype=str(rng.choice(["float32", "float16"])), device=device, array="torch", x_format=layout, y_format=layout,
        norm_type=float(rng.choice([1, 2, 3, 2.5, np.inf])) if pool == "lp" else 0.0,
        return_indices=kind == "fprop" and pool.endswith("max") and bool(rng.random() < 0.5),
    )  # fmt: skip


def problems(device: str) -> list[Problem]:
    """Draw the problems: as many convolutions as pools, of forward ones as many of 8 bits, of small ones deformed.

    Deformed are those of up to 2**26 samples, as each of them is gathered. What the fused separable kernel takes is
    drawn by itself, and so is what the kernels for Hopper and the march over rows take alone.
    """
    rng = np.random.default_rng(22)
    found: list[Problem] = []
    for number in range(COUNT):
        found.append(drawn_conv(rng, device) if number % 2 else drawn_pool(rng, device))
    forward = [each for each in found if isinstance(each, ConvProblem) and each.kind == "fprop"]
    types = {"float16": ("int8", "int8"), "float32": ("float8_e4m3fn", "float16")}
    convs = [each for each in found if isinstance(each, ConvProblem) and each.kind != "transposed"]
    small = [each for each in convs if each.n * each.c * prod(each.kernel) * prod(each.output_size) <= 2**26]
    found += [_of_8_bits(each, *types[each.dtype]) for each in forward]
    found += [*map(_deformed, small), *(_separable(rng, device) for _ in range(COUNT // 16))]
    found += [_same(rng, device, depthwise=number % 4 == 0) for number in range(COUNT // 4)]
    return [*found, *(_wide_pool(rng, device) for _ in range(COUNT // 4))]


def _wide_pool(rng: np.random.Generator, device: str) -> PoolProblem:
    """Draw a pool of windows that solvers take axis after axis, or by blocks of threads."""
    pool, window = str(rng.choice(["max", "avg", "lp"])), tuple(int(side) for side in rng.integers(9, 32, 2))
    sizes = tuple(int(side) for side in rng.integers(32, 200, 2))
    layout = str(rng.choice([CONTIGUOUS, CHANNELS_LAST]))
    return PoolProblem(
        op=f"{pool}_pool2d", pool=pool, kind=str(rng.choice(["fprop", "bwd"])), n=int(2 ** rng.integers(0, 5)),
        c=int(2 ** rng.integers(0, 7)), input_size=sizes, kernel=window,
        output_size=tuple(size - side + 1 for size, side in zip(sizes, window)), stride=(1, 1), pad_lo=(0, 0),
        pad_hi=(0, 0), dilation=(1, 1), dtype=str(rng.choice(["float32", "float16"])), device=device, array="torch",
        x_format=layout, y_format=layout, norm_type=2.0 if pool == "lp" else 0.0, return_indices=False,
    )  # fmt: skip


def _same(rng: np.random.Generator, device: str, c: int = 0, depthwise: bool = False) -> ConvProblem:
    """Draw a convolution of any pass that keeps its size, in 16 bits channels-last: dense, grouped or depthwise."""
    c = c or int(8 * 2 ** rng.integers(0, 6))
    groups = c if depthwise else int(rng.choice([1, 1, c, c // 4]))
    sizes, window = (int(2 ** rng.uniform(2, 7)),) * 2, (int(rng.choice([1, 3, 3, 5, 7, 13])),) * 2
    pads = tuple(side // 2 for side in window)
    return ConvProblem(
        op="conv2d", kind="fprop" if depthwise else str(rng.choice(["fprop", "dgrad", "wgrad"])),
        n=int(2 ** rng.integers(0, 7)), c=c, k=c, groups=groups, input_size=sizes, kernel=window, output_size=sizes,
        stride=(1, 1), pad_lo=pads, pad_hi=pads, dilation=(1, 1), padding_mode="zeros",
        dtype=str(rng.choice(["bfloat16", "float16"])), device=device, array="torch", x_format=CHANNELS_LAST,
        w_format=CHANNELS_LAST, y_format=CHANNELS_LAST,
    )  # fmt: skip


def _separable(rng: np.random.Generator, device: str) -> SeparableProblem:
    first = _same(rng, device, int(16 * 2 ** rng.integers(0, 5)), depthwise=True)
    second = replace(first, k=int(16 * 2 ** rng.integers(0, 5)), groups=1, kernel=(1, 1), pad_lo=(0, 0), pad_hi=(0, 0))
    return SeparableProblem("depthwise_separable_conv2d", first, second)


def _of_8_bits(conv: ConvProblem, dtype: str, out_dtype: str) -> ScaledProblem:
    return ScaledProblem(f"scaled_{conv.op}", replace(conv, dtype=dtype), out_dtype)


def _deformed(conv: ConvProblem) -> DeformProblem:
    conv = replace(conv, bias=False, scale=False, shift=False, residual=False, activation=None)
    return DeformProblem(f"deform_{conv.op}", conv, 1, True, ("x", "offset", "mask") if conv.kind == "dgrad" else ())


def solvers(backend: str, problem: Problem) -> list[Solver]:
    return [solver for solver in backends()[backend].solvers() if solver.why_not(problem) is None]


def cpu_bounds(problem: Problem) -> tuple[float, float]:
    """Return the least and the most microseconds that one core takes.

    The least: caches give 100 GB/s and a core 200 GFLOP/s. The most: memory gives 0.5 GB/s to badly ordered reads, an
    operation that is scattered through an array of places takes 20 ns and a power 60, and NumPy is called once a group,
    image and tap (and channel of y in a group that has one of x), and some hundred times a call, at 10 us each. Scales
    are four calls more for each group and image, a deformed convolution gathers every corner of a sample, twice for
    gradients, and calls for each of them.
    """
    more = 0.0
    if isinstance(problem, ScaledProblem):
        problem = problem.conv
        more = 40.0 * problem.n * problem.groups
    if isinstance(problem, DeformProblem):
        corners, problem = 2**problem.ndim, problem.conv
        samples = problem.n * problem.c * prod(problem.kernel) * prod(problem.output_size)
        more = 2 * corners * (samples / 50 + 40.0 * problem.n * problem.groups)
    least = max(problem.min_bytes / 100e3, (problem.flops / 200e3) * isinstance(problem, ConvProblem))
    taps, pieces = prod(problem.kernel), 1 + problem.flops / 1e6
    if isinstance(problem, ConvProblem):
        turned = problem.x_format == CHANNELS_LAST  # each group is copied first
        calls = problem.n * problem.groups * (turned + taps * (problem.k // problem.groups))
    else:
        calls = taps + sum(problem.output_size)
    powers = prod(problem.x_shape) / 1e3 * 60 if isinstance(problem, PoolProblem) and problem.pool == "lp" else 0.0
    return least, more + powers + 10 * (300 + calls + pieces) + problem.min_bytes / 500 + problem.flops / 50


def test_numpys_estimates_lie_between_the_bounds_of_a_core() -> None:
    counts: dict[str, int] = {}
    for problem in problems("cpu"):
        if isinstance(problem, SeparableProblem):  # two problems there
            continue
        least, most = cpu_bounds(problem)
        found = solvers("numpy", problem)
        assert found, problem
        for solver in found:
            counts[solver.id] = counts.get(solver.id, 0) + 1
            assert least <= solver.rank(problem) <= most, (solver.id, least, solver.rank(problem), most, problem)
    assert set(counts) == {solver.id for solver in backends()["numpy"].solvers()}


def serial_reads(problem: Problem) -> float:
    """Return the microseconds of a thread that waits for every element of its window in turn, 1 us each.

    Of wide windows, backward too, and those of all threads, which read each window by itself, at a quarter of the rate
    of the L2 cache.
    """
    if not isinstance(problem, PoolProblem):
        return 0.0
    if problem.pool not in ("max", "avg", "lp") or min(problem.kernel) < 9:
        return float(prod(problem.kernel)) * (problem.kind == "fprop")
    windows = problem.y_shape if problem.kind == "fprop" else problem.x_shape  # backward: those that meet a position
    read = prod(windows) * prod(problem.kernel) * itemsize(problem.dtype)
    return prod(problem.kernel) + 4 * read / (H200.values["l2_tb_s"] * 1e6)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_estimates_of_kernels_lie_around_the_roofline(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """No kernel is estimated far under the roofline, and none at over 50 times what it must do.

    Tiles of products are 16 wide at least (of 8-bit numbers 32 deep), so a group with fewer channels is as much work as
    one of 16; kernels of CuPy
    multiply on the plain cores alone; and there is a solver that has a thread read its whole window.
    """
    reached = set()
    with pretended(monkeypatch, tmp_path):
        for problem in problems("cuda:0"):
            bound = roofline(problem, H200)[0]
            must = bound
            if isinstance(problem, SeparableProblem):  # the depthwise step on the plain cores alone
                must += problem.depthwise.flops / (H200.values["fma32_tflops"] * 1e6)
            elif not isinstance(problem, PoolProblem):
                least = 32 if isinstance(problem, ScaledProblem) else 16
                conv = problem if isinstance(problem, ConvProblem) else problem.conv
                padded = replace(conv, c=conv.groups * max(least, conv.c // conv.groups),
                                 k=conv.groups * max(16, conv.k // conv.groups))  # fmt: skip
                must = roofline(padded, H200)[0]
                if isinstance(problem, DeformProblem):  # 20 instructions a corner, of 16 channels at least
                    samples = conv.n * padded.c * problem.taps * prod(conv.output_size)
                    must += 20 * 2**conv.ndim * samples / 32 / (132 * 4 * 1830)
                if backend == "cupy":
                    must = max(must, padded.flops / (H200.values["fma32_tflops"] * 1e6))
            for solver in solvers(backend, problem):
                found = solver.rank(problem)
                reached.add(solver.id)
                assert 0.5 * bound <= found <= 50 * (must + 5) + serial_reads(problem), (
                    solver.id,
                    bound,
                    found,
                    problem,
                )
        left = {solver.id for solver in backends()[backend].solvers()} - reached
    assert left == set(), f"no problem was drawn for {left}"


@pytest.mark.parametrize("size", [56, 512])
@pytest.mark.parametrize("pool", ["adaptive_avg", "adaptive_max"])
def test_the_gradient_of_a_global_pool_is_estimated_by_its_bytes(
    pool: str, size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Every position is in one window, which is as long as the plane: the time is that of writing the plane.

    And that one window is all that the kernel walks through.
    """
    problem = PoolProblem(
        op=f"{pool}_pool2d_backward", pool=pool, kind="bwd", n=16, c=64, input_size=(size, size), kernel=(size, size),
        output_size=(1, 1), stride=(1, 1), pad_lo=(0, 0), pad_hi=(0, 0), dilation=(1, 1), dtype="float32",
        device="cuda:0", array="torch", x_format=CONTIGUOUS, y_format=CONTIGUOUS,
    )  # fmt: skip
    with pretended(monkeypatch, tmp_path):
        for backend in ("triton", "cupy"):
            for solver in solvers(backend, problem):
                assert solver.rank(problem) < 5 * (5 + roofline(problem, H200)[0]), solver.id
    gather = solver_of("triton.pool.adaptive.bwd.gather")
    dense = {"y": (64, 1, 1, 1), "dx": (64 * size**2, size**2, size, 1)}
    arguments = adaptive_arguments(problem, dense, gather.plan(problem).config)
    assert [arguments[f"most_{axis}"] for axis in "opq"] == [1, 1, 1]
    on_cpu = replace(problem, device="cpu")
    assert all(solver.rank(on_cpu) < on_cpu.min_bytes / 1000 for solver in solvers("numpy", on_cpu))


@pytest.mark.parametrize("kernel", [13, 31])
def test_the_gradient_of_a_large_max_pool_costs_its_sides(
    kernel: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Not its area: from offsets, which autograd saves, and from positions, which cost two launches more."""
    pad = (kernel // 2,) * 2
    positions = pool(8, 64, 56, kernel, 1, "bwd", output_size=(56, 56), pad_lo=pad, pad_hi=pad)
    offsets = replace(positions, offsets=True)
    with pretended(monkeypatch, tmp_path):
        found = {problem.offsets: candidates(problem, "triton")[0] for problem in (positions, offsets)}
        assert {candidate.solver.id for candidate in found.values()} == {"triton.pool.max.bwd.separable"}
        general = solver_of("triton.pool.max.bwd.general").rank(positions)
    assert found[True].estimate < found[False].estimate < found[True].estimate + 20
    assert general > kernel / 4 * found[False].estimate
