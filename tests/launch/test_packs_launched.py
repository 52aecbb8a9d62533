"""Launches from packs in threads, on two devices, beside launches of Triton's, and from packs that are not right."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_packs
from launch_cases import CALLS
from stub_gpu import StubGpu, launcher
from test_launch import _observe
from test_packs import KERNEL, SOURCE, Use, _copy, _Device, _without_functions, problems_of

from gpuconv.arrays import TORCH
from gpuconv.backends.cupy import common as cupy_common
from gpuconv.backends.triton import common
from gpuconv.dispatch.plan_cache import CACHE
from gpuconv.packing import build_pack
from gpuconv.packs import driver, search
from gpuconv.packs.elf import parameter_sizes
from gpuconv.packs.index import PackError, read_cubin, read_index, write_pack

use_packs, cuda_pack = test_packs.use_packs, test_packs.cuda_pack

NAMES = ("fprop, packed and split", "max_pool", "wgrad")


@pytest.fixture(scope="module")
def pack(_gpu: StubGpu, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of what a few calls launch."""
    folder = tmp_path_factory.mktemp("packs") / "pack"
    built = build_pack({"first": problems_of([CALLS[name][1] for name in NAMES])}, ["sm_90"], folder)
    assert built.failures == () and built.entries == 6
    return folder


# contexts


