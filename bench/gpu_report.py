"""Everything that a GPU can tell about gpuconv, in one command, under a time budget.

    python bench/gpu_report.py [--budget 1500] [--stage parity --stage benchmark] [--out DIR] [--resume [DIR]]
    python bench/gpu_report.py --dry-run     # every stage on the CPU, in Triton's interpreter, on tiny problems

Stages run in order, each on its share of the time that is left, most valuable problems first: ceilings, parity, compile
(fills Triton's cache), benchmark, micro, host, tune, sanitizer, fit. A record is on disk as soon as it is made. Worker
processes do the work, several of them where nothing is timed: one that crashes, or hangs, loses the item in hand, which
is recorded as such, and the next worker goes on behind it. A run that was killed goes on with ``--resume``. Outputs are
at most 8 files, each under 16 MiB; they land in --out, by default $OUT, else bench/results/<gpu>/<date>.
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

STAGE_NAMES = ("ceilings", "parity", "compile", "benchmark", "micro", "host", "tune", "sanitizer", "fit")
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
    parser.add_argument(
        "--workers", type=int, help="processes of stages that time nothing; default: half the processors"
    )
    parser.add_argument("--list", action="store_true", help="print stage and key of every record, and run nothing")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)  # the deadline, on the clock of time.time
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)  # of the items of parallel stages
    parser.add_argument("--watched", type=int, help=argparse.SUPPRESS)  # that many parity problems, for a sanitizer
    options = parser.parse_args()
    if options.workers is None:
        options.workers = 1 if options.dry_run else max(1, min(8, (os.cpu_count() or 1) // 2))
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
        if stage.parallel:
            part, parts = map(int, self.options.part.split("/"))
            items = items[part::parts]
        left = [item for item in items if not all(self.store.done(stage.name, key) for key in item.keys)]
        print(f"{stage.name}: {len(items)} items, {len(items) - len(left)} of them done", flush=True)
        progress = Progress(stage.name, len(left), time.monotonic() + deadline - time.time())
        for item in left:
            if time.time() > deadline:
                print(f"{stage.name}: out of time, {progress.total - progress.count} items not run", flush=True)
                break
            self._item(stage, item)
            progress.step(item.keys[0])
        progress.close()

    def _item(self, of: Any, item: Any) -> None:
        """Record what an item yields; an error of one is its record, a lost CUDA context the end of this worker."""
        if os.getppid() != self.parent:
            sys.exit("the parent is gone")
        stage = of.name
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
            if not of.silent:
                self.store.add(stage, key, **fields, seconds=round(time.perf_counter() - start, 3))
        (self.out / in_hand(self.options.part)).unlink(missing_ok=True)

    def _mark(self, stage: str, key: str) -> None:
        from bench.store import write_atomically

        mark = {"stage": stage, "key": key, "run": self.run}
        write_atomically(self.out / in_hand(self.options.part), json.dumps(mark))


class Slot:
    """A place for one worker after the other, until one ends by itself."""

    def __init__(self, options: argparse.Namespace, command: list[str], part: str, deadline: float) -> None:
        self.options, self.command, self.deadline = options, command, deadline
        self.mark = options.out / in_hand(part)
        self.mark.unlink(missing_ok=True)
        self.failures = self.workers = 0
        self.status: int | None = None
        self.process = subprocess.Popen(self.command)

    def busy(self) -> bool:
        """Look after the worker; return whether there still is one."""
        if self.status is not None:
            return False
        why = self._why()
        if why is None:
            return self.status is None
        print(why, flush=True)
        # Two workers in a row that die with nothing in hand would go on dying.
        self.failures = 0 if self._record_loss(why) or "context" in why else self.failures + 1
        self.workers += 1
        if self.failures == 2 or self.workers == MOST_WORKERS:
            self.status = 1
            return False
        self.process = subprocess.Popen(self.command)
        return True

    def _why(self) -> str | None:
        """Return why the worker died or had to, ``None`` while it works or where it ended by itself."""
        limit = self.options.item_limit
        if self.process.poll() is None:
            hung = self.mark.exists() and time.time() - _changed(self.mark) > limit
            late = time.time() > self.deadline + min(_GRACE, limit)
            if not hung and not late:
                return None
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            if late:
                print("out of time: the item in hand is left for another run", flush=True)
                self.mark.unlink(missing_ok=True)
                self.status = 0
            return None if late else f"hung for more than {limit:.0f} s, killed"
        status = self.process.returncode
        if status == 0:
            self.status = 0
            return None
        if status == CONTEXT_LOST:
            return "the CUDA context was lost"
        return f"the worker died by signal {-status}" if status < 0 else f"the worker exited with status {status}"

    def _record_loss(self, why: str) -> bool:
        """Record the item that the worker had in hand, unless it did so itself; return whether there was one."""
        from bench.store import Store

        if not self.mark.exists():
            return False
        mark = json.loads(self.mark.read_text())
        store = Store(self.options.out, mark["run"])
        if not store.done(mark["stage"], mark["key"]):
            store.add(mark["stage"], mark["key"], status="crashed", why=why)
        store.close()
        self.mark.unlink()
        return True


def worker_command(options: argparse.Namespace, stages: list[str], part: str, deadline: float) -> list[str]:
    """Return the command line of a worker."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(deadline), "--part", part]
    command += ["--out", str(options.out), *(word for stage in stages for word in ("--stage", stage))]
    return command + ["--dry-run"] * options.dry_run


def in_hand(part: str) -> str:
    """Return the name of the file that says what the worker of a part is at."""
    return f".in-hand-{part.replace('/', '-')}.json"


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def phases(stages: list[Any]) -> list[list[Any]]:
    """Return the stages in runs of those that several workers share, and of those that one has to itself."""
    found: list[list[Any]] = []
    for stage in stages:
        if found and found[-1][-1].parallel == stage.parallel:
            found[-1].append(stage)
        else:
            found.append([stage])
    return found


def supervise(options: argparse.Namespace, deadline: float) -> int:
    """Run the phases one after the other, each until its share of the time is over or its workers are done."""
    from bench.stages import STAGES

    chosen = [stage for name, stage in STAGES.items() if name in (options.stage or STAGE_NAMES)]
    left = phases(chosen)
    worst = 0
    while left:
        phase, *left = left
        share = sum(stage.share for stage in phase)
        rest = share + sum(stage.share for later in left for stage in later)
        until = time.time() + (deadline - time.time()) * share / rest
        parts = [f"{part}/{options.workers}" for part in range(options.workers)] if phase[0].parallel else ["0/1"]
        names = [stage.name for stage in phase]
        slots = [Slot(options, worker_command(options, names, part, until), part, until) for part in parts]
        while any([slot.busy() for slot in slots]):
            time.sleep(0.05 if options.dry_run else 0.25)
        worst = max(worst, *(slot.status or 0 for slot in slots))
    return worst


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
    for mark in options.out.glob(".in-hand-*"):
        mark.unlink()


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
            for item in () if stage.silent else stage.items(worker.context):
                for key in item.keys:
                    print(json.dumps([stage.name, key]))
        return 0
    status = supervise(options, start + options.budget)
    finish(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
