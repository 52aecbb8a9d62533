"""A report from a pack: nothing is compiled, records say where kernels come from, what lacks is asked again."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from report_runs import item, only_stages, options_for, records, stage, work

from bench import sanitizer, tuning
from bench.cases import all_cases
from bench.gpu_report import STAGE_NAMES, arguments, take_pack
from bench.items import Context
from bench.stages import STAGES
from bench.summary import report_text
from bench.supervise import worker_command
from gpuconv.packs import search
from gpuconv.packs.identity import sources_hash
from gpuconv.packs.index import Index, write_pack
from gpuconv.packs.origins import NOT_PACKED, NotPackedError, note, refuse_to_compile
from gpuconv.tuning.search import Record, Timing


def launches(*packed):
    def run():
        for each in packed:
            note(each)
        return {"status": "ok"}

    return run


def test_records_say_how_many_launches_came_from_packs(tmp_path, monkeypatch):
    cases = {"all": (True, True), "some": (True, False), "none": ()}
    only_stages(monkeypatch, stage(lambda _: [item(key, launches(*packed)) for key, packed in cases.items()]))
    options = options_for(tmp_path, "--stage", "parity")
    assert work(options) == 0
    found = {record["key"]: record.get("launches") for record in records(options) if record["stage"] == "parity"}
    assert found == {"all": {"from_packs": 2, "of": 2}, "some": {"from_packs": 1, "of": 2}, "none": None}
    about = {"gpuconv": "", "gpu": "", "torch": "", "triton": "", "dry_run": False}
    assert "records whose kernels all came from packs: 1 of 2" in report_text(about, records(options), [])


def test_what_no_pack_has_is_not_run_and_asked_again_by_the_next_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCONV_PACKS_ONLY", "1")
    ran = []

    def run():
        ran.append("run")
        refuse_to_compile("conv2d: a kernel")
        return {"status": "ok"}

    only_stages(monkeypatch, stage(lambda _: [item("one", run)]))
    options = options_for(tmp_path, "--stage", "parity")
    work(options)
    (record,) = [record for record in records(options) if record["stage"] == "parity"]
    assert record["status"] == "not run" and "conv2d: a kernel: no pack has this launch" in record["why"]
    work(options)
    assert len(ran) == 1
    monkeypatch.delenv("GPUCONV_PACKS_ONLY")
    work(options_for(tmp_path, "--stage", "parity", session="second"))
    assert len(ran) == 2
    assert [r["status"] for r in records(options) if r["stage"] == "parity"] == ["not run", "ok"]


def test_what_a_pack_had_in_part_is_done_again_without_it(tmp_path, monkeypatch):
    """Tuning among the configs that a pack has has not seen the others."""
    pack, ran = ("--pack", str(tmp_path)), []

    def run():
        ran.append("run")
        return {"status": "ok"} | ({"not_packed": 3} if len(ran) == 1 else {})

    only_stages(monkeypatch, stage(lambda _: [item("one", run)]))
    for session, words, runs in (("1", pack, 1), ("2", pack, 1), ("3", (), 2), ("4", pack, 2), ("5", (), 2)):
        work(options_for(tmp_path, "--stage", "parity", *words, session=session))
        assert len(ran) == runs


@pytest.mark.parametrize("timed", [False, True])
def test_tuning_says_which_configs_no_pack_has(tmp_path, monkeypatch, timed):
    why = (
        "NotPackedError: conv2d: conv.fprop:k: no pack has this launch, and GPUCONV_PACKS_ONLY=1 forbids to compile it"
    )
    lacking = [Timing("solver", {}, not place, 1.0, None, why) for place in range(3)]
    timings = (*lacking, Timing("solver", {}, False, 1.0, 5.0)) if timed else tuple(lacking)
    (problem,) = (case.problem for case in all_cases(["resnet50"])[:1])
    monkeypatch.setattr("gpuconv.tuning.search.tune", lambda *_, **__: [Record(problem, "H200", timings, False, 1.0)])
    context = SimpleNamespace(seconds_left=lambda: 60.0, dry=False, out=tmp_path)
    record = tuning._tune(problem, context)
    assert record["not_packed"] == 3
    assert record["status"] == ("ok" if timed else "not run") and (timed or record["why"] == why)


def test_a_sanitizer_that_saw_no_launch_for_want_of_kernels_found_nothing_wrong():
    refused = "print('triton.a | x: not run: conv2d: k: no pack has this launch, and so on')\n"
    said = "print('triton.a | y: launched')\n"
    command = [sys.executable, "-c"]
    record = sanitizer.sanitize("memcheck", [*command, refused * 2], 20)
    assert (record["status"], record["not_packed"]) == ("not run", 2) and NOT_PACKED in record["why"]
    record = sanitizer.sanitize("memcheck", [*command, refused + said], 20)
    assert (record["status"], record["not_packed"]) == ("ok", 1)
    assert "not_packed" not in sanitizer.sanitize("memcheck", [*command, said], 20)


def test_nothing_is_refused_where_compiling_is_allowed(monkeypatch):
    monkeypatch.delenv("GPUCONV_PACKS_ONLY", raising=False)
    refuse_to_compile("anything")
    monkeypatch.setenv("GPUCONV_PACKS_ONLY", "1")
    with pytest.raises(NotPackedError, match=r"^anything: no pack has this launch, and GPUCONV_PACKS_ONLY=1 forbids"):
        refuse_to_compile("anything")


def test_a_report_from_a_pack_has_no_stage_that_compiles(tmp_path):
    options = arguments(["--pack", str(tmp_path), "--out", str(tmp_path)])
    assert list(options.stage) == [name for name in STAGE_NAMES if name != "compile"] and options.pack.is_absolute()
    options.scratch = tmp_path
    command = worker_command(options, ["parity"], "0/1", 0.0)
    assert command[command.index("--pack") + 1] == str(options.pack)
    assert arguments([]).pack is None and "--pack" not in worker_command(options_for(tmp_path), ["parity"], "0/1", 0.0)


def test_sweeps_and_what_compiles_by_itself_are_left_out(monkeypatch):
    packed = Context(None, None, None, None, packed=True)
    (only,) = STAGES["micro"].items(packed)
    assert dict(next(iter(only.run(only.keys))))["status"] == "not run"
    seen = []
    monkeypatch.setattr("bench.stages.benchmark_items", lambda cases, clock, names: seen.append(names) or [])
    monkeypatch.setattr(Context, "cases", lambda self: [])
    list(STAGES["benchmark"].items(packed))
    assert seen == [("gpuconv", "torch_channels_last", "torch_contiguous", "gpuconv_cupy")]


@pytest.fixture
def environment(monkeypatch):
    for name in ("GPUCONV_PACKS", "GPUCONV_PACKS_ONLY", "GPUCONV_PACKS_TRUST"):
        monkeypatch.setenv(name, "")
    search.forget()
    yield
    search.forget()


def test_a_pack_is_looked_at_before_anything_runs(tmp_path, environment, capsys):
    folder = tmp_path / "pack"
    with pytest.raises(SystemExit, match=r"pack: index.json cannot be read: No such file"):
        take_pack(folder)
    search.forget()
    write_pack(folder, Index("0" * 64, {}, {}, ()), {})
    with pytest.raises(SystemExit, match="was made of other kernel sources"):
        take_pack(folder)
    search.forget()
    write_pack(folder, Index(sources_hash(), {}, {}, ()), {})
    folder.chmod(0o777)  # a folder that travelled: who names it trusts it
    take_pack(folder)
    search.forget()
    with pytest.raises(SystemExit, match=r"a path with ':' cannot stand in GPUCONV_PACKS"):
        take_pack(tmp_path / "a:b")
    assert "0 launches and kernels come from" in capsys.readouterr().out
