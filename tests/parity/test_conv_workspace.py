"""The NumPy convolutions allocate no more than their plans state."""

import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv
from gpuconv import dispatch
from gpuconv.backends.numpy.chunks import column_chunk, tap_chunk


def f16(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def nhwc(*shape: int) -> np.ndarray:
    n, c, *spatial = shape
    return np.moveaxis(f32(n, *spatial, c), -1, 1)


BIG: dict[str, tuple[str, Callable[[], tuple[Any, ...]], dict[str, Any]]] = {
    "fp16": ("conv2d", lambda: (f16(1, 64, 1024, 1024), f16(2, 64, 3, 3)), {"padding": 1}),
    "channels-last": ("conv2d", lambda: (nhwc(1, 64, 512, 512), f32(8, 64, 3, 3)), {"padding": 1}),
    "reflect": ("conv2d", lambda: (f32(1, 64, 512, 512), f32(4, 64, 3, 3)), {"padding": 1, "padding_mode": "reflect"}),
    "stride": (
        "conv2d",
        lambda: (f32(1, 16, 1024, 1024), f32(4, 16, 1, 1)),
        {"stride": 7, "padding": 5, "padding_mode": "circular"},
    ),
    "depthwise": (
        "conv2d",
        lambda: (f32(1, 64, 512, 512), f32(128, 1, 3, 3)),
        {"padding": 1, "groups": 64, "activation": "gelu_tanh"},
    ),
    "epilogue": (
        "conv2d",
        lambda: (f32(1, 16, 512, 512), f32(64, 16, 1, 1), f32(64)),
        {"activation": "silu", "residual": f32(1, 64, 512, 512), "scale": f32(64), "shift": f32(64)},
    ),
    "gelu": ("conv2d", lambda: (f32(1, 16, 256, 256), f32(8, 16, 1, 1)), {"activation": "gelu"}),
    "volume": ("conv3d", lambda: (f32(1, 32, 48, 96, 96), f32(4, 32, 3, 3, 3)), {"padding": 1}),
    "volume-fp16": ("conv3d", lambda: (f16(1, 32, 32, 96, 96), f16(4, 32, 3, 3, 3)), {"padding": 1, "stride": 2}),
    "long": ("conv1d", lambda: (f32(1, 4, 2_000_000), f32(4, 4, 31)), {"padding": 15}),
    "many-weights": ("conv2d", lambda: (f32(1, 512, 14, 14), f32(512, 512, 3, 3)), {"padding": 1}),
    "many-weights-fp16": ("conv2d", lambda: (f16(1, 512, 14, 14), f16(512, 512, 3, 3)), {"padding": 1}),
    "one-long-filter": ("conv2d", lambda: (f32(1, 32, 128, 128), f32(2, 32, 128, 128)), {}),
    "dgrad-many": (
        "conv2d_input_grad",
        lambda: ((1, 512, 14, 14), f32(512, 512, 3, 3), f32(1, 512, 14, 14)),
        {"padding": 1},
    ),
    "dgrad-many-fp16": (
        "conv2d_input_grad",
        lambda: ((1, 512, 14, 14), f16(512, 512, 3, 3), f16(1, 512, 14, 14)),
        {"padding": 1},
    ),
    "dgrad": ("conv2d_input_grad", lambda: ((1, 64, 512, 512), f32(8, 64, 3, 3), f32(1, 8, 512, 512)), {"padding": 1}),
    "dgrad-fp16": (
        "conv2d_input_grad",
        lambda: ((1, 64, 512, 512), f16(8, 64, 3, 3), f16(1, 8, 512, 512)),
        {"padding": 1},
    ),
    "dgrad-reflect": (
        "conv2d_input_grad",
        lambda: ((1, 64, 256, 256), f32(8, 64, 3, 3), f32(1, 8, 256, 256)),
        {"padding": 1, "padding_mode": "reflect"},
    ),
    "dgrad-depthwise": (
        "conv2d_input_grad",
        lambda: ((1, 64, 512, 512), f32(64, 1, 3, 3), f32(1, 64, 512, 512)),
        {"padding": 1, "groups": 64},
    ),
    "dgrad-depthwise-circular": (
        "conv2d_input_grad",
        lambda: ((1, 8, 1024, 1024), f32(8, 1, 3, 3), f32(1, 8, 1024, 1024)),
        {"padding": 1, "groups": 8, "padding_mode": "circular"},
    ),
    "dgrad-stride": (
        "conv2d_input_grad",
        lambda: ((1, 16, 1000, 1000), f32(4, 16, 1, 1), f32(1, 4, 100, 100)),
        {"stride": 10},
    ),
    "transposed": (
        "conv_transpose2d",
        lambda: (f32(1, 64, 256, 256), f32(64, 16, 4, 4)),
        {"stride": 2, "padding": 1, "activation": "relu"},
    ),
    "transposed-volume": (
        "conv_transpose3d",
        lambda: (f32(1, 16, 24, 48, 48), f32(16, 8, 4, 4, 4)),
        {"stride": 2, "padding": 1},
    ),
    "wgrad": ("conv2d_weight_grad", lambda: (f32(1, 64, 512, 512), (8, 64, 3, 3), f32(1, 8, 512, 512)), {"padding": 1}),
    "wgrad-many": (
        "conv2d_weight_grad",
        lambda: (f32(1, 512, 14, 14), (512, 512, 3, 3), f32(1, 512, 14, 14)),
        {"padding": 1},
    ),
    "wgrad-complex": (
        "conv2d_weight_grad",
        lambda: (f32(1, 16, 256, 256) * 1j, (8, 16, 3, 3), f32(1, 8, 256, 256) * 1j),
        {"padding": 1},
    ),
    "wgrad-depthwise-fp16": (
        "conv2d_weight_grad",
        lambda: (f16(1, 64, 512, 512), (64, 1, 3, 3), f16(1, 64, 512, 512)),
        {"padding": 1, "groups": 64},
    ),
}
MANY_WEIGHTS = ("many-weights", "many-weights-fp16", "dgrad-many", "dgrad-many-fp16", "wgrad-many", "one-long-filter")
DEFAULT_LIMIT = 256 << 20


def peak(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return the bytes that a call allocates at most beyond its result."""
    tracemalloc.start()
    try:
        result = fn(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


CASES = [(name, limit) for name in BIG for limit in (DEFAULT_LIMIT, 16 << 20)]
CASES += [(name, 1 << 20) for name in (BIG if os.environ.get("GPUCONV_TEST_FULL") else MANY_WEIGHTS)]


@pytest.mark.parametrize("name, limit", CASES, ids=[f"{name}-{limit >> 20}MiB" for name, limit in CASES])
def test_workspace_is_what_the_plan_states(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak beyond operands and result, as tracemalloc sees it: NumPy reports its arrays there."""
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(limit))
    op, operands, kwargs = BIG[name]
    fn, args = getattr(gpuconv, op), operands()
    explanation = gpuconv.explain(fn, *args, **kwargs)
    stated = dispatch.select(explanation.problem).workspace
    whole_images = kwargs.get("padding_mode", "zeros") != "zeros" and "dgrad" in name  # these are summed into
    assert stated <= limit or (whole_images and limit == 1 << 20)
    measured = peak(fn, args, kwargs)
    if measured > stated:  # once more: a table of Python's own may have grown, as that of its strings does, by 1 MB
        measured = peak(fn, args, kwargs)
    assert measured <= stated, f"{measured:,} bytes used, {stated:,} stated"


def test_what_is_summed_over_is_cut_last() -> None:
    """A transposed convolution under 1 MiB has room for all channels of y, once its image is cut."""
    x, w = f32(1, 64, 256, 256), f32(64, 16, 4, 4)
    problem = gpuconv.explain(gpuconv.conv_transpose2d, x, w, stride=2, padding=1).problem
    chunk = column_chunk(problem, 1 << 20)
    assert chunk.k_parts == 1 and chunk.positions > 32, chunk


@pytest.mark.parametrize("groups", (8, 1))
def test_a_limit_below_what_cannot_be_cut_makes_no_small_pieces(groups: int) -> None:
    """A plane that a gradient is summed into takes 4 MiB: what is cut beside it keeps a size that pays."""
    args = ((1, 8, 1024, 1024), f32(8, 8 // groups, 3, 3), f32(1, 8, 1024, 1024))
    options = {"padding": 1, "padding_mode": "circular", "groups": groups}
    problem = gpuconv.explain(gpuconv.conv2d_input_grad, *args, **options).problem
    chunk = (tap_chunk if groups == 8 else column_chunk)(problem, 1 << 20)
    assert chunk.cells * 4 >= 4096, chunk
