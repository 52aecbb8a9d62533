"""The NumPy pools against torch on the CPU: values, indices, dtypes, memory formats and worked numbers."""

import itertools
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv import config, shapes  # noqa: E402
from gpuconv.backends.numpy import (  # noqa: E402
    pool_axes,
    pool_scatter,
    pool_tiles,
)
from gpuconv.dispatch import record_plans  # noqa: E402
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


def window_cases(ndim, count=40):
    rng = random.Random(ndim)
    for _ in range(count):
        kernel = tuple(rng.randint(1, 4) for _ in range(ndim))
        yield (
            kernel,
            tuple(rng.randint(1, 4) for _ in range(ndim)),
            tuple(rng.randint(0, k // 2) for k in kernel),
            tuple(rng.randint(1, 2) for _ in range(ndim)),
            rng.random() < 0.5,
        )


def fits(size, kernel, stride, pad, dilation, ceil):
    return all(
        shapes.pool_output_size(n, k, s, p, p, d, ceil) > 0
        for n, k, s, p, d in zip(size, kernel, stride, pad, dilation, strict=True)
    )


@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_max(ndim, special):
    x = make((2, 3, *SIZES[ndim]), special=special)
    name = f"max_pool{ndim}d"
    for (kernel, stride, pad, dilation, ceil), array in itertools.product(window_cases(ndim), layouts(x, ndim)):
        if not fits(SIZES[ndim], kernel, stride, pad, dilation, ceil):
            continue
        args = (kernel, stride, pad, dilation, ceil)
        expected = getattr(F, name)(array, *args, return_indices=True)
        found = run(name, array, *args, return_indices=True)
        if ndim == 3:
            assert found[0].stride() == expected[0].stride()
            # For a channels-last window of nothing but -inf torch's 3-D kernel gives an index outside of that window.
            expected = getattr(F, name)(array.contiguous(), *args, return_indices=True)
        same(found, expected, strides=ndim < 3, exact=True)
        same(run(name, array, *args), expected[0], exact=True)


@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_avg(ndim, special):
    x = make((2, 3, *SIZES[ndim]), special=special)
    name = f"avg_pool{ndim}d"
    for case, array in itertools.product(window_cases(ndim), layouts(x, ndim)):
        kernel, stride, pad, _, ceil = case
        if not fits(SIZES[ndim], kernel, stride, pad, (1,) * ndim, ceil):
            continue
        for include in (True, False):
            args = (kernel, stride, pad, ceil, include)
            same(run(name, array, *args), getattr(F, name)(array, *args), strides=ndim < 3)
        if ndim > 1:
            args = (kernel, stride, pad, ceil, True, -3)
            same(run(name, array, *args), getattr(F, name)(array, *args))


@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_adaptive(ndim, special):
    x = make((2, 3, *SIZES[ndim]), special=special)
    sizes = [1, 2, 3, 5, 7, 20]
    if ndim > 1:
        sizes += [(None, 3, 2)[:ndim], (2, None, 1)[:ndim], (1, 1, 2)[:ndim], (9, 11, 5)[:ndim], (0, 2, 2)[:ndim]]
    for size, array in itertools.product(sizes, layouts(x, ndim)):
        for kind in ("avg", "max"):
            name = f"adaptive_{kind}_pool{ndim}d"
            expected = getattr(F, name)(array, size)
            same(run(name, array, size), expected, strides=ndim < 3 and expected.numel() > 0)
        same(
            run(name, array, size, return_indices=True), getattr(F, name)(array, size, return_indices=True), exact=True
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("ndim", [2, 3])
def test_fractional(ndim, dtype):
    for special in (False, True):
        x = make((3, 4, *SIZES[ndim]), dtype, special=special)
        samples = torch.rand(3, 4, ndim, dtype=dtype, generator=torch.Generator().manual_seed(5))
        for (kernel, size), array in itertools.product(((2, 3), (1, 4), (3, 1), (2, 2)), layouts(x, ndim)):
            drawn = samples[: array.shape[0], : array.shape[1]]
            options = {"output_size": size, "return_indices": True, "_random_samples": drawn}
            name = f"fractional_max_pool{ndim}d"
            expected = getattr(F, name)(array, kernel, **options)
            same(run(name, array, kernel, **options), expected, strides=True, exact=True)


def test_fractional_draws_from_the_generator_of_its_arrays():
    x = make((2, 3, 9, 9))
    torch.manual_seed(3)
    expected = F.fractional_max_pool2d(x, 2, output_ratio=(0.5, 0.6))
    torch.manual_seed(3)
    same(run("fractional_max_pool2d", x, 2, output_ratio=(0.5, 0.6)), expected)
    np.random.seed(3)
    one = gpuconv.fractional_max_pool2d(x.numpy(), 2, 4)
    np.random.seed(3)
    np.testing.assert_array_equal(one, gpuconv.fractional_max_pool2d(x.numpy(), 2, 4))
    np.random.seed(4)
    assert not np.array_equal(one, gpuconv.fractional_max_pool2d(x.numpy(), 2, 4))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_fractional_starts_are_those_of_shapes(dtype):
    samples = torch.rand(40, dtype=getattr(torch, dtype), generator=torch.Generator().manual_seed(0))
    wide = samples.float().numpy() if dtype == "bfloat16" else samples.numpy()
    for size, out, kernel in ((10, 4, 2), (31, 30, 2), (7, 1, 3), (200, 77, 3), (64, 33, 2)):
        starts = pool_scatter.fractional_starts(size, out, kernel, wide, dtype)
        for row, sample in zip(starts, samples.tolist(), strict=True):
            assert tuple(row) == shapes.fractional_pool_starts(size, out, kernel, sample, dtype)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpool(ndim):
    x = make((2, 3, *SIZES[ndim]))
    for array in layouts(x, ndim):
        for kernel, stride, pad in ((2, None, 0), (3, 2, 1), (2, 3, 0)):
            values, indices = getattr(F, f"max_pool{ndim}d")(array, kernel, stride, pad, return_indices=True)
            for size in (None, array.shape, array.shape[2:]):
                args = (values, indices, kernel, stride, pad, size)
                try:
                    expected = getattr(F, f"max_unpool{ndim}d")(*args)
                except ValueError:
                    with pytest.raises(ValueError, match="output_size"):
                        run(f"max_unpool{ndim}d", *args)
                    continue
                except RuntimeError:
                    with pytest.raises(RuntimeError, match="indices must be"):
                        run(f"max_unpool{ndim}d", *args)
                    continue
                same(run(f"max_unpool{ndim}d", *args), expected, strides=True, exact=True)


def test_unfold_layouts():
    for array in layouts(make((2, 3, 6, 7)), 2):
        for args in ((2,), ((2, 3), 2, 1, 2), (3, 1, 2, (2, 3))):
            expected = F.unfold(array, *args)
            same(run("unfold", array, *args), expected, strides=True, exact=True)
            same(run("fold", expected, (6, 7), *args), F.fold(expected, (6, 7), *args), strides=True)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unbatched_and_empty_batch(ndim):
    for x in (make((3, *SIZES[ndim])), torch.zeros(0, 3, *SIZES[ndim])):
        same(
            run(f"max_pool{ndim}d", x, 2, return_indices=True),
            getattr(F, f"max_pool{ndim}d")(x, 2, return_indices=True),
        )
        same(run(f"avg_pool{ndim}d", x, 2), getattr(F, f"avg_pool{ndim}d")(x, 2))
        same(run(f"lp_pool{ndim}d", x, 2, 2), getattr(F, f"lp_pool{ndim}d")(x, 2, 2))
        for kind in ("avg", "max"):
            name = f"adaptive_{kind}_pool{ndim}d"
            same(run(name, x, 3), getattr(F, name)(x, 3))
        if ndim > 1:
            samples = torch.rand(1 if x.dim() == ndim + 1 else 0, 3, ndim)
            name = f"fractional_max_pool{ndim}d"
            same(run(name, x, 2, 3, _random_samples=samples), getattr(F, name)(x, 2, 3, _random_samples=samples))
    x = make((*SIZES[ndim], 3)).permute(ndim, *range(ndim))  # C innermost; torch keeps that in 3-D alone
    expected = getattr(F, f"max_pool{ndim}d")(x, 2, return_indices=True)
    same(run(f"max_pool{ndim}d", x, 2, return_indices=True), expected, strides=True)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_16_bit_floats(ndim):
    """Computed in float32 and rounded once, as torch does."""
    for dtype, special in itertools.product((torch.float16, torch.bfloat16), (False, True)):
        x = make((2, 3, *SIZES[ndim]), dtype, special=special)
        for array in list(layouts(x, ndim))[:2]:
            args = (3, 2, 1, 1, True)
            expected = getattr(F, f"max_pool{ndim}d")(array, *args, return_indices=True)
            same(run(f"max_pool{ndim}d", array, *args, return_indices=True), expected, exact=True)
            wide = getattr(F, f"avg_pool{ndim}d")(array.float(), 3, 2, 1, True).to(dtype)
            same(run(f"avg_pool{ndim}d", array, 3, 2, 1, True), wide)
            for kind in ("avg", "max"):
                name = f"adaptive_{kind}_pool{ndim}d"
                same(run(name, array, 4), getattr(F, name)(array.float(), 4).to(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_integers(dtype):
    for ndim in (1, 2, 3):
        low = 0 if dtype == "uint8" else -100
        values = torch.randint(low, 100, (2, 3, *SIZES[ndim]), generator=torch.Generator().manual_seed(0))
        x = values.to(getattr(torch, dtype))
        expected = getattr(F, f"max_pool{ndim}d")(x, 3, 2, 1, 1, True, return_indices=True)
        same(run(f"max_pool{ndim}d", x, 3, 2, 1, 1, True, return_indices=True), expected, exact=True)
        if dtype == "int64":
            for include, divisor in ((True, None), (False, None), (True, -4)):
                args = (3, 2, 1, True, include) + ((divisor,) if ndim > 1 else ())
                same(run(f"avg_pool{ndim}d", x, *args), getattr(F, f"avg_pool{ndim}d")(x, *args), exact=True)


def test_window_larger_than_the_input():
    x = make((1, 2, 4, 3), special=True)
    for array in (x, x.contiguous(memory_format=torch.channels_last)):
        expected = F.max_pool2d(array, (7, 6), 1, (3, 3), return_indices=True)
        same(run("max_pool2d", array, (7, 6), 1, (3, 3), return_indices=True), expected, True, True)
        same(run("avg_pool2d", array, (7, 6), 1, (3, 3)), F.avg_pool2d(array, (7, 6), 1, (3, 3)))
        same(run("avg_pool2d", array, (7, 6), 1, 3, False, False), F.avg_pool2d(array, (7, 6), 1, 3, False, False))


def test_ties_nan_and_infinities():
    nan, inf = float("nan"), float("inf")
    rows = [[1, 1, 1], [nan, 2, nan], [nan, 1, 5], [-inf, -inf, -inf], [inf, inf, 0], [0.0, -0.0, 0.0]]
    x = torch.tensor(rows).reshape(1, 6, 3)
    values, indices = run("max_pool1d", x, 3, return_indices=True)
    assert indices.flatten().tolist() == [0, 2, 0, 0, 0, 0]
    same((values, indices), F.max_pool1d(x, 3, return_indices=True), exact=True)
    same(run("adaptive_max_pool1d", x, 1, True), F.adaptive_max_pool1d(x, 1, True), exact=True)
    padded = F.max_pool1d(x, 3, 1, 1, return_indices=True)
    same(run("max_pool1d", x, 3, 1, 1, return_indices=True), padded, exact=True)


def test_worked_numbers():
    x = np.arange(8).reshape(1, -1, 4)
    np.testing.assert_array_equal(gpuconv.max_pool2d(x, (2, 3), 1, (1, 0)), [[[2, 3], [6, 7], [6, 7]]])
    x = np.arange(16).reshape(1, 1, 4, 4)
    np.testing.assert_array_equal(gpuconv.max_pool2d(x, (2, 3), (2, 3), (1, 1)), [[[[1, 3], [9, 11], [13, 15]]]])
    x = np.arange(48.0).reshape(1, 3, 4, 4)
    np.testing.assert_array_equal(gpuconv.adaptive_avg_pool2d(x, 1).ravel(), [7.5, 23.5, 39.5])


def test_numpy_arrays_give_numpy_arrays():
    for dtype in ("float16", "float32", "float64"):
        x = make((2, 3, 9, 8), getattr(torch, dtype))
        array = x.numpy()
        nhwc = np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
        for source in (array, nhwc, array[:, :, ::-1][:, :, ::-1], array.astype(array.dtype.newbyteorder(">"))):
            values, indices = gpuconv.max_pool2d(source, 3, 2, 1, return_indices=True)
            assert isinstance(values, np.ndarray) and values.dtype == dtype and indices.dtype == np.int64
            same(
                (torch.tensor(values), torch.tensor(indices)), F.max_pool2d(x, 3, 2, 1, return_indices=True), exact=True
            )
            same(torch.tensor(gpuconv.avg_pool2d(source, 3, 2, 1)), F.avg_pool2d(x.float(), 3, 2, 1).to(x.dtype))
            same(torch.tensor(gpuconv.unfold(source, 2)), F.unfold(x, 2))
        assert gpuconv.avg_pool2d(nhwc, 2).strides[1] == array.itemsize
        assert gpuconv.avg_pool2d(array, 2).flags.c_contiguous


def reverse(x):
    """A view with negative strides."""
    return np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]


def test_negative_strides():
    x = make((2, 3, 9, 8)).numpy()
    np.testing.assert_array_equal(gpuconv.max_pool2d(reverse(x), 3), gpuconv.max_pool2d(x, 3))
    np.testing.assert_allclose(gpuconv.avg_pool2d(reverse(x), 3), gpuconv.avg_pool2d(x, 3))


def test_paddings_beyond_torch():
    x = make((2, 3, 9, 8), torch.float64)
    inf = float("inf")
    cases = [
        (((1, 0), (0, 1)), 3, 2, (0, 1, 1, 0)), ("same", 4, 1, (1, 2, 1, 2)), ("same_upper", 3, 2, (0, 1, 1, 1)),
        ("same_lower", 3, 2, (1, 0, 1, 1)), ("valid", 3, 2, (0, 0, 0, 0)), ("same_upper", 2, 5, (0, 0, 0, 0)),
    ]  # fmt: skip
    for padding, kernel, stride, pads in cases:
        if padding == "same_upper" and stride == 2:
            pads = (0, 1, 1, 1)
        by_hand = F.max_pool2d(F.pad(x, pads, value=-inf), kernel, stride)
        if padding in ("same_upper", "same_lower"):
            assert by_hand.shape[2:] == (-(-9 // stride), -(-8 // stride))
        same(run("max_pool2d", x, kernel, stride, padding), by_hand)
        same(run("avg_pool2d", x, kernel, stride, padding), F.avg_pool2d(F.pad(x, pads), kernel, stride))
        counted = F.avg_pool2d(F.pad(torch.ones_like(x), pads), kernel, stride)
        expected = F.avg_pool2d(F.pad(x, pads), kernel, stride) / counted
        same(run("avg_pool2d", x, kernel, stride, padding, False, False), expected)
        same(run("lp_pool2d", x, 2, kernel, stride, padding=padding), F.lp_pool2d(F.pad(x, pads), 2, kernel, stride))


def test_dilated_average():
    x = make((2, 3, 9, 8), torch.float64)
    kernel = torch.ones(3, 1, 2, 3, dtype=torch.float64) / 6
    expected = F.conv2d(x, kernel, None, 2, (1, 1), (2, 2), 3)
    same(run("avg_pool2d", x, (2, 3), 2, 1, dilation=2), expected)
    counted = F.conv2d(torch.ones_like(x), kernel, None, 2, (1, 1), (2, 2), 3)
    same(run("avg_pool2d", x, (2, 3), 2, 1, False, False, dilation=2), expected / counted)


@pytest.mark.parametrize("tile", [1, 7, 64, 300])
def test_tiles_do_not_change_the_result(tile, monkeypatch):
    """Problems cut into boxes, rows and pieces of every size: equal to the same problem in one piece."""
    x = make((3, 5, 9, 11), special=True)
    smooth = make((3, 5, 9, 11), torch.float64)
    dy = make((3, 5, 5, 6), torch.float64, 1)

    def everything(array, plain):
        maxima, where = gpuconv.max_pool2d(array, 3, 2, 1, return_indices=True)
        clean = gpuconv.max_pool2d(plain, 3, 2, 1, return_indices=True)[1]
        yield from (maxima, where)
        yield from gpuconv.adaptive_max_pool2d(array, (4, 5), return_indices=True)
        yield gpuconv.max_pool2d(array, 3, 2, 1, 1, True)
        yield gpuconv.avg_pool2d(plain, 3, 2, 1, True, False)
        yield gpuconv.adaptive_avg_pool2d(plain, (4, 5))
        yield gpuconv.lp_pool2d(plain, 2, 3, 2)
        yield gpuconv.max_pool2d_with_indices_backward(dy, plain, 3, 2, 1, 1, False, clean)
        yield gpuconv.avg_pool2d_backward(dy, plain, 3, 2, 1, False, False)
        yield gpuconv.adaptive_avg_pool2d_backward(dy, plain)
        yield gpuconv.lp_pool2d_backward(dy[:, :, :4, :5].contiguous(), plain, 2, 3, 2)
        yield gpuconv.max_unpool2d(gpuconv.max_pool2d(plain, 3, 2, 1), clean, 3, 2, 1, (9, 11))
        yield gpuconv.max_unpool2d_backward(plain, dy, clean)
        yield gpuconv.fold(gpuconv.unfold(plain, 3, 1, 1), (9, 11), 3, 1, 1)

    for fmt in (torch.contiguous_format, torch.channels_last):
        arrays = x.contiguous(memory_format=fmt), smooth.contiguous(memory_format=fmt)
        whole = list(everything(*arrays))
        with monkeypatch.context() as patch:
            patch.setattr(pool_tiles, "TILE", tile)
            patch.setattr(pool_scatter, "PIECE", 3 * tile)
            cut = list(everything(*arrays))
        for ours, theirs in zip(cut, whole, strict=True):
            same(ours, theirs, strides=True)


def test_box_windows_agree_with_whole_axes():
    """A slab of windows reads the same elements as those windows of the whole axis, both ways."""
    rng = random.Random(0)
    for _ in range(300):
        n, k, s, d = rng.randint(1, 12), rng.randint(1, 4), rng.randint(1, 4), rng.randint(1, 3)
        lo = rng.randint(0, shapes.effective_kernel(k, d) // 2)
        out = shapes.pool_output_size(n, k, s, lo, lo, d)
        if out < 1:
            continue
        axis = pool_axes.Regular(n, out, k, s, lo, d)
        reads = [{p for t in range(k) if 0 <= (p := o * s - lo + t * d) < n} for o in range(out)]
        assert [set(range(n)[axis.window(o)]) for o in range(out)] == reads
        begin = rng.randrange(out)
        end = rng.randint(begin + 1, out)
        a, _, local = axis.slab_out(begin, end)
        moved = [{a + p for p in range(local.size)[local.window(o)]} for o in range(local.out)]
        assert moved == reads[begin:end]
        begin = rng.randrange(n)
        end = rng.randint(begin + 1, n)
        a, b, local = axis.slab_in(begin, end)
        inside = [{p for p in read if begin <= p < end} for read in reads]
        assert not any(inside[:a]) and not any(inside[b:])
        for o in range(local.out):
            taps = [local.tap(t) for t in range(k)]
            got = {begin + range(local.size)[r][o - w.start] for w, r in taps if w.start <= o < w.stop}
            assert got == inside[a + o]


def test_workspace_stays_under_the_limit():
    """The stated bound holds, and stays under 256 MiB for planes far larger than a tile."""
    cases = [
        lambda: gpuconv.explain(gpuconv.max_pool2d, np.zeros((64, 64, 112, 112), np.float16), 3, 2, 1),
        lambda: gpuconv.explain(
            gpuconv.max_pool2d, np.zeros((1, 1, 20000, 2000), np.uint8), 3, 2, 1, return_indices=True
        ),
        lambda: gpuconv.explain(gpuconv.adaptive_avg_pool2d, np.zeros((1, 2, 2000, 2000), np.float16), 7),
        lambda: gpuconv.explain(gpuconv.lp_pool3d, np.zeros((1, 1, 200, 200, 200), np.float16), 2.0, 3),
        lambda: gpuconv.explain(gpuconv.avg_pool1d, np.zeros((2, 30_000_000), np.float16), 5, 1),
    ]
    volume = np.zeros((1, 1, 256, 256, 256), np.float32)
    half = np.zeros((1, 1, 128, 128, 128), np.float32)
    where = np.zeros(half.shape, np.int64)
    backward = gpuconv.max_pool3d_with_indices_backward
    cases += [
        lambda: gpuconv.explain(backward, half, volume, 2, None, 0, 1, False, where),
        lambda: gpuconv.explain(gpuconv.max_unpool3d, half, where, 2),
    ]
    for case in cases:
        explanation = case()
        assert explanation.plan is not None and explanation.plan.workspace < config.workspace_limit()


def test_workspace_bound_is_an_upper_bound():
    import tracemalloc

    x = make((8, 32, 56, 56)).numpy()
    half = x.astype(np.float16)
    where = gpuconv.max_pool2d(x, 3, 2, 1, return_indices=True)[1]
    dy = np.ones_like(where, np.float32)
    calls = [
        lambda: gpuconv.max_pool2d(x, 3, 2, 1, return_indices=True),
        lambda: gpuconv.max_pool2d(half, 3, 2, 1, return_indices=True),
        lambda: gpuconv.avg_pool2d(half, 3, 2, 1),
        lambda: gpuconv.lp_pool2d(half, 3, 3, 2),
        lambda: gpuconv.adaptive_avg_pool2d(half, 7),
        lambda: gpuconv.adaptive_max_pool2d(x, 5, return_indices=True),
        lambda: gpuconv.adaptive_max_pool2d(x[:1, :, :10, :10].astype(np.float64), 64, return_indices=True),
        lambda: gpuconv.adaptive_max_pool2d(half, 55, return_indices=True),
        lambda: gpuconv.adaptive_avg_pool2d(x, 7),
        lambda: gpuconv.adaptive_avg_pool2d_backward(x[:, :, :30, :30], x),
        lambda: gpuconv.max_pool2d_with_indices_backward(dy, x, 3, 2, 1, 1, False, where),
        lambda: gpuconv.avg_pool2d_backward(dy, x, 3, 2, 1),
        lambda: gpuconv.lp_pool2d_backward(dy[:, :, :27, :27], x, 2, 3, 2),
        lambda: gpuconv.lp_pool2d_backward(dy[:, :, :27, :27], x, float("inf"), 3, 2),
        lambda: gpuconv.max_unpool2d(gpuconv.max_pool2d(x, 3, 2, 1), where, 3, 2, 1, (56, 56)),
        lambda: gpuconv.max_unpool2d_backward(x, dy, where),
        lambda: gpuconv.fractional_max_pool2d(x, 2, 20, return_indices=True),
        lambda: gpuconv.fold(gpuconv.unfold(half, 2), 56, 2),
    ]
    for number, call in enumerate(calls):
        with record_plans() as plans:
            call()
        tracemalloc.start()
        result = call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        results = result if isinstance(result, tuple) else (result,)
        held = sum(array.nbytes for array in results)
        if len(plans) > 1:  # the arguments of the last call were made inside
            held += sum(int(np.prod(plan.problem.result_shape)) * 16 for plan in plans[:-1])
        bound = sum(plan.workspace for plan in plans) + (64 << 10)
        assert peak - held <= bound, (number, peak - held, bound)
