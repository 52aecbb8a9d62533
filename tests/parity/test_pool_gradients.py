"""The backward pools on NumPy against torch's autograd."""

import itertools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv.testing import forbid_aten  # noqa: E402

SIZES = {1: (13,), 2: (9, 11), 3: (6, 7, 5)}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def make(shape, dtype=torch.float32, seed=0, special=False):
    """Random input; with `special` it has ties, NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if special:
        x = (x * 2).round()
        pick = torch.rand(shape, generator=generator)
        x[pick < 0.05] = float("nan")
        x[(pick > 0.05) & (pick < 0.3)] = -float("inf")
        x[pick > 0.97] = float("inf")
    return x.to(dtype)


CALLS = itertools.count()


def run(name, *args, **kwargs):
    """Run a call where torch's own pools are forbidden, which makes it an operator; each fourth also as it is."""
    state = torch.random.get_rng_state()
    with forbid_aten():
        result = getattr(gpuconv, name)(*args, **kwargs)
    if next(CALLS) % 4 == 0:
        torch.random.set_rng_state(state)
        same(getattr(gpuconv, name)(*args, **kwargs), result, strides=True, exact=True)
    return result


def same(actual, expected, strides=False, exact=False):
    results = (actual, expected) if isinstance(expected, tuple) else ((actual,), (expected,))
    for ours, theirs in zip(*results, strict=True):
        tight = {"rtol": 0, "atol": 0} if exact else {}
        torch.testing.assert_close(ours, theirs, equal_nan=True, check_stride=strides, **tight)


def layouts(x, ndim):
    """The input as it is, channels-last, a slice with gaps, a transposed view, an expanded view."""
    yield x
    if ndim > 1:
        yield x.contiguous(memory_format=FORMATS[ndim])
    else:
        yield x.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    yield wide[..., ::2]
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x[:1].expand(3, *x.shape[1:])
    yield x[:, :1].expand(x.shape[0], 4, *x.shape[2:])


GRADS = [
    (2, None, 0, 1, False), (3, 2, 1, 1, False), (3, 2, 1, 1, True), (2, 3, 1, 2, True), (4, 1, 2, 1, False),
    (3, 1, 1, 2, False),
]  # fmt: skip


def autograd(fn, x, dy_seed=1):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = fn(x)
    y = y[0] if isinstance(y, tuple) else y
    dy = make(y.shape, y.dtype, dy_seed)
    (dx,) = torch.autograd.grad(y, x, dy)
    return dy, dx


