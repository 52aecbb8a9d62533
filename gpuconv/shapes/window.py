"""One axis of a layer that is asked about, and what an answer is made of: value, formula, numbers and source."""

from dataclasses import dataclass
from typing import Any, Final

from .axes import Size
from .conv import conv_output_size, conv_transpose_output_size
from .pool import pool_output_size

__all__ = ["Answer", "Window"]

_GUIDE: Final = 'Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285'
_CONV: Final = "o = (n + pad_lo + pad_hi - d (k - 1) - 1) // s + 1"
_TRANSPOSED: Final = "o = (n - 1) s - pad_lo - pad_hi + d (k - 1) + output_padding + 1"
_CEIL: Final = "o = ceil((n + pad_lo + pad_hi - d (k - 1) - 1) / s) + 1, less 1 if (o - 1) s >= n + pad_lo"

_KINDS: Final = ("conv", "transposed", "pool")


@dataclass(frozen=True, slots=True)
class Window:
    """How the windows of a convolution, transposed convolution or pooling lie along one axis.

    Attributes
    ----------
    kernel, stride, dilation : int
        At least 1.
    pad_lo, pad_hi : int
        At least 0; of a pooling at most half of the kernel, as in torch.
    kind : str
        ``"conv"``, ``"transposed"`` or ``"pool"``.
    output_padding : int
        Of a transposed convolution alone: at least 0 and, as in torch, smaller than either stride or dilation.
    ceil_mode : bool
        Of a pooling alone.

    Raises
    ------
    ValueError
        If a value breaks these rules.

    Examples
    --------
    >>> Window(5, stride=2, pad_lo=6, pad_hi=6, dilation=7).extent
    29
    """

    kernel: Size
    stride: Size = 1
    pad_lo: Size = 0
    pad_hi: Size = 0
    dilation: Size = 1
    kind: str = "conv"
    output_padding: Size = 0
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("pad_lo", 0), ("pad_hi", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, but got {self.kind!r}")
        most = max(self.stride, self.dilation) - 1
        if self.output_padding and self.kind != "transposed":
            raise ValueError("output_padding is of transposed convolutions alone")
        if not 0 <= self.output_padding <= most:
            raise ValueError(
                f"output_padding must be at least 0 and smaller than either stride or dilation (here at most {most}), "
                f"but got {self.output_padding}"
            )
        if self.ceil_mode and self.kind != "pool":
            raise ValueError("ceil_mode is of poolings alone")
        if self.kind == "pool" and max(self.pad_lo, self.pad_hi) > self.kernel // 2:
            raise ValueError(
                f"padding of a pooling must be at most half of the kernel, {self.kernel // 2} for a kernel of "
                f"{self.kernel}, but got {max(self.pad_lo, self.pad_hi)}: a window might see nothing else"
            )

    @property
    def extent(self) -> Size:
        """Distance from the first tap to the last, both counted, ``d (k - 1) + 1``."""
        return self.dilation * (self.kernel - 1) + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer along one axis, and where it comes from.

    Attributes
    ----------
    question : str
        What was asked, in words.
    value : int, (int, int) or range
        A size or an output padding; a padding ``(lo, hi)``; or all sizes that are an answer.
    formula, numbers : str
        The formula, and the same with the numbers of this question.
    source : str
        Where it stands.
    notes : tuple of str
        What else is worth knowing.
    output_padding : int or None
        What a padding of a transposed convolution needs beside it.

    Examples
    --------
    >>> from gpuconv.shapes import ask_padding
    >>> answer = ask_padding("divide", Window(3, stride=2, kind="transposed"))
    >>> answer.value, answer.output_padding, answer.numbers
    ((1, 1), 1, '1 + 1 - 1 = 3 - 2')
    """

    question: str
    value: Any
    formula: str
    numbers: str
    source: str
    notes: tuple[str, ...] = ()
    output_padding: Size | None = None

    def text(self) -> str:
        """The value in words: ``42``, ``1+2``, ``9 to 10`` or ``none``."""
        if isinstance(self.value, range):
            first, last = self.value.start, self.value.stop - 1
            return "none" if first > last else str(first) if first == last else f"{first} to {last}"
        return "+".join(map(str, self.value)) if isinstance(self.value, tuple) else str(self.value)

    def to_json(self) -> dict[str, Any]:
        """Plain data: a range is ``{"from": 9, "to": 10}``, a padding ``[lo, hi]``."""
        value = self.value
        if isinstance(value, range):
            value = {"from": value.start, "to": value.stop - 1} if value else None
        elif isinstance(value, tuple):
            value = list(value)
        found = {"question": self.question, "value": value, "formula": self.formula, "numbers": self.numbers}
        found |= {"source": self.source, "notes": list(self.notes)}
        return found | ({} if self.output_padding is None else {"output_padding": self.output_padding})

    def __str__(self) -> str:
        rows = [("formula", self.formula), ("here", self.numbers), ("source", self.source)]
        rows += [("note", note) for note in self.notes]
        head = self.text() if self.output_padding is None else f"{self.text()}, output_padding {self.output_padding}"
        return "\n".join([f"{self.question}: {head}", *(f"  {name.ljust(8)} {text}" for name, text in rows)])


def _name(window: Window) -> str:
    return {"conv": "convolution", "transposed": "transposed convolution", "pool": "pooling"}[window.kind]


def _source(window: Window) -> str:
    """Where the formula for the output size of a window stands."""
    if window.kind == "transposed":
        return f"{_GUIDE}, relationship 14; torch.nn.ConvTranspose2d, Shape"
    if window.kind == "pool":
        torch = "torch.nn.MaxPool2d, Shape" + ("; its ceil_mode" if window.ceil_mode else "")
        return f"{_GUIDE}, relationship 7; {torch}"
    number = 15 if window.dilation > 1 else 6
    return f"{_GUIDE}, relationship {number}; torch.nn.Conv2d, Shape"


def _formula(window: Window) -> str:
    return _TRANSPOSED if window.kind == "transposed" else _CEIL if window.ceil_mode else _CONV


def _output(size: Size, window: Window) -> Size:
    w = window
    if w.kind == "transposed":
        return conv_transpose_output_size(size, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, w.output_padding)
    if w.kind == "pool":
        return pool_output_size(size, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation, w.ceil_mode)
    return conv_output_size(size, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation)


def _numbers(size: Size, window: Window, output: Size) -> str:
    w = window
    taps = f"{w.dilation} * ({w.kernel} - 1)"
    if w.kind == "transposed":
        return f"({size} - 1) * {w.stride} - {w.pad_lo} - {w.pad_hi} + {taps} + {w.output_padding} + 1 = {output}"
    inner = f"{size} + {w.pad_lo} + {w.pad_hi} - {taps} - 1"
    if not w.ceil_mode:
        return f"({inner}) // {w.stride} + 1 = {output}"
    up = conv_output_size(size + w.stride - 1, w.kernel, w.stride, w.pad_lo, w.pad_hi, w.dilation)
    last = (up - 1) * w.stride
    less = f", less 1 as {last} >= {size} + {w.pad_lo}" if up != output else ""
    return f"ceil(({inner}) / {w.stride}) + 1 = {up}{less}"
