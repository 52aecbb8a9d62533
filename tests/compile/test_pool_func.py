"""``torch.func`` transforms of pools against those of torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import gpuconv
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

Function = Callable[[torch.Tensor], torch.Tensor]
SAMPLES = {n: torch.rand(2, 3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for n in (2, 3)}
POOLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {}
for _n in (1, 2, 3):
    POOLS |= {
        f"max{_n}": (f"max_pool{_n}d", (3, 2, 1), {}),
        f"avg{_n}": (f"avg_pool{_n}d", (3, 2, 1), {}),
        f"lp{_n}": (f"lp_pool{_n}d", (2, 2), {}),
        f"extreme{_n}": (f"lp_pool{_n}d", (-float("inf"), 2), {}),
        f"adaptive avg{_n}": (f"adaptive_avg_pool{_n}d", (3,), {}),
        f"adaptive max{_n}": (f"adaptive_max_pool{_n}d", (3,), {}),
        f"unpool{_n}": (f"max_unpool{_n}d", (torch.arange(6 * 5**_n).reshape(2, 3, *(5,) * _n) % 5**_n, 2), {}),
    }
    if _n > 1:
        options = {"output_size": 2, "_random_samples": SAMPLES[_n]}
        POOLS[f"fractional{_n}"] = (f"fractional_max_pool{_n}d", (2,), options)


def pair(case: str) -> tuple[Function, Function]:
    name, args, kwargs = POOLS[case]
    return tuple(lambda x, m=m: getattr(m, name)(x, *args, **kwargs) for m in (gpuconv, F))  # type: ignore[return-value]


def tensor(rng: torch.Generator, case: str, *batch: int) -> torch.Tensor:
    shape = (*batch, 2, 3, *(5,) * int(POOLS[case][0][-2]))
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs)


def loss(f: Function) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: f(x).pow(3).sum()


@pytest.mark.parametrize("operator", [False, True], ids=["function", "operator"])
@pytest.mark.parametrize("case", POOLS)
def test_transforms(case: str, operator: bool, torch_rng: torch.Generator) -> None:
    ours, theirs = pair(case)
    x, tangent, batch = tensor(torch_rng, case), tensor(torch_rng, case), tensor(torch_rng, case, 4)

    def everything(f: Function) -> list[Any]:
        y, pull = vjp(f, x)
        return [
            grad(loss(f))(x), jvp(f, (x,), (tangent,)), y, pull(y), vmap(f)(batch), vmap(f, 1, 1)(batch.movedim(0, 1)),
            vmap(grad(loss(f)))(batch), jvp(grad(loss(f)), (x,), (tangent,)),
            grad(lambda x: grad(loss(f))(x).pow(2).sum())(x),
        ]  # fmt: skip

    expected = everything(theirs)
    if operator:
        with forbid_aten():
            found = everything(ours)
    else:
        found = everything(ours)
    close(found, expected)


@pytest.mark.parametrize("case", ["max2", "avg2", "lp2", "adaptive max2"])
def test_composed_transforms(case: str, torch_rng: torch.Generator) -> None:
    ours, theirs = pair(case)
    x = tensor(torch_rng, case)[:1, :1]
    for transform in (jacrev, jacfwd):
        close(transform(ours)(x), transform(theirs)(x))
    close(hessian(loss(ours))(x), hessian(loss(theirs))(x))
    xs = torch.stack([torch.stack([x, -x]), torch.stack([2 * x, x + 1])])
    close(vmap(vmap(ours))(xs), vmap(vmap(theirs))(xs))


def test_vmap_of_indices(torch_rng: torch.Generator) -> None:
    """Values and positions, either of them batched."""
    x, batch = tensor(torch_rng, "max2"), tensor(torch_rng, "max2", 3)
    where = torch.stack([torch.randperm(25, generator=torch_rng) for _ in range(18)]).reshape(3, 2, 3, 5, 5)
    for dims in ((0, 0), (None, 0), (0, None)):
        args = (batch if dims[0] == 0 else x, where if dims[1] == 0 else where[0])
        found = [vmap(lambda v, i, m=m: m.max_unpool2d(v, i, 2), dims)(*args) for m in (gpuconv, F)]
        close(*found)
        slopes = [vmap(grad(lambda v, i, m=m: m.max_unpool2d(v, i, 2).pow(3).sum()), dims)(*args) for m in (gpuconv, F)]
        close(*slopes)
    results = [vmap(lambda v, m=m: m.max_pool2d(v, 2, return_indices=True))(batch) for m in (gpuconv, F)]
    close(*results)


def test_one_launch_per_vmap(torch_rng: torch.Generator) -> None:
    batch = tensor(torch_rng, "max2", 4)
    with record_plans() as plans:
        vmap(pair("max2")[0])(batch)
    assert [plan.problem.n for plan in plans] == [8]


def test_unbatched_under_vmap(torch_rng: torch.Generator) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch_rng)
    for name, args in (
        ("max_pool2d", (2,)),
        ("avg_pool2d", (2,)),
        ("lp_pool2d", (2, 2)),
        ("adaptive_max_pool2d", (3,)),
    ):
        f, g = (lambda v, m=m, name=name, args=args: getattr(m, name)(v, *args) for m in (gpuconv, F))
        close(vmap(f)(x), vmap(g)(x))
        close(vmap(grad(loss(f)))(x), vmap(grad(loss(g)))(x))


@pytest.mark.parametrize("case", ["max2", "avg2", "lp2", "adaptive max2", "unpool2"])
def test_batched_backward_of_autograd(case: str, torch_rng: torch.Generator) -> None:
    results = []
    x = tensor(torch_rng, case).requires_grad_()
    for f in pair(case):
        y = f(x)
        seeds = torch.ones(2, *y.shape, dtype=y.dtype).cumsum(0)
        results.append(torch.autograd.grad(y, x, seeds, is_grads_batched=True))
    close(*results)
