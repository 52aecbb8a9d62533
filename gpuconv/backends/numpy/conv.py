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

from ...arrays import CHANNELS_LAST, CONTIGUOUS
from ...config import workspace_limit
from ...problem import Call, ConvProblem, Problem
from ...shapes import ceil_div
from ..base import Plan, Solver
from .chunks import column_chunk, tap_chunk
from .columns import Index, box_slices, columns_of, position_views, shown_boxes, source_of, tap_views
from .common import Box, boxes, compute_dtype, narrow, widen
from .costs import columns_us, taps_us
from .epilogue import Epilogue, Finish
from .workspace import BOUNDS, Chunk, result_domain

__all__ = ["SOLVERS", "as_one_image", "multiply_columns", "with_axis"]

_FEW_POSITIONS = 200
"""Up to so many output positions, images are too small for a product of their own: their batch is an axis of one."""


def _groups(problem: ConvProblem) -> Iterator[tuple[slice, slice]]:
    """Yield the channels of x and of y that belong to each group."""
    c, k = problem.c // problem.groups, problem.k // problem.groups
    for group in range(problem.groups):
        yield slice(group * c, group * c + c), slice(group * k, group * k + k)


def _cut(channels: slice, parts: int) -> list[slice]:
    """Cut a range of channels into at most `parts` of one size, but for the last; no channels are one part."""
    step = max(1, ceil_div(channels.stop - channels.start, parts))
    starts = range(channels.start, max(channels.stop, channels.start + 1), step)
    return [slice(start, min(start + step, channels.stop)) for start in starts]


def _within_group(problem: ConvProblem, of_x: slice) -> slice:
    """Return where in the weights channels of x are."""
    per_group = problem.c // problem.groups
    first = of_x.start % per_group if per_group else 0
    return slice(first, first + of_x.stop - of_x.start)


def _per_channel(vector: np.ndarray, ndim: int) -> np.ndarray:
    return vector.reshape(-1, *(1,) * ndim)


class _NumpyConv(Solver):
    """What the convolution solvers share: which problems they take, and the arrays of a call as NumPy."""

    kinds: tuple[str, ...]
    always_answers = True

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
def as_one_image(problem: ConvProblem) -> ConvProblem:
    """Return `problem`, where images are many and small with the batch as a first spatial axis that no tap moves on."""
    if problem.n == 1 or prod(problem.output_size) > _FEW_POSITIONS or 0 in (problem.n, *problem.input_size):
        return problem
    sizes: dict[str, Any] = {name: (problem.n, *getattr(problem, name)) for name in ("input_size", "output_size")}
    sizes |= {name: (1, *getattr(problem, name)) for name in ("kernel", "stride", "dilation")}
    sizes |= {name: (0, *getattr(problem, name)) for name in ("pad_lo", "pad_hi")}
    return replace(problem, n=1, **sizes)


def with_axis(array: np.ndarray, name: str) -> np.ndarray:
    """Return the view of an array of a call that :func:`as_one_image` describes."""
    if name in ("x", "y", "residual"):
        return array.swapaxes(0, 1)[None]
    return array[:, :, None] if name == "w" else array


class _Columns(_NumpyConv):
    """Solvers around the im2col matrix."""

    def _refuse(self, problem: ConvProblem) -> str | None:
        return None

    def rank(self, problem: Problem) -> float:
        """Return an estimate that counts columns and products, see :mod:`.numpy_costs`."""
        assert isinstance(problem, ConvProblem)
        return columns_us(as_one_image(problem), workspace_limit())

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        folded = as_one_image(problem)
        if folded.ndim > problem.ndim:
            arrays = {name: None if a is None else with_axis(a, name) for name, a in arrays.items()}
            out = with_axis(out, problem.result)
        self.multiply(folded, arrays, out)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        """Do what :meth:`compute` does, image by image."""
        raise NotImplementedError

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, ConvProblem)
        folded = as_one_image(problem)
        chunk = column_chunk(folded, workspace_limit())
        parts = {"parts of C": chunk.c_parts, "parts of K": chunk.k_parts}
        config = {"positions per chunk": chunk.positions} | {name: count for name, count in parts.items() if count > 1}
        return Plan(self, problem, BOUNDS[problem.kind](folded, chunk), config)


class Im2colFprop(_Columns):
    """Columns of the input, one product with the weights."""

    id = "numpy.conv.fprop.im2col"
    kinds = ("fprop",)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        chunk = column_chunk(problem, workspace_limit())
        multiply_columns(problem, arrays, out, chunk, Epilogue(problem, arrays))


def multiply_columns(
    problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray, chunk: Chunk, epilogue: Finish
) -> None:
    """Write a forward pass to `out`, piece by piece: what `epilogue` makes of the sums."""
    for of_x, group in _groups(problem):
        parts = _cut(of_x, chunk.c_parts)
        for of_y in _cut(group, chunk.k_parts):
            kept = _rows(problem, arrays["w"], parts[0], of_y) if len(parts) == 1 else None
            for n in range(problem.n):
                for positions in boxes(problem.output_size, chunk.positions):
                    _fprop_box(problem, arrays, out, parts, of_y, n, positions, kept, epilogue)


