"""Convolution in NumPy, every pass: the reference, and the fallback where there is no GPU.

A box of positions is handled at a time, so that the workspace is bounded whatever the problem. ``im2col`` solvers lay
out the input values that each tap reads as the rows of a matrix and leave the sums to one BLAS product per image,
group and box (Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document
processing"); the data gradient is its transpose, a product followed by a scatter (col2im). ``taps`` solvers, for one
input channel per group, multiply and add strided views instead, tap by tap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ..arrays import CHANNELS_LAST, CONTIGUOUS
from ..config import workspace_limit
from ..problem import Call, ConvProblem, Problem
from .base import Plan, Solver
from .numpy_columns import Index, box_slices, columns_of, shown_boxes, source_of, tap_views
from .numpy_common import Box, boxes, compute_dtype, narrow, widen, workspace_target
from .numpy_epilogue import Epilogue
from .numpy_workspace import dgrad_bytes, fprop_bytes, wgrad_bytes

__all__ = ["SOLVERS"]

_COLUMN_BYTES = 8 << 20
"""Size of one chunk of columns: small enough for the last cache between the copy and the product, and large enough that
NumPy asks for huge pages (from 4 MiB on); without them page faults can take longer than the copy."""

_FEW_POSITIONS = 200
"""Up to so many output positions, images are too small for a product of their own: their batch is an axis of one."""

_TAP_BYTES = 256 << 10
"""Size of one chunk of the taps solvers that need no columns: accumulator and product stay in the L2 cache."""


def _groups(problem: ConvProblem, parts: int = 1) -> Iterator[tuple[slice, slice]]:
    """Yield the channels of x and of y that belong to each group, those of x cut into `parts`."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    step = -(-c // parts)
    for group in range(problem.groups):
        for start in range(0, max(c, 1), max(step, 1)):
            of_x = slice(group * c + start, group * c + min(start + step, c))
            yield of_x, slice(group * k, group * k + k)


def _per_channel(vector: np.ndarray, ndim: int) -> np.ndarray:
    return vector.reshape(-1, *(1,) * ndim)


