"""Launch a kernel so that its mistakes show: poisoned outputs, guard bands, and programs in other orders."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from triton.runtime import interpreter

GUARD = 8192
"""Elements of the band on each side of a tensor: more than a tile of 16 channel planes of the cases reaches."""

SENTINEL = 77.0
"""What the bands around an output hold; a value that a kernel has no reason to write there."""

ORDERS = ("forward", "reversed", "shuffled")


@dataclass
class Guarded:
    """A tensor inside a larger buffer whose other elements a kernel must not use (inputs) or change (all)."""

    tensor: torch.Tensor
    buffer: torch.Tensor
    before: torch.Tensor
    covered: torch.Tensor

    def check(self, name: str, written: bool) -> None:
        """Assert that the bands, and for an input the tensor as well, are bit for bit what they were."""
        same = _bits(self.buffer) == _bits(self.before)
        if written:
            same = same | self.covered
        assert bool(same.all()), (
            f"{name}: the kernel wrote outside of its tensor" if written else f"{name}: input changed"
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(width)


def poison(dtype: torch.dtype) -> float | int:
    """Return a value that shows where a kernel reads what it must not: NaN, or the largest integer (bits of NaN)."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))


def _place(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, fill: float) -> Guarded:
    extent = _extent(shape, strides)
    buffer = torch.full((extent + 2 * GUARD,), fill, dtype=dtype)
    tensor = buffer.as_strided(tuple(shape), tuple(strides), GUARD)
    covered = torch.zeros(len(buffer), dtype=torch.bool)
    covered.as_strided(tuple(shape), tuple(strides), GUARD).fill_(True)
    return Guarded(tensor, buffer, buffer, covered)


def guard_input(values: torch.Tensor) -> Guarded:
    """Copy `values`, strides included, to where everything around and between its elements is NaN."""
    placed = _place(values.shape, values.stride(), values.dtype, poison(values.dtype))
    placed.tensor.copy_(values)
    placed.before = placed.buffer.clone()
    return placed


def guard_output(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Guarded:
    """Allocate an output full of NaN between bands of the sentinel."""
    placed = _place(shape, strides, dtype, SENTINEL)
    placed.tensor.fill_(poison(dtype))
    placed.before = placed.buffer.clone()
    return placed


@contextmanager
def program_order(order: str) -> Iterator[None]:
    """Run the programs of every launch forward, reversed, or shuffled (with a fixed seed)."""
    builder = interpreter.interpreter_builder
    place = type(builder).set_grid_idx
    permutations: dict[tuple[int, ...], list[int]] = {}

    def permuted(x: int, y: int, z: int) -> None:
        _, height, depth = grid = tuple(builder.grid_dim)
        if grid not in permutations:
            ids = list(range(grid[0] * height * depth))
            if order == "shuffled":
                random.Random(0).shuffle(ids)
            permutations[grid] = ids[::-1] if order == "reversed" else ids
        program = permutations[grid][(x * height + y) * depth + z]
        place(builder, program // (height * depth), program // depth % height, program % depth)

    builder.set_grid_idx = permuted
    try:
        yield
    finally:
        del builder.set_grid_idx
