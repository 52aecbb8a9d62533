"""Packs on disk: what an index may not say, folders that are none, a build that is killed, and two at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="kernels of packs take torch tensors")
pytest.importorskip("typer", reason="the command line needs typer")

from test_packs import HASH, PLACE, cuda_entry, entry, nothing_found, run  # noqa: F401  (the last but one: a fixture)

from gpuconv.backends.cupy.backend import BACKEND as CUPY
from gpuconv.config import pack_folders, packs_only
from gpuconv.packing import build as packs_build
from gpuconv.packing import build_pack
from gpuconv.packs import index as packs_index
from gpuconv.packs import search
from gpuconv.packs.identity import KernelReference, key_of, sources_hash
from gpuconv.packs.index import Index, PackError, parse_index, read_cubin, read_index, write_pack

# what an index may not say


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameters": (("x", "i31", False),)}, "entry 0: a type is 'i31'"),
        ({"parameters": (("x", "*abc9", False),)}, "entry 0: a type is"),
        ({"parameters": (("x", ["i32"], False),)}, "entry 0: a type is"),
        ({"parameters": (("x", "i32", False), ("x", "i32", False))}, "entry 0: a name is there twice"),
        ({"parameters": (("C", "i32", False),)}, "entry 0: a name is there twice"),
        ({"warps": 0}, "entry 0: warps are 0"),
        ({"warps": 3}, "entry 0: warps are 3"),
        ({"cluster": (0, 1, 1)}, "entry 0: cluster is"),
    ],
)
def test_no_launch_can_be_made_of_it(changed, message):
    data = json.loads(json.dumps(Index("0" * 64, {}, {HASH: PLACE}, (entry(**changed),)).to_json()))
    with pytest.raises(PackError, match=message):
        parse_index(data)


@pytest.mark.parametrize("kind", ["entries", "cuda"])
def test_an_entry_is_there_once(kind):
    some = {"entries": (entry(), entry())} if kind == "entries" else {"entries": (), "cuda": (cuda_entry(),) * 2}
    data = json.loads(json.dumps(Index("0" * 64, {}, {HASH: PLACE}, **some).to_json()))
    with pytest.raises(PackError, match="an entry is there twice"):
        parse_index(data)


KERNEL = KernelReference("conv.fprop", "_k")


def _packed(folder, arguments, **changed):
    key, _ = key_of(KERNEL, arguments, {})
    write_pack(folder, Index(sources_hash(), {}, {HASH: PLACE}, (entry(key=key, **changed),)), {})


@pytest.mark.parametrize(
    "changed",
    [
        {"parameters": (("m", "i32", False), ("k", "i32", False))},
        {"parameters": (("n", "i64", False), ("k", "i32", False))},
        {"parameters": (("k", "i32", False),)},
        {"constants": {"C": 4, "one": 1}},
        {"constants": {"C": True, "one": 1}},
    ],
)
def test_an_entry_that_is_not_of_its_key_is_not_launched(tmp_path, monkeypatch, caplog, changed):
    arguments = {"C": 1, "n": 47, "k": 48, "one": 1}
    told = {"constants": {"C": 1, "one": 1}, "parameters": (("n", "i32", False), ("k", "i32", False))}
    _packed(tmp_path / "right", arguments, **told)
    _packed(tmp_path / "wrong", arguments, **(told | changed))
    monkeypatch.setenv("GPUCONV_PACKS", f"{tmp_path / 'wrong'}{os.pathsep}{tmp_path / 'right'}")
    for _ in range(2):
        (found,) = search.look_up(KERNEL, arguments, {}, (9, 0))
        assert found.pack.folder == tmp_path / "right"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith("wrong: the parameters of _k are not those of its key")


def test_of_two_architectures_the_nearer_is_asked_first(tmp_path, monkeypatch):
    key, _ = key_of(KERNEL, {"n": 47}, {})
    told = {"key": key, "constants": {}, "parameters": (("n", "i32", False),)}
    entries = tuple(entry(arch=arch, **told) for arch in ("sm_80", "sm_86", "sm_89"))
    write_pack(tmp_path, Index(sources_hash(), {}, {HASH: PLACE}, entries), {})
    monkeypatch.setenv("GPUCONV_PACKS", str(tmp_path))
    for capability, expected in (((8, 0), [80]), ((8, 6), [86, 80]), ((8, 9), [89, 86, 80]), ((9, 0), [])):
        found = search.look_up(KERNEL, {"n": 47}, {}, capability)
        assert [each.entry.arch for each in found] == [f"sm_{number}" for number in expected]


def test_what_cannot_be_read_is_not_written(tmp_path, monkeypatch):
    write_pack(tmp_path, *_content(1))
    index, cubins = _content(2)
    for wrong in (replace(index.entries[0], name="a b"), replace(index.entries[0], warps=5)):
        with pytest.raises(PackError, match="entry 0"):
            write_pack(tmp_path, replace(index, entries=(wrong,)), cubins)
    monkeypatch.setattr("gpuconv.packs.index._MOST_INDEX", 500)
    with pytest.raises(PackError, match="500 are the most"):
        write_pack(tmp_path, index, cubins)
    monkeypatch.undo()
    assert _whole(tmp_path) == "1"


def test_every_kernel_of_cuda_can_stand_in_an_index():
    for solver in CUPY.solvers():
        for source, kernel in solver.instantiations():
            data = Index("0" * 64, {}, {HASH: PLACE}, (), (cuda_entry(source=source, kernel=kernel),)).to_json()
            assert parse_index(json.loads(json.dumps(data))).cuda[0].kernel == kernel


# folders


def test_no_code_of_an_installed_pack_runs(tmp_path, monkeypatch, caplog):
    """To find a module in a package is to import the package; one that is not there raises."""
    package = tmp_path / "gpuconv_pack_outer"
    write_pack(package / "inner", *_content(1))
    (package / "__init__.py").write_text("raise SystemExit('it ran')")
    info = tmp_path / "gpuconv_pack_outer-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpuconv-pack-outer\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[gpuconv.packs]\none = gpuconv_pack_outer.inner\ntwo = gpuconv_pack_missing.inner\nthree = gpuconv_pack_none\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert search.packs() == ()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("name", ["GPUCONV_PACKS_ONLY", "GPUCONV_PACKS_TRUST"])
@pytest.mark.parametrize("value", ["true", "yes", "2", " 1"])
def test_a_switch_is_0_or_1(monkeypatch, name, value):
    """Who writes "true" means it, and would wait for a compiler."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"environment variable {name} must be 0 or 1, but got {value!r}"):
        packs_only() if name == "GPUCONV_PACKS_ONLY" else pack_folders()


