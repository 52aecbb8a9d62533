"""In-window offsets, which gradients save instead of positions: both say the same, on every shape of window."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gpuconv.ops.conv  # registers the operators
from gpuconv.arrays import TORCH
from gpuconv.dispatch import run, select
from gpuconv.normalize.pool import adaptive_call
from gpuconv.normalize.pool_forward import fractional_call, max_call
from gpuconv.ops.pool_fake import AS_INPUT, Form
from gpuconv.ops.pool_library import launch
from gpuconv.problem import Call

SIZES = {1: (13,), 2: (9, 11), 3: (6, 7, 5)}


def special(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random input with ties, NaN and infinities."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 2).round()
    pick = torch.rand(shape, generator=generator)
    x[pick < 0.05] = float("nan")
    x[(pick > 0.05) & (pick < 0.5)] = -float("inf")
    return x.to(dtype)


def with_offsets(call: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a call twice: return maxima and positions, and maxima and offsets."""
    problem: Any = call.problem
    again = Call(replace(problem, offsets=True), call.arrays, call.kind, call.unbatched)
    return *run(call), *run(again)


def check(call: Call, x: torch.Tensor) -> None:
    y, positions, again, offsets = with_offsets(call)
    problem: Any = call.problem
    torch.testing.assert_close(again, y, rtol=0, atol=0, equal_nan=True)
    taps = torch.Size(problem.kernel).numel()
    assert offsets.dtype is getattr(torch, replace(problem, offsets=True).offset_dtype)
    assert offsets.stride() == positions.stride()
    assert int(offsets.min()) >= 0 and int(offsets.max()) < taps
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    found = []
    for indices, small in ((positions, False), (offsets, True)):
        back = replace(problem, kind="bwd", return_indices=False, offsets=small)
        arrays = {"y": dy, "indices": indices} | (
            {"samples": call.arrays["samples"]} if "samples" in call.arrays else {}
        )
        found.append(run(Call(back, arrays, call.kind, False)))
    assert torch.equal(*found)
    form = Form(
        problem.pool, problem.kernel, problem.stride, problem.pad_lo, problem.pad_hi, problem.dilation,
        problem.output_size, problem.ceil_mode, True, None, 0.0, False, True, AS_INPUT, "numpy",
    )  # fmt: skip
    flat = x.flatten(2).gather(2, positions.flatten(2)).reshape(y.shape)
    torch.testing.assert_close(
        launch("max_pool_gather", (x, offsets, call.arrays.get("samples")), form), flat, rtol=0, atol=0, equal_nan=True
    )


WINDOWS = [
    (2, None, 0, 1, False), (3, 2, 1, 1, False), (3, 2, 1, 2, True), (2, 3, 1, 2, True), (4, 1, 2, 1, False),
    (3, 1, "same", 1, False), (2, 2, ((1, 0),), 1, False), (5, 5, 2, 1, True),
]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_windows(ndim: int, last: bool) -> None:
    for dtype, (kernel, stride, pad, dilation, ceil) in itertools.product((torch.float32, torch.bfloat16), WINDOWS):
        x = special((2, 3, *SIZES[ndim]), dtype)
        x = x.moveaxis(1, -1).contiguous().moveaxis(-1, 1) if last else x
        pad = pad * ndim if isinstance(pad, tuple) else pad
        check(max_call(f"max_pool{ndim}d", ndim, x, kernel, stride, pad, dilation, ceil, True, None), x)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_adaptive(ndim: int, last: bool) -> None:
    x = special((2, 3, *SIZES[ndim]))
    x = x.moveaxis(1, -1).contiguous().moveaxis(-1, 1) if last else x
    for size in (1, 2, 3, 4, 20):
        check(adaptive_call(f"adaptive_max_pool{ndim}d", ndim, x, "adaptive_max", size, None, True), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional(ndim: int, dtype: torch.dtype) -> None:
    x, samples = special((2, 3, *SIZES[ndim]), dtype), torch.rand(2, 3, ndim).to(dtype).clamp(max=0.99)
    for kernel, size in ((2, 3), (1, 4), (3, 1)):
        args = (x, kernel, size, None, True, samples, None)
        check(fractional_call(f"fractional_max_pool{ndim}d", ndim, *args), x)


def test_the_type_is_the_smallest() -> None:
    for kernel, dtype in ((11, torch.int8), (12, torch.int16), (181, torch.int16), (182, torch.int32)):
        x = torch.randn(1, 1, 182, 182)
        x[0, 0, 180, 180] = 9
        call = max_call("max_pool2d", 2, x, kernel, kernel, 0, 1, False, True, None)
        y, _, _, offsets = with_offsets(call)
        assert offsets.dtype is dtype
        check(call, x)
        torch.testing.assert_close(y, F.max_pool2d(x, kernel))


def test_offsets_beyond_the_window_are_refused() -> None:
    x = torch.randn(1, 1, 4, 4)
    problem: Any = max_call("max_pool2d", 2, x, 2, 2, 0, 1, False, True, None).problem
    back = replace(problem, kind="bwd", return_indices=False, offsets=True)
    for bad in (-1, 4):
        arrays = {"y": torch.ones(1, 1, 2, 2), "indices": torch.full((1, 1, 2, 2), bad, dtype=torch.int8)}
        with pytest.raises(RuntimeError, match="taps of a window of 4"):
            run(Call(back, arrays, TORCH, False))


def test_windows_of_padding_alone() -> None:
    """A dilation can make them, with paddings that torch does not have: they take nothing, and give nothing back."""
    for ndim in (1, 2):
        x = torch.randn(1, 2, *(1, 3)[2 - ndim :], dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"padding": "same", "dilation": 4}
        padded = F.pad(x, (2, 2) * ndim, value=-float("inf"))
        ours = getattr(gpuconv, f"max_pool{ndim}d")(x, 2, 1, **options)
        theirs = getattr(F, f"max_pool{ndim}d")(padded, 2, 1, dilation=4)
        torch.testing.assert_close(ours, theirs)
        seed = torch.arange(1.0, 1 + ours.numel(), dtype=torch.float64).reshape(ours.shape).requires_grad_()
        slopes = [torch.autograd.grad(y, x, seed, create_graph=True)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*slopes)
        (back,) = torch.autograd.grad(slopes[0].sum(), seed)
        assert torch.equal(back, theirs.isfinite().double())


def test_workspace_bound_is_an_upper_bound() -> None:
    import tracemalloc

    x = torch.randn(8, 16, 56, 56)
    for kernel, dilation in ((3, 1), (3, 2), (7, 1)):
        problem: Any = max_call("max_pool2d", 2, x, kernel, 2, 1, dilation, False, True, None).problem
        forward = replace(problem, offsets=True)
        indices = run(Call(forward, {"x": x}, TORCH))[1]
        back = replace(forward, kind="bwd", return_indices=False)
        arrays = ({"x": x}, {"y": torch.ones(indices.shape), "indices": indices})
        for described, given in zip((forward, back), arrays):
            call = Call(described, given, TORCH)
            bound = select(described).workspace
            tracemalloc.start()
            run(call)
            _, peak = tracemalloc.get_traced_memory()  # results are torch's memory, which is not counted
            tracemalloc.stop()
            assert peak <= bound + (64 << 10), (kernel, dilation, described.kind, peak, bound)
