"""Modules under DDP, FSDP2 and DTensor train as in one process; what cannot be distributed is refused with a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import gpuconv
import gpuconv.nn

__all__ = ["cases", "fully_sharded_and_tensor_parallel", "of_some_processes"]

Case = Callable[[Any], None]

STEPS = 3


def network() -> nn.Module:
    """Return a small network, the same every time, whose layers no number of processes divides."""
    torch.manual_seed(0)
    return nn.Sequential(
        gpuconv.nn.Conv2d(3, 5, 3, padding="same_upper", activation="relu"), gpuconv.nn.MaxPool2d(2),
        gpuconv.nn.Conv2d(5, 5, 3, padding=1, groups=5), gpuconv.nn.AvgPool2d(2),
        gpuconv.nn.ConvTranspose2d(5, 4, 2, 2),
        gpuconv.nn.LPPool2d(2, 2), gpuconv.nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    ).double()  # fmt: skip


def volumes() -> nn.Module:
    """Return a network of 1-D, 2-D and 3-D layers and of those that are several convolutions."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.volume = gpuconv.nn.Conv3d(2, 5, 3, padding=1, activation="silu")
            self.image = gpuconv.nn.DepthwiseSeparableConv2d(5, 7, 3, padding=1)
            self.signal = gpuconv.nn.CausalConv1d(7, 3, activation="silu")
            self.pool = gpuconv.nn.AvgPool1d(3)

        def forward(self, x: Any) -> Any:
            y = self.volume(x).amax(2)
            return self.pool(self.signal(self.image(y).amax(2)))

    return Net().double()


