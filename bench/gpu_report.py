"""Everything that a GPU can tell about gpuconv, in one command, under a time budget.

    python bench/gpu_report.py [--budget 530] [--stage parity=170 benchmark] [--out DIR] [--resume [DIR]]
    python bench/gpu_report.py --dry-run     # every stage on the CPU, in Triton's interpreter, on tiny problems
    python bench/gpu_report.py --pack build/card/pack ...     # kernels from a pack (`make card`), nothing is compiled

Stages run in order, each on its share of the time that is left or on the seconds it is given, most valuable problems
first: ceilings, parity, compile (fills Triton's cache), benchmark, micro, host, sanitizer, tune, fit. A record is on
disk as soon as it is made. Worker processes do the work, several of them where nothing is timed: one that crashes, or
hangs, loses the item in hand, which is recorded as such, and the next worker goes on behind it.

On a rented card, whose commands end after 600 seconds, whose tree comes without git, and which brings 8 files back:

    GPUCONV_COMMIT=abc1234 python bench/gpu_report.py --budget 330 --stage ceilings parity=170 compile benchmark
    # fix what it showed, off the card; copy its folder into the tree; then, on another machine with the same GPU:
    python bench/gpu_report.py --resume FOLDER --budget 60 --stage parity compile benchmark --only failed --out $OUT
    python bench/gpu_report.py --resume --budget 200 --stage sanitizer=90 compile benchmark --kind dgrad wgrad bwd
    python bench/gpu_report.py --resume --budget 200 --stage ceilings compile benchmark --network kernelbench

The budget is everything, from the start of the process to the written summary; the sum of the budgets of one command
must stay below its limit: 530 of 600 seconds. A resumed run keeps the records of the same GPU and libraries whose
solver, its kernels among it, has the same sources (see bench/sources.py), and measures the others again; ``--only
failed`` does what was wrong, failed or crashed and nothing else. Outputs are at most 7 files, each under 16 MiB:
results.jsonl, tuned.json, summary.json, summary.txt, layers.csv and, where there is time, layers.png and roofline.png,
which ``bench/run.py --from FOLDER`` draws anywhere. They land in --out, by default $OUT, else
bench/results/<gpu>/<date>. Write no log beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.time()
REPO = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script
    sys.path.insert(0, str(REPO))
    __package__ = "bench"

from .supervise import Budget, supervise, workers_on  # noqa: E402
from .worker import Worker  # noqa: E402

STAGE_NAMES = ("ceilings", "parity", "compile", "benchmark", "micro", "host", "sanitizer", "tune", "fit")
KINDS = ("fprop", "dgrad", "wgrad", "transposed", "bwd")
OUTPUTS = ("results.jsonl", "tuned.json", "summary.json", "summary.txt", "layers.csv", "layers.png", "roofline.png")


def _stage(text: str) -> tuple[str, float | None]:
    name, _, seconds = text.partition("=")
    if name not in STAGE_NAMES:
        raise argparse.ArgumentTypeError(f"{name!r} is no stage; there are {', '.join(STAGE_NAMES)}")
    try:
        return name, float(seconds) if seconds else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{seconds!r} are no seconds for {name}") from None


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=530.0, help="seconds for everything (default: %(default)g)")
    parser.add_argument(
        "--stage", nargs="+", action="extend", type=_stage, metavar="NAME[=SECONDS]",
        help=f"of {', '.join(STAGE_NAMES)}; default: all",
    )  # fmt: skip
    parser.add_argument("--kind", nargs="+", action="extend", choices=KINDS, help="passes to benchmark, compile, tune")
    parser.add_argument(
        "--network", nargs="+", action="extend",
        help="whose layers to benchmark, compile, tune; `pooling` and `kernelbench` are sets, too",
    )  # fmt: skip
    parser.add_argument("--pack", type=Path, help="folder of a pack: what it lacks is not run, nothing is compiled")
    parser.add_argument("--out", type=Path, help="folder of the outputs")
    parser.add_argument("--resume", nargs="?", type=Path, const=Path(), help="go on with the run in --out, or in DIR")
    parser.add_argument("--only", choices=("failed",), help="what was wrong, failed or crashed in the resumed run")
    parser.add_argument("--no-plots", action="store_true", help="draw nothing, however much time is left")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in the interpreter, tiny problems")
    parser.add_argument("--item-limit", type=float, help="seconds after which an item hangs; default: by stage")
    parser.add_argument("--workers", type=int, help="processes of stages that time nothing; default: processors less 1")
    parser.add_argument("--plan", action="store_true", help="print what each stage would take on a GPU, run nothing")
    parser.add_argument("--list", action="store_true", help="print stage and key of every record, and run nothing")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)  # the deadline, on the clock of time.time
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)  # of the items of parallel stages
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)  # for what supervisor and workers say
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)  # under a sanitizer
    options = parser.parse_args(words)
    if options.only and options.resume is None:
        parser.error("--only failed needs --resume: which run?")
    options.stage = dict(options.stage or [(name, None) for name in STAGE_NAMES])
    if options.pack is not None:
        options.pack = options.pack.resolve()
        options.stage.pop("compile", None)
    if options.workers is None:
        options.workers = 1 if options.dry_run else workers_on(os.cpu_count() or 1)
    return options


def default_folder(dry: bool) -> Path:
    """Return $OUT, or a new folder for this GPU and minute."""
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    if dry:
        return REPO / "build" / "gpu-report-dry-run"
    tool = shutil.which("nvidia-smi")
    names = subprocess.run(
        [tool or "nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    ).stdout if tool else ""  # fmt: skip
    gpu = names.splitlines()[0].strip().lower().replace(" ", "-") if names.strip() else "gpu"
    return REPO / "bench" / "results" / gpu / time.strftime("%Y-%m-%d-%H%M", time.gmtime())


def finish(options: argparse.Namespace, budget: Budget) -> None:
    """Write the summary, the table and, if there is time, the plots of what is recorded."""
    from .environment import noted
    from .summary import report_text, rows_of, write_summary

    found = noted(options.out)
    if found is None:
        print("nothing was recorded")
        return
    about, store = found
    records, cases = store.current(), report_cases(options.dry_run)
    timed = len(rows_of(records, cases))
    plots = not options.no_plots and budget.plots_fit(timed, time.time())
    write_summary(options.out, about, records, cases, plots)
    print(report_text(about, records, cases)[-6000:])
    if store.stale():
        print(f"{len(store.stale())} records are of sources that have changed since, and not in the summary")
    store.close()
    if not plots:
        print(f"plots: not drawn; python bench/run.py --from {options.out} draws them anywhere")
    files = sorted(path.name for path in options.out.iterdir() if path.is_file())
    print(f"{len(files)} files in {options.out}: {', '.join(files)}")
    print(f"{time.time() - budget.start:.0f} s of {budget.seconds:.0f} s")


def report_cases(dry: bool) -> list[Any]:
    """Return the cases whose results a report shows, where there are any."""
    if dry:
        from .dry import tiny_cases

        return tiny_cases()
    from .cases import all_cases, everything

    return all_cases(everything())


def print_order(networks: list[str] | None, most: int = 60) -> None:
    """Print the cases that a run on a GPU measures first."""
    from collections import Counter

    from .cases import all_cases, family

    first = all_cases(networks)[:most]
    print(f"on a GPU the first {most} cases are:")
    for number, case in enumerate(first, 1):
        print(f"{number:>4} {family(case.problem):<16} {case.key}")
    counts = Counter(family(case.problem) for case in first)
    print(", ".join(f"{count} {name}" for name, count in counts.items()), flush=True)


def prepare(options: argparse.Namespace) -> None:
    """Make the folder, and bring in the results that a resumed run goes on with."""
    options.out = (options.out or default_folder(options.dry_run)).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for left_over in options.out.glob("*.tmp"):
        left_over.unlink()
    results = options.out / "results.jsonl"
    there = results.exists() and results.stat().st_size > 0
    if options.resume is None:
        if there:
            sys.exit(f"{results} exists: --resume goes on with it, --out names another folder")
        return
    source = options.resume.resolve() if options.resume != Path() else options.out
    if source == options.out:
        return
    if not (source / "results.jsonl").exists():
        sys.exit(f"{source} has no results.jsonl to go on with")
    if there:
        sys.exit(f"both {source / 'results.jsonl'} and {results} exist: which one?")
    for name in ("results.jsonl", "tuned.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, options.out / name)


def take_pack(folder: Path) -> None:
    """Let this process and its workers launch what a pack has, and nothing else. Who names a folder trusts it."""
    os.environ |= {"GPUCONV_PACKS": str(folder), "GPUCONV_PACKS_ONLY": "1", "GPUCONV_PACKS_TRUST": "1"}
    from gpuconv.packs.search import packs

    found = next((pack for pack in packs() if pack.folder == folder), None)
    if found is None:
        sys.exit(f"--pack {folder}: a path with {os.pathsep!r} cannot stand in GPUCONV_PACKS")
    if found.reason is not None:
        sys.exit(f"--pack {folder}: {found.reason}")
    print(f"{len(found.entries)} launches and kernels come from {folder}")


def caches_to_write() -> None:
    """Give Triton and CuPy a folder for what they compile where the home folder cannot be written."""
    if os.access(Path.home(), os.W_OK):
        return
    folder = Path(tempfile.gettempdir()) / "gpuconv-report-cache"
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("CUPY_CACHE_DIR", str(folder / "cupy"))


def share_state(options: argparse.Namespace) -> None:
    """Tell workers of which sources, and of which command, their records are."""
    from .sources import snapshot

    options.known, options.session = snapshot(), time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    state = {"known": options.known, "session": options.session}
    (options.scratch / "state.json").write_text(json.dumps(state))


def work(options: argparse.Namespace) -> int:
    """Be a worker."""
    if options.dry_run:
        import torch

        torch.set_num_threads(1)  # tiny problems: more threads would only wait for each other
    state = json.loads((options.scratch / "state.json").read_text())
    options.known, options.session = state["known"], state["session"]
    Worker(options, options.worker).work()
    return 0


def list_all(options: argparse.Namespace) -> None:
    """Print stage and key of what is left to record, a line of JSON each."""
    from .stages import STAGES

    worker = Worker(options, time.time() + options.budget)
    for name in STAGES:
        if name in options.stage and not STAGES[name].silent:
            for item in worker.items(STAGES[name]):
                for key in item.keys:
                    print(json.dumps([name, key]))


def main() -> int:
    options = arguments()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    if options.watched:
        from .sanitizer import watch

        return 1 if watch() else 0
    if options.worker is not None:
        return work(options)
    if options.plan:
        from .plan import plan_text

        print(plan_text(options))
        return 0
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("not run: no CUDA device (--dry-run walks every stage on the CPU)")
        return 0
    prepare(options)
    if options.pack is not None and not options.dry_run:
        take_pack(options.pack)
    caches_to_write()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of many workers
    with tempfile.TemporaryDirectory(prefix="gpuconv-report-") as scratch:
        options.scratch = Path(scratch)
        share_state(options)
        if options.list:
            list_all(options)
            return 0
        if options.dry_run:
            print_order(options.network)
        budget = Budget(STARTED, options.budget)
        status = supervise(options, budget)
        finish(options, budget)
    return status


if __name__ == "__main__":
    sys.exit(main())
