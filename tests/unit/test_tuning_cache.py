"""The cache of tuned configs: keys, what survives on disk, and who writes it at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tuning_cases import H200, conv, pool, pretended

from gpuconv import config
from gpuconv.backends.triton.conv_fprop import FpropImplicitGemm
from gpuconv.costs import files
from gpuconv.costs import measured as cache
from gpuconv.costs.measured import Entry
from gpuconv.problem import ConvProblem, PoolProblem

REPO = Path(__file__).resolve().parents[2]
FPROP = FpropImplicitGemm()
PROBLEM = conv(32, 64, 56, 64)


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Return a function that forgets what was read, as a new process on a pretended H200 would have it."""

    def new_process() -> None:
        cache.forget()
        files._warned.clear()

    with pretended(monkeypatch, tmp_path):
        yield new_process


def other_config(problem: ConvProblem) -> dict[str, Any]:
    """Return a config that is not the default."""
    return FPROP.configs(problem)[3]


def entries(problem: ConvProblem, time: float = 10.0, n: int | None = None) -> cache.Entries:
    return {cache.key_of(problem): {FPROP.id: Entry(other_config(problem), time, n or problem.n)}}


# keys

OTHER: dict[str, Any] = {
    "kind": "dgrad", "c": 65, "k": 65, "groups": 2, "input_size": (57, 56), "kernel": (3, 1), "output_size": (57, 56),
    "stride": (1, 2), "pad_lo": (1, 0), "pad_hi": (1, 0), "dilation": (2, 1), "padding_mode": "reflect",
    "dtype": "bfloat16", "x_format": "contiguous", "w_format": "contiguous", "y_format": "contiguous", "bias": True,
    "activation": "relu", "residual": True, "scale": True, "shift": True, "precision": "tf32", "rounding": "torch",
    "pool": "avg",
    "ceil_mode": True, "count_include_pad": False, "divisor_override": 3, "norm_type": 2.0, "return_indices": True,
    "offsets": True,
}  # fmt: skip


@pytest.mark.parametrize("problem", [PROBLEM, pool(32, 64, 112)], ids=["conv", "pool"])
def test_every_field_that_changes_the_answer_is_in_the_key(problem: ConvProblem | PoolProblem):
    key = cache.key_of(problem)
    seen = {key}
    for field in fields(problem):
        if field.name in cache._NOT_IN_KEYS:
            continue
        value: Any = "dgrad" if isinstance(problem, ConvProblem) else "bwd"
        changed = replace(problem, **{field.name: OTHER[field.name] if field.name != "kind" else value})
        assert cache.key_of(changed) not in seen, field.name
        seen.add(cache.key_of(changed))
    for name, value in (("op", "other"), ("device", "cuda:1"), ("array", "numpy")):
        assert cache.key_of(replace(problem, **{name: value})) == key


def test_batches_share_a_key_by_powers_of_two_but_not_with_wide_offsets():
    buckets = [cache.batch_bucket(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 33)]
    assert buckets == [1, 1, 2, 4, 4, 8, 8, 16, 64]
    assert cache.key_of(replace(PROBLEM, n=17)) == cache.key_of(PROBLEM) != cache.key_of(replace(PROBLEM, n=16))
    wide = conv(20000, 64, 56, 64)
    assert wide.index64 and cache.batch_bucket(10700) == cache.batch_bucket(10699)
    assert cache.key_of(replace(wide, n=10700)) != cache.key_of(replace(wide, n=10699))


# reading and writing


def test_a_recorded_config_is_planned_by_the_next_process(process):
    default = FPROP.plan(PROBLEM)
    assert cache.record(H200, entries(PROBLEM))
    assert FPROP.plan(PROBLEM).config == default.config, "tuning changed a running process"
    process()
    plan = FPROP.plan(PROBLEM)
    assert plan.config.items() >= other_config(PROBLEM).items() and plan.config != default.config
    found = FPROP.estimated(PROBLEM)
    assert (found.microseconds, found.source) == (10.0, "tuned")
    half = FPROP.estimated(replace(PROBLEM, n=17))
    assert half.source == "tuned" and 4.0 < half.microseconds < 9.0
    assert FPROP.estimated(replace(PROBLEM, n=16)).source == "model"


