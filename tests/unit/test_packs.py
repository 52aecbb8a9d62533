"""Packs without a GPU and without a compiler: what a launch is known by, where packs lie, and the command."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="kernels of packs take torch tensors")
pytest.importorskip("typer", reason="the command line needs typer")

import torch
from typer.testing import CliRunner

import gpuconv
from bench.cases import all_cases
from gpuconv.cli.main import app
from gpuconv.config import pack_folders
from gpuconv.costs import files
from gpuconv.packing import gpus_of, launches_of
from gpuconv.packs import search
from gpuconv.packs.identity import KernelReference, TypeName, described, key_of, sources_hash
from gpuconv.packs.index import (
    CudaEntry,
    Entry,
    Index,
    PackError,
    Place,
    parse_index,
    read_cubin,
    read_index,
    write_pack,
)

KERNELS = Path(gpuconv.__file__).parents[1] / "kernels" / "tl"
HASH = "ab" * 32
PLACE = Place("cd" * 32, 0, 4, 4)


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("GPUCONV_PACKS", raising=False)
    files._warned.clear()
    search.forget()
    yield
    search.forget()


def entry(**changed):
    values = {
        "key": HASH, "arch": "sm_90a", "kernel": "conv.fprop:_k", "solver": "triton.conv.fprop.implicit_gemm",
        "name": "_k", "constants": {"C": 3}, "parameters": (("x_ptr", "*fp16", True), ("n", "i32", False)), "warps": 4,
        "shared": 0, "cluster": (1, 1, 1), "tensor_maps": (), "registers": 32, "stack": 0, "cubin": HASH,
    }  # fmt: skip
    return Entry(**(values | changed))


# what a launch is known by


def _kernels():
    for path in KERNELS.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            decorated = isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
            if decorated:
                yield path, node


def test_constants_of_kernels_are_in_capitals_and_nothing_else_is():
    """So that a launch is described without reading a kernel's source."""
    count = 0
    for path, node in _kernels():
        for argument in node.args.args:
            constant = argument.annotation is not None and "constexpr" in ast.unparse(argument.annotation)
            assert constant == argument.arg.isupper(), f"{path.name}: {node.name}: {argument.arg}"
        count += 1
    assert count >= 25


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("C", 3, ["constexpr", 3]),
        ("EVEN", False, ["constexpr", False]),
        ("ACC_DTYPE", TypeName("float32"), ["constexpr", "tl.float32"]),
        ("bias_ptr", None, ["constexpr", None]),
        ("n", 1, ["constexpr", 1]),
        ("n", 0, ["i32", True]),
        ("n", 48, ["i32", True]),
        ("n", 47, ["i32", False]),
        ("n", -16, ["i32", True]),
        ("n", 2**31 - 1, ["i32", False]),
        ("n", 2**31, ["i64", True]),
        ("n", -(2**31), ["i32", True]),
        ("norm", 1.0, ["fp32", False]),
        ("x_ptr", torch.zeros(32, dtype=torch.bfloat16), ["*bf16", True]),
        ("x_ptr", torch.zeros(32, dtype=torch.bfloat16)[1:], ["*bf16", False]),
        ("x_ptr", torch.zeros(32, dtype=torch.uint8), ["*u8", True]),
    ],
)  # fmt: skip
def test_arguments_are_described_as_triton_specialises_them(name, value, expected):
    assert described(name, value) == expected


def test_what_no_kernel_takes_is_refused():
    with pytest.raises(TypeError, match="argument n: kernels take tensors, integers and floats, but got True"):
        described("n", True)


def test_keys_differ_by_everything_that_the_compiler_sees():
    kernel, options = KernelReference("conv.fprop", "_k"), {"num_warps": 4}
    arguments = {"x_ptr": torch.zeros(16), "n": 32, "C": 3}
    key = key_of(kernel, arguments, options)[0]
    assert key == key_of(kernel, arguments | {"n": 64}, options)[0]
    others = [
        key_of(KernelReference("conv.fprop", "_other"), arguments, options),
        key_of(kernel, arguments | {"n": 33}, options),
        key_of(kernel, arguments | {"C": 4}, options),
        key_of(kernel, arguments | {"x_ptr": torch.zeros(16)[1:]}, options),
        key_of(kernel, arguments, {"num_warps": 8}),
    ]
    assert len({key, *(other for other, _ in others)}) == len(others) + 1


def test_the_launches_of_a_network_are_planned_for_each_gpu():
    problems = [case.problem for case in all_cases(["resnet50"])]
    by_gpu = {gpu.name: launches_of(problems, gpu) for gpu in (*gpus_of("sm_90"), *gpus_of("sm_80"))}
    assert list(by_gpu) == ["H100", "H200", "A100"] and all(len(found) > 80 for found in by_gpu.values())
    solvers = {launch.solver for launch in by_gpu["H200"].values()}
    assert {"triton.conv.fprop.implicit_gemm", "triton.conv.wgrad.split_k", "triton.pool.max.fprop.tiled"} <= solvers
    assert by_gpu["A100"].keys() != by_gpu["H200"].keys()


