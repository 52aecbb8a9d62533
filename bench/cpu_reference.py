"""Compare the NumPy backend with PyTorch on the CPU, in one process and at equal threads, in float32.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python bench/cpu_reference.py [--threads 2] [--json FILE]

Cases: every convolution of ResNet-50 at batch 1, the depthwise 3x3 layers of MobileNetV2, and common poolings. Both
sides read the same memory, and a case is timed only after their results agree. They take turns (A B A B ...); the first
calls of a turn are not timed, so that caches are warm and the other library's idle threads have gone to sleep. A call
during which a thread waited for a processor for more than 2% of the time was disturbed by another program: it is
counted and left out (Linux only). Times are medians of single calls, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import exp, log
from pathlib import Path
from statistics import median, quantiles
from typing import Any

REPO = Path(__file__).resolve().parents[1]
WORKLOADS = Path(__file__).with_name("workloads")
MIB = 1 << 20

CONVOLUTIONS, DEPTHWISE = "ResNet-50 convolutions", "depthwise 3x3"
POOLS, ADAPTIVE = "max and average poolings", "adaptive poolings"
MEMORY_LIMIT = 256 * MIB

WARM_SECONDS = 0.02
TIMED_CALLS = 5
FEWEST_CALLS = 10
MOST_WAITING = 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """One call, by both libraries, on the same memory."""

    group: str
    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    length: int  # products or elements summed into one element of the result


@dataclass(slots=True)
class Side:
    """Times of one library: seconds of each undisturbed call, and of the disturbed ones."""

    kept: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)

    def times(self) -> list[float]:
        return self.kept if len(self.kept) >= FEWEST_CALLS else self.kept + self.disturbed


@dataclass(frozen=True, slots=True)
class Result:
    group: str
    name: str
    ours_ms: tuple[float, float, float]
    torch_ms: tuple[float, float, float]
    ratio: float
    extra_bytes: int
    calls_kept: int
    calls_disturbed: int
    solver: str

    @property
    def disturbed(self) -> bool:
        return self.calls_kept < FEWEST_CALLS


def conv_cases(group: str, network: str, kind: str | None) -> Iterator[Case]:
    """Yield the distinct conv2d layers of a network (of one kind, if given) at batch 1."""
    import numpy as np
    import torch

    import gpuconv

    random = np.random.default_rng(0)
    for layer in json.loads((WORKLOADS / f"{network}.json").read_text())["layers"]:
        if layer["op"] != "conv2d" or kind not in (None, layer["kind"]):
            continue
        x = random.standard_normal((1, *layer["input"]), np.float32)
        w = random.standard_normal(layer["weight"], np.float32)
        options = {key: tuple(layer[key]) for key in ("stride", "padding", "dilation")} | {"groups": layer["groups"]}
        k, c, r, s = layer["weight"]
        shape = "x".join(map(str, layer["input"]))
        name = f"{shape} -> {k}, {r}x{s}/{layer['stride'][0]}"
        theirs = partial(torch.nn.functional.conv2d, torch.from_numpy(x), torch.from_numpy(w), **options)
        yield Case(group, name, partial(gpuconv.conv2d, x, w, **options), theirs, c * r * s)


def pool_cases() -> Iterator[Case]:
    """Yield poolings of ResNet's, VGG's and Inception's kind."""
    import numpy as np
    import torch

    import gpuconv

    random = np.random.default_rng(0)
    for op, shape, arguments in (
        ("max_pool2d", (1, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("max_pool2d", (1, 64, 224, 224), {"kernel_size": 2, "stride": 2}),
        ("max_pool2d", (1, 512, 28, 28), {"kernel_size": 2, "stride": 2}),
        ("avg_pool2d", (1, 192, 35, 35), {"kernel_size": 3, "stride": 1, "padding": 1}),
        ("avg_pool2d", (1, 256, 56, 56), {"kernel_size": 2, "stride": 2}),
        ("adaptive_avg_pool2d", (1, 2048, 7, 7), {"output_size": 1}),
        ("adaptive_avg_pool2d", (1, 512, 30, 30), {"output_size": 7}),
        ("adaptive_max_pool2d", (1, 512, 14, 14), {"output_size": 1}),
    ):
        x = random.standard_normal(shape, np.float32)
        ours = getattr(gpuconv, op, None)
        if ours is None:
            print(f"{op}: not run, this version does not have it")
            continue
        text = " ".join(f"{key}={value}" for key, value in arguments.items())
        theirs = partial(getattr(torch.nn.functional, op), torch.from_numpy(x), **arguments)
        name = f"{op} {'x'.join(map(str, shape[1:]))} {text}"
        group = ADAPTIVE if op.startswith("adaptive") else POOLS
        yield Case(group, name, partial(ours, x, **arguments), theirs, arguments.get("kernel_size", 7) ** 2)


def check(case: Case) -> str:
    """Compare the two results; return the solver that ran."""
    import numpy as np

    from gpuconv.dispatch import record_plans

    with record_plans() as plans:
        ours = case.ours()
    theirs = case.theirs().numpy()
    error = float(np.abs(ours - theirs).max())
    allowed = 1e-6 * max(1.0, float(np.abs(theirs).max())) * case.length**0.5
    if not error <= allowed:
        sys.exit(f"{case.name}: results differ by {error:.2e}, {allowed:.2e} is allowed; nothing was timed")
    return plans[-1].solver.id


def waited() -> int:
    """Return the nanoseconds that the threads of this process have waited for a processor so far (0 if unknown)."""
    total = 0
    for status in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(status.read_text().split()[1])
        except OSError:  # the thread has ended
            continue
    return total


def turn(call: Callable[[], Any], side: Side) -> None:
    """Take one turn: calls without a clock, then the timed ones."""
    warm = time.perf_counter() + WARM_SECONDS
    call()
    while time.perf_counter() < warm:
        call()
    for _ in range(TIMED_CALLS):
        before, start = waited(), time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        disturbed = (waited() - before) / 1e9 > MOST_WAITING * seconds
        (side.disturbed if disturbed else side.kept).append(seconds)


def extra_memory(case: Case) -> int:
    """Return the peak of NumPy's allocations during a call, less its result."""
    tracemalloc.start()
    try:
        base, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        result = case.ours()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return max(0, peak - base - result.nbytes)


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Return p20, p50, p80 in milliseconds."""
    p20, _, _, p80 = quantiles(seconds, n=5)
    return p20 * 1e3, median(seconds) * 1e3, p80 * 1e3


def measure(case: Case, turns: int) -> Result:
    """Let both sides take turns until each has enough undisturbed calls, or five times as many turns have passed."""
    solver = check(case)
    ours, theirs = Side(), Side()
    wanted = max(turns * TIMED_CALLS, FEWEST_CALLS)
    for _ in range(5 * turns):
        turn(case.ours, ours)
        turn(case.theirs, theirs)
        if min(len(ours.kept), len(theirs.kept)) >= wanted:
            break
    a, b = spread(ours.times()), spread(theirs.times())
    kept = min(len(ours.kept), len(theirs.kept))
    disturbed = max(len(ours.disturbed), len(theirs.disturbed))
    return Result(case.group, case.name, a, b, a[1] / b[1], extra_memory(case), kept, disturbed, solver)


def environment(threads: int) -> dict[str, Any]:
    """Describe the machine and the libraries."""
    import numpy as np
    import torch

    import gpuconv

    try:
        import threadpoolctl

        blas = ", ".join(
            f"{pool['internal_api']} {pool['version']}, kernel {pool['architecture']}, {pool['num_threads']} threads"
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        )
    except ModuleNotFoundError:
        blas = "unknown (threadpoolctl is not installed)"
    cpu = platform.processor() or "unknown"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{cpu}, {os.cpu_count()} logical",
        "torch instructions": torch.backends.cpu.get_cpu_capability(),
        "numpy BLAS": blas,
        "threads": threads,
        "load average": os.getloadavg()[0],
        "gpuconv": gpuconv.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", "not set"),
    }


def summarise(results: list[Result]) -> list[dict[str, Any]]:
    """Return the targets with what was measured and a verdict; a group with a disturbed case has none."""
    rows: list[tuple[str, list[Result], float | None, float, str]] = []
    for group, limit in ((CONVOLUTIONS, 1.6), (POOLS, 1.0), (ADAPTIVE, 1.0), (DEPTHWISE, 8.0)):
        members = [r for r in results if r.group == group]
        ratios = [r.ratio for r in members]
        if group == CONVOLUTIONS:
            name, value = "geometric mean", exp(sum(map(log, ratios)) / len(ratios)) if ratios else None
        else:
            name, value = "worst", max(ratios, default=None)
        rows.append((f"{group}, {name} of time / torch", members, value, limit, "x"))
    memory = max((r.extra_bytes for r in results), default=None)
    rows.append(("peak extra memory", [], None if memory is None else memory / MIB, MEMORY_LIMIT / MIB, " MiB"))
    targets = []
    for name, members, value, limit, unit in rows:
        verdict = "not run" if value is None else "within" if value <= limit else "missed"
        if value is not None and any(r.disturbed for r in members):
            verdict = "unknown (disturbed)"
        measured = "not run" if value is None else f"{value:.2f}{unit}"
        targets.append({"target": name, "limit": f"{limit:g}{unit}", "measured": measured, "verdict": verdict})
    return targets


def report(results: list[Result], targets: list[dict[str, Any]]) -> None:
    """Print the tables, losses first."""
    for group in (CONVOLUTIONS, POOLS, ADAPTIVE, DEPTHWISE):
        rows = sorted((r for r in results if r.group == group), key=lambda r: -r.ratio)
        if not rows:
            continue
        print(f"\n{group}, slowest against torch first")
        print(f"{'':60} {'gpuconv ms':>10} {'torch ms':>9} {'ratio':>6} {'extra MiB':>9} {'calls':>10}  solver")
        for r in rows:
            calls = "DISTURBED" if r.disturbed else f"{r.calls_kept} (-{r.calls_disturbed})"
            print(
                f"{r.name:60} {r.ours_ms[1]:10.3f} {r.torch_ms[1]:9.3f} {r.ratio:6.2f} {r.extra_bytes / MIB:9.2f}"
                f" {calls:>10}  {r.solver}"
            )
    print()
    for row in targets:
        print(f"{row['target']:56} {row['measured']:>10}  target {row['limit']:>8}  {row['verdict']}")
    if any(r.disturbed for r in results):
        print("DISTURBED: other programs took the processors; these times say little about the library. Run it again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="threads of both libraries")
    parser.add_argument("--turns", type=int, default=8, help="turns per side and case, without the disturbed calls")
    parser.add_argument("--only", choices=("conv", "pool", "depthwise"), help="one group of cases")
    parser.add_argument("--json", type=Path, help="write environment, cases and verdicts to this file")
    options = parser.parse_args()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)  # read when the libraries load
    sys.path.insert(0, str(REPO))
    import torch

    import gpuconv

    torch.set_num_threads(options.threads)
    about = environment(options.threads)
    for name, value in about.items():
        print(f"{name:20} {value}")
    groups = {
        "conv": partial(conv_cases, CONVOLUTIONS, "resnet50", None),
        "pool": pool_cases,
        "depthwise": partial(conv_cases, DEPTHWISE, "mobilenet_v2", "depthwise"),
    }
    cases = [case for name, make in groups.items() if options.only in (None, name) for case in make()]
    with torch.inference_mode(), gpuconv.use_backend("numpy"):
        results = [measure(case, options.turns) for case in cases]
    targets = summarise(results)
    report(results, targets)
    if options.json:
        content = {"environment": about, "targets": targets, "cases": [asdict(r) for r in results]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
