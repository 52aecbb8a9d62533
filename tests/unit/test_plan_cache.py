"""The plan cache: a repeated call analyses nothing, and nothing that matters is missing from the key."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv.dispatch import plan_cache
from gpuconv.dispatch.plan_cache import CACHE, PlanCache
from gpuconv.normalize import conv as normalize_conv
from gpuconv.problem import Prepared


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


X, W = torch.randn(2, 4, 6, 6), torch.randn(8, 2, 3, 3)
VECTOR = torch.randn(8)

CALLS: dict[str, Callable[[Any], Any]] = {
    "conv2d": lambda make: gpuconv.conv2d(make(X), make(W), make(VECTOR), padding=1, groups=2),
    "unbatched": lambda make: gpuconv.conv2d(make(X[0]), make(W), residual=make(torch.ones(8, 4, 4)), groups=2),
    "epilogue": lambda make: gpuconv.conv2d(
        make(X), make(W), groups=2, scale=make(VECTOR), shift=make(VECTOR), activation="relu"
    ),
    "string padding": lambda make: gpuconv.conv2d(make(X), make(W), padding="same", groups=2),
    "pairs": lambda make: gpuconv.conv2d(make(X), make(W), padding=[(1, 0), (0, 2)], groups=2),
    "transposed": lambda make: gpuconv.conv_transpose2d(make(torch.ones(2, 8, 3, 3)), make(W), None, 2, 0, 1, groups=2),
    "output_size": lambda make: gpuconv.conv_transpose2d(
        make(torch.ones(8, 3, 3)), make(W), None, 2, groups=2, output_size=[8, 8]
    ),
    "input grad": lambda make: gpuconv.conv2d_input_grad(X.shape, make(W), make(torch.ones(2, 8, 4, 4)), groups=2),
    "weight grad": lambda make: gpuconv.conv2d_weight_grad(make(X), W.shape, make(torch.ones(2, 8, 4, 4)), groups=2),
}


@pytest.mark.parametrize("make", [torch.clone, torch.Tensor.numpy], ids=["torch", "numpy"])
@pytest.mark.parametrize("name", CALLS)
def test_a_repeated_call_analyses_nothing(
    name: str, make: Callable[[torch.Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = CALLS[name](make)
    assert (len(CACHE), CACHE.hits, CACHE.misses) == (1, 0, 1)

    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the call was analysed again")

    for function in ("common_kind", "geometry_of", "check_rank", "check_dtypes", "formats_of", "ConvProblem"):
        monkeypatch.setattr(normalize_conv, function, unwanted)
    for function in ("candidates", "_plan"):
        monkeypatch.setattr(gpuconv.dispatch.selection, function, unwanted)
    monkeypatch.setattr(gpuconv.dispatch.execution, "select", unwanted)
    again = CALLS[name](make)
    assert (len(CACHE), CACHE.hits) == (1, 1)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(first))


def _call(x: Any = X, w: Any = W, **options: Any) -> Any:
    return gpuconv.conv2d(x, w, **{"groups": 2, **options})


CHANGES: dict[str, Callable[[], Any]] = {
    "shape of input": lambda: _call(torch.randn(3, 4, 6, 6)),
    "strides of input": lambda: _call(X.to(memory_format=torch.channels_last)),
    "strides of weight": lambda: _call(w=W.to(memory_format=torch.channels_last)),
    "expanded": lambda: _call(X[:1].expand(2, 4, 6, 6)),
    "dtype": lambda: _call(X.double(), W.double()),
    "half": lambda: _call(X.half(), W.half()),
    "array": lambda: _call(X.numpy(), W.numpy()),
    "alignment": lambda: _call(torch.randn(X.numel() + 1)[1:].view(X.shape)),
    "bias": lambda: _call(bias=VECTOR),
    "scale": lambda: _call(scale=VECTOR),
    "shift": lambda: _call(shift=VECTOR),
    "residual": lambda: _call(residual=torch.ones(2, 8, 4, 4)),
    "stride": lambda: _call(stride=2),
    "padding": lambda: _call(padding=1),
    "pads": lambda: _call(padding=((1, 0), (0, 0))),
    "padding string": lambda: _call(padding="same_lower"),
    "dilation": lambda: _call(dilation=2),
    "groups": lambda: _call(X[:, :2], groups=1),
    "padding_mode": lambda: _call(padding=1, padding_mode="circular"),
    "activation": lambda: _call(activation="relu"),
    "precision": lambda: _call(precision="tf32x3"),
    "backend": lambda: _call(backend="numpy"),
    "solver": lambda: _call(backend="numpy.conv.fprop.im2col"),
    "operation": lambda: gpuconv.conv_transpose2d(torch.randn(2, 8, 6, 6), W, groups=2),
    "unbatched": lambda: _call(X[0]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_matters_is_in_the_key(name: str) -> None:
    _call()
    CHANGES[name]()
    assert (len(CACHE), CACHE.hits) == (2, 0)


def test_settings_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    _call()
    with gpuconv.use_backend("numpy"):
        _call()
    assert (len(CACHE), CACHE.hits) == (2, 0)
    monkeypatch.setenv("GPUCONV_BACKEND", "numpy.conv.fprop.im2col")
    _call()
    assert (len(CACHE), CACHE.hits) == (3, 0)
    monkeypatch.setenv("GPUCONV_WORKSPACE", "123456")
    _call()
    assert (len(CACHE), CACHE.hits) == (4, 0)


class _OnGpu:
    """Says of itself what a float32 CUDA tensor does."""

    dtype, is_cuda = torch.float32, True


def test_torch_s_setting_of_precision_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            conv.fp32_precision = setting
            assert plan_cache._precision(_OnGpu()) == setting
            assert plan_cache._precision(X) is None
    finally:
        conv.fp32_precision = before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stride": True}, TypeError),
        ({"stride": 1.0}, TypeError),
        ({"padding": (0, False)}, TypeError),
        ({"dilation": (1.0, 1.0)}, TypeError),
        ({"groups": 2.0}, TypeError),
        ({"bias": VECTOR.numpy()}, TypeError),
        ({"x": None}, TypeError),
        ({"w": [1.0]}, TypeError),
        ({"padding": "half"}, RuntimeError),
        ({"backend": "cudnn"}, ValueError),
    ],
)
def test_equal_is_not_the_same(options: dict[str, Any], error: type[Exception]) -> None:
    """1.0 and True equal 1 and hash like it: what is an error stays one after the right call was remembered."""
    _call(stride=1, padding=0, dilation=1)
    _call(stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    for _ in range(2):
        with pytest.raises(error):
            _call(**options)
    assert CACHE.hits == 0


def test_values_are_not_in_the_key() -> None:
    first, second = _call(), _call(2 * X, W)
    assert (len(CACHE), CACHE.hits) == (1, 1)
    torch.testing.assert_close(second, 2 * first)


def test_explaining_keeps_nothing_and_is_not_fooled() -> None:
    assert gpuconv.explain(gpuconv.conv2d, X, W, groups=2).solver is not None
    assert len(CACHE) == 0
    _call()
    assert gpuconv.explain(gpuconv.conv2d, X, W, groups=2).solver is not None


def test_plans_are_recorded_on_a_hit() -> None:
    with gpuconv.dispatch.record_plans() as plans:
        _call()
        _call()
    assert len(plans) == 2 and plans[0] is plans[1]


def test_an_unsolvable_call_stays_so() -> None:
    for _ in range(2):
        with pytest.raises(gpuconv.NoSolverError):
            _call(backend="numpy.conv.fprop.nothing")


def test_no_input_channels() -> None:
    """The weight and bias that run are not those that came in: such a call is analysed every time."""
    for _ in range(2):
        y = gpuconv.conv2d(torch.ones(1, 0, 4, 4), torch.ones(3, 0, 2, 2), torch.ones(3))
        assert y.shape == torch.nn.functional.conv2d(torch.ones(1, 0, 4, 4), torch.ones(3, 0, 2, 2)).shape
    assert len(CACHE) == 0


def test_transforms_and_gradients_use_it() -> None:
    w = W.clone().requires_grad_()
    for _ in range(2):
        (grad,) = torch.autograd.grad(_call(w=w).sum(), w)
        (expected,) = torch.autograd.grad(torch.nn.functional.conv2d(X, w, groups=2).sum(), w)
        torch.testing.assert_close(grad, expected)
    mapped = torch.func.vmap(lambda x: _call(x))(X[:, None])
    torch.testing.assert_close(mapped[:, 0], _call())


def _prepared() -> Prepared:
    call = normalize_conv.conv_call("conv2d", 2, X, W, None, 1, 0, 1, 2, normalize_conv.Extras())
    return Prepared(call.problem, call.kind, False, "auto")


def test_bounded_and_least_recently_used_goes_first() -> None:
    cache, entries = PlanCache(3), [_prepared() for _ in range(4)]
    for key in range(3):
        cache.keep(key, entries[key])
    assert cache.find(0) is entries[0]
    cache.keep(3, entries[3])
    assert len(cache) == 3
    assert [cache.find(key) is entry for key, entry in enumerate(entries)] == [True, False, True, True]


def test_threads() -> None:
    cache, entries = PlanCache(8), [_prepared() for _ in range(4)]
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work(entry: Prepared) -> None:
        try:
            start.wait()
            for step in range(3000):
                key = step * 7 % 13
                found = cache.find(key) or cache.keep(key, entry)
                assert found in entries and len(cache) <= 8
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.hits + cache.misses == 12000


def test_threads_force_backends_of_their_own() -> None:
    solvers: dict[str, set[str]] = {}

    def work(name: str | None) -> None:
        with gpuconv.use_backend(name) if name else nullcontext(), gpuconv.dispatch.record_plans() as plans:
            for _ in range(50):
                gpuconv.conv2d(x, w, groups=4)
        solvers[str(name)] = {plan.solver.id for plan in plans}

    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3)  # both solvers take depthwise convolutions
    names = [None, "numpy.conv.fprop.im2col", "numpy.conv.fprop.taps"]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(solvers[name] == {name} for name in names if name)
