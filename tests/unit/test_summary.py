"""Whole models layer by layer: against hooks on real tensors, torch's counter of FLOPs, and formulas."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import gpuconv
import gpuconv.nn
from gpuconv import shapes
from gpuconv.summary import Summary, summarize
from gpuconv.summary.fields import Grid

transformers = pytest.importorskip("transformers", reason="the networks are those of transformers")


class Block(nn.Sequential):
    def __init__(self, channels: int, filters: int, padding: int) -> None:
        super().__init__(
            nn.Conv2d(channels, filters, 3, padding=padding), nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=padding), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger, Fischer & Brox 2015: four times down and up again, with what was passed on the way down joined."""

    def __init__(self, filters: int = 64, pool: Callable[[int], nn.Module] = nn.MaxPool2d) -> None:
        super().__init__()
        sizes = [filters << level for level in range(5)]
        self.down = nn.ModuleList(Block(a, b, 0) for a, b in zip([1, *sizes], sizes))
        self.pool = pool(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in reversed(sizes[:4]))
        self.join = nn.ModuleList(Block(2 * size, size, 0) for size in reversed(sizes[:4]))
        self.end = nn.Conv2d(filters, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed = []
        for block in self.down[:-1]:
            x = block(x)
            passed.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, join in zip(self.up, self.join):
            x, side = up(x), passed.pop()
            cut = (side.shape[-1] - x.shape[-1]) // 2
            x = join(torch.cat([side[:, :, cut : cut + x.shape[-2], cut : cut + x.shape[-1]], x], 1))
        return self.end(x)


def resnet(in_1x1: bool = False) -> nn.Module:
    config = transformers.ResNetConfig(layer_type="bottleneck", depths=[3, 4, 6, 3], downsample_in_bottleneck=in_1x1)
    return transformers.ResNetModel(config)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50": (resnet, (1, 3, 64, 64)),
    "MobileNetV2": (lambda: transformers.MobileNetV2Model(transformers.MobileNetV2Config()), (1, 3, 96, 64)),
    "U-Net": (lambda: UNet(8), (1, 1, 188, 204)),
    "ConvNeXt": (lambda: transformers.ConvNextModel(transformers.ConvNextConfig(depths=[1, 1, 2, 1])), (1, 3, 64, 64)),
    "ViT": (lambda: transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=2, image_size=64)), (1, 3, 64, 64)),
    "Swin": (lambda: transformers.SwinModel(transformers.SwinConfig(depths=[1, 1], num_heads=[3, 6])), (1, 3, 56, 56)),
}  # fmt: skip


def monai_u_net() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 2, features=(8, 8, 16, 16, 32, 8), norm="batch")


if find_spec("monai") is not None:
    NETWORKS["U-Net of MONAI"] = (monai_u_net, (1, 1, 64, 48))


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: make().eval() for name, (make, _) in NETWORKS.items()}


def first_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((found for found in map(first_tensor, values) if found is not None), None)


