"""A picture that needs no file: a landscape as a camera hands it over, [H, W, 3] in uint8."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["photograph"]


def photograph(height: int = 96, width: int = 128) -> np.ndarray[Any, Any]:
    """Return hills under a sky with a sun and its noise, as uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    picture = np.stack([0.55 - 0.25 * y, 0.72 - 0.2 * y, 0.95 - 0.15 * y], -1)
    sun = np.hypot((x - 0.72) * width / height, y - 0.25)
    picture = np.where((sun < 0.11)[..., None], np.array([1.0, 0.92, 0.6]), picture)
    for level, shade in ((0.55, (0.42, 0.55, 0.5)), (0.68, (0.3, 0.47, 0.33)), (0.82, (0.18, 0.34, 0.2))):
        ridge = level + 0.07 * np.sin(9 * x + 20 * level) + 0.03 * np.sin(31 * x + 7 * level)
        picture = np.where((y > ridge)[..., None], np.array(shade), picture)
    trunk = (abs(x - 0.22) < 0.012) & (y > 0.55) & (y < 0.86)
    crown = np.hypot((x - 0.22) * width / height, y - 0.5) < 0.12
    picture = np.where(trunk[..., None], np.array([0.3, 0.2, 0.12]), picture)
    picture = np.where(
        crown[..., None], np.array([0.15, 0.4, 0.15]) * (0.8 + 0.4 * np.sin(90 * x * y))[..., None], picture
    )
    noise = np.random.default_rng(0).normal(0, 0.02, picture.shape)
    return ((picture + noise).clip(0, 1) * 255).round().astype(np.uint8)
