"""Data parallel training of gpuconv's modules over gloo, two processes: DDP, and FSDP2, which resizes storages."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gpuconv.nn

STEPS = 3


def network(lib: ModuleType) -> nn.Module:
    """Return a small network of the modules of `lib`, the same for both."""
    torch.manual_seed(0)
    return nn.Sequential(
        lib.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), lib.MaxPool2d(2),
        lib.Conv2d(8, 8, 3, padding=1, groups=8), lib.AvgPool2d(2), lib.ConvTranspose2d(8, 4, 2, 2),
        lib.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip


def sharded(model: nn.Module) -> nn.Module:
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


WAYS = {"ddp": DistributedDataParallel, "fsdp": sharded}


def trained(way: str, lib: ModuleType, rank: int) -> list[torch.Tensor]:
    """Return the losses of a few steps and the parameters after them."""
    model = WAYS[way](network(lib))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    data, results = torch.Generator().manual_seed(rank), []
    for _ in range(STEPS):
        loss = model(torch.randn(4, 3, 16, 16, generator=data, dtype=torch.float64)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        results.append(loss.detach())
    return results + [(p.full_tensor() if way == "fsdp" else p).detach() for p in model.parameters()]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for way in WAYS:
        theirs, ours = (trained(way, lib, rank) for lib in (nn, gpuconv.nn))
        torch.testing.assert_close(ours, theirs)
        Path(folder, f"{way}-{rank}").write_text(str(len(ours)))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_training_equals_torchs(tmp_path):
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    done = {path.name: path.read_text() for path in tmp_path.iterdir() if path.name != "rendezvous"}
    assert done == {f"{way}-{rank}": str(STEPS + 10) for way in WAYS for rank in (0, 1)}
