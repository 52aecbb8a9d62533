"""Blocks of networks that others wrote, with their convolutions computed by this library's Triton kernels.

They come from ``transformers``, which builds them from a configuration alone: nothing is downloaded.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gpuconv
import gpuconv.nn
from gpuconv.backends.triton import conv_fprop, conv_grad

transformers = pytest.importorskip("transformers", reason="transformers, from which the blocks are, is not installed")

SHAPE = (1, 8, 9, 10)


def mobilenet_v2(stride: int) -> torch.nn.Module:
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2InvertedResidual

    return MobileNetV2InvertedResidual(transformers.MobileNetV2Config(), SHAPE[1], SHAPE[1] * stride, stride)


def convnext(stride: int) -> torch.nn.Module:
    """Return a layer with its window of 7 x 7, and with stride 2 a stage that begins with a reduction by patches."""
    from transformers.models.convnext.modeling_convnext import ConvNextLayer, ConvNextStage

    config = transformers.ConvNextConfig()
    if stride == 1:
        return ConvNextLayer(config, dim=SHAPE[1])
    return ConvNextStage(config, in_channels=SHAPE[1], out_channels=2 * SHAPE[1], stride=2, depth=1)


def efficientnet(stride: int) -> torch.nn.Module:
    """Return a block with a window of 5 x 5, squeeze and excitation; of stride 2 it pads by itself."""
    from transformers.models.efficientnet.modeling_efficientnet import EfficientNetBlock

    return EfficientNetBlock(
        transformers.EfficientNetConfig(), in_dim=SHAPE[1], out_dim=SHAPE[1] * stride, stride=stride, expand_ratio=3,
        kernel_size=5, drop_rate=0.0, id_skip=stride == 1, adjust_padding=True,
    )  # fmt: skip


BLOCKS: dict[str, Callable[[int], torch.nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "convnext": convnext,
    "efficientnet": efficientnet,
}
FULL = os.environ.get("GPUCONV_TEST_FULL") == "1"
CASES = [
    (name, stride, memory_format)
    for place, name in enumerate(BLOCKS)
    for stride in (1, 2)
    for memory_format in (torch.contiguous_format, torch.channels_last)
    if FULL or (stride == 2 and (memory_format == torch.channels_last) == (place > 0))
]
"""In the gate each block once."""

DEPTHWISE = {"triton.conv.depthwise.march", "triton.conv.depthwise.collect"}


def computed_here(block: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a block whose convolutions, of equal parameters, run on the Triton kernels."""
    changed = copy.deepcopy(block)
    for entry in gpuconv.replace_modules(changed, where=torch.nn.Conv2d):
        if entry.replaced:
            changed.get_submodule(entry.name).backend = "triton"
    return changed


@pytest.fixture
def general_solvers_leave_depthwise_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """On such small inputs they win some."""
    for solver in (conv_fprop.FpropImplicitGemm, conv_grad.DgradImplicitGemm, conv_grad.WgradSplitK):

        def why_not(self: Any, problem: Any, original: Any = solver.why_not) -> str | None:
            return "left to others" if problem.groups == problem.c > 1 else original(self, problem)

        monkeypatch.setattr(solver, "why_not", why_not)


@pytest.mark.usefixtures("general_solvers_leave_depthwise_layers")
@pytest.mark.parametrize(
    ("name", "stride", "memory_format"), CASES, ids=lambda value: str(value).removeprefix("torch.")
)
def test_outputs_and_gradients_equal_those_of_torch(name: str, stride: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    theirs = BLOCKS[name](stride).train()
    for module in theirs.modules():  # the scale of a residual branch, which begins at 1e-6, would hide the branch
        if isinstance(layer_scale := getattr(module, "layer_scale_parameter", None), torch.nn.Parameter):
            torch.nn.init.constant_(layer_scale, 0.5)
    ours = computed_here(theirs)
    x = torch.randn(SHAPE).to(memory_format=memory_format)
    inputs, outputs, weights = {}, {}, {}
    with gpuconv.dispatch.record_plans() as plans:
        for which, block in (("theirs", theirs), ("ours", ours)):
            given = x.clone().requires_grad_()
            result = block(given)
            probe = torch.linspace(-1, 1, result.numel()).reshape(result.shape)
            (result * probe).sum().backward()
            inputs[which], outputs[which] = given.grad, result.detach()
            weights[which] = {key: value.grad for key, value in block.named_parameters()}
    assert {plan.solver.id for plan in plans} >= DEPTHWISE
    torch.testing.assert_close(outputs["ours"], outputs["theirs"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs["ours"], inputs["theirs"], rtol=1e-4, atol=1e-4)
    assert weights["ours"].keys() == weights["theirs"].keys()
    for key, gradient in weights["theirs"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(weights["ours"][key], gradient, rtol=1e-4, atol=1e-5 * max(scale, 1.0), msg=key)
