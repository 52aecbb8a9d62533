"""A photograph as a camera gives it, [H, W, 3] in uint8, through filters, and back to uint8. NumPy alone.

python examples/image_pipeline.py [--output picture.ppm]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import gpuconv


def photograph(height: int = 120, width: int = 160) -> np.ndarray:
    """Return a landscape, drawn: [H, W, 3], uint8."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    picture = np.stack([0.55 - 0.25 * y, 0.72 - 0.2 * y, 0.95 - 0.15 * y], -1)
    picture[np.hypot(x - 0.7, y - 0.25) < 0.08] = (1.0, 0.92, 0.6)
    for level, shade in ((0.55, (0.42, 0.55, 0.5)), (0.75, (0.2, 0.36, 0.22))):
        picture[y > level + 0.06 * np.sin(9 * x + 20 * level)] = shade
    noise = np.random.default_rng(0).normal(0, 0.02, picture.shape)
    return ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)


def to_nchw(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] to float32 [1, C, H, W]: sums of uint8 would wrap at 256."""
    return picture.transpose(2, 0, 1)[None].astype(np.float32) / 255


def to_picture(x: np.ndarray) -> np.ndarray:
    """float32 [1, C, H, W] to uint8 [H, W, C]."""
    return (x[0].transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8)


def gaussian(radius: int, sigma: float) -> np.ndarray:
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (line / line.sum()).astype(np.float32)


def blur(x: np.ndarray, radius: int = 4, sigma: float = 2.0) -> np.ndarray:
    """Two passes of a line instead of one of a square; each channel by itself."""
    line = gaussian(radius, sigma)
    down = np.tile(line.reshape(1, 1, -1, 1), (3, 1, 1, 1))
    across = np.tile(line.reshape(1, 1, 1, -1), (3, 1, 1, 1))
    x = gpuconv.conv2d(x, down, padding=((radius, radius), (0, 0)), padding_mode="reflect", groups=3)
    return gpuconv.conv2d(x, across, padding=((0, 0), (radius, radius)), padding_mode="reflect", groups=3)


def edges(x: np.ndarray) -> np.ndarray:
    """How steep the brightness is (Sobel): a dense convolution from three channels to two."""
    sobel = np.outer([1, 2, 1], [-1, 0, 1])
    brightness = np.array([0.299, 0.587, 0.114])
    w = (np.stack([sobel, sobel.T])[:, None] * brightness[None, :, None, None]).astype(np.float32)
    d = gpuconv.conv2d(x, w, padding=1, padding_mode="replicate")
    return np.hypot(d[:, :1], d[:, 1:]).repeat(3, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="write the results side by side, as a PPM file")
    arguments = parser.parse_args()
    photo = photograph()
    x = to_nchw(photo)
    soft = blur(x)
    results = {
        "photograph": x,
        "blurred": soft,
        "sharpened": x + 0.8 * (x - soft),
        "edges": edges(x),
        "smaller": gpuconv.avg_pool2d(x, 2),
        "widened": gpuconv.max_pool2d(x, 5, stride=1, padding=2),
    }
    for name, result in results.items():
        picture = to_picture(result)
        print(f"{name:11} {picture.shape} {picture.dtype}, mean {picture.mean():5.1f}")
    whole = gpuconv.conv2d(x, np.tile(np.outer(gaussian(4, 2.0), gaussian(4, 2.0)), (3, 1, 1, 1)), padding=4,
                           padding_mode="reflect", groups=3)  # fmt: skip
    difference = float(np.abs(whole - soft).max())
    print(f"two passes against one: {difference:.1e}")
    assert difference < 1e-5
    if arguments.output:
        same = [to_picture(result) for name, result in results.items() if name != "smaller"]
        strip = np.concatenate(same, axis=1)
        header = f"P6 {strip.shape[1]} {strip.shape[0]} 255\n".encode()
        arguments.output.write_bytes(header + strip.tobytes())
        print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