def test_links_that_lead_nowhere_are_no_packs(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("GPUCONV_PACKS", str(tmp_path / "loop"))
    (found,) = search.packs()
    assert found.index is None and "cannot be read" in found.reason


def test_a_user_without_a_home_has_no_packs_there(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    search.forget()
    assert search.packs() == () and not search.any_packs()


def test_what_was_looked_at_is_what_is_read(tmp_path, monkeypatch):
    """A link that is turned after the look at its target leads nowhere else."""
    write_pack(tmp_path / "good", Index(sources_hash(), {"good": "1"}, {HASH: PLACE}, (entry(),)), {})
    write_pack(tmp_path / "other", Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    link, distrust = tmp_path / "link", search._distrust
    link.symlink_to(tmp_path / "good")

    def turned(folder, installed):
        reason = distrust(folder, installed)
        link.unlink()
        link.symlink_to(tmp_path / "other")
        return reason

    monkeypatch.setattr(search, "_distrust", turned)
    monkeypatch.setenv("GPUCONV_PACKS", str(link))
    (found,) = search.packs()
    assert found.index.versions == {"good": "1"}


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    write_pack(tmp_path / "a-relative-pack", Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    monkeypatch.setenv("GPUCONV_PACKS", "a-relative-pack")
    monkeypatch.chdir(tmp_path)
    before = search.packs()
    assert len(before) == 1 and before[0].index is not None
    monkeypatch.chdir("/")
    assert search.packs() is before


@pytest.mark.parametrize("kind", ["a folder", "a pipe"])
@pytest.mark.parametrize("place", ["index.json", "cubin"])
def test_what_is_no_file_is_not_read(tmp_path, kind, place):
    cubin = b"\x7fELF" + bytes(60)
    digest = hashlib.sha256(cubin).hexdigest()
    write_pack(tmp_path, Index(sources_hash(), {}, {}, (entry(cubin=digest),)), {digest: cubin})
    index = read_index(tmp_path)
    path = tmp_path / "index.json" if place == "index.json" else next((tmp_path / "cubins").iterdir())
    path.unlink()
    path.mkdir() if kind == "a folder" else os.mkfifo(path)
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(PackError, match=f"{path.name} is no file"):
        read_index(tmp_path) if place == "index.json" else read_cubin(tmp_path, index, digest)
    assert not handles or len(os.listdir("/proc/self/fd")) == handles


# writing


def _content(number):
    cubin = b"\x7fELF" + bytes([number]) * 60
    digest = hashlib.sha256(cubin).hexdigest()
    return Index(sources_hash(), {"n": str(number)}, {}, (entry(cubin=digest),)), {digest: cubin}


def _whole(folder):
    """Return which pack is there; all its cubins are."""
    index = read_index(folder)
    for digest in index.cubins:
        read_cubin(folder, index, digest)
    return index.versions["n"]


class KilledError(BaseException):
    """Stands in for the end of the process."""


def test_a_build_that_is_killed_leaves_the_old_pack_or_the_new_one(tmp_path, monkeypatch):
    """Killed at every step: before and after each file that is written, put in its place, or taken away."""
    steps = 0

    def step(original):
        def counted(*args, **kwargs):
            nonlocal steps
            steps -= 1
            if steps == 0:
                raise KilledError
            return original(*args, **kwargs)

        return counted

    seen = []
    for place in itertools.count(1):
        folder = tmp_path / str(place)
        write_pack(folder, *_content(1))
        steps = place
        with monkeypatch.context() as patch:
            patch.setattr(packs_index.os, "replace", step(os.replace))
            for name in ("unlink", "write_bytes"):
                patch.setattr(Path, name, step(getattr(Path, name)))
            try:
                write_pack(folder, *_content(2))
            except KilledError:
                seen.append(_whole(folder))
            else:
                break
        write_pack(folder, *_content(3))  # the next one takes away what the killed one left
        left = [path.name for path in folder.rglob("*") if path.is_file()]
        assert _whole(folder) == "3" and len(left) == 2
    assert seen == ["1"] * 4 + ["2"]


def test_two_builds_into_one_folder_leave_one_whole_pack(tmp_path):
    failures = []

    def build(number):
        try:
            for _ in range(8):
                write_pack(tmp_path, *_content(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=build, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert _whole(tmp_path) in "0123" and len(list((tmp_path / "cubins").iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_compiled(tmp_path, monkeypatch):
    def compiles(*args):
        raise AssertionError("it compiles")

    task = packs_build._Task((("sm_90", HASH),), print, (), None)
    monkeypatch.setattr(packs_build, "_of_problems", lambda wanted, archs: ([task], {}))
    monkeypatch.setattr(packs_build, "_compiled", compiles)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        build_pack({"first": []}, ["sm_90"], tmp_path / "file" / "pack")


def test_a_launch_that_fails_in_any_way_does_not_take_the_others_along(tmp_path, monkeypatch):
    (index, cubins), failing = _content(1), packs_build._Task((("sm_90", "cd" * 32),), divmod, (1, 0), None)
    good = packs_build._Task((("sm_90", HASH),), tuple, ((list(index.entries), next(iter(cubins.values()))),), None)
    monkeypatch.setattr(packs_build, "_of_problems", lambda wanted, archs: ([failing, good], {}))
    built = build_pack({"first": []}, ["sm_90"], tmp_path / "pack")
    assert (built.entries, built.compiled) == (1, 1) and "ZeroDivisionError" in built.failures[0]
    assert len(read_index(tmp_path / "pack").entries) == 1


def test_a_build_of_which_nothing_succeeds_leaves_the_pack_alone(tmp_path, monkeypatch):
    write_pack(tmp_path / "pack", *_content(1))
    failing = packs_build._Task((("sm_99", "cd" * 32),), divmod, (1, 0), None)
    monkeypatch.setattr(packs_build, "_of_problems", lambda wanted, archs: ([failing], {}))
    with pytest.raises(RuntimeError, match=r"nothing could be compiled, .* stays as it was; .*ZeroDivisionError"):
        build_pack({"first": []}, ["sm_99"], tmp_path / "pack")
    assert _whole(tmp_path / "pack") == "1"


# the command


def test_an_index_is_listed_as_it_stands(tmp_path):
    index, cubins = _content(1)
    write_pack(tmp_path / "a [b]", replace(index, versions={"[/red]": "[bold]1"}), cubins)
    done = run("--list", tmp_path / "a [b]")
    assert done.exit_code == 0 and "[/red] [bold]1" in done.output and "a [b]" in done.output
