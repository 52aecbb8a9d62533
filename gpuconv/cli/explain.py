"""``gpuconv explain``: one subcommand per public function, with an option for each of its parameters.

Array parameters are given by their shapes (or as flags where the shape follows from the others). Values are handed on
as they are read, so that the library's own checks and messages are what the user sees.
"""

from __future__ import annotations

import inspect
import json
import mmap
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from .. import functional
from ..arrays import channels_last_strides, contiguous_strides
from ..config import BACKENDS, logger
from ..costs import gpu_names
from ..dispatch import Explanation, explain
from ..normalize import ACTIVATIONS, CONV_DTYPES, PADDING_MODES, PRECISIONS

__all__ = ["explain_app", "new_console", "parse_shape", "parse_value"]

explain_app = typer.Typer(
    help="Say which solver a call would run and why, without running it. Needs no GPU and commits no memory.",
    no_args_is_help=True,
)

_WEIGHTS = ("weight", "depthwise_weight", "pointwise_weight", "column_weight", "row_weight")
_STATES = ("state", "initial_state")
_NUMBERS = {"indices": "int64", "seq_idx": "int32", "cache_seqlens": "int32", "conv_state_indices": "int32"}
_SHAPED = ("input", "x", "grad_output", "offset", "mask", *_WEIGHTS, *_STATES, *_NUMBERS)
_FLAGGED = ("bias", "residual", "scale", "shift", *(name.replace("weight", "bias") for name in _WEIGHTS[1:]))
_HIDDEN = ("_random_samples",)
_SCALES = ("input_scale", "weight_scale", "output_scale")

_HELP = {
    "input": "Shape, for example 8,64,56,56.",
    "weight": "Shape, for example 128,64,3,3.",
    "grad_output": "Shape of the gradient of the result.",
    "indices": "Shape of the indices.",
    "offset": "Shape of the offsets: axes times taps times groups for channels, for example 8,18,56,56.",
    "mask": "Shape of the mask: taps times groups for channels, for example 8,9,56,56.",
    "x": "Shape, for example 8,256,1024.",
    "depthwise_weight": "Shape, for example 64,1,3,3.",
    "pointwise_weight": "Shape, for example 128,64,1,1.",
    "column_weight": "Shape, for example 64,1,5,1.",
    "row_weight": "Shape, for example 64,1,1,5.",
    "state": "Shape of the state.",
    "initial_state": "Shape of the state.",
    "seq_idx": "Shape of the numbers of packed sequences.",
    "cache_seqlens": "Shape of the numbers of elements written to circular states.",
    "conv_state_indices": "Shape of the indices of entries of the state.",
    "between": f"After the first step: one of {', '.join(ACTIVATIONS)}.",
    "input_size": "Shape of the convolution's input.",
    "weight_size": "Shape of the convolution's weight.",
    "padding": "1, or one per axis 1,2, or pairs lo:hi 1:0,2:1, or a word: same, same_upper, same_lower, causal.",
    "output_size": "Size of the result; none keeps an adaptive pool's axis.",
    "backend": f"Force a backend ({', '.join(BACKENDS)}) or a solver id.",
    "activation": f"One of {', '.join(ACTIVATIONS)}.",
    "padding_mode": f"One of {', '.join(PADDING_MODES)}.",
    "precision": f"Products of float32 on a GPU: one of {', '.join(PRECISIONS)}.",
    "rounding": "Of 16-bit results with an epilogue: fused (once) or torch (after each step).",
    "bias": "With a bias.",
    "residual": "With a residual, added before the activation.",
    "scale": "With a scale per channel.",
    "input_scale": "A number, or the word array: one element.",
    "weight_scale": "A number, or a word: array (one element), channels (one per filter).",
    "output_scale": "Of an 8-bit result: a number, or the word array.",
    "out_dtype": "Type of the result of 8-bit operands (--dtype int8 or float8_e4m3fn).",
    "shift": "With a shift per channel.",
    **{name: "With that bias." for name in _FLAGGED[4:]},
}


_PIPE_WIDTH = 100
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # named from Python 3.13 on