@pytest.mark.parametrize("arch", ("90", "sm90", "sm_x", "sm_70", ""))
def test_an_architecture_that_is_none_is_refused(arch):
    with pytest.raises(ValueError, match="arch"):
        gpus_of(arch)


# the index


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 0), True), ("sm_80", (8, 6), True), ("sm_80", (9, 0), False), ("sm_86", (8, 0), False),
        ("sm_90", (9, 0), True), ("sm_90a", (9, 0), True), ("sm_90a", (9, 1), False), ("sm_100a", (10, 0), True),
        ("sm_100a", (10, 3), False), ("sm_120", (12, 0), True),
    ],
)  # fmt: skip
def test_a_cubin_runs_on_gpus_of_its_architecture(arch, capability, runs):
    assert entry(arch=arch).runs_on(capability) is runs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"key": "../x"}, "entry 0: key is '../x'"),
        ({"arch": "gfx90a"}, "entry 0: arch is 'gfx90a'"),
        ({"kernel": "os:system; rm"}, "entry 0: kernel is"),
        ({"name": "a b"}, "entry 0: name is 'a b'"),
        ({"warps": 64}, "entry 0: warps must be 0 to 32, not 64"),
        ({"warps": True}, "entry 0: warps must be"),
        ({"shared": -1}, "entry 0: shared must be"),
        ({"cluster": (1, 1)}, "entry 0: cluster is"),
        ({"parameters": (("x", "*fp16"),)}, "entry 0: a parameter is"),
        ({"parameters": (("x", "struct", True),)}, "entry 0: a type is 'struct'"),
        ({"parameters": (("x", "i32", 1),)}, "entry 0: a parameter is"),
        ({"cubin": "cd" * 32}, "entry 0: its cubin is not listed"),
        ({"constants": []}, "entry 0: constants is no object"),
    ],
)  # fmt: skip
def test_an_index_is_read_as_data_and_trusted_in_nothing(changed, message):
    data = json.loads(json.dumps(Index("0" * 64, {}, {HASH: PLACE}, (entry(**changed),)).to_json()))
    with pytest.raises(PackError, match=message.replace("(", r"\(")):
        parse_index(data)


def test_an_index_is_what_was_written(tmp_path):
    index = Index("0" * 64, {"triton": "3.9.0"}, {HASH: PLACE}, (entry(), entry(arch="sm_80")))
    write_pack(tmp_path / "pack", index, {})
    found = read_index(tmp_path / "pack")
    assert sorted(found.entries, key=lambda e: e.arch) == sorted(index.entries, key=lambda e: e.arch)
    assert (found.sources, found.versions, found.cubins) == (index.sources, index.versions, index.cubins)


def cuda_entry(**changed):
    values = {
        "key": HASH, "arch": "sm_90", "source": "pool_max", "kernel": "pool::kernel<float, 2, true>", "name": "_Z1k",
        "registers": 40, "stack": 0, "cubin": HASH,
    }  # fmt: skip
    return CudaEntry(**(values | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "../x"}, "CUDA entry 0: source is '../x'"),
        ({"kernel": "k(); system"}, "CUDA entry 0: kernel is"),
        ({"name": "a b"}, "CUDA entry 0: name is"),
        ({"registers": -1}, "CUDA entry 0: registers must be"),
        ({"cubin": "ef" * 32}, "CUDA entry 0: its cubin is not listed"),
    ],
)
def test_kernels_of_cuda_are_read_as_data(changed, message):
    data = json.loads(json.dumps(Index("0" * 64, {}, {HASH: PLACE}, (), (cuda_entry(),)).to_json()))
    assert parse_index(data).cuda == (cuda_entry(),)
    data["cuda"][0] |= changed
    with pytest.raises(PackError, match=message.replace("(", r"\(")):
        parse_index(data)


@pytest.mark.parametrize(
    "place", [["x", 0, 4, 4], ["cd" * 32, -1, 4, 4], ["cd" * 32, 0, 4], {}, ["cd" * 32, 0, 1 << 40, 4]]
)
def test_places_of_cubins_are_read_as_data(place):
    data = json.loads(json.dumps(Index("0" * 64, {}, {HASH: PLACE}, (entry(),)).to_json()))
    data["cubins"][HASH] = place
    with pytest.raises(PackError):
        parse_index(data)


