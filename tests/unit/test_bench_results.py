"""Results on disk, and what is made of them: summary, table, plots and the README's section."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import readme
from bench.cases import Case, Use
from bench.dry import tiny_cases
from bench.store import ResultsFullError, Store
from bench.summary import network_totals, report_text, rows_of, stage_counts, summary_of, write_summary

REPO = Path(__file__).resolve().parents[2]


def test_records_survive_and_are_made_once(tmp_path):
    store = Store(tmp_path, "a")
    store.add("parity", "one", status="ok")
    with pytest.raises(ValueError, match="recorded already"):
        store.add("parity", "one", status="ok")
    store.close()
    again = Store(tmp_path, "a")
    assert again.done("parity", "one") and not again.done("micro", "one")
    record = {"stage": "parity", "key": "one", "run": "a", "status": "ok", "sources": "", "session": ""}
    assert again.records == again.current() == [record]
    again.close()


def test_a_half_written_line_is_cut_off(tmp_path):
    store = Store(tmp_path, "a")
    for key in ("one", "two"):
        store.add("parity", key)
    store.close()
    content = store.path.read_bytes()
    store.path.write_bytes(content[:-9])
    again = Store(tmp_path, "a")
    assert [record["key"] for record in again.records] == ["one"]
    again.add("parity", "two")
    again.close()
    assert store.path.read_bytes() == content


def test_records_of_other_software_stay_but_do_not_count(tmp_path):
    for run in ("a", "b"):
        store = Store(tmp_path, run)
        assert not store.done("parity", "one")
        store.add("parity", "one")
        store.close()
    store = Store(tmp_path, "b")
    assert len(store.records) == 2 and [record["run"] for record in store.current()] == ["b"]
    store.close()


def test_the_file_stays_below_its_limit(tmp_path):
    store = Store(tmp_path, "a", limit=250)
    store.add("parity", "one", text="x" * 100)
    with pytest.raises(ResultsFullError):
        store.add("parity", "two", text="x" * 100)
    store.close()
    assert store.path.stat().st_size <= 250


def _time(p50):
    return {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.2, "samples": 20, "calls": 10, "cold": True}


def _record(case, contender, p50=None, **fields):
    record = {"stage": "benchmark", "key": f"{contender} | {case.key}", "contender": contender, "run": "a"}
    timed = {"kernel": _time(p50), "eager": _time(p50 + 5)} if p50 else {}
    return record | {"status": "ok"} | timed | fields


@pytest.fixture
def run():
    """Return (cases, records): one loss, one gain, one that the gate refused."""
    cases = tiny_cases()[:3]
    records = [
        {"stage": "ceilings", "key": "copy", "run": "a", "per_us": 4e6, "unit": "bytes"},
        {"stage": "ceilings", "key": "gemm float16", "run": "a", "per_us": 7e8, "unit": "FLOP"},
        _record(cases[0], "gpuconv", 20.0, solver="triton.conv.fprop.implicit_gemm"),
        _record(cases[0], "torch_channels_last", 10.0),
        _record(cases[0], "torch_contiguous", 30.0),
        _record(cases[1], "gpuconv", 10.0),
        _record(cases[1], "torch_channels_last", status="not run", why="none"),
        _record(cases[1], "torch_contiguous", 15.0),
        _record(cases[1], "inductor", 12.0),
        _record(cases[2], "gpuconv", status="wrong", gate={"ok": False, "why": "5 of 9 elements out of tolerance"}),
        _record(cases[2], "torch_channels_last", 1.0),
    ]
    return cases, records


ABOUT = {
    "gpu": "NVIDIA Test", "dry_run": False, "gpuconv": "0.1.0", "torch": "2", "triton": "3", "cudnn": 9, "commit": "c",
    "date": "2026-11-23",
}  # fmt: skip


def test_rows_take_the_better_of_torch_s_formats(run):
    cases, records = run
    first, second, third = rows_of(records, cases)
    assert (first.speedup, second.speedup, third.speedup) == (0.5, 1.5, None)
    assert first.torch["contender"] == "torch_channels_last" and second.others["inductor"]["kernel"]["p50"] == 12.0
    assert first.figures["roofline"] > 0 and third.us is None


def test_totals_count_calls_and_say_what_is_missing(run):
    cases, records = run
    twice = [Case(case.problem, (Use("net", "training", 1, 3),), case.order) for case in cases]
    totals = network_totals(rows_of(records, twice), twice)
    by_pass = {total["pass"]: total for total in totals}
    assert by_pass["fprop"]["us"] == 60.0 and by_pass["fprop"]["torch_us"] == 30.0
    assert (by_pass["dgrad"]["calls"], by_pass["dgrad"]["of"], by_pass["dgrad"]["speedup"]) == (3, 3, 1.5)
    assert "wgrad" not in by_pass  # refused by the gate: no time, no sum


def test_report_names_failures_and_losses_first(run):
    cases, records = run
    text = report_text(ABOUT, records, cases)
    places = [text.index(part) for part in ("5 of 9 elements", "slower than torch", "as fast or faster", "sums over")]
    assert places == sorted(places)
    assert "slower than torch (the better of its two memory formats): 1 of 2" in text
    assert stage_counts(records)["benchmark"] == {"ok": 7, "not run": 1, "wrong": 1}


def test_summary_writes_table_and_plots(run, tmp_path):
    cases, records = run
    written = {path.name for path in write_summary(tmp_path, ABOUT, records, cases)}
    assert written >= {"summary.json", "summary.txt", "layers.csv"}
    with (tmp_path / "layers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["speedup"] for row in table] == ["0.5", "1.5", ""]
    assert table[0]["solver"] == "triton.conv.fprop.implicit_gemm" and table[2]["status"] == "wrong"
    assert json.loads((tmp_path / "summary.json").read_text())["networks"]
    pytest.importorskip("matplotlib")
    for name in ("layers.png", "roofline.png"):
        assert name in written and (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_readme_says_not_yet_measured_without_a_run(tmp_path):
    (tmp_path / "bench" / "results" / "cpu").mkdir(parents=True)
    assert readme.section(tmp_path).startswith("Not yet measured")


def test_readme_s_tables_come_from_the_newest_run(run, tmp_path):
    cases, records = run
    results = tmp_path / "bench" / "results" / "nvidia-test"
    for name, date in (("2026-11-20-1000", "older"), ("2026-11-23-1000", "newest"), ("2026-11-24-1000", "rehearsal")):
        (results / name).mkdir(parents=True)
        about = ABOUT | {"date": date, "dry_run": date == "rehearsal"}
        (results / name / "summary.json").write_text(json.dumps(summary_of(about, records, cases)))
    text = readme.section(tmp_path)
    assert "### NVIDIA Test, newest" in text and "older" not in text and "rehearsal" not in text
    assert text.index("| fprop |") < text.index("| dgrad |")  # losses first
    assert "bench/results/nvidia-test/2026-11-23-1000/layers.csv" in text


def test_markers_must_be_there_once():
    page = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    assert readme.rebuilt(page, "new") == f"a\n{readme.BEGIN}\nnew\n{readme.END}\nb\n"
    assert readme.rebuilt(readme.rebuilt(page, "new"), "new") == readme.rebuilt(page, "new")
    for wrong in ("nothing", page + page, f"{readme.END}\n{readme.BEGIN}"):
        with pytest.raises(ValueError, match="must have one line"):
            readme.rebuilt(wrong, "new")


def test_the_readme_is_what_the_runs_say():
    text = (REPO / "README.md").read_text()
    assert readme.rebuilt(text, readme.section(REPO)) == text, "README.md is stale: make report"


@pytest.mark.parametrize("script", ("run.py", "gpu_report.py"))
def test_without_a_gpu_the_scripts_say_not_run(script):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, str(REPO / "bench" / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("not run"), done.stderr
