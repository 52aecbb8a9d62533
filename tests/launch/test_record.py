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

from gpuconv.launcher import layout, record
from gpuconv.launcher.record import active_recording


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
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, ((1, 0, True),)),)), "no such pointer"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, (bytes(9),)),)), "at most 8 bytes"),
        ((None, 0, 65, ()), "at most 64 pointers"),
        ((None, 0, 1, ((1, (1, 1, 1), 32, 0, (bytes(8),) * 513),)), "at most 512 parameters"),
    ],
)
def test_a_bad_plan_is_refused(gpu: StubGpu, arguments: tuple[Any, ...], error: str) -> None:
    from gpuconv.launcher.native import native

    with launcher("native"), pytest.raises(ValueError, match=error):
        native().make(*arguments)
    with launcher("native"), pytest.raises(TypeError, match="the plan takes a stream and 2 pointers"):
        native().launch(native().make(None, 0, 2, ()), 0, 1)


def test_both_ways_to_sign_agree(gpu: StubGpu) -> None:
    from gpuconv.launcher.native import native
    from gpuconv.ops_autograd import PLAIN
    from gpuconv.plan_cache import UnkeyedError, signatures

    sign = native().sign
    base = torch.zeros(2, 3, 4, 5)
    leaf = torch.nn.Parameter(torch.zeros(3))
    for arrays in (
        (base, leaf, None),
        (base.permute(0, 2, 3, 1), base[..., 1:], base.bfloat16()),
        (torch.zeros(0), torch.zeros(()), base[:1].expand(9, 3, 4, 5), base.to("meta")),
    ):
        assert sign(arrays, False, PLAIN) == signatures(arrays)
        assert hash(sign(arrays, False, PLAIN)) == hash(signatures(arrays))
    negated = torch.zeros(3, dtype=torch.complex64).conj().imag
    for arrays, grad in (((leaf,), True), ((negated,), False), ((base.numpy()[None].tolist(),), False)):
        assert sign(arrays, grad, PLAIN) is None
        with pytest.raises(UnkeyedError):
            signatures(arrays, grad)
    assert sign((base.numpy(),), False, PLAIN) is None  # left to Python
    with pytest.raises(RuntimeError):
        sign((torch.zeros(3, 3).to_sparse(),), False, PLAIN)
