"""All cases by the number of processes that run them."""

from __future__ import annotations

from functools import partial

import distributed_convs as convs
import distributed_deform as deform
import distributed_pools as pools
import distributed_training as training

__all__ = ["WORLDS"]

_ANYWHERE = {**dict(convs.cases()), **dict(deform.cases()), **dict(pools.cases()), **dict(training.cases())}
_ARGUMENTS = ("x", "w", "y", "vector", "shape", "groups")
_SQUARES = {
    f"square: {name}": partial(convs.on_squares, **dict(zip(_ARGUMENTS, case))) for name, case in convs.SQUARES.items()
}

WORLDS = {
    2: _ANYWHERE,
    3: _ANYWHERE | {"a mesh of some processes": training.of_some_processes},
    4: _SQUARES | {"square: fsdp and tensor parallel": training.fully_sharded_and_tensor_parallel},
}
