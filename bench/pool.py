"""Time pooling on a GPU: fraction of the copy bandwidth measured in the same run, and ratios to ATen and Inductor.

    python bench/pool.py [--dtype float16] [--json results.json] [--only TEXT]

Every case first passes a parity gate against torch, under a record of plans: a case that did not run on the solver
that the dispatcher explains, one of Triton, is a failure, not a number. Losses against ATen come first. Without a CUDA
device the script says "not run".
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pool_cases import CASES, PoolCase

import gpuconv
from gpuconv.dispatch import record_plans

LAYOUTS = ("contiguous", "channels_last")
FLUSH_BYTES = 256 << 20


def timed(call: Callable[[], object], flush: torch.Tensor, repeats: int = 30) -> float:
    """Return the median microseconds of a call, with the L2 cache flushed before each."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def copy_bandwidth(flush: torch.Tensor) -> float:
    """Return the bytes per microsecond that a device copy of 1 GiB moves, reads and writes counted."""
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / timed(lambda: target.copy_(source), flush)


def measure(case: PoolCase, layout: str, dtype: torch.dtype, copy: float, flush: torch.Tensor) -> dict[str, Any]:
    """Check one case against torch, time it beside ATen and Inductor, and return its row."""
    x = torch.randn(case.shape, device="cuda").to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    ours, theirs = getattr(gpuconv, case.function), getattr(F, case.function)
    expected_solver = gpuconv.explain(ours, x, *case.arguments, **case.options).solver
    with record_plans() as plans:
        result = ours(x, *case.arguments, **case.options)
    solvers = [plan.solver.id for plan in plans]
    assert solvers == [expected_solver] and solvers[0].startswith("triton.pool."), (case.name, solvers)
    expected = theirs(x.double(), *case.arguments, **case.options)
    exact = "max" in case.function
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), expected, rtol=0 if exact else 4 * eps, atol=0 if exact else 4 * eps)
    moved = case.min_bytes(tuple(result.shape), x.element_size())
    compiled = torch.compile(lambda tensor: theirs(tensor, *case.arguments, **case.options), fullgraph=True)
    time = timed(lambda: ours(x, *case.arguments, **case.options), flush)
    aten = timed(lambda: theirs(x, *case.arguments, **case.options), flush)
    inductor = timed(lambda: compiled(x), flush)
    return {
        "case": case.name, "layout": layout, "dtype": str(dtype).removeprefix("torch."), "solver": solvers[0],
        "us": time, "bytes": moved, "of_copy": moved / time / copy, "aten_us": aten, "inductor_us": inductor,
        "to_aten": aten / time, "to_inductor": inductor / time,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], copy: float) -> None:
    """Print losses against ATen, then every row."""
    print(f"{torch.cuda.get_device_name()}, copy {copy / 1e6:.2f} TB/s, torch {torch.__version__}")
    losses = [row for row in rows if row["to_aten"] < 1]
    print(f"slower than ATen: {len(losses)} of {len(rows)}")
    print(f"{'case':<42}{'layout':<15}{'us':>9}{'of copy':>9}{'x ATen':>9}{'x Inductor':>12}  solver")
    for row in sorted(rows, key=lambda row: row["to_aten"]):
        figures = f"{row['us']:9.1f}{row['of_copy']:9.2f}{row['to_aten']:9.2f}{row['to_inductor']:12.2f}"
        print(f"{row['case']:<42}{row['layout']:<15}{figures}  {row['solver']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("not run (no CUDA device)")
        return 0
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    copy = copy_bandwidth(flush)
    dtype = getattr(torch, args.dtype)
    chosen = [case for case in CASES if args.only in case.name]
    rows = [measure(case, layout, dtype, copy, flush) for case in chosen for layout in LAYOUTS]
    show(rows, copy)
    if args.json:
        device = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bytes_per_us": copy}
        args.json.write_text(json.dumps(device | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
