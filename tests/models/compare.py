"""One network before, while and after gpuconv computes it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import Network

import gpuconv

__all__ = ["Outcome", "compare"]

Named = dict[str, torch.Tensor]

BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Largest difference of an element, relative to the scale of its tensor: layers of normalisation amplify rounding."""
NOISE = 1e-2
"""A tensor has the scale of its largest element, or if that is more this part of the largest of all of its sort.

Some are zero but for rounding, such as the gradient of a bias before a normalisation.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a comparison found, where it found no difference."""

    kinds: str
    kept: tuple[str, ...]
    errors: dict[torch.dtype, float]
    """The largest difference, relative to the scale of its tensor."""
    flops: int
    seconds: tuple[float, float, float]
    """Of the whole, of one pass forward and backward by torch, and by gpuconv."""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield what a model returned, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "to_tuple"):
        yield from tensors_in(value.to_tuple())


def passes(model: torch.nn.Module, inputs: Named, state: Named, asks: bool) -> Named:
    """Run a model from `state` forward and backward; return outputs, gradients and buffers by name.

    `asks` is whether the gradients of the inputs are asked for.
    """
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    dtype = next(model.parameters()).dtype
    given = {key: t.to(dtype, copy=True) if t.is_floating_point() else t for key, t in inputs.items()}
    for tensor in given.values():
        tensor.requires_grad_(asks and tensor.is_floating_point())
    outputs = [tensor for tensor in tensors_in(model(**given)) if tensor.is_floating_point()]
    loss: Any = sum(
        (y * torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape)).sum() for y in outputs if y.requires_grad
    )
    loss.backward()
    found = {f"output {place}": y.detach() for place, y in enumerate(outputs)}
    named = [*given.items(), *model.named_parameters()]
    found |= {f"gradient of {name}": t.grad.clone() for name, t in named if t.grad is not None}
    return found | {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}


def flops(run: Callable[[], Any]) -> tuple[int, set[str]]:
    """Return the number, and which of torch's convolutions were counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    operators = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    return counter.get_total_flops(), {name for name in operators if name.startswith("aten.conv")}


def scale_of(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def largest_error(ours: Named, theirs: Named, dtype: torch.dtype) -> float:
    """Return the largest relative difference.

    Raises
    ------
    AssertionError
        Where one is too large, or a tensor is missing.
    """
    assert ours.keys() == theirs.keys()
    most: dict[str, float] = {}
    for name, tensor in theirs.items():
        most[name.split()[0]] = max(most.get(name.split()[0], 0.0), scale_of(tensor))
    largest = 0.0
    for name, expected in theirs.items():
        one = ours[name]
        assert one.shape == expected.shape and one.dtype is expected.dtype, name
        if not expected.is_floating_point():
            assert torch.equal(one, expected), name
            continue
        scale = max(scale_of(expected), NOISE * most[name.split()[0]])
        error = scale_of(one - expected) / (scale or 1.0)
        assert error <= BOUNDS[dtype], f"{name} in {dtype}: {error:.1e} of its scale, {scale:.1e}"
        largest = max(largest, error)
    return largest


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def in_double(model: torch.nn.Module, inputs: Named, asks: bool) -> float:
    """Compare once more in float64, where rounding hides nothing; the model's modules are ours afterwards."""
    model.double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = passes(model, inputs, state, asks)
    gpuconv.replace_modules(model)
    return largest_error(passes(model, inputs, state, asks), theirs, torch.float64)


def compare(network: Network) -> Outcome:
    """Compare a network that torch computes with the same one after ``gpuconv.replace_modules``, and after ``undo``.

    Raises
    ------
    AssertionError
        Where an output, a gradient, the state, the number of FLOPs or what is left after ``undo`` differs.
    """
    start = time.perf_counter()
    torch.manual_seed(0)
    model, inputs = network.build()
    model.train()
    state = model.state_dict()
    metadata, saved = state._metadata, {name: tensor.clone() for name, tensor in state.items()}
    kinds, held = [type(module) for module in model.modules()], list(model.parameters())

    def run() -> Named:
        return passes(model, inputs, saved, network.asks)

    run()  # what is done at the first call alone is not timed
    theirs, of_torch = timed(run)
    count, _ = flops(run)

    report = gpuconv.replace_modules(model)
    kept = tuple(f"{entry.name}: {entry.reason}" for entry in report if not entry.replaced)
    assert network.kept in (None, len(kept)) and len(kept) < len(report), str(report)
    assert all(one is other for one, other in zip(model.parameters(), held, strict=True))
    model.load_state_dict(saved)
    now = model.state_dict()
    assert list(now) == list(saved) and now._metadata == metadata
    assert all(torch.equal(now[name], tensor) for name, tensor in saved.items())
    run()
    ours, of_gpuconv = timed(run)
    error = largest_error(ours, theirs, torch.float32)
    counted, convolutions = flops(run)
    assert counted == count > 0
    assert bool(convolutions) == bool(kept or network.functions), convolutions  # else none of torch's is left

    assert report.undo() == len(report) - len(kept)
    assert [type(module).__name__ for module in model.modules()] == [kind.__name__ for kind in kinds]
    again = run()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.items())
    errors = {torch.float32: error, torch.float64: in_double(model, inputs, network.asks)}
    names = Counter(entry.type.__name__ for entry in report if entry.replaced)
    listed = ", ".join(f"{name} x{number}" for name, number in names.most_common())
    return Outcome(listed, kept, errors, count, (time.perf_counter() - start, of_torch, of_gpuconv))
