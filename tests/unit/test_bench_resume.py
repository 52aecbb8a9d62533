"""A report goes on after a fix, on another machine: what still holds is kept, what does not is measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import item, only_stages, options_for, records, stage, work

from bench import environment, sources
from bench.gpu_report import OUTPUTS, arguments, prepare
from bench.parity import conv_problem
from bench.stages import _stands
from bench.store import Store
from gpuconv.dispatch import backends, select

FPROP, WGRAD = "triton.conv.fprop.implicit_gemm", "triton.conv.wgrad.split_k"


def ids() -> list[str]:
    return [solver.id for backend in backends().values() for solver in backend.solvers()]


def names(solver: str) -> set[str]:
    return {path.relative_to(sources.REPO).as_posix() for path in sources.files_of(solver)}


def test_a_solver_depends_on_its_module_its_kernels_and_what_they_import():
    assert {"kernels/tl/conv/fprop.py", "kernels/tl/common.py", "gpuconv/backends/triton/conv_fprop.py",
            "gpuconv/launcher/_launch.c", "gpuconv/backends/triton/common.py"} <= names(FPROP)  # fmt: skip
    assert {"kernels/cu/conv_depthwise.cu", "kernels/cu/conv.cuh", "kernels/cu/ptx.cuh"} <= names(
        "cupy.conv.fprop.depthwise"
    )
    for solver in ids():
        found = names(solver)
        kernels = {name for name in found if name.startswith("kernels/")}
        assert bool(kernels) == (not solver.startswith("numpy")), solver
        assert not found & {
            "gpuconv/functional/conv.py",
            "gpuconv/dispatch/selection.py",
            "gpuconv/dispatch/plan_cache.py",
        }, solver


def test_no_file_of_kernels_is_left_out():
    """Nothing could say that a record is stale where no solver depends on a kernel."""
    used = set().union(*(names(solver) for solver in ids()))
    there = {path.relative_to(sources.REPO).as_posix() for path in (sources.REPO / "kernels").rglob("*")
             if path.suffix in (".py", ".cu", ".cuh") and path.name != "__init__.py"}  # fmt: skip
    assert there <= used


def test_a_fix_of_one_kernel_concerns_its_solvers_alone(monkeypatch):
    fixed = sources.REPO / "kernels" / "tl" / "conv" / "wgrad.py"
    before = sources.snapshot()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == fixed))
    sources.tree.cache_clear()
    try:
        after = sources.snapshot()
    finally:
        sources.tree.cache_clear()
    changed = {solver for solver in before if before[solver] != after[solver]}
    assert changed == {"gpuconv"} | {solver for solver in ids() if "kernels/tl/conv/wgrad.py" in names(solver)}
    assert WGRAD in changed and FPROP not in changed


KNOWN = {"gpuconv": "all-1", FPROP: "f-1", WGRAD: "w-1"}

FIXED = KNOWN | {"gpuconv": "all-2", WGRAD: "w-2"}
"""After a fix of the weight gradient."""


def fill(folder) -> None:
    """Record one of everything before the fix."""
    store = Store(folder, "a", KNOWN, "first")
    store.add("ceilings", "copy", per_us=1.0)
    store.add("parity", f"{FPROP} | one", status="ok")
    store.add("parity", f"{WGRAD} | one", status="error", why="does not compile")
    store.add("benchmark", "gpuconv | x", contender="gpuconv", solver=FPROP, config={}, status="ok")
    store.add("benchmark", "gpuconv | y", contender="gpuconv", status="error", why="before a solver was known")
    store.add("benchmark", "torch_contiguous | y", contender="torch_contiguous", status="ok")
    store.add("micro", "splits = 2", solver=WGRAD, status="ok")
    store.add("host", "gpuconv.conv2d", host={})
    store.add("tune", "x", status="ok")
    store.close()


def test_records_of_unchanged_sources_are_kept_after_a_fix(tmp_path):
    fill(tmp_path)
    store = Store(tmp_path, "a", FIXED, "second")
    kept = {(record["stage"], record["key"]) for record in store.current()}
    assert kept == {("ceilings", "copy"), ("parity", f"{FPROP} | one"), ("benchmark", "gpuconv | x"),
                    ("benchmark", "torch_contiguous | y")}  # fmt: skip
    assert len(store.stale()) == 5
    store.add("parity", f"{WGRAD} | one", status="ok")  # measured again, beside the old line
    store.close()
    again = Store(tmp_path, "a", FIXED, "third")
    assert again.find("parity", f"{WGRAD} | one")["status"] == "ok" and len(again.records) == 10
    assert len(again.stale()) == 4 and again.done("parity", f"{WGRAD} | one")
    again.close()
    other = Store(tmp_path, "another GPU", FIXED)
    assert not other.current() and not other.stale()
    other.close()


def test_a_fix_that_is_taken_back_finds_its_records_again(tmp_path):
    fill(tmp_path)
    store = Store(tmp_path, "a", FIXED, "second")
    store.add("tune", "x", status="error")
    store.close()
    back = Store(tmp_path, "a", KNOWN, "third")
    assert back.find("tune", "x")["status"] == "ok" and len(back.current()) == 9
    back.close()


def test_a_benchmark_stands_while_the_same_solver_and_config_run():
    problem = conv_problem((2, 64, 28, 28), (64, 64, 3, 3), padding=1)
    from bench.contenders import plain

    plan = select(problem, "triton")
    record = {"contender": "gpuconv", "solver": plan.solver.id, "config": plain(plan.config)}
    assert _stands(problem, record)
    assert not _stands(problem, record | {"config": {"BLOCK_M": 1}})
    assert not _stands(problem, record | {"solver": "triton.conv.fprop.another"})
    assert _stands(problem, {"contender": "torch_contiguous", "status": "ok"})


@pytest.fixture
def stages(monkeypatch):
    """Return what ran, and whether it succeeds; two keys in parity and one in the benchmark that may not stand."""
    ran, works = [], {"good": True, "bad": False, "other": True}

    def made(key: str):
        def run():
            ran.append(key)
            if not works[key]:
                raise RuntimeError("no")
            return {"status": "ok"}

        return run

    stands = {"other": True}
    only_stages(
        monkeypatch,
        stage(lambda _: [item("good", made("good")), item("bad", made("bad"))]),
        stage(lambda _: [item("other", made("other"), stands=lambda record: stands["other"])], "benchmark"),
    )
    return ran, works, stands


def test_what_is_recorded_is_not_done_again_unless_it_no_longer_stands(tmp_path, stages):
    ran, _, stands = stages
    for session, expected in (("first", ["good", "bad", "other"]), ("second", []), ("third", ["other"])):
        stands["other"] = session != "third"
        ran.clear()
        work(options_for(tmp_path, "--stage", "parity", "benchmark", session=session))
        assert ran == expected, session


def test_only_what_failed_is_done_and_once(tmp_path, stages):
    ran, works, _ = stages
    options = options_for(tmp_path, "--stage", "parity", "benchmark")
    work(options)
    for session, fixed in (("second", False), ("third", True), ("fourth", True)):
        works["bad"] = fixed
        ran.clear()
        again = options_for(tmp_path, "--stage", "parity", "benchmark", "--resume", "--only", "failed", session=session)
        work(again)
        work(again)  # the next worker of the same command
        assert ran == (["bad"] if session != "fourth" else []), session
    assert [record["status"] for record in records(options) if record["key"] == "bad"] == ["error", "error", "ok"]


def test_only_failed_needs_a_run(capsys):
    with pytest.raises(SystemExit):
        arguments(["--only", "failed"])
    assert "--resume" in capsys.readouterr().err


def test_resuming_brings_results_and_configs_from_another_machine(tmp_path):
    brought = tmp_path / "brought"
    brought.mkdir()
    fill(brought)
    (brought / "tuned.json").write_text("{}")
    (brought / "summary.txt").write_text("old")
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json.123.tmp").write_text("left over by a run that was killed")
    options = arguments(["--out", str(out), "--resume", str(brought)])
    prepare(options)
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "tuned.json"} <= set(OUTPUTS)
    assert (out / "results.jsonl").read_bytes() == (brought / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="which one"):
        prepare(options)
    with pytest.raises(SystemExit, match="has no results"):
        prepare(arguments(["--out", str(out), "--resume", str(tmp_path / "nowhere")]))


def test_environments_say_which_commit_made_what(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_COMMIT", "abc1234")
    fill(tmp_path)
    for known, commit in ((KNOWN, "one"), (KNOWN, "unsaid"), (FIXED, "two"), (KNOWN, "three")):
        store = Store(tmp_path, "a", known, commit)
        environment.note(store, lambda commit=commit: {"commit": commit, "gpu": "g"})
        store.close()
    about, store = environment.noted(tmp_path)
    assert about["commits"] == ["one", "two", "three"] and about["commit"] == "three" and store.known == KNOWN
    assert len(store.current()) == 9 + 2  # each environment once
    store.close()
    assert environment.noted(tmp_path / "empty") is None
    assert environment.environment("cpu")["commit"] == "abc1234"


def test_workers_do_not_ask_for_clocks_and_commits(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("a process for every worker")

    monkeypatch.setattr(environment.subprocess, "run", asked)
    short = environment.environment("cpu", whole=False)
    monkeypatch.undo()
    assert environment.fingerprint(short) == environment.fingerprint(environment.environment("cpu"))


def test_the_fingerprint_is_the_gpu_s_and_the_libraries_not_the_sources():
    about = {"gpu": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "cupy": "14", "cudnn": 9, "method": 1}
    same = environment.fingerprint(about)
    assert same == environment.fingerprint(about | {"commit": "x", "host": "y", "state": {"clocks.sm": "1"}})
    for name in ("gpu", "torch", "triton", "cupy", "cudnn", "method"):
        assert environment.fingerprint(about | {name: "another"}) != same


def test_records_say_their_session_and_sources(tmp_path):
    fill(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["session"] for line in lines} == {"first"}
    assert [line["sources"] for line in lines] == ["", "f-1", "w-1", "f-1", "all-1", "", "w-1", "all-1", "all-1"]
