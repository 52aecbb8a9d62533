"""Everything that a GPU can tell about gpuconv, in one command, under a time budget.

    python bench/gpu_report.py [--budget 1500] [--stage parity --stage benchmark] [--out DIR] [--resume [DIR]]
    python bench/gpu_report.py --dry-run     # every stage on the CPU, in Triton's interpreter, on tiny problems

Stages run in order, each on its share of the time that is left, most valuable problems first: ceilings, parity,
benchmark, micro, host, tune, sanitizer, fit. A record is on disk as soon as it is made. A worker process does the work:
one that crashes, or hangs, loses the item in hand, which is recorded as such, and the next worker goes on behind it. A
run that was killed goes on with ``--resume``. Outputs are at most 8 files, each under 16 MiB; they land in --out, by
default $OUT, else bench/results/<gpu>/<date>.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

STAGE_NAMES = ("ceilings", "parity", "benchmark", "micro", "host", "tune", "sanitizer", "fit")
IN_HAND = ".in-hand.json"
CONTEXT_LOST = 75
"""Exit status of a worker whose CUDA context is of no use any more."""

MOST_WORKERS = 30
_GRACE = 30.0
"""Seconds past the budget that the last item gets."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds, start of the process included")
    parser.add_argument("--stage", action="append", choices=STAGE_NAMES, help="repeat for several; default: all")
    parser.add_argument("--out", type=Path, help="folder of the outputs")
    parser.add_argument("--resume", nargs="?", type=Path, const=Path(), help="go on with the run in --out, or in DIR")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in the interpreter, tiny problems")
    parser.add_argument("--item-limit", type=float, default=150.0, help="seconds after which one item counts as hung")
    parser.add_argument("--list", action="store_true", help="print stage and key of every record, and run nothing")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)  # the deadline, on the clock of time.time
    parser.add_argument("--watched", type=int, help=argparse.SUPPRESS)  # that many parity problems, for a sanitizer
    return parser.parse_args()


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


class Worker:
    """Does items until the stages or the time are at an end."""

    def __init__(self, options: argparse.Namespace, deadline: float) -> None:
        from bench.environment import environment, fingerprint
        from bench.stages import Context
        from bench.store import Store, write_atomically
        from bench.timing import clock_for

        self.options, self.deadline = options, deadline
        device = "cpu" if options.dry_run else "cuda"
        self.about = environment(device)
        self.run = fingerprint(self.about)
        self.out: Path = options.out
        self.store = Store(self.out, self.run)
        self.context = Context(clock_for(device), self.store, self.out, lambda: self.deadline - time.time())
        self.parent = os.getppid()
        write_atomically(self.out / "environment.json", json.dumps(self.about, indent=1) + "\n")

    def stages(self) -> list[Any]:
        from bench.stages import STAGES

        wanted = self.options.stage or STAGE_NAMES
        return [stage for name, stage in STAGES.items() if name in wanted]

    def work(self) -> None:
        from bench.store import ResultsFullError

        stages = self.stages()
        for place, stage in enumerate(stages):
            remaining = self.deadline - time.time()
            share = stage.share / sum(other.share for other in stages[place:])
            try:
                self._stage(stage, time.time() + remaining * share)
            except ResultsFullError as error:
                print(f"{error}: no more is measured", flush=True)
                return

    def _stage(self, stage: Any, deadline: float) -> None:
        from bench.progress import Progress

        items = list(stage.items(self.context))
        left = [item for item in items if not all(self.store.done(stage.name, key) for key in item.keys)]
        print(f"{stage.name}: {len(items)} items, {len(items) - len(left)} of them done", flush=True)
        progress = Progress(stage.name, len(left), time.monotonic() + deadline - time.time())
        for item in left:
            if time.time() > deadline:
                print(f"{stage.name}: out of time, {progress.total - progress.count} items not run", flush=True)
                break
            self._item(stage.name, item)
            progress.step(item.keys[0])
        progress.close()

    def _item(self, stage: str, item: Any) -> None:
        """Record what an item yields; an error of one is its record, a lost CUDA context the end of this worker."""
        if os.getppid() != self.parent:
            sys.exit("the parent is gone")
        missing = [key for key in item.keys if not self.store.done(stage, key)]
        results = iter(item.run(missing))
        for key in missing:
            self._mark(stage, key)
            start = time.perf_counter()
            try:
                fields = dict(next(results))
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:400]}"
                lost = "CUDA error" in text or "illegal memory access" in text
                self.store.add(stage, key, status="crashed" if lost else "error", why=text)
                if lost:
                    sys.exit(CONTEXT_LOST)
                results = iter(item.run(missing[missing.index(key) + 1 :]))
                continue
            self.store.add(stage, key, **fields, seconds=round(time.perf_counter() - start, 3))
        (self.out / IN_HAND).unlink(missing_ok=True)

    def _mark(self, stage: str, key: str) -> None:
        from bench.store import write_atomically

        write_atomically(self.out / IN_HAND, json.dumps({"stage": stage, "key": key, "run": self.run}))


