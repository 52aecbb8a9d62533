"""A report stays within its budget, with its summary and with workers that do not end: told with a clock of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from report_runs import options_for

from bench import gpu_report
from bench.stages import STAGES, allotted
from bench.supervise import GRACE, SUMMARY, Budget, supervise
from bench.worker import in_hand


class Clock:
    """Time that passes where somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.workers: list[Worker] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Worker:
    """A process that never ends by itself, or after some seconds."""

    def __init__(self, clock: Clock, command: list[str], lasts: float = 1e9) -> None:
        self.clock, self.command, self.start, self.lasts = clock, command, clock.time, lasts
        self.deadline = float(command[command.index("--worker") + 1])
        self.stages = command[command.index("--stage") + 1 :][: len(STAGES)]
        self.returncode: int | None = None
        clock.workers.append(self)

    def poll(self) -> int | None:
        if self.returncode is None and self.clock.time - self.start >= self.lasts:
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.returncode = -number

    def wait(self, timeout: float) -> int | None:
        return self.returncode


def run(tmp_path, seconds: float, *words: str, lasts: float = 1e9) -> tuple[Clock, Budget]:
    """Let workers go on for as long as they are let."""
    options = options_for(tmp_path, "--workers", "3", *words)
    options.dry_run = False
    clock = Clock()
    budget = Budget(clock.time, seconds)
    supervise(options, budget, clock.now, clock.sleep, lambda command: Worker(clock, command, lasts))
    return clock, budget


@pytest.mark.parametrize("seconds", (60.0, 170.0, 330.0, 530.0))
@pytest.mark.parametrize("words", ((), ("--stage", "ceilings", "parity=170", "benchmark"), ("--stage", "sanitizer")))
def test_workers_that_never_end_leave_time_for_the_summary(tmp_path, seconds, words):
    clock, budget = run(tmp_path, seconds, *words)
    assert clock.time <= budget.end - min(SUMMARY, seconds / 6)
    assert all(worker.returncode == -9 for worker in clock.workers)
    assert budget.end - budget.work_ends >= min(GRACE + SUMMARY, seconds / 3)


def test_a_hung_driver_does_not_hold_the_report(tmp_path, monkeypatch):
    def never(self, timeout):
        raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(Worker, "wait", never)
    clock, budget = run(tmp_path, 200.0)
    assert clock.time <= budget.end - SUMMARY


def test_a_stage_has_the_seconds_that_it_is_given(tmp_path):
    clock, budget = run(tmp_path, 330.0, "--stage", "ceilings", "parity=170", "benchmark")
    starts = {worker.stages[0].partition("=")[0]: worker.deadline - worker.start for worker in clock.workers}
    assert starts["ceilings"] == pytest.approx(30.0)  # what it needs at least
    assert starts["parity"] == pytest.approx(170.0)
    assert 70.0 < starts["benchmark"] <= budget.seconds - 200
    assert len([worker for worker in clock.workers if worker.stages[0].startswith("parity")]) == 3


def test_time_that_is_not_needed_goes_to_the_stages_that_follow(tmp_path):
    clock, budget = run(tmp_path, 530.0, lasts=5.0)
    last = clock.workers[-1]
    assert last.deadline == pytest.approx(budget.work_ends) and clock.time < 1100


def test_shares_add_up():
    stages, asked, left = list(STAGES.values()), {"parity": 100.0}, 510.0
    for place in range(len(stages)):
        seconds = allotted(stages[place:], asked, left)
        assert 0 <= seconds <= left
        assert seconds == 100.0 or stages[place].name != "parity"
        left -= seconds
    assert left == pytest.approx(0.0)
    assert allotted([STAGES["ceilings"]], {}, 7.0) == 7.0 and allotted([STAGES["parity"]], {"parity": 9.0}, -1.0) == 0


@pytest.mark.parametrize(("stage", "limit"), (("parity", 45.0), ("tune", 100.0), ("sanitizer", 150.0)))
def test_an_item_may_take_what_its_stage_allows(tmp_path, stage, limit):
    """A hang in parity must not cost what tuning a problem takes."""
    options = options_for(tmp_path, "--stage", stage)
    options.dry_run = False
    clock = Clock()
    mark = {"stage": stage, "key": "one", "run": "a", "limit": STAGES[stage].item_limit, "since": clock.time}
    path: Path = options.scratch / in_hand("0/1")
    ends = []

    def spawn(command):
        return Worker(clock, command, lasts=1e9 if len(clock.workers) == 0 else 0.0)

    def sleep(seconds):
        if clock.time == 1000.0:
            path.write_text(json.dumps(mark))
        clock.sleep(seconds)
        ends.extend([clock.time] * (clock.workers[0].returncode is not None and not ends))

    supervise(options, Budget(clock.time, 900.0), clock.now, sleep, spawn)
    (line,) = [json.loads(line) for line in (options.out / "results.jsonl").read_text().splitlines()]
    assert line["status"] == "crashed" and line["why"] == f"hung for more than {limit:.0f} s, killed"
    assert limit < ends[0] - 1000.0 < limit + 2


def test_plots_are_drawn_where_there_is_time(tmp_path, monkeypatch, capsys):
    from test_bench_results import ABOUT
    from test_bench_results import run as made

    cases, records = made.__wrapped__()

    class Noted:
        def current(self):
            return records

        def stale(self):
            return []

        def close(self):
            pass

    monkeypatch.setattr("bench.environment.noted", lambda folder: (ABOUT, Noted()))
    monkeypatch.setattr(gpu_report, "report_cases", lambda dry: cases)
    drawn = []
    monkeypatch.setattr("bench.summary.write_plots", lambda *arguments: drawn.append(1) or [])
    for words, seconds, wanted in (((), 300.0, 1), (("--no-plots",), 300.0, 0), ((), 3.0, 0)):
        drawn.clear()
        options = options_for(tmp_path, *words)
        clock = gpu_report.time.time()
        gpu_report.finish(options, Budget(clock, seconds))
        assert len(drawn) == wanted and ("draws them anywhere" in capsys.readouterr().out) == (not wanted)


def test_the_outputs_are_seven_files_at_most():
    assert len(gpu_report.OUTPUTS) == len(set(gpu_report.OUTPUTS)) <= 7
