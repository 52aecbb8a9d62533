"""Receptive fields through graphs: against formulas, and against what changes when a pixel of the input does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gpuconv.nn
from gpuconv import shapes
from gpuconv.summary import Row, summarize
from gpuconv.summary.fields import Field, Grid, Seen, union

PIXEL = Grid((0,), (0,), 1)


def last(model: nn.Module, size: tuple[int, ...]) -> Row:
    """Return the row of the last layer, an identity convolution that the model ends with."""
    return summarize(model, size).layers[-1]


def test_stacks_are_the_formula(rng: np.random.Generator) -> None:
    for _ in range(300):
        layers = [tuple(int(rng.integers(lo, hi)) for lo, hi in ((1, 8), (1, 4), (0, 4), (1, 4))) for _ in range(4)]
        grid: Grid | Seen = PIXEL
        for kernel, stride, pad, dilation in layers:
            assert isinstance(grid, Grid)
            grid = grid.windows(kernel, stride, pad, dilation)
        formula = shapes.receptive_field(layers)
        assert isinstance(grid, Grid)
        assert (grid.size, grid.jump, grid.start) == (formula.size, formula.jump, formula.start)


def test_transposed_convolution_by_its_definition(rng: np.random.Generator) -> None:
    for kernel, stride, pad, dilation in product(range(1, 6), range(1, 5), range(3), range(1, 4)):
        grid = PIXEL.windows(3, 2, 1)
        assert isinstance(grid, Grid)
        spread = grid.spread(kernel, stride, pad, dilation)
        assert isinstance(spread, Grid)
        for i in range(3 * stride):
            taken = [n for n in range(-20, 20) for k in range(kernel) if n * stride - pad + dilation * k == i]
            spans = [grid.at(n) for n in taken]
            expected = (min(a for a, _ in spans), max(b for _, b in spans)) if spans else None
            assert spread.at(i) == expected, (kernel, stride, pad, dilation, i)


def test_union() -> None:
    narrow, wide = PIXEL.windows(1, 2), PIXEL.windows(3, 2, 1)
    assert isinstance(narrow, Grid) and isinstance(wide, Grid)
    assert union(narrow, wide) == wide == union(wide, narrow)
    assert union(narrow, PIXEL) is Seen.UNKNOWN  # other jumps
    assert union(narrow, Seen.WHOLE) is Seen.WHOLE is union(Seen.UNKNOWN, Seen.WHOLE)
    assert union(narrow, Seen.UNKNOWN) is Seen.UNKNOWN
    up = narrow.spread(2, 2, 0, 1)
    assert union(up, PIXEL) == Grid((0, 0), (0, 1), 2)


def test_views_can_be_taken_back() -> None:
    field = Field.of_input((2, 12, 6, 10))
    merged = field.viewed((2, 12, 60))
    assert merged.seen == field.seen and merged.viewed((2, 12, 6, 10)) == field
    assert field.viewed((2, 3, 4, 6, 10)).viewed((2, 12, 6, 10)).axes_in([2]) == {0}
    cut = field.viewed((2, 12, 3, 2, 10))
    assert cut.seen[0] is Seen.UNKNOWN and cut.seen[1] == PIXEL
    assert field.viewed((2, 12, 4, 15)).seen == (Seen.UNKNOWN, Seen.UNKNOWN)


# whole models, against what changes

SIZE = 48


class Both(nn.Module):
    """Two ways whose results are added or joined."""

    def __init__(self, one: nn.Module, other: nn.Module, join: bool = False) -> None:
        super().__init__()
        self.one, self.other, self.join = one, other, join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.one(x), self.other(x)
        return torch.cat([a, b], 1)[:, ::2] if self.join else a + b


class Does(nn.Module):
    """A function as a module."""

    def __init__(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """A product of matrices per pixel, as ConvNeXt has it: positions merge into rows and come apart again."""
    return F.linear(x.permute(0, 2, 3, 1), torch.ones(4, 4, dtype=x.dtype)).permute(0, 3, 1, 2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, (3, 5), (2, 1), (1, 3), (2, 1)),
    "grouped": lambda: nn.Conv2d(4, 4, 5, 3, 2, groups=4),
    "same": lambda: nn.Conv2d(4, 4, 4, padding="same"),
    "reflect": lambda: nn.Conv2d(4, 4, 5, 2, 2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "transposed, holes": lambda: nn.ConvTranspose2d(4, 4, 2, 3, 0),
    "down and up": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), nn.Conv2d(4, 4, 3)
    ),
    "U": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        Both(
            nn.Identity(),
            nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2, 2)),
        ),
        nn.Conv2d(4, 4, 3, padding=1),
    ),
    "max pool": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2, 1)),
    "ceil mode": lambda: nn.MaxPool2d(4, 3, ceil_mode=True),
    "dilated pool": lambda: nn.MaxPool2d(3, 2, dilation=2),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1),
    "nearest": lambda: nn.Sequential(nn.Conv2d(4, 4, 2, 2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3)),
    "nearest, fraction": lambda: nn.Sequential(nn.Upsample(size=(72, 32)), nn.Conv2d(4, 4, 3)),
    "bilinear": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 2)
    ),
    "bilinear by 3": lambda: nn.Upsample(scale_factor=3, mode="bilinear"),
    "shuffle": lambda: nn.Sequential(nn.Conv2d(4, 16, 3, 2), nn.PixelShuffle(2), nn.Conv2d(4, 4, 2)),
    "unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 4, 3)),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((12, 10)),
    "adaptive max": lambda: nn.Sequential(nn.AdaptiveMaxPool2d((7, 10)), nn.Conv2d(4, 4, 2)),
    "residual": lambda: Both(nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2)),
    "residual, apart": lambda: Both(
        nn.Conv2d(4, 4, 3, padding=1), Does(lambda x: F.pad(x, (5, 0, 5, 0))[:, :, :-5, :-5])
    ),
    "joined": lambda: Both(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2), join=True),
    "sliced": lambda: nn.Sequential(Does(lambda x: x[:, :, 2::3, :-1]), nn.Conv2d(4, 4, 2)),
    "patches": lambda: Does(lambda x: torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 1::2]], 1)[:, ::2]),
    "permuted": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2), Does(as_rows), nn.Conv2d(4, 4, 2)),
    "split": lambda: Does(lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1) * x.chunk(4, 1)[0]),
    "in place": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "hard swish": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Hardswish(inplace=True), nn.Hardswish()),
    "activations in place": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Mish(inplace=True), nn.Threshold(0.1, 0.0, inplace=True), Does(lambda x: x.abs_())
    ),
    "activations": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.PReLU(4), nn.PReLU(), nn.RReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(),
        nn.LeakyReLU(), nn.Softplus(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Softsign(),
    ),
    "log sigmoid": lambda: nn.Sequential(Does(lambda x: x - 3), nn.LogSigmoid(), nn.Conv2d(4, 4, 3)),
    "masked": lambda: Does(lambda x: (1 - x.masked_fill(x < 0, 0.0)) + torch.zeros_like(x) + x.new_ones(1, 4, 1, 1)),
    "gated": lambda: nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.GLU(1), nn.Conv2d(4, 4, 3)),
    "gated by positions": lambda: nn.GLU(2),
    "stacked": lambda: Does(lambda x: torch.stack([F.avg_pool2d(x, 3, 1, 1), x], 2).sum(2)),
    "unbound": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, 2), Does(lambda x: torch.stack(x.unbind(1)[::-1], 1)), nn.Conv2d(4, 4, 2)
    ),
    "repeated channels": lambda: nn.Sequential(Does(lambda x: x[:, :2].repeat(1, 2, 1, 1)), nn.Conv2d(4, 4, 3)),
    "shuffled channels": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.ChannelShuffle(2), nn.Conv2d(4, 4, 2)),
    "bicubic": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 2, 2), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Conv2d(4, 4, 2)
    ),
    "power pool": lambda: nn.LPPool2d(2, 3, 2),
    "ours": lambda: gpuconv.nn.Conv2d(4, 4, 3, 2, padding="same_upper", activation="relu"),
    "ours, pairs": lambda: gpuconv.nn.Conv2d(4, 4, 4, 2, padding=((0, 2), (3, 1))),
    "ours, transposed": lambda: gpuconv.nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "our pools": lambda: nn.Sequential(gpuconv.nn.MaxPool2d(3, 2, padding=((1, 0), (0, 1))), gpuconv.nn.AvgPool2d(2)),
    "our adaptive pool": lambda: gpuconv.nn.AdaptiveAvgPool2d((12, 7)),
    "ours, separable": lambda: gpuconv.nn.DepthwiseSeparableConv2d(4, 4, 5, stride=2, padding=2),
}  # fmt: skip


def positive(model: nn.Module) -> nn.Module:
    """Make everything monotone: a larger pixel makes whatever sees it larger."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(0.1)
    return model


