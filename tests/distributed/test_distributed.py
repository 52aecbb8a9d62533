"""More than one process: DDP, FSDP2 and DTensor over gloo equal one process, in outputs and in every gradient.

The cases run in processes of their own, forked from one that imports torch once (``distributed_worker.py``): those that
pytest selected, all in one go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from distributed_cases import WORLDS

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
CASES = [(size, name) for size, cases in WORLDS.items() for name in cases]

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str | None]]:
    """What went wrong in each selected case, by the number of processes."""
    folder = tmp_path_factory.mktemp("distributed")
    items = [item for item in request.session.items if getattr(item, "originalname", None) == "test_case"]
    wanted = {f"{item.callspec.params['size']}: {item.callspec.params['name']}" for item in items}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, str(HERE / "distributed_worker.py"), str(folder), *sorted(wanted)]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    results = {}
    for size in WORLDS:
        path = folder / f"found-{size}-0.json"
        assert path.is_file(), done.stdout + done.stderr
        results[size] = json.loads(path.read_text())
    return results


@pytest.mark.parametrize(("size", "name"), CASES, ids=[f"{size}: {name}" for size, name in CASES])
def test_case(found: dict[int, dict[str, str | None]], size: int, name: str) -> None:
    error = found[size][name]
    assert error is None, error


LATE = """
import os, sys
import torch
import gpuconv, gpuconv.nn
x, w = torch.ones(2, 1, 5, requires_grad=True), torch.ones(1, 1, 3)
gpuconv.conv1d(x, w).sum().backward()
gpuconv.max_pool1d(x, 2).sum().backward()
print("torch.distributed.tensor" in sys.modules)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
mesh = init_device_mesh("cpu", (1,))
y = gpuconv.conv1d(distribute_tensor(x, mesh, [Shard(0)]), distribute_tensor(w, mesh))
print(y.placements, y.full_tensor().sum().item())
torch.distributed.destroy_process_group()
"""


def test_what_nobody_distributes_imports_no_dtensor() -> None:
    """And when it is imported, after our operators, they have their rules. The worker imports it before them."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", LATE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["False", "(Shard(dim=0),) 18.0"]
