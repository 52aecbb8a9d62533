"""Measure the layers of real networks: gpuconv against cuDNN through PyTorch, Inductor, FlagGems and TileOPs.

    python bench/run.py [--network resnet50] [--number float16] [--phase inference] [--kind fprop] [--out DIR]
    python bench/run.py --network kernelbench       # the problems of KernelBench level 1, contiguous and in tf32
    python bench/run.py --dry-run       # the same path on the CPU, in Triton's interpreter, on tiny problems
    python bench/run.py --from DIR      # tables and plots again, from results on disk

A case is timed only after its result passed the parity gate against float64, and only if the solver that ran is one of
ours for GPUs. cuDNN searches for its fastest algorithm (benchmark=True) at equal dtype and precision, in both memory
formats, and the better counts. Kernel time is that of replays of a CUDA graph with a cold L2 cache and rotating inputs,
eager time stands beside it. Ceilings (copy bandwidth, a large GEMM per number format) are measured in the same run.
Outputs: results.jsonl, layers.csv, summary.json, summary.txt and, with matplotlib, layers.png and roofline.png.
`bench/gpu_report.py` runs this under a time budget, with everything else there is to learn from a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "bench"

CONTENDERS = ("gpuconv", "torch_channels_last", "torch_contiguous", "gpuconv_cupy", "inductor", "flag_gems", "tileops")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", action="append", help="repeat for several; `pooling` and `kernelbench` are sets, too"
    )
    parser.add_argument("--number", action="append", choices=("float16", "bfloat16", "tf32", "float32"))
    parser.add_argument("--phase", action="append", choices=("inference", "training"))
    parser.add_argument("--kind", action="append", choices=("fprop", "dgrad", "wgrad", "transposed", "bwd"))
    parser.add_argument("--contender", action="append", choices=CONTENDERS)
    parser.add_argument("--most", type=int, help="cases at most, the most valuable first")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: read results.jsonl of this folder")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def chosen_cases(options: argparse.Namespace) -> list[Any]:
    """Return the cases that the options select."""
    if options.dry_run:
        from .dry import tiny_cases

        return tiny_cases()[: options.most]
    from .cases import PHASES, all_cases, everything

    numbers = options.number or ("float16", "bfloat16", "tf32")
    names = everything() if options.source and options.network is None else options.network
    return all_cases(names, numbers, options.phase or PHASES, options.kind)[: options.most]


def measure_all(options: argparse.Namespace, cases: list[Any], store: Any, clock: Any) -> None:
    """Measure the ceilings, then every case by every contender; what is recorded already is not measured again."""
    from .micro import ceiling_items
    from .progress import Progress
    from .stages import benchmark_items

    for key, run in ceiling_items(clock):
        if not store.done("ceilings", key):
            store.add("ceilings", key, **run())
    items = list(benchmark_items(cases, clock, options.contender))
    progress = Progress("benchmark", total=len(items))
    for item in items:
        missing = [key for key in item.keys if not store.done("benchmark", key)]
        for key, fields in zip(missing, item.run(missing)):
            store.add("benchmark", key, **fields)
        progress.step(item.keys[0])
    progress.close()


def main() -> int:
    options = arguments()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    from .environment import environment, fingerprint, note, noted
    from .sources import snapshot
    from .store import Store
    from .summary import report_text, write_summary
    from .timing import clock_for

    if options.source:
        found = noted(options.source)
        if found is None:
            print(f"{options.source} has no results")
            return 1
        (about, store), options.out = found, options.source
        options.dry_run = about["dry_run"]
        cases = chosen_cases(options)
    elif not options.dry_run and not torch.cuda.is_available():
        print("not run (no CUDA device)")
        return 0
    else:
        device = "cpu" if options.dry_run else "cuda"
        about = environment(device)
        cases = chosen_cases(options)
        store = Store(options.out, fingerprint(about), snapshot())
        note(store, lambda: about)
        measure_all(options, cases, store, clock_for(device))
    records = store.current()
    store.close()
    print(report_text(about, records, cases))
    for path in write_summary(options.out, about, records, cases):
        print(path)
    wrong = [record for record in records if record.get("status") in ("wrong", "error")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
