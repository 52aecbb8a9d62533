"""Convolutions of networks, from the definitions of their architectures: what the workloads are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

Layer = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int, int, int]
"""(op, input, output, weight, stride, padding, dilation, groups), sizes per sample, the same along every axis."""


def conv(
    c: int, k: int, size: Sequence[int], taps: int = 1, stride: int = 1, padding: int | None = None, dilation: int = 1,
    groups: int = 1,
) -> Layer:  # fmt: skip
    """Describe a convolution whose padding keeps the size where the stride does, unless it is given."""
    ndim, pad = len(size), dilation * (taps - 1) // 2 if padding is None else padding
    output = [(axis + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for axis in size]
    weight = (k, c // groups, *(taps,) * ndim)
    return f"conv{ndim}d", (c, *size), (k, *output), weight, stride, pad, dilation, groups


def up(k: int, c: int, size: Sequence[int], taps: int, stride: int, padding: int = 0) -> Layer:
    """Describe a transposed convolution that multiplies every size by its stride."""
    ndim = len(size)
    larger = (c, *(axis * stride for axis in size))
    return f"conv_transpose{ndim}d", (k, *size), larger, (k, c, *(taps,) * ndim), stride, padding, 1, 1


def resnet(size: int = 224, groups: int = 1, width: int = 64, dilate: Sequence[bool] = (False,) * 3) -> Iterator[Layer]:
    """Yield torchvision's ResNet with bottlenecks: 3, 4, 6, 3 of them."""
    yield conv(3, 64, (size, size), 7, 2)
    channels, at, rate = 64, size // 4, 1
    for stage, blocks in enumerate((3, 4, 6, 3)):
        planes, stride, first_rate = 64 << stage, 1 if stage == 0 else 2, rate
        if stage and dilate[stage - 1]:
            rate, stride = rate * stride, 1
        wide = planes * width // 64 * groups
        for block in range(blocks):
            step, dilation = (stride, first_rate) if block == 0 else (1, rate)
            yield conv(channels, wide, (at, at))
            yield conv(wide, wide, (at, at), 3, step, dilation, dilation, groups)
            if block == 0:
                yield conv(channels, 4 * planes, (at, at), 1, step, 0)
            at //= step
            yield conv(wide, 4 * planes, (at, at))
            channels = 4 * planes


def deeplabv3() -> Iterator[Layer]:
    """Yield torchvision's DeepLabV3 with ResNet-50, for 512x512."""
    yield from resnet(512, dilate=(False, True, True))
    map_ = (64, 64)
    yield conv(2048, 256, map_)
    for rate in (12, 24, 36):
        yield conv(2048, 256, map_, 3, dilation=rate)
    yield conv(2048, 256, (1, 1))
    yield conv(1280, 256, map_)
    yield conv(256, 256, map_, 3)
    yield conv(256, 21, map_)


def mobilenet_v2() -> Iterator[Layer]:
    """Yield MobileNetV2 at width 1, for 224x224."""
    yield conv(3, 32, (224, 224), 3, 2)
    channels, at = 32, 112
    for expand, filters, blocks, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            wide, step = channels * expand, stride if block == 0 else 1
            if expand != 1:
                yield conv(channels, wide, (at, at))
            yield conv(wide, wide, (at, at), 3, step, groups=wide)
            at //= step
            yield conv(wide, filters, (at, at))
            channels = filters
    yield conv(320, 1280, (7, 7))


def vgg16() -> Iterator[Layer]:
    channels, at = 3, 224
    for filters, blocks in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(blocks):
            yield conv(channels, filters, (at, at), 3)
            channels = filters
        at //= 2


