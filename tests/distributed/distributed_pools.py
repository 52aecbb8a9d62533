"""Pools, unfold and fold over the batch, over channels, and of sums where they are linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import gpuconv

__all__ = ["cases"]

Case = Callable[[Any], None]

SPATIAL = {1: (9,), 2: (6, 8), 3: (4, 6, 4)}
SHAPES = {"uneven": (5, 5), "hollow": (1, 1)}
WHERE = {"batch": "S0", "channels": "S1", "nothing": "R"}

POOLS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "avg": ("avg_pool", {"kernel_size": 2, "padding": 1}, (1, 2, 3)),
    "max": ("max_pool", {"kernel_size": 3, "stride": 2, "padding": 1}, (1, 2, 3)),
    "max indices": ("max_pool", {"kernel_size": 2, "return_indices": True}, (1, 2, 3)),
    "lp": ("lp_pool", {"norm_type": 2, "kernel_size": 2}, (1, 2, 3)),
    "lp inf": ("lp_pool", {"norm_type": float("inf"), "kernel_size": 2}, (2,)),
    "adaptive avg": ("adaptive_avg_pool", {"output_size": 2}, (1, 2, 3)),
    "adaptive max": ("adaptive_max_pool", {"output_size": 3}, (1, 2, 3)),
    "adaptive max indices": ("adaptive_max_pool", {"output_size": 2, "return_indices": True}, (2,)),
}
"""Function without its dimensions, arguments, and numbers of dimensions."""

LINEAR = ("avg", "adaptive avg")


def pool(world: Any, name: str, nd: int, place: str, size: str) -> None:
    function, options, _ = POOLS[name]
    x = world.integers((*SHAPES[size], *SPATIAL[nd]))
    exact = not name.startswith(("lp", "adaptive avg"))
    run = partial(getattr(gpuconv, f"{function}{nd}d"), **options)
    world.compare(run, {"input": x}, {"input": place}, place, {"input": place.replace("P", "R")}, exact=exact)


def not_linear(world: Any) -> None:
    """A maximum of terms is no term of the maximum: they are added up first."""
    x = {"input": world.integers((4, 4, 6, 6))}
    world.compare(partial(gpuconv.max_pool2d, kernel_size=2), x, {"input": "P"}, "S0", {}, False)


def fractional(world: Any, nd: int, place: str, indices: bool) -> None:
    x = world.integers((5, 5, *(8,) * nd))
    samples = torch.rand((5, 5, nd), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options = {"kernel_size": 2, "output_size": 3, "return_indices": indices}

    def run(input: Any, samples: Any) -> Any:
        name = f"fractional_max_pool{nd}d"
        return getattr(gpuconv, name)(input, _random_samples=samples.detach(), **options)

    tensors = {"input": x, "samples": samples}
    alone = run(x.clone().requires_grad_(), samples)
    first = alone[0] if indices else alone
    grad = world.integers(first.shape, 4)
    leaf = x.clone().requires_grad_()
    result = run(leaf, samples)
    (expected,) = torch.autograd.grad(result[0] if indices else result, leaf, grad)
    shared = {name: world.put(tensor, place) for name, tensor in tensors.items()}
    ours, sent = world.counted(lambda: run(**shared))
    assert sent == 0
    for mine, other in zip(ours if indices else (ours,), alone if indices else (alone,)):
        assert world.places(mine) == place
        assert torch.equal(mine.full_tensor(), other)
    mine = ours[0] if indices else ours
    (found,) = torch.autograd.grad(mine, shared["input"], world.put(grad, place).detach())
    assert world.places(found) == place
    assert torch.equal(found.full_tensor(), expected)


def unpool(world: Any, nd: int, place: str, size: str) -> None:
    x = world.integers((*SHAPES[size], *SPATIAL[nd]))
    y, indices = getattr(gpuconv, f"max_pool{nd}d")(x, 2, return_indices=True)

    def run(input: Any, indices: Any) -> Any:
        return getattr(gpuconv, f"max_unpool{nd}d")(input, indices, 2, output_size=SPATIAL[nd])

    both = {"input": place, "indices": place.replace("P", "R")}
    world.compare(run, {"input": y, "indices": indices}, both, place, {"input": place.replace("P", "R")})


def columns(world: Any, name: str, place: str, shape: tuple[int, int]) -> None:
    """Rows of the columns are channels times windows: they are sharded by channels where both are cut alike."""
    n, c = shape
    fits = place != "S1" or c % world.size == 0
    back = place.replace("P", "R")
    if name == "unfold":
        run, tensors = partial(gpuconv.unfold, kernel_size=2, padding=1), {"input": world.integers((n, c, 5, 4))}
    else:
        run, tensors = (
            partial(gpuconv.fold, output_size=(5, 4), kernel_size=2),
            {"input": world.integers((n, 4 * c, 12))},
        )
    gradients = {"input": back} if fits else {}
    world.compare(run, tensors, {"input": place}, place if fits else None, gradients, fits)


def backward(world: Any, place: str) -> None:
    """Gradients as functions of their own."""
    x, dy = world.integers((5, 5, 6, 8)), world.integers((5, 5, 3, 4), 1)
    y, indices = gpuconv.max_pool2d(x, 2, return_indices=True)
    placed = dict.fromkeys(("grad_output", "input", "indices"), place)

    def by_max(grad_output: Any, input: Any, indices: Any) -> Any:
        return gpuconv.max_pool2d_with_indices_backward(grad_output, input, 2, None, 0, 1, False, indices)

    def by_avg(grad_output: Any, input: Any) -> Any:
        return gpuconv.avg_pool2d_backward(grad_output, input, 2)

    def by_lp(grad_output: Any, input: Any) -> Any:
        return gpuconv.lp_pool2d_backward(grad_output, input, 2, 2)

    def by_unpool(grad_output: Any, input: Any, indices: Any) -> Any:
        return gpuconv.max_unpool2d_backward(grad_output, input, indices)

    both = {"grad_output": dy, "input": x}
    with torch.no_grad():
        world.compare(by_max, both | {"indices": indices}, placed, place)
        world.compare(by_avg, both, placed, place)
        world.compare(by_lp, both, placed, place, exact=False)
        world.compare(by_unpool, {"grad_output": x, "input": y, "indices": indices}, placed, place)


def cases() -> Iterator[tuple[str, Case]]:
    """Yield names and functions of a world."""
    for name, (_, _, dims) in POOLS.items():
        for nd in dims:
            for way, place in WHERE.items():
                yield f"{name}{nd}d {way}", partial(pool, name=name, nd=nd, place=place, size="uneven")
        for way in ("batch", "channels"):
            yield f"{name} {way} hollow", partial(pool, name=name, nd=dims[-1], place=WHERE[way], size="hollow")
    for name in LINEAR:
        yield f"{name} of a sum", partial(pool, name=name, nd=2, place="P", size="uneven")
    yield "max of a sum", not_linear
    for nd in (2, 3):
        for way in ("batch", "channels"):
            for indices in (False, True):
                name = f"fractional{nd}d {way} {indices}"
                yield name, partial(fractional, nd=nd, place=WHERE[way], indices=indices)
    for nd in (1, 2, 3):
        for way in ("batch", "channels"):
            for size in SHAPES if nd == 2 else ["uneven"]:
                yield f"unpool{nd}d {way} {size}", partial(unpool, nd=nd, place=WHERE[way], size=size)
    yield "unpool of a sum", partial(unpool, nd=2, place="P", size="uneven")
    for name in ("unfold", "fold"):
        for way, place in (("batch", "S0"), ("channels", "S1"), ("nothing", "R"), ("of a sum", "P")):
            for shape in ((5, 5), (4, 6), (1, 1)) if place in ("S0", "S1") else ((5, 5),):
                yield f"{name} {way} {shape}", partial(columns, name=name, place=place, shape=shape)
    for way, place in WHERE.items():
        yield f"pool gradients {way}", partial(backward, place=place)
