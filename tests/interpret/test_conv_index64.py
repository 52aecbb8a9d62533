"""Tensors of more than 2^31 elements, of which only the ends are touched: the 64-bit variant is chosen and right.

Their storage is committed when it is first touched, and the interpreter works on the storage itself. Where the variant
for 32 bits is forced instead, its loads are checked and refused before they are made.
"""

from __future__ import annotations

import resource
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction

import gpuconv
from gpuconv import numerics
from gpuconv.dispatch import record_plans

H, W = 2**16 + 3, 2**15
STRIDE = (2**16, 2**15)
"""With a window of 3 x 3 this leaves two outputs: one reads the first three lines of H x W, one the last three."""


class OutOfBoundsError(Exception):
    """A kernel was about to use memory that is no tensor of its launch."""


@pytest.fixture(autouse=True)
def watched(monkeypatch):
    """Record the arguments of each launch, and refuse accesses outside of the storages of its tensors."""
    seen = []
    start, unchecked = InterpretedFunction.run, interpreter._interpreter

    def run(self, *args, **kwargs):
        seen.append(kwargs)
        return start(self, *args, **kwargs)

    def check(pointers, mask):
        storages = [t.untyped_storage() for t in seen[-1].values() if isinstance(t, torch.Tensor)]
        inside = np.zeros(np.shape(pointers), bool)
        for storage in storages:
            first = np.uint64(storage.data_ptr())
            inside |= (pointers >= first) & (pointers < first + np.uint64(storage.nbytes()))
        if (mask & ~inside).any():
            raise OutOfBoundsError

    def load(pointers, mask, *rest):
        check(pointers, mask)
        return unchecked.load(pointers, mask, *rest)

    def store(pointers, value, mask):
        check(pointers, mask)
        return unchecked.store(pointers, value, mask)

    names = [name for name in dir(unchecked) if not name.startswith("__")]
    others = {name: getattr(unchecked, name) for name in names}
    monkeypatch.setattr(InterpretedFunction, "run", run)
    monkeypatch.setattr(interpreter, "_interpreter", SimpleNamespace(**others | {"load": load, "store": store}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield seen
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, f"{grown} KiB of the tensors were touched"


def large():
    """Return [1, 1, H, W] of more than 2^31 elements, none of which is touched yet."""
    tensor = torch.empty(1, 1, H, W, dtype=torch.float16)
    assert tensor.numel() > 2**31
    return tensor


def windows(x, pad):
    """Return the 3 x 3 windows of x that the outputs read, [outputs, 3, 3]; padding wraps around."""
    columns = torch.arange(-pad, 3 - pad) % W
    rows = [torch.arange(start - pad, start - pad + 3) % H for start in (0, STRIDE[0])]
    return torch.stack([x[0, 0, r[:, None], columns[None, :]] for r in rows])


def drawn(rng, pad):
    """Return a large x with values where windows read it, and its windows in float64."""
    x = large()
    columns = torch.arange(-pad, 3 - pad) % W
    for start in (0, STRIDE[0]):
        rows = torch.arange(start - pad, start - pad + 3) % H
        x[0, 0, rows[:, None], columns[None, :]] = torch.randn(3, 3, generator=rng).half()
    return x, windows(x, pad).double()


def options_of(pad):
    """Return the geometry: without padding, or wrapping around from the first line to the last."""
    mode = "circular" if pad else "zeros"
    return {"stride": STRIDE, "padding": ((pad, 0), (pad, 0)), "padding_mode": mode}


def compare(actual, reference, magnitude, length):
    numerics.assert_close(actual.numpy(), reference.numpy(), magnitude.numpy(), "float16", length)


def variants(seen):
    """Return INDEX64 of the launches that use a large tensor."""
    tensors = [[value for value in kwargs.values() if isinstance(value, torch.Tensor)] for kwargs in seen]
    return {
        kwargs["INDEX64"] for kwargs, given in zip(seen, tensors) if max(tensor.numel() for tensor in given) > 2**31
    }


def fprop(rng, pad, channels=2):
    x, read = drawn(rng, pad)
    w = torch.randn(channels, 1, 3, 3, generator=rng).half()
    y = gpuconv.conv2d(x, w, **options_of(pad), backend="triton")
    reference, magnitude = (
        torch.einsum("prs,krs->kp", a, b) for a, b in ((read, w[:, 0].double()), (read.abs(), w[:, 0].double().abs()))
    )
    compare(y[0, :, :, 0], reference, magnitude, 9)


def wgrad(rng, pad, channels=2):
    x, read = drawn(rng, pad)
    dy = torch.randn(1, channels, 2, 1, generator=rng).half()
    dw = gpuconv.conv2d_weight_grad(x, (channels, 1, 3, 3), dy, **options_of(pad), backend="triton")
    grads = dy[0, :, :, 0].double()
    reference, magnitude = (torch.einsum("kp,prs->krs", a, b) for a, b in ((grads, read), (grads.abs(), read.abs())))
    compare(dw[:, 0], reference, magnitude, 2)


def dgrad(rng, _, channels=2):
    """Padding as large as the gradient: a small x reads the last lines and columns of it."""
    dy, size, tail = large(), 4, 6
    last = (slice(None), slice(None), slice(-tail, None), slice(-tail, None))
    dy[last] = torch.randn(tail, tail, generator=rng).half()
    w = torch.randn(1, channels, 3, 3, generator=rng).half()
    pads = ((H - size + 2, 0), (W - size + 2, 0))
    dx = gpuconv.conv2d_input_grad((1, channels, size, size), w, dy, padding=pads, backend="triton")
    compact = [((tail - size + 2, 0),) * 2, dy[last].double(), w.double()]
    reference, magnitude = (
        gpuconv.conv2d_input_grad((1, channels, size, size), change(compact[2]), change(compact[1]), padding=compact[0])
        for change in (torch.clone, torch.abs)
    )
    compare(dx, reference, magnitude, 9)


PASSES = {"fprop": (fprop, 0), "fprop circular": (fprop, 1), "dgrad": (dgrad, 0), "wgrad": (wgrad, 0),
          "wgrad circular": (wgrad, 1)}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_the_variant_for_64_bits_is_chosen_and_right(name, watched, torch_rng):
    run, pad = PASSES[name]
    with record_plans() as plans:
        run(torch_rng, pad)
    assert plans[0].problem.index64 and plans[0].solver.id.startswith("triton.")
    assert variants(watched) == {True}


@pytest.mark.parametrize("name", PASSES)
def test_the_variant_for_32_bits_would_leave_the_tensors(name, watched, torch_rng, monkeypatch):
    """What the choice is for: with it, accesses fall outside or results are wrong."""
    for module in [module for name, module in sys.modules.items() if name.startswith("gpuconv.backends.triton.")]:
        if hasattr(module, "index64"):
            monkeypatch.setattr(module, "index64", lambda *_: False)
    run, pad = PASSES[name]
    with np.errstate(over="ignore"), pytest.raises(Exception, match=r"OutOfBoundsError|out of tolerance"):
        run(torch_rng, pad, channels=3)
    assert variants(watched) == {False}


FAR = 2**30 + 8
"""A stride of which twice as much does not fit in 32 bits, though it does by itself."""


def _far(*parts, reach=2 * FAR):
    """Return a tensor of each shape and strides, drawn, in memory that is touched where the tensor lies alone."""
    found = []
    for shape, strides in parts:
        tensor = torch.empty(reach + 64, dtype=torch.float16).as_strided(shape, strides)
        found.append(tensor.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))))
    return found


