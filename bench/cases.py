"""What is measured: the layers of `bench/workloads/*.json` as problems, each once, with the networks that use it.

A workload lists the convolutions, transposed convolutions and poolings of a network with sizes per sample and calls per
forward pass; the batch sizes of inference and of training stand in it too. Training adds the gradients: of the input
(but not of images and volumes, with 1 or 3 channels, which need none) and of the weight. Sets beside the networks are
`pooling`, the cases of `pool_cases.py`, and `kernelbench`, those of `kernelbench.py`, which only its name asks for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST, CONTIGUOUS
from gpuconv.problem import ConvProblem, PoolProblem, Problem

from . import kernelbench
from .calls import as_called
from .pool_cases import CASES as POOL_CASES

__all__ = [
    "DTYPES",
    "PHASES",
    "WORKLOADS",
    "Case",
    "Use",
    "all_cases",
    "everything",
    "family",
    "in_turns",
    "kernelbench_problems",
    "layer_problems",
    "networks",
    "problem_key",
]

WORKLOADS = Path(__file__).parent / "workloads"
PHASES = ("inference", "training")
DTYPES = {
    "float16": ("float16", "ieee"),
    "bfloat16": ("bfloat16", "ieee"),
    "tf32": ("float32", "tf32"),
    "float32": ("float32", "ieee"),
}
"""Name of a number format in results: element type, and how float32 forms products."""

POOLING = "pooling"
"""Name under which the cases of `pool_cases.py`, which are of no one network, appear."""

_IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a network runs a problem: `count` times in one forward (or backward) pass."""

    network: str
    phase: str
    batch: int
    count: int


@dataclass(frozen=True, slots=True)
class Case:
    """One problem and everything that uses it. `order` is small for what is worth measuring first."""

    problem: Problem
    uses: tuple[Use, ...]
    order: tuple[int, int]

    @property
    def key(self) -> str:
        """Identity of the problem in results."""
        return problem_key(self.problem)


