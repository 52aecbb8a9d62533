"""``torch.func`` transforms of convolutions against those of torch's own."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import gpuconv.nn
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten

Function = Callable[..., torch.Tensor]


def tensor(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rng)


def operands(name: str, rng: torch.Generator, batch: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    """Return input, weight and bias for two groups."""
    ndim = int(name[-2])
    out = 2 * 3 if "transpose" in name else 6
    x, w = tensor(rng, *batch, 2, 4, *(5, 4, 3)[:ndim]), tensor(rng, *batch, 6, 2, *(3, 2, 2)[:ndim])
    if "transpose" in name:
        x, w = tensor(rng, *batch, 2, 6, *(3, 2, 2)[:ndim]), tensor(rng, *batch, 6, 3, *(3, 2, 2)[:ndim])
    return x, w, tensor(rng, *batch, out)


def pair(name: str, **kwargs: Any) -> tuple[Function, Function]:
    kwargs = {"stride": 2, "padding": 1, "groups": 2} | kwargs
    return tuple(lambda *args, m=m: getattr(m, name)(*args, **kwargs) for m in (gpuconv, F))  # type: ignore[return-value]


NAMES = [f"{family}{ndim}d" for family in ("conv", "conv_transpose") for ndim in (1, 2, 3)]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_transforms(name: str, torch_rng: torch.Generator) -> None:
    ours, theirs = pair(name)
    args, tangents = operands(name, torch_rng), operands(name, torch_rng)
    for argnums in (0, 1, 2, (0, 1, 2)):
        results = [grad(lambda *a, f=f: f(*a).pow(3).sum(), argnums=argnums)(*args) for f in (ours, theirs)]
        close(*results)
    close(jvp(ours, args, tangents), jvp(theirs, args, tangents))
    (y, pull), (y2, pull2) = vjp(ours, *args), vjp(theirs, *args)
    close((y, pull(y)), (y2, pull2(y2)))


def second(f: Function, args: Any, first: Any, then: Any) -> torch.Tensor:
    """Return the second derivative along two directions, forward over forward."""
    return jvp(lambda *a: jvp(f, a, first)[1], args, then)[1]


POOLS = {
    "avg_pool2d": (2,),
    "max_pool2d": (2,),
    "lp_pool2d": (3.0, 2),
    "adaptive_avg_pool2d": (2,),
    "unfold": (2,),
}


@pytest.mark.parametrize("name", [*NAMES, *POOLS])
def test_tangents_have_tangents(name: str, torch_rng: torch.Generator) -> None:
    """Nested forward mode, of which torch turns the outer levels off in the rules of functions like ours."""
    if name in POOLS:
        args = (tensor(torch_rng, 2, 3, 4, 5),)
        directions = [(tensor(torch_rng, 2, 3, 4, 5),) for _ in range(2)]
        ours, theirs = (lambda x, m=m: getattr(m, name)(x.sin() + 2, *POOLS[name]) for m in (gpuconv, F))
    else:
        ours, theirs = pair(name)
        args, *directions = (operands(name, torch_rng) for _ in range(3))
    expected = second(theirs, args, *directions)
    assert expected.abs().max() > 0.1
    close(second(ours, args, *directions), expected)
    traced = make_fx(lambda *a: second(ours, a, *directions))(*args)
    close(traced(*args), expected)
    thirds = [jvp(lambda *a, f=f: second(f, a, *directions), args, directions[0])[1] for f in (ours, theirs)]
    close(*thirds)
    loss = [jacfwd(jacfwd(lambda x, f=f: f(x, *args[1:]).pow(2).sum()))(args[0]) for f in (ours, theirs)]
    close(*loss)


def curvature(f: Function, *args: torch.Tensor) -> torch.Tensor:
    by_w = grad(lambda *a: f(*a).pow(3).sum(), argnums=1)
    return grad(lambda *a: by_w(*a).pow(2).sum(), argnums=0)(*args)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_every_choice_of_operands(name: str, torch_rng: torch.Generator) -> None:
    """Of the function, of its gradient, and of the gradient's gradient; the batch axis anywhere."""
    ours, theirs = pair(name)
    plain, batched = operands(name, torch_rng), operands(name, torch_rng, (3,))
    for chosen in itertools.product((False, True), repeat=3):
        if not any(chosen):
            continue
        dims = tuple((0, 1, -1)[i] if use else None for i, use in enumerate(chosen))
        args = [b.movedim(0, d) if d is not None else a for a, b, d in zip(plain, batched, dims)]
        close(vmap(ours, dims)(*args), vmap(theirs, dims)(*args))
        every = (0, 1, 2)
        slopes = [vmap(grad(lambda *a, f=f: f(*a).pow(3).sum(), argnums=every), dims)(*args) for f in (ours, theirs)]
        close(*slopes)

        close(vmap(lambda *a: curvature(ours, *a), dims)(*args), vmap(lambda *a: curvature(theirs, *a), dims)(*args))


