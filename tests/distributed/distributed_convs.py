"""Convolutions, transposed convolutions, their gradients and scaled ones, for each way to shard them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import gpuconv

__all__ = ["SQUARES", "cases", "on_squares"]

Case = Callable[[Any], None]

SPATIAL = {1: (9,), 2: (6, 5), 3: (4, 5, 4)}
SIDES: dict[str, dict[str, str]] = {
    "batch": {"x": "S0", "w": "R", "vector": "R", "y": "S0", "dx": "S0", "dw": "P", "db": "P"},
    "output": {"x": "R", "w": "S0", "vector": "S0", "y": "S1", "dx": "P", "dw": "S0", "db": "S0"},
    "input": {"x": "S1", "w": "S1", "vector": "R", "y": "P", "dx": "S1", "dw": "S1", "db": "R"},
    "groups": {"x": "S1", "w": "S0", "vector": "S0", "y": "S1", "dx": "S1", "dw": "S0", "db": "S0"},
    "nothing": {"x": "R", "w": "R", "vector": "R", "y": "R", "dx": "R", "dw": "R", "db": "R"},
}
"""For each way to shard a convolution, where operands, result and gradients are; :func:`turned` for transposed ones."""

SIZES = {
    "uneven": (5, 5, 5),
    "hollow": (1, 1, 1),  # a process with nothing
    "even": (6, 12, 6),
}
"""N, C and K."""


def sizes(way: str, size: str, nd: int, transposed: bool = False) -> tuple[Any, ...]:
    """Return the shapes of x, w and y's channels, and the number of groups."""
    n, c, k = SIZES[size]
    if way != "groups":
        n, c, k = (n if way == "batch" else 2), (c if way == "input" else 3), (k if way == "output" else 4)
    groups = {"uneven": 5, "hollow": 1, "even": 6}[size] if way == "groups" else 1
    kernel = (3, 2, 2)[:nd]
    weight = (c, k // groups, *kernel) if transposed else (k, c // groups, *kernel)
    return (n, c, *SPATIAL[nd]), weight, k, groups


def turned(places: dict[str, str], way: str) -> dict[str, str]:
    """Return the places for a transposed convolution, whose weight has the channels of its input first."""
    turn = {"S0": "S1", "S1": "S0"}
    weight = places["w"] if way == "groups" else turn.get(places["w"], places["w"])
    return places | {"w": weight, "dw": places["dw"] if way == "groups" else turn.get(places["dw"], places["dw"])}


def forward(world: Any, nd: int, way: str, size: str, transposed: bool) -> None:
    """A convolution with a bias, and every gradient: nothing is sent, and everything is where it should be."""
    x, w, k, groups = sizes(way, size, nd, transposed)
    places = turned(SIDES[way], way) if transposed else SIDES[way]
    tensors = {"input": world.integers(x), "weight": world.integers(w, 1), "bias": world.integers((k,), 2)}
    name = f"conv_transpose{nd}d" if transposed else f"conv{nd}d"
    options: dict[str, Any] = {"stride": (2, 1, 2)[:nd], "padding": 1, "groups": groups}
    if transposed:
        options["output_padding"] = (1, 0, 0)[:nd]
    else:
        options["padding_mode"] = "circular" if nd == 2 else "zeros"
    world.compare(
        partial(getattr(gpuconv, name), **options), tensors,
        {"input": places["x"], "weight": places["w"], "bias": places["vector"]}, places["y"],
        {"input": places["dx"], "weight": places["dw"], "bias": places["db"]},
    )  # fmt: skip


def epilogue(world: Any, way: str, transposed: bool, activation: str | None, recorded: bool, last: bool) -> None:
    """Everything that is fused: what is added is added once, and what is not linear is not done to terms of a sum."""
    x, w, k, groups = sizes(way, "uneven", 2, transposed)
    places = turned(SIDES[way], way) if transposed else SIDES[way]
    function = partial(
        gpuconv.conv_transpose2d if transposed else gpuconv.conv2d, padding=1, groups=groups, activation=activation
    )
    tensors = {"input": world.integers(x), "weight": world.integers(w, 1)}
    tensors |= {name: world.integers((k,), seed) for seed, name in enumerate(("bias", "scale", "shift"), 2)}
    if last:
        tensors = {
            name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
            for name, tensor in tensors.items()
        }
    plain = function(**tensors)
    tensors["residual"] = torch.empty_like(plain).copy_(world.integers(plain.shape, 6))
    summed = way == "input"
    residual = "R" if summed else places["y"]
    placed = {"input": places["x"], "weight": places["w"], "residual": residual}
    placed |= dict.fromkeys(("bias", "scale", "shift"), places["vector"])
    free = not summed or (activation is None and not recorded)
    if recorded:  # torch adds what is whole to the terms of a sum by dividing it among the processes
        world.compare(
            function, tensors, placed, None if summed else places["y"], {"input": places["dx"]}, free, not summed
        )
        return
    with torch.no_grad():
        world.compare(function, tensors, placed, places["y"] if free else None, None, free)
        y = function(**{name: world.put(tensor, placed[name]) for name, tensor in tensors.items()})
        assert free or world.places(y) != "P"


def gradients(world: Any, nd: int, way: str, size: str) -> None:
    """The gradients as functions of their own, and their derivatives."""
    x, w, _, groups = sizes(way, size, nd)
    options = {"stride": (2, 1, 2)[:nd], "padding": 1, "groups": groups}
    with torch.no_grad():
        y = getattr(gpuconv, f"conv{nd}d")(world.integers(x), world.integers(w), **options).shape
    places = SIDES[way]
    dy = places["y"].replace("P", "R")

    def by_input(weight: Any, grad_output: Any) -> Any:
        return getattr(gpuconv, f"conv{nd}d_input_grad")(x, weight, grad_output, **options)

    def by_weight(input: Any, grad_output: Any) -> Any:
        return getattr(gpuconv, f"conv{nd}d_weight_grad")(input, w, grad_output, **options)

    # The derivative by grad_output is a convolution, whose result lies as y.
    sent = {"batch": "P", "output": "S0", "input": "S1", "groups": "S0", "nothing": "R"}[way]
    world.compare(
        by_input,
        {"weight": world.integers(w, 1), "grad_output": world.integers(y, 2)},
        {"weight": places["w"], "grad_output": dy},
        places["dx"],
        {"grad_output": places["y"], "weight": sent},
    )
    world.compare(
        by_weight,
        {"input": world.integers(x, 1), "grad_output": world.integers(y, 2)},
        {"input": places["x"], "grad_output": dy},
        places["dw"],
        {"grad_output": places["y"], "input": places["dx"]},
    )


def scaled(world: Any, nd: int, way: str, out: str | None, activation: str | None) -> None:
    """8-bit numbers with scales, one of which is of the filters."""
    x, w, k, groups = sizes(way, "uneven", nd)
    places = SIDES[way]
    tensors = {
        "input": world.integers(x).to(torch.int8),
        "weight": world.integers(w, 1).to(torch.int8),
        "bias": world.integers((k,), 2).float(),
        "input_scale": torch.tensor(0.5),
        "weight_scale": world.integers((k,), 3, 1, 5).float(),
    }
    placed = {"input": places["x"], "weight": places["w"], "bias": places["vector"], "input_scale": "R"}
    placed["weight_scale"] = places["vector"]
    options: dict[str, Any] = {"padding": 1, "groups": groups, "activation": activation}
    if out is not None:
        options |= {"out_dtype": getattr(torch, out)} | ({"output_scale": 4.0} if out == "int8" else {})
    function = partial(getattr(gpuconv, f"scaled_conv{nd}d"), **options)
    free = way != "input" or (activation is None and out == "float32")

    def run(**given: Any) -> Any:
        return function(**{name: tensor.detach() for name, tensor in given.items()})

    world.compare(run, tensors, placed, places["y"] if free else None, None, free)
    y = run(**{name: world.put(tensor, placed[name]) for name, tensor in tensors.items()})
    assert free or world.places(y) != "P"


def moved(world: Any, x: str, w: str, y: str | None, sent: int, shape: tuple[int, ...], groups: int = 1) -> None:
    """Operands that do not fit are redistributed, as few bytes as can be."""
    n, c, k = shape
    tensors = {"input": world.integers((n, c, 8, 8)), "weight": world.integers((k, c // groups, 3, 3), 1)}

    def function(input: Any, weight: Any) -> Any:
        return gpuconv.conv2d(input, weight, groups=groups)

    world.compare(function, tensors, {"input": x, "weight": w}, y, {}, False)
    with torch.no_grad():
        shared = {name: world.put(tensor, place) for (name, tensor), place in zip(tensors.items(), (x, w))}
        _, count = world.counted(lambda: function(**shared))
    assert count == sent, f"{count} collectives, not {sent}"


MOVED: dict[str, tuple[Any, ...]] = {
    "the weight is cut for what is summed": ("S1", "R", "P", 0, (4, 6, 6)),
    "the input is cut for its groups": ("R", "S0", "S1", 0, (4, 6, 6), 6),
    "a small weight is gathered": ("S0", "S0", "S0", 1, (6, 6, 6)),
    "terms are added to shards": ("P", "R", "S0", 1, (6, 6, 6)),
    "groups that no boundary meets": ("S1", "S0", None, 2, (6, 14, 14), 7),
}


def on_squares(
    world: Any, x: str, w: str, y: str | None, vector: str, shape: tuple[int, int, int], groups: int = 1
) -> None:
    """Two dimensions of a mesh, which shard different axes, or the same one twice. Where y is None, they cannot."""
    n, c, k = shape
    tensors = {"input": world.integers((n, c, 6, 5)), "weight": world.integers((k, c // groups, 3, 3), 1)}
    function = partial(gpuconv.conv2d, padding=1, groups=groups)
    placed = {"input": x, "weight": w, "bias": vector}
    world.compare(function, tensors | {"bias": world.integers((k,))}, placed, y, {}, y is not None)


SQUARES: dict[str, tuple[Any, ...]] = {
    "batch and output": ("S0 R", "R S0", "S0 S1", "R S0", (5, 3, 5)),
    "batch and input": ("S0 S1", "R S1", "S0 P", "R R", (5, 5, 3)),
    "output and input": ("R S1", "S0 S1", "S1 P", "S0 R", (2, 5, 5)),
    "batch twice": ("S0 S0", "R R", "S0 S0", "R R", (5, 3, 3)),
    "output twice": ("R R", "S0 S0", "S1 S1", "S0 S0", (2, 3, 7)),
    "input twice": ("S1 S1", "S1 S1", "P P", "R R", (2, 7, 3)),
    "batch and groups": ("S0 S1", "R S0", "S0 S1", "R S0", (3, 5, 5), 5),
    "groups twice": ("S1 S1", "S0 S0", "S1 S1", "S0 S0", (2, 7, 7), 7),
    "groups that one dimension cuts": ("S1 S1", "S0 S0", None, "S0 S0", (2, 12, 6), 6),
}


def cases() -> Iterator[tuple[str, Case]]:
    """Yield names and functions of a world."""
    for nd in (1, 2, 3):
        for way in SIDES:
            for size in SIZES if way != "nothing" and nd == 2 else ["uneven"]:
                if (way, size) == ("groups", "hollow"):
                    continue
                for transposed in (False, True):
                    name = f"{'transposed' if transposed else 'conv'}{nd}d {way} {size}"
                    yield name, partial(forward, nd=nd, way=way, size=size, transposed=transposed)
                yield f"gradients{nd}d {way} {size}", partial(gradients, nd=nd, way=way, size=size)
    for way in ("batch", "output", "input", "groups"):
        for transposed in (False, True):
            for activation in (None, "relu"):
                for recorded in (False, True):
                    name = f"epilogue {way} {'transposed' if transposed else 'conv'} {activation} {recorded}"
                    settings = {"transposed": transposed, "activation": activation, "recorded": recorded}
                    yield name, partial(epilogue, way=way, last=activation is None, **settings)
        for nd in (1, 2, 3):
            yield f"scaled{nd}d {way}", partial(scaled, nd=nd, way=way, out="float32", activation=None)
        yield f"scaled {way} int8", partial(scaled, nd=2, way=way, out="int8", activation=None)
        yield f"scaled {way} relu", partial(scaled, nd=2, way=way, out="float32", activation="relu")
    for name, (x, w, y, sent, *rest) in MOVED.items():
        yield f"moved: {name}", partial(moved, x=x, w=w, y=y, sent=sent, shape=rest[0], groups=(*rest, 1)[1])