def convnext_tiny() -> Iterator[Layer]:
    """Yield ConvNeXt-T, whose pointwise layers are linear ones, for 224x224."""
    yield conv(3, 96, (224, 224), 4, 4, 0)
    for stage, blocks in enumerate((3, 3, 9, 3)):
        width, at = 96 << stage, 56 >> stage
        if stage:
            yield conv(width // 2, width, (2 * at, 2 * at), 2, 2, 0)
        for _ in range(blocks):
            yield conv(width, width, (at, at), 7, groups=width)


def hifigan() -> Iterator[Layer]:
    """Yield SpeechT5's HiFi-GAN for 200 frames: four upsamplings by 4, residual blocks of kernels 3, 7 and 11."""
    yield conv(80, 512, (200,), 7)
    channels, length = 512, 200
    for _ in range(4):
        yield up(channels, channels // 2, (length,), 8, 4, 2)
        channels, length = channels // 2, 4 * length
        for taps in (3, 7, 11):
            for dilation in (1, 3, 5):
                yield conv(channels, channels, (length,), taps, dilation=dilation)
                yield conv(channels, channels, (length,), taps)
    yield conv(channels, 1, (length,), 7)


def sd_vae_decoder() -> Iterator[Layer]:
    """Yield the decoder of Stable Diffusion's autoencoder, for a latent of 64x64."""

    def block(c: int, k: int, at: int) -> Iterator[Layer]:
        yield conv(c, k, (at, at), 3)
        yield conv(k, k, (at, at), 3)
        if c != k:
            yield conv(c, k, (at, at))

    yield conv(4, 4, (64, 64))
    yield conv(4, 512, (64, 64), 3)
    for _ in range(2):
        yield from block(512, 512, 64)
    channels, at = 512, 64
    for stage, filters in enumerate((512, 512, 256, 128)):
        for _ in range(3):
            yield from block(channels, filters, at)
            channels = filters
        if stage < 3:
            at *= 2
            yield conv(filters, filters, (at, at), 3)
    yield conv(128, 3, (512, 512), 3)


def unet2d() -> Iterator[Layer]:
    """Yield MONAI's BasicUNet for 512x512, with transposed convolutions."""

    def two(c: int, k: int, at: int) -> Iterator[Layer]:
        yield conv(c, k, (at, at), 3)
        yield conv(k, k, (at, at), 3)

    yield from two(3, 64, 512)
    for stage in range(4):
        yield from two(64 << stage, 128 << stage, 256 >> stage)
    for channels, filters, skipped, at in ((1024, 512, 512, 32), (512, 256, 256, 64), (256, 128, 128, 128)):
        yield up(channels, filters, (at, at), 2, 2)
        yield from two(filters + skipped, filters, 2 * at)
    yield up(128, 128, (256, 256), 2, 2)
    yield from two(128 + 64, 64, 512)
    yield conv(64, 2, (512, 512))


def unet3d() -> Iterator[Layer]:
    """Yield MONAI's UNet for 96^3: two residual units a level, strided and transposed convolutions, no pools."""
    widths, at, channels = (16, 32, 64, 128), 96, 1
    for width in widths:
        yield conv(channels, width, (at,) * 3, 3, 2)
        yield conv(channels, width, (at,) * 3, 3, 2)  # of the residual
        at //= 2
        yield conv(width, width, (at,) * 3, 3)
        channels = width
    yield conv(128, 256, (6,) * 3, 3)
    yield conv(256, 256, (6,) * 3, 3)
    yield conv(128, 256, (6,) * 3)
    for channels, filters in ((128 + 256, 64), (64 + 64, 32), (32 + 32, 16), (16 + 16, 2)):
        yield up(channels, filters, (at,) * 3, 3, 2, 1)
        at *= 2
        yield conv(filters, filters, (at,) * 3, 3)


NETWORKS = {
    "resnet50": resnet, "resnext50_32x4d": lambda: resnet(groups=32, width=4), "deeplabv3_resnet50": deeplabv3,
    "mobilenet_v2": mobilenet_v2, "vgg16": vgg16, "convnext_tiny": convnext_tiny, "hifigan": hifigan,
    "sd_vae_decoder": sd_vae_decoder, "unet2d": unet2d, "unet3d": unet3d,
}  # fmt: skip


def layers(network: str) -> Counter[Layer]:
    """Return the convolutions of a network with their counts."""
    return Counter(NETWORKS[network]())
