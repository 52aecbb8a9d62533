"""The general forward kernel on a GPU: the cases of the interpret lane, against float64 and against cuDNN."""

from __future__ import annotations

import pytest
import torch
from fprop_cases import Inputs, all_cases
from on_gpu import assert_agrees, cudnn_conv, poison, to_gpu

import gpuconv
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm
from gpuconv.dispatch import record_plans


def _on_gpu(inputs: Inputs) -> Inputs:
    """Move the arrays of a case to the GPU, strides included."""
    inputs.x, inputs.w = to_gpu(inputs.x), to_gpu(inputs.w)
    inputs.vectors = {name: to_gpu(tensor) for name, tensor in inputs.vectors.items()}
    inputs.residual = None if inputs.residual is None else to_gpu(inputs.residual)
    return inputs


def _cudnn(inputs: Inputs) -> torch.Tensor | None:
    """Return cuDNN's result, or None for a case that torch has no call for (epilogues, pads several times around)."""
    if inputs.activation or inputs.residual is not None or set(inputs.vectors) - {"bias"}:
        return None
    result = cudnn_conv(inputs.x, inputs.w, inputs.options)
    if result is not None and "bias" in inputs.vectors:
        result = result + inputs.vectors["bias"].reshape(-1, *(1,) * inputs.case.ndim)
    return result


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64_and_cudnn(case, monkeypatch):
    inputs = Inputs(case)
    reference, magnitude = inputs.reference()
    _on_gpu(inputs)
    poison(monkeypatch)
    with record_plans() as plans:
        result = inputs.call("triton")
        again = inputs.call("triton")
    assert [plan.solver.id for plan in plans] == [FpropImplicitGemm.id] * 2
    assert torch.equal(result, again), "two runs must be bit-equal"
    assert_agrees(result, reference, magnitude, plans[0].problem, _cudnn(inputs))


def test_runs_on_the_current_stream_without_synchronising():
    x = torch.randn(8, 64, 56, 56, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
    gpuconv.conv2d(x, w, padding=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        expected = gpuconv.conv2d(x, w, padding=1)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = gpuconv.conv2d(x, w, padding=1)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)
