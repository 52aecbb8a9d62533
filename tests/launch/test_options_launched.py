"""Options that no default of Triton decides: they arrive in the kernels that calls launch, and repeat."""

from __future__ import annotations

from typing import Any

import pytest
from launch_cases import CALLS
from stub_gpu import StubGpu, launcher
from triton.runtime.jit import JITFunction


@pytest.mark.parametrize("name", CALLS)
def test_every_launch_lets_products_and_sums_fuse(gpu: StubGpu, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Triton's default says no, as it will from 3.10 on; repeats launch the same compiled kernels."""
    compiled: list[Any] = []
    original = JITFunction.run

    def run_and_keep(*args: Any, **kwargs: Any) -> Any:
        compiled.append(original(*args, **kwargs))
        return compiled[-1]

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    monkeypatch.setattr(JITFunction, "run", run_and_keep)
    count, call = CALLS[name]
    with launcher("native"):
        call()
        assert [kernel.metadata.enable_fp_fusion for kernel in compiled] == [True] * count
        call()
    assert len(compiled) == count, "the repeat was no replay"
    assert [launch.function for launch in gpu.launches()] == [kernel.function for kernel in compiled] * 2
