"""Sound: a chirp through a causal filter bank, whole and in pieces as a stream comes. NumPy alone.

python examples/audio.py
"""

from __future__ import annotations

import numpy as np

import gpuconv

RATE = 8000


def chirp(seconds: float = 1.0) -> np.ndarray:
    """Return a tone that rises from 100 to 3000 Hz, [1, 1, T]."""
    t = np.arange(int(RATE * seconds)) / RATE
    return np.sin(2 * np.pi * (100 * t + 1450 * t**2)).astype(np.float32)[None, None]


def bank(bands: int = 8, taps: int = 129) -> np.ndarray:
    """Return band-pass filters [K, 1, S]: a cosine under a window, as a correlation reads them."""
    t = (np.arange(taps) - (taps - 1) / 2) / RATE
    centres = np.linspace(200, 2800, bands)
    filters = np.cos(2 * np.pi * centres[:, None] * t) * np.hanning(taps)
    return (filters / np.abs(filters).sum(1, keepdims=True)).astype(np.float32)[:, None]


def main() -> None:
    sound, filters = chirp(), bank()
    y = gpuconv.conv1d(sound, filters, padding="causal")
    loudness = gpuconv.lp_pool1d(y, 2.0, 400)
    loudest = loudness[0].argmax(0)
    print(f"sound {sound.shape}, {len(filters)} bands {y.shape}, every 50 ms {loudness.shape}")
    print("loudest band over time:", " ".join(map(str, loudest)))
    assert (np.diff(loudest) >= 0).mean() > 0.9  # the tone rises

    # A stream: pieces of 160 samples, each with the last taps - 1 of what came before.
    taps, pieces = filters.shape[-1], []
    before = np.zeros((1, 1, taps - 1), np.float32)
    for start in range(0, sound.shape[-1], 160):
        piece = np.concatenate([before, sound[:, :, start : start + 160]], -1)
        pieces.append(gpuconv.conv1d(piece, filters))
        before = piece[:, :, -(taps - 1) :]
    streamed = np.concatenate(pieces, -1)
    difference = float(np.abs(streamed - y).max())
    print(f"in {len(pieces)} pieces: {difference:.1e}")
    assert difference < 1e-5

    # The same with a state that the library keeps: depthwise, as state-space models run it.
    channels = np.repeat(sound, 4, axis=1)
    short = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    whole = gpuconv.causal_conv1d(channels, short, activation="silu")
    head, state = gpuconv.causal_conv1d(channels[:, :, :-1], short, activation="silu", return_state=True)
    last = gpuconv.causal_conv1d_update(channels[:, :, -1], state, short, activation="silu")
    assert np.allclose(head, whole[:, :, :-1], atol=1e-6) and np.allclose(last, whole[:, :, -1], atol=1e-6)
    print("causal_conv1d and one step of causal_conv1d_update agree")


if __name__ == "__main__":
    main()