def formats(x, ndim):
    return list(layouts(x, ndim))[:3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_window_gradients(ndim, dtype):
    for kernel, stride, pad, dilation, ceil in GRADS:
        for x in formats(make((2, 3, *SIZES[ndim]), dtype), ndim):
            for array in (x, x[0]):
                args = (kernel, stride, pad, dilation, ceil)
                fn = getattr(F, f"max_pool{ndim}d")
                dy, dx = autograd(lambda v, fn=fn, args=args: fn(v, *args, return_indices=True), array)
                indices = fn(array, *args, return_indices=True)[1]
                same(run(f"max_pool{ndim}d_with_indices_backward", dy, array, *args, indices), dx)
                for include in (True, False):
                    args = (kernel, stride, pad, ceil, include)
                    dy, dx = autograd(lambda v, args=args: getattr(F, f"avg_pool{ndim}d")(v, *args), array)
                    same(run(f"avg_pool{ndim}d_backward", dy, array, *args), dx)
                if ndim > 1:
                    args = (kernel, stride, pad, ceil, True, 5)
                    dy, dx = autograd(lambda v, args=args: getattr(F, f"avg_pool{ndim}d")(v, *args), array)
                    same(run(f"avg_pool{ndim}d_backward", dy, array, *args), dx)


def test_gradients_keep_the_memory_format():
    x = make((2, 3, 8, 8)).contiguous(memory_format=torch.channels_last)
    dy = make((2, 3, 4, 4))
    indices = F.max_pool2d(x, 2, return_indices=True)[1]
    for dx in (
        run("max_pool2d_with_indices_backward", dy, x, 2, 2, 0, 1, False, indices),
        run("avg_pool2d_backward", dy, x, 2),
        run("adaptive_avg_pool2d_backward", dy, x),
        run("lp_pool2d_backward", dy, x, 2, 2),
    ):
        assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_gradients(ndim, dtype):
    powers = (1, 2, 3, 2.5, -1.0, float("inf"), -float("inf"))
    for p, (kernel, stride, ceil) in itertools.product(powers, ((2, None, False), (3, 2, True), (3, 1, False))):
        base = make((2, 3, *SIZES[ndim]), dtype)
        base = base if p in (1, 2) or abs(p) == float("inf") else base.abs() + 0.2
        for x in formats(base, ndim):
            args = (p, kernel, stride, ceil)
            dy, dx = autograd(lambda v, args=args: getattr(F, f"lp_pool{ndim}d")(v, *args), x)
            same(run(f"lp_pool{ndim}d_backward", dy, x, *args), dx)
    zeros = torch.zeros(2, 3, *SIZES[ndim], dtype=dtype)
    dy, dx = autograd(lambda v: getattr(F, f"lp_pool{ndim}d")(v, 2, 2), zeros)
    same(run(f"lp_pool{ndim}d_backward", dy, zeros, 2, 2), dx)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_adaptive_gradients(ndim, dtype):
    for size in (1, 2, 3, 4, 20):
        for x in formats(make((2, 3, *SIZES[ndim]), dtype), ndim):
            for array in (x, x[0]):
                dy, dx = autograd(lambda v, size=size: getattr(F, f"adaptive_avg_pool{ndim}d")(v, size), array)
                same(run(f"adaptive_avg_pool{ndim}d_backward", dy, array), dx)
                fn = getattr(F, f"adaptive_max_pool{ndim}d")
                dy, dx = autograd(lambda v, size=size, fn=fn: fn(v, size), array)
                indices = fn(array, size, return_indices=True)[1]
                same(run(f"adaptive_max_pool{ndim}d_backward", dy, array, indices), dx)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional_gradients(ndim, dtype):
    x = make((2, 3, *SIZES[ndim]), dtype)
    samples = torch.rand(2, 3, ndim, dtype=dtype)
    options = {"output_size": 3, "_random_samples": samples, "return_indices": True}
    fn = getattr(F, f"fractional_max_pool{ndim}d")
    dy, dx = autograd(lambda v: fn(v, 2, **options), x)
    same(run(f"fractional_max_pool{ndim}d_backward", dy, x, 2, 3, fn(x, 2, **options)[1]), dx)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool_gradients(ndim):
    for x in formats(make((2, 3, *SIZES[ndim]), torch.float64), ndim):
        values, indices = getattr(F, f"max_pool{ndim}d")(x, 2, return_indices=True)
        for array, where in ((values, indices), (values[0], indices[0])):
            fn = getattr(F, f"max_unpool{ndim}d")
            size = x.shape[2:]
            dy, dx = autograd(lambda v, fn=fn, where=where, size=size: fn(v, where, 2, output_size=size), array)
            same(run(f"max_unpool{ndim}d_backward", dy, array, where), dx)


def test_fold_is_the_gradient_of_unfold():
    x = make((2, 3, 6, 7), torch.float64)
    dy, dx = autograd(lambda v: F.unfold(v, (2, 3), 2, 1, 2), x)
    same(run("fold", dy, (6, 7), (2, 3), 2, 1, 2), dx)


def test_16_bit_gradients_add_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        x = make((2, 3, 9, 11), dtype)
        dy = make((2, 3, 9, 11), dtype, 1)
        indices = F.max_pool2d(x, 3, 1, 1, return_indices=True)[1]
        wide = torch.ops.aten.max_pool2d_with_indices_backward(
            dy.float(), x.float(), [3, 3], [1, 1], [1, 1], [1, 1], False, indices
        )
        same(run("max_pool2d_with_indices_backward", dy, x, 3, 1, 1, 1, False, indices), wide.to(dtype))
        wide = torch.ops.aten.avg_pool2d_backward(dy.float(), x.float(), [3, 3], [1, 1], [1, 1], False, True, None)
        same(run("avg_pool2d_backward", dy, x, 3, 1, 1), wide.to(dtype))
