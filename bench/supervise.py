"""What `gpu_report.py` does with its workers and its time: starts, watches and replaces them, and ends in time.

The budget is all there is: from the start of the process to the end of the summary. What the summary takes is kept
back, and so are the seconds that an item in hand gets beyond the end of its stage.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .worker import CONTEXT_LOST, in_hand

__all__ = ["GRACE", "MOST_WORKERS", "Budget", "Slot", "phases", "supervise", "worker_command", "workers_on"]

MOST_WORKERS = 30

GRACE = 10.0
"""Seconds past the end of a phase that the item in hand gets."""

SUMMARY = 10.0
"""Seconds that reading the records, the table and the summary get: of 300 cases they took 4 s on two slow cores."""

_LEAST = 5.0
"""Seconds that a phase must have: less would go into the start of its process."""


def workers_on(processors: int) -> int:
    """Return how many processes stages that time nothing get on so many processors: one is left for the supervisor."""
    return max(1, min(15, processors - 1))


_SCRIPT = Path(__file__).with_name("gpu_report.py")


@dataclass(frozen=True, slots=True)
class Budget:
    """`seconds` from `start`, on the clock of :func:`time.time`."""

    start: float
    seconds: float

    @property
    def end(self) -> float:
        """When everything has to be over."""
        return self.start + self.seconds

    @property
    def kept_back(self) -> float:
        """Seconds for the item in hand and the summary; of a small budget its third."""
        return min(GRACE + SUMMARY, self.seconds / 3)

    @property
    def work_ends(self) -> float:
        """When the last stage has to be over."""
        return self.end - self.kept_back

    @property
    def grace(self) -> float:
        """Seconds past the end of a phase after which its worker is killed, less what looking after it may take."""
        return self.kept_back * GRACE / (GRACE + SUMMARY) - 0.5

    def plots_fit(self, cases: int, now: float) -> bool:
        """Tell whether there is time to draw: 300 cases took 13 s on two slow cores."""
        return self.end - now > 4 + 0.05 * cases


class Slot:
    """A place for one worker after the other, until one ends by itself."""

    def __init__(
        self,
        options: argparse.Namespace,
        command: list[str],
        part: str,
        deadline: float,
        grace: float = GRACE,
        now: Callable[[], float] = time.time,
        spawn: Callable[[list[str]], Any] = subprocess.Popen,
    ) -> None:
        self.options, self.command, self.deadline, self.grace = options, command, deadline, grace
        self.now, self.spawn = now, spawn
        self.mark: Path = options.scratch / in_hand(part)
        self.mark.unlink(missing_ok=True)
        self.failures = self.workers = 0
        self.status: int | None = None
        self.process = spawn(command)

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
        self.process = self.spawn(self.command)
        return True

    def _why(self) -> str | None:
        """Return why the worker died or had to, ``None`` while it works or where it ended by itself."""
        if self.process.poll() is None:
            mark = self._at()
            hung = mark is not None and self.now() - mark["since"] > mark["limit"]
            late = self.now() > self.deadline + self.grace
            if not hung and not late:
                return None
            self._kill()
            if late:
                print("out of time: the item in hand is left for another run", flush=True)
                self.mark.unlink(missing_ok=True)
                self.status = 0
            return None if late or mark is None else f"hung for more than {mark['limit']:.0f} s, killed"
        status = self.process.returncode
        if status == 0:
            self.status = 0
            return None
        if status == CONTEXT_LOST:
            return "the CUDA context was lost"
        return f"the worker died by signal {-status}" if status < 0 else f"the worker exited with status {status}"

    def _kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        try:
            self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            print("a killed worker has not ended yet: it is left behind", flush=True)

    def _at(self) -> dict[str, Any] | None:
        """Return what the worker has in hand."""
        try:
            mark: dict[str, Any] = json.loads(self.mark.read_text())
        except FileNotFoundError:
            return None
        return mark

    def _record_loss(self, why: str) -> bool:
        """Record the item that the worker had in hand, unless it did so itself; return whether there was one."""
        from .store import Store

        mark = self._at()
        if mark is None:
            return False
        store = Store(self.options.out, mark["run"], self.options.known, self.options.session)
        own = store.find(mark["stage"], mark["key"])
        if own is None or own.get("session") != self.options.session:
            store.forget(mark["stage"], mark["key"])
            store.add(mark["stage"], mark["key"], status="crashed", why=why)
        store.close()
        self.mark.unlink()
        return True


def worker_command(options: argparse.Namespace, stages: list[str], part: str, deadline: float) -> list[str]:
    """Return the command line of a worker."""
    wanted = {name: options.stage[name] for name in stages}
    command = [sys.executable, str(_SCRIPT), "--worker", str(deadline), "--part", part, "--out", str(options.out)]
    command += ["--scratch", str(options.scratch), "--stage"]
    command += [name if seconds is None else f"{name}={seconds}" for name, seconds in wanted.items()]
    command += ["--kind", *options.kind] if options.kind else []
    command += ["--network", *options.network] if options.network else []
    command += ["--item-limit", str(options.item_limit)] if options.item_limit else []
    command += ["--pack", str(options.pack)] if options.pack else []
    return command + ["--only", options.only] * bool(options.only) + ["--dry-run"] * options.dry_run


def phases(stages: list[Any]) -> list[list[Any]]:
    """Return the stages in runs of those that several workers share, and of those that one has to itself."""
    found: list[list[Any]] = []
    for stage in stages:
        if found and found[-1][-1].parallel == stage.parallel:
            found[-1].append(stage)
        else:
            found.append([stage])
    return found


def supervise(
    options: argparse.Namespace,
    budget: Budget,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    spawn: Callable[[list[str]], Any] = subprocess.Popen,
) -> int:
    """Run the phases one after the other, each until its share of the time is over or its workers are done."""
    from .stages import STAGES, allotted

    left = phases([stage for name, stage in STAGES.items() if name in options.stage])
    worst = 0
    while left:
        phase, *left = left
        rest = [*phase, *(stage for later in left for stage in later)]
        start = until = now()
        for place in range(len(phase)):
            until += allotted(rest[place:], options.stage, budget.work_ends - until)
        if until - start < _LEAST and not options.dry_run:
            print(f"{', '.join(stage.name for stage in phase)}: no time is left", flush=True)
            continue
        parts = [f"{part}/{options.workers}" for part in range(options.workers)] if phase[0].parallel else ["0/1"]
        names = [stage.name for stage in phase]
        slots = [
            Slot(options, worker_command(options, names, part, until), part, until, budget.grace, now, spawn)
            for part in parts
        ]
        while any([slot.busy() for slot in slots]):
            sleep(0.05 if options.dry_run else 0.25)
        worst = max(worst, *(slot.status or 0 for slot in slots))
    return worst
