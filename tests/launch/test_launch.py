"""Repeated calls ask the driver for what Triton's own launcher asks, byte for byte."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from launch_cases import CALLS, HOPPER, B, W, X, half, unaligned
from stub_gpu import Launch, StubGpu, launcher, without_compiler
from triton import knobs
from triton.runtime.jit import JITFunction

import gpuconv
from gpuconv import dispatch
from gpuconv.arrays import TORCH
from gpuconv.backends.triton.gluon import installed_triton
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.launcher import native, record

LAUNCHERS = ("triton", "native", "python")


@contextmanager
def allocations() -> Iterator[list[torch.Tensor]]:
    """Collect what ``torch.empty`` and ``torch.empty_strided`` return, in order."""
    made: list[torch.Tensor] = []

    def watched(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_and_tell(*args: Any, **kwargs: Any) -> torch.Tensor:
            made.append(allocate(*args, **kwargs))
            return made[-1]

        return allocate_and_tell

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", watched(torch.empty))
        patch.setattr(torch, "empty_strided", watched(torch.empty_strided))
        yield made


MAPS_REPAIRED = (installed_triton() or (9,)) >= (3, 8)
"""Whether Triton clears what older drivers set wrongly in maps of small tensors; replays of ours do so always."""


def _repaired(behind: bytes) -> bytes:
    """Return the bytes behind the address of a tensor map as newer Tritons make them (:func:`.maps._repaired`)."""
    word = int.from_bytes(behind[:8], "little") & ~(1 << 21)
    return word.to_bytes(8, "little") + behind[8:]


def _named(argument: bytes, made: list[torch.Tensor]) -> Any:
    """Return an argument; of a pointer into an allocation, which one and how far, also where a tensor map begins."""
    if len(argument) == 128:
        return _named(argument[:8], made), argument[8:] if MAPS_REPAIRED else _repaired(argument[8:])
    if len(argument) == 8:
        address = int.from_bytes(argument, "little")
        for place, tensor in enumerate(made):
            if tensor.data_ptr() <= address < tensor.data_ptr() + max(tensor.nbytes, 1):
                return "allocation", place, address - tensor.data_ptr()
    return argument


def _facts(launch: Launch, made: list[torch.Tensor]) -> tuple[Any, ...]:
    arguments = tuple(_named(argument, made) for argument in launch.arguments)
    return launch.kernel, launch.function, launch.grid, launch.block, launch.shared, launch.stream, (
        launch.attributes, launch.cluster, launch.scheduling, launch.context, arguments
    )  # fmt: skip


def _shapes(result: Any) -> list[Any]:
    tensors = result if isinstance(result, list | tuple) else [result]
    return [(t.shape, t.stride(), t.dtype) for t in tensors]


def _observe(gpu: StubGpu, call: Callable[[], Any], name: str, times: int = 3) -> tuple[list[Any], list[int]]:
    """Return launches and results of a call made several times, and how often each time Triton looked a kernel up."""
    seen, looked_up = [], []
    original = JITFunction.run
    with launcher(name), allocations() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda *args, **kwargs: looked_up.append(1) or original(*args, **kwargs))
        CACHE.clear()
        counts = []
        for _ in range(times):
            made.clear()
            looked_up.clear()
            gpu.reset()
            result = call()
            seen.append(([_facts(launch, made) for launch in gpu.launches()], _shapes(result)))
            counts.append(len(looked_up))
    return seen, counts


@pytest.mark.parametrize("name", CALLS)
def test_the_driver_is_asked_the_same(gpu: StubGpu, name: str) -> None:
    count, call = CALLS[name]
    expected, looked_up = _observe(gpu, call, "triton")
    assert len(expected[0][0]) == count and looked_up == [count] * 3
    assert expected[1:] == expected[:1] * 2
    for other in LAUNCHERS[1:]:
        seen, looked_up = _observe(gpu, call, other)
        assert seen == expected
        assert looked_up == [count, 0, 0], "a repeated call went through Triton's look-up"


def test_without_a_compiler_launches_go_through_triton_s_launcher(gpu: StubGpu) -> None:
    _, call = CALLS["fprop"]
    expected, _ = _observe(gpu, call, "triton")
    with without_compiler():
        seen, looked_up = _observe(gpu, call, "auto")
        assert seen == expected and looked_up == [1, 0, 0]
        assert native.SIGN is None
        with launcher("native"), pytest.raises(RuntimeError, match=r"GPUCONV_LAUNCHER=native, but .* C compiler"):
            CACHE.clear()
            call()


@pytest.mark.parametrize("name", ["native", "python"])
def test_anunaligned_tensor_does_not_reach_a_kernel_for_aligned_ones(gpu: StubGpu, name: str) -> None:
    x = half(1, 32, 8, 8, last=False)
    functions = []
    with launcher(name):
        for tensor in (x, x.clone(), unaligned(x), unaligned(x), x):
            gpu.reset()
            gpuconv.conv2d(tensor, W, padding=1)
            functions.append(gpu.launches()[0].function)
        assert functions[0] == functions[1] == functions[4] != functions[2] == functions[3]
        # And should a key ever miss it, the launcher does not.
        replay = next(entry.replay for entry in CACHE._entries.values())
        gpu.reset()
        assert replay([unaligned(x).data_ptr(), W.data_ptr(), 0, 0, 0, 0]) is None
        assert gpu.launches() == []


@pytest.mark.parametrize("name", ["native", "python"])
def test_the_current_stream_is_asked_for_at_each_call(gpu: StubGpu, name: str) -> None:
    streams = []
    with launcher(name):
        for stream in (0, 0x1230, 0x7FFF_0000_1230, 2**64 - 16):
            gpu.streams.value = stream
            gpu.reset()
            gpuconv.conv2d(X, W, B, padding=1)
            streams.append(gpu.launches()[0].stream)
    gpu.streams.value = 0x5700
    assert streams == [0, 0x1230, 0x7FFF_0000_1230, 2**64 - 16]


@pytest.mark.parametrize("name", ["native", "python"])
def test_threads_do_not_mix_their_arguments(gpu: StubGpu, name: str) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(4)
    mine: dict[int, set[int]] = {}

    def work(stream: int) -> None:
        try:
            gpu.streams.value = stream
            x = [X.clone() for _ in range(3)]
            mine[stream] = {tensor.data_ptr() for tensor in x}
            keep.append(x)
            start.wait()
            for step in range(150):
                gpuconv.conv2d(x[step % 3], W, B, padding=1)
        except BaseException as error:
            failures.append(error)

    keep: list[Any] = []
    with launcher(name):
        gpuconv.conv2d(X, W, B, padding=1)
        gpu.reset()
        threads = [threading.Thread(target=work, args=(stream,)) for stream in (0x10, 0x20, 0x30, 0x40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    launches = gpu.launches()
    assert len(launches) == 600
    pairs = {(launch.stream, int.from_bytes(launch.arguments[0][:8], "little")) for launch in launches}
    assert pairs == {(stream, pointer) for stream, pointers in mine.items() for pointer in pointers}
    assert {launch.context for launch in launches} == {gpu.context()}


def test_a_plan_keeps_its_kernel(gpu: StubGpu) -> None:
    """Triton 3.9 unloads the module of a kernel that nobody holds."""
    from gpuconv.kernels.tl.conv.rolling import _conv_rolling_kernel as kernel

    def call() -> torch.Tensor:
        return gpuconv.conv2d(X, W, B, padding=1, backend="triton.conv.fprop.rolling")

    with launcher("native"):
        kernel.device_caches.clear()
        gc.collect()
        call()
        before = gpu.launches()[0]
        (alive,) = (weakref.ref(compiled) for compiled in kernel.device_caches[0][0].values())
        kernel.device_caches.clear()
        gc.collect()
        assert alive() is not None
        gpu.reset()
        call()
        (again,) = gpu.launches()
        assert (again.function, again.grid, again.shared) == (before.function, before.grid, before.shared)
        assert kernel.device_caches == {}, "the kernel was looked up"
        CACHE.clear()
        gc.collect()
        assert alive() is None


def test_launch_hooks_see_every_launch(gpu: StubGpu) -> None:
    _, call = CALLS["fprop"]
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    with launcher("native"):
        call()
        call()
        for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
            chain.add(hook)
            call()
            chain.remove(hook)
            call()
    assert seen == [gpu.launches()[0].kernel] * 2
    assert len(gpu.launches()) == 6


def test_the_driver_s_errors_are_raised(gpu: StubGpu) -> None:
    _, call = CALLS["fprop"]
    with launcher("native"):
        call()
        gpu.fail(719)
        with pytest.raises(RuntimeError, match="CUDA error 719: the stub fails"):
            call()
        gpu.fail(0)
        call()


def test_a_thread_without_a_context_gets_that_of_the_device(gpu: StubGpu) -> None:
    contexts: list[Any] = []

    def work() -> None:
        contexts.append(gpu.context())
        CALLS["fprop"][1]()
        contexts.append(gpu.context())

    with launcher("native"):
        CALLS["fprop"][1]()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert contexts == [None, gpu.context()]
    assert [launch.context for launch in gpu.launches()] == [gpu.context()] * 2


@pytest.mark.parametrize("name", ["native", "python"])
def test_the_device_of_the_arrays_is_current_in_the_launch_and_not_after(
    gpu: StubGpu, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(TORCH), "device", lambda self, array: "cuda:1")
    with launcher(name):
        for _ in range(3):
            CALLS["fprop"][1]()
    contexts = {launch.context for launch in gpu.launches()}
    assert len(contexts) == 1 and gpu.context() not in contexts and gpu.device == 0


@pytest.mark.parametrize("name", ["fprop", "fprop, packed and split", "wgrad", "max_pool, axis after axis"])
def test_what_a_capture_would_refuse_does_not_happen(gpu: StubGpu, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm call allocates through torch alone, what its plan states, and asks the driver for launches alone."""
    count, call = CALLS[name]

    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("not while a graph is captured")

    with launcher("native"), allocations() as made:
        call()
        with dispatch.record_plans() as plans:
            call()
        first = [(tensor.shape, tensor.dtype) for tensor in made[: len(made) // 2]]
        made.clear()
        gpu.reset()
        for place, function in ((JITFunction, "run"), (dispatch.selection, "candidates"), (record, "record")):
            monkeypatch.setattr(place, function, unwanted)
        call()
    assert len(gpu.launches()) == count and gpu.others() == 0
    assert [(tensor.shape, tensor.dtype) for tensor in made] == first
    assert sum(tensor.nbytes for tensor in made[1:]) == plans[0].workspace


def test_operators_and_gradients_repeat_too(gpu: StubGpu) -> None:
    """The second and third tier reach launches through the dispatcher."""
    geometry = ((1, 1), (1, 1), (1, 1), (1, 1), 1, "zeros")

    def operator() -> torch.Tensor:
        return torch.ops.gpuconv.fprop(X, W, B, None, None, None, *geometry, None, "fused", None, None)

    for call, count in ((operator, 1), (CALLS["forward and backward"][1], 4)):
        _, looked_up = _observe(gpu, call, "native")
        assert looked_up == [count, 0, 0]


def test_an_observed_call_is_repeated_and_recorded(gpu: StubGpu) -> None:
    _, call = CALLS["fprop"]
    with launcher("native"):
        call()
        gpu.reset()
        with dispatch.record_plans() as plans:
            call()
        assert [plan.solver.id for plan in plans] == [f"triton.conv.fprop.{'hopper' if HOPPER else 'rolling'}"]
        assert len(gpu.launches()) == 1 and not dispatch.execution.OBSERVERS
        assert gpuconv.explain(gpuconv.conv2d, X, W, B, padding=1).solver == plans[0].solver.id
        assert len(gpu.launches()) == 1 and not dispatch.execution.OBSERVERS


def test_a_negated_view_is_not_taken_for_its_memory(gpu: StubGpu) -> None:
    x = torch.zeros(1, 8, 6, 6, dtype=torch.complex64).conj().imag
    w = torch.zeros(8, 8, 3, 3)
    assert x.is_neg()
    with launcher("native"):
        gpuconv.conv2d(torch.zeros_like(x, memory_format=torch.preserve_format), w)
        gpu.reset()
        for _ in range(2):
            gpuconv.conv2d(x, w)
    pointers = [int.from_bytes(launch.arguments[0], "little") for launch in gpu.launches()]
    assert len(pointers) == 2 and x.data_ptr() not in pointers


@pytest.mark.parametrize("name", ["fprop", "max_pool, axis after axis", "fprop, packed and split"])
def test_inference_mode_repeats_too(gpu: StubGpu, name: str) -> None:
    count, call = CALLS[name]
    with torch.inference_mode():
        _, looked_up = _observe(gpu, call, "native")
    assert looked_up == [count, 0, 0]


def test_transforms_reach_launches(gpu: StubGpu) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return gpuconv.conv2d(x, W, B, padding=1).sum()

    with launcher("native"):
        for _ in range(3):
            gpu.reset()
            assert torch.func.grad(loss)(X).shape == X.shape
            assert torch.func.vmap(lambda x: gpuconv.conv2d(x, W, B, padding=1))(X[None]).shape == X[None].shape
            assert len(gpu.launches()) == 3
