"""The plan cache of NumPy's pools: a repeated call analyses nothing, and what matters is in the key."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv import dispatch
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.normalize import pool as normalize_pool


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


RANDOM = np.random.default_rng(0)


def fresh(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


X = fresh(2, 3, 8, 8)
INDICES = gpuconv.max_pool2d(X, 2, return_indices=True)[1]
ONE = gpuconv.adaptive_max_pool2d(X, 1, return_indices=True)[1]

CALLS: dict[str, Callable[[np.ndarray], Any]] = {
    "max": lambda x: gpuconv.max_pool2d(x, 2),
    "max with indices": lambda x: gpuconv.max_pool2d(x, 3, 2, 1, return_indices=True),
    "avg": lambda x: gpuconv.avg_pool2d(x, (3, 2), stride=[2, 1], padding=1, count_include_pad=False),
    "avg, whole": lambda x: gpuconv.avg_pool2d(x, 8),
    "lp": lambda x: gpuconv.lp_pool2d(x, 2.0, 2),
    "adaptive avg": lambda x: gpuconv.adaptive_avg_pool2d(x, (3, None)),
    "adaptive max": lambda x: gpuconv.adaptive_max_pool2d(x, 3, return_indices=True),
    "global avg": lambda x: gpuconv.adaptive_avg_pool2d(x, 1),
    "global max": lambda x: gpuconv.adaptive_max_pool2d(x, 1),
    "global, unbatched": lambda x: gpuconv.adaptive_avg_pool2d(x[0], 1),
    "unbatched": lambda x: gpuconv.adaptive_max_pool2d(x[1], 2),
    "unpool": lambda x: gpuconv.max_unpool2d(x[:, :, :4, :4], INDICES, 2),
    "max backward": lambda x: gpuconv.max_pool2d_with_indices_backward(
        x[..., :4, :4], x, 2, None, 0, 1, False, INDICES
    ),
    "avg backward": lambda x: gpuconv.avg_pool2d_backward(x[..., :4, :4], x, 2, None, 0, False, True),
    "lp backward": lambda x: gpuconv.lp_pool2d_backward(x[..., :4, :4], x, 2.0, 2),
    "adaptive avg backward": lambda x: gpuconv.adaptive_avg_pool2d_backward(x[..., :3, :3], x),
    "adaptive max backward": lambda x: gpuconv.adaptive_max_pool2d_backward(x[..., :1, :1], x, ONE),
    "unbatched backward": lambda x: gpuconv.adaptive_avg_pool2d_backward(x[0, :, :3, :3], x[0]),
    "unpool backward": lambda x: gpuconv.max_unpool2d_backward(x, x[..., :4, :4], INDICES),
}


def parts(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_analyses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, other = CALLS[name], fresh(*X.shape)
    expected = call(other)
    CACHE.clear()
    first = call(X)
    assert (len(CACHE), CACHE.hits, CACHE.misses) == (1, 0, 1)

    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the call was analysed again")

    for function in ("common_kind", "PoolProblem"):
        monkeypatch.setattr(normalize_pool, function, unwanted)
    for function in ("candidates", "_plan"):
        monkeypatch.setattr(dispatch.selection, function, unwanted)
    monkeypatch.setattr(dispatch.execution, "select", unwanted)
    found = [call(X), call(other), call(X)]
    assert (len(CACHE), CACHE.hits) == (1, 3)
    for results in zip(parts(first), *map(parts, found), parts(expected), strict=True):
        a, again, b, last, wanted = results
        for one, same in ((again, a), (last, a), (b, wanted)):
            np.testing.assert_array_equal(one, same, strict=True)
            assert one.strides == same.strides
        assert not any(np.shares_memory(again, each) for each in (a, b, last, X))


def _call(x: np.ndarray = X, size: Any = 1, **options: Any) -> Any:
    return gpuconv.adaptive_avg_pool2d(x, size, **options)


LAST = np.moveaxis(np.ascontiguousarray(np.moveaxis(X, 1, -1)), -1, 1)

CHANGES: dict[str, Callable[[], Any]] = {
    "shape": lambda: _call(X[:1]),
    "unbatched": lambda: _call(X[0]),
    "strides": lambda: _call(X[..., ::-1]),
    "format": lambda: _call(LAST),
    "dtype": lambda: _call(X.astype(np.float64)),
    "16 bits": lambda: _call(X.astype(np.float16)),
    "byte order": lambda: _call(X.astype(">f4")),
    "complex": lambda: _call(X.astype(np.complex64)),
    "size": lambda: _call(size=2),
    "sizes": lambda: _call(size=(1, 1)),
    "backend": lambda: _call(backend="numpy"),
    "solver": lambda: _call(backend="numpy.pool.adaptive_avg.fprop"),
    "operation": lambda: gpuconv.adaptive_max_pool2d(X, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_matters_is_in_the_key(name: str) -> None:
    expected = _call()
    found = CHANGES[name]()
    assert (len(CACHE), CACHE.hits) == (2, 0)
    CACHE.clear()
    np.testing.assert_array_equal(CHANGES[name](), found, strict=True)
    np.testing.assert_array_equal(_call(), expected, strict=True)


def test_dtypes_of_equal_shapes() -> None:
    """Results have the type of their own call's input, in any order of calls."""
    for dtype in ("float32", "float64", "float16", "float64", "float32", "float16"):
        x = X.astype(dtype)
        for fn, theirs in (
            (gpuconv.adaptive_avg_pool2d, torch.nn.functional.adaptive_avg_pool2d),
            (gpuconv.adaptive_max_pool2d, torch.nn.functional.adaptive_max_pool2d),
        ):
            found = fn(x, 1)
            assert found.dtype == dtype
            torch.testing.assert_close(torch.from_numpy(found), theirs(torch.from_numpy(x), 1))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": True}, TypeError),
        ({"size": 1.0}, TypeError),
        ({"size": (1, True)}, TypeError),
        ({"size": (1.0, 1)}, TypeError),
        ({"size": "1"}, TypeError),
        ({"backend": "cudnn"}, ValueError),
        ({"backend": ["numpy"]}, TypeError),
        ({"x": "an array"}, TypeError),
        ({"x": None}, TypeError),
    ],
)
def test_equal_is_not_the_same(options: dict[str, Any], error: type[Exception]) -> None:
    """1.0 and True equal 1 and hash like it: what is an error stays one after the right call was remembered."""
    _call()
    _call(size=(1, 1))
    for _ in range(2):
        with pytest.raises(error):
            _call(**options)
    assert CACHE.hits == 0


