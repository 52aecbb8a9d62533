"""Deformable convolution in NumPy, every pass: the reference, which says what every other solver computes.

Samples are columns (Dai et al. 2017, "Deformable Convolutional Networks"): each is gathered from the rows of an image
and interpolated, and a BLAS product sums them with the weights. Gradients go the same way back: a product makes
column gradients, which meet the corners that their samples were made of. Channels of the input are handled in segments
that share a group and an offset group, output positions in boxes, so that the workspace is bounded.

Sums into the input are formed by ``np.bincount``, in float64 and in one order: the result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from ...arrays import CONTIGUOUS
from ...config import workspace_limit
from ...problem import Call, ConvProblem, DeformProblem, Problem, itemsize
from ...shapes import ceil_div
from ..base import Plan, Solver
from .columns import Index, box_slices
from .common import Box, boxes, compute_dtype, narrow, widen
from .costs import deform_us
from .samples import Samples, image_rows, samples_of

__all__ = ["SOLVERS"]

_COLUMN_BYTES = 8 << 20
"""Size of the columns of one chunk."""

_FEW = 32
"""Positions below which products are not made smaller, as long as channels can be cut."""

_LEAST = 256 << 10
"""What chunks may take, whatever the limit: handling smaller ones would take far longer than their sums. An image and
sums for one do not count, which are not cut."""

_OVERHEAD = 256 << 10
"""Python objects of a call, and arrays of a few elements."""

Arrays = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """How many channels side by side, and output positions, are in work at a time."""

    channels: int
    positions: int


def _bytes(problem: DeformProblem, chunk: _Chunk) -> int:
    """Return a bound for what a pass allocates beside operands and results.

    Of each position there are samples (offsets and weights of each axis, masks, rows) and columns: what was gathered,
    its product with a weight, their sum, a copy for the product, and what they were before they were widened.
    """
    conv, taps, channels = problem.conv, problem.taps, chunk.channels
    size, positions = compute_dtype(conv.dtype).itemsize, min(chunk.positions, prod(conv.output_size))
    plane, k = prod(conv.input_size) + 1, conv.k // conv.groups
    wider = 8 if conv.dtype in ("float16", "bfloat16") else 0
    samples = positions * taps * (conv.ndim * (8 + 3 * size + wider) + 40 + 6 * size)
    columns = positions * taps * channels * (5 * size + wider + itemsize(conv.dtype))
    outputs = positions * k * (4 * size + 2 * wider + 16)
    weights = k * channels * taps * (3 * size + wider)
    total = _OVERHEAD + samples + columns + outputs + weights
    if conv.kind == "fprop":
        return total + conv.c * plane * itemsize(conv.dtype)
    total += channels * plane * itemsize(conv.dtype)
    if conv.kind == "wgrad":
        return total + 2 * k * channels * taps * (size + 8) + conv.k * 24
    sums = channels * plane * (8 + 2 * size + 16) + 3 * 8 * plane + 4 * 8 * positions * taps
    return total + sums + (conv.ndim + 1) * taps * prod(conv.output_size) * (size + 24)


@lru_cache(maxsize=1024)
def _chunk(problem: DeformProblem, limit: int) -> _Chunk:
    conv, channels = problem.conv, problem.segment
    size = compute_dtype(conv.dtype).itemsize
    positions = max(1, min(_COLUMN_BYTES // (channels * problem.taps * size), max(prod(conv.output_size), 1)))
    chunk = _Chunk(channels, positions)
    limit = max(limit, _LEAST + _bytes(problem, _Chunk(1, 1)))
    while _bytes(problem, chunk) > limit:
        if chunk.positions > _FEW or (chunk.channels == 1 and chunk.positions > 1):
            chunk = _Chunk(chunk.channels, ceil_div(chunk.positions, 2))
        elif chunk.channels > 1:
            chunk = _Chunk(ceil_div(chunk.channels, 2), chunk.positions)
        else:
            break
    return chunk


@dataclass(frozen=True, slots=True)
class _Part:
    """Channels of x that share a group and an offset group."""

    of_x: slice
    of_y: slice
    of_w: slice
    offset_group: int


def _parts(problem: DeformProblem, chunk: _Chunk) -> Iterator[_Part]:
    """Yield all channels of x in their order, a part of a segment at a time."""
    conv, segment = problem.conv, problem.segment
    per_group, per_offset, k = conv.c // conv.groups, conv.c // problem.offset_groups, conv.k // conv.groups
    for start in range(0, conv.c, segment):
        group = start // per_group
        of_y = slice(group * k, group * k + k)
        for first in range(start, start + segment, chunk.channels):
            stop = min(first + chunk.channels, start + segment)
            of_w = slice(first - group * per_group, stop - group * per_group)
            yield _Part(slice(first, stop), of_y, of_w, start // per_offset)


def _mask_of(problem: DeformProblem, arrays: Arrays, n: int, group: int, box: Box) -> np.ndarray | None:
    """Return the mask of a group of offsets in a box, [outputs, taps]."""
    if not problem.mask:
        return None
    channels = slice(group * problem.taps, (group + 1) * problem.taps)
    return widen(arrays["mask"][(n, channels, *box_slices(box))], problem.dtype).reshape(problem.taps, -1).T


def _gathered(problem: DeformProblem, image: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return rows of an image, [outputs, taps, channels]."""
    return widen(image[rows], problem.dtype)


