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
from ...costs import PATHS, Work, pipe_of
from ...problem import DeformProblem, itemsize
from ...shapes import ceil_div

__all__ = ["dgrad_work", "fprop_work", "steps", "wgrad_work"]

_PER_CORNER = 2.0
"""Instructions of a corner of an element: it is converted, weighted and added."""

_PER_SAMPLE = 3.0
"""Instructions of an element beside its corners: the mask, the type of the product, a part of a store."""

_PER_LOAD = {2: 5.5, 4: 8.0, 8: 8.0}
"""Instructions of a load of a corner, by the bytes of an element: an address, a mask, and what takes 16 bytes apart."""

_PER_OPERAND = 6.0
_PER_LONE_OPERAND = {2: 3.5, 4: 6.5, 8: 6.5}
"""Instructions of a load of 16 bytes, or of one element, of what is multiplied as it is."""

_PER_AXIS = 96.0
_PER_ROW = 100.0
"""Instructions of the samples of a row: for each axis its offset, neighbours, weights and bounds; its place in y."""

_PER_MEETING = (10.5, 30.5)
"""Instructions of a corner of an element that meets its gradient: 16 bytes at a time, or element by element."""

_LOOP = (22.0, 36.0)
_PER_PRODUCT = 3.0
"""Instructions of a step beside its loads, of small tiles and of those that groups of warps multiply, and of each slice
of a product that is 32 bytes deep."""

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


def _rows(problem: DeformProblem, again: bool) -> float:
    """Return the instructions of a thread for the samples of its rows; `again`, where their places are found as well.

    Channels that lie side by side have a row for each few threads, others two rows for each thread.
    """
    near = problem.conv.x_format == CHANNELS_LAST
    if again:
        return _PER_ROW + _PER_AXIS * problem.ndim if near else 2 * (60 + 115 * problem.ndim)
    return _PER_AXIS * problem.ndim * (1 if near else 2)


def _sampled(problem: DeformProblem, segment: int, elements: Any) -> Any:
    """Return the instructions of a thread that samples so many elements."""
    corners = 2**problem.ndim
    loads = corners * _PER_LOAD[itemsize(problem.dtype)] / _width(problem, segment)
    return elements * (_PER_CORNER * corners + _PER_SAMPLE + loads)


def _operand(problem: DeformProblem, elements: Any, layout: str) -> Any:
    """Return the instructions of a thread that loads so many elements of what is multiplied as it is."""
    item = itemsize(problem.dtype)
    if layout == CHANNELS_LAST:
        return np.maximum(elements * item / 16, 1) * _PER_OPERAND
    return elements * _PER_LONE_OPERAND[item]


def _products(m: Any, n: Any, k: Any, threads: Any, item: int) -> Any:
    return _PER_PRODUCT * k * item / 32 * np.maximum(m * n / threads / 8, 1)


def steps(problem: DeformProblem, configs: Sequence[Mapping[str, Any]], segment: int) -> np.ndarray:
    """Return the instructions of a warp per step of the loop of a pass that multiplies, for each of `configs`.

    A step of the forward pass is a chunk of channels of a tap, one of the gradients of offsets and mask a chunk of
    filters, one of the weight gradient a chunk of positions.
    """
    conv = problem.conv
    m, n, k, warps = _columns(configs)
    threads = 32 * warps
    found = np.where(m < 64, *_LOOP) + _products(m, n, k, threads, itemsize(problem.dtype))
    if conv.kind == "fprop":
        return np.asarray(found + _sampled(problem, segment, m * k / threads) + 3 * k * n / threads)
    if conv.kind == "dgrad":
        of_y, of_w = (
            _operand(problem, m * k / threads, conv.y_format),
            _operand(problem, k * n / threads, conv.w_format),
        )
        return np.asarray(found + of_y + of_w)
    found = found + _operand(problem, m * k / threads, conv.y_format)
    return np.asarray(found + _sampled(problem, segment, k * n / threads) + _rows(problem, True))


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
    taps = prod(conv.kernel) * (conv.c // conv.groups) / max(segment, 1)
    chunks = np.ceil(max(segment, 1) / k)
    of_row = problem.ndim + problem.mask
    programs = conv.groups * np.ceil(conv.n * prod(conv.output_size) / m) * np.ceil(conv.k / conv.groups / n)
    moved = taps * (chunks * (corners * m * k + k * n) + of_row * m) * item
    return _gemm(
        problem,
        configs,
        programs=programs,
        flops=2 * m * n * k * chunks * taps,
        l2_bytes=moved + m * n * item,
        l1_bytes=moved + taps * chunks * (2 * m * k + 2 * k * n) * item,
        instructions=warps * taps * (_rows(problem, False) + chunks * steps(problem, configs, segment)),
        chain=taps * (1 + chunks) + 2,
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
    programs = np.ceil(rows / m) * problem.offset_groups * taps
    moved = chunks * depth * (m + n) * k * item
    instructions = chunks * depth * steps(problem, configs, segment)
    chain, extra, launches = chunks * depth + 2, 0.0, 1
    if of_offsets:
        met = m * n / threads * corners * _PER_MEETING[_width(problem, segment) == 1]
        instructions = instructions + _rows(problem, True) + chunks * met
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
    """Describe the weight gradient, and the pass that adds its splits; see :func:`fprop_work`."""
    conv, item, corners = problem.conv, itemsize(problem.dtype), 2**problem.ndim
    m, n, k, warps = _columns(configs)
    splits = np.array([config["splits"] for config in configs], float)
    c, filters, taps = conv.c // conv.groups, conv.k // conv.groups, prod(conv.kernel)
    tiles = np.ceil(filters / m) * (c / max(segment, 1)) * np.ceil(max(segment, 1) / n)
    chunks = np.ceil(conv.n * prod(conv.output_size) / k / splits)
    moved = chunks * (corners * k * n + m * k + (problem.ndim + problem.mask) * k) * item
    sums = 8 if conv.dtype == "float64" else 4
    return _gemm(
        problem,
        configs,
        programs=splits * conv.groups * taps * tiles,
        flops=2 * m * n * k * chunks,
        l2_bytes=moved,
        l1_bytes=moved + chunks * 2 * (m + n) * k * item,
        instructions=warps * chunks * steps(problem, configs, segment),
        chain=2 * chunks + 2,
        extra_bytes=np.where(splits > 1, 2 * splits * sums * prod(conv.w_shape), 0.0),
        launches=1 + (splits > 1),
    )