def _rows(problem: ConvProblem, w: np.ndarray, of_x: slice, of_y: slice) -> np.ndarray:
    """Return a block of the weights as the left factor of columns; channels-last, as the right one."""
    block = widen(w[of_y, _within_group(problem, of_x)], problem.dtype)
    if problem.x_format == CHANNELS_LAST:
        return np.moveaxis(block, 1, -1).reshape(len(block), -1).T
    return block.reshape(len(block), -1)


def _fprop_box(
    problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray, parts: Sequence[slice], of_y: slice, n: int,
    positions: Box, kept: np.ndarray | None, epilogue: Finish,
) -> None:  # fmt: skip
    """Write a box of outputs, summed over `parts` of the channels of x; `kept` are the weights where it is one part."""
    last = problem.x_format == CHANNELS_LAST
    extent = tuple(stop - start for start, stop in positions)
    place: Index = (n, of_y, *box_slices(positions))
    target: np.ndarray = out[place]
    total: np.ndarray | None = None
    for of_x in parts:
        columns = columns_of(problem, arrays["x"][n, of_x], positions, last)
        rows = _rows(problem, arrays["w"], of_x, of_y) if kept is None else kept
        direct = epilogue.empty and target.dtype == columns.dtype and target.flags.c_contiguous and not last
        if direct and kept is not None:
            np.matmul(rows, columns, out=target.reshape(len(rows), -1))
            return
        values = columns @ rows if last else rows @ columns
        # Freed before the next ones are made, which then get the same memory: touching new pages is slow.
        del columns, rows
        total = values if total is None else np.add(total, values, out=total)
        del values
    assert total is not None
    total = np.moveaxis(total.reshape(*extent, -1), -1, 0) if last else total.reshape(-1, *extent)
    narrow(epilogue(total, n, of_y, positions), problem.dtype, target)


class Col2imDgrad(_Columns):
    """One product with the transposed weights, scattered tap by tap onto the input."""

    id = "numpy.conv.dgrad.col2im"
    kinds = ("dgrad", "transposed")

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        chunk = column_chunk(problem, workspace_limit())
        kept: dict[tuple[int, int], np.ndarray] = {}

        def factor(of_x: slice, of_y: slice) -> np.ndarray:
            place = of_x.start, of_y.start
            if place not in kept:
                kept.clear()
                block = widen(arrays["w"][of_y, _within_group(problem, of_x)], problem.dtype)
                kept[place] = _gradient_factor(problem, block).reshape(len(block), -1).T
            return kept[place]

        def scatter(
            n: int, of_x: slice, group: slice, positions: Box, target: np.ndarray, origin: Sequence[int]
        ) -> None:
            for of_y in _cut(group, chunk.k_parts):
                dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype)
                extent = dy.shape[1:]
                columns = factor(of_x, of_y) @ dy.reshape(len(dy), -1)
                columns = columns.reshape(len(target), *problem.kernel, *extent)
                if prod(extent) < prod(problem.kernel):
                    for place, taps, write in position_views(problem, positions, origin, target.shape[1:]):
                        of_place: Index = (slice(None), *taps, *place)
                        target[(slice(None), *write)] += columns[of_place]
                else:
                    for tap, inside, write in tap_views(problem, positions, origin, target.shape[1:]):
                        target[(slice(None), *write)] += columns[(slice(None), *tap, *inside)]
                del dy, columns

        parts = [(part, of_y) for of_x, of_y in _groups(problem) for part in _cut(of_x, chunk.c_parts)]
        _gather_boxes(problem, arrays, out, chunk, parts, scatter)


