"""``gpuconv shape``: sizes and paddings with the formula behind them; :mod:`gpuconv.shapes` answers, this prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..shapes import (
    PADDINGS,
    Answer,
    Window,
    ask_input,
    ask_output,
    ask_output_padding,
    ask_padding,
    pad_same_lower,
    pad_same_upper,
)
from .explain import parse_value

__all__ = ["shape_command"]

_WORDS = (*PADDINGS, "same_upper", "same_lower")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options say, each value as it was read: None, a number, a word, or one of them per axis."""

    size: Any
    kernel: Any
    stride: Any
    padding: Any
    dilation: Any
    output_padding: Any
    want: Any
    kind: str
    ceil_mode: bool

    @property
    def axes(self) -> int:
        """The axes that the options are about: all that list values list as many."""
        lengths = {name: len(value) for name, value in self._values().items() if isinstance(value, tuple)}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"--{name.replace('_', '-')} has {count}" for name, count in lengths.items())
            raise ValueError(f"options must have one value, or one for each axis, but {listed}")
        return max(lengths.values(), default=1)

    def _values(self) -> dict[str, Any]:
        names = ("size", "kernel", "stride", "padding", "dilation", "output_padding", "want")
        return {name: getattr(self, name) for name in names}

    def of(self, name: str, axis: int) -> Any:
        """Return the value of an option for an axis."""
        value = getattr(self, name)
        return value[axis] if isinstance(value, tuple) else value


def _read(option: str, text: str | None, words: tuple[str, ...] = (), pairs: bool = False) -> Any:
    """Read a number, one per axis (``28,28`` or ``28x28``), pairs where they may be, or a word of `words`."""
    if text is None or text in words:
        return text
    value = parse_value(text.replace("x", ","))
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) is not int and not (pairs and isinstance(item, tuple) and list(map(type, item)) == [int, int]):
            wanted = " or ".join(
                ["a number such as 28, or one for each axis such as 28,28", *(["pairs lo:hi"] if pairs else [])]
            )
            listed = f", or one of {', '.join(words)}" if words else ""
            raise ValueError(f"--{option} must be {wanted}{listed}; but got {text!r}")
    return value


def _padding(asked: _Asked, axis: int, size: int | None, window: Window) -> tuple[int, int]:
    """Return the padding of an axis, of a number, a pair or a word."""
    value = asked.of("padding", axis)
    if value in ("same_upper", "same_lower"):
        if size is None:
            raise ValueError(f"--padding {value} depends on the input size: give --size")
        pads = pad_same_upper if value == "same_upper" else pad_same_lower
        return pads(size, window.kernel, window.stride, window.dilation)
    if isinstance(value, str):
        lo, hi = ask_padding(value, window, size).value
        return lo, hi
    return value if isinstance(value, tuple) else (value or 0, value or 0)


def _answer(asked: _Asked, axis: int) -> Answer:
    """Put the question of one axis."""
    size, want, kernel = (asked.of(name, axis) for name in ("size", "want", "kernel"))
    stride = asked.of("stride", axis) or (kernel if asked.kind == "pool" else 1)  # torch's default of each
    layer: dict[str, Any] = {"kernel": kernel, "stride": stride, "dilation": asked.of("dilation", axis)}
    layer |= {"kind": asked.kind, "ceil_mode": asked.ceil_mode}
    bare = Window(**layer)
    if isinstance(want, str) or (want is not None and size is not None and asked.kind != "transposed"):
        if asked.padding is not None:
            raise ValueError("--want asks for the padding here: leave --padding out")
        return ask_padding(want, bare, size)
    lo, hi = _padding(asked, axis, size, bare)
    window = Window(**layer, pad_lo=lo, pad_hi=hi, output_padding=asked.of("output_padding", axis) or 0)
    if want is None:
        if size is None:
            raise ValueError("give --size for an output size, or --want for input sizes or a padding")
        return ask_output(size, window)
    if size is None:
        return ask_input(want, window)
    if asked.output_padding is not None:
        raise ValueError("--want with --size asks for the output padding: leave --output-padding out")
    return ask_output_padding(size, want, window)


def _text(answers: list[Answer]) -> str:
    """Return the values in one line, and below them how they come about: once where all axes are the same."""
    separator = "x" if all(isinstance(answer.value, int) for answer in answers) else ", "
    head = separator.join(answer.text() for answer in answers)
    return "\n".join([head, *map(str, dict.fromkeys(answers))])


def _json(answers: list[Answer]) -> str:
    axes = [answer.to_json() for answer in answers]
    values = [axis["value"] for axis in axes]
    return json.dumps({"answer": values[0] if len(values) == 1 else values, "axes": axes}, indent=2)


def shape_command(
    kernel: Annotated[str, typer.Option(help="Kernel size; as every size one number, or one per axis: 3,3 or 3x3.")],
    size: Annotated[str | None, typer.Option(help="Input size, for example 28,28 or 28x28.")] = None,
    stride: Annotated[str | None, typer.Option(help="Default: 1, of a pooling the kernel.")] = None,
    padding: Annotated[
        str | None, typer.Option(help=f"1, or 1,2 per axis, or pairs lo:hi, or one of {', '.join(_WORDS)}.")
    ] = None,
    dilation: Annotated[str, typer.Option(help="Dilation.")] = "1",
    transposed: Annotated[bool, typer.Option("--transposed", help="Of a transposed convolution.")] = False,
    output_padding: Annotated[str | None, typer.Option(help="Of a transposed convolution.")] = None,
    pool: Annotated[bool, typer.Option("--pool", help="Of a pooling.")] = False,
    ceil_mode: Annotated[bool, typer.Option("--ceil-mode", help="Of a pooling: round up.")] = False,
    want: Annotated[
        str | None,
        typer.Option(
            help=f"The padding for one of {', '.join(PADDINGS)}; or for a wanted output size (of a transposed "
            "convolution the output padding); without --size the input sizes that have that output."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Answer a question about sizes: output, input or padding, with the formula and where it stands.

    gpuconv shape --size 100 --kernel 5 --padding 6 --dilation 7 --stride 2

    gpuconv shape --kernel 3 --stride 2 --padding 1 --want 14

    gpuconv shape --size 14 --kernel 3 --stride 2 --padding 1 --transposed --want 28
    """
    try:
        if transposed and pool:
            raise ValueError("--transposed and --pool exclude each other")
        asked = _Asked(
            _read("size", size), _read("kernel", kernel), _read("stride", stride),
            _read("padding", padding, _WORDS, pairs=True), _read("dilation", dilation),
            _read("output-padding", output_padding), _read("want", want, PADDINGS),
            "transposed" if transposed else "pool" if pool else "conv", ceil_mode,
        )  # fmt: skip
        answers = [_answer(asked, axis) for axis in range(asked.axes)]
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(_json(answers) if as_json else _text(answers))
