"""What builds the networks of the zoo from names and configurations, and the inputs that they are called with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

Made = tuple[torch.nn.Module, dict[str, torch.Tensor]]


def from_config(model: str, config: str, inputs: dict[str, Any], **options: Any) -> Callable[[], Made]:
    """Return what builds a model of ``transformers`` from a configuration."""

    def build() -> Made:
        transformers: Any = importlib.import_module("transformers")
        made = {key: value() if callable(value) else value for key, value in options.items()}
        return getattr(transformers, model)(getattr(transformers, config)(**made)), inputs

    return build


def nested(config: str, **options: Any) -> Callable[[], Any]:
    """Return what makes a configuration that is part of another."""
    return lambda: getattr(importlib.import_module("transformers"), config)(**options)


def image(size: int = 32, batch: int = 2, channels: int = 3) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))}


def wave(length: int, name: str = "input_values", channels: int | None = None, batch: int = 1) -> dict[str, Any]:
    shape = (batch, length) if channels is None else (batch, channels, length)
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(2))}


def spectrogram(length: int, bins: int, name: str = "spectrogram", batch: int = 1) -> dict[str, Any]:
    return {name: torch.randn(batch, length, bins, generator=torch.Generator().manual_seed(3))}


def video(frames: int, size: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(1, frames, 3, size, size, generator=torch.Generator().manual_seed(4))}


def emu3_encoder() -> Made:
    """Return the encoder of a model of videos, which by itself has no forward."""
    from transformers import Emu3VQVAEConfig
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAEEncoder

    config = Emu3VQVAEConfig(
        latent_channels=4, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[],
        temporal_downsample_factor=2, hidden_size=32, num_attention_heads=2,
    )  # fmt: skip
    return Emu3VQVAEEncoder(config), video(2, 16)


def from_timm(name: str, size: int, **options: Any) -> Callable[[], Made]:
    """Return what builds a model of ``timm`` by its name."""

    def build() -> Made:
        timm: Any = importlib.import_module("timm")
        return timm.create_model(name, pretrained=False, num_classes=10, **options), {"x": image(size)["pixel_values"]}

    return build


def from_diffusers(model: str, inputs: dict[str, Any], **options: Any) -> Callable[[], Made]:
    """Return what builds a model of ``diffusers``."""
    return lambda: (getattr(importlib.import_module("diffusers"), model)(**options), inputs)


def from_monai(model: str, shape: tuple[int, ...], **options: Any) -> Callable[[], Made]:
    """Return what builds a model of ``monai`` for images or volumes of `shape`."""

    def build() -> Made:
        nets: Any = importlib.import_module("monai.networks.nets")
        x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        return getattr(nets, model)(spatial_dims=len(shape) - 2, in_channels=1, out_channels=2, **options), {"x": x}

    return build
