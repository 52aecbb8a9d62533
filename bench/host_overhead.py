"""Print what one call costs on the host, part by part, against a driver that does nothing.

Kernels are real and compiled for sm_90; the driver is the stub of ``tests/launch``, which launches nothing, and CPU
tensors stand for CUDA ones. So a call is host time from beginning to end: arguments, key, look-up, allocation (torch's
CPU allocator: CUDA's is another), launch. What the driver itself takes, about 2 us a launch, is not in it.

The first table takes a cached ``gpuconv.conv2d`` apart. The second compares tiers and launchers: the direct call, the
custom op, autograd, calls with several launches, pools; through the C launcher, through Triton's compiled launcher, and
through Triton's ``kernel[grid]``.

The third table is what a process waits for its first call: compiled by Triton, from Triton's cache, and from a pack.

    python bench/host_overhead.py [--batches 300] [--output bench/results/cpu/host-overhead.json]
    python bench/host_overhead.py --first-call     # the third table alone
"""

import argparse
import contextlib
import json
import operator
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import gpuconv
from gpuconv.dispatch.plan_cache import CACHE, conv_key, signatures
from gpuconv.launcher import native
from gpuconv.normalize.conv import Extras
from gpuconv.ops import tiers
from gpuconv.ops.conv_autograd import PLAIN

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests" / "launch"))

from stub_gpu import launcher, stub_gpu  # noqa: E402

TARGET = 5.0
"""Microseconds of a cached conv2d beyond the allocation of its output."""

_BATCH = 200.0

Step = Callable[[], object]


class Observer(torch.utils._python_dispatch.TorchDispatchMode):
    """Does nothing, but its presence sends calls through the operators."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def percentiles(step: Step, batches: int) -> dict[str, float]:
    """Return the time of one call in microseconds: percentiles over batches of calls.

    A batch is short, some `_BATCH` microseconds: where other processes share the machine, few are interrupted.
    """
    for _ in range(20):
        step()
    trials = []
    for _ in range(20):
        start = time.perf_counter()
        step()
        trials.append((time.perf_counter() - start) * 1e6)
    calls = max(1, int(_BATCH / max(statistics.median(trials), 0.1)))
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        times.append((time.perf_counter() - start) / calls * 1e6)
    cuts = statistics.quantiles(times, n=10)
    return {"p20": round(cuts[1], 3), "p50": round(cuts[4], 3), "p80": round(cuts[7], 3)}


def half(*shape: int, last: bool = True) -> torch.Tensor:
    tensor = torch.zeros(shape, dtype=torch.float16)
    return tensor.to(memory_format=torch.channels_last) if last and len(shape) == 4 else tensor


X, W, B = half(2, 64, 14, 14), half(64, 64, 3, 3), half(64)
PLAIN_X, PLAIN_W = half(1, 128, 8, 8, last=False), half(64, 128, 3, 3, last=False)
LEAVES = [tensor.clone().requires_grad_() for tensor in (X, W, B)]
SEED = torch.zeros_like(X)


def conv2d() -> torch.Tensor:
    return gpuconv.conv2d(X, W, B, padding=1)


def custom_op() -> torch.Tensor:
    """Call the operator as a compiled graph does."""
    geometry = ((1, 1), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return torch.ops.gpuconv.fprop(X, W, B, None, None, None, *geometry, None, "fused", None, None)


def backward(fn: Callable[..., torch.Tensor]) -> Step:
    return lambda: torch.autograd.grad(fn(*LEAVES, padding=1), LEAVES, SEED)


nothing = contextlib.nullcontext
ROWS: list[tuple[str, Step, Callable[[], contextlib.AbstractContextManager[object]]]] = [
    ("gpuconv.conv2d, direct", conv2d, torch.no_grad),
    ("gpuconv.conv2d, three launches", lambda: gpuconv.conv2d(PLAIN_X, PLAIN_W, padding=1), torch.no_grad),
    ("gpuconv.max_pool2d, direct", lambda: gpuconv.max_pool2d(X, 3, 2, 1), torch.no_grad),
    ("torch.ops.gpuconv.fprop, the custom op", custom_op, torch.no_grad),
    ("gpuconv.conv2d under a dispatch mode", conv2d, Observer),
    ("gpuconv.conv2d, recording gradients", lambda: gpuconv.conv2d(*LEAVES, padding=1), nothing),
    ("gpuconv.conv2d, forward and backward", backward(gpuconv.conv2d), nothing),
]


def parts(batches: int) -> dict[str, dict[str, float]]:
    """Return the time of each part of a cached conv2d, of the rest, and of the whole."""
    conv2d()
    conv2d()
    (entry,) = CACHE._entries.values()
    arrays, settings, extras = (X, W, B, None, None, None), (1, 1, 1, 1), Extras()
    sign = native.SIGN
    signed, addresses = sign(arrays, False, PLAIN) if sign else signatures(arrays)
    key = conv_key("conv2d", arrays, signed, settings, extras)
    result, allocate = conv2d(), torch.empty_strided
    shape, strides, dtype, device = tuple(result.shape), result.stride(), result.dtype, result.device
    steps: dict[str, Step] = {
        "state of torch": tiers._observed,
        "tensors": (lambda: sign(arrays, False, PLAIN)) if sign else (lambda: signatures(arrays)),
        "key": lambda: conv_key("conv2d", arrays, signed, settings, extras),
        "look-up": lambda: CACHE.touch(entry) if CACHE.peek(key) is entry else operator.truth(1 / 0),
        "allocation": lambda: allocate(shape, strides, dtype=dtype, device=device),
        "allocation and launch": lambda: entry.replay(addresses),
        "whole": conv2d,
    }
    empty = percentiles(lambda: None, batches)
    found = {name: percentiles(step, batches) for name, step in steps.items()}
    # Every part but the whole is measured through a function of its own, whose call is not in the whole.
    inner = {name: {p: t[p] - empty[p] for p in t} for name, t in found.items() if name != "whole"}
    both, whole = inner.pop("allocation and launch"), found["whole"]
    inner["launch"] = {p: both[p] - inner["allocation"][p] for p in both}
    inner["rest"] = {p: whole[p] - sum(t[p] for t in inner.values()) for p in whole}
    beyond = {p: whole[p] - inner["allocation"][p] for p in whole}
    table = inner | {"whole": whole, "whole beyond the allocation": beyond}
    return {name: {p: round(t, 3) for p, t in row.items()} for name, row in table.items()}


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Take the stub for a GPU, remembering no launches, with a current stream that costs what torch's does."""
    with stub_gpu() as gpu:
        gpu.library.stub_record(0)
        torch._C._cuda_getCurrentRawStream = operator.index  # type: ignore[attr-defined]
        try:
            yield
        finally:
            gpu.library.stub_record(1)