def _near(shape):
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return shape, tuple(strides)


@pytest.mark.parametrize("name", ("rows", "columns", "taps"))
def test_far_rows_of_a_separable_convolution(name, watched):
    """The kernel multiplies a stride by a number of its own, which must have 64 bits before."""
    x, w = _near((1, 2, 3, 3)), _near((2, 1, 3, 3))
    if name == "taps":
        w = w[0], (3, 3, FAR, 1)
    else:
        x = x[0], (0, 3, FAR, 1) if name == "rows" else (0, 3, 1, FAR)
    (x, w), v = _far(x, w), torch.randn(3, 2, 1, 1).half()
    y = gpuconv.depthwise_separable_conv2d(x, w, v, backend="triton.conv.separable.fused")
    assert {kwargs["INDEX64"] for kwargs in watched} == {True}
    between = torch.einsum("cij,cij->c", x[0].double(), w[:, 0].double()).half().double()
    expected = v[:, :, 0, 0].double() @ between
    assert torch.allclose(y.flatten().double(), expected, rtol=4e-3, atol=4e-3)


def test_far_slices_of_runs(watched):
    """Dilation along the depth multiplies its stride."""
    (x,) = _far(((1, 1, 3, 2, 4), (0, 0, FAR, 4, 1)))
    w = torch.randn(2, 1, 2, 2, 3).half()
    y = gpuconv.conv3d(x, w, dilation=(2, 1, 1), backend="triton.conv.fprop.runs")
    assert {kwargs["INDEX64"] for kwargs in watched} == {True}
    expected = torch.nn.functional.conv3d(x.double(), w.double(), dilation=(2, 1, 1))
    assert torch.allclose(y.double(), expected, rtol=4e-3, atol=4e-3)