def _columns(problem: DeformProblem, image: np.ndarray, samples: Samples, mask: np.ndarray | None) -> np.ndarray:
    """Return the samples of channels, times the mask: [outputs, taps x channels]."""
    total: np.ndarray | None = None
    for corner in samples.corners():
        values = _gathered(problem, image, samples.rows(corner, True))
        values *= samples.weight(corner)[..., None]
        total = values if total is None else np.add(total, values, out=total)
        del values
    assert total is not None
    if mask is not None:
        total *= mask[..., None]
    return total.reshape(len(total), -1)


def _weights(problem: DeformProblem, w: np.ndarray, part: _Part) -> np.ndarray:
    """Return the weights of a part of the channels: [filters, taps x channels]."""
    block = widen(w[part.of_y, part.of_w], problem.dtype)
    return np.moveaxis(block, 1, -1).reshape(len(block), -1)


def _dy(problem: DeformProblem, arrays: Arrays, n: int, part: _Part, box: Box) -> np.ndarray:
    """Return the gradient of the outputs of a group in a box: [filters, outputs]."""
    values = widen(arrays["y"][(n, part.of_y, *box_slices(box))], problem.dtype)
    return values.reshape(len(values), -1)


def _fprop(problem: DeformProblem, arrays: Arrays, results: Mapping[str, np.ndarray], chunk: _Chunk) -> None:
    conv = problem.conv
    bias = None if arrays["bias"] is None else widen(arrays["bias"], conv.dtype)
    parts = list(_parts(problem, chunk))
    for n in range(conv.n):
        image = image_rows(arrays["x"][n])
        for box in boxes(conv.output_size, chunk.positions):
            held: tuple[int, Samples, np.ndarray | None] | None = None
            total: np.ndarray | None = None
            for place, part in enumerate(parts):
                if held is None or held[0] != part.offset_group:
                    samples = samples_of(problem, arrays["offset"][n], part.offset_group, box)
                    held = part.offset_group, samples, _mask_of(problem, arrays, n, part.offset_group, box)
                values = _weights(problem, arrays["w"], part) @ _columns(problem, image[:, part.of_x], *held[1:]).T
                total = values if total is None else np.add(total, values, out=total)
                if place + 1 == len(parts) or parts[place + 1].of_y != part.of_y:
                    if bias is not None:
                        total += bias[part.of_y, None]
                    at: Index = (n, part.of_y, *box_slices(box))
                    target = results["y"][at]
                    narrow(total.reshape(target.shape), conv.dtype, target)
                    total = None


