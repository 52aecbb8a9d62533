"""Kernels from packs ask the driver for what Triton's own path asks, byte for byte, and without Triton too."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_alone
from launch_cases import CALLS, HOPPER, NAMED
from stub_gpu import StubGpu, launcher
from test_launch import _observe

from gpuconv import dispatch
from gpuconv.backends.cupy import backend as cupy_backend
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.backends.triton import common, launch
from gpuconv.backends.triton.dry import launches_of_plan
from gpuconv.costs import files
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.packing import build_pack, nvrtc
from gpuconv.packing.compile import compile_entries
from gpuconv.packing.plans import Launch
from gpuconv.packs import driver, search
from gpuconv.packs.identity import key_of, sources_hash
from gpuconv.packs.index import CudaEntry, Entry, Index, write_pack
from gpuconv.packs.origins import NotPackedError, origins
from gpuconv.problem import Problem

Use = Callable[..., None]
LEFT_OUT = ("axis after axis", "unaligned", "unbatched")
"""What names a solver, which planning does not; and pointers and strides that packs are not compiled for."""

REPO = Path(__file__).parents[2]
NAMES = [name for name in CALLS if not any(word in name for word in LEFT_OUT)]


def problems_of(calls: list[Callable[[], Any]]) -> list[Problem]:
    found = []
    for call in calls:
        with dispatch.record_plans() as plans:
            call()
        found += [plan.problem for plan in plans]
    return found


@pytest.fixture(scope="module")
def pack(_gpu: StubGpu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of what the calls launch."""
    folder = tmp_path_factory.mktemp("packs") / "pack"
    named = problems_of([call for _, call in NAMED.values()])
    others = problems_of([CALLS[name][1] for name in NAMES if name not in NAMED])
    built = build_pack({"first": others, "solvers": named}, ["sm_90"], folder, jobs=2)
    assert built.failures == () and built.compiled == built.entries >= 15
    return folder


