"""Problems: frozen, hashable descriptions of one call, and the call itself.

Axis letters never change meaning between passes. For a convolution, input ``x`` is ``N C D H W``, filter ``w`` is
``K C/G T R S`` and output ``y`` is ``N K O P Q``; 1-D uses the last letter of each, 2-D the last two. A transposed
convolution is described by the letters of the convolution whose data gradient it is: its argument is ``y`` and its
result is ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any

from .arrays import ArrayKind

__all__ = [
    "Call",
    "ConvProblem",
    "PoolProblem",
    "Prepared",
    "Problem",
    "ScaledProblem",
    "SeparableProblem",
    "itemsize",
    "offset_dtype",
    "placed",
    "steps_of",
]

_ITEMSIZE = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4, "complex32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8,
    "complex128": 16,
}  # fmt: skip

_RESULTS = {"fprop": "y", "dgrad": "x", "wgrad": "w", "transposed": "x"}


def itemsize(dtype: str) -> int:
    """Return the bytes of one element of `dtype`."""
    return _ITEMSIZE[dtype]


def offset_dtype(taps: int) -> str:
    """Return the smallest signed integer type that holds every tap of a window of `taps` elements."""
    return "int8" if taps <= 2**7 else "int16" if taps <= 2**15 else "int32"


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
            ("x (N C D H W)", f"{_dims(self.x_shape)} {self.x_format}"),
            ("w (K C/G T R S)", f"{_dims(self.w_shape)} {self.w_format}"),
            ("y (N K O P Q)", f"{_dims(self.y_shape)} {self.y_format}"),
            ("stride", _dims(self.stride)),
            ("padding lo+hi", f"{pads} ({self.padding_mode})"),
            ("dilation", _dims(self.dilation)),
            ("groups", str(self.groups)),
            ("dtype", f"{self.dtype}, precision {self.precision}"),
            ("epilogue", ", ".join(extras) or "none"),
            ("array", f"{self.array} on {self.device}"),
        ]


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """One pooling call, forward (`kind` ``"fprop"``) or backward (``"bwd"``), in 1, 2 or 3 spatial dimensions.

    `pool` is ``"max"``, ``"avg"``, ``"lp"``, ``"adaptive_avg"``, ``"adaptive_max"``, ``"fractional_max"``,
    ``"max_unpool"``, ``"unfold"`` or ``"fold"``. Adaptive and fractional pools have windows of their own, so `stride`,
    `pad_lo`, `pad_hi` and `dilation` are neutral there; an adaptive pool's `kernel` is its largest window, for costs
    alone. For ``max_unpool`` `input_size` is the small side and `output_size` the large one; the ``x`` of ``fold`` is
    its result.

    Indices that go in or out are torch's, int64 positions in the input's plane, or with `offsets` small integers: the
    tap ``(t R + r) S + s`` of the window, in `offset_dtype`.
    """

    op: str
    pool: str
    kind: str
    n: int
    c: int
    input_size: tuple[int, ...]
    kernel: tuple[int, ...]
    output_size: tuple[int, ...]
    stride: tuple[int, ...]
    pad_lo: tuple[int, ...]
    pad_hi: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    device: str
    array: str
    x_format: str
    y_format: str
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None
    norm_type: float = 0.0
    return_indices: bool = False
    offsets: bool = False
    _hash: int | None = field(default=None, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        # Kept as that of a ConvProblem, but not computed before it is asked for: in a trace sizes have no hash.
        found = self._hash
        if found is None:
            found = hash(tuple([getattr(self, f.name) for f in fields(self) if f.compare]))
            object.__setattr__(self, "_hash", found)
        return found

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions."""
        return len(self.kernel)

    @property
    def offset_dtype(self) -> str:
        """Smallest signed integer that holds every tap of a window."""
        return offset_dtype(prod(self.kernel))

    @property
    def index_dtype(self) -> str:
        """Type of the indices that go in or out."""
        return self.offset_dtype if self.offsets else "int64"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of ``x``: N, C, D H W."""
        return (self.n, self.c, *self.input_size)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of ``y``: N, C, O P Q."""
        return (self.n, self.c, *self.output_size)

    @property
    def y_elements(self) -> int:
        """Elements of ``y``: with unfold and fold each of its places holds a window."""
        return prod(self.y_shape) * (prod(self.kernel) if self.pool in ("unfold", "fold") else 1)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the result: ``y`` forward, ``x`` backward."""
        return self.y_shape if self.kind == "fprop" else self.x_shape

    @property
    def result_format(self) -> str:
        """Memory format of the result."""
        return self.y_format if self.kind == "fprop" else self.x_format

    @property
    def reduction_length(self) -> int:
        """Elements of one window."""
        return prod(self.kernel)

    @property
    def flops(self) -> int:
        """One operation per element of each window (taps in the padding included)."""
        return prod(self.y_shape) * prod(self.kernel)

    @property
    def min_bytes(self) -> int:
        """Bytes that must move at least: the input read once, the result (and its indices) written once."""
        moved = (prod(self.x_shape) + self.y_elements) * itemsize(self.dtype)
        return moved + (itemsize(self.index_dtype) * prod(self.y_shape) if self.return_indices else 0)

    @property
    def index64(self) -> bool:
        """Whether a tensor of the problem has more elements than a signed 32-bit index reaches."""
        return max(prod(self.x_shape), self.y_elements) >= 2**31

    def describe(self) -> list[tuple[str, str]]:
        """Return rows (name, text) that say in words what the problem is."""
        pads = ", ".join(f"{lo}+{hi}" for lo, hi in zip(self.pad_lo, self.pad_hi, strict=True))
        rows = [
            ("operation", f"{self.op} ({self.pool}, {self.kind})"),
            ("x (N C D H W)", f"{_dims(self.x_shape)} {self.x_format}"),
            ("y (N C O P Q)", f"{_dims(self.y_shape)} {self.y_format}"),
            ("window", _dims(self.kernel)),
            ("stride", _dims(self.stride)),
            ("padding lo+hi", pads),
            ("dilation", _dims(self.dilation)),
            ("dtype", self.dtype),
            ("array", f"{self.array} on {self.device}"),
        ]
        if self.pool == "lp":
            rows.append(("norm", f"{self.norm_type:g}"))
        return rows


class _OfConvolutions:
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
class SeparableProblem(_OfConvolutions):
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
class ScaledProblem(_OfConvolutions):
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


Problem = ConvProblem | PoolProblem | SeparableProblem | ScaledProblem


def steps_of(problem: Problem) -> tuple[ConvProblem | PoolProblem | ScaledProblem, ...]:
    """Return the problems that compute the same as one that several make up; another alone."""
    return problem.steps if isinstance(problem, SeparableProblem) else (problem,)


def placed(problem: Problem, **where: str) -> Problem:
    """Return `problem` with another ``device`` or ``array``."""
    if isinstance(problem, SeparableProblem):
        first, second = (replace(step, **where) for step in problem.steps)  # type: ignore[arg-type]
        return SeparableProblem(problem.op, first, second)
    if isinstance(problem, ScaledProblem):
        return replace(problem, conv=replace(problem.conv, **where))  # type: ignore[arg-type]
    return replace(problem, **where)  # type: ignore[arg-type]


@dataclass(slots=True)
class Prepared:
    """What the plan cache keeps of a call: all but its arrays.

    `plan` is put in by the dispatcher when the call runs first, `memo` is for the plan's solver: what it derives from
    strides, for example. `replay` repeats the launches of the first run on the addresses of other arrays
    (:data:`gpuconv.launcher.record.Replay`); False where that is impossible. `used` orders calls by their last use.
    """

    problem: Problem
    kind: ArrayKind
    unbatched: bool
    backend: str
    plan: Any = None
    memo: dict[str, Any] = field(default_factory=dict)
    replay: Any = None
    used: int = 0


@dataclass(slots=True)
class Call:
    """One call on its way: the problem, its arrays (with a batch axis, by name) and how to hand the result back.

    Names of arrays: ``x``, ``w``, ``y`` (the gradient of y where a backward pass reads it), ``bias``, ``residual``,
    ``scale``, ``shift``, ``indices``, ``samples``; those of other problems are theirs to say.
    """

    problem: Problem
    arrays: Mapping[str, Any]
    kind: ArrayKind
    unbatched: bool = False
    backend: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    prepared: Prepared | None = None


def _dims(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)