def _wgrad(problem: DeformProblem, arrays: Arrays, results: Mapping[str, np.ndarray], chunk: _Chunk) -> None:
    conv, dtype = problem.conv, compute_dtype(problem.dtype)
    for part in _parts(problem, chunk):
        k, c = part.of_y.stop - part.of_y.start, part.of_x.stop - part.of_x.start
        total = np.zeros((k, problem.taps * c), dtype)
        for n in range(conv.n):
            image = image_rows(arrays["x"][n, part.of_x])
            for box in boxes(conv.output_size, chunk.positions):
                samples = samples_of(problem, arrays["offset"][n], part.offset_group, box)
                mask = _mask_of(problem, arrays, n, part.offset_group, box)
                total += _dy(problem, arrays, n, part, box) @ _columns(problem, image, samples, mask)
        block = np.moveaxis(total.reshape(k, *conv.kernel, c), -1, 1)
        narrow(block, conv.dtype, results["w"][part.of_y, part.of_w])
    if conv.bias:
        of_bias = np.zeros(conv.k, dtype)
        k = conv.k // conv.groups
        for n in range(conv.n):
            for box in boxes(conv.output_size, chunk.positions):
                for first in range(0, conv.k, k):
                    values = widen(arrays["y"][(n, slice(first, first + k), *box_slices(box))], conv.dtype)
                    of_bias[first : first + k] += values.reshape(k, -1).sum(1)
        narrow(of_bias, conv.dtype, results["bias"])


class _Gradients:
    """The gradients of one image that a dgrad sums: of x for the part in work, of offsets and mask for their group."""

    def __init__(self, problem: DeformProblem, results: Mapping[str, np.ndarray]) -> None:
        self.problem, self.results = problem, results
        self.dtype = compute_dtype(problem.dtype)
        self.group = -1
        self.offset: np.ndarray | None = None
        self.mask: np.ndarray | None = None

    def begin(self, n: int, group: int) -> None:
        """Begin with a group of offsets, unless it is the one in work; what was summed of another is stored."""
        if (n, group) == (getattr(self, "n", None), self.group):
            return
        self.finish()
        self.n, self.group = n, group
        sizes = self.problem.conv.output_size
        if "offset" in self.results:
            self.offset = np.zeros((self.problem.taps, self.problem.conv.ndim, *sizes), self.dtype)
        if "mask" in self.results:
            self.mask = np.zeros((self.problem.taps, *sizes), self.dtype)

    def finish(self) -> None:
        """Store the sums of the group in work."""
        for name, total in (("offset", self.offset), ("mask", self.mask)):
            if total is not None:
                values = total.reshape(-1, *self.problem.conv.output_size)
                channels = slice(self.group * len(values), (self.group + 1) * len(values))
                narrow(values, self.problem.dtype, self.results[name][self.n, channels])
        self.offset = self.mask = None

    def meet(self, image: np.ndarray, samples: Samples, mask: np.ndarray | None, columns: np.ndarray, box: Box) -> None:
        """Add what column gradients [outputs, taps, channels] are to the offsets and the mask of a box."""
        extent = tuple(stop - start for start, stop in box)
        place: Index = (slice(None), *box_slices(box))
        for corner in samples.corners():
            rows = samples.rows(corner, False)
            met = np.einsum("otc,otc->ot", _gathered(self.problem, image, rows), columns)
            met[rows == len(image) - 1] = 0  # an element outside adds nothing, whatever the gradient
            if self.mask is not None:
                shares = np.where(samples.there, samples.weight(corner) * met, 0)
                self.mask[place] += shares.T.reshape(-1, *extent)
            if self.offset is not None:
                for axis in range(self.problem.conv.ndim):
                    slopes = samples.weight(corner, axis) * met
                    slopes = slopes if mask is None else slopes * mask
                    self.offset[:, axis][place] += slopes.T.reshape(-1, *extent)
        broken = np.isnan(samples.whole).T.reshape(-1, *extent)
        if self.mask is not None:
            self.mask[place][broken] = np.nan
        if self.offset is not None:
            for axis in range(self.problem.conv.ndim):
                self.offset[:, axis][place][broken] = np.nan


def _scatter(total: np.ndarray, samples: Samples, mask: np.ndarray | None, columns: np.ndarray) -> None:
    """Add column gradients [outputs, taps, channels] to the rows that they were sampled from: [channels, rows]."""
    for corner in samples.corners():
        rows = samples.rows(corner, True)
        weight = samples.weight(corner)
        # A corner without weight gets nothing, as in torchvision: not the NaN of 0 times an infinite gradient.
        inside = ((rows != total.shape[1] - 1) & (weight != 0)).ravel()
        weight = weight if mask is None else weight * mask
        at, weight = rows.ravel()[inside], weight.ravel()[inside]
        for channel in range(len(total)):
            shares = columns[..., channel].ravel()[inside] * weight
            total[channel] += np.bincount(at, shares, total.shape[1])