def test_the_user_wins_over_the_table_which_wins_over_the_model(process, monkeypatch):
    key, table = cache.key_of(PROBLEM), FPROP.configs(PROBLEM)[5]
    shipped = {key: {FPROP.id: Entry(table, 12.0, 32).to_json()}}
    monkeypatch.setattr(cache, "_tables", lambda: [("NVIDIA H200", Path("h200.json"), shipped)])
    process()
    assert FPROP.estimated(PROBLEM).source == "table" and FPROP.plan(PROBLEM).config.items() >= table.items()
    cache.record(H200, entries(PROBLEM))
    process()
    assert FPROP.estimated(PROBLEM).source == "tuned"
    assert FPROP.plan(PROBLEM).config.items() >= other_config(PROBLEM).items()
    monkeypatch.setenv("GPUCONV_TUNE", "off")
    process()
    assert FPROP.estimated(PROBLEM).source == "model"


def test_shipped_tables_hold_no_invented_numbers():
    tables = cache._tables()
    assert {gpu for gpu, _, _ in tables} >= {"NVIDIA H200"}
    for _, path, found in tables:
        data = json.loads(path.read_text())
        assert (data["measured"] is not None) == bool(found), f"{path.name}: entries need a date, and a date entries"


@pytest.mark.parametrize(
    "config", [{"BLOCK_M": 7}, {}, {"BLOCK_M": 4096, "BLOCK_N": 4096, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}]
)
def test_an_entry_never_makes_a_solver_run_what_it_would_not_propose(process, config):
    default = FPROP.plan(PROBLEM).config
    cache.record(H200, {cache.key_of(PROBLEM): {FPROP.id: Entry(config, 1.0, 32)}})
    process()
    assert FPROP.plan(PROBLEM).config == default and FPROP.estimated(PROBLEM).source == "model"


def test_an_entry_beyond_the_workspace_limit_is_not_used(process, monkeypatch):
    problem = conv(1, 512, 7, 512)
    config = next(config for config in FPROP.configs(problem) if config["splits"] > 1)
    cache.record(H200, {cache.key_of(problem): {FPROP.id: Entry(config, 1.0, 1)}})
    process()
    assert FPROP.plan(problem).workspace > 0
    monkeypatch.setenv("GPUCONV_WORKSPACE", "0")
    assert FPROP.plan(problem).workspace == 0


# files that are not as they should be


def test_nothing_there_is_silent(process, caplog):
    assert cache.entries_in(cache.cache_path("NVIDIA H200"), "NVIDIA H200") == {}
    assert not caplog.records


