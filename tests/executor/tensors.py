"""Tensors as a CTA of a cluster holds them: views of shared memory, fragments in registers, maps of global memory.

A shape is that of the whole cluster. ``splits`` says, for each bit of a CTA's rank, along which axis the halves of a
tensor belong to different CTAs; a bit that splits nothing means that both hold all of it.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import partialmethod
from types import SimpleNamespace

import numpy as np

__all__ = [
    "Fragment",
    "KernelError",
    "Layout",
    "Map",
    "MapIm2col",
    "Pointer",
    "Region",
    "View",
    "local_shape",
    "regions_overlap",
    "rounded",
]

Region = tuple[int, int, int, int]
"""CTA, allocation, first element and the one after the last."""

Splits = tuple[tuple[int, ...], ...]


class KernelError(Exception):
    """A kernel does what the hardware does not define, or what leaves its result to chance."""


@dataclass(frozen=True)
class Layout:
    """What a cluster sees of a layout; the rest of it decides about speed alone."""

    splits: Splits = ()

    @classmethod
    def of(cls, cga_layout=None, **_) -> Layout:
        return cls(tuple(tuple(basis) for basis in cga_layout or ()))

    def for_axes(self, axes: int) -> Splits:
        """Return the splits of a tensor that has more axes in front (stages)."""
        return tuple((0,) * (axes - len(basis)) + basis for basis in self.splits)

    def without(self, axis: int) -> Layout:
        """Return the layout of a vector along the other axis of a matrix."""
        return Layout(tuple(basis[:axis] + basis[axis + 1 :] for basis in self.splits))


def rounded(values: np.ndarray, dtype: object) -> np.ndarray:
    """Round to a type of 16 bits, to nearest even; other types leave values as they are."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype != "bfloat16":
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return np.where(np.isfinite(values), nearest, values).astype(np.float32)


def local_shape(shape, splits: Splits) -> tuple[int, ...]:
    """Return what of a shape one CTA holds."""
    sizes = list(shape)
    for basis in splits:
        for axis, step in enumerate(basis):
            if step:
                if sizes[axis] % 2:
                    raise KernelError(f"{tuple(shape)} cannot be split over a cluster along axis {axis}")
                sizes[axis] //= 2
    return tuple(sizes)


def origin(shape, splits: Splits, rank: int) -> tuple[int, ...]:
    """Return where in the whole tensor the part of a CTA begins."""
    sizes = local_shape(shape, splits)
    start = [0] * len(sizes)
    for bit, basis in enumerate(splits):
        if rank >> bit & 1:
            start = [at + step * size for at, step, size in zip(start, basis, sizes, strict=True)]
    return tuple(start)


def reshaped_splits(shape, splits: Splits, new) -> Splits:
    """Return where the split goes as ``shape`` becomes ``new``: it must stay the outermost part of one axis."""
    found = []
    for basis in splits:
        moved = [0] * len(new)
        for axis, step in enumerate(basis):
            if step:
                half = math.prod(shape[axis:]) // 2
                places = [at for at in range(len(new)) if math.prod(new[at:]) == 2 * half and new[at] > 1]
                if not places:
                    raise KernelError(
                        f"reshaping {tuple(shape)} to {tuple(new)} moves the split of a cluster inside of an axis"
                    )
                moved[places[-1]] = 1
        found.append(tuple(moved))
    return tuple(found)


def regions_overlap(a: Region, b: Region) -> bool:
    return a[:2] == b[:2] and a[2] < b[3] and b[2] < a[3]