def changes(model: nn.Module, axis: int) -> dict[int, list[int]]:
    """Return for each position of the result along an axis the positions of the input that change it."""
    x = torch.rand(1, 4, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    found: dict[int, list[int]] = {}
    with torch.no_grad(), gpuconv.use_backend("numpy"):
        before = model(x)
        for pixel in range(SIZE):
            other = x.clone()
            other.select(2 + axis, pixel).add_(1e3)
            changed = (model(other) != before).transpose(2 + axis, 0).flatten(1).any(1)
            for place in changed.nonzero().flatten().tolist():
                found.setdefault(place, []).append(pixel)
    return found


def inside(state: Any, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield positions and what they see, where that lies inside the input."""
    for place in range(size):
        span = state.at(place)
        if span is not None and span[0] >= 0 and span[1] < SIZE:
            yield place, *span


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", MODELS)
def test_sees_what_changes_it(name: str) -> None:
    model = positive(MODELS[name]())
    end = nn.Conv2d(4, 4, 1, dtype=torch.float64)  # a row of its own, which sees what the model's result sees
    row = last(nn.Sequential(model, positive(end)), (1, 4, SIZE, SIZE))
    assert row.seen is not None and row.output is not None
    for axis, state in enumerate(row.seen):
        assert isinstance(state, Grid), (name, axis, state)
        changed, compared = changes(model, axis), 0
        for place, low, high in inside(state, row.output[2 + axis]):
            pixels = changed.get(place, [])
            assert pixels and (pixels[0], pixels[-1]) == (low, high), (name, axis, place)
            compared += 1
        assert compared >= 4, (name, axis)


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2).reshape(x.shape)


class ClassToken(nn.Module):
    """A row that is put in front of those of the image, and sees them by attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).transpose(1, 2)
        rows = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1).view(1, -1, 2, 2).transpose(1, 2)
        mixed = (rows @ rows.transpose(2, 3)).softmax(-1) @ rows
        return mixed.transpose(1, 2).reshape(1, -1, 4)[:, 1:].transpose(1, 2).reshape(x.shape)


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "global pool": lambda: nn.AdaptiveAvgPool2d(1),
    "global max pool": lambda: nn.AdaptiveMaxPool2d(1),
    "our global pool": lambda: gpuconv.nn.AdaptiveAvgPool2d(1),
    "squeeze and excitation": Gate,
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "batch norm without running statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "attention": Attention,
    "attention with a class token": ClassToken,
    "softmax over positions": lambda: Does(lambda x: x.flatten(2).softmax(-1).view_as(x)),
    "layer norm over positions": lambda: nn.LayerNorm((4, SIZE, SIZE)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), WHOLE[name](), nn.Conv2d(4, 4, 1))
    assert last(model, (1, 4, SIZE, SIZE)).receptive_field == ("whole", "whole")
    assert last(model, (1, 4, SIZE, SIZE)).jump == (None, None)


