"""The runs of padding of the NumPy backend against ``np.pad``, and images cut into parts."""

import numpy as np
import pytest

import gpuconv
from gpuconv.backends.numpy.common import shown_runs

NP_PAD = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@pytest.mark.parametrize("mode", NP_PAD)
def test_runs_show_what_numpy_pads(mode: str, rng: np.random.Generator) -> None:
    for _ in range(500):
        size = int(rng.integers(1, 8))
        most = size - 1 if mode == "reflect" else 20
        lo, hi = rng.integers(0, most, 2, endpoint=True).tolist()
        start = int(rng.integers(-lo, size + hi))
        stop = int(rng.integers(start, size + hi, endpoint=True))
        padded = np.pad(np.arange(size), (lo, hi), mode=NP_PAD[mode])
        shown = np.full(stop - start, -1)
        for place, source in shown_runs(size, start, stop, mode):
            assert (shown[place] == -1).all(), "runs overlap"
            shown[place] = np.arange(size)[source]
        np.testing.assert_array_equal(shown, padded[start + lo : stop + lo], err_msg=f"{size} {start} {stop}")


@pytest.mark.parametrize("mode", NP_PAD)
def test_data_gradient_in_parts(mode: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole images of 7 channels do not fit into the limit: they are summed a few channels at a time."""
    w, dy = rng.integers(-3, 4, (4, 7, 3, 3)).astype(float), rng.integers(-3, 4, (2, 8, 60, 60)).astype(float)
    w = np.concatenate([w, -w])
    kwargs = {"padding": 1, "groups": 2, "padding_mode": mode}
    whole = gpuconv.conv2d_input_grad((2, 14, 60, 60), w, dy, **kwargs)
    monkeypatch.setenv("GPUCONV_WORKSPACE", "400000")
    plan = gpuconv.explain(gpuconv.conv2d_input_grad, (2, 14, 60, 60), w, dy, **kwargs).plan
    assert plan.config["parts of C"] > 1 and plan.workspace <= 400000
    np.testing.assert_array_equal(gpuconv.conv2d_input_grad((2, 14, 60, 60), w, dy, **kwargs), whole)