@cache
def networks() -> Mapping[str, Any]:
    """Return the workloads by name of the network."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(WORKLOADS.glob("*.json"))}


def _sizes(values: Iterable[int]) -> str:
    text = [str(value) for value in values]
    return text[0] if len(set(text)) == 1 else "x".join(text)


def problem_key(problem: Problem) -> str:
    """Return a name that tells problems apart and can be read: pass, shapes, geometry, number format, layout."""
    number = next(
        (name for name, of in DTYPES.items() if of == (problem.dtype, getattr(problem, "precision", "ieee"))),
        f"{problem.dtype}-{getattr(problem, 'precision', '')}",
    )
    x = "x".join(map(str, problem.x_shape))
    if isinstance(problem, PoolProblem):
        words = [f"{problem.pool}_pool{problem.ndim}d", problem.kind, x]
        if problem.pool.startswith("adaptive"):
            words.append(f"to {_sizes(problem.output_size)}")
        else:
            words.append(f"k{_sizes(problem.kernel)} s{_sizes(problem.stride)} p{_sizes(problem.pad_lo)}")
            words += [f"d{_sizes(problem.dilation)}"] * (max(problem.dilation) > 1)
        words += ["ceil"] * problem.ceil_mode + ["indices"] * problem.return_indices
        words += [number, problem.x_format]
        return " ".join(words)
    pads = _sizes(problem.pad_lo) + ("" if problem.pad_lo == problem.pad_hi else f"+{_sizes(problem.pad_hi)}")
    words = [f"conv{problem.ndim}d", problem.kind, f"{x} * {'x'.join(map(str, problem.w_shape))}"]
    words += [f"s{_sizes(problem.stride)} p{pads} d{_sizes(problem.dilation)} g{problem.groups}"]
    if problem.kind in ("dgrad", "transposed"):
        words.append(f"of {'x'.join(map(str, problem.output_size))}")
    extras = [name for name in ("bias", "scale", "shift", "residual") if getattr(problem, name)]
    words += [problem.padding_mode] * (problem.padding_mode != "zeros") + extras + [problem.activation or ""]
    words += ["rounded as torch"] * (problem.rounding == "torch")
    formats = {problem.x_format, problem.w_format, problem.y_format}
    layout = problem.x_format if len(formats) == 1 else f"{problem.x_format}/{problem.w_format}/{problem.y_format}"
    return " ".join(word for word in (*words, number, layout) if word)


def _conv(layer: Mapping[str, Any], batch: int, number: str, layout: str) -> ConvProblem:
    """Describe a layer of a workload; a transposed one has the letters of the convolution it is the gradient of."""
    dtype, precision = DTYPES[number]
    transposed = layer["op"].startswith("conv_transpose")
    x, y = (layer["output"], layer["input"]) if transposed else (layer["input"], layer["output"])
    pads = tuple(layer["padding"])
    return ConvProblem(
        op=layer["op"], kind="transposed" if transposed else "fprop", n=batch, c=x[0], k=y[0], groups=layer["groups"],
        input_size=tuple(x[1:]), kernel=tuple(layer["weight"][2:]), output_size=tuple(y[1:]),
        stride=tuple(layer["stride"]), pad_lo=pads, pad_hi=pads, dilation=tuple(layer["dilation"]),
        padding_mode="zeros", dtype=dtype, device="meta", array="torch", x_format=layout, w_format=layout,
        y_format=layout, bias=layer["bias"], precision=precision,
    )  # fmt: skip


def _pool(layer: Mapping[str, Any], batch: int, number: str, layout: str) -> PoolProblem:
    pool, ndim = layer["op"].rpartition("_pool")[0], len(layer["input"]) - 1
    one, none = (1,) * ndim, (0,) * ndim
    x, y = tuple(layer["input"][1:]), tuple(layer["output"][1:])
    adaptive = pool.startswith("adaptive")
    window = {"kernel": one, "stride": one, "padding": none, "dilation": one}
    if not adaptive:
        keys = {"kernel": "kernel_size", "stride": "stride", "padding": "padding", "dilation": "dilation"}
        window = {name: tuple(layer.get(key, window[name])) for name, key in keys.items()}
    return PoolProblem(
        op=layer["op"], pool=pool, kind="fprop", n=batch, c=layer["input"][0], input_size=x, kernel=window["kernel"],
        output_size=y, stride=window["stride"], pad_lo=window["padding"], pad_hi=window["padding"],
        dilation=window["dilation"], dtype=DTYPES[number][0], device="meta", array="torch", x_format=layout,
        y_format=layout, ceil_mode=layer.get("ceil_mode", False),
    )  # fmt: skip


def layer_problems(
    layer: Mapping[str, Any], batch: int, phase: str, number: str, layout: str = CHANNELS_LAST
) -> Iterator[Problem]:
    """Yield the problems of one layer: the forward pass, and in training what its backward pass computes."""
    if "pool" in layer["op"]:
        if number == "tf32":  # has no products to round: float32 says it already
            return
        pool = _pool(layer, batch, number, layout)
        yield as_called(pool)
        if phase == "training":
            yield as_called(replace(pool, kind="bwd"))
        return
    forward = _conv(layer, batch, number, layout)
    yield as_called(forward)
    if phase == "training":
        plain = replace(forward, bias=False)
        of_input = "fprop" if forward.kind == "transposed" else "dgrad"
        if layer["input"][0] not in _IMAGE_CHANNELS:
            yield as_called(replace(plain, kind=of_input))
        yield as_called(replace(plain, kind="wgrad"))


def kernelbench_problems(one: kernelbench.Published) -> tuple[Problem, ...]:
    """Return the calls of a problem of KernelBench, in its number format and layout."""
    numbers = ["float32" if "pool" in layer["op"] else "tf32" for layer in one.layers]
    calls = zip(one.layers, numbers, strict=True)
    return tuple(
        problem
        for layer, number in calls
        for problem in layer_problems(layer, one.batch, "inference", number, CONTIGUOUS)
    )


def _pooling_layers() -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield the layers of `pool_cases.py`, as a workload has them, and their batch."""
    for case in POOL_CASES:
        n, *sizes = case.shape
        axes = len(sizes) - 1
        layer: dict[str, Any] = {"op": case.function, "input": sizes, "count": 1}
        if case.function.startswith("adaptive"):
            layer["output"] = [sizes[0], *case.arguments * axes]
        else:
            (kernel,) = case.arguments
            stride, padding = case.options.get("stride", kernel), case.options.get("padding", 0)
            output = [shapes.pool_output_size(size, kernel, stride, padding, padding, 1, False) for size in sizes[1:]]
            layer |= {"output": [sizes[0], *output], "kernel_size": [kernel] * axes, "stride": [stride] * axes}
            layer |= {"padding": [padding] * axes, "dilation": [1] * axes}
        yield layer, n


def _runs(names: Iterable[str]) -> Iterator[tuple[str, str, int, list[Mapping[str, Any]]]]:
    """Yield (network, phase, batch, layers) of the networks, or POOLING, in `names`."""
    known = networks()
    for name in names:
        if name == POOLING:
            for layer, batch in _pooling_layers():
                yield POOLING, "training", batch, [layer]
            continue
        for phase in PHASES:
            for batch in known[name]["batch"][phase]:
                yield name, phase, batch, known[name]["layers"]


_TIERS = (("inference", "float16"), ("training", "bfloat16"), ("inference", "bfloat16"), ("inference", "tf32"))
"""Phase and number format in the order in which they are worth measuring; what is not here comes after."""