def new_console() -> Console:
    """Return a console for the standard output of this moment; a pipe gets a fixed width."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)


class _OptionError(ValueError):
    """An option that could not be read."""


def parse_shape(option: str, text: str) -> tuple[int, ...]:
    """Read ``8,64,56,56`` or ``8x64x56x56``."""
    if not re.fullmatch(r"\d+([,x]\d+)*", text):
        raise _OptionError(f"--{option} must be a shape such as 8,64,56,56, but got {text!r}")
    return tuple(int(size) for size in re.split("[,x]", text))


def _number(text: str) -> Any:
    word = text.strip()
    if word.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def parse_value(text: str) -> Any:
    """Read a number, several (``1,2``), pairs (``1:0,2:1``), or leave a word as it is."""
    if ":" in text:
        return tuple(tuple(_number(part) for part in pair.split(":")) for pair in text.split(","))
    if "," in text:
        return tuple(_number(part) for part in text.split(","))
    return _number(text)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the command's parameter for one of the function's."""
    name, required = parameter.name, parameter.default is inspect.Parameter.empty
    kind: Any = str
    default: Any = ... if required else None
    names = [f"--{_dashed(name)}"]
    if name in _FLAGGED:
        kind, default = bool, False
    elif parameter.annotation in ("bool", bool):
        kind, names = bool, [f"--{_dashed(name)}/--no-{_dashed(name)}"]
    help = _HELP.get(name, "")
    if not required and name not in _FLAGGED and parameter.default is not None:
        help = f"{help} Default: {parameter.default}.".strip()
    option = typer.Option(*names, help=help, show_default=False)
    annotation: Any = Annotated[kind, option] if default is not None else Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_OF_TORCH = ("bfloat16", "complex32", "float8_e4m3fn")
_DTYPES = (*CONV_DTYPES, "complex32", "bool", "float8_e4m3fn")

_DTYPE = Annotated[str, typer.Option(help=f"Element type: {', '.join(_DTYPES)}.")]
_DEVICE = Annotated[str, typer.Option(help="cpu, or a CUDA device such as cuda or cuda:1.")]
_ARRAY = Annotated[str, typer.Option(help="numpy or torch; auto takes torch for CUDA and bfloat16, numpy otherwise.")]
_LAST = Annotated[bool, typer.Option("--channels-last", help="All arrays with channels innermost (NHWC).")]
_GPU = Annotated[str | None, typer.Option(help=f"A GPU by name, which need not be here: {', '.join(gpu_names())}.")]
_ALL = Annotated[bool, typer.Option("--all", help="List the solvers of other operations and passes too.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
_COMMON = {
    "dtype": (_DTYPE, "float32"),
    "device": (_DEVICE, "cpu"),
    "array": (_ARRAY, "auto"),
    "channels_last": (_LAST, False),
    "gpu": (_GPU, None),
    "all": (_ALL, False),
    "as_json": (_JSON, False),
}


def _reserved(size: int) -> mmap.mmap:
    """Return `size` bytes of address space; the system commits a page when it is touched, which nobody does."""
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)


class _Maker:
    """Makes arrays of the wanted library, type, device and layout, without memory on the host."""

    def __init__(self, dtype: str, device: str, array: str, channels_last: bool) -> None:
        self.dtype, self.device, self.channels_last = dtype, device, channels_last
        if array not in ("auto", "numpy", "torch"):
            raise _OptionError(f"--array must be auto, numpy or torch, but got {array!r}")
        if dtype not in _DTYPES:
            raise _OptionError(f"--dtype must be one of {', '.join(_DTYPES)}, but got {dtype!r}")
        if array == "auto":
            array = "numpy" if device == "cpu" and dtype not in _OF_TORCH else "torch"
        self.torch: Any = None
        if array == "numpy":
            if device != "cpu":
                raise _OptionError(f"--device must be cpu for numpy arrays, but got {device!r}")
            if dtype in _OF_TORCH:
                raise _OptionError(f"--array must be torch for {dtype}, which NumPy does not have")
            return
        if find_spec("torch") is None:
            raise _OptionError(f"--dtype {dtype} on {device} needs torch, which is not installed")
        self.torch = import_module("torch")
        if device.startswith("cuda") and not self.torch.cuda.is_available():
            raise _OptionError(f"--device must be cpu here, but got {device!r}: torch finds no CUDA device")

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None, unbatched: bool = False) -> Any:
        """Return an array of `shape`, channels-last where that was asked for and there are spatial axes."""
        full = (1, *shape) if unbatched else shape
        last = self.channels_last and len(full) > 2
        strides = channels_last_strides(full) if last else contiguous_strides(full)
        array = self._strided(full, strides, dtype or self.dtype)
        return array[0] if unbatched else array

    def _strided(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str) -> Any:
        if self.torch is None:
            size = np.dtype(dtype).itemsize
            steps = [stride * size for stride in strides]
            return np.ndarray(shape, dtype, _reserved(prod(shape) * size), strides=steps)
        kind = getattr(self.torch, dtype)
        if self.device != "cpu" or not prod(shape):
            return self.torch.empty_strided(shape, strides, dtype=kind, device=self.device)
        return self.torch.frombuffer(_reserved(prod(shape) * kind.itemsize), dtype=kind).as_strided(shape, strides)