BROKEN = {
    "empty": b"",
    "truncated": None,
    "not text": b"\xff\xfe\x00binary",
    "a list": b"[1, 2]",
    "another schema": b'{"schema": 99, "gpu": "NVIDIA H200", "sections": []}',
    "another GPU": b'{"schema": 1, "gpu": "NVIDIA A100", "sections": []}',
    "no sections": b'{"schema": 1, "gpu": "NVIDIA H200", "sections": {"a": 1}}',
    "nested too deep": b"[" * 100000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_ignored_with_one_warning_and_replaced(process, caplog, name):
    path = cache.cache_path("NVIDIA H200")
    cache.record(H200, entries(PROBLEM))
    content = BROKEN[name]
    broken = path.read_bytes()[:-100] if content is None else content
    path.write_bytes(broken)
    default = FPROP.default(PROBLEM)
    for _ in range(3):
        cache.forget()
        assert FPROP.plan(PROBLEM).config.items() >= default.items()
    assert [record.levelname for record in caplog.records] == ["WARNING"] and str(path) in caplog.text
    assert cache.record(H200, entries(PROBLEM, 3.0))
    assert path.with_name(path.name + ".unreadable").read_bytes() == broken
    process()
    assert FPROP.estimated(PROBLEM).microseconds == 3.0


def test_entries_of_other_versions_are_kept_and_ignored_with_one_warning(process, caplog, monkeypatch):
    cache.record(H200, entries(PROBLEM))
    path = cache.cache_path("NVIDIA H200")
    old = json.loads(path.read_text())["sections"][0]
    for field, value in (("triton", "2.0.0"), ("gpuconv", "0.0.1"), ("source", "0" * 16)):
        data = json.loads(path.read_text())
        data["sections"] = [old | {field: value}]
        path.write_text(json.dumps(data))
        process()
        caplog.clear()
        assert FPROP.estimated(PROBLEM).source == FPROP.estimated(PROBLEM).source == "model"
        assert len(caplog.records) == 1 and "run gpuconv tune again" in caplog.text
        assert cache.record(H200, entries(PROBLEM, 5.0))
        sections = json.loads(path.read_text())["sections"]
        assert sections[0] == old | {field: value} and len(sections) == 2
        process()
        assert FPROP.estimated(PROBLEM).microseconds == 5.0


def test_old_sections_go_in_the_end(process):
    path = cache.cache_path("NVIDIA H200")
    cache.record(H200, entries(PROBLEM))
    data = json.loads(path.read_text())
    data["sections"] = [data["sections"][0] | {"triton": f"2.{minor}"} for minor in range(20)]
    path.write_text(json.dumps(data))
    cache.record(H200, entries(PROBLEM))
    kept = [section["triton"] for section in json.loads(path.read_text())["sections"]]
    assert kept == [*(f"2.{minor}" for minor in range(13, 20)), cache.fingerprint().triton]


def test_bad_entries_are_passed_over(process, caplog):
    other = conv(32, 128, 28, 128)
    cache.record(H200, entries(PROBLEM) | entries(other))
    path = cache.cache_path("NVIDIA H200")
    data = json.loads(path.read_text())
    found = data["sections"][0]["entries"]
    good = found[cache.key_of(PROBLEM)][FPROP.id]
    for change in ({"microseconds": -1}, {"microseconds": "x"}, {"n": 0}, {"config": [1]}, {"config": {"a": [1]}}):
        found[cache.key_of(PROBLEM)][FPROP.id] = good | change
        found["another key"] = 7
        path.write_text(json.dumps(data))
        process()
        caplog.clear()
        assert FPROP.estimated(PROBLEM).source == "model" and FPROP.estimated(other).source == "tuned"
        assert len(caplog.records) == 1 and "2 entries" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_warning(process, caplog, monkeypatch, tmp_path):
    cache.record(H200, entries(PROBLEM))
    before = cache.cache_path("NVIDIA H200").read_bytes()

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    for _ in range(2):
        assert not cache.record(H200, entries(PROBLEM, 5.0))
    assert len(caplog.records) == 1 and "Read-only file system" in caplog.text
    assert cache.cache_path("NVIDIA H200").read_bytes() == before
    process()
    assert FPROP.estimated(PROBLEM).microseconds == 10.0, "what is there is still read"
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("GPUCONV_CACHE_DIR", str(blocked))
    process()
    assert not cache.record(H200, entries(PROBLEM)) and FPROP.estimated(PROBLEM).source == "model"


def test_a_writer_that_is_killed_leaves_the_old_file(process, monkeypatch):
    cache.record(H200, entries(PROBLEM))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            cache.record(H200, entries(PROBLEM, 5.0))
    process()
    assert FPROP.estimated(PROBLEM).microseconds == 10.0
    assert not list(cache.cache_path("NVIDIA H200").parent.glob("*.tmp"))
    assert cache.record(H200, entries(PROBLEM, 5.0)), "the lock is free again"


# at once


def test_a_lock_is_waited_for_and_given_up(tmp_path):
    path, order = tmp_path / "file", []

    def wait() -> None:
        with files.locked(path):
            order.append("second")

    with files.locked(path):
        thread = threading.Thread(target=wait)
        thread.start()
        with pytest.raises(files.LockTimeoutError, match="locked by another process"), files.locked(path, 0.1):
            pass
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


WRITER = """
import sys
sys.path.insert(0, "tests/unit")
from gpuconv.costs import measured as cache
from gpuconv.costs.measured import Entry
from gpuconv.costs.constants import Gpu
me = sys.argv[1]
sys.stdin.readline()
for number in range(30):
    new = {f"shared {number}": {f"solver {me}": Entry({"a": 1}, 1.0, 1)}, f"{me} {number}": {"s": Entry({}, 2.0, 1)}}
    assert cache.record(Gpu("NVIDIA H200", (9, 0)), new)
"""


def test_processes_that_tune_at_once_lose_nothing(tmp_path):
    environment = os.environ | {"GPUCONV_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name], env=environment, cwd=REPO, stdin=subprocess.PIPE, text=True
        )
        for name in ("one", "two", "three")
    ]
    for writer in writers:  # all have imported before the first begins
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    data = json.loads((tmp_path / "tuned" / "nvidia-h200.json").read_text())
    (section,) = data["sections"]
    assert len(section["entries"]) == 30 + 3 * 30
    for number in range(30):
        assert section["entries"][f"shared {number}"].keys() == {"solver one", "solver two", "solver three"}


# where files lie


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("GPUCONV_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert config.cache_directory() == tmp_path / ".cache" / "gpuconv"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert config.cache_directory() == tmp_path / ".cache" / "gpuconv"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert config.cache_directory() == Path("/somewhere/gpuconv")
    monkeypatch.setenv("GPUCONV_CACHE_DIR", "~/mine")
    assert config.cache_directory() == tmp_path / "mine"
    assert files.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
