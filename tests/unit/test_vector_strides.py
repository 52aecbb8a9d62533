"""What launches are told of the strides of bias, scale and shift, and how arrays that torch cannot show are shown."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import gpuconv
from gpuconv.arrays import TORCH
from gpuconv.backends.conv_common import format_strides
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.backends.cupy.conv_common import conv_params, wide_index
from gpuconv.backends.triton import common as triton_common
from gpuconv.backends.triton.conv_fprop import fprop_arguments, fprop_sum_arguments
from gpuconv.backends.triton.conv_grad import dgrad_arguments
from gpuconv.problem import ConvProblem

TILE = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2}
NAMES = ("bias", "scale", "shift")


def problem_of(k: int = 4, op: str = "conv2d") -> ConvProblem:
    x, w = np.zeros((1, 4, 9, 9), np.float32), np.zeros((k, 4, 3, 3) if op == "conv2d" else (4, k, 3, 3), np.float32)
    vectors = {name: np.zeros(k, np.float32) for name in NAMES}
    problem = gpuconv.explain(getattr(gpuconv, op), x, w, **vectors).problem
    assert isinstance(problem, ConvProblem)
    return problem


PASSES = {
    "fprop": ("conv2d", fprop_arguments, {}),
    "split sum": ("conv2d", fprop_sum_arguments, {"splits": 2}),
    "transposed": ("conv_transpose2d", dgrad_arguments, {}),
}


@pytest.mark.parametrize("name", PASSES)
def test_strides_are_those_of_the_vectors(name):
    op, describe, extra = PASSES[name]
    problem = problem_of(op=op)
    strides = format_strides(problem) | {"bias": (2,), "scale": (0,), "shift": (2**29,)}
    arguments = describe(problem, strides, TILE | extra)
    assert [arguments[f"{vector}_stride"] for vector in NAMES] == [2, 0, 2**29]
    assert not arguments["INDEX64"]
    assert describe(problem, strides | {"shift": (2**30,)}, TILE | extra)["INDEX64"]
    plain = describe(problem, format_strides(problem), TILE | extra)
    assert [plain[f"{vector}_stride"] for vector in NAMES] == [1, 1, 1]


def test_the_stride_of_one_element_is_a_constant_of_the_compiler():
    problem = problem_of(k=1)
    arguments = fprop_arguments(problem, format_strides(problem) | {"bias": (7,)}, TILE)
    assert arguments["bias_stride"] == 1


def test_partial_sums_are_launched_without_vectors():
    problem = problem_of()
    strides = format_strides(problem) | {"bias": (2**31,)}
    arguments = fprop_arguments(problem, strides, TILE | {"splits": 2})
    assert arguments["bias_stride"] == 1


def test_strides_in_the_struct_of_the_cuda_sources():
    problem = problem_of()
    strides = format_strides(problem) | {"bias": (-2,), "shift": (2**29,)}
    assert conv_params(problem, strides)["vector_stride"].tolist() == [-2, 0, 2**29]
    assert wide_index(problem, strides) and not wide_index(problem, strides | {"shift": (2**28,)})


def test_arrays_of_cupy_with_negative_strides_are_copied(monkeypatch):
    """torch has no negative strides: what DLPack is asked for must not have them."""
    given: list[object] = []
    monkeypatch.setattr(triton_common, "is_cupy", lambda array: True)
    monkeypatch.setattr(torch, "from_dlpack", lambda array: given.append(array))
    copy = SimpleNamespace(strides=(8, 4), dtype=np.dtype("float32"))
    array = SimpleNamespace(strides=(-8, 4), dtype=np.dtype("float32"), copy=lambda: copy)
    triton_common.as_tensor(torch, array)
    triton_common.as_tensor(torch, copy)
    assert given == [copy, copy]


def test_zeros_without_memory_and_lazy_negatives_get_their_values(monkeypatch):
    zeros = torch._efficientzerotensor(3)
    assert zeros._is_zerotensor()
    assert triton_common.as_tensor(torch, zeros).data_ptr() != 0
    negated = torch.tensor([1 + 2j]).conj().imag
    assert negated.is_neg()
    assert triton_common.as_tensor(torch, negated).numpy().tolist() == [-2.0]
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=lambda tensor: tensor))
    shared = cupy_common._shared(TORCH, negated)
    assert not shared.is_neg() and shared.tolist() == [-2.0]
    plain = torch.ones(3)
    assert triton_common.as_tensor(torch, plain) is plain