def _channels(name: str, vector: str, arguments: dict[str, Any]) -> int:
    """Return the channels of a bias, scale or shift: those of the result of its weight."""
    weight, groups = (
        arguments[vector.replace("bias", "weight") if "_bias" in vector else "weight"],
        arguments.get("groups", 1),
    )
    return int(weight.shape[1] * groups if "transpose" in name and isinstance(groups, int) else weight.shape[0])


def _arguments(fn: Callable[..., Any], given: dict[str, Any], make: _Maker) -> dict[str, Any]:
    """Turn the options that were given into the arguments of `fn`."""
    name = fn.__name__
    dims = re.search(r"(\d)d", name)
    rank = (int(dims.group(1)) if dims else 2) + 2
    arguments: dict[str, Any] = {}
    for key, value in given.items():
        if value is None or key in _FLAGGED:
            continue
        if key in _SHAPED:
            shape = parse_shape(_dashed(key), value)
            unbatched = key not in _WEIGHTS and len(shape) == rank - 1
            arguments[key] = make(shape, _NUMBERS.get(key), unbatched)
        elif key in ("input_size", "weight_size"):
            arguments[key] = parse_shape(_dashed(key), value)
        else:
            arguments[key] = parse_value(value) if isinstance(value, str) else value
    for key in _SCALES:
        size = {"array": 1, "channels": arguments["weight"].shape[0] if "weight" in arguments else 1}
        if arguments.get(key) in size:
            arguments[key] = make((size[arguments[key]],), "float32")
    flags = [key for key in _FLAGGED if given.get(key)]
    kind = "float32" if name.startswith("scaled") else None
    arguments |= {key: make((_channels(name, key, arguments),), kind) for key in flags if key != "residual"}
    if "residual" in flags:
        result = explain(fn, **arguments).steps[-1].problem.result_shape
        unbatched = len(arguments["input"].shape) == rank - 1
        arguments["residual"] = make(result[1:] if unbatched else result, unbatched=unbatched)
    return arguments


def _show(explanation: Explanation, everything: bool) -> None:
    console = new_console()
    width = console.width if console.is_terminal else None  # a pipe gets whole lines
    text = explanation.render(everything, width)
    shown = Text(text)
    for step in explanation.steps:
        if step.solver is not None:
            shown.highlight_regex(rf"\b{re.escape(step.solver)}\b", "bold green")
    console.print(shown, soft_wrap=True)


def _elsewhere(common: dict[str, Any]) -> dict[str, Any]:
    """Return the common options for a GPU by name: arrays stand for some there, as torch's where it is installed."""
    if common["device"] != "cpu":
        raise _OptionError(f"--device {common['device']} is a GPU here, and --gpu one by name: give one of them")
    torch = common["array"] == "auto" and find_spec("torch") is not None
    return common | ({"array": "torch"} if torch else {})


def _command(fn: Callable[..., Any]) -> Callable[..., None]:
    """Make the subcommand of one public function."""

    def command(**options: Any) -> None:
        common = {key: options.pop(key) for key in _COMMON}
        try:
            everything, as_json, gpu = (common.pop(key) for key in ("all", "as_json", "gpu"))
            if gpu is not None:
                common = _elsewhere(common)
            explanation = explain(fn, **_arguments(fn, options, _Maker(**common)), gpu=gpu)
        except (RuntimeError, TypeError, ValueError, MemoryError, OSError) as error:
            logger.debug("explain failed", exc_info=True)
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        if as_json:
            typer.echo(json.dumps(explanation.to_json(), indent=2))
        else:
            _show(explanation, everything)

    parameters = [_option(p) for p in inspect.signature(fn).parameters.values() if p.name not in _HIDDEN]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _COMMON.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _summary(fn: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring as plain text."""
    paragraph = " ".join((inspect.getdoc(fn) or "").partition("\n\n")[0].split())
    return re.split(r"\.\s|\.$|;", re.sub(r"``|`|:func:", "", paragraph))[0] + "."


def _register() -> None:
    convolutions = (functional.causal, functional.conv, functional.deform, functional.scaled, functional.separable)
    panels: dict[Any, str] = dict.fromkeys(convolutions, "Convolutions")
    panels[functional.conv_grad] = "Gradients of convolutions"
    for name in functional.__all__:
        fn = getattr(functional, name)
        other = "Gradients of poolings" if name.endswith("_backward") else "Poolings"
        panel = panels.get(sys.modules[fn.__module__], other)
        explain_app.command(name, help=_summary(fn), rich_help_panel=panel)(_command(fn))


_register()
