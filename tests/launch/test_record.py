"""Recordings: scalars of every type, what is refused, and that the launcher's two paths pack alike."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from stub_gpu import StubGpu, launcher

from gpuconv.dispatch.plan_cache import UnkeyedError, signatures
from gpuconv.launcher import layout, record
from gpuconv.launcher import native as native_module
from gpuconv.launcher.native import native
from gpuconv.launcher.record import active_recording
from gpuconv.ops import conv_autograd


@triton.jit
def _scalars_kernel(
    x_ptr, absent_ptr, y_ptr, one, small, large, unsigned, flag, number,
    half: tl.float16, brain: tl.bfloat16, double: tl.float64, byte: tl.int8, short: tl.uint16, SIZE: tl.constexpr,
):  # fmt: skip
    total = small + large + unsigned.to(tl.int64) + byte + short + one + flag
    value = number + half.to(tl.float32) + brain.to(tl.float32) + double
    offsets = tl.arange(0, SIZE)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets) + total + value)


SCALARS: dict[str, Any] = {
    "absent_ptr": None, "one": 1, "small": -7, "large": 2**40 + 3, "unsigned": 2**63 + 5, "flag": True, "number": 0.1,
    "half": 1 / 3, "brain": 1 / 3, "double": 1 / 3, "byte": 100, "short": 65535, "SIZE": 16,
}  # fmt: skip

GUARD: Callable[[], Any] = nullcontext


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    _scalars_kernel.device_caches.clear()


def _launch(x: torch.Tensor, y: torch.Tensor, **changes: Any) -> None:
    arguments = {"x_ptr": x, "y_ptr": y, **SCALARS, **changes}
    compiled = _scalars_kernel[(3, 2)](**arguments)
    recording = active_recording()
    if recording is not None:
        recording.add(compiled, (3, 2), arguments)


def _run(arrays: Any) -> torch.Tensor:
    y = torch.empty_strided((16,), (1,))
    _launch(arrays["x"], y)
    return y


@pytest.mark.parametrize("name", ["native", "python"])
def test_scalars_of_every_type(gpu: StubGpu, name: str) -> None:
    x = torch.zeros(16)
    with launcher(name):
        _, replay = record.record(_run, {"x": x}, 0, GUARD)
        assert replay is not None
        result = replay([x.data_ptr()])
    first, again = gpu.launches()
    assert (first.function, first.grid, first.block) == (again.function, (3, 2, 1), (128, 1, 1))
    places = [place for place, (a, b) in enumerate(zip(first.arguments, again.arguments, strict=True)) if a != b]
    assert places in ([], [1]), "only the result may lie elsewhere"
    assert again.arguments[1] == result.data_ptr().to_bytes(8, "little")
    third = struct.pack("<f", 1 / 3)
    packed = [b"\xf9\xff\xff\xff", struct.pack("<q", 2**40 + 3), struct.pack("<Q", 2**63 + 5), b"\x01"]
    packed += [struct.pack("<f", 0.1), struct.pack("<e", 1 / 3), third[2:], struct.pack("<d", 1 / 3)]
    assert list(again.arguments[2:]) == [*packed, b"d", b"\xff\xff", bytes(8), bytes(8)]


def test_the_compiler_s_declaration_is_what_parameters_are_compared_with(
    gpu: StubGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release of Triton with other parameters than we know goes through its own launcher."""
    x = torch.zeros(16)
    made: list[Any] = []
    original = record._through_triton
    monkeypatch.setattr(record, "_through_triton", lambda *args: made.append(1) or original(*args))
    with launcher("native"):
        assert record.record(_run, {"x": x}, 0, GUARD)[1] is not None and made == []
        monkeypatch.setattr(layout, "_SCRATCH", 3)
        _, replay = record.record(_run, {"x": x}, 0, GUARD)
        assert replay is not None and made == [1]
        assert replay([x.data_ptr()]) is not None
    assert len(gpu.launches()) == 3


def _adds(arrays: Any) -> torch.Tensor:
    y = _run(arrays)
    y.add_(1)
    return y


def _foreign(arrays: Any) -> torch.Tensor:
    y = torch.empty_strided((16,), (1,))
    _launch(FOREIGN, y)
    return y


def _returns_argument(arrays: Any) -> torch.Tensor:
    _run(arrays)
    return arrays["x"]


def _launches_nothing(arrays: Any) -> torch.Tensor:
    return torch.empty_strided((16,), (1,))


FOREIGN = torch.zeros(16)


@pytest.mark.parametrize("run", [_adds, _foreign, _returns_argument, _launches_nothing])
def test_what_cannot_be_repeated_is_refused(gpu: StubGpu, run: Callable[[Any], torch.Tensor]) -> None:
    with launcher("native"):
        result, replay = record.record(run, {"x": torch.zeros(16)}, 0, GUARD)
    assert replay is None and result.shape == (16,)
    assert active_recording() is None


