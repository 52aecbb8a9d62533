"""PyTorch's own samples (OpInfo) with gradients through our kernels; the run ends with the kernels of each pass.

The gate takes a fifth of the samples of each dtype, other ones under another Triton, and leaves out those that take
more than a few seconds; ``GPUCONV_TEST_FULL=1`` takes all of them. Samples (one in the gate) come once more with every
tensor, and the gradient of the result, apart in memory. OpInfo's inputs for references are its samples here.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter

import pytest
import torch
import triton
from conv_samples import NAMES, check_with_gradients, interpreted_steps, op_info, samples
from launches import convolution_kernels, recorded_launches, table, unlaunched
from opinfo import noncontiguous_like

import gpuconv
from gpuconv.backends.triton import conv_rows

DTYPES = (torch.float32, torch.float64)
PARTS = 5
MOST_STEPS = 250


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples_with_gradients(name, dtype, full, record_property):
    torch.manual_seed(0)
    chosen = (zlib.crc32(triton.__version__.encode()) + DTYPES.index(dtype)) % PARTS
    seen = 0
    with recorded_launches() as launches:
        for number, (args, kwargs) in enumerate(samples(name, dtype)):
            if full or (number % PARTS == chosen and interpreted_steps(name, args, kwargs) <= MOST_STEPS):
                check_with_gradients(name, args, kwargs, "triton")
                seen += 1
    assert seen >= 2
    record_property("conv", name)
    record_property("launches", json.dumps([[*key, count] for key, count in sorted(launches.items())]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples_apart_in_memory(name, dtype, full):
    torch.manual_seed(0)
    found = list(samples(name, dtype))
    if not full:
        short = [each for each in found if interpreted_steps(name, *each) <= MOST_STEPS // 4]
        found = [short[(zlib.crc32(triton.__version__.encode()) + DTYPES.index(dtype)) % len(short)]]
    for args, kwargs in found:
        check_with_gradients(name, args, kwargs, "triton", noncontiguous_like)


def test_inputs_for_references_are_the_samples():
    for name in NAMES:
        assert op_info(name).reference_inputs_func is None


SIXTEEN_BITS = {
    "conv1d": ((8, 16, 82), (8, 16, 17)),  # long enough that both reductions are split
    "conv2d": ((1, 16, 4, 4), (8, 16, 3, 2)),
    "conv_transpose2d": ((1, 16, 4, 4), (16, 8, 3, 2)),
    "conv3d": ((1, 8, 4, 4, 4), (16, 8, 3, 2, 2)),
}


@pytest.mark.parametrize("last", (False, True), ids=("contiguous", "channels_last"))
@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_sixteen_bit_sample_with_gradients(name, last, record_property, torch_rng):
    """OpInfo's samples are small: these have as many channels as 16-bit paths of their own ask for."""
    x, w = (torch.randn(shape, generator=torch_rng).half() for shape in SIXTEEN_BITS[name])
    bias = torch.ones(w.shape[1 if "transpose" in name else 0]).half()
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    with recorded_launches() as launches:
        check_with_gradients(name, (x, w, bias), {"padding": 1}, "triton")
    record_property("launches", json.dumps([[*key, count] for key, count in sorted(launches.items())]))


NARROW = {
    "fprop": ("triton.conv.depthwise.march", (2, 8, 11, 12), (8, 1, 3, 3)),
    "dgrad": ("triton.conv.depthwise.march", (2, 8, 11, 12), (8, 1, 3, 3)),
    "wgrad": ("triton.conv.depthwise.collect", (4, 32, 20, 20), (32, 1, 3, 3)),
    "grouped": ("triton.conv.grouped.rows", (2, 32, 9, 10), (32, 8, 3, 3)),
    "wgrad grouped": ("triton.conv.grouped.wgrad", (2, 32, 9, 10), (32, 8, 3, 3)),
    "stem": ("triton.conv.fprop.runs", (2, 3, 12, 13), (16, 3, 3, 3)),
    "wgrad stem": ("triton.conv.wgrad.runs", (2, 3, 12, 13), (16, 3, 3, 3)),
    "16 bits": ("triton.conv.depthwise.banded", (2, 8, 11, 12), (8, 1, 5, 3)),
    "16 bits, last": ("triton.conv.fprop.rolling", (2, 16, 7, 9), (9, 16, 3, 3)),
    "16 bits, boxes, last": ("triton.conv.fprop.tma", (2, 16, 7, 9), (16, 16, 3, 3)),
}
"""Solvers that OpInfo's samples are too small for, with the shapes of x and w."""


@pytest.mark.parametrize(
    ("case", "last"),
    [(case, last) for case in NARROW for last in (False, True) if last or not {"grouped", "last"} & {*case.split()}],
)
def test_narrow_sample(case, last, record_property, torch_rng):
    solver, x_shape, w_shape = NARROW[case]
    groups = x_shape[1] // w_shape[1]
    layout = torch.channels_last if last else torch.contiguous_format
    dtype, limit = (torch.float16, 2e-2) if case.startswith("16 bits") else (torch.float32, 1e-4)
    x = torch.randn(x_shape, generator=torch_rng).to(dtype).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn(w_shape, generator=torch_rng).to(dtype).requires_grad_()
    expected = torch.nn.functional.conv2d(x, w, padding=1, groups=groups)
    dy = torch.randn(expected.shape, generator=torch_rng).contiguous(memory_format=layout)
    options = {"padding": 1, "groups": groups, "backend": solver}
    with recorded_launches() as launches:
        if case == "dgrad":
            ours = gpuconv.conv2d_input_grad(x_shape, w.detach(), dy, **options)
            (expected,) = torch.autograd.grad(expected, x, dy)
        elif case.startswith("wgrad"):
            ours = gpuconv.conv2d_weight_grad(x.detach(), w_shape, dy, **options)
            (expected,) = torch.autograd.grad(expected, w, dy)
        else:
            ours = gpuconv.conv2d(x.detach(), w.detach(), **options)
    torch.testing.assert_close(ours, expected.detach(), rtol=limit, atol=limit)
    record_property("launches", json.dumps([[*key, count] for key, count in sorted(launches.items())]))


def test_narrow_sample_with_packed_weights(record_property, monkeypatch, torch_rng):
    """Which large problems alone are planned with."""
    solver = type(conv_rows.SOLVERS[0])
    default = solver.default
    monkeypatch.setattr(solver, "default", lambda self, problem: {**default(self, problem), "PACKED": 1})
    x = torch.randn((2, 32, 9, 10), generator=torch_rng).contiguous(memory_format=torch.channels_last)
    w = torch.randn((32, 8, 3, 3), generator=torch_rng)
    options = {"padding": 1, "groups": 4}
    with recorded_launches() as launches:
        ours = gpuconv.conv2d(x, w, **options, backend=solver.id)
    torch.testing.assert_close(ours, torch.nn.functional.conv2d(x, w, **options), rtol=1e-4, atol=1e-4)
    record_property("launches", json.dumps([[*key, count] for key, count in sorted(launches.items())]))


def test_a_kernel_that_was_not_launched_is_named():
    kernels = sorted(convolution_kernels())
    launches = Counter({("fprop", kernel): 1 for kernel in kernels[1:]})
    assert unlaunched(launches) == {kernels[0]} and table(launches)[-1] == f"unlaunched: {kernels[0]}"
    launches["wgrad", kernels[0]] += 1
    assert not unlaunched(launches) and table(launches)[-1] == "unlaunched: none"
