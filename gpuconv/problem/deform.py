"""One pass of a deformable convolution."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from .composed import OfConvolutions
from .conv import ConvProblem
from .sizes import dims, itemsize

__all__ = ["DeformProblem"]


@dataclass(frozen=True, slots=True)
class DeformProblem(OfConvolutions):
    """One pass of a convolution `conv` whose filter samples its input at positions that are moved by offsets.

    Arrays and results, by the kind of `conv`: ``"fprop"`` has ``x``, ``offset``, ``mask`` (None without `mask`), ``w``
    and ``bias``, and returns ``y``. ``"dgrad"`` has ``y`` (the gradient of the output), ``x``, ``offset``, ``mask`` and
    ``w``, and returns a tuple: one gradient for each name of `grads`, which are some of ``"x"``, ``"offset"`` and
    ``"mask"``, in that order. ``"wgrad"`` has ``y``, ``x``, ``offset`` and ``mask``, and returns the gradient of
    ``w``; with the bias of `conv` those of ``w`` and ``bias``.

    ``offset`` is N, (groups of offsets, taps, axes), O P Q; ``mask`` is N, (groups of offsets, taps), O P Q. Channels
    of ``x`` are split into `offset_groups` parts of equal size, one after the other, that share positions and mask.
    """

    op: str
    conv: ConvProblem
    offset_groups: int
    mask: bool
    grads: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[ConvProblem, ...]:
        """The convolution that it would be with offsets of 0 and a mask of 1."""
        return (self.conv,)

    @property
    def taps(self) -> int:
        """Taps of the filter."""
        return prod(self.conv.kernel)

    @property
    def segment(self) -> int:
        """Channels of ``x`` side by side that share a group and a group of offsets, wherever they begin; 1 of none."""
        conv = self.conv
        return max(gcd(conv.c // conv.groups, conv.c // self.offset_groups), 1)

    @property
    def offset_shape(self) -> tuple[int, ...]:
        """Shape of ``offset``, and of its gradient."""
        conv = self.conv
        return (conv.n, self.offset_groups * self.taps * conv.ndim, *conv.output_size)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Shape of ``mask``, and of its gradient."""
        return (self.conv.n, self.offset_groups * self.taps, *self.conv.output_size)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, by name; that of ``mask`` whether there is one or not."""
        conv = self.conv
        return {
            "x": conv.x_shape, "offset": self.offset_shape, "mask": self.mask_shape,
            "w": conv.w_shape, "y": conv.y_shape,
        }  # fmt: skip

    @property
    def flops(self) -> int:
        """Floating-point operations: those of the convolution, and those of each sample.

        There are N C (taps) (O P Q) samples. One is a sum over the 2^ndim corners around its position, each times its
        weight: 2 2^ndim operations, and 1 of the mask. A dgrad spends as many on each sample whose gradient goes to
        ``x``, as many again for the mask's, and ndim times as many for the offsets'.
        """
        conv = self.conv
        corners = 2 * 2**conv.ndim
        passes = 1
        if conv.kind == "dgrad":
            passes = ("x" in self.grads) + ("mask" in self.grads) + conv.ndim * ("offset" in self.grads)
        samples = conv.n * conv.c * self.taps * prod(conv.output_size)
        return conv.flops + samples * (passes * corners + self.mask)

    @property
    def min_bytes(self) -> int:
        """Bytes that must move at least: every operand read once, every result written once."""
        conv, shapes = self.conv, self.shapes
        moved = ["x", "offset", "w", "y", *(["mask"] if self.mask else []), *self.grads]
        return (sum(prod(shapes[name]) for name in moved) + conv.k * conv.bias) * itemsize(conv.dtype)

    @property
    def index64(self) -> bool:
        """Whether a tensor has more elements than a signed 32-bit index reaches."""
        return self.conv.index64 or prod(self.offset_shape) >= 2**31

    def describe(self) -> list[tuple[str, str]]:
        """Return rows (name, text) that say in words what the problem is."""
        rows = list((dict(self.conv.describe()) | {"operation": f"{self.op} ({self.kind})"}).items())
        deformed = [("offset", f"{dims(self.offset_shape)}, groups {self.offset_groups}")]
        if self.mask:
            deformed.append(("mask", dims(self.mask_shape)))
        if self.grads:
            deformed.append(("gradients of", ", ".join(self.grads)))
        at = [name for name, _ in rows].index("groups") + 1
        return rows[:at] + deformed + rows[at:]
