"""The question which padding a layer needs: by name, or for an output size that is wanted."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from .axes import Size
from .conv import conv_output_size
from .inverse import conv_padding_totals, conv_transpose_padding_total, split_padding
from .padding import (
    multiply_output_padding,
    pad_causal,
    pad_divide,
    pad_full,
    pad_half,
    pad_same,
    pad_same_upper,
    pad_valid,
)
from .pool import pool_output_size
from .questions import _positive, ask_output
from .window import _GUIDE, Answer, Window, _formula, _name, _numbers, _source

__all__ = ["PADDINGS", "ask_padding"]

PADDINGS: Final = ("valid", "same", "half", "full", "causal", "divide")
"""What `ask_padding` knows by name."""


def ask_padding(want: str | Size, window: Window, size: Size | None = None) -> Answer:
    """Answer: which padding makes a layer valid, same, half, full or causal, divides by the stride, or gives a size?

    Parameters
    ----------
    want
        One of `PADDINGS`, or the output size that is wanted. ``"divide"`` gives ``n / s`` outputs wherever the stride
        divides ``n``; of a transposed convolution, as ``"same"``, ``n * s`` outputs.
    window
        The layer; its own padding (and output padding) do not count.
    size
        The input size: needed for a wanted size, and for ``"same"`` with a stride.

    Returns
    -------
    Answer
        ``(lo, hi)``. Where no one number on both sides does, the note says so, and how the total is split.

    Raises
    ------
    ValueError
        If there is none, or it depends on a size that is not given; the message says what would do.

    Examples
    --------
    >>> ask_padding("same", Window(4)).value, ask_padding("same", Window(4)).notes[0]
    ((1, 2), 'no integer padding does: the total is 3; same_upper splits 3 as 1+2, same_lower as 2+1')
    >>> ask_padding(112, Window(7, 2), 224).value
    (3, 3)
    """
    if size is not None:
        _positive("size", size)
    if isinstance(want, int):
        _positive("wanted size", want)
        if size is None:
            raise ValueError(f"the padding that gives {want} depends on the input size: give it")
        return _for_size(want, window, size)
    if want not in PADDINGS:
        raise ValueError(f"want must be a size or one of {', '.join(PADDINGS)}, but got {want!r}")
    if window.kind == "transposed" and want in ("same", "divide"):
        return _checked(_multiply(want, window), window, size)
    return _checked(_NAMED[want](window, size), window, size)


def _answer(want: str, value: Any, formula: str, numbers: str, source: str, window: Window, *notes: str) -> Answer:
    """An answer about a padding by name; one that differs on the two sides is said to."""
    return Answer(f"padding {want} of a {_name(window)}", value, formula, numbers, source, notes)


def _valid(window: Window, size: Size | None) -> Answer:
    return _answer("valid", pad_valid(), "p = 0", "0", f"{_GUIDE}, relationship 5; torch.nn.Conv2d, padding", window)


def _same(window: Window, size: Size | None) -> Answer:
    w = window
    total = w.extent - 1
    if w.stride == 1:
        lo, hi = pad_same(w.kernel, w.dilation)
        source = f"torch.nn.Conv2d, padding='same'; {_GUIDE}, relationship 3"
        numbers = f"{w.dilation} * ({w.kernel} - 1) = {total}"
        formula = "pad_lo + pad_hi = d (k - 1), pad_lo the lower half"
        return _answer("same", (lo, hi), formula, numbers, source, w, *_split(lo, hi))
    if size is None:
        raise ValueError(
            f"with a stride of {w.stride} the padding that gives ceil(n / s) depends on the input size: give it. "
            "divide has one for every size that the stride divides"
        )
    lo, hi = pad_same_upper(size, w.kernel, w.stride, w.dilation)
    formula = "pad_lo + pad_hi = max((ceil(n / s) - 1) s + d (k - 1) + 1 - n, 0), pad_lo the lower half"
    steps = -(-size // w.stride) - 1
    numbers = f"max({steps} * {w.stride} + {w.extent} - {size}, 0) = {lo + hi}"
    note = "torch's padding='same' takes a stride of 1 alone; this is same_upper, with ceil(n / s) outputs"
    source = 'ONNX Conv, auto_pad="SAME_UPPER"'
    return _answer("same", (lo, hi), formula, numbers, source, w, *_split(lo, hi), note)


def _split(lo: Size, hi: Size, same: bool = True) -> tuple[str, ...]:
    """What to say where no one number on both sides does; `same` is about keeping or dividing the size."""
    if lo == hi:
        return ()
    total = lo + hi
    splits = (
        f"same_upper splits {total} as {lo}+{hi}, same_lower as {hi}+{lo}" if same else f"{lo}+{hi} or {hi}+{lo} does"
    )
    return (f"no integer padding does: the total is {total}; {splits}",)


def _half(window: Window, size: Size | None) -> Answer:
    w, extent = window, window.extent
    keeps = "keeps the size" if extent % 2 else "gives one more than the size, as the extent is even"
    source, numbers = f"{_GUIDE}, relationship 3", f"({w.dilation} * ({w.kernel} - 1) + 1) // 2 = {extent // 2}"
    note = f"at stride 1 it {keeps}"
    return _answer("half", pad_half(w.kernel, w.dilation), "p = (d (k - 1) + 1) // 2", numbers, source, w, note)


def _full(window: Window, size: Size | None) -> Answer:
    w = window
    source, numbers = f"{_GUIDE}, relationship 4", f"{w.dilation} * ({w.kernel} - 1) = {w.extent - 1}"
    return _answer("full", pad_full(w.kernel, w.dilation), "p = d (k - 1)", numbers, source, w)


def _causal(window: Window, size: Size | None) -> Answer:
    w = window
    source, numbers = (
        'van den Oord et al. 2016, "WaveNet", arXiv:1609.03499',
        f"{w.dilation} * ({w.kernel} - 1) = {w.extent - 1}",
    )
    note = "output i sees no input after i s"
    formula = "pad_lo = d (k - 1), pad_hi = 0"
    return _answer("causal", pad_causal(w.kernel, w.dilation), formula, numbers, source, w, note)


def _divide(window: Window, size: Size | None) -> Answer:
    w = window
    try:
        pad = pad_divide(w.kernel, w.stride, w.dilation)
    except ValueError:
        lo, hi = pad_same(w.kernel, w.dilation)
        raise ValueError(_split(lo, hi)[0]) from None
    formula = "p = max(ceil((d (k - 1) + 1 - s) / 2), 0)"
    numbers = f"max(ceil(({w.extent} - {w.stride}) / 2), 0) = {pad}"
    note = f"{w.stride} divides n: n / {w.stride} outputs"
    return _answer("divide", (pad, pad), formula, numbers, f"{_GUIDE}, relationship 15, solved for p", w, note)


_NAMED: Final[dict[str, Callable[[Window, Size | None], Answer]]] = {
    "valid": _valid, "same": _same, "half": _half, "full": _full, "causal": _causal, "divide": _divide,
}  # fmt: skip


def _multiply(want: str, window: Window) -> Answer:
    """The padding with which a transposed convolution has ``n s`` outputs: symmetric for ``"divide"``."""
    w = window
    formula = "pad_lo + pad_hi - output_padding = d (k - 1) + 1 - s"
    try:
        pad = pad_divide(w.kernel, w.stride, w.dilation)
        lo, hi = pad, pad
    except ValueError:
        lo, hi = split_padding(w.extent - w.stride)
        if want == "divide":
            raise ValueError(_split(lo, hi)[0]) from None
    extra = multiply_output_padding(w.kernel, w.stride, lo, hi, w.dilation)
    numbers = f"{lo} + {hi} - {extra} = {w.extent} - {w.stride}"
    source, note = f"{_GUIDE}, relationship 14, with n s outputs", f"n * {w.stride} outputs for every n"
    question = f"padding {want} of a {_name(window)}"
    return Answer(question, (lo, hi), formula, numbers, source, (*_split(lo, hi), note), extra)


def _for_size(output: Size, window: Window, size: Size) -> Answer:
    """The padding with which `size` has `output`."""
    w, question = window, f"padding of a {_name(window)} of {size} with {output} outputs"
    if w.kind == "pool":
        return _for_pool(output, window, size)
    source = f"{_source(window)}, solved for the padding"
    taps = f"{w.dilation} * ({w.kernel} - 1)"
    if w.kind == "transposed":
        total = conv_transpose_padding_total(size, output, w.kernel, w.stride, w.dilation)
        pads, formula = split_padding(total), "pad_lo + pad_hi = (n - 1) s + d (k - 1) + 1 + output_padding - o"
        numbers = f"({size} - 1) * {w.stride} + {taps} + 1 + 0 - {output} = {total}"
        return Answer(question, pads, formula, numbers, source, _split(*pads, same=False))
    totals = conv_padding_totals(size, output, w.kernel, w.stride, w.dilation)
    if not totals:
        without = conv_output_size(size, w.kernel, w.stride, 0, 0, w.dilation)
        raise ValueError(
            f"no padding gives {output}: without any there are {without} outputs already, and padding adds to them; "
            "a larger stride, kernel or dilation has fewer"
        )
    even = totals.start + totals.start % 2
    pads = split_padding(even if even in totals else totals.start)
    formula = "(o - 1) s + d (k - 1) + 1 - n <= pad_lo + pad_hi < o s + d (k - 1) + 1 - n"
    numbers = f"{totals.start} <= pad_lo + pad_hi < {totals.stop}"
    return Answer(question, pads, formula, numbers, source, _split(*pads, same=False))


def _for_pool(output: Size, window: Window, size: Size) -> Answer:
    """The padding with which a pooling has `output`: of those that torch takes, from 0 to half of the kernel."""
    w, most = window, window.kernel // 2
    found = {p: pool_output_size(size, w.kernel, w.stride, p, p, w.dilation, w.ceil_mode) for p in range(most + 1)}
    pad = next((p for p, size in found.items() if size == output), None)
    if pad is None:
        listed = ", ".join(f"{p} gives {outputs}" for p, outputs in found.items())
        raise ValueError(f"no padding that pooling accepts gives {output}: {listed}")
    like = Window(w.kernel, w.stride, pad, pad, w.dilation, "pool", 0, w.ceil_mode)
    question = f"padding of a pooling of {size} with {output} outputs"
    return Answer(question, (pad, pad), _formula(w), _numbers(size, like, output), _source(w))


def _checked(answer: Answer, window: Window, size: Size | None) -> Answer:
    """The answer with what it gives for `size`; refused where a pooling does not take such a padding."""
    w, (lo, hi) = window, answer.value
    extra = answer.output_padding or 0
    try:
        padded = Window(w.kernel, w.stride, lo, hi, w.dilation, w.kind, extra, w.ceil_mode)
    except ValueError as error:
        raise ValueError(f"padding {answer.text()} would be {answer.question.split()[1]}, but {error}") from None
    if size is None:
        return answer
    given = ask_output(size, padded)
    notes = (*answer.notes, f"an input of {size} has {given.value} outputs: {given.numbers}")
    return replace(answer, notes=notes)