@dataclass(frozen=True, eq=False)
class View:
    """A part of one CTA's shared memory, by number of its allocation and first element in it."""

    machine: object
    rank: int
    allocation: int
    first: int
    shape: tuple[int, ...]
    splits: Splits
    dtype: object
    order: tuple[int, ...] | None = None

    def _with(self, **changes) -> View:
        known = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return View(**known | changes)

    @property
    def size(self) -> int:
        return math.prod(local_shape(self.shape, self.splits))

    @property
    def region(self) -> Region:
        return self.rank, self.allocation, self.first, self.first + self.size

    @property
    def data(self) -> np.ndarray:
        """Return the elements, as a NumPy view."""
        memory = self.machine.memory(self.rank, self.allocation)[self.first : self.first + self.size]
        if memory.size != self.size:
            raise KernelError("a view of shared memory leaves its allocation")
        data = memory.reshape(local_shape(self.shape, self.splits))
        return data if self.order is None else data.transpose(self.order)

    def of_rank(self, rank: int) -> View:
        """Return the same bytes of another CTA."""
        return self._with(rank=rank)

    def index(self, at) -> View:
        if not 0 <= at < self.shape[0]:
            raise KernelError(f"slot {at} of {self.shape[0]}")
        splits = tuple(basis[1:] for basis in self.splits)
        size = math.prod(local_shape(self.shape[1:], splits))
        return self._with(shape=self.shape[1:], splits=splits, first=self.first + int(at) * size)

    def slice(self, start, length, dim=0) -> View:
        """Take rows: Triton 3.9 refuses a start that is no multiple of the length."""
        if dim or start % length or any(basis[0] for basis in self.splits):
            raise KernelError(f"a slice of {length} that starts at {start} along axis {dim}")
        row = math.prod(local_shape(self.shape[1:], tuple(basis[1:] for basis in self.splits)))
        return self._with(shape=(length, *self.shape[1:]), first=self.first + start * row)

    def reshape(self, shape) -> View:
        return self._with(shape=tuple(shape), splits=reshaped_splits(self.shape, self.splits, tuple(shape)))

    def permute(self, order) -> View:
        if self.order is not None:
            raise KernelError("a view is permuted twice")
        return self._with(order=tuple(order))

    def store(self, value: Fragment):
        """Write from registers, as the machine sees it."""
        return self.machine.write_shared(self, value)

    def load(self, layout=None):
        """Read into registers."""
        return self.machine.read_shared(self)

    def reinterpret(self, dtype=None, shape=None, layout=None) -> View:
        view = self._with(shape=tuple(shape), splits=layout.for_axes(len(shape)))
        if view.size > self.size:
            raise KernelError("a reinterpreted view is larger than what it views")
        return view


class Fragment:
    """A tensor in registers: the part of one CTA. ``products`` counts those that are still being added to it."""

    def __init__(self, values: np.ndarray, shape=None, splits: Splits = ()):
        self._values, self.shape, self.splits = values, tuple(values.shape if shape is None else shape), splits
        self.products = 0

    @property
    def type(self) -> SimpleNamespace:
        return SimpleNamespace(layout=Layout(self.splits))

    @property
    def values(self) -> np.ndarray:
        if self.products:
            raise KernelError("an accumulator is read before its products are waited for")
        return self._values

    def add_product(self, product: np.ndarray, onto: bool = True) -> None:
        self._values = self._values + product if onto else product
        self.products -= 1

    def reshape(self, shape) -> Fragment:
        splits = reshaped_splits(self.shape, self.splits, tuple(shape))
        return Fragment(self.values.reshape(local_shape(shape, splits)), shape, splits)

    def permute(self, *order) -> Fragment:
        order = tuple(order[0]) if len(order) == 1 else order
        splits = tuple(tuple(basis[axis] for axis in order) for basis in self.splits)
        return Fragment(self.values.transpose(order), [self.shape[axis] for axis in order], splits)

    def split(self) -> tuple[Fragment, Fragment]:
        splits = tuple(basis[:-1] for basis in self.splits)
        return tuple(Fragment(self.values[..., half], self.shape[:-1], splits) for half in (0, 1))

    def expand_dims(self, axis: int) -> Fragment:
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        splits = tuple((*basis[:axis], 0, *basis[axis:]) for basis in self.splits)
        return Fragment(np.expand_dims(self.values, axis), shape, splits)

    def map(self, function) -> Fragment:
        return Fragment(function(self.values), self.shape, self.splits)

    def combine(self, other, function, swap: bool = False) -> Fragment:
        if not isinstance(other, Fragment):  # a number of the kernel's, in the type of what it meets
            other = Fragment(np.asarray(other, self.values.dtype if self.values.dtype.kind == "f" else None))
        left, right = (other, self) if swap else (self, other)
        values = function(left.values, right.values)
        shape = np.broadcast_shapes(left.shape, right.shape)
        both = [((0,) * (len(shape) - len(basis)) + basis) for basis in (*left.splits, *right.splits)]
        bits = max(len(left.splits), len(right.splits))
        splits = tuple(tuple(max(steps) for steps in zip(*both[bit::bits], strict=True)) for bit in range(bits))
        if values.shape != local_shape(shape, splits):
            raise KernelError(f"fragments of {left.shape} and {right.shape} are split differently over the cluster")
        return Fragment(values, shape, splits)