@pytest.fixture
def no_context(gpu: StubGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a guard of the device that is current do what torch's does: nothing."""
    monkeypatch.setattr(common, "_device_guard", lambda problem: nullcontext())
    yield
    gpu.library.stub_set_device(0)


def _in_a_thread(call: Callable[[], Any]) -> list[BaseException]:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return failures


@pytest.mark.parametrize("kind", ["auto", "python", "triton"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_thread_without_a_context_gets_that_of_the_device(
    gpu: StubGpu, no_context: None, pack: Path, use_packs: Use, kind: str, loaded: bool
) -> None:
    """A new thread has none, and an allocation from torch's cache makes none: the driver would refuse with 201."""
    use_packs(pack)
    call = CALLS["max_pool"][1]
    with launcher(kind):
        if loaded:
            call()
            call()
        assert _in_a_thread(lambda: [call() for _ in range(3)]) == []
    launches = gpu.launches()
    assert len(launches) == (5 if loaded else 3) and {launch.context for launch in launches} == {gpu.context()}


@pytest.mark.parametrize("kind", ["auto", "python", "native"])
def test_each_device_loads_for_itself(
    gpu: StubGpu, pack: Path, use_packs: Use, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_packs(pack)
    count, call = CALLS["fprop, packed and split"]
    contexts: dict[str, set[int]] = {}
    functions: dict[str, list[Any]] = {}
    for device in ("cuda:0", "cuda:1", "cuda:0", "cuda:1"):
        monkeypatch.setattr(type(TORCH), "device", lambda self, array, device=device: device)
        CACHE.clear()  # its keys are those of the tensors, which are all on the CPU
        gpu.reset()
        with launcher(kind):
            for _ in range(3):
                call()
        launches = gpu.launches()
        assert len(launches) == 3 * count
        functions.setdefault(device, []).append([launch.function for launch in launches])
        contexts.setdefault(device, set()).update(launch.context for launch in launches)
    assert functions["cuda:0"][0] == functions["cuda:0"][1] and functions["cuda:1"][0] == functions["cuda:1"][1]
    assert not {*functions["cuda:0"][0]} & {*functions["cuda:1"][0]}
    assert [len(some) for some in contexts.values()] == [1, 1] and contexts["cuda:0"] != contexts["cuda:1"]


# beside Triton


@pytest.mark.parametrize("name", ["fprop, packed and split", "wgrad"])
def test_a_pack_that_has_a_part_of_a_call(gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, name: str) -> None:
    """Each launch missing in turn: that one goes through Triton, in its place among the others."""
    count, call = CALLS[name]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    index = read_index(pack)
    mixed = 0
    for place in range(len(index.entries)):
        copy = _copy(pack, tmp_path / str(place))
        _change_entries(copy, lambda entries, place=place: entries.pop(place))
        use_packs(copy)
        for kind in ("auto", "python", "native", "triton"):
            seen, looked_up = _observe(gpu, call, kind)
            assert _without_functions(seen) == _without_functions(expected)
            assert looked_up in ([0, 0, 0], [1, 0, 0], [1, 1, 1] if kind == "triton" else [1, 0, 0])
            mixed += looked_up[0]
    assert mixed == 4 * count


def test_packs_come_and_go_between_calls(
    gpu: StubGpu, pack: Path, use_packs: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS["max_pool"][1]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    for kind in ("auto", "python", "triton"):
        for folder, looked_up in ((str(pack), 0), ("", 1), (f"{pack}/../nothing", 1), (f"{pack}/../pack", 0)):
            monkeypatch.setenv("GPUCONV_PACKS", folder)
            seen, found = _observe(gpu, call, kind)
            assert found[0] == looked_up and _without_functions(seen) == _without_functions(expected)


# what is not right


def _change_entries(pack: Path, change: Callable[[list[Any]], Any]) -> None:
    path = pack / "index.json"
    data = json.loads(path.read_text())
    change(data["entries"])
    path.write_text(json.dumps(data))


def _each(**changed: Any) -> Callable[[list[Any]], Any]:
    return lambda entries: [entry.update(changed) for entry in entries]


def _fewer(entries: list[Any]) -> None:
    for entry in entries:
        entry["parameters"].pop()


def _renamed(entries: list[Any]) -> None:
    for entry in entries:
        if not entry["tensor_maps"]:  # which the index names once more
            entry["parameters"][0][0] = "other_ptr"


def _wider(entries: list[Any]) -> None:
    for entry in entries:
        next(parameter for parameter in entry["parameters"] if parameter[1] == "i32")[1] = "i64"


def _unaligned(entries: list[Any]) -> None:
    for entry in entries:
        entry["parameters"][0][2] = False


CHANGES = {
    "fewer": _fewer, "renamed": _renamed, "wider": _wider, "unaligned": _unaligned,
    "none": _each(parameters=[], tensor_maps=[]), "other constants": _each(constants={}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_parameters_that_are_not_those_of_the_call_are_not_launched(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    copy = _copy(pack, tmp_path)
    _change_entries(copy, CHANGES[name])
    count, call = CALLS["max_pool"]
    use_packs()
    expected, _ = _observe(gpu, call, "triton")
    use_packs(copy)
    with caplog.at_level("WARNING", "gpuconv"):
        seen, looked_up = _observe(gpu, call, "auto")
    assert looked_up == [count, 0, 0] and seen == expected
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "are not those of its key" in warning


def test_launches_that_share_a_cubin_keep_their_own_names(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path
) -> None:
    """Two launches may become the same code, and call its parameters otherwise: of each its own bytes are sent."""
    index = read_index(pack)
    one = index.entries[0]
    names = [name for name, type_, _ in one.parameters if type_ == "i32"]
    swap = {names[0]: names[1], names[1]: names[0]}
    other = replace(
        one, key="ab" * 32, parameters=tuple((swap.get(name, name), *rest) for name, *rest in one.parameters)
    )
    cubins = {one.cubin: read_cubin(pack, index, one.cubin)}
    write_pack(tmp_path / "pack", replace(index, cubins={}, entries=(one, other)), cubins)
    use_packs(tmp_path / "pack")
    found = search.packs()[0]
    kernels = [driver.load(search.Found(found, entry), 0, gpu.on_device) for entry in found.entries]
    assert kernels[0].function == kernels[1].function
    values = {name: 0 for name, *_ in one.parameters} | {names[0]: 5, names[1]: 7}
    sent = {kernel.entry.key: kernel.bytes_of(values) for kernel in kernels}
    places = [[name for name, *_ in one.parameters].index(name) for name in names[:2]]
    five, seven = (number.to_bytes(4, "little") for number in (5, 7))
    assert [sent[one.key][place] for place in places] == [five, seven]
    assert [sent[other.key][place] for place in places] == [seven, five]


def test_a_cubin_says_what_its_kernel_takes(
    gpu: StubGpu, pack: Path, use_packs: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Were the cubin of another launch of that kernel named, the driver would read beyond what it is given."""
    index = read_index(pack)
    for entry in index.entries:
        sizes = [size for parameter in entry.layout.parameters for size in parameter.sizes] + [8, 8]
        assert parameter_sizes(read_cubin(pack, index, entry.cubin), entry.name) == sizes
    one = index.entries[0]
    few = replace(one, parameters=one.parameters[:-1], constants={**one.constants, one.parameters[-1][0]: 1})
    cubin = read_cubin(pack, index, one.cubin)
    write_pack(tmp_path / "pack", replace(index, cubins={}, entries=(few,)), {one.cubin: cubin})
    use_packs(tmp_path / "pack")
    (found,) = search.packs()
    with pytest.raises(PackError, match=rf"{one.name} takes {len(one.parameters) + 2} parameters of \d+ bytes, not"):
        driver.load(search.Found(found, few), 0, gpu.on_device)
    for damaged in (b"", cubin[:100], b"\x7fELF" + bytes(60), b"\x7fELF" + b"\xff" * 100):
        assert parameter_sizes(damaged, one.name) is None


def test_the_command_verifies_what_kernels_take(pack: Path, tmp_path: Path) -> None:
    pytest.importorskip("typer", reason="the command line needs typer")
    from typer.testing import CliRunner

    from gpuconv.cli.main import app

    copy = _copy(pack, tmp_path)
    _change_entries(copy, _fewer)
    done = CliRunner().invoke(app, ["pack", "--verify", str(copy)])
    assert done.exit_code == 2 and " parameters of " in done.output
    assert CliRunner().invoke(app, ["pack", "--verify", str(pack)]).exit_code == 0


# CUDA C++


def test_kernels_of_cuda_follow_the_packs_of_the_environment(gpu: StubGpu, cuda_pack: Path, use_packs: Use) -> None:
    kernel = cupy_common._Kernel(SOURCE, KERNEL)
    empty = cuda_pack.parent / "without it"
    index = read_index(cuda_pack)
    other = replace(index.cuda[0], key="cd" * 32)
    cubins = {other.cubin: read_cubin(cuda_pack, index, other.cubin)}
    write_pack(empty, replace(index, cubins={}, cuda=(other,)), cubins)
    arguments = (SimpleNamespace(data=SimpleNamespace(ptr=0)), np.zeros((), np.uintp), np.zeros((), np.int64))

    def launched() -> bool:
        gpu.reset()
        try:
            kernel((7,), (96,), arguments)
        except AssertionError:
            return False
        return len(gpu.launches()) == 1

    use_packs(cuda_pack)
    (found,) = search.packs()[0].entries
    gpu.declare_sizes(driver.load(search.Found(search.packs()[0], found), 0, _Device).function, [8, 8, 8])
    assert launched()
    use_packs(empty)
    assert not launched()
    use_packs(cuda_pack)
    gpu.declare_sizes(driver.load(search.Found(search.packs()[0], found), 0, _Device).function, [8, 8, 8])
    assert launched()
