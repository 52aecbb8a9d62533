"""The CuPy backend around its kernels: arrays in and out, caches, devices, samples, empty results, and errors."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from fake_cupy import asnumpy, guarded
from harness import as_held, on_device, run_once

import gpuconv
from gpuconv.arrays import TORCH, channels_last_strides, kind_of
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.backends.cupy.common import CupySolver, Launch, capability
from gpuconv.dispatch import record_plans
from gpuconv.dispatch.plan_cache import CACHE

X, W = np.arange(2.0 * 4 * 6 * 5).reshape(2, 4, 6, 5) % 7 - 3, np.arange(6.0 * 4 * 3 * 3).reshape(6, 4, 3, 3) % 5 - 2


def arrays(dtype="float32"):
    return on_device(X, dtype), on_device(W, dtype)


def test_the_kind_of_cupy_reads_and_allocates():
    x, _ = arrays("bfloat16")
    kind = kind_of(x)
    assert kind.name == "cupy" and kind.dtype(x) == "bfloat16" and kind.device(x) == "cuda:0"
    assert kind.shape(x) == X.shape and kind.strides(x) == (120, 30, 5, 1)
    y = kind.empty((2, 3, 4, 5), "float16", "cuda:0", "channels_last")
    assert kind.strides(y) == channels_last_strides((2, 3, 4, 5)) and kind.dtype(y) == "float16"
    assert kind.empty((2,), "bfloat16", "cuda:0", "contiguous").dtype == fake_cupy.bfloat16
    with pytest.raises(TypeError, match="lies in GPU memory"):
        kind.to_numpy(x)


def test_a_repeated_pool_is_remembered_and_reads_its_own_array():
    CACHE.clear()
    for factor in (1, -2, 3):
        x = on_device(factor * X, "float32")
        for found, wanted in (
            (gpuconv.max_pool2d(x, 2), gpuconv.max_pool2d(factor * X, 2)),
            (gpuconv.adaptive_avg_pool2d(x[0], 1), gpuconv.adaptive_avg_pool2d(factor * X[0], 1)),
        ):
            np.testing.assert_allclose(asnumpy(found), wanted, rtol=1e-6)
    assert (len(CACHE), CACHE.hits) == (4, 8)  # and as many of NumPy's


def test_kinds_do_not_mix():
    with pytest.raises(TypeError, match="weight must be a cupy array like input, but got a numpy array"):
        gpuconv.conv2d(arrays()[0], W.astype(np.float32))


def test_without_a_backend_named_cupy_runs_what_numpy_cannot():
    x, w = arrays()
    with record_plans() as plans:
        y = gpuconv.conv2d(x, w)
    assert plans[0].solver.id.startswith("cupy.conv.fprop") and isinstance(y, fake_cupy.ndarray)
    explanation = gpuconv.explain(gpuconv.conv2d, x, w)
    assert explanation.solver == plans[0].solver.id and "cupy on cuda:0" in str(explanation)
    with pytest.raises(gpuconv.NoSolverError, match="arrays are on cuda:0, this backend reads host memory"):
        gpuconv.conv2d(x, w, backend="numpy")


def test_unbatched_input_and_channels_last():
    x, w = arrays()
    batched = asnumpy(gpuconv.conv2d(x, w))
    single = gpuconv.conv2d(guarded(X[1], "float32"), w)
    assert single.shape == batched.shape[1:] and (asnumpy(single) == batched[1]).all()
    last = gpuconv.conv2d(guarded(np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), "float32"), w)
    assert kind_of(last).strides(last) == channels_last_strides(last.shape)
    assert (asnumpy(last) == batched).all()


def test_the_same_call_again_is_not_analysed(monkeypatch):
    solver = None
    for turn in range(3):
        x, w = arrays()
        ran = run_once(gpuconv.conv2d, x, w)
        solver = solver or ran.plan.solver
        assert (CACHE.hits, CACHE.misses) == (turn, 1)
        monkeypatch.setattr(type(solver), "launches", lambda *_: pytest.fail("the launches were remembered"))


def test_arrays_of_other_alignment_have_plans_of_their_own():
    _, w = arrays()
    values = np.zeros((1, 4, 6, 9))
    whole = guarded(values, "float32")
    gpuconv.conv2d(whole, w)
    shifted = fake_cupy.ndarray(whole.host[..., 1:], whole.dtype, whole.memory)
    straight = fake_cupy.ndarray(whole.host[..., :8], whole.dtype, whole.memory)
    gpuconv.conv2d(straight, w)
    gpuconv.conv2d(shifted, w)
    assert len(CACHE) == 3


def test_each_kernel_is_compiled_once(monkeypatch):
    asked = []
    module = fake_cupy.RawModule
    monkeypatch.setattr(fake_cupy, "RawModule", lambda **more: asked.append(more["name_expressions"]) or module(**more))
    for batch in (1, 2):
        gpuconv.conv2d(on_device(X[:batch], "float32"), arrays()[1])
        gpuconv.conv2d(on_device(X[:batch], "float32"), arrays()[1])
    assert len(asked) == len(set(asked))
    assert {len(names) for names in asked} == {1}


def test_launches_run_on_the_device_of_the_arrays():
    entered = []

    class Watching(fake_cupy._Function):
        def __call__(self, *args):
            entered.append([scope.number for scope in fake_cupy._Scope.entered])
            super().__call__(*args)

    module = fake_cupy._Function
    try:
        fake_cupy._Function = Watching
        gpuconv.conv2d(*arrays())
    finally:
        fake_cupy._Function = module
    assert entered and all(scopes == [0] for scopes in entered) and fake_cupy._Scope.entered == []


def test_torch_tensors_run_on_torchs_device_and_current_stream(monkeypatch):
    """No GPU is here, so torch's part is played too: its device guard, and a stream that is not the default one."""
    import torch

    seen = []

    @contextmanager
    def device(index):
        seen.append(("enter", index))
        yield
        seen.append(("leave", index))

    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 0x77))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: stream if index == 1 else None)
    with cupy_common._device_and_stream(TORCH, "cuda:1"):
        assert [scope.number for scope in fake_cupy._Scope.entered] == [1, 0x77] and seen == [("enter", 1)]
    assert fake_cupy._Scope.entered == [] and seen == [("enter", 1), ("leave", 1)]