def test_views_of_a_workspace_keep_their_place(gpu: StubGpu) -> None:
    def run(arrays: Any) -> torch.Tensor:
        y = torch.empty_strided((16,), (1,))
        workspace = torch.empty(64)
        _launch(arrays["x"], workspace[32:48])
        _launch(workspace[32:], y)
        return y

    x = torch.zeros(16)
    with launcher("native"):
        _, replay = record.record(run, {"x": x}, 0, GUARD)
        assert replay is not None
        gpu.reset()
        result = replay([x.data_ptr()])
    first, second = gpu.launches()
    assert first.arguments[1] == second.arguments[0] != second.arguments[1]
    assert second.arguments[1] == result.data_ptr().to_bytes(8, "little")


def test_an_array_that_comes_twice_is_two_arrays(gpu: StubGpu) -> None:
    def run(arrays: Any) -> torch.Tensor:
        y = torch.empty_strided((16,), (1,))
        _launch(arrays["b"], y)
        return y

    x, other = torch.zeros(16), torch.zeros(16)
    with launcher("native"):
        _, replay = record.record(run, {"a": x, "b": x}, 0, GUARD)
        assert replay is not None
        gpu.reset()
        replay([other.data_ptr(), x.data_ptr()])
    assert gpu.launches()[0].arguments[0] == x.data_ptr().to_bytes(8, "little")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, 1, ((1, 0, True),)),)), "no such pointer"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, 1, (bytes(9),)),)), "at most 8 bytes"),
        ((None, 0, 65, ()), "at most 64 pointers"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, 1, (bytes(8),) * 513),)), "at most 512 parameters"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, (bytes(8),)),)), "a kernel has 6 facts"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, 1, ((0, 0, bytes(127)),)),)), "a tensor map has 128 bytes"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, 1, ((0, 0, bytes(128)),) * 19),)), "at most 18 tensor maps"),
    ],
)
def test_a_bad_plan_is_refused(gpu: StubGpu, arguments: tuple[Any, ...], error: str) -> None:
    with launcher("native"), pytest.raises(ValueError, match=error):
        native().make(*arguments)
    with launcher("native"), pytest.raises(TypeError, match="the plan takes a stream and 2 pointers"):
        native().launch(native().make(None, 0, 2, ()), 0, 1)


def _distinct() -> list[torch.Tensor | None]:
    """Return arrays of which no two are the same to a plan."""
    base = torch.zeros(2, 3, 4, 5)
    return [
        None, base, base.permute(0, 2, 3, 1), base[..., 1:], torch.zeros(121)[1:].view(base.shape),
        base[:1], base[:1].as_strided((1, 3, 4, 5), (7, 20, 5, 1)), base[:1].expand(9, 3, 4, 5), base.bfloat16(),
        base.half(), base.double(), base.int(), base.bool(), base.byte(), base.char(), base.to(torch.complex64),
        base.to(torch.float8_e4m3fn), base.to(torch.float8_e5m2), torch.zeros(0), torch.zeros(()), torch.zeros(1),
        torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros((1,) * 64),
    ]  # fmt: skip


def test_both_ways_to_sign_agree(gpu: StubGpu) -> None:
    """What is the same to one is the same to the other, and has the same address."""
    sign, plain = native().sign, conv_autograd.PLAIN
    assert sign is native_module.SIGN is not None, "torch 2.11 has DLPack's exchange API"
    arrays = _distinct()
    signed = [sign((array,), False, plain) for array in arrays]
    for array, (text, addresses) in zip(arrays, signed, strict=True):
        assert addresses == signatures((array,))[1]
        assert array is None or text == sign((array.detach(),), False, plain)[0]
    assert len({text for text, _ in signed}) == len(arrays)
    assert len({signatures((array,))[0] for array in arrays}) == len(arrays)
    together, addresses = sign(tuple(arrays[:8]), False, plain)
    assert together == b"".join(text for text, _ in signed[:8])
    assert addresses == signatures(arrays[:8])[1]
    leaf = torch.nn.Parameter(torch.zeros(3))
    assert sign((leaf,), False, plain) == sign((leaf.detach(),), False, plain)


def test_what_has_no_signature_is_left_to_python(gpu: StubGpu) -> None:
    sign, plain = native().sign, conv_autograd.PLAIN
    leaf = torch.nn.Parameter(torch.zeros(3))
    negated = torch.zeros(3, dtype=torch.complex64).conj().imag
    without_memory = torch._efficientzerotensor((3,))
    for array, grad in ((leaf, True), (negated, False), ([0.0], False), (without_memory, False)):
        assert sign((array,), grad, plain) is None
        with pytest.raises(UnkeyedError):
            signatures((array,), grad)
    others = (torch.zeros(3).numpy(), torch.zeros(3, device="meta"), torch.zeros(3, 3).to_sparse())
    for array in (*others, torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)):
        assert sign((array,), False, plain) is None
    assert sign((torch.zeros((1,) * 64),) * 4, False, plain) is None, "longer than the extension has room for"
    with pytest.raises(TypeError, match="sign"):
        sign((leaf,), False)


def test_a_torch_without_the_exchange_api_is_signed_in_python(gpu: StubGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpuconv

    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    x, w = torch.zeros(1, 8, 6, 6).half(), torch.zeros(8, 8, 3, 3).half()
    with launcher("native"):
        assert native() is not None and native_module.SIGN is None
        for _ in range(3):
            gpuconv.conv2d(x, w)
    monkeypatch.undo()
    assert len(gpu.launches()) == 3 and native() is not None and native_module.SIGN is not None
