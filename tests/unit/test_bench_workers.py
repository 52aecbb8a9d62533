"""What `gpu_report.py` does about workers that crash, hang, lose their GPU or cannot start."""

from __future__ import annotations

import argparse
import json
import sys
import time

import pytest

from bench.items import Item
from bench.stages import STAGES, solvers_in_front
from bench.store import Store
from bench.supervise import MOST_WORKERS, Slot, phases
from bench.worker import CONTEXT_LOST, in_hand

WORKER = """
import json, os, pathlib, signal, sys, time
out, ending = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(out / "starts", "a") as file:
    file.write("x")
if "crashed" in (out / "results.jsonl").read_text():
    sys.exit(0)
if ending != "nothing in hand":
    mark = {"stage": "parity", "key": "one", "run": "a", "limit": float(sys.argv[4]), "since": time.time()}
    (out / "mark.tmp").write_text(json.dumps(mark))
    os.replace(out / "mark.tmp", out / sys.argv[3])
if ending == "hangs":
    time.sleep(600)
if ending == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3)
"""


def options_for(out) -> argparse.Namespace:
    return argparse.Namespace(out=out, scratch=out, known={}, session="first")


def look_after(out, ending: str, item_limit: float = 60.0, budget: float = 60.0) -> Slot:
    """Run workers that end as `ending` says until the slot gives up or one ends by itself."""
    (out / "results.jsonl").touch()
    command = [sys.executable, "-c", WORKER, str(out), ending, in_hand("0/1"), str(item_limit)]
    slot = Slot(options_for(out), command, "0/1", time.time() + budget)
    while slot.busy():
        time.sleep(0.01)
    return slot


def records(out) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("ending", "why"), (("dies", "died by signal 9"), ("hangs", "hung for more"), ("exits", "exited with status 3"))
)
def test_the_item_in_hand_is_recorded_and_the_next_worker_goes_on(tmp_path, ending, why):
    slot = look_after(tmp_path, ending, item_limit=0.3 if ending == "hangs" else 60.0)
    (record,) = records(tmp_path)
    assert (record["stage"], record["key"], record["status"]) == ("parity", "one", "crashed") and why in record["why"]
    assert slot.status == 0 and (tmp_path / "starts").read_text() == "xx" and not slot.mark.exists()
    assert not slot.busy() and (tmp_path / "starts").read_text() == "xx"


def test_workers_that_die_with_nothing_in_hand_are_given_up(tmp_path):
    slot = look_after(tmp_path, "nothing in hand")
    assert slot.status == 1 and (tmp_path / "starts").read_text() == "xx" and not records(tmp_path)


def test_past_the_budget_the_item_in_hand_is_left_for_another_run(tmp_path):
    slot = look_after(tmp_path, "hangs", item_limit=0.3, budget=-10.0)
    assert slot.status == 0 and not records(tmp_path) and not slot.mark.exists()


def test_an_item_that_recorded_itself_is_not_recorded_twice(tmp_path):
    store = Store(tmp_path, "a", session="first")
    store.add("parity", "one", status="error")
    store.close()
    command = [sys.executable, "-c", f"raise SystemExit({CONTEXT_LOST})"]
    slot = Slot(options_for(tmp_path), command, "0/1", time.time() + 60)
    slot.mark.write_text(json.dumps({"stage": "parity", "key": "one", "run": "a", "limit": 60, "since": time.time()}))
    slot.process.wait()
    assert slot.busy()
    slot.process.wait()
    assert len(records(tmp_path)) == 1 and slot.workers == 1 <= MOST_WORKERS


def test_every_solver_has_its_first_item_in_front():
    keys = ["a | 1", "a | 2", "b | 1", "a | 3", "the list ends here", "b | 2", "c | 1"]
    ordered = [each.keys[0] for each in solvers_in_front(Item((key,), lambda missing: ()) for key in keys)]
    assert ordered == ["a | 1", "b | 1", "the list ends here", "c | 1", "a | 2", "a | 3", "b | 2"]


def test_only_stages_that_time_nothing_are_shared():
    found = [[stage.name for stage in phase] for phase in phases(list(STAGES.values()))]
    assert found == [["ceilings"], ["parity", "compile"], ["benchmark", "micro", "host", "sanitizer", "tune", "fit"]]