def test_flags_are_compared_exactly() -> None:
    """`return_indices` takes anything, as in torch, and `ceil_mode` a bool alone."""
    assert isinstance(gpuconv.max_pool2d(X, 2), np.ndarray)
    assert isinstance(gpuconv.max_pool2d(X, 2, return_indices=True), tuple)
    assert isinstance(gpuconv.max_pool2d(X, 2, return_indices=1), tuple)
    assert isinstance(gpuconv.max_pool2d(X, 2, ceil_mode=False), np.ndarray)
    for _ in range(2):
        with pytest.raises(TypeError):
            gpuconv.max_pool2d(X, 2, ceil_mode=0)


def test_settings_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _call()
    with gpuconv.use_backend("numpy"):
        _call()
    assert (len(CACHE), CACHE.hits) == (2, 0)
    with gpuconv.use_backend("triton"), pytest.raises(gpuconv.NoSolverError):
        _call()
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy.pool.adaptive_avg.fprop")
    _call()
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy.pool.max.fprop")
    for _ in range(2):
        with pytest.raises(gpuconv.NoSolverError):
            _call()
    monkeypatch.setenv("GPUCONV_BACKEND", "nothing")
    for _ in range(2):
        with pytest.raises(ValueError, match="GPUCONV_BACKEND"):
            _call()
    monkeypatch.delenv("GPUCONV_BACKEND")
    np.testing.assert_array_equal(_call(), expected)