_TURNS = (
    "fprop", "dgrad", "fprop", "wgrad", "pool fprop", "depthwise fprop", "fprop", "pool bwd", "transposed", "3-D fprop",
    "dgrad", "depthwise dgrad", "1-D fprop", "wgrad", "grouped fprop", "3-D dgrad", "depthwise wgrad", "3-D wgrad",
    "1-D dgrad", "1-D wgrad",
)  # fmt: skip
"""Families in the order in which they take turns: what most networks run most often comes more than once."""


def family(problem: Problem) -> str:
    """Return the family of a problem: its pass, and what it is where kernels or torch are at their best or worst."""
    if isinstance(problem, PoolProblem):
        return f"pool {problem.kind}"
    if problem.kind == "transposed":
        return problem.kind
    if problem.groups > 1:
        return f"{'depthwise' if problem.groups == problem.c else 'grouped'} {problem.kind}"
    return problem.kind if problem.ndim == 2 else f"{problem.ndim}-D {problem.kind}"


def in_turns(cases: Iterable[Case]) -> list[Case]:
    """Return `cases` with families taking turns, each in the order given, so that a short run has seen all of them."""
    queues: dict[str, deque[Case]] = {}
    for case in cases:
        queues.setdefault(family(case.problem), deque()).append(case)
    turns = [*_TURNS, *sorted(set(queues) - set(_TURNS))]
    found = []
    while any(queues.values()):
        found += [queues[name].popleft() for name in turns if queues.get(name)]
    return found


def everything() -> tuple[str, ...]:
    """Return the names of all workloads, those included that only their name asks for: what a record may be of."""
    return *networks(), POOLING, kernelbench.NAME


def _chosen(names: Iterable[str] | None) -> tuple[tuple[str, ...], bool]:
    """Return which networks (and POOLING) are asked for by `names`, and whether KernelBench is.

    Raises
    ------
    ValueError
        If a name is none of a workload.
    """
    known = (*networks(), POOLING)
    if names is None:
        return known, False
    wanted = tuple(names)
    unknown = sorted(set(wanted) - set(everything()))
    if unknown:
        raise ValueError(f"no workload named {', '.join(unknown)}; there are {', '.join(everything())}")
    return tuple(name for name in wanted if name != kernelbench.NAME), kernelbench.NAME in wanted


def all_cases(
    names: Iterable[str] | None = None,
    numbers: Iterable[str] = ("float16", "bfloat16", "tf32"),
    phases: Iterable[str] = PHASES,
    passes: Iterable[str] | None = None,
) -> list[Case]:
    """Return every distinct problem, the most valuable first.

    Families of problems take turns, and in each of them networks do, with their costliest layers first: a run that
    ends early has seen all of them.

    Parameters
    ----------
    names, numbers, phases, passes
        What to keep: networks (default: all, and `pooling`), number formats of `DTYPES`, ``"inference"`` and
        ``"training"``, and kinds of problem. The problems of KernelBench, which are inference, have one number format
        each, whatever `numbers` are.

    Raises
    ------
    ValueError
        If there is no workload of a name.
    """
    uses: dict[Problem, list[Use]] = {}
    order: dict[Problem, tuple[int, int]] = {}
    numbers, phases = tuple(numbers), tuple(phases)
    kinds = None if passes is None else set(passes)
    chosen, with_kernelbench = _chosen(names)
    for name, phase, batch, layers in _runs(chosen):
        if phase not in phases:
            continue
        for number in numbers:
            found = [(p, layer["count"]) for layer in layers for p in layer_problems(layer, batch, phase, number)]
            found = [entry for entry in found if kinds is None or entry[0].kind in kinds]
            found.sort(key=lambda entry: -entry[1] * max(entry[0].flops / 200, entry[0].min_bytes))
            at = (phase, number)
            largest = name == POOLING or batch == max(networks()[name]["batch"][phase])
            tier = 2 * (_TIERS.index(at) if at in _TIERS else len(_TIERS)) + (not largest)
            for place, (problem, count) in enumerate(found):
                uses.setdefault(problem, []).append(Use(name, phase, batch, count))
                order[problem] = min(order.get(problem, (tier, place)), (tier, place))
    for place, one in enumerate(kernelbench.published() if with_kernelbench and "inference" in phases else ()):
        for problem in kernelbench_problems(one):
            if kinds is None or problem.kind in kinds:
                uses.setdefault(problem, []).append(Use(kernelbench.NAME, "inference", one.batch, 1))
                order[problem] = min(order.get(problem, (0, place)), (0, place))
    cases = [Case(problem, tuple(of), order[problem]) for problem, of in uses.items()]
    return in_turns(sorted(cases, key=lambda case: (case.order, case.key)))
