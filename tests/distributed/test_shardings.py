"""How axes are cut and which go together, without processes."""

from __future__ import annotations

import pytest
import torch

from gpuconv.ops.shardings import SUM, WHOLE, axes_of, cut, shardings


@pytest.mark.parametrize("size", range(12))
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_axes_are_cut_as_torch_cuts_them(size: int, parts: int) -> None:
    chunks = [len(chunk) for chunk in torch.arange(size).chunk(parts)] if size else []
    assert cut(size, parts) == chunks + [0] * (parts - len(chunks))


def ways(name: str, arguments: dict[str, object], results: int = 1) -> dict[str, tuple[dict[str, int], list[int]]]:
    tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
    found = shardings(axes_of(name, arguments, tensors, results))
    return {way.letter: (dict(way.operands), list(way.results)) for way in found}


def test_a_convolution() -> None:
    x, w, bias = torch.empty(2, 4, 5), torch.empty(6, 4, 3), torch.empty(6)
    found = ways("fprop", {"x": x, "w": w, "bias": bias, "groups": 1, "activation": None})
    assert found == {
        "N": ({"x": 0, "w": WHOLE, "bias": WHOLE}, [0]),
        "C": ({"x": 1, "w": 1, "bias": WHOLE}, [SUM]),
        "K": ({"x": WHOLE, "w": 0, "bias": 0}, [1]),
        "": ({"x": WHOLE, "w": WHOLE, "bias": WHOLE}, [WHOLE]),
    }


def test_an_activation_is_not_of_a_term() -> None:
    x, w = torch.empty(2, 4, 5), torch.empty(6, 4, 3)
    assert "C" not in ways("fprop", {"x": x, "w": w, "groups": 1, "activation": "relu"})


def test_groups_are_sharded_whole() -> None:
    x, dy = torch.empty(2, 4, 5), torch.empty(2, 6, 5)
    found = ways("wgrad", {"x": x, "dy": dy, "groups": 2})
    assert found["G"] == ({"x": 1, "dy": 1}, [0])
    assert found["N"] == ({"x": 0, "dy": 0}, [SUM])
    assert set(found) == {"N", "G", ""}


def test_a_deformable_convolution() -> None:
    x, offset, w, dy = torch.empty(2, 4, 5), torch.empty(2, 3, 5), torch.empty(6, 4, 3), torch.empty(2, 6, 5)
    arguments = {"dy": dy, "x": x, "offset": offset, "w": w, "grads": ["x", "offset"], "groups": 1, "offset_groups": 1}
    found = ways("deform_dgrad", arguments, 2)
    assert found["N"] == ({"dy": 0, "x": 0, "offset": 0, "w": WHOLE}, [0, 0])
    assert found["C"] == ({"dy": WHOLE, "x": 1, "offset": WHOLE, "w": 1}, [1, SUM])
    assert found["K"] == ({"dy": 1, "x": WHOLE, "offset": WHOLE, "w": 0}, [SUM, SUM])
    several = arguments | {"offset": torch.empty(2, 6, 5), "offset_groups": 2}
    assert set(ways("deform_dgrad", several, 2)) == {"N", "K", ""}
    assert set(ways("deform_dgrad", several | {"w": torch.empty(6, 2, 3), "groups": 2}, 2)) == {"N", ""}


def test_a_sum_of_integers_is_not_averaged_by_terms() -> None:
    kernel = {"kernel": [2]}
    linear = ({"x": SUM}, [SUM])
    assert ways("avg_pool", {"x": torch.empty(2, 4, 5), **kernel})[""] != linear  # the last of the name is whole
    found = shardings(axes_of("avg_pool", {"x": torch.empty(2, 4, 5), **kernel}, ["x"], 1))
    assert linear in [(dict(way.operands), list(way.results)) for way in found]
    found = shardings(axes_of("avg_pool", {"x": torch.empty(2, 4, 5, dtype=torch.int64), **kernel}, ["x"], 1))
    assert linear not in [(dict(way.operands), list(way.results)) for way in found]
