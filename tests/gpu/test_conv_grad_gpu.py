"""dgrad, wgrad and transposed convolution on a GPU: the cases of the interpret lane, against float64 and cuDNN."""

from __future__ import annotations

import pytest
import torch
from grad_cases import BRANCHES, GradInputs, all_cases
from on_gpu import assert_agrees, cudnn_conv, poison, to_gpu

from gpuconv.backends.triton.conv_grad import DgradImplicitGemm, WgradSplitK
from gpuconv.dispatch import record_plans

CASES = [case for kind in BRANCHES for case in all_cases(kind)]
SOLVERS = {"dgrad": DgradImplicitGemm.id, "transposed": DgradImplicitGemm.id, "wgrad": WgradSplitK.id}


def cudnn_result(inputs: GradInputs) -> torch.Tensor | None:
    """Return the derivative of torch's convolution, or None for a case that torch has no call for."""
    tensors = inputs.tensors
    if inputs.options.get("padding_mode", "zeros") != "zeros":
        # torch adds the images of a position to each other after rounding them: not in 16 bits, then.
        tensors = {
            name: tensor if tensor.dtype is torch.float64 else tensor.float() for name, tensor in tensors.items()
        }
    if {"scale", "shift", "residual"} & set(tensors) or inputs.case.option("activation", None):
        return None
    y = tensors["y"]
    new = {"dtype": y.dtype, "device": y.device}
    # Values of what is differentiated do not matter: the convolution is linear in it.
    x = tensors["x"] if "x" in tensors else torch.zeros(inputs.x_shape, **new, requires_grad=True)
    w = tensors["w"] if "w" in tensors else torch.zeros(inputs.w_shape, **new, requires_grad=True)
    convolved = cudnn_conv(x, w, inputs.options)
    if convolved is None:
        return None
    (result,) = torch.autograd.grad(convolved, w if inputs.case.kind == "wgrad" else x, y)
    if "bias" in tensors:
        result = result + tensors["bias"].reshape(-1, *(1,) * inputs.case.ndim)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_agrees_with_float64_and_cudnn(case, monkeypatch):
    inputs = GradInputs(case)
    reference, magnitude = inputs.reference()
    inputs.tensors = {name: to_gpu(tensor) for name, tensor in inputs.tensors.items()}
    poison(monkeypatch)
    with record_plans() as plans:
        result = inputs.call("triton")
        again = inputs.call("triton")
    assert [plan.solver.id for plan in plans] == [SOLVERS[case.kind]] * 2
    assert torch.equal(result, again), "two runs must be bit-equal"
    assert_agrees(result, reference, magnitude, plans[0].problem, cudnn_result(inputs))