def test_the_limit_of_the_workspace_counts_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _call()
    _call()
    monkeypatch.setattr(dispatch.selection, "_warned", set())
    monkeypatch.setenv("GPUCONV_WORKSPACE", "0")
    with pytest.warns(gpuconv.WorkspaceWarning, match="the limit is 0 B"):
        np.testing.assert_array_equal(_call(), expected)
    monkeypatch.setenv("GPUCONV_WORKSPACE", str(1 << 20))
    np.testing.assert_array_equal(_call(), expected)


@pytest.mark.parametrize("name", ["global avg", "adaptive avg", "max"])
def test_observers_see_every_call(name: str) -> None:
    """Explaining keeps nothing and runs nothing, also when the call is remembered; recordings see repetitions."""
    call = CALLS[name]
    solver = gpuconv.explain(call, X).solver
    assert len(CACHE) == 0
    for _ in range(3):
        call(X)
    assert gpuconv.explain(call, X).solver == solver
    with dispatch.record_plans() as plans:
        call(X)
        call(X)
    assert [plan.solver.id for plan in plans] == [solver, solver]
    with gpuconv.record_problems() as problems:
        call(X)
        call(X)
    assert len(problems) == 1
    assert isinstance(call(X), np.ndarray)


def test_drawn_samples_are_drawn_every_time() -> None:
    x = fresh(1, 64, 12, 12)
    np.random.seed(0)
    first, second = (gpuconv.fractional_max_pool2d(x, 2, output_size=5) for _ in range(2))
    assert (first != second).any()
    assert len(CACHE) == 0


def test_indices_are_checked_every_time() -> None:
    for _ in range(2):
        CALLS["adaptive max backward"](X)
    with pytest.raises(RuntimeError, match="64 elements"):
        gpuconv.adaptive_max_pool2d_backward(X[..., :1, :1], X, np.full_like(ONE, 64))


def test_other_kinds_of_array_are_not_taken_for_numpy_s() -> None:
    _call()

    class Sub(np.ndarray):
        pass

    np.testing.assert_array_equal(np.asarray(_call(X.view(Sub))), _call())
    assert len(CACHE) == 1
    with pytest.raises(TypeError):
        _call(np.ma.masked_array(X))
    torch.testing.assert_close(_call(torch.from_numpy(X)), torch.from_numpy(_call()))
    with pytest.raises(TypeError):
        gpuconv.adaptive_avg_pool2d_backward(X[..., :1, :1], torch.from_numpy(X))


def test_floating_point_errors_are_not_reported() -> None:
    """NaN, infinities and overflow give what they give in torch, however NumPy is set, also in a repeated call."""
    x = np.full((1, 2, 4, 4), np.finfo(np.float32).max, np.float32)
    x[0, 1, 0, :2] = np.inf, -np.inf
    with np.errstate(all="raise"):
        for _ in range(3):
            np.testing.assert_array_equal(gpuconv.adaptive_avg_pool2d(x, 1).ravel(), [np.inf, np.nan])
            np.testing.assert_array_equal(gpuconv.adaptive_avg_pool2d(x, 2)[0, 1, 1, 1], np.inf)
            np.testing.assert_array_equal(gpuconv.adaptive_max_pool2d(x, 1).ravel(), [x[0, 0, 0, 0], np.inf])
    x[0, 0, 3, 3] = np.nan
    for _ in range(3):
        np.testing.assert_array_equal(gpuconv.adaptive_max_pool2d(x, 1).ravel(), [np.nan, np.inf])


def test_threads_on_arrays_of_their_own() -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        try:
            x = np.random.default_rng(seed).integers(-9, 9, (2, 3, 8, 8)).astype(np.float32)
            x += seed * 16
            start.wait()
            for _ in range(300):
                for size in (1, 2, 4):
                    wanted = x.reshape(2, 3, size, 8 // size, size, 8 // size).mean((3, 5))
                    np.testing.assert_array_equal(gpuconv.adaptive_avg_pool2d(x, size), wanted)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(CACHE) == 3