for _name in ("add", "sub", "mul", "truediv", "and_", "or_", "lt", "le", "gt", "ge", "eq", "ne"):
    _function = getattr(operator, _name)
    setattr(Fragment, f"__{_name.strip('_')}__", partialmethod(Fragment.combine, function=_function))
    setattr(Fragment, f"__r{_name.strip('_')}__", partialmethod(Fragment.combine, function=_function, swap=True))
Fragment.__neg__ = partialmethod(Fragment.map, operator.neg)
Fragment.__hash__ = object.__hash__


@dataclass(frozen=True)
class Pointer:
    """An address in global memory: elements from the first of a flat array."""

    array: np.ndarray
    offset: object = 0

    def __add__(self, offset) -> Pointer:
        return Pointer(
            self.array, offset if isinstance(self.offset, int) and self.offset == 0 else offset + self.offset
        )


@dataclass(frozen=True)
class Map:
    """A tensor map of the tiled mode over a NumPy array: boxes of it, with zeros for what lies outside."""

    array: np.ndarray
    block_shape: tuple[int, ...]
    dtype: object = "bfloat16"
    itemsize: int = 2
    layout: Layout = Layout()

    def __post_init__(self):
        if len(self.block_shape) != self.array.ndim or self.array.ndim > 5:
            raise KernelError(f"a box of {len(self.block_shape)} axes of a tensor of {self.array.ndim}")
        if any(size > 256 for size in self.local_block):
            raise KernelError(f"a box of {self.local_block}: 256 elements along an axis are the most")
        self._check_bytes()

    def _check_bytes(self) -> None:
        """Refuse what ``cuTensorMapEncode`` does: rows of a box, and strides, that are no multiples of 16 bytes."""
        if self.local_block[-1] * self.itemsize % 16:
            raise KernelError(f"a box of {self.local_block}: its rows are no multiples of 16 bytes")
        strides = (stride // self.array.itemsize * self.itemsize for stride in self.array.strides[:-1])
        if any(stride % 16 for stride in strides):
            raise KernelError(f"a tensor of {self.array.shape}: its strides are no multiples of 16 bytes")

    @property
    def splits(self) -> Splits:
        return self.layout.for_axes(len(self.block_shape))

    @property
    def local_block(self) -> tuple[int, ...]:
        return local_shape(self.block_shape, self.splits)

    @property
    def nbytes_per_cta(self) -> int:
        return math.prod(self.local_block) * self.itemsize

    def start(self, coordinates, rank: int) -> tuple[int, ...]:
        at = origin(self.block_shape, self.splits, rank)
        return tuple(int(first) + step for first, step in zip(coordinates, at, strict=True))

    def _cut(self, start) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part of the tensor that a box covers, and where in the box it lies."""
        inside = []
        for first, block, size in zip(start, self.local_block, self.array.shape, strict=True):
            low = min(max(first, 0), size)
            inside.append((low, max(low, min(first + block, size))))
        return (
            tuple(slice(low, high) for low, high in inside),
            tuple(slice(low - first, high - first) for (low, high), first in zip(inside, start, strict=True)),
        )

    def read(self, start, offsets=None) -> np.ndarray:
        box = np.zeros(self.local_block, self.array.dtype)
        tensor, part = self._cut(start)
        box[part] = self.array[tensor]
        return box

    def write(self, start, box: np.ndarray) -> None:
        tensor, part = self._cut(start)
        self.array[tensor] = box.reshape(self.local_block)[part]


@dataclass(frozen=True)
class MapIm2col(Map):
    """A tensor map of the im2col mode over x [N, (D,) (H,) W, C]; a box is [pixels, channels].

    Pixels walk over the positions of a box that goes from ``lower`` to the size plus ``upper``, exclusive, in steps of
    ``strides``, W fastest, then H, D, N; offsets are added to each. See "Tensor access modes: im2col" of the PTX ISA.
    """

    strides: tuple[int, ...] = (1, 1)
    lower: tuple[int, ...] = (0, 0)
    upper: tuple[int, ...] = (0, 0)

    def __post_init__(self):
        axes = self.array.ndim - 2
        reach = {1: 1 << 15, 2: 1 << 7, 3: 1 << 4}[axes]
        if any(not -reach <= corner < reach for corner in (*self.lower, *self.upper)):
            raise KernelError(f"corners {self.lower}, {self.upper} of an im2col box of {axes} axes")
        if len(self.block_shape) != 2 or self.local_block[0] > 1024 or self.local_block[1] > 256:
            raise KernelError(f"a box of {self.block_shape} pixels and channels")
        if any(not 1 <= stride <= 8 for stride in self.strides):
            raise KernelError(f"element strides of {self.strides}: 8 is the most")
        self._check_bytes()

    @property
    def positions(self) -> tuple[int, ...]:
        sizes = self.array.shape[1:-1]
        corners = zip(sizes, self.lower, self.upper, self.strides, strict=True)
        return tuple(-(-(size + upper - lower) // step) for size, lower, upper, step in corners)

    def start(self, coordinates, rank: int) -> tuple[int, ...]:
        """Return the coordinates as they are: a split along pixels would be added to that of W, which is wrong."""
        if any(basis[0] for basis in self.splits):
            raise KernelError("the pixels of an im2col box are split over a cluster: it would start at a wrong pixel")
        at = origin(self.block_shape, self.splits, rank)
        return (*(int(first) for first in coordinates[:-1]), int(coordinates[-1]) + at[-1])

    def read(self, start, offsets=None) -> np.ndarray:
        image, *first, channel = start
        axes, positions, sizes = len(first), self.positions, self.array.shape[1:-1]
        reach = {1: 1 << 16, 2: 1 << 8, 3: 1 << 5}[axes]
        if any(not 0 <= offset < reach for offset in offsets):
            raise KernelError(f"im2col offsets {tuple(offsets)}")
        flat = image
        for axis in range(axes):
            place, rest = divmod(first[axis] - self.lower[axis], self.strides[axis])
            if rest or not 0 <= place < positions[axis]:
                raise KernelError(f"an im2col load starts at {tuple(first)}, which is no position of its box")
            flat = flat * positions[axis] + place
        pixels = flat + np.arange(self.local_block[0])
        inside = np.ones(len(pixels), bool)
        index = []
        for axis in reversed(range(axes)):
            place = pixels % positions[axis] * self.strides[axis] + self.lower[axis] + offsets[axis]
            inside &= (place >= 0) & (place < sizes[axis])
            index.insert(0, np.clip(place, 0, sizes[axis] - 1))
            pixels = pixels // positions[axis]
        inside &= pixels < self.array.shape[0]
        index.insert(0, np.minimum(pixels, self.array.shape[0] - 1))
        box = np.zeros(self.local_block, self.array.dtype)
        channels = max(0, min(self.local_block[1], self.array.shape[-1] - channel))
        box[inside, :channels] = self.array[(*index, slice(channel, channel + channels))][inside]
        return box
