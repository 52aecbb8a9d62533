"""Training on a GPU: OpInfo's samples with gradients, threads and streams, memory, more than 2^31 elements."""

from __future__ import annotations

import threading

import pytest
import torch
from conv_samples import NAMES, check_with_gradients, samples
from on_gpu import to_gpu
from torch.autograd import gradcheck, gradgradcheck

import gpuconv
from gpuconv import numerics
from gpuconv.dispatch import record_plans
from gpuconv.testing import forbid_aten


def gradients(fn, inputs, seed, **options):
    """Return a result and its gradients by all inputs."""
    y = fn(*inputs, **options)
    return [y.detach(), *torch.autograd.grad(y, inputs, seed if seed is not None else torch.ones_like(y))]


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_samples_with_gradients(name, dtype):
    """Against float64 of the same values, and so against what cuDNN is held to, in ieee precision."""
    torch.manual_seed(0)
    for args, kwargs in samples(name, dtype):
        args = [to_gpu(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        check_with_gradients(name, args, {**kwargs}, "triton", precision="ieee")


@pytest.mark.parametrize("name", NAMES)
def test_second_order_agrees_with_cudnn(name):
    torch.manual_seed(0)
    for args, kwargs in samples(name, torch.float64):
        if args[0].numel() == 0:
            continue
        inputs = [to_gpu(arg).requires_grad_() for arg in args if isinstance(arg, torch.Tensor)]
        found = []
        for module in (gpuconv, torch.nn.functional):
            y = getattr(module, name)(*inputs, **kwargs)
            first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
            found.append([y, *first, *torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)])
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    ndim, options = int(name[-2]), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    new = {"dtype": torch.float64, "device": "cuda", "requires_grad": True}
    x, w = torch.randn(2, 4, *(5, 4, 6)[:ndim], **new), torch.randn(4, 2, *(2, 3, 2)[:ndim], **new)

    def run(x, w):
        return getattr(gpuconv, name)(x, w, **options)

    assert gradcheck(run, (x, w), fast_mode=True)
    assert gradgradcheck(run, (x, w), fast_mode=True)


@pytest.mark.parametrize("precision", ("ieee", "tf32", "tf32x3"))
def test_precision_is_that_of_the_plans(precision):
    x, w = (torch.randn(4, 64, 16, 16, device="cuda", requires_grad=True) for _ in range(2))
    with record_plans() as plans:
        gradients(gpuconv.conv2d, (x, w), None, precision=precision, padding=1)
    assert [plan.problem.precision for plan in plans] == [precision] * 3


@pytest.mark.parametrize("setting", ("ieee", "tf32"))
def test_follows_torch_s_setting(setting, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", setting)
    x, w = (torch.randn(4, 64, 16, 16, device="cuda", requires_grad=True) for _ in range(2))
    with record_plans() as plans:
        gradients(gpuconv.conv2d, (x, w), None, padding=1)
    assert [plan.problem.precision for plan in plans] == [setting] * 3


def test_deterministic_algorithms_change_nothing():
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in ((8, 32, 28, 28), (64, 32, 3, 3))]
    before = gradients(gpuconv.conv2d, inputs, None, padding=1)
    torch.use_deterministic_algorithms(True)
    try:
        after = gradients(gpuconv.conv2d, inputs, None, padding=1)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(before, after))


@pytest.mark.parametrize("operator", (False, True), ids=("function", "operator"))
def test_backward_from_another_thread_and_stream(operator):
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in ((8, 32, 28, 28), (64, 32, 3, 3))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), gpuconv.use_backend("triton"):
        if operator:
            with forbid_aten():
                y = gpuconv.conv2d(*inputs, padding=1)
        else:
            y = gpuconv.conv2d(*inputs, padding=1)
    torch.cuda.current_stream().wait_stream(stream)
    found = []
    thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(y, inputs, torch.ones_like(y))))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    expected = gradients(gpuconv.conv2d, inputs, None, padding=1)[1:]
    assert len(found) == 2 and all(torch.equal(one, other) for one, other in zip(found, expected))


MEMORY = {
    "volume": ("conv3d", (2, 32, 24, 32, 32), (32, 32, 3, 3, 3), {"padding": 1}),
    "circular": ("conv2d", (4, 32, 128, 128), (32, 32, 3, 3), {"padding": (2, 1), "padding_mode": "circular"}),
}


@pytest.mark.parametrize("name", MEMORY)
def test_peak_memory_is_results_and_stated_workspace(name):
    """By the counters of torch's allocator, which rounds every allocation up to 512 bytes."""
    op, x_shape, w_shape, options = MEMORY[name]
    x, w = (torch.randn(shape, device="cuda", requires_grad=True) for shape in (x_shape, w_shape))
    fn = getattr(gpuconv, op)
    gradients(fn, (x, w), None, **options)  # compiles
    seed = torch.ones_like(fn(x, w, **options).detach())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with record_plans() as plans:
        results = gradients(fn, (x, w), seed, **options)
    peak = torch.cuda.max_memory_allocated() - before
    stated = sum(result.nbytes for result in results) + max(plan.workspace for plan in plans)
    assert peak <= stated + 512 * (len(results) + 2)


def test_more_than_two_to_the_31_elements():
    """x has 2^31 + 2^26 elements: a strided convolution, both gradients, against the same in slices of the batch."""
    n, image = 33, (1, 2**13, 2**13)
    if torch.cuda.mem_get_info()[0] < 12 * n * image[1] * image[2]:
        pytest.skip("needs 25 GiB of free GPU memory")
    x = torch.randn(n, *image, device="cuda", dtype=torch.float16)
    w = torch.randn(2, 1, 3, 3, device="cuda", dtype=torch.float16)
    options = {"stride": 4, "padding": 1, "backend": "triton"}
    y = gpuconv.conv2d(x, w, **options)
    assert gpuconv.explain(gpuconv.conv2d, x, w, **options).problem.index64
    dx = gpuconv.conv2d_input_grad(x.shape, w, y, **options)
    for one in (0, n - 1):
        part = slice(one, one + 1)
        assert torch.equal(y[part], gpuconv.conv2d(x[part], w, **options))
        assert torch.equal(dx[part], gpuconv.conv2d_input_grad(x[part].shape, w, y[part], **options))
    dy = torch.zeros_like(y)
    corners = ((0, slice(0, 4), slice(0, 14), (1, 0)), (n - 1, slice(-4, None), slice(8175, 8190), (0, 0)))
    expected, magnitude = 0, 0
    for one, of_y, of_x, pads in corners:
        dy[one, :, of_y, of_y] = torch.randn(2, 4, 4, device="cuda").half()
        crop = [t[one, :, part, part][None].cpu().double() for t, part in ((x, of_x), (dy, of_y))]
        geometry = {"stride": 4, "padding": (pads, pads)}
        expected = expected + gpuconv.conv2d_weight_grad(crop[0], w.shape, crop[1], **geometry)
        magnitude = magnitude + gpuconv.conv2d_weight_grad(crop[0].abs(), w.shape, crop[1].abs(), **geometry)
    dw = gpuconv.conv2d_weight_grad(x, w.shape, dy, **options)
    numerics.assert_close(dw.cpu().numpy(), expected.numpy(), magnitude.numpy(), "float16", 32)
