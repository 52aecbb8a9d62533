"""Problems and a pretended GPU for the tests of the cost model and of tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from gpuconv import shapes
from gpuconv.arrays import CHANNELS_LAST
from gpuconv.costs import constants
from gpuconv.costs import measured as cache
from gpuconv.costs.constants import Gpu
from gpuconv.problem import ConvProblem, PoolProblem

H200 = Gpu("NVIDIA H200", (9, 0))


def conv(
    n: int, c: int, size: int | tuple[int, ...], k: int, kernel: int = 3, stride: int = 1, groups: int = 1,
    formats: str = CHANNELS_LAST, dtype: str = "float16", kind: str = "fprop", **options: Any,
) -> ConvProblem:  # fmt: skip
    """Describe a convolution on a GPU that keeps its size at stride 1."""
    sizes = (size, size) if isinstance(size, int) else size
    ndim = len(sizes)
    window, steps, pads = (kernel,) * ndim, (stride,) * ndim, (kernel // 2,) * ndim
    output = shapes.map_axes(shapes.conv_output_size, sizes, window, steps, pads, pads, (1,) * ndim)
    problem = ConvProblem(
        op=f"conv{ndim}d", kind="fprop", n=n, c=c, k=k, groups=groups, input_size=sizes, kernel=window,
        output_size=output, stride=steps, pad_lo=pads, pad_hi=pads, dilation=(1,) * ndim, padding_mode="zeros",
        dtype=dtype, device="cuda:0", array="torch", x_format=formats, w_format=formats, y_format=formats, **options,
    )  # fmt: skip
    return replace(problem, kind=kind)


def pool(
    n: int, c: int, size: int, kernel: int = 3, stride: int = 2, kind: str = "fprop", **options: Any
) -> PoolProblem:
    """Describe a channels-last max pool on a GPU."""
    output = shapes.map_axes(
        shapes.pool_output_size, (size,) * 2, (kernel,) * 2, (stride,) * 2, (1,) * 2, (1,) * 2, (1,) * 2, (False,) * 2
    )
    values: dict[str, Any] = {
        "op": "max_pool2d", "pool": "max", "kind": kind, "n": n, "c": c, "input_size": (size,) * 2,
        "kernel": (kernel,) * 2, "output_size": output, "stride": (stride,) * 2, "pad_lo": (1, 1), "pad_hi": (1, 1),
        "dilation": (1, 1), "dtype": "float16", "device": "cuda:0", "array": "torch", "x_format": CHANNELS_LAST,
        "y_format": CHANNELS_LAST,
    }  # fmt: skip
    return PoolProblem(**(values | options))


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, folder: Any, gpu: Gpu = H200) -> Iterator[None]:
    """Have devices named cuda be a GPU of that name, whose tuned configs lie in `folder`, as in a new process."""
    import torch

    from gpuconv import dispatch
    from gpuconv.costs import files

    def new_process() -> None:
        cache.forget()
        constants._of_name.cache_clear()
        dispatch.selection._plan.cache_clear()
        files._warned.clear()

    with monkeypatch.context() as patched:
        patched.setenv("GPUCONV_CACHE_DIR", str(folder))
        patched.setattr(torch.cuda, "is_initialized", lambda: True)
        patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patched.setattr(torch.cuda, "synchronize", lambda: None)
        patched.setattr(constants, "_torch_gpu", lambda device: gpu)
        new_process()
        yield
    new_process()