def seen_by_hooks(model: nn.Module, x: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that each module really returns, call by call."""
    found: dict[str, list[tuple[int, ...]]] = {}
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            found.setdefault(names[module], []).append(tuple(tensor.shape))

    handles = [module.register_forward_hook(note) for module in names]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_real_tensors(name: str, networks: dict[str, nn.Module]) -> None:
    model, size = networks[name], NETWORKS[name][1]
    rows, real = summarize(model, size).layers, seen_by_hooks(model, torch.randn(size))
    called = [row for row in rows if row.output is not None]
    ours: dict[str, list[tuple[int, ...]]] = {}
    for row in called:
        ours.setdefault(row.name, []).append(row.output or ())
    assert all(real[row] == outputs for row, outputs in ours.items())
    for row, module in model.named_modules():
        leaf = isinstance(
            module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm | nn.MaxPool2d | nn.ConvTranspose2d
        )
        assert not leaf or row in ours or row not in real, f"{row} has no row"


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_and_parameters_are_torchs(name: str, networks: dict[str, nn.Module]) -> None:
    model, size = networks[name], NETWORKS[name][1]
    summary = summarize(model, size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).to("meta")(torch.empty(size, device="meta"))
    assert summary.totals["flops"] == counter.get_total_flops()
    assert summary.totals["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(row.parameters for row in summary.layers) == summary.totals["parameters"]


def path(summary: Summary, model: nn.Module, aside: str = "-") -> list[tuple[int, int, int, int]]:
    """Return kernel, stride, padding and dilation of the convolutions and pools of a chain, those `aside` left out."""
    layers = []
    for row in summary.layers:
        module = model.get_submodule(row.name)
        if isinstance(module, nn.Conv2d | nn.MaxPool2d) and aside not in row.name:
            values = (module.kernel_size, module.stride, module.padding, module.dilation)
            kernel, stride, pad, dilation = (value if isinstance(value, int) else value[0] for value in values)
            layers.append((kernel, stride, pad, dilation))
    return layers


def field_of(summary: Summary, name: str) -> tuple[Any, Any]:
    row = next(row for row in reversed(summary.layers) if row.name == name)
    return row.receptive_field, row.jump


@pytest.mark.parametrize(("in_1x1", "field"), [(False, 427), (True, 483)])
def test_receptive_field_of_resnet_50(in_1x1: bool, field: int) -> None:
    """The last stage sees 427 pixels with strides in the 3x3 ("v1.5", torchvision's, the default of transformers).

    With strides in the 1x1 before (He et al. 2016, `downsample_in_bottleneck`) the three 3x3 behind them widen by twice
    as much: by 8 + 16 + 32 more, 483 (the figure of Araujo, Norris & Sim 2019 for ResNet-v1-50).
    """
    with torch.device("meta"):
        model = resnet(in_1x1)
    summary = summarize(model, (2, 3, 224, 224))
    formula = shapes.receptive_field(path(summary, model, "shortcut"))
    assert field_of(summary, "encoder.stages.3.layers.2.activation") == ((field,) * 2, (32,) * 2)
    assert (formula.size, formula.jump) == (field, 32)
    assert summary.layers[-1].kind == "AdaptiveAvgPool2d" and summary.layers[-1].receptive_field == ("whole",) * 2


def test_receptive_field_of_mobilenet_v2() -> None:
    with torch.device("meta"):
        model = transformers.MobileNetV2Model(transformers.MobileNetV2Config())
    summary = summarize(model, (1, 3, 224, 224))
    formula = shapes.receptive_field(path(summary, model))
    assert field_of(summary, "conv_1x1.activation") == ((formula.size,) * 2, (32,) * 2)
    assert formula.size == 491


@pytest.mark.skipif(find_spec("monai") is None, reason="MONAI is not installed")
def test_receptive_field_of_monais_u_net() -> None:
    """Two 3x3 and a max pool, four times, and two 3x3: by the formula, at the bottom."""
    model = monai_u_net()
    summary = summarize(model, (1, 1, 64, 48))
    bottom = shapes.receptive_field([*[(3, 1, 1, 1), (3, 1, 1, 1), (2, 2, 0, 1)] * 4, (3, 1, 1, 1), (3, 1, 1, 1)])
    assert bottom.size == 140
    assert field_of(summary, "down_4.convs.conv_1.conv") == ((bottom.size,) * 2, (16,) * 2)


def test_receptive_field_of_a_u_net() -> None:
    """At the bottom by the formula, at the end by the pixels that have a gradient."""
    summary = summarize(UNet(2), (1, 1, 572, 572))
    assert [row.output for row in summary.layers if row.name in ("down.4.3", "end")] == [
        (1, 32, 28, 28),
        (1, 2, 388, 388),
    ]
    bottom = shapes.receptive_field([*[(3, 1, 0, 1), (3, 1, 0, 1), (2, 2, 0, 1)] * 4, (3, 1, 0, 1), (3, 1, 0, 1)])
    assert field_of(summary, "down.4.3") == ((bottom.size,) * 2, (16,) * 2)
    model = UNet(1, nn.AvgPool2d).double()  # a maximum has a gradient in one pixel alone
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    seen = summarize(model, (1, 1, 572, 572)).layers[-1].seen
    assert seen is not None
    x = torch.ones(1, 1, 572, 572, dtype=torch.float64, requires_grad=True)
    y, sizes = model(x), set()
    for place in range(186, 202):
        (gradient,) = torch.autograd.grad(y[0, 0, place, 190], x, retain_graph=True)
        touched = gradient[0, 0].any(1).nonzero().flatten()
        assert isinstance(seen[0], Grid)
        assert seen[0].at(place) == (int(touched[0]), int(touched[-1]))
        sizes.add(int(touched[-1] - touched[0]) + 1)
    assert summary.layers[-1].receptive_field == (max(sizes),) * 2
    assert summary.layers[-1].jump == (1, 1)


def test_the_model_is_left_alone() -> None:
    """No value, flag, hook, gradient or random number changes, and nothing moves."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 3)).train()
    model[3].eval()
    calls: list[torch.device] = []
    model[0].register_forward_hook(lambda module, args, output: calls.append(output.device))
    before = {name: (id(t), t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    summarize(model, (2, 3, 8, 8), "h200")
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == i and torch.equal(after[name], v) and after[name]._version == n
               for name, (i, v, n) in before.items())  # fmt: skip
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [m.training for m in model.modules()] == flags and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert calls == [torch.device("meta")]  # what is on the model runs, on the copy


MEMORY = """
import resource, sys
import torch, gpuconv, gpuconv.nn, gpuconv.summary.trace
def net():
    layers, channels = [torch.nn.Conv2d(3, 1024, 3, padding=1)], 1024
    for _ in range(11):
        layers += [torch.nn.Conv2d(1024, 1024, 3, padding=1, bias=False), torch.nn.ReLU(), torch.nn.BatchNorm2d(1024)]
    return torch.nn.Sequential(*layers)
with torch.device(sys.argv[1]):
    model = net()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
summary = gpuconv.summarize(model, (32, 3, 224, 224), "h200", dtype="bfloat16")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(summary.totals["parameters"], (after - before) * 1024)
"""


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_takes_no_memory(device: str) -> None:
    """Of 100 million parameters and results of gigabytes: less than 200 MB beyond what imports take."""
    done = subprocess.run([sys.executable, "-c", MEMORY, device], capture_output=True, text=True, check=True)
    parameters, grown = map(int, done.stdout.split())
    assert parameters > 100e6 and grown < 200e6


def test_solvers_are_those_of_explain() -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=64), nn.MaxPool2d(3, 2, 1),
        nn.ConvTranspose2d(64, 32, 2, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8),
    )  # fmt: skip
    x = torch.empty(16, 64, 56, 56, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    summary = summarize(model, x, "h200", dtype=torch.bfloat16)
    w, dw = (torch.empty(64, c, 3, 3, device="meta", dtype=torch.bfloat16) for c in (64, 1))
    wanted = {
        "0": gpuconv.explain(gpuconv.conv2d, x, w, padding=1, gpu="h200"),
        "2": gpuconv.explain(gpuconv.conv2d, x, dw, dw[:, 0, 0, 0].contiguous(), groups=64, gpu="h200"),
    }  # fmt: skip
    rows = {row.name: row for row in summary.layers}
    for name, explanation in wanted.items():
        found = explanation.to_json()
        assert rows[name].solver == explanation.solver
        assert rows[name].microseconds == pytest.approx(found["solvers"][0]["microseconds"])
        assert rows[name].roofline == pytest.approx(found["solvers"][0]["share"])
        assert rows[name].flops == found["flops"] and rows[name].bytes == found["bytes_at_least"]
    assert [rows[name].solver is not None for name in "0123456"] == [True, False, True, True, True, True, True]
    assert "adaptive" in str(rows["6"].solver) and rows["8"].solver is None
    timed = [row for row in summary.layers if row.microseconds is not None]
    assert summary.totals["microseconds"] == pytest.approx(sum(row.microseconds or 0 for row in timed))
    assert all(0 < (row.roofline or 0) <= 1 for row in timed)
    ranked = sorted(timed, key=lambda row: -(row.microseconds or 0))[:5]
    assert [row.name for row in summary.most_expensive] == [row.name for row in ranked]
    other = {row.name: row for row in summarize(model, x, "a100", dtype=torch.bfloat16).layers}
    assert "hopper" in str(rows["0"].solver) and "hopper" not in str(other["0"].solver)


def test_channels_last_goes_on_as_on_real_tensors() -> None:
    """Formats of results decide which kernels would run; a meta convolution would forget them."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 1)
    )
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    found: list[bool] = []
    for layer in model:  # hooks that are on the model run on the copy
        layer.register_forward_hook(
            lambda module, args, y: found.append(y.is_contiguous(memory_format=torch.channels_last))
        )
    for memory_format in (torch.channels_last, torch.contiguous_format):
        found.clear()
        model(x.contiguous(memory_format=memory_format))
        real = list(found)
        found.clear()
        summarize(model, x.contiguous(memory_format=memory_format))
        assert found == real == [memory_format is torch.channels_last] * len(model)


def test_modules_of_this_library() -> None:
    model = nn.Sequential(
        gpuconv.nn.Conv2d(8, 16, 3, stride=2, padding="same_upper", activation="relu"),
        gpuconv.nn.DepthwiseSeparableConv2d(16, 16, 3, padding=1),
        gpuconv.nn.MaxPool2d(2),
        gpuconv.nn.ConvTranspose2d(16, 4, 2, 2),
        gpuconv.nn.AdaptiveAvgPool2d(1),
    )
    summary, real = summarize(model, (2, 8, 17, 17), "h200"), seen_by_hooks(model, torch.randn(2, 8, 17, 17))
    assert [row.kind for row in summary.layers] == [f"gpuconv.{type(layer).__name__}" for layer in model]
    assert all(real[row.name] == [row.output] for row in summary.layers)
    assert all(row.solver is not None and row.solver.startswith("triton.") for row in summary.layers)
    assert summary.layers[1].parameters == sum(p.numel() for p in model[1].parameters())
    assert [row.flops for row in summary.layers] == [
        2 * 2 * 16 * 81 * 8 * 9, 2 * 2 * 16 * 81 * (9 + 16), 0, 2 * 2 * 16 * 16 * 4 * 4, 0
    ]  # fmt: skip


def test_a_separable_convolution_may_be_one_kernel() -> None:
    layer = gpuconv.nn.DepthwiseSeparableConv2d(64, 64, 3, padding=1, between="relu6", dtype=torch.float16)
    x = torch.empty(32, 64, 56, 56, device="meta", dtype=torch.float16).to(memory_format=torch.channels_last)
    (row,) = summarize(layer, x, "h200").layers
    explanation = gpuconv.explain(copy.deepcopy(layer).to("meta").requires_grad_(False), x, gpu="h200")
    assert row.solver == explanation.solver == "triton.conv.separable.fused"
    assert row.microseconds == pytest.approx(explanation.to_json()["solvers"][0]["microseconds"])
    assert row.flops == explanation.to_json()["flops"] and row.receptive_field == (3, 3)


@pytest.mark.parametrize("conv", [nn.Conv2d, gpuconv.nn.Conv2d], ids=["torch", "ours"])
def test_precision_is_torchs_setting_there(conv: Callable[..., nn.Module]) -> None:
    """Products in tf32 take less time than products in float32."""
    setting, found = torch.backends.cudnn.conv.fp32_precision, {}
    for precision in ("tf32", "ieee"):
        try:
            torch.backends.cudnn.conv.fp32_precision = precision
            found[precision] = summarize(conv(256, 256, 3), (32, 256, 32, 32), "h200").layers[0].microseconds or 0
        finally:
            torch.backends.cudnn.conv.fp32_precision = setting
    assert 0 < found["tf32"] < found["ieee"]


def test_what_is_forced_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = "triton.conv.fprop.implicit_gemm"
    model = nn.Sequential(gpuconv.nn.Conv2d(64, 64, 3, backend=solver), gpuconv.nn.Conv2d(64, 64, 3, backend="numpy"))
    found = summarize(model.bfloat16(), (32, 64, 32, 32), "h200").layers
    assert [row.solver for row in found] == [solver, "none"] and found[1].microseconds is None


class Odd(nn.Module):
    """A parameter of its own, a layer that is called twice, one that is not called, and functions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.never = nn.Conv2d(4, 4, 1, bias=False)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.twice.weight
        self.plain = torch.ones(4)
        self.inner = Inner()

    def forward(self, x: torch.Tensor, *, other: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.twice(self.twice(x * self.scale)) + self.plain[:, None, None]
        return {"out": self.tied(F.max_pool2d(self.inner(x), 2)), "other": x if other is None else other}


class Inner(nn.Module):
    """A product of matrices without a layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2)
        return x + (rows.transpose(1, 2) @ rows).mean()


def test_odd_modules() -> None:
    summary = summarize(Odd(), {"x": (1, 4, 8, 8), "other": torch.zeros(3, dtype=torch.int64)}, "h200")
    rows = [(row.name, row.kind, row.output, row.parameters) for row in summary.layers]
    assert rows == [
        ("", "Odd", (1, 4, 4, 4), 4),
        ("twice", "Conv2d", (1, 4, 8, 8), 148),
        ("twice", "Conv2d", (1, 4, 8, 8), 0),
        ("inner", "Inner (functions)", (1, 4, 8, 8), 0),
        ("tied", "Conv2d", (1, 4, 4, 4), 4),
        ("never", "Conv2d", None, 16),
    ]
    assert "pool.max" in str(summary.layers[0].solver)  # of the function that the model calls
    assert summary.layers[3].flops == 2 * 64 * 4 * 64
    assert summary.totals["parameters"] == 172 and "not called" in str(summary)


class Frames(nn.Module):
    """A model of videos that is told how many frames there are, as those of ``diffusers``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, frames: int, scale: float = 1.0, kind: str | None = "split") -> torch.Tensor:
        y: torch.Tensor = self.inner(F.avg_pool2d(x, 2) * scale)
        return y if kind is None else y.unflatten(0, (-1, frames)).mean(1)


def test_numbers_by_name_are_passed_on() -> None:
    (row,) = summarize(Frames(), {"x": (4, 3, 8, 8), "frames": 2, "scale": 0.5, "kind": None}).layers
    assert row.output == (4, 4, 2, 2) and row.receptive_field == (6, 6)
    with pytest.raises(RuntimeError, match=r"sizes|divi|shape"):
        summarize(Frames(), {"x": (4, 3, 8, 8), "frames": 3})


def test_attention_is_one_row() -> None:
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    summary = summarize(layer, [(2, 7, 16)] * 3)
    assert [row.kind for row in summary.layers] == ["MultiheadAttention"]
    assert summary.layers[0].parameters == sum(p.numel() for p in layer.parameters())
    assert summary.input == ((2, 7, 16),) * 3


def test_text_and_json_and_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    plain, timed = summarize(model, (1, 3, 32, 64)), summarize(model, (1, 3, 32, 64), gpu="h100")
    lines = str(plain).splitlines()
    assert lines[0] == "Sequential of 1x3x32x64, float32"
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "FLOPs", "bytes", "sees", "jump", "offset"]
    assert lines[3].split() == ["0", "Conv2d", "1x8x16x32", "224", "221.18", "k", "41.86", "k", "3", "2", "0"]
    assert "whole" in lines[5] and "224 parameters" in lines[7]
    assert "NVIDIA H100, modelled and not measured" in str(timed) and "triton.conv.fprop" in str(timed)
    found = json.loads(json.dumps(timed.to_json()))
    assert set(found["layers"][0]) == {
        "name", "kind", "output", "parameters", "flops", "bytes", "receptive_field", "jump", "offset", "solver",
        "microseconds", "roofline",
    }  # fmt: skip
    assert found["layers"][2]["receptive_field"] == ["whole", "whole"] and found["layers"][1]["solver"] is None
    assert found["totals"]["flops"] == 221184 and found["gpu"] == "NVIDIA H100"
    rich = pytest.importorskip("rich.console", reason="a table of rich needs rich")
    console = rich.Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(timed)
    shown = console.export_text()
    assert "Conv2d" in shown and "triton.conv.fprop" in shown and "most expensive" in shown


def test_needs_neither_rich_nor_matplotlib() -> None:
    script = """
import sys, gpuconv
assert not {"torch", "rich", "matplotlib", "gpuconv.summary"} & set(sys.modules)
from gpuconv import Summary
assert "torch" not in sys.modules
import torch
print(gpuconv.summarize(torch.nn.Conv2d(1, 1, 3), (1, 1, 8, 8)))
assert not {"rich", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Conv2d of 1x1x8x8, float32\n")


def test_plot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = summarize(UNet(2), (1, 1, 188, 188))
    with monkeypatch.context() as patched:
        patched.setattr("gpuconv.summary.report.find_spec", lambda name: None)
        with pytest.raises(ModuleNotFoundError, match="needs matplotlib: pip install matplotlib"):
            summary.plot_receptive_field()
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    figure = summary.plot_receptive_field()
    widths = [round(bar.get_width()) for bar in figure.axes[0].containers[0]]
    assert widths[:2] == [3, 5] and widths[-1] == summary.layers[-1].receptive_field[1]  # type: ignore[index]
    assert len(widths) < len(summary.layers)  # what sees as much as the layer before is left out
    figure.savefig(tmp_path / "field.png")
    assert (tmp_path / "field.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="axis must be one of the 2 spatial axes"):
        summary.plot_receptive_field(axis=2)


def test_errors_help() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but got function"):
        summarize(lambda x: x, (1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"input must be a size such as \(1, 3, 224, 224\)"):
        summarize(layer, "1,3,8,8")
    with pytest.raises(TypeError, match="input must be a size"):
        summarize(layer, [np.ones(3)])
    with pytest.raises(TypeError, match="dtype must be a floating type such as 'float16', but got 'int8'"):
        summarize(layer, (1, 3, 8, 8), dtype="int8")
    with pytest.raises(ValueError, match="gpu must be one of a100, b200, h100, h200, but got 'rtx'"):
        summarize(layer, (1, 3, 8, 8), "rtx")
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet; call the model once before"):
        summarize(nn.Sequential(nn.LazyConv2d(4, 3)), (1, 3, 8, 8))
    with pytest.raises(RuntimeError) as caught:
        summarize(nn.Sequential(layer, nn.Sequential(nn.Conv2d(3, 4, 3))), (1, 3, 8, 8))
    assert caught.value.__notes__ == ["summarize: in 1.0 (Conv2d), called with (1, 4, 6, 6)"]
    with pytest.raises(TypeError, match="the model cannot be copied: TypeError"):
        broken = nn.Conv2d(3, 4, 3)
        broken.lock = __import__("threading").Lock()
        summarize(broken, (1, 3, 8, 8))