def test_composed_transforms(torch_rng: torch.Generator) -> None:
    ours, theirs = pair("conv2d")
    x, w, b = operands("conv2d", torch_rng)
    x, w, b = x[:1, :, :3, :3], w, b
    for transform in (jacrev, jacfwd):
        close(transform(ours, 1)(x, w, b), transform(theirs, 1)(x, w, b))
    small = w[:, :, :1, :1]
    f, g = (lambda w, h=h: h(x, w, b).pow(3).sum() for h in (ours, theirs))
    close(hessian(f)(small), hessian(g)(small))
    xs, ws = torch.stack([x] * 2), torch.stack([w, 2 * w])
    twice = [vmap(vmap(f, (0, None, None)), (None, 0, None))(xs, ws, b) for f in (ours, theirs)]
    close(*twice)


def test_one_launch_per_vmap(torch_rng: torch.Generator) -> None:
    """A batch is folded into one problem, not looped over."""
    ours, _ = pair("conv2d")
    plain, batched = operands("conv2d", torch_rng), operands("conv2d", torch_rng, (3,))
    for dims, n, groups in (((0, None), 6, 2), ((None, 0), 2, 2), ((0, 0), 2, 6)):
        args = [b if d is not None else a for a, b, d in zip(plain, batched, dims)]
        with record_plans() as plans:
            vmap(ours, dims)(*args)
        (plan,) = plans
        assert (plan.problem.n, plan.problem.groups) == (n, groups)


def test_epilogue_under_transforms(torch_rng: torch.Generator) -> None:
    x, w, b = operands("conv2d", torch_rng, (3,))
    scale, residual = tensor(torch_rng, 3, 6), tensor(torch_rng, 2, 6, 3, 3)

    def ours(x: Any, w: Any, b: Any, scale: Any) -> torch.Tensor:
        epilogue = {"scale": scale, "residual": residual, "activation": "silu"}
        return gpuconv.conv2d(x, w, b, 2, 1, 1, 2, **epilogue)

    def theirs(x: Any, w: Any, b: Any, scale: Any) -> torch.Tensor:
        return F.silu(F.conv2d(x, w, b, 2, 1, 1, 2) * scale[:, None, None] + residual)

    args = (x, w, b, scale)
    close(vmap(ours)(*args), vmap(theirs)(*args))
    slopes = [vmap(grad(lambda *a, f=f: f(*a).sum(), argnums=(0, 3)))(*args) for f in (ours, theirs)]
    close(*slopes)


def test_per_sample_gradients_and_ensembles() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(gpuconv.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), gpuconv.nn.ConvTranspose2d(4, 1, 3))
    x = torch.randn(5, 2, 6, 6)
    parameters = dict(model.named_parameters())

    def loss(parameters: Any, x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (x[None],)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for i in range(5):
        expected = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(model.parameters()))
        for name, value in zip(parameters, expected):
            torch.testing.assert_close(per_sample[name][i], value, rtol=1e-4, atol=1e-4)
    layers = [gpuconv.nn.Conv2d(2, 4, 3, groups=2) for _ in range(3)]
    stacked, buffers = stack_module_state(layers)
    ys = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(stacked, buffers)
    torch.testing.assert_close(ys, torch.stack([layer(x) for layer in layers]))