class _NumpyConv(Solver):
    """What the convolution solvers share: which problems they take, and the arrays of a call as NumPy."""

    kinds: tuple[str, ...]

    def _refuse(self, problem: ConvProblem) -> str | None:
        raise NotImplementedError

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, ConvProblem) and problem.kind in self.kinds

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions, not poolings"
        if problem.kind not in self.kinds:
            return f"solves {' and '.join(self.kinds)}, not {problem.kind}"
        return self._refuse(problem)

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate from 20 GFLOP/s and 5 GB/s, the magnitude of one CPU core. Only the order counts."""
        return problem.flops / 20e3 + problem.min_bytes / 5e3

    def run(self, plan: Plan, call: Call) -> Any:
        problem, kind = call.problem, call.kind
        assert isinstance(problem, ConvProblem)
        result = kind.empty(problem.result_shape, problem.dtype, problem.device, problem.result_format)
        arrays = {name: None if a is None else kind.to_numpy(a) for name, a in call.arrays.items()}
        of_bias = None
        if problem.kind == "wgrad" and problem.bias:
            of_bias = kind.empty((problem.k,), problem.dtype, problem.device, CONTIGUOUS)
            arrays["bias"] = kind.to_numpy(of_bias)
        if prod(problem.result_shape):
            with np.errstate(all="ignore"):
                self.compute(problem, arrays, kind.to_numpy(result))
        return result if of_bias is None else (result, of_bias)

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        """Write the result of `problem` to `out`, of the problem's element type (bfloat16 as its bits).

        A weight gradient with bias writes the gradient of the bias to ``arrays["bias"]``.
        """
        raise NotImplementedError


@lru_cache(maxsize=1024)
def _column_chunk(problem: ConvProblem, limit: int) -> tuple[int, int, int]:
    """Return how many positions one chunk of columns holds, in how many parts the channels are cut, and the workspace.

    Only the data gradient of other padding modes than zeros cuts channels: it sums into whole images.
    """
    rows = problem.c // problem.groups * prod(problem.kernel) + problem.k // problem.groups
    if problem.padding_mode != "zeros":
        rows += problem.c // problem.groups * prod(problem.stride)
    size = compute_dtype(problem.dtype).itemsize
    positions, parts = max(1, min(_COLUMN_BYTES, workspace_target()) // max(1, rows * size)), 1

    def bound(positions: int, parts: int) -> int:
        if problem.kind in ("dgrad", "transposed"):
            return dgrad_bytes(problem, 1, positions, parts)
        return (fprop_bytes if problem.kind == "fprop" else wgrad_bytes)(problem, 1, positions)

    if problem.padding_mode != "zeros" and problem.kind == "dgrad":
        while bound(1, parts) > limit and parts < problem.c // problem.groups:
            parts *= 2
    while bound(positions, parts) > limit and positions > 1:
        positions //= 2
    return positions, parts, bound(positions, parts)


@lru_cache(maxsize=1024)
def _as_one_image(problem: ConvProblem) -> ConvProblem:
    """Return `problem`, where images are many and small with the batch as a first spatial axis that no tap moves on."""
    if problem.n == 1 or prod(problem.output_size) > _FEW_POSITIONS or 0 in (problem.n, *problem.input_size):
        return problem
    sizes: dict[str, Any] = {name: (problem.n, *getattr(problem, name)) for name in ("input_size", "output_size")}
    sizes |= {name: (1, *getattr(problem, name)) for name in ("kernel", "stride", "dilation")}
    sizes |= {name: (0, *getattr(problem, name)) for name in ("pad_lo", "pad_hi")}
    return replace(problem, n=1, **sizes)


def _with_axis(array: np.ndarray, name: str) -> np.ndarray:
    """Return the view of an array of a call that :func:`_as_one_image` describes."""
    if name in ("x", "y", "residual"):
        return array.swapaxes(0, 1)[None]
    return array[:, :, None] if name == "w" else array


class _Columns(_NumpyConv):
    """Solvers around the im2col matrix."""

    def _refuse(self, problem: ConvProblem) -> str | None:
        return None

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        folded = _as_one_image(problem)
        if folded.ndim > problem.ndim:
            arrays = {name: None if a is None else _with_axis(a, name) for name, a in arrays.items()}
            out = _with_axis(out, problem.result)
        self.multiply(folded, arrays, out)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        """Do what :meth:`compute` does, image by image."""
        raise NotImplementedError

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, ConvProblem)
        positions, parts, workspace = _column_chunk(_as_one_image(problem), workspace_limit())
        config = {"positions per chunk": positions} | ({"channel parts": parts} if parts > 1 else {})
        return Plan(self, problem, workspace, config)


class Im2colFprop(_Columns):
    """Columns of the input, one product with the weights."""

    id = "numpy.conv.fprop.im2col"
    kinds = ("fprop",)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        epilogue = Epilogue(problem, arrays)
        last = problem.x_format == CHANNELS_LAST
        count, _, _ = _column_chunk(problem, workspace_limit())
        w = widen(arrays["w"], problem.dtype)
        for of_x, of_y in _groups(problem):
            rows = w[of_y].reshape(of_y.stop - of_y.start, -1)
            if last:
                rows = np.moveaxis(w[of_y], 1, -1).reshape(len(rows), -1).T
            for n in range(problem.n):
                for positions in boxes(problem.output_size, count):
                    columns = columns_of(problem, arrays["x"][n, of_x], positions, last)
                    extent = tuple(stop - start for start, stop in positions)
                    place: Index = (n, of_y, *box_slices(positions))
                    target = out[place]
                    direct = epilogue.empty and target.dtype == columns.dtype and target.flags.c_contiguous and not last
                    if direct:
                        values = np.matmul(rows, columns, out=target.reshape(len(rows), -1))
                    elif last:
                        values = np.moveaxis((columns @ rows).reshape(*extent, -1), -1, 0)
                    else:
                        values = (rows @ columns).reshape(-1, *extent)
                    # Freed before the next ones are made, which then get the same memory: touching new pages is slow.
                    del columns
                    if not direct:
                        narrow(epilogue(values, n, of_y, positions), problem.dtype, target)


class Col2imDgrad(_Columns):
    """One product with the transposed weights, scattered tap by tap onto the input."""

    id = "numpy.conv.dgrad.col2im"
    kinds = ("dgrad", "transposed")

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        w = _gradient_factor(problem, widen(arrays["w"], problem.dtype))

        def scatter(
            n: int, of_x: slice, of_y: slice, positions: Box, target: np.ndarray, origin: Sequence[int]
        ) -> None:
            first = of_x.start % (problem.c // problem.groups)
            rows = w[of_y, first : first + of_x.stop - of_x.start].reshape(of_y.stop - of_y.start, -1).T
            dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype)
            extent = dy.shape[1:]
            columns = (rows @ dy.reshape(len(dy), -1)).reshape(len(target), *problem.kernel, *extent)
            for tap, inside, write in tap_views(problem, positions, origin, target.shape[1:]):
                target[(slice(None), *write)] += columns[(slice(None), *tap, *inside)]

        count, parts, _ = _column_chunk(problem, workspace_limit())
        _gather_boxes(problem, arrays, out, count, _groups(problem, parts), scatter)


class Im2colWgrad(_Columns):
    """The output gradient times the transposed columns, summed over images and boxes."""

    id = "numpy.conv.wgrad.im2col"
    kinds = ("wgrad",)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        count, _, _ = _column_chunk(problem, workspace_limit())
        of_bias = np.zeros(problem.k, compute_dtype(problem.dtype))
        for of_x, of_y in _groups(problem):
            total = np.zeros(problem.w_shape[1:], compute_dtype(problem.dtype)).reshape(1, -1)
            total = np.repeat(total, of_y.stop - of_y.start, 0)
            for n in range(problem.n):
                for positions in boxes(problem.output_size, count):
                    columns = columns_of(problem, arrays["x"][n, of_x], positions, False)
                    dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype).reshape(len(total), -1)
                    total += dy @ _gradient_factor(problem, columns).T
                    if problem.bias:
                        of_bias[of_y] += dy.sum(1)
            narrow(total.reshape(-1, *problem.w_shape[1:]), problem.dtype, out[of_y])
        if problem.bias:
            narrow(of_bias, problem.dtype, arrays["bias"])


def _gradient_factor(problem: ConvProblem, values: np.ndarray) -> np.ndarray:
    """Return the factor of a gradient, conjugated where complex, as in torch; a transposed convolution keeps it."""
    return values.conj() if problem.kind != "transposed" and np.iscomplexobj(values) else values


def _output_range(problem: ConvProblem, axis: int, start: int, stop: int) -> tuple[int, int]:
    """Return which output positions read input coordinates in ``[start, stop)`` along an axis."""
    stride, pad = problem.stride[axis], problem.pad_lo[axis]
    reach = problem.dilation[axis] * (problem.kernel[axis] - 1)
    first = max(0, -((reach - pad - start) // stride))
    last = min(problem.output_size[axis], (stop - 1 + pad) // stride + 1)
    return first, max(first, last)


def _gather_boxes(
    problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray, positions: int, groups: Any, scatter: Any
) -> None:
    """Compute a data gradient box by box of its result.

    Zero padding: each box of x is summed from all output positions that reach it and written once. Other padding modes:
    boxes of the padded input are summed likewise and then folded onto the positions that they show.
    """
    epilogue = Epilogue(problem, arrays)
    dtype = compute_dtype(problem.dtype)
    folded = problem.padding_mode != "zeros"
    axes = zip(problem.input_size, problem.pad_lo, problem.pad_hi, strict=True)
    domain = tuple(i + lo + hi for i, lo, hi in axes) if folded else problem.input_size
    shift = problem.pad_lo if folded else (0,) * problem.ndim
    cells = max(1, positions * prod(problem.stride))
    for of_x, of_y in groups:
        channels = of_x.stop - of_x.start
        for n in range(problem.n):
            image = np.zeros((channels, *problem.input_size), dtype) if folded else None
            for cell in boxes(domain, cells):
                box = tuple((a - s, b - s) for (a, b), s in zip(cell, shift, strict=True))
                target = np.zeros((channels, *(b - a for a, b in box)), dtype)
                reached = tuple(_output_range(problem, axis, a, b) for axis, (a, b) in enumerate(box))
                for chunk in boxes([b - a for a, b in reached], positions):
                    moved = tuple((a + r[0], b + r[0]) for (a, b), r in zip(chunk, reached, strict=True))
                    scatter(n, of_x, of_y, moved, target, tuple(a for a, _ in box))
                if image is not None:
                    _fold(problem, target, box, image)
                else:
                    narrow(epilogue(target, n, of_x, box), problem.dtype, out[(n, of_x, *box_slices(box))])
            if image is not None:
                narrow(image, problem.dtype, out[n, of_x])


def _fold(problem: ConvProblem, slab: np.ndarray, box: Box, image: np.ndarray) -> None:
    """Add a padded slab to the positions of `image` that it shows."""
    for place, shown in shown_boxes(problem, box):
        part = slab[(slice(None), *place)]
        if problem.padding_mode == "replicate":
            for axis, edge in enumerate(shown, 1):
                if edge.stop - edge.start == 1:  # one element that is shown many times
                    part = part.sum(axis, keepdims=True)
        image[(slice(None), *shown)] += part


class _Taps(_NumpyConv):
    """Solvers for one input channel per group: no matrix product, strided views multiplied tap by tap."""

    def _refuse(self, problem: ConvProblem) -> str | None:
        per_group = problem.c // problem.groups
        return None if per_group == 1 else f"needs 1 input channel per group, the problem has {per_group}"

    def rank(self, problem: Problem) -> float:
        """Return a rough estimate; always below that of the products, which waste BLAS on one row."""
        return super().rank(problem) / 2

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, ConvProblem)
        block, positions, workspace = _tap_chunk(problem, workspace_limit())
        return Plan(self, problem, workspace, {"channels per chunk": block, "positions per chunk": positions})


@lru_cache(maxsize=1024)
def _tap_chunk(problem: ConvProblem, limit: int) -> tuple[int, int, int]:
    """Return how many groups and how many output positions one chunk of the taps solvers holds, and the workspace."""
    budget, bound, per_position = _TAP_BYTES, wgrad_bytes, 1
    sizes, size = problem.output_size, compute_dtype(problem.dtype).itemsize
    if problem.kind == "fprop":  # columns and their product
        budget, bound = _COLUMN_BYTES // 2 // (prod(problem.kernel) + problem.k // problem.groups), fprop_bytes
    elif problem.kind != "wgrad":
        bound, per_position, sizes = dgrad_bytes, prod(problem.stride), problem.input_size
    cells = max(1, budget // size)
    while True:
        block = max(1, min(problem.groups, cells // max(1, prod(sizes))))
        positions = max(1, cells // block // per_position)
        workspace = bound(problem, block, positions)
        if workspace <= limit or cells == 1:
            return block, positions, workspace
        cells //= 2


def _channel_blocks(problem: ConvProblem) -> tuple[list[tuple[slice, slice]], int]:
    """Return blocks of groups (their channels of x and of y) and the positions of a chunk, for the taps solvers."""
    block, positions, _ = _tap_chunk(problem, workspace_limit())
    multiplier = problem.k // problem.groups
    starts = range(0, problem.groups, block)
    ends = [min(start + block, problem.groups) for start in starts]
    return [(slice(a, b), slice(a * multiplier, b * multiplier)) for a, b in zip(starts, ends, strict=True)], positions


class TapsFprop(_Taps):
    """Depthwise forward: the columns of a block of channels, and one small product per channel."""

    id = "numpy.conv.fprop.taps"
    kinds = ("fprop",)

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        epilogue = Epilogue(problem, arrays)
        multiplier, taps = problem.k // problem.groups, prod(problem.kernel)
        w = widen(arrays["w"], problem.dtype).reshape(problem.groups, multiplier, taps)
        blocks, cells = _channel_blocks(problem)
        for of_x, of_y in blocks:
            for n in range(problem.n):
                for positions in boxes(problem.output_size, cells):
                    columns = columns_of(problem, arrays["x"][n, of_x], positions, False).reshape(
                        len(w[of_x]), taps, -1
                    )
                    place: Index = (n, of_y, *box_slices(positions))
                    target = out[place]
                    direct = epilogue.empty and target.dtype == columns.dtype and target.flags.c_contiguous
                    into = target.reshape(len(columns), multiplier, -1) if direct else None
                    values = np.matmul(w[of_x], columns, out=into)
                    del columns  # as above
                    if not direct:
                        narrow(epilogue(values.reshape(target.shape), n, of_y, positions), problem.dtype, target)


class TapsDgrad(_Taps):
    """Depthwise data gradient and transposed convolution."""

    id = "numpy.conv.dgrad.taps"
    kinds = ("dgrad", "transposed")

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        w = _gradient_factor(problem, widen(arrays["w"], problem.dtype))
        multiplier = problem.k // problem.groups

        def scatter(
            n: int, of_x: slice, of_y: slice, positions: Box, target: np.ndarray, origin: Sequence[int]
        ) -> None:
            dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype)
            for tap, inside, write in tap_views(problem, positions, origin, target.shape[1:]):
                place: Index = (of_y, 0, *tap)
                factors = w[place].reshape(-1, multiplier)
                for m in range(multiplier):
                    products = dy[(slice(m, None, multiplier), *inside)] * _per_channel(factors[:, m], problem.ndim)
                    target[(slice(None), *write)] += products

        blocks, cells = _channel_blocks(problem)
        _gather_boxes(problem, arrays, out, cells, blocks, scatter)


class TapsWgrad(_Taps):
    """Depthwise weight gradient."""

    id = "numpy.conv.wgrad.taps"
    kinds = ("wgrad",)

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        multiplier = problem.k // problem.groups
        spatial = tuple(range(1, problem.ndim + 1))
        blocks, cells = _channel_blocks(problem)
        total = np.zeros(problem.w_shape, compute_dtype(problem.dtype))
        of_bias = np.zeros(problem.k, total.dtype)
        for of_x, of_y in blocks:
            for n in range(problem.n):
                for positions in boxes(problem.output_size, cells):
                    source, origin = source_of(problem, arrays["x"][n, of_x], positions)
                    dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype)
                    if problem.bias:
                        of_bias[of_y] += dy.sum(axis=spatial)
                    for tap, inside, read in tap_views(problem, positions, origin, source.shape[1:]):
                        seen = _gradient_factor(problem, widen(source[(slice(None), *read)], problem.dtype))
                        for m in range(multiplier):
                            products = dy[(slice(m, None, multiplier), *inside)] * seen
                            place: Index = (slice(of_y.start + m, of_y.stop, multiplier), 0, *tap)
                            total[place] += products.sum(axis=spatial)
        narrow(total, problem.dtype, out)
        if problem.bias:
            narrow(of_bias, problem.dtype, arrays["bias"])


SOLVERS: tuple[Solver, ...] = (Im2colFprop(), TapsFprop(), Col2imDgrad(), TapsDgrad(), Im2colWgrad(), TapsWgrad())
