"""Problems that convolutions make up: a depthwise with a pointwise one, and one of 8-bit operands with scales."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .conv import ConvProblem
from .sizes import itemsize

__all__ = ["OfConvolutions", "ScaledProblem", "SeparableProblem"]


class OfConvolutions:
    """What a problem has that convolutions make up: the arguments are those of the first, the result of the last."""

    __slots__ = ()

    @property
    def steps(self) -> tuple[ConvProblem, ...]:
        """The convolutions, in order."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """The pass."""
        return self.steps[0].kind

    @property
    def n(self) -> int:
        """Images of the batch."""
        return self.steps[0].n

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return self.steps[0].ndim

    @property
    def dtype(self) -> str:
        """Type of the operands."""
        return self.steps[0].dtype

    @property
    def device(self) -> str:
        """Device of every array."""
        return self.steps[0].device

    @property
    def array(self) -> str:
        """Library of every array."""
        return self.steps[0].array

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.steps[-1].result_shape

    @property
    def result_format(self) -> str:
        """Memory format of the result."""
        return self.steps[-1].result_format

    @property
    def reduction_length(self) -> int:
        """Products summed into one element of the result, of the last."""
        return self.steps[-1].reduction_length

    @property
    def flops(self) -> int:
        """Those of all."""
        return sum(step.flops for step in self.steps)

    @property
    def index64(self) -> bool:
        """Whether a tensor has more elements than a signed 32-bit index reaches."""
        return any(step.index64 for step in self.steps)


@dataclass(frozen=True, slots=True)
class SeparableProblem(OfConvolutions):
    """A depthwise and then a pointwise convolution, in one call without gradients.

    `depthwise` and `pointwise` are the problems that the two are by themselves; what the first returns is the ``x`` of
    the second, and an operand or result of nothing else. Its arrays are ``x``, ``w`` and ``bias`` of the first,
    ``pointwise`` (the weight), ``pointwise_bias`` and ``residual`` of the second.
    """

    op: str
    depthwise: ConvProblem
    pointwise: ConvProblem

    @property
    def steps(self) -> tuple[ConvProblem, ConvProblem]:
        """The two problems that compute the same, in order."""
        return self.depthwise, self.pointwise

    @property
    def min_bytes(self) -> int:
        """Bytes that must move at least: those of both, but for the image between them."""
        between = prod(self.depthwise.y_shape) * itemsize(self.dtype)
        return self.depthwise.min_bytes + self.pointwise.min_bytes - 2 * between

    def describe(self) -> list[tuple[str, str]]:
        """Return rows (name, text) that say in words what the problem is."""
        first, second = (dict(step.describe()) for step in self.steps)
        second = {"between": first["epilogue"], "pointwise w": second["w (K C/G T R S)"], **second}
        names = ("between", "pointwise w", "y (N K O P Q)", "epilogue", "array")
        rows = {"operation": f"{self.op} ({self.kind})", **first} | {name: second[name] for name in names}
        return list(rows.items())


@dataclass(frozen=True, slots=True)
class ScaledProblem(OfConvolutions):
    """A forward convolution `conv` of 8-bit operands, each element times a scale.

    A scale is a ``"number"``, in the ``extra`` of the call by the scale's name; an ``"array"`` of one element, or
    ``"channels"``, one for each filter, among the call's arrays by that name.
    """

    op: str
    conv: ConvProblem
    out_dtype: str
    input_scale: str = "number"
    weight_scale: str = "number"
    output_scale: str | None = None
    bias_dtype: str | None = None

    @property
    def steps(self) -> tuple[ConvProblem, ...]:
        """The convolution, without scales."""
        return (self.conv,)

    @property
    def min_bytes(self) -> int:
        """Bytes that must move at least: every operand read once, the result written once."""
        conv = self.conv
        moved = prod(conv.x_shape) + prod(conv.w_shape) + prod(conv.y_shape) * itemsize(self.out_dtype)
        of_filter = (itemsize(self.bias_dtype) if self.bias_dtype else 0) + 4 * (self.weight_scale == "channels")
        return moved + conv.k * of_filter

    def describe(self) -> list[tuple[str, str]]:
        """Return rows (name, text) that say in words what the problem is."""
        scales = {"input": self.input_scale, "weight": self.weight_scale, "output": self.output_scale}
        given = ", ".join(f"{name} {kind}" for name, kind in scales.items() if kind)
        types = f"{self.dtype} to {self.out_dtype}, scales: {given}"
        return list((dict(self.conv.describe()) | {"dtype": types}).items())
