"""Cases for the Hopper kernels, drawn by number: ragged sizes, odd batches, every path, two to six stages, clusters."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hopper_cases import Case

__all__ = ["CASES", "FORWARD", "TRANSPOSED", "WGRAD", "draw"]

ACTIVATIONS = (None, None, "relu", "relu6", "hardswish", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh")


def _window(draw: random.Random, kernel: str, transposed: bool) -> dict:
    """Draw taps, dilation, padding and a size that they fit into."""
    deep = draw.random() < 0.25
    taps = (draw.choice((1, 2, 3)) if deep else 1, draw.choice((1, 2, 3, 3, 5)), draw.choice((1, 2, 3, 3, 5)))
    if kernel == "strips":
        taps = (taps[0], draw.choice((2, 3, 3, 4)), taps[2])
    dilation = tuple(draw.choice((1, 1, 1, 2)) if tap > 1 else 1 for tap in taps)
    reach = tuple(step * (tap - 1) for tap, step in zip(taps, dilation, strict=True))
    padding = tuple(draw.randint(0, span) for span in reach)
    size = (draw.randint(1, 3) if deep else 1, draw.randint(1, 11), draw.randint(1, 13))
    needed = [span + 1 - 2 * pad for span, pad in zip(reach, padding, strict=True)]
    if transposed:  # the gradient of x has at least one element
        needed = [1 - span + 2 * pad for span, pad in zip(reach, padding, strict=True)]
    size = tuple(max(one, least) for one, least in zip(size, needed, strict=True))
    return {"taps": taps, "dilation": dilation, "padding": padding, "size": size}


def _doubled(tile: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the tile of two CTAs: twice as large along the outermost axis that has more than one element."""
    axis = next(at for at, size in enumerate(tile) if size > 1)
    return tuple(2 * size if at == axis else size for at, size in enumerate(tile))


def draw(kernel: str, number: int, transposed: bool = False) -> Case:
    """Return a case, always the same for a number."""
    rng = random.Random(f"{kernel} {number} {transposed}")
    known = _window(rng, kernel, transposed) | {
        "kernel": kernel,
        "n": rng.randint(1, 3),
        "channels": rng.choice((8, 16, 24, 40)),
        "filters": rng.choice((8, 16, 24, 40, 72)),
        "transposed": transposed,
        "block_c": rng.choice((8, 16)),
        "stages": rng.randint(2, 6),
        "group": rng.randint(1, 4),
        "programs": rng.randint(1, 4),
        "dtype": rng.choice(("bfloat16", "bfloat16", "float16")),
    }
    if kernel == "wgrad":
        known |= {"tile": rng.choice(((1, 4, 8), (1, 2, 8), (2, 1, 8), (1, 1, 16))), "splits": rng.randint(1, 4)}
        known |= {"block_k": 16, "block_c": 16, "stages": rng.randint(2, 5), "taps_at_once": rng.choice((1, 1, 2, 3))}
        known["runs"] = rng.random() < 0.5
        if known["runs"]:
            known["tile"] = (1, 1, 16)
            known["axes"] = 3 if known["size"][0] > 1 or known["taps"][0] > 1 else 2
            known["stride"] = tuple(rng.choice((1, 2, 3)) if axis >= 3 - known["axes"] else 1 for axis in range(3))
        return Case(**known)
    known["shared"] = rng.choice(("", "", "weights", "pixels"))
    known["block_k"] = 32 if known["shared"] == "pixels" else 16
    known["chunks"] = 1 if known["shared"] == "pixels" else rng.choice((1, 1, 2))
    known["activation"] = rng.choice(ACTIVATIONS)
    known["round_each"] = rng.random() < 0.25
    known["vectors"] = tuple(name for name in ("bias", "scale", "shift") if rng.random() < 0.4)
    known["residual"] = rng.random() < 0.3
    if kernel == "tiles":
        known["rows"], known["columns"] = rng.choice(((1, 1), (2, 1), (1, 2), (3, 1), (1, 3)))
        known["tile"] = rng.choice(((1, 2, 8), (1, 4, 4), (2, 2, 4), (1, 1, 16)))
        if known["shared"] == "weights":
            known["tile"] = _doubled(known["tile"])
    elif kernel == "strips":
        known["shared"] = rng.choice(("", "weights"))
        known["block_k"] = 16
        known["rows"] = rng.choice((2, 3))
        tile_n, tile_q = rng.choice(((1, 8), (2, 4)))
        if known["shared"]:
            tile_n, _, tile_q = _doubled((tile_n, 1, tile_q))
        known["tile"] = (tile_n, rng.choice((2, 3)) * known["rows"], tile_q)
        known["sets"] = rng.choice((2, 2, 3))
    else:
        known["rows"] = rng.choice((1, 2))
        known["axes"] = 3 if known["size"][0] > 1 or known["taps"][0] > 1 else 2
        known["tile"] = (1, 1, 32)
        if not transposed:
            known["stride"] = tuple(rng.choice((1, 2, 3)) if axis >= 3 - known["axes"] else 1 for axis in range(3))
        if rng.random() < 0.2:
            known["tile"] = (1, 1, 16)
        if known["shared"] == "weights":
            known["tile"] = (1, 1, 2 * known["tile"][2])
    return Case(**known)


def _several(count: int, kernel: str, transposed: bool = False) -> Iterator[Case]:
    return (draw(kernel, number, transposed) for number in range(count))


FORWARD = [*_several(36, "tiles"), *_several(36, "strips"), *_several(36, "pixels")]
TRANSPOSED = [*_several(36, "tiles", True), *_several(36, "strips", True), *_several(24, "pixels", True)]
WGRAD = [*_several(64, "wgrad")]
CASES = [*FORWARD, *TRANSPOSED, *WGRAD]