def test_mixes_one_axis() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Does(lambda x: x.mean(2, keepdim=True)), nn.Conv2d(4, 4, 1))
    assert last(model, (1, 4, SIZE, SIZE)).receptive_field == ("whole", 3)
    over_channels = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), Does(lambda x: x.softmax(1)), nn.Conv2d(4, 4, 1))
    assert last(over_channels, (1, 4, SIZE, SIZE)).receptive_field == (3, 3)


UNKNOWN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flip": lambda x: x.flip(2).flip(3),
    "sort": lambda x: x.sort(2)[0],
    "windows": lambda x: x.view(1, 4, 6, 8, 6, 8).permute(0, 2, 4, 1, 3, 5).reshape(36, 4, 8, 8),
    "transposed": lambda x: x + x.transpose(2, 3),
    "repeated": lambda x: x.repeat(1, 1, 2, 2),
    "bicubic at the corners": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    "cumulated": lambda x: x.cumsum(2).cumsum(3),
    "joined along positions": lambda x: torch.cat([x, x], 2).transpose(2, 3).contiguous()[:, :, :, :SIZE].flip(2),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_is_said(name: str) -> None:
    model = nn.Sequential(Does(UNKNOWN[name]), nn.Conv2d(4, 4, 1))
    row = last(model, (1, 4, SIZE, SIZE))
    assert row.receptive_field == ("unknown", "unknown") and row.jump == (None, None)


WRITES: dict[str, Callable[[torch.Tensor], Any]] = {
    "adding": lambda x: x.clone()[:, :, :4].add_(1)._base,
    "filling": lambda x: x.clone()[:, :, :4].fill_(1)._base,
    "filling zeros": lambda x: torch.zeros_like(x)[:, :, :4].copy_(x[:, :, 4:8])._base,
}


@pytest.mark.parametrize("name", WRITES)
def test_writing_to_a_part_makes_the_rest_unknown(name: str) -> None:
    model = nn.Sequential(Does(WRITES[name]), nn.Conv2d(4, 4, 1))
    assert last(model, (1, 4, SIZE, SIZE)).receptive_field == ("unknown",) * 2


def test_what_is_overwritten_sees_nothing() -> None:
    model = nn.Sequential(Does(lambda x: torch.zeros_like(x) + x.clone().fill_(1)), nn.Conv2d(4, 4, 1))
    assert last(model, (1, 4, SIZE, SIZE)).receptive_field is None


def test_one_and_three_dimensions() -> None:
    audio = nn.Sequential(nn.Conv1d(2, 4, 5, 2), nn.MaxPool1d(2), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3, padding="same"))
    row = last(audio, (1, 2, 200))
    assert row.receptive_field == (27,) and row.jump == (8,)
    volume = nn.Sequential(nn.Conv3d(1, 4, (1, 3, 5), (1, 2, 2)), nn.AvgPool3d(2), nn.Conv3d(4, 4, 1))
    assert last(volume, (1, 1, 8, 32, 32)).receptive_field == (2, 5, 7)


def test_inputs_that_are_no_image_have_none() -> None:
    assert summarize(nn.Linear(8, 4), (2, 8)).layers[0].receptive_field is None
    assert summarize(nn.Linear(8, 4), (2, 5, 8)).layers[0].receptive_field is None  # a batch of rows