def lost_item(out: Path, why: str) -> bool:
    """Record the item that a dead worker had in hand, unless it had recorded it itself; tell whether there was one."""
    from bench.store import Store

    path = out / IN_HAND
    if not path.exists():
        return False
    mark = json.loads(path.read_text())
    store = Store(out, mark["run"])
    if not store.done(mark["stage"], mark["key"]):
        store.add(mark["stage"], mark["key"], status="crashed", why=why)
    store.close()
    path.unlink()
    return True


def watch(process: subprocess.Popen[bytes], options: argparse.Namespace, deadline: float) -> str | None:
    """Wait for a worker. Return why it died, or ``None`` where it ended by itself."""
    mark = options.out / IN_HAND
    while process.poll() is None:
        time.sleep(0.05 if options.dry_run else 0.5)
        hung = mark.exists() and time.time() - _changed(mark) > options.item_limit
        late = time.time() > deadline + min(_GRACE, options.item_limit)
        if hung or late:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if late:
            print("out of time: the item in hand is left for another run", flush=True)
            mark.unlink(missing_ok=True)
            return None
        if hung:
            return f"hung for more than {options.item_limit:.0f} s, killed"
    status = process.returncode
    if status in (0, CONTEXT_LOST):
        return None if status == 0 else "the CUDA context was lost"
    return f"the worker died by signal {-status}" if status < 0 else f"the worker exited with status {status}"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def supervise(options: argparse.Namespace, deadline: float) -> int:
    """Run workers until one ends by itself."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(deadline), "--out", str(options.out)]
    command += [word for stage in options.stage or () for word in ("--stage", stage)]
    command += ["--dry-run"] * options.dry_run
    failures = 0
    for _ in range(MOST_WORKERS):
        why = watch(subprocess.Popen(command), options, deadline)
        if why is None:
            return 0
        print(why, flush=True)
        # Two workers in a row that die with nothing in hand would go on dying.
        failures = 0 if lost_item(options.out, why) or "context" in why else failures + 1
        if failures == 2:
            return 1
    return 1


def finish(options: argparse.Namespace) -> None:
    """Write the summary, the table and the plots of what is recorded."""
    from bench.store import Store
    from bench.summary import report_text, write_summary

    about = json.loads((options.out / "environment.json").read_text())
    from bench.environment import fingerprint

    store = Store(options.out, fingerprint(about))
    records, cases = store.current(), report_cases(options.dry_run)
    store.close()
    write_summary(options.out, about, records, cases)
    print(report_text(about, records, cases)[-6000:])
    files = sorted(path for path in options.out.iterdir() if path.is_file())
    print(f"{len(files)} files in {options.out}: " + ", ".join(path.name for path in files))


def report_cases(dry: bool) -> list[Any]:
    """Return the cases whose results a report shows."""
    if dry:
        from bench.dry import tiny_cases

        return tiny_cases()
    from bench.cases import all_cases

    return all_cases()


def watched(count: int) -> int:
    """Run the first parity problems, for compute-sanitizer around this process."""
    from bench.parity import parity_items

    for number, (key, run) in enumerate(parity_items("cuda")):
        if number == count:
            break
        fields = run()
        print(key, fields["status"], flush=True)
    return 0


def prepare(options: argparse.Namespace) -> None:
    """Make the folder, and bring in the results that a resumed run goes on with."""
    options.out = (options.out or default_folder(options.dry_run)).resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    if options.resume is None:
        if results.exists() and results.stat().st_size:
            sys.exit(f"{results} exists: --resume goes on with it, --out names another folder")
        return
    source = options.resume / "results.jsonl"
    if options.resume != Path() and source.resolve() != results:
        if results.exists() and results.stat().st_size:
            sys.exit(f"both {source} and {results} exist: which one?")
        shutil.copyfile(source, results)
    (options.out / IN_HAND).unlink(missing_ok=True)


def main() -> int:
    options = arguments()
    start = time.time()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    if options.watched is not None:
        return watched(options.watched)
    if options.worker is not None:
        if options.dry_run:
            import torch

            torch.set_num_threads(1)  # tiny problems: more threads would only wait for each other
        Worker(options, options.worker).work()
        return 0
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("not run: no CUDA device (--dry-run walks every stage on the CPU)")
        return 0
    prepare(options)
    if options.list:
        worker = Worker(options, start + options.budget)
        for stage in worker.stages():
            for item in stage.items(worker.context):
                for key in item.keys:
                    print(json.dumps([stage.name, key]))
        return 0
    status = supervise(options, start + options.budget)
    finish(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
