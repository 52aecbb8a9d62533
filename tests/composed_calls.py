"""Calls of causal, separable, scaled and deformable convolutions, drawn from a seed, as of every other function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["COMPOSED", "composed"]

COMPOSED = ("causal", "separable", "scaled", "deform")
"""Words that are in the names of functions which torch does not have."""

Random = np.random.Generator

Values = Callable[..., np.ndarray]
"""Draws an array of a shape."""


def composed(rng: Random, function: str, values: Values) -> dict[str, Any]:
    """Return arguments of a function by name."""
    if "deform" in function:
        return _deform(rng, int(function[-2]), values)
    if "scaled" in function:
        return _scaled(rng, int(function[-2]))
    return _causal(rng, values) if "causal" in function else _separable(rng, function, values)


def _causal(rng: Random, values: Values) -> dict[str, Any]:
    n, c, length, width = (int(rng.integers(*bounds)) for bounds in ((1, 3), (1, 4), (0, 8), (1, 5)))
    options: dict[str, Any] = {"x": values(rng, n, c, length), "weight": values(rng, c, width), "seq_idx": None}
    options["bias"] = values(rng, c) if rng.random() < 0.7 else None
    options["activation"] = "silu" if rng.random() < 0.3 else None
    if rng.random() < 0.4:
        return options | {"seq_idx": np.sort(rng.integers(-1, 3, (n, length)).astype(np.int32))}
    if rng.random() < 0.6:
        options["initial_state"] = values(rng, n, c, width - 1)
    return options | {"return_state": bool(rng.random() < 0.5)}


def _scaled(rng: Random, ndim: int) -> dict[str, Any]:
    groups, n = (int(v) for v in rng.integers(1, 3, 2))
    c, k = (groups * int(v) for v in rng.integers(1, 4, 2))
    size, kernel = (tuple(int(v) for v in rng.integers(*bounds, ndim)) for bounds in ((4, 7), (1, 4)))

    def drawn(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    def scale(size: int) -> Any:
        found = rng.random(size).astype(np.float32) + np.float32(0.125)
        return float(found[0]) if rng.random() < 0.4 else found

    options: dict[str, Any] = {"input": drawn(*((n,) if rng.random() < 0.7 else ()), c, *size)}
    options |= {"weight": drawn(k, c // groups, *kernel), "groups": groups, "stride": int(rng.integers(1, 3))}
    options |= {"padding": int(rng.integers(0, 3)), "activation": "relu" if rng.random() < 0.3 else None}
    options["bias"] = rng.standard_normal(k).astype(np.float32) if rng.random() < 0.6 else None
    options |= {"input_scale": scale(1), "weight_scale": scale(int(rng.choice([1, k])))}
    options |= {"output_scale": scale(1), "out_dtype": "int8"} if rng.random() < 0.4 else {"out_dtype": "float32"}
    return options


def _deform(rng: Random, ndim: int, values: Values) -> dict[str, Any]:
    groups, offset_groups, n = (int(v) for v in rng.integers(1, 3, 3))
    c, k = 2 * int(rng.integers(1, 3)), groups * int(rng.integers(1, 4))
    n = n if ndim < 3 else 1
    bounds = ((4, 7), (1, 4)) if ndim < 3 else ((2, 5), (1, 3))  # eight taps: each is sampled by itself
    size, kernel = (tuple(int(v) for v in rng.integers(*bound, ndim)) for bound in bounds)
    stride, dilation, padding = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(0, 5 - ndim))
    spans = [(taps - 1) * dilation + 1 for taps in kernel]
    size = tuple(max(length, span - 2 * padding) for length, span in zip(size, spans))
    output = tuple((length + 2 * padding - span) // stride + 1 for length, span in zip(size, spans))
    batch, taps = (n,) if rng.random() < 0.7 else (), offset_groups * int(np.prod(kernel))
    options: dict[str, Any] = {"input": values(rng, *batch, c, *size), "weight": values(rng, k, c // groups, *kernel)}
    options["offset"] = values(rng, *batch, ndim * taps, *output)
    options["mask"] = values(rng, *batch, taps, *output) if rng.random() < 0.6 else None
    options["bias"] = values(rng, k) if rng.random() < 0.6 else None
    for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        options[name] = value if rng.random() < 0.5 else (value,) * ndim
    return options


def _separable(rng: Random, function: str, values: Values) -> dict[str, Any]:
    c, middle, k, r, s = (int(n) for n in rng.integers(1, 4, 5))
    batch = (2,) if rng.random() < 0.7 else ()
    options: dict[str, Any] = {"input": values(rng, *batch, c, 6, 7)}
    if "depthwise" in function:
        options["depthwise_weight"] = values(rng, c * middle, 1, r, s)
        options["pointwise_weight"] = values(rng, k, c * middle, 1, 1)
        options["pointwise_bias"] = values(rng, k) if rng.random() < 0.7 else None
    else:
        options |= {"column_weight": values(rng, middle, c, r, 1), "row_weight": values(rng, k, middle, 1, s)}
        options["row_bias"] = values(rng, k) if rng.random() < 0.7 else None
    for name, least in (("stride", 1), ("dilation", 1), ("padding", 0)):
        value = int(rng.integers(least, 3))
        options[name] = value if rng.random() < 0.5 else (value, value)
    options["padding_mode"] = str(rng.choice(["zeros", "circular"]))
    return options | {"between": "relu", "activation": "relu" if rng.random() < 0.2 else None}
