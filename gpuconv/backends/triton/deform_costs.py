"""What deformable convolution costs: work of its launches, for the cost model.

A sample is interpolated from 2**ndim corners, so that an operand that is sampled takes as many loads as elements times
corners. Instructions are read off compiled loops; see tests/codegen/test_codegen_deform.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ...arrays import CHANNELS_LAST
from ...costs.constants import PATHS
from ...costs.model import Work
from ...costs.work import pipe_of
from ...problem import DeformProblem, itemsize
from ...shapes import ceil_div

__all__ = ["dgrad_work", "fprop_work", "wgrad_work"]

_PER_CORNER = 2.0
"""Instructions of a corner of an element: it is converted, weighted and added."""

_PER_SAMPLE = 3.0
"""Instructions of an element beside its corners: the mask, the type of the product, a part of a store."""

_PER_LOAD = 9.0
"""Instructions of a load: an address and a mask of its own."""

_PER_AXIS = 30.0
"""Instructions of a position along an axis: its offset is loaded, its neighbours, weights and bounds are computed."""

_PER_CORNER_OF_ROW = 8.0
"""Instructions of the address, the weight and the bounds of a corner of a row."""

_LOOP = 40.0
_PER_PRODUCT = 3.0
"""Instructions of a step beside its loads, and of each 16-deep slice of a product."""

_SORT_BYTES = 8 * 2 * 16
"""Bytes that sorting moves for each sample: 8 passes of 8 bits read and write a key and a place of 64 bits."""


def _columns(configs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, ...]:
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps")
    m, n, k, warps = (np.array([config[name] for config in configs], float) for name in names)
    return m, n, k, warps


def _width(problem: DeformProblem, segment: int) -> int:
    """Return the elements of one load of a corner: as many as 16 bytes hold where channels lie side by side."""
    conv = problem.conv
    whole = 16 // itemsize(conv.dtype)
    return whole if conv.x_format == CHANNELS_LAST and segment % whole == 0 else 1


def _sampling(problem: DeformProblem, segment: int, rows: Any, elements: Any, threads: Any) -> tuple[Any, Any]:
    """Return the instructions of a thread that a tile of `rows` takes once per tap, and per step of `elements`."""
    ndim = problem.ndim
    corners = 2**ndim
    own = np.maximum(rows * 8 / threads, 1)  # rows of a thread: lanes that share one compute it each
    once = own * (_PER_AXIS * ndim + _PER_CORNER_OF_ROW * corners)
    per_element = _PER_CORNER * corners + _PER_SAMPLE
    loads = corners * _PER_LOAD / _width(problem, segment)
    return once, elements / threads * (per_element + loads)


def _resident(m: Any, n: Any, threads: Any) -> np.ndarray:
    """Return how many blocks a multiprocessor holds: registers alone bound them, of which sampling takes many."""
    used = np.minimum(110 + m * n / threads, 255)
    return np.clip(np.floor(65536 / (used * threads)), 1, 16)


def _gemm(problem: DeformProblem, configs: Sequence[Mapping[str, Any]], **given: Any) -> Work:
    pipe, factor = pipe_of(problem.conv)
    m, n, _, warps = _columns(configs)
    given["flops"] = given["flops"] * factor
    return Work(
        resident=_resident(m, n, 32 * warps),
        pipe=np.full(len(configs), pipe),
        path=np.full(len(configs), PATHS.index("register")),
        feed=1.0,
        dram_bytes=float(problem.min_bytes),
        **given,
    )


def fprop_work(problem: DeformProblem, configs: Sequence[Mapping[str, Any]], segment: int) -> Work:
    """Describe the forward kernel with each of `configs`; a `segment` of channels shares positions and a group."""
    conv, item, corners = problem.conv, itemsize(problem.dtype), 2**problem.ndim
    m, n, k, warps = _columns(configs)
    threads = 32 * warps
    taps = prod(conv.kernel) * (conv.c // conv.groups) / max(segment, 1)
    steps = np.ceil(max(segment, 1) / k)
    once, sampled = _sampling(problem, segment, m, m * k, threads)
    weights = k * n / threads * _PER_LOAD
    per_step = sampled + weights + _LOOP + _PER_PRODUCT * k / 16 * np.maximum(m * n / threads / 8, 1)
    of_row = problem.ndim + problem.mask
    programs = conv.groups * np.ceil(conv.n * prod(conv.output_size) / m) * np.ceil(conv.k / conv.groups / n)
    moved = taps * (steps * (corners * m * k + k * n) + of_row * m) * item
    return _gemm(
        problem,
        configs,
        programs=programs,
        flops=2 * m * n * k * steps * taps,
        l2_bytes=moved + m * n * item,
        l1_bytes=moved + taps * steps * (2 * m * k + 2 * k * n) * item,
        instructions=warps * taps * (once + steps * per_step),
        chain=taps * (1 + steps) + 2,
    )


def dgrad_work(problem: DeformProblem, configs: Sequence[Mapping[str, Any]], segment: int) -> Work:
    """Describe the gradients of offsets and mask, and as passes beside them those of the input; see above.

    Where the input's gradient alone is wanted, the kernel is the one that stores column gradients.
    """
    conv, item, corners = problem.conv, itemsize(problem.dtype), 2**problem.ndim
    m, n, k, warps = _columns(configs)
    threads = 32 * warps
    rows, taps = conv.n * prod(conv.output_size), prod(conv.kernel)
    of_offsets = "offset" in problem.grads or "mask" in problem.grads
    chunks = conv.c / problem.offset_groups / max(segment, 1) * np.ceil(max(segment, 1) / n)
    depth = np.ceil(conv.k / conv.groups / k)
    per_step = (m + n) * k / threads * _PER_LOAD + _LOOP + _PER_PRODUCT * k / 16 * np.maximum(m * n / threads / 8, 1)
    once, sampled = _sampling(problem, segment, m, m * n, threads)
    programs = np.ceil(rows / m) * problem.offset_groups * taps
    moved = chunks * depth * (m + n) * k * item
    instructions, chain, extra, launches = chunks * depth * per_step, chunks * depth + 2, 0.0, 1
    if of_offsets:
        instructions = instructions + once + chunks * sampled
        chain = chain + chunks + 1
        moved = moved + chunks * corners * m * n * item
    if "x" in problem.grads:
        sums = 8 if conv.dtype == "float64" else 4
        columns = rows * taps * conv.c * sums
        samples = rows * taps * problem.offset_groups
        pieces = ceil_div(max(conv.n, 1), configs[0]["images"])
        extra = columns * (1 + corners) + samples * (_SORT_BYTES + 8 * corners) + conv.n * prod(conv.x_shape[1:]) * item
        launches = (12 if of_offsets else 11) * pieces
        if of_offsets:  # the product is formed a second time
            extra = extra + np.ceil(rows / m) * taps * conv.c / n * depth * (m + n) * k * item
    return _gemm(
        problem,
        configs,
        programs=programs,
        flops=2 * m * n * k * depth * chunks,
        l2_bytes=moved,
        l1_bytes=2 * moved,
        instructions=warps * instructions,
        chain=chain,
        extra_bytes=extra,
        launches=launches,
    )


def wgrad_work(problem: DeformProblem, configs: Sequence[Mapping[str, Any]], segment: int) -> Work:
    """Describe the weight gradient and the pass that adds its splits, with each of `configs`; see :func:`fprop_work`."""
    conv, item, corners = problem.conv, itemsize(problem.dtype), 2**problem.ndim
    m, n, k, warps = _columns(configs)
    threads = 32 * warps
    splits = np.array([config["splits"] for config in configs], float)
    c, filters, taps = conv.c // conv.groups, conv.k // conv.groups, prod(conv.kernel)
    tiles = np.ceil(filters / m) * (c / max(segment, 1)) * np.ceil(max(segment, 1) / n)
    steps = np.ceil(conv.n * prod(conv.output_size) / k / splits)
    once, sampled = _sampling(problem, segment, k, k * n, threads)
    per_step = once + sampled + m * k / threads * _PER_LOAD + _LOOP
    per_step = per_step + _PER_PRODUCT * k / 16 * np.maximum(m * n / threads / 8, 1)
    moved = steps * (corners * k * n + m * k + (problem.ndim + problem.mask) * k) * item
    sums = 8 if conv.dtype == "float64" else 4
    return _gemm(
        problem,
        configs,
        programs=splits * conv.groups * taps * tiles,
        flops=2 * m * n * k * steps,
        l2_bytes=moved,
        l1_bytes=moved + steps * 2 * (m + n) * k * item,
        instructions=warps * steps * per_step,
        chain=2 * steps + 2,
        extra_bytes=np.where(splits > 1, 2 * splits * sums * prod(conv.w_shape), 0.0),
        launches=1 + (splits > 1),
    )
