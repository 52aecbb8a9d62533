"""Networks whose modules were replaced, as ONNX files: onnxruntime gives what the model gives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import NETWORKS, missing

import gpuconv

pytest.importorskip("onnxscript", reason="not run: onnxscript is not installed")
ort = pytest.importorskip("onnxruntime", reason="not run: onnxruntime is not installed")

DIM = torch.export.Dim.DYNAMIC


class Double(torch.nn.Sequential):
    """Two convolutions with batch normalisation."""

    def __init__(self, c: int, k: int, **settings: Any) -> None:
        parts = []
        for channels in (c, k):
            conv = torch.nn.Conv2d(channels, k, 3, padding=1, bias=False, **settings)
            parts += [conv, torch.nn.BatchNorm2d(k), torch.nn.ReLU()]
        super().__init__(*parts)


class UNet(torch.nn.Module):
    """Two levels down by a max and an average pool, and up by transposed convolutions beside the skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = Double(3, 8, padding_mode="reflect")
        self.down = torch.nn.ModuleList([torch.nn.MaxPool2d(2), torch.nn.AvgPool2d(2, 2, ceil_mode=True)])
        self.inner = torch.nn.ModuleList([Double(8, 16), Double(16, 32)])
        self.up = torch.nn.ModuleList(
            [torch.nn.ConvTranspose2d(32, 16, 2, 2), torch.nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1)]
        )
        self.outer = torch.nn.ModuleList([Double(32, 16), Double(16, 8)])
        self.gate = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(32, 32, 1, groups=4), torch.nn.Sigmoid()
        )
        self.leave = torch.nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips, y = [], self.enter(x)
        for down, inner in zip(self.down, self.inner):
            skips.append(y)
            y = inner(down(y))
        y = y * self.gate(y)
        for up, outer in zip(self.up, self.outer):
            y = outer(torch.cat([skips.pop(), up(y)], 1))
        result: torch.Tensor = self.leave(y)
        return result


class Logits(torch.nn.Module):
    """A network of ``transformers`` without its class of results."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.model(x, return_dict=False)
        found: torch.Tensor = result[0]
        return found


def _settled(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Give running statistics values that a layer notices."""
    model.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def _same(model: torch.nn.Module, x: torch.Tensor, more: torch.Tensor, dims: dict[int, Any], path: Path) -> list[str]:
    """Export, load and run; return the operators of the file."""
    torch.manual_seed(0)
    theirs = _settled(model, x)
    with torch.no_grad():
        expected = theirs(x)
    report = gpuconv.replace_modules(model)
    assert sum(entry.replaced for entry in report) > 5 and all(entry.replaced for entry in report)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model, (x,), path, dynamo=True, custom_translation_table=gpuconv.onnx_translations(), dynamic_shapes=(dims,),
        verbose=False,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for image in (x, more):
        with torch.no_grad():
            ours = model(image)
        (found,) = session.run(None, {name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), ours, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {name: x.numpy()})[0]), expected, rtol=1e-3, atol=1e-4
    )
    assert not [node for node in program.model.graph if node.domain]
    return [node.op_type for node in program.model.graph]


@pytest.mark.filterwarnings("ignore")
def test_resnet(tmp_path: Path) -> None:
    network = NETWORKS["resnet"]
    if why := missing(network):
        pytest.skip(f"not run: {why}")
    torch.manual_seed(0)
    model, inputs = network.build()
    x = inputs["pixel_values"]
    kinds = _same(Logits(model), x, torch.cat([x, x.flip(3)]), {0: DIM}, tmp_path / "resnet.onnx")
    assert kinds.count("Conv") == sum(isinstance(part, torch.nn.Conv2d) for part in model.modules())
    assert "MaxPool" in kinds and "GlobalAveragePool" in kinds


@pytest.mark.filterwarnings("ignore")
def test_unet(tmp_path: Path) -> None:
    """Of any batch, and of any size that its levels divide."""
    torch.manual_seed(0)
    x, more = torch.randn(2, 3, 16, 24), torch.randn(3, 3, 32, 20)
    height, width = (4 * torch.export.Dim(name, min=2) for name in ("h", "w"))
    kinds = _same(UNet(), x, more, {0: DIM, 2: height, 3: width}, tmp_path / "unet.onnx")
    assert kinds.count("ConvTranspose") == 2 and "Conv" in kinds and "MaxPool" in kinds
