"""One process among several over gloo: how cases place tensors, compare with one process, and count collectives.

Places are written as in ``"S0"`` (sharded along dimension 0), ``"R"`` (replicated) and ``"P"`` (terms of a sum), one
for each dimension of the mesh, separated by blanks. Values are small integers in float64: sums of any order are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

__all__ = ["World"]

Tensor = torch.Tensor


class World:
    """What a case sees of the processes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.mesh = init_device_mesh("cpu", (size,) if size < 4 else (2, 2))

    def place(self, place: str) -> Any:
        return Replicate() if place == "R" else Partial() if place == "P" else Shard(int(place[1:]))

    def put(self, tensor: Tensor, places: str, mesh: DeviceMesh | None = None) -> DTensor:
        """Distribute a tensor that every process has; one that can, wants a gradient."""
        mesh = mesh or self.mesh
        placements = [self.place(place) for place in places.split()]
        if "P" in places.split():
            assert placements == [Partial()]
            terms = [self.integers(tensor.shape, seed=term).to(tensor.dtype) for term in range(1, self.size)]
            terms.append(tensor - sum(terms, torch.zeros_like(tensor)))
            strides = {"shape": tensor.shape, "stride": tensor.stride()}
            result = DTensor.from_local(terms[self.rank], mesh, placements, run_check=False, **strides)
        else:
            result = distribute_tensor(tensor, mesh, placements)
        return result.requires_grad_(tensor.is_floating_point())

    @staticmethod
    def integers(shape: Sequence[int], seed: int = 0, low: int = -3, high: int = 4) -> Tensor:
        """Return small integers in float64, the same on every process."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, high, tuple(shape), generator=generator).double()

    @staticmethod
    def places(tensor: Tensor) -> str:
        """Return where a tensor is."""
        assert isinstance(tensor, DTensor), type(tensor)
        names = {Replicate(): "R", Partial(): "P"}
        return " ".join(names.get(placement) or f"S{placement.dim}" for placement in tensor.placements)

    @staticmethod
    def counted(function: Callable[[], Any]) -> tuple[Any, int]:
        """Return a result, and how many collectives it took."""
        with CommDebugMode() as mode:
            result = function()
        return result, mode.get_total_counts()

    def compare(
        self, function: Callable[..., Any], tensors: Mapping[str, Tensor | None], places: Mapping[str, str],
        result: str | None = None, gradients: Mapping[str, str] | None = None, free: bool = True, exact: bool = True,
    ) -> None:  # fmt: skip
        """Compare results and every gradient of a function with those of one process.

        `result` and `gradients` are the expected places, None to expect none, and `free` says that nothing is sent.
        """
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        alone = {name: _leaf(tensor) for name, tensor in given.items()}
        shared = {name: self.put(tensor, places[name]) for name, tensor in given.items()}
        theirs = function(**alone)
        ours, sent = self.counted(lambda: function(**shared))
        assert not free or sent == 0, f"{sent} collectives forward"
        several = isinstance(theirs, tuple)
        for mine, other in zip(ours if several else (ours,), theirs if several else (theirs,), strict=True):
            assert result is None or self.places(mine) == result, f"the result is {self.places(mine)}, not {result}"
            same(mine, other, exact, "result")
        mine, other = (ours[0], theirs[0]) if several else (ours, theirs)
        wanted = [name for name, tensor in alone.items() if tensor.requires_grad]
        if gradients is None or not wanted or not other.requires_grad:
            return
        seed = self.integers(other.shape, seed=9)
        grad = self.put(seed, self.places(mine).replace("P", "R")).detach()
        expected = torch.autograd.grad(other, [alone[name] for name in wanted], seed)
        found, sent = self.counted(lambda: torch.autograd.grad(mine, [shared[name] for name in wanted], grad))
        assert not free or sent == 0, f"{sent} collectives backward"
        for name, ours_, theirs_ in zip(wanted, found, expected, strict=True):
            if name in gradients:
                assert self.places(ours_) == gradients[name], f"gradient of {name} is {self.places(ours_)}"
            same(ours_, theirs_, exact, f"gradient of {name}")


def same(ours: Tensor, theirs: Tensor, exact: bool, what: str) -> None:
    """Check that a distributed tensor is what one process has: shape, type, layout and values."""
    assert isinstance(ours, DTensor)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (what, ours.shape, theirs.shape)
    assert ours.stride() == theirs.stride(), (what, ours.stride(), theirs.stride())
    whole = ours.detach().full_tensor()
    if exact:
        assert torch.equal(whole, theirs.detach()), f"{what} differs"
    else:
        torch.testing.assert_close(whole, theirs.detach(), rtol=1e-12, atol=1e-12)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_(tensor.is_floating_point())


def agree(error: str | None) -> list[str | None]:
    """Return what went wrong on each process."""
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return errors
