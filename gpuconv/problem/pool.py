"""One pooling call."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import prod

from .sizes import dims, itemsize, offset_dtype

__all__ = ["PoolProblem"]


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
            ("x (N C D H W)", f"{dims(self.x_shape)} {self.x_format}"),
            ("y (N C O P Q)", f"{dims(self.y_shape)} {self.y_format}"),
            ("window", dims(self.kernel)),
            ("stride", dims(self.stride)),
            ("padding lo+hi", pads),
            ("dilation", dims(self.dilation)),
            ("dtype", self.dtype),
            ("array", f"{self.array} on {self.device}"),
        ]
        if self.pool == "lp":
            rows.append(("norm", f"{self.norm_type:g}"))
        return rows
