"""Tensor maps of the Hopper kernels: how boxes of x, w and y lie in tensors, for a form or a run of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ...launcher import MapType, TensorMap
from ...problem import ConvProblem
from .hopper_forms import MOST_TOGETHER, Form, box_of, corners_of, split_axis
from .hopper_view import Dense, number_of

__all__ = ["im2col_map", "image_map", "map_type", "maps_of", "phase_map", "row_map"]


def _strides(tensor: Any, shape: tuple[int, ...], segments: int = 0) -> tuple[int, ...]:
    """Return the strides of a tensor as [N, D, H, W, C]; one of a single axis is of the workspace, and dense.

    Of a signal in segments these are W, and H the positions of one.
    """
    _, d, h, w, c = shape
    found = [d * h * w * c, h * w * c, w * c, c, 1] if not segments else [h * w * c, h * w * c, c, h * c, 1]
    if tensor.dim() > 1:
        own = tensor.stride()
        spatial = [0] * (5 - len(own)) + list(own[2:])
        if segments:
            spatial = [0, own[-1], h * own[-1]]
        given = [own[0], *spatial]
        # The stride of an axis of size 1 is never used; TMA wants a multiple of 16 bytes all the same.
        found = [step if size > 1 else dense for step, size, dense in zip(given, shape, found)] + [1]
    return tuple(found)


def row_map(tensor: Any, type: MapType, pixels: int, channels: int, offset: int = 0) -> TensorMap:
    """Return a map over pixels in one row, [1, 1, 1, pixels, channels], from an element on."""
    whole = pixels * channels
    return TensorMap(tensor, type, (1, 1, 1, pixels, channels), (whole, whole, whole, channels, 1), offset)


def maps_of(
    form: Form, problem: ConvProblem, phases: Sequence[Dense], places: Mapping[str, tuple[Any, int]], w: Any,
    constants: Mapping[str, Any],
) -> dict[str, TensorMap | None]:  # fmt: skip
    """Return the maps of a launch by name; ``residual_map`` is None where there is no residual.

    Of several phases, of one source and with one set of weights, the results of the second are ``y1_map``, and so on:
    there are those of :data:`.MOST_TOGETHER`, None beyond the last.

    Parameters
    ----------
    form, problem, phases
        What is computed, and how.
    places
        For ``source``, ``result`` and ``residual``: a tensor, and its first image.
    w
        The weights, dense: [channels, taps, reduced] or, where they are read turned, [reduced, taps, channels].
    constants
        The kernel's, of :func:`.constants_of_form`.
    """
    number, box, dense = number_of(problem), box_of(form, constants), phases[0]
    stored = "fp32" if number == "tf32" else number
    block_c, chunk = constants["BLOCK_C"], constants["BLOCK_K"] // constants["CHUNKS"]
    split: int | str | None = None
    if form.shared:
        split = "all" if form.shared == "pixels" else split_axis(box)
    # Runs of pixels that a cluster splits are copied by each CTA for itself: boxes of one.
    own_runs = form.kernel == "pixels" and form.shared == "weights"
    x_box = (box[0] // 2 if own_runs else box[0], *box[1:], block_c)
    x_type = map_type(number, x_box, "all" if own_runs else split)
    y_box = (1, 1, 1, *box, chunk) if form.kernel == "pixels" else (*box, chunk)
    y_split: int | str | None = split
    if form.shared == "pixels":
        y_split = len(y_box) - 1
    elif form.shared == "weights" and form.kernel == "pixels":
        y_split = 3
    y_type = map_type(stored, y_box, y_split)
    found: dict[str, TensorMap | None] = {"w_map": _weights_map(form, problem, dense, w, constants)}
    source, first = places["source"]
    if form.kernel == "pixels":
        found["x_map"] = im2col_map(dense, replace(x_type, axes=len(corners_of(dense)[0]) + 2), source, first)
    else:
        found["x_map"] = image_map(dense, x_type, source, first, dense.size, dense.reduced)
    for name, of in (("y_map", "result"), ("residual_map", "residual")):
        tensor, first = places.get(of, (None, 0))
        if tensor is None:
            found[name] = None
        elif form.kernel == "pixels" or dense.flat:
            row = prod(dense.whole[dense.outermost + 1 :])
            start = (first * prod(dense.whole) + dense.at[dense.outermost] * row) * dense.channels
            found[name] = row_map(tensor, y_type, dense.pixels, dense.channels, start)
        else:
            whole = image_map(dense, y_type, tensor, first, dense.whole, dense.channels)
            found |= {_of_phase(name, place): phase_map(phase, whole) for place, phase in enumerate(phases)}
    if len(phases) > 1:
        names = [_of_phase(name, place) for name in ("y_map", "residual_map") for place in range(MOST_TOGETHER)]
        found = dict.fromkeys(names) | found
    return found


def _of_phase(name: str, place: int) -> str:
    """Return how the map of a phase is named."""
    return name.replace("_map", f"{place}_map") if place else name


def map_type(number: str, box: tuple[int, ...], split: int | str | None) -> MapType:
    item = 4 if number in ("tf32", "fp32") else 2
    own = box[-1] // 2 if split == len(box) - 1 else box[-1]
    return MapType(number, box, min(128, own * item), split)


def image_map(dense: Dense, type: MapType, tensor: Any, first: int, size: tuple[int, ...], channels: int) -> TensorMap:
    """Return a map over images of a tensor, [N, D, H, W, C], from image `first` on."""
    if dense.flat:
        return row_map(tensor, type, dense.n * prod(size), channels, first * prod(size) * channels)
    shape = (dense.n, *size, channels)
    strides = _strides(tensor, shape, dense.segments)
    return TensorMap(tensor, type, shape, strides, first * strides[0])


def phase_map(dense: Dense, map: TensorMap) -> TensorMap:
    """Return the part of a map of the whole result that is of a phase, or of some rows."""
    n, d, h, w, c = map.strides
    strides = tuple(by * step for by, step in zip(dense.spread, (d, h, w), strict=True))
    offset = sum(at * step for at, step in zip(dense.at, (d, h, w), strict=True))
    shape = (map.shape[0], *dense.output, map.shape[4])
    return replace(map, shape=shape, strides=(n, *strides, c), offset=map.offset + offset)


def im2col_map(dense: Dense, type: MapType, tensor: Any, first: int) -> TensorMap:
    """Return a map of the im2col mode over images of the source from image `first` on."""
    axes = type.axes - 2
    lower, upper = corners_of(dense)
    shape = (dense.n, *dense.size, dense.reduced)
    strides = _strides(tensor, shape)
    kept = (0, *range(4 - axes, 5))
    sizes = tuple(shape[axis] for axis in kept), tuple(strides[axis] for axis in kept)
    return TensorMap(tensor, type, *sizes, first * strides[0], lower, upper, dense.stride[-axes:])


def _weights_map(form: Form, problem: ConvProblem, dense: Dense, w: Any, constants: Mapping[str, Any]) -> TensorMap:
    number, taps = number_of(problem), prod(problem.w_shape) // (dense.channels * dense.reduced)
    block_c, block_k = constants["BLOCK_C"], constants["BLOCK_K"]
    rows, columns = (dense.reduced, dense.channels) if dense.turned else (dense.channels, dense.reduced)
    box = (1, block_c, block_k) if dense.turned else (1, block_k, block_c)
    split: int | str | None = None
    if form.shared == "weights":
        split = "all"
    elif form.shared == "pixels":
        split = 2 if dense.turned else 1
    return TensorMap(w, map_type(number, box, split), (taps, rows, columns), (columns, taps * columns, 1))
