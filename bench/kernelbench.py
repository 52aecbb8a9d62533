"""The convolutions and poolings of KernelBench, level 1, with the times that its authors publish for an H100.

They are single calls of contiguous tensors in float32, convolutions with products in tf32; one problem is two calls.
`kernelbench_level1.json` says where its numbers come from. As a set of problems they are `kernelbench`, which is
measured where it is asked for by name: some of its tensors are larger than those of all networks together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["FILE", "GPU", "NAME", "Published", "about", "published"]

NAME = "kernelbench"
FILE = Path(__file__).with_name("kernelbench_level1.json")

GPU = "h100"
"""The GPU of the published times, among those whose constants the cost model has."""


@dataclass(frozen=True)
class Published:
    """A problem of the benchmark: its calls as layers of a workload, and the published times in milliseconds."""

    number: int
    name: str
    batch: int
    layers: tuple[Mapping[str, Any], ...]
    eager_ms: float
    inductor_ms: float


def _layer(op: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as the workloads have layers: sizes without the batch, functions by name."""
    module = op["module"]
    kind, axes = module[:-2], module[-2:]
    name = {"Conv": "conv", "ConvTranspose": "conv_transpose", "MaxPool": "max_pool", "AvgPool": "avg_pool"}[kind]
    layer = {"op": name + axes, "input": op["input"][1:], "output": op["output"][1:], "count": 1}
    same = ("stride", "padding", "dilation")
    layer |= {key: op[key] for key in same}
    if "Pool" in kind:
        return layer | {"kernel_size": op["kernel"]}
    return layer | {key: op[key] for key in ("weight", "groups", "bias")}


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def about() -> str:
    """Return what the file says of its numbers."""
    text: str = _content()["about"]
    return text


@cache
def published() -> tuple[Published, ...]:
    """Return every problem, in the benchmark's order."""
    return tuple(
        Published(
            problem["problem"], problem["name"], problem["ops"][0]["input"][0], tuple(map(_layer, problem["ops"])),
            problem["h100_eager_ms"], problem["h100_inductor_ms"],
        )
        for problem in _content()["problems"]
    )  # fmt: skip
