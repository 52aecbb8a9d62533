"""`bench/gpu_report.py --dry-run`: killed in the middle, gone on with, nothing lost and nothing measured twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.interpret

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu_report.py"
STAGES = ("ceilings", "parity", "host", "sanitizer")
"""Those that take seconds; a full dry run is a command of its own."""


def command(out: Path, *extra: str) -> list[str]:
    stages = [word for stage in STAGES for word in ("--stage", stage)]
    return [sys.executable, str(SCRIPT), "--dry-run", "--budget", "600", *stages, "--out", str(out), *extra]


def start(out: Path, *extra: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(out, "--workers", "2", *extra), stdout=subprocess.DEVNULL, start_new_session=True)


def records(out: Path) -> list[dict]:
    path = out / "results.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [record for record in map(json.loads, whole.splitlines()) if record["stage"] != "environment"]


def wait_for(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while len(records(out)) < count and process.poll() is None:
        assert time.monotonic() < limit, f"only {len(records(out))} records"
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it was killed"


def worker_of(process: subprocess.Popen[bytes]) -> int:
    child, *_ = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker by /proc")
def test_killed_and_resumed(tmp_path):
    listed = subprocess.run(command(tmp_path / "list", "--list"), capture_output=True, text=True, check=True).stdout
    planned = [tuple(json.loads(line)) for line in listed.splitlines() if line.startswith("[")]
    assert {stage for stage, _ in planned} == set(STAGES) and len(set(planned)) == len(planned)

    out = tmp_path / "run"
    process = start(out)
    try:
        wait_for(out, 3, process)
        os.kill(worker_of(process), signal.SIGKILL)  # a crash: the next worker goes on
        wait_for(out, 10, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # as the end of a lease does
        process.wait()
    before = (out / "results.jsonl").read_bytes()
    kept = records(out)
    assert len(kept) < len(planned)
    with (out / "results.jsonl").open("ab") as file:
        file.write(b'{"stage":"parity","key":"half a li')

    refused = subprocess.run(command(out), capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "--resume" in refused.stderr
    subprocess.run(command(out, "--resume"), check=True, stdout=subprocess.DEVNULL)

    assert (out / "results.jsonl").read_bytes().startswith(before.rpartition(b"\n")[0])
    found = [(record["stage"], record["key"]) for record in records(out)]
    assert len(set(found)) == len(found) and set(found) == set(planned)
    statuses = {record.get("status", "ok") for record in records(out)}
    assert statuses <= {"ok", "not run", "crashed"}
    crashed = [record for record in records(out) if record.get("status") == "crashed"]
    assert len(crashed) <= 1 and all("signal 9" in record["why"] for record in crashed)
    files = [path for path in out.iterdir() if path.is_file()]
    assert {"results.jsonl", "summary.json", "summary.txt", "layers.csv"} <= {f.name for f in files}
    assert len(files) <= 7 and all(path.stat().st_size < 16 << 20 for path in files)
    environment = json.loads((out / "summary.json").read_text())["environment"]
    assert environment["dry_run"] and len(environment["commits"]) == 1

    drawn = [sys.executable, str(SCRIPT.with_name("run.py")), "--from", str(out)]  # anywhere, from what came back
    text = subprocess.run(drawn, capture_output=True, text=True, check=True).stdout
    assert "DRY RUN" in text and (out / "results.jsonl").read_bytes().startswith(before.rpartition(b"\n")[0])

    fixed = [*command(out, "--resume", "--only", "failed"), "--list"]
    left = subprocess.run(fixed, capture_output=True, text=True, check=True).stdout
    assert {json.loads(line)[1] for line in left.splitlines() if line.startswith("[")} == {
        record["key"] for record in crashed
    }


def test_every_solver_of_triton_is_in_the_parity_stage():
    from bench.parity import parity_items
    from bench.parity_calls import parity_calls
    from gpuconv.dispatch import backends

    items = (*parity_items("cpu"), *parity_calls("cpu", few=False))
    found = {key.partition(" | ")[0] for key, _ in items}
    # Those of Hopper are Gluon's, which nothing interprets: tests/executor runs them.
    wanted = {solver.id for solver in backends()["triton"].solvers() if not solver.id.endswith(".hopper")}
    assert wanted <= found, f"no parity item: {sorted(wanted - found)}"


def test_narrow_questions_are_asked_and_every_answer_is_right():
    from bench.micro import narrow_questions, sweep
    from bench.timing import HostClock

    asked = list(narrow_questions("cpu"))
    assert [question for question, _, _ in asked] == [
        "march: the next row ahead", "7x7 depthwise: solver", "rows: pixels of a tile",
    ]  # fmt: skip
    for question, problem, answers in asked:
        assert answers and len({name for name, _ in answers}) == len(answers)
        for answer, plan in answers if os.environ.get("GPUCONV_TEST_FULL") == "1" else ():
            assert sweep(HostClock(), problem, question, answer, plan)["status"] == "ok", (question, answer)