def test_cubins_of_a_kernel_lie_together_and_come_out_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuconv.packs.index._BUNDLE", 250)
    contents = [b"\x7fELF" + bytes([number]) * 96 for number in range(5)]
    cubins = {hashlib.sha256(content).hexdigest(): content for content in contents}
    entries = [entry(cubin=hash, key=f"{place:064x}") for place, hash in enumerate(cubins)]
    entries[4] = entry(cubin=entries[4].cubin, kernel="conv.dgrad:_k")
    entries.append(entry(cubin=entries[0].cubin, key="f" * 64))  # two launches, one cubin
    write_pack(tmp_path, Index("0" * 64, {}, {}, tuple(entries)), cubins)
    index = read_index(tmp_path)
    bundles = [index.cubins[entry.cubin].bundle for entry in entries[:5]]
    assert len(set(bundles)) == 3 == len(list((tmp_path / "cubins").iterdir())) and bundles[4] not in bundles[:4]
    assert {hash: read_cubin(tmp_path, index, hash) for hash in cubins} == cubins
    write_pack(tmp_path, Index("0" * 64, {}, {}, tuple(entries[4:5])), cubins)
    assert len(list((tmp_path / "cubins").iterdir())) == 1


def test_a_large_index_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "index.json").write_text("[" * 1000)
    monkeypatch.setattr("gpuconv.packs.index._MOST_INDEX", 999)
    with pytest.raises(PackError, match=r"index.json has 1,000 bytes, 999 are the most"):
        read_index(tmp_path)


# where packs are


def test_nothing_is_read_from_the_current_folder(tmp_path, monkeypatch):
    write_pack(tmp_path, Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    monkeypatch.chdir(tmp_path)
    assert pack_folders() == ((), False) and search.packs() == ()
    monkeypatch.setenv("GPUCONV_PACKS", ":")
    search.forget()
    assert search.packs() == ()


def test_packs_of_the_users_data_folder_are_found(tmp_path):
    write_pack(
        tmp_path / "data" / "gpuconv" / "packs" / "mine", Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {}
    )
    (found,) = search.packs()
    assert found.origin == "user's data folder" and found.reason is None
    assert search.any_packs() and search.any_packs((9, 0)) and not search.any_packs((8, 0))


def test_a_sticky_folder_above_a_pack_keeps_it(tmp_path, monkeypatch):
    """As /tmp is: others may put things into it, and not take away or rename what is not theirs."""
    shared = tmp_path / "shared"
    write_pack(shared / "pack", Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    monkeypatch.setenv("GPUCONV_PACKS", str(shared / "pack"))
    for mode, reason in ((0o1777, None), (0o777, "shared may be written by others (drwxrwxrwx)")):
        shared.chmod(mode)
        search.forget()
        (found,) = search.packs()
        assert found.reason is None if reason is None else found.reason.startswith(reason)


def test_installed_packs_are_found_without_running_them(tmp_path, monkeypatch):
    package = tmp_path / "gpuconv_pack_example"
    write_pack(package, Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    (package / "__init__.py").write_text("raise SystemExit('it ran')")
    info = tmp_path / "gpuconv_pack_example-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpuconv-pack-example\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gpuconv.packs]\nexample = gpuconv_pack_example\nother = elsewhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = search.packs()
    assert (found.origin, found.reason) == ("installed as gpuconv_pack_example", None)


# the command


def run(*arguments):
    return CliRunner().invoke(app, ["pack", *map(str, arguments)])


def test_what_is_missing_is_said(tmp_path):
    done = run("--arch", "sm_90")
    assert done.exit_code == 2 and "give --arch, --out, and --problems" in done.output
    done = run("--list", tmp_path)
    assert done.exit_code == 2 and "error: index.json cannot be read: No such file" in done.output
    done = run("--arch", "sm_3x", "--workload", "resnet50", "--out", tmp_path)
    assert done.exit_code == 2 and "arch must be a GPU architecture such as sm_90, but got 'sm_3x'" in done.output


def test_a_pack_is_listed_and_checked(tmp_path):
    cubin = b"\x7fELF" + bytes(60)
    digest = hashlib.sha256(cubin).hexdigest()
    index = Index(sources_hash(), {"triton": "3.9.0"}, {}, (entry(cubin=digest),))
    write_pack(tmp_path / "pack", index, {digest: cubin})
    listed = run("--list", tmp_path / "pack").output
    assert "sm_90a" in listed and "1 launches, 1 cubins" in listed and "triton 3.9.0" in listed
    assert run("--verify", tmp_path / "pack").exit_code == 0
    (path,) = (tmp_path / "pack" / "cubins").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    done = run("--verify", tmp_path / "pack")
    assert done.exit_code == 2 and "is damaged" in done.output


def test_info_shows_packs(tmp_path, monkeypatch):
    write_pack(tmp_path / "good", Index(sources_hash(), {}, {HASH: PLACE}, (entry(),)), {})
    write_pack(tmp_path / "bad", Index("0" * 64, {}, {}, ()), {})
    monkeypatch.setenv("GPUCONV_PACKS", f"{tmp_path / 'good'}:{tmp_path / 'bad'}")
    search.forget()
    said = CliRunner().invoke(app, ["info"]).stdout
    assert f"{tmp_path / 'good'} (GPUCONV_PACKS): 1 launches for sm_90a" in said
    assert f"{tmp_path / 'bad'} (GPUCONV_PACKS): ignored: was made of other kernel sources" in said