def measure(batches: int) -> dict[str, Any]:
    results: dict[str, Any] = {"parts": {}, "paths": {}}
    for name in ("native", "python", "triton"):
        with launcher(name), stand_in():
            if name != "triton":
                with torch.no_grad():
                    results["parts"][name] = parts(batches)
                assert (native.SIGN is not None) == (name == "native")
            for label, step, context in ROWS:
                with context():
                    results["paths"].setdefault(label, {})[name] = percentiles(step, batches)
    return results


def first_calls(times: int = 3) -> dict[str, dict[str, float]]:
    """Return medians over processes of what the first call takes, in milliseconds."""
    from gpuconv.packing import build_pack

    with tempfile.TemporaryDirectory() as folder:
        pack, cache = Path(folder, "pack"), Path(folder, "cache")
        with stand_in(), gpuconv.dispatch.record_plans() as plans:
            gpuconv.conv2d(X, W, padding=1)
        build_pack({"first": [plan.problem for plan in plans]}, ["sm_90"], pack)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(times):
            shutil.rmtree(cache, ignore_errors=True)
            for name, mode in (("compiled", "triton"), ("Triton's cache", "triton"), ("pack", "pack")):
                env = {**os.environ, "TRITON_CACHE_DIR": str(cache), "GPUCONV_PACKS": str(pack)}
                env |= {} if mode == "pack" else {"GPUCONV_PACKS": ""}
                command = [sys.executable, str(REPO / "bench" / "first_call.py"), mode]
                said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
                found.setdefault(name, []).append(json.loads(said))
    return {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in found.items()
    }


def show_first_calls(found: dict[str, dict[str, float]]) -> None:
    parts = list(next(iter(found.values())))
    print(f"{'ms of a process, kernels from':<44}" + "".join(f"{part:>18}" for part in parts))
    for name, row in found.items():
        print(f"{name:<44}" + "".join(f"{row[part]:18.1f}" for part in parts))


def show(results: dict[str, Any]) -> None:
    for name, table in results["parts"].items():
        print(f"{'us of a cached conv2d, launcher ' + name:<44}{'p20':>8}{'p50':>8}{'p80':>8}")
        for part, row in table.items():
            print(f"{part:<44}" + "".join(f"{row[p]:8.2f}" for p in ("p20", "p50", "p80")))
        print()
    for name, verdict in results["targets"].items():
        print(
            f"target: under {TARGET:g} us beyond the allocation ({name}); measured {verdict['measured']:.2f}", end=" "
        )
        print(f"us: {verdict['verdict']}")
    print(f"\n{'us per call (p50) through':<44}{'native':>8}{'python':>8}{'triton':>8}")
    for label, row in results["paths"].items():
        print(f"{label:<44}" + "".join(f"{row[name]['p50']:8.1f}" for name in ("native", "python", "triton")))
    print("\nnative: the C launcher; python: Triton's compiled launcher; triton: kernel[grid] at every call.")
    print("The driver is a stub that does nothing, and outputs come from torch's CPU allocator.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--output", type=Path, default=REPO / "bench" / "results" / "cpu" / "host-overhead.json")
    parser.add_argument("--first-call", action="store_true", help="what a process waits for its first call, alone")
    args = parser.parse_args()
    if torch.version.cuda is not None:
        parser.error("torch is built for CUDA: the stub would stand in the place of its driver")
    torch.set_num_threads(1)
    if args.first_call:
        show_first_calls(first_calls())
        return
    import triton

    environment = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical",
        "load average before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "gpuconv": gpuconv.__version__,
        "batches": args.batches,
        "driver": "tests/launch/stub_libcuda.c: launches nothing",
    }
    results = measure(args.batches)
    results["first call"] = first_calls()
    results["targets"] = {}
    for name in ("native", "python"):
        measured = results["parts"][name]["whole beyond the allocation"]["p50"]
        results["targets"][name] = {
            "limit": TARGET,
            "measured": measured,
            "verdict": "within" if measured < TARGET else "missed",
        }
    environment["load average after"] = os.getloadavg()[0]
    show(results)
    print()
    show_first_calls(results["first call"])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"environment": environment, **results}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