def _dgrad(problem: DeformProblem, arrays: Arrays, results: Mapping[str, np.ndarray], chunk: _Chunk) -> None:
    conv = problem.conv
    if not conv.c:
        for result in results.values():
            result[...] = 0
        return
    plane = prod(conv.input_size)
    gradients = _Gradients(problem, results)
    for n in range(conv.n):
        for part in _parts(problem, chunk):
            gradients.begin(n, part.offset_group)
            met = "offset" in results or "mask" in results
            image = image_rows(arrays["x"][n, part.of_x]) if met else None
            channels = part.of_x.stop - part.of_x.start
            total = np.zeros((channels, plane + 1)) if "x" in results else None
            for box in boxes(conv.output_size, chunk.positions):
                samples = samples_of(problem, arrays["offset"][n], part.offset_group, box)
                mask = _mask_of(problem, arrays, n, part.offset_group, box)
                columns = _dy(problem, arrays, n, part, box).T @ _weights(problem, arrays["w"], part)
                columns = columns.reshape(-1, problem.taps, channels)
                if image is not None:
                    gradients.meet(image, samples, mask, columns, box)
                if total is not None:
                    _scatter(total, samples, mask, columns)
            if total is not None:
                values = total[:, :-1].reshape(channels, *conv.input_size)
                narrow(values.astype(compute_dtype(conv.dtype)), conv.dtype, results["x"][n, part.of_x])
    gradients.finish()


_PASSES: dict[str, Callable[..., None]] = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}


def _result_shapes(problem: DeformProblem) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and memory format of each result, by name, in the order in which they are returned."""
    conv: ConvProblem = problem.conv
    formats = {"x": conv.x_format, "w": conv.w_format, "y": conv.y_format}
    names = problem.grads if conv.kind == "dgrad" else (conv.result,)
    found = {name: (problem.shapes[name], formats.get(name, CONTIGUOUS)) for name in names}
    return found | {"bias": ((conv.k,), CONTIGUOUS)} if conv.kind == "wgrad" and conv.bias else found


class DeformIm2col(Solver):
    """Columns of samples, one product with the weights; for gradients the same backwards."""

    id = "numpy.conv.deform.im2col"
    always_answers = True

    def serves(self, problem: Problem) -> bool:
        return isinstance(problem, DeformProblem)

    def why_not(self, problem: Problem) -> str | None:
        if not isinstance(problem, DeformProblem):
            return "samples at positions that offsets move, as deformable convolution does, which is another operation"
        return None

    def rank(self, problem: Problem) -> float:
        assert isinstance(problem, DeformProblem)
        return deform_us(problem)

    def plan(self, problem: Problem) -> Plan:
        assert isinstance(problem, DeformProblem)
        chunk = _chunk(problem, workspace_limit())
        config = {"channels per chunk": chunk.channels, "positions per chunk": chunk.positions}
        return Plan(self, problem, _bytes(problem, chunk), config)

    def run(self, plan: Plan, call: Call) -> Any:
        problem, kind = call.problem, call.kind
        assert isinstance(problem, DeformProblem)
        found = {
            name: kind.empty(shape, problem.dtype, problem.device, layout)
            for name, (shape, layout) in _result_shapes(problem).items()
        }
        if any(prod(kind.shape(result)) for result in found.values()):
            arrays = {name: None if a is None else kind.to_numpy(a) for name, a in call.arrays.items()}
            results = {name: kind.to_numpy(result) for name, result in found.items()}
            with np.errstate(all="ignore"):
                _PASSES[problem.kind](problem, arrays, results, _chunk(problem, workspace_limit()))
        results_of = tuple(found.values())
        return results_of if problem.kind == "dgrad" or len(results_of) > 1 else results_of[0]


SOLVERS: tuple[Solver, ...] = (DeformIm2col(),)
