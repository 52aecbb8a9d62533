"""One pass of a convolution."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import prod

from .sizes import dims, itemsize

__all__ = ["ConvProblem"]

_RESULTS = {"fprop": "y", "dgrad": "x", "wgrad": "w", "transposed": "x"}


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """One pass of a convolution, in 1, 2 or 3 spatial dimensions.

    `kind` is ``"fprop"`` (x, w -> y), ``"dgrad"`` (y, w -> x), ``"wgrad"`` (x, y -> w) or ``"transposed"`` (dgrad as an
    operation of its own, with bias and epilogue). The epilogue of fprop and transposed is
    ``activation((conv + bias) * scale + shift + residual)``, with bias, scale and shift per channel. A ``wgrad`` with
    bias has two results, the gradients of the weight and of the bias: the sum of ``y`` over images and positions.

    `rounding` is ``"torch"`` where a 16-bit result is rounded after the convolution and after each step of the
    epilogue, and ``"fused"`` where it is rounded once: always so of other types and without an epilogue.
    """

    op: str
    kind: str
    n: int
    c: int
    k: int
    groups: int
    input_size: tuple[int, ...]
    kernel: tuple[int, ...]
    output_size: tuple[int, ...]
    stride: tuple[int, ...]
    pad_lo: tuple[int, ...]
    pad_hi: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    dtype: str
    device: str
    array: str
    x_format: str
    w_format: str
    y_format: str
    bias: bool = False
    activation: str | None = None
    residual: bool = False
    scale: bool = False
    shift: bool = False
    precision: str = "ieee"
    rounding: str = "fused"
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Problems are keys of caches on the path of every call, and most of the cost of a look-up is this number.
        object.__setattr__(self, "_hash", hash(tuple([getattr(self, f.name) for f in fields(self) if f.compare])))

    def __hash__(self) -> int:
        return self._hash

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of ``x``: N, C, D H W."""
        return (self.n, self.c, *self.input_size)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of ``w``: K, C/G, T R S."""
        return (self.k, self.c // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of ``y``: N, K, O P Q."""
        return (self.n, self.k, *self.output_size)

    @property
    def result(self) -> str:
        """Which of ``x``, ``w`` and ``y`` this pass computes."""
        return _RESULTS[self.kind]

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return {"y": self.y_shape, "x": self.x_shape, "w": self.w_shape}[self.result]

    @property
    def result_format(self) -> str:
        """Memory format of the result."""
        return {"y": self.y_format, "x": self.x_format, "w": self.w_format}[self.result]

    @property
    def reduction_length(self) -> int:
        """Largest number of products summed into one element of the result."""
        taps = prod(self.kernel)
        if self.kind == "fprop":
            return taps * (self.c // self.groups)
        if self.kind == "wgrad":
            return self.n * prod(self.output_size)
        return taps * (self.k // self.groups)

    @property
    def finish(self) -> str | None:
        """What kernels are compiled for beside the operands of the epilogue: its activation, by name.

        In front of it, or alone, stands the type that every step is rounded to, if any: ``"bfloat16 relu"``.
        """
        if self.rounding == "fused":
            return self.activation
        return f"{self.dtype} {self.activation}" if self.activation else self.dtype

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiplication of the dense definition (taps in the padding included)."""
        return 2 * self.n * self.k * prod(self.output_size) * (self.c // self.groups) * prod(self.kernel)

    @property
    def min_bytes(self) -> int:
        """Bytes that must move at least: every operand read once, the result written once."""
        elements = prod(self.x_shape) + prod(self.w_shape) + prod(self.y_shape)
        channels = self.k if self.kind in ("fprop", "wgrad") else self.c
        elements += channels * (self.bias + self.scale + self.shift) + (prod(self.result_shape) if self.residual else 0)
        return elements * itemsize(self.dtype)

    @property
    def index64(self) -> bool:
        """Whether a tensor of the problem has more elements than a signed 32-bit index reaches."""
        return max(prod(self.x_shape), prod(self.w_shape), prod(self.y_shape)) >= 2**31

    def describe(self) -> list[tuple[str, str]]:
        """Return rows (name, text) that say in words what the problem is."""
        extras = [name for name in ("bias", "scale", "shift", "residual") if getattr(self, name)]
        if self.activation:
            extras.append(self.activation)
        if self.rounding == "torch":
            extras.append("rounded after each step")
        pads = ", ".join(f"{lo}+{hi}" for lo, hi in zip(self.pad_lo, self.pad_hi, strict=True))
        return [
            ("operation", f"{self.op} ({self.kind})"),
            ("x (N C D H W)", f"{dims(self.x_shape)} {self.x_format}"),
            ("w (K C/G T R S)", f"{dims(self.w_shape)} {self.w_format}"),
            ("y (N K O P Q)", f"{dims(self.y_shape)} {self.y_format}"),
            ("stride", dims(self.stride)),
            ("padding lo+hi", f"{pads} ({self.padding_mode})"),
            ("dilation", dims(self.dilation)),
            ("groups", str(self.groups)),
            ("dtype", f"{self.dtype}, precision {self.precision}"),
            ("epilogue", ", ".join(extras) or "none"),
            ("array", f"{self.array} on {self.device}"),
        ]