def test_capability_is_that_of_the_device():
    assert capability("cuda:0") == 90
    fake_cupy.MACHINE.capability = "100"
    assert capability("cuda:0") == 100


def test_empty_results_launch_nothing():
    x, w = guarded(np.zeros((0, 4, 6, 5)), "float32"), arrays()[1]
    ran = run_once(gpuconv.conv2d, x, w)
    assert ran.result.shape == (0, 6, 4, 3) and ran.launches == []


def test_a_sum_over_no_images_is_zero():
    x, dy = guarded(np.zeros((0, 4, 6, 5)), "float32"), guarded(np.zeros((0, 6, 4, 3)), "float32")
    assert (run_once(gpuconv.conv2d_weight_grad, x, W.shape, dy).result == 0).all()


class _Endless(CupySolver):
    id = "cupy.endless"

    def why_not(self, problem):
        return None

    def results(self, problem):
        return {"y": (problem.result_shape, problem.dtype, problem.result_format)}

    def launches(self, problem, strides, config):
        params = np.zeros((), np.dtype([("n", np.int64)]))
        return [Launch("none", "skipped", 0, 32, (), params), Launch("none", "endless", 2**31, 32, (), params)]


def test_a_grid_that_no_gpu_takes_is_refused_and_an_empty_one_skipped(monkeypatch):
    from gpuconv.backends.cupy.backend import CupyBackend

    monkeypatch.setattr(CupyBackend, "solvers", lambda self: (_Endless(),))
    from gpuconv import dispatch

    dispatch.selection._plan.cache_clear()
    with pytest.raises(RuntimeError, match="endless would need 2147483648 blocks; a grid has 2147483647 at most"):
        gpuconv.conv2d(*arrays())
    dispatch.selection._plan.cache_clear()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_fractional_pools_draw_their_samples_on_the_device(dtype):
    values = np.arange(2.0 * 3 * 9 * 9).reshape(2, 3, 9, 9) % 100
    found, indices = gpuconv.fractional_max_pool2d(on_device(values, dtype), 2, (4, 4), return_indices=True)
    flat = as_held(values, dtype).reshape(2, 3, 81)
    assert (np.take_along_axis(flat, asnumpy(indices).reshape(2, 3, 16), 2).reshape(2, 3, 4, 4) == asnumpy(found)).all()


def test_memory_that_a_kernel_must_not_touch_is_checked():
    x, _ = arrays()
    x.memory.buffer[5] = 1
    with pytest.raises(AssertionError, match="changed an input or the memory around it"):
        x.memory.check("x")