def test_transforms_under_a_dispatch_mode(torch_rng: torch.Generator) -> None:
    ours, theirs = pair("conv2d")
    args = operands("conv2d", torch_rng, (3,))
    with forbid_aten():
        y = vmap(grad(lambda *a: ours(*a).pow(3).sum(), argnums=(0, 1, 2)))(*args)
    close(y, vmap(grad(lambda *a: theirs(*a).pow(3).sum(), argnums=(0, 1, 2)))(*args))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_compiled_transforms(name: str, torch_rng: torch.Generator) -> None:
    """In a compiled graph the operators themselves are transformed."""
    ours, theirs = pair(name)
    plain, tangents = operands(name, torch_rng), operands(name, torch_rng)
    batched = operands(name, torch_rng, (3,))
    every = (0, 1, 2)

    def loss(f: Function, *args: torch.Tensor) -> torch.Tensor:
        return f(*args).pow(3).sum()

    def transformed(f: Function) -> list[Any]:
        return [
            vmap(f)(*batched),
            vmap(f, (None, 0, None))(plain[0], batched[1], plain[2]),
            jvp(f, plain, tangents),
            grad(lambda *a: loss(f, *a), argnums=every)(*plain),
            vmap(grad(lambda *a: loss(f, *a), argnums=every))(*batched),
            jvp(grad(lambda *a: loss(f, *a), argnums=1), plain, tangents),
            curvature(f, *plain),
        ]

    compiled = torch.compile(lambda: transformed(ours), fullgraph=True, backend="aot_eager")
    close(compiled(), transformed(theirs))


def test_transforms_in_a_symbolic_trace(torch_rng: torch.Generator) -> None:
    """One graph for every size: nothing of the sizes that were traced is left in it."""
    ours, theirs = pair("conv2d")

    def slopes(f: Function) -> Function:
        return lambda x, w, b: vmap(grad(lambda *a: f(*a).pow(3).sum(), argnums=1), (0, None, None))(x, w, b)

    x, w, b = operands("conv2d", torch_rng, (3,))
    graph = make_fx(slopes(ours), tracing_mode="symbolic")(x, w[0], b[0])
    assert sum("gpuconv" in str(node.target) for node in graph.graph.nodes) >= 2
    for other in (x, tensor(torch_rng, 5, 3, 4, 9, 8)):
        close(graph(other, w[0], b[0]), slopes(theirs)(other, w[0], b[0]))


def test_compiled_vmap_of_an_epilogue(torch_rng: torch.Generator) -> None:
    x, w, b = operands("conv2d", torch_rng, (3,))
    scale = tensor(torch_rng, 3, 6)
    residual = tensor(torch_rng, 2, 6, 3, 3)

    def f(x: Any, w: Any, b: Any, scale: Any) -> torch.Tensor:
        return gpuconv.conv2d(x, w, b, 2, 1, 1, 2, scale=scale, shift=b, residual=residual, activation="gelu")

    compiled = torch.compile(vmap(f, (0, 0, 0, None)), fullgraph=True, backend="aot_eager")
    close(compiled(x, w, b, scale[0]), vmap(f, (0, 0, 0, None))(x, w, b, scale[0]))
    close(compiled(x, w, b, scale[0])[1], f(x[1], w[1], b[1], scale[0]))


def test_forward_mode_of_an_operator(torch_rng: torch.Generator) -> None:
    """Tangents are not lost where an operator is called by itself."""
    x, w, _ = operands("conv2d", torch_rng)
    geometry = ((2, 2), (1, 1), (1, 1), (1, 1), 2, "zeros")

    def f(w: torch.Tensor) -> torch.Tensor:
        return torch.ops.gpuconv.fprop(x, w, None, None, None, None, *geometry, "silu", "fused", None, None)

    close(jvp(f, (w,), (w,)), jvp(lambda w: F.silu(F.conv2d(x, w, None, 2, 1, 1, 2)), (w,), (w,)))
    with torch.autograd.forward_ad.dual_level():
        dual = f(torch.autograd.forward_ad.make_dual(w, w))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    close(tangent, jvp(f, (w,), (w,))[1])


def test_batched_backward_of_autograd(torch_rng: torch.Generator) -> None:
    ours, theirs = pair("conv2d")
    args = [t.requires_grad_() for t in operands("conv2d", torch_rng)]
    results = []
    for f in (ours, theirs):
        y = f(*args)
        seeds = torch.ones(2, *y.shape, dtype=y.dtype).cumsum(0)
        results.append(torch.autograd.grad(y, args, seeds, is_grads_batched=True))
    close(*results)
