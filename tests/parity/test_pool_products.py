"""NumPy's sums over few windows, which are products with matrices, against torch and against its own passes."""

import gc
import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from referee import check_against  # noqa: E402

import gpuconv  # noqa: E402
from gpuconv.backends.numpy import (  # noqa: E402
    pool_again,
    pool_axes,
    pool_products,
    pool_tiles,
    pool_windows,
)
from gpuconv.backends.numpy.pool_products import FEW, PASSES, WHOLE, way_of  # noqa: E402

SIZES = {1: (31,), 2: (30, 13), 3: (9, 6, 14)}
OUTPUTS = {1: (1, 3, 7, 31), 2: (1, 7, (6, 13), (1, 5), (None, 2)), 3: (1, 2, (3, 2, 7), (9, 1, 1))}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def array(shape: tuple[int, ...], dtype: Any = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    found = [
        x,
        x.repeat_interleave(2, -1)[..., ::2],
        x[:, :1].expand(x.shape),
        x.transpose(0, 1).clone().transpose(0, 1),
    ]
    return found + ([x.contiguous(memory_format=FORMATS[x.dim() - 2])] if x.dim() > 3 else [])


def ways_of(size: tuple[int, ...], output: tuple[int, ...]) -> str:
    problem = gpuconv.explain(
        getattr(gpuconv, f"adaptive_avg_pool{len(size)}d"), np.ones((1, 1, *size)), output
    ).problem
    return way_of(pool_axes.axes_of(problem))


def test_the_cases_below_take_every_way() -> None:
    assert ways_of((30, 13), (1, 1)) == ways_of((30, 1), (1, 1)) == WHOLE
    assert ways_of((30, 13), (7, 5)) == ways_of((32, 8), (8, 8)) == ways_of((13, 130), (6, 64)) == FEW
    assert ways_of((30, 130), (7, 65)) == PASSES
    assert ways_of((32, 16), (8, 16)) == ways_of((130, 1310), (63, 63)) == PASSES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_within_the_rule(ndim: int, dtype: torch.dtype) -> None:
    fn, name = getattr(F, f"adaptive_avg_pool{ndim}d"), f"adaptive_avg_pool{ndim}d"
    for output, x in itertools.product(OUTPUTS[ndim], layouts(array((2, 5, *SIZES[ndim]), dtype))):
        found = getattr(gpuconv, name)(x, output)
        assert found.dtype is dtype
        check_against(fn, found, (x, output), {}, int(np.prod(SIZES[ndim])))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_numpy_arrays_in_two_calls(ndim: int, dtype: str) -> None:
    """The second call takes the short way where there is one: the same bits, in the same layout, of its own input."""
    for output, x in itertools.product(OUTPUTS[ndim], layouts(array((2, 5, *SIZES[ndim])))):
        ours = [part for batch in (x, x[0]) for part in (batch.numpy().astype(dtype), -batch.numpy().astype(dtype))]
        for name in ("avg", "max"):
            fn = getattr(gpuconv, f"adaptive_{name}_pool{ndim}d")
            theirs = getattr(F, f"adaptive_{name}_pool{ndim}d")
            for one in ours:
                first, second = fn(one, output), fn(one, output)
                np.testing.assert_array_equal(first, second, strict=True)
                assert first.strides == second.strides and first.dtype == dtype
                tensor = torch.from_numpy(one)
                if name == "avg":
                    check_against(theirs, torch.from_numpy(first), (tensor, output), {}, int(np.prod(SIZES[ndim])))
                else:
                    np.testing.assert_array_equal(first, theirs(tensor, output).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_integers_are_exact(dtype: torch.dtype) -> None:
    """Sums are integers, and where the windows have 2**n elements so are the means, or halves of them and so on."""
    x = torch.randint(-4, 5, (2, 3, 32, 16), generator=torch.Generator().manual_seed(0)).to(dtype)
    for output in (1, 2, (8, 4), (8, 1)):
        wanted = F.adaptive_avg_pool2d(x.double(), output).to(dtype)
        assert torch.equal(gpuconv.adaptive_avg_pool2d(x, output), wanted)
    same = torch.full((1, 3, 30, 49), 3.0, dtype=dtype)
    for output in (1, 7, (7, 1), 64):
        assert (gpuconv.adaptive_avg_pool2d(same, output) == 3).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "both"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_special_values_stay_in_their_windows(value: Any, channels_last: bool) -> None:
    x = array((2, 3, 30, 13))
    x[0, 1, 17, 5] = float("inf") if value == "both" else value
    if value == "both":
        x[0, 1, 16, 5] = -float("inf")
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for output in (1, 2, 7, (3, 1), (None, 4)):
        for _ in range(2):
            found = gpuconv.adaptive_avg_pool2d(x.numpy(), output)
            torch.testing.assert_close(torch.from_numpy(found), F.adaptive_avg_pool2d(x, output), equal_nan=True)
        dy = F.adaptive_avg_pool2d(x, output)
        (wanted,) = torch.autograd.grad(F.adaptive_avg_pool2d(x.requires_grad_(), output), x, dy)
        x = x.detach()
        found = gpuconv.adaptive_avg_pool2d_backward(dy.numpy(), x.numpy())
        torch.testing.assert_close(torch.from_numpy(found), wanted, equal_nan=True)


def test_sums_beyond_the_largest_number() -> None:
    """Half a plane of the largest number overflows in the windows that have two of it, and in no others."""
    x = np.zeros((1, 1, 30, 30), np.float32)
    x[..., :10, :] = np.finfo(np.float32).max
    found = gpuconv.adaptive_avg_pool2d(x, 7)
    np.testing.assert_array_equal(found, F.adaptive_avg_pool2d(torch.from_numpy(x), 7).numpy())
    assert np.isinf(found).any() and (found == 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gradients(ndim: int, dtype: torch.dtype) -> None:
    forward = getattr(F, f"adaptive_avg_pool{ndim}d")
    size = SIZES[ndim]

    def backward(dy: torch.Tensor) -> torch.Tensor:
        x = torch.zeros(2, 5, *size, dtype=dy.dtype, requires_grad=True)
        (dx,) = torch.autograd.grad(forward(x, dy.shape[2:]), x, dy)
        return dx

    for output, x in itertools.product(OUTPUTS[ndim], layouts(array((2, 5, *size), dtype))):
        dy = forward(x.double(), output).to(dtype)
        found = getattr(gpuconv, f"adaptive_avg_pool{ndim}d_backward")(dy, x)
        check_against(backward, found, (dy,), {}, 2**ndim)


def test_products_and_passes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one tile and in many, of average pools with padding, overlap and dilation as well."""
    calls = [
        lambda x: gpuconv.adaptive_avg_pool2d(x, (7, 5)),
        lambda x: gpuconv.avg_pool2d(x, 5, 4, 2),
        lambda x: gpuconv.avg_pool2d(x, (9, 2), (4, 2), ((3, 1), (0, 1)), ceil_mode=True, count_include_pad=False),
        lambda x: gpuconv.avg_pool2d(x, (30, 13)),
        lambda x: gpuconv.avg_pool2d(x, 5, divisor_override=-3),
        lambda x: gpuconv.adaptive_avg_pool2d_backward(x[:, :, :7, :5], x),
        lambda x: gpuconv.avg_pool2d_backward(x[:, :, :8, :4], x, 5, 4, 2, False, True),
    ]
    x = array((3, 4, 30, 13)).numpy()
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    for call, source in itertools.product(calls, (x, last)):
        products = call(source)
        found = []
        for tile in (1 << 20, 1 << 10, 64):
            with monkeypatch.context() as patch:
                patch.setattr(pool_tiles, "TILE", tile)
                pool_tiles._first_steps.cache_clear()
                gpuconv.dispatch.plan_cache.CACHE.clear()
                found.append(call(source))
                patch.setattr(pool_windows, "sum_windows", _passes)
                patch.setattr(pool_windows, "spread", _spread)
                gpuconv.dispatch.plan_cache.CACHE.clear()
                found.append(call(source))
        gpuconv.dispatch.plan_cache.CACHE.clear()
        for each in found:
            np.testing.assert_allclose(each, products, rtol=2e-5, atol=2e-6)


def _passes(x: np.ndarray, axes: Any, way: str, out: np.ndarray) -> None:
    pool_axes.reduce_windows(np.add, x, axes, out, 0)


def _spread(y: np.ndarray, axes: Any, way: str, out: np.ndarray) -> None:
    pool_axes.spread_windows(y, axes, out)


def test_what_is_kept_is_bounded_and_not_to_be_written_to() -> None:
    kept = pool_products.ones(9, np.dtype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2
    for length in (*range(1, 70), (1 << 16) + 1, pool_products.MOST_ONES):
        found = pool_products.ones(length, np.dtype(np.float32))
        assert len(found) == found.sum() == length
        assert found.base is pool_products.ones(length, np.dtype(np.float32)).base


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True])
def test_planes_longer_than_the_vector_of_ones(dtype: Any, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in pieces, the first time and the next, of one piece and a bit, and of whole pieces."""
    for module in (pool_products, pool_again):
        monkeypatch.setattr(module, "MOST_ONES", 32)
    for height in (7, 8, 16, 17):
        x = array((2, 3, height, 8)).numpy().astype(dtype)
        x[1, 2, -1, -1] = np.inf
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if last else x
        expected = F.adaptive_avg_pool2d(torch.from_numpy(x), 1)
        for _ in range(3):
            torch.testing.assert_close(torch.from_numpy(gpuconv.adaptive_avg_pool2d(x, 1)), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: gpuconv.adaptive_avg_pool1d(np.ones((1, 1, n), np.float32), 1),
        lambda n: gpuconv.adaptive_max_pool1d(np.ones((1, n, 2), np.float32), 1),
        lambda n: gpuconv.avg_pool1d(np.ones((1, 1, n), np.float32), 2, 1),
    ],
    ids=["global average", "global maximum of many rows", "many windows"],
)
def test_calls_of_many_sizes_keep_little(call: Callable[[int], np.ndarray]) -> None:
    """Nothing as long as a plane, as its rows or as its windows stays for every size that was seen."""
    for _ in range(2):
        call(100_000)
    tracemalloc.start()
    for size in range(99_980, 100_000):
        for _ in range(2):
            call(size)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2.5e6, "20 sizes of 100,000 numbers take 8 to 16 MB"


def test_windows_of_many_sizes_are_not_all_kept() -> None:
    """Their starts and ends are Python's integers: a hundred bytes a window."""

    def kept() -> int:
        gc.collect()
        return sum(len(each.starts) for each in gc.get_objects() if type(each) is pool_axes.Ragged)

    before = kept()
    for size in range(5_000, 5_008):
        gpuconv.adaptive_avg_pool1d(np.ones((1, 1, size), np.float32), size - 7)
    assert 0 < kept() - before <= 2 * 2 * 5_000, "of two sizes, as they are and in tiles"


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_maxima_add_up(dtype: torch.dtype) -> None:
    """Windows that share a maximum, in one plane and in several, and positions given twice."""
    x = array((2, 3, 12, 10), dtype)
    x[:, :, 5, 5] = 100
    for size in (1, 5, (7, 9)):
        y, where = F.adaptive_max_pool2d(x.float(), size, return_indices=True)
        dy = array(tuple(y.shape), dtype, 1)

        def backward(dy: torch.Tensor, where: torch.Tensor = where) -> torch.Tensor:
            flat = torch.zeros(2, 3, 120, dtype=dy.dtype)
            return flat.scatter_add(2, where.flatten(2), dy.flatten(2)).reshape(x.shape)

        for source in (x, x.contiguous(memory_format=torch.channels_last)):
            found = gpuconv.adaptive_max_pool2d_backward(dy, source, where)
            check_against(lambda dy, where: backward(dy, where.long()), found, (dy, where), {}, 4)
