"""One layer through everything that can run here: times, memory and errors side by side.

    python examples/compare.py [--quick] [--batch 2] [--channels 16] [--size 16] [--kernel 3]

Each result is compared with float64. What cannot run says why; of GPU solvers the modelled time on an H200 is shown,
and named so. Times are medians on whatever this host does besides.
"""

from __future__ import annotations

import argparse
import re
import time
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import gpuconv
from gpuconv.backends.numpy import teaching

Array = np.ndarray[Any, Any]


def measured(call: Callable[[], Array], repeats: int) -> tuple[Array, float, float]:
    """Return the result of a call, the median of its times in ms, and the peak of what Python allocated in MB."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append((time.perf_counter() - start) * 1e3)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, sorted(times)[len(times) // 2], peak


def by_scipy(x: Array, w: Array, pad: int) -> Array:
    """Channel by channel: SciPy's functions know of one."""
    from scipy.signal import correlate2d

    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    return np.stack([[sum(correlate2d(padded[n, c], w[k, c], "valid") for c in range(x.shape[1]))
                      for k in range(len(w))] for n in range(len(x))])  # fmt: skip


def ways(x: Array, w: Array, pad: int) -> dict[str, Callable[[], Array] | str]:
    """Return what computes the layer, or why it cannot."""
    geometry: dict[str, Any] = {"stride": (1, 1), "padding": [(pad, pad)] * 2, "dilation": (1, 1), "groups": 1}
    found: dict[str, Callable[[], Array] | str] = {
        "teaching: definition": lambda: teaching.direct(x, w, **geometry),
        "teaching: im2col": lambda: teaching.im2col_gemm(x, w, **geometry),
        "teaching: Toeplitz": lambda: teaching.toeplitz_conv(x, w, **geometry),
        "gpuconv.conv2d": lambda: gpuconv.conv2d(x, w, padding=pad),
    }
    matrix = len(w) * x.shape[2] * x.shape[3] * x[0].size * 4 / 1e6
    if matrix > 500:
        found["teaching: Toeplitz"] = f"its matrix would have {matrix:,.0f} MB"
    if find_spec("torch") is None:
        found["torch"] = "torch is not installed"
    else:
        import torch

        a, b = torch.from_numpy(x), torch.from_numpy(w)
        found["torch.conv2d"] = lambda: torch.nn.functional.conv2d(a, b, padding=pad).numpy()
    if find_spec("scipy") is None:
        found["scipy.signal"] = "SciPy is not installed"
    else:
        found["scipy.signal"] = lambda: by_scipy(x, w, pad)
    here = gpuconv.explain(gpuconv.conv2d, x, w, padding=pad)
    for candidate in here.candidates:
        if here.problem is None or not candidate.solver.serves(here.problem):
            continue  # for another operation or pass
        name = candidate.solver.id
        if candidate.reason is None:
            found[name] = lambda name=name: gpuconv.conv2d(x, w, padding=pad, backend=name)  # type: ignore[misc]
        else:
            found[name] = candidate.reason
    return found


def modelled(x: Array, w: Array, pad: int) -> dict[str, str]:
    """Return the modelled time of each solver that would take the layer in bfloat16 on an H200; needs torch."""
    if find_spec("torch") is None:
        return {}
    import torch

    last = torch.channels_last
    a = torch.empty(x.shape, device="meta", dtype=torch.bfloat16, memory_format=last)
    b = torch.empty(w.shape, device="meta", dtype=torch.bfloat16, memory_format=last)
    text = str(gpuconv.explain(gpuconv.conv2d, a, b, padding=pad, gpu="h200"))
    return dict(re.findall(r"^ +\d+\. (\S+) +estimate (\S+ \S+) \(model\)", text, re.MULTILINE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    for name, default in (("batch", 2), ("channels", 16), ("size", 16), ("kernel", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((given.batch, given.channels, given.size, given.size)).astype(np.float32)
    w = rng.standard_normal((given.channels, given.channels, given.kernel, given.kernel)).astype(np.float32)
    pad = given.kernel // 2
    exact = teaching.im2col_gemm(x.astype(float), w.astype(float), (1, 1), [(pad, pad)] * 2, (1, 1), 1)
    print(f"conv2d {x.shape} * {w.shape}, padding {pad}, float32, on this host's CPU")
    print(f"{'':34} {'ms':>9} {'MB':>8} {'error':>9}")
    model = modelled(x, w, pad)
    worst = 0.0
    for name, call in ways(x, w, pad).items():
        if isinstance(call, str):
            also = f"; modelled {model[name]} on an H200, bfloat16" if name in model else ""
            print(f"{name:34} not run: {call}{also}")
            continue
        result, took, peak = measured(call, 3 if given.quick else 9)
        error = float(np.abs(result - exact).max() / np.abs(exact).max())
        worst = max(worst, error)
        memory = "not seen" if name.startswith("torch") else f"{peak:.2f}"
        print(f"{name:34} {took:9.3f} {memory:>8} {error:9.1e}")
    print("measured on a GPU: not run")
    assert worst < 1e-5


if __name__ == "__main__":
    main()
