"""Gradients of large max pools from positions on a GPU, against a referee in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from on_gpu import to_gpu
from position_cases import CASES, Given, crossing, outside, referee


@pytest.mark.parametrize("name", CASES)
def test_any_positions_are_right_one_after_another(name: str) -> None:
    """Repeated launches, with positions that need the launch over all axes before and after some that do not."""
    one = CASES[name]()
    changes: list[Callable[[Given], Given]] = [lambda same: same, crossing, lambda same: same, outside, crossing]
    tensors = Given(to_gpu(one.grad), to_gpu(one.x), one.window, to_gpu(one.indices))
    for change in changes:
        changed = change(one)
        tensors.indices.copy_(changed.indices)
        results = [tensors.gradient("separable") for _ in range(2)]
        assert torch.equal(*results), "two runs must be bit-equal"
        assert torch.allclose(results[0].cpu().double(), referee(changed), atol=1e-5)