class Im2colWgrad(_Columns):
    """The output gradient times the transposed columns, summed over images and boxes."""

    id = "numpy.conv.wgrad.im2col"
    kinds = ("wgrad",)

    def multiply(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        chunk = column_chunk(problem, workspace_limit())
        of_bias = np.zeros(problem.k, compute_dtype(problem.dtype))
        for channels, group in _groups(problem):
            for of_y in _cut(group, chunk.k_parts):
                for of_x in _cut(channels, chunk.c_parts):
                    bias = of_bias[of_y] if problem.bias and of_x.start == channels.start else None
                    total = self.summed(problem, arrays, of_x, of_y, chunk.positions, bias)
                    narrow(total, problem.dtype, out[of_y, _within_group(problem, of_x)])
                    del total
        if problem.bias:
            narrow(of_bias, problem.dtype, arrays["bias"])

    def summed(
        self, problem: ConvProblem, arrays: dict[str, Any], of_x: slice, of_y: slice, count: int, bias: Any
    ) -> np.ndarray:
        """Return the gradient of a block of weights; that of their bias, unless it is None, is added to `bias`."""
        k, c = of_y.stop - of_y.start, of_x.stop - of_x.start
        total = np.zeros((k, c * prod(problem.kernel)), compute_dtype(problem.dtype))
        for n in range(problem.n):
            for positions in boxes(problem.output_size, count):
                columns = columns_of(problem, arrays["x"][n, of_x], positions, False)
                dy = widen(arrays["y"][(n, of_y, *box_slices(positions))], problem.dtype).reshape(k, -1)
                total += dy @ _gradient_factor(problem, columns).T
                if bias is not None:
                    bias += dy.sum(1)
        return total.reshape(k, c, *problem.kernel)


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
    problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray, piece: Chunk, groups: Any, scatter: Any
) -> None:
    """Compute a data gradient box by box of its result.

    Zero padding: each box of x is summed from all output positions that reach it and written once. Other padding modes:
    boxes of the padded input are summed likewise and then folded onto the positions that they show.
    """
    epilogue = Epilogue(problem, arrays)
    dtype = compute_dtype(problem.dtype)
    folded = problem.padding_mode != "zeros"
    domain = result_domain(problem)
    shift = problem.pad_lo if folded else (0,) * problem.ndim
    for of_x, of_y in groups:
        channels = of_x.stop - of_x.start
        for n in range(problem.n):
            image = np.zeros((channels, *problem.input_size), dtype) if folded else None
            for cell in boxes(domain, piece.cells):
                box = tuple((a - s, b - s) for (a, b), s in zip(cell, shift, strict=True))
                target = np.zeros((channels, *(b - a for a, b in box)), dtype)
                reached = tuple(_output_range(problem, axis, a, b) for axis, (a, b) in enumerate(box))
                for chunk in boxes([b - a for a, b in reached], piece.positions):
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
        """Return an estimate that counts taps, see :mod:`.numpy_costs`."""
        assert isinstance(problem, ConvProblem)
        return taps_us(problem, workspace_limit())

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, ConvProblem)
        chunk = tap_chunk(problem, workspace_limit())
        config = {"channels per chunk": chunk.groups, "positions per chunk": chunk.positions}
        return Plan(self, problem, BOUNDS[problem.kind](problem, chunk), config)


def _channel_blocks(problem: ConvProblem) -> tuple[list[tuple[slice, slice]], Chunk]:
    """Return blocks of groups (their channels of x and of y) and the pieces they are, for the taps solvers."""
    chunk = tap_chunk(problem, workspace_limit())
    multiplier = problem.k // problem.groups
    starts = range(0, problem.groups, chunk.groups)
    ends = [min(start + chunk.groups, problem.groups) for start in starts]
    return [(slice(a, b), slice(a * multiplier, b * multiplier)) for a, b in zip(starts, ends, strict=True)], chunk


class TapsFprop(_Taps):
    """Depthwise forward: the columns of a block of channels, and one small product per channel."""

    id = "numpy.conv.fprop.taps"
    kinds = ("fprop",)

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        epilogue = Epilogue(problem, arrays)
        multiplier, taps = problem.k // problem.groups, prod(problem.kernel)
        w = widen(arrays["w"], problem.dtype).reshape(problem.groups, multiplier, taps)
        blocks, chunk = _channel_blocks(problem)
        for of_x, of_y in blocks:
            for n in range(problem.n):
                for positions in boxes(problem.output_size, chunk.positions):
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
            if prod(dy.shape[1:]) < prod(problem.kernel):
                for at, taps, write in position_views(problem, positions, origin, target.shape[1:]):
                    for m in range(multiplier):
                        each = slice(of_y.start + m, of_y.stop, multiplier)
                        of_output: Index = (slice(m, None, multiplier), *at)
                        share = _per_channel(dy[of_output], problem.ndim)
                        of_taps: Index = (each, 0, *taps)
                        target[(slice(None), *write)] += w[of_taps] * share
                return
            for tap, inside, write in tap_views(problem, positions, origin, target.shape[1:]):
                place: Index = (of_y, 0, *tap)
                factors = w[place].reshape(-1, multiplier)
                for m in range(multiplier):
                    products = dy[(slice(m, None, multiplier), *inside)] * _per_channel(factors[:, m], problem.ndim)
                    target[(slice(None), *write)] += products

        blocks, chunk = _channel_blocks(problem)
        _gather_boxes(problem, arrays, out, chunk, blocks, scatter)


class TapsWgrad(_Taps):
    """Depthwise weight gradient."""

    id = "numpy.conv.wgrad.taps"
    kinds = ("wgrad",)

    def compute(self, problem: ConvProblem, arrays: dict[str, Any], out: np.ndarray) -> None:
        multiplier = problem.k // problem.groups
        spatial = tuple(range(1, problem.ndim + 1))
        blocks, chunk = _channel_blocks(problem)
        total = np.zeros(problem.w_shape, compute_dtype(problem.dtype))
        of_bias = np.zeros(problem.k, total.dtype)
        for of_x, of_y in blocks:
            for n in range(problem.n):
                for positions in boxes(problem.output_size, chunk.positions):
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
