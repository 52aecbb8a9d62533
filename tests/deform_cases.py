"""Cases of deformable convolutions, the arrays of each, and a referee: plain loops in float64, of no code of ours.

What a backend has to show: that it runs the cases of `CASES`, forward and every gradient, within what
:func:`gpuconv.numerics.tolerance` allows, or exactly where the case is ``exact``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from math import floor, gcd, isnan, prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call. `padding` is (lo, hi) for each axis.

    `offsets` says where samples are: ``"near"`` (between elements, a few outside), ``"whole"`` (on elements),
    ``"edges"`` (exactly -1, size, size - 1, and a little beside), ``"far"`` (outside), ``"zero"``, or ``"special"``
    (NaN and infinite ones among others). `values` are ``"random"``, ``"integers"`` (small, so that every type is
    exact) or ``"special"`` (NaN and infinite elements of x). `layout` is that of x, offset and mask:
    ``"contiguous"``, ``"channels_last"``, ``"expanded"`` (one image, N times), ``"strided"`` (every other element of
    something larger) or ``"reversed"`` (negative strides, which NumPy alone has).
    """

    ndim: int = 2
    n: int = 2
    c: int = 4
    k: int = 4
    groups: int = 1
    offset_groups: int = 1
    size: tuple[int, ...] = (5, 6)
    kernel: tuple[int, ...] = (3, 3)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((1, 1), (1, 1))
    dilation: tuple[int, ...] = (1, 1)
    mask: bool = True
    bias: bool = True
    offsets: str = "near"
    values: str = "random"
    layout: str = "contiguous"
    dtype: str = "float64"

    @property
    def exact(self) -> bool:
        """Whether every sum is exact in every type: compare with ``==``."""
        return self.values == "integers"

    @property
    def taps(self) -> int:
        """Taps of the filter."""
        return prod(self.kernel)

    @property
    def output(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        axes = zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        return tuple((i + lo + hi - d * (k - 1) - 1) // s + 1 for i, (lo, hi), d, k, s in axes)

    @property
    def name(self) -> str:
        """What is not as in the plain case, in words."""
        parts, plain = [f"{self.ndim}d"], plain_case(self.ndim)
        for field in fields(self):
            value = getattr(self, field.name)
            if value != getattr(plain, field.name):
                text = str(value).replace("), (", "_").replace(", ", ",").translate({40: None, 41: None})
                parts.append(f"{field.name}={text}")
        return "-".join(parts)

    @property
    def options(self) -> Arrays:
        """The arguments of the call that are no arrays."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


def _spatial(ndim: int) -> Arrays:
    size, kernel = ((3, 3, 4), (2, 2, 2)) if ndim == 3 else ((5, 6)[-ndim:], (3, 3)[-ndim:])
    pads = ((0, 1), (1, 0), (1, 1))[-ndim:] if ndim == 3 else ((1, 1),) * ndim
    return {
        "ndim": ndim,
        "size": size,
        "kernel": kernel,
        "stride": (1,) * ndim,
        "padding": pads,
        "dilation": (1,) * ndim,
    }


def plain_case(ndim: int) -> Case:
    """Return the case that others differ from."""
    return Case(**_spatial(ndim))


def _all() -> Iterator[Case]:
    for ndim in (1, 2, 3):
        plain = _spatial(ndim)
        ones = (1,) * ndim
        for groups, offset_groups in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), (4, 4)):
            yield Case(**plain, groups=groups, offset_groups=offset_groups, mask=groups != 2, bias=offset_groups != 2)
        yield Case(**plain, c=6, k=9, groups=3, offset_groups=2)  # a segment of one channel
        yield Case(**plain, mask=False, bias=False)
        for offsets in ("whole", "edges", "far", "zero", "special"):
            yield Case(**plain, offsets=offsets, mask=offsets != "whole")
        for values, offsets in (
            ("special", "near"),
            ("special", "edges"),
            ("special", "whole"),
            ("special", "special"),
        ):
            yield Case(**plain, values=values, offsets=offsets, offset_groups=2)
        for layout in ("channels_last", "expanded", "strided", "reversed"):
            yield Case(**plain, layout=layout, offset_groups=2, groups=2)
        yield Case(**plain | {"stride": (2, 3, 2)[-ndim:], "dilation": (1, 2, 2)[-ndim:]}, offset_groups=2)
        yield Case(**plain | {"padding": ((0, 1), (2, 0), (0, 3))[-ndim:]})
        yield Case(**plain | {"padding": ((2, 0), (0, 0), (1, 2))[-ndim:], "stride": (1, 2, 3)[-ndim:]}, groups=2)
        yield Case(**plain | {"kernel": ones, "padding": ((0, 0),) * ndim}, offset_groups=4)
        yield Case(**plain | {"kernel": (2, 1, 3)[-ndim:], "dilation": (2, 1, 2)[-ndim:]}, k=1, n=1)
        yield Case(**plain | {"size": ones, "kernel": (2, 2, 2)[-ndim:]}, offsets="edges")
        yield Case(**plain | {"size": (2, 1, 5)[-ndim:]}, c=1, k=3)
        yield Case(**plain, n=0)
        yield Case(**plain, values="integers", offsets="whole", groups=2)
        for dtype in ("float32", "float16", "bfloat16"):
            yield Case(**plain, dtype=dtype, groups=2, offset_groups=2, mask=dtype != "float32")
            yield Case(**plain, dtype=dtype, values="integers", offset_groups=2)
            yield Case(**plain, dtype=dtype, values="special", offsets="edges")
            yield Case(**plain, dtype=dtype, layout="channels_last", groups=2, offset_groups=2)
    yield Case(size=(7, 9), c=8, k=6, groups=2, offset_groups=4, dilation=(2, 1), n=3)
    yield Case(size=(9, 3), kernel=(5, 2), c=3, k=5, padding=((2, 2), (0, 1)), stride=(2, 1))
    yield Case(size=(7, 7), c=16, k=24, dtype="float32", n=1)


CASES: dict[str, Case] = {case.name: case for case in _all()}

_SPECIAL = (np.nan, np.inf, -np.inf)


def _sprinkled(rng: np.random.Generator, array: Array, specials: tuple[float, ...]) -> Array:
    """Return `array` with special values in a few places, at least one of each where there is room."""
    flat = array.reshape(-1)
    if flat.size:
        places = rng.permutation(flat.size)[: max(len(specials), flat.size // 12)]
        flat[places] = np.resize(np.array(specials), len(places))
    return array


def bases(case: Case) -> Array:
    """Return the positions without offsets: [taps, axes, *output]."""
    found = np.zeros((case.taps, case.ndim, *case.output))
    for tap, taps in enumerate(product(*map(range, case.kernel))):
        for place in product(*map(range, case.output)):
            for axis in range(case.ndim):
                at = place[axis] * case.stride[axis] - case.padding[axis][0] + taps[axis] * case.dilation[axis]
                found[(tap, axis, *place)] = at
    return found


def _offsets(case: Case, rng: np.random.Generator) -> Array:
    shape = (case.n, case.offset_groups, case.taps, case.ndim, *case.output)
    eighths = rng.integers(-14, 15, shape) / 8
    kind = case.offsets
    if kind == "zero":
        eighths = np.zeros(shape)
    elif kind == "whole":
        eighths = rng.integers(-2, 3, shape).astype(float)
    elif kind == "far":
        eighths = eighths + rng.choice([-16.0, 0.0, 16.0], shape)
    elif kind in ("edges", "special"):
        sizes = np.reshape(case.size, (-1, *(1,) * case.ndim)).astype(float)
        target = rng.choice([-1.0, -1.125, -0.875, 0.0, -0.5], shape)
        high = rng.choice([0.0, 0.125, -0.125, -1.0, -0.5], shape) + sizes
        eighths = np.where(rng.random(shape) < 0.5, target, high) - bases(case)
    if kind == "special":
        _sprinkled(rng, eighths, _SPECIAL)
    return eighths.reshape(case.n, -1, *case.output) if eighths.size else _empty_offsets(case)


def _empty_offsets(case: Case) -> Array:
    return np.zeros((case.n, case.offset_groups * case.taps * case.ndim, *case.output))


def draw(case: Case, rng: np.random.Generator) -> Arrays:
    """Return x, offset, mask (or None), w, bias (or None) and dy: float64 that the case's type represents exactly."""

    def some(*shape: int) -> Array:
        # 6 bits: what every type holds, and products of two in float32
        most = 4 if case.exact else 32
        return rng.integers(-most, most + 1, shape) / (1 if case.exact else 16)

    x = some(case.n, case.c, *case.size)
    if case.values == "special":
        _sprinkled(rng, x, _SPECIAL)
    found = {
        "x": x,
        "offset": _offsets(case, rng),
        "mask": some(case.n, case.offset_groups * case.taps, *case.output) if case.mask else None,
        "w": some(case.k, case.c // case.groups, *case.kernel),
        "bias": some(case.k) if case.bias else None,
        "dy": some(case.n, case.k, *case.output),
    }
    if case.exact:
        found["offset"] = np.round(found["offset"] * 2) / 2  # fractions of halves: eighths in 3-D
    if case.layout == "expanded" and case.n:
        for name in ("x", "offset", "mask"):
            if found[name] is not None:
                found[name] = np.broadcast_to(found[name][:1], found[name].shape).copy()
    return found


def laid_out(case: Case, name: str, array: Array) -> Array:
    """Return the same values as the case's layout has them: each operand, but expanded those alone that have images."""
    if case.layout == "contiguous" or (case.layout == "expanded" and name not in ("x", "offset", "mask")):
        return array
    if case.layout == "channels_last":
        return array if array.ndim < 3 else np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
    if case.layout == "expanded":
        return np.broadcast_to(array[:1], array.shape)
    if case.layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 77, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _samples(case: Case, offset: Array, n: int, group: int, tap: int, place: tuple[int, ...], base: Array) -> list[Any]:
    first = (group * case.taps + tap) * case.ndim
    return [base[(tap, axis, *place)] + offset[(n, first + axis, *place)] for axis in range(case.ndim)]


def _corners(case: Case, position: list[Any]) -> list[tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]]:
    """Return the corners in the input: where each is, its share along each axis, and which neighbour it is there."""
    if any(isnan(at) or at < -1 or at >= size for at, size in zip(position, case.size)):
        return []
    lower = [floor(at) for at in position]
    found = []
    for high in product((0, 1), repeat=case.ndim):
        at = tuple(low + up for low, up in zip(lower, high))
        if all(0 <= a < size for a, size in zip(at, case.size)):
            shares = tuple(p - low if up else low + 1 - p for p, low, up in zip(position, lower, high))
            found.append((at, shares, high))
    return found


def _without(values: tuple[float, ...], axis: int) -> float:
    return prod(value for place, value in enumerate(values) if place != axis)


@np.errstate(all="ignore")
def referee(case: Case, arrays: Arrays, absolute: bool = False) -> Arrays:
    """Return ``y`` and the gradients ``x``, ``offset``, ``mask``, ``w`` and ``bias``, by loops in float64.

    With `absolute`, sums of the absolute values of all that is summed: the magnitude of each result.
    """
    x, offset, mask, w, bias, dy = (arrays[name] for name in ("x", "offset", "mask", "w", "bias", "dy"))
    if absolute:
        x, mask, w, bias, dy = (None if a is None else np.abs(a) for a in (x, mask, w, bias, dy))
    base = bases(case)
    found = {name: None if a is None else np.zeros(a.shape) for name, a in arrays.items()}
    found["y"] = np.zeros_like(found.pop("dy"))
    per_offset, per_group, k = case.c // case.offset_groups, case.c // case.groups, case.k // case.groups
    segment = gcd(per_group, per_offset)
    flat_w = w.reshape(case.k, per_group, case.taps)
    of_w = np.zeros_like(flat_w)
    for n, place, tap, group in product(
        range(case.n), product(*map(range, case.output)), range(case.taps), range(case.offset_groups)
    ):
        position = _samples(case, offset, n, group, tap, place, base)
        broken = any(isnan(at) for at in position)
        there = all(-1 < at < size for at, size in zip(position, case.size))
        corners = _corners(case, position)
        factor = 1.0 if mask is None else mask[(n, group * case.taps + tap, *place)]
        channels = range(group * per_offset, (group + 1) * per_offset)
        sample = np.full(per_offset, np.nan if broken else 0.0)
        for at, shares, _ in corners if there else ():
            sample += prod(shares) * x[(n, slice(channels.start, channels.stop), *at)]
        back = np.zeros(per_offset)
        for begin in range(channels.start, channels.stop, segment):
            of_group, index = begin // per_group, slice(begin - channels.start, begin - channels.start + segment)
            filters, within = (
                slice(of_group * k, of_group * k + k),
                slice(begin % per_group, begin % per_group + segment),
            )
            weights, grads, moved = flat_w[filters, within, tap], dy[(n, filters, *place)], sample[index] * factor
            found["y"][(n, filters, *place)] += weights @ moved
            of_w[filters, within, tap] += grads[:, None] * moved
            back[index] = grads @ weights
        first = (group * case.taps + tap) * case.ndim
        for at, shares, high in corners:
            values = x[(n, slice(channels.start, channels.stop), *at)] * back
            if there:
                found["x"][(n, slice(channels.start, channels.stop), *at)] += prod(shares) * factor * back
                if mask is not None:
                    found["mask"][(n, group * case.taps + tap, *place)] += prod(shares) * values.sum()
            for axis in range(case.ndim):
                slope = _without(shares, axis) * (1 if high[axis] or absolute else -1)
                found["offset"][(n, first + axis, *place)] += slope * factor * values.sum()
        if broken:
            found["offset"][(n, slice(first, first + case.ndim), *place)] = np.nan
            if mask is not None:
                found["mask"][(n, group * case.taps + tap, *place)] = np.nan
    found["w"] = of_w.reshape(w.shape)
    if bias is not None:
        found["y"] += bias.reshape(-1, *(1,) * case.ndim)
        found["bias"] = dy.sum((0, *range(2, dy.ndim)))
    return found


def length(case: Case, name: str) -> int:
    """Return how many products are summed into an element of a result at most, for a tolerance."""
    corners, positions = 2**case.ndim, max(case.n, 1) * prod(case.output)
    if name in ("w", "bias"):
        return positions * corners
    if name == "y":
        return case.c // case.groups * case.taps * corners
    per_sample = case.k // case.groups
    return per_sample * case.taps * prod(case.output) if name == "x" else per_sample * case.c * corners
