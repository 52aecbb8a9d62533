"""Maxima and taps by keys, tall tiles, and gradients of taps: what tiles of overlapping windows share."""

from __future__ import annotations

from dataclasses import replace

import pool_cases
import pytest
import torch
import torch.nn.functional as F
from pool_cases import OVERLAPPING, PoolCase, PoolInputs, check_case, config_of

import gpuconv
from gpuconv.backends.triton import pool_tiled
from gpuconv.dispatch import select

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "permuted"))
@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("branch", OVERLAPPING)
@pytest.mark.parametrize("ndim", (2, 3))
def test_keys_match_the_reference(ndim, branch, dtype, layout, monkeypatch):
    """Values, NaN and taps exactly, also where the plan of a layout would not use keys."""
    monkeypatch.setattr(pool_tiled, "_MANY_TAPS", 1)
    case = PoolCase("max", ndim, layout, dtype, branch)
    inputs = PoolInputs(case)
    arguments = pool_tiled.tiled_arguments(inputs.problem, _strides(inputs), config_of(inputs))
    assert arguments["OP"] == "keys"
    check_case(case, ("forward",))


def _strides(inputs: PoolInputs) -> dict[str, tuple[int, ...]]:
    y = torch.empty(inputs.problem.y_shape).stride()
    return {"x": inputs.x.stride(), "y": y, "indices": y}


def test_keys_are_for_16_bit_numbers_and_taps_of_overlapping_windows():
    def operation(dtype: torch.dtype, stride: int = 1, kernel: int = 3, layout: str = "contiguous", **options: bool):
        x = torch.empty(2, 8, 16, 16, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
        call = gpuconv.explain(gpuconv.max_pool2d, x, kernel, stride, 1, return_indices=True, backend="triton")
        problem = replace(call.problem, **{"offsets": True, **options})
        config = select(problem, "triton.pool.max.fprop.tiled").config
        return pool_tiled._operation(problem, config)

    assert operation(torch.float16) == operation(torch.bfloat16) == "keys"
    assert operation(torch.float32) == operation(torch.float16, stride=2) == "indexed"
    assert operation(torch.float16, offsets=False) == "indexed"
    assert operation(torch.float16, return_indices=False) == "max"
    assert operation(torch.float16, layout="channels_last") == "indexed"
    assert operation(torch.float16, kernel=5, layout="channels_last") == "keys"


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_zeros_of_both_signs_are_equal(dtype):
    """The first zero of a window has its tap, whatever its sign; subnormal numbers are not zero.

    The interpreter itself widens subnormal numbers of bfloat16 wrongly: there the smallest normal one.
    """
    tiny = torch.finfo(dtype).smallest_normal / (2**3 if dtype == torch.float16 else 1)
    x = torch.zeros(1, 2, 6, 8, dtype=dtype)
    x[0, 0, ::2] = -0.0
    x[0, 0, 1, 1::3] = -tiny
    x[0, 1] = -tiny
    x[0, 1, 2::2, ::3] = -0.0
    x[0, 1, 5, 5] = tiny
    found = _values_and_positions(x, 3, 1)
    expected = F.max_pool2d(x.double(), 3, 1, 1, return_indices=True)
    assert torch.equal(found[0].double(), expected[0]) and torch.equal(found[1], expected[1])


def _values_and_positions(x: torch.Tensor, kernel: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maxima that keys find, and the positions in the plane that their taps mean."""
    call = gpuconv.explain(gpuconv.max_pool2d, x, kernel, 1, padding, return_indices=True, backend="triton")
    problem = replace(call.problem, offsets=True)
    plan = select(problem, "triton.pool.max.fprop.tiled")
    y = torch.empty(problem.y_shape, dtype=x.dtype)
    taps = torch.empty(problem.y_shape, dtype=torch.int8)
    plan.solver.launch(problem, {"x": x, "y": y, "indices": taps}, {**plan.config, "BLOCK_M": 2})
    rows = torch.arange(problem.output_size[0]).view(-1, 1) - padding + taps // kernel
    columns = torch.arange(problem.output_size[1]) - padding + taps % kernel
    return y, rows * x.shape[-1] + columns


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_every_nan_wins_and_the_last_of_them_has_the_tap(dtype):
    """Of both signs and of any payload, before and after the largest numbers."""
    bits = torch.arange(48, dtype=torch.int16).view(1, 1, 6, 8) * 37 % 29
    infinity = torch.tensor(INF, dtype=dtype).view(torch.int16)
    nan = (bits % 5 * 13 + 1) | infinity
    nan = torch.where(bits % 2 == 0, nan, nan | -(2**15))
    x = torch.where(bits % 3 == 0, nan.view(dtype), torch.where(bits % 7 == 0, INF, bits.to(dtype)))
    assert bool(x.isnan().any()) and bool((x == INF).any())
    found = _values_and_positions(x, 2, 0)
    expected = F.max_pool2d(x.double(), 2, 1, return_indices=True)
    assert torch.equal(found[0].double().nan_to_num(-9.0), expected[0].nan_to_num(-9.0))
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("family", ("max", "avg"))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_tall_tiles(family, layout, monkeypatch):
    """Odd widths are pooled eight rows at a time: more than there are, and with rows that no output reads."""
    monkeypatch.setattr(pool_cases, "config_of", lambda inputs: {**config_of(inputs), "TILE_P": 8})
    check_case(PoolCase(family, 2, layout, "float32", "fprop tiled 3 stride 2"), ("forward",))


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_gradients_of_taps_in_tall_tiles(layout, dtype, monkeypatch):
    monkeypatch.setitem(pool_cases.BRANCHES["max"][2], "bwd tiled tall", {
        "kernel": 3, "stride": 1, "pads": (1, 1), "numbers": "taps", "special": True, "size": (9, 16), "c": 3, "n": 1,
    })  # fmt: skip
    case = PoolCase("max", 2, layout, dtype, "bwd tiled tall")
    assert config_of(PoolInputs(case))["TILE_P"] == 4
    check_case(case, ("forward",))