def test_slices_before_a_volume_of_runs(watched):
    """A slice of a window that begins in the padding lies further from its first than any two of the volume."""
    far = 2**29 + 8
    (x,) = _far(((1, 1, 2, 2, 4), (0, 0, far, 4, 1)), reach=far)
    w = torch.randn(2, 1, 5, 2, 3).half()
    y = gpuconv.conv3d(x, w, padding=((3, 0), (0, 0), (0, 0)), backend="triton.conv.fprop.runs")
    assert [kwargs["INDEX64"] for kwargs in watched] == [False, True]  # weights lie close together
    expected = torch.nn.functional.conv3d(torch.nn.functional.pad(x.double(), (0, 0, 0, 0, 3, 0)), w.double())
    assert torch.allclose(y.double(), expected, rtol=4e-3, atol=4e-3)


def test_far_rows_of_phases(watched):
    """A phase's rows of a residual are as far apart as the stride of the convolution says."""
    (residual,) = _far(((1, 1, 3, 4), (0, 0, FAR, 1)))
    y, w = torch.randn(1, 1, 2, 2).half(), torch.randn(1, 1, 1, 2).half()
    options = {"stride": 2, "residual": residual, "backend": "triton.conv.dgrad.runs"}
    x = gpuconv.conv_transpose2d(y, w, **options)
    assert {kwargs["INDEX64"] for kwargs in watched} == {True}
    expected = torch.nn.functional.conv_transpose2d(y.double(), w.double(), stride=2) + residual.double()
    assert torch.allclose(x.double(), expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("axis", (2, 3, 1), ids=("rows", "columns", "channels"))
def test_far_8_bit_numbers(axis, watched):
    """Input and result of one byte an element: the last are more than 2^31 bytes away from the first."""
    strides = {1: (0, FAR, 3, 1), 2: (0, 3, FAR, 1), 3: (0, 3, 1, FAR)}[axis]
    x = torch.empty(2 * FAR + 64, dtype=torch.int8).as_strided((1, 3, 3, 3), strides)
    x.copy_(torch.arange(27).reshape(x.shape) - 13)
    w = torch.arange(54).remainder(7).sub(3).to(torch.int8).reshape(2, 3, 3, 3)
    options = {"input_scale": 0.5, "weight_scale": torch.tensor([1.0, 2.0]), "out_dtype": "float32"}
    y = gpuconv.scaled_conv2d(x, w, **options, backend="triton.conv.scaled.implicit_gemm")
    assert [kwargs["INDEX64"] for kwargs in watched] == [True]
    sums = torch.einsum("cij,kcij->k", x[0].long(), w.long())
    assert torch.equal(y.flatten(), sums.float() * torch.tensor([0.5, 1.0]))