def ddp(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def trained(world: Any, wrap: Callable[[nn.Module], nn.Module], make: Any, shape: tuple[int, ...], alone: bool) -> Any:
    """Return outputs of the first step, its gradients, and the parameters after some steps."""
    model = make() if alone else wrap(make())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(1)
    kept: Any = None
    for _ in range(STEPS):
        x = torch.randn(shape, generator=data, dtype=torch.float64)
        if not alone:  # gradients are averaged
            x = torch.tensor_split(x, world.size)[world.rank]
        y = model(x)
        optimiser.zero_grad()
        (y.square().sum() * (1 if alone else world.size)).backward()
        kept = kept or (y.detach().clone(), [whole(p.grad).clone() for p in model.parameters()])
        optimiser.step()
    return *kept, [whole(p) for p in model.parameters()]


def data_parallel(world: Any, wrap: Callable[[nn.Module], nn.Module], make: Any, shape: tuple[int, ...]) -> None:
    theirs, ours = (trained(world, wrap, make, shape, alone) for alone in (True, False))
    theirs = (torch.tensor_split(theirs[0], world.size)[world.rank], *theirs[1:])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def distribute(world: Any, model: nn.Module, places: dict[str, str], mesh: Any) -> None:
    """Replace the parameters of a model by distributed ones, by name; those without a place are replicated."""
    from torch.distributed.tensor import distribute_module

    def placed(name: str, module: nn.Module, _: Any) -> None:
        for key, value in list(module.named_parameters(recurse=False)):
            where = places.get(f"{name}.{key}", "R")
            module.register_parameter(key, nn.Parameter(world.put(value.detach(), where, mesh).detach()))

    distribute_module(model, mesh, placed)


def by_dtensor(world: Any, make: Any, places: dict[str, str], place: str, shape: tuple[int, ...], result: str) -> None:
    """A model of DTensors: nothing is sent forward, and results and gradients are those of one process."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone, shared = make(), make()
    theirs = alone(x)
    theirs.square().sum().backward()
    distribute(world, shared, places, world.mesh)
    given = world.put(x, place)
    ours, sent = world.counted(lambda: shared(given))
    assert sent == 0, sent
    assert world.places(ours) == result, world.places(ours)
    torch.testing.assert_close(whole(ours), theirs.detach(), rtol=1e-10, atol=1e-12)
    ours.square().sum().backward()
    found = {name: whole(parameter.grad) for name, parameter in shared.named_parameters()}
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def blocks() -> nn.Module:
    """Return layers for tensor parallelism: filters are sharded, then channels, which are summed over last."""
    torch.manual_seed(0)
    return nn.Sequential(
        gpuconv.nn.Conv2d(3, 7, 3, padding=1, activation="relu"),
        gpuconv.nn.Conv2d(7, 7, 3, groups=7, activation="relu"), gpuconv.nn.MaxPool2d(2), gpuconv.nn.Conv2d(7, 4, 1),
    ).double()  # fmt: skip


TENSOR_PARALLEL = {"0.weight": "S0", "0.bias": "S0", "1.weight": "S0", "1.bias": "S0", "3.weight": "S1"}


def fully_sharded_and_tensor_parallel(world: Any) -> None:
    """FSDP2 over one dimension of a mesh, filters and channels over the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    x = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone, shared = blocks(), blocks()
    theirs = alone(x)
    (theirs.square().sum() / 2).backward()
    mine = x.chunk(2)[mesh.get_local_rank("data")]
    distribute(world, shared, TENSOR_PARALLEL, mesh["tensor"])
    fully_shard(shared, mesh=mesh["data"])
    ours = shared(world.put(mine, "R", mesh["tensor"]))
    torch.testing.assert_close(whole(ours), theirs.detach().chunk(2)[mesh.get_local_rank("data")])
    ours.square().sum().backward()
    found = {name: whole(parameter.grad) for name, parameter in shared.named_parameters()}
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def of_some_processes(world: Any) -> None:
    """A mesh that this process may not be of."""
    from torch.distributed.device_mesh import DeviceMesh

    mesh = DeviceMesh("cpu", [0, 1])
    x, w = world.integers((5, 3, 6, 6)), world.integers((4, 3, 3, 3), 1)
    shared = world.put(x, "S0", mesh), world.put(w, "R", mesh)
    y = gpuconv.conv2d(*shared)
    by_weight = torch.autograd.grad(y.sum(), shared[1])[0]
    assert world.places(y) == "S0" and world.places(by_weight) == "P"
    if world.rank < 2:
        assert torch.equal(y.full_tensor(), gpuconv.conv2d(x, w))


def without_gradients(world: Any) -> None:
    """Inference mode, unbatched input, and tensors that nobody distributed."""
    x, w = world.integers((5, 6, 6)), world.integers((7, 5, 3, 3), 1)
    with torch.inference_mode():
        y = gpuconv.conv2d(world.put(x, "S0").detach(), world.put(w, "S1").detach())
        assert world.places(y) == "P"
        assert torch.equal(y.full_tensor(), gpuconv.conv2d(x, w))
    from torch.distributed.tensor.experimental import implicit_replication

    with implicit_replication():
        y = gpuconv.conv2d(world.put(x[None], "R"), w)
    assert torch.equal(y.full_tensor(), gpuconv.conv2d(x[None], w))


def again(world: Any) -> None:
    """Derivatives of derivatives."""

    def function(x: Any, w: Any) -> Any:
        y = gpuconv.max_pool2d(gpuconv.conv2d(x, w, padding=1), 2)
        by_x, by_w = torch.autograd.grad(y.square().sum(), (x, w), create_graph=True)
        by_w = by_w.redistribute(placements=w.placements) if hasattr(w, "placements") else by_w
        return by_x.square().sum() + by_w.square().sum()

    tensors = world.integers((5, 3, 6, 6)), world.integers((5, 3, 3, 3), 1)
    alone = [tensor.clone().requires_grad_() for tensor in tensors]
    expected = torch.autograd.grad(function(*alone), alone)
    shared = [world.put(tensor, place) for tensor, place in zip(tensors, ("S0", "R"))]
    found = torch.autograd.grad(function(*shared), shared)
    torch.testing.assert_close([whole(grad) for grad in found], list(expected))


REFUSED: dict[str, tuple[str, Callable[[Callable[[tuple[int, ...], str], Any]], Any]]] = {
    "conv2d input": (
        r"conv2d: input must be whole along the spatial dimensions of \(N, C, H, W\): redistribute dimension 2 of "
        r"input to Replicate\(\), but got \(Shard\(dim=2\),\)",
        lambda put: gpuconv.conv2d(put((2, 3, 6, 6), "S2"), put((3, 3, 3, 3), "R")),
    ),
    "conv1d weight": (
        r"conv1d: weight must be whole .* \(K, C, S\): redistribute dimension 2 of weight to Replicate\(\)",
        lambda put: gpuconv.conv1d(put((2, 3, 6), "R"), put((3, 3, 3), "S2")),
    ),
    "conv3d residual": (
        r"conv3d: residual must .* redistribute dimension 4 of residual to Replicate\(\)",
        lambda put: gpuconv.conv3d(
            put((2, 3, 4, 4, 4), "S0").detach(), put((3, 3, 1, 1, 1), "R").detach(),
            residual=put((2, 3, 4, 4, 4), "S4").detach(),
        ),
    ),
    "transposed": (
        r"conv_transpose2d: input must .* redistribute dimension 3 of input to Replicate\(\)",
        lambda put: gpuconv.conv_transpose2d(put((2, 3, 6, 6), "S3"), put((3, 3, 3, 3), "R")),
    ),
    "input gradient": (
        r"conv2d_input_grad: grad_output must .* redistribute dimension 2 of grad_output to Replicate\(\)",
        lambda put: gpuconv.conv2d_input_grad((2, 3, 8, 8), put((3, 3, 3, 3), "R"), put((2, 3, 6, 6), "S2")),
    ),
    "gradient of an output": (
        r"conv2d_(input|weight)_grad: grad_output must .* redistribute dimension 2 of grad_output to Replicate\(\)",
        lambda put: gpuconv.conv2d(put((2, 3, 8, 8), "S0"), put((3, 3, 3, 3), "R")).backward(put((2, 3, 6, 6), "S2")),
    ),
    "max_pool2d": (
        r"max_pool2d: input must .* redistribute dimension 2 of input to Replicate\(\)",
        lambda put: gpuconv.max_pool2d(put((2, 3, 6, 6), "S2"), 2),
    ),
    "fold": (
        r"fold: input must .* \(N, C, L\): redistribute dimension 2 of input to Replicate\(\)",
        lambda put: gpuconv.fold(put((2, 4, 9), "S2"), 4, 2),
    ),
    "avg_pool1d_backward": (
        r"avg_pool1d_backward: grad_output must .* redistribute dimension 2 of grad_output to Replicate\(\)",
        lambda put: gpuconv.avg_pool1d_backward(put((2, 4, 4), "S2").detach(), put((2, 4, 8), "R").detach(), 2),
    ),
    "a plain weight": (
        r"conv2d: weight must be a DTensor, as others are \(see distribute_tensor\), but got 'Parameter'",
        lambda put: gpuconv.conv2d(put((2, 3, 6, 6), "S0"), nn.Parameter(torch.zeros(3, 3, 3, 3).double())),
    ),
    "shapes that do not fit": (
        r"conv2d: weight must have the input's channels per group",
        lambda put: gpuconv.conv2d(put((2, 3, 6, 6), "S0"), put((3, 4, 3, 3), "R")),
    ),
}  # fmt: skip


def refused(world: Any, pattern: str, call: Callable[..., Any]) -> None:
    try:
        call(lambda shape, place: world.put(world.integers(shape), place))
    except RuntimeError as error:
        assert re.match(pattern, str(error)), str(error)
    else:
        raise AssertionError("not refused")


def cases() -> Iterator[tuple[str, Case]]:
    """Yield names and functions of a world."""
    for name, wrap in (("ddp", ddp), ("fsdp", fsdp)):
        yield f"{name} network", partial(data_parallel, wrap=wrap, make=network, shape=(5, 3, 16, 16))
        yield f"{name} volumes", partial(data_parallel, wrap=wrap, make=volumes, shape=(5, 2, 4, 5, 9))
        yield f"{name} hollow", partial(data_parallel, wrap=wrap, make=network, shape=(1, 3, 16, 16))
    for name, places, place, result in (
        ("batch", {}, "S0", "S0"),
        ("tensor parallel", TENSOR_PARALLEL, "R", "P"),
    ):
        yield (
            f"dtensor {name}",
            partial(by_dtensor, make=blocks, places=places, place=place, shape=(5, 3, 8, 8), result=result),
        )
    yield "dtensor network", partial(by_dtensor, make=network, places={}, place="S0", shape=(5, 3, 16, 16), result="S0")
    yield (
        "dtensor volumes",
        partial(by_dtensor, make=volumes, places={}, place="S0", shape=(5, 2, 4, 5, 9), result="S0"),
    )
    yield "without gradients", without_gradients
    yield "second derivatives", again
    for name, (pattern, call) in REFUSED.items():
        yield f"refused: {name}", partial(refused, pattern=pattern, call=call)