@pytest.fixture
def use_packs(gpu: StubGpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Return what puts folders into the environment; the stub is told of what is loaded from them."""
    original = driver._function

    def told(found: search.Found, device: int) -> int:
        function = original(found, device)
        if isinstance(found.entry, Entry):
            gpu.declare_sizes(
                function, [size for parameter in found.entry.layout.parameters for size in parameter.sizes] + [8, 8]
            )
        return function

    def use(*folders: Path) -> None:
        monkeypatch.setenv("GPUCONV_PACKS", os.pathsep.join(map(str, folders)))
        forget()

    def forget() -> None:
        files._warned.clear()
        search.forget()
        driver.forget()
        CACHE.clear()

    monkeypatch.setattr(driver, "_function", told)
    monkeypatch.setattr(launch, "capability_of", lambda device: (9, 0))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "nothing here"))
    forget()
    yield use
    forget()


def _without_functions(seen: list[Any]) -> list[Any]:
    return [([(facts[0], *facts[2:]) for facts in launches], shapes) for launches, shapes in seen]


@pytest.mark.parametrize("name", NAMES)
def test_the_driver_is_asked_what_triton_asks(gpu: StubGpu, pack: Path, use_packs: Use, name: str) -> None:
    count, call = CALLS[name]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(pack)
    for kind in ("auto", "python", "native"):
        seen, looked_up = _observe(gpu, call, kind)
        assert looked_up == [0, 0, 0], "Triton was asked for a kernel that the pack has"
        assert len(seen[0][0]) == count
        assert _without_functions(seen) == _without_functions(expected)


@pytest.mark.parametrize("name", ["fprop, unaligned", "avg_pool, unbatched", "max_pool, axis after axis"])
def test_what_a_pack_lacks_goes_through_triton(gpu: StubGpu, pack: Path, use_packs: Use, name: str) -> None:
    count, call = CALLS[name]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(pack)
    seen, looked_up = _observe(gpu, call, "auto")
    assert looked_up == [count, 0, 0] and seen == expected


def test_two_processes_without_triton(gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path) -> None:
    """In processes that cannot import Triton, at the same time: the same launches, nothing written, nothing run."""
    use_packs()
    script = Path(__file__).with_name("without_triton.py")
    env = {**os.environ, "GPUCONV_PACKS": str(pack), "PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])}
    command = [sys.executable, str(script)]
    both = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    found, other = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert found["told"] == other["told"]
    assert found["triton"] == [] and found["wrote"] == [] and found["ran"] == []
    assert found["noticed"] > 0  # cubins are read
    for name, launches in found["told"].items():
        use_packs()
        gpu.reset()
        with launcher("triton"):
            CALLS[name][1]()
        expected = [stub_alone.facts(launched) for launched in gpu.launches()]
        assert launches == [expected] * 3
    assert f"triton.conv.fprop.{'hopper' if HOPPER else 'rolling'}" in found["explained"]
    assert f"from {pack}" in found["explained"]
    assert found["unaligned"].startswith("max_pool2d: no pack has pool.tiled:_pool_fprop_tiled_kernel for this call")
    assert "triton is not installed" in found["lacking"] and "packs lack conv.fprop:" in found["lacking"]


# what is wrong with a pack


def _copy(pack: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pack, tmp_path / "copy"))


# what is not compiled


def test_with_packs_alone_nothing_is_compiled(
    gpu: StubGpu, pack: Path, use_packs: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCONV_PACKS_ONLY", "1")
    use_packs(pack)
    with origins() as found:
        CALLS["fprop"][1]()
    assert found == [True]
    with pytest.raises(
        NotPackedError, match=r"^conv2d: conv\.fprop:\w+: no pack has this launch, and GPUCONV_PACKS_ONLY"
    ):
        CALLS["fprop, unaligned"][1]()
    monkeypatch.delenv("GPUCONV_PACKS_ONLY")
    with origins() as found:
        CALLS["fprop, unaligned"][1]()
    assert found == [False]


# clusters


def test_a_cluster_is_launched_as_triton_launches_it(
    gpu: StubGpu, use_packs: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "launch_options", lambda config: {"num_warps": 4, "num_ctas": 2})
    use_packs()
    expected, _ = _observe(gpu, CALLS["max_pool"][1], "triton")
    assert [launched.cluster for launched in gpu.launches()] == [(2, 1, 1)]
    (told,) = [told for plan in _plans(CALLS["max_pool"][1]) for told in launches_of_plan(plan)]
    key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
    (entry,), cubin = compile_entries(Launch(key, told.kernel, "triton.pool.max", arguments, told.options), "sm_90")
    assert entry.cluster == (2, 1, 1)
    write_pack(tmp_path / "pack", Index(sources_hash(), {}, {}, (entry,)), {entry.cubin: cubin})
    use_packs(tmp_path / "pack")
    for kind in ("auto", "python", "native"):
        seen, looked_up = _observe(gpu, CALLS["max_pool"][1], kind)
        assert looked_up == [0, 0, 0]
        assert _without_functions(seen) == _without_functions(expected)
        assert {(launched.cluster, launched.scheduling) for launched in gpu.launches()} == {((2, 1, 1), 1)}


def test_what_needs_more_tensor_memory_than_there_is_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the assembler makes of it is an empty kernel, which would leave results as they were."""
    (told,) = [told for plan in _plans(CALLS["max_pool"][1]) for told in launches_of_plan(plan)]
    key, arguments = key_of(told.kernel, told.arguments, told.options, aligned=True)
    launch = Launch(key, told.kernel, "triton.pool.max", arguments, told.options)
    for columns, message in ((513, "needs 513 columns of tensor memory, there are 512"), (512, "cuobjdump|REG")):
        compiled = SimpleNamespace(metadata=SimpleNamespace(tmem_size=columns), asm={"cubin": b"", "ptx": ""})
        monkeypatch.setattr("triton.compile", lambda *_, compiled=compiled, **__: compiled)
        with pytest.raises((RuntimeError, subprocess.CalledProcessError), match=message):
            compile_entries(launch, "sm_100")


def _plans(call: Callable[[], Any]) -> list[Any]:
    with dispatch.record_plans() as plans:
        call()
    return list(plans)


# CUDA C++

SOURCE = "pool_unpool"
KERNEL = sorted(
    kernel
    for solver in cupy_backend.BACKEND.solvers()
    for source, kernel in solver.instantiations()
    if source == SOURCE
)[0]


class _Device:
    """CuPy's device, played."""

    id, compute_capability = 0, "90"

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def cuda_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of one kernel of the CuPy backend, beside a CuPy that compiles nothing."""
    release = next((each for each in nvrtc.RELEASES if nvrtc.library(each)), None)
    if release is None:
        pytest.skip("not run: NVRTC is not installed")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        entries, cubin = process.submit(nvrtc.compile_entries, SOURCE, [KERNEL], "sm_90", release).result()
    index = Index(sources_hash(), {}, {}, (), tuple(entries))
    write_pack(tmp_path / "cuda", index, {entries[0].cubin: cubin})
    stream = SimpleNamespace(ptr=0x77)
    cuda = SimpleNamespace(Device=_Device, get_current_stream=lambda: stream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawModule=_no_compiler))
    return tmp_path / "cuda"


def _no_compiler(**_: Any) -> Any:
    raise AssertionError("CuPy was asked to compile")


def test_kernels_of_cuda_come_from_packs(gpu: StubGpu, cuda_pack: Path, use_packs: Use) -> None:
    use_packs(cuda_pack)
    assert not search.any_packs() and search.any_packs((9, 0), CudaEntry) and not search.any_packs((8, 0), CudaEntry)
    params = np.zeros((), np.dtype([("n", np.int64), ("scale", np.float32)], align=True))
    array = SimpleNamespace(data=SimpleNamespace(ptr=0x1234500))
    (found,) = search.packs()[0].entries
    gpu.declare_sizes(driver.load(search.Found(search.packs()[0], found), 0, _Device).function, [8, 8, params.nbytes])
    with origins() as noted:
        cupy_common._Kernel(SOURCE, KERNEL)((7,), (96,), (array, np.zeros((), np.uintp), params))
    (launched,) = gpu.launches()
    assert noted == [True]
    assert (launched.kernel, launched.grid, launched.block) == (found.name, (7, 1, 1), (96, 1, 1))
    assert (launched.stream, launched.shared, launched.cluster) == (0x77, 0, (0, 0, 0))
    assert launched.arguments == ((0x1234500).to_bytes(8, "little"), bytes(8), params.tobytes())


def test_a_cuda_kernel_that_no_pack_has_is_compiled_or_refused(
    gpu: StubGpu, cuda_pack: Path, use_packs: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_packs(cuda_pack)
    with pytest.raises(AssertionError, match="CuPy was asked"):
        cupy_common._Kernel(SOURCE, "another<float>")((1,), (32,), ())
    monkeypatch.setenv("GPUCONV_PACKS_ONLY", "1")
    with pytest.raises(NotPackedError, match=r"^pool_unpool\.cu: another<float>: no pack has this launch"):
        cupy_common._Kernel(SOURCE, "another<float>")((1,), (32,), ())


def test_a_swapped_cubin_of_cuda_is_not_loaded(
    gpu: StubGpu, cuda_pack: Path, use_packs: Use, caplog: pytest.LogCaptureFixture
) -> None:
    _cut(cuda_pack)
    use_packs(cuda_pack)
    with caplog.at_level("WARNING", "gpuconv"), pytest.raises(AssertionError, match="CuPy was asked"):
        cupy_common._Kernel(SOURCE, KERNEL)((1,), (32,), ())
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "is damaged" in warning and "CuPy compiles such kernels" in warning


def _change(pack: Path, **values: Any) -> None:
    path = pack / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _truncate(pack: Path) -> None:
    content = (pack / "index.json").read_bytes()
    (pack / "index.json").write_bytes(content[: len(content) // 2])


def _foreign(pack: Path) -> None:
    index = json.loads((pack / "index.json").read_text())
    _change(pack, entries=[entry | {"arch": "sm_80"} for entry in index["entries"]])


def _leave(pack: Path) -> None:
    index = json.loads((pack / "index.json").read_text())
    _change(pack, entries=[entry | {"cubin": "../../etc/passwd"} for entry in index["entries"]])


def _link(pack: Path) -> None:
    elsewhere = pack.parent / "elsewhere.json"
    (pack / "index.json").rename(elsewhere)
    (pack / "index.json").symlink_to(elsewhere)


IGNORED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated index": (_truncate, "index.json is no JSON"),
    "no index": (lambda pack: (pack / "index.json").unlink(), "cannot be read"),
    "another schema": (lambda pack: _change(pack, schema=99), "has schema 99, this library 2"),
    "other sources": (lambda pack: _change(pack, sources="0" * 64), "made of other kernel sources"),
    "entries of another type": (lambda pack: _change(pack, entries={"a": 1}), "no list of at most"),
    "a path that leaves": (_leave, "entry 0: cubin is '../../etc/passwd'"),
    "a link": (_link, "index.json cannot be read"),
    "others may write": (
        lambda pack: pack.chmod(0o777),
        "may be written by others (drwxrwxrwx); GPUCONV_PACKS_TRUST=1",
    ),
    "others may write what it lies in": (
        lambda pack: pack.parent.chmod(0o775),
        "may be written by others (drwxrwxr-x); GPUCONV_PACKS_TRUST=1",
    ),
    "not there": (lambda pack: shutil.rmtree(pack), "cannot be read: No such file"),
}
"""Damage to a pack, and what the warning says."""


@pytest.mark.parametrize("name", IGNORED)
def test_a_pack_that_is_not_right_is_ignored_with_one_warning(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damage, reason = IGNORED[name]
    copy = _copy(pack, tmp_path)
    damage(copy)
    count, call = CALLS["fprop"]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(copy)
    with caplog.at_level("WARNING", "gpuconv"):
        seen, looked_up = _observe(gpu, call, "auto")
    assert looked_up == [count, 0, 0] and seen == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"ignored pack {copy}: ") and reason in warning


def test_packs_of_another_architecture_have_nothing_and_say_so_once(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = _copy(pack, tmp_path)
    _foreign(copy)
    count, call = CALLS["fprop"]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(copy)
    with caplog.at_level("WARNING", "gpuconv"):
        seen, looked_up = _observe(gpu, call, "auto")
        CALLS["max_pool"][1]()
    assert looked_up == [count, 0, 0] and seen == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"packs have launches for sm_80, and none for sm_90: {copy}"


def test_beside_one_for_this_gpu_packs_for_others_are_no_news(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = _copy(pack, tmp_path)
    _foreign(copy)
    use_packs(copy, pack)
    with caplog.at_level("WARNING", "gpuconv"):
        assert _observe(gpu, CALLS["fprop"][1], "auto")[1] == [0, 0, 0]
        assert _observe(gpu, CALLS["fprop, unaligned"][1], "auto")[1] == [1, 0, 0]
    assert not caplog.records


def test_a_folder_of_another_user_is_ignored(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    copy, me = _copy(pack, tmp_path), os.getuid()
    if me == 0:
        os.chown(copy, 4242, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
    use_packs(copy)
    with caplog.at_level("WARNING", "gpuconv"):
        assert _observe(gpu, CALLS["fprop"][1], "auto")[1] == [CALLS["fprop"][0], 0, 0]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"belongs to user {me or 4242}; GPUCONV_PACKS_TRUST=1" in warning


def test_a_folder_that_others_may_write_can_be_forced(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = _copy(pack, tmp_path)
    copy.chmod(0o777)
    monkeypatch.setenv("GPUCONV_PACKS_TRUST", "1")
    use_packs(copy)
    assert _observe(gpu, CALLS["fprop"][1], "auto")[1] == [0, 0, 0]


def _swapped(pack: Path) -> None:
    one, other, *_ = sorted((pack / "cubins").iterdir())
    content, others = one.read_bytes(), other.read_bytes()
    for path in (pack / "cubins").iterdir():
        path.write_bytes(others if path != other else content)


def _cut(pack: Path) -> None:
    for path in (pack / "cubins").iterdir():
        path.write_bytes(path.read_bytes()[:-40])


def _bomb(pack: Path) -> None:
    content = lzma.compress(bytes(32 << 20), preset=0)
    for path in (pack / "cubins").iterdir():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_swapped, "its content has another hash"),
        (_cut, "is damaged"),
        (_bomb, "its content has another hash"),
        (lambda pack: shutil.rmtree(pack / "cubins") or (pack / "cubins").mkdir(), "cannot be read"),
    ],
    ids=("swapped", "cut", "bomb", "missing"),
)
def test_a_cubin_that_is_not_right_is_found_before_it_is_loaded(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, reason: str
) -> None:
    copy = _copy(pack, tmp_path)
    damage(copy)
    count, call = CALLS["fprop"]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(copy)
    with caplog.at_level("WARNING", "gpuconv"):
        seen, looked_up = _observe(gpu, call, "auto")
    assert looked_up == [count, 0, 0] and seen == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert reason in warning and "such launches go through Triton" in warning


def test_a_cubin_that_the_driver_refuses_costs_one_warning(
    gpu: StubGpu, pack: Path, use_packs: Use, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(found: Any, device: int) -> int:
        raise driver.DriverError("cubin for sm_90a: CUDA error 222: the PTX was compiled with a newer toolchain")

    monkeypatch.setattr(driver, "_function", refuse)
    use_packs(pack)
    with caplog.at_level("WARNING", "gpuconv"):
        for name in ("fprop", "dgrad", "fprop"):
            assert _observe(gpu, CALLS[name][1], "auto")[1] == [1, 0, 0]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "CUDA error 222" in warning


def test_threads_load_a_cubin_once(gpu: StubGpu, pack: Path, use_packs: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use_packs(pack)
    loaded, original = [], driver._function

    def slowly(found: Any, device: int) -> int:
        loaded.append(found.entry.name)
        time.sleep(0.05)
        return original(found, device)

    monkeypatch.setattr(driver, "_function", slowly)
    found = next(iter(search.packs()[0].entries))
    kernels: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: kernels.append(driver.load(search.Found(search.packs()[0], found), 0, gpu.on_device))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1 and len(kernels) == 8 and len({kernel.function for kernel in kernels}) == 1


def test_a_pack_is_the_same_twice_and_the_second_run_compiles_nothing(pack: Path, gpu: StubGpu, tmp_path: Path) -> None:
    problems = problems_of([CALLS["fprop"][1], CALLS["max_pool"][1]])
    first, second = tmp_path / "first", tmp_path / "second"
    built = [build_pack({"first": problems}, ["sm_90"], folder) for folder in (first, second, second)]
    assert [each.compiled for each in built] == [built[0].entries, built[0].entries, 0]
    contents = [
        {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in (first, second)
    ]
    assert contents[0] == contents[1] and 2 <= len(contents[0]) <= built[0].cubins + 1
