"""The CuPy backend on a GPU: CuPy's arrays and torch tensors, their memory and their streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from on_gpu import poison

import gpuconv
from gpuconv import numerics
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.dispatch import record_plans

cupy = pytest.importorskip("cupy", reason="not run: CuPy is not installed")

DTYPES = ("float16", "bfloat16", "float32", "float64")


def problem_arrays(seed=0):
    """Return x, w, dy of a convolution with odd sizes, groups and a stride, in float64."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape) for shape in ((3, 12, 13, 11), (20, 6, 3, 3), (3, 20, 7, 6))]


OPTIONS = {"stride": 2, "padding": ((1, 1), (1, 1)), "groups": 2}

CALLS = {
    "fprop": lambda x, w, dy, **more: gpuconv.conv2d(x, w, **OPTIONS, **more),
    "dgrad": lambda x, w, dy, **more: gpuconv.conv2d_input_grad(tuple(x.shape), w, dy, **OPTIONS, **more),
    "wgrad": lambda x, w, dy, **more: gpuconv.conv2d_weight_grad(x, tuple(w.shape), dy, **OPTIONS, **more),
    "max_pool": lambda x, w, dy, **more: gpuconv.max_pool2d(x, 3, 2, 1, **more),
    "avg_pool": lambda x, w, dy, **more: gpuconv.avg_pool2d(x, 3, 2, 1, **more),
}


def to_cupy(values, dtype):
    array = cupy.asarray(values)
    return array.astype(cupy.dtype("bfloat16")) if dtype == "bfloat16" else array.astype(dtype)


def to_host(array):
    """Return a result on the host; bfloat16 as float32."""
    if isinstance(array, torch.Tensor):
        array = array.cpu()
        return (array.float() if array.dtype is torch.bfloat16 else array).numpy()
    if array.dtype.name == "bfloat16":
        array = array.astype(cupy.float32)
    return cupy.asnumpy(array)


def assert_right(result, name, held, problem):
    """Assert the tolerance rule against the NumPy reference on what the arrays held."""
    exact = CALLS[name](*held, backend="numpy")
    magnitude = CALLS[name](*(np.abs(array) for array in held), backend="numpy")
    rule = (problem.dtype, problem.reduction_length, getattr(problem, "precision", "ieee"))
    numerics.assert_close(to_host(result), exact, magnitude, *rule)


@pytest.mark.parametrize("backend", ["cupy", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_cupy(name, dtype, backend):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="not run: CuPy has bfloat16 through ml_dtypes")
    arrays = [to_cupy(values, dtype) for values in problem_arrays()]
    held = [to_host(array).astype(np.float64) for array in arrays]
    with record_plans() as plans:
        result = CALLS[name](*arrays, backend=backend)
        again = CALLS[name](*arrays, backend=backend)
    assert isinstance(result, cupy.ndarray) and result.dtype == arrays[0].dtype
    assert {plan.solver.id.partition(".")[0] for plan in plans} == {backend}
    assert (to_host(result) == to_host(again)).all()
    assert_right(result, name, held, plans[0].problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_torch_tensors(name, dtype, monkeypatch):
    tensors = [torch.tensor(values, device="cuda", dtype=getattr(torch, dtype)) for values in problem_arrays()]
    held = [to_host(tensor).astype(np.float64) for tensor in tensors]
    poison(monkeypatch)
    with record_plans() as plans:
        result = CALLS[name](*tensors, backend="cupy")
    assert isinstance(result, torch.Tensor) and plans[0].solver.id.startswith("cupy.")
    assert_right(result, name, held, plans[0].problem)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlpack_shares_memory(dtype):
    tensor = torch.randn(2, 3, 4, device="cuda").to(getattr(torch, dtype)).transpose(0, 2).requires_grad_()
    shown = cupy_common._shared(gpuconv.arrays.TORCH, tensor)
    assert shown.data.ptr == tensor.data_ptr()
    assert tuple(step // shown.itemsize for step in shown.strides) == tensor.stride()


def test_gradients_of_torch_tensors_run_on_the_forced_backend():
    x, w, _ = (torch.tensor(values, device="cuda", dtype=torch.float32) for values in problem_arrays())
    x.requires_grad_(), w.requires_grad_()
    with record_plans() as plans:
        gpuconv.conv2d(x, w, **OPTIONS, backend="cupy").square().sum().backward()
    ours = x.grad, w.grad
    x.grad = w.grad = None
    assert plans[0].solver.id.startswith("cupy.conv.fprop")
    torch.nn.functional.conv2d(x.double(), w.double(), stride=2, padding=1, groups=2).square().sum().backward()
    for mine, theirs in zip(ours, (x.grad, w.grad), strict=True):
        assert (mine - theirs).abs().max() <= 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["torch", "cupy"])
def test_runs_on_the_current_stream_in_order(kind):
    """The input is written late, by work queued on a side stream; a launch on another stream would read zeros."""
    x = torch.zeros(8, 64, 56, 56, device="cuda")
    w = torch.ones(64, 64, 1, 1, device="cuda")
    gpuconv.conv2d(x, w, backend="cupy")  # compiled before the race
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.fill_(1.0)
        if kind == "torch":
            y = gpuconv.conv2d(x, w, backend="cupy")
        else:
            with cupy.cuda.Stream.from_external(side):
                y = gpuconv.conv2d(cupy.from_dlpack(x), cupy.from_dlpack(w), backend="cupy")
    side.synchronize()
    assert (to_host(y) == 64.0).all()


def test_a_cuda_graph_captures_and_replays():
    x, w = torch.ones(2, 16, 8, 8, device="cuda"), torch.ones(16, 16, 3, 3, device="cuda")
    gpuconv.conv2d(x, w, backend="cupy")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gpuconv.conv2d(x, w, backend="cupy")
    x.fill_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    assert (y == 2.0 * 16 * 9).all()


def test_subnormal_numbers_survive():
    x = cupy.full((1, 1, 4), 3e-40, cupy.float32)
    assert (cupy.asnumpy(gpuconv.conv1d(x, cupy.ones((1, 1, 1), cupy.float32), backend="cupy")) > 0).all()


def test_kernels_are_compiled_once_for_each_configuration(monkeypatch):
    compiled = []
    module = cupy.RawModule
    monkeypatch.setattr(cupy, "RawModule", lambda **more: compiled.append(more["name_expressions"]) or module(**more))
    cupy_common.KERNELS.clear()
    x, w = cupy.ones((1, 8, 8, 8), cupy.float32), cupy.ones((8, 8, 3, 3), cupy.float32)
    for batch in (1, 2, 3):
        gpuconv.conv2d(cupy.ones((batch, 8, 8, 8), cupy.float32), w, backend="cupy")
    gpuconv.conv2d(x, w, backend="cupy")
    assert len(compiled) == len(set(compiled)) and compiled


@pytest.mark.multi_gpu
def test_runs_on_the_device_of_its_arrays():
    if torch.cuda.device_count() < 2:
        pytest.skip("not run: one GPU")
    x, w = torch.ones(1, 4, 6, 6, device="cuda:1"), torch.ones(4, 4, 3, 3, device="cuda:1")
    y = gpuconv.conv2d(x, w, backend="cupy")
    assert y.device == x.device and (y == 36.0).all()
