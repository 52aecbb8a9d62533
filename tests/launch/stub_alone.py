"""The stub driver in a process without Triton: CPU tensors that gpuconv takes for a GPU's, and launches from packs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gpuconv import arrays
from gpuconv.backends.triton import common, launch
from gpuconv.backends.triton.backend import TritonBackend
from gpuconv.ops import tiers
from gpuconv.packs import driver

watching = False


@contextmanager
def watched() -> Iterator[None]:
    """Have an audit hook that looks at `watching` take notes inside the ``with`` block."""
    global watching
    watching = True
    try:
        yield
    finally:
        watching = False


_LEAST_ADDRESS = 1 << 32
"""Numbers of 8 bytes below this one are no addresses of this process, and those above it are: tests are small."""


def facts(launched: Any) -> list[Any]:
    """Return what does not depend on the process: everything that the driver was told, less what addresses are.

    An address is told by when it is met first among the arguments. A tensor map is one, and a hash of what it was made
    of, which the stub wrote behind it.
    """
    met: dict[int, int] = {}

    def known(argument: bytes) -> Any:
        number = int.from_bytes(argument[:8], "little")
        if len(argument) in (8, 128) and number >= _LEAST_ADDRESS:
            return [met.setdefault(number, len(met)), argument[8:].hex()]
        return argument.hex()

    arguments = [known(argument) for argument in launched.arguments]
    how = [launched.shared, launched.attributes, list(launched.cluster), launched.scheduling]
    return [launched.kernel, list(launched.grid), list(launched.block), *how, arguments]


@contextmanager
def stub() -> Iterator[Any]:
    """Take CPU tensors for tensors on ``cuda:0`` inside the ``with`` block."""
    from stub_gpu import StubGpu, library

    gpu = StubGpu()
    kind = type(arrays.TORCH)
    allocate, original = kind.empty, driver._function
    library().stub_set_device(0)

    def told(found: Any, device: int) -> int:
        function = original(found, device)
        gpu.declare_sizes(
            function, [size for parameter in found.entry.layout.parameters for size in parameter.sizes] + [8, 8]
        )
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "device", lambda self, array: "cuda:0")
        patch.setattr(kind, "empty", lambda self, shape, dtype, _, layout: allocate(self, shape, dtype, "cpu", layout))
        patch.setattr(tiers, "on_gpu", lambda tensor: True)
        patch.setattr(common, "_device_guard", gpu.on_device)
        patch.setattr(TritonBackend, "missing", lambda self: None)
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", gpu.stream, raising=False)
        patch.setattr(torch.cuda, "current_device", lambda: gpu.device)
        patch.setattr(driver, "_function", told)
        patch.setattr(launch, "capability_of", lambda device: (9, 0))
        patch.setattr("gpuconv.backends.triton.backend.capability_of", lambda device: (9, 0))
        yield gpu
